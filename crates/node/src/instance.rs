//! The process of an instance, as its lane holds it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use runtime::launcher::{self, CpuMeter, Exit, Handle};
use runtime::sys::process::Death;
use runtime::sys::sched;
use rustix::process::Pid;
use tokio::sync::oneshot;

use crate::assemble::error_line;
use crate::lambda::invoke;

/// Threads of a program whose state is looked at.
const THREADS_LOOKED_AT: usize = 16;

/// A running instance. Dropping it kills it with everything in it.
#[derive(Debug)]
pub(crate) struct Running {
    /// `None`: the node measures itself, and nobody is killed or placed.
    handle: Option<Handle>,
    program: Pid,
    meter: CpuMeter,
    /// `/proc/PID/schedstat` of the program, kept open: one read a time.
    schedstat: Option<File>,
    /// Until it is placed to serve.
    starting: AtomicBool,
    /// Its forwarder ends when this is dropped.
    _network: Option<oneshot::Sender<()>>,
}

/// Time of cores since an instance began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) used: Duration,
    /// Used or waited for.
    pub(crate) wanted: Duration,
}

impl Running {
    pub(crate) fn new(handle: Handle, program: Pid, meter: CpuMeter, network: Option<oneshot::Sender<()>>) -> Self {
        let schedstat = File::open(format!("/proc/{}/schedstat", program.as_raw_nonzero())).ok();
        Self { handle: Some(handle), program, meter, schedstat, starting: AtomicBool::new(true), _network: network }
    }

    /// Stands for an instance where the node measures itself. Its clocks are read as any other's, and say nothing.
    pub(crate) fn stand_in() -> Self {
        let own = rustix::process::getpid();
        let (meter, starting) = (CpuMeter::of(own), AtomicBool::new(false));
        Self { handle: None, program: own, meter, schedstat: None, starting, _network: None }
    }

    /// Stands for an instance of this program, which is not killed.
    #[cfg(test)]
    pub(crate) fn of_program(program: Pid) -> Self {
        Self { program, ..Self::stand_in() }
    }

    /// Kills it; its death is told like any other.
    pub(crate) fn kill(&self) {
        // The only failure is that it is dead already.
        let _ = self.handle.as_ref().map(Handle::kill);
    }

    /// CPU time its program used so far; zero once it is dead.
    pub(crate) fn cpu_time(&self) -> Duration {
        let used = self.meter.program_used().unwrap_or_default();
        if self.handle.is_some() { used } else { Duration::ZERO }
    }

    /// Time its program was ready to run while its core ran something else; zero where the kernel does not say.
    pub(crate) fn pushed_aside(&self) -> Duration {
        let mut text = [0; 64];
        let read = self.schedstat.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        waited(&text[..read]).unwrap_or_default()
    }

    /// Time its processes used cores, and with that in which its program's first thread was ready to run and had none. Where no
    /// control group accounts for its processes, those of its program alone.
    pub(crate) fn demand(&self) -> Demand {
        let used = self.meter.used().unwrap_or_default();
        if self.handle.is_some() { Demand { used, wanted: used + self.pushed_aside() } } else { Demand::default() }
    }

    /// Whether a thread of its program runs or is ready to run. Looks at the first of them only: a program may have hundreds,
    /// and whoever asks has no time for that.
    pub(crate) fn wants_its_core(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.program.as_raw_nonzero())) else { return false };
        threads.flatten().take(THREADS_LOOKED_AT).any(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat"));
            stat.is_ok_and(|text| state(&text) == Some('R'))
        })
    }

    /// Whether the first thread of its program ends or has ended: if the program does, this is to be seen before its sockets are
    /// closed. Other threads may live on, and are not looked at: a program may have hundreds.
    pub(crate) fn is_ending(&self) -> bool {
        let pid = self.program.as_raw_nonzero();
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat"));
        stat().map_or(true, |text| ends(&text))
    }

    /// Whether its start is not over.
    pub(crate) fn is_starting(&self) -> bool {
        self.starting.load(Ordering::Relaxed)
    }

    /// Gives its threads the class they rest with and the core they serve on: its start is over. Returns its threads.
    pub(crate) fn serve_as(&self, placement: launcher::Placement) -> Result<Vec<Pid>, sched::Error> {
        self.starting.store(false, Ordering::Relaxed);
        self.place(placement)
    }

    /// Gives its threads a class and a core.
    pub(crate) fn place(&self, placement: launcher::Placement) -> Result<Vec<Pid>, sched::Error> {
        self.handle.as_ref().map_or(Ok(Vec::new()), |handle| handle.place(self.program, placement))
    }

    /// Makes threads of it real-time.
    pub(crate) fn raise(&self, threads: &[Pid], priority: u8) -> Result<(), sched::Error> {
        self.handle.as_ref().map_or(Ok(()), |handle| handle.raise(self.program, threads, priority))
    }

    /// Makes threads of it ordinary.
    pub(crate) fn lower(&self, threads: &[Pid]) -> Result<(), sched::Error> {
        self.handle.as_ref().map_or(Ok(()), |handle| handle.lower(self.program, threads))
    }
}

/// The state in a `stat`: the letter behind the name, which is in brackets and may hold brackets.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Whether a `stat` is of a process that ends: it is dead, or its flags say that it is going to be (`PF_EXITING`).
fn ends(stat: &str) -> bool {
    const EXITING: u32 = 0x4;
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(6)?.parse::<u32>().ok());
    matches!(state(stat), Some('Z' | 'X')) || flags.is_some_and(|flags| flags & EXITING != 0)
}

/// The second number of a `schedstat`: nanoseconds spent waiting on a run queue.
fn waited(schedstat: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(schedstat).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// How an instance's end reads in an answer.
pub(crate) fn ended_as(exit: &Exit) -> invoke::Outcome {
    if 0 < exit.memory_kills {
        return invoke::Outcome::OutOfMemory;
    }
    match exit.death {
        Death::Exited { code } => invoke::Outcome::Exited(Some(code)),
        Death::Signalled { signal } => invoke::Outcome::Killed(signal),
    }
}

/// Why an instance was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartFailure {
    #[error("this node has no interpreter for `{runtime}`: {reason}")]
    NoInterpreter { runtime: model::Runtime, reason: String },
    #[error("environment of the function")]
    Environment { source: runtime::environment::Error },
    #[error("its sandbox could not be made")]
    Launch { source: launcher::Error },
    #[error("the node reads the output of too many instances already")]
    Scribe,
}

impl StartFailure {
    /// The failure with its causes, one line.
    pub(crate) fn text(&self) -> String {
        error_line(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_the_letter_behind_the_name() {
        assert_eq!(state("12 (a) b) R 1 2"), Some('R'));
        assert_eq!(state("12 (python3) S 1"), Some('S'));
        assert_eq!(state("nonsense"), None);
    }

    #[test]
    fn whoever_is_dead_or_going_to_be_ends() {
        assert!(ends("12 (a) b) R 1 2 2 0 -1 4194564 1"));
        assert!(ends("12 (a) Z 1 2 2 0 -1 4194560 1"));
        assert!(!ends("12 (a) b) S 1 2 2 0 -1 4194560 1"));
        assert!(!ends("nonsense"));
    }

    #[test]
    fn the_time_on_the_run_queue_is_the_second_number() {
        assert_eq!(waited(b"1048 2096 3\n"), Some(Duration::from_nanos(2096)));
        assert_eq!(waited(b""), None);
        assert_eq!(waited(b"a b c"), None);
    }
}
