//! Unpacks the entries of a zip into a fresh directory.
//!
//! All names are checked before the first is written, files and directories are written before the first link is made, and
//! so no write ever goes through a link.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Cursor, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;

use zip::read::ZipFile;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::{Error, MAX_ENTRIES, MAX_NAME_BYTES, MAX_PATH_BYTES, directory, links};

type Archive<'z> = ZipArchive<Cursor<&'z [u8]>>;

const TYPE_MASK: u32 = 0o170_000;
const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const COPY_BYTES: usize = 64 << 10;

/// What an entry becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File { mode: u32 },
    Link,
}

/// Unpacks `zip`, at most `limit` bytes, into the directory `into`, which is empty or missing.
pub(super) fn unpack(zip: &[u8], into: &Path, limit: u64) -> Result<(), Error> {
    let found = directory::find(zip)?;
    if found.entries == 0 {
        return Err(Error::Empty);
    }
    let mut archive = ZipArchive::new(Cursor::new(zip)).map_err(|_| Error::NotAZip { reason: "its directory is damaged" })?;
    if u64::try_from(found.start) != Ok(archive.central_directory_start()) {
        return Err(Error::NotAZip { reason: "it has two directories" });
    }
    if archive.len() != found.entries {
        return Err(Error::Duplicate { name: "an entry".to_owned() });
    }
    let plan = plan(&mut archive, limit)?;
    let write = |source| Error::Write { path: into.to_owned(), source };
    fs::create_dir_all(into).and_then(|()| open_to_all(into)).map_err(write)?;
    let mut links = BTreeMap::new();
    let mut left = limit;
    for (path, (kind, index)) in &plan {
        let at = into.join(path);
        match (kind, index) {
            (Kind::Directory, _) => make_dir(&at).map_err(write)?,
            (Kind::File { mode }, Some(index)) => write_file(&mut archive, *index, &at, *mode, &mut left)?,
            (Kind::Link, Some(index)) => {
                let target = link_target(&mut archive, *index, path)?;
                links.insert(path.clone(), target);
            }
            (Kind::File { .. } | Kind::Link, None) => unreachable!("only directories are implied"),
        }
    }
    for (path, target) in &links {
        if !links::stays_inside(path, &links) {
            return Err(Error::Escapes { name: path.clone(), target: target.clone() });
        }
        symlink(target, into.join(path)).map_err(write)?;
    }
    Ok(())
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)?;
    open_to_all(path)
}

fn open_to_all(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)) // whatever the umask
}

/// Every path of the package with what it becomes and its entry; parents come before their children. A directory that is
/// only implied by its children has no entry.
fn plan(archive: &mut Archive<'_>, limit: u64) -> Result<BTreeMap<String, (Kind, Option<usize>)>, Error> {
    let mut plan: BTreeMap<String, (Kind, Option<usize>)> = BTreeMap::new();
    let mut bytes = 0_u64;
    for index in 0..archive.len() {
        let file = archive.by_index_raw(index).map_err(|error| damaged("an entry", error))?;
        let shown = String::from_utf8_lossy(file.name_raw()).chars().take(200).collect::<String>();
        let refuse = |reason| Error::Entry { name: shown.clone(), reason };
        let path = normal_path(file.name_raw()).map_err(refuse)?;
        let kind = kind(&file).map_err(refuse)?;
        bytes = bytes.saturating_add(file.size());
        if limit < bytes {
            return Err(Error::UnpacksTooLarge);
        }
        let Some(path) = path else { continue };
        let mut parents = path.match_indices('/').map(|(end, _)| &path[..end]);
        let free = parents.all(|parent| {
            let (kind, _) = plan.entry(parent.to_owned()).or_insert((Kind::Directory, None));
            *kind == Kind::Directory
        });
        match plan.get(&path) {
            // Named after its children were, or by itself for the second time.
            Some((Kind::Directory, None)) if kind == Kind::Directory && free => {}
            Some(_) => return Err(Error::Duplicate { name: shown }),
            None if !free => return Err(Error::Duplicate { name: shown }),
            None => {}
        }
        plan.insert(path, (kind, Some(index)));
        if MAX_ENTRIES < plan.len() {
            return Err(Error::TooManyEntries { entries: plan.len() });
        }
    }
    Ok(plan)
}

/// The path from the package's top, without needless parts; `None` for the top itself.
fn normal_path(raw: &[u8]) -> Result<Option<String>, &'static str> {
    let text = std::str::from_utf8(raw).map_err(|_| "its name is not UTF-8")?;
    if MAX_PATH_BYTES < text.len() {
        return Err("its path is longer than 1024 bytes");
    }
    if text.starts_with('/') {
        return Err("its path is absolute");
    }
    if text.contains(['\\', '\0']) {
        return Err("its name has a backslash or a zero byte");
    }
    let names: Vec<&str> = text.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if names.contains(&"..") {
        return Err("its path leads upwards");
    }
    if names.iter().any(|name| MAX_NAME_BYTES < name.len()) {
        return Err("its name is longer than 255 bytes");
    }
    Ok((!names.is_empty()).then(|| names.join("/")))
}

fn kind(file: &ZipFile<'_, Cursor<&[u8]>>) -> Result<Kind, &'static str> {
    if file.encrypted() {
        return Err("it is encrypted");
    }
    if !matches!(file.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
        return Err("it is compressed by another method than deflate");
    }
    let mode = file.unix_mode().unwrap_or(0);
    let named_directory = file.name_raw().ends_with(b"/");
    match mode & TYPE_MASK {
        DIRECTORY => Ok(Kind::Directory),
        0 | FILE if named_directory => Ok(Kind::Directory),
        0 | FILE if mode & 0o111 == 0 => Ok(Kind::File { mode: 0o644 }),
        0 | FILE => Ok(Kind::File { mode: 0o755 }),
        LINK if named_directory => Err("it is a link and a directory at once"),
        LINK => Ok(Kind::Link),
        _ => Err("it is neither file, directory nor link"),
    }
}

/// Writes one file, cut off where the package exceeds its limit whatever its directory says.
fn write_file(archive: &mut Archive<'_>, index: usize, at: &Path, mode: u32, left: &mut u64) -> Result<(), Error> {
    let write = |source| Error::Write { path: at.to_owned(), source };
    let mut packed = archive.by_index(index).map_err(|error| damaged("an entry", error))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(at).map_err(write)?;
    let mut buffer = [0; COPY_BYTES];
    loop {
        let count = packed.read(&mut buffer).map_err(|error| damaged(packed.name(), error))?;
        if count == 0 {
            break;
        }
        *left = left.checked_sub(count as u64).ok_or(Error::UnpacksTooLarge)?;
        file.write_all(&buffer[..count]).map_err(write)?;
    }
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode)).map_err(write) // whatever the umask
}

fn link_target(archive: &mut Archive<'_>, index: usize, name: &str) -> Result<String, Error> {
    let packed = archive.by_index(index).map_err(|error| damaged(name, error))?;
    let mut target = Vec::new();
    packed.take(MAX_PATH_BYTES as u64 + 1).read_to_end(&mut target).map_err(|error| damaged(name, error))?;
    let refuse = |reason| Error::Entry { name: name.to_owned(), reason };
    if target.is_empty() || MAX_PATH_BYTES < target.len() || target.contains(&0) {
        return Err(refuse("its target is not 1 to 1024 bytes long"));
    }
    String::from_utf8(target).map_err(|_| refuse("its target is not UTF-8"))
}

fn damaged(name: &str, error: impl Into<ZipError>) -> Error {
    Error::Damaged { name: name.chars().take(200).collect(), source: Box::new(error.into()) }
}
