//! Which of the numbers 0, 1, 2, … have not come.

use std::collections::BTreeSet;

use super::UNSETTLED;

/// Numbers that come in almost their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    /// All below have come or are given up.
    next: u64,
    ahead: BTreeSet<u64>,
    missing: u64,
}

impl Numbers {
    /// Notes a number. `false`: it has come before, or was given up as missing.
    pub(super) fn note(&mut self, number: u64) -> bool {
        if number < self.next || !self.ahead.insert(number) {
            return false;
        }
        self.settle();
        while UNSETTLED < self.ahead.len() {
            self.give_up_gap();
        }
        true
    }

    /// How many are missing, now that no more come.
    pub(super) fn close(mut self) -> u64 {
        while !self.ahead.is_empty() {
            self.give_up_gap();
        }
        self.missing
    }

    fn settle(&mut self) {
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
    }

    fn give_up_gap(&mut self) {
        if let Some(first) = self.ahead.first().copied() {
            self.missing = self.missing.saturating_add(first - self.next);
            self.next = first;
            self.settle();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_come_is_counted_whatever_the_order() {
        let mut numbers = Numbers::default();
        for number in [2, 0, 5, 1] {
            assert!(numbers.note(number));
        }
        assert!(!numbers.note(5));
        assert_eq!(numbers.close(), 2); // 3 and 4
    }

    #[test]
    fn memory_is_bounded_by_giving_up_the_oldest_gap() {
        let mut numbers = Numbers::default();
        for number in 1..=100_000 {
            assert!(numbers.note(number));
        }
        assert!(numbers.ahead.len() <= UNSETTLED);
        assert!(!numbers.note(0));
        assert_eq!(numbers.close(), 1);
    }
}
