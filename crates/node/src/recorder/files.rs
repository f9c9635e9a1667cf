//! The segments on disk.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where segments are kept, each under a number from 1. Called by the recorder's thread only.
pub trait Files: Send + fmt::Debug {
    /// The numbers and sizes (bytes) of all segments, in order. Called at the start.
    fn list(&mut self) -> io::Result<Vec<(u64, u64)>>;

    /// The content of a segment. Called at the start.
    fn read(&mut self, segment: u64) -> io::Result<Box<dyn BufRead>>;

    /// Puts `bytes` at this place of a segment, which is made when it is not there, and syncs it: when this returns, they
    /// outlive a crash. Called once per batch; after an error it is called again with the same and more bytes.
    fn store(&mut self, segment: u64, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a segment to its first `bytes`. Called at the start, after a crash.
    fn truncate(&mut self, segment: u64, bytes: u64) -> io::Result<()>;

    /// Removes a segment. Called when all together exceed the retention limit.
    fn remove(&mut self, segment: u64) -> io::Result<()>;
}

/// Segments as files of one directory, readable by their owner only.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// The file written last.
    current: Option<(u64, File)>,
}

const EXTENSION: &str = "takt";

impl Directory {
    /// Uses a directory, which is made when it is not there.
    pub fn create(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self { path: path.to_owned(), current: None })
    }

    fn file(&self, segment: u64) -> PathBuf {
        self.path.join(format!("{segment:08}.{EXTENSION}"))
    }

    fn open(&mut self, segment: u64) -> io::Result<&File> {
        let known = self.current.take().filter(|(number, _)| *number == segment);
        let file = match known {
            Some((_, file)) => file,
            None => {
                let path = self.file(segment);
                let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
                // Its name must outlive a crash too.
                File::open(&self.path)?.sync_all()?;
                file
            }
        };
        let (_, file) = self.current.insert((segment, file));
        Ok(file)
    }
}

impl Files for Directory {
    fn list(&mut self) -> io::Result<Vec<(u64, u64)>> {
        list(&self.path)
    }

    fn read(&mut self, segment: u64) -> io::Result<Box<dyn BufRead>> {
        Ok(Box::new(BufReader::with_capacity(1 << 16, File::open(self.file(segment))?)))
    }

    fn store(&mut self, segment: u64, at: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.open(segment)?;
        let stored = file.write_all_at(bytes, at).and_then(|()| file.sync_data());
        if stored.is_err() {
            // After a failed sync the kernel may have dropped what it held: nothing is taken over from this file.
            self.current = None;
        }
        stored
    }

    fn truncate(&mut self, segment: u64, bytes: u64) -> io::Result<()> {
        let file = self.open(segment)?;
        file.set_len(bytes)?;
        file.sync_all()
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        match std::fs::remove_file(self.file(segment)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// The segments of a directory: files whose name is a number of eight digits or more and the ending `.takt`.
pub(crate) fn list(directory: &Path) -> io::Result<Vec<(u64, u64)>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".takt")).filter(|digits| {
            8 <= digits.len()
                && digits.bytes().all(|byte| byte.is_ascii_digit())
                && (digits.len() == 8 || !digits.starts_with('0'))
        });
        if let Some(number) = number.and_then(|digits| digits.parse().ok()) {
            segments.push((number, entry.metadata()?.len()));
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// The path of a segment in a directory.
pub(crate) fn path_of(directory: &Path, segment: u64) -> PathBuf {
    directory.join(format!("{segment:08}.{EXTENSION}"))
}
