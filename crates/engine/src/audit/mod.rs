//! Recomputes from the records alone whether promises were kept.
//!
//! The audit trusts nothing the lane concluded: it takes the slots of every pacer again, in their order, from the recorded
//! arrivals; it judges every start and end against the terms that were given; it looks for the probe's gap behind every
//! claim of steal; it counts what is missing; and it compares its own counts with the live counters. That the records are
//! the ones the node wrote is what their hash chain shows (`journal::chain`); this is about what they say.
//!
//! It reads record after record and keeps, for each function, a bounded amount of what it has not been able to settle yet
//! (records come in the order in which invocations ended, not in which they began). What falls out of these bounds is
//! counted as unchecked and never as kept.

mod line;
mod numbers;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use dispatch::Pacer;
use journal::record::{Counters, GuaranteeGiven, Invocation, Record};
use model::{Cause, Class, FunctionName, Pacing, RateClassName, Time};

use self::line::{Left, Line, Tail, Terms};
use self::numbers::Numbers;
pub use self::report::{Contradiction, Finding, Problem, Report, Verdict};
use crate::gaps::Gaps;
use crate::shadow::{self, Runs};
use crate::verdict::{Bounds, count, started};

/// Numbers, slots, claims or records that may be unsettled at once, for each function and kind.
const UNSETTLED: usize = 4_096;
/// Contradictions that are listed; all are counted.
const LISTED: usize = 1_000;
/// Generations of one function that can still receive records.
const GENERATIONS: usize = 8;
/// Bounds of one generation that its records may still have been judged by. A lane goes over to new ones after they were written:
/// a little later, or once the instances that they ask for are there.
const GIVEN: usize = 16;

/// The audit of one node's records.
#[derive(Debug, Default)]
pub struct Audit {
    report: Report,
    phase: Phase,
    /// The functions of this boot, and their generations.
    promises: BTreeMap<(FunctionName, u64), Promise>,
    classes: BTreeMap<RateClassName, Line>,
    /// Counts the changes of terms, to tell newer ones from older ones.
    given: u64,
    gaps: Gaps,
    runs: Runs,
    /// Steal without a gap so far; the gap may be written later.
    steals: VecDeque<Invocation>,
    /// Records whose terms are not written yet.
    early: VecDeque<Invocation>,
    /// The end of the record that was written last.
    latest: Time,
    /// Records were dropped in this boot.
    lost: bool,
}

/// Where the records are in the life of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Before,
    Running,
    /// It stopped in order.
    Stopped,
}

#[derive(Debug)]
struct Promise {
    /// Those given last come last; there is at least one.
    given: VecDeque<Bounds>,
    urgency: Duration,
    has_deadline: bool,
    numbers: Numbers,
    counters: Counters,
    /// Arrivals that the last live counters tell of and records do not.
    unwritten: u64,
    /// Given up, or replaced; what still ran may be recorded yet.
    ended: bool,
    pacing: Paced,
}

#[derive(Debug)]
enum Paced {
    Own(Box<Line>),
    Class(RateClassName, Terms),
}

impl Audit {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next record.
    pub fn record(&mut self, record: &Record) {
        match record {
            Record::NodeStarted(_) => {
                self.end_boot();
                self.report.boots += 1;
                self.phase = Phase::Running;
            }
            Record::GuaranteeGiven(given) => self.given(given),
            Record::GuaranteeEnded(ended) => {
                if let Some(promise) = self.promises.get_mut(&(ended.function.clone(), ended.generation)) {
                    promise.ended = true;
                }
            }
            Record::ToleranceRaised { .. } => {}
            Record::Invocation(invocation) => self.invocation(invocation),
            Record::ProbeGap { core, from, until } => self.gap(*core, *from, *until),
            Record::Lost { records, .. } => {
                self.report.lost_records += records;
                self.lost = true;
            }
            Record::Counters { functions, .. } => {
                for live in functions {
                    self.compare(live);
                }
            }
            Record::NodeStopped { .. } => self.phase = Phase::Stopped,
        }
    }

    /// What the records show.
    #[must_use]
    pub fn finish(mut self) -> Report {
        self.report.running_at_end = self.phase == Phase::Running;
        self.end_boot();
        self.report
    }

    /// The node started, or the records end: what is unsettled stays so.
    fn end_boot(&mut self) {
        self.report.unclean_stops += u64::from(self.phase == Phase::Running && !self.report.running_at_end);
        self.retry_steals();
        while let Some(record) = self.steals.pop_front() {
            self.unsupported(&record, Problem::StealWithoutGap { core: record.core });
        }
        while let Some(record) = self.early.pop_front() {
            self.unsupported(&record, Problem::NoTerms);
        }
        let tail = if self.phase == Phase::Stopped && !self.lost { Tail::Complete } else { Tail::Open };
        for line in std::mem::take(&mut self.classes).into_values() {
            self.close_line(line, tail);
        }
        for (key, promise) in std::mem::take(&mut self.promises) {
            self.close(key, promise, tail);
        }
        self.gaps = Gaps::default();
        self.runs = Runs::default();
        self.latest = Time::ZERO;
        self.lost = false;
    }

    fn close(&mut self, key: (FunctionName, u64), promise: Promise, tail: Tail) {
        if let Paced::Own(line) = promise.pacing {
            self.close_line(*line, tail);
        }
        let open = promise.numbers.close();
        self.report.unwritten += promise.unwritten.saturating_sub(open);
        // While the node runs, a number that has not come belongs to an invocation that has not ended.
        let missing = if self.report.running_at_end { 0 } else { open };
        self.report.add(key, &promise.counters, missing);
    }

    fn close_line(&mut self, line: Line, tail: Tail) {
        let (problems, Left { unchecked, open }) = line.close(tail);
        self.report.unchecked_claims += unchecked;
        self.report.open_claims += open;
        self.note_all(problems);
    }

    fn given(&mut self, given: &GuaranteeGiven) {
        self.given += 1;
        let key = (given.function.clone(), given.generation);
        let bounds =
            Bounds { start_within: given.terms.start_within, response: given.response_bound, tolerance: given.tolerance };
        match self.promises.get_mut(&key) {
            Some(known) if !known.ended => {
                return known.give(bounds); // the same terms with bounds that were analysed anew
            }
            // A function of the same name was removed and deployed again: it counts from the beginning.
            Some(_) => {
                if let Some(promise) = self.promises.remove(&key) {
                    self.close(key.clone(), promise, Tail::Complete);
                }
            }
            None => {}
        }
        let pacing = match (&given.terms.pacing, &given.rate_class) {
            (Pacing::Own { rate, burst }, _) => Paced::Own(Box::new(Line::new(Pacer::new(*rate, *burst), self.given))),
            (Pacing::Shared(name), Some(class)) => {
                let terms = Terms { rate: class.rate, burst: class.burst, order: self.given };
                let pacer = || Line::new(Pacer::new(class.rate, class.burst), terms.order);
                self.classes.entry(name.clone()).or_insert_with(pacer).given(class.rate, class.burst);
                Paced::Class(name.clone(), terms)
            }
            (Pacing::Shared(_), None) => return self.report.note(Contradiction::of_terms(&key, Problem::NoTerms)),
        };
        let counters = Counters { function: key.0.to_string(), generation: key.1, ..Counters::default() };
        let has_deadline = given.terms.deadline.is_some();
        let urgency = shadow::urgency(&given.terms);
        let numbers = Numbers::default();
        let given = VecDeque::from([bounds]);
        let promise = Promise { given, urgency, has_deadline, numbers, counters, unwritten: 0, ended: false, pacing };
        self.promises.insert(key.clone(), promise);
        self.close_oldest(&key.0);
        self.retry_early(&key);
    }

    /// Old generations receive no more records: those that ran are long over.
    fn close_oldest(&mut self, function: &FunctionName) {
        let range = (function.clone(), 0)..=(function.clone(), u64::MAX);
        let generations: Vec<u64> = self.promises.range(range).map(|((_, generation), _)| *generation).collect();
        for generation in generations.iter().take(generations.len().saturating_sub(GENERATIONS)) {
            let key = (function.clone(), *generation);
            if let Some(promise) = self.promises.remove(&key) {
                self.close(key, promise, Tail::Complete);
            }
        }
    }

    fn retry_early(&mut self, key: &(FunctionName, u64)) {
        for record in std::mem::take(&mut self.early) {
            if (&record.function, record.generation) == (&key.0, key.1) {
                self.judge(&record);
            } else {
                self.early.push_back(record);
            }
        }
        self.retry_steals();
    }

    /// A gap was written, or the records that it reached a steal through.
    fn retry_steals(&mut self) {
        for record in std::mem::take(&mut self.steals) {
            if !self.proven_steal(&record) {
                self.steals.push_back(record);
            }
        }
    }

    fn invocation(&mut self, record: &Invocation) {
        // One that waited for evidence was written later than it ended.
        if record.violation.is_none() {
            self.in_order(record);
        }
        self.judge(record);
    }

    /// One lane writes the records of invocations, in the order of their ends. Other records carry other threads' stamps.
    fn in_order(&mut self, record: &Invocation) {
        if record.ended < self.latest && !self.lost {
            self.contradict(record, Problem::OutOfOrder { at: record.ended, after: self.latest });
        }
        self.latest = self.latest.max(record.ended);
    }

    fn judge(&mut self, record: &Invocation) {
        let Some(promise) = self.promises.get_mut(&(record.function.clone(), record.generation)) else {
            if self.early.len() == UNSETTLED {
                self.contradict(record, Problem::NoTerms);
            } else {
                self.early.push_back(record.clone());
            }
            return;
        };
        promise.count(record);
        let urgency = promise.urgency;
        let mut problems = Vec::new();
        if !promise.numbers.note(record.sequence) {
            problems.push(Problem::SequenceTwice);
        }
        check_shape(promise, record, &mut problems);
        problems.extend(promise.check_verdict(record));
        let line = match &mut promise.pacing {
            Paced::Own(line) => Some((&mut **line, None)),
            Paced::Class(name, terms) => self.classes.get_mut(name).map(|line| (line, Some(*terms))),
        };
        let found = line.map(|(line, terms)| line.take(record, terms)).unwrap_or_default();
        for problem in problems {
            self.contradict(record, problem);
        }
        self.note_all(found);
        self.check_steal(record);
        self.runs.note(record, urgency);
    }

    fn check_steal(&mut self, record: &Invocation) {
        if record.violation != Some(Cause::Steal) || self.proven_steal(record) {
            return;
        }
        if self.steals.len() == UNSETTLED
            && let Some(oldest) = self.steals.pop_front()
        {
            self.unsupported(&oldest, Problem::StealWithoutGap { core: oldest.core });
        }
        self.steals.push_back(record.clone());
    }

    /// A gap of its core lies between its due start and its start, or its end where that was what came late; or the core had not
    /// caught up after one when it was due.
    fn proven_steal(&self, record: &Invocation) -> bool {
        let Some(promise) = self.promises.get(&(record.function.clone(), record.generation)) else { return false };
        let under = |bounds: &Bounds| {
            let until = if bounds.late_end(record) { record.ended } else { started(record).unwrap_or(record.ended) };
            Bounds::due(record).is_some_and(|due| self.gaps.overlap(record.core, due, until))
                || shadow::reaches(&self.gaps, &self.runs, record, (*bounds, promise.urgency))
        };
        promise.given.iter().any(under)
    }

    fn gap(&mut self, core: u16, from: Time, until: Time) {
        self.gaps.note(core, from, until);
        self.retry_steals();
    }

    /// The live counters say what the records before them say.
    fn compare(&mut self, live: &Counters) {
        let key = live.function.parse::<FunctionName>().ok().map(|name| (name, live.generation));
        let promise = key.as_ref().and_then(|key| self.promises.get_mut(key));
        let none = Counters { function: live.function.clone(), generation: live.generation, ..Counters::default() };
        let ours = match promise {
            Some(promise) => {
                promise.unwritten = live.arrivals.saturating_sub(promise.counters.arrivals);
                &promise.counters
            }
            None => &none,
        };
        // Fewer records than arrivals: some are missing, and are counted as such when no more can come.
        if ours == live || ours.arrivals < live.arrivals {
            return;
        }
        let problem = Problem::Counters { live: Box::new(live.clone()), records: Box::new(ours.clone()) };
        let function = key.map(|(name, _)| name);
        self.report.note(Contradiction { function, generation: live.generation, sequence: None, problem });
    }

    /// What a record rests on did not come. Where records were dropped, it may have been among them.
    fn unsupported(&mut self, record: &Invocation, problem: Problem) {
        if self.lost {
            self.report.unchecked_claims += 1;
        } else {
            self.contradict(record, problem);
        }
    }

    fn contradict(&mut self, record: &Invocation, problem: Problem) {
        self.report.note(Contradiction::of(record, problem));
    }

    fn note_all(&mut self, contradictions: Vec<Contradiction>) {
        for contradiction in contradictions {
            self.report.note(contradiction);
        }
    }
}

impl Promise {
    fn give(&mut self, bounds: Bounds) {
        if self.given.back() == Some(&bounds) {
            return;
        }
        if self.given.len() == GIVEN {
            self.given.pop_front();
        }
        self.given.push_back(bounds);
    }

    fn count(&mut self, record: &Invocation) {
        // Of the bounds, only that of the start is counted by, and terms that change it are another generation.
        if let Some(bounds) = self.given.back() {
            count(&mut self.counters, *bounds, record);
        }
    }

    /// The verdict of a record must be the one of some bounds that were given before it was written.
    fn check_verdict(&self, record: &Invocation) -> Option<Problem> {
        let late = |bounds: &Bounds| bounds.late_start(record) || bounds.late_end(record);
        match record.violation {
            None => self.given.iter().all(late).then_some(Problem::LateUnmarked),
            Some(_) => (!self.given.iter().any(late)).then_some(Problem::MarkedButKept),
        }
    }
}

/// What a record says of itself must fit together.
fn check_shape(promise: &Promise, record: &Invocation, problems: &mut Vec<Problem>) {
    let classed = match record.class {
        Class::Guaranteed => record.slot.is_some() && record.conforming.is_some(),
        Class::BestEffort => record.slot.is_none() && record.conforming.is_none() && record.delivered.is_none(),
    };
    let begun = record.delivered.is_none_or(|delivered| delivered <= record.ended)
        && record
            .started
            .is_none_or(|start| record.delivered.is_some_and(|delivered| delivered <= start) && start <= record.ended);
    let unused_lease = record.held.is_some() && record.delivered.is_none();
    // What the node had in its hands, it had while the invocation was with it, and no time counts twice.
    let since = record.ended.since(record.arrived);
    let moved = record.transfer.as_ref().is_none_or(|it| record.delivered.is_some() && it.whole() <= since);
    if !moved
        || !classed
        || !begun
        || record.ended < record.arrived
        || (promise.has_deadline && record.deadline.is_none() && !unused_lease)
    {
        problems.push(Problem::Shape);
    }
}

/// Audits records that are all at hand.
pub fn audit<'a>(records: impl IntoIterator<Item = &'a Record>) -> Report {
    let mut audit = Audit::new();
    for record in records {
        audit.record(record);
    }
    audit.finish()
}
