//! The evidence as bytes: numbered, hash-chained lines that anybody can check with common tools.
//!
//! A segment is a text file. Its first line is `takt-evidence 1 FIRST PREVIOUS`: the number of its first record, and the
//! hash before it. Every other line is `NUMBER CRC HASH JSON`:
//! * NUMBER counts the records of a node from 1, without gaps and without leading zeros;
//! * CRC is the CRC-32 (IEEE) of `NUMBER HASH JSON`, eight lower-case hexadecimal digits: it tells damage from tampering;
//! * HASH is SHA-256 of the previous hash (32 bytes), NUMBER (8 bytes, big endian) and JSON, 64 lower-case digits. The hash
//!   before record 1 is all zeros;
//! * JSON is one [`Record`], as it was written: nothing is ever written again in another form.
//!
//! The reader accepts exactly what the writer makes, byte by byte, so that no change goes unseen. What a crash cut off at
//! the end is told apart from a break: it is a line without its end, or zeros.

use std::fmt;
use std::io::{self, BufRead};

use sha2::{Digest, Sha256};

use crate::record::Record;

/// The longest JSON of one record, bytes.
pub const MAX_RECORD_BYTES: usize = 1 << 20;
/// Number, checksum, hash, three spaces and a line end.
const MAX_LINE_BYTES: usize = MAX_RECORD_BYTES + 20 + 8 + 64 + 4;
const MAGIC: &str = "takt-evidence 1";

/// A SHA-256 hash, shown in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.digits();
        f.write_str(std::str::from_utf8(&digits).expect("invariant: hexadecimal digits are text"))
    }
}

impl Hash {
    fn digits(&self) -> [u8; 64] {
        let mut digits = [0; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        digits
    }
}

/// How far a chain goes: the number of its last record, and its hash. Whoever keeps this elsewhere can tell later that
/// nothing before it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub number: u64,
    pub hash: Hash,
}

/// The record that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("a record of {bytes} bytes exceeds the limit of {MAX_RECORD_BYTES}")]
    TooLong { bytes: usize },
    #[error("a record has no JSON form")]
    Json { source: serde_json::Error },
}

impl Head {
    /// Before the first record.
    pub const GENESIS: Self = Self { number: 0, hash: Hash([0; 32]) };

    /// The first line of a segment that goes on from here.
    #[must_use]
    pub fn segment_header(&self) -> String {
        format!("{MAGIC} {} {}\n", self.number + 1, self.hash)
    }

    /// Adds the line of the next record to `out`. On an error nothing was added and the chain is as before.
    pub fn append(&mut self, record: &Record, out: &mut Vec<u8>) -> Result<(), AppendError> {
        let json = serde_json::to_vec(record).map_err(|source| AppendError::Json { source })?;
        if MAX_RECORD_BYTES < json.len() {
            return Err(AppendError::TooLong { bytes: json.len() });
        }
        *self = self.next(&json);
        let mut crc = crc32fast::Hasher::new();
        let (number, hash) = (format!("{} ", self.number), format!("{} ", self.hash));
        for part in [number.as_bytes(), hash.as_bytes(), &json] {
            crc.update(part);
        }
        out.extend_from_slice(format!("{number}{:08x} {hash}", crc.finalize()).as_bytes());
        out.extend_from_slice(&json);
        out.push(b'\n');
        Ok(())
    }

    fn next(&self, json: &[u8]) -> Self {
        let number = self.number + 1;
        let digest = Sha256::new().chain_update(self.hash.0).chain_update(number.to_be_bytes()).chain_update(json).finalize();
        Self { number, hash: Hash(digest.into()) }
    }
}

/// One record, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub number: u64,
    pub record: Record,
}

/// Where and how a chain is broken. Nothing after it is proven.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of `{segment}` (byte {offset}), where record {number} is expected: {reason}")]
pub struct Break {
    pub segment: String,
    /// From 1.
    pub line: u64,
    /// Of the line's first byte.
    pub offset: u64,
    /// The number that should stand there.
    pub number: u64,
    #[source]
    pub reason: Reason,
}

#[derive(Debug, thiserror::Error)]
pub enum Reason {
    #[error("the file does not begin as a segment of evidence does")]
    Header,
    #[error("the segment begins with record {found} or with another hash than the one before ends with")]
    Segment { found: u64 },
    #[error("the line is not a record")]
    Form,
    #[error("the line exceeds the limit of {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("the line's checksum does not fit")]
    Checksum,
    #[error("the line holds record {found}")]
    Number { found: u64 },
    #[error("the hash does not follow from the record and the hash before")]
    Hash,
    #[error("the record is of a kind that this version does not know")]
    Record { source: serde_json::Error },
    #[error("the segment ends within a line, and another follows")]
    Cut,
    #[error("the file cannot be read")]
    Read { source: io::Error },
}

/// What lies behind the last record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The last record verified; with nothing verified, the one before the first.
    pub head: Head,
    /// The number of the first record there is; above 1, earlier ones were dropped when their time was over.
    pub first: Option<u64>,
    /// Bytes of a line that a crash cut off.
    pub torn_bytes: u64,
    /// Where the last segment's whole lines end.
    pub whole_bytes: u64,
}

/// A source of one segment's bytes.
pub struct Segment {
    /// As shown in errors.
    pub name: String,
    pub content: Box<dyn BufRead>,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Streams the records of segments in order, verifying each. After the first [`Break`] it ends.
#[derive(Debug)]
pub struct Reader<S: Iterator<Item = Segment>> {
    segments: std::iter::Peekable<S>,
    current: Option<Open>,
    head: Option<Head>,
    first: Option<u64>,
    torn_bytes: u64,
    whole_bytes: u64,
    line: Vec<u8>,
    broken: bool,
}

#[derive(Debug)]
struct Open {
    segment: Segment,
    /// Lines and bytes before the next.
    lines: u64,
    offset: u64,
}

/// What reading one line gave.
enum Line {
    Whole,
    /// The segment ends with a part of a line, or zeros.
    Torn,
    End,
}

impl<S: Iterator<Item = Segment>> Reader<S> {
    pub fn new(segments: impl IntoIterator<IntoIter = S, Item = Segment>) -> Self {
        Self {
            segments: segments.into_iter().peekable(),
            current: None,
            head: None,
            first: None,
            torn_bytes: 0,
            whole_bytes: 0,
            line: Vec::new(),
            broken: false,
        }
    }

    /// How far the verified records go, and what a crash left behind them. Complete once the iterator has ended.
    #[must_use]
    pub fn tail(&self) -> Tail {
        Tail {
            head: self.head.unwrap_or(Head::GENESIS),
            first: self.first,
            torn_bytes: self.torn_bytes,
            whole_bytes: self.whole_bytes,
        }
    }

    fn step(&mut self) -> Result<Option<Entry>, Break> {
        loop {
            let Some(mut open) = self.current.take() else {
                let Some(segment) = self.segments.next() else { return Ok(None) };
                self.whole_bytes = 0;
                self.current = Some(Open { segment, lines: 0, offset: 0 });
                continue;
            };
            let found = match self.read(&mut open) {
                Ok(Line::End) => continue,
                Ok(Line::Torn) if self.segments.peek().is_none() => return Ok(None),
                Ok(Line::Torn) => Err(Reason::Cut),
                Ok(Line::Whole) if open.lines == 0 => self.header().map(|()| None),
                Ok(Line::Whole) => self.entry().map(Some),
                Err(reason) => Err(reason),
            };
            let entry = found.map_err(|reason| self.broken_at(&open, reason))?;
            open.lines += 1;
            open.offset += u64::try_from(self.line.len()).unwrap_or(u64::MAX);
            self.whole_bytes = open.offset;
            self.current = Some(open);
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }

    fn broken_at(&self, open: &Open, reason: Reason) -> Break {
        let number = self.head.map_or(1, |head| head.number + 1);
        Break { segment: open.segment.name.clone(), line: open.lines + 1, offset: open.offset, number, reason }
    }

    /// The next line with its end, into `self.line`. No line holds a zero, so zeros can only be what a crash left at the
    /// end; they are counted and not kept.
    fn read(&mut self, open: &mut Open) -> Result<Line, Reason> {
        self.line.clear();
        let mut zeros = 0_u64;
        loop {
            let buffer = match open.segment.content.fill_buf() {
                Ok(buffer) => buffer,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Reason::Read { source }),
            };
            if buffer.is_empty() {
                self.torn_bytes = zeros + u64::try_from(self.line.len()).unwrap_or(u64::MAX);
                return Ok(if self.torn_bytes == 0 { Line::End } else { Line::Torn });
            }
            let taken = buffer.iter().position(|byte| matches!(byte, b'\n' | 0)).unwrap_or(buffer.len());
            let stop = buffer.get(taken).copied();
            if 0 < zeros || stop == Some(0) {
                if buffer[if zeros == 0 { taken } else { 0 }..].iter().any(|byte| *byte != 0) {
                    return Err(Reason::Form);
                }
                let all = buffer.len();
                if zeros == 0 {
                    self.line.extend_from_slice(&buffer[..taken]);
                    zeros = u64::try_from(all - taken).unwrap_or(u64::MAX);
                } else {
                    zeros += u64::try_from(all).unwrap_or(u64::MAX);
                }
                open.segment.content.consume(all);
                continue;
            }
            let taken = taken + usize::from(stop.is_some());
            self.line.extend_from_slice(&buffer[..taken]);
            open.segment.content.consume(taken);
            if MAX_LINE_BYTES < self.line.len() {
                return Err(Reason::TooLong);
            }
            if stop.is_some() {
                return Ok(Line::Whole);
            }
        }
    }

    fn header(&mut self) -> Result<(), Reason> {
        let head = parse_header(&self.line).ok_or(Reason::Header)?;
        match self.head {
            Some(known) if known != head => Err(Reason::Segment { found: head.number + 1 }),
            Some(_) => Ok(()),
            // Where numbers begin, there is nothing before.
            None if head.number == 0 && head != Head::GENESIS => Err(Reason::Header),
            None => {
                self.head = Some(head);
                Ok(())
            }
        }
    }

    fn entry(&mut self) -> Result<Entry, Reason> {
        let head = self.head.expect("invariant: a segment's header was read before its records");
        let frame = parse_frame(&self.line).ok_or(Reason::Form)?;
        if frame.checksum != frame.crc {
            return Err(Reason::Checksum);
        }
        if frame.number != head.number + 1 {
            return Err(Reason::Number { found: frame.number });
        }
        let next = head.next(frame.json);
        if next.hash != frame.hash {
            return Err(Reason::Hash);
        }
        let record = serde_json::from_slice(frame.json).map_err(|source| Reason::Record { source })?;
        self.head = Some(next);
        self.first.get_or_insert(next.number);
        Ok(Entry { number: next.number, record })
    }
}

impl<S: Iterator<Item = Segment>> Iterator for Reader<S> {
    type Item = Result<Entry, Break>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        let found = self.step().transpose();
        self.broken = matches!(found, Some(Err(_)));
        found
    }
}

struct Frame<'a> {
    number: u64,
    checksum: u32,
    crc: u32,
    hash: Hash,
    json: &'a [u8],
}

fn parse_frame(line: &[u8]) -> Option<Frame<'_>> {
    let line = line.strip_suffix(b"\n")?;
    let (number, rest) = split(line)?;
    let (crc, after_crc) = split(rest)?;
    let (hash, json) = split(after_crc)?;
    let mut checksum = crc32fast::Hasher::new();
    for part in [number, b" ", after_crc] {
        checksum.update(part);
    }
    let crc: [u8; 4] = parse_hex(crc)?;
    Some(Frame {
        number: parse_number(number)?,
        checksum: checksum.finalize(),
        crc: u32::from_be_bytes(crc),
        hash: Hash(parse_hex(hash)?),
        json,
    })
}

/// The head before the segment's first record.
fn parse_header(line: &[u8]) -> Option<Head> {
    let rest = line.strip_suffix(b"\n")?.strip_prefix(MAGIC.as_bytes())?.strip_prefix(b" ")?;
    let (first, hash) = split(rest)?;
    Some(Head { number: parse_number(first)?.checked_sub(1)?, hash: Hash(parse_hex(hash)?) })
}

fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|byte| *byte == b' ')?;
    Some((&line[..at], &line[at + 1..]))
}

/// A decimal number as the writer writes it: no sign, no leading zero.
fn parse_number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit) && text.first() != Some(&b'0');
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Exactly `N` bytes in lower-case hexadecimal.
fn parse_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
