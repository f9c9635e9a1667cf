//! The slots of one pacer, taken again from the records.

use std::collections::{BTreeMap, VecDeque};

use dispatch::{Pacer, Slot};
use journal::record::Invocation;
use model::{Burst, FunctionName, Rate, Time};

use super::UNSETTLED;
use super::report::{Contradiction, Problem};

/// Rate and burst of a rate class as one of its functions was given them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) rate: Rate,
    pub(super) burst: Burst,
    /// Later ones have higher numbers.
    pub(super) order: u64,
}

/// Missing slots that a pacer is moved by; beyond them it is judged more mildly.
const MOVED: u64 = 100_000;

/// Whether all records of a boot are at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    Complete,
    /// The node did not stop in order, still runs, or dropped records: the last slots may be missing.
    Open,
}

/// Claims that were not checked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Left {
    /// Nobody can.
    pub(super) unchecked: u64,
    /// The records that come next can.
    pub(super) open: u64,
}

/// A pacer on its way through the records.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pacer: Pacer,
    order: u64,
    /// Rate and burst as a member of its class was given them last.
    given: (Rate, Burst),
    /// The slot to be taken next.
    next: u64,
    /// Slots of which an earlier one has not come yet.
    ahead: BTreeMap<u64, Claim>,
    /// Conforming starts of the slots taken, and when the next slot opened after each.
    history: VecDeque<(Time, Time)>,
    forgotten: bool,
    /// When slot 0 opened.
    opened: Time,
    /// Those turned away after the last slot taken: what they met is known when the next slot comes.
    turned_away: BTreeMap<(Time, FunctionName, u64), Who>,
    /// Slots are missing, or terms changed in between: the pacer may be later than recomputed, not earlier.
    inexact: bool,
    unchecked: u64,
}

#[derive(Clone, Debug)]
struct Claim {
    who: Who,
    arrived: Time,
    conforming: Time,
    resumed: Option<Time>,
    /// Those of the class when it was taken.
    terms: Option<Terms>,
}

#[derive(Clone, Debug)]
struct Who {
    function: FunctionName,
    generation: u64,
    sequence: u64,
}

impl Line {
    pub(super) const fn new(pacer: Pacer, order: u64) -> Self {
        let given = (pacer.rate(), pacer.burst());
        Self {
            pacer,
            order,
            given,
            next: 0,
            ahead: BTreeMap::new(),
            history: VecDeque::new(),
            forgotten: false,
            opened: Time::ZERO,
            turned_away: BTreeMap::new(),
            inexact: false,
            unchecked: 0,
        }
    }

    /// A member of its class was given these terms. Whenever the class goes over to others, the pacer rounds what it owes, and those
    /// turned away meet it changed; no slot need be taken under them, so that the change is known from here only.
    pub(super) fn given(&mut self, rate: Rate, burst: Burst) {
        self.inexact |= self.given != (rate, burst);
        self.given = (rate, burst);
    }

    /// A slot of a class was taken under these terms. All members of a class change at one instant, between two slots; when that
    /// was is not in the records, so that from a change on only slots that are too early can be told.
    fn under(&mut self, terms: Terms) {
        if self.order < terms.order && (self.pacer.rate(), self.pacer.burst()) != (terms.rate, terms.burst) {
            self.pacer.change(terms.rate, terms.burst);
            self.inexact = true;
        }
        self.order = self.order.max(terms.order);
    }

    /// Takes the slot of a record, or checks that there was none for it.
    pub(super) fn take(&mut self, record: &Invocation, terms: Option<Terms>) -> Vec<Contradiction> {
        let who = Who { function: record.function.clone(), generation: record.generation, sequence: record.sequence };
        let mut problems = Vec::new();
        match (record.slot, record.conforming) {
            (Some(slot), Some(conforming)) => {
                // Input for a lease came later; its slot was taken when the lease was given, which is its conforming start.
                let arrived = if record.held.is_some() { conforming } else { record.arrived };
                let claim = Claim { who: who.clone(), arrived, conforming, resumed: record.resumed, terms };
                if slot < self.next || self.ahead.insert(slot, claim).is_some() {
                    problems.push(who.contradicts(Problem::SlotTwice { slot }));
                }
                self.advance(&mut problems);
                while UNSETTLED < self.ahead.len() {
                    self.skip(&mut problems);
                }
            }
            (None, _) => self.turned_away(record.arrived, who, &mut problems),
            (Some(_), None) => {} // told as a contradiction of its fields
        }
        problems
    }

    /// No more records come. Says what contradicts, and how many claims were not checked.
    pub(super) fn close(mut self, tail: Tail) -> (Vec<Contradiction>, Left) {
        let mut problems = Vec::new();
        if tail == Tail::Complete {
            while !self.ahead.is_empty() {
                self.skip(&mut problems);
            }
            // Without any slot the time it took over from the generation before is not known.
            self.inexact |= self.next == 0;
            self.settle(Time::MAX, &mut problems);
        }
        (problems, Left { unchecked: self.unchecked, open: u64::try_from(self.turned_away.len()).unwrap_or(u64::MAX) })
    }

    fn advance(&mut self, problems: &mut Vec<Contradiction>) {
        while let Some(claim) = self.ahead.remove(&self.next) {
            self.apply(&claim, problems);
            self.next += 1;
        }
    }

    /// Gives up the slots that are missing before the next one that is there.
    fn skip(&mut self, problems: &mut Vec<Contradiction>) {
        if let Some(slot) = self.ahead.keys().next() {
            // Each of them moved the pacer by one interval at least, from wherever it was.
            for _ in self.next..(*slot).min(self.next.saturating_add(MOVED)) {
                self.pacer.release(Time::MAX, Time::ZERO);
            }
            self.next = *slot;
            self.inexact = true;
        }
        self.advance(problems);
    }

    fn apply(&mut self, claim: &Claim, problems: &mut Vec<Contradiction>) {
        if let (0, Some(tat)) = (self.next, claim.resumed) {
            self.pacer = Pacer::resumed(self.pacer.rate(), self.pacer.burst(), tat);
        }
        if let Some(terms) = claim.terms {
            self.under(terms);
        }
        if self.next == 0 {
            self.opened = self.pacer.next_conforming();
        }
        self.settle(claim.conforming, problems);
        let recomputed = self.pacer.next_conforming().max(claim.arrived);
        let wrong = if self.inexact { claim.conforming < recomputed } else { claim.conforming != recomputed };
        if wrong {
            let problem = Problem::Conforming { recorded: claim.conforming, recomputed };
            problems.push(claim.who.contradicts(problem));
        }
        let taken = self.pacer.release(recomputed, claim.arrived);
        debug_assert_eq!(taken, Slot::Taken { conforming: recomputed }, "a slot opens at its conforming start");
        if self.history.len() == UNSETTLED {
            self.history.pop_front();
            self.forgotten = true;
        }
        self.history.push_back((recomputed, self.pacer.next_conforming()));
    }

    /// One was turned away at `at`: no slot may have conformed then.
    fn turned_away(&mut self, at: Time, who: Who, problems: &mut Vec<Contradiction>) {
        let after = self.history.partition_point(|(conforming, _)| *conforming <= at);
        if after == self.history.len() {
            // The slots it met may not all have come yet.
            if self.turned_away.len() == UNSETTLED {
                self.turned_away.pop_first();
                self.unchecked += 1;
            }
            self.turned_away.insert((at, who.function.clone(), who.sequence), who);
            return;
        }
        match after.checked_sub(1).and_then(|index| self.history.get(index)) {
            Some((_, open)) => self.check_excess(at, *open, &who, problems),
            None if self.forgotten => self.unchecked += 1,
            None => self.check_excess(at, self.opened, &who, problems),
        }
    }

    /// Checks those turned away before `until` against the pacer as it is: the slots before them have all been taken.
    fn settle(&mut self, until: Time, problems: &mut Vec<Contradiction>) {
        let open = self.pacer.next_conforming();
        while let Some(entry) = self.turned_away.first_entry().filter(|entry| entry.key().0 < until) {
            let ((at, _, _), who) = entry.remove_entry();
            self.check_excess(at, open, &who, problems);
        }
    }

    fn check_excess(&mut self, at: Time, open: Time, who: &Who, problems: &mut Vec<Contradiction>) {
        if self.inexact {
            self.unchecked += 1;
        } else if open <= at {
            problems.push(who.contradicts(Problem::ExcessConformed { at, conforming_since: open }));
        }
    }
}

impl Who {
    fn contradicts(&self, problem: Problem) -> Contradiction {
        let (function, generation) = (Some(self.function.clone()), self.generation);
        Contradiction { function, generation, sequence: Some(self.sequence), problem }
    }
}
