use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use engine::port::{Deployment, Reservation};
use journal::record::{Counters, Record};
use journal::store::Memory;
use model::{FunctionKey, FunctionName, Level, Time, Version};
use plan::admission::{Budgeted, NodeCapacity, Periodic};
use tokio::task::JoinSet;

use super::*;
use crate::code::{CodeId, Unpack};
use crate::lanes::{Installed, Pending};
use crate::registry::{LastUpdate, State};

const US: Duration = Duration::from_micros(1);

pub(crate) fn capacity() -> NodeCapacity {
    NodeCapacity {
        cores: 2,
        core_limit_thousandths: NodeCapacity::CORE_LIMIT_THOUSANDTHS,
        front_core: 0,
        front_cost: 50 * US,
        front_limit_thousandths: NodeCapacity::FRONT_LIMIT_THOUSANDTHS,
        connection_cost: 20 * US,
        thread_cost: 2 * US,
        front_budgets: vec![Budgeted { rate: "100/s".parse().unwrap(), burst: model::Burst::ONE, cost: 500 * US }],
        tick: Periodic { cost: 5 * US, period: 1_000 * US },
        context_switch: 5 * US,
        real_time_per_second: Duration::from_millis(950),
        starts_per_second: Duration::from_millis(80),
        overshoot: 1_000 * US,
        quota_tick: None,
        tolerance: 2_000 * US,
        level: Level::Hard,
        memory: 2 << 30,
        instances: 200,
    }
}

pub(crate) fn options() -> Options {
    Options {
        capacity: capacity(),
        costs: Costs {
            cold_start_least: Duration::from_millis(50),
            recycle: Duration::from_millis(1),
            python: 100 * US,
            nodejs: 100 * US,
            provided: 100 * US,
        },
        starts: Arc::new(crate::starts::Limits::new(2)),
        outbound: runtime::host::Grant::Yes,
        install_limit: Duration::from_secs(30),
        code_grace: Duration::from_secs(1_000),
        start_width: 4,
    }
}

/// Lanes that install at once, unless the handler is `broken` (cannot serve) or `slow` (never ready).
#[derive(Default)]
pub(crate) struct FakeLanes {
    inner: Mutex<LanesInner>,
}

#[derive(Default)]
struct LanesInner {
    serving: BTreeMap<(FunctionKey, bool), Deployment>,
    routes: BTreeMap<FunctionName, (Standing, Version)>,
    /// K, W and the priority that each function was told, with the names of those that were installed in between.
    told: Vec<String>,
    calls: Vec<String>,
    slowest_start: Duration,
    /// Whose reserve never becomes warm.
    cold: BTreeSet<FunctionKey>,
    /// Where the bounds of what they are told must be already.
    evidence: Arc<Recorded>,
    /// What a crash at the moment of each call leaves.
    crashes: Option<Crashes>,
}

struct Crashes {
    store: Arc<Memory>,
    code: std::path::PathBuf,
    left: Vec<(Memory, BTreeSet<std::ffi::OsString>)>,
}

impl Crashes {
    fn note(&mut self) {
        let names = std::fs::read_dir(&self.code).unwrap().map(|entry| entry.unwrap().file_name());
        self.left.push((self.store.after_crash(), names.collect()));
    }
}

impl LanesInner {
    fn revise(&mut self, function: FunctionKey, reservation: Reservation) {
        let known = self.serving.get_mut(&(function, true)).expect("only what serves is revised");
        let shard = reservation.shards[0];
        self.evidence.check(&known.name, Some(&reservation));
        self.told.push(format!("{} {} {} {}", known.name, shard.instances, shard.warm, shard.priority));
        known.reservation = Some(reservation);
    }
}

impl FakeLanes {
    fn call(&self, text: String) -> std::sync::MutexGuard<'_, LanesInner> {
        let mut inner = self.inner.lock().unwrap();
        inner.calls.push(text);
        if let Some(crashes) = &mut inner.crashes {
            crashes.note();
        }
        inner
    }

    /// The evidence of a world comes before what it tells its lanes.
    fn rests_on(&self, evidence: &Arc<Recorded>) {
        self.inner.lock().unwrap().evidence = Arc::clone(evidence);
    }

    fn route_of(&self, name: &str) -> Option<(Standing, Version)> {
        self.inner.lock().unwrap().routes.get(&name.parse::<FunctionName>().unwrap()).copied()
    }

    fn starts_take(&self, start: Duration) {
        self.inner.lock().unwrap().slowest_start = start;
    }

    /// W of what serves in the guaranteed lane, as the lane was told last.
    fn warm_of(&self, key: FunctionKey) -> u32 {
        let inner = self.inner.lock().unwrap();
        inner.serving[&(key, true)].reservation.as_ref().unwrap().shards.iter().map(|shard| shard.warm).sum()
    }

    fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().unwrap().calls)
    }
}

fn now<T: Send + 'static>(value: T) -> Pending<T> {
    Box::pin(std::future::ready(value))
}

impl Lanes for FakeLanes {
    fn install(
        &self,
        lane: Lane,
        deployment: Deployment,
        image: Arc<Image>,
        beside: Vec<(FunctionKey, Reservation)>,
    ) -> Pending<Result<Installed, Closed>> {
        let mut inner = self.call(format!("install {} {} {lane:?}", deployment.name, deployment.version));
        assert!(image.code.is_dir(), "the code of {} is there", deployment.name);
        inner.told.push(deployment.name.to_string());
        match image.spec.handler.as_str() {
            "main.broken" => now(Ok(Installed::CannotServe { log: "ImportError: no module named nothing".to_owned() })),
            "main.slow" => Box::pin(std::future::pending()),
            _ => {
                inner.evidence.check(&deployment.name, deployment.reservation.as_ref());
                inner.serving.insert((deployment.function, lane == Lane::Guaranteed), deployment);
                for (function, reservation) in beside {
                    inner.revise(function, reservation);
                }
                now(Ok(Installed::Serving))
            }
        }
    }

    fn revise(&self, all: Vec<(FunctionKey, Reservation)>) -> Pending<Result<(), Closed>> {
        let mut inner = self.call(format!("revise {} at once", all.len()));
        for (function, reservation) in all {
            inner.revise(function, reservation);
        }
        now(Ok(()))
    }

    fn warm(&self, function: FunctionKey) -> Pending<Result<Duration, Closed>> {
        let inner = self.inner.lock().unwrap();
        if inner.cold.contains(&function) {
            return Box::pin(std::future::pending());
        }
        now(Ok(inner.slowest_start))
    }

    fn remove(&self, lane: Lane, function: FunctionKey) -> Pending<Result<(), Closed>> {
        self.call(format!("remove {lane:?}")).serving.remove(&(function, lane == Lane::Guaranteed));
        now(Ok(()))
    }

    fn route(&self, name: &FunctionName, route: Option<Route>) -> Pending<Result<(), Closed>> {
        let mut inner = self.call(format!("route {name} {:?}", route.as_ref().map(|route| route.standing)));
        match route {
            Some(route) => inner.routes.insert(name.clone(), (route.standing, route.image.version)),
            None => inner.routes.remove(name),
        };
        now(Ok(()))
    }

    fn pre_invoke(&self, _: FunctionKey, lead: Duration) -> Pending<Result<Lease, LeaseError>> {
        now(Ok(Lease { id: model::LeaseId(7), expires_in: lead * 2 }))
    }

    fn counters(&self) -> Pending<Result<Vec<Counters>, Closed>> {
        let counters = Counters { function: "a".to_owned(), generation: 2, arrivals: 5, conforming: 4, ..Counters::default() };
        now(Ok(vec![counters]))
    }
}

#[derive(Default)]
pub(crate) struct Recorded(Mutex<Vec<Record>>, Mutex<BTreeMap<(FunctionName, u64), [Duration; 3]>>);

impl Evidence for Recorded {
    fn record(&self, record: Record) {
        if let Record::GuaranteeGiven(given) = &record {
            let bounds = [given.start_bound, given.response_bound, given.tolerance];
            self.1.lock().unwrap().insert((given.function.clone(), given.generation), bounds);
        }
        self.0.lock().unwrap().push(record);
    }
}

impl Recorded {
    /// What a lane is told of a function it was given before.
    fn check(&self, name: &FunctionName, told: Option<&Reservation>) {
        let Some(told) = told else { return };
        let given = self.1.lock().unwrap().get(&(name.clone(), told.generation)).copied();
        assert_eq!(given, Some([told.start_bound, told.response_bound, told.tolerance]), "{name} was given what it is told");
    }

    /// "+a2" for a guarantee of generation 2 given to `a`, "-a2 Replaced" for its end.
    fn take(&self) -> Vec<String> {
        let text = |record: Record| match record {
            Record::GuaranteeGiven(given) => Some(format!("+{}{}", given.function, given.generation)),
            Record::GuaranteeEnded(ended) => Some(format!("-{}{} {:?}", ended.function, ended.generation, ended.reason)),
            Record::NodeStarted(_)
            | Record::Invocation(_)
            | Record::ProbeGap { .. }
            | Record::ToleranceRaised { .. }
            | Record::Lost { .. }
            | Record::Counters { .. }
            | Record::NodeStopped { .. } => None,
        };
        std::mem::take(&mut *self.0.lock().unwrap()).into_iter().filter_map(text).collect()
    }
}

/// A clock that advances a second per look.
#[derive(Default)]
pub(crate) struct Ticking(std::sync::atomic::AtomicU64);

impl Clock for Ticking {
    fn now(&self) -> Time {
        Time::from_secs(self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }

    fn since_1970(&self) -> Duration {
        Duration::from_secs(1_700_000_000)
    }
}

pub(crate) struct OneFile;

impl Unpack for OneFile {
    fn unpack(&self, package: &[u8], into: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if package == b"bad" {
            return Err("not a zip archive".into());
        }
        std::fs::create_dir(into)?;
        Ok(std::fs::write(into.join("main.py"), package)?)
    }
}

/// A control plane with fakes around it; dropping it is a crash.
pub(crate) struct World {
    pub(crate) control: Handle,
    pub(crate) lanes: Arc<FakeLanes>,
    pub(crate) evidence: Arc<Recorded>,
    store: Arc<Memory>,
    pub(crate) folder: Arc<tempfile::TempDir>,
    task: JoinSet<()>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::start(Memory::new(), Arc::new(tempfile::tempdir().unwrap()), options()).await
    }

    async fn start(store: Memory, folder: Arc<tempfile::TempDir>, options: Options) -> Self {
        let (store, lanes, evidence) = (Arc::new(store), Arc::new(FakeLanes::default()), Arc::new(Recorded::default()));
        lanes.rests_on(&evidence);
        let parts = Parts {
            store: Arc::<Memory>::clone(&store),
            codes: Codes::open(&folder.path().join("code"), Arc::new(OneFile)).unwrap(),
            lanes: Arc::<FakeLanes>::clone(&lanes),
            evidence: Arc::<Recorded>::clone(&evidence),
            clock: Arc::new(Ticking::default()),
        };
        let (service, control) = Service::new(options, parts).unwrap();
        let mut task = JoinSet::new();
        task.spawn(service.run());
        control.started().await.unwrap();
        Self { control, lanes, evidence, store, folder, task }
    }

    async fn restart(mut self, options: Options) -> Self {
        self.task.shutdown().await;
        Self::start(self.store.after_crash(), self.folder, options).await
    }

    pub(crate) async fn put(&self, spec: FunctionSpec, package: &'static [u8]) -> Result<Arc<Function>, Error> {
        let name = spec.name.clone();
        let change = Change::Put { spec: Box::new(spec), package: Some(Bytes::from_static(package)) };
        self.control.deploy(Deploy { name, change, revision: None, answer: Answer::WhenServing }).await
    }

    pub(crate) fn function(&self, name: &str) -> Arc<Function> {
        Arc::clone(self.control.view().function(&name.parse().unwrap()).unwrap())
    }

    fn has(&self, name: &str) -> bool {
        self.control.view().functions.contains_key(&name.parse::<FunctionName>().unwrap())
    }

    /// Registry, lanes, routes, book and code say the same.
    fn check(&self) {
        let view = self.control.view();
        let inner = self.lanes.inner.lock().unwrap();
        let mut expected = BTreeSet::new();
        for (name, function) in &view.functions {
            assert!(function.pending.is_none(), "{name} is settled");
            assert!(view.functions.len() < 2 || function.state != State::Pending, "{name} is settled");
            let tree = self.folder.path().join("code").join(function.current.code.id.to_string());
            assert!(tree.is_dir(), "the code of {name} is there");
            if function.state != State::Active {
                continue;
            }
            let home = view.homes[name];
            let running = &inner.serving[&(home.key, home.lane == Lane::Guaranteed)];
            assert_eq!(running.version, function.current.version, "{name} serves what the registry says");
            assert_eq!(inner.routes[name].1, function.current.version, "{name} is routed to what serves");
            let wanted = function.current.spec.guarantee.is_some();
            assert_eq!((home.lane == Lane::Guaranteed, view.grant(name).is_some()), (wanted, wanted), "{name}");
            let told = running.reservation.as_ref().map(|it| (it.generation, it.shards.clone(), it.start_bound));
            let booked = view.grant(name).map(|it| reservation(it, function.admitted.unwrap().generation));
            assert_eq!(told, booked.map(|it| (it.generation, it.shards, it.start_bound)), "{name} runs as booked");
            self.evidence.check(name, running.reservation.as_ref());
            expected.insert(home.key);
        }
        let serving: BTreeSet<FunctionKey> = inner.serving.keys().map(|(key, _)| *key).collect();
        assert_eq!(serving, expected, "nothing else serves");
    }
}

pub(crate) fn spec(name: &str, guarantee: &str, handler: &str) -> FunctionSpec {
    let guarantee = if guarantee.is_empty() { String::new() } else { format!("[guarantee]\n{guarantee}") };
    let text =
        format!("name = \"{name}\"\nruntime = \"python3.12\"\nhandler = \"main.{handler}\"\nmemory = \"64MB\"\n{guarantee}");
    model::config::parse(&text).unwrap()
}

const TERMS: &str = "rate = \"20/s\"\nmax_run_time = \"5ms\"\nstart_within = \"60ms\"";
const MORE: &str = "rate = \"40/s\"\nmax_run_time = \"5ms\"\nstart_within = \"50ms\"";
const TOO_MUCH: &str = "rate = \"1000/s\"\nmax_run_time = \"5ms\"";

#[tokio::test]
async fn a_deployed_function_serves_and_is_back_after_a_restart() {
    let world = World::new().await;
    let deployed = world.put(spec("a", TERMS, "h"), b"one").await.unwrap();
    world.put(spec("b", "", "h"), b"one").await.unwrap();
    assert_eq!((deployed.state.clone(), deployed.current.version), (State::Active, Version(1)));
    assert_eq!(world.lanes.route_of("a"), Some((Standing::Guaranteed, Version(1))));
    assert_eq!(world.lanes.route_of("b"), Some((Standing::BestEffort, Version(1))));
    world.check();
    let generation = deployed.admitted.unwrap().generation;
    let world = world.restart(options()).await;
    world.check();
    let again = world.function("a");
    assert_eq!((again.created_ms, &again.current), (deployed.created_ms, &deployed.current));
    assert!(generation < again.admitted.unwrap().generation, "arrivals are counted anew");
}

#[tokio::test]
async fn what_no_instance_could_start_with_is_refused_before_anything_changes() {
    let world = World::new().await;
    let mut reserved = spec("a", "", "h");
    reserved.environment.insert("AWS_REGION".to_owned(), "eu-west-1".to_owned());
    let mut elsewhere = spec("a", "", "h");
    "other.h".clone_into(&mut elsewhere.handler);
    for (spec, said) in [(reserved, "AWS_REGION are reserved"), (elsewhere.clone(), "no other.py for the handler `other.h`")] {
        let error = world.put(spec, b"one").await.unwrap_err();
        assert!(error.explain().contains(said), "{}", error.explain());
        assert!(!world.has("a") && world.lanes.take_calls().is_empty());
    }
    // Code and configuration one by one, as AWS's clients bring them, meet in the end.
    let create = Change::Create { spec: Box::new(elsewhere), package: Bytes::from_static(b"one") };
    let name: FunctionName = "a".parse().unwrap();
    world.control.deploy(Deploy { name, change: create, revision: None, answer: Answer::WhenServing }).await.unwrap();
    world.check();
}

#[tokio::test]
async fn a_refusal_changes_nothing_and_its_offer_is_admitted() {
    let world = World::new().await;
    world.put(spec("a", TERMS, "h"), b"one").await.unwrap();
    let before = world.function("a");
    world.lanes.take_calls();
    let error = world.put(spec("a", TOO_MUCH, "h"), b"two").await.unwrap_err();
    let Error::Refused { source } = &error else { panic!("{error}") };
    assert_eq!(world.function("a"), before);
    assert!(world.lanes.take_calls().is_empty());
    let offer = TOO_MUCH.replace("1000/s", &source.offer.unwrap().to_string());
    world.put(spec("a", &offer, "h"), b"two").await.unwrap();
    world.check();
}

/// A quarter of the node, and somewhat more with what the platform adds.
const QUARTER: &str = "rate = \"100/s\"\nmax_run_time = \"5ms\"\nstart_within = \"400ms\"";

#[tokio::test]
async fn of_eight_that_are_deployed_at_once_as_many_are_admitted_as_of_eight_in_a_row() {
    let row = World::new().await;
    let mut fit = 0;
    for number in 0..8 {
        fit += usize::from(row.put(spec(&format!("f{number}"), QUARTER, "h"), b"one").await.is_ok());
    }
    assert!((1..8).contains(&fit), "some fit and some do not: {fit}");
    let world = World::new().await;
    let mut puts = JoinSet::new();
    for number in 0..8 {
        let (control, spec) = (world.control.clone(), Box::new(spec(&format!("f{number}"), QUARTER, "h")));
        let (name, change) = (spec.name.clone(), Change::Put { spec, package: Some(Bytes::from_static(b"one")) });
        puts.spawn(async move {
            let deploy = Deploy { name: name.clone(), change, revision: None, answer: Answer::WhenServing };
            (name, control.deploy(deploy).await)
        });
    }
    let mut refused = Vec::new();
    while let Some(put) = puts.join_next().await {
        match put.unwrap() {
            (_, Ok(_)) => {}
            (name, Err(Error::Refused { source })) => refused.push((name, source.offer.unwrap())),
            (name, Err(error)) => panic!("{name}: {error}"),
        }
    }
    world.check();
    assert_eq!((world.control.view().book.grants().len(), refused.len()), (fit, 8 - fit));
    assert!(refused.iter().all(|(name, _)| !world.has(name.as_str())), "a refused one leaves nothing");
    let (name, offer) = &refused[0];
    let offered = QUARTER.replace("100/s", &offer.to_string());
    world.put(spec(name.as_str(), &offered, "h"), b"one").await.unwrap();
    world.check();
}

#[tokio::test]
async fn a_version_that_cannot_serve_leaves_the_old_one_with_its_guarantee() {
    let world = World::new().await;
    world.put(spec("n", TERMS, "h"), b"one").await.unwrap();
    let before = world.put(spec("a", TERMS, "h"), b"one").await.unwrap();
    let grant = world.control.view().grant(&before.current.spec.name).cloned();
    world.evidence.take();
    let error = world.put(spec("a", MORE, "broken"), b"two").await.unwrap_err();
    assert!(error.to_string().contains("ImportError"), "{error}");
    let after = world.function("a");
    assert_eq!((&after.current, after.admitted, &after.state), (&before.current, before.admitted, &State::Active));
    assert!(matches!(&after.last_update, LastUpdate::Failed { reason } if reason.contains("ImportError")));
    assert_eq!(world.control.view().grant(&before.current.spec.name), grant.as_ref());
    let evidence = world.evidence.take();
    assert_eq!(evidence.len(), 2, "the new guarantee is given and taken back: {evidence:?}");
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_never_ready_gives_way_to_the_old_one() {
    let world = World::new().await;
    world.put(spec("a", TERMS, "h"), b"one").await.unwrap();
    let error = world.put(spec("a", TERMS, "slow"), b"two").await.unwrap_err();
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
    assert_eq!(world.function("a").current.spec.handler, "main.h");
    world.check();
}

#[tokio::test]
async fn a_first_version_that_cannot_serve_is_gone_or_failed_as_its_caller_was_told() {
    let world = World::new().await;
    world.put(spec("a", TERMS, "broken"), b"one").await.unwrap_err();
    assert!(!world.has("a"));
    let create = Deploy {
        name: "a".parse().unwrap(),
        change: Change::Create { spec: Box::new(spec("a", TERMS, "broken")), package: Bytes::from_static(b"one") },
        revision: None,
        answer: Answer::WhenAdmitted,
    };
    let kept = world.control.deploy(create).await.unwrap();
    assert_eq!(kept.state, State::Pending);
    // The queue is served in order: once this is answered, the deployment before it has ended.
    world.control.delete_rate_class("none".parse().unwrap()).await.unwrap_err();
    assert!(matches!(&world.function("a").state, State::Failed { reason } if reason.contains("ImportError")));
    assert!(world.control.view().book.grants().is_empty());
    world.check();
    world.put(spec("a", TERMS, "h"), b"two").await.unwrap();
    world.check();
}

#[tokio::test]
async fn a_withdrawn_guarantee_moves_the_function_make_before_break() {
    let world = World::new().await;
    let given = world.put(spec("a", TERMS, "h"), b"one").await.unwrap().admitted.unwrap().generation;
    world.lanes.take_calls();
    world.evidence.take();
    let name: FunctionName = "a".parse().unwrap();
    world.control.set_guarantee(&name, None).await.unwrap();
    let calls = ["install a v2 BestEffort", "route a Some(BestEffort)", "remove Guaranteed"];
    assert_eq!(world.lanes.take_calls(), calls);
    assert_eq!(world.evidence.take(), [format!("-a{given} Withdrawn")]);
    world.check();
    world.control.set_guarantee(&name, spec("a", MORE, "h").guarantee).await.unwrap();
    world.check();
    let again = world.function("a").admitted.unwrap().generation;
    assert_eq!(world.evidence.take(), [format!("+a{again}")]);
}

#[tokio::test]
async fn new_code_keeps_the_guarantee_and_its_generation() {
    let world = World::new().await;
    let before = world.put(spec("a", TERMS, "h"), b"one").await.unwrap();
    world.evidence.take();
    let after = world.put(spec("a", TERMS, "h"), b"two").await.unwrap();
    assert_eq!((after.current.version, after.admitted), (Version(2), before.admitted));
    assert!(world.evidence.take().is_empty());
    let replaced = world.put(spec("a", MORE, "h"), b"two").await.unwrap();
    let (old, new) = (before.admitted.unwrap(), replaced.admitted.unwrap());
    assert_eq!(old.order, new.order);
    assert_eq!(world.evidence.take(), [format!("+a{}", new.generation), format!("-a{} Replaced", old.generation)]);
}

#[tokio::test]
async fn a_label_changes_without_touching_instances() {
    let world = World::new().await;
    let before = world.put(spec("a", TERMS, "h"), b"one").await.unwrap();
    world.lanes.take_calls();
    let edit: Edit = Box::new(|spec| {
        spec.tags.insert("team".to_owned(), "blue".to_owned());
        Ok(())
    });
    let deploy = |revision, edit| Deploy {
        name: "a".parse().unwrap(),
        change: Change::Edit(edit),
        revision: Some(revision),
        answer: Answer::WhenServing,
    };
    let stale = world.control.deploy(deploy(before.revision + 1, Box::new(|_| Ok(())))).await.unwrap_err();
    assert!(matches!(stale, Error::Revision { .. }), "{stale}");
    let after = world.control.deploy(deploy(before.revision, edit)).await.unwrap();
    assert_eq!(after.current.spec.tags["team"], "blue");
    assert_eq!(world.lanes.take_calls(), ["route a Some(Guaranteed)"]);
    world.check();
}

#[tokio::test]
async fn neighbours_are_told_their_new_numbers() {
    let world = World::new().await;
    world.put(spec("calm", "rate = \"5/s\"\nmax_run_time = \"20ms\"\nstart_within = \"500ms\"", "h"), b"one").await.unwrap();
    let calm = format!("+calm{}", world.function("calm").admitted.unwrap().generation);
    for number in 0..4 {
        world.put(spec(&format!("busy{number}"), TERMS, "h"), b"one").await.unwrap();
        world.check();
    }
    assert!(world.evidence.take()[1..].contains(&calm), "its bounds grew, and it was given them");
    world.control.delete(&"busy1".parse().unwrap(), None).await.unwrap();
    world.check();
    world.put(spec("busy2", MORE, "h"), b"one").await.unwrap();
    world.check();
    let error = world.put(spec("busy9", TERMS, "broken"), b"one").await.unwrap_err();
    assert!(matches!(error, Error::CannotServe { .. }), "{error}");
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_version_that_comes_back_has_the_numbers_that_its_neighbours_left_it() {
    let world = World::new().await;
    let calm = "rate = \"5/s\"\nmax_run_time = \"20ms\"\nstart_within = \"500ms\"";
    world.put(spec("calm", calm, "h"), b"one").await.unwrap();
    for number in 0..4 {
        world.put(spec(&format!("busy{number}"), TERMS, "h"), b"one").await.unwrap();
    }
    let error = world.put(spec("calm", calm, "slow"), b"two").await.unwrap_err();
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
    world.check();
}

#[tokio::test]
async fn an_update_waits_until_its_neighbours_are_ready_for_it() {
    let world = World::start(
        Memory::new(),
        Arc::new(tempfile::tempdir().unwrap()),
        Options { capacity: NodeCapacity { cores: 1, ..capacity() }, ..options() },
    )
    .await;
    let neighbour = "rate = \"200/s\"\nmax_run_time = \"1ms\"\nstart_within = \"100ms\"";
    let heavy = |start_within: &str| format!("rate = \"5/s\"\nmax_run_time = \"40ms\"\nstart_within = \"{start_within}\"");
    world.put(spec("n", neighbour, "h"), b"one").await.unwrap();
    world.put(spec("f", &heavy("300ms"), "h"), b"one").await.unwrap();
    let told = |world: &World| std::mem::take(&mut world.lanes.inner.lock().unwrap().told);
    let shard = |world: &World| world.control.view().grant(&"n".parse().unwrap()).unwrap().shards[0];
    let (before, _) = (shard(&world), told(&world));
    // Now `f` comes first, and `n` waits for it.
    world.put(spec("f", &heavy("50ms"), "h"), b"one").await.unwrap();
    let after = shard(&world);
    assert!(before.warm < after.warm && after.priority < before.priority, "{before:?} {after:?}");
    let line = |priority| format!("n {} {} {priority}", after.instances, after.warm);
    assert_eq!(told(&world), [line(before.priority), "f".to_owned(), line(after.priority)]);
    let calls = world.lanes.take_calls();
    let last = calls.iter().rev().take_while(|call| !call.starts_with("install f")).collect::<Vec<_>>();
    assert_eq!(last, ["route f Some(Guaranteed)"], "`n` made way as `f` began to serve: {calls:?}");
    world.check();
    // Where that cannot be written down, everybody has what he had.
    world.put(spec("f", &heavy("300ms"), "h"), b"one").await.unwrap();
    told(&world);
    world.store.fail_after(1);
    world.put(spec("f", &heavy("50ms"), "h"), b"one").await.unwrap_err();
    assert_eq!(shard(&world), before);
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_that_never_becomes_ready_is_named_soon_and_what_served_serves_as_before() {
    let one_core = Options { capacity: NodeCapacity { cores: 1, ..capacity() }, ..options() };
    let world = World::start(Memory::new(), Arc::new(tempfile::tempdir().unwrap()), one_core).await;
    let heavy = |start_within: &str| format!("rate = \"5/s\"\nmax_run_time = \"40ms\"\nstart_within = \"{start_within}\"");
    world.put(spec("n", "rate = \"200/s\"\nmax_run_time = \"1ms\"\nstart_within = \"100ms\"", "h"), b"one").await.unwrap();
    world.put(spec("f", &heavy("300ms"), "h"), b"one").await.unwrap();
    let (name, neighbour): (FunctionName, FunctionName) = ("f".parse().unwrap(), "n".parse().unwrap());
    let before = world.control.view().grant(&neighbour).unwrap().clone();
    let key = world.control.view().homes[&neighbour].key;
    world.lanes.inner.lock().unwrap().cold.insert(key);
    world.lanes.take_calls();
    world.evidence.take();
    let begun = tokio::time::Instant::now();
    let update = world.put(spec("f", &heavy("50ms"), "h"), b"one");
    let (update, _) = tokio::join!(update, world.control.starts_slower(name.clone(), Duration::ZERO));
    let error = update.unwrap_err();
    assert!(matches!(&error, Error::NeighbourNotReady { neighbour, .. } if neighbour.as_str() == "n"), "{error}");
    assert!(begun.elapsed() < options().install_limit, "whoever came after it went on: {:?}", begun.elapsed());
    assert!(!world.lanes.take_calls().iter().any(|call| call.starts_with("install")), "the old version is not touched");
    assert_eq!(world.control.view().grant(&neighbour).unwrap(), &before);
    let evidence = world.evidence.take();
    assert!(
        evidence.iter().all(|line| line.starts_with("+n")),
        "nothing was given to `f`, and nothing of it ended: {evidence:?}"
    );
    world.check();
    world.control.delete(&neighbour, None).await.unwrap();
    world.put(spec("f", &heavy("50ms"), "h"), b"one").await.unwrap();
    world.check();
}

const LONG: &str = "rate = \"10/s\"\nmax_run_time = \"1s\"\ncpu = 0.01\nstart_within = \"500ms\"";

#[tokio::test]
async fn the_warm_reserve_rests_on_the_starts_that_were_seen_and_survives_a_restart() {
    let world = World::new().await;
    world.lanes.starts_take(Duration::from_millis(150));
    world.put(spec("f", LONG, "h"), b"one").await.unwrap();
    let warm = |world: &World| world.lanes.warm_of(world.control.view().homes[&"f".parse().unwrap()].key);
    let name = "f".parse().unwrap();
    assert_eq!(world.control.view().grant(&name).unwrap().demand.cold_start, Duration::from_millis(300));
    assert_eq!(warm(&world), 3, "ten a second, for twice 150 ms");
    let again = world.restart(options()).await;
    assert_eq!(warm(&again), 3);
    again.check();
}

#[tokio::test]
async fn a_start_that_becomes_slower_is_admitted_again() {
    let world = World::new().await;
    world.put(spec("f", LONG, "h"), b"one").await.unwrap();
    let name: FunctionName = "f".parse().unwrap();
    let before = world.control.view().grant(&name).unwrap().clone();
    let revision = world.function("f").revision;
    world.control.starts_slower(name.clone(), Duration::from_millis(250)).await.unwrap();
    let after = world.control.view().grant(&name).unwrap().clone();
    assert_eq!(after.demand.cold_start, Duration::from_millis(500));
    assert!(before.warm() < after.warm());
    assert_eq!(world.lanes.warm_of(world.control.view().homes[&name].key), after.warm(), "the lane was told");
    assert_eq!(world.function("f").revision, revision, "nobody changed the function");
    // A faster one says nothing.
    world.control.starts_slower(name.clone(), Duration::from_millis(10)).await.unwrap();
    assert_eq!(*world.control.view().grant(&name).unwrap(), after);
    world.check();
    let again = world.restart(options()).await;
    assert_eq!(again.control.view().grant(&name).unwrap().demand, after.demand);
}

#[tokio::test]
async fn a_rise_of_the_tolerance_suspends_what_no_longer_fits_visibly() {
    let world = World::new().await;
    let tight = "rate = \"20/s\"\nmax_run_time = \"5ms\"\nstart_within = \"20ms\"";
    world.put(spec("tight", tight, "h"), b"one").await.unwrap();
    world.put(spec("calm", "rate = \"5/s\"\nmax_run_time = \"5ms\"\nstart_within = \"500ms\"", "h"), b"one").await.unwrap();
    let [generation, other] = ["tight", "calm"].map(|name| world.function(name).admitted.unwrap().generation);
    world.evidence.take();
    let suspended = world.control.tolerance_raised(Duration::from_millis(30)).await.unwrap();
    assert_eq!(suspended, ["tight".parse().unwrap()]);
    assert!(matches!(&world.function("tight").state, State::Suspended { reason } if reason.contains("30ms")));
    assert_eq!(world.lanes.route_of("tight").unwrap().0, Standing::Suspended);
    assert_eq!(world.evidence.take(), [format!("-tight{generation} Suspended"), format!("+calm{other}")]);
    world.check();
    let lower = world.restart(options()).await;
    assert_eq!(lower.function("tight").state, State::Active, "it fits again");
    lower.check();
}

#[tokio::test]
async fn after_a_restart_on_less_the_first_admitted_come_first() {
    let world = World::new().await;
    for name in ["z-first", "a-second"] {
        world.put(spec(name, TERMS, "h"), b"one").await.unwrap();
    }
    let instances = world.control.view().grant(&"z-first".parse().unwrap()).unwrap().instances();
    let mut less = options();
    less.capacity.instances = instances;
    let world = world.restart(less).await;
    assert_eq!(world.function("z-first").state, State::Active);
    assert!(matches!(world.function("a-second").state, State::Suspended { .. }));
    assert_eq!(world.lanes.route_of("a-second").unwrap().0, Standing::Suspended);
    world.check();
}

#[tokio::test]
async fn without_evidence_no_guarantee_is_given_but_code_is_replaced() {
    let world = World::new().await;
    world.put(spec("a", TERMS, "h"), b"one").await.unwrap();
    world.control.evidence(Gate::Shut { reason: "the disk is full".to_owned() }).unwrap();
    let error = world.put(spec("b", TERMS, "h"), b"one").await.unwrap_err();
    assert!(matches!(error, Error::NoEvidence { .. }), "{error}");
    world.put(spec("b", "", "h"), b"one").await.unwrap();
    world.put(spec("a", TERMS, "h"), b"two").await.unwrap();
    world.put(spec("a", MORE, "h"), b"two").await.unwrap_err();
    world.control.evidence(Gate::Open).unwrap();
    world.put(spec("a", MORE, "h"), b"two").await.unwrap();
    world.check();
}

fn class(rate: &str) -> RateClass {
    RateClass { name: "c".parse().unwrap(), rate: rate.parse().unwrap(), burst: model::Burst::ONE }
}

/// Functions `a` and `b` that share 20/s, beside `n`.
async fn sharing() -> World {
    let world = World::new().await;
    let member = "rate_class = \"c\"\nmax_run_time = \"5ms\"";
    assert!(matches!(world.put(spec("a", member, "h"), b"one").await, Err(Error::NoRateClass { .. })));
    world.control.put_rate_class(class("10/s")).await.unwrap();
    world.control.put_rate_class(class("20/s")).await.unwrap();
    world.put(spec("n", TERMS, "h"), b"one").await.unwrap();
    for name in ["a", "b"] {
        world.put(spec(name, member, "h"), b"one").await.unwrap();
    }
    world
}

#[tokio::test]
async fn a_rate_class_is_shared_and_does_not_go_while_functions_use_it() {
    let world = sharing().await;
    world.control.delete_rate_class("c".parse().unwrap()).await.unwrap_err();
    let world = world.restart(options()).await;
    world.check();
    for name in ["a", "b"] {
        world.control.delete(&name.parse().unwrap(), None).await.unwrap();
    }
    world.control.delete_rate_class("c".parse().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_rate_class_changes_for_all_its_members_at_once_and_stays_so() {
    let world = sharing().await;
    world.evidence.take();
    for rate in ["60/s", "20/s"] {
        let before = ["a", "b"].map(|name| world.function(name).admitted.unwrap());
        world.lanes.take_calls();
        world.control.put_rate_class(class(rate)).await.unwrap();
        world.check();
        let after = ["a", "b"].map(|name| world.function(name).admitted.unwrap());
        assert_eq!(after.map(|it| it.order), before.map(|it| it.order), "they keep their places");
        let calls = world.lanes.take_calls();
        let mut revised = calls.iter().filter(|call| call.starts_with("revise")).peekable();
        assert!(revised.peek().is_some() && revised.all(|call| call == "revise 2 at once"), "{calls:?}");
        let [a, b] = [0, 1].map(|at| (before[at].generation, after[at].generation));
        let told = [format!("+a{}", a.1), format!("+b{}", b.1), format!("-a{} Replaced", a.0), format!("-b{} Replaced", b.0)];
        assert_eq!(world.evidence.take(), told);
        let grant = world.control.view().grant(&"b".parse().unwrap()).unwrap().clone();
        assert_eq!(grant.demand.rate_class, Some(class(rate)));
    }
    let world = world.restart(options()).await;
    world.check();
    assert_eq!(world.control.view().rate_classes.values().next(), Some(&class("20/s")));
}

#[tokio::test]
async fn a_class_that_does_not_fit_is_refused_whole_and_its_offer_fits() {
    let world = sharing().await;
    let book = |world: &World| world.control.view().book.grants().to_vec();
    let (before, _) = (book(&world), world.lanes.take_calls());
    let Err(Error::Refused { source }) = world.control.put_rate_class(class("5000/s")).await else { panic!("it does not fit") };
    assert_eq!((book(&world), world.lanes.take_calls()), (before, vec![]), "{source}");
    world.check();
    let offer = source.offer.unwrap();
    world.control.put_rate_class(class(&offer.to_string())).await.unwrap();
    world.check();
}

#[tokio::test(start_paused = true)]
async fn replaced_code_goes_once_nothing_can_run_it() {
    let mut world = World::new().await;
    world.put(spec("a", "", "h"), b"one").await.unwrap();
    world.put(spec("a", "", "h"), b"two").await.unwrap();
    world.put(spec("b", "", "h"), b"bad").await.unwrap_err();
    let kept = |world: &World| {
        let there = |package: &[u8]| world.folder.path().join("code").join(CodeId::of(package).to_string()).is_dir();
        (there(b"one"), there(b"two"))
    };
    assert_eq!(kept(&world), (true, true));
    let mut short = options();
    short.code_grace = Duration::ZERO;
    world = world.restart(short).await;
    assert_eq!(kept(&world), (false, true));
    world.put(spec("a", "", "h"), b"one").await.unwrap();
    // The queue is served in order, and code is collected after every operation.
    world.control.delete(&"none".parse().unwrap(), None).await.unwrap_err();
    world.control.delete(&"none".parse().unwrap(), None).await.unwrap_err();
    assert_eq!(kept(&world), (true, false));
}

/// One of each: what the two tests below break at every step.
async fn story(world: &World, step: usize) -> Result<(), Error> {
    let name: FunctionName = "a".parse().unwrap();
    match step {
        0 => world.put(spec("new", TERMS, "h"), b"two").await.map(|_| ()),
        1 => world.put(spec("a", MORE, "h"), b"two").await.map(|_| ()),
        2 => world.control.set_guarantee(&name, None).await.map(|_| ()),
        3 => world.put(spec("a", MORE, "broken"), b"two").await.map(|_| ()),
        4 => world.control.delete(&name, None).await,
        _ => world.put(spec("b", MORE, "h"), b"two").await.map(|_| ()),
    }
}

const STEPS: usize = 6;

async fn before_story() -> World {
    let world = World::new().await;
    world.put(spec("a", TERMS, "h"), b"one").await.unwrap();
    world.put(spec("b", "", "h"), b"one").await.unwrap();
    world
}

#[tokio::test]
async fn whatever_write_fails_every_function_is_wholly_old_or_new() {
    for step in 0..STEPS {
        for fail_after in 0.. {
            let world = before_story().await;
            let before = world.control.view().functions.clone();
            world.store.fail_after(fail_after);
            let outcome = story(&world, step).await;
            if world.store.failure_is_pending() {
                break;
            }
            world.check();
            let after = world.control.view().functions.clone();
            if outcome.is_err() {
                let specs = |functions: &BTreeMap<FunctionName, Arc<Function>>| -> Vec<FunctionSpec> {
                    functions.values().map(|function| function.current.spec.clone()).collect()
                };
                assert_eq!(specs(&after), specs(&before), "step {step}, write {fail_after}: an error changed something");
            }
            world.restart(options()).await.check();
        }
    }
}

#[tokio::test]
async fn whenever_it_crashes_a_restart_finds_the_old_or_the_new() {
    for step in 0..STEPS {
        let world = before_story().await;
        let old = world.control.view().functions.clone();
        let code = world.folder.path().join("code");
        let crashes = Crashes { store: Arc::clone(&world.store), code: code.clone(), left: Vec::new() };
        world.lanes.inner.lock().unwrap().crashes = Some(crashes);
        let _outcome = story(&world, step).await;
        let new = world.control.view().functions.clone();
        let crashes = world.lanes.inner.lock().unwrap().crashes.take().unwrap().left;
        for (crashed, names) in crashes {
            // The restarts before this one may have collected what was there.
            let codes = Codes::open(&code, Arc::new(OneFile)).unwrap();
            let packages = [b"one", b"two"].map(|package| codes.add(package).unwrap().id);
            let there = |id: &CodeId| names.contains(std::ffi::OsStr::new(&id.to_string()));
            codes.collect(&packages.into_iter().filter(there).collect()).unwrap();
            let again = World::start(crashed, Arc::clone(&world.folder), options()).await;
            again.check();
            for (name, function) in &again.control.view().functions {
                let spec = &function.current.spec;
                let known = |functions: &BTreeMap<FunctionName, Arc<Function>>| {
                    functions.get(name).is_some_and(|it| it.current.spec == *spec)
                };
                assert!(known(&old) || known(&new), "step {step}: {name} is neither old nor new");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_closing_node_gives_up_an_installation_and_the_old_version_is_back_after_it() {
    let world = World::new().await;
    world.put(spec("a", TERMS, "h"), b"one").await.unwrap();
    let (outcome, ()) = tokio::join!(world.put(spec("a", TERMS, "slow"), b"two"), async {
        tokio::time::timeout(Duration::from_secs(5), std::future::pending::<()>()).await.unwrap_err();
        assert!(world.function("a").is_in_progress());
        let conflict = world.control.delete(&"a".parse().unwrap(), None).await.unwrap_err();
        assert!(matches!(conflict, Error::InProgress { .. }), "{conflict}");
        world.control.shutdown();
    });
    assert!(matches!(outcome, Err(Error::Closing)));
    let world = world.restart(options()).await;
    assert_eq!(world.function("a").current.spec.handler, "main.h");
    assert!(matches!(world.function("a").last_update, LastUpdate::Failed { .. }));
    world.check();
}

/// One step of a random life: an operation on one of three functions, perhaps with a write that fails, perhaps a restart.
type Step = (u8, u8, Option<u8>, bool);

async fn random_step(world: &World, operation: u8, name: u8) -> Result<(), Error> {
    let text = format!("f{name}");
    let name: FunctionName = text.parse().unwrap();
    match operation {
        0 => world.put(spec(&text, TERMS, "h"), b"one").await.map(|_| ()),
        1 => world.put(spec(&text, MORE, "h"), b"two").await.map(|_| ()),
        2 => world.put(spec(&text, "", "h"), b"two").await.map(|_| ()),
        3 => world.put(spec(&text, MORE, "broken"), b"two").await.map(|_| ()),
        4 => world.put(spec(&text, TOO_MUCH, "h"), b"two").await.map(|_| ()),
        5 => world.control.set_guarantee(&name, None).await.map(|_| ()),
        6 => world.control.set_guarantee(&name, spec(&text, TERMS, "h").guarantee).await.map(|_| ()),
        _ => world.control.delete(&name, None).await,
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]
    #[test]
    fn whatever_happens_registry_lanes_routes_book_and_code_agree(
        steps in proptest::collection::vec(proptest::prelude::any::<Step>(), 1..10),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for (operation, name, failing, restarts) in steps {
                if let Some(calls) = failing {
                    world.store.fail_after(u64::from(calls % 6));
                }
                // Which of the steps fail does not matter here; what they leave does.
                let _outcome = random_step(&world, operation % 8, name % 3).await;
                world.check();
                if restarts {
                    world = world.restart(options()).await;
                    world.check();
                }
            }
        });
    }
}
