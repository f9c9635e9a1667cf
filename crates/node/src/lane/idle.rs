//! Between invocations an instance of a guaranteed function is of ordinary class.
//!
//! Its threads are real-time from the moment an invocation is handed to it until it asks for the next one, and no longer: so
//! what it does between invocations (timers, collecting garbage, threads of its own) delays nobody, and the analysis of response
//! times needs no term for it. It runs then at the lowest nice value, beside best effort, on the instance's core.
//!
//! From its answer until it asks again an instance may use what the invocation left of its CPU budget, and what admission
//! charges for a runtime's work around the handler. One that uses more, or does not ask for long, loses its class until it asks.

use std::time::Duration;

use engine::port::Placement;
use model::{InstanceId, Runtime, Time};
use rustix::process::Pid;

use super::core::Core;
use super::instance::Instance;
use super::machine::Machine;
use super::watch::SAMPLING;
use crate::budget::Budget;
use crate::lanes::Lane;
use crate::runtime_cost;

/// Looks at instances that answered and did not ask, per second and at once, that admission accounts for.
pub(crate) const LOOKS_PER_SECOND: u32 = 500;
pub(crate) const LOOKS_AT_ONCE: u32 = 4;
/// Until when an instance asks that is pushed aside meanwhile.
const RETURN_MAX: Duration = Duration::from_millis(50);

/// Threads of an instance that are real-time while it works: as many as admission charges for. Those beyond, in the order in
/// which the program began them, stay ordinary.
pub(crate) const fn threads_with_class(runtime: Runtime) -> u32 {
    match runtime {
        Runtime::Python => 8,
        Runtime::NodeJs => 12,
        Runtime::Provided => 16,
    }
}

/// What an instance does, as far as its class depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It starts, or waits for an invocation.
    Resting,
    /// It has an invocation. Until it asks for the next its program may have used so much CPU in all.
    Working { cpu_max: Duration },
    /// It answered, and has not asked yet.
    Returning { cpu_max: Duration, since: Time, look: Time },
    /// The same, but it has lost its class.
    Late,
}

impl Phase {
    /// At an answer, or at a look after it: when to look, or that the class is lost.
    fn returning(since: Time, now: Time, (cpu, cpu_max): (Duration, Duration)) -> Self {
        let left = cpu_max.saturating_sub(cpu);
        if left.is_zero() || RETURN_MAX <= now.since(since) {
            return Self::Late;
        }
        Self::Returning { cpu_max, since, look: now + left.max(SAMPLING) }
    }
}

/// Instances that answered and have not asked yet.
#[derive(Debug)]
pub(super) struct Returning {
    instances: Vec<(Time, InstanceId)>,
    looks: Budget,
}

impl Default for Returning {
    fn default() -> Self {
        Self { instances: Vec::new(), looks: Budget::new(LOOKS_PER_SECOND, LOOKS_AT_ONCE) }
    }
}

impl Returning {
    fn set(&mut self, instance: InstanceId, look: Time) {
        self.instances.push((look, instance));
    }

    pub(super) fn remove(&mut self, instance: InstanceId) {
        if let Some(at) = self.instances.iter().position(|(_, known)| *known == instance) {
            self.instances.swap_remove(at);
        }
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.instances.iter().map(|(look, _)| *look).min()
    }

    fn take_due(&mut self, now: Time) -> Option<InstanceId> {
        let at = self.instances.iter().position(|(look, _)| *look <= now)?;
        Some(self.instances.swap_remove(at).1)
    }
}

impl Instance {
    /// It is handed an invocation: its program has used `cpu` so far, and may use `budget` for this one.
    pub(super) fn work(&mut self, cpu: Duration, budget: Duration) {
        self.phase = Phase::Working { cpu_max: cpu + budget + runtime_cost::LEAST };
        self.raise();
    }

    /// Its priority is another one now; while it rests, the next invocation brings it.
    pub(super) fn work_at(&mut self, priority: u8) {
        match (self.phase, &self.running) {
            (Phase::Working { .. } | Phase::Returning { .. }, Some(_)) => self.raise_to(priority),
            (Phase::Resting | Phase::Late, _) | (_, None) => {}
        }
    }

    /// It goes on as best effort.
    pub(super) fn give_up_class(&mut self) {
        self.lower();
        self.threads.clear();
    }

    fn raise(&mut self) {
        match self.on {
            Placement::RealTime { priority, .. } => self.raise_to(priority),
            Placement::BestEffort => {}
        }
    }

    fn raise_to(&mut self, priority: u8) {
        let raised = self.running.as_ref().map_or(Ok(()), |running| running.raise(&self.threads, priority));
        if raised.is_err() {
            // Without its class it keeps no promise.
            self.kill();
        }
    }

    fn lower(&mut self) {
        let lowered = self.running.as_ref().map_or(Ok(()), |running| running.lower(&self.threads));
        if lowered.is_err() {
            // What holds a class that it must not have must not go on.
            self.kill();
        }
    }
}

impl<M: Machine> Core<M> {
    /// The instance's threads are placed. Its class comes with its next invocation, or now where it has one.
    pub(super) fn keep_threads(&mut self, instance: InstanceId, mut threads: Vec<Pid>) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let (found, most) = (threads.len(), threads_with_class(known.runtime) as usize);
        threads.truncate(most);
        known.threads = threads;
        match known.phase {
            Phase::Working { .. } => known.raise(),
            Phase::Resting | Phase::Returning { .. } | Phase::Late => {}
        }
        if most < found {
            let text = format!(
                "it has {found} threads when it is ready: the first {most} are real-time while it works, the others never. Start \
                 threads that an invocation does not need after the first one, or fewer of them"
            );
            self.tell(instance, text);
        }
    }

    /// The instance answered. Called in the guaranteed lane's order of events, before anything else of that instance is seen.
    pub(super) fn returns(&mut self, now: Time, instance: InstanceId, cpu: Duration) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let Phase::Working { cpu_max } = known.phase else { return };
        known.phase = Phase::returning(now, now, (cpu, cpu_max));
        self.follow_return(instance);
    }

    fn follow_return(&mut self, instance: InstanceId) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        match known.phase {
            Phase::Returning { look, .. } if self.lane == Lane::Guaranteed && !known.threads.is_empty() => {
                self.returning.set(instance, look);
            }
            Phase::Late => known.lower(),
            Phase::Returning { .. } | Phase::Resting | Phase::Working { .. } => {}
        }
    }

    /// The instance asked for its next invocation.
    pub(super) fn rests(&mut self, instance: InstanceId) {
        self.returning.remove(instance);
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let before = std::mem::replace(&mut known.phase, Phase::Resting);
        match before {
            Phase::Working { .. } | Phase::Returning { .. } => known.lower(),
            Phase::Resting | Phase::Late => {}
        }
    }

    /// Looks at instances that are to have asked by now.
    pub(super) fn look_at_returning(&mut self, now: Time) {
        while let Some(instance) = self.returning.take_due(now) {
            let cpu = self.cpu_time(instance);
            let affordable = self.returning.looks.spend(now).is_ok();
            let Some(known) = self.instances.get_mut(&instance) else { continue };
            if let Phase::Returning { cpu_max, since, .. } = known.phase {
                known.phase = if affordable { Phase::returning(since, now, (cpu, cpu_max)) } else { Phase::Late };
                self.follow_return(instance);
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
    fn who_answered_may_use_what_is_left_before_it_asks() {
        let phase = Phase::returning(at(100), at(100), (ms(7), ms(10)));
        assert_eq!(phase, Phase::Returning { cpu_max: ms(10), since: at(100), look: at(103) });
        assert_eq!(Phase::returning(at(100), at(103), (ms(10), ms(10))), Phase::Late);
        assert_eq!(Phase::returning(at(100), at(100), (ms(11), ms(10))), Phase::Late);
    }

    #[test]
    fn who_does_not_ask_for_long_loses_its_class_though_it_uses_nothing() {
        assert_ne!(Phase::returning(at(100), at(149), (ms(7), ms(10))), Phase::Late);
        assert_eq!(Phase::returning(at(100), at(150), (ms(7), ms(10))), Phase::Late);
    }

    #[test]
    fn looks_come_when_they_are_due_and_not_for_who_asked() {
        let mut returning = Returning::default();
        returning.set(InstanceId(1), at(5));
        returning.set(InstanceId(2), at(3));
        assert_eq!(returning.next(), Some(at(3)));
        assert_eq!(returning.take_due(at(4)), Some(InstanceId(2)));
        assert_eq!(returning.take_due(at(4)), None);
        returning.remove(InstanceId(1));
        assert_eq!(returning.next(), None);
    }
}
