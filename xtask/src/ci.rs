//! What a change must pass, in order from cheap to dear, with the time each part took.
//!
//! The tests come last and their runner's summary is the last thing printed. Budgets are for people to see a gate that
//! grows; they fail nothing, for a wall clock says as much about the machine as about the change.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{docs, tidy};

/// How much of the parts that can be made longer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    Usual,
    Full,
}

impl Depth {
    /// Stories that each seeded test of the engine tells; it reads `TAKT_SEEDS`.
    const fn seeds(self) -> u32 {
        match self {
            Self::Usual => 2_000,
            Self::Full => 20_000,
        }
    }

    /// Which stories of a running node are told at a level below the machine's best (read by them from `TAKT_TEST_LEVEL`), and
    /// in how many minutes; no names are all.
    const fn levels(self) -> &'static [(&'static str, &'static [&'static str], u64)] {
        match self {
            Self::Usual => &[("soft", SHORT_STORIES, 2)],
            Self::Full => &[("soft", &[], 8), ("user", &[], 8)],
        }
    }
}

/// One for each thing that a node without real-time classes does otherwise.
const SHORT_STORIES: &[&str] = &[
    "admission::what_comes_beyond",
    "overrun::an_overrun_is_killed",
    "queue::a_queue_is_bounded",
    "restart::a_killed_node",
    "tool::every_template",
];

const WARNINGS_ARE_ERRORS: (&str, &str) = ("RUSTDOCFLAGS", "-D warnings");

/// Runs every part; the exit code is the tests' when everything before them passed.
pub(crate) fn run(depth: Depth) -> Result<ExitCode> {
    part("fmt", 1, || cargo(&["fmt", "--all", "--check"], &[]))?;
    part("tidy", 1, tidy::run)?;
    part("clippy", 10, || {
        cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"], &[])
    })?;
    part("generated docs", 5, docs::check)?;
    part("rustdoc", 5, || {
        cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items", "--locked"], &[WARNINGS_ARE_ERRORS])
    })?;
    part("doc tests", 5, || cargo(&["test", "--quiet", "--workspace", "--doc", "--locked"], &[]))?;
    for (level, stories, minutes) in depth.levels() {
        part(&format!("stories at level {level}"), *minutes, || at_level(level, stories))?;
    }
    match depth {
        Depth::Usual => {}
        Depth::Full => part("sandbox in a machine with control groups v2", 5, in_v2)?,
    }
    tests(depth)
}

/// The sandbox's tests in an emulated machine; only where Debian's packages are.
fn in_v2() -> Result<()> {
    if !std::path::Path::new("/usr/bin/apt-get").exists() {
        eprintln!("    skipped: the kernel of the machine comes from Debian's packages, and there is no apt-get here");
        return Ok(());
    }
    let status = Command::new(".ci/v2").status().context("cannot start .ci/v2")?;
    if !status.success() {
        bail!("`.ci/v2` ended with {status}");
    }
    Ok(())
}

/// The last part: prints nothing after the runner's summary.
fn tests(depth: Depth) -> Result<ExitCode> {
    let seeds = std::env::var("TAKT_SEEDS").unwrap_or_else(|_| depth.seeds().to_string());
    let runner: &[&str] = if has_nextest() {
        &["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]
    } else {
        &["test", "--workspace", "--lib", "--bins", "--tests", "--locked", "--no-fail-fast"]
    };
    eprintln!("==> tests ({seeds} seeds per story of the engine, budget 15 min)");
    let status = command(runner, &[("TAKT_SEEDS", seeds.as_str())]).status().context("cannot start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tells stories at a level below the best that this machine gives; only root can take rights away.
fn at_level(level: &str, stories: &[&str]) -> Result<()> {
    if !is_root()? {
        eprintln!("    skipped: this user is not root, so that every story is told at what it has");
        return Ok(());
    }
    let package = ["--package", "takt-cli", "--test", "e2e", "--locked", "--no-fail-fast"];
    let runner: (&[&str], &[&str]) = if has_nextest() { (&["nextest", "run"], &[]) } else { (&["test"], &["--"]) };
    cargo(&[runner.0, &package, runner.1, stories].concat(), &[("TAKT_TEST_LEVEL", level)])
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output().context("cannot start id")?;
    Ok(output.stdout.trim_ascii() == b"0")
}

fn has_nextest() -> bool {
    let probe = Command::new(cargo_path()).args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

#[expect(clippy::disallowed_methods, reason = "the gate tells people how long its parts took; nothing is decided on it")]
fn part(name: &str, budget_minutes: u64, body: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("==> {name}");
    let begun = Instant::now();
    body().with_context(|| format!("{name} did not pass"))?;
    let took = begun.elapsed();
    let over = if Duration::from_secs(60 * budget_minutes) < took { ", OVER its budget" } else { "" };
    eprintln!("    {name}: {:.1} s of {budget_minutes} min{over}", took.as_secs_f64());
    Ok(())
}

fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let status = command(arguments, environment).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("`cargo {}` ended with {status}", arguments.join(" "));
    }
    Ok(())
}

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(cargo_path());
    command.args(arguments).envs(environment.iter().copied());
    command
}

/// The cargo that started us, so that the toolchain stays the same.
pub(crate) fn cargo_path() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
