//! How many instances a guarantee needs, and how many of them must be idle and warm.

use std::time::Duration;

use crate::flow::Flow;

/// How long one invocation can occupy an instance, and how long a new instance takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// L: response bound + T + recycling + declared lead.
    pub busy: Duration,
    /// L_cold: from the decision to start an instance until it is ready.
    pub cold_start: Duration,
}

/// K and W of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instances {
    /// K: with so many instances every slot finds one that is not busy.
    pub most: u32,
    /// W: with so many idle ones kept ready, and one started for each that is taken, every slot finds a warm one.
    pub warm: u32,
}

/// `K = ceil(r L) + b - 1`, `W = min(K, ceil(r L_cold) + b - 1)`; saturates at `u32::MAX`.
///
/// Derived. Slots in a half-open window of length L number at most ceil(r L) + b - 1, and an instance taken at v is free
/// again at v + L, so at most that many are busy at once. An instance taken is replaced within L_cold, so at most
/// ceil(r L_cold) + b - 1 of the idle ones are missing at once.
#[must_use]
pub fn instances(flow: Flow, occupancy: Occupancy) -> Instances {
    let count = |window: Duration| u32::try_from(flow.in_half_open(window.as_nanos().max(1))).unwrap_or(u32::MAX);
    let most = count(occupancy.busy);
    Instances { most, warm: most.min(count(occupancy.cold_start)) }
}

#[cfg(test)]
mod tests {
    use model::Burst;
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn check(rate: &str, burst: u32, ms: [u64; 2], expected: (u32, u32)) {
        let flow = Flow::new(rate.parse().unwrap(), Burst::new(burst).unwrap());
        let [busy, cold_start] = ms.map(Duration::from_millis);
        let found = instances(flow, Occupancy { busy, cold_start });
        assert_eq!((found.most, found.warm), expected, "{rate} {burst} {ms:?}");
    }

    #[test]
    fn k_and_w_follow_the_formulas() {
        check("30/s", 3, [100, 300], (5, 5));
        check("30/s", 1, [1000, 200], (30, 6));
        check("5/min", 1, [50, 300], (1, 1));
    }

    /// The greediest slots against `count` instances, of which `warm` are ready at first; each slot takes a warm one and
    /// starts a replacement while fewer than `count` exist. Returns how many slots found none.
    fn waits(flow: Flow, occupancy: Occupancy, found: Instances, slots: u128) -> usize {
        let (busy, cold) = (occupancy.busy.as_nanos(), occupancy.cold_start.as_nanos());
        let mut ready_at: Vec<u128> = vec![0; found.warm as usize];
        let mut missed = 0;
        for nth in 1..=slots {
            let now = flow.earliest_ns(nth);
            let Some(free) = (0..ready_at.len()).find(|i| ready_at[*i] <= now) else {
                missed += 1;
                continue;
            };
            ready_at[free] = now + busy;
            if ready_at.len() < found.most as usize {
                ready_at.push(now + cold);
            }
        }
        missed
    }

    proptest! {
        #[test]
        fn k_and_w_instances_make_no_slot_wait(
            per_second in 1_u64..200, burst in 1_u32..5, busy in 1_u64..300, cold in 1_u64..300,
        ) {
            let flow = Flow::new(model::Rate::per_second(per_second).unwrap(), Burst::new(burst).unwrap());
            let occupancy = Occupancy { busy: Duration::from_nanos(busy * MS), cold_start: Duration::from_nanos(cold * MS) };
            let found = instances(flow, occupancy);
            let waits = |most: u32, warm: u32| waits(flow, occupancy, Instances { most, warm: warm.min(most) }, 400);
            prop_assert_eq!(waits(found.most, found.warm), 0);
            prop_assert_ne!(waits(found.most - 1, found.warm), 0);
            if found.warm < found.most {
                prop_assert_ne!(waits(found.most, found.warm - 1), 0);
            }
        }
    }
}
