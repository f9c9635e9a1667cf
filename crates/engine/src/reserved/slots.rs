//! Arrivals, slots and leases: who runs under the promise, and when.

use std::time::Duration;

use dispatch::{Full, Slot};
use model::{End, FunctionKey, InvocationId, LeaseId, Level, Overflow, Time};

use super::fleet::Waiter;
use super::promise::{Facts, Missing, Taken};
use super::{Engine, Invocation, Lease, LeaseStage, PacerId, Place, Queued, Timer};
use crate::port::{Action, Refusal};

/// When an invocation arrived, and the deadline it carries.
type Stamp = (Time, Option<Time>);

impl Engine {
    pub(super) fn arrived(&mut self, id: InvocationId, key: FunctionKey, stamp: Stamp, actions: &mut Vec<Action>) {
        assert!(!self.invocations.contains_key(&id), "invariant: invocation {id} arrives once");
        if self.draining {
            return actions.push(Action::Refuse { id, refusal: Refusal::Draining });
        }
        let Some(function) = self.functions.get(&key).filter(|function| function.serving.is_some()) else {
            return actions.push(Action::Refuse { id, refusal: Refusal::NoFunction });
        };
        let (pacer, promise) = (function.pacer, function.promise);
        let paced = self.paced(pacer);
        paced.latest = paced.latest.max(stamp.0);
        let arrived = paced.latest;
        let deadline = self.promises[&promise].deadline(arrived, stamp.1);
        let queued = Queued { function: key, arrived, deadline };
        match self.paced(pacer).pacer.classify(arrived) {
            Slot::Taken { conforming } => self.begin(id, queued, conforming, actions),
            Slot::NotBefore(next) => self.beyond(id, queued, next, actions),
        }
    }

    /// A nonconforming arrival: nothing was charged.
    fn beyond(&mut self, id: InvocationId, queued: Queued, next: Time, actions: &mut Vec<Action>) {
        let function = &self.functions[&queued.function];
        let promise = &self.promises[&function.promise];
        match promise.terms.overflow {
            Overflow::BestEffort => {
                actions.push(Action::Demote { id });
                self.turned_away(id, queued, End::Demoted, actions);
            }
            Overflow::Reject => self.turn_away(id, queued, Refusal::OverRate { next }, actions),
            Overflow::Queue { limit } => {
                let latest = promise.latest_start(queued.deadline);
                if let Some(deadline) = queued.deadline.filter(|_| latest < next) {
                    return self.turn_away(id, queued, Refusal::Expired { deadline }, actions);
                }
                let (pacer, room) = (function.pacer, function.queued < limit);
                if !room {
                    return self.turn_away(id, queued, Refusal::QueueFull { limit, next }, actions);
                }
                if let Err(Full { limit }) = self.paced(pacer).queue.push(id, latest, queued) {
                    return self.turn_away(id, queued, Refusal::QueueFull { limit, next }, actions);
                }
                self.invocations.insert(id, Invocation::Queued { pacer });
                self.function(queued.function).queued += 1;
                self.arm(pacer);
            }
        }
    }

    /// A slot opened, or queued work expired.
    pub(super) fn slot_due(&mut self, pacer: PacerId, actions: &mut Vec<Action>) {
        let now = self.now;
        self.paced(pacer).armed = None;
        while let Some((id, queued)) = self.paced(pacer).queue.expired(now) {
            self.leave_queue(id, queued);
            let deadline = queued.deadline.unwrap_or(now);
            self.turn_away(id, queued, Refusal::Expired { deadline }, actions);
        }
        while self.paced(pacer).pacer.next_conforming() <= now {
            let Some((id, queued)) = self.paced(pacer).queue.pop() else { break };
            self.leave_queue(id, queued);
            match self.paced(pacer).pacer.release(now, queued.arrived) {
                Slot::Taken { conforming } => self.begin(id, queued, conforming, actions),
                Slot::NotBefore(at) => unreachable!("invariant: the slot at {at:?} was open at {now:?}"),
            }
        }
        self.arm(pacer);
    }

    /// Sets the timer of a pacer to its next slot or expiry, whichever is first, while anything waits for it.
    pub(super) fn arm(&mut self, id: PacerId) {
        let paced = self.pacers.get_mut(&id).expect("invariant: a pacer lives as long as its functions");
        let due = paced.queue.latest_start().map(|latest| {
            let expiry = latest + Duration::from_nanos(1);
            paced.pacer.next_conforming().min(expiry)
        });
        if paced.armed != due {
            if let Some(armed) = paced.armed {
                self.timers.remove(&(armed, Timer::Slot(id)));
            }
            paced.armed = due;
            self.timers.extend(due.map(|due| (due, Timer::Slot(id))));
        }
    }

    fn leave_queue(&mut self, id: InvocationId, queued: Queued) {
        self.invocations.remove(&id);
        self.function(queued.function).queued -= 1;
    }

    /// Ends the wait of a queued invocation without running it.
    pub(super) fn turn_away_queued(&mut self, id: InvocationId, refusal: Refusal, actions: &mut Vec<Action>) {
        if let Some(queued) = self.unqueue(id) {
            self.turn_away(id, queued, refusal, actions);
        }
    }

    pub(super) fn unqueue(&mut self, id: InvocationId) -> Option<Queued> {
        let Some(Invocation::Queued { pacer }) = self.invocations.get(&id) else { return None };
        let pacer = *pacer;
        let queued = self.paced(pacer).queue.remove(id)?;
        self.leave_queue(id, queued);
        self.arm(pacer);
        Some(queued)
    }

    fn turn_away(&mut self, id: InvocationId, queued: Queued, refusal: Refusal, actions: &mut Vec<Action>) {
        actions.push(Action::Refuse { id, refusal });
        let end = match refusal {
            Refusal::Expired { .. } => End::Expired,
            Refusal::OverRate { .. }
            | Refusal::QueueFull { .. }
            | Refusal::Busy { .. }
            | Refusal::NoLease
            | Refusal::NoFunction
            | Refusal::Suspended
            | Refusal::Unstartable
            | Refusal::Draining => End::Refused,
        };
        self.turned_away(id, queued, end, actions);
    }

    /// Records an invocation that took no slot.
    pub(super) fn turned_away(&mut self, id: InvocationId, queued: Queued, end: End, actions: &mut Vec<Action>) {
        let facts = self.facts(queued, None);
        self.conclude(id, &facts, end, actions);
    }

    /// Numbers an invocation or lease under the current promise of its function.
    fn facts(&mut self, queued: Queued, slot: Option<Taken>) -> Facts {
        let promise = self.functions[&queued.function].promise;
        let terms = self.promises.get_mut(&promise).expect("invariant: a function has a promise");
        let sequence = terms.sequence;
        terms.sequence += 1;
        terms.open += 1;
        Facts {
            function: queued.function,
            promise,
            sequence,
            slot,
            arrived: queued.arrived,
            deadline: queued.deadline,
            delivered: None,
            started: None,
            instance: None,
            core: 0,
            cpu: Duration::ZERO,
            held: None,
            transfer: None,
            overran: false,
            waited: None,
        }
    }

    /// Gives a slot its number and its core.
    fn enter(&mut self, queued: Queued, conforming: Time) -> (Facts, usize) {
        let pacer = self.functions[&queued.function].pacer;
        let paced = self.paced(pacer);
        let taken = Taken { number: paced.slots, conforming, resumed: paced.resumed.take() };
        paced.slots += 1;
        let mut facts = self.facts(queued, Some(taken));
        let code = self.function(queued.function).serving.as_mut().expect("invariant: only a serving function takes slots");
        let bay = code.next_bay();
        facts.core = code.bays[bay].shard.core;
        (facts, bay)
    }

    /// An invocation has its slot: it starts on the instance of its core that was used last, or waits for one.
    fn begin(&mut self, id: InvocationId, queued: Queued, conforming: Time, actions: &mut Vec<Action>) {
        let (facts, bay) = self.enter(queued, conforming);
        let key = facts.function;
        match self.take_idle(key, bay) {
            Some(instance) => self.deliver(id, facts, instance, actions),
            None => self.await_instance(id, facts, bay),
        }
        self.replenish(key, actions);
    }

    pub(super) fn await_instance(&mut self, id: InvocationId, mut facts: Facts, bay: usize) {
        let promise = &self.promises[&facts.promise];
        let at_the_latest = match facts.deadline {
            Some(deadline) => promise.latest_start(Some(deadline)),
            None => self.now + self.options.instance_wait,
        };
        let give_up = at_the_latest.max(facts.due() + promise.terms.start_within).max(self.now) + Duration::from_nanos(1);
        let (place, missing) = self.wait_at(facts.function, bay, Waiter::Invocation(id));
        facts.waited = facts.waited.or(Some(missing));
        self.timers.insert((give_up, Timer::GiveUp(id)));
        self.invocations.insert(id, Invocation::Waiting { facts, place, give_up });
    }

    fn wait_at(&mut self, key: FunctionKey, bay: usize, waiter: Waiter) -> (Place, Missing) {
        let number = self.number();
        let otherwise = if self.is_transferring(key) { Missing::Transferring } else { Missing::Never };
        let code = self.function(key).serving.as_mut().expect("invariant: only a serving function has waiters");
        let missing = code.bays[bay].short.unwrap_or(otherwise);
        code.bays[bay].waiting.insert(number, waiter);
        (Place { bay, number }, missing)
    }

    /// Whether a long input or result keeps an instance of a function beyond the bound that instances are reserved for. Before it,
    /// the invocation is one like any other. Looks at no more than K.
    fn is_transferring(&self, key: FunctionKey) -> bool {
        let moving = self.moving.range((key, InvocationId::from_u128(0))..=(key, InvocationId::from_u128(u128::MAX)));
        moving.into_iter().any(|(_, id)| match self.invocations.get(id) {
            Some(Invocation::Running { facts, until, .. }) => {
                let patience = match self.promises[&facts.promise].level {
                    Level::Hard => Duration::ZERO,
                    Level::Soft => self.options.soft_patience,
                };
                let granted = facts.transfer.as_ref().map_or(Duration::ZERO, |moves| moves.granted);
                until.before(granted).before(patience) < self.now
            }
            Some(Invocation::Queued { .. } | Invocation::Waiting { .. }) | None => false,
        })
    }

    /// Takes a slot for input that is still to come, and holds an instance for it. The pre-invocation is the invocation's
    /// slot (PER'24: the rate is spent when the instance is invoked, early; delivering the input spends none). The lead is
    /// cut to the declared one, which is what admission counted instances for.
    pub(super) fn pre_invoke(&mut self, lease: LeaseId, key: FunctionKey, lead: Duration, actions: &mut Vec<Action>) {
        let refused = |refusal| Action::LeaseRefused { lease, refusal };
        if self.draining {
            return actions.push(refused(Refusal::Draining));
        }
        let Some(function) = self.functions.get(&key).filter(|function| function.serving.is_some()) else {
            return actions.push(refused(Refusal::NoFunction));
        };
        let declared = self.promises[&function.promise].terms.lead;
        if declared.is_zero() || self.leases.contains_key(&lease) {
            return actions.push(refused(Refusal::NoLease));
        }
        let (now, pacer) = (self.now, function.pacer);
        let paced = self.paced(pacer);
        paced.latest = paced.latest.max(now);
        let conforming = match self.paced(pacer).pacer.classify(now) {
            Slot::Taken { conforming } => conforming,
            Slot::NotBefore(next) => return actions.push(refused(Refusal::OverRate { next })),
        };
        let (mut facts, bay) = self.enter(Queued { function: key, arrived: now, deadline: None }, conforming);
        facts.held = Some(Duration::ZERO);
        let held =
            Lease { facts, lead: lead.min(declared), stage: LeaseStage::Waiting { place: Place { bay, number: 0 } }, ends: now };
        self.seat_lease(lease, held, bay, actions);
        self.replenish(key, actions);
    }

    /// Gives a lease an idle instance of its core, or lets it wait for one.
    pub(super) fn seat_lease(&mut self, id: LeaseId, mut lease: Lease, bay: usize, actions: &mut Vec<Action>) {
        let key = lease.facts.function;
        if let Some(instance) = self.take_idle(key, bay) {
            return self.hold(id, lease, instance, actions);
        }
        let (place, missing) = self.wait_at(key, bay, Waiter::Lease(id));
        lease.facts.waited = lease.facts.waited.or(Some(missing));
        lease.stage = LeaseStage::Waiting { place };
        lease.ends = self.now + lease.lead + self.options.instance_wait;
        self.timers.insert((lease.ends, Timer::Lease(id)));
        self.leases.insert(id, lease);
    }

    /// Input came. With its instance held, it starts at once.
    pub(super) fn supplied(&mut self, id: InvocationId, lease: LeaseId, stamp: Stamp, actions: &mut Vec<Action>) {
        assert!(!self.invocations.contains_key(&id), "invariant: invocation {id} arrives once");
        let Some(Lease { mut facts, stage, ends, .. }) = self.leases.remove(&lease) else {
            return actions.push(Action::Refuse { id, refusal: Refusal::NoLease });
        };
        self.timers.remove(&(ends, Timer::Lease(lease)));
        let (arrived, carried) = stamp;
        // The input cannot have come before its lease was given, whatever its stamp says.
        facts.arrived = arrived.max(facts.arrived);
        facts.deadline = self.promises[&facts.promise].deadline(facts.arrived, carried);
        match stage {
            LeaseStage::Held { instance, since } => {
                facts.held = Some(self.now.since(since));
                self.deliver(id, facts, instance, actions);
            }
            LeaseStage::Waiting { place } => {
                self.leave_bay(facts.function, place);
                self.await_instance(id, facts, place.bay);
            }
        }
    }

    /// A lease ends without having been used: its instance is free again, its slot is spent.
    pub(super) fn lease_over(&mut self, id: LeaseId, actions: &mut Vec<Action>) {
        let Some(Lease { mut facts, stage, ends, .. }) = self.leases.remove(&id) else { return };
        self.timers.remove(&(ends, Timer::Lease(id)));
        let held = match stage {
            LeaseStage::Held { since, .. } => self.now.since(since),
            LeaseStage::Waiting { .. } => Duration::ZERO,
        };
        facts.held = Some(held);
        actions.push(Action::LeaseEnded { lease: id, held });
        // A lease without input has no invocation: its record carries its own number.
        self.conclude(InvocationId::from_u128(u128::from(id.0)), &facts, End::Expired, actions);
        match stage {
            LeaseStage::Held { instance, .. } => self.free(instance, actions),
            LeaseStage::Waiting { place } => self.leave_bay(facts.function, place),
        }
    }
}
