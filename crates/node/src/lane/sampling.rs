//! Measures how much of best-effort runs and starts wanted a core: reading the clocks costs system calls.
//!
//! The first run of an instance is measured, and then all its runs together, once in sixteen or every [`LOOK_EVERY`] while one
//! lasts longer: nothing that an instance does between two readings is left out, so nobody can hide work in runs that are not
//! measured.

use std::time::Duration;

use engine::port::{Event, Taken};
use model::{InstanceId, InvocationId, Time};

use super::core::Core;
use super::instance::Instance;
use super::machine::Machine;
use crate::instance::Demand;
use crate::lanes::Lane;

/// Runs between two readings.
const EVERY: u32 = 16;
/// How often runs are looked at that last.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Instances looked at in one look: some ten microseconds each, where a control group is read.
const LOOKED_AT: usize = 64;

/// What the runs of an instance took since its clocks were read last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sampling {
    /// What the instance had taken of cores then.
    before: Option<Demand>,
    /// Whole runs since, and how long they and what is over of the present one took: in the function, and from delivery to answer.
    runs: u32,
    run: Duration,
    whole: Duration,
    /// From when on the present run counts.
    from: Time,
    first: First,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum First {
    #[default]
    ToCome,
    Over,
}

impl Sampling {
    fn begin(&mut self, now: Time, demand: impl FnOnce() -> Option<Demand>) {
        if self.before.is_none() {
            self.before = demand();
        }
        self.from = now;
    }

    /// A run ends that took `run`, by the stamps of its instance where there are any. Returns what is to be told, where the
    /// clocks are read.
    fn end(&mut self, now: Time, run: Duration, demand: impl FnOnce() -> Option<Demand>) -> Option<Taken> {
        let whole = now.since(self.from);
        self.runs += 1;
        if self.first == First::Over && self.runs < EVERY {
            self.run += run.min(whole);
            self.whole += whole;
            return None;
        }
        self.first = First::Over;
        // What the runtime does around a handler is no more than the whole. What is beyond that is of several threads.
        let most = self.run + whole;
        let taken = self.read(run.min(whole), whole, demand)?;
        Some(Taken { run: taken.run.max(taken.wanted.min(most)), ..taken })
    }

    /// A run lasts.
    fn look(&mut self, now: Time, demand: impl FnOnce() -> Option<Demand>) -> Option<Taken> {
        let so_far = now.since(self.from);
        let taken = self.read(so_far, so_far, demand);
        self.from = now;
        taken
    }

    fn read(&mut self, run: Duration, whole: Duration, demand: impl FnOnce() -> Option<Demand>) -> Option<Taken> {
        let (run, whole) = (std::mem::take(&mut self.run) + run, std::mem::take(&mut self.whole) + whole);
        self.runs = 0;
        let (before, after) = (self.before.take()?, demand()?);
        self.before = Some(after);
        let (wanted, used) = (after.wanted.saturating_sub(before.wanted), after.used.saturating_sub(before.used));
        Some(Taken { run, wanted, whole, used })
    }
}

impl Instance {
    /// It is handed an invocation.
    pub(super) fn sample_begin(&mut self, now: Time) {
        let running = self.running.clone();
        self.sampling.begin(now, || running.map(|running| running.demand()));
    }
}

impl<M: Machine> Core<M> {
    /// The start of an instance is over.
    pub(super) fn sample_start(&mut self, instance: InstanceId) {
        let running = self.instances.get(&instance).and_then(|known| known.running.clone());
        if let Some(running) = running.filter(|_| self.lane == Lane::BestEffort) {
            self.event(Event::Warmed { instance, wanted: running.demand().wanted });
        }
    }

    /// An invocation ends that took `run`, by the stamps of its instance where there are any.
    pub(super) fn sample_end(&mut self, now: Time, (id, instance): (InvocationId, InstanceId), run: Duration) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let running = known.running.clone();
        let told = known.sampling.end(now, run, || running.map(|running| running.demand()));
        if let Some(taken) = told {
            self.event_at(now, Event::Measured { id, taken });
        }
    }

    /// When best-effort runs that last are looked at next.
    pub(super) fn next_sample(&self) -> Option<Time> {
        let any = self.lane == Lane::BestEffort && !self.waiting.is_empty();
        any.then(|| self.looked_at + LOOK_EVERY)
    }

    /// Measures the runs that have lasted for a while.
    pub(super) fn look_at_lasting(&mut self, now: Time) {
        if self.next_sample().is_none_or(|at| now < at) {
            return;
        }
        self.looked_at = now;
        let mut told = Vec::new();
        let after = std::mem::replace(&mut self.looked_up_to, InstanceId(0));
        let beyond = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        for (id, instance) in self.instances.range_mut(beyond) {
            let lasting = instance.serving.filter(|_| LOOK_EVERY <= now.since(instance.sampling.from));
            let (Some(invocation), Some(running)) = (lasting, &instance.running) else { continue };
            told.extend(instance.sampling.look(now, || Some(running.demand())).map(|told| (invocation, told)));
            if told.len() == LOOKED_AT {
                // The others have the next turn.
                self.looked_up_to = *id;
                break;
            }
        }
        for (id, taken) in told {
            self.event_at(now, Event::Measured { id, taken });
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
        Time::ZERO + Duration::from_millis(ms)
    }

    /// The instance used so much of cores so far, and waited for one for a quarter of that.
    fn used(ms: u64) -> Option<Demand> {
        let used = Duration::from_millis(ms);
        Some(Demand { used, wanted: used * 5 / 4 })
    }

    fn taken(run: u64, wanted: u64, whole: u64, used: u64) -> Taken {
        Taken { run: ms(run), wanted: ms(wanted), whole: ms(whole), used: ms(used) }
    }

    /// Runs of 8 ms each, that use a core for 4 ms; what is told at the end of which.
    #[test]
    fn the_first_run_is_measured_and_then_sixteen_at_once() {
        let mut sampling = Sampling::default();
        let mut told = Vec::new();
        for nth in 0..40 {
            sampling.begin(at(nth * 10), || used(nth * 4));
            let end = sampling.end(at(nth * 10 + 10), ms(8), || used(nth * 4 + 4));
            told.extend(end.map(|taken| (nth, taken)));
        }
        assert_eq!(told, [(0, taken(8, 5, 10, 4)), (16, taken(128, 80, 160, 64)), (32, taken(128, 80, 160, 64))]);
    }

    #[test]
    fn a_run_that_lasts_is_measured_piece_by_piece() {
        let mut sampling = Sampling::default();
        sampling.begin(at(0), || used(0));
        assert_eq!(sampling.look(at(50), || used(40)), Some(taken(50, 50, 50, 40)));
        assert_eq!(sampling.look(at(100), || used(44)), Some(taken(50, 5, 50, 4)));
        assert_eq!(sampling.end(at(120), ms(119), || used(48)), Some(taken(20, 5, 20, 4)));
    }

    #[test]
    fn what_a_runtime_does_around_a_handler_makes_a_core_full_and_threads_make_more() {
        let told = |by| {
            let mut sampling = Sampling::default();
            sampling.begin(at(0), || used(0));
            sampling.end(at(10), ms(2), || used(by))
        };
        assert_eq!(told(4), Some(taken(5, 5, 10, 4)));
        assert_eq!(told(16), Some(taken(10, 20, 10, 16)));
    }

    #[test]
    fn an_instance_cannot_claim_runs_longer_than_they_were() {
        let mut sampling = Sampling::default();
        sampling.begin(at(0), || used(0));
        assert_eq!(sampling.end(at(10), ms(10_000), || used(8)), Some(taken(10, 10, 10, 8)));
    }
}
