//! The CPU share of an invocation as a quota of its instance, and by how much that delays it.
//!
//! The kernel lets an instance use `runtime` of CPU in every `period`, and notices only at its next tick that it used more;
//! what was used beyond is taken from the periods that follow. So an instance may begin an invocation in the debt of the one
//! before, and meets the end of a period in vain once more while it runs.

use std::time::Duration;

/// The kernel keeps no quota shorter than this.
const RUNTIME_MIN: Duration = Duration::from_millis(1);
const PERIOD_MIN: Duration = Duration::from_millis(5);
/// The longest period the kernel knows.
const PERIOD_MAX: Duration = Duration::from_secs(1);

/// At most `runtime` of CPU in every `period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub runtime: Duration,
    /// 5 ms to 1 s.
    pub period: Duration,
}

impl Quota {
    /// The quota that gives `cost` of CPU within `run_time` (positive), in periods as short as the kernel allows; `None` where
    /// that is the whole core.
    #[must_use]
    pub fn new(cost: Duration, run_time: Duration) -> Option<Self> {
        if run_time <= cost || cost.is_zero() {
            return None;
        }
        let scaled = |time: Duration, by: Duration, to: Duration| {
            let ns = (time.as_nanos() * by.as_nanos()).div_ceil(to.as_nanos());
            Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
        };
        let period = scaled(RUNTIME_MIN, run_time, cost).clamp(PERIOD_MIN, PERIOD_MAX);
        Some(Self { runtime: scaled(period, cost, run_time).max(RUNTIME_MIN), period })
    }

    /// By how much the start of an invocation is late at most, where the one before it used up to `cost`, and the kernel
    /// notices that a quota is used up within `tick`.
    #[must_use]
    pub fn delay(&self, cost: Duration, tick: Duration) -> Duration {
        let debt = cost.min(tick).as_nanos();
        let periods = u32::try_from(debt.div_ceil(self.runtime.as_nanos())).unwrap_or(u32::MAX);
        self.period.saturating_add(self.period.saturating_mul(periods))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(4);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_tenth_of_a_core_comes_in_periods_of_ten_milliseconds() {
        let quota = Quota::new(ms(10), ms(100)).unwrap();
        assert_eq!(quota, Quota { runtime: ms(1), period: ms(10) });
        assert_eq!(quota.delay(ms(10), TICK), ms(50));
    }

    #[test]
    fn a_whole_core_needs_no_quota() {
        assert_eq!(Quota::new(ms(20), ms(20)), None);
    }

    /// When an invocation that comes right after another on the same instance has had its CPU: period by period, as the
    /// kernel hands it out, the first one noticed a tick late. Also when it could begin.
    fn worst(quota: Quota, cost: Duration) -> (Duration, Duration) {
        let mut owed = cost.min(TICK);
        let (mut at, mut begun, mut left) = (Duration::ZERO, None, cost);
        loop {
            at += quota.period; // what is left of a period when it arrives is nothing
            let paid = owed.min(quota.runtime);
            owed -= paid;
            let own = (quota.runtime - paid).min(left);
            if !own.is_zero() {
                begun = begun.or(Some(at));
                left -= own;
            }
            if left.is_zero() {
                return (begun.unwrap(), at + own);
            }
        }
    }

    proptest! {
        #[test]
        fn a_quota_delays_by_no_more_than_stated(share in 1_u32..1000, run_us in 1_000_u64..2_000_000) {
            let run_time = Duration::from_micros(run_us);
            let cost = run_time * share / 1000;
            prop_assume!(!cost.is_zero());
            let Some(quota) = Quota::new(cost, run_time) else { return Ok(()) };
            let (begun, ended) = worst(quota, cost);
            let delay = quota.delay(cost, TICK);
            prop_assert!(begun <= delay, "{quota:?}: begun {begun:?}, stated {delay:?}");
            prop_assert!(ended <= delay + run_time + quota.period, "{quota:?}: ended {ended:?}, stated {delay:?}");
        }
    }
}
