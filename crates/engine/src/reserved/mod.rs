//! The guaranteed lane: every function with an admitted guarantee, its pacer, its queue, its instances, its records.
//!
//! What it keeps at all times: at most K instances of a code on a core and one invocation in each; W of them idle,
//! replenished at every start; every slot of a pacer in exactly one record; every invocation that arrived answered once
//! (its instance ends it, or [`Action::Demote`], [`Action::Refuse`] or [`Action::Fail`] does). State grows with what was
//! admitted and with the named limits of queues and waits, never with the load.
//!
//! Slots go to the cores of a function in turn, because admission analysed each core with its part of the rate. A slot
//! whose core has no idle instance waits for one there, although another core may have one: the other core's analysis
//! does not know of it, and one function's crash must not delay another function.

mod endings;
mod fleet;
mod instances;
mod promise;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dispatch::{DeadlineQueue, Pacer};
use journal::record::{self, Counters};
use model::{Burst, FunctionKey, InstanceId, InvocationId, LeaseId, Rate, RateClassName, Time};

use self::fleet::{Code, CodeId, Instance};
use self::promise::{Facts, Promise, PromiseId};
use crate::gaps::Gaps;
use crate::port::{Action, Deployment, Event, Refusal};
use crate::shadow::Runs;
use crate::verdict::Bounds;

/// The limits of the lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Starts of a new version that may fail one after the other before it is given up.
    pub start_failures: u32,
    /// An instance that is not ready this long after its start had its turn is killed; its start has failed.
    pub start_limit: Duration,
    /// An instance that has answered and does not ask for its next invocation within this time is killed. Between invocations it
    /// has what its core leaves, at the lowest nice value: what it does then may take it long through no fault of its own.
    pub finish_limit: Duration,
    /// How long the order to start one may wait for its turn: longer than as many starts as can be ordered take.
    pub turn_limit: Duration,
    /// The pause before the third start in a row of which two have failed; it doubles from there.
    pub restart_first: Duration,
    /// The longest pause between starts.
    pub restart_last: Duration,
    /// How long a missed promise may wait for the evidence of a probe before its record is written.
    pub evidence_wait: Duration,
    /// How long a conforming invocation without a deadline may wait for an instance, after losses of instances.
    pub instance_wait: Duration,
    /// How long beyond its response bound an invocation may take at level soft, where other programs take its core too.
    pub soft_patience: Duration,
    /// How long an idle instance beyond the warm reserve is kept.
    pub surplus_idle: Duration,
    /// Invocations that may wait for the slots of one pacer, over all its functions.
    pub queue_limit: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            start_failures: 3,
            start_limit: Duration::from_secs(30),
            finish_limit: Duration::from_secs(30),
            turn_limit: Duration::from_secs(300),
            restart_first: Duration::from_millis(10),
            restart_last: Duration::from_secs(5),
            evidence_wait: Duration::from_millis(20),
            instance_wait: Duration::from_secs(10),
            soft_patience: Duration::from_secs(10),
            surplus_idle: Duration::from_secs(60),
            queue_limit: 100_000,
        }
    }
}

/// The state machine of the guaranteed lane.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    /// The latest instant it was told.
    now: Time,
    draining: bool,
    functions: BTreeMap<FunctionKey, Function>,
    promises: BTreeMap<PromiseId, Promise>,
    pacers: BTreeMap<PacerId, Paced>,
    classes: BTreeMap<RateClassName, PacerId>,
    instances: BTreeMap<InstanceId, Instance>,
    invocations: BTreeMap<InvocationId, Invocation>,
    leases: BTreeMap<LeaseId, Lease>,
    /// Those that run and whose input or result is long, by their functions.
    moving: BTreeSet<(FunctionKey, InvocationId)>,
    timers: BTreeSet<(Time, Timer)>,
    gaps: Gaps,
    runs: Runs,
    /// Records of missed promises that wait for evidence.
    unproven: BTreeMap<u64, Unproven>,
    /// Counts promises, pacers, codes, waits and instances.
    numbers: u64,
}

#[derive(Debug)]
struct Function {
    /// As installed last, with the reservation in force.
    deployment: Deployment,
    promise: PromiseId,
    pacer: PacerId,
    serving: Option<Code>,
    incoming: Option<Incoming>,
    /// Its invocations in the queue of its pacer.
    queued: u32,
    trim_at: Option<Time>,
}

/// A version that becomes warm beside the one that serves.
#[derive(Debug)]
struct Incoming {
    code: Code,
    deployment: Deployment,
}

type PacerId = u64;

/// A pacer with what waits for its slots.
#[derive(Debug)]
struct Paced {
    pacer: Pacer,
    /// The number of the next slot.
    slots: u64,
    /// The theoretical arrival time it began with, until slot 0 is taken.
    resumed: Option<Time>,
    queue: DeadlineQueue<Queued>,
    armed: Option<Time>,
    /// The latest arrival that was judged.
    latest: Time,
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    function: FunctionKey,
    arrived: Time,
    deadline: Option<Time>,
}

#[derive(Debug)]
enum Invocation {
    /// It waits for a slot of this pacer.
    Queued {
        pacer: PacerId,
    },
    /// It took a slot and waits for an instance.
    Waiting {
        facts: Facts,
        place: Place,
        give_up: Time,
    },
    Running {
        facts: Facts,
        instance: InstanceId,
        until: Time,
    },
}

/// Where something waits for an instance.
#[derive(Clone, Copy, Debug)]
struct Place {
    bay: usize,
    number: u64,
}

#[derive(Debug)]
struct Lease {
    facts: Facts,
    lead: Duration,
    stage: LeaseStage,
    ends: Time,
}

#[derive(Clone, Copy, Debug)]
enum LeaseStage {
    Waiting { place: Place },
    Held { instance: InstanceId, since: Time },
}

#[derive(Debug)]
struct Unproven {
    record: record::Invocation,
    promise: PromiseId,
    /// Those in force when it ended, which it was found to have missed.
    bounds: Bounds,
    otherwise: model::Cause,
    /// It waited because an instance was lost; when what led to that happened.
    lost: Option<(Time, Time)>,
    /// Nothing but its core, or the lane, was in its way: there was an instance, or there should have been.
    in_line: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A slot opens, or queued work expires.
    Slot(PacerId),
    /// A running invocation is at its bound.
    Stop(InvocationId),
    /// A waiting invocation is given up.
    GiveUp(InvocationId),
    /// A lease ends unused.
    Lease(LeaseId),
    /// An instance is not ready in time.
    Starting(InstanceId),
    /// An instance has not asked for its next invocation in time.
    Finishing(InstanceId),
    /// The pause after failed starts is over.
    Restart(FunctionKey, CodeId),
    /// Idle instances beyond the reserve have been idle for long.
    Trim(FunctionKey),
    /// A record has waited for evidence long enough.
    Write(u64),
}

impl Engine {
    #[must_use]
    pub const fn new(options: Options) -> Self {
        Self {
            options,
            now: Time::ZERO,
            draining: false,
            functions: BTreeMap::new(),
            promises: BTreeMap::new(),
            pacers: BTreeMap::new(),
            classes: BTreeMap::new(),
            instances: BTreeMap::new(),
            invocations: BTreeMap::new(),
            leases: BTreeMap::new(),
            moving: BTreeSet::new(),
            timers: BTreeSet::new(),
            gaps: Gaps::new(),
            runs: Runs::new(),
            unproven: BTreeMap::new(),
            numbers: 0,
        }
    }

    /// Takes in what happened at `now` and appends what is to be done. What was due before is done first. An arrival may
    /// carry a stamp that lies before the last call: its slot is judged by the stamp, everything else by the latest instant.
    /// Arrivals at one pacer are judged in the order in which they are told; a stamp before that of an earlier one counts as
    /// that one's.
    ///
    /// # Panics
    /// On an invocation that arrives twice, and on a deployment without a reservation or without a core.
    pub fn handle(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        // Evidence of what was: whatever fell due during the gap is judged with it.
        if let Event::ProbeGap { core, from, until } = event {
            self.missed(core, from, until);
        }
        if let Event::Transferred { id, so_far } = event {
            self.transferred(id, so_far);
        }
        self.wake(now, actions);
        match event {
            Event::Install(deployment) => self.install(*deployment, actions),
            Event::Begun { instance } => self.begun(instance),
            Event::Revise(all) => {
                for (function, reservation) in all {
                    self.revise(function, &reservation, actions);
                }
            }
            Event::Remove { function } => self.remove(function, actions),
            Event::Arrived { id, function, deadline } => self.arrived(id, function, (now, deadline), actions),
            Event::Supplied { id, lease, deadline } => self.supplied(id, lease, (now, deadline), actions),
            Event::PreInvoke { lease, function, lead } => self.pre_invoke(lease, function, lead, actions),
            Event::Abandoned { id } => self.abandoned(id, actions),
            Event::Ready { instance } => self.ready(instance, actions),
            Event::Dying { instance } => self.dying(instance, actions),
            Event::Gone { instance } => self.gone(instance, actions),
            Event::Delivered { id, at } => self.delivered(id, at),
            Event::Started { id, at } => self.started(id, at),
            Event::Ended { id, end, cpu } => self.ended(id, end, cpu, actions),
            Event::Overran { id, cpu } => self.overran(id, cpu, actions),
            // Measurements concern the best-effort lane.
            Event::ProbeGap { .. } | Event::Transferred { .. } | Event::Measured { .. } | Event::Warmed { .. } => {}
            Event::Drain => self.drain(actions),
        }
    }

    /// The instant at which [`Engine::wake`] has something to do.
    #[must_use]
    pub fn next_wake(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Does what is due at `now`, in the order in which it fell due.
    pub fn wake(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        while let Some((at, timer)) = self.timers.first().copied() {
            if self.now < at {
                return;
            }
            self.timers.remove(&(at, timer));
            self.fire(timer, actions);
        }
    }

    /// The counters of every promise in force, and of earlier ones with invocations still running.
    #[must_use]
    pub fn counters(&self) -> Vec<Counters> {
        self.promises.values().map(|promise| promise.counters.clone()).collect()
    }

    /// Whether what serves of a function has the warm reserve that its reservation names, on every core, or took from it for
    /// what runs now; false for one that does not serve.
    #[must_use]
    pub fn is_warm(&self, function: FunctionKey) -> bool {
        self.functions.get(&function).and_then(|known| known.serving.as_ref()).is_some_and(Code::is_stocked)
    }

    /// Nothing runs, waits or is still to be recorded.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.invocations.is_empty() && self.leases.is_empty() && self.unproven.is_empty()
    }

    fn fire(&mut self, timer: Timer, actions: &mut Vec<Action>) {
        match timer {
            Timer::Slot(pacer) => self.slot_due(pacer, actions),
            Timer::Stop(id) => self.stop(id, actions),
            Timer::GiveUp(id) => self.give_up(id, actions),
            Timer::Lease(lease) => self.lease_over(lease, actions),
            Timer::Starting(instance) => self.start_overdue(instance, actions),
            Timer::Finishing(instance) => self.never_asked(instance, actions),
            Timer::Restart(function, _) => self.replenish(function, actions),
            Timer::Trim(function) => self.trim(function, actions),
            Timer::Write(number) => self.write_unproven(number, actions),
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Stops accepting. Queued excess is refused; what took a slot may end, leases may still be used.
    fn drain(&mut self, actions: &mut Vec<Action>) {
        self.draining = true;
        let queued = |(id, invocation): (&InvocationId, &Invocation)| match invocation {
            Invocation::Queued { .. } => Some(*id),
            Invocation::Waiting { .. } | Invocation::Running { .. } => None,
        };
        let waiting: Vec<InvocationId> = self.invocations.iter().filter_map(queued).collect();
        for id in waiting {
            self.turn_away_queued(id, Refusal::Draining, actions);
        }
    }
}

/// The rate and burst that a reservation is paced by.
fn pacing(deployment: &Deployment) -> (Rate, Burst, Option<RateClassName>) {
    let reservation = deployment.reservation.as_ref().expect("invariant: the guaranteed lane holds functions with a reservation");
    reservation.pacing()
}
