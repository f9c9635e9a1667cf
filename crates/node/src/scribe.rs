//! Reads what instances write to stdout and stderr, on a thread of ordinary class.
//!
//! Reading never stops, so that no function blocks on a full pipe; what exceeds an instance's budget is counted and thrown
//! away instead.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use bytes::{Bytes, BytesMut};
use model::{FunctionName, InstanceId};
use runtime::launcher::MemoryMeter;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::budget::Budget;
use crate::logs::Appender;

/// Orders that may wait for the scribe.
pub(crate) const ORDERS_MAX: usize = 4_096;
/// What is kept of an instance's output since the last mark.
const KEPT_BYTES: usize = 16 << 10;
/// One read.
const READ_BYTES: usize = 64 << 10;
/// Reads of one pipe for one tail: what was written before fits into a pipe, the rest is still being written.
const READS_PER_TAIL: usize = 16;
/// Reads of one instance per second whose content is kept: 4 MiB/s.
const READS_PER_SECOND: u32 = 64;
const READS_AT_ONCE: u32 = 64;

/// What the scribe is asked to do.
pub(crate) enum Order {
    Follow {
        instance: InstanceId,
        function: FunctionName,
        output: OwnedFd,
        errors: OwnedFd,
        memory: MemoryMeter,
    },
    /// An invocation that wants its log begins.
    Mark {
        instance: InstanceId,
    },
    /// The node has something to say about an instance, for its function's log.
    Note {
        function: FunctionName,
        instance: InstanceId,
        text: String,
    },
    /// What was written since the mark, everything in the pipes included.
    Tail {
        instance: InstanceId,
        answer: oneshot::Sender<Tail>,
    },
}

/// What the scribe knows of an instance at the end of an invocation that wants its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) written: Bytes,
    /// The most memory it ever held, where the kernel counts it.
    pub(crate) peak_mib: Option<u32>,
}

/// Takes what an instance wrote. Called on the scribe's thread.
pub(crate) trait Sink: Send + 'static {
    /// Called with pieces of output in the order they were read; a piece may end within a line.
    fn wrote(&mut self, function: &FunctionName, instance: InstanceId, piece: &[u8]);

    /// Called when a stretch of output ended in which this many bytes were thrown away.
    fn dropped(&mut self, function: &FunctionName, instance: InstanceId, bytes: u64);

    /// Called with a line of the node's about the instance.
    fn noted(&mut self, function: &FunctionName, instance: InstanceId, text: &str);

    /// Called once, when the instance closed its output.
    fn ended(&mut self, function: &FunctionName, instance: InstanceId);
}

struct Followed {
    function: FunctionName,
    pipes: [AsyncPipe; 2],
    memory: MemoryMeter,
    kept: BytesMut,
    budget: Budget,
    dropped: u64,
    /// Pipes that are not closed yet.
    open: usize,
}

type AsyncPipe = std::rc::Rc<AsyncFd<OwnedFd>>;

/// Serves until its order queue closes. Runs on a current-thread runtime inside a `LocalSet`.
pub(crate) async fn run(mut orders: mpsc::Receiver<Order>, mut sink: impl Sink) {
    let mut followed: BTreeMap<InstanceId, Followed> = BTreeMap::new();
    let mut readable: JoinSet<(InstanceId, usize)> = JoinSet::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                None => return,
                Some(Order::Follow { instance, function, output, errors, memory }) => {
                    // Pipes that cannot be watched end like pipes that were closed.
                    let (Ok(output), Ok(errors)) = (watchable(output), watchable(errors)) else { continue };
                    let budget = Budget::new(READS_PER_SECOND, READS_AT_ONCE);
                    let pipes = [output, errors];
                    for (index, pipe) in pipes.iter().enumerate() {
                        await_output(&mut readable, instance, index, pipe);
                    }
                    let (kept, open) = (BytesMut::new(), pipes.len());
                    followed.insert(instance, Followed { function, pipes, memory, kept, budget, dropped: 0, open });
                }
                Some(Order::Mark { instance }) => {
                    if let Some(known) = followed.get_mut(&instance) {
                        known.kept.clear();
                    }
                }
                Some(Order::Note { function, instance, text }) => sink.noted(&function, instance, &text),
                Some(Order::Tail { instance, answer }) => {
                    let tail = followed.get_mut(&instance).map_or_else(Tail::default, |known| {
                        for index in 0..known.pipes.len() {
                            let mut reads = 0..READS_PER_TAIL;
                            while reads.next().is_some() && known.read(instance, index, &mut buffer, &mut sink) == Read::Some {}
                        }
                        Tail { written: known.kept.split().freeze(), peak_mib: known.memory.peak_mib() }
                    });
                    // The client may have gone away.
                    let _ = answer.send(tail);
                }
            },
            Some(ready) = readable.join_next() => {
                let Ok((instance, index)) = ready else { continue };
                let Some(known) = followed.get_mut(&instance) else { continue };
                match known.read(instance, index, &mut buffer, &mut sink) {
                    Read::Some | Read::Nothing => await_output(&mut readable, instance, index, &known.pipes[index].clone()),
                    Read::Closed => {
                        known.open -= 1;
                        if known.open == 0 {
                            followed.remove(&instance);
                        }
                    }
                }
            }
        }
    }
}

fn watchable(pipe: OwnedFd) -> io::Result<AsyncPipe> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    Ok(std::rc::Rc::new(runtime::sys::watch(pipe)?))
}

fn await_output(readable: &mut JoinSet<(InstanceId, usize)>, instance: InstanceId, index: usize, pipe: &AsyncPipe) {
    let pipe = pipe.clone();
    readable.spawn_local(async move {
        if let Ok(mut guard) = pipe.readable().await {
            guard.clear_ready();
        }
        (instance, index)
    });
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    Some,
    Nothing,
    Closed,
}

impl Followed {
    fn read(&mut self, instance: InstanceId, index: usize, buffer: &mut [u8], sink: &mut impl Sink) -> Read {
        let count = match rustix::io::read(self.pipes[index].get_ref(), &mut *buffer) {
            Ok(0) => return self.end(instance, sink),
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Read::Nothing,
            Err(_) => return self.end(instance, sink),
        };
        let piece = &buffer[..count];
        self.keep(piece);
        if self.budget.spend(runtime::sys::clock::now()).is_err() {
            self.dropped += count as u64;
        } else {
            self.report_dropped(instance, sink);
            sink.wrote(&self.function, instance, piece);
        }
        Read::Some
    }

    fn end(&mut self, instance: InstanceId, sink: &mut impl Sink) -> Read {
        self.report_dropped(instance, sink);
        sink.ended(&self.function, instance);
        Read::Closed
    }

    fn report_dropped(&mut self, instance: InstanceId, sink: &mut impl Sink) {
        if 0 < self.dropped {
            sink.dropped(&self.function, instance, self.dropped);
            self.dropped = 0;
        }
    }

    /// Keeps the end of the output.
    fn keep(&mut self, piece: &[u8]) {
        let piece = &piece[piece.len().saturating_sub(KEPT_BYTES)..];
        let excess = (self.kept.len() + piece.len()).saturating_sub(KEPT_BYTES);
        let _ = self.kept.split_to(excess.min(self.kept.len()));
        self.kept.extend_from_slice(piece);
    }
}

/// Cuts output into lines for the log store.
pub(crate) struct Lines {
    log: Appender,
    /// What instances wrote after their last line end.
    open: BTreeMap<InstanceId, Vec<u8>>,
}

/// A line without an end is kept up to here and then cut.
const LINE_BYTES: usize = 8 << 10;
/// Instances whose last line may be open at once.
const OPEN_MAX: usize = 4_096;

impl Lines {
    pub(crate) fn new(log: Appender) -> Self {
        Self { log, open: BTreeMap::new() }
    }
}

impl Sink for Lines {
    fn wrote(&mut self, function: &FunctionName, instance: InstanceId, piece: &[u8]) {
        let at_ms = u64::try_from(runtime::sys::clock::since_epoch().as_millis()).unwrap_or(u64::MAX);
        let mut open = self.open.remove(&instance).unwrap_or_default();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            open.extend_from_slice(part);
            if open.last() == Some(&b'\n') || LINE_BYTES <= open.len() {
                self.log.append(function.clone(), instance, at_ms, open.strip_suffix(b"\n").unwrap_or(&open));
                open.clear();
            }
        }
        if !open.is_empty() && self.open.len() < OPEN_MAX {
            self.open.insert(instance, open);
        }
    }

    fn dropped(&mut self, function: &FunctionName, instance: InstanceId, bytes: u64) {
        let at_ms = u64::try_from(runtime::sys::clock::since_epoch().as_millis()).unwrap_or(u64::MAX);
        let text = format!("[takt: {bytes} bytes of output dropped: more than 4 MiB/s]");
        self.log.append(function.clone(), instance, at_ms, text.as_bytes());
    }

    fn noted(&mut self, function: &FunctionName, instance: InstanceId, text: &str) {
        let at_ms = u64::try_from(runtime::sys::clock::since_epoch().as_millis()).unwrap_or(u64::MAX);
        self.log.append(function.clone(), instance, at_ms, format!("[takt: {text}]").as_bytes());
    }

    fn ended(&mut self, function: &FunctionName, instance: InstanceId) {
        if let Some(open) = self.open.remove(&instance) {
            let at_ms = u64::try_from(runtime::sys::clock::since_epoch().as_millis()).unwrap_or(u64::MAX);
            self.log.append(function.clone(), instance, at_ms, &open);
        }
    }
}
