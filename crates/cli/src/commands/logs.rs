//! `takt logs`: what a function's instances wrote.

use std::borrow::Cow;
use std::io::Write;

use anyhow::{Context, Result, bail};

use crate::args::LogsArgs;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::Format;

/// Passes the lines on as they come; with `--json` the node sends one JSON document per line.
pub fn run(args: &LogsArgs, format: Format) -> Result<Exit> {
    let mut query = Vec::new();
    if args.follow {
        query.push("follow=true");
    }
    if format == Format::Json {
        query.push("format=json");
    }
    let path = format!("/v1/functions/{}/logs?{}", args.name, query.join("&"));
    let mut out = std::io::stdout().lock();
    let refused = Client::new(&args.node)?.stream(path.trim_end_matches('?'), |piece| {
        let piece = match format {
            Format::Json => Cow::Borrowed(piece),
            // The runtimes of AWS part the lines of a stack trace so; a terminal would write them over each other.
            Format::Human => Cow::Owned(piece.iter().map(|byte| if *byte == b'\r' { b'\n' } else { *byte }).collect()),
        };
        out.write_all(&piece).and_then(|()| out.flush()).context("cannot write to standard output")
    })?;
    match refused {
        Some(answer) => bail!("{}", answer.message()),
        None => Ok(Exit::Ok),
    }
}
