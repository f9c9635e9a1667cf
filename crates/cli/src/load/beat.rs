//! Waiting for the instants of a schedule.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// What a load keeps time with.
pub trait Beat {
    /// Tells the same time from inside the exchanges.
    type Clock: Fn() -> Duration + Send + 'static;

    /// Time since the load's start. Called around every invocation.
    fn now(&self) -> Duration;

    /// Called once per invocation.
    fn clock(&self) -> Self::Clock;

    /// Ends at `at` or, when that has passed, at once. Called once per invocation; may be dropped and called again.
    fn until(&mut self, at: Duration) -> impl Future<Output = io::Result<()>>;
}

/// The machine's monotonic clock with a kernel timer: tokio's own timers are a millisecond coarse.
#[derive(Debug)]
pub struct Wall {
    begun: Instant,
    timer: AsyncFd<OwnedFd>,
}

impl Wall {
    /// Starts now. Must be called inside a tokio runtime.
    #[expect(deprecated, reason = "its successor is unsafe for types that change their descriptor; an owned one does not")]
    pub fn start() -> io::Result<Self> {
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Self { begun: Instant::now(), timer })
    }
}

impl Beat for Wall {
    type Clock = Box<dyn Fn() -> Duration + Send>;

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn clock(&self) -> Self::Clock {
        let begun = self.begun;
        Box::new(move || begun.elapsed())
    }

    async fn until(&mut self, at: Duration) -> io::Result<()> {
        let wait = at.saturating_sub(self.now());
        if wait.is_zero() {
            return Ok(());
        }
        // Setting the timer also forgets an expiry nobody waited for.
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() },
        };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.timer.readable().await?;
            let mut expiries = [0; 8];
            match ready.try_io(|timer| rustix::io::read(timer, &mut expiries).map_err(io::Error::from)) {
                Ok(read) => return read.map(|_| ()),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wait_ends_early() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut wall = Wall::start().unwrap();
            for at in [0, 3, 3, 5].map(Duration::from_millis) {
                wall.until(at).await.unwrap();
                assert!(at <= wall.now());
            }
            // A wait that was given up leaves nothing behind for the next one.
            let at = wall.now() + Duration::from_millis(5);
            let given_up = tokio::time::timeout(Duration::ZERO, wall.until(at + Duration::from_secs(60))).await;
            given_up.unwrap_err();
            wall.until(at).await.unwrap();
            assert!(at <= wall.now());
        });
    }
}
