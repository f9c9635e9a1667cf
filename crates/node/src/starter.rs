//! Starts instances for a lane, on a thread that is below every instance that serves.
//!
//! A lane orders and is told: making a sandbox takes milliseconds, and changing the class of threads means reading a
//! directory. Starts run beside each other; the launcher does their slow parts in the new processes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use engine::port::Placement;
use model::{FunctionName, FunctionSpec, InstanceId, Outbound, Runtime};
use plan::quota::Quota;
use runtime::bootstrap;
use runtime::environment::{self, Credentials, Initialization};
use runtime::forward::{self, Policy, Sockets};
use runtime::host::Grant;
use runtime::launcher::{self, Client, Exit, Launch};
use runtime::sandbox::{self, BOOTSTRAP as CLIENTS, CODE, Interpreter, Network};
use runtime::sys::clock;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::budget::Budget;
use crate::calibrate::Classes;
use crate::capacity;
use crate::instance::{Running, StartFailure};
use crate::lambda::Home;
use crate::lane::links::{NewInstance, Order};
use crate::lane::message::News;
use crate::lanes::Image;
use crate::runtime_cost::Costs;
use crate::scribe;
use crate::starts::{Nursery, Standing};

/// Starts of guaranteed instances per second that the guaranteed lane's admission accounts for.
pub(crate) const STARTS_PER_SECOND: u32 = 40;
/// Starts that begin at once; later ones wait their turn.
pub(crate) const STARTS_AT_ONCE: u32 = 1;
/// The shortest wait for what makers used to be over.
const PAUSE_LEAST: Duration = Duration::from_millis(1);
/// Forwarders that may wait to be started.
pub(crate) const NETWORKS_MAX: usize = 256;

/// What instances are made from, on this machine.
#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) python: Result<Interpreter, String>,
    pub(crate) nodejs: Result<Interpreter, String>,
    /// Where our runtime clients lie on the host.
    pub(crate) clients: PathBuf,
    pub(crate) home: Home,
    /// What AWS SDKs inside an instance find; nothing of this node accepts them.
    pub(crate) credentials: Credentials,
    /// The kernel's numbers of the cores, in admission's order.
    pub(crate) cores: Vec<u16>,
    pub(crate) network: NetworkKit,
}

/// What a forwarder has to know of this machine.
#[derive(Clone, Debug)]
pub(crate) struct NetworkKit {
    /// Whether this machine lets the node forward at all.
    pub(crate) given: Grant,
    pub(crate) own: SocketAddr,
    pub(crate) upstream: Option<SocketAddr>,
}

/// A device whose packets are to be forwarded until `ends` resolves.
pub(crate) struct NetworkOrder {
    tun: OwnedFd,
    function: FunctionName,
    on: Placement,
    policy: Arc<Policy>,
    ends: oneshot::Receiver<()>,
}

/// The starter's ends of its queues.
pub(crate) struct Ends {
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) news: mpsc::Sender<News>,
    pub(crate) scribe: mpsc::Sender<scribe::Order>,
    pub(crate) networks: mpsc::Sender<NetworkOrder>,
}

/// Serves a lane's orders until its queue closes or the launcher is gone. Without a nursery every start is of ordinary class.
pub(crate) async fn run(
    (client, mut service): (Client, Pin<&mut impl Future<Output = io::Error>>),
    (kit, nursery, shares): (Arc<Kit>, Option<Nursery>, Shares),
    mut ends: Ends,
) -> io::Result<()> {
    let nursery = Arc::new(nursery);
    let maker = Maker { client, kit, nursery: Arc::clone(&nursery), shares };
    let mut work = JoinSet::new();
    if nursery.is_some() {
        let nursery = Arc::clone(&nursery);
        work.spawn(async move {
            if let Some(nursery) = nursery.as_ref() {
                nursery.look_after_makers().await;
            }
        });
    }
    let mut starts = Budget::new(STARTS_PER_SECOND, STARTS_AT_ONCE);
    let mut queue: Queue<NewInstance> = Queue::default();
    loop {
        tokio::select! {
            error = &mut service => return Err(error),
            () = turn(&starts, &queue, nursery.as_ref().as_ref()) => {
                if let Some(start) = queue.next() {
                    if start.is_wanted() {
                        // The turn has come just now.
                        let _ = starts.spend(clock::now());
                        // A lane that is gone needs no news.
                        let _ = ends.news.send(News::Begun { instance: start.instance }).await;
                        work.spawn(maker.make(start, &ends));
                    } else {
                        // A lane that is gone needs no news.
                        let _ = ends.news.send(News::NotStarted { instance: start.instance }).await;
                    }
                }
            }
            order = ends.orders.recv() => match order {
                None => return Ok(()),
                Some(Order::Start(start)) => match start.on {
                    Placement::RealTime { .. } => queue.add(start.image.spec.name.clone(), start),
                    Placement::BestEffort => drop(work.spawn(maker.make(start, &ends))),
                },
                Some(Order::Place { instance, running, on }) => {
                    let classes = maker.shares.classes;
                    let placed = match (on, classes) {
                        // Of ordinary class it is already; its core and its quota go on to bound what it takes.
                        (Placement::BestEffort, Classes::Ordinary) => Ok(Vec::new()),
                        (Placement::RealTime { .. }, Classes::RealTime) => running.serve_as(maker.kit.placement(on, classes)),
                        (Placement::RealTime { .. }, Classes::Ordinary) | (Placement::BestEffort, Classes::RealTime) => {
                            running.serve_as(maker.kit.placement(on, classes)).map(|_| Vec::new())
                        }
                    };
                    match placed {
                        Ok(threads) => drop(ends.news.send(News::Placed { instance, on, threads }).await),
                        // An instance that cannot have its class must not be used; its death is told by itself.
                        Err(_) => running.kill(),
                    }
                }
            },
            Some(_) = work.join_next() => {}
        }
    }
}

/// Starts that wait for their turn, of each function in order. The turns go round: whoever wants many, or one again and again,
/// delays each of the others by one start.
#[derive(Debug)]
struct Queue<T> {
    waiting: BTreeMap<FunctionName, VecDeque<T>>,
    last: Option<FunctionName>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), last: None }
    }
}

impl<T> Queue<T> {
    fn add(&mut self, function: FunctionName, start: T) {
        self.waiting.entry(function).or_default().push_back(start);
    }

    fn next(&mut self) -> Option<T> {
        let behind = |last: &FunctionName| {
            let range = (Bound::Excluded(last.clone()), Bound::Unbounded);
            self.waiting.range(range).next().map(|(function, _)| function.clone())
        };
        let function = self.last.as_ref().and_then(behind).or_else(|| self.waiting.keys().next().cloned())?;
        let of_function = self.waiting.get_mut(&function)?;
        let start = of_function.pop_front();
        if of_function.is_empty() {
            self.waiting.remove(&function);
        }
        self.last = Some(function);
        start
    }
}

/// Ends when the next start may begin; never while none waits. Safe to drop at any point.
async fn turn<T>(starts: &Budget, queue: &Queue<T>, nursery: Option<&Nursery>) {
    if queue.waiting.is_empty() {
        return std::future::pending().await;
    }
    if let Err(at) = starts.check(clock::now()) {
        tokio::time::sleep(at.since(clock::now())).await;
    }
    while let Some(Err(at)) = nursery.map(Nursery::charge_makers) {
        tokio::time::sleep(at.since(clock::now()).max(PAUSE_LEAST)).await;
    }
}

/// What every start is made with.
struct Maker {
    client: Client,
    kit: Arc<Kit>,
    nursery: Arc<Option<Nursery>>,
    shares: Shares,
}

impl Maker {
    /// Makes an instance, tells its lane, and looks after it until its start is over.
    fn make(&self, wanted: NewInstance, ends: &Ends) -> impl Future<Output = ()> + use<> {
        let (client, kit, nursery, shares) = (self.client.clone(), Arc::clone(&self.kit), Arc::clone(&self.nursery), self.shares);
        let (news, scribe, networks) = (ends.news.clone(), ends.scribe.clone(), ends.networks.clone());
        async move {
            let NewInstance { instance, image, on, .. } = wanted;
            let nursed = Nursed::begin(nursery.as_ref().as_ref(), on);
            let began = clock::now();
            let made = start(&client, &kit, (instance, &image, on, shares), nursed.as_ref(), (&scribe, &networks)).await;
            match made {
                Ok((running, exit, listener)) => {
                    let watched = Arc::downgrade(&running);
                    // From here on it is the lane's, which kills it by dropping it. A lane that is gone needs no news;
                    // dropping them kills the instance.
                    let _ = news.send(News::Started { instance, running, listener, exit, began }).await;
                    if let Some(Nursed { nursery, core, standing }) = nursed {
                        nursery.look_after(watched, core, standing).await;
                    }
                }
                Err(failure) => drop(news.send(News::StartFailed { instance, failure }).await),
            }
        }
    }
}

/// A start that may be at real-time class.
struct Nursed<'a> {
    nursery: &'a Nursery,
    core: u16,
    standing: Standing,
}

impl<'a> Nursed<'a> {
    fn begin(nursery: Option<&'a Nursery>, on: Placement) -> Option<Self> {
        match (nursery, on) {
            (Some(nursery), Placement::RealTime { core, .. }) => {
                Some(Self { nursery, core, standing: nursery.standing(core, Standing::Ordinary) })
            }
            (None, Placement::RealTime { .. }) | (_, Placement::BestEffort) => None,
        }
    }
}

/// An instance whose program runs.
type Made = (Arc<Running>, oneshot::Receiver<Exit>, TcpListener);

async fn start(
    client: &Client,
    kit: &Kit,
    (instance, image, on, shares): (InstanceId, &Image, Placement, Shares),
    nursed: Option<&Nursed<'_>>,
    (scribe, networks): (&mpsc::Sender<scribe::Order>, &mpsc::Sender<NetworkOrder>),
) -> Result<Made, StartFailure> {
    let mut launch = kit.launch(instance, image, (on, shares))?;
    if let Some(Nursed { nursery, core, standing }) = nursed {
        launch.placement = nursery.placement(*core, *standing);
    }
    let started = client.start(&launch).await.map_err(|source| StartFailure::Launch { source })?;
    if let Some(Nursed { nursery, core, standing: Standing::RealTime }) = nursed {
        let timing = started.timing;
        nursery.charge(*core, timing.mounts + timing.confine + timing.exec);
    }
    let (meter, memory) = (started.cpu_meter(), started.memory_meter());
    let network = match started.tun {
        None => None,
        Some(tun) => {
            let (ends_with, ends) = oneshot::channel();
            let policy = Arc::new(kit.policy(image.spec.outbound.clone()));
            // Without a forwarder its packets go nowhere, as on a machine whose network is down.
            let _ = networks.send(NetworkOrder { tun, function: image.spec.name.clone(), on, policy, ends }).await;
            Some(ends_with)
        }
    };
    let (function, output, errors) = (image.spec.name.clone(), started.stdout, started.stderr);
    let follow = scribe::Order::Follow { instance, function, output, errors, memory };
    scribe.try_send(follow).map_err(|_| StartFailure::Scribe)?;
    let running = Arc::new(Running::new(started.handle, started.program, meter, network));
    Ok((running, started.exit, started.listener))
}

impl Kit {
    pub(crate) fn launch(
        &self,
        instance: InstanceId,
        image: &Image,
        (on, shares): (Placement, Shares),
    ) -> Result<Launch, StartFailure> {
        let classes = shares.classes;
        let runtime = image.spec.runtime;
        let program = bootstrap::program(runtime, Path::new(CLIENTS), Path::new(CODE));
        let program = program.to_string_lossy().into_owned();
        let (argv, extra) = match self.interpreter(runtime)? {
            Some(interpreter) => {
                let path = interpreter.program.to_string_lossy().into_owned();
                let arguments = bootstrap::interpreter_arguments(runtime).iter().map(|argument| (*argument).to_owned());
                let argv = std::iter::once(path).chain(arguments).chain(std::iter::once(program)).collect();
                (argv, interpreter.paths.clone())
            }
            None => (vec![program], Vec::new()),
        };
        Ok(Launch {
            argv,
            env: self.environment(instance, image, on)?,
            code: image.code.clone(),
            bootstrap: Some(self.clients.clone()),
            extra,
            memory: image.spec.memory,
            pids: launcher::PIDS_DEFAULT,
            tmp_bytes: launcher::TMP_BYTES_DEFAULT,
            placement: match (on, classes) {
                // The class it serves with comes once it is ready: a start at that one would be in the way of others.
                (Placement::RealTime { core, .. }, Classes::RealTime) => launcher::Placement::Pinned { core: self.cpu(core) },
                (Placement::RealTime { .. }, Classes::Ordinary) | (Placement::BestEffort, _) => self.placement(on, classes),
            },
            quota: match (on, classes) {
                (Placement::RealTime { .. }, Classes::Ordinary) => shares.quota(&image.spec),
                (Placement::RealTime { .. }, Classes::RealTime) | (Placement::BestEffort, _) => None,
            },
            network: match (&image.spec.outbound, &self.network.given) {
                (Outbound::None, _) | (Outbound::Unstated, Grant::No { .. }) => Network::Loopback,
                (Outbound::All | Outbound::Only(_), _) | (Outbound::Unstated, Grant::Yes) => Network::Tun,
            },
        })
    }

    fn environment(&self, instance: InstanceId, image: &Image, on: Placement) -> Result<BTreeMap<String, String>, StartFailure> {
        let (address, port) = sandbox::RUNTIME_API;
        let variables = environment::variables(&environment::Instance {
            spec: &image.spec,
            version: "$LATEST",
            initialization: match on {
                Placement::RealTime { .. } => Initialization::Provisioned,
                Placement::BestEffort => Initialization::OnDemand,
            },
            region: &self.home.region,
            credentials: &self.credentials,
            log_stream: &instance.to_string(),
            runtime_api: &format!("{address}:{port}"),
            code: Path::new(CODE),
            clients: Path::new(CLIENTS),
        });
        variables.map_err(|source| StartFailure::Environment { source })
    }

    fn interpreter(&self, runtime: Runtime) -> Result<Option<&Interpreter>, StartFailure> {
        let found = match runtime {
            Runtime::Python => &self.python,
            Runtime::NodeJs => &self.nodejs,
            Runtime::Provided => return Ok(None),
        };
        match found {
            Ok(interpreter) => Ok(Some(interpreter)),
            Err(reason) => Err(StartFailure::NoInterpreter { runtime, reason: reason.clone() }),
        }
    }

    /// Admission numbers the cores it may use from 0; the kernel has its own numbers.
    fn cpu(&self, core: u16) -> u16 {
        self.cores.get(usize::from(core)).copied().unwrap_or(core)
    }

    fn placement(&self, on: Placement, classes: Classes) -> launcher::Placement {
        match (on, classes) {
            // Its class comes with each invocation.
            (Placement::RealTime { core, .. }, Classes::RealTime) => launcher::Placement::Resting { core: self.cpu(core) },
            (Placement::RealTime { core, .. }, Classes::Ordinary) => launcher::Placement::Weighted { core: self.cpu(core) },
            (Placement::BestEffort, _) => launcher::Placement::BestEffort,
        }
    }

    fn policy(&self, outbound: Outbound) -> Policy {
        let (resolver, network) = (sandbox::TUN_RESOLVER, &self.network);
        Policy::new(outbound, resolver, network.upstream, network.own, forward::is_this_machine)
    }
}

/// How the instances of guaranteed functions get their CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    pub(crate) classes: Classes,
    /// What runtimes cost around a handler; `None` where no instance has a guarantee.
    pub(crate) costs: Option<Costs>,
}

impl Shares {
    /// The CPU share of a guaranteed function as a quota on its instances: what admission charges an invocation, in its run
    /// time.
    fn quota(&self, spec: &FunctionSpec) -> Option<launcher::Quota> {
        let costs = self.costs?;
        let terms = spec.guarantee.as_ref()?.resolve(spec.timeout).ok()?;
        let cost = match spec.runtime {
            Runtime::Python => costs.python,
            Runtime::NodeJs => costs.nodejs,
            Runtime::Provided => costs.provided,
        };
        let Quota { runtime, period } = Quota::new(capacity::charged(&terms, cost), terms.max_run_time)?;
        Some(launcher::Quota { runtime, period })
    }
}

/// Runs forwarders, with so many sockets at most, until the queue of orders closes. Half of the sockets are for functions with a
/// guarantee, so that nothing best effort does takes them.
pub(crate) async fn forward(mut orders: mpsc::Receiver<NetworkOrder>, sockets: usize) {
    let mut running = JoinSet::new();
    let guaranteed = Sockets::new(sockets.div_ceil(2));
    let best_effort = Sockets::new(sockets / 2);
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                None => return,
                Some(NetworkOrder { tun, function, on, policy, ends }) => {
                    let share = match on {
                        Placement::RealTime { .. } => guaranteed.share(function),
                        Placement::BestEffort => best_effort.share(function),
                    };
                    running.spawn(async move {
                        tokio::select! {
                            _ = forward::run(tun, policy, share) => {}
                            _ = ends => {}
                        }
                    });
                }
            },
            Some(_) = running.join_next() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_wants_many_instances_delays_another_function_by_one_start() {
        let name = |text: &str| text.parse::<FunctionName>().unwrap();
        let mut queue = Queue::default();
        (0..100).for_each(|nth| queue.add(name("many"), ("many", nth)));
        assert_eq!(queue.next(), Some(("many", 0)));
        queue.add(name("one"), ("one", 0));
        queue.add(name("a"), ("a", 0));
        let turns: Vec<(&str, i32)> = (0..5).filter_map(|_| queue.next()).collect();
        assert_eq!(turns, [("one", 0), ("a", 0), ("many", 1), ("many", 2), ("many", 3)]);
    }

    #[tokio::test]
    async fn no_turn_comes_while_no_start_waits() {
        let mut queue = Queue::default();
        queue.add("one".parse().unwrap(), 1);
        queue.next().unwrap();
        assert_eq!(queue.next(), None);
        let starts = Budget::new(STARTS_PER_SECOND, STARTS_AT_ONCE);
        let waits = tokio::time::timeout(Duration::ZERO, turn(&starts, &queue, None)).await;
        waits.unwrap_err();
    }
}
