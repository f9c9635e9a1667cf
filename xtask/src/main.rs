//! The gate of the workspace: `cargo xtask ci`, `cargo xtask tidy`, `cargo xtask docs`.
//!
//! It leaves building to cargo and only decides what runs, in which order, and whether the house rules hold that no lint
//! of the compiler can see. It prints to standard error, so that a tool's own output stays in order with ours.
#![allow(clippy::print_stderr, reason = "a command's output is its purpose")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

mod ci;
mod docs;
mod tidy;

const USAGE: &str = "usage: cargo xtask ci [--full] | tidy | docs [--check]

  ci             everything a change must pass: fmt, tidy, clippy, generated docs, rustdoc, doc tests, stories
                 at level soft, tests
  ci --full      the same with ten times the simulator seeds, all stories at level soft and as an ordinary user, and the
                 sandbox's tests in an emulated machine with control groups v2
  tidy           the house rules that no compiler lint can see
  docs           writes the generated pages under docs/reference
  docs --check   says which of them are out of date";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<ExitCode> {
    std::env::set_current_dir(root()?).context("cannot enter the workspace's folder")?;
    match words {
        ["ci"] => ci::run(ci::Depth::Usual),
        ["ci", "--full"] => ci::run(ci::Depth::Full),
        ["tidy"] => tidy::run().map(|()| ExitCode::SUCCESS),
        ["docs"] => docs::write().map(|()| ExitCode::SUCCESS),
        ["docs", "--check"] => docs::check().map(|()| ExitCode::SUCCESS),
        ["help" | "--help" | "-h"] => {
            eprintln!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("no such task\n{USAGE}"),
    }
}

/// The workspace's folder, from where cargo put this package.
fn root() -> Result<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").context("run it as `cargo xtask`")?;
    let package = PathBuf::from(package);
    Ok(package.parent().context("xtask lies in no folder")?.to_owned())
}
