//! Noisy neighbours: a process that floods best-effort functions, each of a tenant of its own, through the node's public port.
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

/// The open loops have at most so many connections of their own together: several for each tenant, so that it always has
/// something waiting.
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

/// How neighbours flood.
#[derive(Clone, Debug)]
pub(crate) struct Flood {
    /// The functions, one of each neighbour.
    pub(crate) functions: Vec<String>,
    /// The event of every invocation, JSON.
    pub(crate) data: String,
    /// Over all functions, as the next.
    pub(crate) connections: u16,
    pub(crate) per_second: u32,
}

impl Flood {
    /// The rate of the open loop of each function.
    fn each_per_minute(&self) -> u64 {
        let functions = u64::try_from(self.functions.len()).unwrap_or(u64::MAX).max(1);
        (u64::from(self.per_second) * 60).div_ceil(functions).max(1)
    }
}

/// The neighbours' process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Neighbour {
    child: Child,
}

impl Neighbour {
    /// Starts flooding the node that `url` and `token` name.
    pub(crate) fn spawn(client: &Client, flood: &Flood) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.args(["internal", "neighbour", "--data", &flood.data]);
        command.args(["--connections", &flood.connections.to_string(), "--rate", &format!("{}/min", flood.each_per_minute())]);
        command.args(["--url", &format!("http://{}", client.address.authority)]).env("TAKT_TOKEN", &client.token);
        command.arg("--").args(&flood.functions);
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
    let path = |name| format!("/2015-03-31/functions/{name}/invocations");
    let began = Instant::now();
    let tally = Tally::default();
    let mut loops = JoinSet::new();
    for name in args.names.iter().cycle().take(usize::from(args.connections)) {
        loops.spawn_local(ask_again(client.clone(), path(name), args.data.clone(), tally.clone()));
    }
    let functions = u16::try_from(args.names.len()).unwrap_or(u16::MAX).max(1);
    for (seed, name) in (0_u64..).zip(&args.names) {
        let target = Target::new(client.clone(), path(name), args.data.clone().into_bytes())?;
        let drive = Drive::new(target, (OPEN_LOOP_CONNECTIONS / functions).max(1), PATIENCE);
        // Tenants that know nothing of each other do not ask at the same instants.
        let schedule = Schedule::new(args.rate, LONGEST, Arrivals::Poisson { seed });
        let tally = tally.clone();
        loops.spawn_local(async move {
            let mut wall = Wall::start().context("cannot make a timer")?;
            drive.run(schedule, &mut wall, |sample| tally.note(fate(sample))).await.map(drop)
        });
    }
    tokio::select! {
        // They end by errors alone.
        Some(done) = loops.join_next() => done.context("a load was lost")??,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_functions_together_are_asked_for_no_less_than_the_flood() {
        let flood =
            |functions| Flood { functions: vec![String::new(); functions], data: String::new(), connections: 1, per_second: 300 };
        assert_eq!([1, 7, 64].map(|functions| flood(functions).each_per_minute()), [18_000, 2_572, 282]);
    }
}
