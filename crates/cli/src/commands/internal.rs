//! What takt starts itself for.

use anyhow::Result;

use crate::args::{InternalArgs, InternalRole};
use crate::exit::Exit;
use crate::reference;

/// Takes the role that the hidden command names.
pub fn run(args: &InternalArgs) -> Result<Exit> {
    match &args.role {
        InternalRole::Docs => print!("{}", reference::markdown()),
    }
    Ok(Exit::Ok)
}
