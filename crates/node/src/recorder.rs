//! The recorder: writes the evidence of a node, on a thread of ordinary class.
//!
//! Lanes hand it records over wait-free rings and never wait for it: a full ring loses the record, and the loss itself is
//! recorded. Records are written in the order in which they were handed over, whichever lane they came from. They are
//! chained ([`journal::chain`]), collected for a batch interval, written and synced. When the disk refuses, the recorder
//! keeps what it can, says so in its health, which stops admission, and goes on when the disk does.
//!
//! Segments are files `NNNNNNNN.takt` in one directory. The oldest are dropped beyond the retention limit; each begins with
//! the hash before it, so that what is kept stays provable.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use journal::chain::{Break, Head};
use journal::record::{NodeStarted, Record};
use model::Time;

pub(crate) mod files;
mod resume;
mod ring;
mod writer;

#[cfg(test)]
mod tests;

pub use files::{Directory, Files};
pub use resume::{SegmentFiles, open};
pub use ring::Sender;

use ring::Intake;
use writer::Writer;

/// How the recorder works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the segments lie; made when it is not there.
    pub directory: PathBuf,
    /// A segment that has reached this size is followed by a new one, bytes.
    pub segment_bytes: u64,
    /// The oldest segments are dropped while all together exceed this, bytes; the newest is never dropped.
    pub retention_bytes: u64,
    /// Rings, one for each thread that hands over records.
    pub lanes: usize,
    /// Records each ring holds.
    pub ring_records: usize,
    /// From one write to the next.
    pub batch_interval: Duration,
    /// The clock of the records.
    pub now: fn() -> Time,
}

impl Options {
    /// The usual sizes: segments of 64 MiB, 1 GiB kept, 32,768 records per ring, a sync at most every 50 ms.
    #[must_use]
    pub fn new(directory: PathBuf, lanes: usize) -> Self {
        Self {
            directory,
            segment_bytes: 64 << 20,
            retention_bytes: 1 << 30,
            lanes,
            ring_records: 32_768,
            batch_interval: Duration::from_millis(50),
            now: runtime::sys::clock::now,
        }
    }
}

/// Why the recorder could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use `{directory}` for evidence")]
    Directory { directory: String, source: std::io::Error },
    #[error("cannot start the recorder's thread")]
    Thread { source: std::io::Error },
}

/// What the recorder found when it started.
#[derive(Debug)]
pub struct Found {
    /// Where the chain goes on.
    pub head: Head,
    /// Bytes of a line that a crash had cut off; they were removed.
    pub torn_bytes: u64,
    /// The newest segment is broken there. It was left as it is, and a new one goes on from the last record before.
    pub damage: Option<Break>,
}

/// Whether evidence can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Writing,
    /// The disk refuses; what came since is in memory or, beyond the limit, lost. Admission stops.
    Failing {
        error: String,
        waiting_bytes: u64,
        lost: u64,
    },
    /// The recorder has ended.
    Stopped,
}

/// What others see of the recorder. Only threads of ordinary class may ask: it is behind a plain lock.
#[derive(Debug)]
struct Status {
    health: Health,
    /// The last record on disk.
    head: Head,
    /// Of all segments on disk.
    bytes: u64,
}

type Shared = Arc<Mutex<Status>>;

fn lock(status: &Mutex<Status>) -> MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Command {
    Flush(SyncSender<Health>),
    Stop {
        at: Time,
    },
    /// As a crash would, but with all that was handed over.
    End,
}

/// Asks the recorder. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    status: Shared,
    commands: SyncSender<Command>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Handle {
    /// Whether evidence can be written; anything but [`Health::Writing`] stops admission.
    #[must_use]
    pub fn health(&self) -> Health {
        lock(&self.status).health.clone()
    }

    /// The last record on disk, and the hash that proves all before it.
    #[must_use]
    pub fn head(&self) -> Head {
        lock(&self.status).head
    }

    /// Bytes of evidence on disk, all segments together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        lock(&self.status).bytes
    }

    /// Writes what was handed over before, and says whether that succeeded. Blocks for as long as the disk takes.
    #[must_use]
    pub fn flush(&self) -> Health {
        let (answer, written) = sync_channel(1);
        match self.commands.send(Command::Flush(answer)) {
            Ok(()) => written.recv().unwrap_or(Health::Stopped),
            Err(_) => Health::Stopped,
        }
    }
}

/// The recorder's thread, owned.
#[derive(Debug)]
pub struct Recorder {
    handle: Handle,
    thread: Option<JoinHandle<Health>>,
}

/// A recorder at work, and the ends to hand records to it.
#[derive(Debug)]
pub struct Started {
    pub recorder: Recorder,
    pub handle: Handle,
    /// One for each lane asked for.
    pub senders: Vec<Sender>,
    pub found: Found,
}

/// Starts the recorder: goes on from what the directory holds, and writes `opening` before anything else. Called from a
/// thread of ordinary class, which the recorder's thread takes over.
pub fn start(options: &Options, opening: NodeStarted) -> Result<Started, Error> {
    let directory = |source| Error::Directory { directory: options.directory.display().to_string(), source };
    let files = Directory::create(&options.directory).map_err(directory)?;
    start_on(Box::new(files), options, opening)
}

fn start_on(mut files: Box<dyn Files>, options: &Options, opening: NodeStarted) -> Result<Started, Error> {
    let directory = |source| Error::Directory { directory: options.directory.display().to_string(), source };
    let place = resume::resume(&mut *files).map_err(directory)?;
    let found = Found { head: place.head, torn_bytes: place.torn_bytes, damage: place.damage };
    let mut writer = Writer::new(files, options, place.head, place.segments);
    let opened = writer.accept(&Record::NodeStarted(opening)).and_then(|()| writer.write());
    opened.map_err(directory)?;
    let status = Arc::new(Mutex::new(Status { health: Health::Writing, head: writer.written(), bytes: writer.bytes() }));
    let (senders, intake) = ring::rings(options.lanes, options.ring_records);
    let (commands, orders) = sync_channel(16);
    let handle = Handle { status: Arc::clone(&status), commands };
    let work = Work { writer, intake, orders, status, interval: options.batch_interval };
    let spawned = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || work.run());
    let thread = spawned.map_err(|source| Error::Thread { source })?;
    let recorder = Recorder { handle: handle.clone(), thread: Some(thread) };
    Ok(Started { recorder, handle, senders, found })
}

impl Recorder {
    /// Writes all that was handed over and a last record that says the node stopped in order, and ends. The answer is
    /// the health with which it ended: [`Health::Writing`] when all of it is on disk.
    #[must_use]
    pub fn stop(mut self, at: Time) -> Health {
        self.end(Command::Stop { at })
    }

    fn end(&mut self, how: Command) -> Health {
        let Some(thread) = self.thread.take() else { return Health::Stopped };
        // Where the thread has ended already, nobody takes the order.
        let _ = self.handle.commands.send(how);
        // A panic of the thread was printed where it happened.
        thread.join().unwrap_or(Health::Stopped)
    }
}

impl Drop for Recorder {
    /// Writes what was handed over, without the record that says the node stopped in order.
    fn drop(&mut self) {
        self.end(Command::End);
    }
}

/// The recorder's side of it all.
struct Work {
    writer: Writer,
    intake: Intake,
    orders: Receiver<Command>,
    status: Shared,
    interval: Duration,
}

/// Says that the thread ended, however it did.
struct Ending(Shared);

impl Drop for Ending {
    fn drop(&mut self) {
        lock(&self.0).health = Health::Stopped;
    }
}

impl Work {
    /// Works until told to end; the answer is how the last write went.
    fn run(mut self) -> Health {
        let _ending = Ending(Arc::clone(&self.status));
        loop {
            let order = self.orders.recv_timeout(self.interval);
            self.take_in();
            match order {
                Ok(Command::Stop { at }) => {
                    self.writer.stop(at);
                    break;
                }
                Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => {
                    self.writer.flush();
                    break;
                }
                Ok(Command::Flush(answer)) => {
                    self.writer.flush();
                    self.publish();
                    // Whoever asked may have gone.
                    let _ = answer.try_send(self.writer.health());
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.writer.tick();
                    self.publish();
                }
            }
        }
        self.publish();
        self.writer.health()
    }

    fn take_in(&mut self) {
        let Self { writer, intake, .. } = self;
        intake.drain(|record| writer.keep(record));
        writer.lose(intake.take_lost());
    }

    fn publish(&self) {
        let mut status = lock(&self.status);
        status.health = self.writer.health();
        status.head = self.writer.written();
        status.bytes = self.writer.bytes();
    }
}

/// Records that were lost before they reached the recorder.
fn count_lost(lost: &AtomicU64) {
    lost.fetch_add(1, Ordering::Relaxed);
}
