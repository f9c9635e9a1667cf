//! The front as a stage that every invocation passes on its way to its core, and again when it ends.
//!
//! An arrival is stamped when the front holds the complete request; until it is with its instance, the front may have to
//! work for arrivals and ends of other functions, and for all that its budgets let it do. On the front's own core that work
//! precedes every task and is counted as such; on the others it makes releases late. Ends are late by it everywhere: an
//! invocation has ended when the front reads its result.

use std::time::Duration;

use model::Level;

use super::evaluate::Unit;
use super::{Budgeted, Demand, NodeCapacity};
use crate::flow::Flow;
use crate::response::{Bound, Delayed, Interference, busy_period};

/// Delays are rounded up to a multiple of this, so that few steps lead to the fixed point.
const STEP: Duration = Duration::from_micros(250);

/// What the front does for one invocation.
pub(super) fn cost(capacity: &NodeCapacity, demand: &Demand) -> Duration {
    let connections = capacity.connection_cost.saturating_mul(demand.connections);
    let threads = match capacity.level {
        Level::Hard => capacity.thread_cost.saturating_mul(demand.threads),
        Level::Soft => Duration::ZERO,
    };
    capacity.front_cost.saturating_add(connections).saturating_add(threads)
}

/// What the front does beside invocations, and the probe on its core.
pub(super) fn beside(capacity: &NodeCapacity) -> impl Iterator<Item = Interference> {
    let tick = Flow::periodic(capacity.tick.period).map(|flow| (flow, capacity.tick.cost));
    let budgets = capacity.front_budgets.iter().map(|Budgeted { rate, burst, cost }| (Flow::new(*rate, *burst), *cost));
    let all = tick.into_iter().chain(budgets).filter(|(_, cost)| !cost.is_zero());
    all.map(|(flow, cost)| Interference { flow, cost, delayed: Delayed::By(Duration::ZERO) })
}

/// What an invocation on a core is promised, by what the core's analysis says.
pub(super) fn promised(capacity: &NodeCapacity, core: u16, bound: Bound, delay: Duration) -> Bound {
    let released = if core == capacity.front_core { Duration::ZERO } else { delay };
    Bound { start: bound.start.saturating_add(released), response: bound.response.saturating_add(released).saturating_add(delay) }
}

/// The longest time for which the front is busy without a pause: nothing that reaches it waits longer, in whatever order it
/// works. `response` says by when after its arrival (T apart) an invocation of a unit on a core has ended at most. Rounded up;
/// `None` where there is no bound.
///
/// Derived: the front works for an invocation when it comes and when it ends, at most its cost together. So the work of all
/// that came up to their response before a window may fall into it.
pub(super) fn delay(capacity: &NodeCapacity, units: &[Unit<'_>], response: impl Fn(usize, u16) -> Duration) -> Option<Duration> {
    let mut work: Vec<Interference> = beside(capacity).collect();
    for (index, unit) in units.iter().enumerate() {
        for core in unit.cores {
            let delayed = Delayed::By(response(index, *core));
            work.push(Interference { flow: unit.flow, cost: unit.front_cost, delayed });
        }
    }
    busy_period(&work, capacity.tolerance).map(rounded_up)
}

fn rounded_up(delay: Duration) -> Duration {
    let steps = delay.as_nanos().div_ceil(STEP.as_nanos());
    STEP.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}
