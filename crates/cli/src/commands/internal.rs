//! What takt starts itself for.

use std::process::ExitCode;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::args::{InternalArgs, InternalRole, ServeArgs};
use crate::commands::serve;
use crate::demo::{neighbour, traffic};
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::reference;

/// Takes the role that the hidden command names.
#[must_use]
pub fn run(args: &InternalArgs, format: Format) -> ExitCode {
    let done = match &args.role {
        InternalRole::Launcher => return node::become_launcher(),
        InternalRole::Node(args) => dependent_node(args, format),
        InternalRole::Function { role } => traffic::become_function(role).map(|()| Exit::Ok),
        InternalRole::Neighbour(args) => neighbour::main(args).map(|()| Exit::Ok),
        InternalRole::Docs => {
            print!("{}", reference::markdown());
            Ok(Exit::Ok)
        }
        InternalRole::Openapi => openapi(),
    };
    done.map_or_else(
        |error| {
            output::error(format, &error);
            Exit::Error.into()
        },
        ExitCode::from,
    )
}

fn openapi() -> Result<Exit> {
    let document = node::management::document().to_pretty_json().context("cannot write the description of /v1")?;
    println!("{document}");
    Ok(Exit::Ok)
}

fn dependent_node(args: &ServeArgs, format: Format) -> Result<Exit> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).context("cannot tie the node to its parent")?;
    serve::run(args, format)
}
