//! Holds instances of guaranteed functions to what the analysis of response times takes for granted: between invocations
//! they use next to nothing of their core.
//!
//! An instance rests from the answer to one invocation until the next is handed to it. Its threads keep their real-time
//! class meanwhile, so a thread that loops would take the core from everything below it. A hundred times a second the lane
//! looks at the CPU time of resting instances, 64 in turn; one above its budget is killed and replaced, and its function's log
//! says why. With up to 64 instances that is within 10 ms after the budget is used up. The analysis has no term for either.

use std::time::Duration;

use model::{InstanceId, Time};

use super::core::Core;
use super::machine::Machine;
use crate::lanes::Lane;

/// CPU time an instance may use while it rests, in each [`WINDOW`].
const REST_CPU_MAX: Duration = Duration::from_millis(20);
/// More of it for every invocation that ended in the window: a runtime has to ask for the next one.
const REST_CPU_PER_RETURN: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Instances looked at in one look: about a microsecond each.
const LOOKED_AT: usize = 64;

/// What an instance used while it rested, in the current window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    window: Time,
    /// The CPU time of its program up to which its rest is accounted; `None` while it starts or runs an invocation.
    counted: Option<Duration>,
    used: Duration,
    allowed: Duration,
}

impl Default for Rest {
    fn default() -> Self {
        Self { window: Time::ZERO, counted: None, used: Duration::ZERO, allowed: REST_CPU_MAX }
    }
}

impl Rest {
    /// It is ready for its first invocation.
    pub(super) fn begin(&mut self, cpu: Duration) {
        self.counted = Some(cpu);
    }

    /// It answered an invocation.
    pub(super) fn begin_again(&mut self, cpu: Duration) {
        self.counted = Some(cpu);
        self.allowed += REST_CPU_PER_RETURN;
    }

    /// It is handed an invocation.
    pub(super) fn end(&mut self, cpu: Duration) {
        self.count(cpu);
        self.counted = None;
    }

    fn count(&mut self, cpu: Duration) {
        if let Some(counted) = &mut self.counted {
            self.used += cpu.saturating_sub(*counted);
            *counted = cpu;
        }
    }

    /// Accounts up to now. Returns what it used in this window when that is more than it may.
    fn look(&mut self, now: Time, cpu: Duration) -> Option<Duration> {
        self.count(cpu);
        let over = (self.allowed < self.used).then_some(self.used);
        if WINDOW <= now.since(self.window) {
            *self = Self { window: now, counted: self.counted, ..Self::default() };
        }
        over
    }
}

impl<M: Machine> Core<M> {
    /// When resting instances are looked at next.
    pub(super) fn next_look(&self) -> Option<Time> {
        let watched = self.lane == Lane::Guaranteed && !self.instances.is_empty();
        watched.then(|| self.looked_at + LOOK_EVERY)
    }

    /// Kills instances that used too much while they rested.
    pub(super) fn look_at_resting(&mut self, now: Time) {
        if self.next_look().is_none_or(|at| now < at) {
            return;
        }
        self.looked_at = now;
        let mut over: Vec<(InstanceId, Duration)> = Vec::new();
        let after = std::mem::replace(&mut self.looked_up_to, InstanceId(0));
        let beyond = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        for (nth, (id, instance)) in self.instances.range_mut(beyond).take(LOOKED_AT).enumerate() {
            // After the last one it begins anew.
            self.looked_up_to = if nth + 1 == LOOKED_AT { *id } else { InstanceId(0) };
            let Some(running) = &instance.running else { continue };
            over.extend(instance.rest.look(now, running.cpu_time()).map(|used| (*id, used)));
        }
        for (instance, used) in over {
            let text = format!(
                "killed: it used {used:?} of CPU between invocations within {WINDOW:?}; an instance of a guaranteed function \
                 may use {REST_CPU_MAX:?}, because nothing is reserved for that"
            );
            self.tell(instance, text);
            if let Some(known) = self.instances.get_mut(&instance) {
                known.kill();
            }
        }
    }

    /// CPU time of an instance's program so far. Zero in the best-effort lane, which holds nobody to it: a reading is a
    /// system call.
    pub(super) fn cpu_time(&self, instance: InstanceId) -> Duration {
        if self.lane != Lane::Guaranteed {
            return Duration::ZERO;
        }
        let running = self.instances.get(&instance).and_then(|known| known.running.as_ref());
        running.map_or(Duration::ZERO, |running| running.cpu_time())
    }

    /// The instance has its class and waits for its first invocation.
    pub(super) fn rests(&mut self, instance: InstanceId) {
        let cpu = self.cpu_time(instance);
        if let Some(known) = self.instances.get_mut(&instance) {
            known.rest.begin(cpu);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    #[test]
    fn an_instance_that_rests_uses_its_budget_and_no_more() {
        let mut rest = Rest::default();
        rest.begin(ms(500));
        assert_eq!(rest.look(at(100), ms(520)), None);
        assert_eq!(rest.look(at(200), ms(521)), Some(ms(21)));
    }

    #[test]
    fn a_new_window_brings_a_new_budget() {
        let mut rest = Rest::default();
        rest.begin(ms(0));
        assert_eq!(rest.look(at(1_000), ms(20)), None);
        assert_eq!(rest.look(at(1_100), ms(40)), None);
        assert_eq!(rest.look(at(2_000), ms(41)), Some(ms(21)));
    }

    #[test]
    fn what_an_invocation_uses_is_not_rest() {
        let mut rest = Rest::default();
        rest.begin(ms(0));
        rest.end(ms(1));
        assert_eq!(rest.look(at(100), ms(900)), None);
        rest.begin_again(ms(900));
        assert_eq!(rest.look(at(200), ms(920)), None, "the return gave one more millisecond");
        assert_eq!(rest.look(at(300), ms(921)), Some(ms(22)));
    }

    #[test]
    fn an_instance_that_starts_is_not_looked_at() {
        assert_eq!(Rest::default().look(at(100), ms(5_000)), None);
    }
}
