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
        let cpu = running.cpu_time().saturating_sub(watch.cpu_before);
        let aside = running.pushed_aside().saturating_sub(watch.pushed_aside_before);
        let stolen = self.stolen_on(watch.core).saturating_sub(watch.stolen_before);
        let own = now.since(watch.delivered).saturating_sub(aside).saturating_sub(stolen);
        // A machine that does not know what was stolen from it counts it as used.
        let cpu_left = watch.cpu_budget.saturating_sub(cpu.saturating_sub(stolen));
        let rest = watch.run_time.saturating_sub(own).min(cpu_left);
        // What waits for its core right now is pushed aside right now, which the kernel counts only once it runs again.
        let undecided = rest.is_zero() && !cpu_left.is_zero() && running.wants_its_core();
        if undecided {
            self.watches.set(id, Watch { at: now + LOOK_AGAIN, ..watch });
        } else if rest.is_zero() {
            self.event_at(now, Event::Overran { id, cpu });
        } else {
            self.watches.set(id, Watch { at: now + rest.max(SAMPLING), ..watch });
        }
    }

    fn stolen_on(&self, core: Option<u16>) -> Duration {
        core.and_then(|core| self.stolen.get(&core).copied()).unwrap_or_default()
    }
}
