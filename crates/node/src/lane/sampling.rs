//! Measures now and then how much of a best-effort run wanted a core: reading the clocks costs system calls.

use std::time::Duration;

use engine::port::Event;
use model::{InstanceId, InvocationId};

use super::core::Core;
use super::instance::Instance;
use super::machine::Machine;

/// The first run of an instance is measured, and then one of so many.
const EVERY: u32 = 16;

/// Which run of an instance is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sampling {
    runs: u32,
    /// Core time that the instance had used or waited for when the run began that is measured.
    before: Option<Duration>,
}

impl Sampling {
    /// A run begins. Returns whether it is to be measured.
    fn is_due(&mut self) -> bool {
        let due = self.runs.is_multiple_of(EVERY);
        self.runs = self.runs.wrapping_add(1);
        due
    }
}

impl Instance {
    /// It is handed an invocation.
    pub(super) fn sample_begin(&mut self) {
        self.sampling.before = if self.sampling.is_due() { self.wanted() } else { None };
    }

    /// Time its program used a core, or its first thread was ready to run and had none.
    fn wanted(&self) -> Option<Duration> {
        self.running.as_ref().map(|running| running.cpu_time() + running.pushed_aside())
    }
}

impl<M: Machine> Core<M> {
    /// An invocation ends that took `run`, by the stamps of its instance where there are any.
    pub(super) fn sample_end(&mut self, id: InvocationId, instance: InstanceId, run: Duration) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let before = known.sampling.before.take();
        if let (Some(before), Some(after)) = (before, known.wanted()) {
            self.event(Event::Measured { id, run, wanted: after.saturating_sub(before) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_is_measured_and_then_every_sixteenth() {
        let mut sampling = Sampling::default();
        let measured: Vec<u32> = (0..40).filter(|_| sampling.is_due()).collect();
        assert_eq!(measured, [0, 16, 32]);
    }
}
