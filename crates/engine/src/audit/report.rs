//! What an audit found.

use std::collections::BTreeMap;

use journal::record::{Counters, Invocation};
use model::{FunctionName, Time};
use serde::Serialize;

use super::LISTED;

/// What the records show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub guarantees: Vec<Finding>,
    pub boots: u64,
    /// Starts of the node without an orderly stop before: what ran then is unproven.
    pub unclean_stops: u64,
    /// The records end while the node runs.
    pub running_at_end: bool,
    /// Records that the node knew it had dropped.
    pub lost_records: u64,
    /// Arrivals that the last live counters tell of and neither records nor gaps in their numbers do.
    pub unwritten: u64,
    /// Claims of excess that could not be checked, because slots are missing or too many were open; and of steal, or records without
    /// terms, whose evidence may be among the records that were lost.
    pub unchecked_claims: u64,
    /// Claims of excess that the next slots would settle, where the records end or stop before.
    pub open_claims: u64,
    /// The first 1,000 contradictions.
    pub contradictions: Vec<Contradiction>,
    pub contradictions_total: u64,
}

/// One generation of one function's guarantee, over all boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub function: FunctionName,
    pub generation: u64,
    /// Counted from the records.
    pub counters: Counters,
    /// Numbers that are missing between those that are there.
    pub missing_records: u64,
}

/// A record, or several, that cannot be true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contradiction {
    pub function: Option<FunctionName>,
    pub generation: u64,
    pub sequence: Option<u64>,
    pub problem: Problem,
}

/// Why something recorded cannot be true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    #[error("no terms were given for it")]
    NoTerms,
    #[error("its fields contradict each other")]
    Shape,
    #[error("its number has come before")]
    SequenceTwice,
    #[error("slot {slot} has been taken before")]
    SlotTwice { slot: u64 },
    #[error("its conforming start is recorded as {recorded:?} and is {recomputed:?}")]
    Conforming { recorded: Time, recomputed: Time },
    #[error("it was turned away at {at:?}, when slots conformed since {conforming_since:?}")]
    ExcessConformed { at: Time, conforming_since: Time },
    #[error("its promise was missed and no cause is given")]
    LateUnmarked,
    #[error("its promise was kept and a cause is given")]
    MarkedButKept,
    #[error("it claims steal, and no probe of core {core} saw a gap then")]
    StealWithoutGap { core: u16 },
    #[error("it ended at {at:?} and stands behind one of {after:?}")]
    OutOfOrder { at: Time, after: Time },
    #[error("the live counters differ from what the records say")]
    Counters { live: Box<Counters>, records: Box<Counters> },
}

/// The whole in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every promise was kept, and the records prove it.
    Kept,
    /// Some were missed; the records prove how many and why.
    Missed,
    /// Records are missing: what they would show is not known.
    Unproven,
    /// The records contradict themselves.
    Contradicted,
}

impl Report {
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let missing = self.guarantees.iter().any(|finding| finding.missing_records != 0);
        let gaps = self.unclean_stops + self.lost_records + self.unwritten + self.unchecked_claims;
        if self.contradictions_total != 0 {
            Verdict::Contradicted
        } else if missing || gaps != 0 {
            Verdict::Unproven
        } else if self.violations() != 0 {
            Verdict::Missed
        } else {
            Verdict::Kept
        }
    }

    /// Promises missed, for whatever cause.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.guarantees.iter().flat_map(|finding| finding.counters.by_cause).sum()
    }

    pub(super) fn note(&mut self, contradiction: Contradiction) {
        self.contradictions_total += 1;
        if self.contradictions.len() < LISTED {
            self.contradictions.push(contradiction);
        }
    }

    /// Adds what a boot showed of a generation.
    pub(super) fn add(&mut self, key: (FunctionName, u64), counters: &Counters, missing: u64) {
        let found = self.guarantees.iter_mut().find(|finding| (&finding.function, finding.generation) == (&key.0, key.1));
        let Some(finding) = found else {
            let (function, generation) = key;
            let finding = Finding { function, generation, counters: counters.clone(), missing_records: missing };
            return self.guarantees.push(finding);
        };
        finding.missing_records += missing;
        let sum = &mut finding.counters;
        sum.arrivals += counters.arrivals;
        sum.conforming += counters.conforming;
        sum.excess += counters.excess;
        sum.expired += counters.expired;
        sum.refused += counters.refused;
        sum.start_violations += counters.start_violations;
        sum.deadline_misses += counters.deadline_misses;
        for (sum, part) in sum.by_cause.iter_mut().zip(counters.by_cause) {
            *sum += part;
        }
        sum.held += counters.held;
    }

    /// The findings by function and generation.
    #[must_use]
    pub fn by_function(&self) -> BTreeMap<(&str, u64), &Finding> {
        self.guarantees.iter().map(|finding| ((finding.function.as_str(), finding.generation), finding)).collect()
    }
}

impl Contradiction {
    pub(super) fn of(record: &Invocation, problem: Problem) -> Self {
        let function = Some(record.function.clone());
        Self { function, generation: record.generation, sequence: Some(record.sequence), problem }
    }

    pub(super) fn of_terms(key: &(FunctionName, u64), problem: Problem) -> Self {
        Self { function: Some(key.0.clone()), generation: key.1, sequence: None, problem }
    }
}
