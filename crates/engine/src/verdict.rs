//! What a record says about the promise it was made under: the one reading that the lane and the audit share.

use std::time::Duration;

use journal::record::{Counters, Invocation, Transfer};
use model::{Cause, End, Time};

/// The numbers of a promise that its verdicts rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// B.
    pub(crate) start_within: Duration,
    /// R, without T.
    pub(crate) response: Duration,
    /// T.
    pub(crate) tolerance: Duration,
}

impl Bounds {
    /// The instant from which both bounds count: the conforming start, or the arrival of the input where an instance was
    /// held for it. `None`: it took no slot, or its lease was never used, and nothing was promised.
    pub(crate) fn due(record: &Invocation) -> Option<Time> {
        let unused_lease = record.held.is_some() && record.end == End::Expired;
        record.conforming.filter(|_| !unused_lease).map(|conforming| conforming.max(record.arrived))
    }

    /// It started after `due + B`, or had not started when it ended after that. A long input's way to its instance comes on top.
    pub(crate) fn late_start(self, record: &Invocation) -> bool {
        let start = started(record).unwrap_or(record.ended);
        let promised = self.start_within.saturating_add(transfer(record).input);
        Self::due(record).is_some_and(|due| due + promised < start)
    }

    /// It ended after a deadline that the analysis had promised when it took its slot: `due + R + T <= deadline`. The
    /// deadline of the guarantee always is, for conforming arrivals; one that an invocation carried, or that waiting for a
    /// slot has eaten up, may be too near to be promised, and missing it is counted without being a violation.
    pub(crate) fn late_end(self, record: &Invocation) -> bool {
        let promised = |due: Time| record.deadline.is_some_and(|deadline| due + self.response + self.tolerance <= deadline);
        missed_deadline(record) && Self::due(record).is_some_and(promised)
    }
}

/// When it started, by whoever saw it.
pub(crate) fn started(record: &Invocation) -> Option<Time> {
    record.started.or(record.delivered)
}

fn transfer(record: &Invocation) -> Transfer {
    record.transfer.as_deref().copied().unwrap_or_default()
}

/// The ways of a long input and of a long result come on top of the deadline.
fn missed_deadline(record: &Invocation) -> bool {
    let by = |deadline: Time| deadline + transfer(record).whole();
    Bounds::due(record).is_some() && record.deadline.is_some_and(|deadline| by(deadline) < record.ended)
}

/// Adds a record to the counters of its function and generation.
pub(crate) fn count(counters: &mut Counters, bounds: Bounds, record: &Invocation) {
    counters.arrivals += 1;
    counters.conforming += u64::from(record.slot.is_some());
    // A slot that opened after the arrival was waited for: the arrival itself was beyond the envelope.
    counters.excess += u64::from(record.conforming.is_none_or(|conforming| record.arrived < conforming));
    // Queued work that was dropped, and leases that no input came for.
    counters.expired += u64::from(record.end == End::Expired);
    counters.refused += u64::from(record.end == End::Refused);
    counters.start_violations += u64::from(bounds.late_start(record));
    counters.deadline_misses += u64::from(missed_deadline(record));
    if let Some(cause) = record.violation {
        counters.by_cause[place(cause)] += 1;
    }
    counters.held += record.held.unwrap_or_default();
}

/// The place of a cause in [`Counters::by_cause`].
pub(crate) const fn place(cause: Cause) -> usize {
    match cause {
        Cause::Steal => 0,
        Cause::Overrun => 1,
        Cause::Function => 2,
        Cause::HostCall => 3,
        Cause::Bug => 4,
        Cause::Unknown => 5,
    }
}
