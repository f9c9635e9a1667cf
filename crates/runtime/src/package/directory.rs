//! The end of a zip file, read strictly.
//!
//! Zip readers differ in which of several directories they believe, and keep one of two entries of the same name. Here the
//! directory must end where the file ends, and every entry of it is counted before the zip crate reads anything.

use super::{Error, MAX_ENTRIES};

const END_SIGNATURE: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const ENTRY_SIGNATURE: &[u8] = b"PK\x01\x02";
const ENTRY_BYTES: usize = 46;
const MAX_COMMENT_BYTES: usize = 65_535;

/// Where the directory begins, and how many entries it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) start: usize,
    pub(super) entries: usize,
}

pub(super) fn find(zip: &[u8]) -> Result<Directory, Error> {
    let end = find_end(zip).ok_or(Error::NotAZip { reason: "no directory at its end" })?;
    let short = |at: usize| usize::from(u16::from_le_bytes([zip[end + at], zip[end + at + 1]]));
    let long = |at: usize| short(at) | (short(at + 2) << 16);
    let (entries, size, offset) = (short(10), long(12), long(16));
    if entries == 0xffff || size == 0xffff_ffff || offset == 0xffff_ffff {
        return Err(Error::NotAZip { reason: "zip64 is not taken" });
    }
    if (short(4), short(6)) != (0, 0) || short(8) != entries {
        return Err(Error::NotAZip { reason: "a zip of several parts is not taken" });
    }
    if MAX_ENTRIES < entries {
        return Err(Error::TooManyEntries { entries });
    }
    if offset.checked_add(size) != Some(end) {
        return Err(Error::NotAZip { reason: "its directory does not end at its end" });
    }
    if count(&zip[offset..end]) != Some(entries) {
        return Err(Error::NotAZip { reason: "its directory does not hold as many entries as it says" });
    }
    Ok(Directory { start: offset, entries })
}

/// The record whose comment ends exactly where the file ends.
fn find_end(zip: &[u8]) -> Option<usize> {
    let last = zip.len().checked_sub(END_BYTES)?;
    let first = last.saturating_sub(MAX_COMMENT_BYTES);
    (first..=last).rev().find(|at| {
        let comment = usize::from(u16::from_le_bytes([zip[at + 20], zip[at + 21]]));
        zip[*at..].starts_with(END_SIGNATURE) && at + END_BYTES + comment == zip.len()
    })
}

/// How many entries fill the directory exactly.
fn count(directory: &[u8]) -> Option<usize> {
    let (mut at, mut entries) = (0, 0);
    while at < directory.len() {
        let head = directory.get(at..at + ENTRY_BYTES)?;
        if !head.starts_with(ENTRY_SIGNATURE) {
            return None;
        }
        let short = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
        at += ENTRY_BYTES + short(28) + short(30) + short(32);
        entries += 1;
    }
    (at == directory.len()).then_some(entries)
}
