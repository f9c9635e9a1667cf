//! Turns records into bytes on disk, batch by batch, and outlives a disk that refuses.

use std::io;

use journal::chain::Head;
use journal::record::Record;
use model::Time;

use super::files::Files;
use super::{Health, Options};

/// Bytes kept while they cannot be written; beyond them records are lost, and counted.
const WAITING_MAX_BYTES: usize = 8 << 20;
/// Ticks from one try to the next while the disk refuses.
const RETRY_TICKS: u32 = 20;

#[derive(Debug)]
pub(super) struct Writer {
    files: Box<dyn Files>,
    segment_bytes: u64,
    retention_bytes: u64,
    now: fn() -> Time,
    /// Of the last record in `waiting`.
    head: Head,
    /// Of the last record on disk.
    written: Head,
    /// Numbers and bytes on disk; the last one is being written.
    segments: Vec<(u64, u64)>,
    /// Chained, and not yet known to be on disk.
    waiting: Vec<u8>,
    /// Not yet recorded as lost.
    lost: u64,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    error: String,
    ticks: u32,
}

impl Writer {
    /// A writer that goes on with the last of `segments`; one of size zero is begun.
    pub(super) fn new(files: Box<dyn Files>, options: &Options, head: Head, segments: Vec<(u64, u64)>) -> Self {
        let begun = segments.last().is_some_and(|(_, bytes)| *bytes != 0);
        let waiting = if begun { Vec::new() } else { head.segment_header().into_bytes() };
        Self {
            files,
            segment_bytes: options.segment_bytes.max(1),
            retention_bytes: options.retention_bytes,
            now: options.now,
            head,
            written: head,
            segments,
            waiting,
            lost: 0,
            failing: None,
        }
    }

    /// The last record on disk.
    pub(super) const fn written(&self) -> Head {
        self.written
    }

    /// Of all segments on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|(_, bytes)| bytes).sum()
    }

    pub(super) fn health(&self) -> Health {
        match &self.failing {
            None => Health::Writing,
            Some(failing) => Health::Failing {
                error: failing.error.clone(),
                waiting_bytes: u64::try_from(self.waiting.len()).unwrap_or(u64::MAX),
                lost: self.lost,
            },
        }
    }

    /// Chains a record; errors when it has no place or cannot be written at all.
    pub(super) fn accept(&mut self, record: &Record) -> io::Result<()> {
        if WAITING_MAX_BYTES < self.waiting.len() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.head.append(record, &mut self.waiting).map_err(io::Error::other)
    }

    /// Chains a record or counts it as lost.
    pub(super) fn keep(&mut self, record: &Record) {
        if WAITING_MAX_BYTES < self.waiting.len() && self.failing.is_none() {
            // More in one batch than fits: the disk keeps up, so it goes out in parts.
            self.flush();
        }
        if self.accept(record).is_err() {
            self.lose(1);
        }
    }

    pub(super) const fn lose(&mut self, records: u64) {
        self.lost = self.lost.saturating_add(records);
    }

    /// Once per interval: writes, or tries again when it is time.
    pub(super) fn tick(&mut self) {
        match &mut self.failing {
            Some(failing) if failing.ticks < RETRY_TICKS => failing.ticks += 1,
            Some(_) | None => self.flush(),
        }
    }

    /// Writes what waits, and then how much was lost.
    pub(super) fn flush(&mut self) {
        let done = self.write().and_then(|()| self.write_lost()).and_then(|()| self.turn_over());
        self.failing = done.err().map(|error| Failing { error: error.to_string(), ticks: 0 });
    }

    /// The last record of all, and the last write.
    pub(super) fn stop(&mut self, at: Time) {
        self.flush();
        if self.failing.is_none() {
            self.keep(&Record::NodeStopped { at });
            self.flush();
        }
    }

    /// Puts what waits on disk.
    pub(super) fn write(&mut self) -> io::Result<()> {
        let (segment, bytes) = self.segments.last_mut().expect("invariant: there is a segment to write");
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.files.store(*segment, *bytes, &self.waiting)?;
        *bytes += u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        self.waiting.clear();
        self.written = self.head;
        Ok(())
    }

    fn write_lost(&mut self) -> io::Result<()> {
        if self.lost == 0 {
            return Ok(());
        }
        let records = std::mem::take(&mut self.lost);
        let accepted = self.accept(&Record::Lost { at: (self.now)(), records });
        if accepted.is_err() {
            self.lose(records);
        }
        accepted.and_then(|()| self.write())
    }

    /// Begins the next segment where this one is full, and drops the oldest beyond the limit.
    fn turn_over(&mut self) -> io::Result<()> {
        let (segment, bytes) = *self.segments.last().expect("invariant: there is a segment to write");
        if self.segment_bytes <= bytes {
            self.segments.push((segment + 1, 0));
            self.waiting.extend_from_slice(self.head.segment_header().as_bytes());
        }
        while 1 < self.segments.len() && self.retention_bytes < self.segments.iter().map(|(_, bytes)| bytes).sum() {
            self.files.remove(self.segments[0].0)?;
            self.segments.remove(0);
        }
        Ok(())
    }
}
