//! An instance as its lane sees it: its process, its Runtime API, the invocation it runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use engine::port::Placement;
use http::{HeaderValue, Response};
use model::{FunctionKey, InvocationId, Runtime, Time};
use runtime::api::{ConnectionId, Session};
use runtime::sys::{clock, sched};
use rustix::process::Pid;
use tokio::sync::oneshot;

use super::idle::Phase;
use super::links::Wanted;
use super::paced::Shared;
use super::ration::Ration;
use super::sampling::Sampling;
use crate::instance::Running;
use crate::lambda::invoke;
use crate::starts;

/// Connections that one instance may hold to its Runtime API at once.
pub(crate) const CONNECTIONS_MAX: usize = 8;

/// What a waiting connection is given: an invocation, as the answer to its request.
pub(super) type Held = (Response<Bytes>, InvocationId);

pub(super) struct Instance {
    pub(super) function: FunctionKey,
    pub(super) runtime: Runtime,
    pub(super) on: Placement,
    pub(super) running: Option<Arc<Running>>,
    pub(super) session: Session,
    pub(super) serving: Option<InvocationId>,
    /// How its process ended.
    pub(super) exit: Option<invoke::Outcome>,
    pub(super) arn: HeaderValue,
    class: Settling,
    fate: Fate,
    /// While it is to be started.
    wanted: Option<Arc<Wanted>>,
    held: BTreeMap<ConnectionId, oneshot::Sender<Held>>,
    connections: u64,
    /// Those that are open.
    open: BTreeMap<ConnectionId, Shared>,
    /// Since when it starts, until it first asks for an invocation.
    born: Option<Time>,
    /// How long its start took, until an invocation carries it away.
    start: Option<Duration>,
    /// Since when its start has its turn, until it can take an invocation.
    began: Option<Time>,
    /// The CPU time of its program at its last answer, until it asks again.
    pub(super) answered: Option<Duration>,
    /// Since when its existence is not yet counted, and the time it ran invocations since then.
    pub(super) held_since: Time,
    pub(super) used: Duration,
    /// Those that are real-time while it works. None where nobody may be, and while it is demoted.
    pub(super) threads: Vec<Pid>,
    pub(super) phase: Phase,
    /// Why it was killed, if that was for its class.
    pub(super) classless: Option<sched::Error>,
    pub(super) sampling: Sampling,
    pub(super) ration: Ration,
}

/// Whether the instance's threads have the class its placement asks for. They get it when the first `/next` shows that the
/// start is over: a start at real-time class would be in the way of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settling {
    Starting,
    /// It is ready but for its class.
    Placing,
    Settled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Wanted,
    /// Killed, or to be killed as soon as there is something to kill.
    Doomed,
}

impl Instance {
    pub(super) fn starting((function, runtime): (FunctionKey, Runtime), arn: HeaderValue, on: Placement) -> Self {
        let now = clock::now();
        Self {
            function,
            runtime,
            on,
            running: None,
            session: Session::new(),
            serving: None,
            exit: None,
            arn,
            class: Settling::Starting,
            fate: Fate::Wanted,
            wanted: None,
            held: BTreeMap::new(),
            connections: 0,
            open: BTreeMap::new(),
            born: Some(now),
            start: None,
            began: Some(now),
            answered: None,
            held_since: now,
            used: Duration::ZERO,
            threads: Vec::new(),
            phase: Phase::Resting,
            classless: None,
            sampling: Sampling::default(),
            ration: Ration::new(runtime),
        }
    }

    /// For the starter: whether it is still to be started.
    pub(super) fn is_wanted(&mut self) -> Weak<Wanted> {
        Arc::downgrade(self.wanted.get_or_insert_with(|| Arc::new(Wanted)))
    }

    /// It has a process now; its start had its turn at `began`, and what came before says nothing of how long starts take.
    pub(super) fn started(&mut self, running: Arc<Running>, began: Time) {
        self.wanted = None;
        self.began = self.began.map(|_| began);
        if self.fate == Fate::Doomed {
            running.kill();
        }
        self.running = Some(running);
    }

    /// Kills it. The kernel takes its memory down at the class it has then, so one that works dies below all that serve.
    pub(super) fn kill(&mut self) {
        self.fate = Fate::Doomed;
        self.wanted = None;
        if let Some(running) = &self.running {
            match self.phase {
                // It is killed at whatever class it has.
                Phase::Working { .. } | Phase::Returning(_) => drop(running.raise(&self.threads, starts::PRIORITY)),
                Phase::Resting | Phase::Late => {}
            }
            running.kill();
        }
    }

    pub(super) fn is_doomed(&self) -> bool {
        self.fate == Fate::Doomed
    }

    /// Whether it waits for an invocation, and its Runtime API has no connection of it.
    pub(super) fn waits_unconnected(&self) -> bool {
        let waits = self.class == Settling::Settled && self.serving.is_none() && self.answered.is_none();
        waits && !self.is_doomed() && self.open.is_empty()
    }

    /// The core its threads are pinned to.
    pub(super) fn core(&self) -> Option<u16> {
        match self.on {
            Placement::RealTime { core, .. } => Some(core),
            Placement::BestEffort => None,
        }
    }

    /// The instance asked for an invocation. Returns whether it may get one; otherwise its class is to be set first.
    pub(super) fn settle(&mut self) -> bool {
        if let Some(born) = self.born.take() {
            self.start = Some(clock::now().since(born));
        }
        match (self.class, self.on) {
            (Settling::Settled, _) => true,
            (_, Placement::BestEffort) => {
                self.class = Settling::Settled;
                true
            }
            (Settling::Starting | Settling::Placing, Placement::RealTime { .. }) => {
                self.class = Settling::Placing;
                false
            }
        }
    }

    /// Its placement changes. Returns whether its threads are to be given the new one now; while it starts, and after it ran
    /// demoted, its next `/next` sees to that.
    pub(super) fn move_to(&mut self, on: Placement) -> bool {
        let before = std::mem::replace(&mut self.on, on);
        match (before, on) {
            // Best effort -> real time: it may not take an invocation before it has its class again.
            (Placement::BestEffort, Placement::RealTime { .. }) => {
                self.class = Settling::Starting;
                false
            }
            (Placement::RealTime { .. } | Placement::BestEffort, _) => self.class != Settling::Starting,
        }
    }

    /// How long its start took, for the first invocation it runs; later ones get nothing.
    pub(super) fn take_start(&mut self) -> Option<Duration> {
        self.start.take()
    }

    /// How long its start took until it could take an invocation; nothing when asked again.
    pub(super) fn take_whole_start(&mut self, now: Time) -> Option<Duration> {
        self.began.take().map(|began| now.since(began))
    }

    /// Its placement was seen to. Returns whether it waited for that to be ready.
    pub(super) fn placed(&mut self, on: Placement) -> bool {
        let waited = self.class == Settling::Placing && matches!(on, Placement::RealTime { .. });
        if waited {
            self.phase = Phase::Resting;
            self.class = Settling::Settled;
        }
        waited
    }

    pub(super) fn connected(&mut self, stream: Shared) -> ConnectionId {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        self.open.insert(connection, stream);
        connection
    }

    /// Whether something of it lies unread in one of its sockets. A system call for each: not asked but where much depends on it.
    pub(super) fn has_unread(&self) -> bool {
        self.open.values().any(Shared::has_unread)
    }

    pub(super) fn disconnected(&mut self, connection: ConnectionId) {
        self.held.remove(&connection);
        self.open.remove(&connection);
        self.session.closed(connection);
    }

    /// Keeps a connection waiting; one that waited before is let go by dropping its sender.
    pub(super) fn hold(&mut self, connection: ConnectionId) -> oneshot::Receiver<Held> {
        let (sender, receiver) = oneshot::channel();
        self.held.insert(connection, sender);
        receiver
    }

    pub(super) fn let_go(&mut self, connection: ConnectionId) -> Option<oneshot::Sender<Held>> {
        self.held.remove(&connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_invocation_alone_is_told_how_long_the_start_took() {
        for on in [Placement::BestEffort, Placement::RealTime { core: 0, priority: 10 }] {
            let mut instance = Instance::starting((FunctionKey(1), Runtime::Python), HeaderValue::from_static("arn"), on);
            assert_eq!(instance.take_start(), None);
            instance.settle();
            instance.take_start().unwrap();
            instance.settle();
            assert_eq!(instance.take_start(), None);
        }
    }
}
