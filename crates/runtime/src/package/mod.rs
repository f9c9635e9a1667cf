//! Deployment packages: a zip from outside becomes a directory that instances run from, or is refused.
//!
//! The invariants: nothing is written outside the fresh directory it is unpacked into; a directory under its final name is
//! complete, on disk, and never changes; whoever runs it, as whatever user, can read all of it and reaches nothing beyond it
//! by its links. Modes are normalised: 0755 for directories and what was executable, 0644 for all else.

mod directory;
mod entries;
mod links;
mod pack;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::bootstrap::PROVIDED_FILE;
pub use pack::{IGNORED, pack};

/// The largest zip that is taken, in bytes, as on AWS.
pub const MAX_ZIP_BYTES: usize = 52_428_800;
/// The most bytes a zip may unpack to, as on AWS.
pub const MAX_UNPACKED_BYTES: u64 = 262_144_000;
/// The most files, directories and links in a package.
pub const MAX_ENTRIES: usize = 65_000;
/// The longest path in a package, in bytes, and the longest target of a link.
pub const MAX_PATH_BYTES: usize = 1024;
const MAX_NAME_BYTES: usize = 255;
const UNFINISHED: &str = ".new-";

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
    #[error("cannot write the package to `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read `{}` for the package", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// The SHA-256 of a zip as it was uploaded: the name its code has. Shown in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    #[must_use]
    pub fn of(zip: &[u8]) -> Self {
        Self(Sha256::digest(zip).into())
    }

    /// What AWS calls `CodeSha256`.
    #[must_use]
    pub fn base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// Reads [`Digest::base64`] back; `None` for any other text.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Code that lies unpacked in a [`Store`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub path: PathBuf,
    pub digest: Digest,
}

/// The unpacked packages of a node, by content.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    unfinished: AtomicU64,
}

impl Store {
    /// Opens or makes the directory, and removes what a crash left half unpacked. One process holds a store at a time.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let at = |source| Error::Write { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(at)?;
        fs::set_permissions(dir, Permissions::from_mode(0o755)).map_err(at)?;
        for entry in fs::read_dir(dir).map_err(at)? {
            let entry = entry.map_err(at)?;
            if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                fs::remove_dir_all(entry.path()).map_err(at)?;
            }
        }
        Ok(Self { dir: dir.to_owned(), unfinished: AtomicU64::new(0) })
    }

    /// Unpacks a zip; at once where its code is there already. When this returns, the code is on disk for good. It blocks,
    /// up to seconds for a large package.
    pub fn add(&self, zip: &[u8]) -> Result<Package, Error> {
        if MAX_ZIP_BYTES < zip.len() {
            return Err(Error::TooLarge { bytes: zip.len() });
        }
        let digest = Digest::of(zip);
        let path = self.path(digest);
        if path.is_dir() {
            return Ok(Package { path, digest });
        }
        let fresh = self.dir.join(format!("{UNFINISHED}{digest}-{}", self.unfinished.fetch_add(1, Ordering::Relaxed)));
        let done = entries::unpack(zip, &fresh, MAX_UNPACKED_BYTES).and_then(|()| self.publish(&fresh, &path));
        if let Err(error) = done {
            // What cannot be removed now is removed when the store is opened again.
            let _ = fs::remove_dir_all(&fresh);
            return Err(error);
        }
        Ok(Package { path, digest })
    }

    /// Where the code of a digest lies once it was added.
    #[must_use]
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// Removes code that no version refers to any more. That it is not there is no error.
    pub fn remove(&self, digest: Digest) -> Result<(), Error> {
        let path = self.path(digest);
        // Renamed first, so that what lies under the final name is always complete.
        let gone = self.dir.join(format!("{UNFINISHED}{digest}-{}", self.unfinished.fetch_add(1, Ordering::Relaxed)));
        match fs::rename(&path, &gone).and_then(|()| fs::remove_dir_all(&gone)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Write { path, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Syncs what was unpacked, then gives it its name.
    fn publish(&self, fresh: &Path, path: &Path) -> Result<(), Error> {
        let at = |source| Error::Write { path: path.to_owned(), source };
        let store = File::open(&self.dir).map_err(at)?;
        // One sync of the file system costs less than one of each file.
        rustix::fs::syncfs(&store).map_err(|errno| at(errno.into()))?;
        match fs::rename(fresh, path) {
            // Somebody else added the same code meanwhile.
            Err(_) if path.is_dir() => fs::remove_dir_all(fresh).map_err(at)?,
            renamed => renamed.map_err(at)?,
        }
        store.sync_all().map_err(at)
    }
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
