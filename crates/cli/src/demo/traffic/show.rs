//! The demonstration from its first line to its last: a node, two functions, neighbours, the same clip three times.
//!
//! Everything it starts is held by a value that stops it, so that an error or Ctrl-C leaves nothing behind.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use node::sched;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::camera::{self, Clip, Options, Run};
use super::client::NodeClient;
use super::function::{Burn, Role};
use super::geometry::Geometry;
use super::report::{self, Evidence, Proven, Report, Resources, Variant};
use super::scene::{self, Plan, Scene};
use super::score::{self, Reserved};
use super::terms::{self, RunTimes, Standing};
use super::{program, video};
use crate::admission;
use crate::args::TrafficArgs;
use crate::client::{Answer, Client};
use crate::demo::neighbour::{Counts, Flood, Neighbour};
use crate::demo::own_node::{OwnNode, Ready};
use crate::exit::Exit;
use crate::output::{self, Format, Progress};

/// Share of the generated clip in which something happens.
const DUTY: f32 = 0.2;
/// Above everything that is best effort, below every guaranteed instance: the camera delays nothing that is promised.
const CAMERA_PRIORITY: u8 = 5;
/// An answer later than this is not waited for; 20 times the detector's deadline.
const PATIENCE: Duration = Duration::from_secs(2);
/// The neighbours' connections that ask again as soon as they are answered, at least; one of each neighbour.
const CONNECTIONS: u16 = 64;
/// What one invocation of a neighbour uses: more than the camera's deadline, as most functions of a shared platform do.
const BURN: Burn = Burn { cpu_ms: 200 };
/// How many times the machine's capacity the neighbours ask for in their open loops, those connections not counted.
const FLOOD_TIMES: u32 = 3;
/// Connections the camera keeps: for a burst of each function, and some.
const CAMERA_CONNECTIONS: usize = 8;
/// The neighbours' start over the camera's: all of them have instances by then.
const HEAD_START: Duration = Duration::from_secs(3);
/// Usage is counted up once a second.
const USAGE_EVERY: Duration = Duration::from_millis(1_100);
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// One way of running the clip.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    standing: Standing,
    beside: Beside,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Flood,
}

const WAYS: [Way; 3] = [
    Way { name: "alone", standing: Standing::Guaranteed, beside: Beside::Nothing },
    Way { name: "beside a flood, guaranteed", standing: Standing::Guaranteed, beside: Beside::Flood },
    Way { name: "beside a flood, best effort", standing: Standing::BestEffort, beside: Beside::Flood },
];

/// What the camera's thread was given by the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CameraClass {
    RealTime,
    Ordinary,
}

/// Shows the demonstration; Ctrl-C and SIGTERM end it in order.
pub(crate) fn run(args: &TrafficArgs, format: Format) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start an event loop")?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        tokio::select! {
            shown = Box::pin(show(args, format)) => shown,
            _ = interrupt.recv() => bail!("interrupted; the node and everything it kept are gone"),
            _ = terminate.recv() => bail!("told to stop; the node and everything it kept are gone"),
        }
    })
}

async fn show(args: &TrafficArgs, format: Format) -> Result<Exit> {
    let clip = Arc::new(watch_or_make(args, format).await?);
    let options = Options::at(clip.fps);
    let times = measured(&clip, &options, format).await?;
    let options = terms::reachable(options, times, clip.fps);
    let (mut node, output) = OwnNode::spawn()?;
    let progress = Progress::start(format, "starting a node, which measures this machine");
    let ready = node.ready(output).await?;
    progress.end();
    let crowd = Crowd::new(args.neighbours, terms::needed_cores(times, &options, clip.fps));
    let stage = Stage { format, client: node.client(&ready)?, data_dir: node.data_dir(), clip, options, times, crowd };
    stage.introduce(&ready)?;
    let progress = Progress::start(format, "packing this program");
    let folder = node.scratch();
    let package = tokio::task::spawn_blocking(move || program::package(&folder)).await.context("packing was cut off")??;
    let bytes = package.len();
    let package = STANDARD.encode(package);
    progress.end();
    stage.move_in(&package).await?;
    stage.say(&format!("Their code is this program, {:.1} MB packed.", bytes as f64 / 1e6))?;
    let mut shown = Vec::new();
    for (number, way) in WAYS.iter().enumerate() {
        match stage.variant(number, *way, &package).await? {
            Ended::Shown(variant) => shown.push(*variant),
            Ended::Refused(answer) => return admission::print_refusal(&answer, format),
        }
    }
    node.stop()?;
    let audited = node::audit::audit(&node.data_dir(), |_| {}).context("cannot audit the node's evidence")?;
    stage.conclude(args, &ready, shown, &audited)
}

/// The clip: recorded from a video, or generated.
async fn watch_or_make(args: &TrafficArgs, format: Format) -> Result<Clip> {
    let seconds = args.seconds;
    let made = match args.video.clone() {
        Some(source) => {
            let (fps, count) = (args.fps, seconds * args.fps);
            let progress = Progress::start(format, "reading the video");
            let reading = tokio::task::spawn_blocking(move || recorded(source, fps, count)).await;
            progress.end();
            reading
        }
        None => {
            let plan = Plan { seed: args.seed, seconds, duty: DUTY };
            let progress = Progress::start(format, "generating a highway");
            let making = tokio::task::spawn_blocking(move || generated(plan)).await;
            progress.end();
            making
        }
    };
    made.context("the clip was cut off")?
}

fn recorded(source: String, fps: u32, count: u32) -> Result<Clip> {
    let pictures = video::clip(&source, usize::try_from(count).unwrap_or(usize::MAX))?;
    let pictures = pictures.into_iter().map(Into::into).collect();
    Ok(Clip { source, fps, pictures, geometry: Geometry::default(), truth: None })
}

/// Draws the pictures on all processors.
fn generated(plan: Plan) -> Result<Clip> {
    let scene = Scene::new(plan)?;
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let share = scene.pictures().div_ceil(workers);
    let pictures = std::thread::scope(|scope| {
        let drawing: Vec<_> = (0..workers)
            .map(|worker| {
                let (scene, from) = (&scene, worker * share);
                let until = (from + share).min(scene.pictures());
                scope.spawn(move || (from..until).map(|index| scene.jpeg(index)).collect::<Result<Vec<_>, _>>())
            })
            .collect();
        let drawn = drawing.into_iter().map(|worker| worker.join().map_err(|_| anyhow::anyhow!("drawing a picture panicked")));
        drawn.collect::<Result<Vec<_>>>()
    })?;
    let mut all = Vec::new();
    for part in pictures {
        all.extend(part.context("cannot draw the highway")?.into_iter().map(Into::into));
    }
    let source = format!("a generated highway, seed {}", plan.seed);
    Ok(Clip { source, fps: scene::FPS, pictures: all, geometry: scene::geometry(), truth: Some(scene.truth().clone()) })
}

async fn measured(clip: &Arc<Clip>, options: &Options, format: Format) -> Result<RunTimes> {
    let progress = Progress::start(format, "measuring the two functions");
    let (clip, options) = (Arc::clone(clip), options.clone());
    let measuring = tokio::task::spawn_blocking(move || terms::measure(&clip, &options)).await;
    progress.end();
    measuring.context("the measurement was cut off")?
}

/// How a variant ended.
enum Ended {
    Shown(Box<Watched>),
    Refused(Box<Answer>),
}

/// One variant as it was run.
struct Watched {
    way: Way,
    run: Run,
    class: CameraClass,
    /// What admission answered, by function.
    granted: Vec<(String, Value)>,
    resources: Resources,
    /// What the evidence proves of it; `None`: nothing was promised.
    proven: Option<Proven>,
    neighbour: Option<Counts>,
}

/// A camera that is connected. Dropped, it stops.
struct Camera {
    begin: oneshot::Sender<()>,
    done: oneshot::Receiver<Result<(Run, CameraClass)>>,
    /// Pictures shown so far.
    shown: Arc<AtomicU64>,
    _watched: oneshot::Sender<()>,
}

/// What every variant needs.
struct Stage {
    format: Format,
    client: Client,
    data_dir: PathBuf,
    clip: Arc<Clip>,
    options: Options,
    times: RunTimes,
    crowd: Crowd,
}

impl Stage {
    /// Errors when nobody reads any more; what was started is stopped then as after any other error.
    fn say(&self, line: &str) -> Result<()> {
        match self.format {
            Format::Human => writeln!(std::io::stdout(), "{line}").context("cannot write to standard output"),
            Format::Json => Ok(()),
        }
    }

    fn introduce(&self, ready: &Ready) -> Result<()> {
        let clip = &self.clip;
        let events = clip.truth.as_ref().map_or_else(String::new, |truth| {
            let duty = truth.duty(clip.pictures.len() as u64);
            format!("; something happens in {:.0} % of it", duty * 100.0)
        });
        let seconds = clip.pictures.len() as f64 / f64::from(clip.fps.max(1));
        self.say(&format!("Clip: {}, {} pictures at {}/s, {seconds:.0} s{events}.", clip.source, clip.pictures.len(), clip.fps))?;
        self.say(&format!("Node: its own, at {} ({}).", ready.url, conditions(ready)))?;
        for missing in &ready.missing {
            self.say(&format!("  not given here: {}; {}", missing.name, missing.consequence))?;
        }
        self.say(&format!(
            "Functions: the watcher took {:.1} ms of processor at most and has {:.0} ms for a look, the detector {:.1} ms of {:.0} ms.",
            ms(self.times.watch),
            ms(self.options.watch_deadline),
            ms(self.times.detect),
            ms(self.options.detect_deadline)
        ))
    }

    /// Deploys the neighbours.
    async fn move_in(&self, package: &str) -> Result<()> {
        let names = self.crowd.names();
        let progress = Progress::counting(self.format, names.len() as u64, "deploying the neighbours");
        for (done, name) in (1..).zip(&names) {
            self.deploy(name, &terms::neighbour(name), Some(package)).await?.success()?;
            progress.reach(done);
        }
        progress.end();
        self.say(&format!("Neighbours: {}.", self.crowd.in_words()))
    }

    async fn deploy(&self, name: &str, configuration: &str, package: Option<&str>) -> Result<Answer> {
        let body = json!({ "takt_toml": configuration, "zip": package });
        let (client, path) = (self.client.clone(), format!("/v1/functions/{name}"));
        let asked = tokio::task::spawn_blocking(move || client.call(Method::PUT, &path, Some(&body))).await;
        asked.context("a deployment was cut off")?.with_context(|| format!("cannot deploy `{name}`"))
    }

    /// What the evidence proves so far. It is read as it lies on the disk, while the node runs.
    async fn proven(&self) -> Result<Proven> {
        let data = self.data_dir.clone();
        let audited = tokio::task::spawn_blocking(move || node::audit::audit(&data, |_| {})).await;
        let audited = audited.context("an audit was cut off")?.context("cannot audit the node's evidence")?;
        Ok(proven(&audited))
    }

    async fn variant(&self, number: usize, way: Way, package: &str) -> Result<Ended> {
        self.say(&format!("\n{}/{} {}", number + 1, WAYS.len(), way.name))?;
        let mut granted = Vec::new();
        for role in [Role::Watch, Role::Detect] {
            let configuration = terms::configuration(role, (&self.clip, &self.options), self.times.of(role), way.standing);
            let name = self.name(role);
            let answer = self.deploy(name, &configuration, (number == 0).then_some(package)).await?;
            if admission::is_refusal(&answer) {
                return Ok(Ended::Refused(Box::new(answer)));
            }
            let guarantee = answer.success()?["guarantee"].take();
            if number == 0 {
                self.say(&format!("Admission for {name}:"))?;
                self.say(admission::given(&guarantee).trim_end())?;
            }
            granted.push((name.to_owned(), guarantee));
        }
        let camera = self.camera().await?;
        let neighbour = match way.beside {
            Beside::Nothing => None,
            Beside::Flood => Some(Neighbour::spawn(&self.client, &self.crowd.flood())?),
        };
        tokio::time::sleep(if neighbour.is_some() { HEAD_START } else { USAGE_EVERY }).await;
        let before = (self.usage().await?, self.proven().await?);
        let (run, class) = self.watch_clip(way.name, camera).await?;
        tokio::time::sleep(USAGE_EVERY).await;
        let resources = self.usage().await? - before.0;
        let proven = match way.standing {
            Standing::Guaranteed => Some(self.proven().await? - before.1),
            Standing::BestEffort => None,
        };
        let neighbour = match neighbour {
            Some(neighbour) => Some(neighbour.stop().await?),
            None => None,
        };
        Ok(Ended::Shown(Box::new(Watched { way, run, class, granted, resources, proven, neighbour })))
    }

    fn name(&self, role: Role) -> &str {
        match role {
            Role::Watch => &self.options.watch,
            Role::Detect => &self.options.detect,
        }
    }

    /// Sets a camera up in a thread of its own. It has its connections before anything floods: a new one waits at the node's
    /// door like everybody else's.
    async fn camera(&self) -> Result<Camera> {
        let (told, done) = oneshot::channel();
        let (connected, is_connected) = oneshot::channel();
        let (begin, begins) = oneshot::channel();
        let (watched, unwatched) = oneshot::channel::<()>();
        let shown = Arc::new(AtomicU64::new(0));
        let client = NodeClient::new(self.client.clone(), PATIENCE);
        let (clip, options, seen) = (Arc::clone(&self.clip), self.options.clone(), Arc::clone(&shown));
        let camera = std::thread::Builder::new().name("camera".to_owned()).spawn(move || {
            let filmed = film((&client, &clip, &options), &seen, (connected, begins, unwatched));
            // Nobody listens any more when the demonstration was interrupted.
            let _ = told.send(filmed);
        });
        camera.context("cannot start the camera")?;
        // A camera that could not connect says why where its pictures are waited for.
        let _could_not = is_connected.await;
        Ok(Camera { begin, done, shown, _watched: watched })
    }

    /// Has the camera show the clip to the functions.
    async fn watch_clip(&self, name: &'static str, camera: Camera) -> Result<(Run, CameraClass)> {
        let Camera { begin, done, shown, _watched } = camera;
        let _could_not = begin.send(());
        let progress = Progress::counting(self.format, self.clip.pictures.len() as u64, name);
        let mut draw = tokio::time::interval(DRAW_EVERY);
        tokio::pin!(done);
        let filmed = loop {
            tokio::select! {
                filmed = &mut done => break filmed,
                _ = draw.tick() => progress.reach(shown.load(Ordering::Relaxed)),
            }
        };
        progress.end();
        filmed.context("the camera's thread panicked")?
    }

    /// Instance-seconds of the detector so far, as the node counts them.
    async fn usage(&self) -> Result<Resources> {
        let client = self.client.clone();
        let asked = tokio::task::spawn_blocking(move || client.call(Method::GET, "/metrics", None)).await;
        let answer = asked.context("a question was cut off")?.context("cannot read the node's metrics")?;
        if !answer.status.is_success() {
            bail!("the node's metrics: {}", answer.message());
        }
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let detect = &self.options.detect;
        Ok(Resources {
            reserved_s: metric(&text, "takt_reserved_instance_seconds_total", detect),
            used_s: metric(&text, "takt_used_instance_seconds_total", detect),
        })
    }

    fn conclude(&self, args: &TrafficArgs, ready: &Ready, shown: Vec<Watched>, audited: &node::audit::Audited) -> Result<Exit> {
        let Some(first) = shown.first() else { bail!("no variant was run") };
        let granted = first.granted.iter().find(|(name, _)| *name == self.options.detect).map(|(_, granted)| granted.clone());
        let granted = granted.context("the node gave the detector no guarantee")?;
        let reserved = reserved(&granted)?;
        let watcher = first.granted.iter().find(|(name, _)| *name == self.options.watch).map(|(_, granted)| granted);
        let watch_within_us = start_within_us(watcher.context("the node gave the watcher no guarantee")?)?;
        let class = first.class;
        let reference = first.run.clone();
        let variants: Vec<Variant> = shown
            .into_iter()
            .map(|watched| {
                let score = score::score(&watched.run, &reference, self.clip.truth.as_ref(), reserved);
                Variant {
                    name: watched.way.name.to_owned(),
                    score,
                    proven: watched.proven,
                    resources: watched.resources,
                    neighbour: watched.neighbour,
                    run: watched.run,
                }
            })
            .collect();
        let report = Report {
            clip: &self.clip,
            variants: &variants,
            reserved,
            watch_within_us,
            guarantee: in_words(&granted),
            crowd: self.crowd.clone(),
            conditions: format!("{}; {}", conditions(ready), camera_in_words(class)),
            evidence: Evidence { verdict: audited.verdict(), records: audited.records },
        };
        std::fs::write(&args.report, report::html(&report))
            .with_context(|| format!("cannot write the report to {}", args.report.display()))?;
        if let Some(path) = &args.picture {
            std::fs::write(path, report::picture(&report)).with_context(|| format!("cannot write {}", path.display()))?;
        }
        match self.format {
            Format::Json => output::json(&report::document(&report, &granted, &args.report)?),
            Format::Human => print!("\n{}\nThe report with its plots: {}\n", report::text(&report), args.report.display()),
        }
        Ok(Exit::Ok)
    }
}

/// Runs on the camera's thread: connects, says so, and shows the clip when it is told to begin.
fn film(
    (client, clip, options): (&NodeClient, &Clip, &Options),
    seen: &AtomicU64,
    (connected, begins, unwatched): (oneshot::Sender<()>, oneshot::Receiver<()>, oneshot::Receiver<()>),
) -> Result<(Run, CameraClass)> {
    // Without the privilege the neighbours delay the camera too, and the report says so.
    let class = match sched::set_current(sched::Class::Fifo { priority: CAMERA_PRIORITY }) {
        Ok(()) => CameraClass::RealTime,
        Err(_) => CameraClass::Ordinary,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start an event loop")?;
    let filming = async {
        client.connect(CAMERA_CONNECTIONS).await.context("the camera cannot connect")?;
        // Whoever set the camera up is gone when the demonstration was interrupted.
        let _ = connected.send(());
        begins.await.context("interrupted")?;
        camera::drive(client, clip, options, |index| seen.store(index, Ordering::Relaxed)).await
    };
    let run = runtime.block_on(async {
        tokio::select! {
            run = filming => run,
            _ = unwatched => bail!("interrupted"),
        }
    })?;
    Ok((run, class))
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

/// The neighbours, what they ask for, and what that leaves the camera.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Crowd {
    pub(crate) neighbours: u16,
    /// What an invocation of theirs uses.
    pub(crate) run_ms: u64,
    pub(crate) connections: u16,
    /// What their open loops ask for together.
    pub(crate) per_second: u32,
    pub(crate) times_capacity: u32,
    pub(crate) cores: u32,
    /// What the camera's tenant gets as one of so many that always want the cores.
    pub(crate) fair_share_cores: f64,
    /// What the camera's functions need while something happens.
    pub(crate) needed_cores: f64,
}

impl Crowd {
    pub(crate) fn new(neighbours: Option<u16>, needed_cores: f64) -> Self {
        let cores = cores();
        let neighbours = neighbours.unwrap_or_else(|| terms::neighbours(cores));
        let capacity = cores.saturating_mul(1_000) / u32::try_from(BURN.cpu_ms).unwrap_or(u32::MAX).max(1);
        Self {
            neighbours,
            run_ms: BURN.cpu_ms,
            connections: neighbours.max(CONNECTIONS),
            per_second: capacity.max(1) * FLOOD_TIMES,
            times_capacity: FLOOD_TIMES,
            cores,
            fair_share_cores: terms::fair_share(cores, neighbours),
            needed_cores,
        }
    }

    /// Their functions, each of the tenant of the same name.
    fn names(&self) -> Vec<String> {
        (1..=self.neighbours).map(|number| format!("neighbour-{number}")).collect()
    }

    fn flood(&self) -> Flood {
        let data = json!(BURN).to_string();
        Flood { functions: self.names(), data, connections: self.connections, per_second: self.per_second }
    }

    pub(crate) fn in_words(&self) -> String {
        let why = if self.fair_share_cores < self.needed_cores {
            "more than that: without a guarantee it has too little".to_owned()
        } else {
            format!("less than that: without a guarantee what it lacks is its turn in time, beside runs of {} ms", self.run_ms)
        };
        format!(
            "{} tenants with one best-effort function each, {} ms of processor a run: {} runs per second in all, {} times what {} \
             cores can do, and {} connections that ask again at once. Tenants share alike: the camera's fair share beside them is \
             {:.3} of a core; its two functions need {:.3} while something happens, {why}",
            self.neighbours,
            self.run_ms,
            self.per_second,
            self.times_capacity,
            self.cores,
            self.connections,
            self.fair_share_cores,
            self.needed_cores,
        )
    }
}

/// A counter of a function in the text that Prometheus reads; nothing counted yet is zero.
fn metric(text: &str, name: &str, function: &str) -> f64 {
    let wanted = format!("{name}{{function=\"{function}\"}} ");
    text.lines().filter_map(|line| line.strip_prefix(&wanted)?.trim().parse::<f64>().ok()).sum()
}

/// Everything that the records prove of guarantees, summed.
fn proven(audited: &node::audit::Audited) -> Proven {
    let mut proven = Proven::default();
    for finding in &audited.report.guarantees {
        proven.arrivals += finding.counters.arrivals;
        proven.conforming += finding.counters.conforming;
        for (sum, count) in proven.by_cause.iter_mut().zip(finding.counters.by_cause) {
            *sum += count;
        }
    }
    proven
}

fn reserved(granted: &Value) -> Result<Reserved> {
    let instances = granted["instances"].as_u64().and_then(|count| u32::try_from(count).ok());
    let instances = instances.context("the node reserved no instances")?;
    Ok(Reserved { instances, start_within_us: start_within_us(granted)? })
}

/// B of a guarantee.
fn start_within_us(granted: &Value) -> Result<u64> {
    let text = granted["start_within"].as_str().context("the node promised no start delay")?;
    let within = model::parse_duration(text).context("the node promised a start delay that is no duration")?;
    Ok(u64::try_from(within.as_micros()).unwrap_or(u64::MAX))
}

fn in_words(granted: &Value) -> String {
    let terms = &granted["terms"];
    // A duration that cannot be read is shown as the node wrote it.
    let short = |value: &Value| {
        let text = admission::plain(value);
        model::parse_duration(&text).map_or(text, |duration| format!("{} ms", (ms(duration) * 10.0).round() / 10.0))
    };
    format!(
        "{}, bursts of {}, each at most {} of run time, started within {}, done within {} (level {}; at worst as things stand: started after {}, done after {}; {} instances)",
        admission::plain(&terms["rate"]),
        admission::plain(&terms["burst"]),
        short(&terms["max_run_time"]),
        short(&granted["start_within"]),
        short(&granted["deadline"]),
        admission::plain(&granted["level"]),
        admission::at_worst(granted, "start_bound"),
        admission::at_worst(granted, "response_bound"),
        admission::plain(&granted["instances"]),
    )
}

fn conditions(ready: &Ready) -> String {
    let level = match ready.level.as_str() {
        "hard" => "guarantees are hard",
        _ => "guarantees are soft: this user may not use real-time scheduling",
    };
    format!("{level}, T = {:.1} ms, {} cores", Duration::from_micros(ready.tolerance_us).as_secs_f64() * 1e3, cores())
}

fn camera_in_words(class: CameraClass) -> &'static str {
    match class {
        CameraClass::RealTime => {
            "the camera runs at real-time class, below every guaranteed instance, as a camera on a machine of its own would not wait for this one's load"
        }
        CameraClass::Ordinary => "the camera runs at ordinary class, so the neighbours delay it too",
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
