//! A small world on virtual time for the engines' tests: instances that start, run, crash and die when told, clients that
//! come and go. It checks at every action what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use journal::record::{EndedBecause, GuaranteeEnded, GuaranteeGiven, NodeStarted, Record, Transfer};
use model::{
    CpuShare, DurationText, End, FunctionKey, Guarantee, InstanceId, InvocationId, LeaseId, Level, Memory, OnOverrun, Overflow,
    Pacing, Rate, RateClass, Require, Tenant, Time, Version,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::port::{Action, Deployment, Event, Placement, Remark, Reservation, Shard};
use crate::reserved::{Engine, Options};

pub(crate) const MS: Duration = Duration::from_millis(1);
/// From the start of an instance until it is ready, at most.
pub(crate) const COLD: Duration = Duration::from_millis(40);
/// From the end of an invocation until its instance asks for the next, at most.
pub(crate) const RECYCLE: Duration = MS;
pub(crate) const TOLERANCE: Duration = MS;

/// A function of the world and how its invocations behave.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) deployment: Deployment,
    /// The longest run of an invocation that does not overrun.
    pub(crate) run: Duration,
    /// Its response bound may be revised to so much more than its run.
    pub(crate) room: Duration,
}

/// The guarantee with the instances that the theory asks for, over `cores` cores.
pub(crate) fn subject(key: u64, rate: Rate, burst: u32, run: Duration) -> Subject {
    let burst = model::Burst::new(burst).unwrap();
    let terms = Guarantee {
        pacing: Pacing::Own { rate, burst },
        max_run_time: run,
        cpu: CpuShare::FULL,
        start_within: 5 * MS,
        deadline: None,
        overflow: Overflow::Reject,
        require: Require::Any,
        on_overrun: OnOverrun::Kill,
        lead: Duration::ZERO,
    };
    let reservation = Reservation {
        terms,
        generation: 1,
        rate_class: None,
        level: Level::Hard,
        shards: Vec::new(),
        start_bound: Duration::ZERO,
        response_bound: run,
        tolerance: TOLERANCE,
    };
    let deployment = Deployment {
        function: FunctionKey(key),
        name: format!("f{key}").parse().unwrap(),
        tenant: Tenant::default(),
        version: Version(1),
        memory: Memory::DEFAULT,
        timeout: Duration::from_secs(3),
        reservation: Some(reservation),
    };
    let mut subject = Subject { deployment, run, room: Duration::ZERO };
    subject.size(&[0]);
    subject
}

impl Subject {
    pub(crate) fn reservation(&mut self) -> &mut Reservation {
        self.deployment.reservation.as_mut().unwrap()
    }

    pub(crate) fn terms(&mut self) -> &mut Guarantee {
        &mut self.reservation().terms
    }

    /// K and W by the theorems, spread over the cores.
    pub(crate) fn size(&mut self, cores: &[u16]) {
        let longest = self.run + self.room;
        let reservation = self.reservation();
        let (rate, burst) = match (&reservation.terms.pacing, &reservation.rate_class) {
            (Pacing::Own { rate, burst }, _) => (*rate, *burst),
            (Pacing::Shared(_), class) => class.as_ref().map(|class| (class.rate, class.burst)).unwrap(),
        };
        let busy = reservation.response_bound.max(longest) + reservation.tolerance + RECYCLE + reservation.terms.lead;
        let shards = u64::try_from(cores.len()).unwrap();
        let most = |window| u32::try_from((rate.ceil_in(window) + u64::from(burst.get()) - 1).div_ceil(shards)).unwrap();
        let (instances, warm) = (most(busy), most(COLD).min(most(busy)));
        reservation.shards = cores.iter().map(|core| Shard { core: *core, priority: 50, instances, warm }).collect();
    }

    pub(crate) fn in_class(&mut self, class: RateClass) {
        self.terms().pacing = Pacing::Shared(class.name.clone());
        self.reservation().rate_class = Some(class);
    }
}

#[derive(Clone, Debug)]
enum Happening {
    Event(Event),
    /// A request comes, with the deadline it carries.
    Arrive(FunctionKey, Option<Duration>),
    /// The client of the invocation goes away.
    Abandon(InvocationId),
    Crash(InstanceId),
    Supply(LeaseId),
    Gap(u16, Duration),
}

#[derive(Clone, Debug)]
struct Sim {
    function: FunctionKey,
    version: Version,
    core: u16,
    state: SimState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SimState {
    Starting,
    Ready,
    Busy(InvocationId),
    Killed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) function: FunctionKey,
    pub(crate) arrived: Time,
    pub(crate) conforming: Time,
    pub(crate) delivered: Time,
}

/// What may go wrong, in chances out of 1000 for each occasion.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) failed_start: u32,
    pub(crate) crash: u32,
    pub(crate) overrun: u32,
    pub(crate) abandon: u32,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) now: Time,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) faults: Faults,
    /// Every instance takes exactly as long as it may.
    pub(crate) slowest: bool,
    /// Instances answer, and never ask for more.
    pub(crate) silent: bool,
    /// Inputs and results are long, and the node has each in its hands for so long.
    pub(crate) ways: Option<Duration>,
    pub(crate) subjects: BTreeMap<FunctionKey, Subject>,
    agenda: BTreeMap<(Time, u64), Happening>,
    ticks: u64,
    instances: BTreeMap<InstanceId, Sim>,
    /// Invocations without an answer, with their function and arrival.
    open: BTreeMap<InvocationId, (FunctionKey, Time)>,
    answered: BTreeSet<InvocationId>,
    leases: BTreeMap<LeaseId, bool>,
    next_lease: u64,
    pub(crate) journal: Vec<Record>,
    pub(crate) starts: Vec<Start>,
    pub(crate) served: Vec<(FunctionKey, Version)>,
    pub(crate) unserved: Vec<(FunctionKey, Version)>,
    pub(crate) refused: Vec<crate::port::Refusal>,
    pub(crate) told: Vec<(InstanceId, Remark)>,
    /// Functions that share the rate of a class.
    pub(crate) classed: BTreeSet<String>,
    actions: Vec<Action>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let started = NodeStarted {
            boot: InvocationId::from_u128(u128::from(seed)),
            at: Time::ZERO,
            unix_ns: 0,
            level: Level::Hard,
            tolerance: TOLERANCE,
            software: "test".to_owned(),
        };
        Self {
            engine: Engine::new(Options::default()),
            now: Time::ZERO,
            rng: ChaCha8Rng::seed_from_u64(seed),
            faults: Faults::default(),
            slowest: true,
            silent: false,
            ways: None,
            subjects: BTreeMap::new(),
            agenda: BTreeMap::new(),
            ticks: 0,
            instances: BTreeMap::new(),
            open: BTreeMap::new(),
            answered: BTreeSet::new(),
            leases: BTreeMap::new(),
            next_lease: 0,
            journal: vec![Record::NodeStarted(started)],
            starts: Vec::new(),
            served: Vec::new(),
            unserved: Vec::new(),
            refused: Vec::new(),
            told: Vec::new(),
            classed: BTreeSet::new(),
            actions: Vec::new(),
        }
    }

    /// Installs a function and says so in the journal.
    pub(crate) fn install(&mut self, subject: &Subject) {
        let reservation = subject.deployment.reservation.clone().unwrap();
        self.subjects.insert(subject.deployment.function, subject.clone());
        self.give(subject, &reservation);
        self.tell(Event::Install(Box::new(subject.deployment.clone())));
    }

    /// Says in the journal what is in force from now on, and tells the engine `later`.
    pub(crate) fn revise(&mut self, subject: &Subject, later: Duration) {
        let reservation = subject.deployment.reservation.clone().unwrap();
        self.subjects.insert(subject.deployment.function, subject.clone());
        self.give(subject, &reservation);
        self.run_for(later);
        self.tell(Event::Revise(vec![(subject.deployment.function, reservation)]));
    }

    /// The members of a class go over to other terms at one instant.
    pub(crate) fn revise_all(&mut self, subjects: &[&Subject]) {
        let mut all = Vec::new();
        for subject in subjects {
            let reservation = subject.deployment.reservation.clone().unwrap();
            self.subjects.insert(subject.deployment.function, Subject::clone(subject));
            self.give(subject, &reservation);
            all.push((subject.deployment.function, reservation));
        }
        self.tell(Event::Revise(all));
    }

    /// The node dies with everything in it. Its deployments are installed again, on a clock that goes on.
    pub(crate) fn die_and_start(&mut self) {
        let mut next = Self::new(self.rng.random());
        std::mem::swap(self, &mut next);
        (self.now, self.faults, self.slowest) = (next.now, next.faults, next.slowest);
        next.journal.append(&mut self.journal);
        self.journal = next.journal;
        for subject in next.subjects.values() {
            self.install(subject);
        }
    }

    fn give(&mut self, subject: &Subject, reservation: &Reservation) {
        if reservation.rate_class.is_some() {
            self.classed.insert(subject.deployment.name.to_string());
        }
        self.journal.push(Record::GuaranteeGiven(Box::new(GuaranteeGiven {
            at: self.now,
            function: subject.deployment.name.clone(),
            generation: reservation.generation,
            terms: reservation.terms.clone(),
            rate_class: reservation.rate_class.clone(),
            level: reservation.level,
            start_bound: reservation.start_bound,
            response_bound: reservation.response_bound,
            tolerance: reservation.tolerance,
        })));
    }

    pub(crate) fn remove(&mut self, key: FunctionKey) {
        self.tell(Event::Remove { function: key });
        if let Some(mut subject) = self.subjects.remove(&key) {
            let (at, function, generation) = (self.now, subject.deployment.name.clone(), subject.reservation().generation);
            self.journal.push(Record::GuaranteeEnded(GuaranteeEnded {
                at,
                function,
                generation,
                reason: EndedBecause::Withdrawn,
            }));
        }
    }

    /// A request comes after `delay`.
    pub(crate) fn arrive_in(&mut self, delay: Duration, function: u64, deadline: Option<Duration>) {
        self.plan(delay, Happening::Arrive(FunctionKey(function), deadline));
    }

    pub(crate) fn gap_in(&mut self, delay: Duration, core: u16, length: Duration) {
        self.plan(delay, Happening::Gap(core, length));
    }

    pub(crate) fn pre_invoke(&mut self, function: u64, lead: Duration, supply_after: Option<Duration>) -> LeaseId {
        self.next_lease += 1;
        let lease = LeaseId(self.next_lease);
        self.leases.insert(lease, false);
        if let Some(delay) = supply_after {
            self.plan(delay, Happening::Supply(lease));
        }
        self.tell(Event::PreInvoke { lease, function: FunctionKey(function), lead });
        lease
    }

    /// Some living instance crashes.
    pub(crate) fn crash_any(&mut self) {
        let alive: Vec<InstanceId> = self.instances.keys().copied().collect();
        if !alive.is_empty() {
            let id = alive[self.rng.random_range(0..alive.len())];
            self.plan(Duration::ZERO, Happening::Crash(id));
        }
    }

    /// The program of an instance that waits ends, and its lane sees that before it is gone.
    pub(crate) fn end_idle(&mut self) {
        let idle = self.instances.iter().find(|(_, sim)| sim.state == SimState::Ready).map(|(id, _)| *id);
        self.tell(Event::Dying { instance: idle.expect("an instance waits") });
    }

    pub(crate) fn instances_of(&self, key: u64) -> usize {
        self.instances.values().filter(|sim| sim.function == FunctionKey(key) && sim.state != SimState::Killed).count()
    }

    fn plan(&mut self, delay: Duration, happening: Happening) {
        self.ticks += 1;
        self.agenda.insert((self.now + delay, self.ticks), happening);
    }

    /// Lets time pass until `until`.
    pub(crate) fn run_until(&mut self, until: Time) {
        loop {
            let event = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let wake = self.engine.next_wake();
            let next = event.into_iter().chain(wake).min().filter(|at| *at <= until);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            if wake.is_some_and(|wake| wake <= self.now) {
                self.engine.wake(self.now, &mut self.actions);
                self.act();
                assert!(self.engine.next_wake().is_none_or(|wake| self.now < wake), "the engine asks for what is past");
            } else if let Some((_, happening)) = self.agenda.pop_first() {
                self.happen(happening);
            }
        }
        self.now = self.now.max(until);
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Stops accepting, lets everything end, and checks that nothing is left over.
    pub(crate) fn drain(&mut self) {
        self.tell(Event::Drain);
        self.run_for(Duration::from_secs(40));
        assert!(self.open.is_empty(), "unanswered: {:?}", self.open);
        assert!(self.engine.is_drained());
        self.count();
        self.journal.push(Record::NodeStopped { at: self.now });
    }

    /// Puts the live counters into the journal.
    pub(crate) fn count(&mut self) {
        let functions = self.engine.counters();
        self.journal.push(Record::Counters { at: self.now, functions });
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Event(event) => {
                let stale = match &event {
                    Event::Ended { id, .. }
                    | Event::Started { id, .. }
                    | Event::Delivered { id, .. }
                    | Event::Transferred { id, .. }
                    | Event::Measured { id, .. }
                    | Event::Overran { id, .. } => !self.open.contains_key(id),
                    Event::Ready { instance } => !self.instances.get(instance).is_some_and(|sim| sim.state != SimState::Killed),
                    Event::Begun { instance }
                    | Event::Dying { instance }
                    | Event::Gone { instance }
                    | Event::Warmed { instance, .. } => !self.instances.contains_key(instance),
                    Event::Install(_) | Event::Revise(_) | Event::Remove { .. } | Event::Arrived { .. } => false,
                    Event::Supplied { .. } | Event::PreInvoke { .. } | Event::Abandoned { .. } => false,
                    Event::ProbeGap { .. } | Event::Drain => false,
                };
                if !stale {
                    self.before(&event);
                    self.tell(event);
                }
            }
            Happening::Arrive(function, deadline) => {
                let id = InvocationId::from_random(self.rng.random::<u128>());
                self.open.insert(id, (function, self.now));
                if self.chance(self.faults.abandon) {
                    let delay = self.up_to(60 * MS);
                    self.plan(delay, Happening::Abandon(id));
                }
                let deadline = deadline.map(|deadline| self.now + deadline);
                // The stamp of a request may lie before what the engine was told last.
                let stamp = if self.slowest { self.now } else { self.now.before(self.up_to(MS)) };
                self.engine.handle(stamp, Event::Arrived { id, function, deadline }, &mut self.actions);
                self.act();
            }
            Happening::Abandon(id) => {
                if self.open.contains_key(&id) {
                    self.tell(Event::Abandoned { id });
                    assert!(!self.open.contains_key(&id), "an abandoned invocation is still open");
                }
            }
            Happening::Crash(id) => {
                if self.instances.contains_key(&id) {
                    self.gone(id);
                }
            }
            Happening::Supply(lease) => {
                let id = InvocationId::from_random(self.rng.random::<u128>());
                let function = FunctionKey(u64::MAX);
                self.open.insert(id, (function, self.now));
                self.tell(Event::Supplied { id, lease, deadline: None });
            }
            Happening::Gap(core, length) => {
                let (from, until) = (self.now.before(length), self.now);
                self.journal.push(Record::ProbeGap { core, from, until });
                self.tell(Event::ProbeGap { core, from, until });
            }
        }
    }

    /// What the world itself knows of an event.
    fn before(&mut self, event: &Event) {
        if let Event::Ready { instance } = event
            && let Some(sim) = self.instances.get_mut(instance)
        {
            sim.state = SimState::Ready;
        }
        if let Event::Gone { instance } = event {
            self.instances.remove(instance);
        }
        if let Event::Ended { id, .. } = event {
            self.answer(*id);
            let at = self.instances.iter().find(|(_, sim)| sim.state == SimState::Busy(*id)).map(|(id, _)| *id);
            if let Some(instance) = at.filter(|_| !self.silent) {
                let pause = self.up_to(RECYCLE);
                self.plan(pause, Happening::Event(Event::Ready { instance }));
            }
        }
    }

    fn gone(&mut self, instance: InstanceId) {
        self.instances.remove(&instance);
        self.tell(Event::Gone { instance });
    }

    fn tell(&mut self, event: Event) {
        self.engine.handle(self.now, event, &mut self.actions);
        self.act();
    }

    fn act(&mut self) {
        for action in std::mem::take(&mut self.actions) {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start { instance, function, version, on } => self.start(instance, function, version, on),
            Action::Place { instance, .. } => assert!(self.instances.contains_key(&instance), "placed {instance}, which is not"),
            Action::Tell { instance, what } => {
                assert!(self.instances.contains_key(&instance), "told of {instance}, which is not");
                self.told.push((instance, what));
            }
            Action::Kill { instance } => {
                let sim = self.instances.get_mut(&instance).unwrap_or_else(|| panic!("killed {instance}, which is not"));
                assert!(sim.state != SimState::Killed, "killed {instance} twice");
                sim.state = SimState::Killed;
                let pause = self.up_to(2 * MS);
                self.plan(pause, Happening::Event(Event::Gone { instance }));
            }
            Action::Deliver { id, instance, allowance, conforming } => self.deliver(id, instance, allowance.until, conforming),
            Action::Demote { id } | Action::Fail { id, .. } => self.answer(id),
            Action::Refuse { id, refusal } => {
                self.answer(id);
                self.refused.push(refusal);
            }
            Action::LeaseReady { lease, expires } => {
                assert!(self.now <= expires);
                assert!(self.leases.contains_key(&lease), "{lease} is ready, which is not known");
                self.leases.insert(lease, true);
            }
            Action::LeaseEnded { lease, .. } | Action::LeaseRefused { lease, .. } => {
                assert!(self.leases.remove(&lease).is_some(), "{lease} ended, which is not known");
            }
            Action::Serving { function, version } => self.served.push((function, version)),
            Action::CannotServe { function, version } => self.unserved.push((function, version)),
            Action::Record(record) => self.journal.push(Record::Invocation(*record)),
        }
    }

    fn start(&mut self, instance: InstanceId, function: FunctionKey, version: Version, on: Placement) {
        let Placement::RealTime { core, .. } = on else { panic!("{instance} starts without its core") };
        let sim = Sim { function, version, core, state: SimState::Starting };
        assert!(self.instances.insert(instance, sim).is_none(), "started {instance} twice");
        if let Some(subject) = self.subjects.get(&function).filter(|subject| subject.deployment.version == version) {
            let shard = subject.deployment.reservation.as_ref().unwrap().shards.iter().find(|shard| shard.core == core).unwrap();
            let there = self.instances.values().filter(|sim| (sim.function, sim.version, sim.core) == (function, version, core));
            assert!(there.count() <= usize::try_from(shard.instances).unwrap(), "{function} has more than K instances");
        }
        self.plan(Duration::ZERO, Happening::Event(Event::Begun { instance }));
        let delay = if self.slowest { COLD } else { self.up_to(COLD) };
        let fails = self.chance(self.faults.failed_start);
        let event = if fails { Event::Gone { instance } } else { Event::Ready { instance } };
        self.plan(delay, Happening::Event(event));
    }

    fn deliver(&mut self, id: InvocationId, instance: InstanceId, until: Time, conforming: Option<Time>) {
        let sim = self.instances.get_mut(&instance).unwrap_or_else(|| panic!("delivered to {instance}, which is not"));
        assert_eq!(sim.state, SimState::Ready, "delivered to {instance}, which is not ready");
        sim.state = SimState::Busy(id);
        let function = sim.function;
        let (_, arrived) = self.open.get(&id).copied().unwrap_or_else(|| panic!("delivered {id}, which is not open"));
        let conforming = conforming.unwrap();
        self.starts.push(Start { function, arrived, conforming, delivered: self.now });
        let longest = self.subjects.get(&function).map_or(MS, |subject| subject.run);
        let run = if self.slowest { longest } else { self.up_to(longest) };
        let end = if self.chance(500) { End::Succeeded } else { End::Failed };
        if let Some(way) = self.ways {
            return self.run_with_ways(id, way, (run, end));
        }
        self.plan(Duration::ZERO, Happening::Event(Event::Delivered { id, at: self.now }));
        self.plan(Duration::ZERO, Happening::Event(Event::Started { id, at: self.now }));
        if self.chance(self.faults.crash) {
            let at = self.up_to(run);
            self.plan(at, Happening::Crash(instance));
        } else if self.chance(self.faults.overrun) {
            let watch = if self.chance(500) { longest } else { until.since(self.now) * 2 };
            self.plan(watch, Happening::Event(Event::Overran { id, cpu: watch }));
            self.plan(until.since(self.now) * 3, Happening::Event(Event::Ended { id, end, cpu: run }));
        } else {
            self.plan(run, Happening::Event(Event::Ended { id, end, cpu: run }));
        }
    }

    /// As the node tells it: ahead of each way, and exactly at its end.
    fn run_with_ways(&mut self, id: InvocationId, way: Duration, (run, end): (Duration, End)) {
        let transferred = |input, result| Happening::Event(Event::Transferred { id, so_far: Transfer { input, result } });
        self.plan(Duration::ZERO, transferred(way + MS, Duration::ZERO));
        self.plan(way, transferred(way, Duration::ZERO));
        self.plan(way, Happening::Event(Event::Delivered { id, at: self.now + way }));
        self.plan(way, Happening::Event(Event::Started { id, at: self.now + way }));
        self.plan(way + run, transferred(way, way + MS));
        self.plan(way + run + way, transferred(way, way));
        self.plan(way + run + way, Happening::Event(Event::Ended { id, end, cpu: run }));
    }

    fn answer(&mut self, id: InvocationId) {
        assert!(self.open.remove(&id).is_some(), "answered {id}, which is not open");
        assert!(self.answered.insert(id), "answered {id} twice");
    }

    fn chance(&mut self, thousandths: u32) -> bool {
        self.rng.random_range(0..1000) < thousandths
    }

    pub(crate) fn up_to(&mut self, longest: Duration) -> Duration {
        let ns = u64::try_from(longest.as_nanos()).unwrap();
        Duration::from_nanos(self.rng.random_range(0..=ns))
    }

    /// The records of invocations written so far.
    pub(crate) fn records(&self) -> impl Iterator<Item = &journal::record::Invocation> {
        self.journal.iter().filter_map(|record| if let Record::Invocation(invocation) = record { Some(invocation) } else { None })
    }
}

/// A seeded story: a few functions with random terms, random arrivals, and everything that can go wrong.
pub(crate) fn story(seed: u64) -> World {
    let mut world = begin(seed);
    go_on(&mut world);
    world.drain();
    world
}

/// A story in the middle of which the node dies and starts again with its deployments.
pub(crate) fn interrupted(seed: u64) -> World {
    let mut world = begin(seed);
    go_on(&mut world);
    world.die_and_start();
    world.run_for(200 * MS);
    go_on(&mut world);
    world.drain();
    world
}

fn begin(seed: u64) -> World {
    let mut world = World::new(seed);
    world.slowest = false;
    if world.rng.random_range(0..3) != 0 {
        world.faults = Faults { failed_start: 60, crash: 80, overrun: 60, abandon: 60 };
    }
    for key in 0..world.rng.random_range(1..=3) {
        let subject = random_subject(&mut world, key);
        world.install(&subject);
    }
    world.run_for(200 * MS);
    world
}

fn go_on(world: &mut World) {
    for _ in 0..world.rng.random_range(30..80) {
        let key = world.rng.random_range(0..3);
        step(world, key);
        let pause = world.up_to(30 * MS);
        world.run_for(pause);
    }
}

fn random_subject(world: &mut World, key: u64) -> Subject {
    let rate = Rate::new(world.rng.random_range(1..60), Duration::from_millis(world.rng.random_range(500..1500))).unwrap();
    let run = Duration::from_micros(world.rng.random_range(200..30_000));
    let burst = world.rng.random_range(1..4);
    let mut subject = subject(key, rate, burst, run);
    let terms = subject.terms();
    terms.overflow = match world.rng.random_range(0..3) {
        0 => Overflow::BestEffort,
        1 => Overflow::Reject,
        _ => Overflow::Queue { limit: 5 },
    };
    terms.on_overrun = if world.rng.random_range(0..2) == 0 { OnOverrun::Kill } else { OnOverrun::Demote };
    terms.lead = Duration::from_millis(world.rng.random_range(0..20));
    if world.rng.random_range(0..2) == 0 {
        terms.deadline = Some(DurationText(run + 40 * MS));
    }
    if world.rng.random_range(0..4) == 0 {
        let burst = model::Burst::new(2).unwrap();
        subject.in_class(RateClass { name: "shared".parse().unwrap(), rate: Rate::per_second(40).unwrap(), burst });
    }
    if world.rng.random_range(0..3) == 0 {
        subject.room = 60 * MS;
        subject.terms().deadline = Some(DurationText(run + 20 * MS));
        subject.terms().start_within = 30 * MS;
    }
    let cores: &[u16] = if world.rng.random_range(0..2) == 0 { &[0] } else { &[0, 1] };
    subject.size(cores);
    subject
}

fn step(world: &mut World, key: u64) {
    match world.rng.random_range(0..20) {
        0..=11 => {
            for _ in 0..world.rng.random_range(1..4) {
                let delay = world.up_to(20 * MS);
                let carries = world.rng.random_range(0..4) == 0;
                let deadline = carries.then(|| world.up_to(100 * MS));
                world.arrive_in(delay, key, deadline);
            }
        }
        12..=13 => {
            let lead = world.up_to(15 * MS);
            let supply = (world.rng.random_range(0..3) != 0).then(|| world.up_to(20 * MS));
            world.pre_invoke(key, lead, supply);
        }
        14 => {
            let (core, length) = (world.rng.random_range(0..2), world.up_to(3 * MS));
            world.gap_in(Duration::ZERO, core, length);
        }
        15 if world.faults.crash != 0 => world.crash_any(),
        15..=16 => redeploy(world, key),
        17 => revise(world, key),
        18 if world.rng.random_range(0..4) == 0 => world.remove(FunctionKey(key)),
        _ => world.count(),
    }
}

/// New code, new terms, or both.
fn redeploy(world: &mut World, key: u64) {
    let Some(mut subject) = world.subjects.get(&FunctionKey(key)).cloned() else { return };
    let cores: Vec<u16> = subject.reservation().shards.iter().map(|shard| shard.core).collect();
    let new_terms = world.rng.random_range(0..2) == 0;
    if new_terms {
        let rate = Rate::new(world.rng.random_range(1..60), Duration::from_millis(world.rng.random_range(500..1500))).unwrap();
        let burst = model::Burst::new(world.rng.random_range(1..4)).unwrap();
        if subject.reservation().rate_class.is_none() {
            subject.terms().pacing = Pacing::Own { rate, burst };
        }
        subject.reservation().generation += 1;
    }
    subject.deployment.version = Version(subject.deployment.version.0 + 1);
    subject.size(&cores);
    world.install(&subject);
}

/// New priorities and bounds for the code that serves.
fn revise(world: &mut World, key: u64) {
    let Some(mut subject) = world.subjects.get(&FunctionKey(key)).cloned() else { return };
    let serving = world.served.iter().rev().find(|(function, _)| *function == FunctionKey(key)).map(|(_, version)| *version);
    if serving == Some(subject.deployment.version) {
        for shard in &mut subject.reservation().shards {
            shard.priority += 1;
        }
        subject.reservation().response_bound = subject.run + world.up_to(subject.room);
        let later = world.up_to(3 * MS);
        world.revise(&subject, later);
    }
}
