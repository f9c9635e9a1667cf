//! How far a gap of a core reaches beyond itself: work that it pushed back delays what comes after it.
//!
//! A core that was taken away is behind by what came meanwhile. Until it has caught up, invocations are late whose own time no
//! gap touches. Once nothing of a priority or a more urgent one is left to do, all that comes after is as if there had been no
//! gap. So a gap reaches an invocation only where, from the gap on, there always was one that waited or ran on the core and was
//! as urgent; the written records show that without a break. What is not written yet proves nothing.
//!
//! The lane and the audit keep the same records in the same order, and ask the same question.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use journal::record::Invocation;
use model::{Guarantee, Time};
use plan::admission::NodeCapacity;

use crate::gaps::Gaps;
use crate::verdict::Bounds;

/// Invocations remembered for each core.
const RUNS_PER_CORE: usize = 4_096;

/// The order in which admission gives priorities: the earliest end that is promised, B + C, comes first.
pub(crate) const fn urgency(terms: &Guarantee) -> Duration {
    terms.start_within.saturating_add(terms.max_run_time)
}

/// From when on an invocation was to run, until it had ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    due: Time,
    ended: Time,
    urgency: Duration,
    /// How many of its core were written before it.
    number: u64,
}

/// The last invocations of a core whose records are written.
#[derive(Clone, Debug, Default)]
struct Row {
    /// In the order in which they ended. Records are written in nearly that order, so that one more belongs near the back, and
    /// the oldest lies near the front.
    by_end: VecDeque<Run>,
    /// How many were written, and how many of them are forgotten.
    written: u64,
    forgotten: u64,
}

impl Row {
    fn add(&mut self, due: Time, ended: Time, urgency: Duration) {
        if self.by_end.len() == RUNS_PER_CORE {
            let oldest = self.by_end.iter().position(|run| run.number == self.forgotten);
            self.by_end.remove(oldest.expect("invariant: what was written and is not forgotten is here"));
            self.forgotten += 1;
        }
        let place = self.by_end.partition_point(|run| run.ended <= ended);
        self.by_end.insert(place, Run { due, ended, urgency, number: self.written });
        self.written += 1;
    }

    /// Since when, up to `due`, there always was an invocation that was at least as urgent; some such instant before `enough` where
    /// the row reaches there. Looks at each remembered invocation once at most.
    fn busy_since(&self, due: Time, urgency: Duration, enough: Time) -> Time {
        let mut since = due;
        for run in self.by_end.iter().rev() {
            if run.ended < since || since < enough {
                break; // so did all that follow, or nothing before that matters
            }
            if run.urgency <= urgency {
                since = since.min(run.due);
            }
        }
        since
    }
}

/// The last invocations of every core.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs {
    cores: BTreeMap<u16, Row>,
}

impl Runs {
    pub(crate) const fn new() -> Self {
        Self { cores: BTreeMap::new() }
    }

    /// A record is written. Of more than are remembered, the oldest is forgotten.
    pub(crate) fn note(&mut self, record: &Invocation, urgency: Duration) {
        let Some(due) = Bounds::due(record).filter(|_| record.delivered.is_some()) else { return };
        self.cores.entry(record.core).or_default().add(due, record.ended, urgency);
    }

    fn busy_since(&self, core: u16, due: Time, urgency: Duration, enough: Time) -> Time {
        self.cores.get(&core).map_or(due, |row| row.busy_since(due, urgency, enough))
    }
}

/// Whether a gap before an invocation was due still delayed it.
///
/// Beside the unbroken row of invocations there is a limit. Derived: without gaps, a time in which a priority or a more urgent one
/// always has something to do is no longer than R + T. Where G of it was taken away, the work that comes in a time w is at most
/// A + U w with U the share of a core that admission gives away at most, so that w <= (A + G)/(1 - U), of which A/(1 - U) is
/// within R + T. So nothing is delayed that is due later than R + T + G/(1 - U) after the last gap.
pub(crate) fn reaches(gaps: &Gaps, runs: &Runs, record: &Invocation, (bounds, urgency): (Bounds, Duration)) -> bool {
    let Some(due) = Bounds::due(record) else { return false };
    let Some(enough) = gaps.first_end(record.core) else { return false };
    let since = runs.busy_since(record.core, due, urgency, enough);
    let (taken, last) = gaps.between(record.core, since, due);
    let Some(last) = last else { return false };
    let left = 1_000 - u32::from(NodeCapacity::CORE_LIMIT_THOUSANDTHS);
    let caught_up = bounds.response.saturating_add(bounds.tolerance).saturating_add(taken.saturating_mul(1_000) / left);
    due <= last + caught_up
}

#[cfg(test)]
mod tests {
    use journal::record::StartSeenBy;
    use model::{Class, End, InvocationId};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const BOUNDS: Bounds = Bounds { start_within: ms(10), response: ms(20), tolerance: ms(2) };

    fn record(core: u16, due: u64, ended: u64) -> Invocation {
        Invocation {
            id: InvocationId::from_random(u128::from(due)),
            function: "f".parse().unwrap(),
            generation: 1,
            sequence: 0,
            slot: Some(0),
            resumed: None,
            class: Class::Guaranteed,
            arrived: at(due),
            conforming: Some(at(due)),
            delivered: Some(at(due)),
            started: None,
            start_seen_by: StartSeenBy::Delivery,
            ended: at(ended),
            end: End::Succeeded,
            deadline: None,
            instance: None,
            core,
            cpu: Duration::ZERO,
            held: None,
            transfer: None,
            violation: None,
        }
    }

    /// Whether a gap of core 1 from 100 to 120 ms reaches an invocation of urgency 50 ms that is due then, behind these of
    /// core 1: due, ended, urgency.
    fn reached(due: u64, before: &[(u64, u64, u64)]) -> bool {
        let (mut gaps, mut runs) = (Gaps::new(), Runs::new());
        gaps.note(1, at(100), at(120));
        for (due, ended, urgency) in before {
            runs.note(&record(1, *due, *ended), ms(*urgency));
        }
        reaches(&gaps, &runs, &record(1, due, due + 30), (BOUNDS, ms(50)))
    }

    #[test]
    fn an_unbroken_row_of_invocations_carries_a_gap_on() {
        assert!(reached(130, &[(105, 131, 50)]));
        assert!(reached(150, &[(119, 135, 20), (130, 152, 50)]));
        assert!(reached(150, &[(130, 152, 50), (119, 135, 20)]));
        assert!(!reached(150, &[(119, 129, 20), (130, 152, 50)]));
    }

    #[test]
    fn without_work_between_them_a_gap_reaches_nothing() {
        assert!(!reached(121, &[]));
        assert!(!reached(121, &[(20, 99, 50)]));
    }

    #[test]
    fn work_that_is_less_urgent_delays_nobody() {
        assert!(!reached(130, &[(105, 131, 51)]));
    }

    #[test]
    fn what_is_due_after_the_core_must_have_caught_up_is_not_the_gaps() {
        // R + T + 20 ms / 0.15 after its end at 120.
        assert!(reached(120 + 22 + 133, &[(110, 500, 50)]));
        assert!(!reached(120 + 22 + 134, &[(110, 500, 50)]));
    }

    #[test]
    fn the_work_of_another_core_carries_nothing_on() {
        let (mut gaps, mut runs) = (Gaps::new(), Runs::new());
        gaps.note(1, at(100), at(120));
        runs.note(&record(2, 105, 131), ms(50));
        assert!(!reaches(&gaps, &runs, &record(1, 130, 160), (BOUNDS, ms(50))));
        assert!(!reaches(&gaps, &runs, &record(2, 130, 160), (BOUNDS, ms(50))));
    }

    /// Since when, up to `due`, there always was one among the last written that was at least as urgent: looked up without any order.
    fn busy_since_by_definition(written: &[(u64, u64, u64)], due: u64, urgency: u64) -> u64 {
        let mut since = due;
        let last = &written[written.len().saturating_sub(RUNS_PER_CORE)..];
        let before = |since: u64| last.iter().filter(move |run| run.2 <= urgency && run.0 < since && since <= run.1);
        while let Some(earliest) = before(since).map(|run| run.0).min() {
            since = earliest;
        }
        since
    }

    fn reached_by_definition(gaps: &Gaps, written: &[(u64, u64, u64)], due: u64, urgency: u64) -> bool {
        let since = busy_since_by_definition(written, due, urgency);
        let (taken, last) = gaps.between(1, at(since), at(due));
        last.is_some_and(|last| at(due) <= last + BOUNDS.response + BOUNDS.tolerance + taken.saturating_mul(1_000) / 150)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_gap_reaches_what_it_reaches_by_definition(
            // When each ends after the one before, and how long before its end it was due; urgency. Some are written out of order.
            runs in vec((-3_i64..12, 0_u64..40, 0_u64..4), 1..60),
            gaps_at in vec((0_u64..2_000, 1_u64..20), 0..6),
            fill in prop_oneof![Just(0), Just(RUNS_PER_CORE - 30), Just(RUNS_PER_CORE + 30)],
            asked in vec((0_u64..500, 0_u64..4), 1..8),
        ) {
            let (mut gaps, mut noted, mut written) = (Gaps::new(), Runs::new(), Vec::new());
            let mut now = 100_000_u64;
            for (after, before, urgency) in runs.iter().cycle().take(fill + runs.len()) {
                now = now.saturating_add_signed(*after);
                written.push((now - before, now, *urgency));
                noted.note(&record(1, now - before, now), ms(*urgency));
            }
            for (before, length) in gaps_at {
                let from = now.saturating_sub(before);
                gaps.note(1, at(from), at(from + length));
            }
            for (before, urgency) in asked {
                let due = now.saturating_sub(before);
                let reached = reaches(&gaps, &noted, &record(1, due, due + 30), (BOUNDS, ms(urgency)));
                prop_assert_eq!(reached, reached_by_definition(&gaps, &written, due, urgency));
                let since = noted.busy_since(1, at(due), ms(urgency), Time::ZERO);
                prop_assert_eq!(since, at(busy_since_by_definition(&written, due, urgency)));
            }
        }
    }
}
