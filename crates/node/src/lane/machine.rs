//! The two engines behind one face, so that one event loop serves both lanes.

use engine::port::{Action, Event};

use engine::{reserved, shared};
use journal::record::Counters;
use model::{FunctionKey, Time};

/// A lane's state machine. All calls come from the lane's thread; none blocks.
pub(crate) trait Machine: 'static {
    /// Called for every event, in the order they happened.
    fn handle(&mut self, now: Time, event: Event, actions: &mut Vec<Action>);

    /// When the machine wants to be woken next; asked after every call.
    fn next_wake(&self) -> Option<Time>;

    /// Called at or after the instant it asked for.
    fn wake(&mut self, now: Time, actions: &mut Vec<Action>);

    /// Whether nothing of it runs or waits any more, asked while the node stops.
    fn is_drained(&self) -> bool;

    /// Whether a function has its warm reserve; asked after every event while somebody waits for it.
    fn is_warm(&self, function: FunctionKey) -> bool;

    /// The live counters, asked about once a second.
    fn counters(&self) -> Vec<Counters>;
}

macro_rules! machine {
    ($engine:ty, $warm:expr, $counters:expr) => {
        impl Machine for $engine {
            fn handle(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
                self.handle(now, event, actions);
            }

            fn next_wake(&self) -> Option<Time> {
                self.next_wake()
            }

            fn wake(&mut self, now: Time, actions: &mut Vec<Action>) {
                self.wake(now, actions);
            }

            fn is_drained(&self) -> bool {
                self.is_drained()
            }

            fn is_warm(&self, function: FunctionKey) -> bool {
                $warm(self, function)
            }

            fn counters(&self) -> Vec<Counters> {
                $counters(self)
            }
        }
    };
}

machine!(reserved::Engine, reserved::Engine::is_warm, reserved::Engine::counters);
// Best effort promises no reserve.
machine!(shared::Engine, |_: &shared::Engine, _| true, |_: &shared::Engine| Vec::new());
