//! The isolation around an instance, from the inside: what a process does to itself, between being cloned into new
//! namespaces and running the program of a function.
//!
//! The first process of an instance is a small init. It builds the file tree, opens the listener of the Runtime API, gives
//! up every right, and starts the program as its child, so that signals have their usual meaning there and orphans are
//! reaped. When the program ends, init ends, and the kernel kills whatever is left. Init is a copy of the launcher that
//! never loads another program, so it is marked undumpable: no process of the instance can look into it.

mod confine;
pub mod filter;
mod interpreter;
mod root;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

pub use confine::Fallback;
pub use interpreter::{Error as InterpreterError, Interpreter, Language, interpreter};
pub use root::{BOOTSTRAP, CODE, Tree};

use crate::sys::link;
use crate::sys::process::{self, Death, Fork, Pidfd, SingleThreaded, Termination};
use crate::sys::socket::Packets;
use filter::Filter;

/// Where the Runtime API listens inside every instance.
pub const RUNTIME_API: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9001);
/// The address of an instance on its TUN device, with its prefix length.
pub const TUN_ADDRESS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 2, 100), 24);
/// The gateway an instance sends everything to.
pub const TUN_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server an instance asks.
pub const TUN_RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The user of an instance as it sees itself where it has a user namespace (AWS's own number).
pub const USER_INSIDE: u32 = 993;
/// The host name every instance sees.
const HOST_NAME: &str = "takt";
/// Adjustment of the kernel's choice when memory runs out: instances before the daemon.
const OOM_ADJUSTMENT: &str = "500";

/// A part of the way into the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Prepare,
    Groups,
    Clone,
    UserNamespace,
    Handshake,
    Mounts,
    Network,
    Limits,
    Capabilities,
    User,
    Confinement,
    Start,
    Report,
}

impl Step {
    /// Turns an errno of this step, on that thing, into a failure.
    fn failed(self, on: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Failure {
        let on = on.into();
        move |errno| Failure::new(self, &on.to_string_lossy(), &io::Error::from(errno))
    }

    fn failed_io(self, on: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Failure {
        let on = on.into();
        move |error| Failure::new(self, &on.to_string_lossy(), &error)
    }
}

/// Why an instance did not come to run: the step, the thing, and what the kernel said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("sandbox step {step:?}, {on}: {reason}")]
pub struct Failure {
    pub step: Step,
    pub on: String,
    pub reason: String,
}

impl Failure {
    pub(crate) fn new(step: Step, on: &str, reason: &dyn fmt::Display) -> Self {
        Self { step, on: on.to_owned(), reason: reason.to_string() }
    }
}

/// Which connections the namespace of an instance can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Nothing but `lo`.
    Loopback,
    /// A TUN device as default route; whoever holds its descriptor forwards.
    Tun,
}

/// How an instance gets its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// A user of its own on the host; needs the privilege to change users.
    Own { id: u32 },
    /// The daemon's user, seen as [`USER_INSIDE`] in a user namespace, which the launcher maps.
    Mapped,
}

/// Everything an instance is made of, seen from inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub tree: Tree,
    /// The program as the instance sees it, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    pub network: Network,
    pub user: User,
    /// Limits to hold without control groups.
    pub fallback: Option<Fallback>,
}

/// The ends of connections the new instance starts with.
#[derive(Debug)]
pub struct Ends {
    pub status: Packets,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// What init tells the launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Sent by the process that is about to become the program, which then waits to be placed; the sender's id is what
    /// matters.
    Program,
    /// The program runs. Carries the listener, a handle of the program and, with [`Network::Tun`], the device.
    Running {
        mounts_us: u64,
        confine_us: u64,
        exec_us: u64,
    },
    Failed(Failure),
    /// The program ended.
    Ended(Death),
}

impl Report {
    fn send(&self, status: &Packets, fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), Failure> {
        let text = serde_json::to_vec(self).map_err(|error| Failure::new(Step::Report, "status", &error))?;
        status.send(&text, fds).map_err(Step::Report.failed_io("status"))
    }
}

/// Lives the life of an instance's first process. Never returns.
pub(crate) fn live(plan: &Plan, filter: &Filter, ends: &Ends, proof: &SingleThreaded) -> ! {
    let keep = [ends.status.as_raw_fd(), ends.stdout.as_raw_fd(), ends.stderr.as_raw_fd()];
    let lived = process::close_except(&keep, proof)
        .and_then(|()| silence())
        .map_err(Step::Prepare.failed_io("descriptors"))
        .and_then(|()| enter_and_run(plan, filter, ends, proof));
    if let Err(failure) = lived {
        Report::Failed(failure).send(&ends.status, &[]).ok(); // a launcher that is gone needs no report
    }
    process::exit_now(1)
}

fn enter_and_run(plan: &Plan, filter: &Filter, ends: &Ends, proof: &SingleThreaded) -> Result<(), Failure> {
    rustix::thread::set_name(c"takt-init").map_err(Step::Prepare.failed("name"))?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH); // of the file tree made here as of the program
    tie_to_launcher(&ends.status)?;
    wait_for_launcher(&ends.status)?;
    std::fs::write("/proc/self/oom_score_adj", OOM_ADJUSTMENT).map_err(Step::Prepare.failed_io("oom_score_adj"))?;
    let begun = crate::sys::clock::now();
    let (listener, tun) = network(plan.network)?;
    let (user, resolver) = match (plan.user, plan.network) {
        (User::Own { id }, Network::Loopback) => (id, None),
        (User::Own { id }, Network::Tun) => (id, Some(TUN_RESOLVER)),
        (User::Mapped, Network::Loopback) => (USER_INSIDE, None),
        (User::Mapped, Network::Tun) => (USER_INSIDE, Some(TUN_RESOLVER)),
    };
    root::enter(&plan.tree, &root::etc(user, resolver, HOST_NAME))?;
    let mounted = crate::sys::clock::now();
    give_up_rights(plan, filter)?;
    tie_to_launcher(&ends.status)?; // changing the user has untied us
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Step::Confinement.failed("dumpable"))?;
    let confined = crate::sys::clock::now();
    let (program, handle) = start_program(plan, ends, proof)?;
    let running = Report::Running {
        mounts_us: micros(mounted.since(begun)),
        confine_us: micros(confined.since(mounted)),
        exec_us: micros(crate::sys::clock::now().since(confined)),
    };
    let mut fds = vec![listener.as_fd(), handle.as_fd()];
    fds.extend(tun.as_ref().map(AsFd::as_fd));
    running.send(&ends.status, &fds)?;
    drop(fds);
    drop((listener, handle, tun));
    let keep = [ends.status.as_raw_fd()];
    process::close_except(&keep, proof).map_err(Step::Prepare.failed_io("descriptors"))?;
    let death = reap_until(program)?;
    Report::Ended(death).send(&ends.status, &[]).ok(); // a launcher that is gone needs no report
    process::exit_now(0)
}

/// Points the three standard descriptors, inherited from the launcher, at nothing.
fn silence() -> io::Result<()> {
    let nothing = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    Ok(rustix::stdio::dup2_stderr(&nothing)?)
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Has the kernel kill this process when the launcher dies, and leaves at once if it has died already.
fn tie_to_launcher(status: &Packets) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Step::Prepare.failed("death signal"))?;
    let mut fds = [PollFd::new(status, PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&now))).map_err(Step::Prepare.failed("status"))?;
    if fds[0].revents().contains(PollFlags::HUP) {
        process::exit_now(1);
    }
    Ok(())
}

/// Waits until the launcher has placed us: init in its groups with its user mapped, the program on its cores in its class.
fn wait_for_launcher(status: &Packets) -> Result<(), Failure> {
    match status.receive().map_err(Step::Handshake.failed_io("status"))? {
        Some(_) => Ok(()),
        None => process::exit_now(1),
    }
}

/// Brings the network up and opens the listener of the Runtime API, before any code of the function runs.
fn network(network: Network) -> Result<(TcpListener, Option<OwnedFd>), Failure> {
    rustix::system::sethostname(HOST_NAME.as_bytes()).map_err(Step::Network.failed("host name"))?;
    link::set_up(link::LOOPBACK).map_err(Step::Network.failed_io("lo"))?;
    let listener = TcpListener::bind(RUNTIME_API).map_err(Step::Network.failed_io("127.0.0.1:9001"))?;
    let tun = match network {
        Network::Loopback => None,
        Network::Tun => {
            let (device, index) = link::create_tun("tun0").map_err(Step::Network.failed_io("/dev/net/tun"))?;
            let failed = || Step::Network.failed_io("tun0");
            link::add_address(index, TUN_ADDRESS.0, TUN_ADDRESS.1).map_err(failed())?;
            link::set_up(index).map_err(failed())?;
            link::add_default_route(index, TUN_GATEWAY).map_err(failed())?;
            Some(device)
        }
    };
    Ok((listener, tun))
}

fn give_up_rights(plan: &Plan, filter: &Filter) -> Result<(), Failure> {
    rustix::process::chdir(CODE).map_err(Step::Mounts.failed(CODE))?;
    confine::limit(plan.fallback)?;
    confine::bound_capabilities()?;
    match plan.user {
        User::Own { id } => confine::become_user(id)?,
        User::Mapped => {}
    }
    confine::drop_capabilities()?;
    confine::confine(filter)
}

/// Starts the program as our child and returns once it runs, or says why it does not.
fn start_program(plan: &Plan, ends: &Ends, proof: &SingleThreaded) -> Result<(Pid, Pidfd), Failure> {
    let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(Step::Start.failed("pipe"))?;
    match process::fork(proof).map_err(Step::Start.failed_io("fork"))? {
        Fork::Child => {
            drop(told);
            let failure = become_program(plan, ends);
            rustix::io::write(&tell, &serde_json::to_vec(&failure).unwrap_or_default()).ok(); // nobody else to tell
            process::exit_now(127)
        }
        Fork::Parent { child } => {
            drop(tell);
            let handle = Pidfd::open(child).map_err(Step::Start.failed_io("program"))?;
            let mut text = vec![0; 4096];
            // The end of the pipe closes when the program is loaded.
            let count =
                rustix::io::retry_on_intr(|| rustix::io::read(&told, text.as_mut_slice())).map_err(Step::Start.failed("pipe"))?;
            if count == 0 {
                return Ok((child, handle));
            }
            Err(serde_json::from_slice(&text[..count])
                .unwrap_or_else(|error| Failure::new(Step::Start, &plan.argv.join(" "), &error)))
        }
    }
}

/// Becomes the program; returns only when that did not work.
fn become_program(plan: &Plan, ends: &Ends) -> Failure {
    if let Err(failure) = Report::Program.send(&ends.status, &[]) {
        return failure;
    }
    if let Err(failure) = wait_for_launcher(&ends.status) {
        return failure;
    }
    if let Err(error) = process::on_termination(Termination::Default) {
        return Failure::new(Step::Start, "signals", &error);
    }
    let wired = rustix::process::setsid()
        .and_then(|_| rustix::stdio::dup2_stdout(&ends.stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(&ends.stderr));
    if let Err(errno) = wired {
        return Step::Start.failed("standard output")(errno);
    }
    let Some((program, arguments)) = plan.argv.split_first() else {
        return Failure::new(Step::Start, "argv", &"no program is named");
    };
    let error = Command::new(program).args(arguments).env_clear().envs(&plan.env).exec();
    Failure::new(Step::Start, program, &error)
}

/// Reaps whatever dies until the program does.
fn reap_until(program: Pid) -> Result<Death, Failure> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == program => {
                return Ok(match status.exit_status() {
                    Some(code) => Death::Exited { code },
                    None => Death::Signalled { signal: status.terminating_signal().unwrap_or(0) },
                });
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Step::Report.failed("wait")(errno)),
        }
    }
}
