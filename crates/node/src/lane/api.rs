//! Serves the Runtime API of the lane's instances: reads their requests, has the lane's state answer them.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use engine::port::{Allowance, Event, FRONT_CORE};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use model::{End, InstanceId, InvocationId, Time};
use runtime::api::{self, ConnectionId, Content, Delivery, Ended, Failure, Reply};
use runtime::http1::{After, Connection, Error, Limits};
use runtime::launcher::Exit;
use runtime::sys::clock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::Lane;
use super::core::Core;
use super::instance::{CONNECTIONS_MAX, Held};
use super::links::Order;
use super::machine::Machine;
use super::paced::{Paced, Shared};
use super::transit::{Moving, SMALL_BYTES, is_long};
use crate::instance::{Running, ended_as};
use crate::invocation::Ending;
use crate::lambda::invoke;
use crate::lanes;

const LIMITS: Limits = Limits { head_bytes: api::MAX_HEAD_BYTES, headers: 100 };
/// Of a body above its limit this much is read and thrown away, so that the runtime gets to see the refusal.
const DISCARDED_BYTES: usize = 32 << 20;

/// Serves one instance until its process ends.
pub(super) async fn serve<M: Machine>(
    lane: Rc<Lane<M>>,
    instance: InstanceId,
    (running, listener, mut exit): (Arc<Running>, std::net::TcpListener, oneshot::Receiver<Exit>),
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            running.kill();
            lane.with(|core| {
                core.note_failure(instance, &format!("its Runtime API cannot be served: {error}"));
                core.exited(instance, invoke::Outcome::Exited(None));
            });
            return;
        }
    };
    let mut open = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            biased;
            exit = &mut exit => {
                // Without an exit the launcher is gone, and the instance with it.
                let ending = exit.map_or(invoke::Outcome::Exited(None), |exit| ended_as(&exit));
                lane.with(|core| core.exited(instance, ending));
                return;
            }
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(crate::door::ACCEPT_PAUSE).await;
                    continue;
                };
                if lane.with(|core| core.asks(instance)).is_ok() && open.len() < CONNECTIONS_MAX {
                    // Small answers must not wait for an acknowledgement of the one before; a socket that refuses the
                    // option still works.
                    let _ = stream.set_nodelay(true);
                    let lane = Rc::clone(&lane);
                    open.spawn_local(async move { connection(lane, instance, stream).await });
                }
            }
            Some(_) = open.join_next() => {}
        }
    }
}

async fn connection<M: Machine>(lane: Rc<Lane<M>>, instance: InstanceId, stream: TcpStream) {
    let stream = Shared::new(stream);
    let Some(id) = lane.with(|core| core.connected(instance, stream.clone())) else { return };
    let mut connection = Connection::new(Paced::new(stream, lane.for_instances.clone()));
    while let Some(parts) = connection.read_head(&LIMITS).await.ok().flatten() {
        connection.stream().next_request();
        if lane.with(|core| core.asks(instance)).is_err() {
            break;
        }
        let coming = if is_long(&parts) { lane.with(|core| core.result_comes(instance, &parts)) } else { None };
        connection.stream().reads_for(coming.as_ref().map(Moving::transit));
        let content = match connection.read_body(&parts, api::body_limit(&parts)).await {
            Ok(body) => Content::Whole(body, connection.take_trailers()),
            Err(Error::BodyTooLong { .. }) => {
                if connection.discard_body(&parts, DISCARDED_BYTES).await.is_err() {
                    break;
                }
                Content::TooLong
            }
            Err(_) => break,
        };
        drop(coming);
        let (response, delivers) = match lane.with(|core| core.api_request(instance, id, &parts, content)) {
            // A runtime that has asked on already reads this together with its next invocation: one write, one wake-up.
            Some(Answer::Now(response)) if response.status() == StatusCode::ACCEPTED && connection.has_next() => {
                // The client, who was just given his result, comes before the runtime.
                let_others_run().await;
                match connection.hold_response(response) {
                    None => continue,
                    Some(response) => (response, None),
                }
            }
            Some(Answer::Now(response)) => {
                let_others_run().await;
                (response, None)
            }
            Some(Answer::Later(waits)) => {
                tokio::select! {
                    biased;
                    given = waits => match given {
                        Ok((response, invocation)) => (response, Some(invocation)),
                        Err(_) => break,
                    },
                    () = connection.closed() => break,
                }
            }
            None => break,
        };
        let long = delivers.filter(|_| SMALL_BYTES < response.body().len());
        let going = long.and_then(|invocation| lane.with(|core| core.input_goes(invocation)));
        connection.stream().writes_for(going.as_ref().map(Moving::transit));
        let written = connection.write_response(response, After::KeepAlive).await;
        drop(going);
        if let Some(invocation) = delivers {
            lane.with(|core| core.written(invocation));
        }
        match written {
            Ok(After::KeepAlive) => {}
            Ok(After::Close) | Err(_) => break,
        }
    }
    lane.with(|core| core.disconnected(instance, id));
}

/// Lets the lane's tasks that are ready run before the caller goes on.
async fn let_others_run() {
    let mut waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// How a request of a runtime is answered.
pub(super) enum Answer {
    Now(Response<Bytes>),
    Later(oneshot::Receiver<Held>),
}

impl<M: Machine> Core<M> {
    pub(super) fn connected(&mut self, instance: InstanceId, stream: Shared) -> Option<ConnectionId> {
        self.instances.get_mut(&instance).map(|known| known.connected(stream))
    }

    pub(super) fn disconnected(&mut self, instance: InstanceId, connection: ConnectionId) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        known.disconnected(connection);
        // Who waits has the lowest weight, also to die: beside busy processes the kernel tells of its death many milliseconds after its
        // sockets are closed, and whatever it was handed meanwhile would be lost. It is killed, because a thread may live on.
        let Some(running) = known.running.clone().filter(|_| known.waits_unconnected()) else { return };
        if self.returning.may_look(known.function, clock::now()) && running.is_ending() {
            self.event(Event::Dying { instance });
        }
    }

    /// A request of an instance's runtime; `None` when the instance is gone.
    pub(super) fn api_request(
        &mut self,
        instance: InstanceId,
        from: ConnectionId,
        parts: &Parts,
        content: Content,
    ) -> Option<Answer> {
        let known = self.instances.get_mut(&instance)?;
        let outcome = known.session.request(from, parts, content);
        if api::MAX_ASIDE < known.session.aside() {
            // Its requests lead nowhere and take the lane's time from others.
            known.kill();
            return None;
        }
        let answer = match outcome.reply {
            Reply::Now(response) => Answer::Now(response),
            Reply::Held => Answer::Later(known.hold(from)),
            Reply::HeldInsteadOf(other) => {
                known.let_go(other);
                Answer::Later(known.hold(from))
            }
        };
        match outcome.event {
            Some(api::Event::Ready { .. }) => self.asked(instance),
            Some(api::Event::Ended(ended)) => self.returned(instance, ended),
            Some(api::Event::InitFailed(failure)) => self.init_failed(instance, &failure),
            Some(api::Event::Taken { .. }) | None => {}
        }
        Some(answer)
    }

    /// The instance asked for its first or next invocation.
    fn asked(&mut self, instance: InstanceId) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        if known.settle() {
            self.note_return(instance);
            self.rests(instance);
            self.event(Event::Ready { instance });
            return;
        }
        let (on, running) = (known.on, known.running.clone());
        let ordered = running.is_some_and(|running| self.links.order(Order::Place { instance, running, on }).is_ok());
        if !ordered {
            self.tell(instance, "killed: the node could not give it its class in time".to_owned());
            if let Some(known) = self.instances.get_mut(&instance) {
                known.kill();
            }
        }
    }

    /// The instance answered its invocation.
    fn returned(&mut self, instance: InstanceId, ended: Ended) {
        let now = clock::now();
        let id = ended.id;
        let cpu_time = self.cpu_time(instance);
        let cpu = self.cpu_of(id, cpu_time);
        if let Some(known) = self.instances.get_mut(&instance) {
            known.serving = None;
            known.answered = Some(cpu_time);
        }
        self.returns(now, (id, instance), cpu_time);
        self.tell_transfer(id);
        let Some(waiting) = self.waiting.get_mut(&id) else { return };
        let delivered = waiting.progress.delivered.unwrap_or(now);
        let stamped = ended.started.filter(|at| delivered <= *at && *at <= now);
        waiting.progress.started = Some(stamped.unwrap_or(delivered));
        if let Some(at) = stamped {
            self.event_at(now, Event::Started { id, at });
        }
        let finished = ended.ended.filter(|at| stamped.is_some_and(|started| started <= *at) && *at <= now);
        if self.lane == lanes::Lane::BestEffort {
            let run = finished.unwrap_or(now).since(stamped.unwrap_or(delivered));
            self.sample_end(now, (id, instance), run);
        }
        if let Some(known) = self.instances.get_mut(&instance) {
            known.used += now.since(delivered);
        }
        self.note_delay(id, instance);
        let (end, ending) = match ended.result {
            Ok(value) => (End::Succeeded, Ending::Ran(invoke::Outcome::Succeeded(value.payload))),
            Err(failure) => (End::Failed, Ending::Ran(invoke::Outcome::Failed(failure.body))),
        };
        self.event_at(now, Event::Ended { id, end, cpu });
        self.answer(now, id, ending);
    }

    /// Keeps the largest dispatch delay that neither the analysis nor a gap of the core explains: from the arrival until the
    /// invocation was with its instance (a large input's way there is the function's), and from there to its handler. That last stretch is stamped by the function's
    /// process, so it counts no more than calibration allows for it. What waited for a slot or an instance says nothing.
    fn note_delay(&mut self, id: InvocationId, instance: InstanceId) {
        let Some(waiting) = self.waiting.get(&id) else { return };
        let (progress, arrived) = (waiting.progress, waiting.request.arrived);
        let (Some(conforming), Some(delivered), Some(dispatched), Some(started)) =
            (progress.conforming, progress.delivered, progress.dispatched, progress.started)
        else {
            return;
        };
        let due = conforming.max(arrived);
        self.keep_delay(id, started.since(due));
        if progress.waited {
            return;
        }
        let analysed = self.start_bound_of(id).unwrap_or_default();
        let core = self.instances.get(&instance).and_then(super::instance::Instance::core);
        let entry = started.since(delivered).saturating_sub(analysed).min(crate::calibrate::ENTRY);
        let delay = dispatched.since(arrived) + entry;
        if !self.gaps.overlap(core.unwrap_or(FRONT_CORE), arrived, started) {
            let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
            self.links.seen_ns.fetch_max(nanos, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn init_failed(&mut self, instance: InstanceId, failure: &Failure) {
        self.note_failure(instance, &String::from_utf8_lossy(&failure.body));
        if let Some(known) = self.instances.get_mut(&instance) {
            known.kill();
        }
    }

    /// The instance's process ended.
    pub(super) fn exited(&mut self, instance: InstanceId, exit: invoke::Outcome) {
        self.note_exit(instance, &format!("the runtime ended before it was ready: {exit:?}"));
        if let Some(known) = self.instances.get_mut(&instance) {
            known.exit = Some(exit);
        }
        self.gone(instance);
    }

    /// An invocation was written to its instance.
    fn written(&mut self, id: InvocationId) {
        let at = clock::now();
        if let Some(waiting) = self.waiting.get_mut(&id) {
            waiting.progress.delivered = Some(at);
            if waiting.request.payload.len() <= SMALL_BYTES {
                waiting.progress.dispatched = Some(at);
            }
            self.event_at(at, Event::Delivered { id, at });
        }
    }

    /// Hands an invocation to an instance.
    pub(super) fn deliver(
        &mut self,
        now: Time,
        id: InvocationId,
        instance: InstanceId,
        (allowance, conforming): (Allowance, Option<Time>),
    ) {
        let start_within = self.start_within_of(id);
        let cpu = self.cpu_time(instance);
        let Some(waiting) = self.waiting.get_mut(&id) else { return };
        let Some(known) = self.instances.get_mut(&instance) else { return };
        known.work(cpu, allowance);
        if self.lane == lanes::Lane::BestEffort {
            known.sample_begin(now);
        }
        waiting.progress.delivered = Some(now);
        waiting.progress.dispatched = Some(now);
        waiting.progress.waited = self.arriving != Some(id);
        waiting.progress.conforming = conforming;
        waiting.progress.instance = Some(instance);
        waiting.progress.start_within = start_within;
        waiting.progress.run_time = Some(allowance.run_time);
        waiting.progress.instance_start = known.take_start();
        known.ration.earn();
        if waiting.request.log == invoke::LogType::Tail {
            self.links.mark_log(instance);
        }
        let stops = allowance.until.min(now + allowance.run_time);
        let deadline = clock::since_epoch() + stops.since(now);
        let request = &waiting.request;
        let invocation = api::Invocation {
            id,
            deadline_epoch_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            function_arn: known.arn.clone(),
            trace_id: request.trace_id.clone(),
            client_context: request.client_context.clone(),
            cognito_identity: None,
            tenant_id: None,
            content_type: Some(HeaderValue::from_static("application/json")),
            payload: request.payload.clone(),
        };
        match known.session.deliver(invocation) {
            Ok(Delivery::Now(connection, response)) => {
                // A connection that closed in this instant shows as the instance's silence, which its bound ends.
                if let Some(waits) = known.let_go(connection) {
                    let _ = waits.send((response, id));
                }
            }
            Ok(Delivery::WhenAsked) => {}
            // The machine gave work to an instance that did not ask: it cannot be trusted with this state.
            Err(_) => known.kill(),
        }
        known.serving = Some(id);
        if self.lane == lanes::Lane::Guaranteed {
            self.watch(now, (id, instance), allowance, cpu);
        }
    }
}
