//! The evidence of a node: what it promised and what it did, enough to recompute every verdict without the node.

use std::time::Duration;

use model::{Cause, Class, End, FunctionName, Guarantee, InstanceId, InvocationId, Level, RateClass, Time};
use serde::{Deserialize, Serialize};

/// One entry of the evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// The first record after every start. Times of later records are on this boot's clock.
    NodeStarted(NodeStarted),
    /// From here on these terms are promised.
    GuaranteeGiven(Box<GuaranteeGiven>),
    GuaranteeEnded(GuaranteeEnded),
    Invocation(Invocation),
    /// The highest-priority probe of a core was not run between these instants: evidence of steal.
    ProbeGap {
        core: u16,
        from: Time,
        until: Time,
    },
    /// T rose above its frozen value; admission ran again.
    ToleranceRaised {
        at: Time,
        from: Duration,
        to: Duration,
    },
    /// Records that the node had to drop because its buffer was full: a gap it knows of.
    Lost {
        at: Time,
        records: u64,
    },
    /// The live counters at this instant, for comparison with what the records say. They must stand right behind the
    /// invocations that they count: the lane puts them on the way that its records take.
    Counters {
        at: Time,
        functions: Vec<Counters>,
    },
    /// The node stopped in order: every record before this one was written.
    NodeStopped {
        at: Time,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStarted {
    /// Random, one per start.
    pub boot: InvocationId,
    pub at: Time,
    /// Wall-clock time at `at`, nanoseconds since 1970.
    pub unix_ns: u64,
    pub level: Level,
    /// T as calibrated and frozen at this start.
    pub tolerance: Duration,
    /// The version of `takt` that wrote the records.
    pub software: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuaranteeGiven {
    pub at: Time,
    pub function: FunctionName,
    /// Counts the changes of this function's guarantee; invocation records name the one they ran under.
    pub generation: u64,
    pub terms: Guarantee,
    /// The shared pacer, where `terms.pacing` names one.
    pub rate_class: Option<RateClass>,
    pub level: Level,
    /// S: the analysed worst start delay, without T.
    pub start_bound: Duration,
    /// R: the analysed worst response, without T.
    pub response_bound: Duration,
    pub tolerance: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuaranteeEnded {
    pub at: Time,
    pub function: FunctionName,
    pub generation: u64,
    pub reason: EndedBecause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndedBecause {
    Withdrawn,
    Replaced,
    Suspended,
}

/// One invocation of a function that carries a guarantee, whatever became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invocation {
    pub id: InvocationId,
    pub function: FunctionName,
    pub generation: u64,
    /// Counts the invocations of this generation and boot from 0 in the order in which they took a slot or were turned
    /// away; a number that is missing is a record that was lost.
    pub sequence: u64,
    /// Counts the slots taken from 0, per generation and boot (over the whole rate class, where one is shared); `None`: it
    /// took none.
    pub slot: Option<u64>,
    /// In slot 0 of a generation that took over from another: the theoretical arrival time its pacer began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<Time>,
    pub class: Class,
    /// a: the request was complete.
    pub arrived: Time,
    /// v: the conforming start of the slot it took.
    pub conforming: Option<Time>,
    /// The invocation was handed to an instance.
    pub delivered: Option<Time>,
    pub started: Option<Time>,
    pub start_seen_by: StartSeenBy,
    pub ended: Time,
    pub end: End,
    /// The deadline it carried or its guarantee gave it.
    pub deadline: Option<Time>,
    pub instance: Option<InstanceId>,
    pub core: u16,
    /// CPU time it used, as last sampled.
    pub cpu: Duration,
    /// Its input or its result was long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Box<Transfer>>,
    /// It was delivered to a lease; the instance had been held this long.
    pub held: Option<Duration>,
    /// Why its promise was missed; `None`: it was kept, or nothing was promised.
    pub violation: Option<Cause>,
}

/// How long the node had a long input or result in its hands: it moved them, or they waited for their turn. What the instance took
/// to read or to write is not in it. While it had both, it counts as the input's. The start is promised later by the input's part, the end by both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// From the node to the instance.
    pub input: Duration,
    /// From the instance to the node.
    pub result: Duration,
}

impl Transfer {
    /// Cut to so much in the whole.
    #[must_use]
    pub fn at_most(self, most: Duration) -> Self {
        let input = self.input.min(most);
        Self { input, result: self.result.min(most.saturating_sub(input)) }
    }

    #[must_use]
    pub fn whole(self) -> Duration {
        self.input.saturating_add(self.result)
    }
}

/// Who stamped the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartSeenBy {
    /// Our bootstrap, at the handler's entry.
    Handler,
    /// The node, when it handed the invocation to the runtime.
    Delivery,
}

/// The live counters of one function under one generation of its guarantee. They count the invocations whose record is
/// written, so that at any place in the journal they equal what the records before it say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub function: String,
    pub generation: u64,
    pub arrivals: u64,
    /// Invocations that took a slot.
    pub conforming: u64,
    /// Arrivals beyond the envelope, whatever became of them.
    pub excess: u64,
    /// Queued work that was dropped, and leases that no input came for.
    pub expired: u64,
    pub refused: u64,
    pub start_violations: u64,
    pub deadline_misses: u64,
    /// Violations by cause: steal, overrun, function, host-call, bug, unknown.
    pub by_cause: [u64; 6],
    /// Sum of the time instances were held by leases that delivered nothing, plus the hold before delivery.
    pub held: Duration,
}
