//! How many files a node may have open, and what follows for its connections.
//!
//! Everything that holds a descriptor has a limit, and their sum is what is wanted. Where the system gives fewer, connections
//! and instances get the same part of it: clients that only connect never take what instances need.

use crate::lane::links::HAND_OVERS_MAX;
use crate::{capacity, manage};

/// Connections that one lane holds.
const OF_A_LANE: u64 = 8_192;
/// Connections at the door that have sent nothing, and as many whose first request has begun.
const OF_A_STAGE: u64 = 2_048;
const OF_THE_QUEUES: u64 = 2 * HAND_OVERS_MAX as u64;
const OF_THE_MANAGEMENT: u64 = (manage::CONNECTIONS_MAX + manage::QUEUE_MAX) as u64;
const OF_CONNECTIONS: u64 = 2 * OF_A_LANE + 2 * OF_A_STAGE + OF_THE_QUEUES + OF_THE_MANAGEMENT;
/// Pidfds, the listener of its Runtime API, connections to it, pipes of what it prints, files of its group.
const OF_AN_INSTANCE: u64 = 8;
const OF_INSTANCES: u64 = (capacity::INSTANCES_MAX as u64 + runtime::launcher::INSTANCES_MAX as u64) * OF_AN_INSTANCE;
/// The store, the evidence, the launchers, event loops, uploads.
const OF_THE_NODE: u64 = 512;

/// What the node's limits come to.
pub(crate) const WANTED: u64 = OF_CONNECTIONS + OF_INSTANCES + OF_THE_NODE;

/// How many connections of clients there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connections {
    /// Of each lane.
    pub(crate) lane: usize,
    /// Of each stage at the door.
    pub(crate) stage: usize,
}

impl Connections {
    /// With so many descriptors.
    pub(crate) fn with(descriptors: u64) -> Self {
        let part = |whole: u64| {
            let part = u128::from(whole) * u128::from(descriptors.min(WANTED)) / u128::from(WANTED);
            usize::try_from(part).unwrap_or(usize::MAX).max(1)
        };
        Self { lane: part(OF_A_LANE), stage: part(OF_A_STAGE) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn with_what_is_wanted_the_limits_are_whole() {
        let whole = Connections { lane: 8_192, stage: 2_048 };
        assert_eq!((Connections::with(WANTED), Connections::with(u64::MAX)), (whole, whole));
    }

    proptest! {
        #[test]
        fn connections_leave_instances_their_part(descriptors in 512..WANTED) {
            let Connections { lane, stage } = Connections::with(descriptors);
            let taken = 2 * (lane + stage) as u64;
            prop_assert!(taken * WANTED <= OF_CONNECTIONS * descriptors, "{taken} of {descriptors}");
        }
    }
}
