//! How long the clients of a function wait, as their hang-ups tell, and who of them is served first therefore.
//!
//! In order of arrival an overload makes everybody wait for as long as clients have patience: then whoever is served is about to
//! hang up, and nothing that is done is of use to anybody. So while clients of a function hang up, its newest invocation goes
//! first: Adaptive LIFO (Maurer, "Fail at Scale", ACM Queue 13(8), 2015), by the hang-ups themselves in place of a measured queue.
//! Whoever has waited for twice as long as those who hung up is of another kind: every second turn is for the oldest of these.

use std::time::Duration;

use dispatch::Order;
use model::Time;

/// For how long after a hang-up the newest goes first.
pub(super) const REMEMBERED: Duration = Duration::from_secs(1);
/// Waits of those who hung up after which a client is known to have more patience than they had.
const PATIENT_AFTER: u32 = 2;

/// What the hang-ups of a function's clients tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Patience {
    last: Option<HungUp>,
    /// Whose turn it is where somebody patient waits.
    turn: Turn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HungUp {
    at: Time,
    /// How long those who hung up had waited at most; each further one takes an eighth off.
    waited: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    Patient,
    #[default]
    Newest,
}

impl Patience {
    /// A client hung up, or its deadline passed, after it had waited for so long, be it for its turn or for its result.
    pub(super) fn hung_up(&mut self, now: Time, waited: Duration) {
        let before = self.recent(now).map_or(Duration::ZERO, |last| last.waited);
        self.last = Some(HungUp { at: now, waited: waited.max(before - before / 8) });
    }

    /// Who goes next, where the oldest has waited for so long.
    pub(super) fn order(&mut self, now: Time, oldest: Duration) -> Order {
        let Some(last) = self.recent(now) else { return Order::Oldest };
        if oldest < last.waited * PATIENT_AFTER {
            return Order::Newest;
        }
        let (order, next) = match self.turn {
            Turn::Patient => (Order::Oldest, Turn::Newest),
            Turn::Newest => (Order::Newest, Turn::Patient),
        };
        self.turn = next;
        order
    }

    fn recent(&self, now: Time) -> Option<HungUp> {
        self.last.filter(|last| now < last.at + REMEMBERED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Clients hang up at such times after such waits (ms), then one after the other is taken at `now` while the oldest has waited
    /// for `oldest`; N is the newest.
    fn check(hang_ups: &[(u64, u64)], (now, oldest): (u64, u64), expected: &str) {
        let mut patience = Patience::default();
        for (at, waited) in hang_ups {
            patience.hung_up(Time::from_millis(*at), ms(*waited));
        }
        let mut taken = String::new();
        for _ in 0..expected.len() {
            taken.push(match patience.order(Time::from_millis(now), ms(oldest)) {
                Order::Oldest => 'o',
                Order::Newest => 'N',
            });
        }
        assert_eq!(taken, expected, "{hang_ups:?}, at {now} with the oldest at {oldest}");
    }

    #[test]
    fn the_newest_goes_first_for_a_second_after_a_hang_up() {
        check(&[], (0, 5_000), "oooo");
        check(&[(0, 500)], (999, 400), "NNNN");
        check(&[(0, 500)], (1_000, 400), "oooo");
    }

    #[test]
    fn who_has_waited_for_twice_as_long_as_those_who_hung_up_has_every_second_turn() {
        check(&[(0, 500)], (1, 999), "NNNN");
        check(&[(0, 500)], (1, 1_000), "NoNo");
        check(&[(0, 500), (10, 0)], (11, 875), "NoNo");
        check(&[(0, 500), (1_500, 100)], (1_501, 200), "NoNo");
    }
}
