//! The AWS Lambda Runtime API of one instance, as a state machine: told requests and invocations, it says what to answer and
//! what happened.
//!
//! Connections, clocks and limits in time are left to the caller, who also reads bodies up to [`body_limit`]. The invariant:
//! an invocation ends at most once, and only by an answer to that very delivery of it. Responses in streaming mode are
//! collected and treated as a whole.

mod answer;
mod reply;
mod route;

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response};
use model::{InvocationId, Time};

use answer::header_ns;
pub use answer::{ContextError, client_context};
use route::Route;

/// The largest result of an invocation, in bytes: 6 MiB and 100 bytes, as on AWS.
pub const MAX_RESPONSE_BYTES: usize = 6_291_556;
/// The largest head of a request: room for the 64 KiB of X-Ray cause that AWS's Python client sends in a header.
pub const MAX_HEAD_BYTES: usize = 128 << 10;
/// The largest body of any other request.
const MAX_SMALL_BYTES: usize = 64 << 10;

/// How many requests that lead nowhere a runtime may make in a row; no runtime makes more than a few. One that does takes
/// the time of whoever serves it, and is to be killed.
pub const MAX_ASIDE: u32 = 1000;

/// A connection of the instance, named by whoever holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What a runtime is told about one invocation.
#[derive(Clone, Debug)]
pub struct Invocation {
    pub id: InvocationId,
    /// When it will be stopped, in milliseconds since 1970.
    pub deadline_epoch_ms: u64,
    pub function_arn: HeaderValue,
    pub trace_id: Option<HeaderValue>,
    /// JSON, as [`client_context`] makes it.
    pub client_context: Option<HeaderValue>,
    /// JSON.
    pub cognito_identity: Option<HeaderValue>,
    pub tenant_id: Option<HeaderValue>,
    /// `None` is `application/json`.
    pub content_type: Option<HeaderValue>,
    pub payload: Bytes,
}

/// The body of a request, as far as it was read.
#[derive(Clone, Debug)]
pub enum Content {
    /// All of it, with its trailers.
    Whole(Bytes, HeaderMap),
    /// More than [`body_limit`]; the rest was thrown away.
    TooLong,
}

impl Content {
    pub fn whole(body: impl Into<Bytes>) -> Self {
        Self::Whole(body.into(), HeaderMap::new())
    }
}

/// What to do about a request.
#[derive(Debug)]
pub struct Outcome {
    pub reply: Reply,
    pub event: Option<Event>,
}

/// How a request is answered.
#[derive(Debug)]
pub enum Reply {
    Now(Response<Bytes>),
    /// Its connection waits until [`Session::deliver`] names it.
    Held,
    /// It waits in place of this connection, which asked before and is to be closed.
    HeldInsteadOf(ConnectionId),
}

/// What a request meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The instance waits for its first or next invocation.
    Ready {
        /// How long it says its start took. Only our bootstraps say so, once; not to be trusted.
        init: Option<Duration>,
    },
    /// An invocation that was delivered before the instance asked for it is with it now.
    Taken {
        id: InvocationId,
    },
    Ended(Ended),
    /// The instance cannot serve and will exit.
    InitFailed(Failure),
}

/// How an invocation ended, as its runtime says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub id: InvocationId,
    /// When the handler was entered, on CLOCK_MONOTONIC. Only our bootstraps say so; the caller checks that it lies between
    /// delivery and now.
    pub started: Option<Time>,
    /// When its result was ready to be sent, said and checked alike.
    pub ended: Option<Time>,
    pub result: Result<Value, Failure>,
}

/// What a handler returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub payload: Bytes,
    pub content_type: Option<HeaderValue>,
    pub mode: ResponseMode,
}

/// How a runtime handed over its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseMode {
    Whole,
    /// In pieces; collected here.
    Streaming,
}

/// What a runtime reported instead of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// AWS's error object as the runtime wrote it; what the client gets.
    pub body: Bytes,
    /// 1 to 256 characters: the header's where it has AWS's form, else the `errorType` of a body of at most
    /// 65,536 bytes, else `Function.Unknown` (`Runtime.Unknown` before the first invocation).
    pub error_type: String,
}

/// How an invocation was delivered.
#[derive(Debug)]
pub enum Delivery {
    /// Write this to the connection that waits.
    Now(ConnectionId, Response<Bytes>),
    /// No connection waits just now: the instance gets it when it asks again ([`Event::Taken`]).
    WhenAsked,
}

/// The instance cannot take the invocation, which is given back: it starts, runs another one, or failed.
#[derive(Debug, thiserror::Error)]
#[error("the instance cannot take invocation {} now", invocation.id)]
pub struct NotReady {
    pub invocation: Box<Invocation>,
}

#[derive(Debug)]
enum State {
    /// It has not asked for anything yet.
    Started,
    /// It asked for an invocation; its connection may be gone since.
    Ready {
        waiting: Option<ConnectionId>,
    },
    /// It has one coming.
    Assigned {
        invocation: Box<Invocation>,
    },
    Running,
    /// It has answered, and has not asked again.
    Answered,
    Failed,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Started => "Started",
            Self::Ready { .. } | Self::Assigned { .. } => "Ready",
            Self::Running => "Running",
            Self::Answered => "ResponseSent",
            Self::Failed => "InitError",
        }
    }
}

/// The Runtime API of one instance.
#[derive(Debug)]
pub struct Session {
    state: State,
    /// The invocation delivered last, and how many were: what answers are matched against.
    last: Option<InvocationId>,
    attempt: u64,
    aside: u32,
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

/// How many bytes of a request's body to read before it is [`Content::TooLong`].
#[must_use]
pub fn body_limit(parts: &Parts) -> usize {
    match Route::of(parts) {
        Route::Response(_) | Route::Error(_) | Route::InitError => MAX_RESPONSE_BYTES,
        Route::Next
        | Route::Ping
        | Route::Restore
        | Route::Register
        | Route::Extension
        | Route::Telemetry
        | Route::Unknown
        | Route::WrongMethod => MAX_SMALL_BYTES,
    }
}

impl Session {
    /// An instance that was just started.
    #[must_use]
    pub fn new() -> Self {
        Self { state: State::Started, last: None, attempt: 0, aside: 0 }
    }

    /// How many requests in a row led nowhere: no event came of them. To be compared with [`MAX_ASIDE`] after a request.
    #[must_use]
    pub const fn aside(&self) -> u32 {
        self.aside
    }

    /// Answers a request of the instance's runtime.
    pub fn request(&mut self, from: ConnectionId, parts: &Parts, content: Content) -> Outcome {
        let outcome = self.dispatch(from, parts, content);
        self.aside = if outcome.event.is_some() { 0 } else { self.aside.saturating_add(1) };
        outcome
    }

    fn dispatch(&mut self, from: ConnectionId, parts: &Parts, content: Content) -> Outcome {
        match Route::of(parts) {
            Route::Next => self.next(from, parts),
            Route::Response(id) => self.response(id, parts, content),
            Route::Error(id) => self.error(id, parts, content),
            Route::InitError => self.init_error(parts, content),
            Route::Ping => Outcome::now(reply::pong()),
            Route::Telemetry => Outcome::now(reply::telemetry()),
            Route::Register => {
                Outcome::now(reply::error(403, "Extension.RegistrationClosed", "Extension registration is closed"))
            }
            Route::Extension => {
                Outcome::now(reply::error(403, "Extension.UnknownExtensionIdentifier", "No extension is registered"))
            }
            Route::Restore | Route::Unknown => Outcome::now(reply::not_found()),
            Route::WrongMethod => Outcome::now(reply::wrong_method()),
        }
    }

    /// Hands the instance an invocation.
    pub fn deliver(&mut self, invocation: Invocation) -> Result<Delivery, NotReady> {
        let State::Ready { waiting } = self.state else {
            return Err(NotReady { invocation: Box::new(invocation) });
        };
        self.last = Some(invocation.id);
        self.attempt += 1;
        match waiting {
            Some(connection) => {
                // Ready -> Running: the connection that waits gets it.
                self.state = State::Running;
                Ok(Delivery::Now(connection, reply::invocation(invocation, self.attempt)))
            }
            None => {
                // Ready -> Assigned: whoever asks next gets it.
                self.state = State::Assigned { invocation: Box::new(invocation) };
                Ok(Delivery::WhenAsked)
            }
        }
    }

    /// A connection of the instance is gone.
    pub fn closed(&mut self, connection: ConnectionId) {
        if let State::Ready { waiting } = &mut self.state
            && *waiting == Some(connection)
        {
            *waiting = None;
        }
    }

    fn next(&mut self, from: ConnectionId, parts: &Parts) -> Outcome {
        match std::mem::replace(&mut self.state, State::Ready { waiting: Some(from) }) {
            // Started -> Ready, Answered -> Ready: it waits.
            State::Started | State::Answered => Outcome {
                reply: Reply::Held,
                event: Some(Event::Ready { init: header_ns(parts, "takt-init-ns").map(Duration::from_nanos) }),
            },
            State::Ready { waiting: Some(other) } if other != from => Outcome { reply: Reply::HeldInsteadOf(other), event: None },
            State::Ready { .. } => Outcome { reply: Reply::Held, event: None },
            // Assigned -> Running.
            State::Assigned { invocation } => {
                self.state = State::Running;
                let event = Event::Taken { id: invocation.id };
                Outcome { reply: Reply::Now(reply::invocation(*invocation, self.attempt)), event: Some(event) }
            }
            before @ (State::Running | State::Failed) => {
                self.state = before;
                self.wrong_order("Ready")
            }
        }
    }

    fn response(&mut self, id: &str, parts: &Parts, content: Content) -> Outcome {
        let id = match self.answered(id, parts, "InvocationResponse") {
            Ok(id) => id,
            Err(refusal) => return *refusal,
        };
        let Some(mode) = answer::mode(parts) else {
            return Outcome::now(reply::error(400, "InvalidFunctionResponseMode", "Invalid function response mode"));
        };
        // Running -> Answered.
        self.state = State::Answered;
        let (reply, result) = match content {
            Content::TooLong => (reply::too_large(), Err(Failure::too_large())),
            Content::Whole(body, trailers) => (reply::accepted(), answer::result(parts, mode, body, &trailers)),
        };
        Outcome { reply: Reply::Now(reply), event: Some(ended(id, parts, result)) }
    }

    fn error(&mut self, id: &str, parts: &Parts, content: Content) -> Outcome {
        let id = match self.answered(id, parts, "InvocationErrorResponse") {
            Ok(id) => id,
            Err(refusal) => return *refusal,
        };
        // Running -> Answered.
        self.state = State::Answered;
        let (reply, failure) = failure(parts, content, "Function.Unknown");
        Outcome { reply: Reply::Now(reply), event: Some(ended(id, parts, Err(failure))) }
    }

    fn init_error(&mut self, parts: &Parts, content: Content) -> Outcome {
        if !matches!(self.state, State::Started) {
            return self.wrong_order("InitError");
        }
        // Started -> Failed: nothing but its exit follows.
        self.state = State::Failed;
        let (reply, failure) = failure(parts, content, "Runtime.Unknown");
        Outcome { reply: Reply::Now(reply), event: Some(Event::InitFailed(failure)) }
    }

    /// The invocation that is answered, if the answer is to this delivery of it and in order.
    fn answered(&self, id: &str, parts: &Parts, wanted: &str) -> Result<InvocationId, Box<Outcome>> {
        let attempt = parts.headers.get(reply::INVOCATION_ID);
        let current = attempt.is_none_or(|attempt| *attempt == reply::attempt(self.attempt));
        match self.last {
            Some(last) if current && id.parse() == Ok(last) => match self.state {
                State::Running => Ok(last),
                State::Started | State::Ready { .. } | State::Assigned { .. } | State::Answered | State::Failed => {
                    Err(Box::new(self.wrong_order(wanted)))
                }
            },
            Some(_) | None => Err(Box::new(Outcome::now(reply::error(400, "InvalidRequestID", "Invalid request ID")))),
        }
    }

    fn wrong_order(&self, wanted: &str) -> Outcome {
        let text = format!(
            "State transition from {} to {wanted} failed for runtime. Error: State transition is not allowed",
            self.state.name()
        );
        Outcome::now(reply::error(403, "InvalidStateTransition", &text))
    }
}

impl Failure {
    fn too_large() -> Self {
        Self { body: Bytes::from_static(reply::TOO_LARGE_REPORT), error_type: "Function.ResponseSizeTooLarge".to_owned() }
    }
}

impl Outcome {
    fn now(response: Response<Bytes>) -> Self {
        Self { reply: Reply::Now(response), event: None }
    }
}

fn ended(id: InvocationId, parts: &Parts, result: Result<Value, Failure>) -> Event {
    let started = header_ns(parts, "takt-started-ns").map(Time::from_nanos);
    let ended = header_ns(parts, "takt-ended-ns").map(Time::from_nanos);
    Event::Ended(Ended { id, started, ended, result })
}

/// What a runtime reported, and the reply to it.
fn failure(parts: &Parts, content: Content, unknown: &str) -> (Response<Bytes>, Failure) {
    match content {
        Content::Whole(body, _) => (reply::accepted(), answer::failure(parts, body, unknown)),
        Content::TooLong => (reply::too_large(), Failure::too_large()),
    }
}
