//! The machine's monotonic clock: the one that nodes and functions stamp with.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since some instant before this machine's start.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// Waits.
#[expect(clippy::disallowed_methods, reason = "the comparisons themselves wait on no event loop")]
pub(crate) fn pause(duration: std::time::Duration) {
    std::thread::sleep(duration);
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec
}
