//! What functions print, kept for a while: the newest lines of each, within limits in bytes.
//!
//! Lanes append without waiting: a line goes into a bounded queue or is counted as lost. One thread takes lines from the
//! queue; readers page through what is kept and may wait for more. Invariant: what is kept never exceeds the limits, and
//! every line that is missing in between is counted where it is missing.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use model::{FunctionName, InstanceId};
use tokio::sync::watch;

/// Lines that may wait for the thread that keeps them.
const MAX_WAITING: usize = 1_024;
/// The usual limits; docs/reference/limits.md states them.
const LINE_BYTES_MAX: usize = 8 << 10;
const FUNCTION_BYTES_MAX: usize = 256 << 10;
const TOTAL_BYTES_MAX: usize = 16 << 20;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one line; the rest of a longer one is cut off.
    pub line_bytes: usize,
    /// Bytes of one function's lines.
    pub function_bytes: usize,
    /// Bytes of all lines; beyond, the function that keeps most loses its oldest.
    pub total_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { line_bytes: LINE_BYTES_MAX, function_bytes: FUNCTION_BYTES_MAX, total_bytes: TOTAL_BYTES_MAX }
    }
}

/// One line as it was printed, without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub instance: InstanceId,
    /// Unix time in milliseconds.
    pub at_ms: u64,
    pub text: String,
}

/// A kept line with its number; a function's lines are numbered from 0 without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    pub number: u64,
    pub line: Line,
}

/// A part of a function's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub lines: Vec<Numbered>,
    /// What to read from next time.
    pub next: u64,
    /// Lines before the first one here that were asked for and are no longer kept.
    pub lost: u64,
}

#[derive(Debug, Default)]
struct Log {
    lines: VecDeque<Numbered>,
    bytes: usize,
    next: u64,
}

impl Log {
    fn drop_oldest(&mut self) -> usize {
        let freed = self.lines.pop_front().map_or(0, |oldest| size(&oldest.line));
        self.bytes -= freed;
        freed
    }
}

#[derive(Debug, Default)]
struct Kept {
    logs: BTreeMap<FunctionName, Log>,
    bytes: usize,
}

impl Kept {
    fn keep(&mut self, function: &FunctionName, line: Line, limits: &Limits) {
        if !self.logs.contains_key(function) {
            self.logs.insert(function.clone(), Log::default());
        }
        if let Some(log) = self.logs.get_mut(function) {
            self.bytes += size(&line);
            log.bytes += size(&line);
            log.lines.push_back(Numbered { number: log.next, line });
            log.next += 1;
            while limits.function_bytes < log.bytes {
                self.bytes -= log.drop_oldest();
            }
        }
        while limits.total_bytes < self.bytes {
            match self.logs.values_mut().max_by_key(|log| log.bytes) {
                Some(largest) => self.bytes -= largest.drop_oldest(),
                None => return,
            }
        }
    }
}

/// A line costs its text and what is noted beside it.
fn size(line: &Line) -> usize {
    line.text.len() + size_of::<Numbered>()
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    kept: Mutex<Kept>,
    /// Lines that found the queue full.
    refused: AtomicU64,
    /// Counts changes, for those who wait.
    changes: watch::Sender<u64>,
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A panic elsewhere leaves the counts right: every change below completes before it unlocks.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way in, for whoever reads what instances print; cheap to clone.
#[derive(Clone, Debug)]
pub struct Appender {
    queue: SyncSender<(FunctionName, Line)>,
    shared: Arc<Shared>,
}

impl Appender {
    /// Keeps a line if there is room in the queue; never waits.
    pub fn append(&self, function: FunctionName, instance: InstanceId, at_ms: u64, text: &[u8]) {
        let text = String::from_utf8_lossy(text.get(..self.shared.limits.line_bytes).unwrap_or(text)).into_owned();
        if self.queue.try_send((function, Line { instance, at_ms, text })).is_err() {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The way out; cheap to clone.
#[derive(Clone, Debug)]
pub struct Logs {
    shared: Arc<Shared>,
}

/// The thread that keeps lines; it ends when the last [`Appender`] is gone, and is to be joined then.
#[derive(Debug)]
pub struct Keeper(JoinHandle<()>);

impl Keeper {
    /// Waits for the thread's end.
    ///
    /// # Panics
    /// When the thread did.
    pub fn join(self) {
        assert!(self.0.join().is_ok(), "invariant: keeping a line does not panic");
    }
}

/// Starts keeping lines. Errors when no thread can be made.
pub fn start(limits: Limits) -> io::Result<(Appender, Logs, Keeper)> {
    let (queue, lines) = sync_channel(MAX_WAITING);
    let (changes, _) = watch::channel(0);
    let shared = Arc::new(Shared { limits, kept: Mutex::default(), refused: AtomicU64::new(0), changes });
    let keeper = {
        let shared = Arc::clone(&shared);
        std::thread::Builder::new().name("takt-logs".to_owned()).spawn(move || keep_all(&shared, &lines))?
    };
    Ok((Appender { queue, shared: Arc::clone(&shared) }, Logs { shared }, Keeper(keeper)))
}

fn keep_all(shared: &Shared, lines: &Receiver<(FunctionName, Line)>) {
    while let Ok(first) = lines.recv() {
        {
            let mut kept = shared.kept();
            for (function, line) in std::iter::once(first).chain(lines.try_iter().take(MAX_WAITING)) {
                kept.keep(&function, line, &shared.limits);
            }
        }
        shared.changes.send_modify(|changes| *changes += 1);
    }
}

impl Logs {
    /// At most `max_lines` lines of a function from number `from` on.
    #[must_use]
    pub fn read(&self, function: &FunctionName, from: u64, max_lines: usize) -> Page {
        let kept = self.shared.kept();
        let Some(log) = kept.logs.get(function) else {
            return Page { next: from, ..Page::default() };
        };
        let first = log.lines.front().map_or(log.next, |line| line.number);
        let skipped = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        let lines: Vec<Numbered> = log.lines.iter().skip(skipped).take(max_lines).cloned().collect();
        let next = lines.last().map_or_else(|| from.clamp(first, log.next), |line| line.number + 1);
        Page { lines, next, lost: first.saturating_sub(from) }
    }

    /// The number of the line that is `count` lines before the end, or of the oldest kept.
    #[must_use]
    pub fn tail_from(&self, function: &FunctionName, count: u64) -> u64 {
        let kept = self.shared.kept();
        kept.logs.get(function).map_or(0, |log| {
            let first = log.lines.front().map_or(log.next, |line| line.number);
            log.next.saturating_sub(count).max(first)
        })
    }

    /// Forgets a function's lines, when it is deleted.
    pub fn forget(&self, function: &FunctionName) {
        let mut kept = self.shared.kept();
        if let Some(log) = kept.logs.remove(function) {
            kept.bytes -= log.bytes;
        }
    }

    /// Lines that were lost because the queue was full.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Bytes kept now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shared.kept().bytes
    }

    /// Tells when anything was kept since the receiver last looked.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> FunctionName {
        text.parse().unwrap()
    }

    fn line(text: &str) -> Line {
        Line { instance: InstanceId(1), at_ms: 5, text: text.to_owned() }
    }

    fn texts(page: &Page) -> Vec<&str> {
        page.lines.iter().map(|line| line.line.text.as_str()).collect()
    }

    #[test]
    fn the_reference_states_the_usual_limits() {
        let page = include_str!("../../../docs/reference/limits.md");
        for (name, bytes) in
            [("LINE_BYTES_MAX", LINE_BYTES_MAX), ("FUNCTION_BYTES_MAX", FUNCTION_BYTES_MAX), ("TOTAL_BYTES_MAX", TOTAL_BYTES_MAX)]
        {
            let text = if bytes < 1 << 20 { format!("{} KiB", bytes >> 10) } else { format!("{} MiB", bytes >> 20) };
            assert!(page.contains(&format!("| `{name}` | {text} ")), "{name} is {text}");
        }
    }

    #[test]
    fn lines_are_read_in_order_and_from_where_one_left_off() {
        let (appender, logs, keeper) = start(Limits::default()).unwrap();
        for text in ["one", "two", "three"] {
            appender.append(name("a"), InstanceId(1), 5, text.as_bytes());
        }
        appender.append(name("b"), InstanceId(2), 5, b"other");
        drop(appender);
        keeper.join();
        let page = logs.read(&name("a"), 0, 2);
        assert_eq!((texts(&page), page.next, page.lost), (vec!["one", "two"], 2, 0));
        assert_eq!(texts(&logs.read(&name("a"), page.next, 9)), ["three"]);
        assert_eq!(logs.read(&name("a"), 3, 9), Page { next: 3, ..Page::default() });
        assert_eq!(logs.tail_from(&name("a"), 1), 2);
        logs.forget(&name("a"));
        assert_eq!(logs.read(&name("a"), 0, 9).lines, []);
        assert_eq!(logs.bytes(), size(&line("other")));
    }

    #[test]
    fn a_long_line_is_cut_and_an_unreadable_one_kept() {
        let limits = Limits { line_bytes: 4, ..Limits::default() };
        let (appender, logs, keeper) = start(limits).unwrap();
        appender.append(name("a"), InstanceId(1), 5, b"abcdefgh");
        appender.append(name("a"), InstanceId(1), 5, b"\xff\xfe");
        drop(appender);
        keeper.join();
        assert_eq!(texts(&logs.read(&name("a"), 0, 9)), ["abcd", "\u{fffd}\u{fffd}"]);
    }

    proptest! {
        #[test]
        fn what_is_kept_stays_within_the_limits_and_what_is_lost_is_counted(
            lines in prop::collection::vec((0_u8..3, 0_usize..60), 0..80),
            function_bytes in 0_usize..600,
            total_bytes in 0_usize..1000,
        ) {
            let limits = Limits { line_bytes: 60, function_bytes, total_bytes };
            let mut kept = Kept::default();
            let mut counts = BTreeMap::new();
            for (function, length) in lines {
                let function = name(&format!("f{function}"));
                *counts.entry(function.clone()).or_insert(0_u64) += 1;
                kept.keep(&function, line(&"x".repeat(length)), &limits);
                let sizes = kept.logs.values().map(|log| log.lines.iter().map(|kept| size(&kept.line)).sum::<usize>());
                prop_assert_eq!(sizes.clone().sum::<usize>(), kept.bytes);
                prop_assert!(kept.bytes <= total_bytes && sizes.into_iter().all(|bytes| bytes <= function_bytes));
            }
            let (changes, _) = watch::channel(0);
            let logs = Logs { shared: Arc::new(Shared { limits, kept: Mutex::new(kept), refused: AtomicU64::new(0), changes }) };
            for (function, count) in counts {
                let page = logs.read(&function, 0, usize::MAX);
                prop_assert_eq!(page.lost + u64::try_from(page.lines.len()).unwrap(), count);
                prop_assert_eq!(page.next, count);
            }
        }
    }
}
