//! An exact simulation of cores: preemptive fixed priorities, first in first out within one, jobs that may wait and that may
//! pass from one core to another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One demand for one core. Times in nanoseconds.
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

/// One demand for several cores, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) task: usize,
    pub(crate) arrival: u64,
    pub(crate) release: u64,
    /// At least one.
    pub(crate) stages: Vec<Stage>,
    /// The stage whose beginning counts as its start.
    pub(crate) starts_in: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) core: u16,
    pub(crate) level: u32,
    /// At least one, each of which executes.
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
    chain: Chain,
    stage: usize,
    piece: usize,
    left: u64,
    started: bool,
}

/// Runs the jobs of one core to their ends. Jobs released at one instant queue in the order given.
pub(crate) fn simulate(tasks: usize, jobs: Vec<Job>) -> Vec<Worst> {
    let alone = |job: Job| Chain {
        task: job.task,
        arrival: job.arrival,
        release: job.release,
        stages: vec![Stage { core: 0, level: job.level, pieces: job.pieces }],
        starts_in: 0,
    };
    simulate_chains(tasks, jobs.into_iter().map(alone).collect())
}

/// Runs the chains to their ends.
pub(crate) fn simulate_chains(tasks: usize, mut chains: Vec<Chain>) -> Vec<Worst> {
    chains.sort_by_key(|chain| chain.release);
    let begun = |chain: Chain| Live { stage: 0, piece: 0, left: chain.stages[0].pieces[0].0, started: false, chain };
    let mut live: Vec<Live> = chains.into_iter().map(begun).collect();
    let mut wakes: BTreeSet<(u64, usize)> = live.iter().enumerate().map(|(at, it)| (it.chain.release, at)).collect();
    let mut ready: BTreeMap<(u16, u32), VecDeque<usize>> = BTreeMap::new();
    let mut worst = vec![Worst::default(); tasks];
    let mut now = 0;
    loop {
        while let Some((at, job)) = wakes.first().copied().filter(|(at, _)| *at <= now) {
            wakes.remove(&(at, job));
            let stage = &live[job].chain.stages[live[job].stage];
            ready.entry((stage.core, stage.level)).or_default().push_back(job);
        }
        let running = running(&ready);
        let next = wakes.first().map(|(at, _)| *at);
        if running.is_empty() {
            let Some(at) = next else { return worst };
            now = at;
            continue;
        }
        for (_, job) in &running {
            let it = &mut live[*job];
            if !it.started && it.stage == it.chain.starts_in {
                it.started = true;
                let seen = &mut worst[it.chain.task];
                seen.start = seen.start.max(now - it.chain.arrival);
            }
        }
        let shortest = running.iter().map(|(_, job)| live[*job].left).min().unwrap_or_default();
        let run = shortest.min(next.map_or(u64::MAX, |at| at - now));
        now += run;
        for (queue, job) in running {
            live[job].left -= run;
            if live[job].left == 0 {
                ready.get_mut(&queue).unwrap().pop_front();
                match live[job].finish_piece(now) {
                    Ok(at) => drop(wakes.insert((at, job))),
                    Err(ended) => {
                        let seen = &mut worst[live[job].chain.task];
                        seen.response = seen.response.max(ended - live[job].chain.arrival);
                    }
                }
            }
        }
    }
}

/// The first of the highest level on each core.
fn running(ready: &BTreeMap<(u16, u32), VecDeque<usize>>) -> Vec<((u16, u32), usize)> {
    let mut running: Vec<((u16, u32), usize)> = Vec::new();
    for (queue, jobs) in ready {
        let taken = running.last().is_some_and(|((core, _), _)| *core == queue.0);
        if let Some(job) = jobs.front().filter(|_| !taken) {
            running.push((*queue, *job));
        }
    }
    running
}

impl Live {
    /// When it can run again after the piece that ends now; `Err` with the end of a job that cannot.
    fn finish_piece(&mut self, now: u64) -> Result<u64, u64> {
        let at = now + self.chain.stages[self.stage].pieces[self.piece].1;
        self.piece += 1;
        if self.chain.stages[self.stage].pieces.len() <= self.piece {
            (self.stage, self.piece) = (self.stage + 1, 0);
        }
        let next = self.chain.stages.get(self.stage).map(|stage| stage.pieces[self.piece].0);
        self.left = next.ok_or(at)?;
        Ok(at)
    }
}
