//! Scheduling: class, priority and cores of threads and processes; what of it this machine grants.

use std::io;
use std::time::Duration;

use rustix::process::{Pid, Resource};
use rustix::thread::CpuSet;

/// A scheduling class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Class {
    /// `SCHED_FIFO` at this priority, 1 (lowest) to 99; what a thread of this class forks starts as `Other`.
    Fifo { priority: u8 },
    /// `SCHED_OTHER` at this nice value, -20 to 19.
    Other { nice: i8 },
}

/// Why a thread's class or cores did not change.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot give thread {thread} the class {class:?}")]
    Class { thread: i32, class: Class, source: io::Error },
    #[error("cannot pin thread {thread} to cores {cores:?}")]
    Cores { thread: i32, cores: Vec<u16>, source: io::Error },
    #[error("cannot list the threads of process {process}")]
    Threads { process: i32, source: io::Error },
    #[error("process {process} is dead; its id may be another's")]
    Dead { process: i32 },
    #[error("process {process} kept starting threads while its class was changed, {rounds} rounds")]
    Unsettled { process: i32, rounds: u32 },
}

/// Rounds over a process's threads before [`set_process`] gives up on one that keeps starting threads.
const ROUNDS_MAX: u32 = 8;

/// The kernel's id of the calling thread.
#[must_use]
pub fn current_thread() -> Pid {
    rustix::thread::gettid()
}

/// Gives the calling thread a class. Errors without the privilege ([`probe_fifo`] says why).
pub fn set_current(class: Class) -> Result<(), Error> {
    set_thread(current_thread(), class)
}

/// Gives one thread a class.
pub fn set_thread(thread: Pid, class: Class) -> Result<(), Error> {
    set_class(thread, class).map_err(|source| Error::Class { thread: thread.as_raw_nonzero().get(), class, source })
}

/// Pins one thread to some cores. Errors when none of them exists or is allowed.
pub fn set_cores(thread: Pid, cores: &[u16]) -> Result<(), Error> {
    let mut set = CpuSet::new();
    for core in cores.iter().filter(|core| usize::from(**core) < CpuSet::MAX_CPU) {
        set.set(usize::from(*core));
    }
    rustix::thread::sched_setaffinity(Some(thread), &set).map_err(|errno| Error::Cores {
        thread: thread.as_raw_nonzero().get(),
        cores: cores.to_vec(),
        source: errno.into(),
    })
}

/// How long a thread that asked for short turns runs at a time.
const SHORT_TURN: Duration = Duration::from_micros(100);

/// Asks that a thread of ordinary class be run soon and for a short time, rather than later and for long. Its share of the CPU
/// stays the same, and no privilege is needed; what it starts inherits it. Linux 6.12 and later listen; earlier ones do not.
pub fn ask_for_short_turns(thread: Pid) -> io::Result<()> {
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(u32::MAX),
        sched_policy: libc::SCHED_OTHER.unsigned_abs(),
        sched_flags: 0,
        sched_nice: rustix::process::getpriority_process(Some(thread))?,
        sched_priority: 0,
        sched_runtime: u64::try_from(SHORT_TURN.as_nanos()).unwrap_or(u64::MAX),
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: `attributes` is a valid, initialised structure of the size it states and outlives the call; the kernel checks it
    // and the thread.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, thread.as_raw_nonzero().get(), &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives every thread of a process a class and cores, including threads it starts meanwhile. Returns its threads, in the order
/// in which they were found. Cost: two system calls per thread and two listings of `/proc/PID/task`.
pub fn set_process(process: Pid, class: Class, cores: &[u16]) -> Result<Vec<Pid>, Error> {
    let mut done: Vec<Pid> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let new: Vec<Pid> = threads(process)?.into_iter().filter(|thread| !done.contains(thread)).collect();
        if new.is_empty() {
            return Ok(done);
        }
        for thread in new {
            // Without the privilege a thread of another user cannot be placed, but may be where it belongs already.
            let placed = if is_placed(thread, class, cores) {
                Ok(())
            } else {
                set_cores(thread, cores).and_then(|()| set_thread(thread, class))
            };
            match placed {
                Ok(()) => {}
                Err(Error::Class { source, .. } | Error::Cores { source, .. }) if is_gone(&source) => {}
                Err(error) => return Err(error),
            }
            done.push(thread);
        }
    }
    Err(Error::Unsettled { process: process.as_raw_nonzero().get(), rounds: ROUNDS_MAX })
}

/// Makes threads of a process real-time at `priority`, and leaves their cores as they are. Those that have ended are passed over:
/// their numbers may be others' now. Whether the process itself still has its number is for the caller to know, by a pidfd. Cost: two system calls per thread, together about a microsecond.
pub fn raise(process: Pid, threads: &[Pid], priority: u8) -> Result<(), Error> {
    each(process, threads, Class::Fifo { priority })
}

/// Makes threads of a process ordinary again, with the nice value they had. As [`raise`] otherwise.
pub fn lower(process: Pid, threads: &[Pid]) -> Result<(), Error> {
    each(process, threads, Class::Other { nice: 0 })
}

fn each(process: Pid, threads: &[Pid], class: Class) -> Result<(), Error> {
    for thread in threads {
        match is_thread_of(process, *thread).and_then(|()| set_policy_of(*thread, class)) {
            Err(source) if !is_gone(&source) => {
                return Err(Error::Class { thread: thread.as_raw_nonzero().get(), class, source });
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Errors where a thread is not alive or not of this process, with `ESRCH` for that. The number of one that ended a moment ago
/// names nobody yet: the kernel gives out all others first.
fn is_thread_of(process: Pid, thread: Pid) -> io::Result<()> {
    let (process, thread) = (process.as_raw_nonzero().get(), thread.as_raw_nonzero().get());
    // SAFETY: signal 0 is sent to nobody, and no memory is passed; the kernel checks both numbers.
    match unsafe { libc::syscall(libc::SYS_tgkill, process, thread, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_placed(thread: Pid, class: Class, cores: &[u16]) -> bool {
    let on = cores_of(Some(thread)).is_ok_and(|on| on == cores);
    on && class_of(thread).is_ok_and(|of| of == Some(class))
}

/// The cores the calling thread may run on, ascending.
pub fn cores() -> io::Result<Vec<u16>> {
    cores_of(None)
}

fn cores_of(thread: Option<Pid>) -> io::Result<Vec<u16>> {
    let set = rustix::thread::sched_getaffinity(thread)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).filter_map(|core| u16::try_from(core).ok()).collect())
}

/// Keeps the pages of this process in memory: those touched now and, once touched, all later ones. Errors where
/// `RLIMIT_MEMLOCK` is too small and the capability `CAP_IPC_LOCK` is absent.
pub fn lock_memory() -> io::Result<()> {
    use rustix::mm::MlockAllFlags;
    Ok(rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}

/// The share of time the kernel leaves to real-time threads, all cores alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttle {
    /// Real-time threads may use `runtime` of every `period`; beyond it they stop.
    Limited { runtime: Duration, period: Duration },
    /// No limit: a looping real-time thread takes its core for good.
    Off,
}

/// Reads the machine's real-time throttle.
pub fn throttle() -> io::Result<Throttle> {
    let read = |name: &str| -> io::Result<i64> {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}"))?;
        text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{name} is `{}`", text.trim())))
    };
    let period = Duration::from_micros(u64::try_from(read("sched_rt_period_us")?).unwrap_or(0));
    Ok(match u64::try_from(read("sched_rt_runtime_us")?) {
        Ok(micros) => Throttle::Limited { runtime: Duration::from_micros(micros), period },
        Err(_) => Throttle::Off,
    })
}

/// Whether threads of this process may be real-time, and what stands against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RealTime {
    Works,
    Refused {
        /// The kernel's answer.
        error: String,
        /// `CAP_SYS_NICE` is held.
        capability: Held,
        /// The highest priority `RLIMIT_RTPRIO` allows without the capability.
        rlimit_priority: u64,
        /// The real-time budget of this process's own v1 cpu group, if that kind of group is in use.
        group_runtime_us: Option<i64>,
    },
}

/// Whether a capability is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Yes,
    No,
}

/// Tries the real-time class at `priority` on a thread of its own, in the cpu group of this process.
#[must_use]
pub fn probe_fifo(priority: u8) -> RealTime {
    let attempt = std::thread::Builder::new()
        .name("probe-fifo".to_owned())
        .spawn(move || set_class(current_thread(), Class::Fifo { priority }))
        .map(std::thread::JoinHandle::join);
    let error = match attempt {
        Ok(Ok(Ok(()))) => return RealTime::Works,
        Ok(Ok(Err(error))) | Err(error) => error.to_string(),
        Ok(Err(_)) => "the probing thread panicked".to_owned(),
    };
    RealTime::Refused {
        error,
        capability: holds(rustix::thread::CapabilitySet::SYS_NICE),
        rlimit_priority: rustix::process::getrlimit(Resource::Rtprio).maximum.unwrap_or(u64::MAX),
        group_runtime_us: group_runtime_us(),
    }
}

/// Whether memory may be locked without a limit.
#[must_use]
pub fn holds_memory_lock() -> Held {
    holds(rustix::thread::CapabilitySet::IPC_LOCK)
}

fn holds(capability: rustix::thread::CapabilitySet) -> Held {
    match rustix::thread::capabilities(None) {
        Ok(sets) if sets.effective.contains(capability) => Held::Yes,
        Ok(_) | Err(_) => Held::No,
    }
}

/// `cpu.rt_runtime_us` of the group this process is in, with `CONFIG_RT_GROUP_SCHED` and a v1 cpu hierarchy.
fn group_runtime_us() -> Option<i64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        controllers.split(',').any(|name| name == "cpu").then(|| parts.next())?
    })?;
    let read = |mount: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{mount}{path}/cpu.rt_runtime_us")).ok();
    read("cpu").or_else(|| read("cpu,cpuacct"))?.trim().parse().ok()
}

fn threads(process: Pid) -> Result<Vec<Pid>, Error> {
    let raw = process.as_raw_nonzero().get();
    let error = |source| Error::Threads { process: raw, source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{raw}/task")).map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()).and_then(Pid::from_raw));
    }
    Ok(found)
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH)
}

fn set_class(thread: Pid, class: Class) -> io::Result<()> {
    set_policy_of(thread, class)?;
    match class {
        Class::Fifo { .. } => Ok(()),
        Class::Other { nice } => Ok(rustix::process::setpriority_process(Some(thread), i32::from(nice))?),
    }
}

/// Sets all of a class but its nice value.
fn set_policy_of(thread: Pid, class: Class) -> io::Result<()> {
    let (policy, priority) = match class {
        Class::Fifo { priority } => (libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, i32::from(priority)),
        // The flag stays: without the capability the kernel does not let it go.
        Class::Other { .. } => (libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK, 0),
    };
    set_policy(thread, policy, priority)
}

fn set_policy(thread: Pid, policy: i32, priority: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` is a valid, initialised structure that outlives the call; the kernel checks thread and policy.
    match unsafe { libc::sched_setscheduler(thread.as_raw_nonzero().get(), policy, &raw const param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The class of a thread as the kernel reports it. `None` for classes this crate never sets.
pub fn class_of(thread: Pid) -> io::Result<Option<Class>> {
    let raw = thread.as_raw_nonzero().get();
    // SAFETY: no memory is passed; the kernel checks the thread id.
    let policy = unsafe { libc::sched_getscheduler(raw) };
    if policy < 0 {
        return Err(io::Error::last_os_error());
    }
    match policy & !libc::SCHED_RESET_ON_FORK {
        libc::SCHED_OTHER => {
            let nice = rustix::process::getpriority_process(Some(thread))?;
            Ok(i8::try_from(nice).ok().map(|nice| Class::Other { nice }))
        }
        libc::SCHED_FIFO => {
            let mut param = libc::sched_param { sched_priority: 0 };
            // SAFETY: `param` is a valid structure the kernel fills; it outlives the call.
            match unsafe { libc::sched_getparam(raw, &raw mut param) } {
                0 => Ok(u8::try_from(param.sched_priority).ok().map(|priority| Class::Fifo { priority })),
                _ => Err(io::Error::last_os_error()),
            }
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `claim` where the machine grants the real-time class, and says so where it does not.
    fn with_fifo(claim: impl FnOnce()) {
        match probe_fifo(1) {
            RealTime::Works => claim(),
            refused @ RealTime::Refused { .. } => println!("skipped: {refused:?}"),
        }
    }

    #[test]
    fn a_thread_takes_and_leaves_the_real_time_class() {
        with_fifo(|| {
            set_current(Class::Fifo { priority: 3 }).unwrap();
            assert_eq!(class_of(current_thread()).unwrap(), Some(Class::Fifo { priority: 3 }));
            set_current(Class::Other { nice: 1 }).unwrap();
            assert_eq!(class_of(current_thread()).unwrap(), Some(Class::Other { nice: 1 }));
        });
    }

    #[test]
    fn what_a_real_time_thread_starts_is_not_real_time() {
        with_fifo(|| {
            set_current(Class::Fifo { priority: 3 }).unwrap();
            let class = std::thread::spawn(|| class_of(current_thread()).unwrap()).join().unwrap();
            assert_eq!(class, Some(Class::Other { nice: 0 }));
        });
    }

    #[test]
    fn all_threads_of_a_process_move_to_the_core() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Pid::from_child(&child);
        let core = cores().unwrap()[0];
        assert_eq!(set_process(process, Class::Other { nice: 5 }, &[core]).unwrap(), [process]);
        assert_eq!(class_of(process).unwrap(), Some(Class::Other { nice: 5 }));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(set_process(process, Class::Other { nice: 5 }, &[core]), Err(Error::Threads { .. })));
    }

    #[test]
    fn a_process_is_raised_and_lowered_with_its_nice_value_and_threads_of_others_are_let_be() {
        with_fifo(|| {
            let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            let process = Pid::from_child(&child);
            let threads = set_process(process, Class::Other { nice: 7 }, &[cores().unwrap()[0]]).unwrap();
            raise(process, &threads, 4).unwrap();
            assert_eq!(class_of(process).unwrap(), Some(Class::Fifo { priority: 4 }));
            lower(process, &threads).unwrap();
            assert_eq!(class_of(process).unwrap(), Some(Class::Other { nice: 7 }));
            raise(rustix::process::getpid(), &threads, 4).unwrap();
            assert_eq!(class_of(process).unwrap(), Some(Class::Other { nice: 7 }), "it is no thread of ours");
            child.kill().unwrap();
            child.wait().unwrap();
            raise(process, &threads, 4).unwrap();
        });
    }

    #[test]
    fn short_turns_are_asked_for_without_privilege_and_change_neither_class_nor_nice_value() {
        std::thread::spawn(|| {
            set_current(Class::Other { nice: 7 }).unwrap();
            ask_for_short_turns(current_thread()).unwrap();
            assert_eq!(class_of(current_thread()).unwrap(), Some(Class::Other { nice: 7 }));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_core_that_does_not_exist_is_refused() {
        assert!(matches!(set_cores(current_thread(), &[u16::MAX]), Err(Error::Cores { .. })));
    }
}
