//! Nodes of tests run one at a time: each measures the machine it promises on, and would take the others' cores.

use std::fs::{File, OpenOptions};
use std::io;

/// The right to run a node, over all test programs of this machine. It is given back when the file is closed, by the
/// kernel where a test is killed.
pub(crate) fn alone() -> io::Result<File> {
    let path = std::env::temp_dir().join("takt-e2e.lock");
    // A lock needs no right to write; the file may be another user's.
    let made = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = File::open(&path).or_else(|_absent| made())?;
    file.lock()?;
    Ok(file)
}
