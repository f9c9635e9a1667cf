//! The launcher itself.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use model::Time;
use rustix::event::{PollFd, PollFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Resource, Rlimit};
use rustix::time::Timespec;

use super::{Answer, Exit, INSTANCES_MAX, Launch, Placement, Request, START_MAX, Serves, Standing, TMP_FILES_MAX, Timing, Users};
use crate::cgroup::{self, Controller, Cpu, Group, Groups, Layout, Limits};
use crate::sandbox::filter::Filter;
use crate::sandbox::{self, Ends, Failure, Fallback, Plan, Report, Step, Tree, USER_INSIDE, User};
use crate::sys::clock::now;
use crate::sys::process::{self, Death, Namespace, Pidfd, Side, SingleThreaded, Termination};
use crate::sys::sched::{self, Class};
use crate::sys::socket::{Message, Packets};

/// How long the launcher waits before it tries again to remove groups whose dead the kernel has not let go yet.
const REMOVE_AGAIN_MS: i64 = 20;
/// How often the launcher looks for starts that take too long, while there are starts.
const START_MAX_CHECK_MS: i64 = 1000;
/// Memory of the process that tries the real-time class.
const PROBE_BYTES: u64 = 16 << 20;
/// Tries to remove a group before it is left for the next start of the launcher.
const REMOVE_TRIES_MAX: u32 = 100;

/// Serves the daemon on standard input until that closes. The whole life of a launcher process.
#[must_use]
pub fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        // A launcher that cannot even open says so to the daemon; here only the code is left.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    let daemon = Packets::from(io::stdin().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let Some(Message { bytes, .. }) = daemon.receive()? else { return Ok(()) };
    let opened = match serde_json::from_slice(&bytes)? {
        Request::Open { groups, first_user, serves, priority } => {
            let opened = Launcher::open(daemon.as_fd().try_clone_to_owned()?.into(), &groups, (first_user, serves));
            if let (Ok((_, standing)), Some(priority)) = (&opened, priority)
                && standing.no_real_time.is_none()
            {
                // Where the lowest priority was granted a moment ago this one is; else starts are slower beside others.
                sched::set_current(Class::Fifo { priority }).ok();
            }
            if let Ok((_, standing)) = &opened
                && (priority.is_none() || standing.no_real_time.is_some())
            {
                weigh_without_real_time(serves);
            }
            opened
        }
        Request::Start { .. } => return Err(io::Error::new(io::ErrorKind::InvalidData, "a start before the opening")),
    };
    match opened {
        Ok((mut launcher, standing)) => {
            tell(&daemon, &Answer::Opened(Ok(standing)), &[])?;
            drop(daemon);
            launcher.run()
        }
        Err(reason) => tell(&daemon, &Answer::Opened(Err(reason)), &[]),
    }
}

fn tell(daemon: &Packets, answer: &Answer, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    daemon.send(&serde_json::to_vec(answer)?, fds)
}

struct Launcher {
    daemon: Packets,
    groups: Option<Groups>,
    filter: Filter,
    alone: SingleThreaded,
    users: Users,
    first_user: u32,
    cores: Vec<u16>,
    instances: BTreeMap<u64, Instance>,
    /// Groups of dead instances that could not be removed yet, with the tries so far.
    leftovers: Vec<(Group, u32)>,
}

struct Instance {
    init: Pidfd,
    status: Packets,
    group: Option<Group>,
    slot: u32,
    phase: Phase,
    /// Whether init still holds its end of `status`.
    connection: Connection,
    /// What init said of the program's end.
    death: Option<Death>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Connection {
    Open,
    /// Polling it again would only wake us for nothing until init is dead.
    Ended,
}

enum Phase {
    Starting(Box<Starting>),
    Running,
    /// The daemon knows that it did not start.
    Refused,
}

struct Starting {
    begun: Time,
    timing: Timing,
    stdout: OwnedFd,
    stderr: OwnedFd,
    placement: Placement,
    /// Its first process.
    first: Pid,
    program: Option<Pid>,
}

/// What became readable.
enum Ready {
    Daemon,
    Status(u64),
    Dead(u64),
}

impl Launcher {
    fn open(daemon: Packets, groups: &str, (first_user, serves): (u32, Serves)) -> Result<(Self, Standing), String> {
        let describe = |error: &dyn std::error::Error| chain(error);
        settle().map_err(|error| describe(&error))?;
        detach().map_err(|error| describe(&error))?;
        let alone = SingleThreaded::prove().map_err(|error| describe(&error))?.ok_or("it has more than one thread")?;
        let filter = Filter::compile().map_err(|error| describe(&error))?;
        let users = if rustix::process::geteuid().is_root() { Users::Own } else { Users::Shared };
        let layout = Layout::of_this_process().map_err(|error| describe(&error))?;
        weigh_session(serves);
        let opened = Groups::open(&layout, groups).and_then(|groups| groups.weigh(serves).map(|()| groups));
        let (groups, no_groups) = match opened {
            Ok(groups) => (Some(groups), None),
            Err(error) => (None, Some(describe(&error))),
        };
        let no_cpu_groups = match &groups {
            Some(groups) if groups.govern(Controller::Cpu) => None,
            Some(_) => Some("no writable control-group hierarchy has the controller cpu".to_owned()),
            None => no_groups.clone(),
        };
        let daemon_group = match (serves, &groups) {
            // Where it cannot be made the daemon is told of none.
            (Serves::Guaranteed, Some(groups)) => groups.for_the_daemon().ok().flatten(),
            (Serves::Guaranteed, None) | (Serves::BestEffort, _) => None,
        };
        let cores = sched::cores().map_err(|error| describe(&error))?;
        let launcher =
            Self { daemon, groups, filter, alone, users, first_user, cores, instances: BTreeMap::new(), leftovers: Vec::new() };
        let no_real_time = launcher.try_real_time().err().map(|failure| failure.to_string());
        Ok((launcher, Standing { users, no_groups, no_cpu_groups, daemon_group, no_real_time }))
    }

    /// Gives the lowest real-time priority to a process placed as a guaranteed instance is, and of a user as one has. A cpu
    /// group may grant none of it; nor is what a limit grants a user granted to another.
    fn try_real_time(&self) -> Result<(), Failure> {
        let limits = Limits { memory_bytes: PROBE_BYTES, pids: 1, cpu: Cpu::Guaranteed };
        let group = match &self.groups {
            Some(groups) => Some(groups.create("probe", &limits).map_err(|error| failed_groups("probe", &error))?),
            None => None,
        };
        let clone = |error| Failure::new(Step::Clone, "probe", &error);
        let (settled, settles) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| clone(errno.into()))?;
        match process::clone_into(&self.alone, &[], None).map_err(clone)? {
            Side::Child => match self.be_an_instances_user(&settles) {
                Ok(()) => process::wait_for_kill(),
                Err(_) => process::exit_now(1),
            },
            Side::Parent { child, pidfd } => {
                drop(settles);
                let tried =
                    group.as_ref().map_or(Ok(()), |group| group.add(child)).map_err(|error| failed_groups("probe", &error));
                let tried = tried.and_then(|()| match rustix::io::read(&settled, &mut [0; 1]) {
                    Ok(1) => Ok(()),
                    Ok(_) => Err(Failure::new(Step::Start, "probe", &"it could not change its user")),
                    Err(errno) => Err(Failure::new(Step::Start, "probe", &errno)),
                });
                let tried = tried.and_then(|()| {
                    sched::set_thread(child, Class::Fifo { priority: 1 })
                        .map_err(|error| Failure::new(Step::Start, "class", &chain(&error)))
                });
                pidfd.kill().and_then(|()| pidfd.wait()).map_err(clone)?;
                group.map(|group| group.remove().ok()); // its dead may hold it for moments; closing removes it
                tried
            }
        }
    }

    /// What the process that tries the real-time class does first; it says so by a byte.
    fn be_an_instances_user(&self, settles: &OwnedFd) -> rustix::io::Result<()> {
        match self.users {
            Users::Own => {
                let user = rustix::process::Uid::from_raw(self.first_user);
                rustix::thread::set_thread_res_uid(user, user, user)?;
            }
            Users::Shared => {}
        }
        // Not to be left behind by a launcher killed meanwhile.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        rustix::io::write(settles, b"!").map(drop)
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            for ready in self.wait()? {
                match ready {
                    Ready::Daemon => match self.daemon.receive()? {
                        Some(message) => self.request(&message)?,
                        None => return self.leave(),
                    },
                    Ready::Status(id) => self.report(id)?,
                    Ready::Dead(id) => self.bury(id)?,
                }
            }
            self.give_up_late_starts();
            self.remove_leftovers();
        }
    }

    /// Waits for the daemon, a report or a death; with something to try again, not longer than that allows.
    fn wait(&self) -> io::Result<Vec<Ready>> {
        let mut fds = vec![PollFd::new(&self.daemon, PollFlags::IN)];
        let mut meaning = vec![Ready::Daemon];
        for (id, instance) in &self.instances {
            if instance.connection == Connection::Open {
                fds.push(PollFd::new(&instance.status, PollFlags::IN));
                meaning.push(Ready::Status(*id));
            }
            fds.push(PollFd::new(&instance.init, PollFlags::IN));
            meaning.push(Ready::Dead(*id));
        }
        let starting = self.instances.values().any(|instance| matches!(instance.phase, Phase::Starting(_)));
        let timeout_ms = match (self.leftovers.is_empty(), starting) {
            (false, _) => Some(REMOVE_AGAIN_MS),
            (true, true) => Some(START_MAX_CHECK_MS),
            (true, false) => None,
        };
        let timeout = timeout_ms.map(|ms| Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 });
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, timeout.as_ref()))?;
        let happened = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(happened.zip(meaning).filter_map(|(happened, ready)| happened.then_some(ready)).collect())
    }

    fn request(&mut self, message: &Message) -> io::Result<()> {
        match serde_json::from_slice(&message.bytes)? {
            Request::Open { .. } => Err(io::Error::new(io::ErrorKind::InvalidData, "a second opening")),
            Request::Start { id, launch } => match self.start(id, *launch) {
                Ok(()) => Ok(()),
                Err(failure) => tell(&self.daemon, &Answer::Refused { id, failure }, &[]),
            },
        }
    }

    fn start(&mut self, id: u64, launch: Launch) -> Result<(), Failure> {
        let begun = now();
        let slot = self.free_slot()?;
        let group = self.make_group(id, &launch)?;
        let mut timing = Timing { groups: now().since(begun), ..Timing::default() };
        let placement = launch.placement;
        let plan = self.plan(launch, slot);
        let made = self.clone_instance(&plan, group.as_ref());
        let (child, init, status, stdout, stderr) = match made {
            Ok(made) => made,
            Err(failure) => {
                self.leftovers.extend(group.map(|group| (group, 0)));
                return Err(failure);
            }
        };
        let starting = Starting { begun, timing, stdout, stderr, placement, first: child, program: None };
        let phase = Phase::Starting(Box::new(starting));
        self.instances.insert(id, Instance { init, status, group, slot, phase, connection: Connection::Open, death: None });
        let instance = self.instances.get_mut(&id).expect("invariant: just inserted");
        instance.let_go(child, self.users, &placement.cores(&self.cores)).inspect_err(|_| {
            instance.init.kill().ok(); // its death is seen and buried like any other
            instance.phase = Phase::Refused;
        })?;
        timing.clone = now().since(begun).saturating_sub(timing.groups);
        if let Phase::Starting(starting) = &mut instance.phase {
            starting.timing = timing;
        }
        Ok(())
    }

    fn free_slot(&self) -> Result<u32, Failure> {
        let used: std::collections::BTreeSet<u32> = self.instances.values().map(|instance| instance.slot).collect();
        let most = u32::try_from(INSTANCES_MAX).expect("invariant: a small constant");
        (0..most)
            .find(|slot| !used.contains(slot))
            .ok_or_else(|| Failure::new(Step::Prepare, "instances", &format!("{INSTANCES_MAX} run already, which is the limit")))
    }

    fn make_group(&self, id: u64, launch: &Launch) -> Result<Option<Group>, Failure> {
        let Some(groups) = &self.groups else { return Ok(None) };
        let limits = Limits { memory_bytes: launch.memory.bytes(), pids: launch.pids, cpu: launch.placement.cpu(launch.quota) };
        let made = groups.create(&format!("i-{id}"), &limits);
        made.map(Some).map_err(|error| failed_groups(&format!("i-{id}"), &error))
    }

    fn plan(&self, launch: Launch, slot: u32) -> Plan {
        let fallback = match &self.groups {
            Some(_) => None,
            None => Some(Fallback { memory_bytes: launch.memory.bytes(), pids: u64::from(launch.pids) }),
        };
        let user = match self.users {
            Users::Own => User::Own { id: self.first_user.saturating_add(slot) },
            Users::Shared => User::Mapped,
        };
        let tree = Tree {
            code: launch.code,
            bootstrap: launch.bootstrap,
            extra: launch.extra,
            tmp_bytes: launch.tmp_bytes,
            tmp_files: TMP_FILES_MAX,
        };
        Plan { tree, argv: launch.argv, env: launch.env, network: launch.network, user, fallback }
    }

    /// Makes the first process of an instance; it waits to be let go.
    fn clone_instance(&self, plan: &Plan, group: Option<&Group>) -> Result<(Pid, Pidfd, Packets, OwnedFd, OwnedFd), Failure> {
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        let prepare = |errno| Failure::new(Step::Prepare, "pipes", &io::Error::from(errno));
        let (stdout, their_stdout) = pipe().map_err(prepare)?;
        let (stderr, their_stderr) = pipe().map_err(prepare)?;
        let (status, their_status) = Packets::pair().map_err(|error| Failure::new(Step::Prepare, "status", &error))?;
        status.ask_for_senders().map_err(|error| Failure::new(Step::Prepare, "status", &error))?;
        let mut namespaces = vec![Namespace::Mount, Namespace::Pid, Namespace::Net, Namespace::Ipc, Namespace::Uts];
        if self.users == Users::Shared {
            namespaces.push(Namespace::User);
        }
        let directory = match group.and_then(Group::clone_target) {
            Some(path) => Some(open_directory(path)?),
            None => None,
        };
        let cloned = process::clone_into(&self.alone, &namespaces, directory.as_ref().map(AsFd::as_fd));
        match cloned.map_err(|error| Failure::new(Step::Clone, &format!("{namespaces:?}"), &error))? {
            Side::Child => {
                drop(status); // so that the launcher's death is seen as the end of the connection
                let ends = Ends { status: their_status, stdout: their_stdout, stderr: their_stderr };
                sandbox::live(plan, &self.filter, &ends, &self.alone)
            }
            Side::Parent { child, pidfd } => {
                if let (Some(group), None) = (group, &directory) {
                    group.add(child).map_err(|error| {
                        pidfd.kill().and_then(|()| pidfd.wait()).ok(); // nothing else knows of it
                        failed_groups(&child.as_raw_nonzero().to_string(), &error)
                    })?;
                }
                Ok((child, pidfd, status, stdout, stderr))
            }
        }
    }

    /// Takes one report of an instance's init.
    fn report(&mut self, id: u64) -> io::Result<()> {
        let Some(instance) = self.instances.get_mut(&id) else { return Ok(()) };
        let Some(message) = instance.status.receive()? else {
            instance.connection = Connection::Ended; // its death follows
            return Ok(());
        };
        match serde_json::from_slice(&message.bytes)? {
            Report::Program => match instance.place_program(message.sender) {
                Ok(()) => Ok(()),
                Err(failure) => {
                    instance.phase = Phase::Refused;
                    instance.init.kill()?;
                    tell(&self.daemon, &Answer::Refused { id, failure }, &[])
                }
            },
            Report::Running { mounts_us, confine_us, exec_us } => {
                let Phase::Starting(mut starting) = std::mem::replace(&mut instance.phase, Phase::Running) else {
                    return Ok(());
                };
                starting.timing.mounts = Duration::from_micros(mounts_us);
                starting.timing.confine = Duration::from_micros(confine_us);
                starting.timing.exec = Duration::from_micros(exec_us);
                starting.timing.total = now().since(starting.begun);
                if let Class::Fifo { .. } = starting.placement.class() {
                    // The sandbox is made. What is left to init is of ordinary class; one that died meanwhile is buried soon.
                    sched::set_thread(starting.first, Class::Other { nice: 0 }).ok();
                }
                let [listener, handle, tun @ ..] = message.fds.as_slice() else {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a report with too few descriptors"));
                };
                let mut fds = vec![instance.init.as_fd(), handle.as_fd(), listener.as_fd()];
                fds.extend([starting.stdout.as_fd(), starting.stderr.as_fd()]);
                fds.extend(tun.iter().map(AsFd::as_fd));
                let program = starting.program.map_or(0, |program| program.as_raw_nonzero().get());
                let answer = Answer::Started { id, program, timing: starting.timing, group: instance.group.clone() };
                tell(&self.daemon, &answer, &fds)
            }
            Report::Failed(failure) => {
                instance.phase = Phase::Refused;
                tell(&self.daemon, &Answer::Refused { id, failure }, &[])
            }
            Report::Ended(death) => {
                instance.death = Some(death);
                Ok(())
            }
        }
    }

    /// Reaps a dead init, reads what is still in its connection, tells the daemon and lets the group go.
    fn bury(&mut self, id: u64) -> io::Result<()> {
        let Some(instance) = self.instances.get(&id) else { return Ok(()) };
        let Some(of_init) = instance.init.reap()? else { return Ok(()) };
        instance.status.set_nonblocking()?;
        while self.instances.get(&id).is_some_and(|instance| has_input(&instance.status)) {
            self.report(id)?;
        }
        let Some(instance) = self.instances.remove(&id) else { return Ok(()) };
        let group = instance.group.as_ref();
        let memory_kills = group.and_then(|group| group.memory_kills().ok()).unwrap_or(0);
        let cpu = group.and_then(|group| group.cpu_used().ok()).flatten();
        self.leftovers.extend(instance.group.map(|group| (group, 0)));
        match instance.phase {
            Phase::Refused => Ok(()),
            Phase::Running => {
                let exit = Exit { death: instance.death.unwrap_or(of_init), memory_kills, cpu };
                tell(&self.daemon, &Answer::Exited { id, exit }, &[])
            }
            Phase::Starting(_) => {
                let reason = format!("its first process ended with {of_init:?}, {memory_kills} memory kills");
                tell(&self.daemon, &Answer::Refused { id, failure: Failure::new(Step::Start, "init", &reason) }, &[])
            }
        }
    }

    fn give_up_late_starts(&mut self) {
        for instance in self.instances.values_mut() {
            if let Phase::Starting(starting) = &instance.phase
                && START_MAX < now().since(starting.begun)
            {
                instance.init.kill().ok(); // the daemon is told when it is buried
            }
        }
    }

    fn remove_leftovers(&mut self) {
        self.leftovers.retain_mut(|(group, tries)| {
            *tries += 1;
            group.remove().is_err() && *tries < REMOVE_TRIES_MAX
        });
    }

    /// The daemon is gone: kills everything and cleans up.
    fn leave(&self) -> io::Result<()> {
        for instance in self.instances.values() {
            instance.init.kill()?;
        }
        for instance in self.instances.values() {
            instance.init.wait()?;
        }
        match self.groups.as_ref().map(Groups::close) {
            Some(Err(error)) => Err(io::Error::other(error)),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

impl Instance {
    /// Puts a new process where it belongs and lets it go on.
    fn let_go(&self, child: Pid, users: Users, cores: &[u16]) -> Result<(), Failure> {
        if let Phase::Starting(starting) = &self.phase {
            // Now, while it is of our own user: without the privilege the kernel lets nobody place another user's process.
            let placed = sched::set_cores(child, cores).and_then(|()| match starting.placement.class() {
                class @ (Class::Fifo { .. } | Class::Other { nice: 1.. }) => sched::set_thread(child, class),
                Class::Other { .. } => Ok(()), // so it is
            });
            placed.map_err(|error| Failure::new(Step::Start, "class and cores", &chain(&error)))?;
            if let Placement::Weighted { .. } = starting.placement {
                // A kernel that does not listen lets it wait for its turn as any other.
                sched::ask_for_short_turns(child).ok();
            }
        }
        if users == Users::Shared {
            map_user(child)?;
        }
        self.status.send(b"go", &[]).map_err(|error| Failure::new(Step::Handshake, "init", &error))
    }

    /// Notes the program's process, which waits, gives it its class, and lets it go on.
    fn place_program(&mut self, sender: Option<Pid>) -> Result<(), Failure> {
        let Phase::Starting(starting) = &mut self.phase else { return Ok(()) };
        let program = sender.ok_or_else(|| Failure::new(Step::Start, "program", &"its process is unknown"))?;
        starting.program = Some(program);
        // It has the cores and the nice value of its first process; a real-time class is not inherited.
        let placed = match starting.placement.class() {
            class @ Class::Fifo { .. } => sched::set_thread(program, class),
            Class::Other { .. } => Ok(()),
        };
        placed.map_err(|error| Failure::new(Step::Start, "class and cores", &chain(&error)))?;
        self.status.send(b"placed", &[]).map_err(|error| Failure::new(Step::Start, "program", &error))
    }
}

fn failed_groups(on: &str, error: &cgroup::Error) -> Failure {
    Failure::new(Step::Groups, on, &chain(error))
}

/// Whether a connection has a message, or its end, to read.
fn has_input(status: &Packets) -> bool {
    let mut fds = [PollFd::new(status, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::IN) && !at_end(status)
}

/// Whether the next read would give the end of the connection.
fn at_end(status: &Packets) -> bool {
    let mut byte = [0_u8];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    rustix::net::recv(status, &mut byte, flags).is_ok_and(|(count, _)| count == 0)
}

/// Makes this process an ordinary one, whatever thread of the daemon started it, with room for descriptors.
fn settle() -> Result<(), sched::Error> {
    let this = sched::current_thread();
    sched::set_thread(this, Class::Other { nice: 0 })?;
    sched::set_cores(this, &(0..1024).collect::<Vec<_>>())?;
    let files = rustix::process::getrlimit(Resource::Nofile).maximum;
    // A lower limit only means fewer instances; the start that meets it says so.
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files }).ok();
    Ok(())
}

/// Some kernels share the CPU between sessions first, and only then by nice values within one.
fn weigh_session(serves: Serves) {
    match serves {
        Serves::Guaranteed => {}
        // Where the kernel does not group sessions there is no such file, and nice values alone count.
        Serves::BestEffort => drop(std::fs::write("/proc/self/autogroup", "19")),
    }
}

/// The same for instances whose guarantees rest on weights. Where neither privilege nor `RLIMIT_NICE` allows it, their session
/// weighs as much as any other.
fn weigh_without_real_time(serves: Serves) {
    match serves {
        Serves::Guaranteed => drop(std::fs::write("/proc/self/autogroup", "-10")),
        Serves::BestEffort => {}
    }
}

/// Leaves the daemon's terminal and outlives signals sent to its whole group or service: the daemon drains first, and the end
/// of its connection is what ends us.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    rustix::thread::set_name(c"takt-launcher")?;
    process::on_termination(Termination::Ignored)
}

/// Maps this process's user into the user namespace of a child.
fn map_user(child: Pid) -> Result<(), Failure> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let directory = Path::new("/proc").join(child.as_raw_nonzero().to_string());
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{USER_INSIDE} {user} 1\n")),
        ("gid_map", format!("{USER_INSIDE} {group} 1\n")),
    ] {
        std::fs::write(directory.join(file), text).map_err(|error| Failure::new(Step::UserNamespace, file, &error))?;
    }
    Ok(())
}

fn open_directory(path: &Path) -> Result<OwnedFd, Failure> {
    let opened = std::fs::File::open(path).map(OwnedFd::from);
    opened.map_err(|error| Failure::new(Step::Groups, &path.to_string_lossy(), &error))
}

/// An error with all its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
