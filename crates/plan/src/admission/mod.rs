//! Admission: whether a guarantee can be given beside those already given, on this node.
//!
//! [`Book`] holds what was admitted, in order of first admission. It is a value: an admission makes a new one, and the
//! caller installs it or drops it. A function that is not being changed keeps its cores and shards; its priority may be
//! renumbered, in the same order, and its K and W may grow as its worst response does.
//!
//! What is tested, all of it or nothing: the front's share of its core, the utilisation of every core (a quick refusal),
//! the response-time analysis of every function on it, old ones included, instances and memory.
//!
//! **Rate classes.** Every slot of a shared rate may go to any member. So the members share their cores and one priority,
//! the analysis sees one task with the largest cost of any member, and each member has the instances to take every slot.

mod book;
mod evaluate;
mod front;
mod offer;
mod refusal;

use std::num::NonZeroU32;
use std::time::Duration;

use model::{Burst, FunctionName, Guarantee, Level, Memory, Pacing, Rate, RateClass};
use serde::{Deserialize, Serialize};

pub use book::{Book, Readmission, Suspended};
pub use refusal::{Binding, Refusal};

use crate::flow::Flow;

/// Work that comes once per period on a core: at most `cost` every `period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periodic {
    pub cost: Duration,
    /// Positive.
    pub period: Duration,
}

/// Work that comes with a rate and a burst, as a budget lets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgeted {
    pub rate: Rate,
    pub burst: Burst,
    /// Of each.
    pub cost: Duration,
}

/// What a node has to promise from, as measured and configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCapacity {
    /// Cores that guaranteed instances may use, numbered from 0.
    pub cores: u16,
    /// The share of each core that guarantees and the platform may use together, in thousandths.
    pub core_limit_thousandths: u16,
    /// The core on which the front runs, above all instances.
    pub front_core: u16,
    /// CPU the front uses for one guaranteed invocation, from reading the request to writing the answer.
    pub front_cost: Duration,
    /// What the front uses beside that for each connection that an invocation's instance opens to its Runtime API.
    pub connection_cost: Duration,
    /// What the front uses beside that for each thread whose class changes with an invocation.
    pub thread_cost: Duration,
    /// The share of its core the front may use for guaranteed invocations and `front_budgets`, in thousandths.
    pub front_limit_thousandths: u16,
    /// What else the front may do (connections handed over, excess, starts); it stops there.
    pub front_budgets: Vec<Budgeted>,
    /// The probe on every core.
    pub tick: Periodic,
    /// One switch between threads.
    pub context_switch: Duration,
    /// By how much CPU an invocation may exceed its budget before sampling stops it.
    pub overshoot: Duration,
    /// Where CPU shares are quotas (level soft, with control groups): how late the kernel notices that one is used up.
    pub quota_tick: Option<Duration>,
    /// T, as frozen.
    pub tolerance: Duration,
    /// What the kernel lets threads of real-time class use of a core in a second before it stops them all; counted at level
    /// hard.
    pub real_time_per_second: Duration,
    /// What starting instances may use of that on a core in a second at least; counted at level hard.
    pub starts_per_second: Duration,
    /// The best level the node can give.
    pub level: Level,
    /// Memory for instances of guaranteed functions, bytes.
    pub memory: u64,
    /// Instances of guaranteed functions that may exist at once.
    pub instances: u32,
}

impl NodeCapacity {
    /// Thousandths of a core that guarantees may use: below what real-time throttling leaves (0.95), with room for
    /// what runs without being asked.
    pub const CORE_LIMIT_THOUSANDTHS: u16 = 850;
    /// Thousandths of a core that the front may use.
    pub const FRONT_LIMIT_THOUSANDTHS: u16 = 350;
}

/// The lowest priority of an instance that may serve. What runs below it, real-time all the same, are starts.
pub const LOWEST_PRIORITY: u8 = 3;

/// What is asked for a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    pub function: FunctionName,
    pub terms: Guarantee,
    /// The shared rate that `terms.pacing` names; `None` when the function has its own.
    pub rate_class: Option<RateClass>,
    /// Of one instance.
    pub memory: Memory,
    /// L_cold: the longest start of an instance.
    pub cold_start: Duration,
    /// From the end of an invocation until its instance can take the next.
    pub recycle: Duration,
    /// CPU an instance uses per invocation outside the handler: taking it and delivering its result.
    pub instance_cost: Duration,
    /// Connections to its Runtime API that an instance may open for each invocation.
    pub connections: u32,
    /// Threads of an instance that are real-time while it works, at most.
    pub threads: u32,
}

impl Demand {
    /// The envelope its slots keep: its own, or its class's.
    ///
    /// # Panics
    /// When `terms.pacing` names a class that `rate_class` does not hold: the caller looked it up.
    #[must_use]
    pub fn flow(&self) -> Flow {
        match (&self.terms.pacing, &self.rate_class) {
            (Pacing::Own { rate, burst }, _) => Flow::new(*rate, *burst),
            (Pacing::Shared(name), Some(class)) if class.name == *name => Flow::new(class.rate, class.burst),
            (Pacing::Shared(name), _) => unreachable_class(name.as_str()),
        }
    }
}

#[expect(clippy::panic, reason = "a demand without its class is our own bug")]
fn unreachable_class(name: &str) -> ! {
    panic!("invariant: a demand that shares the rate `{name}` carries it")
}

/// The part of a reservation that lives on one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub core: u16,
    /// 60 is the highest, [`LOWEST_PRIORITY`] the lowest; functions beyond that many on a core share the lowest.
    pub priority: u8,
    /// K.
    pub instances: u32,
    /// W.
    pub warm: u32,
}

/// What is granted to a function as things stand; S, R, K, W and priorities may change with later admissions, always within
/// what was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub demand: Demand,
    pub level: Level,
    /// At least one; slots go to them in turn.
    pub shards: Vec<Shard>,
    /// S, without T.
    pub start_bound: Duration,
    /// R, without T.
    pub response_bound: Duration,
    /// T.
    pub tolerance: Duration,
}

impl Grant {
    /// K over all shards.
    #[must_use]
    pub fn instances(&self) -> u32 {
        self.shards.iter().fold(0, |sum, shard| sum.saturating_add(shard.instances))
    }

    /// W over all shards.
    #[must_use]
    pub fn warm(&self) -> u32 {
        self.shards.iter().fold(0, |sum, shard| sum.saturating_add(shard.warm))
    }

    fn memory_for(&self, instances: u32) -> u64 {
        u64::from(instances).saturating_mul(self.demand.memory.bytes())
    }
}

/// A yes, with its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub grant: Grant,
    pub remaining: Remaining,
}

/// What is left, after an admission or as things stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remaining {
    /// Per core, from core 0.
    pub cores: Vec<Share>,
    pub front: Share,
    pub memory_bytes: u64,
    pub instances: u32,
}

/// How much of a core (or of the front's part of one) is promised, in billionths of a core, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub used_nanocores: u64,
    pub limit_nanocores: u64,
}

impl Share {
    #[must_use]
    pub const fn left_nanocores(self) -> u64 {
        self.limit_nanocores.saturating_sub(self.used_nanocores)
    }
}

/// The most shards a function is split into: one per core.
fn shard_counts(cores: u16) -> impl Iterator<Item = NonZeroU32> {
    (1..=u32::from(cores)).filter_map(NonZeroU32::new)
}

#[cfg(test)]
mod tests;
