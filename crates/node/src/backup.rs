//! A consistent copy of what a node must not lose, made while it runs.
//!
//! A backup is a folder shaped like a data directory: `store.sqlite3`, `code/`, `evidence/` and `backup.json`. Restoring it
//! is copying it to where the data directory was and starting the node on it; keys are not part of it and are made anew.
//!
//! Code is copied after the store while nothing removes code, so all code that the copied registry names is in the copy.
//! Evidence files only grow: each is copied up to the length it had, and a record that was cut off at the end of the last
//! one is what the audit calls an incomplete end.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::code::{Codes, UNFINISHED};
use crate::store::{self, Sqlite};

/// Names inside a data directory and inside a backup.
pub const STORE: &str = "store.sqlite3";
pub const CODE: &str = "code";
pub const EVIDENCE: &str = "evidence";
const MANIFEST: &str = "backup.json";
/// Folders inside one another that are followed: deeper than any package that was let in.
const MAX_DEPTH: usize = 128;

/// Why a backup was not made, or is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} exists already; a backup is made into a new folder", path.display())]
    Exists { path: PathBuf },
    #[error("{} lies inside the data directory; a backup is made outside of it", path.display())]
    Inside { path: PathBuf },
    #[error("{} is not an absolute path", path.display())]
    Relative { path: PathBuf },
    #[error("cannot copy the store")]
    Store { source: store::Error },
    #[error("cannot {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is no complete backup: it has no `{MANIFEST}`, which is written last", path.display())]
    Incomplete { path: PathBuf },
    #[error("the backup has data-format version {found}, this takt knows versions up to {known}; use a newer takt")]
    Newer { found: usize, known: usize },
}

/// What a backup says of itself; written last, so that a folder without it is no backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The data-format version of the store.
    pub format: usize,
    /// The version of takt that made it.
    pub software: String,
    /// Unix time in milliseconds.
    pub made_ms: u64,
    pub files: u64,
    pub bytes: u64,
}

/// What is copied.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub data: &'a Path,
    pub store: &'a Sqlite,
    pub codes: &'a Codes,
    /// Unix time in milliseconds.
    pub now_ms: u64,
}

/// Copies everything into the new folder `target` and syncs it. Blocks for as long as that takes; on an error the folder
/// stays as it is, without a manifest.
pub fn make(source: Source<'_>, target: &Path) -> Result<Manifest, Error> {
    if !target.is_absolute() {
        return Err(Error::Relative { path: target.to_owned() });
    }
    let parent = target.parent().unwrap_or(target);
    let real = fs::canonicalize(parent).map_err(failed("find", parent))?;
    let data = fs::canonicalize(source.data).map_err(failed("find", source.data))?;
    if real.starts_with(&data) {
        return Err(Error::Inside { path: target.to_owned() });
    }
    match make_private(target) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists { path: target.to_owned() }),
        made => made.map_err(failed("create", target))?,
    }
    let mut copied = Copied::default();
    {
        let _nothing_is_removed = source.codes.hold();
        let store = target.join(STORE);
        source.store.copy_to(&store).map_err(|source| Error::Store { source })?;
        copied.count(&store)?;
        copied.tree(&source.data.join(CODE), &target.join(CODE), Kind::Code, 0)?;
    }
    copied.tree(&source.data.join(EVIDENCE), &target.join(EVIDENCE), Kind::Evidence, 0)?;
    let manifest = Manifest {
        format: Sqlite::FORMAT,
        software: env!("CARGO_PKG_VERSION").to_owned(),
        made_ms: source.now_ms,
        files: copied.files,
        bytes: copied.bytes,
    };
    let path = target.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).map_err(|error| Error::Io {
        operation: "write",
        path: path.clone(),
        source: error.into(),
    })?;
    fs::write(&path, text).map_err(failed("write", &path))?;
    sync(&path)?;
    sync(target)?;
    Ok(manifest)
}

/// Reads what a backup says of itself. Errors when it is incomplete or newer than this program.
pub fn inspect(backup: &Path) -> Result<Manifest, Error> {
    let path = backup.join(MANIFEST);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Incomplete { path: backup.to_owned() }),
        read => read.map_err(failed("read", &path))?,
    };
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| Error::Io { operation: "read", path, source: error.into() })?;
    if Sqlite::FORMAT < manifest.format {
        return Err(Error::Newer { found: manifest.format, known: Sqlite::FORMAT });
    }
    Ok(manifest)
}

/// Copies a backup to `data`, which must not exist; a node started on it has what the backed-up one had.
pub fn restore(backup: &Path, data: &Path) -> Result<Manifest, Error> {
    let manifest = inspect(backup)?;
    match make_private(data) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists { path: data.to_owned() }),
        made => made.map_err(failed("create", data))?,
    }
    let mut copied = Copied::default();
    copied.file(&backup.join(STORE), &data.join(STORE))?;
    copied.tree(&backup.join(CODE), &data.join(CODE), Kind::Code, 0)?;
    copied.tree(&backup.join(EVIDENCE), &data.join(EVIDENCE), Kind::Evidence, 0)?;
    sync(data)?;
    Ok(manifest)
}

fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path)
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { operation, path: path.to_owned(), source }
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed("sync", path))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Code,
    Evidence,
}

#[derive(Debug, Default)]
struct Copied {
    files: u64,
    bytes: u64,
}

impl Copied {
    fn count(&mut self, path: &Path) -> Result<(), Error> {
        self.files += 1;
        self.bytes += fs::metadata(path).map_err(failed("read", path))?.len();
        sync(path)
    }

    /// Copies a folder with its permissions; one that is not there is skipped. Symbolic links are copied as links.
    fn tree(&mut self, from: &Path, to: &Path, what: Kind, depth: usize) -> Result<(), Error> {
        let entries = match fs::read_dir(from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && depth == 0 => return Ok(()),
            entries => entries.map_err(failed("list", from))?,
        };
        fs::create_dir(to).map_err(failed("create", to))?;
        for entry in entries {
            let entry = entry.map_err(failed("list", from))?;
            let (path, target) = (entry.path(), to.join(entry.file_name()));
            if what == Kind::Code && depth == 0 && entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                continue; // it is being made, and nothing refers to it
            }
            let kind = entry.file_type().map_err(failed("read", &path))?;
            if kind.is_symlink() {
                let link = fs::read_link(&path).map_err(failed("read", &path))?;
                std::os::unix::fs::symlink(link, &target).map_err(failed("link", &target))?;
            } else if kind.is_file() {
                match self.file(&path, &target) {
                    // Evidence beyond its retention limit goes while it is copied.
                    Err(Error::Io { source, .. }) if what == Kind::Evidence && source.kind() == io::ErrorKind::NotFound => {}
                    copied => copied?,
                }
            } else if kind.is_dir() && depth < MAX_DEPTH {
                self.tree(&path, &target, what, depth + 1)?;
            }
        }
        let permissions = fs::metadata(from).map_err(failed("read", from))?.permissions();
        fs::set_permissions(to, permissions).map_err(failed("write", to))?;
        sync(to)
    }

    /// Copies a file up to the length it has now, whatever is appended meanwhile.
    fn file(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        let source = File::open(from).map_err(failed("open", from))?;
        let known = source.metadata().map_err(failed("read", from))?;
        let mut target = File::create_new(to).map_err(failed("create", to))?;
        let bytes = io::copy(&mut source.take(known.len()), &mut target).map_err(failed("copy", from))?;
        target.set_permissions(known.permissions()).map_err(failed("write", to))?;
        target.sync_all().map_err(failed("sync", to))?;
        self.files += 1;
        self.bytes += bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use journal::store::{Batch, Store};

    use super::*;
    use crate::code::Unpack;

    struct OneFile;

    impl Unpack for OneFile {
        fn unpack(&self, package: &[u8], into: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            fs::create_dir_all(into.join("lib"))?;
            std::os::unix::fs::symlink("lib/main", into.join("link"))?;
            fs::write(into.join("lib/main"), package)?;
            Ok(fs::set_permissions(into.join("lib/main"), fs::Permissions::from_mode(0o755))?)
        }
    }

    struct Node {
        folder: tempfile::TempDir,
        store: Sqlite,
        codes: Codes,
    }

    impl Node {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let data = folder.path().join("data");
            fs::create_dir_all(data.join(EVIDENCE)).unwrap();
            fs::write(data.join(EVIDENCE).join("0001.log"), b"records").unwrap();
            fs::write(data.join("keys"), b"secret").unwrap();
            let store = Sqlite::open(&data.join(STORE)).unwrap();
            let codes = Codes::open(&data.join(CODE), Arc::new(OneFile)).unwrap();
            Self { folder, store, codes }
        }

        fn backup(&self, target: &Path) -> Result<Manifest, Error> {
            let data = self.folder.path().join("data");
            make(Source { data: &data, store: &self.store, codes: &self.codes, now_ms: 7 }, target)
        }
    }

    #[test]
    fn a_restored_backup_holds_what_the_node_held() {
        let node = Node::new();
        let code = node.codes.add(b"code").unwrap();
        node.store.apply(Batch::new().put("function/a", vec![1])).unwrap();
        let (backup, data) = (node.folder.path().join("backup"), node.folder.path().join("restored"));
        let made = node.backup(&backup).unwrap();
        node.store.apply(Batch::new().put("function/a", vec![2])).unwrap();
        assert_eq!(restore(&backup, &data).unwrap(), made);
        let store = Sqlite::open(&data.join(STORE)).unwrap();
        assert_eq!(store.snapshot().unwrap().get("function/a").unwrap(), Some(vec![1]));
        let main = Codes::open(&data.join(CODE), Arc::new(OneFile)).unwrap().tree(&code.id).join("link");
        assert_eq!(fs::read(&main).unwrap(), b"code");
        assert_eq!(fs::metadata(&main).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read(data.join(EVIDENCE).join("0001.log")).unwrap(), b"records");
        assert!(!data.join("keys").exists(), "keys stay where they are");
        assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_backup_overwrites_nothing_and_stays_outside_the_data() {
        let node = Node::new();
        let taken = node.folder.path().join("taken");
        fs::create_dir(&taken).unwrap();
        assert!(matches!(node.backup(&taken), Err(Error::Exists { .. })));
        assert!(matches!(node.backup(&node.folder.path().join("data/x")), Err(Error::Inside { .. })));
        assert!(matches!(node.backup(Path::new("x")), Err(Error::Relative { .. })));
        assert!(matches!(restore(&taken, &node.folder.path().join("y")), Err(Error::Incomplete { .. })));
    }

    #[test]
    fn a_newer_backup_is_refused() {
        let node = Node::new();
        let backup = node.folder.path().join("backup");
        let manifest = Manifest { format: Sqlite::FORMAT + 1, ..node.backup(&backup).unwrap() };
        fs::write(backup.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        assert!(matches!(restore(&backup, &node.folder.path().join("y")), Err(Error::Newer { .. })));
    }
}
