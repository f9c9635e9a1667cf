//! Where a chain goes on after a restart, and the reader of what lies on disk.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use journal::chain::{Break, Head, Reader, Segment, Tail};

use super::files::{Files, list, path_of};

/// Where the recorder goes on.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) head: Head,
    /// Numbers and sizes of the segments there are; the last one is written on, unless its size is zero and it is new.
    pub(super) segments: Vec<(u64, u64)>,
    pub(super) torn_bytes: u64,
    pub(super) damage: Option<Break>,
}

/// Looks at the newest segment, and at older ones only where it holds no whole line. What a crash cut off is removed; a
/// broken segment is left alone and followed by a new one.
pub(super) fn resume(files: &mut dyn Files) -> io::Result<Place> {
    let mut segments = files.list()?;
    let Some((newest, size)) = segments.last().copied() else {
        return Ok(Place { head: Head::GENESIS, segments: vec![(1, 0)], torn_bytes: 0, damage: None });
    };
    let (tail, damage) = examine(files, newest)?;
    let head = if tail.whole_bytes == 0 { head_before(files, &segments)? } else { tail.head };
    if damage.is_some() {
        segments.push((newest + 1, 0));
        return Ok(Place { head, segments, torn_bytes: 0, damage });
    }
    if tail.whole_bytes < size {
        files.truncate(newest, tail.whole_bytes)?;
    }
    if let Some((_, kept)) = segments.last_mut() {
        *kept = tail.whole_bytes;
    }
    Ok(Place { head, segments, torn_bytes: tail.torn_bytes, damage: None })
}

/// The head at the end of the newest segment but the last that has one.
fn head_before(files: &mut dyn Files, segments: &[(u64, u64)]) -> io::Result<Head> {
    for (segment, _) in segments.iter().rev().skip(1) {
        let (tail, _) = examine(files, *segment)?;
        if tail.whole_bytes != 0 {
            return Ok(tail.head);
        }
    }
    Ok(Head::GENESIS)
}

fn examine(files: &mut dyn Files, segment: u64) -> io::Result<(Tail, Option<Break>)> {
    let mut reader = Reader::new([Segment { name: format!("segment {segment}"), content: files.read(segment)? }]);
    let damage = reader.by_ref().find_map(Result::err);
    Ok((reader.tail(), damage))
}

/// The files a [`Reader`] goes through.
#[derive(Debug)]
pub struct SegmentFiles {
    paths: std::vec::IntoIter<PathBuf>,
    /// Nothing was opened yet, so the oldest may have been dropped since they were listed.
    may_be_gone: bool,
}

impl Iterator for SegmentFiles {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        loop {
            let path = self.paths.next()?;
            let content: Box<dyn io::BufRead> = match File::open(&path) {
                Err(error) if self.may_be_gone && error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Box::new(BufReader::new(Unreadable(error.kind()))),
                Ok(file) => Box::new(BufReader::with_capacity(1 << 16, file)),
            };
            self.may_be_gone = false;
            return Some(Segment { name: path.display().to_string(), content });
        }
    }
}

/// A file that could be listed and not opened: the reader tells it as a break.
struct Unreadable(io::ErrorKind);

impl io::Read for Unreadable {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Err(self.0.into())
    }
}

/// Reads evidence: one segment, or all of a directory in order. Errors when there is none; what cannot be read or proven
/// later on, the reader tells as a break.
pub fn open(path: &Path) -> io::Result<Reader<SegmentFiles>> {
    let paths = if path.is_dir() {
        let segments: Vec<PathBuf> = list(path)?.into_iter().map(|(segment, _)| path_of(path, segment)).collect();
        if segments.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no file of the form 00000001.takt is in it"));
        }
        segments
    } else {
        File::open(path)?;
        vec![path.to_owned()]
    };
    Ok(Reader::new(SegmentFiles { paths: paths.into_iter(), may_be_gone: true }))
}
