//! The last start delays of a function, for the operator's view. Promises are judged by records, not by this.

use std::time::Duration;

/// Delays kept per function.
const KEPT: usize = 256;

/// A ring of the last delays.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delays {
    last: Vec<Duration>,
    next: usize,
}

impl Delays {
    pub(super) fn add(&mut self, delay: Duration) {
        if self.last.len() < KEPT {
            self.last.push(delay);
        } else {
            self.last[self.next] = delay;
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// The 99th percentile of the kept delays (nearest rank); `None` before the first.
    pub(crate) fn p99(&self) -> Option<Duration> {
        let mut sorted = self.last.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * 99).div_ceil(100);
        rank.checked_sub(1).and_then(|at| sorted.get(at)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_of_the_last_delays() {
        let mut delays = Delays::default();
        assert_eq!(delays.p99(), None);
        for millis in 0..10_000 {
            delays.add(Duration::from_millis(millis));
        }
        let kept: u64 = 256;
        assert_eq!(delays.p99(), Some(Duration::from_millis(10_000 - kept + 253)));
    }
}
