//! How much of the door's work is done at real-time class.
//!
//! Looking at connections costs CPU time before it is known whom they are for. The door may use a bounded part of each second
//! at real-time class, below all that serve, and goes on at ordinary class where it needs more: so a flood of connections
//! is work for whatever is idle.

use std::time::Duration;

use model::Time;

/// What comes back in a second, and what is kept at most.
const PER_SECOND: Duration = Duration::from_millis(20);
const KEPT: Duration = Duration::from_millis(8);
/// What may be used between two looks: 16 steps of 4 KiB, or one body of 64 KiB with its hash. It is owed, not forgiven.
const OVERSHOOT: Duration = Duration::from_millis(2);
/// It goes on at real-time class with this much.
const RESUMES_WITH: Duration = Duration::from_millis(5);
/// What the door uses at real-time class within any second at most; admission leaves it of every core.
pub(crate) const WITHIN_A_SECOND: Duration = Duration::from_millis(30);
const _: () = assert!(PER_SECOND.as_nanos() + KEPT.as_nanos() + OVERSHOOT.as_nanos() <= WITHIN_A_SECOND.as_nanos());

/// The class the door's thread is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    RealTime,
    Ordinary,
}

#[derive(Debug)]
pub(super) struct Allowance {
    /// Nanoseconds; below zero where more was used than there was.
    left: i128,
    at: Time,
    /// CPU time of the thread when it was looked at last.
    cpu: Duration,
    standing: Standing,
}

impl Allowance {
    /// For a thread that used `cpu` until `now` and is of ordinary class.
    pub(super) fn new(now: Time, cpu: Duration) -> Self {
        Self { left: nanos(KEPT), at: now, cpu, standing: Standing::Ordinary }
    }

    /// Charges what the thread used since the last look, if that was at real-time class, and says which class it has from
    /// now on.
    pub(super) fn look(&mut self, now: Time, cpu: Duration) -> Standing {
        let back = nanos(now.since(self.at)) * nanos(PER_SECOND) / nanos(Duration::from_secs(1));
        let used = match self.standing {
            Standing::RealTime => cpu.saturating_sub(self.cpu),
            Standing::Ordinary => Duration::ZERO,
        };
        self.left = (self.left + back).min(nanos(KEPT)) - nanos(used);
        (self.at, self.cpu) = (now, cpu);
        let needed = match self.standing {
            Standing::RealTime => 1,
            Standing::Ordinary => nanos(RESUMES_WITH),
        };
        self.standing = if needed <= self.left { Standing::RealTime } else { Standing::Ordinary };
        self.standing
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    /// How long it is until the thread may be of real-time class again, where it is not.
    pub(super) fn resumes_in(&self) -> Option<Duration> {
        match self.standing {
            Standing::RealTime => None,
            Standing::Ordinary => {
                let missing = (nanos(RESUMES_WITH) - self.left).max(0);
                let rest = missing * nanos(Duration::from_secs(1)) / nanos(PER_SECOND) + 1;
                Some(Duration::from_nanos(u64::try_from(rest).unwrap_or(u64::MAX)))
            }
        }
    }
}

/// Nanoseconds of a length that is no longer than the node runs.
fn nanos(length: Duration) -> i128 {
    i128::try_from(length.as_nanos()).expect("invariant: a duration has fewer than 2^96 ns")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_exceeds_the_allowance_is_done_at_ordinary_class_and_the_class_comes_back() {
        let mut allowance = Allowance::new(Time::ZERO, ms(0));
        assert_eq!(allowance.look(Time::ZERO, ms(0)), Standing::RealTime);
        assert_eq!(allowance.look(Time::from_millis(7), ms(7)), Standing::RealTime);
        assert_eq!(allowance.look(Time::from_millis(20), ms(20)), Standing::Ordinary);
        // What it uses now is nobody's but its own.
        assert_eq!(allowance.look(Time::from_millis(220), ms(220)), Standing::Ordinary);
        let rest = allowance.resumes_in().unwrap();
        assert_eq!(allowance.look(Time::from_millis(220) + rest, ms(400)), Standing::RealTime);
        assert_eq!(allowance.resumes_in(), None);
    }

    #[test]
    fn what_was_used_beyond_the_allowance_is_owed() {
        let mut allowance = Allowance::new(Time::ZERO, ms(0));
        allowance.look(Time::ZERO, ms(0));
        // 8 ms were there: 42 are owed, and 5 are needed to go on.
        assert_eq!(allowance.look(Time::ZERO, ms(50)), Standing::Ordinary);
        let rest = allowance.resumes_in().unwrap();
        assert!((ms(2_350)..ms(2_351)).contains(&rest), "{rest:?}");
    }

    proptest! {
        #[test]
        fn no_second_holds_more_real_time_than_admission_leaves(
            steps in prop::collection::vec((0..40_000_u64, 1..=2_000_u64), 1..600),
        ) {
            let mut allowance = Allowance::new(Time::ZERO, Duration::ZERO);
            let (mut now, mut cpu) = (Time::ZERO, Duration::ZERO);
            let mut used = Vec::new();
            for (pause, work) in steps {
                now += Duration::from_micros(pause);
                let before = allowance.look(now, cpu);
                let began = now;
                let work = Duration::from_micros(work);
                (now, cpu) = (now + work, cpu + work);
                if before == Standing::RealTime {
                    used.push((began, work));
                }
                let within = used.iter().filter(|(began, _)| now.since(*began) <= Duration::from_secs(1));
                let within = within.map(|(_, work)| *work).sum::<Duration>();
                prop_assert!(within <= WITHIN_A_SECOND, "{within:?}");
            }
        }
    }
}
