//! A lane's ways out: the starter of instances, the other lane, the management front, the recorder. None ever blocks.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};

use engine::port::{Placement, Refusal};
use journal::record;
use model::{FunctionName, InstanceId, InvocationId, Time};
use tokio::sync::{mpsc, oneshot};

use super::client::Rendering;
use super::message::{Moved, Traffic};
use crate::instance::Running;
use crate::invocation::Waiting;
use crate::lanes::Image;
use crate::probe::Pulses;
use crate::scribe;

/// Invocations and connections that may be on their way from one lane to the other.
pub(crate) const HAND_OVERS_MAX: u32 = 2_048;
/// Large results of guaranteed invocations that may lie in the queue of those who are to make answers of them: one more waits with
/// its client's connection.
pub(crate) const RESULTS_MAX: usize = 64;
/// Orders that may wait for the starter: several for every instance there can be, since one whose class cannot be changed
/// must be killed.
pub(crate) const ORDERS_MAX: usize = 8_192;
/// What the starter is asked to do.
pub(crate) enum Order {
    Start(NewInstance),
    Place { instance: InstanceId, running: Arc<Running>, on: Placement },
}

/// An instance that is to be made.
pub(crate) struct NewInstance {
    pub(crate) instance: InstanceId,
    pub(crate) image: Arc<Image>,
    pub(crate) on: Placement,
    pub(crate) wanted: Weak<Wanted>,
}

/// Kept by an instance as long as it is wanted.
#[derive(Debug)]
pub(crate) struct Wanted;

impl NewInstance {
    /// Whether the lane did not give it up while it waited.
    pub(crate) fn is_wanted(&self) -> bool {
        0 < self.wanted.strong_count()
    }
}

/// Where records go. Called on a lane's thread: it must neither block nor take a lock that another class holds.
pub(crate) type RecordSink = Box<dyn FnMut(record::Record) + Send>;

pub(crate) struct Links {
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) other_lane: mpsc::Sender<Traffic>,
    /// To the other lane as well: results of guaranteed invocations alone, so that nothing else takes their room.
    pub(crate) results: mpsc::Sender<Box<Rendering>>,
    pub(crate) management: mpsc::Sender<Moved>,
    pub(crate) scribe: mpsc::Sender<scribe::Order>,
    pub(crate) records: RecordSink,
    /// The largest dispatch delay beyond S that no gap explains, nanoseconds.
    pub(crate) seen_ns: Arc<AtomicU64>,
    /// Where the probes say whether they run.
    pub(crate) pulses: Arc<Pulses>,
}

/// The queue is full or its reader is gone.
pub(super) struct Full;

impl Links {
    pub(super) fn order(&mut self, order: Order) -> Result<(), Full> {
        self.orders.try_send(order).map_err(|_| Full)
    }

    /// Hands an invocation to the other lane, or gives it back where that lane has too many to take in.
    pub(super) fn hand_over(&mut self, waiting: Waiting, how: fn(Box<Waiting>) -> Traffic) -> Result<(), Box<Waiting>> {
        match self.other_lane.try_reserve() {
            Ok(place) => {
                place.send(how(Box::new(waiting)));
                Ok(())
            }
            Err(_) => Err(Box::new(waiting)),
        }
    }

    pub(super) fn abandon_elsewhere(&mut self, id: InvocationId) {
        // A full queue leaves the invocation to run to its bound; its answer finds nobody.
        let _ = self.other_lane.try_send(Traffic::Abandoned(id));
    }

    /// An invocation that wants its log begins on an instance.
    pub(super) fn mark_log(&mut self, instance: InstanceId) {
        // A busy scribe leaves older output in front of the invocation's own.
        let _ = self.scribe.try_send(scribe::Order::Mark { instance });
    }

    /// Says something about an instance in its function's log.
    pub(super) fn tell(&mut self, function: FunctionName, instance: InstanceId, text: String) {
        // A busy scribe loses the line; what it tells of has happened all the same.
        let _ = self.scribe.try_send(scribe::Order::Note { function, instance, text });
    }

    /// Asks for what an instance wrote since its last invocation began, and how much memory it used; `None` when the scribe is too busy.
    pub(super) fn log_tail(&mut self, instance: InstanceId) -> Option<oneshot::Receiver<scribe::Tail>> {
        let (answer, receiver) = oneshot::channel();
        self.scribe.try_send(scribe::Order::Tail { instance, answer }).ok().map(|()| receiver)
    }

    /// Adds anything but an invocation to the evidence.
    pub(super) fn note(&mut self, record: record::Record) {
        (self.records)(record);
    }

    pub(super) fn record(&mut self, record: record::Invocation) {
        (self.records)(record::Record::Invocation(record));
    }
}

/// A refusal in words, for leases.
pub(super) fn refusal_text(refusal: Refusal, now: Time) -> String {
    match refusal {
        Refusal::OverRate { next } => format!("it is over its guaranteed rate; the next one conforms in {:?}", next.since(now)),
        Refusal::QueueFull { limit, next } => {
            format!("its queue holds {limit} invocations already; the next slot is in {:?}", next.since(now))
        }
        Refusal::Expired { deadline } => format!("its deadline passed {:?} ago", now.since(deadline)),
        Refusal::Busy { limit } => format!("{limit} invocations wait already"),
        Refusal::NoLease => "the lease is unknown, expired or used".to_owned(),
        Refusal::NoFunction => "there is no such function".to_owned(),
        Refusal::Suspended => "its guarantee is suspended: it no longer fits this node".to_owned(),
        Refusal::Unstartable => "its instances do not start".to_owned(),
        Refusal::Draining => "the node is shutting down".to_owned(),
    }
}
