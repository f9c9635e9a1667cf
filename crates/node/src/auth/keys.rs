//! The keys of a node: made at its first start, kept in its data directory in a file that only its owner can read.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The file's name inside the data directory.
pub const FILE_NAME: &str = "keys.json";

/// A file longer than this is not ours.
const MAX_FILE_BYTES: u64 = 4096;
const ACCESS_KEY_BYTES: usize = 16;
const SECRET_BYTES: usize = 30;
const TOKEN_BYTES: usize = 32;
/// Random bytes that one set of keys is made from.
const RANDOM_BYTES: usize = ACCESS_KEY_BYTES + SECRET_BYTES + TOKEN_BYTES;

/// Why the node has no keys to work with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} the key file {}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the key file {} has mode {mode:03o}, others could read or change it; run `chmod 600` on it", path.display())]
    Readable { path: PathBuf, mode: u32 },
    #[error("the key file {} belongs to user {owner}, the node runs as user {user}", path.display())]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error("the key file {} is not a regular file of at most {MAX_FILE_BYTES} bytes", path.display())]
    Shape { path: PathBuf },
    #[error("the key file {} does not hold keys; remove it to have new ones made", path.display())]
    Content { path: PathBuf, source: serde_json::Error },
    #[error("`{field}` in the key file {} has {bytes} bytes; {range} are allowed", path.display())]
    Field { field: &'static str, path: PathBuf, bytes: usize, range: &'static str },
    #[error("the kernel gives no randomness to make keys from")]
    Randomness { source: getrandom::Error },
}

/// A text that no log and no debug output shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `offered` is this secret, in a time that tells nothing about where they differ.
    #[must_use]
    pub fn matches(&self, offered: &[u8]) -> bool {
        // Digests have one length, so not even the secret's length shows in the time taken.
        Sha256::digest(self.0.as_bytes()).ct_eq(&Sha256::digest(offered)).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What opens a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// What AWS clients send in clear with every signature.
    pub access_key_id: String,
    /// What AWS clients sign with.
    pub secret_access_key: Secret,
    /// `Authorization: Bearer …` of Takt's own API.
    pub token: Secret,
}

impl Keys {
    /// Makes keys from random bytes: an access key id of 20 characters, a secret of 40 (240 bits), a token of 48 (256 bits).
    #[must_use]
    pub fn from_random(random: &[u8; RANDOM_BYTES]) -> Self {
        const ID_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let (id, rest) = random.split_at(ACCESS_KEY_BYTES);
        let (secret, token) = rest.split_at(SECRET_BYTES);
        let id: String = id.iter().map(|byte| char::from(ID_ALPHABET[usize::from(byte % 32)])).collect();
        Self {
            access_key_id: format!("TAKT{id}"),
            secret_access_key: Secret(STANDARD.encode(secret)),
            token: Secret(format!("takt_{}", URL_SAFE_NO_PAD.encode(token))),
        }
    }

    /// Makes keys from the kernel's randomness.
    pub fn generate() -> Result<Self, Error> {
        let mut random = [0; RANDOM_BYTES];
        getrandom::fill(&mut random).map_err(|source| Error::Randomness { source })?;
        Ok(Self::from_random(&random))
    }
}

/// Reads the keys of a data directory.
///
/// Refused when the file is not a regular file, belongs to another user or may be read or written by anybody else.
pub fn load(data_dir: &Path) -> Result<Keys, Error> {
    let path = data_dir.join(FILE_NAME);
    let file_error = |what| move |source| Error::File { what, path: data_dir.join(FILE_NAME), source };
    // A link is refused (O_NOFOLLOW), and what was checked is what is read: all looks go through the one open file.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .map_err(file_error("open"))?;
    let metadata = file.metadata().map_err(file_error("inspect"))?;
    if !metadata.is_file() || MAX_FILE_BYTES < metadata.len() {
        return Err(Error::Shape { path });
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(Error::Owner { path, owner: metadata.uid(), user });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Readable { path, mode });
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(file_error("read"))?;
    let keys: Keys = serde_json::from_str(&text).map_err(|source| Error::Content { path: path.clone(), source })?;
    checked(keys, path)
}

/// Somebody may have written the file by hand: weak or unusable keys are refused.
fn checked(keys: Keys, path: PathBuf) -> Result<Keys, Error> {
    let id = &keys.access_key_id;
    if !(16..=128).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        let range = "16 to 128 letters and digits";
        return Err(Error::Field { field: "access_key_id", path, bytes: id.len(), range });
    }
    for (field, secret) in [("secret_access_key", &keys.secret_access_key), ("token", &keys.token)] {
        let bytes = secret.0.len();
        if !(32..=256).contains(&bytes) || !secret.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Field { field, path, bytes, range: "32 to 256 visible characters" });
        }
    }
    Ok(keys)
}

/// Reads the keys of a data directory, or makes them there at the first start.
///
/// Two nodes that start at once end with the same keys: the one whose file comes second reads the first one's.
pub fn load_or_create(data_dir: &Path) -> Result<Keys, Error> {
    match load(data_dir) {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        loaded => return loaded,
    }
    let keys = Keys::generate()?;
    let path = data_dir.join(FILE_NAME);
    let temporary = write_temporary(data_dir, &keys)?;
    let linked = fs::hard_link(&temporary, &path);
    let removed = fs::remove_file(&temporary);
    match linked {
        Ok(()) => {}
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => return load(data_dir),
        Err(source) => return Err(Error::File { what: "create", path, source }),
    }
    removed.map_err(|source| Error::File { what: "remove the temporary copy of", path: path.clone(), source })?;
    sync_dir(data_dir)?;
    Ok(keys)
}

/// Replaces the keys of a data directory by new ones, atomically: whoever reads the file sees the old or the new set. A
/// running node takes them when the caller hands them to [`super::Access::rotate`].
pub fn rotate(data_dir: &Path) -> Result<Keys, Error> {
    let keys = Keys::generate()?;
    let temporary = write_temporary(data_dir, &keys)?;
    let path = data_dir.join(FILE_NAME);
    fs::rename(&temporary, &path).map_err(|source| Error::File { what: "replace", path, source })?;
    sync_dir(data_dir)?;
    Ok(keys)
}

/// Writes the keys to a new file of mode 0600 beside the real one and syncs it.
fn write_temporary(data_dir: &Path, keys: &Keys) -> Result<PathBuf, Error> {
    let mut tag = [0; 8];
    getrandom::fill(&mut tag).map_err(|source| Error::Randomness { source })?;
    let path = data_dir.join(format!(".{FILE_NAME}.{:016x}", u64::from_le_bytes(tag)));
    let error = |what| move |source| Error::File { what, path: data_dir.join(FILE_NAME), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(error("create"))?;
    let text = serde_json::to_string_pretty(keys).map_err(|source| Error::Content { path: path.clone(), source })?;
    file.write_all(text.as_bytes()).map_err(error("write"))?;
    file.sync_all().map_err(error("sync"))?;
    Ok(path)
}

fn sync_dir(data_dir: &Path) -> Result<(), Error> {
    let synced = File::open(data_dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| Error::File { what: "sync the directory of", path: data_dir.join(FILE_NAME), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn set_mode(dir: &Path, mode: u32) {
        fs::set_permissions(dir.join(FILE_NAME), fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn keys_are_made_once_and_only_their_owner_can_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let made = load_or_create(dir.path()).unwrap();
        assert_eq!(load_or_create(dir.path()).unwrap(), made);
        assert_eq!(fs::metadata(dir.path().join(FILE_NAME)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn keys_that_others_can_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o610, 0o601] {
            set_mode(dir.path(), mode);
            assert!(matches!(load(dir.path()), Err(Error::Readable { mode: found, .. }) if found == mode), "{mode:o}");
        }
        set_mode(dir.path(), 0o400);
        load(dir.path()).unwrap();
    }

    #[test]
    fn a_link_in_place_of_the_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        load_or_create(elsewhere.path()).unwrap();
        symlink(elsewhere.path().join(FILE_NAME), dir.path().join(FILE_NAME)).unwrap();
        assert!(matches!(load_or_create(dir.path()), Err(Error::File { what: "open", .. })));
    }

    #[test]
    fn a_damaged_or_weak_key_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        for text in ["", "{", "{\"access_key_id\":\"A\"}"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(load_or_create(dir.path()), Err(Error::Content { .. })), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, r#"{"access_key_id":"TAKTAAAAAAAAAAAA","secret_access_key":"short","token":"t"}"#).unwrap();
        assert!(matches!(load(dir.path()), Err(Error::Field { field: "secret_access_key", bytes: 5, .. })));
        fs::write(&path, "x".repeat(5000)).unwrap();
        assert!(matches!(load(dir.path()), Err(Error::Shape { .. })));
    }

    #[test]
    fn rotation_gives_new_keys_that_the_next_start_reads() {
        let dir = tempfile::tempdir().unwrap();
        let old = load_or_create(dir.path()).unwrap();
        let new = rotate(dir.path()).unwrap();
        assert_ne!(old.token, new.token);
        assert_ne!(old.access_key_id, new.access_key_id);
        assert_eq!(load(dir.path()).unwrap(), new);
        assert_eq!(fs::metadata(dir.path().join(FILE_NAME)).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn no_debug_output_shows_a_secret() {
        let keys = Keys::from_random(&[7; RANDOM_BYTES]);
        assert_eq!((keys.access_key_id.len(), keys.secret_access_key.0.len(), keys.token.0.len()), (20, 40, 48));
        let shown = format!("{keys:?}");
        assert!(!shown.contains(keys.token.reveal()) && !shown.contains(keys.secret_access_key.reveal()), "{shown}");
        assert!(keys.token.matches(keys.token.reveal().as_bytes()));
        assert!(!keys.token.matches(&keys.token.reveal().as_bytes()[1..]));
    }
}
