//! The code of functions on disk, by content: one folder per package, named by its SHA-256, never changed.
//!
//! Unpacking and its limits belong to whoever implements [`Unpack`]. Invariant: a folder under its final name is complete,
//! because it is made under another name, synced and renamed.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Folders with this prefix are being made or removed; they are collected at start.
pub(crate) const UNFINISHED: &str = ".unfinished-";
const PACKAGE: &str = "package.zip";
const TREE: &str = "tree";

/// The SHA-256 of a package, written in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodeId([u8; 32]);

impl CodeId {
    #[must_use]
    pub fn of(package: &[u8]) -> Self {
        Self(Sha256::digest(package).into())
    }

    /// AWS's `CodeSha256`.
    #[must_use]
    pub fn base64(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl fmt::Display for CodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the SHA-256 of a package in hexadecimal")]
pub struct CodeIdError {
    text: String,
}

impl FromStr for CodeId {
    type Err = CodeIdError;

    fn from_str(text: &str) -> Result<Self, CodeIdError> {
        let error = || CodeIdError { text: text.chars().take(80).collect() };
        let digits: Vec<u8> = text.bytes().filter(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte)).collect();
        if text.len() != 64 || digits.len() != 64 {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for CodeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A package as the registry remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    pub id: CodeId,
    /// The size of the package as uploaded.
    pub bytes: u64,
}

/// Why code cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the package cannot be unpacked")]
    Package { source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

/// Turns a package into files.
pub trait Unpack: Send + Sync + 'static {
    /// Unpacks `package` into the folder `into`, which does not exist yet, within limits, or says why not. Called once per
    /// new package, on a thread that may block; after an error the folder is thrown away.
    fn unpack(&self, package: &[u8], into: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// Deployment packages as clients send them.
#[derive(Clone, Copy, Debug)]
pub struct Zip;

impl Unpack for Zip {
    fn unpack(&self, package: &[u8], into: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(runtime::package::unpack(package, into)?)
    }
}

/// The folder of all code.
#[derive(Clone)]
pub struct Codes {
    root: PathBuf,
    unpack: Arc<dyn Unpack>,
    next: Arc<AtomicU64>,
    /// Held by whoever removes code, and by whoever copies it.
    removing: Arc<Mutex<()>>,
}

impl fmt::Debug for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codes").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Codes {
    /// The folder is made when it is missing.
    pub fn open(root: &Path, unpack: Arc<dyn Unpack>) -> Result<Self, Error> {
        fs::create_dir_all(root).map_err(failed("create", root))?;
        Ok(Self { root: root.to_owned(), unpack, next: Arc::default(), removing: Arc::default() })
    }

    /// Where the files of the code lie, read-only.
    #[must_use]
    pub fn tree(&self, id: &CodeId) -> PathBuf {
        self.root.join(id.to_string()).join(TREE)
    }

    /// The package as uploaded.
    #[must_use]
    pub fn package(&self, id: &CodeId) -> PathBuf {
        self.root.join(id.to_string()).join(PACKAGE)
    }

    #[must_use]
    pub fn contains(&self, id: &CodeId) -> bool {
        self.tree(id).is_dir()
    }

    /// Keeps all code where it is until the guard is dropped. Blocks while code is being removed.
    pub fn hold(&self) -> MutexGuard<'_, ()> {
        self.removing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unpacks and keeps a package; one that is there already costs its hash only. Blocks on the disk.
    pub fn add(&self, package: &[u8]) -> Result<Code, Error> {
        let id = CodeId::of(package);
        let code = Code { id, bytes: u64::try_from(package.len()).unwrap_or(u64::MAX) };
        let place = self.root.join(id.to_string());
        if self.contains(&id) {
            return Ok(code);
        }
        let making = self.unfinished();
        let made = self.make(package, &making);
        let renamed = made.and_then(|()| match fs::rename(&making, &place) {
            Err(_) if self.contains(&id) => fs::remove_dir_all(&making).map_err(failed("remove", &making)),
            other => other.map_err(failed("rename", &making)),
        });
        if let Err(error) = renamed {
            // What could not be made is removed; what cannot be removed now is collected at the next start.
            let _left = fs::remove_dir_all(&making);
            return Err(error);
        }
        sync_folder(&self.root)?;
        Ok(code)
    }

    /// Removes all code but `keep`. Blocks on the disk; called after changes, never while code is being added; does nothing while code is held.
    pub fn collect(&self, keep: &BTreeSet<CodeId>) -> Result<(), Error> {
        // While code is copied nothing goes; the next collection finds it.
        let _nothing_is_copied = match self.removing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        for entry in fs::read_dir(&self.root).map_err(failed("list", &self.root))? {
            let path = entry.map_err(failed("list", &self.root))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let used = name.parse().is_ok_and(|id: CodeId| keep.contains(&id));
            let unfinished = name.starts_with(UNFINISHED);
            if used || !(unfinished || name.parse::<CodeId>().is_ok()) {
                continue;
            }
            // Renamed first: a crash half way leaves no folder that looks complete.
            let going = if unfinished { path } else { self.retire(&path)? };
            fs::remove_dir_all(&going).map_err(failed("remove", &going))?;
        }
        Ok(())
    }

    fn retire(&self, path: &Path) -> Result<PathBuf, Error> {
        let going = self.unfinished();
        fs::rename(path, &going).map_err(failed("rename", path))?;
        Ok(going)
    }

    fn unfinished(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.root.join(format!("{UNFINISHED}{}-{number}", std::process::id()))
    }

    fn make(&self, package: &[u8], into: &Path) -> Result<(), Error> {
        let tree = into.join(TREE);
        fs::create_dir_all(into).map_err(failed("create", into))?;
        self.unpack.unpack(package, &tree).map_err(|source| Error::Package { source })?;
        let file = into.join(PACKAGE);
        fs::write(&file, package).map_err(failed("write", &file))?;
        // One sync of the file system costs less than one of each of its files.
        let folder = File::open(into).map_err(failed("open", into))?;
        rustix::fs::syncfs(&folder).map_err(|errno| failed("sync", into)(errno.into()))
    }
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { operation, path: path.to_owned(), source }
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The package is the one file; "broken" leaves half of it.
    struct OneFile;

    impl Unpack for OneFile {
        fn unpack(&self, package: &[u8], into: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            fs::create_dir(into)?;
            fs::write(into.join("main.py"), package)?;
            if package == b"broken" { Err("the package ends too early".into()) } else { Ok(()) }
        }
    }

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn code_is_kept_once_by_content_and_collected_when_unused() {
        let folder = tempfile::tempdir().unwrap();
        let codes = Codes::open(folder.path(), Arc::new(OneFile)).unwrap();
        let one = codes.add(b"one").unwrap();
        assert_eq!(codes.add(b"one").unwrap(), one);
        let two = codes.add(b"two").unwrap();
        assert_eq!(fs::read(codes.tree(&one.id).join("main.py")).unwrap(), b"one");
        assert_eq!(fs::read(codes.package(&two.id)).unwrap(), b"two");
        fs::create_dir(folder.path().join(".unfinished-1-1")).unwrap();
        codes.collect(&BTreeSet::from([two.id])).unwrap();
        assert!(!codes.contains(&one.id) && codes.contains(&two.id));
        assert_eq!(entries(folder.path()), 1);
    }

    /// A zip archive of one file `f` that holds "x", stored.
    fn zip_of_x() -> Vec<u8> {
        let facts = [0x14, 0, 0, 0, 0, 0, 0, 0, 0x21, 0, 0x83, 0x16, 0xdc, 0x8c, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
        let local = [b"PK\x03\x04".as_slice(), &facts, b"f", b"x"].concat();
        let directory = [b"PK\x01\x02\x14\x00".as_slice(), &facts, &[0; 14], b"f"].concat();
        let sizes = [u32::try_from(directory.len()).unwrap(), u32::try_from(local.len()).unwrap()].map(u32::to_le_bytes).concat();
        let end = [b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00".as_slice(), &sizes, &[0, 0]].concat();
        [local, directory, end].concat()
    }

    #[test]
    fn a_zip_becomes_files() {
        let folder = tempfile::tempdir().unwrap();
        let codes = Codes::open(folder.path(), Arc::new(Zip)).unwrap();
        let code = codes.add(&zip_of_x()).unwrap();
        assert_eq!(fs::read(codes.tree(&code.id).join("f")).unwrap(), b"x");
        assert!(matches!(codes.add(b"no zip"), Err(Error::Package { .. })));
        assert_eq!(entries(folder.path()), 1);
    }

    #[test]
    fn a_package_that_does_not_unpack_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let codes = Codes::open(folder.path(), Arc::new(OneFile)).unwrap();
        assert!(matches!(codes.add(b"broken"), Err(Error::Package { .. })));
        assert_eq!(entries(folder.path()), 0);
    }

    #[test]
    fn an_id_reads_back_and_is_awss_hash() {
        let id = CodeId::of(b"");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.base64(), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        for text in ["", "..", &"g".repeat(64), &"A".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<CodeId>().is_err(), "{text}");
        }
    }
}
