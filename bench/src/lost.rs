//! How long a function is without its instance when that dies: alone, and beside processes that want every core.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use node::sched;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::clock;
use crate::footprint::descendants;
use crate::handlers::Language;
use crate::load::REALTIME_PRIORITY;
use crate::result::{Spread, millis, ratio};
use crate::site::{Node, Programs};

/// Processes that loop, each in a session of its own.
const BUSY: usize = 32;
/// Between two invocations: a function of 2/s has a slot then, so that each is guaranteed.
const PAUSE: Duration = Duration::from_millis(550);
/// From a death to the next invocation; the node notices meanwhile. What comes back sooner is seen as this long.
const NOTICE: Duration = Duration::from_millis(10);
/// How long a process that was killed may take to die. It needs its cores for that, and an instance that waits for an invocation is
/// the last to get them.
const DYING: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Invocations without a guarantee after a death, at most.
const ASKS: usize = 10;
/// Deaths for every one that is counted, at most.
const TRIES: usize = 5;
const EVENT: &str = "{\"burn_us\":0}";

/// Lets the only instance of a function die so often, alone and in the crowd, with a guarantee and without.
pub(crate) fn run(programs: &Programs, times: usize) -> Result<(String, Value)> {
    let node = Node::start(programs)?;
    for language in Language::ALL {
        let zip = language.package(programs)?;
        // One instance is enough at this rate, so whoever comes next waits for its successor.
        let terms = "[guarantee]\nrate = \"2/s\"\nmax_run_time = \"20ms\"\nstart_within = \"10s\"\n";
        node.deploy(&format!("{}{terms}", language.toml(&promised(language))), &zip)?;
        node.deploy(&language.toml(&free(language)), &zip)?;
    }
    let measure = |name: fn(Language) -> String, asks: usize| -> Result<Vec<Successors>> {
        Language::ALL.into_iter().map(|language| successors(&node, &name(language), asks, times)).collect()
    };
    // Asked again at once, a guaranteed function would have no slot.
    let both = || Ok::<_, anyhow::Error>((measure(promised, 1)?, measure(free, ASKS)?));
    let (alone, free_alone) = undisturbed(both)?;
    let crowd = Crowd::start()?;
    let (beside, free_beside) = undisturbed(both)?;
    drop(crowd);
    let (mut parts, mut data) = (Vec::new(), Vec::new());
    for (index, language) in Language::ALL.into_iter().enumerate() {
        let (alone, beside, free_alone, free_beside) = (alone[index], beside[index], free_alone[index], free_beside[index]);
        let pair = |alone: Spread, beside: Spread| {
            format!("{} and {} ({})", millis(alone.p50_us), millis(beside.p50_us), ratio(beside.p50_us, alone.p50_us))
        };
        parts.push(format!(
            "{} {}; without a guarantee {}",
            language.runtime(),
            pair(alone.answer, beside.answer),
            pair(free_alone.answer, free_beside.answer)
        ));
        data.push(json!({
            "runtime": language.runtime(),
            "alone": alone, "beside": beside, "free_alone": free_alone, "free_beside": free_beside,
        }));
    }
    let dying = beside.iter().map(|it| it.dying.p50_us).max().unwrap_or(0);
    let note = format!(
        "From the death of a function's only instance to the next answer, in ms, medians of {times}, alone and beside {BUSY} busy \
         processes: {}. Who is killed while it waits for an invocation dies at the lowest weight: that takes up to {} ms (median) \
         beside them, before its death.",
        parts.join("; "),
        millis(dying)
    );
    Ok((note, json!({ "busy": BUSY, "functions": data })))
}

/// What killing the only instance again and again showed.
#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Successors {
    /// From the death to the next answer.
    answer: Spread,
    /// From the signal to the death.
    dying: Spread,
}

/// Measures in a thread that no busy process keeps from its core: how long the node takes is asked, not how long its client does.
fn undisturbed<T: Send>(measure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let measure = || {
        sched::set_current(sched::Class::Fifo { priority: REALTIME_PRIORITY }).context("measuring needs a real-time class")?;
        measure()
    };
    std::thread::scope(|scope| scope.spawn(measure).join().map_err(|_| anyhow!("measuring ended by a panic"))?)
}

fn promised(language: Language) -> String {
    format!("{}-promised", language.runtime())
}

fn free(language: Language) -> String {
    format!("{}-free", language.runtime())
}

fn successors(node: &Node, name: &str, asks: usize, times: usize) -> Result<Successors> {
    let (mut answers, mut dying, mut last) = (Vec::with_capacity(times), Vec::new(), None);
    for _ in 0..TRIES * times {
        clock::pause(PAUSE);
        if let Err(error) = node.invoke(name, EVENT) {
            last = Some(error);
            continue;
        }
        clock::pause(PAUSE);
        let killed = clock::monotonic_ns();
        kill(node, name)?;
        let begin = clock::monotonic_ns();
        dying.push(begin - killed);
        clock::pause(NOTICE);
        // Whoever came before the node knew of the death was with the dead instance, and shows nothing.
        let answered = (0..asks).any(|_| node.invoke(name, EVENT).map_err(|error| last = Some(error)).is_ok());
        if answered {
            answers.push(clock::monotonic_ns() - begin);
        }
        if answers.len() == times {
            return Ok(Successors { answer: Spread::of(answers), dying: Spread::of(dying) });
        }
    }
    let last = last.map_or_else(String::new, |error: anyhow::Error| format!("; the last said: {error:#}"));
    bail!("after {} deaths of `{name}` only {} invocations were answered{last}", TRIES * times, answers.len())
}

/// Kills the instance of a function as its environment tells it, of this node alone, and waits until it is dead.
fn kill(node: &Node, name: &str) -> Result<()> {
    let wanted = format!("AWS_LAMBDA_FUNCTION_NAME={name}");
    let mut killed = Vec::new();
    for process in descendants(node.pid())? {
        let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) else { continue };
        // A process that ends meanwhile, or that is none of ours to read, is no instance of it.
        let Ok(environment) = fs::read(format!("/proc/{process}/environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
            kill_process(pid, Signal::KILL).with_context(|| format!("cannot kill the instance of `{name}`"))?;
            killed.push(process);
        }
    }
    if killed.is_empty() {
        bail!("`{name}` has no instance that could be killed (reading the environment of instances needs root)");
    }
    for _ in 0..DYING.as_millis() / LOOK_EVERY.as_millis() {
        if killed.iter().all(|process| is_dead(*process)) {
            return Ok(());
        }
        clock::pause(LOOK_EVERY);
    }
    bail!("the instance of `{name}` does not die within {DYING:?}")
}

/// Whether a process has no thread that has not ended. Its first one lasts until its parent has taken note.
fn is_dead(process: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return true };
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    let threads = fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    matches!(state, Some('Z' | 'X')) && threads <= 1
}

/// Processes that loop until it is dropped, or the thread that started them ends, however it does.
struct Crowd(Vec<Child>);

impl Crowd {
    fn start() -> Result<Self> {
        let looping = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", "while :; do :; done"];
        let mut crowd = Self(Vec::with_capacity(BUSY));
        for _ in 0..BUSY {
            crowd.0.push(Command::new("setsid").args(looping).spawn().context("cannot start a busy process")?);
        }
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for busy in &mut self.0 {
            // It holds nothing.
            let _ = busy.kill();
            let _ = busy.wait();
        }
    }
}
