//! Comparisons of takt with named baselines, each in one run on one machine.
//!
//! `cargo run --release --package takt-bench -- isolation --short` prints a table and keeps it, with all numbers, under
//! `bench/results/`. Load comes from processes of their own, in an open loop unless said otherwise.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a comparison's output is its purpose")]

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

mod arrivals;
mod clock;
mod first;
mod footprint;
mod handlers;
mod isolation;
mod load;
mod lost;
mod overhead;
mod pacing;
mod result;
mod site;
mod start;

use result::Depth;

/// Compare takt with named baselines on this machine.
#[derive(Debug, Parser)]
struct Arguments {
    /// What is compared.
    #[arg(value_enum)]
    comparison: Comparison,

    /// A profile that takes three minutes at most.
    #[arg(long, conflicts_with = "tiny")]
    short: bool,

    /// Seconds only: whether the comparison itself works. Nothing is kept.
    #[arg(long)]
    tiny: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Comparison {
    /// Guaranteed functions beside neighbours that flood the same port.
    Isolation,
    /// What is added to a warm call, and calls per second in a closed loop.
    Overhead,
    /// Cold starts and their parts; how many instances must be kept ready.
    Start,
    /// Memory of the daemon and of idle instances.
    Footprint,
    /// Bursts against the promised line; overload with expiry.
    Pacing,
}

fn main() -> ExitCode {
    let done = if std::env::args().nth(1).as_deref() == Some(load::ROLE) { load::main() } else { run(&Arguments::parse()) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let depth = match (arguments.tiny, arguments.short) {
        (true, _) => Depth::Tiny,
        (false, true) => Depth::Short,
        (false, false) => Depth::Full,
    };
    let programs = site::Programs::find()?;
    let found = match arguments.comparison {
        Comparison::Isolation => isolation::run(&programs, depth)?,
        Comparison::Overhead => overhead::run(&programs, depth)?,
        Comparison::Start => start::run(&programs, depth)?,
        Comparison::Footprint => footprint::run(&programs, depth)?,
        Comparison::Pacing => pacing::run(&programs, depth)?,
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no root")?;
    found.tell((depth != Depth::Tiny).then_some(root))
}
