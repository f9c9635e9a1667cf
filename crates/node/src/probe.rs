//! The highest-priority probe of each core: it wakes every millisecond and knows when its core was not run.
//!
//! A gap it sees is the only evidence of steal that the node accepts: nothing of ours outranks the probe, so whatever kept it
//! from running kept everything on that core from running.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use model::Time;
use runtime::sys::{clock, sched};

/// Priority of the probe, above everything else of the node.
pub(crate) const PRIORITY: u8 = 95;
const PERIOD: Duration = Duration::from_millis(1);
/// A wake-up this late is a gap. Well above the p99 of 0.07 ms that a real-time timer shows on a loaded machine.
const GAP: Duration = Duration::from_micros(500);

/// A stretch in which a core did not run its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) core: u16,
    pub(crate) from: Time,
    pub(crate) until: Time,
}

/// What the probes of all cores say of themselves, for a thread that must know now whether a core is gone. Cores are numbered
/// as the list that the probes were started with.
#[derive(Debug)]
pub(crate) struct Pulses(Vec<Pulse>);

/// Nanoseconds, zero before the first. Only the probe writes them, `from` before `until`.
#[derive(Debug, Default)]
struct Pulse {
    due: AtomicU64,
    /// Its last gap.
    from: AtomicU64,
    until: AtomicU64,
}

impl Pulses {
    pub(crate) fn new(cores: usize) -> Self {
        Self((0..cores).map(|_| Pulse::default()).collect())
    }

    pub(crate) fn cores(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }

    /// What each core missed lately: its last gap, and the one that it is in at `now`.
    pub(crate) fn missed(&self, now: Time) -> impl Iterator<Item = Gap> {
        (0..).zip(&self.0).flat_map(move |(core, pulse)| {
            let until = Time::from_nanos(pulse.until.load(Ordering::Acquire));
            let from = Time::from_nanos(pulse.from.load(Ordering::Relaxed));
            let due = Time::from_nanos(pulse.due.load(Ordering::Acquire));
            // A `from` newer than its `until` is half of what is just being written; the probe reports that one.
            let last = (from < until).then_some(Gap { core, from, until });
            let running = (due != Time::ZERO && GAP < now.since(due)).then_some(Gap { core, from: due, until: now });
            [last, running].into_iter().flatten()
        })
    }
}

impl Pulse {
    fn missed(&self, from: Time, until: Time) {
        self.from.store(from.as_nanos(), Ordering::Relaxed);
        self.until.store(until.as_nanos(), Ordering::Release);
    }
}

/// The probes of all cores; stopped and joined when dropped.
#[derive(Debug)]
pub(crate) struct Probes {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Probes {
    /// Starts a probe on each core. `report` is called on the probe's thread for each gap and must neither block nor allocate.
    ///
    /// # Panics
    /// On fewer `pulses` than cores.
    pub(crate) fn start(cores: &[u16], pulses: &Arc<Pulses>, report: impl Fn(Gap) + Clone + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (index, &core) in cores.iter().enumerate() {
            let (stop, report, pulses) = (Arc::clone(&stop), report.clone(), Arc::clone(pulses));
            let thread = std::thread::Builder::new().name(format!("probe-{core}")).spawn(move || {
                let own = sched::current_thread();
                // Without the class the probe still runs, but the node is `soft` and no gap is evidence.
                let placed =
                    sched::set_cores(own, &[core]).and_then(|()| sched::set_current(sched::Class::Fifo { priority: PRIORITY }));
                if placed.is_ok() {
                    watch((core, &pulses.0[index]), &stop, &report);
                }
            })?;
            threads.push(thread);
        }
        Ok(Self { stop, threads })
    }
}

fn watch((core, pulse): (u16, &Pulse), stop: &AtomicBool, report: &impl Fn(Gap)) {
    let mut due = clock::now() + PERIOD;
    while !stop.load(Ordering::Relaxed) {
        pulse.due.store(due.as_nanos(), Ordering::Release);
        clock::sleep_until(due);
        let woke = clock::now();
        if GAP < woke.since(due) {
            pulse.missed(due, woke);
            report(Gap { core, from: due, until: woke });
            due = woke;
        }
        due += PERIOD;
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A probe does not panic; if it did, there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_known_while_it_lasts_and_after_it() {
        let at = Time::from_millis;
        let pulses = Pulses::new(2);
        let missed = |now| pulses.missed(now).collect::<Vec<_>>();
        assert_eq!(missed(at(100)), [], "no probe has begun");
        pulses.0[1].due.store(at(10).as_nanos(), Ordering::Relaxed);
        assert_eq!(missed(at(10)), []);
        assert_eq!(missed(at(30)), [Gap { core: 1, from: at(10), until: at(30) }]);
        pulses.0[1].missed(at(10), at(35));
        pulses.0[1].due.store(at(36).as_nanos(), Ordering::Relaxed);
        assert_eq!(missed(at(36)), [Gap { core: 1, from: at(10), until: at(35) }]);
        pulses.0[1].from.store(at(40).as_nanos(), Ordering::Relaxed);
        assert_eq!(missed(at(36)), [], "half written");
    }
}
