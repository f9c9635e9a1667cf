//! Folders for temporary files.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

/// Names that are tried before giving up.
const TRIES: u32 = 1_000;

/// A folder for temporary files; removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover in the folder for temporary files harms nobody; the system clears it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    /// A new folder that only its owner can read, named for what it is for.
    pub(crate) fn new(purpose: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let parent = std::env::temp_dir();
        for _ in 0..TRIES {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let folder = parent.join(format!("takt-{purpose}-{}-{number}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => return Ok(Self(folder)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", folder.display())),
            }
        }
        bail!("no free name for a folder in {}", parent.display())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}
