//! The rate that a set of periodic tasks needs so that every deadline is met.
//!
//! The tasks share one rate without bursts; waiting invocations are released by their latest start, earliest first, and a
//! slot may come a tolerance late. That guaranteed rates can meet the deadlines of any rate-monotonic workload is
//! published (Nguyen and Chien, PER 2024); the test and its proof here are derived.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::ratio::Ratio;

/// One task: in every period it needs `parallel` invocations, each done within the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeriodicTask {
    /// T, or the least distance of a sporadic task. Positive.
    pub period: Duration,
    /// C.
    pub max_run_time: Duration,
    /// D, above C and at most T.
    pub deadline: Duration,
    /// k, at least 1.
    pub parallel: u32,
}

/// What a set needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// U: the sum of k/T; no rate below it is enough.
    pub floor: Ratio,
    /// The least rate at which no deadline is missed.
    pub rate: Ratio,
    /// The sum of k/(D - C - tolerance): what the tasks need with a rate each.
    pub apart: Ratio,
}

/// Why no rate can be named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("there are no tasks to find a rate for")]
    NoTasks,
    #[error(
        "task {task} has a deadline of {deadline:?}, which must be above its run time of {run_time:?} and at most its period of {period:?}, with at least one invocation"
    )]
    Task { task: usize, run_time: Duration, deadline: Duration, period: Duration },
    #[error(
        "task {task} can wait {slack:?} for its start, which is not more than the tolerance of {tolerance:?}: no rate is enough"
    )]
    Tolerance { task: usize, slack: Duration, tolerance: Duration },
    #[error("the periods have too little in common for an exact answer within {limit} steps; round them")]
    TooLong { limit: u32 },
}

/// Latest starts looked at.
const MAX_STEPS: u32 = 2_000_000;

impl PeriodicTask {
    /// s = D - C: how long a start can wait.
    fn slack(&self) -> Duration {
        self.deadline.saturating_sub(self.max_run_time)
    }

    fn check(&self, task: usize, tolerance: Duration) -> Result<(), Error> {
        if self.deadline <= self.max_run_time || self.period < self.deadline || self.parallel == 0 {
            let (run_time, deadline, period) = (self.max_run_time, self.deadline, self.period);
            return Err(Error::Task { task, run_time, deadline, period });
        }
        if self.slack() <= tolerance {
            return Err(Error::Tolerance { task, slack: self.slack(), tolerance });
        }
        Ok(())
    }
}

/// The least shared rate: `max(U, max N(t) / (t - e))` over the latest starts `t = s_i + j T_i`, with
/// `N(t) = sum k_i max(0, floor((t - s_i)/T_i) + 1)` and e the tolerance.
///
/// Derived. Enough: let a start miss at d, and x be the last instant before it with nothing pending that must start by d.
/// From x to d every slot serves what came since x and must start by d: at most N(d - x) invocations; and there are at
/// least floor(rate (d - x - e)) slots. Needed: let all tasks begin just after a slot; more than floor(rate (t - e))
/// invocations then have to start by t. Later points need no look once t >= (A + rate e)/(rate - U) with
/// A = sum k_i (1 - s_i/T_i), because N(t) <= U t + A; and if U was enough up to one common
/// period H beyond the longest slack, it is for ever, since then N(t + H) = N(t) + U H.
pub fn required_rate(tasks: &[PeriodicTask], tolerance: Duration) -> Result<Requirement, Error> {
    let too_long = Error::TooLong { limit: MAX_STEPS };
    for (index, task) in tasks.iter().enumerate() {
        task.check(index, tolerance)?;
    }
    let sum = |ratio: fn(&PeriodicTask, Duration) -> Option<Ratio>| {
        tasks
            .iter()
            .try_fold(Ratio::ZERO, |sum, task| sum.plus(ratio(task, tolerance)?))
            .ok_or(Error::TooLong { limit: MAX_STEPS })
    };
    let floor = sum(|task, _| Ratio::new(task.parallel.into(), task.period.as_nanos()))?;
    let apart = sum(|task, late| Ratio::new(task.parallel.into(), task.slack().saturating_sub(late).as_nanos()))?;
    // A, as a plain number.
    let lead = sum(|task, _| {
        Ratio::new(u128::from(task.parallel) * task.period.saturating_sub(task.slack()).as_nanos(), task.period.as_nanos())
    })?;
    let last_without_excess = common_period(tasks).and_then(|common| common.checked_add(longest_slack(tasks)));
    let search = Search { floor, lead, late: tolerance.as_nanos(), last_without_excess };
    let rate = if tasks.is_empty() { return Err(Error::NoTasks) } else { search.run(tasks).ok_or(too_long)? };
    Ok(Requirement { floor, rate, apart })
}

fn longest_slack(tasks: &[PeriodicTask]) -> u128 {
    tasks.iter().map(|task| task.slack().as_nanos()).max().unwrap_or(0)
}

/// The least common multiple of the periods, nanoseconds.
fn common_period(tasks: &[PeriodicTask]) -> Option<u128> {
    tasks.iter().try_fold(1_u128, |common, task| {
        let period = task.period.as_nanos();
        let (mut a, mut b) = (common, period);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        (common / a).checked_mul(period)
    })
}

#[derive(Clone, Copy, Debug)]
struct Search {
    floor: Ratio,
    lead: Ratio,
    late: u128,
    last_without_excess: Option<u128>,
}

impl Search {
    fn run(&self, tasks: &[PeriodicTask]) -> Option<Ratio> {
        let mut points: BinaryHeap<Reverse<(u128, usize)>> =
            tasks.iter().enumerate().map(|(index, task)| Reverse((task.slack().as_nanos(), index))).collect();
        let mut needed: u128 = 0;
        let mut best = self.floor;
        for _ in 0..MAX_STEPS {
            let Reverse((at, index)) = points.pop()?;
            if self.is_done(best, at)? {
                return Some(best);
            }
            needed += u128::from(tasks[index].parallel);
            points.push(Reverse((at.checked_add(tasks[index].period.as_nanos())?, index)));
            let here = Ratio::new(needed, at - self.late)?;
            if here.compare(best) == Ordering::Greater {
                best = here;
            }
        }
        None
    }

    /// No later point can need more than `best`.
    fn is_done(&self, best: Ratio, at: u128) -> Option<bool> {
        if best == self.floor {
            return Some(self.last_without_excess.is_some_and(|last| last < at));
        }
        // A + best e <= (best - U) t, all of it as ratios over one.
        let whole = |ratio: Ratio, by: u128| Ratio::new(ratio.invocations().checked_mul(by)?, ratio.per_ns());
        let left = self.lead.plus(whole(best, self.late)?)?;
        let right = whole(best.minus(self.floor)?, at)?;
        Some(left.compare(right) != Ordering::Greater)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn task(period_us: u64, run_us: u64, parallel: u32) -> PeriodicTask {
        let period = Duration::from_micros(period_us);
        PeriodicTask { period, max_run_time: Duration::from_micros(run_us), deadline: period, parallel }
    }

    fn two_core_set() -> Vec<PeriodicTask> {
        vec![task(100_000, 40_000, 2), task(250_000, 100_000, 4), task(1_000_000, 300_000, 8)]
    }

    fn check(tasks: &[PeriodicTask], tolerance_ms: u64, expected: [f64; 3]) {
        let found = required_rate(tasks, Duration::from_millis(tolerance_ms)).unwrap();
        for (ratio, expected) in [found.floor, found.rate, found.apart].into_iter().zip(expected) {
            assert!((ratio.per_second_f64() - expected).abs() < 0.05, "{found:?} {expected}");
        }
    }

    #[test]
    fn sharing_a_rate_needs_less_than_a_rate_each() {
        check(&two_core_set(), 0, [44.0, 50.0, 71.43]);
        check(&two_core_set(), 10, [44.0, 53.33, 80.17]);
        check(
            &[
                task(8_333, 5_000, 1),
                task(8_333, 1_000, 1),
                task(66_667, 40_000, 1),
                task(20_833, 2_000, 1),
                task(33_333, 20_000, 1),
            ],
            0,
            [333.01, 352.96, 602.0],
        );
    }

    #[test]
    fn a_tolerance_as_long_as_the_slack_leaves_no_rate() {
        let error = required_rate(&two_core_set(), Duration::from_millis(60)).unwrap_err();
        assert!(matches!(error, Error::Tolerance { task: 0, .. }), "{error}");
        let late = PeriodicTask { deadline: Duration::from_millis(40), ..task(100_000, 40_000, 1) };
        assert!(matches!(required_rate(&[late], Duration::ZERO), Err(Error::Task { task: 0, .. })));
        assert_eq!(required_rate(&[], Duration::ZERO), Err(Error::NoTasks));
    }

    /// All tasks begin together just after a slot. Counts the starts later than the latest; time runs in parts of
    /// 1 / (per mille x invocations) nanoseconds, in which the slots are whole.
    fn misses(tasks: &[PeriodicTask], rate: Ratio, thousandths: u128) -> usize {
        let (scale, gap) = (rate.invocations() * thousandths, rate.per_ns() * 1000);
        let longest = tasks.iter().map(|task| task.period.as_nanos()).max().unwrap();
        let mut releases: Vec<(u128, u128)> = Vec::new();
        for task in tasks {
            for job in (0..).map(|nth: u128| nth * task.period.as_nanos()).take_while(|at| *at < 60 * longest) {
                let one = (job * scale, (job + task.slack().as_nanos()) * scale);
                releases.extend(std::iter::repeat_n(one, task.parallel as usize));
            }
        }
        releases.sort_unstable();
        let (mut queue, mut slot, mut late) = (BTreeSet::new(), gap, 0);
        let mut coming = releases.into_iter().enumerate().peekable();
        loop {
            if queue.is_empty() {
                let Some((_, (at, _))) = coming.peek() else { return late };
                slot = slot.max(*at);
            }
            while let Some((id, (_, latest))) = coming.next_if(|(_, (at, _))| *at <= slot) {
                queue.insert((latest, id));
            }
            let (latest, _) = queue.pop_first().unwrap();
            late += usize::from(latest < slot);
            slot += gap;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn at_the_required_rate_no_deadline_is_missed_and_just_below_one_is(
            set in prop::collection::vec((4_u64..40, 1_u64..100, 0_u64..100, 1_u32..4), 1..5),
        ) {
            let tasks: Vec<PeriodicTask> = set.iter().map(|(period, run, tight, parallel)| {
                let whole = task(period * 10_000, 0, *parallel);
                let max_run_time = whole.period * u32::try_from(*run).unwrap() / 110;
                let room = whole.period - max_run_time;
                PeriodicTask { max_run_time, deadline: whole.period - room * u32::try_from(*tight).unwrap() / 120, ..whole }
            }).collect();
            let found = required_rate(&tasks, Duration::ZERO).unwrap();
            prop_assert!(found.floor.compare(found.rate) != Ordering::Greater);
            prop_assert!(found.rate.compare(found.apart) != Ordering::Greater);
            prop_assert_eq!(misses(&tasks, found.rate, 1000), 0);
            // At the floor itself the backlog grows too slowly to show in a short run.
            if found.rate != found.floor {
                prop_assert_ne!(misses(&tasks, found.rate, 995), 0);
            }
        }
    }
}
