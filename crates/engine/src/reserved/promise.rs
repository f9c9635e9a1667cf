//! A promise in force: its numbers, its counters, and what an invocation under it carries until its record is written.

use std::time::Duration;

use journal::record::{Counters, Invocation, StartSeenBy, Transfer};
use model::{Class, End, FunctionKey, FunctionName, Guarantee, InstanceId, InvocationId, Level, Time};

use crate::port::{Allowance, Reservation};
use crate::verdict::{Bounds, count};

/// One generation of a function's guarantee.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    pub(super) name: FunctionName,
    pub(super) generation: u64,
    pub(super) terms: Guarantee,
    pub(super) level: Level,
    start_bound: Duration,
    bounds: Bounds,
    /// The number of the next invocation.
    pub(super) sequence: u64,
    /// Invocations and leases whose record is not written yet.
    pub(super) open: u64,
    /// New invocations come under it.
    pub(super) current: bool,
    pub(super) counters: Counters,
}

impl Promise {
    pub(super) fn new(name: FunctionName, reservation: &Reservation) -> Self {
        let generation = reservation.generation;
        let counters = Counters { function: name.to_string(), generation, ..Counters::default() };
        let mut promise = Self {
            name,
            generation,
            terms: reservation.terms.clone(),
            level: reservation.level,
            start_bound: Duration::ZERO,
            bounds: Bounds { start_within: Duration::ZERO, response: Duration::ZERO, tolerance: Duration::ZERO },
            sequence: 0,
            open: 0,
            current: true,
            counters,
        };
        promise.revise(reservation);
        promise
    }

    /// The same generation with new analysed bounds.
    pub(super) fn revise(&mut self, reservation: &Reservation) {
        self.terms = reservation.terms.clone();
        self.level = reservation.level;
        self.start_bound = reservation.start_bound;
        self.bounds = Bounds {
            start_within: reservation.terms.start_within,
            response: reservation.response_bound,
            tolerance: reservation.tolerance,
        };
    }

    pub(super) const fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// The deadline of an invocation that arrives at `arrived`: the one it carries, else the guarantee's.
    pub(super) fn deadline(&self, arrived: Time, carried: Option<Time>) -> Option<Time> {
        carried.or_else(|| self.terms.deadline.map(|deadline| arrived + deadline.0))
    }

    /// The instant after which a start comes too late for the deadline, even undisturbed.
    pub(super) fn latest_start(&self, deadline: Option<Time>) -> Time {
        deadline.map_or(Time::MAX, |deadline| deadline.before(self.terms.max_run_time))
    }

    /// What an invocation that is due at `due` and delivered at `delivered` may use.
    ///
    /// It is stopped at `due + R + T`, the admitted response bound, which the instances K and the bounds of all others
    /// rest on. Where the platform itself delivered it later than `due + S`, the bound moves by that delay: what was taken
    /// from the invocation before its start is not taken from its run time a second time. Gaps of its core move it too.
    ///
    /// At level soft other programs of the machine take the core as well, and no gap shows it. What an invocation itself may
    /// use is bounded all the same, by the watch over it; this bound is `patience` later.
    pub(super) fn allowance(&self, due: Time, delivered: Time, patience: Duration) -> Allowance {
        let run = self.bounds.response.saturating_sub(self.start_bound).max(self.terms.max_run_time);
        let patience = match self.level {
            Level::Hard => Duration::ZERO,
            Level::Soft => patience,
        };
        let until = (due + self.start_bound).max(delivered) + run + self.bounds.tolerance + patience;
        Allowance { run_time: self.terms.max_run_time, cpu: self.terms.cpu, until }
    }

    pub(super) fn count(&mut self, record: &Invocation) {
        self.open -= 1;
        count(&mut self.counters, self.bounds, record);
    }
}

/// The number of a promise within the engine.
pub(super) type PromiseId = u64;

/// What is known of an invocation, or of a lease before its input came, once it took a slot or was turned away.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) function: FunctionKey,
    pub(super) promise: PromiseId,
    pub(super) sequence: u64,
    pub(super) slot: Option<Taken>,
    pub(super) arrived: Time,
    pub(super) deadline: Option<Time>,
    pub(super) delivered: Option<Time>,
    pub(super) started: Option<Time>,
    pub(super) instance: Option<InstanceId>,
    pub(super) core: u16,
    pub(super) cpu: Duration,
    pub(super) held: Option<Duration>,
    /// Its input or result is long. In a box, because most are not.
    pub(super) transfer: Option<Box<Moves>>,
    /// It exceeded its own bound, whatever was done about it.
    pub(super) overran: bool,
    /// It had to wait for an instance, and why none was there.
    pub(super) waited: Option<Missing>,
}

/// How long the node had a long input and result of an invocation so far, and by how much its bound moved for that.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moves {
    pub(super) so_far: Transfer,
    pub(super) granted: Duration,
}

/// A slot of a pacer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) number: u64,
    pub(super) conforming: Time,
    pub(super) resumed: Option<Time>,
}

/// Why no idle instance was there for a conforming start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// An instance was lost to the function's own crash, overrun or client. What led to that happened between these instants.
    Lost { from: Time, until: Time },
    /// An instance could not be started.
    Unstarted,
    /// Instances of its function were busy with long inputs or results, for which no instances are reserved.
    Transferring,
    /// Nothing of that happened: the warm reserve did not hold.
    Never,
}

impl Facts {
    /// The instant from which its bounds count.
    pub(super) fn due(&self) -> Time {
        self.slot.map_or(self.arrived, |slot| slot.conforming.max(self.arrived))
    }

    pub(super) fn record(&self, id: InvocationId, promise: &Promise, end: End, now: Time) -> Invocation {
        Invocation {
            id,
            function: promise.name.clone(),
            generation: promise.generation,
            sequence: self.sequence,
            slot: self.slot.map(|slot| slot.number),
            resumed: self.slot.and_then(|slot| slot.resumed),
            class: if self.slot.is_some() { Class::Guaranteed } else { Class::BestEffort },
            arrived: self.arrived,
            conforming: self.slot.map(|slot| slot.conforming),
            delivered: self.delivered,
            started: self.started.or(self.delivered),
            start_seen_by: if self.started.is_some() { StartSeenBy::Handler } else { StartSeenBy::Delivery },
            ended: now,
            end,
            deadline: self.deadline,
            instance: self.instance,
            core: self.core,
            cpu: self.cpu,
            // What was granted ahead of an end that came early is no time that anything was in the node's hands.
            transfer: self.transfer.as_ref().map(|moves| Box::new(moves.so_far.at_most(now.since(self.arrived)))),
            held: self.held,
            violation: None,
        }
    }
}
