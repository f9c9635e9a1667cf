//! Budgets that keep a flood off the guaranteed lane: how often something may happen there before it is sent elsewhere.

use std::time::Duration;

use model::Time;

/// A token bucket on the node's clock: `depth` at once, one more every `interval`.
///
/// The guaranteed lane spends from it what its admission accounted for (accepts, looks at requests, excess); what finds it
/// empty is moved to the best-effort lane or waits, and never costs the lane more.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    interval: Duration,
    allowance: Duration,
    next: Time,
}

impl Budget {
    /// `per_second` from 1 to 1,000,000; `depth` at least 1.
    pub(crate) fn new(per_second: u32, depth: u32) -> Self {
        assert!(0 < per_second && 0 < depth, "invariant: a budget allows something");
        let interval = Duration::from_nanos(1_000_000_000_u64.div_ceil(u64::from(per_second)));
        Self { interval, allowance: interval.saturating_mul(depth - 1), next: Time::ZERO }
    }

    /// Says when there is a token, if there is none now.
    pub(crate) fn check(&self, now: Time) -> Result<(), Time> {
        let earliest = self.next.before(self.allowance);
        if now < earliest { Err(earliest) } else { Ok(()) }
    }

    /// Takes one token, or says when there is one.
    pub(crate) fn spend(&mut self, now: Time) -> Result<(), Time> {
        self.check(now)?;
        self.next = self.next.max(now) + self.interval;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_allows_its_depth_at_once_and_then_its_rate() {
        let mut budget = Budget::new(10, 3);
        let start = Time::from_secs(5);
        for _ in 0..3 {
            assert_eq!(budget.spend(start), Ok(()));
        }
        assert_eq!(budget.spend(start), Err(start + Duration::from_millis(100)));
        assert_eq!(budget.spend(start + Duration::from_millis(100)), Ok(()));
        assert_eq!(budget.spend(start + Duration::from_millis(100)), Err(start + Duration::from_millis(200)));
    }
}
