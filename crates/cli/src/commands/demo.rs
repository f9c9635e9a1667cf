//! `takt demo`: what a guarantee is worth, shown.

use anyhow::Result;

use crate::args::{Demo, DemoArgs};
use crate::demo::traffic;
use crate::exit::Exit;
use crate::output::Format;

/// Shows the demonstration that was named.
pub fn run(args: &DemoArgs, format: Format) -> Result<Exit> {
    match &args.which {
        Demo::Traffic(args) => traffic::run(args, format),
    }
}
