//! What reaches a lane from outside its thread. Both queues are bounded; control has its own, so that no traffic delays it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use engine::port::{Deployment, Placement, Reservation};
use journal::record::Counters;
use model::{FunctionKey, FunctionName, InstanceId, InvocationId, Time};
use runtime::launcher::Exit;
use rustix::process::Pid;
use tokio::sync::oneshot;

use super::Usage;
use super::client::{Manners, Rendering};
use crate::auth::keys::Keys;
use crate::instance::{Running, StartFailure};
use crate::invocation::Waiting;
use crate::lanes::{Image, Installed, Lease, LeaseError, Route};
use crate::probe::Gap;

/// Commands of the control plane.
pub(crate) enum Command {
    Install {
        deployment: Box<Deployment>,
        image: Arc<Image>,
        /// Functions that are revised at the instant at which it serves.
        beside: Vec<(FunctionKey, Reservation)>,
        done: oneshot::Sender<Installed>,
    },
    /// Other terms for functions, at one instant.
    Revise {
        all: Vec<(FunctionKey, Reservation)>,
        done: oneshot::Sender<()>,
    },
    /// What the other lane guarantees a function, for the best-effort lane to tell by what conforms.
    Mirror {
        function: FunctionKey,
        reservation: Box<Reservation>,
    },
    /// Answers once the function has its warm reserve, or is gone.
    Warm {
        function: FunctionKey,
        done: oneshot::Sender<Duration>,
    },
    Remove {
        function: FunctionKey,
        done: oneshot::Sender<()>,
    },
    Route {
        name: FunctionName,
        route: Option<Route>,
        done: oneshot::Sender<()>,
    },
    PreInvoke {
        function: FunctionKey,
        lead: Duration,
        done: oneshot::Sender<Result<Lease, LeaseError>>,
    },
    Counters {
        done: oneshot::Sender<Vec<Counters>>,
    },
    /// What the lane's instances held and used so far.
    Usage {
        done: oneshot::Sender<Usage>,
    },
    /// Let in these keys, and the ones before no longer.
    Rotate {
        keys: Box<Keys>,
        done: oneshot::Sender<()>,
    },
    /// Take in nothing more; `done` when nothing runs any more.
    Drain {
        done: oneshot::Sender<()>,
    },
}

/// News of the instances and the machine.
pub(crate) enum News {
    Started {
        instance: InstanceId,
        running: Arc<Running>,
        listener: std::net::TcpListener,
        exit: oneshot::Receiver<Exit>,
        /// When its start had its turn.
        began: Time,
    },
    /// Its start has its turn.
    Begun {
        instance: InstanceId,
    },
    /// It was given up before its start had its turn.
    NotStarted {
        instance: InstanceId,
    },
    StartFailed {
        instance: InstanceId,
        failure: StartFailure,
    },
    /// The instance's threads are where the lane wanted them.
    Placed {
        instance: InstanceId,
        on: Placement,
        /// Those that become real-time with each invocation; none where there is no such class.
        threads: Vec<Pid>,
    },
    Gap(Gap),
}

/// Work that the other lane or the door hands over.
pub(crate) enum Traffic {
    /// A connection that the door sends here with its first request.
    New(Moved),
    /// One from the other lane.
    Connection(Moved),
    /// Excess of a guaranteed function, to run on what is idle.
    Demoted(Box<Waiting>),
    /// A request for a guaranteed function that is large, or came on a connection which is off the guaranteed lane.
    Forwarded(Box<Waiting>),
    /// The client of a demoted or forwarded invocation went away.
    Abandoned(InvocationId),
    /// An answer to make for a client of the guaranteed lane, whose invocation ran as best effort.
    Render(Box<Rendering>),
}

/// A connection between two threads.
pub(crate) struct Moved {
    pub(crate) stream: std::net::TcpStream,
    pub(crate) peer: SocketAddr,
    /// Bytes read and not yet used, a whole request head included.
    pub(crate) unread: BytesMut,
    pub(crate) manners: Manners,
}
