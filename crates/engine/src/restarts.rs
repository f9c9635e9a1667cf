//! The pauses between starts that fail.

use std::time::Duration;

use model::Time;

/// Failures further apart than this are not in a row.
const IN_A_ROW_WITHIN: Duration = Duration::from_secs(60);

/// Starts of one code that failed in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Restarts {
    failures: u32,
    failed_at: Time,
    /// No start before.
    retry_at: Time,
}

impl Restarts {
    /// An instance did not become ready, or died without work. The first failure costs no time, further ones in a row cost
    /// `first`, twice that, and so on up to `last`. Says how many there are in a row now.
    pub(crate) fn failed(&mut self, now: Time, first: Duration, last: Duration) -> u32 {
        self.failures = if IN_A_ROW_WITHIN < now.since(self.failed_at) { 1 } else { self.failures.saturating_add(1) };
        self.failed_at = now;
        let doublings = self.failures.saturating_sub(2).min(30);
        let pause = if self.failures < 2 { Duration::ZERO } else { first.saturating_mul(1 << doublings).min(last) };
        self.retry_at = now + pause;
        self.failures
    }

    /// An instance died at work. The pauses are those of starts that fail; who dies within one, or in the same instant, was there
    /// before it and makes it no longer.
    pub(crate) fn died(&mut self, now: Time, first: Duration, last: Duration) {
        if self.retry_at <= now {
            self.failed(now, first, last);
        }
    }

    /// An instance did work: what failed before is over.
    pub(crate) fn worked(&mut self) {
        *self = Self::default();
    }

    pub(crate) const fn in_a_row(&self) -> u32 {
        self.failures
    }

    pub(crate) const fn retry_at(&self) -> Time {
        self.retry_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_die_together_cost_one_pause() {
        let ms = Duration::from_millis;
        let mut restarts = Restarts::default();
        (0..50).for_each(|_| restarts.died(Time::from_secs(1), ms(10), ms(500)));
        assert_eq!(restarts.retry_at(), Time::from_millis(1_010));
        restarts.died(Time::from_millis(1_010), ms(10), ms(500));
        assert_eq!(restarts.retry_at(), Time::from_millis(1_030));
    }

    #[test]
    fn pauses_double_up_to_the_last_and_end_with_work() {
        let ms = Duration::from_millis;
        let mut restarts = Restarts::default();
        let pauses: Vec<Duration> = (0..5)
            .map(|_| {
                restarts.failed(Time::from_secs(1), ms(10), ms(35));
                restarts.retry_at().since(Time::from_secs(1))
            })
            .collect();
        assert_eq!(pauses, [ms(0), ms(10), ms(20), ms(35), ms(35)]);
        restarts.worked();
        assert_eq!(restarts.failed(Time::from_secs(2), ms(10), ms(35)), 1);
    }
}
