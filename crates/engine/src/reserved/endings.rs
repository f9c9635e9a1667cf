//! Deliveries, bounds, ends, and the records with their verdicts.

use std::time::Duration;

use journal::record::Transfer;
use model::{Cause, End, InstanceId, InvocationId, Level, OnOverrun, Time};

use super::fleet::State;
use super::promise::{Facts, Missing, Promise, PromiseId};
use super::{Engine, Invocation, Timer, Unproven};
use crate::port::{Action, Placement, Refusal, Remark};
use crate::shadow;
use crate::verdict::{Bounds, started};

impl Engine {
    pub(super) fn deliver(&mut self, id: InvocationId, mut facts: Facts, instance: InstanceId, actions: &mut Vec<Action>) {
        let allowance = self.promises[&facts.promise].allowance(facts.due(), self.now, self.options.soft_patience);
        let known = self.instances.get_mut(&instance).expect("invariant: an idle or held instance is known");
        known.state = State::Busy { invocation: id };
        facts.core = known.core;
        facts.instance = Some(instance);
        facts.delivered = Some(self.now);
        let conforming = facts.slot.map(|slot| slot.conforming);
        actions.push(Action::Deliver { id, instance, allowance, conforming });
        self.timers.insert((allowance.until, Timer::Stop(id)));
        self.invocations.insert(id, Invocation::Running { facts, instance, until: allowance.until });
    }

    /// The invocation is with its instance.
    pub(super) fn delivered(&mut self, id: InvocationId, at: Time) {
        let now = self.now;
        if let Some(Invocation::Running { facts, .. }) = self.invocations.get_mut(&id)
            && facts.started.is_none()
        {
            facts.delivered = facts.delivered.map(|decided| at.clamp(decided, now.max(decided)));
        }
    }

    /// The handler was entered. The stamp is made in the function's process: it is believed between delivery and now only.
    pub(super) fn started(&mut self, id: InvocationId, at: Time) {
        let now = self.now;
        if let Some(Invocation::Running { facts, .. }) = self.invocations.get_mut(&id) {
            facts.started = facts.delivered.map(|delivered| at.clamp(delivered, now.max(delivered)));
        }
    }

    pub(super) fn ended(&mut self, id: InvocationId, end: End, cpu: Duration, actions: &mut Vec<Action>) {
        let Some((mut facts, instance)) = self.leave_instance(id) else { return };
        facts.cpu = facts.cpu.max(cpu);
        let home = self.home(instance);
        if let Some(known) = self.instances.get_mut(&instance) {
            known.state = State::Finishing { since: self.now };
            self.timers.insert((self.now + self.options.finish_limit, Timer::Finishing(instance)));
            // Best effort -> real time: the invocation that was demoted is over.
            if let Some(home) = home
                && known.placed == Placement::BestEffort
            {
                known.placed = home;
                actions.push(Action::Place { instance, on: home });
            }
        }
        if let Some(code) = self.code_of(instance) {
            code.restarts.worked();
        } else {
            self.kill(instance, actions); // its version was replaced, or its function removed
        }
        self.conclude(id, &facts, end, actions);
    }

    /// An instance answered long ago, and its next invocation has not been asked for since: it is replaced.
    pub(super) fn never_asked(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(State::Finishing { since }) = self.instances.get(&id).map(|known| known.state) else { return };
        self.lose(id, Some(since));
        self.died(id);
        actions.push(Action::Tell { instance: id, what: Remark::NeverAsked { within: self.options.finish_limit } });
        self.kill(id, actions);
    }

    /// The watch saw it exceed its own run time or CPU budget.
    pub(super) fn overran(&mut self, id: InvocationId, cpu: Duration, actions: &mut Vec<Action>) {
        let Some(Invocation::Running { facts, instance, .. }) = self.invocations.get_mut(&id) else { return };
        facts.overran = true;
        facts.cpu = facts.cpu.max(cpu);
        let instance = *instance;
        match self.promises[&facts.promise].terms.on_overrun {
            OnOverrun::Kill => self.stop(id, actions),
            OnOverrun::Demote => {
                let known = self.instances.get_mut(&instance).expect("invariant: a running invocation has its instance");
                if known.placed != Placement::BestEffort {
                    known.placed = Placement::BestEffort;
                    actions.push(Action::Place { instance, on: Placement::BestEffort });
                }
            }
        }
    }

    /// A core was taken away: what ran there could not, so the bounds of its invocations move by as much. The analysis counts
    /// time of the core, in which nothing else on it ran either. While the front's core is gone no result is taken, of any
    /// core. Time in which both were gone counts once.
    pub(super) fn missed(&mut self, core: u16, from: Time, until: Time) {
        for (id, invocation) in &mut self.invocations {
            if let Invocation::Running { facts, until: bound, .. } = invocation {
                let from = from.max(facts.delivered.unwrap_or(facts.arrived));
                let taken = self.gaps.fresh(core, facts.core, from, until);
                self.timers.remove(&(*bound, Timer::Stop(*id)));
                *bound += taken;
                self.timers.insert((*bound, Timer::Stop(*id)));
            }
        }
        self.gaps.note(core, from, until);
    }

    /// The node had its long input or result in its hands: its bounds move by what that took more than was known.
    pub(super) fn transferred(&mut self, id: InvocationId, so_far: Transfer) {
        let Some(Invocation::Running { facts, until: bound, .. }) = self.invocations.get_mut(&id) else { return };
        let moves = facts.transfer.get_or_insert_default();
        moves.so_far = so_far;
        let granted = so_far.whole().saturating_sub(moves.granted);
        moves.granted += granted;
        self.moving.insert((facts.function, id));
        if !granted.is_zero() {
            self.timers.remove(&(*bound, Timer::Stop(id)));
            *bound += granted;
            self.timers.insert((*bound, Timer::Stop(id)));
        }
    }

    /// It is at its bound: it is stopped, and its client told so. At level soft the response bound says nothing of what it used
    /// itself: that it overran is the watch's to say.
    pub(super) fn stop(&mut self, id: InvocationId, actions: &mut Vec<Action>) {
        if let Some(Invocation::Running { facts, .. }) = self.invocations.get_mut(&id) {
            facts.overran |= self.promises[&facts.promise].level == Level::Hard;
        }
        self.stop_as(id, End::Overran, actions);
    }

    fn stop_as(&mut self, id: InvocationId, end: End, actions: &mut Vec<Action>) {
        let Some((facts, instance)) = self.leave_instance(id) else { return };
        actions.push(Action::Fail { id, end });
        self.lose(instance, facts.delivered);
        self.died(instance);
        self.kill(instance, actions);
        self.conclude(id, &facts, end, actions);
    }

    /// The client went away: what runs is stopped, what waits leaves.
    pub(super) fn abandoned(&mut self, id: InvocationId, actions: &mut Vec<Action>) {
        match self.invocations.get(&id) {
            None => {}
            Some(Invocation::Running { .. }) => self.stop_as(id, End::Cancelled, actions),
            Some(Invocation::Queued { .. }) => {
                if let Some(queued) = self.unqueue(id) {
                    actions.push(Action::Fail { id, end: End::Cancelled });
                    self.turned_away(id, queued, End::Cancelled, actions);
                }
            }
            Some(Invocation::Waiting { .. }) => {
                if let Some(facts) = self.stop_waiting(id) {
                    actions.push(Action::Fail { id, end: End::Cancelled });
                    self.conclude(id, &facts, End::Cancelled, actions);
                }
            }
        }
    }

    /// No instance came in all the time it could wait.
    pub(super) fn give_up(&mut self, id: InvocationId, actions: &mut Vec<Action>) {
        let Some(facts) = self.stop_waiting(id) else { return };
        let (refusal, end) = match facts.deadline {
            // For input of a lease the record says refused: expired says that no input came.
            Some(deadline) => (Refusal::Expired { deadline }, if facts.held.is_some() { End::Refused } else { End::Expired }),
            None => (Refusal::Unstartable, End::Refused),
        };
        actions.push(Action::Refuse { id, refusal });
        self.conclude(id, &facts, end, actions);
    }

    /// Takes an invocation that waits for an instance out of its bay.
    pub(super) fn stop_waiting(&mut self, id: InvocationId) -> Option<Facts> {
        if !matches!(self.invocations.get(&id), Some(Invocation::Waiting { .. })) {
            return None;
        }
        let Some(Invocation::Waiting { facts, place, give_up }) = self.invocations.remove(&id) else { return None };
        self.timers.remove(&(give_up, Timer::GiveUp(id)));
        self.leave_bay(facts.function, place);
        Some(facts)
    }

    /// Takes a running invocation off its instance.
    pub(super) fn leave_instance(&mut self, id: InvocationId) -> Option<(Facts, InstanceId)> {
        if !matches!(self.invocations.get(&id), Some(Invocation::Running { .. })) {
            return None;
        }
        let Some(Invocation::Running { facts, instance, until }) = self.invocations.remove(&id) else { return None };
        self.timers.remove(&(until, Timer::Stop(id)));
        self.moving.remove(&(facts.function, id));
        Some((facts, instance))
    }

    /// Writes the record of an invocation, or holds it until the evidence for its verdict can have come.
    pub(super) fn conclude(&mut self, id: InvocationId, facts: &Facts, end: End, actions: &mut Vec<Action>) {
        let promise = &self.promises[&facts.promise];
        let ended = self.now.max(facts.arrived);
        let record = facts.record(id, promise, end, ended);
        let bounds = promise.bounds();
        let (late_start, late_end) = (bounds.late_start(&record), bounds.late_end(&record));
        if !late_start && !late_end {
            return self.write(facts.promise, record, actions);
        }
        let otherwise = if late_start { start_cause(facts, promise, end) } else { end_cause(facts, end) };
        let lost = match facts.waited {
            Some(Missing::Lost { from, until }) if late_start => Some((from, until)),
            Some(Missing::Lost { .. } | Missing::Unstarted | Missing::Transferring | Missing::Never) | None => None,
        };
        let in_line = !matches!(facts.waited, Some(Missing::Lost { .. } | Missing::Unstarted));
        let unproven = Unproven { record, promise: facts.promise, bounds, otherwise, lost, in_line };
        let number = self.number();
        self.unproven.insert(number, unproven);
        self.timers.insert((self.now + self.options.evidence_wait, Timer::Write(number)));
    }

    /// The evidence is in, or will not come.
    pub(super) fn write_unproven(&mut self, number: u64, actions: &mut Vec<Action>) {
        let Some(Unproven { mut record, promise, bounds, otherwise, lost, in_line }) = self.unproven.remove(&number) else {
            return;
        };
        let until = if bounds.late_end(&record) { record.ended } else { started(&record).unwrap_or(record.ended) };
        let overlaps = Bounds::due(&record).is_some_and(|due| self.gaps.overlap(record.core, due, until));
        // Whose own doing it is, or whose instance was lost, is not excused by what others left behind.
        let delayed = match otherwise {
            Cause::Bug | Cause::Unknown => in_line && self.behind(&record, (promise, bounds)),
            Cause::Steal | Cause::Overrun | Cause::Function | Cause::HostCall => false,
        };
        let stolen = overlaps || delayed;
        // Its instance went while its core was away: whether the function or that is to blame, nobody knows. Steal it is only
        // where the gap lies in the violation itself, which is what an audit can see.
        let disturbed = lost.is_some_and(|(from, until)| self.gaps.overlap(record.core, from, until));
        record.violation = Some(match (stolen, disturbed) {
            (true, _) => Cause::Steal,
            (false, true) => Cause::Unknown,
            (false, false) => otherwise,
        });
        self.write(promise, record, actions);
    }

    /// Whether its core had not caught up after a gap when it was due.
    fn behind(&self, record: &journal::record::Invocation, (promise, bounds): (PromiseId, Bounds)) -> bool {
        shadow::reaches(&self.gaps, &self.runs, record, (bounds, shadow::urgency(&self.promises[&promise].terms)))
    }

    fn write(&mut self, id: u64, record: journal::record::Invocation, actions: &mut Vec<Action>) {
        let promise = self.promises.get_mut(&id).expect("invariant: a promise lives as long as its open invocations");
        promise.count(&record);
        self.runs.note(&record, shadow::urgency(&promise.terms));
        if !promise.current && promise.open == 0 {
            self.promises.remove(&id);
        }
        actions.push(Action::Record(Box::new(record)));
    }
}

/// Why a start was late, where no probe saw a gap.
fn start_cause(facts: &Facts, promise: &Promise, end: End) -> Cause {
    let input = facts.transfer.as_ref().map_or(Duration::ZERO, |moves| moves.so_far.input);
    let limit = facts.due() + promise.bounds().start_within + input;
    // Without real-time classes every program of the machine may keep the lane, and an instance at work, from their cores.
    let ours = match promise.level {
        Level::Hard => Cause::Bug,
        Level::Soft => Cause::Unknown,
    };
    match (facts.waited, facts.delivered) {
        (Some(Missing::Lost { .. } | Missing::Transferring), _) => Cause::Function,
        (Some(Missing::Unstarted), _) => Cause::Unknown,
        (Some(Missing::Never), _) => ours,
        // The lane itself handed it over too late.
        (None, Some(delivered)) if limit < delivered => ours,
        // Handed over in time; what happened until the handler was entered, nobody saw.
        (None, _) => match end {
            End::Crashed | End::Cancelled => Cause::Function,
            End::Succeeded | End::Failed | End::Overran | End::Expired | End::Refused | End::Demoted => Cause::Unknown,
        },
    }
}

/// Why an end was late although the start was not, where no probe saw a gap.
fn end_cause(facts: &Facts, end: End) -> Cause {
    match end {
        End::Overran | End::Succeeded | End::Failed if facts.overran => Cause::Overrun,
        End::Crashed | End::Cancelled => Cause::Function,
        End::Overran | End::Succeeded | End::Failed | End::Expired | End::Refused | End::Demoted => Cause::Unknown,
    }
}

#[cfg(test)]
mod cause_tests {
    use super::*;

    #[test]
    fn a_late_end_of_a_demoted_overrun_is_its_own_doing() {
        let mut facts = facts();
        assert_eq!(end_cause(&facts, End::Succeeded), Cause::Unknown);
        assert_eq!(end_cause(&facts, End::Crashed), Cause::Function);
        facts.overran = true;
        assert_eq!(end_cause(&facts, End::Succeeded), Cause::Overrun);
    }

    fn facts() -> Facts {
        Facts {
            function: model::FunctionKey(1),
            promise: 1,
            sequence: 0,
            slot: None,
            arrived: Time::ZERO,
            deadline: None,
            delivered: None,
            started: None,
            instance: None,
            core: 0,
            cpu: Duration::ZERO,
            held: None,
            transfer: None,
            overran: false,
            waited: None,
        }
    }
}
