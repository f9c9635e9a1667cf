//! What an instance may ask of the guaranteed lane.
//!
//! Serving a connection or a request of the Runtime API takes the lane's time, and an instance could ask without end. Admission
//! accounts for what an invocation needs, and for the starts of instances; so that is what an instance may ask. One that asks
//! for more is killed and replaced, and its function's log says why.

use model::{InstanceId, Runtime};

use super::core::Core;
use super::machine::Machine;
use crate::lanes::Lane;

/// Connections and requests that a start needs, with some to spare for a runtime that connects anew or asks for what there
/// is not.
pub(crate) const ASKS_PER_START: u32 = 8;
/// An invocation is asked for and answered.
const REQUESTS_PER_INVOCATION: u32 = 2;
/// What goes unused is kept up to here.
const ASKS_MAX: u32 = 16;

/// Connections that a runtime opens for one invocation: ours keep one open, a custom one may open one for each request.
pub(crate) const fn connections_per_invocation(runtime: Runtime) -> u32 {
    match runtime {
        Runtime::Python | Runtime::NodeJs => 0,
        Runtime::Provided => REQUESTS_PER_INVOCATION,
    }
}

/// How many connections and requests an instance has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ration {
    left: u32,
    per_invocation: u32,
}

/// It asked for more than it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Ration {
    pub(super) fn new(runtime: Runtime) -> Self {
        Self { left: ASKS_PER_START, per_invocation: REQUESTS_PER_INVOCATION + connections_per_invocation(runtime) }
    }

    /// It was handed an invocation.
    pub(super) fn earn(&mut self) {
        self.left = (self.left + self.per_invocation).min(ASKS_MAX);
    }

    fn spend(&mut self) -> Result<(), Exhausted> {
        self.left = self.left.checked_sub(1).ok_or(Exhausted)?;
        Ok(())
    }
}

impl<M: Machine> Core<M> {
    /// An instance opened a connection or sent a request. Where that is more than it may, it is killed, and nothing more of it
    /// is looked at.
    pub(super) fn asks(&mut self, instance: InstanceId) -> Result<(), Exhausted> {
        let Some(known) = self.instances.get_mut(&instance) else { return Err(Exhausted) };
        if self.lane == Lane::BestEffort || known.ration.spend().is_ok() {
            return Ok(());
        }
        if !known.is_doomed() {
            known.kill();
            let text = format!(
                "killed: it opened more connections to its Runtime API, or sent it more requests, than its invocations need \
                 ({ASKS_PER_START} at its start, {} with each invocation, at most {ASKS_MAX} kept); an instance of a \
                 guaranteed function may not ask for more, because nothing is reserved for that",
                known.ration.per_invocation,
            );
            self.tell(instance, text);
        }
        Err(Exhausted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many asks are granted of so many.
    fn granted(ration: &mut Ration, asks: u32) -> u32 {
        (0..asks).map(|_| u32::from(ration.spend().is_ok())).sum()
    }

    #[test]
    fn whoever_only_asks_is_stopped_soon() {
        assert_eq!(granted(&mut Ration::new(Runtime::Python), 1_000_000), ASKS_PER_START);
    }

    #[test]
    fn an_invocation_earns_what_it_needs() {
        for (runtime, needs) in [(Runtime::Python, 2), (Runtime::NodeJs, 2), (Runtime::Provided, 4)] {
            let mut ration = Ration::new(runtime);
            for _ in 0..1_000 {
                ration.earn();
                assert_eq!(granted(&mut ration, needs), needs, "{runtime:?}");
            }
            assert!(granted(&mut ration, 100) <= ASKS_MAX);
        }
    }

    #[test]
    fn what_goes_unused_is_not_kept_for_ever() {
        let mut ration = Ration::new(Runtime::Provided);
        (0..1_000).for_each(|_| ration.earn());
        assert_eq!(granted(&mut ration, 1_000), ASKS_MAX);
    }
}
