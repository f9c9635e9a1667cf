//! What takt starts itself for.

use std::process::ExitCode;

use crate::args::{InternalArgs, InternalRole};
use crate::exit::Exit;
use crate::reference;

/// Takes the role that the hidden command names.
#[must_use]
pub fn run(args: &InternalArgs) -> ExitCode {
    match &args.role {
        InternalRole::Launcher => node::become_launcher(),
        InternalRole::Docs => {
            print!("{}", reference::markdown());
            Exit::Ok.into()
        }
    }
}
