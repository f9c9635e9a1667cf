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
    rate: Rate,
    end: Duration,
    spread: Spread,
}

#[derive(Debug)]
enum Spread {
    Even { next: u64 },
    Poisson { random: Box<ChaCha8Rng>, at_ns: f64 },
}

impl Schedule {
    /// Instants from zero up to, not including, `length`.
    #[must_use]
    pub fn new(rate: Rate, length: Duration, arrivals: Arrivals) -> Self {
        let spread = match arrivals {
            Arrivals::Even => Spread::Even { next: 0 },
            Arrivals::Poisson { seed } => Spread::Poisson { random: Box::new(ChaCha8Rng::seed_from_u64(seed)), at_ns: 0.0 },
        };
        Self { rate, end: length, spread }
    }

    /// How many instants there are, on average for Poisson arrivals.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.rate.ceil_in(self.end)
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let at = match &mut self.spread {
            Spread::Even { next } => {
                let index = u128::from(*next);
                *next += 1;
                let ns = index * u128::from(self.rate.per_ns()) / u128::from(self.rate.invocations());
                Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
            }
            Spread::Poisson { random, at_ns } => {
                // The inverse of the exponential distribution; 1 - u is never zero.
                let u: f64 = random.random();
                *at_ns -= (1.0 - u).ln() * 1e9 / self.rate.per_second_f64();
                Duration::from_secs_f64((*at_ns / 1e9).min(1e9))
            }
        };
        (at < self.end).then_some(at)
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
