//! The envelopes of guaranteed functions, as a lane sees them that does not run them.
//!
//! Requests for a guaranteed function also come in on the best-effort lane: large ones, and those on connections that keep off
//! the guaranteed lane. Those that conform belong to the guarantee and cost the guaranteed lane nothing that admission did not
//! count; the rest must be paid for. A mirror tells them apart, with a pacer of its own on the same terms. It does not see
//! the slots that are taken in the guaranteed lane itself, so that lane has the last word: of what a mirror lets through while
//! others use up the envelope there, some find no slot. Where nobody else asks, a mirror and the pacer agree.

use std::collections::BTreeMap;

use std::time::Duration;

use dispatch::{Pacer, Slot};
use model::{FunctionKey, Overflow, RateClassName, Time};

use crate::port::Reservation;

/// What a mirror says of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It conforms by what came this way.
    Conforms,
    /// What came this way alone is more than the envelope holds. The next arrival conforms at `next` at the earliest.
    Beyond { overflow: Overflow, next: Time },
    /// The function has no guarantee here.
    Unknown,
}

/// Whose arrivals share an envelope.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Paced {
    Function(FunctionKey),
    Class(RateClassName),
}

/// What is known of a guaranteed function.
#[derive(Clone, Debug)]
struct Terms {
    paced: Paced,
    overflow: Overflow,
    /// D.
    deadline: Option<Duration>,
}

/// One pacer for each guaranteed function or rate class.
#[derive(Clone, Debug, Default)]
pub struct Mirrors {
    functions: BTreeMap<FunctionKey, Terms>,
    pacers: BTreeMap<Paced, Pacer>,
}

impl Mirrors {
    /// A function has this reservation from now on, whether or not it had one before.
    pub fn set(&mut self, function: FunctionKey, reservation: &Reservation) {
        let (rate, burst, class) = reservation.pacing();
        let paced = class.map_or(Paced::Function(function), Paced::Class);
        let deadline = reservation.terms.deadline.map(|deadline| deadline.0);
        self.functions.insert(function, Terms { paced: paced.clone(), overflow: reservation.terms.overflow, deadline });
        self.pacers.entry(paced).or_insert_with(|| Pacer::new(rate, burst)).change(rate, burst);
        self.drop_unused();
    }

    /// The function is gone.
    pub fn remove(&mut self, function: FunctionKey) {
        self.functions.remove(&function);
        self.drop_unused();
    }

    /// Takes a slot for an arrival at `at`, if there is one.
    pub fn classify(&mut self, function: FunctionKey, at: Time) -> Seen {
        let Some(Terms { paced, overflow, .. }) = self.functions.get(&function) else { return Seen::Unknown };
        let Some(pacer) = self.pacers.get_mut(paced) else { return Seen::Unknown };
        match pacer.classify(at) {
            Slot::Taken { .. } => Seen::Conforms,
            Slot::NotBefore(next) => Seen::Beyond { overflow: *overflow, next },
        }
    }

    /// How many invocations of a function may wait for a slot at once, and how long from their arrival each has to end; `None`
    /// where what exceeds its envelope does not wait.
    #[must_use]
    pub fn queue(&self, function: FunctionKey) -> Option<(u32, Option<Duration>)> {
        let terms = self.functions.get(&function)?;
        match terms.overflow {
            Overflow::Queue { limit } => Some((limit, terms.deadline)),
            Overflow::BestEffort | Overflow::Reject => None,
        }
    }

    fn drop_unused(&mut self) {
        let functions = &self.functions;
        self.pacers.retain(|paced, _| functions.values().any(|terms| terms.paced == *paced));
    }
}

#[cfg(test)]
mod tests {
    use model::{Burst, Rate, RateClass};

    use super::*;
    use crate::world;

    fn reservation(rate: u64, burst: u32, class: Option<&str>) -> Reservation {
        let (rate, burst) = (Rate::per_second(rate).unwrap(), Burst::new(burst).unwrap());
        let mut reservation = world::subject(1, rate, burst.get(), Duration::from_millis(1)).reservation().clone();
        if let Some(name) = class {
            let name: RateClassName = name.parse().unwrap();
            reservation.terms.pacing = model::Pacing::Shared(name.clone());
            reservation.rate_class = Some(RateClass { name, rate, burst });
        }
        reservation
    }

    fn conforming(mirrors: &mut Mirrors, function: u64, at: Time, count: u32) -> u32 {
        (0..count).map(|_| u32::from(mirrors.classify(FunctionKey(function), at) == Seen::Conforms)).sum()
    }

    #[test]
    fn a_mirror_lets_through_what_conforms_and_says_when_the_rest_would() {
        let mut mirrors = Mirrors::default();
        mirrors.set(FunctionKey(1), &reservation(10, 3, None));
        let start = Time::from_secs(5);
        assert_eq!(conforming(&mut mirrors, 1, start, 10), 3);
        let next = Time::from_millis(5_100);
        assert!(matches!(mirrors.classify(FunctionKey(1), start), Seen::Beyond { next: at, .. } if at == next));
        assert_eq!(conforming(&mut mirrors, 1, next, 10), 1);
    }

    #[test]
    fn functions_of_a_rate_class_share_one_envelope() {
        let mut mirrors = Mirrors::default();
        for key in [1, 2] {
            mirrors.set(FunctionKey(key), &reservation(10, 3, Some("vr")));
        }
        let start = Time::from_secs(5);
        assert_eq!(conforming(&mut mirrors, 1, start, 2) + conforming(&mut mirrors, 2, start, 10), 3);
        mirrors.remove(FunctionKey(1));
        assert_eq!(mirrors.classify(FunctionKey(1), start), Seen::Unknown);
        assert_eq!(mirrors.pacers.len(), 1, "the other one still has its class");
        mirrors.remove(FunctionKey(2));
        assert_eq!(mirrors.pacers.len(), 0);
    }

    #[test]
    fn new_terms_bring_no_second_burst() {
        let mut mirrors = Mirrors::default();
        mirrors.set(FunctionKey(1), &reservation(10, 3, None));
        let start = Time::from_secs(5);
        assert_eq!(conforming(&mut mirrors, 1, start, 10), 3);
        mirrors.set(FunctionKey(1), &reservation(20, 4, None));
        assert_eq!(conforming(&mut mirrors, 1, start, 10), 1);
    }
}
