//! Arrivals with a rate and a burst: how many can fall into a window.

use std::num::NonZeroU32;
use std::time::Duration;

use model::{Burst, Rate};

/// Arrivals that conform to a rate and a burst, on one core or over the node. Windows are in nanoseconds; products
/// saturate far beyond every bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    invocations: u128,
    per_ns: u128,
    burst: u128,
}

impl Flow {
    #[must_use]
    pub fn new(rate: Rate, burst: Burst) -> Self {
        Self { invocations: u128::from(rate.invocations()), per_ns: u128::from(rate.per_ns()), burst: u128::from(burst.get()) }
    }

    /// One arrival per period, as a timer makes them. `None` for a period of zero.
    #[must_use]
    pub fn periodic(period: Duration) -> Option<Self> {
        (!period.is_zero()).then_some(Self { invocations: 1, per_ns: period.as_nanos(), burst: 1 })
    }

    /// What one of `shards` cores gets when the slots are given to them in turn: `r/k`, with a burst of `1 + ceil((b-1)/k)`.
    ///
    /// Derived. A closed window with n = floor(r t) holds at most b + n slots, of which one core gets ceil((b + n)/k). With
    /// n = mk + p, p < k, that is m + ceil((b + p)/k) <= m + ceil((b + k - 1)/k) = floor(n/k) + 1 + ceil((b-1)/k). The
    /// bound `ceil(b/k)` would be too small: with b = k = 2 slots at 0, 0 and 1/r give one core two in 1/r.
    #[must_use]
    pub fn shard(self, shards: NonZeroU32) -> Self {
        let k = u128::from(shards.get());
        Self { invocations: self.invocations, per_ns: self.per_ns * k, burst: 1 + (self.burst - 1).div_ceil(k) }
    }

    #[must_use]
    pub const fn burst(self) -> u128 {
        self.burst
    }

    /// The most arrivals in a closed window: `b + floor(r t)`. Published (generic cell rate algorithm, ITU-T I.371).
    #[must_use]
    pub fn in_closed(self, window_ns: u128) -> u128 {
        self.burst + self.floor_in(window_ns)
    }

    /// The most arrivals in a half-open window of positive length: `b - 1 + ceil(r t)`.
    #[must_use]
    pub fn in_half_open(self, window_ns: u128) -> u128 {
        self.burst - 1 + window_ns.saturating_mul(self.invocations).div_ceil(self.per_ns)
    }

    /// The earliest arrival of the `nth` of a row (counting from 1) after the first, in nanoseconds rounded down:
    /// `max(0, (n - b)/r)`.
    #[must_use]
    pub fn earliest_ns(self, nth: u128) -> u128 {
        nth.saturating_sub(self.burst).saturating_mul(self.per_ns) / self.invocations
    }

    /// `floor(r t)`.
    pub(crate) fn floor_in(self, window_ns: u128) -> u128 {
        window_ns.saturating_mul(self.invocations) / self.per_ns
    }

    /// `r x cost` in the given parts of a core, rounded down.
    pub(crate) fn share(self, cost_ns: u128, parts: u128) -> u128 {
        cost_ns.saturating_mul(self.invocations).saturating_mul(parts) / self.per_ns
    }

    /// `r x cost` in billionths of a core, rounded up.
    #[must_use]
    pub fn nanocores(self, cost: Duration) -> u64 {
        let billionths = cost.as_nanos().saturating_mul(self.invocations).saturating_mul(1_000_000_000).div_ceil(self.per_ns);
        u64::try_from(billionths).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(rate: &str, burst: u32) -> Flow {
        Flow::new(rate.parse().unwrap(), Burst::new(burst).unwrap())
    }

    #[test]
    fn windows_hold_the_burst_and_what_the_rate_adds() {
        let flow = flow("100/s", 3);
        assert_eq!(flow.in_closed(0), 3);
        assert_eq!(flow.in_closed(10_000_000), 4);
        assert_eq!(flow.in_half_open(10_000_000), 3);
        assert_eq!(flow.in_half_open(10_000_001), 4);
        assert_eq!(flow.earliest_ns(3), 0);
        assert_eq!(flow.earliest_ns(5), 20_000_000);
        assert_eq!(flow.nanocores(Duration::from_millis(2)), 200_000_000);
    }

    proptest! {
        /// Slots in the greediest conforming order, given to the shards in turn, never exceed the shard's flow.
        #[test]
        fn slots_given_in_turn_conform_to_the_shards_flow(burst in 1_u32..12, shards in 1_u32..6, idle in 0_u128..3) {
            let whole = flow("1000/s", burst);
            let one = whole.shard(NonZeroU32::new(shards).unwrap());
            let slots: Vec<u128> = (1..=60).map(|nth| whole.earliest_ns(nth + idle)).collect();
            for first in 0..shards as usize {
                let mine: Vec<u128> = slots.iter().copied().skip(first).step_by(shards as usize).collect();
                for (i, from) in mine.iter().enumerate() {
                    for (j, to) in mine.iter().enumerate().skip(i) {
                        prop_assert!((j - i + 1) as u128 <= one.in_closed(to - from));
                    }
                }
            }
        }
    }
}
