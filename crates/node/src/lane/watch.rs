//! Watches over running invocations: whoever used up its own run time or CPU budget has overrun.
//!
//! A watch wakes when the budget could be used up at the earliest, reads what was really used, and wakes again after the
//! rest. The lane's thread outranks the instances, so it is there in time; a well-behaved invocation ends before its first
//! wake-up and costs nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::port::{Allowance, Event};
use model::{InstanceId, InvocationId, Time};

use super::core::Core;
use super::machine::Machine;
use crate::budget::Budget;

/// By how much an invocation may exceed its CPU budget at most before it is stopped, for which admission has a term: the shortest
/// rest between two looks, and the pauses in which what it sent is read.
pub(crate) const SAMPLING: Duration = Duration::from_micros(200);
/// The shortest rest after which an invocation is looked at again.
const REST: Duration = Duration::from_micros(155);
/// What an invocation has sent is read before it is stopped: it may be the result, in time. Its connection is served within one or two
/// turns of the lane, and each of these pauses is one at least. Whoever keeps sending gains no more.
const UNREAD_PAUSE: Duration = Duration::from_micros(15);
const UNREAD_PAUSES: u8 = 3;

/// When to look again at one that waits for its core. Its admitted response bound ends it whatever the looks say.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Looks at what the threads of an invocation do, per second and at once, that admission accounts for: each reads a directory
/// and up to 17 files.
pub(crate) const STATES_PER_SECOND: u32 = 100;
pub(crate) const STATES_AT_ONCE: u32 = 2;

/// Invocations looked at in one go, before others come.
const LOOKED_AT: usize = 16;

/// What an invocation had used when it was delivered, and what it may use.
#[derive(Clone, Debug)]
struct Watch {
    at: Time,
    instance: InstanceId,
    core: Option<u16>,
    delivered: Time,
    cpu_before: Duration,
    pushed_aside_before: Duration,
    stolen_before: Duration,
    run_time: Duration,
    cpu_budget: Duration,
    /// The look before this one found its time over, and nothing of it waiting for a core.
    resting: bool,
    /// This look has its turn to see what the threads do.
    booked: bool,
    /// Pauses there were already because something of it lay unread.
    pauses: u8,
}

/// What an invocation used until it was looked at.
#[derive(Clone, Copy, Debug)]
struct Used {
    cpu: Duration,
    /// As far as the kernel has counted it: a wait is counted when it ends.
    pushed_aside: Duration,
    stolen: Duration,
    /// The lane had its long input or result in its hands, and for how long it will have them at least.
    transfer: Duration,
    ahead: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Overran,
    Look { at: Time, resting: bool },
}

/// The own time of an invocation, from its delivery on, as far as it is needed after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Own {
    core: Option<u16>,
    delivered: Time,
    pushed_aside_before: Duration,
    stolen_before: Duration,
    /// Of its input and result.
    transfer: Duration,
    run_time: Duration,
}

impl Own {
    #[cfg(test)]
    pub(super) fn begun(delivered: Time, run_time: Duration) -> Self {
        let none = Duration::ZERO;
        Self { core: None, delivered, pushed_aside_before: none, stolen_before: none, transfer: none, run_time }
    }

    pub(super) fn core(&self) -> Option<u16> {
        self.core
    }

    /// Time since the delivery that was others', given what its program was pushed aside and its core taken away in all.
    pub(super) fn others(&self, pushed_aside: Duration, stolen: Duration) -> Duration {
        let pushed_aside = pushed_aside.saturating_sub(self.pushed_aside_before);
        pushed_aside + stolen.saturating_sub(self.stolen_before) + self.transfer
    }

    pub(super) fn left(&self, now: Time, others: Duration) -> Duration {
        self.run_time.saturating_sub(now.since(self.delivered).saturating_sub(others))
    }
}

impl Watch {
    /// What is left to it of its CPU budget, and until one of its bounds can be reached.
    fn left(&self, now: Time, used: Used) -> (Duration, Duration) {
        let others = used.pushed_aside + used.stolen + used.transfer;
        let own = now.since(self.delivered).saturating_sub(others);
        // A machine that does not know what was stolen from it counts it as used.
        let cpu_left = self.cpu_budget.saturating_sub(used.cpu.saturating_sub(used.stolen));
        (cpu_left, (self.run_time.saturating_sub(own) + used.ahead).min(cpu_left))
    }

    /// `wants_its_core` says whether something of it waits for a core; it is asked where that decides.
    fn judge(&self, now: Time, used: Used, wants_its_core: impl FnOnce() -> bool) -> Verdict {
        let (cpu_left, rest) = self.left(now, used);
        if !rest.is_zero() {
            return Verdict::Look { at: now + rest.max(REST), resting: false };
        }
        if cpu_left.is_zero() {
            return Verdict::Overran;
        }
        // What waits for its core right now is pushed aside right now, which the kernel counts only once it runs again.
        // Before it can have used its CPU budget up, another look would say the same.
        if wants_its_core() {
            return Verdict::Look { at: now + cpu_left.max(LOOK_AGAIN), resting: false };
        }
        // Where this thread does not outrank the instance, it may have waited and run between the two looks at it, and its
        // answer may lie unread. The next look counts that wait, and until then its answer is read.
        if self.resting { Verdict::Overran } else { Verdict::Look { at: now + REST, resting: true } }
    }
}

#[derive(Debug)]
pub(crate) struct Watches {
    states: Budget,
    by_id: BTreeMap<InvocationId, Watch>,
    by_time: BTreeMap<(Time, InvocationId), ()>,
}

impl Default for Watches {
    fn default() -> Self {
        let states = Budget::new(STATES_PER_SECOND, STATES_AT_ONCE);
        Self { states, by_id: BTreeMap::new(), by_time: BTreeMap::new() }
    }
}

impl Watches {
    /// Whether a look has to wait for its turn to see what the threads do, and until when.
    fn waits_for_turn(&mut self, now: Time, watch: &Watch, used: Used) -> Option<Time> {
        let (cpu_left, rest) = watch.left(now, used);
        if watch.booked || 0 < watch.pauses || !rest.is_zero() || cpu_left.is_zero() {
            return None;
        }
        Some(self.states.book(now)).filter(|from| now < *from)
    }

    #[cfg(test)]
    pub(super) fn pauses(&self, id: InvocationId) -> Option<u8> {
        self.by_id.get(&id).map(|watch| watch.pauses)
    }

    /// Whether one look at what threads do can be afforded now.
    pub(super) fn may_see_states(&mut self, now: Time) -> bool {
        self.states.spend(now).is_ok()
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.by_time.keys().next().map(|(at, _)| *at)
    }

    /// Takes the watches that are due, up to [`LOOKED_AT`]; the others are due at once again.
    pub(super) fn due(&mut self, now: Time) -> Vec<InvocationId> {
        let mut due = Vec::new();
        while let Some(entry) = self.by_time.first_entry() {
            let (at, id) = *entry.key();
            if now < at || LOOKED_AT <= due.len() {
                break;
            }
            entry.remove();
            due.push(id);
        }
        due
    }

    pub(super) fn remove(&mut self, id: InvocationId) {
        if let Some(watch) = self.by_id.remove(&id) {
            self.by_time.remove(&(watch.at, id));
        }
    }

    fn set(&mut self, id: InvocationId, watch: Watch) {
        self.by_time.insert((watch.at, id), ());
        self.by_id.insert(id, watch);
    }
}

impl<M: Machine> Core<M> {
    /// Begins to watch a delivered invocation, whose instance had used `cpu` until then.
    pub(super) fn watch(&mut self, now: Time, (id, instance): (InvocationId, InstanceId), allowance: Allowance, cpu: Duration) {
        let Some(running) = self.instances.get(&instance).and_then(|known| known.running.clone()) else { return };
        let core = self.instances.get(&instance).and_then(|known| known.core());
        let cpu_budget = allowance.cpu.budget(allowance.run_time);
        let watch = Watch {
            at: now + cpu_budget.min(allowance.run_time),
            instance,
            core,
            delivered: now,
            cpu_before: cpu,
            pushed_aside_before: running.pushed_aside(),
            stolen_before: self.stolen_on(core),
            run_time: allowance.run_time,
            cpu_budget,
            resting: false,
            booked: false,
            pauses: 0,
        };
        self.watches.set(id, watch);
    }

    /// CPU time the invocation used until its instance had used `cpu` in all.
    pub(super) fn cpu_of(&self, id: InvocationId, cpu: Duration) -> Duration {
        self.watches.by_id.get(&id).map_or(Duration::ZERO, |watch| cpu.saturating_sub(watch.cpu_before))
    }

    /// The own time of an invocation that answered, if the analysis counts its waiting as if it executed: it may use a whole core.
    pub(super) fn own_time_of(&self, id: InvocationId, now: Time) -> Option<Own> {
        let watch = self.watches.by_id.get(&id).filter(|watch| watch.run_time <= watch.cpu_budget)?;
        Some(Own {
            core: watch.core,
            delivered: watch.delivered,
            pushed_aside_before: watch.pushed_aside_before,
            stolen_before: watch.stolen_before,
            transfer: self.transits.with_lane(id, now),
            run_time: watch.run_time,
        })
    }

    /// By how much the bound of a running invocation moved: what was taken from its core, and the lane's time with what it moved.
    pub(super) fn bound_moved(&self, id: InvocationId, now: Time) -> Duration {
        let stolen = |watch: &Watch| self.stolen_on(watch.core).saturating_sub(watch.stolen_before);
        self.watches.by_id.get(&id).map_or(Duration::ZERO, stolen) + self.transits.with_lane(id, now)
    }

    /// Looks at what a running invocation used; ends it or looks again later.
    pub(super) fn check_watch(&mut self, now: Time, id: InvocationId) {
        let Some(watch) = self.watches.by_id.remove(&id) else { return };
        let Some(running) = self.instances.get(&watch.instance).and_then(|known| known.running.clone()) else { return };
        let used = Used {
            cpu: running.cpu_time().saturating_sub(watch.cpu_before),
            pushed_aside: running.pushed_aside().saturating_sub(watch.pushed_aside_before),
            stolen: self.stolen_on(watch.core).saturating_sub(watch.stolen_before),
            transfer: self.transits.with_lane(id, now),
            ahead: self.transits.ahead(id, now),
        };
        if let Some(at) = self.watches.waits_for_turn(now, &watch, used) {
            return self.watches.set(id, Watch { at, booked: true, ..watch });
        }
        // After a pause this is decided but for what was read meanwhile.
        match watch.judge(now, used, || watch.pauses == 0 && running.wants_its_core()) {
            Verdict::Overran if watch.pauses < UNREAD_PAUSES && self.has_unread(watch.instance) => {
                self.watches.set(id, Watch { at: now + UNREAD_PAUSE, pauses: watch.pauses + 1, ..watch });
            }
            Verdict::Overran => self.event_at(now, Event::Overran { id, cpu: used.cpu }),
            Verdict::Look { at, resting } => self.watches.set(id, Watch { at, resting, booked: false, pauses: 0, ..watch }),
        }
    }

    fn has_unread(&self, instance: InstanceId) -> bool {
        self.instances.get(&instance).is_some_and(super::instance::Instance::has_unread)
    }

    fn stolen_on(&self, core: Option<u16>) -> Duration {
        core.and_then(|core| self.stolen.get(&core).copied()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Delivered at 0, it may run for 20 ms and use 10 ms of CPU.
    fn watch() -> Watch {
        Watch {
            at: Time::ZERO,
            instance: InstanceId(1),
            core: None,
            delivered: Time::ZERO,
            cpu_before: Duration::ZERO,
            pushed_aside_before: Duration::ZERO,
            stolen_before: Duration::ZERO,
            run_time: ms(20),
            cpu_budget: ms(10),
            resting: false,
            booked: false,
            pauses: 0,
        }
    }

    /// The same, at its second look.
    fn at_rest() -> Watch {
        Watch { resting: true, ..watch() }
    }

    fn used(cpu: u64, pushed_aside: u64) -> Used {
        Used {
            cpu: ms(cpu),
            pushed_aside: ms(pushed_aside),
            stolen: Duration::ZERO,
            transfer: Duration::ZERO,
            ahead: Duration::ZERO,
        }
    }

    fn look(at: Duration) -> Verdict {
        Verdict::Look { at: Time::ZERO + at, resting: false }
    }

    fn look_at_rest(at: Duration) -> Verdict {
        Verdict::Look { at: Time::ZERO + at, resting: true }
    }

    #[test]
    fn a_wait_that_the_kernel_counts_after_the_look_ends_nobody() {
        let now = Time::ZERO + ms(40);
        // It waited 39 ms, ran and answered after its wait was read and before its state was.
        assert_eq!(watch().judge(now, used(0, 0), || false), look_at_rest(ms(40) + REST));
        assert_eq!(at_rest().judge(now, used(0, 39), || false), look(ms(50)));
    }

    #[test]
    fn what_sleeps_beyond_its_time_has_overrun_at_the_second_look() {
        let now = Time::ZERO + ms(20);
        assert_eq!(watch().judge(now, used(0, 0), || false), look_at_rest(ms(20) + REST));
        assert_eq!(at_rest().judge(now, used(0, 0), || false), Verdict::Overran);
    }

    #[test]
    fn many_that_wait_for_their_core_take_a_bounded_part_of_the_lane() {
        let mut watches = Watches::default();
        let mut ready: BTreeMap<u64, (u64, bool)> = (0..59).map(|id| (id, (20, false))).collect();
        let mut states = 0;
        for at in 20..1_020 {
            for (due, booked) in ready.values_mut().filter(|(due, _)| *due <= at) {
                let now = Time::ZERO + ms(at);
                let watch = Watch { booked: *booked, ..watch() };
                if let Some(turn) = watches.waits_for_turn(now, &watch, used(9, 0)) {
                    (*due, *booked) = (turn.as_nanos() / 1_000_000, true);
                } else {
                    states += 1;
                    (*due, *booked) = (at + 1, false);
                }
            }
        }
        assert!((90..=STATES_PER_SECOND + STATES_AT_ONCE).contains(&states), "{states}");
    }

    #[test]
    fn what_waits_for_its_core_is_looked_at_again_and_what_used_its_cpu_is_not() {
        let now = Time::ZERO + ms(20);
        assert_eq!(at_rest().judge(now, used(9, 0), || true), look(ms(20) + LOOK_AGAIN));
        assert_eq!(at_rest().judge(now, used(2, 0), || true), look(ms(28)), "no sooner than its CPU can be used up");
        assert_eq!(watch().judge(now, used(10, 0), || panic!("its CPU decides")), Verdict::Overran);
    }
}
