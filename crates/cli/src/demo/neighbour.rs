//! A noisy neighbour: a process that floods a best-effort function through the node's public port.
//!
//! It is of ordinary class, as a client on the same machine is, and lives until its standard input ends: however its parent
//! dies, it goes.

use std::cell::Cell;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use http::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

use crate::args::NeighbourArgs;
use crate::client::Client;
use crate::load::{Arrivals, Drive, Outcome, Sample, Schedule, Target, Wall, exchange};

/// The open loop has at most so many connections of its own: more than a tenant may have waiting, so that the rest is refused
/// at once and sent again in time.
const OPEN_LOOP_CONNECTIONS: u16 = 400;
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any demonstration.
const LONGEST: Duration = Duration::from_secs(3_600);
/// A refused connection is tried again after this.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// What became of a flood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) seconds: f64,
    /// Invocations that ran and were answered.
    pub(crate) answered: u64,
    /// Answered with another status: too many waited.
    pub(crate) refused: u64,
    /// Connections that broke or never came about, and answers that never came.
    pub(crate) broken: u64,
}

/// How a neighbour floods.
#[derive(Clone, Debug)]
pub(crate) struct Flood {
    pub(crate) function: String,
    /// The event of every invocation, JSON.
    pub(crate) data: String,
    pub(crate) connections: u16,
    pub(crate) per_second: u32,
}

/// The neighbour's process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Neighbour {
    child: Child,
}

impl Neighbour {
    /// Starts flooding the node that `url` and `token` name.
    pub(crate) fn spawn(client: &Client, flood: &Flood) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.args(["internal", "neighbour", &flood.function, "--data", &flood.data]);
        command.args(["--connections", &flood.connections.to_string(), "--rate", &format!("{}/s", flood.per_second)]);
        command.args(["--url", &format!("http://{}", client.address.authority)]).env("TAKT_TOKEN", &client.token);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self { child: command.spawn().context("cannot start the neighbour")? })
    }

    /// Ends the flood and tells what came of it.
    pub(crate) async fn stop(mut self) -> Result<Counts> {
        drop(self.child.stdin.take());
        let mut output = self.child.stdout.take().context("the neighbour has no output")?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).map(|_| text)
        });
        let text = tokio::time::timeout(PATIENCE, reading).await.context("the neighbour did not end")?;
        let text = text.context("nobody read what the neighbour said")?.context("cannot read what the neighbour says")?;
        serde_json::from_str(&text).with_context(|| format!("the neighbour said {text:?}"))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Answered,
    Refused,
    Broken,
}

/// Counters of one event loop.
#[derive(Clone, Default)]
struct Tally {
    counts: Rc<Cell<Counts>>,
}

impl Tally {
    fn note(&self, fate: Fate) {
        let mut counts = self.counts.get();
        match fate {
            Fate::Answered => counts.answered += 1,
            Fate::Refused => counts.refused += 1,
            Fate::Broken => counts.broken += 1,
        }
        self.counts.set(counts);
    }
}

/// Floods until standard input ends, then prints the counts.
pub(crate) fn main(args: &NeighbourArgs) -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Under a lower limit its connections beyond it break, and are counted so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let client = Client::new(&args.node)?;
    let (end, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            // Whatever comes is no matter, only that it ends.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = end.send(());
        })
        .context("cannot listen to standard input")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start an event loop")?;
    let counts = LocalSet::new().block_on(&runtime, flood(args, client, ended))?;
    println!("{}", serde_json::to_string(&counts).context("cannot write the counts")?);
    Ok(())
}

async fn flood(args: &NeighbourArgs, client: Client, ended: oneshot::Receiver<()>) -> Result<Counts> {
    let path = format!("/2015-03-31/functions/{}/invocations", args.name);
    let began = Instant::now();
    let tally = Tally::default();
    let mut loops = JoinSet::new();
    for _ in 0..args.connections {
        loops.spawn_local(ask_again(client.clone(), path.clone(), args.data.clone(), tally.clone()));
    }
    let target = Target::new(client, path, args.data.clone().into_bytes())?;
    let mut wall = Wall::start().context("cannot make a timer")?;
    let drive = Drive::new(target, OPEN_LOOP_CONNECTIONS, PATIENCE);
    let schedule = Schedule::new(args.rate, LONGEST, Arrivals::Even);
    let open_loop = drive.run(schedule, &mut wall, |sample| tally.note(fate(sample)));
    tokio::select! {
        done = open_loop => drop(done?),
        _ = ended => {}
    }
    Ok(Counts { seconds: began.elapsed().as_secs_f64(), ..tally.counts.get() })
}

fn fate(sample: &Sample) -> Fate {
    match &sample.outcome {
        Outcome::Answered(answered) if answered.succeeded() => Fate::Answered,
        Outcome::Answered(_) => Fate::Refused,
        Outcome::Broken(_) | Outcome::Unanswered => Fate::Broken,
    }
}

/// One connection of the closed loop.
async fn ask_again(client: Client, path: String, data: String, tally: Tally) -> Result<()> {
    let mut line = None;
    loop {
        let request = client.request(Method::POST, &path, &[], data.clone())?;
        match exchange(line.take(), &client.address, request).await {
            Ok((head, _, next)) => {
                line = next;
                tally.note(if head.status.is_success() { Fate::Answered } else { Fate::Refused });
            }
            Err(_) => {
                tally.note(Fate::Broken);
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}
