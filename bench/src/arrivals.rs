//! Instants that keep to a promise's envelope, computed before anything is sent.

use std::time::Duration;

use cli::load::{Arrivals, Schedule};
use model::Rate;

/// How a function is invoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Poisson arrivals at the full rate, those beyond the envelope moved to where they conform.
    Poisson,
    /// As many at once as the envelope allows, again as soon as it allows.
    Bursts,
}

/// Instants up to `length`, at most `burst + rate t` of them in any window of length t.
///
/// Whoever is promised one more at once than `burst` sees all of them conform, however the way to the node shifts them, up to
/// one period.
pub(crate) fn within(rate: Rate, burst: u32, length: Duration, pattern: Pattern) -> Vec<u64> {
    let mut instants = match pattern {
        Pattern::Poisson => shaped(rate, burst, length),
        Pattern::Bursts => (0..rate.ceil_in(length)).map(|index| periods(rate, index - index % u64::from(burst))).collect(),
    };
    let end = nanoseconds(length);
    instants.retain(|at| *at < end);
    instants
}

/// Evenly spread instants.
pub(crate) fn even(rate: Rate, length: Duration) -> Vec<u64> {
    Schedule::new(rate, length, Arrivals::Even).map(nanoseconds).collect()
}

/// Poisson arrivals through the generic cell rate algorithm, each at the first instant from its own at which it conforms.
fn shaped(rate: Rate, burst: u32, length: Duration) -> Vec<u64> {
    // The theoretical arrival time is `since + taken / rate`: no error adds up.
    let (mut since, mut taken) = (0, 0);
    let poisson = Schedule::new(rate, length, Arrivals::Poisson { seed: 1 });
    let conforming = poisson.map(|at| {
        let at = nanoseconds(at);
        if since + periods(rate, taken) <= at {
            (since, taken) = (at, 0);
        }
        taken += 1;
        at.max(since + periods(rate, taken.saturating_sub(u64::from(burst))))
    });
    conforming.collect()
}

/// `count / rate` in nanoseconds, rounded up.
fn periods(rate: Rate, count: u64) -> u64 {
    let ns = (u128::from(count) * u128::from(rate.per_ns())).div_ceil(u128::from(rate.invocations()));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_keep_to_their_envelope_at_the_full_rate() {
        let rate = Rate::per_second(40).unwrap();
        for pattern in [Pattern::Poisson, Pattern::Bursts] {
            let instants = within(rate, 3, Duration::from_secs(60), pattern);
            assert!((2_200..=2_403).contains(&instants.len()), "{pattern:?}: {}", instants.len());
            for (index, window) in instants.windows(50).enumerate() {
                // 50 of them at once would be 47 more than 3: they take 47 periods at least.
                assert!(47 * 25_000_000 <= window[49] - window[0], "{pattern:?} at {index}");
            }
            assert!(instants.windows(4).all(|four| 25_000_000 <= four[3] - four[0]), "{pattern:?}");
        }
    }
}
