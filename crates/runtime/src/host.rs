//! What this machine grants this user: detected once at start, printed, and asked before a level is promised.

use std::fmt;
use std::io;
use std::path::Path;

use crate::cgroup::{Controller, Layout};
use crate::sys::process::{self, Namespace};
use crate::sys::sched::{self, Held, RealTime, Throttle};

/// The lowest and highest priority Takt uses; the probe tries the highest.
const PRIORITY_MAX: u8 = 95;

const KERNEL_MIN: (u32, u32) = (5, 12);

/// What the daemon runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    Root,
    Unprivileged,
}

/// Something that is there, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    Yes,
    No { reason: String },
}

impl Grant {
    fn from_result<E: fmt::Display>(result: Result<(), E>) -> Self {
        match result {
            Ok(()) => Self::Yes,
            Err(error) => Self::No { reason: error.to_string() },
        }
    }

    /// Whether it is granted.
    #[must_use]
    pub const fn is_yes(&self) -> bool {
        match self {
            Self::Yes => true,
            Self::No { .. } => false,
        }
    }
}

/// What a machine grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub privilege: Privilege,
    /// Linux 5.12 is the first with every call the sandbox makes.
    pub kernel: Grant,
    /// Each namespace an instance needs. Without privilege they are made inside a user namespace.
    pub namespaces: Vec<(Namespace, Grant)>,
    pub groups: Vec<(Controller, Grant)>,
    /// Where control groups lie, in words.
    pub group_layout: String,
    pub real_time: RealTime,
    pub throttle: Option<Throttle>,
    /// The Landlock ABI of the kernel; zero where there is none.
    pub landlock_abi: i32,
    pub seccomp: Grant,
    pub tun: Grant,
    pub memory_lock: Grant,
    /// Cores this process may use.
    pub cores: Vec<u16>,
}

/// Something that a machine and its user give a node, or do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    pub name: String,
    /// `None`: it is in force.
    pub missing: Option<Missing>,
}

/// Why something is not there, what follows, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub reason: String,
    pub consequence: String,
    pub remedy: String,
}

impl Protection {
    /// As it was granted, with what follows where it was not.
    #[must_use]
    pub fn new(name: &str, grant: &Grant, consequence: &str, remedy: &str) -> Self {
        let missing = match grant {
            Grant::Yes => None,
            Grant::No { reason } => {
                Some(Missing { reason: reason.clone(), consequence: consequence.to_owned(), remedy: remedy.to_owned() })
            }
        };
        Self { name: name.to_owned(), missing }
    }
}

impl fmt::Display for Protection {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.missing {
            None => write!(f, "{}: in force", self.name),
            Some(Missing { reason, consequence, remedy }) => write!(f, "{}: {consequence} ({reason}); {remedy}", self.name),
        }
    }
}

/// Looks at the machine. Starts a few short processes and one thread; some milliseconds.
#[must_use]
pub fn detect() -> Host {
    let privilege = if rustix::process::geteuid().is_root() { Privilege::Root } else { Privilege::Unprivileged };
    let layout = Layout::of_this_process();
    let controllers = [Controller::Memory, Controller::Pids, Controller::Cpu, Controller::CpuAccounting];
    Host {
        privilege,
        kernel: kernel(&rustix::system::uname().release().to_string_lossy()),
        namespaces: namespaces(privilege),
        groups: controllers.map(|controller| (controller, group(&layout, controller))).into(),
        group_layout: layout.as_ref().map_or_else(ToString::to_string, ToString::to_string),
        real_time: sched::probe_fifo(PRIORITY_MAX),
        throttle: sched::throttle().ok(),
        landlock_abi: process::landlock_abi(),
        seccomp: seccomp(),
        tun: tun(),
        memory_lock: memory_lock(),
        cores: sched::cores().unwrap_or_default(),
    }
}

fn kernel(release: &str) -> Grant {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if KERNEL_MIN <= version { Grant::Yes } else { Grant::No { reason: format!("Linux {release} is older than 5.12") } }
}

fn namespaces(privilege: Privilege) -> Vec<(Namespace, Grant)> {
    let needed = [Namespace::User, Namespace::Mount, Namespace::Pid, Namespace::Net, Namespace::Ipc, Namespace::Uts];
    let probe = |namespace| match (privilege, namespace) {
        (Privilege::Root, _) | (Privilege::Unprivileged, Namespace::User) => process::probe(&[namespace]),
        (Privilege::Unprivileged, _) => process::probe(&[Namespace::User, namespace]),
    };
    needed.map(|namespace| (namespace, Grant::from_result(probe(namespace)))).into()
}

fn group(layout: &io::Result<Layout>, controller: Controller) -> Grant {
    match layout {
        Ok(layout) if layout.grants(controller) => Grant::Yes,
        Ok(layout) => Grant::No { reason: format!("no writable hierarchy with it among: {layout}") },
        Err(error) => Grant::No { reason: error.to_string() },
    }
}

fn seccomp() -> Grant {
    match std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.split_whitespace().any(|action| action == "errno") => Grant::Yes,
        Ok(actions) => Grant::No { reason: format!("the kernel's filter actions are `{}`", actions.trim()) },
        Err(error) => Grant::No { reason: error.to_string() },
    }
}

fn tun() -> Grant {
    let device = Path::new("/dev/net/tun");
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(device).map(drop);
    Grant::from_result(opened.map_err(|error| format!("{}: {error}", device.display())))
}

fn memory_lock() -> Grant {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).maximum;
    match (sched::holds_memory_lock(), limit) {
        (Held::Yes, _) | (Held::No, None) => Grant::Yes,
        (Held::No, Some(bytes)) => Grant::No { reason: format!("RLIMIT_MEMLOCK is {bytes} bytes and CAP_IPC_LOCK is not held") },
    }
}

impl Host {
    /// Whether the `hard` level can be given.
    #[must_use]
    pub fn hard_level(&self) -> Grant {
        match &self.real_time {
            RealTime::Works => Grant::Yes,
            refused @ RealTime::Refused { .. } => Grant::No { reason: why_not_real_time(refused) },
        }
    }

    /// Whether process instances can be isolated at all. Without it only functions trusted like the daemon's user may run.
    #[must_use]
    pub fn isolation(&self) -> Grant {
        let lacking = self.namespaces.iter().filter(|(namespace, _)| match namespace {
            Namespace::User => self.privilege == Privilege::Unprivileged,
            Namespace::Mount | Namespace::Pid | Namespace::Net | Namespace::Ipc | Namespace::Uts => true,
            Namespace::Cgroup => false,
        });
        let mut reasons: Vec<_> = lacking
            .filter_map(|(namespace, grant)| match grant {
                Grant::Yes => None,
                Grant::No { reason } => Some(format!("{namespace:?} namespace: {reason}")),
            })
            .collect();
        match &self.kernel {
            Grant::Yes => {}
            Grant::No { reason } => reasons.push(reason.clone()),
        }
        if reasons.is_empty() { self.seccomp.clone() } else { Grant::No { reason: reasons.join("; ") } }
    }

    /// Everything that is looked for, most consequential first.
    #[must_use]
    pub fn protections(&self) -> Vec<Protection> {
        let landlock = match self.landlock_abi {
            ..1 => Grant::No { reason: "the kernel has none".to_owned() },
            1.. => Grant::Yes,
        };
        let mut all = vec![
            Protection::new(
                "isolation of instances",
                &self.isolation(),
                "process instances cannot be started",
                "run as root, or allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)",
            ),
            Protection::new(
                "real-time scheduling",
                &self.hard_level(),
                "guarantees are given at level soft only",
                "run as root, or `setcap cap_sys_nice,cap_ipc_lock+ep` the takt program, or set LimitRTPRIO=95 (systemd) or \
                 `rtprio 95` (limits.conf), outside cpu groups without rt_runtime",
            ),
        ];
        all.extend(self.groups.iter().map(|(controller, grant)| {
            let name = format!("control groups: {}", controller.name());
            Protection::new(&name, grant, controller.without(), "run as root, or as a service with Delegate=yes")
        }));
        all.extend([
            Protection::new(
                "Landlock",
                &landlock,
                "one layer less holds files read-only",
                "start the kernel with lsm=landlock,…",
            ),
            Protection::new(
                "TUN devices",
                &self.tun,
                "functions get no outbound connections, and those that ask for them are refused",
                "make /dev/net/tun accessible",
            ),
            Protection::new("locked memory", &self.memory_lock, "page faults can delay guaranteed work", "grant CAP_IPC_LOCK"),
        ]);
        all
    }
}

impl Controller {
    /// What follows where it governs nothing.
    #[must_use]
    pub const fn without(self) -> &'static str {
        match self {
            Self::Memory => "memory is limited per process instead of per instance",
            Self::Pids => "processes are limited per user instead of per instance",
            Self::Cpu => {
                "at level soft the CPU share is sampled instead of a quota, and other programs weigh as much as the node and \
                 its instances"
            }
            Self::CpuAccounting => "CPU time is measured of an instance's program alone",
        }
    }
}

fn why_not_real_time(refused: &RealTime) -> String {
    match refused {
        RealTime::Works => String::new(),
        RealTime::Refused { error, capability, rlimit_priority, group_runtime_us } => {
            let capability = match capability {
                Held::Yes => "held",
                Held::No => "not held",
            };
            let group = group_runtime_us.map_or_else(String::new, |us| format!(", rt_runtime of the cpu group {us} us"));
            format!("{error} (CAP_SYS_NICE {capability}, RLIMIT_RTPRIO {rlimit_priority}{group})")
        }
    }
}

impl fmt::Display for Host {
    /// A line for what is there, then a line for each missing thing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = match self.privilege {
            Privilege::Root => "root",
            Privilege::Unprivileged => "an unprivileged user",
        };
        let throttle = match self.throttle {
            Some(Throttle::Limited { runtime, period }) => format!("real-time throttle {runtime:?} in {period:?}"),
            Some(Throttle::Off) => "no real-time throttle".to_owned(),
            None => "real-time throttle unknown".to_owned(),
        };
        writeln!(f, "running as {user} on {} cores; {throttle}; Landlock ABI {}", self.cores.len(), self.landlock_abi)?;
        writeln!(f, "control groups: {}", self.group_layout)?;
        for missing in self.protections().iter().filter(|protection| protection.missing.is_some()) {
            writeln!(f, "missing: {missing}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Host {
        Host {
            privilege: Privilege::Root,
            kernel: Grant::Yes,
            namespaces: vec![(Namespace::Mount, Grant::Yes), (Namespace::Cgroup, Grant::No { reason: "unused".to_owned() })],
            groups: vec![(Controller::Memory, Grant::Yes)],
            group_layout: "memory v2 at /sys/fs/cgroup".to_owned(),
            real_time: RealTime::Works,
            throttle: Some(Throttle::Off),
            landlock_abi: 7,
            seccomp: Grant::Yes,
            tun: Grant::Yes,
            memory_lock: Grant::Yes,
            cores: vec![0, 1],
        }
    }

    #[test]
    fn a_full_machine_lacks_nothing() {
        assert!(full().protections().iter().all(|protection| protection.missing.is_none()));
        assert!(full().isolation().is_yes() && full().hard_level().is_yes());
    }

    #[test]
    fn what_is_missing_is_told_with_its_consequence() {
        let refused =
            RealTime::Refused { error: "no".to_owned(), capability: Held::No, rlimit_priority: 0, group_runtime_us: Some(0) };
        let host = Host { real_time: refused, landlock_abi: 0, ..full() };
        let text = host.to_string();
        assert!(text.contains("level soft only"), "{text}");
        assert!(text.contains("CAP_SYS_NICE not held, RLIMIT_RTPRIO 0, rt_runtime of the cpu group 0 us"), "{text}");
        assert_eq!(host.protections().iter().filter(|protection| protection.missing.is_some()).count(), 2);
    }

    #[test]
    fn root_needs_no_user_namespace() {
        let no_user = vec![(Namespace::User, Grant::No { reason: "off".to_owned() })];
        let root = Host { namespaces: no_user.clone(), ..full() };
        assert!(root.isolation().is_yes());
        let user = Host { privilege: Privilege::Unprivileged, namespaces: no_user, ..full() };
        assert!(!user.isolation().is_yes());
    }

    #[test]
    fn kernels_are_told_apart_by_their_numbers() {
        for release in ["5.12", "6.18.44-fc-v669", "5.15.0-101-generic", "10.0"] {
            assert!(kernel(release).is_yes(), "{release}");
        }
        for release in ["5.11.9", "4.19.0-20-amd64", "", "x"] {
            assert!(!kernel(release).is_yes(), "{release}");
        }
    }

    #[test]
    fn this_machine_is_told() {
        let host = detect();
        println!("{host}");
        assert!(!host.cores.is_empty());
    }
}
