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
use tokio::sync::Mutex;

use super::Lane;
use super::core::Core;
use super::machine::Machine;
use crate::budget::Payer;
use crate::invocation::Request;

/// Requests that may wait here, of all functions.
pub(crate) const LINES_MAX: u32 = 1_024;
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
    turns: BTreeMap<Payer, Rc<Mutex<()>>>,
    waiting: usize,
    closed: bool,
}

impl Default for Lines {
    fn default() -> Self {
        let places = usize::try_from(LINES_MAX).expect("invariant: a small number");
        let mut lines = Self { room: Room::new(places), turns: BTreeMap::new(), waiting: 0, closed: false };
        lines.join(Payer::Leases);
        lines
    }
}

impl Lines {
    pub(super) fn join(&mut self, payer: Payer) {
        self.room.join(payer);
        self.turns.entry(payer).or_default();
    }

    pub(super) fn leave(&mut self, payer: Payer) {
        self.room.leave(&payer);
        self.turns.remove(&payer);
    }

    /// Whoever waits is refused from now on.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    fn turn(&self, payer: Payer) -> Rc<Mutex<()>> {
        self.turns.get(&payer).cloned().unwrap_or_default()
    }
}

/// A place in a line.
struct Place<'a, M: Machine> {
    lane: &'a Lane<M>,
    payer: Payer,
}

impl<M: Machine> Drop for Place<'_, M> {
    fn drop(&mut self) {
        self.lane.core.borrow_mut().leave_line(self.payer);
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

    fn enter_line(&mut self, payer: Payer, most: usize) -> Result<(), Full> {
        self.lines.room.enter(payer, most)?;
        self.lines.waiting += 1;
        Ok(())
    }

    fn leave_line(&mut self, payer: Payer) {
        self.lines.room.exit(&payer);
        self.lines.waiting -= 1;
        self.finish_drain();
    }
}

impl<M: Machine> Lane<M> {
    /// Says where a request goes that came in here for a guaranteed function, once that is known. Safe to drop at any point.
    pub(super) async fn way(&self, request: &Request) -> Way {
        let (function, payer) = (request.function, Payer::Function(request.function));
        let turn = self.core.borrow().lines.turn(payer);
        let now = match turn.try_lock() {
            Ok(_nobody_waits) => self.core.borrow_mut().way_now(function, request.arrived),
            Err(_) => Err(Later { again: request.arrived, next: request.arrived }),
        };
        let next = match now {
            Ok(way) => return way,
            Err(Later { next, .. }) => next,
        };
        let Some((limit, within)) = self.core.borrow().mirrors.queue(function) else { return Way::AsBestEffort };
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        if self.core.borrow_mut().enter_line(payer, most).is_err() {
            let own = self.core.borrow().lines.room.taken_by(&payer);
            let refusal = if own < most { Refusal::Busy { limit: LINES_MAX } } else { Refusal::QueueFull { limit, next } };
            return Way::Refused(refusal);
        }
        let _place = Place { lane: self, payer };
        let deadlines = [request.deadline, within.map(|within| request.arrived + within)];
        let deadline = deadlines.into_iter().flatten().min().unwrap_or(Time::MAX);
        let _first = turn.lock().await;
        loop {
            let now = clock::now();
            if deadline < now {
                return Way::Refused(Refusal::Expired { deadline });
            }
            let way = self.core.borrow_mut().way_now(function, now);
            match way {
                Ok(way) => return way,
                Err(Later { again, .. }) => tokio::time::sleep(again.since(now)).await,
            }
        }
    }

    /// Ends when a connection with input for a lease may go to the guaranteed lane; not where too many wait. Safe to drop at
    /// any point.
    pub(super) async fn way_of_lease(&self) -> Result<(), Full> {
        let payer = Payer::Leases;
        self.core.borrow_mut().enter_line(payer, LEASES_MAX)?;
        let _place = Place { lane: self, payer };
        let turn = self.core.borrow().lines.turn(payer);
        let _first = turn.lock().await;
        loop {
            let spent = self.core.borrow_mut().spend_excess(payer);
            let Err(again) = spent else { return Ok(()) };
            tokio::time::sleep(again.since(clock::now())).await;
        }
    }
}
