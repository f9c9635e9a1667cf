//! The launcher: a process of its own, with one thread, that makes instances.
//!
//! Copying a process with threads is unsafe and, for a large one, slow; the launcher is small and may. It is this program
//! started again in a hidden role ([`main`]), connected to the daemon by a packet socket, its standard input. When that
//! connection ends it kills every instance and leaves; when it is killed itself, the kernel kills them.
//!
//! One launcher serves one lane, so that lanes share nothing. It never waits for a starting instance: the slow parts
//! (mounts, network, loading the program) are done by the new process, many at a time; the launcher spends about a
//! millisecond per start, most of it the kernel's making of namespaces.

mod client;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use model::Memory;
use serde::{Deserialize, Serialize};

pub use client::{Client, CpuError, CpuMeter, Error, Handle, MemoryMeter, Service, SpawnError, Started, place, spawn};
pub use server::main;

pub use crate::cgroup::{DaemonGroup, Quota};
pub use crate::sandbox::Network;

use crate::cgroup::{Cpu, Group};
use crate::sandbox::Failure;
use crate::sys::process::Death;
use crate::sys::sched::Class;

/// Instances of one launcher at most.
pub const INSTANCES_MAX: usize = 2048;
/// Starts in progress in one launcher at most.
pub const STARTS_MAX: usize = 256;
/// A start that takes longer is given up.
pub const START_MAX: Duration = Duration::from_secs(10);
/// Files and directories in an instance's `/tmp` at most.
pub const TMP_FILES_MAX: u64 = 65_536;
/// Processes and threads of an instance, as on AWS.
pub const PIDS_DEFAULT: u32 = 1024;
/// Bytes of an instance's `/tmp`, as on AWS.
pub const TMP_BYTES_DEFAULT: u64 = 512 << 20;

/// The nice value of best-effort instances: where no control group weighs them, this does.
const BEST_EFFORT_NICE: i8 = 19;

/// How to start a launcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The program that runs [`main`], and the arguments that make it.
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// The name of this launcher's control groups: the same after a restart, different for every launcher of the machine.
    pub groups: String,
    /// The first of [`INSTANCES_MAX`] users for instances, where the launcher may change users. Ranges of two launchers of one
    /// machine should not overlap: the kernel counts some resources by user.
    pub first_user: u32,
    /// What its instances are for.
    pub serves: Serves,
    /// The real-time priority of the launcher's own work, where it is granted; `None`: ordinary class.
    pub priority: Option<u8>,
}

impl Options {
    /// The start of a range of users that no distribution hands out.
    pub const FIRST_USER_DEFAULT: u32 = 0x7000_0000;
}

/// What the instances of a launcher are for: their weight all together, in control groups and between sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Serves {
    Guaranteed,
    BestEffort,
}

/// What an instance is started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The program as the instance sees it, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The host's directory that becomes `/var/task`, readable for everybody.
    pub code: PathBuf,
    /// The host's directory that becomes `/var/runtime`, readable for everybody.
    pub bootstrap: Option<PathBuf>,
    /// More of the host, seen at the same path, read-only: an interpreter's installation.
    pub extra: Vec<PathBuf>,
    pub memory: Memory,
    /// Processes and threads at most.
    pub pids: u32,
    pub tmp_bytes: u64,
    pub placement: Placement,
    /// A bound on its CPU, where a control group keeps it; not for instances that are to be of real-time class.
    pub quota: Option<Quota>,
    pub network: Network,
}

/// Where the threads of an instance run. Its first process, which makes the sandbox, starts there too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// On one core, in the real-time class, 1 to 99. Threads started later are not: place again when they matter.
    RealTime { core: u16, priority: u8 },
    /// On one core, in the ordinary class: an instance of a guaranteed function that is still starting.
    Pinned { core: u16 },
    /// On one core, in the ordinary class at the lowest nice value: an instance of a guaranteed function between invocations.
    Resting { core: u16 },
    /// On one core, in the ordinary class for good: an instance of a guaranteed function without real-time scheduling. Its
    /// control group has a high weight.
    Weighted { core: u16 },
    /// Anywhere, at low weight and the lowest nice value. Without the privilege there is no way back from that.
    BestEffort,
}

impl Placement {
    const fn class(self) -> Class {
        match self {
            Self::RealTime { priority, .. } => Class::Fifo { priority },
            Self::Pinned { .. } | Self::Weighted { .. } => Class::Other { nice: 0 },
            Self::Resting { .. } | Self::BestEffort => Class::Other { nice: BEST_EFFORT_NICE },
        }
    }

    fn cores(self, all: &[u16]) -> Vec<u16> {
        match self {
            Self::RealTime { core, .. } | Self::Pinned { core } | Self::Resting { core } | Self::Weighted { core } => vec![core],
            Self::BestEffort => all.to_vec(),
        }
    }

    const fn cpu(self, quota: Option<Quota>) -> Cpu {
        match self {
            Self::RealTime { .. } | Self::Pinned { .. } | Self::Resting { .. } => Cpu::Guaranteed,
            Self::Weighted { .. } => Cpu::Weighted { quota },
            Self::BestEffort => Cpu::BestEffort { quota },
        }
    }
}

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Of the program, or of the whole instance when that was killed.
    pub death: Death,
    /// Processes the kernel killed because the instance was at its memory limit.
    pub memory_kills: u64,
    /// CPU time of all its processes, where it is accounted.
    pub cpu: Option<Duration>,
}

/// Where the time of a start went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Control groups created and limited.
    pub groups: Duration,
    /// The new process in its namespaces, placed and let go.
    pub clone: Duration,
    /// Network and file tree.
    pub mounts: Duration,
    /// Rights given up, filter installed.
    pub confine: Duration,
    /// The program loaded.
    pub exec: Duration,
    /// From the launcher's receipt of the request to its answer.
    pub total: Duration,
}

/// What a launcher can hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub users: Users,
    /// Why there are no control groups, if there are none.
    pub no_groups: Option<String>,
    /// Why CPU cannot be weighed and bounded by control group, if it cannot.
    pub no_cpu_groups: Option<String>,
    /// How the daemon can be given a weight among other programs; from the launcher of guaranteed instances.
    pub daemon_group: Option<DaemonGroup>,
    /// Why guaranteed instances cannot be real-time, if they cannot: tried on a process in a group as theirs.
    pub no_real_time: Option<String>,
}

/// Whose instances are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Users {
    /// Each instance has a user of its own.
    Own,
    /// All instances are of the daemon's user, in user namespaces.
    Shared,
}

/// From the daemon to the launcher.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Open { groups: String, first_user: u32, serves: Serves, priority: Option<u8> },
    Start { id: u64, launch: Box<Launch> },
}

/// From the launcher to the daemon.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Opened(Result<Standing, String>),
    /// Carries the handles of init and of the program, the listener, standard output, standard error and, if asked for, the
    /// TUN device.
    Started {
        id: u64,
        program: i32,
        timing: Timing,
        group: Option<Group>,
    },
    Refused {
        id: u64,
        failure: Failure,
    },
    Exited {
        id: u64,
        exit: Exit,
    },
}
