//! Starting and stopping a node.

use std::fs::{DirBuilder, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::Level;
use runtime::host::{self, Grant, Protection};
use runtime::sys::sched;
use runtime::{bootstrap, launcher};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::assemble::Node;
use crate::auth::origin::Hosts;
use crate::auth::{Policy, keys};
use crate::calibrate::{self, Classes, Measured};
use crate::descriptors::{Connections, Instances};
use crate::front::Front;
use crate::lambda::Home;
use crate::protections::Protections;
use crate::{capacity, code, control, door, recorder, store};

/// How a node is started.
#[derive(Clone, Debug)]
pub struct Options {
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    /// Memory for instances of guaranteed functions, bytes; `None`: most of what the machine has.
    pub memory: Option<u64>,
    /// Host names the node may be asked under, beside its address and localhost.
    pub hosts: Vec<String>,
    /// The program that becomes a launcher when it is started with [`Options::launcher_arguments`].
    pub program: PathBuf,
    pub launcher_arguments: Vec<String>,
}

/// What a node says once it serves.
#[derive(Clone, Debug)]
pub struct Ready {
    pub address: SocketAddr,
    pub level: Level,
    pub measured: Measured,
    /// Functions whose guarantee no longer fits.
    pub suspended: usize,
    /// What this machine and user give the node or do not, most consequential first.
    pub protections: Vec<Protection>,
}

/// Why a node does not serve, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the data directory {}", path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error("another node uses the data directory {}; give this one its own with --data-dir", path.display())]
    InUse { path: PathBuf },
    #[error("keys of the node")]
    Keys { source: keys::Error },
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot measure this machine")]
    Measure { source: io::Error },
    #[error("cannot write the runtime clients")]
    Clients { source: bootstrap::Error },
    #[error("cannot start the launcher of instances")]
    Launcher { source: launcher::SpawnError },
    #[error("cannot open the store")]
    Store { source: store::Error },
    #[error("cannot open the code directory")]
    Codes { source: code::Error },
    #[error("the control plane does not start")]
    Control { source: control::StartError },
    #[error("what ran before the restart cannot be brought up")]
    Bringing { source: control::Error },
    #[error("cannot open the evidence")]
    Evidence { source: recorder::Error },
    #[error("cannot start a thread of the node")]
    Thread { source: io::Error },
    #[error("no randomness from the system: {reason}")]
    Randomness { reason: String },
    #[error("the thread `{name}` ended: {reason}")]
    Ended { name: String, reason: String },
}

/// Runs a node until it is told to stop (SIGTERM or SIGINT) or one of its threads ends. `ready` is called once it serves; a node
/// that is told to stop before ends in the same order, without having called it.
pub fn serve(options: &Options, ready: impl FnOnce(&Ready)) -> Result<(), Error> {
    let mut life = Life::begin()?;
    let data = DataDir::open(&options.data_dir)?;
    let descriptors = raise_descriptors();
    let keys = keys::load_or_create(&data.path).map_err(|source| Error::Keys { source })?;
    let (listener, address) = listen(options.listen)?;
    let host = host::detect();
    let classes = match host.hard_level() {
        Grant::Yes => Classes::RealTime,
        Grant::No { .. } => Classes::Ordinary,
    };
    let (connections, instances) = (Connections::with(descriptors), Instances::with(descriptors));
    let mut protections = Protections::new(host.protections());
    protections.descriptors(descriptors);
    if classes == Classes::RealTime {
        protections.locked_memory(sched::lock_memory());
    }
    let cores = sched::cores().map_err(|source| Error::Measure { source })?;
    let measured = calibrate::measure(&cores, classes).map_err(|source| Error::Measure { source })?;
    if life.is_over() {
        return Ok(()); // nothing was started yet
    }
    let capacity = capacity::of(&cores, classes, &measured, (options.memory, instances.guaranteed));
    let hosts = Hosts::new(address, options.hosts.iter().cloned());
    let policy = Policy { hosts };
    let excess_per_second = capacity::excess_per_second(measured.front.invocation);
    let hand_overs_per_second = capacity::hand_overs_per_second(measured.front);
    let front = Arc::new(Front { home: Home::default(), policy, keys, excess_per_second, hand_overs_per_second, connections });
    let node = Node {
        options: options.clone(),
        data: data.path.clone(),
        front,
        address,
        classes,
        cores,
        measured,
        capacity,
        instances,
        outbound: host.tun,
    };
    node.run(listener, protections, (life, ready))
}

/// The event loop of the node's main thread, and the signals that end it: listened to from the first moment on, so that no
/// part of a start is cut off.
pub(crate) struct Life {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) stop: Stop,
}

/// Being told to stop.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Life {
    fn begin() -> Result<Self, Error> {
        let failed = |source| Error::Thread { source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        let inside = runtime.enter();
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        drop(inside);
        Ok(Self { runtime, stop: Stop { terminate, interrupt } })
    }

    /// Whether the node was told to stop already.
    fn is_over(&mut self) -> bool {
        let stop = &mut self.stop;
        // One turn of the loop has the driver look for signals that came.
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = stop.asked() => true,
                () = tokio::time::sleep(std::time::Duration::from_millis(1)) => false,
            }
        })
    }
}

impl Stop {
    /// Ends when the node is told to stop. Safe to drop at any point.
    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Raises the number of descriptors this process may have as far as it may. Returns what it has then.
fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where it cannot be raised the limit stays, and is reported.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The data directory, locked against a second node.
#[derive(Debug)]
struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::DataDir { path: path.to_owned(), source };
        // It holds keys and the functions' environments: nobody else looks in. Instances see what is mounted for them.
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let lock = File::create(path.join("lock")).map_err(failed)?;
        let locked = rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        locked.map_err(|_| Error::InUse { path: path.to_owned() })?;
        Ok(Self { path: path.canonicalize().map_err(failed)?, _lock: lock })
    }
}

fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    // A burst of connects waits here; what finds it full tries again a second later.
    rustix::net::listen(&listener, door::BACKLOG).map_err(|errno| failed(errno.into()))?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}
