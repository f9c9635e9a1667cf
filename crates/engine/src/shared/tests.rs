use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dispatch::Limits;
use model::{End, FunctionKey, InstanceId, InvocationId, Memory, Time, Version};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Engine, Options};
use crate::port::{Action, Deployment, Event, Refusal};
use crate::tests::for_each_seed;

const MS: Duration = Duration::from_millis(1);
const COLD: Duration = Duration::from_millis(50);

fn options() -> Options {
    Options { memory_mib: 1024, instances: 12, function_instances: 6, concurrency: 4, cores: 2, ..Options::default() }
}

fn deployment(key: u64, tenant: &str, mib: u64) -> Deployment {
    Deployment {
        function: FunctionKey(key),
        name: format!("f{key}").parse().unwrap(),
        tenant: tenant.parse().unwrap(),
        version: Version(1),
        memory: Memory::from_mib(mib).unwrap(),
        timeout: Duration::from_secs(1),
        reservation: None,
    }
}

/// Instances that start and run in virtual time, and the checks at every action.
struct World {
    engine: Engine,
    options: Options,
    now: Time,
    rng: ChaCha8Rng,
    agenda: BTreeMap<(Time, u64), Event>,
    ticks: u64,
    deployments: BTreeMap<FunctionKey, Deployment>,
    instances: BTreeMap<InstanceId, (u64, Option<InvocationId>)>,
    killed: BTreeSet<InstanceId>,
    ready: BTreeSet<InstanceId>,
    open: BTreeMap<InvocationId, FunctionKey>,
    run: BTreeMap<FunctionKey, Duration>,
    /// The part of a run that wants a core, where it is measured.
    wanted: BTreeMap<FunctionKey, Duration>,
    served: BTreeMap<FunctionKey, Duration>,
    delivered: Vec<FunctionKey>,
    starts: usize,
    serving: Vec<Version>,
    refused: Vec<Refusal>,
    failed: Vec<End>,
    /// Starts that fail and instances that crash at work, of 1000.
    faults: u32,
    actions: Vec<Action>,
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        Self {
            engine: Engine::new(options.clone()),
            options,
            now: Time::ZERO,
            rng: ChaCha8Rng::seed_from_u64(seed),
            agenda: BTreeMap::new(),
            ticks: 0,
            deployments: BTreeMap::new(),
            instances: BTreeMap::new(),
            killed: BTreeSet::new(),
            ready: BTreeSet::new(),
            open: BTreeMap::new(),
            run: BTreeMap::new(),
            wanted: BTreeMap::new(),
            served: BTreeMap::new(),
            delivered: Vec::new(),
            starts: 0,
            serving: Vec::new(),
            refused: Vec::new(),
            failed: Vec::new(),
            faults: 0,
            actions: Vec::new(),
        }
    }

    fn install(&mut self, deployment: Deployment, run: Duration) {
        self.run.insert(deployment.function, run);
        self.deployments.insert(deployment.function, deployment.clone());
        self.tell(Event::Install(Box::new(deployment)));
    }

    fn arrive(&mut self, key: u64) -> InvocationId {
        let id = InvocationId::from_random(self.rng.random::<u128>());
        self.open.insert(id, FunctionKey(key));
        self.tell(Event::Arrived { id, function: FunctionKey(key), deadline: None });
        id
    }

    fn plan(&mut self, delay: Duration, event: Event) {
        self.ticks += 1;
        self.agenda.insert((self.now + delay, self.ticks), event);
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let wake = self.engine.next_wake().filter(|at| *at <= until);
            let event = self.agenda.first_key_value().map(|((at, _), _)| *at).filter(|at| *at <= until);
            match (wake, event) {
                (None, None) => break,
                (Some(at), event) if event.is_none_or(|event| at <= event) => {
                    self.now = self.now.max(at);
                    self.engine.wake(self.now, &mut self.actions);
                    self.act();
                }
                (_, _) => {
                    let ((at, _), event) = self.agenda.pop_first().unwrap();
                    self.now = self.now.max(at);
                    self.happen(event);
                }
            }
        }
        self.now = until;
    }

    fn happen(&mut self, event: Event) {
        if let Event::Ended { id, .. } = &event {
            let Some((instance, busy)) = self.instances.iter_mut().find(|(_, (_, busy))| *busy == Some(*id)) else { return };
            let instance = *instance;
            if self.killed.contains(&instance) {
                return;
            }
            busy.1 = None;
            let function = self.open[id];
            if let Some(wanted) = self.wanted.get(&function) {
                let (run, wanted) = (self.run[&function], *wanted);
                self.tell(Event::Measured { id: *id, run, wanted });
            }
            self.answer(*id);
            self.plan(MS, Event::Ready { instance });
        }
        if let Event::Ready { instance } = &event {
            if self.killed.contains(instance) || !self.instances.contains_key(instance) {
                return;
            }
            self.ready.insert(*instance);
        }
        if let Event::Gone { instance } = &event {
            self.ready.remove(instance);
            if self.instances.remove(instance).is_none() {
                return;
            }
        }
        self.tell(event);
    }

    fn tell(&mut self, event: Event) {
        self.engine.handle(self.now, event, &mut self.actions);
        self.act();
    }

    fn act(&mut self) {
        for action in std::mem::take(&mut self.actions) {
            self.perform(action);
        }
        let mib: u64 = self.instances.values().map(|(mib, _)| mib).sum();
        assert!(mib <= self.options.memory_mib && self.instances.len() <= 12, "{mib} MiB, {} instances", self.instances.len());
        let load = self.engine.load();
        assert_eq!((load.memory_mib, load.instances), (mib, u32::try_from(self.instances.len()).unwrap()));
        assert!(load.running <= self.options.concurrency);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start { instance, function, .. } => {
                self.starts += 1;
                let mib = u64::from(self.deployments[&function].memory.mib());
                assert!(self.instances.insert(instance, (mib, None)).is_none());
                let fails = self.rng.random_range(0..1000) < self.faults;
                self.plan(COLD, if fails { Event::Gone { instance } } else { Event::Ready { instance } });
            }
            Action::Kill { instance } => {
                assert!(self.instances.contains_key(&instance) && self.killed.insert(instance), "killed {instance} for nothing");
                self.ready.remove(&instance);
                self.plan(2 * MS, Event::Gone { instance });
            }
            Action::Deliver { id, instance, .. } => {
                assert!(self.ready.contains(&instance) && self.instances[&instance].1.is_none(), "{instance} cannot take {id}");
                let function = self.open[&id];
                self.instances.get_mut(&instance).unwrap().1 = Some(id);
                let run = self.run[&function];
                *self.served.entry(function).or_default() += run;
                self.delivered.push(function);
                let crashes = self.rng.random_range(0..1000) < self.faults;
                let end = Event::Ended { id, end: End::Succeeded, cpu: run };
                self.plan(run, if crashes { Event::Gone { instance } } else { end });
            }
            Action::Refuse { id, refusal } => {
                self.answer(id);
                self.refused.push(refusal);
            }
            Action::Fail { id, end } => {
                self.answer(id);
                self.failed.push(end);
            }
            Action::Serving { version, .. } => self.serving.push(version),
            Action::CannotServe { .. } | Action::LeaseRefused { .. } => {}
            other @ (Action::Place { .. }
            | Action::Demote { .. }
            | Action::LeaseReady { .. }
            | Action::LeaseEnded { .. }
            | Action::Record(_)) => panic!("not an action of this lane: {other:?}"),
        }
    }

    fn answer(&mut self, id: InvocationId) {
        assert!(self.open.remove(&id).is_some(), "answered {id}, which is not open");
    }
}

#[test]
fn instances_are_started_on_demand_and_kept_for_the_next() {
    let mut world = World::new(1, options());
    world.install(deployment(1, "a", 128), 5 * MS);
    assert_eq!((world.starts, world.serving.len()), (0, 1));
    for _ in 0..3 {
        world.arrive(1);
        world.run_for(Duration::from_secs(1));
    }
    assert_eq!((world.starts, world.delivered.len()), (1, 3));
    world.run_for(Duration::from_secs(400));
    assert_eq!(world.engine.load().instances, 0);
}

#[test]
fn tenants_share_the_run_time_whatever_their_runs_and_numbers() {
    let mut world = World::new(1, options());
    world.install(deployment(1, "a", 128), 40 * MS);
    world.install(deployment(2, "a", 128), 40 * MS);
    world.install(deployment(3, "b", 128), 4 * MS);
    for _ in 0..450 {
        world.arrive(1);
        world.arrive(2);
        world.arrive(3);
        world.arrive(3);
    }
    world.run_for(Duration::from_secs(1));
    let served = |key: u64| world.served[&FunctionKey(key)];
    let (first, second) = (served(1) + served(2), served(3));
    assert!(0 < world.engine.load().waiting);
    assert!(first.abs_diff(second) < Duration::from_millis(400), "{first:?} and {second:?}");
    assert!(served(1).abs_diff(served(2)) < Duration::from_millis(400));
}

#[test]
fn a_flood_does_not_keep_the_memory_from_another_tenant() {
    let mut world = World::new(1, Options { concurrency: 100, ..options() });
    world.install(deployment(1, "flood", 256), 20 * MS);
    world.install(deployment(2, "calm", 512), 20 * MS);
    for _ in 0..500 {
        world.arrive(1);
    }
    world.run_for(Duration::from_millis(100));
    world.arrive(2);
    world.run_for(Duration::from_millis(200));
    assert!(world.delivered.contains(&FunctionKey(2)), "its turn came within a cold start and two runs");
}

#[test]
fn a_long_run_that_holds_the_memory_of_one_does_not_stop_the_others() {
    let mut world = World::new(1, options());
    let patient = Deployment { timeout: Duration::from_secs(900), ..deployment(1, "long", 700) };
    world.install(patient, Duration::from_secs(600));
    world.install(deployment(2, "big", 700), 5 * MS);
    world.install(deployment(3, "small", 100), 5 * MS);
    world.arrive(1);
    world.run_for(Duration::from_secs(1));
    world.arrive(2);
    world.arrive(3);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.delivered, [FunctionKey(1), FunctionKey(3)]);
    world.run_for(Duration::from_secs(700));
    assert_eq!(world.delivered.last(), Some(&FunctionKey(2)));
}

#[test]
fn whoever_does_not_start_is_told_so() {
    let mut world = World::new(1, options());
    world.faults = 1000;
    world.install(deployment(1, "a", 128), 5 * MS);
    world.arrive(1);
    world.run_for(Duration::from_secs(2));
    world.arrive(1);
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.refused, [Refusal::Unstartable, Refusal::Unstartable]);
}

#[test]
fn limits_and_timeouts_are_kept() {
    let limits = Limits { per_tenant: 2, total: 3 };
    let mut world = World::new(1, Options { queue: limits, ..options() });
    world.install(deployment(1, "a", 128), Duration::from_secs(5));
    for _ in 0..3 {
        world.arrive(1);
    }
    assert_eq!(world.refused, [Refusal::Busy { limit: 2 }]);
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.failed, [End::Overran, End::Overran]);
}

#[test]
fn a_new_version_serves_when_its_first_instance_is_ready() {
    let mut world = World::new(1, options());
    let mut new = deployment(1, "a", 128);
    world.install(new.clone(), 5 * MS);
    world.arrive(1);
    world.run_for(Duration::from_secs(1));
    new.version = Version(2);
    world.install(new, 5 * MS);
    assert_eq!(world.serving, [Version(1)]);
    world.arrive(1);
    world.run_for(10 * MS);
    assert_eq!(world.delivered.len(), 2, "the old version still serves");
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.serving, [Version(1), Version(2)]);
    assert_eq!(world.engine.load().instances, 1);
}

fn story(seed: u64) {
    let mut world = World::new(seed, options());
    world.faults = 60;
    let sizes = [64, 128, 300, 700];
    for key in 0..5 {
        let (tenant, mib) = (["a", "b"][world.rng.random_range(0..2)], sizes[world.rng.random_range(0..4)]);
        let run = MS * world.rng.random_range(1..60);
        world.install(deployment(key, tenant, mib), run);
        if world.rng.random_bool(0.7) {
            let wanted = run * world.rng.random_range(0..=4) / 4;
            world.wanted.insert(FunctionKey(key), wanted);
        }
    }
    let mut last = None;
    for _ in 0..150 {
        let key = world.rng.random_range(0..5);
        match world.rng.random_range(0..20) {
            0..=14 => last = Some(world.arrive(key)),
            15 => {
                if let Some(id) = last.take().filter(|id| world.open.contains_key(id)) {
                    world.tell(Event::Abandoned { id });
                }
            }
            16 => {
                let mut next = world.deployments[&FunctionKey(key)].clone();
                next.version = Version(next.version.0 + 1);
                world.install(next, 10 * MS);
            }
            17 => world.tell(Event::Remove { function: FunctionKey(key) }),
            _ => {
                let pause = MS * world.rng.random_range(0..100);
                world.run_for(pause);
            }
        }
    }
    world.run_for(Duration::from_secs(60));
    assert!(world.open.is_empty(), "waits although there is room: {:?}", world.open);
    world.tell(Event::Drain);
    assert!(world.engine.is_drained());
}

/// A function of 5 ms runs that was measured once; they want a core for `wanted` of it.
fn measured(wanted: Duration, options: Options) -> World {
    let mut world = World::new(1, options);
    world.install(deployment(1, "a", 64), 5 * MS);
    world.wanted.insert(FunctionKey(1), wanted);
    world.arrive(1);
    world.run_for(Duration::from_secs(1));
    world
}

#[test]
fn a_function_that_computes_gets_as_many_instances_as_there_are_cores() {
    let mut world = measured(5 * MS, options());
    for _ in 0..200 {
        world.arrive(1);
    }
    world.run_for(Duration::from_secs(5));
    assert_eq!((world.starts, world.delivered.len()), (2, 201));
}

#[test]
fn a_function_that_waits_gets_an_instance_for_each_invocation() {
    let mut world = measured(MS, Options { concurrency: 6, ..options() });
    for _ in 0..6 {
        world.arrive(1);
    }
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.starts, 6);
}

#[test]
fn what_was_learned_wrongly_holds_nobody_for_long() {
    let mut world = measured(5 * MS, options());
    world.run.insert(FunctionKey(1), Duration::from_millis(900));
    for _ in 0..4 {
        world.arrive(1);
    }
    world.run_for(COLD * 2);
    assert_eq!(world.delivered.len(), 3, "two more run, on two cores");
    world.run_for(Duration::from_millis(200));
    assert_eq!(world.delivered.len(), 5);
}

#[test]
fn who_is_held_holds_nobody_else() {
    let mut world = measured(5 * MS, options());
    world.install(deployment(2, "b", 64), 5 * MS);
    for _ in 0..500 {
        world.arrive(1);
    }
    world.run_for(COLD * 2);
    world.arrive(2);
    world.run_for(COLD + MS);
    assert!(world.delivered.contains(&FunctionKey(2)), "it took a cold start and no more");
}

#[test]
fn seeded_stories_keep_every_limit_and_answer_everybody() {
    for_each_seed(story);
}
