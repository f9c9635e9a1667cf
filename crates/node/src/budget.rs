//! Budgets that keep a flood off the guaranteed lane: how often something may happen there before it is sent elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use model::{FunctionKey, Time};

/// A token bucket on the node's clock: `depth` at once, one more every `interval`.
///
/// The guaranteed lane spends from it what its admission accounted for (connections handed over, looks at requests, excess); what finds it
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
        self.take(now);
        Ok(())
    }

    /// Takes one token where half of the depth stays, or says when that will be so.
    fn spend_above_half(&mut self, now: Time) -> Result<(), Time> {
        let earliest = self.next.before(self.allowance / 2);
        if now < earliest {
            return Err(earliest);
        }
        self.take(now);
        Ok(())
    }

    /// Takes the next token there is or will be, and says from when on it may be used: whoever books waits in the order of
    /// coming.
    pub(crate) fn book(&mut self, now: Time) -> Time {
        let from = self.next.before(self.allowance).max(now);
        self.take(now);
        from
    }

    fn take(&mut self, now: Time) {
        self.next = self.next.max(now) + self.interval;
    }
}

/// Who uses what the guaranteed lane does for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Payer {
    /// Input for leases: whose they are is known in that lane alone.
    Leases,
    Function(FunctionKey),
}

/// One budget that several share. However many spend, no more is spent than the budget allows; and whoever floods, each of
/// the others still finds its equal part.
///
/// The lower half of the depth is for those that spend within their part. So a flood finds only the upper half, which the
/// budget's rate fills again; the parts together are no more than that rate.
#[derive(Clone, Debug)]
pub(crate) struct Shares<K> {
    whole: Budget,
    depth: u32,
    /// Of each that shares: when its part has the next token.
    parts: BTreeMap<K, Time>,
}

impl<K: Ord + Copy> Shares<K> {
    /// `per_second` from 1 to 1,000,000; `depth` at least 1.
    pub(crate) fn new(per_second: u32, depth: u32) -> Self {
        Self { whole: Budget::new(per_second, depth), depth, parts: BTreeMap::new() }
    }

    /// Whoever shares already stays as it is.
    pub(crate) fn join(&mut self, key: K) {
        self.parts.entry(key).or_insert(Time::ZERO);
    }

    pub(crate) fn leave(&mut self, key: K) {
        self.parts.remove(&key);
    }

    /// Takes one token for one that shares, or says when to ask again. Whoever never joined has no part of its own.
    pub(crate) fn spend(&mut self, key: K, now: Time) -> Result<(), Time> {
        let sharing = u32::try_from(self.parts.len()).unwrap_or(u32::MAX).max(1);
        let interval = self.whole.interval.saturating_mul(sharing);
        let allowance = interval.saturating_mul((self.depth / sharing).saturating_sub(1));
        let part = self.parts.get_mut(&key).filter(|next| next.before(allowance) <= now);
        let Some(next) = part else { return self.whole.spend_above_half(now) };
        self.whole.spend(now)?;
        *next = (*next).max(now) + interval;
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

    #[test]
    fn who_books_comes_in_turn() {
        let mut budget = Budget::new(10, 2);
        let start = Time::from_secs(5);
        let booked: Vec<u64> = (0..4).map(|_| budget.book(start).as_nanos() / 1_000_000).collect();
        assert_eq!(booked, [5_000, 5_000, 5_100, 5_200]);
    }

    /// Tokens each got within `seconds`, where every one asks `asks` times a millisecond, in the order given.
    fn got(shares: &mut Shares<u32>, asks: &[(u32, u32)], seconds: u64) -> Vec<u32> {
        let mut got = vec![0; asks.len()];
        for ms in 0..seconds * 1_000 {
            for (at, (key, times)) in asks.iter().enumerate() {
                for _ in 0..*times {
                    got[at] += u32::from(shares.spend(*key, Time::from_secs(5) + Duration::from_millis(ms)).is_ok());
                }
            }
        }
        got
    }

    fn shared_by(count: u32) -> Shares<u32> {
        let mut shares = Shares::new(400, 20);
        (0..count).for_each(|key| shares.join(key));
        shares
    }

    #[test]
    fn twelve_that_flood_get_no_more_than_the_budget_and_alike() {
        let asks: Vec<(u32, u32)> = (0..12).map(|key| (key, 3)).collect();
        let got = got(&mut shared_by(12), &asks, 10);
        let sum: u32 = got.iter().sum();
        assert!((3_990..=4_020).contains(&sum), "{got:?}");
        // The first in the order gets what is left over, the others their parts: a twelfth of 4,000 each.
        assert!(got.iter().all(|tokens| 300 <= *tokens), "{got:?}");
    }

    #[test]
    fn one_that_floods_takes_nothing_from_the_part_of_another() {
        let mut shares = shared_by(20);
        let mut refused = 0;
        for ms in 0..10_000 {
            let now = Time::from_secs(5) + Duration::from_millis(ms);
            for _ in 0..50 {
                let _ = shares.spend(0, now);
            }
            // Twenty a second is its part: one every 50 ms.
            if ms % 50 == 0 {
                refused += u32::from(shares.spend(7, now).is_err());
            }
        }
        assert_eq!(refused, 0);
    }

    #[test]
    fn one_alone_may_use_all_and_a_stranger_what_is_left() {
        assert!(3_990 <= got(&mut shared_by(20), &[(3, 5)], 10)[0]);
        let both = got(&mut shared_by(1), &[(0, 1), (99, 1)], 10);
        assert!(both.iter().sum::<u32>() <= 4_020, "{both:?}");
    }

    #[test]
    fn who_left_has_no_part() {
        let mut shares = shared_by(2);
        shares.leave(1);
        shares.leave(1);
        assert_eq!(shares.parts.len(), 1);
    }
}
