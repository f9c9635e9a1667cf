//! The control plane: deployments, admission and everything that changes what a node promises, one at a time.
//!
//! One task owns the registry and the book of reservations; callers hold a [`Handle`] whose queue is bounded, and read
//! published [`View`]s without waiting. The lanes run what they are told, the registry remembers.
//!
//! Invariants. A refused or failed change leaves what served before serving, with its guarantee. What is acknowledged is
//! in the store. The evidence of a guarantee is handed over before anything can run under it. At any instant the store
//! alone says what a restart brings up, and that is the old state or the new one of every function, never a mixture.

mod class;
mod deploy;
mod error;
mod remove;
mod start;
#[cfg(test)]
pub(crate) mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::port::{Deployment, Reservation, Shard};
use journal::record::{Counters, EndedBecause, GuaranteeEnded, GuaranteeGiven, Record};
use journal::store::Store;
use model::{FunctionKey, FunctionName, FunctionSpec, RateClass, RateClassName, Runtime, Terms, Time};
use plan::admission::{Binding, Book, Grant, NodeCapacity};
use tokio::sync::{mpsc, oneshot, watch};

pub use error::Error;
pub use view::{Gate, Home, Phase, View};

use crate::code::{CodeId, Codes};
use crate::lanes::{Closed, Image, Lane, Lanes, Lease, LeaseError, Route, Standing};
use crate::registry::{self, Change as Entry, Deployed, Function, Registry};

/// Operations that may wait for the control plane.
pub const MAX_WAITING: usize = 64;

/// What admission counts for every function beside its own terms, as measured on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// L_cold is never taken for less, however fast the starts were.
    pub cold_start_least: Duration,
    /// From the end of an invocation until its instance can take the next.
    pub recycle: Duration,
    /// CPU a runtime uses per invocation around its handler, as measured with a margin.
    pub python: Duration,
    pub nodejs: Duration,
    pub provided: Duration,
}

impl Costs {
    pub(crate) const fn instance_cost(&self, runtime: Runtime) -> Duration {
        match runtime {
            Runtime::Python => self.python,
            Runtime::NodeJs => self.nodejs,
            Runtime::Provided => self.provided,
        }
    }
}

/// What the control plane is told at start.
#[derive(Clone, Debug)]
pub struct Options {
    pub capacity: NodeCapacity,
    pub costs: Costs,
    /// Where starters find what starts may use of the cores.
    pub starts: Arc<crate::starts::Limits>,
    /// Whether functions can be given outbound connections.
    pub outbound: runtime::host::Grant,
    /// How long an installation may take until it counts as failed.
    pub install_limit: Duration,
    /// How long code stays on disk after its version was replaced: longer than any invocation of it can last.
    pub code_grace: Duration,
    /// Functions brought up at the same time after a restart, at least 1.
    pub start_width: usize,
}

/// What dates records and entries.
pub trait Clock: Send + Sync + 'static {
    /// Now, on the clock of the records. Called at every change.
    fn now(&self) -> Time;

    /// The time since 1970. Called at every change.
    fn since_1970(&self) -> Duration;
}

/// Where evidence goes.
pub trait Evidence: Send + Sync + 'static {
    /// Hands a record over, in order with all others of the control plane; must not block. Called at every change of a
    /// guarantee, before anything can run under it.
    fn record(&self, record: Record);
}

/// What the control plane acts on.
#[derive(Clone)]
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub codes: Codes,
    pub lanes: Arc<dyn Lanes>,
    pub evidence: Arc<dyn Evidence>,
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("codes", &self.codes).finish_non_exhaustive()
    }
}

/// Why the control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot read the registry")]
    Registry { source: registry::Error },
    #[error("the node has no room for its own work: {binding}")]
    NoRoom { binding: Binding },
}

/// Changes a specification, or says why it cannot be changed so.
pub type Edit = Box<dyn FnOnce(&mut FunctionSpec) -> Result<(), Error> + Send>;

/// What a deployment changes.
pub enum Change {
    /// A function that must not exist yet.
    Create { spec: Box<FunctionSpec>, package: Bytes },
    /// A function that may exist; without a package it keeps its code.
    Put { spec: Box<FunctionSpec>, package: Option<Bytes> },
    /// New code of a function that exists.
    Code { package: Bytes },
    /// New configuration, terms or tags of a function that exists.
    Edit(Edit),
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Create { .. } => "Create",
            Self::Put { .. } => "Put",
            Self::Code { .. } => "Code",
            Self::Edit(_) => "Edit",
        })
    }
}

/// One deployment.
#[derive(Debug)]
pub struct Deploy {
    pub name: FunctionName,
    pub change: Change,
    /// The revision the caller saw; another one refuses the change.
    pub revision: Option<u64>,
    pub answer: Answer,
}

/// When a deployment is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// As soon as it is admitted and kept; a new function whose instances then do not start stays, as failed.
    WhenAdmitted,
    /// When it serves; a new function whose instances do not start is gone again.
    WhenServing,
}

enum Command {
    Deploy { deploy: Box<Deploy>, accepted: Option<oneshot::Sender<Arc<Function>>>, done: Reply<()> },
    Delete { name: FunctionName, revision: Option<u64>, done: Reply<()> },
    PutRateClass { class: RateClass, done: Reply<()> },
    DeleteRateClass { class: RateClassName, done: Reply<()> },
    StartsSlower { function: FunctionName, start: Duration, done: Reply<()> },
    RaiseTolerance { tolerance: Duration, done: Reply<Vec<FunctionName>> },
    Gate(Gate),
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// The way to the control plane; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<View>>,
    closing: Arc<watch::Sender<bool>>,
    lanes: Arc<dyn Lanes>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// The last published state.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Ends when the functions of before the restart are up, or could not be brought up.
    pub async fn started(&self) -> Result<(), Error> {
        let mut view = self.view.clone();
        view.wait_for(|view| view.phase == Phase::Running).await.map(|_| ()).map_err(|_| Error::Closing)
    }

    /// Deploys, and answers with the function as it is then: see [`Answer`].
    pub async fn deploy(&self, deploy: Deploy) -> Result<Arc<Function>, Error> {
        self.refuse_during_update(&deploy.name)?;
        let (name, answer) = (deploy.name.clone(), deploy.answer);
        let (accepted, kept) = oneshot::channel();
        let (done, served) = oneshot::channel();
        let accepted = match answer {
            Answer::WhenAdmitted => Some(accepted),
            Answer::WhenServing => None,
        };
        self.send(Command::Deploy { deploy: Box::new(deploy), accepted, done })?;
        if answer == Answer::WhenAdmitted
            && let Ok(function) = kept.await
        {
            return Ok(function);
        }
        // It was refused before it was kept, or took effect at once, or the caller waits for the end.
        served.await.map_err(|_| Error::Closing)??;
        Ok(Arc::clone(self.view().function(&name)?))
    }

    /// Gives a function these terms, or takes its guarantee away with `None`; ends when that is in force.
    pub async fn set_guarantee(&self, name: &FunctionName, terms: Option<Terms>) -> Result<Arc<Function>, Error> {
        let edit: Edit = Box::new(move |spec| {
            spec.guarantee = terms;
            Ok(())
        });
        self.deploy(Deploy { name: name.clone(), change: Change::Edit(edit), revision: None, answer: Answer::WhenServing }).await
    }

    /// Ends when the function is gone from the registry and its lane.
    pub async fn delete(&self, name: &FunctionName, revision: Option<u64>) -> Result<(), Error> {
        self.refuse_during_update(name)?;
        self.ask(|done| Command::Delete { name: name.clone(), revision, done }).await
    }

    /// Makes a rate class, or changes one that no function uses.
    pub async fn put_rate_class(&self, class: RateClass) -> Result<(), Error> {
        self.ask(|done| Command::PutRateClass { class, done }).await
    }

    pub async fn delete_rate_class(&self, class: RateClassName) -> Result<(), Error> {
        self.ask(|done| Command::DeleteRateClass { class, done }).await
    }

    /// T was measured above its frozen value: everything is admitted again. Answers those that are suspended now.
    pub async fn tolerance_raised(&self, tolerance: Duration) -> Result<Vec<FunctionName>, Error> {
        self.ask(|done| Command::RaiseTolerance { tolerance, done }).await
    }

    /// A function's instances were seen to take longer to start than admission counts: its reserve grows.
    pub async fn starts_slower(&self, function: FunctionName, start: Duration) -> Result<(), Error> {
        self.ask(|done| Command::StartsSlower { function, start, done }).await
    }

    /// The evidence cannot be written, or can again: no guarantee is given in between.
    pub fn evidence(&self, gate: Gate) -> Result<(), Error> {
        self.send(Command::Gate(gate))
    }

    /// Holds a started instance of a function.
    pub async fn pre_invoke(&self, name: &FunctionName, lead: Duration) -> Result<Result<Lease, LeaseError>, Error> {
        let home = self.home(name)?;
        Ok(self.lanes.pre_invoke(home.key, lead).await)
    }

    /// The live counters of the guaranteed lane.
    pub async fn counters(&self) -> Result<Vec<Counters>, Error> {
        self.lanes.counters().await.map_err(|Closed| Error::Closing)
    }

    /// Operations that wait for the control plane now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        MAX_WAITING.saturating_sub(self.commands.capacity())
    }

    /// Ends the control plane: what it is installing is given up, what waits is refused.
    pub fn shutdown(&self) {
        self.closing.send_replace(true);
    }

    fn home(&self, name: &FunctionName) -> Result<Home, Error> {
        let view = self.view();
        view.homes.get(name).copied().ok_or_else(|| Error::NoFunction { function: name.clone() })
    }

    fn refuse_during_update(&self, name: &FunctionName) -> Result<(), Error> {
        let view = self.view();
        if view.phase == Phase::Starting {
            return Err(Error::Starting);
        }
        match view.functions.get(name) {
            Some(function) if function.is_in_progress() => Err(Error::InProgress { function: name.clone() }),
            Some(_) | None => Ok(()),
        }
    }

    fn send(&self, command: Command) -> Result<(), Error> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Busy { limit: MAX_WAITING },
            mpsc::error::TrySendError::Closed(_) => Error::Closing,
        })
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (done, answer) = oneshot::channel();
        self.send(command(done))?;
        answer.await.unwrap_or(Err(Error::Closing))
    }
}

/// What a lane runs of a function.
#[derive(Clone, Debug)]
struct Running {
    key: FunctionKey,
    lane: Lane,
    image: Arc<Image>,
    deployment: Deployment,
}

/// The task that serialises every change.
pub struct Service {
    options: Options,
    parts: Parts,
    registry: Registry,
    book: Arc<Book>,
    gate: Gate,
    phase: Phase,
    running: BTreeMap<FunctionName, Running>,
    next_key: u64,
    /// Replaced code that invocations may still use, with the instant of its replacement.
    retired: Vec<(CodeId, Time)>,
    code_problem: Option<String>,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<Arc<View>>,
    closing: watch::Receiver<bool>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("running", &self.running).field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl Service {
    /// Reads the registry; nothing runs before [`Service::run`]. Blocks on the disk.
    pub fn new(options: Options, parts: Parts) -> Result<(Self, Handle), StartError> {
        let registry = Registry::load(Arc::clone(&parts.store)).map_err(|source| StartError::Registry { source })?;
        let book = Arc::new(Book::new(options.capacity.clone()).map_err(|binding| StartError::NoRoom { binding })?);
        let (sender, commands) = mpsc::channel(MAX_WAITING);
        let (closing_sender, closing) = watch::channel(false);
        let first = View {
            functions: registry.functions().clone(),
            homes: BTreeMap::new(),
            rate_classes: registry.rate_classes().clone(),
            book: Arc::clone(&book),
            gate: Gate::Open,
            phase: Phase::Starting,
            code_problem: None,
            costs: options.costs,
        };
        let (view, views) = watch::channel(Arc::new(first));
        let lanes = Arc::clone(&parts.lanes);
        let handle = Handle { commands: sender, view: views, closing: Arc::new(closing_sender), lanes };
        let service = Self {
            options,
            parts,
            registry,
            book,
            gate: Gate::Open,
            phase: Phase::Starting,
            running: BTreeMap::new(),
            next_key: 1,
            retired: Vec::new(),
            code_problem: None,
            commands,
            view,
            closing,
        };
        Ok((service, handle))
    }

    /// Brings up what the registry holds, then does one operation after the other until [`Handle::shutdown`].
    pub async fn run(mut self) {
        let mut closing = self.closing.clone();
        if self.start().await.is_err() {
            return; // the lanes closed: nothing more can be served
        }
        let mut collect = tokio::time::interval(Duration::from_secs(60));
        loop {
            tokio::select! {
                biased;
                () = until_closing(&mut closing) => return,
                command = self.commands.recv() => match command {
                    Some(command) => self.execute(command).await,
                    None => return,
                },
                _ = collect.tick() => {}
            }
            self.collect_code().await;
        }
    }

    async fn execute(&mut self, command: Command) {
        // A caller that went away does not need its answer.
        let _gone = match command {
            Command::Deploy { deploy, accepted, done } => {
                let outcome = self.deploy(*deploy, accepted).await;
                self.publish();
                done.send(outcome).is_err()
            }
            Command::Delete { name, revision, done } => done.send(self.delete(&name, revision).await).is_err(),
            Command::PutRateClass { class, done } => done.send(self.put_rate_class(class).await).is_err(),
            Command::DeleteRateClass { class, done } => done.send(self.delete_rate_class(class).await).is_err(),
            Command::StartsSlower { function, start, done } => done.send(self.starts_slower(&function, start).await).is_err(),
            Command::RaiseTolerance { tolerance, done } => done.send(self.raise_tolerance(tolerance).await).is_err(),
            Command::Gate(gate) => {
                self.gate = gate;
                self.publish();
                false
            }
        };
    }

    fn publish(&self) {
        let home = |(name, running): (&FunctionName, &Running)| (name.clone(), Home { key: running.key, lane: running.lane });
        self.view.send_replace(Arc::new(View {
            functions: self.registry.functions().clone(),
            homes: self.running.iter().map(home).collect(),
            rate_classes: self.registry.rate_classes().clone(),
            book: Arc::clone(&self.book),
            gate: self.gate.clone(),
            phase: self.phase,
            code_problem: self.code_problem.clone(),
            costs: self.options.costs,
        }));
    }

    fn new_key(&mut self) -> FunctionKey {
        self.next_key += 1;
        FunctionKey(self.next_key)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.parts.clock.since_1970().as_millis()).unwrap_or(u64::MAX)
    }

    async fn commit(&mut self, changes: Vec<Entry>) -> Result<(), Error> {
        self.registry.commit(changes).await.map_err(|source| Error::Registry { source })?;
        self.publish();
        Ok(())
    }

    /// Writes down what happened already; when the store cannot take it now, it is written with the next change.
    async fn note(&mut self, changes: Vec<Entry>) {
        if self.registry.commit(changes.clone()).await.is_err() {
            self.registry.force(changes);
        }
        self.publish();
    }

    fn image(&self, deployed: &Deployed) -> Arc<Image> {
        Arc::new(Image {
            spec: deployed.spec.clone(),
            version: deployed.version,
            code: self.parts.codes.tree(&deployed.code.id),
            code_sha256: deployed.code.id.base64(),
        })
    }

    async fn route(&self, name: &FunctionName, route: Option<Route>) {
        // Lanes that closed route nothing any more.
        let _closing = self.parts.lanes.route(name, route).await;
    }

    async fn route_to(&self, name: &FunctionName, running: &Running) {
        let standing = match running.lane {
            Lane::Guaranteed => Standing::Guaranteed,
            Lane::BestEffort => Standing::BestEffort,
        };
        self.route(name, Some(Route { key: running.key, standing, image: Arc::clone(&running.image) })).await;
    }

    /// Tells the guaranteed lane the numbers that differ between two books, but for `except`. Bounds that its verdicts rest on are in
    /// the evidence before.
    async fn revise(&self, told: &Book, next: &Book, except: Option<&FunctionName>) -> Result<(), Error> {
        match self.revised(told, next, except) {
            none if none.is_empty() => Ok(()),
            all => self.parts.lanes.revise(all).await.map_err(|Closed| Error::Closing),
        }
    }

    /// What that tells, to whom, in the order in which nobody is above others too early; their bounds are in the evidence.
    fn revised(&self, told: &Book, next: &Book, except: Option<&FunctionName>) -> Vec<(FunctionKey, Reservation)> {
        let revised = |grant: &Grant| {
            let name = &grant.demand.function;
            let (running, generation) = (self.running.get(name)?, self.generation(name)?);
            if told.grant(name).is_none_or(|told| !has_bounds_of(told, grant)) {
                self.record_given(grant, generation);
            }
            Some((running.key, reservation(grant, generation)))
        };
        changed(told, next, except).into_iter().filter_map(revised).collect()
    }

    fn generation(&self, name: &FunctionName) -> Option<u64> {
        self.registry.get(name).and_then(|function| function.admitted).map(|admitted| admitted.generation)
    }

    fn record_given(&self, grant: &Grant, generation: u64) {
        self.parts.evidence.record(Record::GuaranteeGiven(Box::new(GuaranteeGiven {
            at: self.parts.clock.now(),
            function: grant.demand.function.clone(),
            generation,
            terms: grant.demand.terms.clone(),
            rate_class: grant.demand.rate_class.clone(),
            level: grant.level,
            start_bound: grant.start_bound,
            response_bound: grant.response_bound,
            tolerance: grant.tolerance,
        })));
    }

    fn record_ended(&self, function: &FunctionName, generation: u64, reason: EndedBecause) {
        let at = self.parts.clock.now();
        self.parts.evidence.record(Record::GuaranteeEnded(GuaranteeEnded { at, function: function.clone(), generation, reason }));
    }

    /// Removes code that nothing refers to and nothing can still be running.
    async fn collect_code(&mut self) {
        let now = self.parts.clock.now();
        let grace = self.options.code_grace;
        let waiting = self.retired.len();
        self.retired.retain(|(_, since)| now.since(*since) < grace);
        if self.retired.len() < waiting {
            self.collect_now().await;
        }
    }

    async fn collect_now(&mut self) {
        let referred = self.registry.functions().values().flat_map(|function| {
            let pending = function.pending.iter().map(|deployed| deployed.code.id);
            pending.chain([function.current.code.id])
        });
        let retired = self.retired.iter().map(|(id, _)| *id);
        let keep: BTreeSet<CodeId> = referred.chain(retired).collect();
        let codes = self.parts.codes.clone();
        let outcome = tokio::task::spawn_blocking(move || codes.collect(&keep)).await;
        let problem = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if problem != self.code_problem {
            self.code_problem = problem;
            self.publish();
        }
    }

    /// Remembers that code is no longer referred to by `deployed`, so that it goes once nothing can run it any more.
    fn retire(&mut self, deployed: &Deployed) {
        self.retired.push((deployed.code.id, self.parts.clock.now()));
    }
}

/// Ends when the node is to stop, or when nobody is left who could say so.
async fn until_closing(closing: &mut watch::Receiver<bool>) {
    let _stop = closing.wait_for(|closing| *closing).await;
}

/// The grants of `next` that differ from `told`, in an order in which no two priorities swap on the way: falling ones from
/// the least urgent, then rising ones from the most urgent.
fn changed<'a>(told: &Book, next: &'a Book, except: Option<&FunctionName>) -> Vec<&'a Grant> {
    let top = |grant: &Grant| grant.shards.iter().map(|shard| shard.priority).max().unwrap_or(0);
    let (mut falling, mut rising) = (Vec::new(), Vec::new());
    for grant in next.grants().iter().filter(|grant| except != Some(&grant.demand.function)) {
        match told.grant(&grant.demand.function) {
            Some(old) if old == grant => {}
            Some(old) if top(grant) < top(old) => falling.push(grant),
            Some(_) | None => rising.push(grant),
        }
    }
    falling.sort_by_key(|grant| top(grant));
    rising.sort_by_key(|grant| std::cmp::Reverse(top(grant)));
    falling.into_iter().chain(rising).collect()
}

/// Of the changed ones those whose warm reserve is larger in `next`.
fn with_larger_reserve(told: &Book, next: &Book, except: Option<&FunctionName>) -> Vec<FunctionName> {
    let larger = |grant: &&Grant| told.grant(&grant.demand.function).is_some_and(|old| old.warm() < grant.warm());
    changed(told, next, except).into_iter().filter(larger).map(|grant| grant.demand.function.clone()).collect()
}

/// Whether an invocation has the same verdict under both.
fn has_bounds_of(one: &Grant, other: &Grant) -> bool {
    let bounds = |grant: &Grant| (grant.start_bound, grant.response_bound, grant.tolerance);
    bounds(one) == bounds(other)
}

fn reservation(grant: &Grant, generation: u64) -> Reservation {
    let shard = |shard: &plan::admission::Shard| Shard {
        core: shard.core,
        priority: shard.priority,
        instances: shard.instances,
        warm: shard.warm,
    };
    Reservation {
        terms: grant.demand.terms.clone(),
        generation,
        rate_class: grant.demand.rate_class.clone(),
        level: grant.level,
        shards: grant.shards.iter().map(shard).collect(),
        start_bound: grant.start_bound,
        response_bound: grant.response_bound,
        tolerance: grant.tolerance,
    }
}

fn deployment(key: FunctionKey, deployed: &Deployed, reservation: Option<Reservation>) -> Deployment {
    Deployment {
        function: key,
        name: deployed.spec.name.clone(),
        tenant: deployed.spec.tenant.clone(),
        version: deployed.version,
        memory: deployed.spec.memory,
        timeout: deployed.spec.timeout,
        reservation,
    }
}
