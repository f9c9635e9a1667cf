//! Packs a function folder into a zip. The same files make the same bytes.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zip::ZipWriter;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;

use super::{Error, MAX_ENTRIES, MAX_UNPACKED_BYTES, MAX_ZIP_BYTES};

/// Names that are left out wherever they stand.
pub const IGNORED: [&str; 6] = [".git", ".hg", ".svn", ".venv", ".DS_Store", "__pycache__"];

/// Zips the files under `folder` but for [`IGNORED`]. Links are kept as links; sockets, devices and pipes are refused.
pub fn pack(folder: &Path) -> Result<Vec<u8>, Error> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut waiting = list(folder)?;
    let (mut left, mut entries) = (MAX_UNPACKED_BYTES, 0_usize);
    while let Some(path) = waiting.pop() {
        entries += 1;
        if MAX_ENTRIES < entries {
            return Err(Error::TooManyEntries { entries });
        }
        let name = relative(folder, &path)?;
        let read = |source| Error::Read { path: path.clone(), source };
        let failed = |error: ZipError| Error::Damaged { name: name.clone(), source: Box::new(error) };
        let metadata = fs::symlink_metadata(&path).map_err(read)?;
        if metadata.is_dir() {
            zip.add_directory(name.as_str(), options(0o755)).map_err(failed)?;
            waiting.extend(list(&path)?);
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(read)?;
            let target = target.to_str().ok_or(Error::Entry { name: name.clone(), reason: "its target is not UTF-8" })?;
            zip.add_symlink(name.as_str(), target, options(0o777)).map_err(failed)?;
        } else if metadata.is_file() {
            let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
            let mut content = Vec::new();
            fs::File::open(&path).and_then(|file| file.take(left + 1).read_to_end(&mut content)).map_err(read)?;
            left = left.checked_sub(content.len() as u64).ok_or(Error::UnpacksTooLarge)?;
            zip.start_file(name.as_str(), options(mode)).map_err(failed)?;
            zip.write_all(&content).map_err(read)?;
        } else {
            return Err(Error::Entry { name, reason: "it is neither file, directory nor link" });
        }
    }
    if entries == 0 {
        return Err(Error::Empty);
    }
    let bytes = zip.finish().map_err(|error| Error::Damaged { name: "the zip".to_owned(), source: Box::new(error) })?;
    let bytes = bytes.into_inner();
    if MAX_ZIP_BYTES < bytes.len() {
        return Err(Error::TooLarge { bytes: bytes.len() });
    }
    Ok(bytes)
}

fn options(mode: u32) -> SimpleFileOptions {
    SimpleFileOptions::default().unix_permissions(mode)
}

/// What lies in a directory, last name first.
fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = |source| Error::Read { path: dir.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        if !IGNORED.iter().any(|ignored| entry.file_name() == *ignored) {
            paths.push(entry.path());
        }
    }
    paths.sort_unstable_by(|a, b| b.cmp(a));
    Ok(paths)
}

fn relative(folder: &Path, path: &Path) -> Result<String, Error> {
    let inside = path.strip_prefix(folder).unwrap_or(path);
    let text = inside.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::Entry { name: inside.to_string_lossy().into_owned(), reason: "its name is not UTF-8" })
}
