//! What a guaranteed rate does for a burst of frames, each worth something only when it is done in time.
//!
//! The question is published (Nguyen et al., WoSC'19); the formulas here are derived, for frames that come evenly at F
//! during W and whose start can wait s = D - C.

use std::time::Duration;

use model::Rate;

use crate::ratio::Ratio;

/// A burst that comes once in a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameBurst {
    /// F.
    pub frames: Rate,
    /// W: how long the burst lasts. Positive.
    pub length: Duration,
    /// P: from one burst to the next, at least W.
    pub every: Duration,
    /// s: how long a frame's start can wait.
    pub slack: Duration,
}

impl FrameBurst {
    /// The least rate at which every frame is on time: the larger of `F W / (W + s)` and `F W / P`. `None` when the exact
    /// number does not fit.
    ///
    /// Derived: the F W frames must start within W + s of the first; what a burst leaves must be gone when the next comes.
    #[must_use]
    pub fn required_rate(&self) -> Option<Ratio> {
        let within = self.length.checked_add(self.slack)?.min(self.every.max(self.length));
        let frames = u128::from(self.frames.invocations()).checked_mul(self.length.as_nanos())?;
        Ratio::new(frames, u128::from(self.frames.per_ns()).checked_mul(within.as_nanos())?)
    }

    /// The share of frames on time at `rate` when expired frames are dropped: `min(1, rate (W + s) / (F W))`.
    ///
    /// Derived: every slot until W + s goes to a frame that can still be on time. For display and comparison.
    #[must_use]
    pub fn quality_with_drop(&self, rate: Rate) -> f64 {
        let (length, slack) = (self.length.as_secs_f64(), self.slack.as_secs_f64());
        (rate.per_second_f64() * (length + slack) / (self.frames.per_second_f64() * length)).min(1.0)
    }

    /// The share of frames on time at `rate` when all are run in the order in which they came:
    /// `min(1, s rate / ((F - rate) W))`.
    ///
    /// Derived: the n-th frame comes at n/F and starts at n/rate, so only the first s / (1/rate - 1/F) start in time; at
    /// or above the required rate, all. For display and comparison.
    #[must_use]
    pub fn quality_in_order(&self, rate: Rate) -> f64 {
        let (frames, rate) = (self.frames.per_second_f64(), rate.per_second_f64());
        if frames <= rate {
            return 1.0;
        }
        (self.slack.as_secs_f64() * rate / ((frames - rate) * self.length.as_secs_f64())).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute() -> FrameBurst {
        FrameBurst {
            frames: Rate::per_second(30).unwrap(),
            length: Duration::from_secs(60),
            every: Duration::from_secs(900),
            slack: Duration::from_secs(1),
        }
    }

    /// The share of frames on time, counted one by one in whole nanoseconds.
    fn counted(burst: FrameBurst, rate: Rate, drop_expired: Late) -> f64 {
        let gap = |rate: Rate| rate.per_ns() / rate.invocations();
        let slack = u64::try_from(burst.slack.as_nanos()).unwrap();
        let total = burst.frames.floor_in(burst.length);
        let (mut slot, mut on_time) = (0_u64, 0_u64);
        for frame in 0..total {
            let arrival = frame * gap(burst.frames);
            let start = slot.max(arrival);
            let in_time = start <= arrival + slack;
            on_time += u64::from(in_time);
            if in_time || drop_expired == Late::Run {
                slot = start + gap(rate);
            }
        }
        let exact = |count: u64| f64::from(u32::try_from(count).unwrap());
        exact(on_time) / exact(total)
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Late {
        Drop,
        Run,
    }

    #[test]
    fn below_the_required_rate_dropping_is_linear_and_order_collapses() {
        for (rate, with_drop, in_order) in [("15/s", 0.508, 0.0167), ("22.5/s", 0.7625, 0.05), ("27/s", 0.915, 0.15)] {
            let rate: Rate = rate.parse().unwrap();
            let burst = minute();
            for (formula, expected) in [(burst.quality_with_drop(rate), with_drop), (burst.quality_in_order(rate), in_order)] {
                assert!((formula - expected).abs() < 0.001, "{rate}: {formula}");
            }
            assert!((counted(burst, rate, Late::Drop) - with_drop).abs() < 0.002, "{rate}");
            assert!((counted(burst, rate, Late::Run) - in_order).abs() < 0.002, "{rate}");
        }
    }

    #[test]
    fn the_required_rate_is_just_enough() {
        let needed = minute().required_rate().unwrap();
        assert_eq!((needed.invocations(), needed.per_ns()), (9, 305_000_000));
        assert!((needed.per_second_f64() - 29.508).abs() < 0.001);
        let often = FrameBurst { every: Duration::from_secs(60), ..minute() };
        assert_eq!(often.required_rate().and_then(Ratio::exact_rate), Some(often.frames));
    }
}
