//! Deployment packages: a zip from outside becomes a directory that instances run from, or is refused.
//!
//! Where the directory lies, and that it is named and synced only when it is complete, is left to the caller. The
//! invariants: nothing is written outside the fresh directory; whoever runs it, as whatever user, can read all of it and
//! reaches nothing beyond it by its links. Modes are normalised: 0755 for directories and what was executable, 0644 for all
//! else.

mod directory;
mod entries;
mod handler;
mod links;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use self::handler::check_handler;
use crate::bootstrap::PROVIDED_FILE;

/// The largest zip that is taken, in bytes, as on AWS.
pub const MAX_ZIP_BYTES: usize = 52_428_800;
/// The most bytes a zip may unpack to, as on AWS.
pub const MAX_UNPACKED_BYTES: u64 = 262_144_000;
/// The most files, directories and links in a package; directories count also where they are only implied by a path.
pub const MAX_ENTRIES: usize = 65_000;
/// The longest path in a package, in bytes, and the longest target of a link.
pub const MAX_PATH_BYTES: usize = 1024;
const MAX_NAME_BYTES: usize = 255;

/// Why a package was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("a package of {bytes} bytes exceeds the limit of {MAX_ZIP_BYTES} bytes")]
    TooLarge { bytes: usize },
    #[error("the package unpacks to more than {MAX_UNPACKED_BYTES} bytes")]
    UnpacksTooLarge,
    #[error("the package has {entries} entries, the limit is {MAX_ENTRIES}")]
    TooManyEntries { entries: usize },
    #[error("the package is no zip file: {reason}")]
    NotAZip { reason: &'static str },
    #[error("the package is empty")]
    Empty,
    #[error("`{name}` in the package cannot be unpacked: {reason}")]
    Entry { name: String, reason: &'static str },
    #[error("`{name}` is in the package twice, or once as a file and once as a directory")]
    Duplicate { name: String },
    #[error("the link `{name}` in the package leads out of it, to `{target}`")]
    Escapes { name: String, target: String },
    #[error("`{name}` in the package is damaged")]
    Damaged { name: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "the package has no executable file `{PROVIDED_FILE}` at its top, which runtime `provided` starts ({found}); zip the binary \
         under that name, with its executable bit set"
    )]
    NoProgram { found: &'static str },
    #[error("the handler `{handler}` is not of the form {form}")]
    HandlerForm { handler: String, form: &'static str },
    #[error("the package has no {looked_for} for the handler `{handler}`")]
    NoHandler { handler: String, looked_for: String },
    #[error("cannot write the package to `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Unpacks `zip` into the folder `into`, which is empty or missing. Blocks on the disk, up to seconds for a large package,
/// and syncs nothing; after an error what lies in the folder is to be thrown away.
pub fn unpack(zip: &[u8], into: &Path) -> Result<(), Error> {
    if MAX_ZIP_BYTES < zip.len() {
        return Err(Error::TooLarge { bytes: zip.len() });
    }
    entries::unpack(zip, into, MAX_UNPACKED_BYTES)
}

/// Checks that unpacked code has what runtime `provided` starts.
pub fn check_provided(code: &Path) -> Result<(), Error> {
    let found = match fs::metadata(code.join(PROVIDED_FILE)) {
        Ok(metadata) if !metadata.is_file() => "it is no file",
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => "it is not executable",
        Ok(_) => return Ok(()),
        Err(_) => "it is not there",
    };
    Err(Error::NoProgram { found })
}
