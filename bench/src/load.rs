//! Load from processes of their own: what a generator does is fixed before it starts, what it saw comes back as JSON.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use cli::client::{Address, Client};
use cli::load::{Drive, Outcome, Sample, Schedule, Target, Wall};
use http::Method;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use node::sched;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::clock;

/// Above everything that is best effort, below every guaranteed instance.
pub(crate) const REALTIME_PRIORITY: u8 = 5;
/// The hidden command that makes this program a generator.
pub(crate) const ROLE: &str = "generate";
/// How long an open loop waits for one answer: whoever is this late has failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a flood's client waits before it hangs up; so the flood goes on at its rate whatever is answered.
const FLOOD_PATIENCE: Duration = Duration::from_millis(500);
/// Connections a paced load opens before it begins.
const POOL: u16 = 8;
/// Between a generator's start and its first invocation.
const LEAD: Duration = Duration::from_millis(300);

/// What one generator does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) class: Class,
    /// All instants count from here, on the monotonic clock.
    begin_ns: u64,
    pub(crate) length: Duration,
    pub(crate) streams: Vec<Stream>,
}

/// What a generator's process runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Class {
    RealTime,
    Ordinary,
}

/// Invocations of one function.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Stream {
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) path: String,
    pub(crate) event: String,
    pub(crate) send: Send,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Send {
    /// At these instants, in nanoseconds, whatever became of the ones before; every sample is kept.
    Open { instants_ns: Vec<u64>, connections: u16 },
    /// The same, counted only.
    Flood { instants_ns: Vec<u64>, connections: u16 },
    /// The next one when the one before is answered, on so many connections; counted only.
    Closed { connections: u16 },
}

/// What became of a stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Invocations of the schedule, or that were sent where there is none.
    pub(crate) offered: u64,
    /// Those whose bytes were handed to a connection while the load lasted.
    pub(crate) sent: u64,
    /// Functions that ran and returned.
    pub(crate) succeeded: u64,
    /// Answers that say that nothing ran.
    pub(crate) refused: u64,
    /// No answer, or a broken connection.
    pub(crate) unanswered: u64,
    /// In the schedule's order, where samples are kept.
    pub(crate) calls: Vec<Call>,
}

/// One invocation. Times are nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    /// On the monotonic clock.
    pub(crate) intended: u64,
    /// From `intended` until its bytes were handed to a connection.
    pub(crate) lag: u64,
    /// From `intended` to the last byte of the answer.
    pub(crate) latency: u64,
    /// From `intended` to the handler's entry, as the function stamped it; `None`: it did not run.
    pub(crate) start_delay: Option<u64>,
    /// What the node says it was.
    pub(crate) conforming: Option<bool>,
    /// Why there is no result, in a word or two.
    pub(crate) failure: Option<String>,
}

/// A generator that was started.
#[derive(Debug)]
pub(crate) struct Generator(Child);

impl Generator {
    /// Starts every load in a process of its own; they begin together.
    pub(crate) fn start(loads: Vec<Load>) -> Result<Vec<Self>> {
        let begin = clock::monotonic_ns() + u64::try_from(LEAD.as_nanos())?;
        let start = |mut load: Load| {
            load.begin_ns = begin;
            let program = std::env::current_exe().context("cannot find this program")?;
            let mut command = Command::new(program);
            command.arg(ROLE).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().context("cannot start a generator")?;
            let mut input = child.stdin.take().context("a generator has no standard input")?;
            input.write_all(&serde_json::to_vec(&load)?).context("cannot tell a generator what to do")?;
            Ok(Self(child))
        };
        loads.into_iter().map(start).collect()
    }

    /// Waits for its end.
    pub(crate) fn seen(mut self) -> Result<Vec<Seen>> {
        let mut text = Vec::new();
        self.0.stdout.take().context("a generator has no standard output")?.read_to_end(&mut text)?;
        let status = self.0.wait().context("cannot wait for a generator")?;
        if !status.success() {
            bail!("a generator ended with {status}");
        }
        serde_json::from_slice(&text).context("a generator did not say what it saw")
    }
}

impl Load {
    pub(crate) fn new(class: Class, length: Duration, streams: Vec<Stream>) -> Self {
        Self { class, begin_ns: 0, length, streams }
    }
}

/// Runs loads beside each other and gives what they saw, in their order.
pub(crate) fn run(loads: Vec<Load>) -> Result<Vec<Vec<Seen>>> {
    Generator::start(loads)?.into_iter().map(Generator::seen).collect()
}

/// Becomes a generator: a load on standard input, what it saw on standard output.
pub(crate) fn main() -> Result<()> {
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    let load: Load = serde_json::from_slice(&text).context("no load on standard input")?;
    if load.class == Class::RealTime {
        sched::set_current(sched::Class::Fifo { priority: REALTIME_PRIORITY })
            .context("real-time generators need root or CAP_SYS_NICE")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = runtime.block_on(async {
        let mut streams = JoinSet::new();
        let (begin, length) = (load.begin_ns, load.length);
        for (index, stream) in load.streams.into_iter().enumerate() {
            streams.spawn(async move { Ok::<_, anyhow::Error>((index, drive(&stream, begin, length).await?)) });
        }
        let mut seen = streams.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
        seen.sort_by_key(|(index, _)| *index);
        Ok::<_, anyhow::Error>(seen.into_iter().map(|(_, seen)| seen).collect::<Vec<_>>())
    })?;
    serde_json::to_writer(io::stdout().lock(), &seen).context("cannot say what was seen")
}

async fn drive(stream: &Stream, begin: u64, length: Duration) -> Result<Seen> {
    let client = Client { address: Address::parse(&stream.url)?, token: stream.token.clone() };
    let target = Target::new(client, stream.path.clone(), stream.event.clone().into_bytes())?;
    match &stream.send {
        Send::Open { instants_ns, connections } => open(target.keeping_results(), instants_ns, (*connections, begin)).await,
        Send::Flood { instants_ns, connections } => {
            until(begin).await;
            flood(target, instants_ns, (*connections, length)).await
        }
        Send::Closed { connections } => {
            until(begin).await;
            closed(stream, *connections, length).await
        }
    }
}

/// The timer is a millisecond coarse; whatever it oversleeps is made up for by the schedule.
async fn until(begin: u64) {
    tokio::time::sleep(Duration::from_nanos(begin.saturating_sub(clock::monotonic_ns()))).await;
}

fn schedule(instants_ns: &[u64]) -> Schedule {
    Schedule::at(instants_ns.iter().copied().map(Duration::from_nanos).collect())
}

async fn open(target: Target, instants_ns: &[u64], (connections, begin): (u16, u64)) -> Result<Seen> {
    // A client that is in use has its connections; while others flood, a new one waits for its turn at the node's door.
    let drive = Drive::new(target, connections, PATIENCE).opening_ahead(POOL).await?;
    until(begin).await;
    let began = clock::monotonic_ns();
    let mut wall = Wall::start()?;
    let mut seen = Seen::default();
    for sample in drive.run(schedule(instants_ns), &mut wall, |_| ()).await? {
        seen.count(&sample);
        seen.calls.push(Call::of(&sample, began)?);
    }
    seen.offered = u64::try_from(instants_ns.len())?;
    seen.sent = seen.offered;
    Ok(seen)
}

async fn flood(target: Target, instants_ns: &[u64], (connections, length): (u16, Duration)) -> Result<Seen> {
    let mut wall = Wall::start()?;
    let drive = Drive::new(target, connections, FLOOD_PATIENCE);
    let mut seen = Seen::default();
    let run = drive.run(schedule(instants_ns), &mut wall, |sample| {
        seen.count(sample);
        seen.sent += u64::from(sample.sent <= length);
    });
    // A schedule that could not be kept is cut off; by then every client that began in time has its answer or hung up.
    if let Ok(done) = tokio::time::timeout(length + FLOOD_PATIENCE, run).await {
        done?;
    }
    seen.offered = u64::try_from(instants_ns.len())?;
    seen.unanswered = seen.offered.saturating_sub(seen.succeeded + seen.refused);
    Ok(seen)
}

async fn closed(stream: &Stream, connections: u16, length: Duration) -> Result<Seen> {
    let mut all = JoinSet::new();
    for _ in 0..connections {
        let stream = stream.clone();
        all.spawn(async move {
            let mut seen = Seen::default();
            // Whoever is cut off comes back at once.
            let run = async {
                loop {
                    if calls(&stream, &mut seen).await.is_err() {
                        seen.unanswered += 1;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let timed_out: Result<std::convert::Infallible, _> = tokio::time::timeout(length, run).await;
            drop(timed_out);
            seen
        });
    }
    let mut sum = Seen::default();
    for seen in all.join_all().await {
        sum.succeeded += seen.succeeded;
        sum.refused += seen.refused;
        sum.unanswered += seen.unanswered;
    }
    sum.offered = sum.succeeded + sum.refused + sum.unanswered;
    sum.sent = sum.offered;
    Ok(sum)
}

/// One call after the other on one connection, until it breaks.
async fn calls(stream: &Stream, seen: &mut Seen) -> Result<std::convert::Infallible> {
    let client = Client { address: Address::parse(&stream.url)?, token: stream.token.clone() };
    let connection = TokioIo::new(client.address.connect().await?);
    let (mut sender, driver) = hyper::client::conn::http1::handshake(connection).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(driver);
    let event = Bytes::from(stream.event.clone());
    loop {
        sender.ready().await?;
        let request = client.request(Method::POST, &stream.path, &[], event.clone())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        answer.into_body().collect().await?;
        if status.is_success() {
            seen.succeeded += 1;
        } else {
            seen.refused += 1;
        }
    }
}

impl Seen {
    fn count(&mut self, sample: &Sample) {
        match &sample.outcome {
            Outcome::Answered(answered) if answered.succeeded() => self.succeeded += 1,
            Outcome::Answered(_) => self.refused += 1,
            Outcome::Broken(_) | Outcome::Unanswered => self.unanswered += 1,
        }
    }
}

/// What the function returns.
#[derive(Deserialize)]
struct Handled {
    started_ns: u64,
}

/// What an answer without a result says; a body of another kind says nothing.
#[derive(Default, Deserialize)]
struct Failed {
    #[serde(default, rename = "errorType", alias = "Type")]
    kind: String,
}

impl Call {
    fn of(sample: &Sample, began: u64) -> Result<Self> {
        let intended = began + u64::try_from(sample.intended.as_nanos())?;
        let (mut start_delay, mut conforming, mut failure) = (None, None, None);
        match &sample.outcome {
            Outcome::Answered(answered) => {
                conforming = answered.conforming;
                let body = answered.result.as_deref().unwrap_or_default();
                if answered.succeeded() {
                    let handled: Handled = serde_json::from_slice(body).context("the function answered something else")?;
                    start_delay = Some(handled.started_ns.saturating_sub(intended));
                } else {
                    let said: Failed = serde_json::from_slice(body).unwrap_or_default();
                    failure = Some(format!("{} {}", answered.status.as_u16(), said.kind));
                }
            }
            Outcome::Broken(error) => failure = Some(error.clone()),
            Outcome::Unanswered => failure = Some("unanswered".to_owned()),
        }
        let lag = u64::try_from(sample.sent.saturating_sub(sample.intended).as_nanos())?;
        let latency = u64::try_from(sample.latency.as_nanos())?;
        Ok(Self { intended, lag, latency, start_delay, conforming, failure })
    }
}
