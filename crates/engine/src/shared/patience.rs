//! Who of those that wait for a function goes first: the newest while its clients hang up, else the oldest.
//!
//! In order of arrival an overload makes everybody wait for as long as clients have patience: then whoever is served is about to
//! hang up, and nothing that is done is of use to anybody. So while clients of a function hang up, its newest invocation goes
//! first: Adaptive LIFO (Maurer, "Fail at Scale", ACM Queue 13(8), 2015), by the hang-ups themselves in place of a measured queue.
//! Whoever has waited for two seconds is not starved by that: every fourth turn is for the oldest then. How long those who hung up
//! had waited says nothing here, so that nobody can keep others waiting by when he hangs up.

use std::time::Duration;

use dispatch::Order;
use model::Time;

/// For how long after a hang-up the newest goes first.
pub(super) const REMEMBERED: Duration = Duration::from_secs(1);
/// Who has waited for so long has turns all the same.
pub(super) const PATIENT_AFTER: Duration = Duration::from_secs(2);
/// Of so many turns one is for the oldest then.
pub(super) const PATIENT_TURN: u32 = 4;

/// What the hang-ups of a function's clients tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Patience {
    hung_up: Option<Time>,
    /// Turns that the newest had while somebody patient waited.
    passed: u32,
}

impl Patience {
    /// A client hung up, or its deadline passed, while it waited for its turn or for its result.
    pub(super) fn hung_up(&mut self, now: Time) {
        self.hung_up = Some(now);
    }

    /// Who goes next, where the oldest has waited for so long.
    pub(super) fn order(&mut self, now: Time, oldest: Duration) -> Order {
        if self.hung_up.is_none_or(|at| at + REMEMBERED <= now) {
            return Order::Oldest;
        }
        if oldest < PATIENT_AFTER {
            return Order::Newest;
        }
        self.passed += 1;
        if self.passed < PATIENT_TURN {
            return Order::Newest;
        }
        self.passed = 0;
        Order::Oldest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client hangs up at 0, then one after the other is taken at `now` (ms) while the oldest has waited for `oldest`; N is the
    /// newest.
    fn check(hung_up: Option<Time>, (now, oldest): (u64, u64), expected: &str) {
        let mut patience = Patience { hung_up, passed: 0 };
        let taken: String = (0..expected.len())
            .map(|_| match patience.order(Time::from_millis(now), Duration::from_millis(oldest)) {
                Order::Oldest => 'o',
                Order::Newest => 'N',
            })
            .collect();
        assert_eq!(taken, expected, "{hung_up:?}, at {now} with the oldest at {oldest}");
    }

    #[test]
    fn the_newest_goes_first_for_a_second_after_a_hang_up() {
        check(None, (0, 5_000), "ooooo");
        check(Some(Time::ZERO), (999, 1_999), "NNNNN");
        check(Some(Time::ZERO), (1_000, 1_999), "ooooo");
    }

    #[test]
    fn who_has_waited_for_two_seconds_has_every_fourth_turn() {
        check(Some(Time::ZERO), (1, 2_000), "NNNoNNNo");
    }
}
