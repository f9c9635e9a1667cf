//! The life of instances and of the functions they belong to.

use std::time::Duration;

use dispatch::{DeadlineQueue, Pacer};
use model::{End, FunctionKey, InstanceId, InvocationId, LeaseId, Time};

use super::fleet::{Bay, Code, Instance, State, Waiter};
use super::promise::{Facts, Missing, Promise};
use super::{Engine, Function, Incoming, Invocation, Lease, LeaseStage, Paced, PacerId, Place, Timer, pacing};
use crate::port::{Action, Deployment, Placement, Refusal, Reservation};

/// Between two surplus instances killed on one core; longer than a kill takes.
const TRIM_PAUSE: Duration = Duration::from_secs(1);

impl Engine {
    /// Installs a function, or a new version of one beside the version that serves.
    pub(super) fn install(&mut self, deployment: Deployment, actions: &mut Vec<Action>) {
        let key = deployment.function;
        let reservation = deployment.reservation.as_ref().expect("invariant: the guaranteed lane is given a reservation");
        assert!(!reservation.shards.is_empty(), "invariant: a reservation has a core");
        let code = self.number();
        let code = Code::new(code, deployment.version, &reservation.shards);
        if self.functions.contains_key(&key) {
            self.abort_incoming(key, actions); // a newer installation overtakes one that is still warming
            self.function(key).incoming = Some(Incoming { code, deployment });
        } else {
            let promise = self.number();
            self.promises.insert(promise, Promise::new(deployment.name.clone(), reservation));
            let pacer = self.pacer_for(&deployment);
            let incoming = Some(Incoming { code, deployment: deployment.clone() });
            let function = Function { deployment, promise, pacer, serving: None, incoming, queued: 0, trim_at: None };
            self.functions.insert(key, function);
        }
        self.replenish(key, actions);
        self.switch_if_warm(key, actions);
    }

    /// New priorities, bounds or terms for the same code. Cores that change are a new set of instances, made before the old
    /// ones are broken.
    pub(super) fn revise(&mut self, key: FunctionKey, reservation: &Reservation, actions: &mut Vec<Action>) {
        let Some(function) = self.functions.get_mut(&key) else { return };
        let deployment = Deployment { reservation: Some(reservation.clone()), ..function.deployment.clone() };
        let mut codes = Vec::new();
        if let Some(incoming) = &mut function.incoming
            && incoming.deployment.reservation.as_ref().is_some_and(|other| other.generation == reservation.generation)
            && incoming.code.has_cores(&reservation.shards)
        {
            incoming.code.reshape(&reservation.shards);
            incoming.deployment.reservation = Some(reservation.clone());
            codes.push(incoming.code.id);
        }
        let serving = function.serving.as_mut().filter(|code| code.has_cores(&reservation.shards));
        if let Some(serving) = serving {
            serving.reshape(&reservation.shards);
            codes.push(serving.id);
            self.adopt_terms(key, deployment, actions);
        } else if codes.is_empty() || function.serving.is_some() {
            return self.install(deployment, actions);
        }
        for (id, instance) in &mut self.instances {
            if !codes.contains(&instance.code) || instance.state == State::Dying {
                continue;
            }
            let on = Placement::RealTime { core: instance.core, priority: reservation.shards[instance.bay].priority };
            if instance.placed != on && instance.placed != Placement::BestEffort {
                instance.placed = on;
                actions.push(Action::Place { instance: *id, on });
            }
        }
        self.replenish(key, actions);
        self.switch_if_warm(key, actions);
    }

    /// Removes a function. What runs may end; whatever waits is refused.
    pub(super) fn remove(&mut self, key: FunctionKey, actions: &mut Vec<Action>) {
        if !self.functions.contains_key(&key) {
            return;
        }
        self.abort_incoming(key, actions);
        let of_key = |facts: &Facts| facts.function == key;
        let leases: Vec<LeaseId> = self.leases.iter().filter(|(_, lease)| of_key(&lease.facts)).map(|(id, _)| *id).collect();
        for lease in leases {
            self.lease_over(lease, actions);
        }
        for id in self.waiting_or_queued(key) {
            if let Some(facts) = self.stop_waiting(id) {
                actions.push(Action::Refuse { id, refusal: Refusal::NoFunction });
                self.conclude(id, &facts, End::Refused, actions);
            } else {
                self.turn_away_queued(id, Refusal::NoFunction, actions);
            }
        }
        let Some(function) = self.functions.remove(&key) else { return };
        if let Some(at) = function.trim_at {
            self.timers.remove(&(at, Timer::Trim(key)));
        }
        if let Some(code) = function.serving {
            self.retire(&code, key, actions);
        }
        self.end_promise(function.promise);
        if self.pacers.get(&function.pacer).is_some_and(|paced| paced.queue.is_empty()) && !self.is_class(function.pacer) {
            self.pacers.remove(&function.pacer);
        }
    }

    fn waiting_or_queued(&self, key: FunctionKey) -> Vec<InvocationId> {
        let mut found: Vec<InvocationId> = self.queued_of(key, self.functions[&key].pacer);
        for (id, invocation) in &self.invocations {
            match invocation {
                Invocation::Waiting { facts, .. } if facts.function == key => found.push(*id),
                Invocation::Queued { .. } | Invocation::Waiting { .. } | Invocation::Running { .. } => {}
            }
        }
        found
    }

    fn queued_of(&self, key: FunctionKey, pacer: PacerId) -> Vec<InvocationId> {
        let theirs = |(id, queued): (InvocationId, &super::Queued)| (queued.function == key).then_some(id);
        self.pacers[&pacer].queue.iter().filter_map(theirs).collect()
    }

    /// Kills the instances of a code that serves no more, except those at work or held: they are killed when they end.
    fn retire(&mut self, code: &Code, key: FunctionKey, actions: &mut Vec<Action>) {
        self.timers.remove(&(code.restarts.retry_at(), Timer::Restart(key, code.id)));
        let free = |instance: &Instance| match instance.state {
            State::Starting { .. } | State::Idle | State::Finishing { .. } => instance.code == code.id,
            State::Held { .. } | State::Busy { .. } | State::Dying => false,
        };
        let ids: Vec<InstanceId> = self.instances.iter().filter(|(_, instance)| free(instance)).map(|(id, _)| *id).collect();
        for id in ids {
            self.kill(id, actions);
        }
    }

    fn abort_incoming(&mut self, key: FunctionKey, actions: &mut Vec<Action>) {
        if let Some(incoming) = self.functions.get_mut(&key).and_then(|function| function.incoming.take()) {
            self.retire(&incoming.code, key, actions);
        }
    }

    /// Incoming -> serving, in one step, once every core has its warm reserve.
    fn switch_if_warm(&mut self, key: FunctionKey, actions: &mut Vec<Action>) {
        let function = self.function(key);
        let Some(Incoming { code, deployment }) = function.incoming.take_if(|incoming| incoming.code.is_warm()) else { return };
        let version = code.version;
        let old = function.serving.replace(code);
        self.adopt_terms(key, deployment, actions);
        if let Some(old) = old {
            let short = old.bays.iter().find_map(|bay| bay.short);
            for waiter in old.bays.iter().flat_map(|bay| bay.waiting.values()) {
                // They take instances that the reserve of the new version was made without counting them.
                for bay in self.function(key).serving.iter_mut().flat_map(|code| &mut code.bays) {
                    bay.short = bay.short.or(short);
                }
                self.move_waiter(*waiter, actions);
            }
            self.retire(&old, key, actions);
        }
        actions.push(Action::Serving { function: key, version });
        self.replenish(key, actions);
    }

    /// What waited for an instance of the old code gets one of the new.
    fn move_waiter(&mut self, waiter: Waiter, actions: &mut Vec<Action>) {
        match waiter {
            Waiter::Invocation(id) => {
                let Some(Invocation::Waiting { mut facts, give_up, .. }) = self.invocations.remove(&id) else { return };
                self.timers.remove(&(give_up, Timer::GiveUp(id)));
                let bay = self.bay_for(&mut facts);
                match self.take_idle(facts.function, bay) {
                    Some(instance) => self.deliver(id, facts, instance, actions),
                    None => self.await_instance(id, facts, bay),
                }
            }
            Waiter::Lease(id) => {
                let Some(mut lease) = self.leases.remove(&id) else { return };
                self.timers.remove(&(lease.ends, Timer::Lease(id)));
                let bay = self.bay_for(&mut lease.facts);
                self.seat_lease(id, lease, bay, actions);
            }
        }
    }

    fn bay_for(&mut self, facts: &mut Facts) -> usize {
        let code = self.function(facts.function).serving.as_mut().expect("invariant: called when a version began to serve");
        let bay = code.next_bay();
        facts.core = code.bays[bay].shard.core;
        bay
    }

    /// Puts the reservation of `deployment` in force: a new promise where the generation changed, the pacer going on from
    /// where it was.
    fn adopt_terms(&mut self, key: FunctionKey, deployment: Deployment, actions: &mut Vec<Action>) {
        let reservation = deployment.reservation.clone().expect("invariant: the guaranteed lane is given a reservation");
        let (rate, burst, class) = pacing(&deployment);
        let promise = self.functions[&key].promise;
        let same = self.promises[&promise].generation == reservation.generation;
        if same {
            self.promises.get_mut(&promise).expect("invariant: a function has a promise").revise(&reservation);
        } else {
            let next = self.number();
            self.promises.insert(next, Promise::new(deployment.name.clone(), &reservation));
            self.function(key).promise = next;
            self.end_promise(promise);
        }
        let old = self.functions[&key].pacer;
        let stays =
            self.is_class(old) == class.is_some() && class.as_ref().is_none_or(|name| self.classes.get(name) == Some(&old));
        let pacer = if stays { old } else { self.pacer_for(&deployment) };
        let now = self.now;
        let paced = self.paced(pacer);
        let renumbered = class.is_none() && !same;
        if renumbered || (paced.pacer.rate(), paced.pacer.burst()) != (rate, burst) {
            paced.pacer.change(rate, burst);
            if !paced.queue.is_empty() {
                paced.pacer.open_not_before(now);
            }
        }
        if renumbered {
            let (tat, part) = paced.pacer.theoretical_arrival();
            paced.slots = 0;
            paced.resumed = Some(if part == 0 { tat } else { tat + Duration::from_nanos(1) });
        }
        self.function(key).deployment = deployment;
        if !stays {
            self.move_queue(key, old, pacer, actions);
        }
        self.arm(pacer);
    }

    /// A function changed its pacer: what waits for the old one's slots waits for the new one's.
    fn move_queue(&mut self, key: FunctionKey, old: PacerId, new: PacerId, actions: &mut Vec<Action>) {
        for id in self.queued_of(key, old) {
            let Some(queued) = self.paced(old).queue.remove(id) else { continue };
            let latest = self.promises[&self.functions[&key].promise].latest_start(queued.deadline);
            if self.paced(new).queue.push(id, latest, queued).is_ok() {
                self.invocations.insert(id, Invocation::Queued { pacer: new });
            } else {
                self.invocations.remove(&id);
                self.function(key).queued -= 1;
                let next = self.paced(new).pacer.next_conforming();
                actions.push(Action::Refuse { id, refusal: Refusal::QueueFull { limit: self.options.queue_limit, next } });
                self.turned_away(id, queued, End::Refused, actions);
            }
        }
        self.function(key).pacer = new;
        self.arm(old);
        if !self.is_class(old) {
            self.pacers.remove(&old);
        }
    }

    fn end_promise(&mut self, id: u64) {
        let promise = self.promises.get_mut(&id).expect("invariant: a function has a promise");
        promise.current = false;
        if promise.open == 0 {
            self.promises.remove(&id);
        }
    }

    /// The pacer of a function's reservation: its own, or the one of its class, which lives as long as the lane.
    fn pacer_for(&mut self, deployment: &Deployment) -> PacerId {
        let (rate, burst, class) = pacing(deployment);
        if let Some(id) = class.as_ref().and_then(|name| self.classes.get(name)) {
            return *id;
        }
        let id = self.number();
        let queue = DeadlineQueue::new(self.options.queue_limit);
        self.pacers.insert(
            id,
            Paced { pacer: Pacer::new(rate, burst), slots: 0, resumed: None, queue, armed: None, latest: Time::ZERO },
        );
        self.classes.extend(class.map(|name| (name, id)));
        id
    }

    fn is_class(&self, pacer: PacerId) -> bool {
        self.classes.values().any(|class| *class == pacer)
    }

    /// Starts what the warm reserves and the waiting ones of a function need, within K and the pauses after failures.
    pub(super) fn replenish(&mut self, key: FunctionKey, actions: &mut Vec<Action>) {
        let (now, overdue) = (self.now, self.now + self.options.turn_limit);
        let Some(function) = self.functions.get_mut(&key) else { return };
        let codes = [function.incoming.as_mut().map(|incoming| &mut incoming.code), function.serving.as_mut()];
        for code in codes.into_iter().flatten() {
            if now < code.restarts.retry_at() {
                self.timers.insert((code.restarts.retry_at(), Timer::Restart(key, code.id)));
                continue;
            }
            for (index, bay) in code.bays.iter_mut().enumerate() {
                for _ in 0..bay.wanted() {
                    self.numbers += 1;
                    let id = InstanceId(2 * self.numbers); // even here, odd in the best-effort lane
                    let on = bay.placement();
                    bay.total += 1;
                    bay.starting += 1;
                    let core = bay.shard.core;
                    let state = State::Starting { overdue };
                    self.instances.insert(id, Instance { function: key, code: code.id, bay: index, core, placed: on, state });
                    self.timers.insert((overdue, Timer::Starting(id)));
                    actions.push(Action::Start { instance: id, function: key, version: code.version, on });
                }
            }
        }
    }

    /// The start of an instance has its turn: how long it takes counts from here.
    pub(super) fn begun(&mut self, id: InstanceId) {
        let later = self.now + self.options.start_limit;
        let Some(Instance { state: State::Starting { overdue }, .. }) = self.instances.get_mut(&id) else { return };
        self.timers.remove(&(*overdue, Timer::Starting(id)));
        *overdue = later;
        self.timers.insert((later, Timer::Starting(id)));
    }

    /// The instance asks for an invocation.
    pub(super) fn ready(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get(&id) else { return };
        match instance.state {
            State::Starting { overdue } => {
                self.timers.remove(&(overdue, Timer::Starting(id)));
                if let Some(bay) = self.bay_of(id) {
                    bay.starting -= 1;
                }
                self.free(id, actions);
            }
            State::Finishing { since } => {
                self.asked(id, since);
                self.free(id, actions);
            }
            // Asked again, or too late: nothing to answer.
            State::Idle | State::Held { .. } | State::Busy { .. } | State::Dying => {}
        }
    }

    /// An instance that answered at `since` is waited for no more.
    fn asked(&mut self, id: InstanceId, since: Time) {
        self.timers.remove(&(since + self.options.finish_limit, Timer::Finishing(id)));
    }

    /// An instance has nothing to do: whoever waits longest gets it, else it is idle; of a retired code, it is killed.
    pub(super) fn free(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let now = self.now;
        let Some(bay) = self.bay_of(id) else { return self.kill(id, actions) };
        let waiter = bay.waiting.first_key_value().map(|(_, waiter)| *waiter);
        match waiter {
            Some(Waiter::Invocation(waiting)) => {
                let facts = self.stop_waiting(waiting).expect("invariant: a waiter of a bay waits");
                self.deliver(waiting, facts, id, actions);
            }
            Some(Waiter::Lease(waiting)) => {
                let lease = self.leases.remove(&waiting).expect("invariant: a waiter of a bay waits");
                self.timers.remove(&(lease.ends, Timer::Lease(waiting)));
                if let LeaseStage::Waiting { place } = lease.stage {
                    self.leave_bay(lease.facts.function, place);
                }
                self.hold(waiting, lease, id, actions);
            }
            None => {
                bay.add_idle(id, now);
                let instance = self.instances.get_mut(&id).expect("invariant: an instance of a bay is known");
                instance.state = State::Idle;
                let key = instance.function;
                self.arm_trim(key, now);
                self.switch_if_warm(key, actions);
                return;
            }
        }
        let key = self.instances[&id].function;
        self.replenish(key, actions);
    }

    pub(super) fn hold(&mut self, id: LeaseId, mut lease: Lease, instance: InstanceId, actions: &mut Vec<Action>) {
        let known = self.instances.get_mut(&instance).expect("invariant: an instance handed out is known");
        known.state = State::Held { lease: id };
        lease.facts.core = known.core;
        lease.stage = LeaseStage::Held { instance, since: self.now };
        lease.ends = self.now + lease.lead;
        self.timers.insert((lease.ends, Timer::Lease(id)));
        actions.push(Action::LeaseReady { lease: id, expires: lease.ends });
        self.leases.insert(id, lease);
    }

    /// An instance that waits seems to end: it is replaced as if it were gone, but its place is its own until it is. One of a
    /// version that does not serve yet is handed nothing anyway; why it ended is known when it is gone.
    pub(super) fn dying(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(Instance { function: key, code, state, .. }) = self.instances.get(&id).cloned() else { return };
        if self.functions.get(&key).and_then(|function| function.serving.as_ref()).is_none_or(|serving| serving.id != code) {
            return;
        }
        match state {
            State::Idle => {
                self.kill(id, actions);
                self.lose(id, None);
                self.start_failed(id, key, actions);
            }
            State::Held { lease } => {
                self.kill(id, actions);
                self.lose(id, None);
                self.reseat(lease, actions);
            }
            State::Starting { .. } | State::Busy { .. } | State::Finishing { .. } | State::Dying => return,
        }
        self.replenish(key, actions);
    }

    /// The instance is no more.
    pub(super) fn gone(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let key = instance.function;
        let state = std::mem::replace(&mut instance.state, State::Dying);
        match state {
            State::Starting { overdue } => {
                self.timers.remove(&(overdue, Timer::Starting(id)));
                if let Some(bay) = self.bay_of(id) {
                    bay.starting -= 1;
                }
                self.leave_fleet(id);
                self.start_failed(id, key, actions);
            }
            State::Idle => {
                if let Some(bay) = self.bay_of(id) {
                    bay.drop_idle(id);
                }
                self.lose(id, None);
                self.leave_fleet(id);
                self.start_failed(id, key, actions);
            }
            State::Held { lease } => {
                self.lose(id, None);
                self.leave_fleet(id);
                self.reseat(lease, actions);
            }
            State::Busy { invocation } => {
                let left = self.leave_instance(invocation);
                self.lose(id, left.as_ref().and_then(|(facts, _)| facts.delivered));
                self.died(id);
                self.leave_fleet(id);
                if let Some((facts, _)) = left {
                    actions.push(Action::Fail { id: invocation, end: End::Crashed });
                    self.conclude(invocation, &facts, End::Crashed, actions);
                }
            }
            State::Finishing { since } => {
                self.asked(id, since);
                self.lose(id, None);
                self.died(id);
                self.leave_fleet(id);
            }
            State::Dying => self.leave_fleet(id),
        }
        self.instances.remove(&id);
        self.replenish(key, actions);
    }

    /// A held instance died: its lease gets another one, of the code that serves now.
    fn reseat(&mut self, id: LeaseId, actions: &mut Vec<Action>) {
        let Some(mut lease) = self.leases.remove(&id) else { return };
        self.timers.remove(&(lease.ends, Timer::Lease(id)));
        let bay = self.bay_for(&mut lease.facts);
        self.seat_lease(id, lease, bay, actions);
    }

    /// A start failed, or an instance died without work. A new version that keeps failing is given up.
    fn start_failed(&mut self, id: InstanceId, key: FunctionKey, actions: &mut Vec<Action>) {
        let (now, limit) = (self.now, self.options.start_failures);
        let (first, last) = (self.options.restart_first, self.options.restart_last);
        if let Some(bay) = self.bay_of(id) {
            bay.short = bay.short.or(Some(Missing::Unstarted));
        }
        let Some(code) = self.code_of(id) else { return };
        let failures = code.restarts.failed(now, first, last);
        let (version, code) = (code.version, code.id);
        let warming = self.functions[&key].incoming.as_ref().is_some_and(|incoming| incoming.code.id == code);
        if !warming || failures < limit {
            return;
        }
        self.abort_incoming(key, actions);
        actions.push(Action::CannotServe { function: key, version });
        if self.functions[&key].serving.is_none() {
            self.remove(key, actions);
        }
    }

    pub(super) fn start_overdue(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get(&id) else { return };
        let key = instance.function;
        if !matches!(instance.state, State::Starting { .. }) {
            return;
        }
        self.kill(id, actions);
        self.start_failed(id, key, actions);
        self.replenish(key, actions);
    }

    /// Tells an instance to be killed. It counts as existing until it is gone.
    pub(super) fn kill(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let state = std::mem::replace(&mut instance.state, State::Dying);
        match state {
            State::Dying => return,
            State::Starting { overdue } => {
                self.timers.remove(&(overdue, Timer::Starting(id)));
                if let Some(bay) = self.bay_of(id) {
                    bay.starting -= 1;
                }
            }
            State::Idle => {
                if let Some(bay) = self.bay_of(id) {
                    bay.drop_idle(id);
                }
            }
            State::Finishing { since } => self.asked(id, since),
            State::Held { .. } | State::Busy { .. } => {}
        }
        actions.push(Action::Kill { instance: id });
    }

    /// An instance was lost to its own crash, its overrun or its client: at work since `from`, or else not long after that.
    pub(super) fn lose(&mut self, id: InstanceId, from: Option<Time>) {
        let until = self.now;
        let from = from.unwrap_or_else(|| until.before(self.options.evidence_wait));
        if let Some(bay) = self.bay_of(id) {
            bay.short = Some(Missing::Lost { from, until });
        }
    }

    /// It died at work, or was killed there: whoever does so again and again is replaced ever later, since replacing it takes
    /// turns of starting that others wait for.
    pub(super) fn died(&mut self, id: InstanceId) {
        let (now, first, last) = (self.now, self.options.restart_first, self.options.restart_last);
        if let Some(code) = self.code_of(id) {
            code.restarts.died(now, first, last);
        }
    }

    fn leave_fleet(&mut self, id: InstanceId) {
        if let Some(bay) = self.bay_of(id) {
            bay.total -= 1;
        }
    }

    /// Takes the idle instance of a core that was used last.
    pub(super) fn take_idle(&mut self, key: FunctionKey, bay: usize) -> Option<InstanceId> {
        let code = self.function(key).serving.as_mut()?;
        code.bays.get_mut(bay)?.idle.pop().map(|(instance, _)| instance)
    }

    pub(super) fn leave_bay(&mut self, key: FunctionKey, place: Place) {
        let code = self.functions.get_mut(&key).and_then(|function| function.serving.as_mut());
        if let Some(bay) = code.and_then(|code| code.bays.get_mut(place.bay)) {
            bay.waiting.remove(&place.number);
        }
    }

    /// Sets the timer that trims a function, if some of its idle instances are beyond the reserve.
    fn arm_trim(&mut self, key: FunctionKey, not_before: Time) {
        let keep = self.options.surplus_idle;
        let Some(function) = self.functions.get_mut(&key) else { return };
        let Some(code) = &function.serving else { return };
        let surplus = code.bays.iter().filter_map(Bay::surplus).map(|(_, since)| since).min();
        if let (Some(since), None) = (surplus, function.trim_at) {
            let at = (since + keep).max(not_before);
            function.trim_at = Some(at);
            self.timers.insert((at, Timer::Trim(key)));
        }
    }

    /// Kills, at most one per core at a time, the idle instances that the reserve does not need and nobody used for long.
    pub(super) fn trim(&mut self, key: FunctionKey, actions: &mut Vec<Action>) {
        let (now, keep) = (self.now, self.options.surplus_idle);
        let Some(function) = self.functions.get_mut(&key) else { return };
        function.trim_at = None;
        let Some(code) = &function.serving else { return };
        let old = |bay: &Bay| bay.surplus().filter(|(_, since)| *since + keep <= now).map(|(id, _)| id);
        let ids: Vec<InstanceId> = code.bays.iter().filter_map(old).collect();
        for id in ids {
            self.kill(id, actions);
        }
        self.arm_trim(key, now + TRIM_PAUSE);
    }

    pub(super) fn function(&mut self, key: FunctionKey) -> &mut Function {
        self.functions.get_mut(&key).expect("invariant: the caller found the function")
    }

    pub(super) fn paced(&mut self, id: PacerId) -> &mut Paced {
        self.pacers.get_mut(&id).expect("invariant: a pacer lives as long as its functions")
    }

    /// The code of an instance, unless it is retired.
    pub(super) fn code_of(&mut self, id: InstanceId) -> Option<&mut Code> {
        let instance = self.instances.get(&id)?;
        let (key, code) = (instance.function, instance.code);
        let function = self.functions.get_mut(&key)?;
        let codes = [function.serving.as_mut(), function.incoming.as_mut().map(|incoming| &mut incoming.code)];
        codes.into_iter().flatten().find(|other| other.id == code)
    }

    fn bay_of(&mut self, id: InstanceId) -> Option<&mut Bay> {
        let bay = self.instances.get(&id)?.bay;
        self.code_of(id)?.bays.get_mut(bay)
    }

    /// Where an instance's threads belong, unless its code is retired.
    pub(super) fn home(&mut self, id: InstanceId) -> Option<Placement> {
        self.bay_of(id).map(|bay| bay.placement())
    }
}
