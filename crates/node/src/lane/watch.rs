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

/// The shortest rest after which an invocation is looked at again: the sampling overshoot that admission adds to a budget.
pub(crate) const SAMPLING: Duration = Duration::from_micros(200);

/// When to look again at one that waits for its core. Its admitted response bound ends it whatever the looks say.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

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
}

/// What an invocation used until it was looked at.
#[derive(Clone, Copy, Debug)]
struct Used {
    cpu: Duration,
    /// As far as the kernel has counted it: a wait is counted when it ends.
    pushed_aside: Duration,
    stolen: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Overran,
    Look { at: Time, resting: bool },
}

impl Watch {
    /// `wants_its_core` says whether something of it waits for a core; it is asked where that decides.
    fn judge(&self, now: Time, used: Used, wants_its_core: impl FnOnce() -> bool) -> Verdict {
        let own = now.since(self.delivered).saturating_sub(used.pushed_aside).saturating_sub(used.stolen);
        // A machine that does not know what was stolen from it counts it as used.
        let cpu_left = self.cpu_budget.saturating_sub(used.cpu.saturating_sub(used.stolen));
        let rest = self.run_time.saturating_sub(own).min(cpu_left);
        if !rest.is_zero() {
            return Verdict::Look { at: now + rest.max(SAMPLING), resting: false };
        }
        if cpu_left.is_zero() {
            return Verdict::Overran;
        }
        // What waits for its core right now is pushed aside right now, which the kernel counts only once it runs again.
        if wants_its_core() {
            return Verdict::Look { at: now + LOOK_AGAIN, resting: false };
        }
        // Where this thread does not outrank the instance, it may have waited and run between the two looks at it, and its
        // answer may lie unread. The next look counts that wait, and until then its answer is read.
        if self.resting { Verdict::Overran } else { Verdict::Look { at: now + SAMPLING, resting: true } }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Watches {
    by_id: BTreeMap<InvocationId, Watch>,
    by_time: BTreeMap<(Time, InvocationId), ()>,
}

impl Watches {
    pub(super) fn next(&self) -> Option<Time> {
        self.by_time.keys().next().map(|(at, _)| *at)
    }

    /// Takes the watches that are due.
    pub(super) fn due(&mut self, now: Time) -> Vec<InvocationId> {
        let mut due = Vec::new();
        while let Some(entry) = self.by_time.first_entry() {
            let (at, id) = *entry.key();
            if now < at {
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
        };
        self.watches.set(id, watch);
    }

    /// CPU time the invocation used until its instance had used `cpu` in all.
    pub(super) fn cpu_of(&self, id: InvocationId, cpu: Duration) -> Duration {
        self.watches.by_id.get(&id).map_or(Duration::ZERO, |watch| cpu.saturating_sub(watch.cpu_before))
    }

    /// Looks at what a running invocation used; ends it or looks again later.
    pub(super) fn check_watch(&mut self, now: Time, id: InvocationId) {
        let Some(watch) = self.watches.by_id.remove(&id) else { return };
        let Some(running) = self.instances.get(&watch.instance).and_then(|known| known.running.clone()) else { return };
        let used = Used {
            cpu: running.cpu_time().saturating_sub(watch.cpu_before),
            pushed_aside: running.pushed_aside().saturating_sub(watch.pushed_aside_before),
            stolen: self.stolen_on(watch.core).saturating_sub(watch.stolen_before),
        };
        match watch.judge(now, used, || running.wants_its_core()) {
            Verdict::Overran => self.event_at(now, Event::Overran { id, cpu: used.cpu }),
            Verdict::Look { at, resting } => self.watches.set(id, Watch { at, resting, ..watch }),
        }
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
        }
    }

    /// The same, at its second look.
    fn at_rest() -> Watch {
        Watch { resting: true, ..watch() }
    }

    fn used(cpu: u64, pushed_aside: u64) -> Used {
        Used { cpu: ms(cpu), pushed_aside: ms(pushed_aside), stolen: Duration::ZERO }
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
        assert_eq!(watch().judge(now, used(0, 0), || false), look_at_rest(ms(40) + SAMPLING));
        assert_eq!(at_rest().judge(now, used(0, 39), || false), look(ms(50)));
    }

    #[test]
    fn what_sleeps_beyond_its_time_has_overrun_at_the_second_look() {
        let now = Time::ZERO + ms(20);
        assert_eq!(watch().judge(now, used(0, 0), || false), look_at_rest(ms(20) + SAMPLING));
        assert_eq!(at_rest().judge(now, used(0, 0), || false), Verdict::Overran);
    }

    #[test]
    fn what_waits_for_its_core_is_looked_at_again_and_what_used_its_cpu_is_not() {
        let now = Time::ZERO + ms(20);
        assert_eq!(at_rest().judge(now, used(9, 0), || true), look(ms(20) + LOOK_AGAIN));
        assert_eq!(watch().judge(now, used(10, 0), || panic!("its CPU decides")), Verdict::Overran);
    }
}
