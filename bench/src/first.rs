//! What a developer waits for: from nothing to a first guaranteed answer, and from a change to its answer.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::clock;
use crate::result::{Spread, millis};
use crate::site::{Node, Programs};

const TEMPLATES: [&str; 3] = ["python", "nodejs", "provided-sh"];
/// How long a change may take to be served.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between looks whether a change is served.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Both, `times` times; a sentence for each and the numbers.
pub(crate) fn run(programs: &Programs, times: usize) -> Result<(Vec<String>, Value)> {
    let (mut parts, mut firsts) = (Vec::new(), Vec::new());
    for template in TEMPLATES {
        let all = (0..times).map(|_| from_nothing(programs, template)).collect::<Result<Vec<u64>>>()?;
        let spread = Spread::of(all);
        parts.push(format!("{template} {} / {}", millis(spread.p50_us), millis(spread.max_us)));
        firsts.push(json!({ "template": template, "took": spread }));
    }
    let changes = Spread::of(changes(programs, times)?);
    let notes = vec![
        format!(
            "From nothing (no node, no folder) by `takt serve`, `takt new`, `takt deploy` to the first answer of a guaranteed \
             invocation, in ms, p50 / max of {times}: {}.",
            parts.join("; ")
        ),
        format!(
            "From a change in a folder that `takt serve --dev` watches to the first answer of the new code (Python), in ms, \
             p50 / max of {times}: {} / {}.",
            millis(changes.p50_us),
            millis(changes.max_us)
        ),
    ];
    Ok((notes, json!({ "from_nothing": firsts, "change": changes })))
}

/// Nanoseconds from the start of a node to the first answer of a function whose folder was made meanwhile.
fn from_nothing(programs: &Programs, template: &str) -> Result<u64> {
    let home = TempDir::new()?;
    let begin = clock::monotonic_ns();
    let node = Node::start(programs)?;
    make(programs, home.path(), "first", template)?;
    takt(command(programs, &node).arg("deploy").arg(home.path().join("first")))?;
    let answer = node.invoke("first", "{}")?;
    let took = clock::monotonic_ns() - begin;
    let class = answer.headers.get("x-takt-class");
    if class.is_none_or(|class| class != "guaranteed") {
        bail!("the first invocation of template {template} was {class:?}, not guaranteed");
    }
    Ok(took)
}

/// Nanoseconds from each change to the first answer of the new code.
fn changes(programs: &Programs, times: usize) -> Result<Vec<u64>> {
    let home = TempDir::new()?;
    make(programs, home.path(), "watched", "python")?;
    let folder = home.path().join("watched");
    let node = Node::start_with(programs, &["--dev".as_ref(), folder.as_os_str()])?;
    until_served(&node, None)?;
    let mut all = Vec::with_capacity(times);
    for number in 0..times {
        let begin = clock::monotonic_ns();
        fs::write(folder.join("handler.py"), format!("def handler(event, context):\n    return {number}\n"))?;
        until_served(&node, Some(&number.to_string()))?;
        all.push(clock::monotonic_ns() - begin);
    }
    Ok(all)
}

/// Waits until the watched function answers, with `expected` where one is given.
fn until_served(node: &Node, expected: Option<&str>) -> Result<()> {
    for _ in 0..PATIENCE.as_millis() / LOOK_EVERY.as_millis() {
        if let Ok(answer) = node.invoke("watched", "{}")
            && expected.is_none_or(|expected| answer.body.as_ref() == expected.as_bytes())
        {
            return Ok(());
        }
        clock::pause(LOOK_EVERY);
    }
    bail!("the watched function does not answer {expected:?} within {PATIENCE:?}")
}

fn make(programs: &Programs, parent: &Path, name: &str, template: &str) -> Result<()> {
    takt(Command::new(&programs.takt).args(["new", name, "--template", template, "--in"]).arg(parent))
}

fn command(programs: &Programs, node: &Node) -> Command {
    let mut command = Command::new(&programs.takt);
    command.env("TAKT_URL", &node.url).env("TAKT_TOKEN", &node.client.token);
    command
}

fn takt(command: &mut Command) -> Result<()> {
    let output = command.output().context("cannot start takt")?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
