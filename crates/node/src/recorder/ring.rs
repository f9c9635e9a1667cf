//! The way of a record from a lane to the recorder: one wait-free ring per lane.
//!
//! Every record takes a ticket from one counter before it enters its ring, and the recorder takes records in the order of
//! tickets. So what happened before something else, as any two threads can tell, is written before it.
//!
//! A record travels in a box, and the box goes back over a second ring, so that memory is taken and given back by the same
//! thread: no lane ever waits for an allocator's lock that the recorder holds, and in the long run none allocates here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use journal::record::Record;
use rtrb::{Consumer, Producer, RingBuffer};

/// Boxes a lane throws away per record handed over, so that those of a burst do not stay for ever.
const SPARES_DROPPED: usize = 1;
/// Boxes on their way back; beyond them the recorder frees.
const SPARES_MAX: usize = 1_024;

type Ticketed = (u64, Box<Record>);

/// A lane's end: hands records over and never waits.
#[derive(Debug)]
pub struct Sender {
    ring: Producer<Ticketed>,
    spares: Consumer<Box<Record>>,
    tickets: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
}

impl Sender {
    /// Hands a record over, or counts it as lost when the ring is full. Wait-free.
    ///
    /// # Panics
    /// Only when a ring that had room has none, which would be a bug: its other end makes room and never takes it.
    pub fn send(&mut self, record: Record) {
        // The recorder only ever makes room, so a place that is free now is free below.
        if self.ring.slots() == 0 {
            super::count_lost(&self.lost);
            return;
        }
        let carrier = match self.spares.pop() {
            Ok(mut spare) => {
                *spare = record;
                spare
            }
            Err(_) => Box::new(record),
        };
        for _ in 0..SPARES_DROPPED {
            drop(self.spares.pop());
        }
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let pushed = self.ring.push((ticket, carrier));
        assert!(pushed.is_ok(), "a ring with room takes a record");
    }
}

/// The recorder's end of all rings.
#[derive(Debug)]
pub(super) struct Intake {
    lanes: Vec<Lane>,
    next_ticket: u64,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Lane {
    ring: Consumer<Ticketed>,
    spares: Producer<Box<Record>>,
}

/// Rings for so many lanes, each for so many records.
pub(super) fn rings(lanes: usize, records: usize) -> (Vec<Sender>, Intake) {
    let (tickets, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut senders = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..lanes {
        let (ring, ring_end) = RingBuffer::new(records);
        let (spares_end, spares) = RingBuffer::new(records.min(SPARES_MAX));
        senders.push(Sender { ring, spares, tickets: Arc::clone(&tickets), lost: Arc::clone(&lost) });
        ends.push(Lane { ring: ring_end, spares: spares_end });
    }
    (senders, Intake { lanes: ends, next_ticket: 0, lost })
}

impl Intake {
    /// Gives what was handed over to `take`, in the order of tickets. Each ring holds its tickets in order, so the next one
    /// is at the front of one of them, or still on its way into it: then the others wait, at most until their rings fill
    /// and they count what they lose.
    pub(super) fn drain(&mut self, mut take: impl FnMut(&Record)) {
        let next = |lane: &mut Lane, wanted: u64| lane.ring.peek().is_ok_and(|(ticket, _)| *ticket == wanted);
        while let Some(lane) = (0..self.lanes.len()).find(|lane| next(&mut self.lanes[*lane], self.next_ticket)) {
            let lane = &mut self.lanes[lane];
            let Ok((_, record)) = lane.ring.pop() else { return };
            take(&record);
            self.next_ticket += 1;
            // Full: the recorder frees it, which may take the allocator's lock of that lane; only after a burst.
            drop(lane.spares.push(record));
        }
    }

    /// How many were lost since the last call.
    pub(super) fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}
