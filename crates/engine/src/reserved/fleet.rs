//! The instances of one deployed code, core by core.

use std::collections::BTreeMap;

use model::{FunctionKey, InstanceId, InvocationId, LeaseId, Time, Version};

use super::promise::Missing;
use crate::port::{Placement, Shard};
use crate::restarts::Restarts;

/// The number of a deployed code within the engine; installing the same version twice makes two of them.
pub(super) type CodeId = u64;

/// A version of a function with its instances.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub(super) id: CodeId,
    pub(super) version: Version,
    pub(super) bays: Vec<Bay>,
    /// The bay that the next slot goes to.
    turn: usize,
    pub(super) restarts: Restarts,
}

/// The instances of a code on one core.
#[derive(Clone, Debug)]
pub(super) struct Bay {
    pub(super) shard: Shard,
    /// Most recently used last, with the instant it became idle.
    pub(super) idle: Vec<(InstanceId, Time)>,
    pub(super) starting: u32,
    /// All that exist, those being killed included.
    pub(super) total: u32,
    /// What took a slot and found no idle instance, in order.
    pub(super) waiting: BTreeMap<u64, Waiter>,
    /// Why the warm reserve is not full again yet, where an instance was lost or did not start.
    pub(super) short: Option<Missing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    Invocation(InvocationId),
    Lease(LeaseId),
}

impl Code {
    pub(super) fn new(id: CodeId, version: Version, shards: &[Shard]) -> Self {
        let bay = |shard: &Shard| Bay {
            shard: *shard,
            idle: Vec::with_capacity(usize::try_from(shard.instances).unwrap_or(0)),
            starting: 0,
            total: 0,
            waiting: BTreeMap::new(),
            short: None,
        };
        let bays = shards.iter().map(bay).collect();
        Self { id, version, bays, turn: 0, restarts: Restarts::default() }
    }

    /// The bay of the next slot: all in turn, as admission divided the rate.
    pub(super) fn next_bay(&mut self) -> usize {
        let bay = self.turn % self.bays.len();
        self.turn = (bay + 1) % self.bays.len();
        bay
    }

    /// It runs on exactly these cores.
    pub(super) fn has_cores(&self, shards: &[Shard]) -> bool {
        self.bays.iter().map(|bay| bay.shard.core).eq(shards.iter().map(|shard| shard.core))
    }

    /// Takes over new priorities and numbers of instances for the cores it has.
    pub(super) fn reshape(&mut self, shards: &[Shard]) {
        for (bay, shard) in self.bays.iter_mut().zip(shards) {
            bay.shard = *shard;
        }
    }

    /// Every core has its warm reserve, or as many instances as may exist.
    pub(super) fn is_stocked(&self) -> bool {
        let stocked = |bay: &Bay| {
            let idle = u32::try_from(bay.idle.len()).unwrap_or(u32::MAX);
            bay.shard.warm <= idle || (bay.shard.instances <= bay.total && bay.starting == 0)
        };
        self.bays.iter().all(stocked)
    }

    /// Every core has its warm reserve.
    pub(super) fn is_warm(&self) -> bool {
        self.bays.iter().all(|bay| usize::try_from(bay.shard.warm).is_ok_and(|warm| warm <= bay.idle.len()))
    }
}

impl Bay {
    /// How many instances are to be started now: the warm reserve and one for each that waits, never beyond K.
    pub(super) fn wanted(&self) -> u32 {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let target = self.shard.warm.saturating_add(count(self.waiting.len()));
        let coming = count(self.idle.len()).saturating_add(self.starting);
        target.saturating_sub(coming).min(self.shard.instances.saturating_sub(self.total))
    }

    pub(super) fn placement(&self) -> Placement {
        Placement::RealTime { core: self.shard.core, priority: self.shard.priority }
    }

    pub(super) fn add_idle(&mut self, instance: InstanceId, now: Time) {
        self.idle.push((instance, now));
        if usize::try_from(self.shard.warm).is_ok_and(|warm| warm <= self.idle.len()) {
            self.short = None;
        }
    }

    /// The least recently used idle instance that the reserve does not need, and since when it is idle. The last one is
    /// needed while K instances exist: the one being killed would stand in the way of a replenishment.
    pub(super) fn surplus(&self) -> Option<(InstanceId, Time)> {
        let warm = usize::try_from(self.shard.warm).unwrap_or(usize::MAX);
        let spare = if self.total < self.shard.instances { warm } else { warm.saturating_add(1) };
        self.idle.first().filter(|_| spare < self.idle.len()).copied()
    }

    /// Takes an instance out of the idle ones, wherever it stands.
    pub(super) fn drop_idle(&mut self, instance: InstanceId) {
        self.idle.retain(|(other, _)| *other != instance);
    }
}

/// One instance of the lane.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) function: FunctionKey,
    pub(super) code: CodeId,
    pub(super) bay: usize,
    pub(super) core: u16,
    pub(super) placed: Placement,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Starting {
        /// When its start has failed by taking too long.
        overdue: Time,
    },
    Idle,
    Held {
        lease: LeaseId,
    },
    Busy {
        invocation: InvocationId,
    },
    /// Its invocation ended; it has not asked for the next one yet.
    Finishing {
        since: Time,
    },
    /// It was told to be killed.
    Dying,
}
