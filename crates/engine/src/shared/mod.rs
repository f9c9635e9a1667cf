//! The best-effort lane: functions without a guarantee, and the excess of those with one.
//!
//! It is work-conserving and fair: whatever cores, memory and concurrency it is given are used by whoever has work, and who
//! was served least goes first, between tenants first and between a tenant's functions then. Runs that compute are let in one
//! by one, as many at once as there are cores (`gate`), so that the turns decide who has them. Instances are started on
//! demand, kept idle for a while, and evicted, the least recently used first, when another function's turn needs their
//! memory. A function whose turn it is keeps its turn until it has what it needs, so that a flood which never lets an
//! instance rest cannot starve it; only when long runs hold the memory it needs does its turn go to others meanwhile.
//!
//! While clients of a function hang up, its newest invocation goes first (`patience`); and a run that its client left is not
//! stopped at once where it will be over soon, because the start of another instance costs more.
//!
//! What it keeps at all times: the limits of [`Options`], one invocation per instance, one answer per invocation.

mod gate;
mod instances;
mod patience;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dispatch::{Charge, Error, FairQueue, Limits};
use model::{CpuShare, End, FunctionKey, InstanceId, InvocationId, Tenant, Time, Version};

use crate::port::{Action, Allowance, Deployment, Event, Refusal, Remark, Taken};
use crate::restarts::Restarts;
use gate::{Entry, Gate, Learned, Part, Place, Use, YOUNG};
use patience::Patience;

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
    /// An instance that has answered and does not ask for its next invocation within this time is killed.
    pub finish_limit: Duration,
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
            finish_limit: Duration::from_secs(5),
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
    queue: FairQueue<Asked>,
    gate: Gate,
    /// When the gate is looked at again for somebody it holds.
    gate_armed: Option<Time>,
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
    learned: Learned,
    /// What is known of its starts.
    starts: Learned,
    /// How long a run takes, moving mean.
    mean_run: Duration,
    patience: Patience,
}

impl Function {
    /// What an instance of it is let in for: a run where one is idle, else a start.
    fn next_use(&self) -> Use {
        if self.idle.is_empty() { self.use_of_start() } else { Use::Run }
    }

    /// Until it is known what its starts take, they take what its runs do.
    fn use_of_start(&self) -> Use {
        Use::Start(self.starts.places_or(self.learned.places()))
    }
}

/// What waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    arrived: Time,
    deadline: Option<Time>,
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
    /// What it takes of the cores; nothing while it is idle.
    place: Option<Place>,
    /// Its run that has ended, until it asks for the next.
    unpaid: Option<Unpaid>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting {
        since: Time,
    },
    Idle {
        since: Time,
    },
    Busy {
        invocation: InvocationId,
    },
    /// It has answered and does not ask for more yet.
    Finishing {
        since: Time,
    },
    Dying,
}

#[derive(Debug)]
struct Running {
    function: FunctionKey,
    instance: InstanceId,
    delivered: Time,
    /// When it is stopped, and how it has ended then.
    until: Time,
    stopped_as: End,
    charge: Charge,
}

/// A run that has ended. It is charged for when its instance asks for the next, or is there no more.
#[derive(Debug)]
struct Unpaid {
    function: FunctionKey,
    charge: Charge,
    delivered: Time,
    took: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Stop(InvocationId),
    /// One that waits is at its deadline.
    Expired(InvocationId),
    Starting(InstanceId),
    Finishing(InstanceId),
    Restart(FunctionKey),
    /// The place of an instance is exclusive no more, or its run has lasted twice as long since.
    Old(InstanceId),
    /// Somebody has been held by his own runs for long enough.
    Held,
    Idle,
    /// Who waits for room looks again who holds it.
    Patience,
}

/// A run, a start or an end that takes longer than this is not waited for by those who need its memory.
const PATIENCE: Duration = Duration::from_millis(500);
/// Mean runs of its function that an invocation may take which its client left, and how long it goes on then at most.
const GRACE_MEAN_RUNS: u32 = 2;
const GRACE_MAX: Duration = Duration::from_millis(100);
/// Functions whose start is held that one with an idle instance may pass, in all and of each tenant; so it takes 65 tenants to stop it.
const PASSED_MAX: u32 = 256;
const PASSED_OF_TENANT: usize = 4;

/// Whether there is room for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    Made,
    /// When those being killed are gone, or short runs have ended.
    Soon,
    /// By runs, starts or ends that have taken long already.
    Held,
}

/// What a run of a function that `took` this long is charged for: the cores it kept busy, or its part of the memory or of the
/// places for running invocations, times the cores, if one of these is more. So who computes pays for cores, and who holds
/// memory while he waits for that. What his instance does until it asks for more is measured as part of his runs, so that they
/// may want more cores than there are; and its place and its memory are paid for as long as it `held` them.
/// DRFQ (SIGCOMM'12): fair queueing by whatever resource a flow uses the largest part of.
fn price(options: &Options, function: &Function, took: Duration, held: Duration) -> Duration {
    let cores = u64::from(options.cores);
    let memory = Part::of(u64::from(function.deployment.memory.mib()), options.memory_mib, cores);
    let place = Part::of(1, u64::from(options.concurrency), cores);
    let run = function.learned.cores().max(place).of_time(took);
    run.max(function.learned.places().max(memory).of_time(held))
}

fn function_tenant(functions: &BTreeMap<FunctionKey, Function>, key: FunctionKey) -> Tenant {
    functions.get(&key).map_or_else(Tenant::default, |function| function.deployment.tenant.clone())
}

impl Engine {
    #[must_use]
    pub const fn new(options: Options) -> Self {
        let queue = FairQueue::new(options.queue);
        let gate = Gate::new(options.cores);
        Self {
            options,
            now: Time::ZERO,
            draining: false,
            functions: BTreeMap::new(),
            instances: BTreeMap::new(),
            running: BTreeMap::new(),
            queue,
            gate,
            gate_armed: None,
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
            Event::Dying { instance } => self.dying(instance, actions),
            Event::Gone { instance } => self.gone(instance, actions),
            Event::Measured { id, taken } => self.measured(id, taken),
            Event::Warmed { instance, wanted } => self.warmed(instance, wanted),
            Event::Ended { id, .. } => self.ended(id, actions),
            Event::Overran { id, .. } => self.stop(id, End::Overran, actions),
            Event::Drain => self.drain(actions),
            // They concern promises.
            Event::Revise(_)
            | Event::Begun { .. }
            | Event::Delivered { .. }
            | Event::Transferred { .. }
            | Event::Started { .. }
            | Event::ProbeGap { .. } => {}
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
                Timer::Stop(id) => self.stop(id, self.running.get(&id).map_or(End::Overran, |run| run.stopped_as), actions),
                Timer::Expired(id) => self.expired(id, actions),
                Timer::Starting(instance) => self.start_overdue(instance, actions),
                Timer::Finishing(instance) => {
                    actions.push(Action::Tell { instance, what: Remark::NeverAsked { within: self.options.finish_limit } });
                    self.kill(instance, actions);
                }
                Timer::Restart(function) => self.refresh(function),
                Timer::Old(instance) => self.grow_old(instance),
                Timer::Held => self.gate_armed = None,
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
        if let Some(deadline) = deadline.filter(|deadline| *deadline <= self.now) {
            return Err(Refusal::Expired { deadline });
        }
        let pushed = self.queue.push(&function.deployment.tenant, key, id, Asked { arrived: self.now, deadline });
        pushed.map_err(|error| match error {
            Error::TenantFull { limit, .. } | Error::Full { limit } => Refusal::Busy { limit },
        })?;
        self.waiting.insert(id, key);
        self.timers.extend(deadline.map(|deadline| (deadline, Timer::Expired(id))));
        self.refresh(key);
        Ok(())
    }

    /// It waits no longer.
    fn leave_waiting(&mut self, id: InvocationId, asked: Asked) {
        self.waiting.remove(&id);
        if let Some(deadline) = asked.deadline {
            self.timers.remove(&(deadline, Timer::Expired(id)));
        }
    }

    /// Runs what can run, in the order of the turns.
    fn schedule(&mut self, actions: &mut Vec<Action>) {
        self.start_incoming(actions);
        let mut passed_over = Vec::new();
        while u32::try_from(self.running.len()).is_ok_and(|running| running < self.options.concurrency) {
            let Some(key) = self.whose_turn() else { break };
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
                Space::Held => self.pass_over(key, &mut passed_over),
            }
        }
        for key in passed_over {
            self.refresh(key);
        }
    }

    /// The function whose turn it is, of those that the gate lets in. Where starts are held by other starts, whoever has an idle
    /// instance may use what these leave of the cores, and passes those who wait for a start.
    fn whose_turn(&mut self) -> Option<FunctionKey> {
        let (mut held, mut first, mut passed) = (None, None, 0);
        // Each tenant that is held has runs that take all places, so these are fewer than there are instances.
        'turns: for tenant in self.queue.turns() {
            for key in tenant.take(PASSED_OF_TENANT) {
                let Some(function) = self.functions.get(&key) else { break 'turns };
                let what = function.next_use();
                match (self.gate.entry(&function.deployment.tenant, what, function.mean_run, self.now), what) {
                    (Entry::HeldUntil(until), _) => {
                        held = Some(held.map_or(until, |earliest: Time| earliest.min(until)));
                        break;
                    }
                    (Entry::Open, _) => {
                        first = Some(key);
                        break 'turns;
                    }
                    (Entry::Full, Use::Start(_)) if !self.idle.is_empty() && passed < PASSED_MAX => passed += 1,
                    (Entry::Full, Use::Run | Use::Start(_)) => break 'turns,
                }
            }
        }
        self.arm_gate(held);
        first
    }

    /// The turn of a function goes to others for now.
    fn pass_over(&mut self, key: FunctionKey, passed_over: &mut Vec<FunctionKey>) {
        let tenant = function_tenant(&self.functions, key);
        self.queue.pass_over(&tenant, key);
        passed_over.push(key);
    }

    /// Somebody is held until then.
    fn arm_gate(&mut self, held: Option<Time>) {
        let Some(until) = held.filter(|until| self.gate_armed.is_none_or(|armed| *until < armed)) else { return };
        if let Some(armed) = self.gate_armed.replace(until) {
            self.timers.remove(&(armed, Timer::Held));
        }
        self.timers.insert((until, Timer::Held));
    }

    /// Gives an invocation of the function whose turn it is to an idle instance.
    fn serve(&mut self, key: FunctionKey, instance: InstanceId, actions: &mut Vec<Action>) {
        let function = self.functions.get_mut(&key).expect("invariant: whose turn it is, is known");
        let tenant = function.deployment.tenant.clone();
        let oldest = self.queue.oldest(&tenant, key).map_or(self.now, |asked| asked.arrived);
        let order = function.patience.order(self.now, self.now.since(oldest));
        let (timeout, learned) = (function.deployment.timeout, function.learned);
        let estimate = price(&self.options, function, function.mean_run, function.mean_run);
        let Some((id, asked, charge)) = self.queue.pop_for(&tenant, (key, order), estimate) else { return };
        self.leave_waiting(id, asked);
        self.leave_idle(instance);
        let known = self.instances.get_mut(&instance).expect("invariant: an idle instance is known");
        known.state = State::Busy { invocation: id };
        self.enter(instance, learned.places(), Use::Run);
        let (delivered, until) = (self.now, self.now + timeout);
        let allowance = Allowance { run_time: timeout, cpu: CpuShare::FULL, until };
        self.timers.insert((until, Timer::Stop(id)));
        let stopped_as = End::Overran;
        let running = Running { function: key, instance, delivered, until, stopped_as, charge };
        self.running.insert(id, running);
        actions.push(Action::Deliver { id, instance, allowance, conforming: None });
        self.refresh(key);
    }

    fn ended(&mut self, id: InvocationId, actions: &mut Vec<Action>) {
        let Some((instance, run)) = self.leave_running(id) else { return };
        let Some(known) = self.instances.get_mut(&instance) else { return };
        // It keeps its place, as old as that is, until it asks for more.
        known.state = State::Finishing { since: self.now };
        known.unpaid = Some(run);
        let (key, code) = (known.function, known.code);
        self.timers.insert((self.now + self.options.finish_limit, Timer::Finishing(instance)));
        match self.functions.get_mut(&key).filter(|function| function.code == code) {
            Some(function) => function.restarts.worked(),
            None => self.kill(instance, actions), // its version was replaced, or its function removed
        }
    }

    /// It is at its timeout, or nobody waits for it: it is stopped with its instance, and its client told.
    fn stop(&mut self, id: InvocationId, end: End, actions: &mut Vec<Action>) {
        let Some((instance, run)) = self.leave_running(id) else { return };
        self.charge(&run);
        actions.push(Action::Fail { id, end });
        self.kill(instance, actions);
    }

    /// The client of an invocation hung up.
    fn abandoned(&mut self, id: InvocationId, actions: &mut Vec<Action>) {
        let Some(run) = self.running.get_mut(&id) else {
            actions.extend(self.give_up(id).map(|_| Action::Fail { id, end: End::Cancelled }));
            return;
        };
        if run.stopped_as == End::Cancelled {
            return;
        }
        let Some(function) = self.functions.get_mut(&run.function) else { return self.stop(id, End::Cancelled, actions) };
        function.patience.hung_up(self.now);
        // A run that is over soon costs less than the start of another instance.
        let over = run.delivered + function.mean_run * GRACE_MEAN_RUNS;
        self.timers.remove(&(run.until, Timer::Stop(id)));
        run.until = run.until.min(over).min(self.now + GRACE_MAX);
        run.stopped_as = End::Cancelled;
        if run.until <= self.now {
            return self.stop(id, End::Cancelled, actions);
        }
        self.timers.insert((run.until, Timer::Stop(id)));
    }

    /// The deadline of one that waits has come.
    fn expired(&mut self, id: InvocationId, actions: &mut Vec<Action>) {
        let deadline = self.give_up(id).and_then(|asked| asked.deadline);
        actions.extend(deadline.map(|deadline| Action::Refuse { id, refusal: Refusal::Expired { deadline } }));
    }

    /// One that waits is not run, because it took too long.
    fn give_up(&mut self, id: InvocationId) -> Option<Asked> {
        let key = self.waiting.get(&id).copied()?;
        let asked = self.queue.remove(id)?;
        self.leave_waiting(id, asked);
        if let Some(function) = self.functions.get_mut(&key) {
            function.patience.hung_up(self.now);
        }
        self.refresh(key);
        Some(asked)
    }

    /// Takes a running invocation off its instance.
    fn leave_running(&mut self, id: InvocationId) -> Option<(InstanceId, Unpaid)> {
        let Running { function, instance, delivered, until, charge, .. } = self.running.remove(&id)?;
        self.timers.remove(&(until, Timer::Stop(id)));
        let took = self.now.since(delivered);
        if let Some(function) = self.functions.get_mut(&function) {
            function.mean_run = (function.mean_run * 7 + took) / 8;
        }
        Some((instance, Unpaid { function, charge, delivered, took }))
    }

    /// Corrects what a run was charged with, when its instance is of no more use to it.
    fn charge(&mut self, run: &Unpaid) {
        let held = self.now.since(run.delivered);
        let function = self.functions.get(&run.function);
        let paid = function.map_or(held, |function| price(&self.options, function, run.took, held));
        self.queue.settle(&run.charge, paid);
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
        while let Some((id, asked)) = self.queue.take_from(&tenant, key) {
            self.leave_waiting(id, asked);
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
        if !function.idle.is_empty() || (short && may_start) {
            self.queue.want(tenant, key);
        } else {
            self.queue.pass_over(tenant, key);
        }
    }

    /// Learns what runs of a function take.
    fn measured(&mut self, id: InvocationId, taken: Taken) {
        let Some(Running { function, instance, .. }) = self.running.get(&id) else { return };
        if let Some(function) = self.functions.get_mut(function) {
            function.learned.learn(taken);
        }
        let mut seen = Learned::default();
        seen.learn(taken);
        if let Some(place) = self.instances.get_mut(instance).and_then(|known| known.place.as_mut()) {
            self.gate.resize(place, seen.places());
        }
    }

    /// Learns what starts of a function take.
    fn warmed(&mut self, id: InstanceId, wanted: Duration) {
        let Some(instance) = self.instances.get(&id) else { return };
        let State::Starting { since } = instance.state else { return };
        if let Some(function) = self.functions.get_mut(&instance.function) {
            let whole = self.now.since(since);
            function.starts.learn(Taken { run: whole, wanted, whole, used: wanted });
        }
    }

    /// An instance begins to start or to run: it takes a place.
    fn enter(&mut self, id: InstanceId, part: Part, what: Use) {
        self.leave(id);
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let tenant = function_tenant(&self.functions, instance.function);
        instance.place = Some(self.gate.enter(&tenant, (part, what), self.now));
        self.timers.insert((self.now + YOUNG, Timer::Old(id)));
    }

    /// An instance starts for which nobody waits. A deployment is not held, but others are by its start.
    fn enter_unasked(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let starts = self.functions.get(&instance.function).map_or(Part::ONE_CORE, |function| function.starts.places());
        instance.place = Some(self.gate.take(Part::ONE_CORE, Use::Start(starts), self.now));
        self.timers.insert((self.now + YOUNG, Timer::Old(id)));
    }

    /// Takes its place from an instance, and charges for its run that has ended.
    fn leave(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let (place, unpaid) = (instance.place.take(), instance.unpaid.take());
        if let Some(place) = place {
            self.timers.remove(&(place.look, Timer::Old(id)));
            self.gate.leave(place);
        }
        if let Some(run) = unpaid {
            self.charge(&run);
        }
    }

    /// Young -> old. A run that lasts says how long its function's runs are before it ends.
    fn grow_old(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        match instance.state {
            State::Starting { .. } | State::Busy { .. } | State::Finishing { .. } => {}
            State::Idle { .. } | State::Dying => return,
        }
        let Some(place) = instance.place.as_mut() else { return };
        let tenant = function_tenant(&self.functions, instance.function);
        self.gate.grow_old(place, &tenant);
        let age = self.now.since(place.since);
        if let (State::Busy { .. }, Some(function)) = (instance.state, self.functions.get_mut(&instance.function)) {
            function.mean_run = function.mean_run.max(age);
        }
        place.look = self.now + age.max(YOUNG);
        self.timers.insert((place.look, Timer::Old(id)));
    }

    /// The version that serves.
    #[must_use]
    pub fn version(&self, key: FunctionKey) -> Option<Version> {
        self.functions.get(&key).map(|function| function.deployment.version)
    }
}
