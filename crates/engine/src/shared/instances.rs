//! The instances of the best-effort lane, their memory, and the versions they are of.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{End, FunctionKey, InstanceId};

use super::gate::Learned;
use super::patience::Patience;
use super::{Engine, Function, Incoming, Instance, PATIENCE, Room, Space, State, Timer};
use crate::port::{Action, Deployment, Placement, Refusal};
use crate::restarts::Restarts;

/// What the first run of a function is taken to last.
const FIRST_ESTIMATE: Duration = Duration::from_millis(10);

impl Engine {
    /// Installs a function. A new one serves at once, with instances on demand; a new version of one that has instances
    /// serves when its first instance is ready. One that is larger than all the memory of the lane cannot serve.
    pub(super) fn install(&mut self, deployment: Deployment, actions: &mut Vec<Action>) {
        self.numbers += 1;
        let (key, version, code) = (deployment.function, deployment.version, self.numbers);
        if self.options.memory_mib < u64::from(deployment.memory.mib()) {
            return actions.push(Action::CannotServe { function: key, version });
        }
        self.abort_incoming(key, actions);
        let Some(function) = self.functions.get_mut(&key) else {
            let function = Function {
                deployment,
                code,
                incoming: None,
                restarts: Restarts::default(),
                idle: BTreeSet::new(),
                starting: 0,
                total: 0,
                learned: Learned::default(),
                starts: Learned::default(),
                mean_run: FIRST_ESTIMATE,
                patience: Patience::default(),
            };
            self.functions.insert(key, function);
            return actions.push(Action::Serving { function: key, version });
        };
        function.incoming = Some(Incoming { deployment, code, started: None, restarts: Restarts::default() });
        if function.total == 0 {
            self.switch(key, actions);
        } else {
            self.installing.insert(key);
        }
    }

    /// Incoming -> serving. Instances of the old version at work are killed when they end.
    fn switch(&mut self, key: FunctionKey, actions: &mut Vec<Action>) {
        let Some(function) = self.functions.get_mut(&key) else { return };
        let Some(incoming) = function.incoming.take() else { return };
        let version = incoming.deployment.version;
        let old = std::mem::replace(&mut function.code, incoming.code);
        let tenant = std::mem::replace(&mut function.deployment, incoming.deployment).tenant;
        function.restarts = incoming.restarts;
        (function.total, function.starting) = (u32::from(incoming.started.is_some()), 0);
        let moved = tenant != function.deployment.tenant;
        self.retire(key, old, actions);
        if moved {
            self.move_tenant(key, &tenant, actions);
        }
        actions.push(Action::Serving { function: key, version });
        self.refresh(key);
    }

    /// The function's owner changed: what waits is counted against the new one.
    fn move_tenant(&mut self, key: FunctionKey, from: &model::Tenant, actions: &mut Vec<Action>) {
        while let Some((id, asked)) = self.queue.take_from(from, key) {
            let tenant = &self.functions[&key].deployment.tenant;
            if self.queue.push(tenant, key, id, asked).is_err() {
                self.leave_waiting(id, asked);
                actions.push(Action::Refuse { id, refusal: Refusal::Busy { limit: self.options.queue.per_tenant } });
            }
        }
    }

    pub(super) fn remove(&mut self, key: FunctionKey, actions: &mut Vec<Action>) {
        self.abort_incoming(key, actions);
        self.refuse_waiting(key, Refusal::NoFunction, actions);
        if let Some(function) = self.functions.remove(&key) {
            self.timers.remove(&(function.restarts.retry_at(), Timer::Restart(key)));
            for instance in &function.idle {
                self.idle.remove(instance);
            }
            self.retire(key, function.code, actions);
        }
    }

    fn abort_incoming(&mut self, key: FunctionKey, actions: &mut Vec<Action>) {
        if let Some(incoming) = self.functions.get_mut(&key).and_then(|function| function.incoming.take()) {
            self.retire(key, incoming.code, actions);
        }
    }

    /// Kills the instances of a code that have nothing to do.
    fn retire(&mut self, key: FunctionKey, code: u64, actions: &mut Vec<Action>) {
        let free = |instance: &Instance| match instance.state {
            State::Starting { .. } | State::Idle { .. } | State::Finishing { .. } => {
                (instance.function, instance.code) == (key, code)
            }
            State::Busy { .. } | State::Dying => false,
        };
        let ids: Vec<InstanceId> = self.instances.iter().filter(|(_, instance)| free(instance)).map(|(id, _)| *id).collect();
        for id in ids {
            self.kill(id, actions);
        }
    }

    /// Starts the first instance of every version that waits for one.
    pub(super) fn start_incoming(&mut self, actions: &mut Vec<Action>) {
        let keys: Vec<FunctionKey> = self.installing.iter().copied().collect();
        for key in keys {
            let incoming = self.functions.get(&key).and_then(|function| function.incoming.as_ref());
            let Some(incoming) = incoming else {
                self.installing.remove(&key);
                continue;
            };
            let (memory, version, code) = (incoming.deployment.memory, incoming.deployment.version, incoming.code);
            if self.now < incoming.restarts.retry_at() || self.make_room(u64::from(memory.mib()), actions) != Space::Made {
                continue;
            }
            self.installing.remove(&key);
            let id = self.spawn(key, code, u64::from(memory.mib()));
            self.enter_unasked(id);
            actions.push(Action::Start { instance: id, function: key, version, on: Placement::BestEffort });
            if let Some(incoming) = self.functions.get_mut(&key).and_then(|function| function.incoming.as_mut()) {
                incoming.started = Some(id);
            }
        }
    }

    /// Starts an instance of the version that serves, evicting idle ones where it must.
    pub(super) fn start(&mut self, key: FunctionKey, actions: &mut Vec<Action>) -> Space {
        let Some(function) = self.functions.get(&key) else { return Space::Held };
        let (mib, version, code) = (u64::from(function.deployment.memory.mib()), function.deployment.version, function.code);
        let space = self.make_room(mib, actions);
        if space != Space::Made {
            return space;
        }
        let id = self.spawn(key, code, mib);
        if let Some(function) = self.functions.get_mut(&key) {
            function.starting += 1;
            function.total += 1;
            let (part, what) = (function.learned.places(), function.use_of_start());
            self.enter(id, part, what);
        }
        actions.push(Action::Start { instance: id, function: key, version, on: Placement::BestEffort });
        space
    }

    fn spawn(&mut self, key: FunctionKey, code: u64, mib: u64) -> InstanceId {
        self.numbers += 1;
        let id = InstanceId(2 * self.numbers + 1); // odd here, even in the guaranteed lane
        self.used.mib += mib;
        self.used.instances += 1;
        let state = State::Starting { since: self.now };
        self.instances.insert(id, Instance { function: key, code, mib, state, place: None, unpaid: None });
        self.timers.insert((self.now + self.options.start_limit, Timer::Starting(id)));
        id
    }

    /// Makes room for an instance of this size. Evicts the least recently used idle instances until there is room, or will
    /// be when those being killed are gone; evicts none where long runs hold so much that it would be for nothing.
    fn make_room(&mut self, mib: u64, actions: &mut Vec<Action>) -> Space {
        let (memory, limit) = (self.options.memory_mib, self.options.instances);
        let fits = |used: Room| used.mib + mib <= memory && used.instances < limit;
        if fits(self.used) {
            return Space::Made;
        }
        if !fits(self.held_by_long_runs()) {
            return Space::Held;
        }
        loop {
            if fits(self.used) {
                return Space::Made;
            }
            let alive = Room { mib: self.used.mib - self.dying.mib, instances: self.used.instances - self.dying.instances };
            let Some((_, oldest)) = self.idle.first().copied().filter(|_| !fits(alive)) else { return Space::Soon };
            self.kill(oldest, actions);
        }
    }

    fn held_by_long_runs(&self) -> Room {
        let mut held = Room::default();
        for instance in self.instances.values() {
            let since = match instance.state {
                State::Starting { since } | State::Finishing { since } => Some(since),
                State::Busy { invocation } => self.running.get(&invocation).map(|run| run.delivered),
                State::Idle { .. } | State::Dying => None,
            };
            if since.is_some_and(|since| since + PATIENCE <= self.now) {
                held.mib += instance.mib;
                held.instances += 1;
            }
        }
        held
    }

    pub(super) fn ready(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get(&id) else { return };
        let (key, code) = (instance.function, instance.code);
        match instance.state {
            State::Starting { since } => {
                self.timers.remove(&(since + self.options.start_limit, Timer::Starting(id)));
                let function = self.functions.get_mut(&key);
                let serving = function.as_ref().is_some_and(|function| function.code == code);
                match function {
                    Some(function) if serving => {
                        function.starting -= 1;
                        if let Some(place) = &instance.place {
                            self.gate.started(&function.deployment.tenant, place);
                        }
                    }
                    Some(function) if function.incoming.as_ref().is_some_and(|incoming| incoming.code == code) => {
                        self.switch(key, actions);
                    }
                    Some(_) | None => {}
                }
                self.rest(id, actions);
            }
            State::Finishing { since } => {
                self.timers.remove(&(since + self.options.finish_limit, Timer::Finishing(id)));
                self.rest(id, actions);
            }
            State::Idle { .. } | State::Busy { .. } | State::Dying => {}
        }
    }

    /// An instance has nothing to do.
    fn rest(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let (key, code) = (instance.function, instance.code);
        let Some(function) = self.functions.get_mut(&key).filter(|function| function.code == code) else {
            return self.kill(id, actions);
        };
        instance.state = State::Idle { since: self.now };
        function.idle.insert((self.now, id));
        self.idle.insert((self.now, id));
        self.leave(id);
        self.arm_idle();
        self.refresh(key);
    }

    pub(super) fn leave_idle(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get(&id) else { return };
        if let State::Idle { since } = instance.state {
            self.idle.remove(&(since, id));
            if let Some(function) = self.functions.get_mut(&instance.function) {
                function.idle.remove(&(since, id));
            }
        }
    }

    /// Tells an instance to be killed. Its memory counts until it is gone.
    pub(super) fn kill(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        self.leave_idle(id);
        self.leave(id);
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let state = std::mem::replace(&mut instance.state, State::Dying);
        if state == State::Dying {
            return;
        }
        self.dying.mib += instance.mib;
        self.dying.instances += 1;
        let key = instance.function;
        self.leave_function(id, state);
        actions.push(Action::Kill { instance: id });
        self.refresh(key);
    }

    /// An instance counts no more for its function.
    fn leave_function(&mut self, id: InstanceId, state: State) {
        let Some(instance) = self.instances.get(&id) else { return };
        match state {
            State::Starting { since } => self.timers.remove(&(since + self.options.start_limit, Timer::Starting(id))),
            State::Finishing { since } => self.timers.remove(&(since + self.options.finish_limit, Timer::Finishing(id))),
            State::Idle { .. } | State::Busy { .. } | State::Dying => false,
        };
        let function = self.functions.get_mut(&instance.function).filter(|function| function.code == instance.code);
        if let Some(function) = function {
            function.total -= 1;
            function.starting -= u32::from(matches!(state, State::Starting { .. }));
        }
    }

    /// An instance that waits seems to end: it is replaced as if it were gone, but its memory is its own until it is.
    pub(super) fn dying(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(Instance { function: key, code, state: State::Idle { .. }, .. }) = self.instances.get(&id) else { return };
        let (key, code) = (*key, *code);
        self.kill(id, actions);
        self.start_failed(key, code, actions);
        self.refresh(key);
    }

    pub(super) fn gone(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        self.leave_idle(id);
        self.leave(id);
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let (key, code) = (instance.function, instance.code);
        let state = std::mem::replace(&mut instance.state, State::Dying);
        self.used.mib -= instance.mib;
        self.used.instances -= 1;
        if state == State::Dying {
            self.dying.mib -= instance.mib;
            self.dying.instances -= 1;
        } else {
            self.leave_function(id, state);
        }
        self.instances.remove(&id);
        match state {
            State::Starting { .. } | State::Idle { .. } => self.start_failed(key, code, actions),
            State::Busy { invocation } => {
                if let Some((_, run)) = self.leave_running(invocation) {
                    self.charge(&run);
                    actions.push(Action::Fail { id: invocation, end: End::Crashed });
                }
            }
            State::Finishing { .. } | State::Dying => {}
        }
        self.refresh(key);
    }

    pub(super) fn start_overdue(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get(&id) else { return };
        if matches!(instance.state, State::Starting { .. }) {
            let (key, code) = (instance.function, instance.code);
            self.kill(id, actions);
            self.start_failed(key, code, actions);
        }
    }

    /// A start failed, or an instance died without work. After too many in a row a new version is given up, and those who
    /// wait for one that serves are told instead of waiting for a start that will fail.
    fn start_failed(&mut self, key: FunctionKey, code: u64, actions: &mut Vec<Action>) {
        let (first, last, limit) = (self.options.restart_first, self.options.restart_last, self.options.start_failures);
        let Some(function) = self.functions.get_mut(&key) else { return };
        let mut retry_at = None;
        if let Some(incoming) = function.incoming.as_mut().filter(|incoming| incoming.code == code) {
            incoming.started = None;
            self.installing.insert(key);
            let version = incoming.deployment.version;
            if incoming.restarts.failed(self.now, first, last) < limit {
                retry_at = Some(incoming.restarts.retry_at());
            } else {
                function.incoming = None;
                actions.push(Action::CannotServe { function: key, version });
            }
        } else if function.code == code {
            let failures = function.restarts.failed(self.now, first, last);
            retry_at = Some(function.restarts.retry_at());
            if limit <= failures && function.total == 0 {
                self.refuse_waiting(key, Refusal::Unstartable, actions);
            }
        }
        self.timers.extend(retry_at.filter(|at| self.now < *at).map(|at| (at, Timer::Restart(key))));
    }

    /// Sets the timer to when the least recently used instance has been idle for long enough.
    fn arm_idle(&mut self) {
        let due = self.idle.first().map(|(since, _)| *since + self.options.idle_keep);
        if self.idle_armed.is_none() {
            self.idle_armed = due;
            self.timers.extend(due.map(|due| (due, Timer::Idle)));
        }
    }

    pub(super) fn drop_idle(&mut self, actions: &mut Vec<Action>) {
        self.idle_armed = None;
        while let Some((since, id)) = self.idle.first().copied() {
            if self.now < since + self.options.idle_keep {
                break;
            }
            self.kill(id, actions);
        }
        self.arm_idle();
    }
}
