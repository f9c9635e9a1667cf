//! One invocation on its way through the node: what the client asked, and what became of it.

use std::time::Duration;

use bytes::Bytes;
use engine::port::Refusal;
use http::HeaderValue;
use model::{Class, FunctionKey, InstanceId, InvocationId, Time};
use tokio::sync::oneshot;

use crate::lambda::invoke;

/// A complete request for a function, stamped.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) id: InvocationId,
    pub(crate) function: FunctionKey,
    /// The event the handler gets, JSON text.
    pub(crate) payload: Bytes,
    pub(crate) trace_id: Option<HeaderValue>,
    /// Decoded, one line of JSON.
    pub(crate) client_context: Option<HeaderValue>,
    /// Whether the client wants the end of the log.
    pub(crate) log: invoke::LogType,
    pub(crate) deadline: Option<Time>,
    /// a: the request was complete.
    pub(crate) arrived: Time,
}

/// A request whose client waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) request: Request,
    pub(crate) answer: oneshot::Sender<Outcome>,
    pub(crate) class: Class,
    pub(crate) progress: Progress,
}

/// How far a request came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) conforming: Option<Time>,
    pub(crate) delivered: Option<Time>,
    /// The end of the platform's part of the start, which T is about: a large input's way to the instance is not in it.
    pub(crate) dispatched: Option<Time>,
    pub(crate) started: Option<Time>,
    pub(crate) instance: Option<InstanceId>,
    /// It was not handed over at its arrival: it waited for a slot or an instance.
    pub(crate) waited: bool,
    /// B, where one is promised.
    pub(crate) start_within: Option<Duration>,
    /// The bound on its own time, once it was delivered.
    pub(crate) run_time: Option<Duration>,
    /// How long the instance's start took, when this is its first invocation.
    pub(crate) instance_start: Option<Duration>,
}

/// What became of an invocation.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) ending: Ending,
    pub(crate) class: Class,
    pub(crate) arrived: Time,
    pub(crate) ended: Time,
    pub(crate) progress: Progress,
}

/// The ways an invocation can end.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Ran(invoke::Outcome),
    Refused(Refusal),
}

impl Outcome {
    pub(crate) fn timing(&self) -> invoke::Timing {
        invoke::Timing {
            class: self.class,
            conforming: self.progress.conforming,
            arrived: self.arrived,
            delivered: self.progress.delivered,
            started: self.progress.started,
            start_within: self.progress.start_within,
            instance: self.progress.instance,
        }
    }
}
