//! What admission may give away on this machine.

use std::time::Duration;

use model::{Burst, Guarantee, Level, Rate};
use plan::admission::{Budgeted, NodeCapacity, Periodic};
use runtime::sys::sched::{self, Throttle};

use crate::calibrate::{Classes, Measured};
use crate::front_cost;
use crate::lane::{
    CLIENTS_PIECES_PER_SECOND, EXCESS_AT_ONCE, HAND_OVERS_AT_ONCE, HAND_OVERS_PER_SECOND_MAX, INSTANCES_PIECES_PER_SECOND,
    OTHERS_PIECES_PER_SECOND, PIECES_AT_ONCE, idle, ration, watch,
};
use crate::starter::{STARTS_AT_ONCE, STARTS_PER_SECOND};
use crate::starts;

/// Of the machine's memory, what instances of guaranteed functions may reserve, in hundredths.
const MEMORY_HUNDREDTHS: u64 = 60;
/// Instances of guaranteed functions at once.
pub(crate) const INSTANCES_MAX: u32 = 1_024;
/// One look of the probe: its wake-up, a clock read and its way back to sleep.
const PROBE: Periodic = Periodic { cost: Duration::from_micros(10), period: Duration::from_millis(1) };
/// One switch between threads, cache effects included.
const CONTEXT_SWITCH: Duration = Duration::from_micros(5);
/// How late the kernel notices that a quota is used up: a tick at 250 Hz.
pub(crate) const QUOTA_TICK: Duration = Duration::from_millis(4);
/// One piece of a long request or answer, 64 KiB at most: copied out of the kernel or into it. Hashing and checking a request's
/// piece takes several times that ([`crate::front_cost`]) and is not charged.
const PIECE_COST: Duration = Duration::from_micros(30);
/// One connection or request of an instance, beyond what the cost of an invocation holds.
const ASK_COST: Duration = Duration::from_micros(30);
/// One look at what the threads of an invocation do: a directory and up to 17 files of `/proc`.
const STATE_COST: Duration = Duration::from_micros(100);
/// One look at an instance that answered and has not asked: a timer, a clock of the CPU, and at most its threads' class. Or at one
/// whose connection closed while it waits: a file of `/proc` that says what one thread does.
const LOOK_COST: Duration = Duration::from_micros(20);
/// An instance's start and end, without what it asks meanwhile.
const START_COST: Duration = Duration::from_micros(150);
/// Excess per second that admission accounts for, over all functions.
const EXCESS_PER_SECOND_MAX: u32 = 1_000;
/// What excess may take of the front's core in a second. Where serving it is dear, less is served.
const EXCESS_SHARE: Duration = Duration::from_millis(50);
/// What new connections may, with a request on each.
const HAND_OVER_SHARE: Duration = Duration::from_millis(70);

/// Excess per second that the guaranteed lane serves itself on a machine that was measured: 1 to 1,000.
pub(crate) fn excess_per_second(front_cost: Duration) -> u32 {
    affordable(EXCESS_SHARE, front_cost).clamp(1, EXCESS_PER_SECOND_MAX)
}

/// New connections per second that the guaranteed lane is handed: 1 to 300. The first request on each may be answered before
/// anything is charged, so that it counts beside the hand-over.
pub(crate) fn hand_overs_per_second(front: front_cost::Costs) -> u32 {
    affordable(HAND_OVER_SHARE, front.accept + front.invocation).clamp(1, HAND_OVERS_PER_SECOND_MAX)
}

fn affordable(share: Duration, cost: Duration) -> u32 {
    u32::try_from(share.as_nanos() / cost.as_nanos().max(1)).unwrap_or(u32::MAX)
}

/// The capacity of a machine that was measured. `memory` is the owner's limit in bytes, `instances` what descriptors leave.
pub(crate) fn of(cores: &[u16], classes: Classes, measured: &Measured, (memory, instances): (Option<u64>, u32)) -> NodeCapacity {
    let (front, one) = (measured.front, measured.front.invocation);
    // Each lane spends half of what excess there may be.
    let excess = excess_per_second(one).div_ceil(2);
    let front_budgets = vec![
        budgeted(hand_overs_per_second(front), HAND_OVERS_AT_ONCE, front.accept + one),
        budgeted(excess, EXCESS_AT_ONCE, one),
        budgeted(excess, EXCESS_AT_ONCE, one),
        budgeted(OTHERS_PIECES_PER_SECOND, PIECES_AT_ONCE, PIECE_COST),
        budgeted(CLIENTS_PIECES_PER_SECOND, PIECES_AT_ONCE, PIECE_COST),
        budgeted(INSTANCES_PIECES_PER_SECOND, PIECES_AT_ONCE, PIECE_COST),
        budgeted(watch::STATES_PER_SECOND, watch::STATES_AT_ONCE, STATE_COST),
        budgeted(idle::LOOKS_PER_SECOND, idle::LOOKS_AT_ONCE, LOOK_COST),
        budgeted(STARTS_PER_SECOND, STARTS_AT_ONCE, START_COST + ASK_COST * ration::ASKS_PER_START),
    ];
    NodeCapacity {
        cores: u16::try_from(cores.len()).unwrap_or(u16::MAX),
        core_limit_thousandths: NodeCapacity::CORE_LIMIT_THOUSANDTHS,
        front_core: engine::port::FRONT_CORE,
        front_cost: one,
        connection_cost: ASK_COST,
        thread_cost: front.thread,
        front_limit_thousandths: NodeCapacity::FRONT_LIMIT_THOUSANDTHS,
        front_budgets,
        tick: PROBE,
        context_switch: CONTEXT_SWITCH,
        overshoot: watch::SAMPLING,
        quota_tick: None,
        tolerance: measured.tolerance,
        real_time_per_second: real_time_per_second(),
        starts_per_second: starts::LEAST,
        level: match classes {
            Classes::RealTime => Level::Hard,
            Classes::Ordinary => Level::Soft,
        },
        memory: memory.unwrap_or_else(|| machine_memory() / 100 * MEMORY_HUNDREDTHS),
        instances,
    }
}

fn budgeted(per_second: u32, at_once: u32, cost: Duration) -> Budgeted {
    let rate = Rate::per_second(u64::from(per_second)).expect("invariant: budgets allow something, and less than a million");
    let burst = Burst::new(at_once).expect("invariant: budgets allow a few at once");
    Budgeted { rate, burst, cost }
}

/// What admission charges an invocation on these terms of a runtime that costs this.
pub(crate) fn charged(terms: &Guarantee, runtime_cost: Duration) -> Duration {
    terms.cpu_budget().saturating_add(runtime_cost + watch::SAMPLING + CONTEXT_SWITCH * 2)
}

/// What the kernel lets real-time threads use of a core in a second; its default where it does not say.
fn real_time_per_second() -> Duration {
    match sched::throttle() {
        Ok(Throttle::Limited { runtime, period }) if !period.is_zero() => {
            Duration::from_secs(1).mul_f64((runtime.as_secs_f64() / period.as_secs_f64()).min(1.0))
        }
        Ok(Throttle::Off) => Duration::from_secs(1),
        Ok(Throttle::Limited { .. }) | Err(_) => Duration::from_millis(950),
    }
}

/// The machine's memory in bytes, or what this process's control group leaves of it; zero where neither can be read, so that
/// nothing is promised.
pub(crate) fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = total_bytes(&text).unwrap_or(0);
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = limits.iter().filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    limits.fold(total, u64::min)
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excess_never_takes_more_than_its_share_of_the_front() {
        for (micros, expected) in [(40, 1_000), (50, 1_000), (200, 250), (1_000, 50), (1_000_000, 1)] {
            assert_eq!(excess_per_second(Duration::from_micros(micros)), expected);
        }
        assert_eq!(excess_per_second(Duration::ZERO), EXCESS_PER_SECOND_MAX);
    }

    #[test]
    fn new_connections_never_take_more_than_their_share_of_the_front() {
        for (micros, expected) in [(50, 300), (200, 175), (1_000, 35), (1_000_000, 1)] {
            let each = Duration::from_micros(micros);
            let front = front_cost::Costs { accept: each, invocation: each, ..front_cost::Costs::default() };
            assert_eq!(hand_overs_per_second(front), expected);
        }
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        assert_eq!(total_bytes("MemTotal:       24576 kB\nMemFree: 1 kB\n"), Some(24 << 20));
        assert_eq!(total_bytes("nonsense"), None);
    }
}
