//! The largest rate that would be admitted: numbers people can write, three digits.

use std::time::Duration;

use model::Rate;

/// 0.0100/s to 10,000/s: six decades of 900 steps, each less than 1.01 times the one before.
const STEPS: u32 = 5_401;
/// How often a rate just above a found one is tried again, should more rate need less of something.
const MAX_CLIMBS: u32 = 8;

/// The rate of a step, `None` beyond the grid.
fn rate_of(step: u32) -> Option<Rate> {
    let digits = u64::from(100 + step % 900);
    let (invocations, per) = match step / 900 {
        0 => (digits, Duration::from_secs(10_000)),
        1 => (digits, Duration::from_secs(1_000)),
        2 => (digits, Duration::from_secs(100)),
        3 => (digits, Duration::from_secs(10)),
        4 => (digits, Duration::from_secs(1)),
        5 => (digits * 10, Duration::from_secs(1)),
        6 => (digits * 100, Duration::from_secs(1)),
        _ => return None,
    };
    Rate::new(invocations, per).ok()
}

/// The largest rate of the grid below `asked` that `fits`, such that 1.02 times it does not; `None` when none does.
///
/// Less rate needs less of every resource on the same cores, so the search halves; the step above is then tried once more,
/// because a different choice of cores might make an exception.
pub(super) fn largest(asked: Rate, fits: impl Fn(Rate) -> bool) -> Option<Rate> {
    let below_asked = |step: u32| rate_of(step).is_some_and(|rate| rate < asked);
    let end = first_not(0, STEPS, below_asked);
    let fits_step = |step: u32| rate_of(step).is_some_and(&fits);
    let mut found = first_not(0, end, fits_step).checked_sub(1)?;
    for _ in 0..MAX_CLIMBS {
        // 1.02 times a rate is 2 to 19 steps above it.
        let above = (found + 1..end.min(found + 21)).rev().find(|step| within_two_percent(found, *step));
        let Some(above) = above.filter(|step| fits_step(*step)) else { break };
        found = first_not(above + 1, end, fits_step) - 1;
    }
    rate_of(found)
}

/// `step`'s rate is at most 1.02 times `found`'s.
fn within_two_percent(found: u32, step: u32) -> bool {
    match (rate_of(found), rate_of(step)) {
        (Some(low), Some(high)) => {
            let scaled = |rate: Rate, by: u128| u128::from(rate.invocations()) * by;
            scaled(high, 100) * u128::from(low.per_ns()) <= scaled(low, 102) * u128::from(high.per_ns())
        }
        (None, _) | (_, None) => false,
    }
}

/// The first of `from..end` for which `holds` fails, when it holds for all before; `end` when it holds for all.
fn first_not(from: u32, end: u32, holds: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (from, end);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_grid_reaches_from_the_slowest_rate_to_the_fastest() {
        assert_eq!(rate_of(0), "0.01/s".parse().ok());
        assert_eq!(rate_of(STEPS - 1), "10000/s".parse().ok());
        assert_eq!(rate_of(3 * 900 + 145), "24.5/s".parse().ok());
    }

    proptest! {
        #[test]
        fn the_offer_is_less_than_one_percent_below_the_limit(limit in 11_u64..9_000_000, asked in 1_u64..10_000) {
            let limit = Rate::new(limit, Duration::from_secs(1000)).unwrap();
            let asked = Rate::per_second(asked).unwrap();
            match largest(asked, |rate| rate <= limit) {
                Some(offer) if limit < asked => {
                    prop_assert!(offer <= limit);
                    let raised = Rate::new(offer.invocations() * 101, Duration::from_nanos(offer.per_ns() * 100));
                    prop_assert!(raised.is_ok_and(|raised| limit <= raised));
                }
                Some(offer) => prop_assert!(offer < asked),
                None => prop_assert!(asked <= rate_of(0).unwrap()),
            }
        }
    }
}
