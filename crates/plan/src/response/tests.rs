use model::{Burst, Rate};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::simulator::{Job, Worst, simulate};

const UNIT: u64 = 100_000;

fn task(rate: &str, burst: u32, cost_ms: u64, level: u32) -> Task {
    let flow = Flow::new(rate.parse().unwrap(), Burst::new(burst).unwrap());
    Task { flow, cost: Duration::from_millis(cost_ms), waiting: Waiting::Never, level }
}

fn bare(tasks: &[Task]) -> Core<'_> {
    Core { tasks, platform: &[], tolerance: Duration::ZERO }
}

fn check(tasks: &[Task], expected_ms: &[(u64, u64)]) {
    let found: Vec<(u128, u128)> =
        analyse(bare(tasks)).unwrap().iter().map(|bound| (bound.start.as_millis(), bound.response.as_millis())).collect();
    let expected: Vec<(u128, u128)> = expected_ms.iter().map(|(s, r)| (u128::from(*s), u128::from(*r))).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_measured_prototype_keeps_these_bounds() {
    check(&[task("100/s", 1, 2, 0), task("10/s", 3, 20, 1)], &[(0, 2), (52, 76)]);
    check(&[task("50/s", 2, 4, 0), task("20/s", 1, 10, 1)], &[(4, 8), (8, 18)]);
}

#[test]
fn utilisation_alone_says_nothing_about_the_start() {
    let tasks = [task("100/s", 1, 2, 0), task("10/s", 3, 20, 1)];
    let used: u64 = tasks.iter().map(|task| task.flow.nanocores(task.cost)).sum();
    assert_eq!(used, 400_000_000);
    assert_eq!(analyse(bare(&tasks)).unwrap()[1].start, Duration::from_millis(52));
}

#[test]
fn more_work_than_the_core_has_is_unbounded() {
    let tasks = [task("100/s", 1, 6, 0), task("50/s", 1, 9, 1)];
    assert_eq!(analyse(bare(&tasks)), Err(Unbounded { task: 1 }));
}

#[test]
fn a_later_tolerance_brings_one_more_arrival_before_the_start() {
    let tasks = [task("100/s", 1, 2, 0), task("10/s", 1, 9, 1)];
    let late = Core { tolerance: Duration::from_millis(9), ..bare(&tasks) };
    assert_eq!(analyse(bare(&tasks)).unwrap()[1].start, Duration::from_millis(2));
    assert_eq!(analyse(late).unwrap()[1].start, Duration::from_millis(4));
}

/// A random set with whole periods. Returns the period of each task too.
fn random_tasks(rng: &mut ChaCha8Rng, waits: Waits) -> (Vec<Task>, Vec<u64>) {
    let count = rng.random_range(1..=4_u32);
    let mut tasks = Vec::new();
    let mut periods = Vec::new();
    for level in 0..count {
        let burst = rng.random_range(1..=3);
        let period = rng.random_range(4..60) * UNIT;
        let cost = (period / u64::from(count) * rng.random_range(10..95) / 100 / 1000 + 1) * 1000;
        let rate = Rate::new(1, Duration::from_nanos(period)).unwrap();
        let waiting = match waits {
            Waits::No => Waiting::Never,
            Waits::Yes => Waiting::Within(Duration::from_nanos(rng.random_range(0..3) * rng.random_range(0..period))),
        };
        let level = match waits {
            Waits::No => level,
            Waits::Yes => rng.random_range(0..=level),
        };
        let flow = Flow::new(rate, Burst::new(burst).unwrap());
        tasks.push(Task { flow, cost: Duration::from_nanos(cost), waiting, level });
        periods.push(period);
    }
    (tasks, periods)
}

#[derive(Clone, Copy, Debug)]
enum Waits {
    No,
    Yes,
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap()
}

/// Conforming arrivals up to `horizon`: a row of greedy bursts, each after a random pause.
fn arrivals(rng: &mut ChaCha8Rng, it: &Task, period: u64, horizon: u64) -> Vec<u64> {
    let burst = u64::try_from(it.flow.burst()).unwrap();
    let (mut next_slot, mut now, mut seen) = (0_u64, rng.random_range(0..2) * rng.random_range(0..period), Vec::new());
    while now < horizon {
        seen.push(now);
        next_slot = next_slot.max(now) + period;
        let conforming = next_slot.saturating_sub((burst - 1) * period).max(now);
        let pause = if rng.random_range(0..6) == 0 { rng.random_range(0..4 * period) } else { 0 };
        now = conforming + pause;
    }
    seen
}

/// Pieces of a job that executes at most `cost` and takes at most `cost + wait` of its own time.
fn pieces(rng: &mut ChaCha8Rng, cost: u64, waiting: Waiting) -> Vec<(u64, u64)> {
    let Waiting::Within(wait) = waiting else { return vec![(cost, 0)] };
    let wait = ns(wait);
    match rng.random_range(0..4) {
        0 => vec![(cost, wait)],
        1 => vec![(1, wait), (cost - 1, 0)],
        2 => {
            let first = rng.random_range(1..cost);
            vec![(first, rng.random_range(0..=wait)), (cost - first, 0)]
        }
        _ => {
            let less = rng.random_range(1..cost);
            vec![(1, wait + less - 1), (cost - less, 0)]
        }
    }
}

fn jobs(rng: &mut ChaCha8Rng, tasks: &[Task], periods: &[u64], tolerance: u64) -> Vec<Job> {
    let horizon = 400 * UNIT;
    let mut jobs = Vec::new();
    for (task, it) in tasks.iter().enumerate() {
        for arrival in arrivals(rng, it, periods[task], horizon) {
            let release = arrival + rng.random_range(0..=tolerance);
            jobs.push(Job { task, level: it.level, arrival, release, pieces: pieces(rng, ns(it.cost), it.waiting) });
        }
    }
    jobs
}

fn assert_within(found: &[Worst], bounds: &[Bound], tolerance: u64, seed: u64) {
    for (worst, bound) in found.iter().zip(bounds) {
        assert!(worst.start <= ns(bound.start) + tolerance, "seed {seed}: {worst:?} {bound:?}");
        assert!(worst.response <= ns(bound.response) + tolerance, "seed {seed}: {worst:?} {bound:?}");
    }
}

fn no_bound_is_exceeded(waits: Waits, seeds: u64) {
    let mut analysed = 0;
    for seed in 0..seeds {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (tasks, periods) = random_tasks(&mut rng, waits);
        let tolerance = rng.random_range(0..2) * rng.random_range(0..5 * UNIT);
        let core = Core { tasks: &tasks, platform: &[], tolerance: Duration::from_nanos(tolerance) };
        let Ok(bounds) = analyse(core) else { continue };
        analysed += 1;
        for _ in 0..4 {
            let jobs = jobs(&mut rng, &tasks, &periods, tolerance);
            assert_within(&simulate(tasks.len(), jobs), &bounds, tolerance, seed);
        }
    }
    assert!(seeds / 2 < analysed, "only {analysed} of {seeds} sets have bounds");
}

#[test]
fn jobs_that_never_wait_stay_within_their_bounds() {
    no_bound_is_exceeded(Waits::No, 1_500);
}

#[test]
fn jobs_that_wait_and_share_priorities_stay_within_their_bounds() {
    no_bound_is_exceeded(Waits::Yes, 3_000);
}

#[test]
fn bursts_that_meet_reach_the_bounds_exactly() {
    for seed in 0..600 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (tasks, _) = random_tasks(&mut rng, Waits::No);
        let Ok(bounds) = analyse(bare(&tasks)) else { continue };
        let horizon = bounds.iter().map(|bound| ns(bound.response)).max().unwrap() + 100 * UNIT;
        let mut jobs = Vec::new();
        for (task, it) in tasks.iter().enumerate() {
            let slots = (1..).map(|nth| u64::try_from(it.flow.earliest_ns(nth)).unwrap());
            for arrival in slots.take_while(|at| *at < horizon) {
                jobs.push(Job { task, level: it.level, arrival, release: arrival, pieces: vec![(ns(it.cost), 0)] });
            }
        }
        for (worst, bound) in simulate(tasks.len(), jobs).iter().zip(&bounds) {
            assert_eq!((worst.start, worst.response), (ns(bound.start), ns(bound.response)), "seed {seed}");
        }
    }
}

#[test]
fn answers_load_the_front_when_jobs_end() {
    let tasks = [task("100/s", 1, 2, 0), task("50/s", 1, 8, 1)];
    let front = |delayed| {
        let it = Interference { flow: tasks[1].flow, cost: Duration::from_millis(1), delayed };
        let core = Core { platform: &[it], ..bare(&tasks) };
        analyse(core).unwrap()[1].response
    };
    let at_once = front(Delayed::By(Duration::ZERO));
    assert_eq!(at_once, Duration::from_millis(13));
    assert_eq!(front(Delayed::UntilEndOf(1)), Duration::from_millis(14));
}
