//! A node, put together: its queues, its threads, and the order in which they start and stop.
//!
//! Every thread ends when the queue it serves closes. Stopping therefore means: have the lanes drain, then drop the ends that
//! feed them, and join.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{reserved, shared};
use journal::record::{NodeStarted, Record};
use model::{FunctionName, InvocationId, Time};
use plan::admission::NodeCapacity;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use runtime::environment::Credentials;
use runtime::host::{Grant, Protection};
use runtime::launcher::{self, Serves, Standing};
use runtime::sandbox::{self, Language};
use runtime::sys::{clock, sched};
use runtime::{bootstrap, package};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::calibrate::{Classes, Measured};
use crate::code::{Codes, Unpack};
use crate::control::{self, Clock, Evidence, Gate};
use crate::descriptors::{Connections, Instances};
use crate::door::{self, Exits};
use crate::front::Front;
use crate::handle::{COMMANDS_MAX, Handle};
use crate::keyring::{Keyring, Rotations};
use crate::lane::links::{Links, ORDERS_MAX, Order, RESULTS_MAX};
use crate::lane::message::{Command, Moved, News, Traffic};
use crate::lane::{self, Inbox, Machine, Rendering, Start, ThreadPlacement};
use crate::lanes::Lane;
use crate::logs::{self, Appender};
use crate::management::{self, DataSource, EvidenceHealth, Host, Report, Usage};
use crate::probe::{Gap, Probes, Pulses};
use crate::protections::Protections;
use crate::recorder::{self, Health};
use crate::registry::State;
use crate::serve::{Error, Life, Options, Ready, Stop};
use crate::starter::{self, Ends, Kit, NETWORKS_MAX, NetworkKit, NetworkOrder, Shares};
use crate::starts::{self, Limits, Nursery};
use crate::store::Sqlite;
use crate::threads::Threads;
use crate::{backup, calibrate, capacity, manage, runtime_cost, scribe};

/// News that may wait for a lane.
const NEWS_MAX: usize = 4_096;
/// Requests that still run may end within this time after the node was told to stop.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// How often the state of evidence and tolerance is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// No start of an instance is counted on to be faster.
const COLD_START_LEAST: Duration = Duration::from_millis(50);
/// By how much T rises above what was seen, as a share of it: a half.
const RISE_MARGIN: u32 = 2;

/// A node with everything that was found out before it starts.
pub(crate) struct Node {
    pub(crate) options: Options,
    pub(crate) data: PathBuf,
    pub(crate) front: Arc<Front>,
    pub(crate) address: SocketAddr,
    pub(crate) classes: Classes,
    pub(crate) cores: Vec<u16>,
    pub(crate) measured: Measured,
    pub(crate) capacity: NodeCapacity,
    pub(crate) instances: Instances,
    /// Whether functions can be given outbound connections.
    pub(crate) outbound: Grant,
}

/// The receiving and sending ends of one lane's queues, before they are handed out.
struct Queues {
    commands: (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    news: (mpsc::Sender<News>, mpsc::Receiver<News>),
    traffic: (mpsc::Sender<Traffic>, mpsc::Receiver<Traffic>),
    results: (mpsc::Sender<Box<Rendering>>, mpsc::Receiver<Box<Rendering>>),
    orders: mpsc::Sender<Order>,
}

impl Queues {
    /// A lane's queues, and where its starter finds its orders.
    fn new(connections: Connections) -> (Self, mpsc::Receiver<Order>) {
        let (orders, for_starter) = mpsc::channel(ORDERS_MAX);
        let queues = Self {
            commands: mpsc::channel(COMMANDS_MAX),
            news: mpsc::channel(NEWS_MAX),
            traffic: mpsc::channel(connections.hand_overs as usize),
            results: mpsc::channel(RESULTS_MAX),
            orders,
        };
        (queues, for_starter)
    }

    /// For the other lane.
    fn entrance(&self) -> ToOther {
        (self.traffic.0.clone(), self.results.0.clone())
    }
}

/// What one lane hands to the other.
type ToOther = (mpsc::Sender<Traffic>, mpsc::Sender<Box<Rendering>>);

/// What several threads share of a running node.
struct Common {
    scribe: mpsc::Sender<scribe::Order>,
    networks: mpsc::Sender<NetworkOrder>,
    management: mpsc::Sender<Moved>,
    kit: Arc<Kit>,
    limits: Arc<Limits>,
    seen_ns: Arc<AtomicU64>,
    pulses: Arc<Pulses>,
}

impl Node {
    /// Starts everything, serves until told to stop, and stops everything.
    pub(crate) fn run(
        mut self,
        listener: TcpListener,
        mut protections: Protections,
        (life, ready): (Life, impl FnOnce(&Ready)),
    ) -> Result<(), Error> {
        let (logs_in, logs_out, logs_kept) = logs::start(logs::Limits::default()).map_err(|source| Error::Thread { source })?;
        let (mut threads, mut ends) = Threads::new();
        let (common, inner) = self.common()?;
        start_helpers(&mut threads, inner.scribe, logs_in, (inner.networks, self.instances.sockets))?;
        let ((guaranteed, guaranteed_orders), (best_effort, best_effort_orders)) =
            (Queues::new(self.front.connections), Queues::new(self.front.connections));
        let (to_door, for_door) = mpsc::channel(door::COMMANDS_MAX);
        let handle = Arc::new(Handle::new(guaranteed.commands.0.clone(), best_effort.commands.0.clone(), to_door));
        let gap_news = guaranteed.news.0.clone();
        let (to_guaranteed, to_best_effort) = (guaranteed.entrance(), best_effort.entrance());
        let exits = Exits {
            guaranteed: guaranteed.traffic.0.clone(),
            best_effort: best_effort.traffic.0.clone(),
            management: common.management.clone(),
        };
        let starter = common.starter_ends(guaranteed_orders, &guaranteed);
        let (wide, costs) = self.start_starter(&mut threads, Lane::Guaranteed, starter, &common)?;
        let starter = common.starter_ends(best_effort_orders, &best_effort);
        let (narrow, _) = self.start_starter(&mut threads, Lane::BestEffort, starter, &common)?;
        let (runtime_costs, unmeasured) = costs.expect("invariant: the guaranteed lane's starter measures");
        protections.interpreters(&common.kit.python, &common.kit.nodejs);
        protections.costs(&unmeasured);
        self.accept_launchers([wide, narrow], &mut protections)?;
        let mut evidence = self.start_recorder()?;
        let (Some(for_control), Some(mut for_lane)) = (evidence.senders.pop(), evidence.senders.pop()) else {
            unreachable!("the recorder makes as many rings as it is asked for");
        };
        let sink = Box::new(move |record: Record| for_lane.send(record));
        self.start_lane(&mut threads, (Lane::Guaranteed, guaranteed), to_best_effort, (&common, Some(sink)))?;
        self.start_lane(&mut threads, (Lane::BestEffort, best_effort), to_guaranteed, (&common, None))?;
        self.start_door(&mut threads, for_door, exits)?;
        let cores = self.cores.clone();
        let probes = Probes::start(&self.cores, &common.pulses, move |gap| {
            let Some(core) = cores.iter().position(|cpu| *cpu == gap.core).and_then(|at| u16::try_from(at).ok()) else { return };
            let gap = Gap { core, ..gap };
            // The lane reads the last gap from the pulse too; where it cannot take news now, earlier ones are lost as evidence.
            let _ = gap_news.try_send(News::Gap(gap));
        });
        let probes = probes.map_err(|source| Error::Thread { source })?;
        let (seen_ns, limits) = (Arc::clone(&common.seen_ns), Arc::clone(&common.limits));
        drop(common);
        let serving = Serving {
            node: &self,
            handle,
            evidence: evidence.handle.clone(),
            logs: logs_out,
            seen_ns,
            limits,
            runtime_costs,
            protections: protections.into_list(),
        };
        let Life { runtime, stop } = life;
        let served = tokio::task::LocalSet::new()
            .block_on(&runtime, serving.serve((listener, stop), (for_control, inner.management), &mut ends, ready));
        drop(runtime);
        drop(probes);
        threads.join();
        logs_kept.join();
        let health = evidence.recorder.stop(clock::now());
        served.and(match health {
            Health::Writing => Ok(()),
            Health::Failing { error, .. } => Err(Error::Ended { name: "recorder".to_owned(), reason: error }),
            Health::Stopped => Err(Error::Ended { name: "recorder".to_owned(), reason: "it ended before the node".to_owned() }),
        })
    }

    /// Goes on with what the launchers of both lanes, the guaranteed one's first, can hold.
    fn accept_launchers(&mut self, launchers: [Standing; 2], protections: &mut Protections) -> Result<(), Error> {
        let [wide, _] = &launchers;
        if self.classes == Classes::RealTime {
            protections.real_time_instances(wide.no_real_time.clone());
            if wide.no_real_time.is_some() {
                self.degrade()?;
            }
        }
        if self.classes == Classes::Ordinary {
            self.capacity.quota_tick = wide.no_cpu_groups.is_none().then_some(capacity::QUOTA_TICK);
            // Among sessions and groups that weigh alike the node would be one of many.
            protections.weight(match &wide.daemon_group {
                Some(group) => group.enter().map_err(|error| error_line(&error)),
                None => Err("no control group of CPU can be given to it alone".to_owned()),
            });
        }
        launchers.into_iter().for_each(|standing| protections.launcher(standing));
        Ok(())
    }

    /// Goes on without real-time classes. What was measured with them says nothing then: it is measured again.
    fn degrade(&mut self) -> Result<(), Error> {
        self.classes = Classes::Ordinary;
        self.measured = calibrate::measure(&self.cores, self.classes).map_err(|source| Error::Measure { source })?;
        self.capacity = capacity::of(&self.cores, self.classes, &self.measured, (self.options.memory, self.instances.guaranteed));
        Ok(())
    }

    fn opening(&self) -> Result<NodeStarted, Error> {
        Ok(NodeStarted {
            boot: InvocationId::from_random(u128::from_le_bytes(random()?)),
            at: clock::now(),
            unix_ns: u64::try_from(clock::since_epoch().as_nanos()).unwrap_or(u64::MAX),
            level: self.capacity.level,
            tolerance: self.capacity.tolerance,
            software: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    fn common(&self) -> Result<(Common, Inner), Error> {
        let clients = self.data.join("clients");
        bootstrap::install(&clients).map_err(|source| Error::Clients { source })?;
        let found =
            |language, program: &str| sandbox::interpreter(language, program.as_ref()).map_err(|error| error_line(&error));
        let kit = Kit {
            python: found(Language::Python, "python3"),
            nodejs: found(Language::Nodejs, "node"),
            clients,
            home: self.front.home.clone(),
            credentials: Credentials {
                access_key_id: "TAKTINSTANCE".to_owned(),
                secret_access_key: "not-a-secret".to_owned(),
                session_token: "not-a-token".to_owned(),
            },
            cores: self.cores.clone(),
            network: NetworkKit {
                given: self.outbound.clone(),
                own: self.address,
                upstream: std::fs::read_to_string("/etc/resolv.conf").ok().and_then(|text| runtime::forward::upstream_of(&text)),
            },
        };
        let (scribe_in, scribe_out) = mpsc::channel(scribe::ORDERS_MAX);
        let (networks_in, networks_out) = mpsc::channel(NETWORKS_MAX);
        let (management_in, management_out) = mpsc::channel(self.front.connections.to_management);
        let common = Common {
            scribe: scribe_in,
            networks: networks_in,
            management: management_in,
            kit: Arc::new(kit),
            limits: Arc::new(Limits::new(self.capacity.cores)),
            seen_ns: Arc::default(),
            pulses: Arc::new(Pulses::new(self.cores.len())),
        };
        Ok((common, Inner { scribe: scribe_out, networks: networks_out, management: management_out }))
    }

    /// Starts the recorder; what it writes first says which level and T hold from here on.
    fn start_recorder(&self) -> Result<recorder::Started, Error> {
        let options = recorder::Options::new(self.data.join(backup::EVIDENCE), 2);
        recorder::start(&options, self.opening()?).map_err(|source| Error::Evidence { source })
    }

    fn start_lane(
        &self,
        threads: &mut Threads,
        (which, queues): (Lane, Queues),
        (other_lane, results): ToOther,
        (common, sink): (&Common, Option<lane::links::RecordSink>),
    ) -> Result<(), Error> {
        let links = Links {
            orders: queues.orders,
            other_lane,
            results,
            management: common.management.clone(),
            scribe: common.scribe.clone(),
            // Best effort leaves no evidence: nothing was promised.
            records: sink.unwrap_or_else(|| Box::new(drop)),
            seen_ns: Arc::clone(&common.seen_ns),
            pulses: Arc::clone(&common.pulses),
        };
        let inbox =
            Inbox { commands: queues.commands.1, news: queues.news.1, traffic: queues.traffic.1, results: queues.results.1 };
        let placement = match (which, self.classes) {
            (Lane::Guaranteed, Classes::RealTime) => Some(ThreadPlacement { core: self.cores[0] }),
            (Lane::Guaranteed, Classes::Ordinary) | (Lane::BestEffort, _) => None,
        };
        let front = Arc::clone(&self.front);
        let rng = ChaCha12Rng::from_seed(random()?);
        let (memory_mib, instances) = (self.best_effort_memory() >> 20, self.instances.best_effort);
        let cores = u32::try_from(self.cores.len()).unwrap_or(u32::MAX).max(1);
        let failed = |source| Error::Thread { source };
        match which {
            Lane::Guaranteed => threads.start(name_of(which), move || {
                let machine = reserved::Engine::new(reserved::Options::default());
                run_lane(Start { lane: which, machine, links, inbox, front, rng, placement })
            }),
            Lane::BestEffort => threads.start(name_of(which), move || {
                let options = shared::Options { memory_mib, instances, cores, ..shared::Options::default() };
                let machine = shared::Engine::new(options);
                run_lane(Start { lane: which, machine, links, inbox, front, rng, placement })
            }),
        }
        .map_err(failed)
    }

    fn start_door(&self, threads: &mut Threads, commands: mpsc::Receiver<door::Command>, exits: Exits) -> Result<(), Error> {
        let start = door::Start { commands, exits, front: Arc::clone(&self.front), classes: self.classes };
        let started = threads.start(door::NAME, move || door::run(start).map_err(|error| error.to_string()));
        started.map_err(|source| Error::Thread { source })
    }

    /// What best-effort instances may hold: what guarantees cannot reserve, less a tenth for the node itself.
    fn best_effort_memory(&self) -> u64 {
        let machine = capacity::machine_memory();
        machine.saturating_sub(self.capacity.memory).saturating_sub(machine / 10)
    }

    /// Starts a lane's starter with its launcher. Returns what the launcher can hold.
    fn start_starter(&self, threads: &mut Threads, which: Lane, ends: Ends, common: &Common) -> Result<Made, Error> {
        let nursed = match (which, self.classes) {
            (Lane::Guaranteed, Classes::RealTime) => Some((Arc::clone(&common.limits), self.cores.clone())),
            (Lane::Guaranteed, Classes::Ordinary) | (Lane::BestEffort, _) => None,
        };
        let users = u32::try_from(launcher::INSTANCES_MAX).expect("invariant: the limit is small");
        let options = launcher::Options {
            program: self.options.program.clone(),
            arguments: self.options.launcher_arguments.clone(),
            groups: format!("takt-{}-{}", self.address.port(), name_of(which)),
            first_user: launcher::Options::FIRST_USER_DEFAULT
                + match which {
                    Lane::Guaranteed => 0,
                    Lane::BestEffort => users,
                },
            serves: match which {
                Lane::Guaranteed => Serves::Guaranteed,
                Lane::BestEffort => Serves::BestEffort,
            },
            priority: nursed.as_ref().map(|_| starts::MAKER_PRIORITY),
        };
        let name = format!("starter-{}", name_of(which));
        let (told, standing) = std::sync::mpsc::sync_channel(1);
        let (kit, data, classes) = (Arc::clone(&common.kit), self.data.clone(), self.classes);
        let started = threads.start_async(&name, move || async move {
            let (client, service, standing) = match launcher::spawn(&options) {
                Ok(spawned) => spawned,
                Err(error) => {
                    let _ = told.send(Err(error));
                    return Ok(());
                }
            };
            let nursed = nursed.filter(|_| standing.no_real_time.is_none());
            let process = service.process();
            let classes = if standing.no_real_time.is_none() { classes } else { Classes::Ordinary };
            let service = service.run();
            tokio::pin!(service);
            let measured = tokio::select! {
                error = &mut service => return Err(error.to_string()),
                costs = measure_runtimes(which, (&client, &kit), &data) => costs,
            };
            // The node waits for this answer.
            let shares = Shares { classes, costs: measured.as_ref().map(|(costs, _)| *costs) };
            let _ = told.send(Ok((standing, measured)));
            // What the measurement used was of ordinary class.
            let nursery = nursed.map(|(limits, cores)| Nursery::new(limits, cores, process));
            if nursery.is_some() {
                let class = sched::Class::Fifo { priority: starts::MAKER_PRIORITY };
                sched::set_current(class).map_err(|error| error.to_string())?;
            }
            starter::run((client, service), (kit, nursery, shares), ends).await.map_err(|error| error.to_string())
        });
        started.map_err(|source| Error::Thread { source })?;
        let standing =
            standing.recv().map_err(|_| Error::Ended { name, reason: "it ended before its launcher answered".to_owned() })?;
        standing.map_err(|source| Error::Launcher { source })
    }
}

/// What a launcher can hold and, from the guaranteed lane's, what runtimes cost, with what could not be measured.
type Made = (Standing, Option<(runtime_cost::Costs, Vec<String>)>);

async fn measure_runtimes(
    which: Lane,
    (client, kit): (&launcher::Client, &Kit),
    data: &std::path::Path,
) -> Option<(runtime_cost::Costs, Vec<String>)> {
    match which {
        Lane::Guaranteed => Some(runtime_cost::measure(client, kit, data).await),
        Lane::BestEffort => None,
    }
}

const fn name_of(lane: Lane) -> &'static str {
    match lane {
        Lane::Guaranteed => "guaranteed",
        Lane::BestEffort => "best-effort",
    }
}

impl Common {
    fn starter_ends(&self, orders: mpsc::Receiver<Order>, queues: &Queues) -> Ends {
        Ends { orders, news: queues.news.0.clone(), scribe: self.scribe.clone(), networks: self.networks.clone() }
    }
}

/// The receiving ends of what several threads share.
struct Inner {
    scribe: mpsc::Receiver<scribe::Order>,
    networks: mpsc::Receiver<NetworkOrder>,
    management: mpsc::Receiver<Moved>,
}

fn run_lane<M: Machine>(start: Start<M>) -> Result<(), String> {
    lane::run(start).map_err(|error| error.to_string())
}

fn start_helpers(
    threads: &mut Threads,
    scribe_orders: mpsc::Receiver<scribe::Order>,
    logs: Appender,
    (networks, sockets): (mpsc::Receiver<NetworkOrder>, usize),
) -> Result<(), Error> {
    let failed = |source| Error::Thread { source };
    let scribing = threads.start_async("scribe", move || async move {
        scribe::run(scribe_orders, scribe::Lines::new(logs)).await;
        Ok(())
    });
    scribing.map_err(failed)?;
    let forwarding = threads.start_async("network", move || async move {
        starter::forward(networks, sockets).await;
        Ok(())
    });
    forwarding.map_err(failed)
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::Randomness { reason: error.to_string() })?;
    Ok(bytes)
}

/// An error with its causes, one line.
pub(crate) fn error_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The serving part of a node's life, on the node's main thread.
struct Serving<'a> {
    node: &'a Node,
    handle: Arc<Handle>,
    evidence: recorder::Handle,
    logs: logs::Logs,
    /// The largest dispatch delay beyond S that no gap explains, nanoseconds.
    seen_ns: Arc<AtomicU64>,
    limits: Arc<Limits>,
    runtime_costs: runtime_cost::Costs,
    protections: Vec<Protection>,
}

impl Serving<'_> {
    async fn serve(
        self,
        (listener, mut stop): (TcpListener, Stop),
        (records, moved): (recorder::Sender, mpsc::Receiver<Moved>),
        ends: &mut mpsc::Receiver<crate::threads::End>,
        ready: impl FnOnce(&Ready),
    ) -> Result<(), Error> {
        let store = Sqlite::open(&self.node.data.join(backup::STORE)).map_err(|source| Error::Store { source })?;
        let store = Arc::new(store);
        let codes =
            Codes::open(&self.node.data.join(backup::CODE), Arc::new(Packages)).map_err(|source| Error::Codes { source })?;
        let parts = control::Parts {
            store: Arc::clone(&store) as Arc<dyn journal::store::Store>,
            codes: codes.clone(),
            lanes: Arc::clone(&self.handle) as Arc<dyn crate::lanes::Lanes>,
            evidence: Arc::new(Ledger { sender: Mutex::new(records) }),
            clock: Arc::new(NodeClock),
        };
        let (service, control) =
            control::Service::new(self.control_options(), parts).map_err(|source| Error::Control { source })?;
        let controlling = tokio::task::spawn_local(service.run());
        let (stop_managing, stopped) = watch::channel(false);
        let mut managing = None;
        let living = async {
            control.started().await.map_err(|source| Error::Bringing { source })?;
            let known = Report { protections: self.protections.clone(), ..Report::default() };
            let host = Arc::new(Watched { report: Mutex::new(known) });
            let access = Arc::new(Mutex::new(self.node.front.access()));
            let (keyring, rotations) = Keyring::new(self.node.data.clone(), Arc::clone(&self.handle), Arc::clone(&access));
            let router = self.router(&control, (codes, store), &host, rotations);
            let connections = self.node.front.connections.management;
            managing = Some(tokio::task::spawn_local(manage::serve((moved, connections), (router, access), stopped)));
            self.handle.accept(listener).await.map_err(|_| closed())?;
            ready(&self.ready(&control));
            self.watch_over(&control, &host, (ends, keyring)).await
        };
        let ended = tokio::select! {
            biased;
            () = stop.asked() => Ok(()),
            ended = living => ended,
        };
        // Whatever ends the node, what runs may end first.
        let _ = stop_managing.send(true);
        let _ = tokio::time::timeout(DRAIN_WITHIN, self.handle.drain()).await;
        control.shutdown();
        let _ = controlling.await;
        if let Some(managing) = managing {
            let _ = managing.await;
        }
        ended
    }

    fn router(
        &self,
        control: &control::Handle,
        (codes, store): (Codes, Arc<Sqlite>),
        host: &Arc<Watched>,
        rotations: Rotations,
    ) -> axum::Router {
        management::router(management::Parts {
            control: control.clone(),
            logs: self.logs.clone(),
            codes,
            host: Arc::clone(host) as Arc<dyn Host>,
            home: self.node.front.home.clone(),
            url: format!("http://{}", self.node.address),
            data: Some(DataSource { folder: self.node.data.clone(), store }),
            keyring: Arc::new(rotations),
        })
    }

    fn control_options(&self) -> control::Options {
        control::Options {
            capacity: self.node.capacity.clone(),
            starts: Arc::clone(&self.limits),
            outbound: self.node.outbound.clone(),
            costs: control::Costs {
                cold_start_least: COLD_START_LEAST,
                recycle: Duration::from_millis(1),
                python: self.runtime_costs.python,
                nodejs: self.runtime_costs.nodejs,
                provided: self.runtime_costs.provided,
            },
            install_limit: Duration::from_secs(60),
            code_grace: model::FunctionSpec::MAX_TIMEOUT,
            start_width: 4,
        }
    }

    fn ready(&self, control: &control::Handle) -> Ready {
        let view = control.view();
        Ready {
            address: self.node.address,
            level: self.node.capacity.level,
            measured: self.node.measured,
            suspended: view.functions.values().filter(|function| matches!(function.state, State::Suspended { .. })).count(),
            protections: self.protections.clone(),
        }
    }

    /// Looks after evidence and tolerance until a thread ends. Safe to drop at any point.
    async fn watch_over(
        &self,
        control: &control::Handle,
        host: &Watched,
        (ends, mut keyring): (&mut mpsc::Receiver<crate::threads::End>, Keyring),
    ) -> Result<(), Error> {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let started = clock::now();
        let mut tolerance = self.node.capacity.tolerance;
        let mut last_gate = Gate::Open;
        // A control plane that brings up a deployment answers later; evidence and threads are looked after meanwhile.
        let mut asking = JoinSet::new();
        let mut slowest = BTreeMap::new();
        loop {
            tokio::select! {
                Some((name, outcome)) = ends.recv() => {
                    let reason = outcome.err().unwrap_or_else(|| "it ended by itself".to_owned());
                    return Err(Error::Ended { name, reason });
                }
                Some(answered) = asking.join_next() => {
                    if !matches!(answered, Ok(Ok(()))) {
                        // It was too busy, or is ending: whatever still holds is told again at the next look.
                        (tolerance, slowest) = (self.node.capacity.tolerance, BTreeMap::new());
                    }
                }
                // Not within the choice: a rotation that was begun is not given up for the next look.
                Some(done) = keyring.asked() => keyring.answer(done).await,
                _ = look.tick() => {
                    let health = self.evidence.health();
                    let now = gate(&health);
                    // A full queue of the control plane leaves the gate as it is until the next look.
                    if now != last_gate && control.evidence(now.clone()).is_ok() {
                        last_gate = now;
                    }
                    let seen = Duration::from_nanos(self.seen_ns.load(Ordering::Relaxed));
                    if let Some(raised) = raised(tolerance, seen) {
                        tolerance = raised;
                        let control = control.clone();
                        // Functions that no longer fit are suspended and say so themselves. A control plane that has ended
                        // says so itself.
                        asking.spawn_local(async move { control.tolerance_raised(raised).await.map(drop) });
                    }
                    let usage = self.handle.usage().await.map_err(|_| closed())?;
                    for (name, start) in slower(&control.view(), &usage, &mut slowest) {
                        let control = control.clone();
                        asking.spawn_local(async move { control.starts_slower(name, start).await });
                    }
                    host.look(self.report(&health, clock::now().since(started), usage));
                }
            }
        }
    }

    fn report(&self, health: &Health, uptime: Duration, usage: lane::Usage) -> Report {
        Report {
            uptime,
            protections: self.protections.clone(),
            evidence: evidence_health(health, &self.evidence),
            queues: usage.queues,
            traffic: usage.traffic,
            best_effort: usage.best_effort,
            usage: usage.functions.into_iter().map(|(usage, delays)| Usage { start_delay_p99: delays.p99(), ..usage }).collect(),
            tolerance_seen: Duration::from_nanos(self.seen_ns.load(Ordering::Relaxed)),
        }
    }
}

/// Functions whose instances start slower than admission counts, each told once for each slowest start.
fn slower(
    view: &control::View,
    usage: &lane::Usage,
    told: &mut BTreeMap<FunctionName, Duration>,
) -> Vec<(FunctionName, Duration)> {
    told.retain(|name, _| view.grant(name).is_some());
    let mut slower = Vec::new();
    for (usage, _) in &usage.functions {
        let Ok(name) = usage.function.parse::<FunctionName>() else { continue };
        let Some(grant) = view.grant(&name) else { continue };
        let start = usage.start_slowest;
        if grant.demand.cold_start < start && told.get(&name).is_none_or(|told| *told < start) {
            told.insert(name.clone(), start);
            slower.push((name, start));
        }
    }
    slower
}

/// T where more was seen than what it is: that with a margin.
fn raised(tolerance: Duration, seen: Duration) -> Option<Duration> {
    (tolerance < seen).then(|| seen + seen / RISE_MARGIN)
}

fn closed() -> Error {
    Error::Ended { name: "lane".to_owned(), reason: "its queue closed".to_owned() }
}

fn gate(health: &Health) -> Gate {
    match health {
        Health::Writing => Gate::Open,
        Health::Failing { error, .. } => Gate::Shut { reason: error.clone() },
        Health::Stopped => Gate::Shut { reason: "the recorder has ended".to_owned() },
    }
}

fn evidence_health(health: &Health, recorder: &recorder::Handle) -> EvidenceHealth {
    let (records_lost, problem) = match health {
        Health::Writing => (0, None),
        Health::Failing { error, lost, .. } => (*lost, Some(error.clone())),
        Health::Stopped => (0, Some("the recorder has ended".to_owned())),
    };
    EvidenceHealth { records_written: recorder.head().number, records_lost, bytes: recorder.bytes(), problem }
}

/// The last report, for whoever asks between two looks.
struct Watched {
    report: Mutex<Report>,
}

impl Watched {
    fn look(&self, report: Report) {
        *self.report.lock().expect("invariant: nothing panics while it holds this lock") = report;
    }
}

impl Host for Watched {
    fn report(&self) -> Report {
        self.report.lock().expect("invariant: nothing panics while it holds this lock").clone()
    }
}

/// The control plane's way to the recorder.
struct Ledger {
    sender: Mutex<recorder::Sender>,
}

impl Evidence for Ledger {
    fn record(&self, record: Record) {
        self.sender.lock().expect("invariant: nothing panics while it holds this lock").send(record);
    }
}

struct NodeClock;

impl Clock for NodeClock {
    fn now(&self) -> Time {
        clock::now()
    }

    fn since_1970(&self) -> Duration {
        clock::since_epoch()
    }
}

struct Packages;

impl Unpack for Packages {
    fn unpack(&self, package: &[u8], into: &std::path::Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(package::unpack(package, into)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::{World, options, spec};

    #[tokio::test]
    async fn what_is_seen_beyond_t_raises_it_and_suspends_what_no_longer_fits() {
        let world = World::new().await;
        let start = |within: &str| format!("rate = \"20/s\"\nmax_run_time = \"5ms\"\nstart_within = \"{within}\"");
        for (name, within) in [("tight", "20ms"), ("calm", "500ms")] {
            world.put(spec(name, &start(within), "h"), b"one").await.unwrap();
        }
        let tolerance = options().capacity.tolerance;
        assert_eq!(raised(tolerance, tolerance), None);
        let raised = raised(tolerance, Duration::from_millis(20)).unwrap();
        world.control.tolerance_raised(raised).await.unwrap();
        assert!(matches!(&world.function("tight").state, State::Suspended { reason } if reason.contains("30ms")));
        assert_eq!(world.function("calm").state, State::Active);
        let grant = world.control.view().grant(&"calm".parse().unwrap()).map(|grant| grant.tolerance);
        assert_eq!(grant, Some(Duration::from_millis(30)));
    }
}
