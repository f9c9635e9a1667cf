//! From the best-effort lane to the guaranteed one: which requests go there at once, which wait for it, and which stay.
//!
//! What conforms goes at once, because that lane's admission counts it. What is beyond the envelope costs that lane something
//! that has to be paid for. Where a function's excess waits for slots, it waits here until it can be paid for, in order, and
//! goes on waiting there. Nothing that waits here has arrived yet: the guaranteed lane stamps what it takes over.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine::mirror::Seen;
use engine::port::Refusal;
use model::{FunctionKey, Overflow, Time};
use runtime::room::{Full, Room};
use runtime::sys::clock;
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;

use super::Lane;
use super::core::Core;
use super::machine::Machine;
use crate::budget::Payer;
use crate::invocation::Request;

/// Requests that may wait here, of all functions.
pub(crate) const LINES_MAX: u32 = 1_024;
/// Bytes of their payloads, of all functions.
pub(crate) const LINES_BYTES_MAX: usize = 256 << 20;
/// Inputs for leases that may.
const LEASES_MAX: usize = 32;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// This lane submits it to whoever serves its function.
    Submit,
    /// It runs here as excess.
    AsBestEffort,
    Refused(Refusal),
}

/// Why there is no way for input for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoWay {
    Full,
    Draining,
}

impl From<Full> for NoWay {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

/// It cannot be paid for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Later {
    again: Time,
    /// When the next arrival would conform.
    next: Time,
}

/// Who waits: one line for each payer.
#[derive(Debug)]
pub(super) struct Lines {
    room: Room<Payer>,
    /// A place for each byte.
    bytes: Room<Payer>,
    turns: BTreeMap<Payer, Rc<Mutex<()>>>,
    closed: bool,
    /// Wakes all that wait when the lines close.
    closing: Rc<Notify>,
}

impl Default for Lines {
    fn default() -> Self {
        let places = usize::try_from(LINES_MAX).expect("invariant: a small number");
        let mut lines = Self {
            room: Room::new(places),
            bytes: Room::new(LINES_BYTES_MAX),
            turns: BTreeMap::new(),
            closed: false,
            closing: Rc::default(),
        };
        lines.join(Payer::Leases);
        lines
    }
}

impl Lines {
    pub(super) fn join(&mut self, payer: Payer) {
        self.room.join(payer);
        self.bytes.join(payer);
        self.turns.entry(payer).or_default();
    }

    pub(super) fn leave(&mut self, payer: Payer) {
        self.room.leave(&payer);
        self.bytes.leave(&payer);
        self.turns.remove(&payer);
    }

    /// Whoever waits is refused at once, and whoever comes.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.closing.notify_waiters();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.room.taken() == 0
    }

    fn turn(&self, payer: Payer) -> Rc<Mutex<()>> {
        self.turns.get(&payer).cloned().unwrap_or_default()
    }
}

/// A place in a line.
struct Place<'a, M: Machine> {
    lane: &'a Lane<M>,
    payer: Payer,
    bytes: usize,
}

impl<M: Machine> Drop for Place<'_, M> {
    fn drop(&mut self) {
        self.lane.core.borrow_mut().leave_line(self.payer, self.bytes);
    }
}

impl<M: Machine> Core<M> {
    /// Where a request goes that came in here for a guaranteed function, if that is known now.
    fn way_now(&mut self, function: FunctionKey, at: Time) -> Result<Way, Later> {
        if self.lines.closed {
            return Ok(Way::Refused(Refusal::Draining));
        }
        let seen = self.mirrors.classify(function, at);
        if seen == Seen::Conforms {
            return Ok(Way::Submit);
        }
        let Err(again) = self.spend_excess(Payer::Function(function)) else { return Ok(Way::Submit) };
        match seen {
            // Far beyond the envelope: the guaranteed lane need not look at it to know.
            Seen::Beyond { overflow: Overflow::Reject, next } => Ok(Way::Refused(Refusal::OverRate { next })),
            Seen::Beyond { overflow: Overflow::Queue { .. }, next } => Err(Later { again: again.min(next), next }),
            Seen::Beyond { overflow: Overflow::BestEffort, .. } | Seen::Conforms | Seen::Unknown => Ok(Way::AsBestEffort),
        }
    }

    fn enter_line(&mut self, payer: Payer, most: usize, bytes: usize) -> Result<(), Full> {
        self.lines.room.enter(payer, most)?;
        if let Err(full) = self.lines.bytes.enter_with(payer, bytes, LINES_BYTES_MAX) {
            self.lines.room.exit(&payer);
            return Err(full);
        }
        Ok(())
    }

    fn leave_line(&mut self, payer: Payer, bytes: usize) {
        self.lines.room.exit(&payer);
        self.lines.bytes.exit_with(&payer, bytes);
        self.finish_drain();
    }
}

impl<M: Machine> Lane<M> {
    /// Says where a request goes that came in here for a guaranteed function, once that is known. Safe to drop at any point.
    pub(super) async fn way(&self, request: &Request) -> Way {
        let (function, payer) = (request.function, Payer::Function(request.function));
        let turn = self.core.borrow().lines.turn(payer);
        let queue = self.core.borrow().mirrors.queue(function);
        // Who finds others waiting goes behind them, unless they wait on terms that are no more.
        let now = match (turn.try_lock(), queue) {
            (Err(_), Some(_)) => Err(Later { again: request.arrived, next: request.arrived }),
            (Ok(_), _) | (Err(_), None) => self.core.borrow_mut().way_now(function, request.arrived),
        };
        let next = match now {
            Ok(way) => return way,
            Err(Later { next, .. }) => next,
        };
        let (limit, within) = queue.expect("invariant: only what has a queue is told to wait");
        let (most, bytes) = (usize::try_from(limit).unwrap_or(usize::MAX), request.payload.len());
        if self.core.borrow_mut().enter_line(payer, most, bytes).is_err() {
            let own = self.core.borrow().lines.room.taken_by(&payer);
            let refusal = if own < most { Refusal::Busy { limit: LINES_MAX } } else { Refusal::QueueFull { limit, next } };
            return Way::Refused(refusal);
        }
        let _place = Place { lane: self, payer, bytes };
        let deadlines = [request.deadline, within.map(|within| request.arrived + within)];
        let way = self.way_in_turn(function, &turn);
        let waits = async {
            match deadlines.into_iter().flatten().min() {
                // Wherever in the line it is: who is first may have longer.
                Some(deadline) => {
                    timeout(deadline.since(clock::now()), way).await.unwrap_or(Way::Refused(Refusal::Expired { deadline }))
                }
                None => way.await,
            }
        };
        self.unless_closed(waits).await.unwrap_or(Way::Refused(Refusal::Draining))
    }

    /// The way of a request whose turn comes.
    async fn way_in_turn(&self, function: FunctionKey, turn: &Mutex<()>) -> Way {
        let _first = turn.lock().await;
        loop {
            let now = clock::now();
            let way = self.core.borrow_mut().way_now(function, now);
            match way {
                Ok(way) => return way,
                Err(Later { again, .. }) => tokio::time::sleep(again.since(now)).await,
            }
        }
    }

    /// Ends when a connection with input for a lease may go to the guaranteed lane; not where too many wait. Safe to drop at
    /// any point.
    pub(super) async fn way_of_lease(&self) -> Result<(), NoWay> {
        let payer = Payer::Leases;
        // Its body is not read yet.
        self.core.borrow_mut().enter_line(payer, LEASES_MAX, 0)?;
        let _place = Place { lane: self, payer, bytes: 0 };
        let turn = self.core.borrow().lines.turn(payer);
        let waits = async {
            let _first = turn.lock().await;
            loop {
                let spent = self.core.borrow_mut().spend_excess(payer);
                let Err(again) = spent else { return };
                tokio::time::sleep(again.since(clock::now())).await;
            }
        };
        self.unless_closed(waits).await.ok_or(NoWay::Draining)
    }

    /// What a wait ends with; `None` when the lines are closed, or close before.
    async fn unless_closed<T>(&self, waits: impl Future<Output = T>) -> Option<T> {
        let closing = Rc::clone(&self.core.borrow().lines.closing);
        // Woken by whatever closes them from here on.
        let closes = closing.notified();
        if self.core.borrow().lines.closed {
            return None;
        }
        tokio::select! {
            biased;
            () = closes => None,
            ended = waits => Some(ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::lambda::invoke::LogType;
    use crate::lane::tests::{Fake, lane_with, mirror, on_lane, refuse_all, route};
    use crate::lanes;

    const QUEUE: [(&str, &str); 2] = [("rate", "1/min"), ("overflow", "queue")];

    /// A best-effort lane beside which function 1 is guaranteed.
    fn lane() -> Rc<Lane<Fake>> {
        let (lane, _) = lane_with(lanes::Lane::BestEffort, 64, refuse_all);
        route(&lane, "beat", 1);
        mirror(&lane, 1, &QUEUE);
        lane
    }

    fn request(lane: &Lane<Fake>) -> Request {
        Request {
            id: lane.core.borrow_mut().new_id(),
            function: FunctionKey(1),
            payload: Bytes::from_static(b"{}"),
            trace_id: None,
            client_context: None,
            log: LogType::None,
            deadline: None,
            arrived: clock::now(),
        }
    }

    fn turn(lane: &Lane<Fake>, payer: Payer) -> Rc<Mutex<()>> {
        lane.core.borrow().lines.turn(payer)
    }

    const FUNCTION: Payer = Payer::Function(FunctionKey(1));

    #[test]
    fn a_deadline_is_told_when_it_comes_wherever_in_the_line_it_waits() {
        on_lane(async || {
            let lane = lane();
            let turn = turn(&lane, FUNCTION);
            let _first = turn.lock().await;
            let patient = request(&lane);
            let deadline = clock::now() + std::time::Duration::from_millis(5);
            let hasty = Request { deadline: Some(deadline), ..request(&lane) };
            tokio::select! {
                biased;
                way = lane.way(&patient) => panic!("{way:?}"),
                way = lane.way(&hasty) => assert_eq!(way, Way::Refused(Refusal::Expired { deadline })),
            }
        });
    }

    #[test]
    fn what_comes_while_others_wait_on_terms_that_are_no_more_goes_by_the_new_ones() {
        on_lane(async || {
            let lane = lane();
            let turn = turn(&lane, FUNCTION);
            let _first = turn.lock().await;
            mirror(&lane, 1, &[("rate", "1/min"), ("overflow", "reject")]);
            assert_eq!(lane.way(&request(&lane)).await, Way::Submit, "it conforms");
        });
    }

    #[test]
    fn all_that_wait_are_told_at_once_that_the_node_is_shutting_down() {
        on_lane(async || {
            let lane = lane();
            let turns = [FUNCTION, Payer::Leases].map(|payer| turn(&lane, payer));
            let _first = (turns[0].lock().await, turns[1].lock().await);
            let waits = request(&lane);
            let drain = async {
                while lane.core.borrow().lines.room.taken() < 2 {
                    tokio::task::yield_now().await;
                }
                lane.core.borrow_mut().lines.close();
            };
            let told = tokio::join!(lane.way(&waits), lane.way_of_lease(), drain);
            assert_eq!(told, (Way::Refused(Refusal::Draining), Err(NoWay::Draining), ()));
            assert!(lane.core.borrow().lines.is_empty());
            assert_eq!(lane.way_of_lease().await, Err(NoWay::Draining), "whoever comes later, too");
        });
    }

    #[test]
    fn payloads_that_wait_are_held_up_to_a_limit_of_which_each_function_has_its_part() {
        on_lane(async || {
            let lane = lane();
            route(&lane, "other", 2);
            let turn = turn(&lane, FUNCTION);
            let _first = turn.lock().await;
            lane.core.borrow_mut().enter_line(FUNCTION, 1_000, LINES_BYTES_MAX / 2).unwrap();
            assert_eq!(lane.way(&request(&lane)).await, Way::Refused(Refusal::Busy { limit: LINES_MAX }));
            assert_eq!(lane.core.borrow().lines.room.taken_by(&FUNCTION), 1, "its place is given back");
            lane.core.borrow_mut().enter_line(Payer::Function(FunctionKey(2)), 1_000, 6 << 20).unwrap();
        });
    }
}
