//! The tool people hold: parses what they typed, talks to a node, prints what it said.
//!
//! Commands decide nothing about guarantees; the node does. A command returns an [`exit::Exit`]; human output goes to
//! standard output, everything about the way there (progress, errors) to standard error. With `--json` standard output
//! carries exactly one JSON document (or one per line, where a command streams).
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output is its purpose")]

use std::process::ExitCode;

use clap::Parser;

pub mod admission;
pub mod args;
pub mod client;
pub mod commands;
mod demo;
pub mod dev;
pub mod exit;
pub mod home;
pub mod load;
pub mod output;
pub mod package;
pub mod reference;
mod scratch;
pub mod top;

use args::{Cli, Command};
use exit::Exit;
use output::Format;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing more can be said where even the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    let format = if cli.json { Format::Json } else { Format::Human };
    // These have things to stop and remove however they end.
    if !matches!(cli.command, Command::Serve(_) | Command::Demo(_) | Command::Internal(_)) {
        // Where this cannot be set, output that nobody reads ends the command with an error instead of silently.
        let _ = node::end_with_the_reader();
    }
    match run(cli.command, format) {
        Ok(code) => code,
        Err(error) => {
            output::error(format, &error);
            Exit::Error.into()
        }
    }
}

fn run(command: Command, format: Format) -> anyhow::Result<ExitCode> {
    let exit = match command {
        Command::Serve(args) => commands::serve::run(&args, format),
        Command::New(args) => commands::new::run(&args, format),
        Command::Deploy(args) => commands::deploy::run(&args, format),
        Command::Invoke(args) => commands::invoke::run(&args, format),
        Command::List(args) => commands::list::run(&args, format),
        Command::Logs(args) => commands::logs::run(&args, format),
        Command::Delete(args) => commands::delete::run(&args, format),
        Command::Guarantee(args) => commands::guarantee::run(&args, format),
        Command::Top(args) => commands::top::run(&args, format),
        Command::Audit(args) => commands::audit::run(&args, format),
        Command::Backup(args) => commands::backup::run(&args, format),
        Command::Demo(args) => commands::demo::run(&args, format),
        Command::Env(args) => commands::env::run(&args, format),
        Command::Keys(args) => commands::keys::run(&args, format),
        // Its roles have exit codes of their own.
        Command::Internal(args) => return Ok(commands::internal::run(&args, format)),
    };
    exit.map(ExitCode::from)
}
