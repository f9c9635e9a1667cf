//! When invocations are meant to be sent.

use std::time::Duration;

use model::Rate;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How the instants are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// One every 1/rate, exactly: the i-th at `floor(i / rate)` nanoseconds.
    Even,
    /// Independent of each other, exponentially distributed gaps of 1/rate on average; the same seed gives the same ones.
    Poisson { seed: u64 },
}

/// The instants of one load, from its start.
#[derive(Debug)]
pub struct Schedule {
    spread: Spread,
}

#[derive(Debug)]
enum Spread {
    Even { rate: Rate, end: Duration, next: u64 },
    Poisson { rate: Rate, end: Duration, random: Box<ChaCha8Rng>, at_ns: f64 },
    Given(std::vec::IntoIter<Duration>),
}

impl Schedule {
    /// Instants from zero up to, not including, `length`.
    #[must_use]
    pub fn new(rate: Rate, length: Duration, arrivals: Arrivals) -> Self {
        let end = length;
        let spread = match arrivals {
            Arrivals::Even => Spread::Even { rate, end, next: 0 },
            Arrivals::Poisson { seed } => {
                let random = Box::new(ChaCha8Rng::seed_from_u64(seed));
                Spread::Poisson { rate, end, random, at_ns: 0.0 }
            }
        };
        Self { spread }
    }

    /// Exactly these instants, in ascending order.
    #[must_use]
    pub fn at(mut instants: Vec<Duration>) -> Self {
        instants.sort_unstable();
        Self { spread: Spread::Given(instants.into_iter()) }
    }

    /// How many instants there are, on average for Poisson arrivals.
    #[must_use]
    pub fn expected(&self) -> u64 {
        match &self.spread {
            Spread::Even { rate, end, .. } | Spread::Poisson { rate, end, .. } => rate.ceil_in(*end),
            Spread::Given(left) => u64::try_from(left.len()).unwrap_or(u64::MAX),
        }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let (at, end) = match &mut self.spread {
            Spread::Even { rate, end, next } => {
                let index = u128::from(*next);
                *next += 1;
                let ns = index * u128::from(rate.per_ns()) / u128::from(rate.invocations());
                (Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)), *end)
            }
            Spread::Poisson { rate, end, random, at_ns } => {
                // The inverse of the exponential distribution; 1 - u is never zero.
                let u: f64 = random.random();
                *at_ns -= (1.0 - u).ln() * 1e9 / rate.per_second_f64();
                (Duration::from_secs_f64((*at_ns / 1e9).min(1e9)), *end)
            }
            Spread::Given(instants) => return instants.next(),
        };
        (at < end).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instants(rate: &str, length: Duration, arrivals: Arrivals) -> Vec<Duration> {
        Schedule::new(rate.parse().unwrap(), length, arrivals).collect()
    }

    #[test]
    fn even_arrivals_never_drift() {
        let hour = instants("3/s", Duration::from_secs(3600), Arrivals::Even);
        assert_eq!(hour.len(), 10_800);
        assert_eq!(hour[10_797], Duration::from_secs(3599));
        assert_eq!(instants("1/s", Duration::from_secs(1), Arrivals::Even), [Duration::ZERO]);
    }

    #[test]
    fn poisson_arrivals_keep_the_rate_on_average_and_repeat() {
        let once = instants("100/s", Duration::from_secs(1000), Arrivals::Poisson { seed: 7 });
        // 100,000 expected, standard deviation 316.
        assert!((98_500..101_500).contains(&once.len()), "{}", once.len());
        assert_eq!(instants("100/s", Duration::from_secs(1000), Arrivals::Poisson { seed: 7 }), once);
        assert_ne!(instants("100/s", Duration::from_secs(1000), Arrivals::Poisson { seed: 8 }), once);
    }

    #[test]
    fn given_instants_are_taken_in_order() {
        let schedule = Schedule::at([7, 0, 7].map(Duration::from_millis).to_vec());
        assert_eq!(schedule.expected(), 3);
        assert_eq!(schedule.collect::<Vec<_>>(), [0, 7, 7].map(Duration::from_millis));
    }

    proptest! {
        #[test]
        fn instants_ascend_and_end(rate in 1_u64..1000, ms in 0_u64..500, seed: u64, even: bool) {
            let arrivals = if even { Arrivals::Even } else { Arrivals::Poisson { seed } };
            let length = Duration::from_millis(ms);
            let all: Vec<Duration> = Schedule::new(Rate::per_second(rate).unwrap(), length, arrivals).collect();
            prop_assert!(all.is_sorted());
            prop_assert!(all.iter().all(|at| *at < length));
            if even {
                prop_assert_eq!(all.len() as u64, Rate::per_second(rate).unwrap().ceil_in(length));
            }
        }
    }
}
