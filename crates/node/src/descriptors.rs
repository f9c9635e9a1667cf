//! How many files a node may have open, and what follows for connections and instances.
//!
//! What holds a descriptor has a limit, and the sum of the limits is what is wanted. Where the system gives fewer, all of them get
//! the same part of what the node itself leaves: clients that only connect never take what instances need, and admission
//! gives away no instances that there are no descriptors for.

use crate::lane::{self, links};
use crate::{capacity, door, manage};

/// Connections that one lane holds.
const OF_A_LANE: u64 = 8_192;
/// Connections at the door in each of its stages.
const OF_A_STAGE: u64 = 2_048;
/// Connections that wait for their hand-over, of all functions.
const OF_THE_LINES: u64 = 3_072;
const OF_CONNECTIONS: u64 = 2 * (OF_A_LANE + links::HAND_OVERS_MAX as u64)
    + door::STAGES as u64 * OF_A_STAGE
    + OF_THE_LINES
    + (manage::CONNECTIONS_MAX + manage::QUEUE_MAX) as u64;
/// Instances of best-effort functions.
const BEST_EFFORT_INSTANCES: u32 = 1_000;
/// Pidfds, the listener of its Runtime API, pipes of what it prints, files of its group, its TUN device; and the connections
/// to its Runtime API.
const OF_AN_INSTANCE: u64 = 8 + lane::INSTANCE_CONNECTIONS_MAX as u64;
const OF_INSTANCES: u64 = (capacity::INSTANCES_MAX as u64 + BEST_EFFORT_INSTANCES as u64) * OF_AN_INSTANCE;
/// What instances connect to, of all together.
const OF_OUTBOUND: u64 = 2_048;
/// The store, the evidence, the launchers, event loops, uploads.
const OF_THE_NODE: u64 = 512;

/// What the node's limits come to.
pub(crate) const WANTED: u64 = OF_CONNECTIONS + OF_INSTANCES + OF_OUTBOUND + OF_THE_NODE;

/// How many connections of clients there may be; each at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connections {
    /// Of each lane.
    pub(crate) lane: usize,
    /// On their way to each lane, with invocations that are.
    pub(crate) hand_overs: u32,
    /// Of each stage at the door, at least 2: the last stage has two halves.
    pub(crate) stage: usize,
    /// That wait for their hand-over, of all functions.
    pub(crate) lines: usize,
    /// Served by the management, and on their way to it.
    pub(crate) management: usize,
    pub(crate) to_management: usize,
}

/// How many instances there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instances {
    pub(crate) guaranteed: u32,
    pub(crate) best_effort: u32,
    /// What all of them may be connected to.
    pub(crate) sockets: usize,
}

/// The part of a limit that so many descriptors leave.
fn part(whole: u64, descriptors: u64) -> u64 {
    let left = descriptors.min(WANTED).saturating_sub(OF_THE_NODE);
    let part = u128::from(whole) * u128::from(left) / u128::from(WANTED - OF_THE_NODE);
    u64::try_from(part).expect("invariant: a part is no more than the whole").max(1)
}

impl Connections {
    /// With so many descriptors.
    pub(crate) fn with(descriptors: u64) -> Self {
        let part = |whole| usize::try_from(part(whole, descriptors)).expect("invariant: limits of connections are small");
        Self {
            lane: part(OF_A_LANE),
            hand_overs: u32::try_from(part(u64::from(links::HAND_OVERS_MAX))).expect("invariant: no more than the whole"),
            stage: part(OF_A_STAGE).max(2),
            lines: part(OF_THE_LINES),
            management: part(manage::CONNECTIONS_MAX as u64),
            to_management: part(manage::QUEUE_MAX as u64),
        }
    }
}

impl Instances {
    /// With so many descriptors.
    pub(crate) fn with(descriptors: u64) -> Self {
        let part = |whole: u32| u32::try_from(part(u64::from(whole), descriptors)).expect("invariant: no more than the whole");
        let sockets = usize::try_from(self::part(OF_OUTBOUND, descriptors)).expect("invariant: a small number");
        Self { guaranteed: part(capacity::INSTANCES_MAX), best_effort: part(BEST_EFFORT_INSTANCES), sockets }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Descriptors that all of this may hold at the same time.
    fn held(descriptors: u64) -> u64 {
        let connections = Connections::with(descriptors);
        let Connections { lane, hand_overs, stage, lines, management, to_management } = connections;
        let clients = 2 * (lane + hand_overs as usize) + door::STAGES * stage + lines + management + to_management;
        let Instances { guaranteed, best_effort, sockets } = Instances::with(descriptors);
        clients as u64 + u64::from(guaranteed + best_effort) * OF_AN_INSTANCE + sockets as u64 + OF_THE_NODE
    }

    #[test]
    fn with_what_is_wanted_the_limits_are_whole() {
        assert_eq!((held(WANTED), held(u64::MAX)), (WANTED, WANTED));
        assert_eq!((Connections::with(WANTED).lane, Instances::with(WANTED).guaranteed), (8_192, 1_024));
        const { assert!(WANTED <= 65_536, "what many systems give a service") };
    }

    proptest! {
        #[test]
        fn all_limits_together_fit_what_there_is(descriptors in 1_024..WANTED) {
            prop_assert!(held(descriptors) <= descriptors, "{}", held(descriptors));
        }
    }
}
