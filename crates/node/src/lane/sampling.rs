//! Measures how much of best-effort runs and starts wanted a core: reading the clocks costs system calls.
//!
//! The first run of an instance is measured, and then all its runs together, once in sixteen or every [`LOOK_EVERY`] while one
//! lasts longer: nothing that an instance does between two readings is left out, so nobody can hide work in runs that are not
//! measured.

use std::time::Duration;

use engine::port::Event;
use model::{InstanceId, InvocationId, Time};

use super::core::Core;
use super::instance::Instance;
use super::machine::Machine;
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
    /// Core time that the instance had used or waited for then.
    before: Option<Duration>,
    /// Whole runs since, and how long they and what is over of the present one took.
    runs: u32,
    run: Duration,
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
    fn begin(&mut self, now: Time, wanted: impl FnOnce() -> Option<Duration>) {
        if self.before.is_none() {
            self.before = wanted();
        }
        self.from = now;
    }

    /// A run ends that took `run`, by the stamps of its instance where there are any. Returns what is to be told, where the
    /// clocks are read.
    fn end(&mut self, now: Time, run: Duration, wanted: impl FnOnce() -> Option<Duration>) -> Option<(Duration, Duration)> {
        let whole = now.since(self.from);
        self.runs += 1;
        if self.first == First::Over && self.runs < EVERY {
            self.run += run.min(whole);
            return None;
        }
        self.first = First::Over;
        // What the runtime does around a handler is no more than the whole. What is beyond that is of several threads.
        let told = self.read(run.min(whole), wanted)?;
        Some((told.0.max(told.1.min(self.run + whole)), told.1))
    }

    /// A run lasts.
    fn look(&mut self, now: Time, wanted: impl FnOnce() -> Option<Duration>) -> Option<(Duration, Duration)> {
        let told = self.read(now.since(self.from), wanted);
        self.from = now;
        told
    }

    fn read(&mut self, run: Duration, wanted: impl FnOnce() -> Option<Duration>) -> Option<(Duration, Duration)> {
        let run = std::mem::take(&mut self.run) + run;
        self.runs = 0;
        let (before, after) = (self.before.take()?, wanted()?);
        self.before = Some(after);
        Some((run, after.saturating_sub(before)))
    }
}

impl Instance {
    /// It is handed an invocation.
    pub(super) fn sample_begin(&mut self, now: Time) {
        let running = self.running.clone();
        self.sampling.begin(now, || running.map(|running| running.wanted()));
    }
}

impl<M: Machine> Core<M> {
    /// The start of an instance is over.
    pub(super) fn sample_start(&mut self, instance: InstanceId) {
        let running = self.instances.get(&instance).and_then(|known| known.running.clone());
        if let Some(running) = running.filter(|_| self.lane == Lane::BestEffort) {
            self.event(Event::Warmed { instance, wanted: running.wanted() });
        }
    }

    /// An invocation ends that took `run`, by the stamps of its instance where there are any.
    pub(super) fn sample_end(&mut self, now: Time, (id, instance): (InvocationId, InstanceId), run: Duration) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let running = known.running.clone();
        let told = known.sampling.end(now, run, || running.map(|running| running.wanted()));
        if let Some((run, wanted)) = told {
            self.event_at(now, Event::Measured { id, run, wanted });
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
            told.extend(instance.sampling.look(now, || Some(running.wanted())).map(|told| (invocation, told)));
            if told.len() == LOOKED_AT {
                // The others have the next turn.
                self.looked_up_to = *id;
                break;
            }
        }
        for (id, (run, wanted)) in told {
            self.event_at(now, Event::Measured { id, run, wanted });
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

    /// Runs of 10 ms each, that want a core for 4 ms; what is told at the end of which.
    #[test]
    fn the_first_run_is_measured_and_then_sixteen_at_once() {
        let mut sampling = Sampling::default();
        let mut told = Vec::new();
        for nth in 0..40 {
            sampling.begin(at(nth * 10), || Some(ms(nth * 4)));
            let end = sampling.end(at(nth * 10 + 10), ms(10), || Some(ms(nth * 4 + 4)));
            told.extend(end.map(|(run, wanted)| (nth, run.as_millis(), wanted.as_millis())));
        }
        assert_eq!(told, [(0, 10, 4), (16, 160, 64), (32, 160, 64)]);
    }

    #[test]
    fn a_run_that_lasts_is_measured_piece_by_piece() {
        let mut sampling = Sampling::default();
        sampling.begin(at(0), || Some(ms(0)));
        assert_eq!(sampling.look(at(50), || Some(ms(50))), Some((ms(50), ms(50))));
        assert_eq!(sampling.look(at(100), || Some(ms(51))), Some((ms(50), ms(1))));
        assert_eq!(sampling.end(at(120), ms(119), || Some(ms(52))), Some((ms(20), ms(1))));
    }

    #[test]
    fn what_a_runtime_does_around_a_handler_makes_a_core_full_and_threads_make_more() {
        let told = |wanted| {
            let mut sampling = Sampling::default();
            sampling.begin(at(0), || Some(ms(0)));
            sampling.end(at(10), ms(2), || Some(ms(wanted)))
        };
        assert_eq!(told(5), Some((ms(5), ms(5))));
        assert_eq!(told(18), Some((ms(10), ms(18))));
    }

    #[test]
    fn an_instance_cannot_claim_runs_longer_than_they_were() {
        let mut sampling = Sampling::default();
        sampling.begin(at(0), || Some(ms(0)));
        assert_eq!(sampling.end(at(10), ms(10_000), || Some(ms(10))), Some((ms(10), ms(10))));
    }
}
