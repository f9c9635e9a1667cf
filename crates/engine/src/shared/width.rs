//! How many instances of a function are used at once.
//!
//! A run that computes needs a core, and more of them at once than there are cores only take turns: every further instance
//! costs its start, its memory and a share of the caches, and nothing is done sooner. A run that waits for something else
//! needs no core, and as many as there are may wait at once. So the part of a run in which its instance wanted a core, used
//! or waited for, says how many are of use: with n cores and a part p of its time that is n / p.
//!
//! The part is sampled and may be out of date, so it never holds anybody up for long: no function is held to fewer than there
//! are cores, and one that is held and is given nothing for [`HELD_MAX`], or four of its mean runs if that is longer, is
//! held no more until it is measured again.

use std::time::Duration;

use model::Time;

/// A function that is held gets an instance within this time, whatever was learned; longer than most starts take.
const HELD_MAX: Duration = Duration::from_millis(200);
/// Mean runs that a function waits before what was learned about it counts as wrong.
const HELD_MEAN_RUNS: u32 = 4;

/// What is known about one function's runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Width {
    learned: Option<Sample>,
    /// When an invocation was last given to an instance, or began to be held.
    moved: Time,
    /// A look at whether it is held for too long is due at some time.
    pub(super) looks: Looks,
}

/// Whether a timer for a function is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Looks {
    #[default]
    No,
    Set,
}

/// Length of runs and the part in which they wanted a core; moving means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    run: Duration,
    wanted: Duration,
}

impl Width {
    /// A run took `run`, and its instance used or waited for a core for `wanted` of it. Long runs weigh more than short ones:
    /// where some wait and others compute, the ones that wait need the room.
    pub(super) fn learn(&mut self, run: Duration, wanted: Duration) {
        let new = Sample { run: run.max(wanted), wanted };
        let mean = |old: Duration, new: Duration| (old * 7 + new) / 8;
        self.learned =
            Some(self.learned.map_or(new, |old| Sample { run: mean(old.run, new.run), wanted: mean(old.wanted, new.wanted) }));
    }

    /// How many instances are of use at once on `cores` cores; no fewer than `cores`.
    pub(super) fn limit(&self, cores: u32) -> u32 {
        let Some(Sample { run, wanted }) = self.learned else { return u32::MAX };
        if wanted.is_zero() {
            return u32::MAX;
        }
        let limit = (u128::from(cores) * run.as_nanos()).div_ceil(wanted.as_nanos());
        u32::try_from(limit).unwrap_or(u32::MAX).max(cores)
    }

    /// An invocation was given to an instance, or the first one is held.
    pub(super) fn moves(&mut self, now: Time) {
        self.moved = now;
    }

    /// When whoever is still held then is held no more, with runs of this mean length.
    pub(super) fn held_until(&self, mean_run: Duration) -> Time {
        self.moved + HELD_MAX.max(mean_run * HELD_MEAN_RUNS)
    }

    /// What was learned is wrong.
    pub(super) fn forget(&mut self) {
        self.learned = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn check(samples: &[(u64, u64)], expected: u32) {
        let mut width = Width::default();
        for (run, wanted) in samples {
            width.learn(ms(*run), ms(*wanted));
        }
        assert_eq!(width.limit(2), expected, "{samples:?}");
    }

    #[test]
    fn as_many_are_of_use_as_their_wish_for_a_core_fits_into_the_cores() {
        check(&[], u32::MAX);
        check(&[(10, 10)], 2);
        check(&[(10, 5)], 4);
        check(&[(100, 3)], 67);
        check(&[(10, 0)], u32::MAX);
        // More than its whole length: several threads.
        check(&[(10, 30)], 2);
    }

    #[test]
    fn whoever_waits_makes_room_for_all() {
        check(&[(1, 1), (800, 1), (1, 1)], 177);
    }

    proptest! {
        #[test]
        fn the_limit_is_never_below_the_cores(
            samples in prop::collection::vec((0_u64..100_000, 0_u64..100_000), 0..20),
            cores in 1_u32..256,
        ) {
            let mut width = Width::default();
            for (run, wanted) in samples {
                width.learn(ms(run), ms(wanted));
            }
            prop_assert!(cores <= width.limit(cores));
        }
    }
}
