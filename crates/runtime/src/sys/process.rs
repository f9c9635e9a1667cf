//! Processes: cloning into namespaces, handles that survive the reuse of ids, CPU clocks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use rustix::time::Timespec;

use super::clock;

/// A namespace a process can have to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Namespace {
    User,
    Mount,
    Pid,
    Net,
    Ipc,
    Uts,
    Cgroup,
}

impl Namespace {
    pub const ALL: [Self; 7] = [Self::User, Self::Mount, Self::Pid, Self::Net, Self::Ipc, Self::Uts, Self::Cgroup];

    /// The kernel's flag for clone and unshare.
    #[must_use]
    pub const fn flag(self) -> u64 {
        let flag = match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Net => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
        };
        flag.unsigned_abs() as u64
    }
}

/// A process held by descriptor: signals and waits never reach another process that got the same id.
#[derive(Debug)]
pub struct Pidfd {
    fd: OwnedFd,
}

impl Pidfd {
    /// Opens a process by id. The caller knows that the id is still that process's (its own child, not yet waited for).
    pub fn open(process: Pid) -> io::Result<Self> {
        Ok(Self { fd: rustix::process::pidfd_open(process, PidfdFlags::empty())? })
    }

    /// Sends SIGKILL. A process already dead is no error.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Sends a signal. A process already dead is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether the process is dead, its child or not. A descriptor that cannot be asked counts as dead.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&at_once))).map_or(true, |ready| 0 < ready)
    }

    /// Reaps a child of this process if it is dead. Never blocks.
    pub fn reap(&self) -> io::Result<Option<Death>> {
        self.wait_with(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Waits until a child of this process is dead, and reaps it.
    pub fn wait(&self) -> io::Result<Death> {
        loop {
            if let Some(death) = self.wait_with(WaitIdOptions::EXITED)? {
                return Ok(death);
            }
        }
    }

    fn wait_with(&self, options: WaitIdOptions) -> io::Result<Option<Death>> {
        let status = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(self.fd.as_fd()), options))?;
        Ok(status.map(|status| match status.exit_status() {
            Some(code) => Death::Exited { code },
            None => Death::Signalled { signal: status.terminating_signal().unwrap_or(0) },
        }))
    }
}

impl From<OwnedFd> for Pidfd {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Death {
    Exited { code: i32 },
    Signalled { signal: i32 },
}

/// Proof that this process had one thread when asked: its copies may do anything, no lock can be held by a lost thread.
#[derive(Debug)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// `None` while this process has other threads.
    pub fn prove() -> io::Result<Option<Self>> {
        let count = std::fs::read_dir("/proc/self/task")?.count();
        Ok((count == 1).then_some(Self(())))
    }
}

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Side {
    Parent { child: Pid, pidfd: Pidfd },
    Child,
}

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    Parent { child: Pid },
    Child,
}

/// Copies this process into new namespaces and, where `cgroup` names a v2 group's directory, into that group.
pub fn clone_into(_proof: &SingleThreaded, namespaces: &[Namespace], cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let flags = namespaces.iter().fold(0, |flags, namespace| flags | namespace.flag());
    clone3(flags, cgroup)
}

/// Copies this process within its namespaces, by the C library's fork: also where a filter forbids `clone3`. The parent gets
/// no handle; it waits by id.
pub fn fork(_proof: &SingleThreaded) -> io::Result<Fork> {
    // SAFETY: this process has one thread, so its copy may go on with any code.
    let result = unsafe { libc::fork() };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(result).map_or(Fork::Child, |child| Fork::Parent { child }))
}

/// Whether a process can be created in these new namespaces: makes one that ends at once.
pub fn probe(namespaces: &[Namespace]) -> io::Result<()> {
    probe_in(namespaces, None)
}

/// As [`probe`], within a v2 control group.
pub fn probe_in(namespaces: &[Namespace], cgroup: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let flags = namespaces.iter().fold(0, |flags, namespace| flags | namespace.flag());
    match clone3(flags, cgroup)? {
        Side::Child => exit_now(0), // nothing before it: other threads may hold any lock
        Side::Parent { pidfd, .. } => pidfd.wait().map(|_| ()),
    }
}

/// What the signals that ask a process to end do to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    Ignored,
    /// What every program expects to begin with.
    Default,
}

/// Sets what SIGTERM, SIGINT and SIGHUP do to this process. Programs it becomes, and its children, inherit it.
pub fn on_termination(what: Termination) -> io::Result<()> {
    let handler = match what {
        Termination::Ignored => libc::SIG_IGN,
        Termination::Default => libc::SIG_DFL,
    };
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: both handlers are constants of the kernel, no code of ours runs on the signal.
        if unsafe { libc::signal(signal, handler) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Has this process end, as tools of the shell do, when it writes to a pipe that nobody reads any more. Not for a process
/// that serves others.
pub fn end_with_the_reader() -> io::Result<()> {
    // SAFETY: the handler is a constant of the kernel, no code of ours runs on the signal.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Does nothing until this process is killed. Allocates nothing.
pub fn wait_for_kill() -> ! {
    loop {
        rustix::event::pause();
    }
}

/// Ends this process at once: no destructors, no exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from 3 on except those in `keep`. For a child about to live on without them; the values that
/// owned them must not be used or dropped afterwards, which holds for one that leaves by exec or [`exit_now`].
pub fn close_except(keep: &[RawFd], _proof: &SingleThreaded) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 3;
    for kept in keep {
        if first < kept {
            close_range(first, kept - 1)?;
        }
        first = first.max(kept.saturating_add(1));
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the call only takes numbers; the caller's process has one thread, so nothing uses a descriptor meanwhile.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The CPU clock of a process: the time all its threads have used, without the children it waited for.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// The clock of a process that exists. It names the process by its number: a reader must know that the process was not
    /// reaped meanwhile, or must not care.
    pub fn of(process: Pid) -> io::Result<Self> {
        let mut id: libc::clockid_t = 0;
        // SAFETY: `id` is valid for the one write and outlives the call.
        match unsafe { libc::clock_getcpuclockid(process.as_raw_nonzero().get(), &raw mut id) } {
            0 => Ok(Self(id)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// What it shows: one system call, about a microsecond. Errors when the process is gone.
    pub fn read(self) -> io::Result<Duration> {
        let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `at` is valid for the kernel's one write and outlives the call.
        match unsafe { libc::clock_gettime(self.0, &raw mut at) } {
            0 => Ok(Duration::from_nanos(clock::nanos(Timespec { tv_sec: at.tv_sec, tv_nsec: at.tv_nsec }))),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Makes a mount and everything mounted below it read-only, without set-user-id and, if asked, without devices; changes
/// outside do not reach it any more.
pub fn seal_mount(mount: BorrowedFd<'_>, devices: Devices) -> io::Result<()> {
    let no_devices = match devices {
        Devices::Usable => 0,
        Devices::Refused => libc::MOUNT_ATTR_NODEV,
    };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | no_devices,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH.unsigned_abs() | libc::AT_RECURSIVE.unsigned_abs();
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the empty path and `attributes` are valid for reads during the call and `size` is its size.
    match unsafe { libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw const attributes, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The version of Landlock this kernel has; zero or less where it has none.
#[must_use]
pub fn landlock_abi() -> i32 {
    const VERSION: u32 = 1; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY: with this flag the call reads no memory: the attribute pointer is null and its size zero.
    let result = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    i32::try_from(result).unwrap_or(0)
}

/// Whether device files on a mount work as devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    Usable,
    Refused,
}

fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    let into_cgroup = match cgroup {
        Some(_) => CLONE_INTO_CGROUP,
        None => 0,
    };
    let arguments = libc::clone_args {
        flags: flags | u64::from(libc::CLONE_PIDFD.unsigned_abs()) | into_cgroup,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let size = size_of::<libc::clone_args>();
    // SAFETY: `arguments` has the given size and asks for a copy of the address space, so the child runs on its own memory;
    // the kernel writes one descriptor to `pidfd`, which outlives the call. Callers uphold what a child may do.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
    let Some(result) = i32::try_from(result).ok().filter(|result| 0 <= *result) else {
        return Err(io::Error::last_os_error());
    };
    let Some(child) = Pid::from_raw(result) else { return Ok(Side::Child) };
    // SAFETY: the kernel has just put a new descriptor there that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Side::Parent { child, pidfd: fd.into() })
}

/// `CLONE_INTO_CGROUP` of linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::zombie_processes, reason = "reaped by its descriptor")]
    fn a_child_is_killed_and_reaped_by_its_descriptor() {
        let child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = Pidfd::open(Pid::from_child(&child)).unwrap();
        assert_eq!(pidfd.reap().unwrap(), None);
        assert!(!pidfd.is_dead());
        pidfd.kill().unwrap();
        assert_eq!(pidfd.wait().unwrap(), Death::Signalled { signal: libc::SIGKILL });
        assert!(pidfd.is_dead());
        pidfd.kill().unwrap();
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "reaped by its descriptor")]
    fn an_exit_code_is_kept() {
        let child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pidfd = Pidfd::open(Pid::from_child(&child)).unwrap();
        assert_eq!(pidfd.wait().unwrap(), Death::Exited { code: 7 });
    }

    #[test]
    fn a_clone_that_is_refused_is_an_error() {
        let no_group = std::fs::File::open("/dev/null").unwrap();
        let refused = probe_in(&[], Some(no_group.as_fd()));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn cpu_time_grows_with_work() {
        let clock = CpuClock::of(rustix::process::getpid()).unwrap();
        let before = clock.read().unwrap();
        let mut sum = 0_u64;
        while clock.read().unwrap() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(before < clock.read().unwrap());
    }

    #[test]
    fn a_plain_copy_can_always_be_made() {
        probe(&[]).unwrap();
    }

    #[test]
    fn a_process_with_two_threads_is_not_single_threaded() {
        let (stop, stopped) = std::sync::mpsc::sync_channel::<()>(0);
        let thread = std::thread::spawn(move || stopped.recv());
        assert!(SingleThreaded::prove().unwrap().is_none());
        drop(stop);
        thread.join().unwrap().unwrap_err();
    }
}
