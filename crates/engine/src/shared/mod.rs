//! The best-effort lane: functions without a guarantee, and the excess of those with one.
//!
//! It is work-conserving and fair: whatever memory and concurrency it is given is used by whoever has work, and who was
//! served least run time goes first, between tenants first and between a tenant's functions then. Instances are started on
//! demand, kept idle for a while, and evicted, the least recently used first, when another function's turn needs their
//! memory. A function whose turn it is keeps its turn until it has what it needs, so that a flood which never lets an
//! instance rest cannot starve it; only when long runs hold the memory it needs does its turn go to others meanwhile.
//!
//! What it keeps at all times: the limits of [`Options`], one invocation per instance, one answer per invocation.

mod instances;
#[cfg(test)]
mod tests;
mod width;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dispatch::{Charge, Error, FairQueue, Limits};
use model::{CpuShare, End, FunctionKey, InstanceId, InvocationId, Tenant, Time, Version};

use crate::port::{Action, Allowance, Deployment, Event, Refusal};
use crate::restarts::Restarts;
use width::{Looks, Width};

/// The limits of the lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// MiB that its instances may have together; those being killed count until they are gone.
    pub memory_mib: u64,
    /// Instances that may exist.
    pub instances: u32,
    /// Instances that one function may have.
    pub function_instances: u32,
    /// Invocations that may run at once.
    pub concurrency: u32,
    /// Invocations that may wait.
    pub queue: Limits,
    /// Cores that instances run on.
    pub cores: u32,
    /// How long an idle instance is kept.
    pub idle_keep: Duration,
    /// An instance that is not ready after this time is killed; its start has failed.
    pub start_limit: Duration,
    /// Starts that may fail in a row before the waiting invocations of a function are refused.
    pub start_failures: u32,
    /// The pause before the third start in a row of which two have failed; it doubles from there.
    pub restart_first: Duration,
    /// The longest pause between starts.
    pub restart_last: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_mib: 2_048,
            instances: 1_000,
            function_instances: 100,
            concurrency: 256,
            queue: Limits { per_tenant: 1_000, total: 10_000 },
            cores: 1,
            idle_keep: Duration::from_secs(300),
            start_limit: Duration::from_secs(30),
            start_failures: 3,
            restart_first: Duration::from_millis(100),
            restart_last: Duration::from_secs(30),
        }
    }
}

/// What the lane holds at an instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub waiting: u32,
    pub running: u32,
    pub instances: u32,
    pub memory_mib: u64,
}

/// The state machine of the best-effort lane.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    now: Time,
    draining: bool,
    functions: BTreeMap<FunctionKey, Function>,
    instances: BTreeMap<InstanceId, Instance>,
    running: BTreeMap<InvocationId, Running>,
    queue: FairQueue<Option<Time>>,
    /// Functions with a new version of which no instance is started yet.
    installing: BTreeSet<FunctionKey>,
    /// Whose invocation waits.
    waiting: BTreeMap<InvocationId, FunctionKey>,
    /// Idle instances, least recently used first.
    idle: BTreeSet<(Time, InstanceId)>,
    used: Room,
    /// The part of `used` that is being killed.
    dying: Room,
    timers: BTreeSet<(Time, Timer)>,
    idle_armed: Option<Time>,
    /// The timer that looks again who holds the room is set.
    impatient: bool,
    numbers: u64,
}

/// Memory and places.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    mib: u64,
    instances: u32,
}

#[derive(Debug)]
struct Function {
    deployment: Deployment,
    /// The number of the code that serves, and of instances made from it.
    code: u64,
    incoming: Option<Incoming>,
    restarts: Restarts,
    idle: BTreeSet<(Time, InstanceId)>,
    starting: u32,
    total: u32,
    /// Invocations that run, on instances of any version.
    running: u32,
    width: Width,
    /// What a run is charged with until its time is known.
    estimate: Duration,
}

/// A version of which one instance is made before the one that serves is broken.
#[derive(Debug)]
struct Incoming {
    deployment: Deployment,
    code: u64,
    started: Option<InstanceId>,
    restarts: Restarts,
}

#[derive(Debug)]
struct Instance {
    function: FunctionKey,
    code: u64,
    mib: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting { since: Time },
    Idle { since: Time },
    Busy { invocation: InvocationId },
    Finishing,
    Dying,
}

#[derive(Debug)]
struct Running {
    function: FunctionKey,
    instance: InstanceId,
    delivered: Time,
    until: Time,
    charge: Charge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Stop(InvocationId),
    Starting(InstanceId),
    Restart(FunctionKey),
    /// Looks whether a function has been held to its width for too long.
    Held(FunctionKey),
    Idle,
    /// Who waits for room looks again who holds it.
    Patience,
}

/// A run that takes longer than this is not waited for by those who need its memory.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether there is room for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    Made,
    /// When those being killed are gone, or short runs have ended.
    Soon,
    /// By runs that have taken long already.
    Held,
}

impl Function {
    /// Its instances that are not idle: those that start, run, or have answered and not asked for more.
    fn at_work(&self) -> u32 {
        let idle = u32::try_from(self.idle.len()).unwrap_or(u32::MAX);
        self.total.saturating_sub(idle).max(self.running)
    }
}

fn function_tenant(functions: &BTreeMap<FunctionKey, Function>, key: FunctionKey) -> Tenant {
    functions.get(&key).map_or_else(Tenant::default, |function| function.deployment.tenant.clone())
}

impl Engine {
    #[must_use]
    pub const fn new(options: Options) -> Self {
        let queue = FairQueue::new(options.queue);
        Self {
            options,
            now: Time::ZERO,
            draining: false,
            functions: BTreeMap::new(),
            instances: BTreeMap::new(),
            running: BTreeMap::new(),
            queue,
            installing: BTreeSet::new(),
            waiting: BTreeMap::new(),
            idle: BTreeSet::new(),
            used: Room { mib: 0, instances: 0 },
            dying: Room { mib: 0, instances: 0 },
            timers: BTreeSet::new(),
            idle_armed: None,
            impatient: false,
            numbers: 0,
        }
    }

    /// Takes in what happened at `now` and appends what is to be done. What was due before is done first.
    ///
    /// # Panics
    /// On an invocation that arrives twice.
    pub fn handle(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        self.wake(now, actions);
        match event {
            Event::Install(deployment) => self.install(*deployment, actions),
            Event::Remove { function } => self.remove(function, actions),
            Event::Arrived { id, function, deadline } => self.arrived(id, function, deadline, actions),
            Event::Supplied { id, .. } => actions.push(Action::Refuse { id, refusal: Refusal::NoLease }),
            Event::PreInvoke { lease, .. } => actions.push(Action::LeaseRefused { lease, refusal: Refusal::NoLease }),
            Event::Abandoned { id } => self.abandoned(id, actions),
            Event::Ready { instance } => self.ready(instance, actions),
            Event::Gone { instance } => self.gone(instance, actions),
            Event::Measured { id, run, wanted } => self.measured(id, run, wanted),
            Event::Ended { id, .. } => self.ended(id, actions),
            Event::Overran { id, .. } => self.stop(id, End::Overran, actions),
            Event::Drain => self.drain(actions),
            // They concern promises.
            Event::Revise { .. } | Event::Delivered { .. } | Event::Started { .. } | Event::ProbeGap { .. } => {}
        }
        self.schedule(actions);
    }

    /// The instant at which [`Engine::wake`] has something to do.
    #[must_use]
    pub fn next_wake(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Does what is due at `now`.
    pub fn wake(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        while let Some((at, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= self.now) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Stop(id) => self.stop(id, End::Overran, actions),
                Timer::Starting(instance) => self.start_overdue(instance, actions),
                Timer::Restart(function) => self.refresh(function),
                Timer::Held(function) => self.look_at_held(function),
                Timer::Idle => self.drop_idle(actions),
                Timer::Patience => self.impatient = false,
            }
            self.schedule(actions);
        }
    }

    #[must_use]
    pub fn load(&self) -> Load {
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        Load { waiting: self.queue.len(), running, instances: self.used.instances, memory_mib: self.used.mib }
    }

    /// Nothing runs or waits.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    fn arrived(&mut self, id: InvocationId, key: FunctionKey, deadline: Option<Time>, actions: &mut Vec<Action>) {
        assert!(!self.waiting.contains_key(&id) && !self.running.contains_key(&id), "invariant: invocation {id} arrives once");
        if let Err(refusal) = self.admit(id, key, deadline) {
            actions.push(Action::Refuse { id, refusal });
        }
    }

    fn admit(&mut self, id: InvocationId, key: FunctionKey, deadline: Option<Time>) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        let function = self.functions.get(&key).ok_or(Refusal::NoFunction)?;
        let failing = self.options.start_failures <= function.restarts.in_a_row() && self.now < function.restarts.retry_at();
        if failing && function.total == 0 {
            return Err(Refusal::Unstartable);
        }
        let pushed = self.queue.push(&function.deployment.tenant, key, id, deadline);
        pushed.map_err(|error| match error {
            Error::TenantFull { limit, .. } | Error::Full { limit } => Refusal::Busy { limit },
        })?;
        self.waiting.insert(id, key);
        self.refresh(key);
        Ok(())
    }

    /// Runs what can run, in the order of the turns.
    fn schedule(&mut self, actions: &mut Vec<Action>) {
        self.start_incoming(actions);
        let mut passed_over = Vec::new();
        while u32::try_from(self.running.len()).is_ok_and(|running| running < self.options.concurrency) {
            let Some(key) = self.queue.first() else { break };
            let Some(function) = self.functions.get(&key) else { break };
            if let Some((_, instance)) = function.idle.last().copied() {
                self.serve(key, instance, actions);
                continue;
            }
            match self.start(key, actions) {
                Space::Made => self.refresh(key),
                // It is its turn, and nobody behind it takes the room that it will have soon.
                Space::Soon => {
                    if !self.impatient {
                        self.impatient = true;
                        self.timers.insert((self.now + PATIENCE, Timer::Patience));
                    }
                    break;
                }
                // The room it needs is held by long runs: meanwhile the turn goes to others.
                Space::Held => {
                    let tenant = function_tenant(&self.functions, key);
                    self.queue.pass_over(&tenant, key);
                    passed_over.push(key);
                }
            }
        }
        for key in passed_over {
            self.refresh(key);
        }
    }

    /// Gives the oldest invocation of the function whose turn it is to an idle instance.
    fn serve(&mut self, key: FunctionKey, instance: InstanceId, actions: &mut Vec<Action>) {
        let function = self.functions.get_mut(&key).expect("invariant: whose turn it is, is known");
        let timeout = function.deployment.timeout;
        let Some((id, deadline, charge)) = self.queue.pop(function.estimate) else { return };
        self.waiting.remove(&id);
        if let Some(deadline) = deadline.filter(|deadline| *deadline < self.now) {
            self.queue.settle(&charge, Duration::ZERO);
            actions.push(Action::Refuse { id, refusal: Refusal::Expired { deadline } });
            return self.refresh(key);
        }
        function.running += 1;
        function.width.moves(self.now);
        self.leave_idle(instance);
        let known = self.instances.get_mut(&instance).expect("invariant: an idle instance is known");
        known.state = State::Busy { invocation: id };
        let until = self.now + timeout;
        let allowance = Allowance { run_time: timeout, cpu: CpuShare::FULL, until };
        self.timers.insert((until, Timer::Stop(id)));
        self.running.insert(id, Running { function: key, instance, delivered: self.now, until, charge });
        actions.push(Action::Deliver { id, instance, allowance, conforming: None });
        self.refresh(key);
    }

    fn ended(&mut self, id: InvocationId, actions: &mut Vec<Action>) {
        let Some(instance) = self.leave_running(id) else { return };
        let Some(known) = self.instances.get_mut(&instance) else { return };
        known.state = State::Finishing;
        let (key, code) = (known.function, known.code);
        match self.functions.get_mut(&key).filter(|function| function.code == code) {
            Some(function) => function.restarts.worked(),
            None => self.kill(instance, actions), // its version was replaced, or its function removed
        }
    }

    /// It is at its timeout: it is stopped with its instance, and its client told.
    fn stop(&mut self, id: InvocationId, end: End, actions: &mut Vec<Action>) {
        let Some(instance) = self.leave_running(id) else { return };
        actions.push(Action::Fail { id, end });
        self.kill(instance, actions);
    }

    fn abandoned(&mut self, id: InvocationId, actions: &mut Vec<Action>) {
        if let Some(key) = self.waiting.remove(&id) {
            self.queue.remove(id);
            actions.push(Action::Fail { id, end: End::Cancelled });
            self.refresh(key);
        } else {
            self.stop(id, End::Cancelled, actions);
        }
    }

    /// Takes a running invocation off its instance and corrects what it was charged with.
    fn leave_running(&mut self, id: InvocationId) -> Option<InstanceId> {
        let Running { function, instance, delivered, until, charge } = self.running.remove(&id)?;
        self.timers.remove(&(until, Timer::Stop(id)));
        let took = self.now.since(delivered);
        self.queue.settle(&charge, took);
        if let Some(function) = self.functions.get_mut(&function) {
            // One that ran for a function that was removed and deployed again is not counted.
            function.running = function.running.saturating_sub(1);
            function.estimate = (function.estimate * 7 + took) / 8;
        }
        Some(instance)
    }

    fn drain(&mut self, actions: &mut Vec<Action>) {
        self.draining = true;
        let keys: Vec<FunctionKey> = self.functions.keys().copied().collect();
        for key in keys {
            self.refuse_waiting(key, Refusal::Draining, actions);
        }
    }

    /// Refuses all that wait for a function.
    fn refuse_waiting(&mut self, key: FunctionKey, refusal: Refusal, actions: &mut Vec<Action>) {
        let Some(function) = self.functions.get(&key) else { return };
        let tenant = function.deployment.tenant.clone();
        while let Some((id, _)) = self.queue.take_from(&tenant, key) {
            self.waiting.remove(&id);
            actions.push(Action::Refuse { id, refusal });
        }
    }

    /// Lets a function take part in the turns iff something can be done for it when its turn comes.
    fn refresh(&mut self, key: FunctionKey) {
        let Some(function) = self.functions.get_mut(&key) else { return };
        let tenant = &function.deployment.tenant;
        let waiting = self.queue.waiting(tenant, key);
        let short = usize::try_from(function.starting).is_ok_and(|starting| starting < waiting);
        let may_start = function.total < self.options.function_instances && function.restarts.retry_at() <= self.now;
        let able = !function.idle.is_empty() || (short && may_start);
        let held = able && function.width.limit(self.options.cores) <= function.at_work();
        if held && 0 < waiting && function.width.looks == Looks::No {
            function.width.looks = Looks::Set;
            function.width.moves(self.now);
            self.timers.insert((function.width.held_until(function.estimate), Timer::Held(key)));
        }
        if able && !held {
            self.queue.want(tenant, key);
        } else {
            self.queue.pass_over(tenant, key);
        }
    }

    /// A function was held to its width a while ago. If nothing was given to it since, what was learned is wrong.
    fn look_at_held(&mut self, key: FunctionKey) {
        let Some(function) = self.functions.get_mut(&key) else { return };
        let until = function.width.held_until(function.estimate);
        if self.now < until && 0 < self.queue.waiting(&function.deployment.tenant, key) {
            self.timers.insert((until, Timer::Held(key)));
            return;
        }
        function.width.looks = Looks::No;
        if until <= self.now && 0 < self.queue.waiting(&function.deployment.tenant, key) {
            function.width.forget();
        }
        self.refresh(key);
    }

    /// Learns from a run how many of its function are of use at once.
    fn measured(&mut self, id: InvocationId, run: Duration, wanted: Duration) {
        let Some(key) = self.running.get(&id).map(|run| run.function) else { return };
        if let Some(function) = self.functions.get_mut(&key) {
            function.width.learn(run, wanted);
        }
        self.refresh(key);
    }

    /// The version that serves.
    #[must_use]
    pub fn version(&self, key: FunctionKey) -> Option<Version> {
        self.functions.get(&key).map(|function| function.deployment.version)
    }
}
