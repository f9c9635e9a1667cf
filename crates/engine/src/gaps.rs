//! Gaps that the probes saw, kept for as long as a verdict may need them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use model::Time;

use crate::port::FRONT_CORE;

/// Gaps remembered for each core; at one probe per millisecond this is a quarter of a second of nothing but gaps.
pub(crate) const GAPS_PER_CORE: usize = 256;

/// The most recent gaps of every core.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gaps {
    cores: BTreeMap<u16, VecDeque<(Time, Time)>>,
}

impl Gaps {
    pub(crate) const fn new() -> Self {
        Self { cores: BTreeMap::new() }
    }

    pub(crate) fn note(&mut self, core: u16, from: Time, until: Time) {
        let gaps = self.cores.entry(core).or_default();
        if gaps.len() == GAPS_PER_CORE {
            gaps.pop_front();
        }
        gaps.push_back((from, until));
    }

    /// Whether the core, or the front's, was taken away at some time between the two instants. Requests and results of every
    /// core pass the front's.
    pub(crate) fn overlap(&self, core: u16, from: Time, until: Time) -> bool {
        let gaps = [core, FRONT_CORE].into_iter().filter_map(|core| self.cores.get(&core));
        gaps.flat_map(|gaps| gaps.iter().rev()).any(|gap| gap.0 < until && from < gap.1)
    }

    /// How much of the time between the two instants the core was taken away.
    pub(crate) fn taken(&self, core: u16, from: Time, until: Time) -> Duration {
        let gaps = self.cores.get(&core).into_iter().flatten();
        gaps.map(|gap| gap.1.min(until).since(gap.0.max(from))).sum()
    }
}
