//! Control groups: limits per instance on memory, processes and CPU, for the v1, v2 and mixed layouts.
//!
//! Groups lie at `OWN/NAME/CLASS/INSTANCE` in every hierarchy in use, OWN being the group this process is in. On v2 a group
//! with processes may have no limited children, so this process and its parent first move to the leaf `OWN/takt-daemon`; a
//! group shared with strangers is left alone and the top group used instead.
//! With the v1 cpu hierarchy guaranteed instances of real-time class get no cpu group: under `CONFIG_RT_GROUP_SCHED` a new one
//! grants no real-time class, and their CPU time is governed by admission.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::launcher::Serves;

/// Where systems mount their control groups.
pub const ROOT: &str = "/sys/fs/cgroup";
/// The leaf that v2 needs for processes of a group with limited children.
const DAEMON_LEAF: &str = "takt-daemon";
/// Shares of all best-effort instances together, against 1,024 of a process outside.
const BEST_EFFORT_SHARES: u32 = 204;
/// The same as a v2 weight, against 100.
const BEST_EFFORT_WEIGHT: u32 = 20;
/// Shares and weight of all guaranteed instances of ordinary class together.
const GUARANTEED_SHARES: u32 = 4096;
const GUARANTEED_WEIGHT: u32 = 400;
/// Shares and weight of a daemon whose guarantees rest on weights.
const DAEMON_SHARES: u32 = 8192;
const DAEMON_WEIGHT: u32 = 800;
/// Rounds of killing before a group counts as unkillable.
const KILL_ROUNDS_MAX: u32 = 50;

/// What a control-group operation could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no control-group hierarchy with {controller} is writable below {root}; instances have no {controller} limit")]
    NoController { controller: &'static str, root: PathBuf },
    #[error("cannot create control group {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot write `{value}` to {path}")]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} reads `{text}`")]
    Content { path: PathBuf, text: String },
    #[error("cannot remove control group {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("processes in control group {path} survived {rounds} rounds of SIGKILL")]
    Unkillable { path: PathBuf, rounds: u32 },
}

/// A resource a hierarchy governs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Controller {
    Memory,
    Pids,
    Cpu,
    CpuAccounting,
}

impl Controller {
    const ALL: [Self; 4] = [Self::Memory, Self::Pids, Self::Cpu, Self::CpuAccounting];

    /// The kernel's name in v1.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
            Self::CpuAccounting => "cpuacct",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Format {
    V1,
    V2,
}

/// Which share of the CPU a group's processes get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cpu {
    /// Governed by class and admission.
    Guaranteed,
    /// Of ordinary class: a high weight, all such instances together, and optionally a bound.
    Weighted { quota: Option<Quota> },
    /// A low weight, all best-effort instances together, and optionally a bound.
    BestEffort { quota: Option<Quota> },
}

/// At most `runtime` of CPU in every `period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    pub runtime: Duration,
    pub period: Duration,
}

/// What the processes of a group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory and swap together; swap itself is not used.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    pub cpu: Cpu,
}

/// One directory tree with the controllers we use in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    format: Format,
    controllers: Vec<Controller>,
    /// The directory of NAME.
    base: PathBuf,
}

/// Where this process may create groups.
#[derive(Debug)]
pub struct Groups {
    hierarchies: Vec<Hierarchy>,
}

/// How the daemon gets a weight among other programs, where its guarantees rest on weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DaemonGroup {
    /// v1: it joins this group, which has the weight, in the hierarchy of CPU alone.
    Join { group: PathBuf },
    /// v2: it is in this group, which gets the weight.
    Weigh { group: PathBuf },
}

impl DaemonGroup {
    /// Gives the calling process the weight.
    pub fn enter(&self) -> Result<(), Error> {
        match self {
            Self::Join { group } => write(&group.join("cgroup.procs"), &std::process::id().to_string()),
            Self::Weigh { group } => write(&group.join("cpu.weight"), &DAEMON_WEIGHT.to_string()),
        }
    }
}

/// One group: a directory in each hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    format: Format,
    controllers: Vec<Controller>,
    path: PathBuf,
}

/// The hierarchies of a system as this process sees them, before anything is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    places: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    format: Format,
    controllers: Vec<Controller>,
    /// The directory of OWN.
    own: PathBuf,
}

impl Layout {
    /// Reads the layout below `root` ([`ROOT`]) for a process whose `/proc/self/cgroup` is `own` and which may move the
    /// processes of `family` (itself and its parent) to other groups.
    #[must_use]
    pub fn detect(root: &Path, own: &str, family: &[i32]) -> Self {
        let mut places: Vec<Place> = Vec::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(names), Some(path)) = (fields.next(), fields.next()) else { continue };
            let place = if names.is_empty() { v2_place(root, path, family) } else { v1_place(root, names, path) };
            places.extend(place.filter(|place| !place.controllers.is_empty()));
        }
        Self { places }
    }

    /// The layout of this machine for this process.
    pub fn of_this_process() -> io::Result<Self> {
        let mut family = vec![rustix::process::getpid().as_raw_nonzero().get()];
        family.extend(rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get()));
        Ok(Self::detect(Path::new(ROOT), &fs::read_to_string("/proc/self/cgroup")?, &family))
    }

    /// Whether groups with this controller can be made here: the directory is writable for us.
    #[must_use]
    pub fn grants(&self, controller: Controller) -> bool {
        self.places.iter().any(|place| place.controllers.contains(&controller) && writable(&place.own))
    }
}

impl std::fmt::Display for Layout {
    /// "memory, pids: v1 at /sys/fs/cgroup/memory/…" per hierarchy.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, place) in self.places.iter().enumerate() {
            let names: Vec<_> = place.controllers.iter().map(|controller| controller.name()).collect();
            let format = match place.format {
                Format::V1 => "v1",
                Format::V2 => "v2",
            };
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{} {format} at {}", names.join(" "), place.own.display())?;
        }
        Ok(())
    }
}

fn writable(directory: &Path) -> bool {
    rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok()
}

fn v1_place(root: &Path, names: &str, path: &str) -> Option<Place> {
    let controllers: Vec<_> =
        Controller::ALL.into_iter().filter(|wanted| names.split(',').any(|name| name == wanted.name())).collect();
    let mount = std::iter::once(names).chain(names.split(',')).map(|name| root.join(name)).find(|mount| mount.is_dir())?;
    Some(Place { format: Format::V1, controllers, own: within(&mount, path) })
}

/// The v2 group to make ours in: the own one if it is ours alone (a service with delegation) or all we can see (a "container"),
/// else the top one, so that a login session's other processes stay where they are.
fn v2_place(root: &Path, path: &str, family: &[i32]) -> Option<Place> {
    let mount = [root.to_owned(), root.join("unified")].into_iter().find(|mount| mount.join("cgroup.controllers").exists())?;
    let mut own = within(&mount, path);
    if own.file_name().is_some_and(|name| name == DAEMON_LEAF) {
        own.pop();
    }
    let strangers = processes(&own).is_ok_and(|all| all.iter().any(|one| !family.contains(&one.as_raw_nonzero().get())));
    if strangers && !mount.join("cgroup.type").exists() && writable(&mount) {
        own = mount;
    }
    let names = fs::read_to_string(own.join("cgroup.controllers")).ok()?;
    let mut controllers: Vec<_> =
        Controller::ALL.into_iter().filter(|wanted| names.split_whitespace().any(|name| name == wanted.name())).collect();
    if controllers.contains(&Controller::Cpu) {
        controllers.push(Controller::CpuAccounting); // v2 accounts with the same controller
    }
    Some(Place { format: Format::V2, controllers, own })
}

/// `mount/path`, or the mount itself where the path belongs to a view from outside a "container".
fn within(mount: &Path, path: &str) -> PathBuf {
    let full = mount.join(path.trim_start_matches('/'));
    if full.is_dir() { full } else { mount.to_owned() }
}

impl Groups {
    /// Prepares to create groups under `name`; kills and removes what a dead daemon left there.
    /// Errors when no limit on memory or processes can be given.
    pub fn open(layout: &Layout, name: &str) -> Result<Self, Error> {
        let mut hierarchies = Vec::new();
        for place in layout.places.iter().filter(|place| writable(&place.own)) {
            let hierarchy =
                Hierarchy { format: place.format, controllers: place.controllers.clone(), base: place.own.join(name) };
            if place.format == Format::V2 {
                make_room(&place.own)?;
                enable(&place.own, &hierarchy.controllers)?;
            }
            remove_tree(&hierarchy.base)?;
            hierarchy.prepare()?;
            hierarchies.push(hierarchy);
        }
        for controller in [Controller::Memory, Controller::Pids] {
            if !hierarchies.iter().any(|hierarchy: &Hierarchy| hierarchy.controllers.contains(&controller)) {
                return Err(Error::NoController { controller: controller.name(), root: PathBuf::from(ROOT) });
            }
        }
        Ok(Self { hierarchies })
    }

    /// Weighs all groups together against the daemon and other programs.
    pub fn weigh(&self, serves: Serves) -> Result<(), Error> {
        let (shares, weight) = match serves {
            Serves::Guaranteed => (GUARANTEED_SHARES, GUARANTEED_WEIGHT),
            Serves::BestEffort => (BEST_EFFORT_SHARES, BEST_EFFORT_WEIGHT),
        };
        self.hierarchies.iter().try_for_each(|hierarchy| hierarchy.weigh(&hierarchy.base, shares, weight))
    }

    /// Whether groups here govern this resource.
    #[must_use]
    pub fn govern(&self, controller: Controller) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.controllers.contains(&controller))
    }

    /// Creates an instance's group with its limits. Removes what it made when a step does not work.
    pub fn create(&self, instance: &str, limits: &Limits) -> Result<Group, Error> {
        let mut group = Group { parts: Vec::new() };
        for hierarchy in &self.hierarchies {
            let Some(class) = hierarchy.class_directory(limits.cpu) else { continue };
            let path = class.join(instance);
            let made = create(&path).and_then(|()| {
                let part = Part { format: hierarchy.format, controllers: hierarchy.controllers.clone(), path };
                part.limit(limits, &hierarchy.base)?;
                group.parts.push(part);
                Ok(())
            });
            if let Err(error) = made {
                group.remove().ok(); // the first error is the one to tell
                return Err(error);
            }
        }
        Ok(group)
    }
}

impl Groups {
    /// Makes what [`DaemonGroup::enter`] needs; `None` where no weight can be given to the daemon alone.
    pub fn for_the_daemon(&self) -> Result<Option<DaemonGroup>, Error> {
        let Some(hierarchy) = self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.contains(&Controller::Cpu)) else {
            return Ok(None);
        };
        match hierarchy.format {
            Format::V1 => {
                let group = hierarchy.daemon();
                create(&group)?;
                write(&group.join("cpu.shares"), &DAEMON_SHARES.to_string())?;
                Ok(Some(DaemonGroup::Join { group }))
            }
            Format::V2 => {
                let group = hierarchy.base.with_file_name(DAEMON_LEAF);
                Ok(group.join("cpu.weight").exists().then_some(DaemonGroup::Weigh { group }))
            }
        }
    }

    /// Kills what is left in the groups and removes all directories of this launcher. A daemon that lives on is back where it
    /// came from.
    pub fn close(&self) -> Result<(), Error> {
        // The instances' first: what becomes of ours must not leave any of theirs behind.
        self.hierarchies.iter().try_for_each(|hierarchy| remove_tree(&hierarchy.base))?;
        let with_daemon = self.hierarchies.iter().filter(|hierarchy| hierarchy.format == Format::V1);
        with_daemon.map(Hierarchy::daemon).try_for_each(|group| dissolve(&group))
    }
}

impl Hierarchy {
    /// The daemon's group beside ours: nobody in it is to be killed.
    fn daemon(&self) -> PathBuf {
        let mut name = self.base.file_name().unwrap_or_default().to_owned();
        name.push("-daemon");
        self.base.with_file_name(name)
    }

    fn prepare(&self) -> Result<(), Error> {
        create(&self.base)?;
        if self.format == Format::V2 {
            enable(&self.base, &self.controllers)?;
        }
        for cpu in [Cpu::Guaranteed, Cpu::Weighted { quota: None }, Cpu::BestEffort { quota: None }] {
            let Some(class) = self.class_directory(cpu) else { continue };
            create(&class)?;
            if self.format == Format::V2 {
                enable(&class, &self.controllers)?;
            }
        }
        self.weigh(&self.base.join("guaranteed"), GUARANTEED_SHARES, GUARANTEED_WEIGHT)?;
        self.weigh(&self.base.join("best-effort"), BEST_EFFORT_SHARES, BEST_EFFORT_WEIGHT)
    }

    /// Gives the directory of a class its weight, where this hierarchy governs CPU.
    fn weigh(&self, class: &Path, shares: u32, weight: u32) -> Result<(), Error> {
        if !self.controllers.contains(&Controller::Cpu) {
            return Ok(());
        }
        match self.format {
            Format::V1 => write(&class.join("cpu.shares"), &shares.to_string()),
            Format::V2 => write(&class.join("cpu.weight"), &weight.to_string()),
        }
    }

    /// Where groups of this kind of instance lie; `None` where they get none.
    fn class_directory(&self, cpu: Cpu) -> Option<PathBuf> {
        let real_time_barred = self.format == Format::V1 && self.controllers.contains(&Controller::Cpu);
        match cpu {
            Cpu::Guaranteed if real_time_barred => None,
            Cpu::Guaranteed | Cpu::Weighted { .. } => Some(self.base.join("guaranteed")),
            Cpu::BestEffort { .. } => Some(self.base.join("best-effort")),
        }
    }
}

impl Part {
    fn limit(&self, limits: &Limits, base: &Path) -> Result<(), Error> {
        for controller in &self.controllers {
            match (controller, self.format) {
                (Controller::Memory, Format::V1) => {
                    self.set("memory.limit_in_bytes", &limits.memory_bytes.to_string())?;
                    if base.join("memory.memsw.limit_in_bytes").exists() {
                        self.set("memory.memsw.limit_in_bytes", &limits.memory_bytes.to_string())?;
                    }
                }
                (Controller::Memory, Format::V2) => {
                    self.set("memory.max", &limits.memory_bytes.to_string())?;
                    self.set("memory.oom.group", "1")?;
                    if base.join("memory.swap.max").exists() {
                        self.set("memory.swap.max", "0")?;
                    }
                }
                (Controller::Pids, Format::V1 | Format::V2) => self.set("pids.max", &limits.pids.to_string())?,
                (Controller::Cpu, format) => self.limit_cpu(limits.cpu, format)?,
                (Controller::CpuAccounting, Format::V1 | Format::V2) => {}
            }
        }
        Ok(())
    }

    fn limit_cpu(&self, cpu: Cpu, format: Format) -> Result<(), Error> {
        let (Cpu::Weighted { quota: Some(quota) } | Cpu::BestEffort { quota: Some(quota) }) = cpu else { return Ok(()) };
        let (runtime, period) = (quota.runtime.as_micros(), quota.period.as_micros());
        match format {
            Format::V1 => {
                self.set("cpu.cfs_period_us", &period.to_string())?;
                self.set("cpu.cfs_quota_us", &runtime.to_string())
            }
            Format::V2 => self.set("cpu.max", &format!("{runtime} {period}")),
        }
    }

    fn set(&self, file: &str, value: &str) -> Result<(), Error> {
        write(&self.path.join(file), value)
    }
}

impl Group {
    /// The directory to clone a process into, where the layout allows that (v2 alone).
    #[must_use]
    pub fn clone_target(&self) -> Option<&Path> {
        match self.parts.as_slice() {
            [Part { format: Format::V2, path, .. }] => Some(path),
            _ => None,
        }
    }

    /// Moves a process, with all its threads, into the group.
    pub fn add(&self, process: Pid) -> Result<(), Error> {
        let text = process.as_raw_nonzero().to_string();
        self.parts.iter().try_for_each(|part| write(&part.path.join("cgroup.procs"), &text))
    }

    /// CPU time used by all processes of the group, dead ones included. `None` where no hierarchy accounts it.
    pub fn cpu_used(&self) -> Result<Option<Duration>, Error> {
        let Some(part) = self.part(Controller::CpuAccounting) else { return Ok(None) };
        match part.format {
            Format::V1 => Ok(Some(Duration::from_nanos(read_number(&part.path.join("cpuacct.usage"))?))),
            Format::V2 => Ok(Some(Duration::from_micros(read_field(&part.path.join("cpu.stat"), "usage_usec")?))),
        }
    }

    /// The most memory, in bytes, that the group's processes and their files in the page cache ever held together. `None` where
    /// no hierarchy counts it, as v2 before Linux 5.19.
    pub fn memory_peak(&self) -> Result<Option<u64>, Error> {
        let Some(part) = self.part(Controller::Memory) else { return Ok(None) };
        let file = match part.format {
            Format::V1 => "memory.max_usage_in_bytes",
            Format::V2 => "memory.peak",
        };
        let path = part.path.join(file);
        if path.exists() { read_number(&path).map(Some) } else { Ok(None) }
    }

    /// How many processes the kernel has killed because the group was at its memory limit.
    pub fn memory_kills(&self) -> Result<u64, Error> {
        let Some(part) = self.part(Controller::Memory) else { return Ok(0) };
        match part.format {
            Format::V1 => read_field(&part.path.join("memory.oom_control"), "oom_kill"),
            Format::V2 => read_field(&part.path.join("memory.events"), "oom_kill"),
        }
    }

    /// The ids of the group's processes.
    pub fn processes(&self) -> Result<Vec<Pid>, Error> {
        self.parts.first().map_or_else(|| Ok(Vec::new()), |part| processes(&part.path))
    }

    /// Removes the group. Errors while it has processes, dead ones that nobody reaped included.
    pub fn remove(&self) -> Result<(), Error> {
        self.parts.iter().try_for_each(|part| remove(&part.path))
    }

    fn part(&self, controller: Controller) -> Option<&Part> {
        self.parts.iter().find(|part| part.controllers.contains(&controller))
    }
}

/// Moves the processes of a v2 group to a leaf below it, unless it is the root, which may keep them.
fn make_room(own: &Path) -> Result<(), Error> {
    if !own.join("cgroup.type").exists() {
        return Ok(());
    }
    let leaf = own.join(DAEMON_LEAF);
    create(&leaf)?;
    for process in processes(own)? {
        let moved = write(&leaf.join("cgroup.procs"), &process.as_raw_nonzero().to_string());
        match moved {
            Err(Error::Write { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {} // it has ended
            moved => moved?,
        }
    }
    Ok(())
}

fn enable(directory: &Path, controllers: &[Controller]) -> Result<(), Error> {
    let names = controllers.iter().filter(|controller| **controller != Controller::CpuAccounting);
    let wanted: Vec<_> = names.map(|controller| format!("+{}", controller.name())).collect();
    write(&directory.join("cgroup.subtree_control"), &wanted.join(" "))
}

/// Kills everything in a group and below, and removes it. Nothing there is no error.
fn remove_tree(path: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path())?;
    }
    // The last of a group's dead may hold it for some more moments.
    for round in 0..KILL_ROUNDS_MAX {
        kill_all(path)?;
        match remove(path) {
            Err(Error::Remove { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => pause(round),
            removed => return removed,
        }
    }
    Err(Error::Unkillable { path: path.to_owned(), rounds: KILL_ROUNDS_MAX })
}

/// Moves what is in a group to the one above and removes it. Nothing there is no error.
fn dissolve(group: &Path) -> Result<(), Error> {
    if !group.exists() {
        return Ok(());
    }
    let above = group.with_file_name("cgroup.procs");
    for round in 0..KILL_ROUNDS_MAX {
        for process in processes(group)? {
            write(&above, &process.as_raw_nonzero().to_string()).ok(); // it may have ended
        }
        match remove(group) {
            Err(Error::Remove { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => pause(round),
            removed => return removed,
        }
    }
    Err(Error::Unkillable { path: group.to_owned(), rounds: KILL_ROUNDS_MAX })
}

/// Waits a little, longer each round up to 10 ms.
fn pause(round: u32) {
    crate::sys::clock::sleep_until(crate::sys::clock::now() + Duration::from_millis(1) * round.min(10));
}

fn kill_all(path: &Path) -> Result<(), Error> {
    let kill = path.join("cgroup.kill");
    let has_kill = kill.exists();
    if path.join("pids.max").exists() {
        write(&path.join("pids.max"), "0").ok(); // no forking away from the kills; the kills decide
    }
    for round in 0..KILL_ROUNDS_MAX {
        let alive = processes(path)?;
        if alive.is_empty() {
            return Ok(());
        }
        if has_kill {
            write(&kill, "1")?;
        } else {
            for process in alive {
                rustix::process::kill_process(process, Signal::KILL).ok(); // it may have ended
            }
        }
        pause(round);
    }
    Err(Error::Unkillable { path: path.to_owned(), rounds: KILL_ROUNDS_MAX })
}

fn processes(path: &Path) -> Result<Vec<Pid>, Error> {
    let path = path.join("cgroup.procs");
    let text = fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?;
    Ok(text.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)).collect())
}

fn create(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::Create { path: path.to_owned(), source }),
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Remove { path: path.to_owned(), source }),
    }
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(|source| Error::Write { path: path.to_owned(), value: value.to_owned(), source })
}

fn read_number(path: &Path) -> Result<u64, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    text.trim().parse().map_err(|_| Error::Content { path: path.to_owned(), text: text.trim().to_owned() })
}

/// The number after `key` in a file of "key number" lines.
fn read_field(path: &Path, key: &str) -> Result<u64, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    field(&text, key).ok_or_else(|| Error::Content { path: path.to_owned(), text })
}

fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { memory_bytes: 64 << 20, pids: 32, cpu: Cpu::BestEffort { quota: None } };

    /// A v2-only system as recorded from one: a delegated service group with its files.
    fn v2_tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let service = root.path().join("system.slice/takt.service");
        fs::create_dir_all(&service).unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids rdma misc\n").unwrap();
        for (file, text) in [
            ("cgroup.controllers", "cpu memory pids\n"),
            ("cgroup.type", "domain\n"),
            ("cgroup.procs", "4242\n4243\n"),
            ("cgroup.subtree_control", ""),
            ("memory.swap.max", "max\n"),
        ] {
            fs::write(service.join(file), text).unwrap();
        }
        root
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_v2_system_gets_its_limits_where_its_service_lies() {
        let root = v2_tree();
        let service = root.path().join("system.slice/takt.service");
        let layout = Layout::detect(root.path(), "0::/system.slice/takt.service\n", &[4242, 4243]);
        assert!(layout.grants(Controller::Memory) && layout.grants(Controller::CpuAccounting));
        let groups = Groups::open(&layout, "takt-1").unwrap();
        assert_eq!(text(&service.join("takt-daemon/cgroup.procs")), "4243", "each process was moved, the last one last");
        assert_eq!(text(&service.join("cgroup.subtree_control")), "+memory +pids +cpu");
        assert_eq!(text(&service.join("takt-1/best-effort/cpu.weight")), "20");

        assert_eq!(groups.for_the_daemon().unwrap(), None, "the leaf has no weight");
        let leaf = service.join("takt-daemon");
        fs::write(leaf.join("cpu.weight"), "100").unwrap();
        groups.for_the_daemon().unwrap().unwrap().enter().unwrap();
        assert_eq!(text(&leaf.join("cpu.weight")), "800");

        let quota = Quota { runtime: Duration::from_millis(2), period: Duration::from_millis(10) };
        let limits = Limits { cpu: Cpu::BestEffort { quota: Some(quota) }, ..LIMITS };
        let group = groups.create("i-7", &limits).unwrap();
        let directory = group.clone_target().unwrap();
        assert_eq!(directory, service.join("takt-1/best-effort/i-7"));
        for (file, expected) in
            [("memory.max", "67108864"), ("memory.oom.group", "1"), ("pids.max", "32"), ("cpu.max", "2000 10000")]
        {
            assert_eq!(text(&directory.join(file)), expected, "{file}");
        }
        fs::write(directory.join("cpu.stat"), "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n").unwrap();
        fs::write(directory.join("memory.events"), "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 1\n").unwrap();
        assert_eq!(group.cpu_used().unwrap(), Some(Duration::from_micros(1500)));
        assert_eq!(group.memory_kills().unwrap(), 2);
        assert_eq!(group.memory_peak().unwrap(), None, "an old kernel");
        fs::write(directory.join("memory.peak"), "9437184\n").unwrap();
        assert_eq!(group.memory_peak().unwrap(), Some(9 << 20));
        group.add(Pid::from_raw(77).unwrap()).unwrap();
        assert_eq!(text(&directory.join("cgroup.procs")), "77");
    }

    #[test]
    fn a_daemon_already_in_its_leaf_makes_groups_beside_it() {
        let root = v2_tree();
        fs::create_dir(root.path().join("system.slice/takt.service/takt-daemon")).unwrap();
        let layout = Layout::detect(root.path(), "0::/system.slice/takt.service/takt-daemon\n", &[4242, 4243]);
        assert_eq!(layout.places[0].own, root.path().join("system.slice/takt.service"));
    }

    #[test]
    fn a_login_sessions_other_processes_stay_where_they_are() {
        let root = v2_tree();
        let layout = Layout::detect(root.path(), "0::/system.slice/takt.service\n", &[4242]);
        assert_eq!(layout.places[0].own, root.path());
        Groups::open(&layout, "takt-1").unwrap();
        assert_eq!(text(&root.path().join("cgroup.subtree_control")), "+memory +pids +cpu");
        assert!(!root.path().join("system.slice/takt.service/takt-daemon").exists());
        assert!(root.path().join("takt-1/guaranteed").is_dir());
    }

    #[test]
    fn v1_guaranteed_instances_get_a_cpu_group_only_at_ordinary_class() {
        let root = tempfile::tempdir().unwrap();
        for mount in ["memory", "pids", "cpu,cpuacct"] {
            fs::create_dir(root.path().join(mount)).unwrap();
        }
        fs::write(root.path().join("memory/memory.memsw.limit_in_bytes"), "").unwrap();
        let layout = Layout::detect(root.path(), "4:memory:/\n3:cpu,cpuacct:/\n2:pids:/\n1:name=systemd:/\n0::/\n", &[]);
        let groups = Groups::open(&layout, "takt-1").unwrap();
        groups.weigh(Serves::BestEffort).unwrap();
        assert_eq!(text(&root.path().join("cpu,cpuacct/takt-1/cpu.shares")), "204");
        let guaranteed = groups.create("i-1", &Limits { cpu: Cpu::Guaranteed, ..LIMITS }).unwrap();
        assert!(!root.path().join("cpu,cpuacct/takt-1/guaranteed/i-1").exists());
        assert_eq!(text(&root.path().join("memory/takt-1/guaranteed/i-1/memory.limit_in_bytes")), "67108864");
        assert_eq!(guaranteed.cpu_used().unwrap(), None);
        assert_eq!(guaranteed.clone_target(), None);
        let quota = Quota { runtime: Duration::from_millis(2), period: Duration::from_millis(10) };
        groups.create("i-3", &Limits { cpu: Cpu::Weighted { quota: Some(quota) }, ..LIMITS }).unwrap();
        let weighted = root.path().join("cpu,cpuacct/takt-1/guaranteed");
        assert_eq!(text(&weighted.join("cpu.shares")), "4096");
        assert_eq!(text(&weighted.join("i-3/cpu.cfs_period_us")), "10000");
        assert_eq!(text(&weighted.join("i-3/cpu.cfs_quota_us")), "2000");
        let daemon = groups.for_the_daemon().unwrap().unwrap();
        let group = root.path().join("cpu,cpuacct/takt-1-daemon");
        assert_eq!((&daemon, text(&group.join("cpu.shares"))), (&DaemonGroup::Join { group: group.clone() }, "8192".to_owned()));
        daemon.enter().unwrap();
        assert_eq!(text(&group.join("cgroup.procs")), std::process::id().to_string());
        groups.create("i-2", &LIMITS).unwrap();
        assert_eq!(text(&root.path().join("cpu,cpuacct/takt-1/best-effort/cpu.shares")), "204");
        assert!(root.path().join("cpu,cpuacct/takt-1/best-effort/i-2").is_dir());
    }

    #[test]
    fn a_system_without_the_controllers_is_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let error = Groups::open(&Layout::detect(root.path(), "0::/\n", &[]), "takt-1").unwrap_err();
        assert!(matches!(error, Error::NoController { controller: "memory", .. }), "{error}");
    }

    #[test]
    fn this_machines_groups_limit_account_and_go_away() {
        let layout = Layout::of_this_process().unwrap();
        let name = format!("takt-test-{}", std::process::id());
        let groups = match Groups::open(&layout, &name) {
            Ok(groups) => groups,
            Err(error) => return println!("skipped: {error}"),
        };
        if let Some(daemon @ DaemonGroup::Join { group }) = &groups.for_the_daemon().unwrap() {
            if let Err(refused) = daemon.enter() {
                println!("skipped: a weight for this process ({refused})");
            }
            dissolve(group).unwrap();
            assert!(!group.exists(), "this process lives on, and is back where it came from");
        }
        let group = groups.create("i-1", &LIMITS).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        group.add(Pid::from_child(&child)).unwrap();
        assert_eq!(group.processes().unwrap(), [Pid::from_child(&child)]);
        assert_eq!(group.memory_kills().unwrap(), 0);
        if let Some(peak) = group.memory_peak().unwrap() {
            assert!(peak <= LIMITS.memory_bytes, "{peak}");
        }
        group.remove().unwrap_err();
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        for hierarchy in &Groups::open(&layout, &name).unwrap().hierarchies {
            assert!(!hierarchy.base.join("best-effort/i-1").exists(), "what a dead daemon left is removed");
            remove_tree(&hierarchy.base).unwrap();
        }
        assert!(!reaper.join().unwrap().success());
    }

    /// The v2 code on a v2 mount of this machine, where there is one; a hybrid one has no controllers to limit with.
    #[test]
    fn a_v2_group_is_cloned_into_killed_and_removed() {
        let mounts = [Path::new(ROOT), Path::new("/sys/fs/cgroup/unified")];
        let Some(mount) = mounts.into_iter().find(|mount| mount.join("cgroup.controllers").exists() && writable(mount)) else {
            return println!("skipped: no writable v2 hierarchy");
        };
        let path = mount.join(format!("takt-test-v2-{}", std::process::id()));
        create(&path).unwrap();
        let directory = fs::File::open(&path).unwrap();
        crate::sys::process::probe_in(&[], Some(std::os::fd::AsFd::as_fd(&directory))).unwrap();
        let mut child = std::process::Command::new("sh").args(["-c", "trap '' TERM; sleep 60"]).spawn().unwrap();
        write(&path.join("cgroup.procs"), &child.id().to_string()).unwrap();
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        remove_tree(&path).unwrap();
        assert!(!reaper.join().unwrap().success() && !path.exists());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(own in "[0-9a-z:,=/\n]{0,80}", text in "[a-z_0-9 \n-]{0,80}") {
            let _ = Layout::detect(Path::new("/nonexistent"), &own, &[]);
            let _ = field(&text, "oom_kill");
        }
    }
}
