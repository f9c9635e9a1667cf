//! How much of the door's work is done at real-time class.
//!
//! Looking at connections costs CPU time before it is known whom they are for. The door may use a bounded part of each second
//! at real-time class, below all that serve, and goes on at ordinary class where it needs more: so a flood of connections
//! is work for whatever is idle.

use std::time::Duration;

use model::Time;

/// What comes back in a second, and what is kept at most.
const PER_SECOND: Duration = Duration::from_millis(20);
const KEPT: Duration = Duration::from_millis(10);
/// It goes on at real-time class with this much.
const RESUMES_WITH: Duration = Duration::from_millis(5);
/// What the door uses at real-time class within any second at most; admission leaves it of every core.
pub(crate) const WITHIN_A_SECOND: Duration = Duration::from_millis(30);
const _: () = assert!(PER_SECOND.as_nanos() + KEPT.as_nanos() <= WITHIN_A_SECOND.as_nanos());

/// The class the door's thread is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    RealTime,
    Ordinary,
}

#[derive(Debug)]
pub(super) struct Allowance {
    left: Duration,
    at: Time,
    /// CPU time of the thread when it was looked at last.
    cpu: Duration,
    standing: Standing,
}

impl Allowance {
    /// For a thread that used `cpu` until `now` and is of ordinary class.
    pub(super) fn new(now: Time, cpu: Duration) -> Self {
        Self { left: KEPT, at: now, cpu, standing: Standing::Ordinary }
    }

    /// Charges what the thread used since the last look, if that was at real-time class, and says which class it has from
    /// now on.
    pub(super) fn look(&mut self, now: Time, cpu: Duration) -> Standing {
        let back = now.since(self.at).as_nanos() * PER_SECOND.as_nanos() / 1_000_000_000;
        let back = Duration::from_nanos(u64::try_from(back).unwrap_or(u64::MAX));
        let used = match self.standing {
            Standing::RealTime => cpu.saturating_sub(self.cpu),
            Standing::Ordinary => Duration::ZERO,
        };
        self.left = self.left.saturating_add(back).min(KEPT).saturating_sub(used);
        (self.at, self.cpu) = (now, cpu);
        let needed = match self.standing {
            Standing::RealTime => Duration::from_nanos(1),
            Standing::Ordinary => RESUMES_WITH,
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
                let missing = RESUMES_WITH.saturating_sub(self.left).as_secs_f64();
                Some(Duration::from_secs_f64(missing / PER_SECOND.as_secs_f64()))
            }
        }
    }
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
        assert_eq!(allowance.look(Time::from_millis(9), ms(9)), Standing::RealTime);
        assert_eq!(allowance.look(Time::from_millis(20), ms(20)), Standing::Ordinary);
        // What it uses now is nobody's but its own.
        assert_eq!(allowance.look(Time::from_millis(220), ms(220)), Standing::Ordinary);
        let rest = allowance.resumes_in().unwrap();
        assert_eq!(allowance.look(Time::from_millis(220) + rest + ms(1), ms(400)), Standing::RealTime);
        assert_eq!(allowance.resumes_in(), None);
    }

    proptest! {
        /// Looked at after each 1 ms of its work, it overshoots by no more than that each time it leaves the class.
        #[test]
        fn no_second_holds_more_real_time_than_admission_leaves(pauses in prop::collection::vec(0..40_u64, 1..400)) {
            let mut allowance = Allowance::new(Time::ZERO, Duration::ZERO);
            let (mut now, mut cpu) = (Time::ZERO, Duration::ZERO);
            let mut used = Vec::new();
            for pause in pauses {
                now += ms(pause);
                let before = allowance.look(now, cpu);
                (now, cpu) = (now + ms(1), cpu + ms(1));
                if before == Standing::RealTime {
                    used.push(now);
                }
                let within = used.iter().filter(|at| now.since(**at) < Duration::from_secs(1)).count();
                prop_assert!(within <= 30 + 4, "{within} ms");
            }
        }
    }
}
