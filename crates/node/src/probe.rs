//! The highest-priority probe of each core: it wakes every millisecond and knows when its core was not run.
//!
//! A gap it sees is the only evidence of steal that the node accepts: nothing of ours outranks the probe, so whatever kept it
//! from running kept everything on that core from running.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// The probes of all cores; stopped and joined when dropped.
#[derive(Debug)]
pub(crate) struct Probes {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Probes {
    /// Starts a probe on each core. `report` is called on the probe's thread for each gap and must neither block nor allocate.
    pub(crate) fn start(cores: &[u16], report: impl Fn(Gap) + Clone + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for &core in cores {
            let (stop, report) = (Arc::clone(&stop), report.clone());
            let thread = std::thread::Builder::new().name(format!("probe-{core}")).spawn(move || {
                let own = sched::current_thread();
                // Without the class the probe still runs, but the node is `soft` and no gap is evidence.
                let placed =
                    sched::set_cores(own, &[core]).and_then(|()| sched::set_current(sched::Class::Fifo { priority: PRIORITY }));
                if placed.is_ok() {
                    watch(core, &stop, &report);
                }
            })?;
            threads.push(thread);
        }
        Ok(Self { stop, threads })
    }
}

fn watch(core: u16, stop: &AtomicBool, report: &impl Fn(Gap)) {
    let mut due = clock::now() + PERIOD;
    while !stop.load(Ordering::Relaxed) {
        clock::sleep_until(due);
        let woke = clock::now();
        if GAP < woke.since(due) {
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
