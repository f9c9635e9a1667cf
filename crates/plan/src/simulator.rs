//! An exact simulation of one core: preemptive fixed priorities, first in first out within one, jobs that may wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One demand for the core. Times in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) task: usize,
    /// 0 is the highest.
    pub(crate) level: u32,
    /// When it is counted as come.
    pub(crate) arrival: u64,
    /// When it can first run.
    pub(crate) release: u64,
    /// It executes, then waits, in turn.
    pub(crate) pieces: Vec<(u64, u64)>,
}

/// What became of the jobs of one task: the largest delays from arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Worst {
    pub(crate) start: u64,
    pub(crate) response: u64,
}

#[derive(Debug)]
struct Live {
    job: Job,
    piece: usize,
    left: u64,
    started: bool,
}

/// Runs the jobs to their ends. Jobs released at one instant queue in the order given.
pub(crate) fn simulate(tasks: usize, mut jobs: Vec<Job>) -> Vec<Worst> {
    jobs.sort_by_key(|job| job.release);
    let mut live: Vec<Live> = jobs.into_iter().map(|job| Live { piece: 0, left: job.pieces[0].0, started: false, job }).collect();
    let mut wakes: BTreeSet<(u64, usize)> = live.iter().enumerate().map(|(at, it)| (it.job.release, at)).collect();
    let mut ready: BTreeMap<u32, VecDeque<usize>> = BTreeMap::new();
    let mut worst = vec![Worst::default(); tasks];
    let mut now = 0;
    loop {
        while let Some((at, job)) = wakes.first().copied().filter(|(at, _)| *at <= now) {
            wakes.remove(&(at, job));
            ready.entry(live[job].job.level).or_default().push_back(job);
        }
        let Some(job) = ready.values().find_map(|queue| queue.front().copied()) else {
            let Some((at, _)) = wakes.first() else { return worst };
            now = *at;
            continue;
        };
        let it = &mut live[job];
        if !it.started {
            it.started = true;
            let seen = &mut worst[it.job.task];
            seen.start = seen.start.max(now - it.job.arrival);
        }
        let until = wakes.first().map_or(u64::MAX, |(at, _)| *at);
        let run = it.left.min(until - now);
        now += run;
        it.left -= run;
        if it.left == 0 {
            let wait = it.job.pieces[it.piece].1;
            it.piece += 1;
            ready.get_mut(&it.job.level).unwrap().pop_front();
            match it.job.pieces.get(it.piece) {
                Some((next, _)) => {
                    it.left = *next;
                    wakes.insert((now + wait, job));
                }
                None => {
                    let seen = &mut worst[it.job.task];
                    seen.response = seen.response.max(now + wait - it.job.arrival);
                }
            }
        }
    }
}
