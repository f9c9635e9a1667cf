//! The node's monotonic clock, absolute timers on it, and the wall clock.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use model::Time;
use rustix::io::Errno;
use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// The current instant of `CLOCK_MONOTONIC`. About 30 ns, no system call.
#[must_use]
pub fn now() -> Time {
    Time::from_nanos(nanos(rustix::time::clock_gettime(ClockId::Monotonic)))
}

/// The wall clock, as the time since 1970-01-01 UTC. It may jump; only records and logs use it.
#[must_use]
pub fn since_epoch() -> Duration {
    Duration::from_nanos(nanos(rustix::time::clock_gettime(ClockId::Realtime)))
}

/// CPU time the calling thread has used.
#[must_use]
pub fn thread_cpu() -> Duration {
    Duration::from_nanos(nanos(rustix::time::clock_gettime(ClockId::ThreadCPUTime)))
}

/// Blocks the calling thread until `at`, or returns at once when that has passed. For real-time threads.
pub fn sleep_until(at: Time) {
    let at = timespec(at);
    while rustix::thread::clock_nanosleep_absolute(ClockId::Monotonic, &at) == Err(Errno::INTR) {}
}

/// An absolute timer as a descriptor: readable once its instant has passed, until [`Timer::consume`]. It wakes with the
/// precision of the kernel's high-resolution timers, not of a timer wheel.
#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
}

impl Timer {
    /// A disarmed timer, non-blocking, closed on exec. Errors when descriptors run out.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self { fd: rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)? })
    }

    /// Arms the timer for `at`, replacing what was set. An instant in the past fires at once.
    pub fn set(&self, at: Time) -> io::Result<()> {
        self.arm(timespec(at.max(Time::from_nanos(1)))) // all zero would disarm it
    }

    /// Disarms the timer and forgets an expiry not yet consumed.
    pub fn cancel(&self) -> io::Result<()> {
        self.arm(Timespec { tv_sec: 0, tv_nsec: 0 })
    }

    /// How often it fired since the last call: 0 or 1. Never blocks.
    pub fn consume(&self) -> io::Result<u64> {
        let mut count = [0_u8; 8];
        match rustix::io::read(&self.fd, &mut count) {
            Ok(_) => Ok(u64::from_ne_bytes(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }

    fn arm(&self, it_value: Timespec) -> io::Result<()> {
        let setting = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        rustix::time::timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &setting)?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Nanoseconds of a clock reading; clocks before their zero read as zero.
pub(crate) fn nanos(at: Timespec) -> u64 {
    let seconds = u64::try_from(at.tv_sec).unwrap_or(0);
    seconds.saturating_mul(NS_PER_SECOND).saturating_add(u64::try_from(at.tv_nsec).unwrap_or(0))
}

fn timespec(at: Time) -> Timespec {
    let seconds = at.as_nanos() / NS_PER_SECOND;
    let rest = at.as_nanos() % NS_PER_SECOND;
    Timespec {
        tv_sec: i64::try_from(seconds).expect("invariant: 2^64 ns are fewer than 2^63 s"),
        tv_nsec: i64::try_from(rest).expect("invariant: fewer than 10^9"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_ends_at_or_after_the_instant() {
        let until = now() + Duration::from_millis(2);
        sleep_until(until);
        assert!(until <= now());
    }

    #[test]
    fn a_timer_fires_once_per_setting_and_not_when_cancelled() {
        let timer = Timer::new().unwrap();
        assert_eq!(timer.consume().unwrap(), 0);
        timer.set(Time::ZERO).unwrap();
        assert_eq!(timer.consume().unwrap(), 1);
        assert_eq!(timer.consume().unwrap(), 0);
        timer.set(Time::ZERO).unwrap();
        timer.cancel().unwrap();
        assert_eq!(timer.consume().unwrap(), 0);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_timer_wakes_a_task() {
        let timer = crate::sys::watch(Timer::new().unwrap()).unwrap();
        let at = now() + Duration::from_millis(1);
        timer.get_ref().set(at).unwrap();
        let mut guard = timer.readable().await.unwrap();
        assert_eq!(guard.get_inner().consume().unwrap(), 1);
        guard.clear_ready();
        assert!(at <= now());
    }

    #[test]
    fn the_wall_clock_is_past_the_year_2024() {
        assert!(Duration::from_secs(1_704_067_200) < since_epoch());
    }

    #[test]
    fn every_instant_has_a_timespec() {
        for at in [Time::ZERO, Time::MAX, Time::from_nanos(NS_PER_SECOND - 1)] {
            assert_eq!(nanos(timespec(at)), at.as_nanos());
        }
    }
}
