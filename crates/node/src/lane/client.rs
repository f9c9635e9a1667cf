//! Serves the clients of a lane: reads requests, submits them, writes the answers, sends connections where they belong.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::port::Refusal;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use model::{Class, FunctionKey, InvocationId, LeaseId, Time, UrlAccess};
use runtime::http1::{After, Connection, Error as WireError, Limits};
use runtime::sys::clock;
use tokio::net::TcpStream;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::core::refused;
use super::counts::{What, Why};
use super::forward::{NoWay, Way};
use super::machine::Machine;
use super::message::{Moved, Traffic};
use super::paced::Paced;
use super::seats::Silence;
use super::transit::SMALL_BYTES;
use super::{Lane, Seat};
use crate::auth::sigv4::PayloadHash;
use crate::auth::{Grant, PathClass};
use crate::budget::{Budget, Payer};
use crate::front::{Target, today};
use crate::invocation::{Ending, Outcome, Request};
use crate::lambda::invoke::{self, Answer, Invoke, Kind, LogType, Report};
use crate::lambda::path;
use crate::lanes::{self, Route, Standing};
use crate::scribe;
use crate::url;

pub(crate) const LIMITS: Limits = Limits { head_bytes: 32 << 10, headers: 100 };
/// A connection that sends nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(75);
/// A body must be there this long after its head.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// A client takes its answer within this time, or loses it with its connection.
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// A connection that is given up is read on for this long, so that its client gets to see the last answer.
const LINGER_WITHIN: Duration = Duration::from_secs(5);
/// Bodies above this are read on the best-effort lane and handed over whole: checking one of 64 KiB takes about 75 µs.
pub(crate) const LARGE_BYTES: usize = 64 << 10;
/// Excess that one connection may send through the guaranteed lane before it is moved off it.
const EXCESS_PER_SECOND: u32 = 20;
const EXCESS_AT_ONCE: u32 = 100;
/// How long a connection that was moved off stays off.
const PUSHED_OFF_FOR: Duration = Duration::from_secs(1);

/// What happens to a connection after one request.
enum Turn {
    Next,
    Close,
    Move(Destination),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    OtherLane(Why),
    Management,
}

/// How one invocation is asked for and answered.
struct Wants {
    lease: Option<LeaseId>,
    log: LogType,
    render: Render,
}

/// How a result becomes an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Render {
    AsInvoke,
    AsUrl,
}

/// An answer that takes too long to make on the guaranteed lane.
pub(crate) struct Rendering {
    id: InvocationId,
    trace: String,
    timing: invoke::Timing,
    outcome: invoke::Outcome,
    done: oneshot::Sender<Response<Bytes>>,
}

impl Rendering {
    /// Makes the answer and hands it back. Called on the best-effort lane.
    pub(super) fn make(self) {
        let answer = Answer { id: self.id, trace: &self.trace, timing: self.timing, log_tail: None };
        // A client that went away needs no answer.
        let _ = self.done.send(url::response(&answer, self.outcome));
    }
}

struct Client<M> {
    lane: Rc<Lane<M>>,
    connection: Connection<Paced<TcpStream>>,
    peer: SocketAddr,
    manners: Manners,
    idle: Idle,
    silence: Silence,
    /// Of its seat.
    number: u64,
    /// Its last request came from somebody who may send it.
    let_in: bool,
}

/// Ends the wait for a connection that sends nothing. One timer serves all requests of a connection: it is set anew only when
/// it fires, because setting it for each would cost a system call and another turn of the event loop.
struct Idle(Pin<Box<Sleep>>);

impl Idle {
    fn new() -> Self {
        Self(Box::pin(sleep(IDLE)))
    }

    /// Ends [`IDLE`] after `since`. Can be cancelled and called again.
    async fn over(&mut self, since: Instant) {
        loop {
            self.0.as_mut().await;
            if IDLE <= since.elapsed() {
                return;
            }
            self.0.as_mut().reset(since + IDLE);
        }
    }
}

/// What a connection did so far; it goes with the connection from lane to lane.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    excess: Budget,
    /// Not before this instant is the connection served in the guaranteed lane.
    welcome_at: Time,
    /// A request on it carried a signature that was right.
    proved: bool,
}

impl Default for Manners {
    fn default() -> Self {
        Self { excess: Budget::new(EXCESS_PER_SECOND, EXCESS_AT_ONCE), welcome_at: Time::ZERO, proved: false }
    }
}

impl Manners {
    /// Of a connection whose first request carried a signature that is right.
    pub(crate) fn proved() -> Self {
        Self { proved: true, ..Self::default() }
    }
}

/// Serves a connection until it closes or moves on.
pub(super) async fn serve<M: Machine>(seat: Seat<M>, moved: Moved, silence: Silence) {
    let lane = Rc::clone(&seat.lane);
    // Who hung up on the way here gets no invocation started for it, only to be killed with its instance.
    if lane.lane() == lanes::Lane::Guaranteed && has_hung_up(&moved.stream) {
        return lane.count(What::HungUp);
    }
    let Ok(stream) = TcpStream::from_std(moved.stream) else { return };
    let stream = Paced::new(stream, lane.for_clients.clone());
    let connection = Connection::with_buffer(stream, moved.unread);
    let (peer, manners) = (moved.peer, moved.manners);
    let mut client = Client { lane, connection, peer, manners, idle: Idle::new(), silence, number: seat.number, let_in: false };
    loop {
        match client.turn().await {
            Turn::Next => {}
            Turn::Close => {
                client.close().await;
                return;
            }
            Turn::Move(destination) => {
                if let Some(client) = client.leave(destination) {
                    client.turn_away().await;
                }
                return;
            }
        }
    }
}

impl<M: Machine> Client<M> {
    async fn turn(&mut self) -> Turn {
        self.connection.stream().next_head();
        self.let_in = false;
        let since = Instant::now();
        self.silence.begin(since);
        let read = tokio::select! {
            biased;
            read = async {
                if self.connection.begins().await? {
                    // A request that has begun has its own time before its connection counts as silent.
                    self.silence.begin(Instant::now());
                }
                self.connection.read_head(&LIMITS).await
            } => read,
            () = self.idle.over(since) => {
                self.silence.end();
                self.lane.count(What::Idle);
                return Turn::Close;
            }
        };
        self.silence.end();
        let parts = match read {
            Ok(Some(parts)) => parts,
            Ok(None) => return Turn::Close,
            Err(error) => return self.broken(&error).await,
        };
        self.lane.count(What::Request);
        self.connection.stream().head_is_read();
        match Target::of(parts.uri.path()) {
            Target::Management => Turn::Move(Destination::Management),
            Target::Invoke => self.invoke(&parts).await,
            Target::Url => self.by_url(&parts).await,
            Target::Lease(lease) => self.supply(&parts, lease).await,
        }
    }

    /// AWS's Invoke.
    async fn invoke(&mut self, parts: &Parts) -> Turn {
        let front = Arc::clone(&self.lane.front);
        let home = &front.home;
        let call = path::parse(&parts.method, parts.uri.path(), parts.uri.query());
        let name = match &call {
            Ok(path::Call::Invoke(function)) => function.serving(home).cloned(),
            Ok(_) => return Turn::Move(Destination::Management),
            Err(error) => Err(error.clone()),
        };
        let route = name.as_ref().ok().and_then(|name| self.lane.core.borrow().route(name).cloned());
        if let Some(turn) = self.elsewhere(parts, route.as_ref()) {
            return turn;
        }
        let grant = match self.allow(parts, PathClass::Aws, UrlAccess::Keyed) {
            Ok(grant) => grant,
            Err(denied) => return self.refuse(*denied).await,
        };
        if let Some(turn) = self.way_back(parts, route.as_ref(), &grant) {
            return turn;
        }
        let asked = match (call, name) {
            (Ok(path::Call::Invoke(function)), Ok(_)) => Invoke::parse(function, &parts.headers),
            (_, Err(error)) | (Err(error), _) => Err(error),
            (Ok(_), Ok(_)) => return Turn::Move(Destination::Management),
        };
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => return self.refuse(error.response()).await,
        };
        let (body, complete) = match self.body(parts, grant, PathClass::Aws).await {
            Ok(read) => read,
            Err(turn) => return turn,
        };
        let Some(route) = route else {
            let error = invoke::refusal(Refusal::NoFunction, &asked.function.name, home, clock::now());
            return self.answer(error.response()).await;
        };
        let payload = match invoke::payload(body) {
            Ok(payload) => payload,
            Err(error) => return self.answer_aside(error.response(), route.key).await,
        };
        self.run_invoke((asked, payload), route, &parts.headers, complete).await
    }

    async fn run_invoke(
        &mut self,
        (invoke, payload): (Invoke, Bytes),
        route: Route,
        headers: &HeaderMap,
        complete: Time,
    ) -> Turn {
        let (asked, trace) = self.asked(headers, complete);
        match invoke.kind {
            Kind::DryRun => return self.answer_aside(invoke::dry_run(asked.id), route.key).await,
            Kind::RequestResponse => {}
        }
        let request = Request {
            function: route.key,
            payload,
            client_context: invoke.client_context.as_deref().and_then(|context| HeaderValue::from_str(context).ok()),
            deadline: invoke.deadline.map(|within| asked.arrived + within),
            ..asked
        };
        self.run_and_answer(request, &route, Wants { lease: None, log: invoke.log, render: Render::AsInvoke }, &trace).await
    }

    /// A function by its URL.
    async fn by_url(&mut self, parts: &Parts) -> Turn {
        let target = url::parse(parts.uri.path());
        let name = target.as_ref().ok().map(|target| &target.function);
        let route = name.and_then(|name| self.lane.core.borrow().route(name).cloned());
        if let Some(turn) = self.elsewhere(parts, route.as_ref()) {
            return turn;
        }
        let access = route.as_ref().map_or(UrlAccess::Keyed, |route| route.image.spec.url);
        let grant = match self.allow(parts, PathClass::FunctionUrl, access) {
            Ok(grant) => grant,
            Err(denied) => return self.refuse(*denied).await,
        };
        if let Some(turn) = self.way_back(parts, route.as_ref(), &grant) {
            return turn;
        }
        let caller = match &grant {
            Grant::Open => url::Caller::Anonymous,
            Grant::Token | Grant::Signature(_) => url::Caller::KeyHolder,
        };
        let (body, complete) = match self.body(parts, grant, PathClass::FunctionUrl).await {
            Ok(read) => read,
            Err(turn) => return turn,
        };
        let found = target.and_then(|target| {
            let missing = || invoke::refusal(Refusal::NoFunction, &target.function, &self.lane.front.home, clock::now());
            route.ok_or_else(missing).map(|route| (target.clone(), route))
        });
        let (target, route) = match found {
            Ok(found) => found,
            Err(error) => return self.answer(error.response()).await,
        };
        let (asked, trace) = self.asked(&parts.headers, complete);
        let at = clock::since_epoch();
        let request =
            url::Request { id: asked.id, target: &target, parts, body: &body, caller, source: self.peer.ip(), at, trace: &trace };
        let event = url::event(&request, &self.lane.front.home);
        let (payload, deadline) = match event.and_then(|event| Ok((event, invoke::deadline(&parts.headers)?))) {
            Ok(event) => event,
            Err(error) => return self.answer_aside(error.response(), route.key).await,
        };
        let deadline = deadline.map(|within| asked.arrived + within);
        let request = Request { function: route.key, payload, deadline, ..asked };
        self.run_and_answer(request, &route, Wants { lease: None, log: LogType::None, render: Render::AsUrl }, &trace).await
    }

    /// Input for a lease.
    async fn supply(&mut self, parts: &Parts, lease: Option<LeaseId>) -> Turn {
        let grant = match self.allow(parts, PathClass::V1, UrlAccess::Keyed) {
            Ok(grant) => grant,
            Err(denied) => return self.refuse(*denied).await,
        };
        if is_large(parts) {
            return self.refuse(large_lease_input()).await;
        }
        if self.lane.lane() == lanes::Lane::BestEffort {
            return self.go_to_lease().await;
        }
        let (body, complete) = match self.body(parts, grant, PathClass::V1).await {
            Ok(read) => read,
            Err(turn) => return turn,
        };
        let found = lease.and_then(|lease| Some((lease, self.lane.core.borrow().leased(lease)?)));
        let Some((lease, route)) = found else {
            // Leases are known in this lane alone: whoever asks for what there is not comes on a new connection next time.
            return self.refuse(no_lease()).await;
        };
        let payload = match invoke::payload(body) {
            Ok(payload) => payload,
            Err(error) => return self.refuse(error.response()).await,
        };
        let (asked, trace) = self.asked(&parts.headers, complete);
        let request = Request { function: route.key, payload, ..asked };
        let wants = Wants { lease: Some(lease), log: LogType::None, render: Render::AsInvoke };
        self.run_and_answer(request, &route, wants, &trace).await
    }

    /// Input for a lease goes to the guaranteed lane once that is paid for: who sends it showed the token.
    async fn go_to_lease(&mut self) -> Turn {
        let may_go = tokio::select! {
            biased;
            may_go = self.lane.way_of_lease() => may_go,
            () = self.connection.closed() => return Turn::Close,
        };
        match may_go {
            Ok(()) => Turn::Move(Destination::OtherLane(Why::Guaranteed)),
            Err(NoWay::Full) => {
                self.lane.count(What::RefusedBusy);
                self.refuse(busy()).await
            }
            Err(NoWay::Draining) => self.refuse(draining()).await,
        }
    }

    /// The parts of a request that every way of asking shares, with a new id and its trace.
    fn asked(&self, headers: &HeaderMap, complete: Time) -> (Request, String) {
        let id = self.lane.core.borrow_mut().new_id();
        let sent = headers.get("x-amzn-trace-id").and_then(|value| value.to_str().ok());
        let trace = invoke::trace_id(sent, id, clock::since_epoch().as_secs());
        let request = Request {
            id,
            function: FunctionKey(0),
            payload: Bytes::new(),
            trace_id: HeaderValue::from_str(&trace).ok(),
            client_context: None,
            log: LogType::None,
            deadline: None,
            arrived: complete,
        };
        (request, trace)
    }

    async fn run_and_answer(&mut self, request: Request, route: &Route, wants: Wants, trace: &str) -> Turn {
        let id = request.id;
        self.lane.seats.borrow_mut().asks_for(self.number, route.key);
        let request = Request { log: wants.log, ..request };
        let Some(outcome) = self.run(request, route, wants.lease).await else { return Turn::Close };
        if took_slot(&outcome) {
            self.connection.stream().took_slot();
        }
        let tail = match wants.log {
            LogType::None => None,
            LogType::Tail => Some(self.tail(id, &outcome, route).await),
        };
        let answer = Answer { id, trace, timing: outcome.timing(), log_tail: tail.as_deref() };
        let response = match outcome.ending {
            Ending::Ran(ran) => match wants.render {
                Render::AsInvoke => answer.response(ran),
                Render::AsUrl => match self.as_url(&answer, ran).await {
                    Some(response) => response,
                    None => return Turn::Close,
                },
            },
            Ending::Refused(refusal) => {
                let error = invoke::refusal(refusal, &route.image.spec.name, &self.lane.front.home, clock::now());
                let mut response = error.response();
                answer.write(response.headers_mut());
                response
            }
        };
        self.answer(response).await
    }

    /// The answer to a request by URL. A result may be an answer itself, of megabytes: reading that takes milliseconds, which
    /// the best-effort lane has and the guaranteed lane has not. Where that lane has too many, the result waits for its turn.
    /// `None` when the client went away.
    async fn as_url(&mut self, answer: &Answer<'_>, outcome: invoke::Outcome) -> Option<Response<Bytes>> {
        if self.lane.lane() == lanes::Lane::BestEffort {
            return Some(url::response(answer, outcome));
        }
        let large = matches!(&outcome, invoke::Outcome::Succeeded(result) if SMALL_BYTES < result.len() || url::is_dear(result));
        if !large {
            return Some(url::response(answer, outcome));
        }
        let (done, made) = oneshot::channel();
        let rendering = Rendering { id: answer.id, trace: answer.trace.to_owned(), timing: answer.timing, outcome, done };
        let rendering = Box::new(rendering);
        let (results, other_lane) = {
            let links = &self.lane.core.borrow().links;
            (links.results.clone(), links.other_lane.clone())
        };
        let handed_over = async {
            match answer.timing.class {
                Class::Guaranteed => results.send(rendering).await.ok()?,
                Class::BestEffort => other_lane.send(Traffic::Render(rendering)).await.ok()?,
            }
            made.await.ok()
        };
        tokio::select! {
            biased;
            response = timeout(WRITE_WITHIN, handed_over) => Some(response.ok().flatten().unwrap_or_else(busy)),
            () = self.connection.closed() => None,
        }
    }

    /// Runs a request; `None` when its client went away, which stops it.
    async fn run(&mut self, request: Request, route: &Route, lease: Option<LeaseId>) -> Option<Outcome> {
        let id = request.id;
        let way = match (self.lane.lane(), route.standing) {
            (lanes::Lane::BestEffort, Standing::Guaranteed) => tokio::select! {
                biased;
                way = self.lane.way(&request) => way,
                () = self.connection.closed() => return None,
            },
            (lanes::Lane::Guaranteed, _) | (lanes::Lane::BestEffort, Standing::BestEffort | Standing::Suspended) => Way::Submit,
        };
        let answer = self.lane.with(|core| match way {
            Way::Submit => core.submit(request, route.standing, lease),
            Way::AsBestEffort => core.submit(request, Standing::BestEffort, lease),
            Way::Refused(refusal) => refused(request, refusal),
        });
        let outcome = tokio::select! {
            biased;
            outcome = answer => outcome.ok(),
            () = self.connection.closed() => {
                self.lane.with(|core| core.abandon(id));
                return None;
            }
        }?;
        if !took_slot(&outcome) {
            self.charge(route.key);
        }
        Some(outcome)
    }

    /// Charges the guaranteed lane's work for a request that took no slot. Where that is more than its function or this
    /// connection may cause, the connection keeps off that lane for a while.
    fn charge(&mut self, function: FunctionKey) {
        if self.lane.lane() == lanes::Lane::BestEffort {
            return;
        }
        let now = clock::now();
        let shared = self.lane.core.borrow_mut().spend_excess(Payer::Function(function));
        if self.manners.excess.spend(now).and(shared).is_err() {
            self.manners.welcome_at = now + PUSHED_OFF_FOR;
        }
    }

    /// The function of a route, where requests for it on this connection may be served by the guaranteed lane; else why not.
    fn wanted(&self, parts: &Parts, route: Option<&Route>) -> Result<FunctionKey, Why> {
        match route.filter(|route| route.standing == Standing::Guaranteed) {
            None => Err(Why::BestEffortFunction),
            Some(_) if clock::now() < self.manners.welcome_at => Err(Why::OverBudget),
            Some(_) if is_large(parts) => Err(Why::LongBody),
            Some(route) => Ok(route.key),
        }
    }

    /// Whether requests on this route are none of the guaranteed lane's.
    fn elsewhere(&self, parts: &Parts, route: Option<&Route>) -> Option<Turn> {
        match self.lane.lane() {
            lanes::Lane::Guaranteed => self.wanted(parts, route).err().map(|why| Turn::Move(Destination::OtherLane(why))),
            lanes::Lane::BestEffort => None,
        }
    }

    /// Whether the connection goes from the best-effort lane to the guaranteed one with this request. It does so for those
    /// that were let in: the way is charged to the function, before it costs that lane anything, and a stranger must not use
    /// up what is a function's. A signature is proved only with the body, and bodies are read where the connection is.
    fn way_back(&mut self, parts: &Parts, route: Option<&Route>, grant: &Grant) -> Option<Turn> {
        if self.lane.lane() == lanes::Lane::Guaranteed {
            return None;
        }
        let function = self.wanted(parts, route).ok()?;
        match grant {
            Grant::Open | Grant::Token => {}
            Grant::Signature(_) if self.manners.proved => {}
            Grant::Signature(_) => return None,
        }
        if self.lane.core.borrow_mut().spend_excess(Payer::Function(function)).is_err() {
            self.manners.welcome_at = clock::now() + PUSHED_OFF_FOR;
            return None;
        }
        Some(Turn::Move(Destination::OtherLane(Why::Guaranteed)))
    }

    fn allow(&self, parts: &Parts, class: PathClass, url: UrlAccess) -> Result<Grant, Box<Response<Bytes>>> {
        self.lane.access.borrow_mut().check(parts, class, url, today()).map_err(|denied| Box::new(denied.response(class)))
    }

    /// Reads the body and has the signature decide, where there is one.
    /// Also says when the request was complete.
    async fn body(&mut self, parts: &Parts, grant: Grant, class: PathClass) -> Result<(Bytes, Time), Turn> {
        self.let_in = true;
        self.connection.stream().let_in();
        let read = timeout(BODY_WITHIN, self.connection.read_body(parts, invoke::MAX_PAYLOAD_BYTES)).await;
        let body = match read {
            Ok(Ok(body)) => body,
            Ok(Err(WireError::BodyTooLong { .. })) => return Err(self.refuse(invoke::too_large().response()).await),
            Ok(Err(error)) => return Err(self.broken(&error).await),
            Err(_) => {
                self.lane.count(What::CutShort);
                return Err(Turn::Close);
            }
        };
        let complete = clock::now();
        match grant {
            Grant::Open | Grant::Token => Ok((body, complete)),
            Grant::Signature(unproven) => match unproven.finish(PayloadHash::of(&body)) {
                Ok(()) => {
                    self.manners.proved = true;
                    Ok((body, complete))
                }
                Err(error) => {
                    self.let_in = false;
                    Err(self.refuse(crate::auth::Denied::from(error).response(class)).await)
                }
            },
        }
    }

    /// The end of the invocation's log.
    async fn tail(&self, id: InvocationId, outcome: &Outcome, route: &Route) -> String {
        let tail = match outcome.progress.instance {
            Some(instance) => {
                let asked = self.lane.core.borrow_mut().links.log_tail(instance);
                match asked {
                    Some(answer) => answer.await.unwrap_or_default(),
                    None => scribe::Tail::default(),
                }
            }
            None => scribe::Tail::default(),
        };
        let since = outcome.progress.delivered.unwrap_or(outcome.arrived);
        let report = Report {
            duration: outcome.ended.since(since),
            memory: route.image.spec.memory,
            max_memory_mib: tail.peak_mib,
            init: outcome.progress.instance_start,
        };
        report.tail(id, &tail.written)
    }

    /// Answers a request that was read whole.
    async fn answer(&mut self, response: Response<Bytes>) -> Turn {
        match timeout(WRITE_WITHIN, self.connection.write_response(response, After::KeepAlive)).await {
            Ok(Ok(After::KeepAlive)) => Turn::Next,
            Ok(Ok(After::Close) | Err(_)) | Err(_) => Turn::Close,
        }
    }

    /// Answers a request for a guaranteed function that takes no slot.
    async fn answer_aside(&mut self, response: Response<Bytes>, function: FunctionKey) -> Turn {
        self.charge(function);
        self.answer(response).await
    }

    /// Answers a request whose body is not read; the connection cannot go on.
    async fn refuse(&mut self, response: Response<Bytes>) -> Turn {
        // Whether or not the answer could be written, the connection is closed.
        let _ = timeout(WRITE_WITHIN, self.connection.write_response(response, After::Close)).await;
        Turn::Close
    }

    async fn broken(&mut self, error: &WireError) -> Turn {
        self.lane.count(What::CutShort);
        match error.response() {
            Some(response) => self.refuse(response).await,
            None => Turn::Close,
        }
    }

    /// Sends the connection, with the head just read put back, where it belongs; stays where too many wait there already.
    fn leave(mut self, destination: Destination) -> Option<Self> {
        let (other_lane, management) = {
            let links = &self.lane.core.borrow().links;
            (links.other_lane.clone(), links.management.clone())
        };
        let place = match destination {
            Destination::OtherLane(_) => other_lane.try_reserve_owned().ok().map(Place::OtherLane),
            Destination::Management => management.try_reserve_owned().ok().map(Place::Management),
        };
        let Some(place) = place else { return Some(self) };
        self.lane.count(match destination {
            Destination::OtherLane(why) => What::Moved(why),
            Destination::Management => What::ToManagement,
        });
        let whole = self.connection.unread_head();
        assert!(whole, "invariant: a connection moves before its body is read");
        let (stream, unread) = self.connection.into_parts();
        // A stream that cannot leave this thread's reactor is broken, and closed.
        if let Ok(stream) = stream.into_inner().into_std() {
            let moved = Moved { stream, peer: self.peer, unread, manners: self.manners };
            match place {
                Place::OtherLane(place) => drop(place.send(Traffic::Connection(moved))),
                Place::Management(place) => drop(place.send(moved)),
            }
        }
        None
    }

    /// Answers a request that should be served elsewhere, where there is no room for it.
    async fn turn_away(mut self) {
        self.lane.count(What::RefusedBusy);
        self.refuse(busy()).await;
        self.close().await;
    }

    /// Closes the connection so that its client gets to see the last answer.
    async fn close(self) {
        if !self.let_in {
            self.connection.stream().end_soon();
        }
        // The other side may be gone already; then there is nothing to close.
        let _ = timeout(LINGER_WITHIN, self.connection.close()).await;
    }
}

/// Room for a connection in the queue of whoever is to serve it.
enum Place {
    OtherLane(OwnedPermit<Traffic>),
    Management(OwnedPermit<Moved>),
}

/// The answer of a node that has no room for a request; also written as it is where a connection is not even read.
pub(crate) const BUSY: &str =
    "{\"Type\":\"Service\",\"code\":\"busy\",\"message\":\"too many connections wait to be served; come again in a second\"}";

fn busy() -> Response<Bytes> {
    unavailable(BUSY)
}

fn draining() -> Response<Bytes> {
    unavailable("{\"Type\":\"Service\",\"code\":\"draining\",\"message\":\"the node is shutting down\"}")
}

fn unavailable(text: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(text.as_bytes()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Whether the client of a socket that does not block has closed its side, as far as that is known without waiting.
fn has_hung_up(stream: &std::net::TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// Tells a connection that is closed unread why. The answer fits into the empty buffer of its socket, so that nothing waits.
pub(crate) fn close_busy(mut stream: &std::net::TcpStream) {
    let length = BUSY.len();
    let text = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{BUSY}"
    );
    // Nobody is told where the client is gone.
    let _ = std::io::Write::write(&mut stream, text.as_bytes());
}

/// Whether a body takes so long to read, check and hash that it must not be done on the guaranteed lane.
fn is_large(parts: &Parts) -> bool {
    let stated = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let unstated = parts.headers.contains_key(TRANSFER_ENCODING);
    unstated || stated.is_some_and(|length| LARGE_BYTES < length)
}

fn large_lease_input() -> Response<Bytes> {
    let message = format!("input for a lease holds at most {LARGE_BYTES} bytes, with its length stated");
    v1_error(StatusCode::PAYLOAD_TOO_LARGE, "too-large", &message)
}

fn no_lease() -> Response<Bytes> {
    v1_error(StatusCode::NOT_FOUND, "no-lease", "the lease is unknown, expired or used; pre-invoke again")
}

/// An error as `/v1` writes it; `message` has nothing in it that JSON quotes.
fn v1_error(status: StatusCode, code: &str, message: &str) -> Response<Bytes> {
    let page = format!("docs/reference/errors.md#{code}");
    let text = format!(r#"{{"error":{{"code":"{code}","message":"{message}","page":"{page}"}}}}"#);
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Whether an invocation was one that admission accounts for.
fn took_slot(outcome: &Outcome) -> bool {
    matches!(outcome.ending, Ending::Ran(_)) && outcome.class == Class::Guaranteed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_it_was_silent_for_the_whole_time() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut idle = Idle::new();
        timeout(IDLE - second, idle.over(begin)).await.unwrap_err();
        // A request came in the last second, and nothing since.
        idle.over(begin + IDLE - second).await;
        assert_eq!(begin.elapsed(), IDLE + IDLE - second);
    }
}
