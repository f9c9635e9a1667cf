//! The daemon's side of the launcher.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::Pid;
use rustix::time::Timespec;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::{Answer, Exit, Launch, Options, Placement, Request, STARTS_MAX, Standing, Timing};
use crate::cgroup::{self, Group};
use crate::sandbox::Failure;
use crate::sys;
use crate::sys::process::{CpuClock, Pidfd};
use crate::sys::sched;
use crate::sys::socket::{BYTES_MAX, Message, Packets};

/// How long a launcher may take to clean up.
const LEAVE_MAX: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Why there is no launcher.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("cannot start the launcher {program}")]
    Start { program: PathBuf, source: io::Error },
    #[error("the launcher did not answer")]
    Silent,
    #[error("cannot talk to the launcher")]
    Talk { source: io::Error },
    #[error("the launcher cannot work: {reason}")]
    Refused { reason: String },
}

/// Why an instance was not started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the launcher has {limit} starts in progress")]
    Busy { limit: usize },
    #[error("the start request has {bytes} bytes, {limit} are allowed; arguments and environment make its size")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the launcher is gone")]
    Gone,
    #[error("cannot talk to the launcher")]
    Talk { source: io::Error },
    #[error("the instance did not start")]
    Failed { source: Failure },
}

/// Kills an instance, with everything in it, when told to or when dropped.
#[derive(Debug)]
pub struct Handle {
    init: Pidfd,
    program: Pidfd,
}

impl Handle {
    /// Holds a program and the first process of its pid namespace, which may be the same one.
    #[must_use]
    pub const fn new(init: Pidfd, program: Pidfd) -> Self {
        Self { init, program }
    }

    /// Kills the instance, from any thread, without the launcher. One already dead is no error.
    ///
    /// The program is killed first and by itself: init, whose end takes everything else along, is not real-time and may wait
    /// for a core that a looping real-time program holds.
    pub fn kill(&self) -> io::Result<()> {
        self.program.kill()?;
        self.init.kill()
    }

    /// Gives all threads of the program a class and cores, as [`place`] does, unless it is dead: its id may be another's then.
    pub fn place(&self, program: Pid, placement: Placement) -> Result<Vec<Pid>, sched::Error> {
        if self.program.is_dead() {
            return Err(sched::Error::Dead { process: program.as_raw_nonzero().get() });
        }
        place(program, placement)
    }

    /// Makes threads of the program real-time, as [`sched::raise`] does. A dead one has none.
    pub fn raise(&self, program: Pid, threads: &[Pid], priority: u8) -> Result<(), sched::Error> {
        if self.program.is_dead() { Ok(()) } else { sched::raise(program, threads, priority) }
    }

    /// Makes threads of the program ordinary, as [`sched::lower`] does. A dead one has none.
    pub fn lower(&self, program: Pid, threads: &[Pid]) -> Result<(), sched::Error> {
        if self.program.is_dead() { Ok(()) } else { sched::lower(program, threads) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.kill().ok(); // only a handle that is no process could be refused
    }
}

/// A running instance.
#[derive(Debug)]
pub struct Started {
    pub handle: Handle,
    /// The process of the program, in the daemon's numbering. It may be dead already.
    pub program: Pid,
    /// The listener of the Runtime API in the instance's network namespace, non-blocking.
    pub listener: TcpListener,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub tun: Option<OwnedFd>,
    /// Resolves when the instance is dead; an error when the launcher is, and the instance with it.
    pub exit: oneshot::Receiver<Exit>,
    pub timing: Timing,
    group: Option<Group>,
}

impl Started {
    /// What [`CpuMeter::used`] reads.
    #[must_use]
    pub fn cpu_meter(&self) -> CpuMeter {
        CpuMeter { group: self.group.clone(), ..CpuMeter::of(self.program) }
    }

    /// What reads how much memory it used at most.
    #[must_use]
    pub fn memory_meter(&self) -> MemoryMeter {
        MemoryMeter { group: self.group.clone() }
    }

    /// Gives all threads of the program a class and cores.
    pub fn place(&self, placement: Placement) -> Result<Vec<Pid>, sched::Error> {
        place(self.program, placement)
    }
}

/// Gives all threads of an instance's program a class and cores, and returns them. Threads it starts later are of the ordinary class. An
/// instance started as [`Placement::BestEffort`] cannot become real-time: its cpu group may grant none of that.
pub fn place(program: Pid, placement: Placement) -> Result<Vec<Pid>, sched::Error> {
    sched::set_process(program, placement.class(), &placement.cores(&every_core()))
}

/// Reads the CPU time of an instance.
#[derive(Clone, Debug)]
pub struct CpuMeter {
    program: Pid,
    /// `None` where the program was gone already.
    clock: Option<CpuClock>,
    group: Option<Group>,
}

/// Why the CPU time of an instance is unknown.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error("control group of the instance")]
    Group { source: cgroup::Error },
    #[error("CPU clock of process {program}")]
    Process { program: i32, source: io::Error },
}

impl CpuMeter {
    /// The meter of a program in no control group that accounts it.
    #[must_use]
    pub fn of(program: Pid) -> Self {
        Self { program, clock: CpuClock::of(program).ok(), group: None }
    }

    /// CPU time of all processes of the instance or, where no control group accounts it, of its program alone.
    pub fn used(&self) -> Result<Duration, CpuError> {
        let accounted = self.group.as_ref().map_or(Ok(None), Group::cpu_used);
        match accounted.map_err(|source| CpuError::Group { source })? {
            Some(used) => Ok(used),
            None => self.program_used(),
        }
    }

    /// CPU time of the program alone, by its clock: about a microsecond, for sampling.
    pub fn program_used(&self) -> Result<Duration, CpuError> {
        let program = self.program.as_raw_nonzero().get();
        let clock = self.clock.map_or_else(|| CpuClock::of(self.program), Ok);
        clock.and_then(CpuClock::read).map_err(|source| CpuError::Process { program, source })
    }
}

/// Reads how much memory an instance used.
#[derive(Clone, Debug, Default)]
pub struct MemoryMeter {
    group: Option<Group>,
}

impl MemoryMeter {
    /// The most the instance ever held, in MiB, rounded up. `None` where no control group counts it, and once it is gone.
    #[must_use]
    pub fn peak_mib(&self) -> Option<u32> {
        let peak = self.group.as_ref()?.memory_peak().ok()??;
        u32::try_from(peak.div_ceil(1 << 20)).ok()
    }
}

/// Starts instances. Cheap to clone; all clones share one launcher.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

/// Receives the launcher's answers. Run it as long as the clients are used.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    launcher: Child,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<Packets>,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    starts: BTreeMap<u64, oneshot::Sender<Result<Started, Error>>>,
    exits: BTreeMap<u64, oneshot::Sender<Exit>>,
}

/// Starts a launcher and waits for its first answer (some milliseconds). Call it within a tokio runtime with I/O; the
/// clients work in that runtime alone.
pub fn spawn(options: &Options) -> Result<(Client, Service, Standing), SpawnError> {
    let talk = |source| SpawnError::Talk { source };
    let (ours, theirs) = Packets::pair().map_err(talk)?;
    let launcher = Command::new(&options.program)
        .args(&options.arguments)
        .env_clear() // the daemon's environment may hold secrets; the launcher needs nothing of it
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|source| SpawnError::Start { program: options.program.clone(), source })?;
    let Options { groups, first_user, serves, priority, .. } = options.clone();
    let open = Request::Open { groups, first_user, serves, priority };
    ours.send(&text(&open).map_err(talk)?, &[]).map_err(talk)?;
    let message = ours.receive().map_err(talk)?.ok_or(SpawnError::Silent)?;
    let standing = match serde_json::from_slice(&message.bytes) {
        Ok(Answer::Opened(Ok(standing))) => standing,
        Ok(Answer::Opened(Err(reason))) => return Err(SpawnError::Refused { reason }),
        Ok(Answer::Started { .. } | Answer::Refused { .. } | Answer::Exited { .. }) | Err(_) => return Err(SpawnError::Silent),
    };
    ours.set_nonblocking().map_err(talk)?;
    let socket = sys::watch(ours).map_err(talk)?;
    let shared = Arc::new(Shared { socket, next: AtomicU64::new(1), waiting: Mutex::new(Waiting::default()) });
    Ok((Client { shared: Arc::clone(&shared) }, Service { shared, launcher }, standing))
}

/// A request as bytes. Errors for paths that are not text.
fn text(request: &Request) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(request)?)
}

impl Client {
    /// Starts an instance and returns when its program runs. Dropping the future, or the result, kills the instance.
    pub async fn start(&self, launch: &Launch) -> Result<Started, Error> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let request = Request::Start { id, launch: Box::new(launch.clone()) };
        let bytes = text(&request).map_err(|source| Error::Talk { source })?;
        if BYTES_MAX < bytes.len() {
            return Err(Error::TooLarge { bytes: bytes.len(), limit: BYTES_MAX });
        }
        let (tell, told) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if STARTS_MAX <= waiting.starts.len() {
                return Err(Error::Busy { limit: STARTS_MAX });
            }
            waiting.starts.insert(id, tell);
        }
        let sent = self.shared.send(&bytes).await;
        if let Err(error) = sent {
            self.shared.waiting().starts.remove(&id);
            return Err(error);
        }
        told.await.unwrap_or(Err(Error::Gone))
    }
}

impl Service {
    /// The launcher's process.
    #[must_use]
    pub fn process(&self) -> Pid {
        Pid::from_child(&self.launcher)
    }

    /// Hands out answers until the launcher is gone; every start in progress and every instance is then gone too.
    pub async fn run(self) -> io::Error {
        let error = loop {
            match self.shared.receive().await {
                Ok(Some(message)) => {
                    if let Err(error) = self.shared.deliver(message) {
                        break error;
                    }
                }
                Ok(None) => break io::Error::new(io::ErrorKind::UnexpectedEof, "the launcher is gone"),
                Err(error) => break error,
            }
        };
        let mut waiting = self.shared.waiting();
        waiting.starts.clear();
        waiting.exits.clear();
        drop(waiting);
        error
    }
}

impl Drop for Service {
    /// Ends the launcher, and with it every instance: nobody would learn of deaths any more. Waits until it has cleaned up,
    /// some milliseconds; kills it when that takes too long.
    fn drop(&mut self) {
        let socket = self.shared.socket.get_ref();
        rustix::net::shutdown(socket, rustix::net::Shutdown::Both).ok(); // unconnected when the launcher is dead
        let mut fds_ready = 0;
        if let Ok(pidfd) = Pidfd::open(Pid::from_child(&self.launcher)) {
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            fds_ready = rustix::event::poll(&mut fds, Some(&LEAVE_MAX)).unwrap_or(0);
        }
        if fds_ready == 0 {
            self.launcher.kill().ok(); // an error means it is dead
        }
        self.launcher.wait().ok(); // it is dead or dying; its status says nothing new
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Each critical section is one map operation, which leaves the maps whole even if it panics.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let talk = |source: io::Error| {
            let gone = matches!(source.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
            if gone { Error::Gone } else { Error::Talk { source } }
        };
        loop {
            let mut ready = self.socket.writable().await.map_err(talk)?;
            match ready.try_io(|socket| socket.get_ref().send(bytes, &[])) {
                Ok(sent) => return sent.map_err(talk),
                Err(_would_block) => {}
            }
        }
    }

    async fn receive(&self) -> io::Result<Option<Message>> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| socket.get_ref().receive()) {
                Ok(message) => return message,
                Err(_would_block) => {}
            }
        }
    }

    fn deliver(&self, message: Message) -> io::Result<()> {
        let answer = serde_json::from_slice(&message.bytes)?;
        match answer {
            Answer::Opened(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the launcher opened twice")),
            Answer::Started { id, program, timing, group } => {
                let (tell_exit, exit) = oneshot::channel();
                let started = started(message.fds, program, timing, exit)?;
                let mut waiting = self.waiting();
                waiting.exits.insert(id, tell_exit);
                let start = waiting.starts.remove(&id);
                drop(waiting);
                // Whoever asked may have left; the instance then dies with the unclaimed result.
                start.map(|start| start.send(Ok(Started { group, ..started })).ok());
                Ok(())
            }
            Answer::Refused { id, failure } => {
                let start = self.waiting().starts.remove(&id);
                start.map(|start| start.send(Err(Error::Failed { source: failure })).ok());
                Ok(())
            }
            Answer::Exited { id, exit } => {
                let tell = self.waiting().exits.remove(&id);
                tell.map(|tell| tell.send(exit).ok());
                Ok(())
            }
        }
    }
}

fn started(fds: Vec<OwnedFd>, program: i32, timing: Timing, exit: oneshot::Receiver<Exit>) -> io::Result<Started> {
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "the launcher sent too few descriptors");
    let mut fds = fds.into_iter();
    let init = Pidfd::from(fds.next().ok_or_else(missing)?);
    let handle = Handle { init, program: Pidfd::from(fds.next().ok_or_else(missing)?) };
    let listener = TcpListener::from(fds.next().ok_or_else(missing)?);
    listener.set_nonblocking(true)?;
    let stdout = fds.next().ok_or_else(missing)?;
    let stderr = fds.next().ok_or_else(missing)?;
    let program = Pid::from_raw(program).ok_or_else(missing)?;
    Ok(Started { handle, program, listener, stdout, stderr, tun: fds.next(), exit, timing, group: None })
}

/// Every core a best-effort instance may be moved to; the kernel leaves out those that do not exist.
fn every_core() -> Vec<u16> {
    (0..1024).collect()
}
