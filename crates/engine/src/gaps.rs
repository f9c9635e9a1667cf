//! Gaps that the probes saw, kept for as long as a verdict may need them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use model::Time;

use crate::port::FRONT_CORE;

/// Gaps remembered for each core; at one probe per millisecond this is a quarter of a second of nothing but gaps.
pub(crate) const GAPS_PER_CORE: usize = 256;

/// The most recent gaps of every core.
#[derive(Clone, Debug, Default)]
pub struct Gaps {
    cores: BTreeMap<u16, VecDeque<(Time, Time)>>,
}

impl Gaps {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { cores: BTreeMap::new() }
    }

    /// Adds a gap of a core; of more than are remembered, the oldest is forgotten.
    pub fn note(&mut self, core: u16, from: Time, until: Time) {
        let gaps = self.cores.entry(core).or_default();
        if gaps.len() == GAPS_PER_CORE {
            gaps.pop_front();
        }
        gaps.push_back((from, until));
    }

    /// Whether the core, or the front's, was taken away at some time between the two instants. Requests and results of every
    /// core pass the front's.
    #[must_use]
    pub fn overlap(&self, core: u16, from: Time, until: Time) -> bool {
        let gaps = [core, FRONT_CORE].into_iter().filter_map(|core| self.cores.get(&core));
        gaps.flat_map(|gaps| gaps.iter().rev()).any(|gap| gap.0 < until && from < gap.1)
    }

    /// How much of the core, or of the front's, was taken away by gaps that reach into the time between the two instants, and
    /// when the last of them ended.
    pub(crate) fn between(&self, core: u16, from: Time, until: Time) -> (Duration, Option<Time>) {
        let front = Some(FRONT_CORE).filter(|front| *front != core);
        let gaps = [Some(core), front].into_iter().flatten().filter_map(|core| self.cores.get(&core)).flatten();
        let within = gaps.filter(|gap| gap.0 < until && from < gap.1);
        within.fold((Duration::ZERO, None), |(taken, last), gap| (taken + gap.1.since(gap.0), last.max(Some(gap.1))))
    }

    /// When the first of the remembered gaps of the core or of the front's ended. Whoever looks at a time that begins before sees all
    /// there are.
    pub(crate) fn first_end(&self, core: u16) -> Option<Time> {
        let gaps = [core, FRONT_CORE].into_iter().filter_map(|core| self.cores.get(&core)).flatten();
        gaps.map(|gap| gap.1).min()
    }

    /// How much a new gap of a core takes from the functions of `home` that was not taken from them yet. They need their own
    /// core and the front's: time in which both were gone counts once.
    #[must_use]
    pub fn fresh(&self, core: u16, home: u16, from: Time, until: Time) -> Duration {
        if core != home && core != FRONT_CORE {
            return Duration::ZERO;
        }
        let other = if core == home { FRONT_CORE } else { home };
        let counted = if other == core { Duration::ZERO } else { self.taken(other, from, until) };
        until.since(from).saturating_sub(counted)
    }

    /// How much of the time between the two instants the core was taken away.
    fn taken(&self, core: u16, from: Time, until: Time) -> Duration {
        let gaps = self.cores.get(&core).into_iter().flatten();
        gaps.map(|gap| gap.1.min(until).since(gap.0.max(from))).sum()
    }
}
