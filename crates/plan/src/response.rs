//! Worst start delays and response times on one core under preemptive fixed priorities, first in first out within one.
//!
//! The analysis looks at the time a job can spend behind others from the last instant at which nothing of its own or a
//! higher priority was left to do (the busy period; published: Lehoczky, RTSS'90; Tindell, Burns and Wellings, RTS 1994).
//! Instead of periods it counts arrivals of a rate with a burst. Three things are added, each derived at its place: jobs
//! that wait of their own accord, the start of a job as an event of its own, and a tolerance by which releases are late.
//!
//! All bounds are without the tolerance T: a start happens by arrival + S + T, an end by arrival + R + T.

use std::time::Duration;

use crate::flow::Flow;

/// Whether a job may give up the core before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It runs to its end, so jobs of one priority finish in the order in which they came.
    Never,
    /// It may wait, in any number of pieces: executing and waiting together take at most its cost plus this.
    Within(Duration),
}

/// One function's share of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    pub flow: Flow,
    /// c: the CPU time a job may use, with everything the platform adds to it. Positive.
    pub cost: Duration,
    pub waiting: Waiting,
    /// 0 is the highest priority; tasks may share one.
    pub level: u32,
}

/// Work that precedes all tasks of the core: timer ticks, the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interference {
    pub flow: Flow,
    pub cost: Duration,
    pub delayed: Delayed,
}

/// By how much work of the platform may lag the arrival that causes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delayed {
    /// At most this much, beside T.
    By(Duration),
    /// Until a job of the task with this index has ended.
    UntilEndOf(usize),
}

/// What shares one core.
#[derive(Clone, Copy, Debug)]
pub struct Core<'a> {
    pub tasks: &'a [Task],
    pub platform: &'a [Interference],
    /// T: releases may be this late, and the machine may be taken away for this long.
    pub tolerance: Duration,
}

/// What a job of a task can meet at worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// S: from arrival to start, without T.
    pub start: Duration,
    /// R: from arrival to end, without T.
    pub response: Duration,
}

/// No bound below [`LONGEST_BOUND`] exists for a task, or it was not found within the limits of the analysis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worst response of task {task} has no bound")]
pub struct Unbounded {
    /// Its index.
    pub task: usize,
}

/// The longest start delay or response the analysis returns.
pub const LONGEST_BOUND: Duration = Duration::from_secs(10_000);
/// Steps towards one fixed point; each adds at least one job, and at 85 % utilisation a hundred are many.
const MAX_STEPS: u32 = 20_000;
/// Jobs of one task looked at in one busy period.
const MAX_JOBS: u128 = 100_000;
/// Rounds in which responses feed the delays of the next.
const MAX_ROUNDS: u32 = 2_000;

/// Bounds for all tasks of a core, in their order.
///
/// Responses feed delays (a job that waits executes late, the front answers when a job ends), so the bounds are the least
/// fixed point of all of them together, reached from below: every step is monotone. So a round may go on from the last one's
/// responses, and use this one's as they come.
pub fn analyse(core: Core<'_>) -> Result<Vec<Bound>, Unbounded> {
    let mut responses: Vec<u128> = vec![0; core.tasks.len()];
    for _ in 0..MAX_ROUNDS {
        let mut settled = true;
        for task in 0..core.tasks.len() {
            let next = State { core, responses: &responses }.response(task).filter(within_limit).ok_or(Unbounded { task })?;
            settled &= next == responses[task];
            responses[task] = next;
        }
        if settled {
            return bounds(State { core, responses: &responses });
        }
    }
    Err(Unbounded { task: 0 })
}

/// The longest time for which the given work keeps a core busy without a pause; `None` beyond the limits of the analysis.
///
/// Published (Lehoczky): whatever the order of the work, all that comes in such a time is done within it.
///
/// # Panics
/// When work is delayed until the end of a task: there are none.
#[must_use]
pub fn busy_period(work: &[Interference], tolerance: Duration) -> Option<Duration> {
    let lagging = |it: &Interference| match it.delayed {
        Delayed::By(lag) => Work { flow: it.flow, late: (tolerance.saturating_add(lag)).as_nanos(), cost: it.cost.as_nanos() },
        Delayed::UntilEndOf(task) => unreachable!("work until the end of task {task}, where there are no tasks"),
    };
    let work = Before(work.iter().filter(|it| !it.cost.is_zero()).map(lagging).collect());
    fixed_point(work.at_least(0)?, |w| work.in_half_open(w)).filter(within_limit).map(duration)
}

fn bounds(state: State<'_>) -> Result<Vec<Bound>, Unbounded> {
    let bound = |(task, response): (usize, &u128)| {
        let start = state.start(task).filter(within_limit).ok_or(Unbounded { task })?;
        Ok(Bound { start: duration(start), response: duration(*response) })
    };
    state.responses.iter().enumerate().map(bound).collect()
}

const fn within_limit(ns: &u128) -> bool {
    *ns <= LONGEST_BOUND.as_nanos()
}

fn duration(ns: u128) -> Duration {
    Duration::from_nanos(u64::try_from(ns).expect("invariant: bounds stay below LONGEST_BOUND"))
}

/// How a task's own jobs are counted in its own analysis.
#[derive(Clone, Copy, Debug)]
struct Own {
    /// Charged per job.
    cost: u128,
    /// Jobs that came up to this long before the busy period may still have work left in it.
    carry: u128,
}

#[derive(Clone, Copy, Debug)]
struct State<'a> {
    core: Core<'a>,
    /// The responses found so far, nanoseconds.
    responses: &'a [u128],
}

impl State<'_> {
    fn tolerance(&self) -> u128 {
        self.core.tolerance.as_nanos()
    }

    /// By how much a task's work may lag its arrivals, beside T.
    ///
    /// A job that never waits, and one whose waiting is charged as if it executed (its cost is its whole own time), lags by
    /// nothing: published ("suspension-oblivious", Chen et al., RTS 2019). Any other lags by R - c (published there; for
    /// several jobs of one task at once derived: let the last of the jobs that came before t - (R - c) come at
    /// t - R + d. All of these end by t + d and so do at most d of work in the window from t. Of the arrivals from that
    /// job on, counted over a window of length w + R - c, all but the first of them do at most c each, and whatever
    /// comes after that window comes within the last c - d of it. The sum is at most c times the count.)
    fn lag(&self, task: usize) -> u128 {
        let it = &self.core.tasks[task];
        match it.waiting {
            Waiting::Never => 0,
            Waiting::Within(wait) if wait.is_zero() => 0,
            Waiting::Within(_) => self.responses[task].saturating_sub(it.cost.as_nanos()),
        }
    }

    /// What may precede a job of `task`. Jobs of the same priority count like higher ones: they may have come just before.
    fn others(&self, task: usize) -> Before {
        let tasks = self.core.tasks.iter().enumerate();
        let before = tasks.filter(|(other, it)| *other != task && it.level <= self.core.tasks[task].level);
        let work = before.map(|(other, it)| (it.flow, self.lag(other), it.cost));
        let platform = self.core.platform.iter().map(|it| match it.delayed {
            Delayed::By(lag) => (it.flow, lag.as_nanos(), it.cost),
            Delayed::UntilEndOf(other) => (it.flow, self.responses[other], it.cost),
        });
        let all = work.chain(platform).filter(|(_, _, cost)| !cost.is_zero());
        let tolerance = self.tolerance();
        Before(all.map(|(flow, lag, cost)| Work { flow, late: tolerance + lag, cost: cost.as_nanos() }).collect())
    }

    /// R. A job that never waits: the worst of the busy period's jobs. One that may: the smaller of two valid bounds.
    fn response(&self, task: usize) -> Option<u128> {
        let it = &self.core.tasks[task];
        let cost = it.cost.as_nanos();
        match it.waiting {
            Waiting::Never => self.worst_job(task, Own { cost, carry: 0 }, Event::End),
            Waiting::Within(wait) => {
                let charged = self.response_charged(task, cost + wait.as_nanos());
                let aware = if wait.is_zero() { None } else { self.response_aware(task, wait.as_nanos()) };
                smaller(charged, aware)
            }
        }
    }

    /// The response when all waiting is charged like executing: the longest busy period.
    ///
    /// Derived: after it waited, a job queues behind later ones of its own priority, so these delay it too and the order of
    /// coming no longer helps. Every instant from the last one at which no job of this or a higher priority was pending is
    /// charged to one that is; so a job ends within the busy period, and the worst one came at its beginning.
    fn response_charged(&self, task: usize, own_time: u128) -> Option<u128> {
        let mut before = self.others(task);
        before.0.push(Work { flow: self.core.tasks[task].flow, late: self.tolerance(), cost: own_time });
        let from = before.at_least(0)?.max(own_time).max(self.responses[task]);
        fixed_point(from, |w| before.in_half_open(w))
    }

    /// The response when waiting is kept apart: own jobs may have come up to R - c before the busy period (see
    /// [`State::lag`]), and the job's own waiting is added.
    fn response_aware(&self, task: usize, wait: u128) -> Option<u128> {
        let it = &self.core.tasks[task];
        let cost = it.cost.as_nanos();
        let before = self.others(task);
        let from = before.at_least(0)?.max(cost + wait).max(self.responses[task]);
        fixed_point(from, |w| {
            let own = it.flow.in_half_open(w + self.tolerance() + w.saturating_sub(cost)).saturating_mul(cost);
            before.in_half_open(w).saturating_add(own).saturating_add(wait)
        })
    }

    /// S. Jobs start in the order in which they came (one that resumes queues behind), so only earlier own jobs count.
    fn start(&self, task: usize) -> Option<u128> {
        let it = &self.core.tasks[task];
        let cost = it.cost.as_nanos();
        match it.waiting {
            Waiting::Never => self.worst_job(task, Own { cost, carry: 0 }, Event::Start),
            Waiting::Within(wait) => {
                let charged = self.worst_job(task, Own { cost: cost + wait.as_nanos(), carry: 0 }, Event::Start);
                let aware =
                    if wait.is_zero() { None } else { self.worst_job(task, Own { cost, carry: self.lag(task) }, Event::Start) };
                smaller(charged, aware)
            }
        }
    }

    /// The worst delay from arrival to the event over the jobs of the longest busy period.
    ///
    /// The n-th job comes no earlier than (n - b)/r - carry after its begin. All with n <= b + r x carry may come at its
    /// begin, and the last of them fares worst. Ends count arrivals before them, starts also arrivals at the same instant.
    fn worst_job(&self, task: usize, own: Own, event: Event) -> Option<u128> {
        let flow = self.core.tasks[task].flow;
        let late = self.tolerance() + own.carry;
        let mut before = self.others(task);
        before.0.push(Work { flow, late, cost: own.cost });
        let busy = fixed_point(before.at_least(0)?.max(own.cost), |w| before.in_half_open(w))?;
        before.0.pop();
        let first = flow.in_closed(own.carry);
        let last = flow.in_half_open(busy + late).max(first);
        if MAX_JOBS < last - first {
            return None;
        }
        let (mut worst, mut last_at) = (0, 0);
        for nth in first..=last {
            let earlier = match event {
                Event::Start => (nth - 1) * own.cost,
                Event::End => nth * own.cost,
            };
            let from = before.at_least(earlier)?.max(earlier).max(last_at);
            let at = match event {
                Event::Start => fixed_point(from, |w| before.in_closed(w).saturating_add(earlier))?,
                Event::End => fixed_point(from, |w| before.in_half_open(w).saturating_add(earlier))?,
            };
            worst = worst.max(at - flow.earliest_ns(nth).saturating_sub(own.carry).min(at));
            last_at = at;
        }
        Some(worst)
    }
}

/// One stream of jobs that precede another.
#[derive(Clone, Copy, Debug)]
struct Work {
    flow: Flow,
    /// Jobs that came up to this long before a window may still work in it.
    late: u128,
    cost: u128,
}

#[derive(Clone, Debug)]
struct Before(Vec<Work>);

const TRILLION: u128 = 1_000_000_000_000;

impl Before {
    /// The most work in a half-open window of positive length.
    fn in_half_open(&self, window: u128) -> u128 {
        self.sum(|it| it.flow.in_half_open(window + it.late))
    }

    /// The most work in a closed window.
    fn in_closed(&self, window: u128) -> u128 {
        self.sum(|it| it.flow.in_closed(window + it.late))
    }

    fn sum(&self, count: impl Fn(&Work) -> u128) -> u128 {
        self.0.iter().fold(0, |sum, it| sum.saturating_add(count(it).saturating_mul(it.cost)))
    }

    /// A time that no fixed point with this and `more` work lies below; `None` where there is none because the core is
    /// overloaded. It only shortens the search.
    ///
    /// Derived: both counts are at least b - 1 + r (w + late), so the work is at least A + U w, and w >= A/(1 - U). U is
    /// rounded down, in trillionths.
    fn at_least(&self, more: u128) -> Option<u128> {
        let zero = |it: &Work| (it.flow.burst() - 1).saturating_add(it.flow.floor_in(it.late));
        let used = self.0.iter().fold(0_u128, |used, it| used.saturating_add(it.flow.share(it.cost, TRILLION)));
        let left = TRILLION.checked_sub(used).filter(|left| 0 < *left)?;
        Some(self.sum(zero).saturating_add(more).saturating_mul(TRILLION) / left)
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Start,
    End,
}

fn smaller(a: Option<u128>, b: Option<u128>) -> Option<u128> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (found, None) | (None, found) => found,
    }
}

/// The least fixed point of a monotone function at or above `from`, which must not exceed it; `None` beyond the limits.
fn fixed_point(from: u128, step: impl Fn(u128) -> u128) -> Option<u128> {
    let mut at = from;
    for _ in 0..MAX_STEPS {
        if !within_limit(&at) {
            return None;
        }
        let next = step(at);
        if next <= at {
            return Some(at);
        }
        at = next;
    }
    None
}

#[cfg(test)]
mod tests;
