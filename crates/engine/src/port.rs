//! What a lane is told and what it asks for. The node turns actions into I/O, the simulator into events.

use std::time::Duration;

use journal::record;
use model::{
    Burst, CpuShare, End, FunctionKey, FunctionName, Guarantee, InstanceId, InvocationId, LeaseId, Level, Memory, Pacing, Rate,
    RateClass, RateClassName, Tenant, Time, Version,
};

/// A function with everything its lane needs to run it. Installing a function that is already there replaces it make before
/// break: the old version serves until enough instances of the new one are warm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    pub function: FunctionKey,
    pub name: FunctionName,
    pub tenant: Tenant,
    pub version: Version,
    pub memory: Memory,
    /// The run-time bound of an invocation outside the guarantee (AWS's `Timeout`).
    pub timeout: Duration,
    /// `None` in the best-effort lane.
    pub reservation: Option<Reservation>,
}

/// What admission granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub terms: Guarantee,
    /// Counts the changes of this function's guarantee.
    pub generation: u64,
    pub rate_class: Option<RateClass>,
    pub level: Level,
    /// Where its instances run; the pacer releases to the shards in turn.
    pub shards: Vec<Shard>,
    /// S, without T.
    pub start_bound: Duration,
    /// R, without T.
    pub response_bound: Duration,
    pub tolerance: Duration,
}

impl Reservation {
    /// The rate and burst it is paced by, and the rate class whose they are.
    ///
    /// # Panics
    /// When the guarantee names a rate class that was not resolved.
    #[must_use]
    pub fn pacing(&self) -> (Rate, Burst, Option<RateClassName>) {
        match (&self.terms.pacing, &self.rate_class) {
            (Pacing::Own { rate, burst }, _) => (*rate, *burst, None),
            (Pacing::Shared(name), class) => {
                let class = class.as_ref().expect("invariant: admission resolves the rate class that a guarantee names");
                (class.rate, class.burst, Some(name.clone()))
            }
        }
    }
}

/// The part of a reservation that lives on one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub core: u16,
    /// SCHED_FIFO priority of its instances (deadline-monotonic, 1 to 60).
    pub priority: u8,
    /// K: instances that may exist on this core.
    pub instances: u32,
    /// W: idle instances kept ready on this core.
    pub warm: u32,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Install(Box<Deployment>),
    /// New priorities, bounds or T for functions whose code stays as it is, at one instant and in this order. Members of a rate
    /// class whose shared rate changes come together.
    Revise(Vec<(FunctionKey, Reservation)>),
    Remove {
        function: FunctionKey,
    },
    /// A request for the function is complete. `deadline` is the one the request carried.
    Arrived {
        id: InvocationId,
        function: FunctionKey,
        deadline: Option<Time>,
    },
    /// Input for a lease is complete.
    Supplied {
        id: InvocationId,
        lease: LeaseId,
        deadline: Option<Time>,
    },
    /// Start and hold an instance; it is wanted within `lead`.
    PreInvoke {
        lease: LeaseId,
        function: FunctionKey,
        lead: Duration,
    },
    /// The client of the invocation went away.
    Abandoned {
        id: InvocationId,
    },
    /// The start of an instance that was ordered has its turn. Told in the guaranteed lane only.
    Begun {
        instance: InstanceId,
    },
    /// The instance asks for its first or next invocation.
    Ready {
        instance: InstanceId,
    },
    /// What an instance used of cores, or waited for one, until it asked for its first invocation. Told just before its first
    /// [`Event::Ready`], in the best-effort lane only.
    Warmed {
        instance: InstanceId,
        wanted: Duration,
    },
    /// The program of an instance that waits ends, or seems to: it is handed nothing more, and killed so that this is true.
    /// [`Event::Gone`] follows. Of an instance that does not wait this says nothing.
    Dying {
        instance: InstanceId,
    },
    /// The instance is no more: it could not be started, crashed, or was killed as asked.
    Gone {
        instance: InstanceId,
    },
    /// The invocation was written to its instance; without this the delivery counts as made when it was decided.
    Delivered {
        id: InvocationId,
        at: Time,
    },
    /// How long the node had the invocation's long input and result in its hands so far, perhaps with what is to come of it at
    /// least. Told once one of them begins to move, then while bounds may fall due, and exactly before the end. Its bounds move by as
    /// much. In the guaranteed lane only.
    Transferred {
        id: InvocationId,
        so_far: record::Transfer,
    },
    /// The bootstrap says when the handler was entered (told before or together with the end).
    Started {
        id: InvocationId,
        at: Time,
    },
    /// What the runs of an instance up to now took, since it was measured last. Told of the invocation it runs, now and then
    /// before the end and while a long run lasts, in the best-effort lane only.
    Measured {
        id: InvocationId,
        taken: Taken,
    },
    /// The instance delivered a result or an error; it may not be ready for the next invocation yet.
    Ended {
        id: InvocationId,
        end: End,
        cpu: Duration,
    },
    /// The watch saw the invocation exceed its own run time or CPU budget.
    Overran {
        id: InvocationId,
        cpu: Duration,
    },
    /// The probe of a core saw a gap.
    ProbeGap {
        core: u16,
        from: Time,
        until: Time,
    },
    /// Accept nothing more; what runs may end.
    Drain,
}

/// What runs took, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// In the function, by the stamps of its instance where there are any.
    pub run: Duration,
    /// For so long a core was used or waited for.
    pub wanted: Duration,
    /// From the delivery to the answer, as the engine is told them.
    pub whole: Duration,
    /// Time of cores, of all threads together, also of what the instance did between its runs.
    pub used: Duration,
}

/// The core whose real-time lane takes every request and every result: the first of the node's.
pub const FRONT_CORE: u16 = 0;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Start {
        instance: InstanceId,
        function: FunctionKey,
        version: Version,
        on: Placement,
    },
    /// The class of an instance's threads changes (a new priority, or best effort after an overrun that demotes).
    Place {
        instance: InstanceId,
        on: Placement,
    },
    /// Say this of an instance in its function's log.
    Tell {
        instance: InstanceId,
        what: Remark,
    },
    /// Kill the instance with all its children; [`Event::Gone`] follows.
    Kill {
        instance: InstanceId,
    },
    /// `conforming` is v, where the invocation took a slot; the client is told it beside the start.
    Deliver {
        id: InvocationId,
        instance: InstanceId,
        allowance: Allowance,
        conforming: Option<Time>,
    },
    /// Hand the invocation to the best-effort lane.
    Demote {
        id: InvocationId,
    },
    /// Answer the client that its invocation is not run.
    Refuse {
        id: InvocationId,
        refusal: Refusal,
    },
    /// Answer the client that its invocation was stopped (killed at a bound, or its instance died).
    Fail {
        id: InvocationId,
        end: End,
    },
    LeaseReady {
        lease: LeaseId,
        expires: Time,
    },
    /// The lease ended without having been used; the instance is free again.
    LeaseEnded {
        lease: LeaseId,
        held: Duration,
    },
    /// No instance is held: the pre-invocation would exceed the guarantee, or the function declares no lead.
    LeaseRefused {
        lease: LeaseId,
        refusal: Refusal,
    },
    /// The version serves now; the one before it is gone or going.
    Serving {
        function: FunctionKey,
        version: Version,
    },
    /// Instances of the version do not become ready; the one before it still serves.
    CannotServe {
        function: FunctionKey,
        version: Version,
    },
    Record(Box<record::Invocation>),
}

/// What the log of a function is to say of one of its instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remark {
    /// It is killed because it has answered an invocation and not asked for its next one within this time.
    NeverAsked { within: Duration },
}

/// Where the threads of an instance run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    RealTime { core: u16, priority: u8 },
    BestEffort,
}

/// What an invocation may use before it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// C: its own time, executing and waiting.
    pub run_time: Duration,
    pub cpu: CpuShare,
    /// It is stopped at this instant whatever else happened.
    pub until: Time,
}

/// Why an invocation was not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Beyond the guarantee's envelope; the next arrival conforms at `next`.
    OverRate {
        next: Time,
    },
    /// The function's queue holds `limit` already; the next slot is at `next`.
    QueueFull {
        limit: u32,
        next: Time,
    },
    /// Its deadline passed, or cannot be met any more, before it could start.
    Expired {
        deadline: Time,
    },
    /// The best-effort lane holds `limit` waiting invocations of this tenant already.
    Busy {
        limit: u32,
    },
    /// The lease is unknown, expired or used.
    NoLease,
    NoFunction,
    /// Its guarantee could not be re-admitted after a restart or a rise of T.
    Suspended,
    /// Instances of the function do not start.
    Unstartable,
    Draining,
}
