//! What a lane, or the door, did with connections and requests since the node started. On its thread alone: no atomics.

/// What may happen to a connection or a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// A connection of the port.
    Accepted,
    /// A new connection, from the door.
    FromDoor,
    /// A connection from the other lane.
    TakenOver,
    /// Sent to the other lane.
    Moved(Why),
    /// Sent to the management front.
    ToManagement,
    /// Answered that too many wait, and closed.
    RefusedBusy,
    /// Closed before a whole request of it was there: it broke off, was none, or was too slow.
    CutShort,
    /// Its client closed it after a whole request, before that was served.
    HungUp,
    /// Closed because nothing came for long.
    Idle,
    /// Closed while nothing came, because others wanted its place.
    EvictedSilent,
    /// Closed before its first request was there, because others wanted its place.
    EvictedBegun,
    /// The head of a request was read.
    Request,
}

/// Why a connection goes to one lane and not to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// Its request is for no guaranteed function.
    BestEffortFunction,
    /// It sent too much that takes no slot.
    OverBudget,
    /// Its request has a long body, or one of unstated length.
    LongBody,
    /// Who sent its request may not send it.
    NotLetIn,
    /// Its request is for what the guaranteed lane serves.
    Guaranteed,
}

impl What {
    pub(crate) const ALL: [Self; 16] = [
        Self::Accepted,
        Self::FromDoor,
        Self::TakenOver,
        Self::Moved(Why::BestEffortFunction),
        Self::Moved(Why::OverBudget),
        Self::Moved(Why::LongBody),
        Self::Moved(Why::NotLetIn),
        Self::Moved(Why::Guaranteed),
        Self::ToManagement,
        Self::RefusedBusy,
        Self::CutShort,
        Self::HungUp,
        Self::Idle,
        Self::EvictedSilent,
        Self::EvictedBegun,
        Self::Request,
    ];

    /// Its name in the metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::FromDoor => "from-door",
            Self::TakenOver => "taken-over",
            Self::Moved(Why::BestEffortFunction) => "moved-best-effort",
            Self::Moved(Why::OverBudget) => "moved-over-budget",
            Self::Moved(Why::LongBody) => "moved-long-body",
            Self::Moved(Why::NotLetIn) => "moved-not-let-in",
            Self::Moved(Why::Guaranteed) => "moved-guaranteed",
            Self::ToManagement => "moved-management",
            Self::RefusedBusy => "refused-busy",
            Self::CutShort => "cut-short",
            Self::HungUp => "hung-up",
            Self::Idle => "idle",
            Self::EvictedSilent => "evicted-silent",
            Self::EvictedBegun => "evicted-begun",
            Self::Request => "request",
        }
    }

    fn place(self) -> usize {
        Self::ALL.iter().position(|one| *one == self).expect("invariant: all are listed")
    }
}

/// How often each thing happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; What::ALL.len()]);

impl Counts {
    pub(crate) fn add(&mut self, what: What) {
        self.0[what.place()] += 1;
    }

    pub(crate) fn of(&self, what: What) -> u64 {
        self.0[what.place()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_thing_is_counted_under_a_name_of_its_own() {
        let mut counts = Counts::default();
        for what in What::ALL {
            counts.add(what);
        }
        assert!(What::ALL.iter().all(|what| counts.of(*what) == 1));
        assert_eq!(What::ALL.iter().map(|what| what.name()).collect::<BTreeSet<_>>().len(), What::ALL.len());
    }
}
