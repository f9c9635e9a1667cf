//! The envelope of a guarantee, kept exactly.
//!
//! The generic cell rate algorithm: an invocation that arrives at `a` conforms iff `a >= TAT - (b-1)/r`; its conforming
//! start is `v = max(a, TAT - (b-1)/r)` and then `TAT = max(a, TAT) + 1/r` (`v` and `a` give the same maximum, because
//! `v` is `a` or not above TAT). The theoretical arrival time TAT is whole nanoseconds plus a remainder over
//! `rate.invocations()`, so that a rate such as 7/s never drifts.
//!
//! Instants are reported in whole nanoseconds, rounded up: a slot never opens before its exact instant, so that no prefix
//! of slots runs ahead of the rate; a slot opens less than 1 ns after it, which does not add up and which the dispatch
//! tolerance T covers. Arrivals are whole nanoseconds, and `a >= x` and `a >= ceil(x)` are the same test.

use std::time::Duration;

use model::{Burst, Rate, Time};

/// Releases invocations along a rate and a burst.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pacer {
    rate: Rate,
    burst: Burst,
    tat: Exact,
    /// The conforming start of the slot taken last.
    last: Time,
}

/// What became of an attempt to take a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The invocation has this conforming start, at or before now.
    Taken { conforming: Time },
    /// Nothing was charged; from this instant on an arrival conforms, if no other takes the slot before.
    NotBefore(Time),
}

/// `ns + part / rate.invocations()` nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Exact {
    ns: u64,
    part: u64,
}

/// Fractions of a slot that [`Pacer::change`] counts a debt in.
const DEBT_UNIT: u128 = 1 << 32;

impl Pacer {
    /// A pacer that never released anything: the whole burst conforms at once.
    #[must_use]
    pub const fn new(rate: Rate, burst: Burst) -> Self {
        Self { rate, burst, tat: Exact { ns: 0, part: 0 }, last: Time::ZERO }
    }

    /// A pacer whose theoretical arrival time is `tat`, as [`Pacer::theoretical_arrival`] told it after a change.
    #[must_use]
    pub const fn resumed(rate: Rate, burst: Burst, tat: Time) -> Self {
        Self { rate, burst, tat: Exact { ns: tat.as_nanos(), part: 0 }, last: Time::ZERO }
    }

    /// Takes a slot for an invocation that arrives now.
    pub fn classify(&mut self, now: Time) -> Slot {
        self.release(now, now)
    }

    /// Takes a slot at `now` for an invocation that arrived at `arrived` and has waited since.
    pub fn release(&mut self, now: Time, arrived: Time) -> Slot {
        let earliest = self.next_conforming();
        if now < earliest {
            return Slot::NotBefore(earliest); // nothing is charged: the caller queues, demotes or refuses
        }
        let conforming = earliest.max(arrived);
        if self.tat.ns < arrived.as_nanos() {
            self.tat = Exact { ns: arrived.as_nanos(), part: 0 };
        }
        self.tat = self.after(self.tat);
        self.last = conforming;
        Slot::Taken { conforming }
    }

    /// The instant from which an arrival conforms, rounded up to whole nanoseconds; it may lie in the past.
    #[must_use]
    pub fn next_conforming(&self) -> Time {
        let parts = u128::from(self.rate.invocations());
        let allowance = u128::from(self.burst.get() - 1) * u128::from(self.rate.per_ns());
        let tat = u128::from(self.tat.ns) * parts + u128::from(self.tat.part);
        to_time(tat.saturating_sub(allowance).div_ceil(parts))
    }

    /// TAT in whole nanoseconds, rounded down, and the rest of it in units of `1 / rate.invocations()` nanoseconds.
    #[must_use]
    pub const fn theoretical_arrival(&self) -> (Time, u64) {
        (Time::from_nanos(self.tat.ns), self.tat.part)
    }

    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    #[must_use]
    pub const fn burst(&self) -> Burst {
        self.burst
    }

    /// Goes on under new terms without a new burst: the slots still owed when the last one was taken are owed under the
    /// new rate from that instant on. With old terms (r1, b1) until then and (r2, b2) after it, any window holds at most
    /// `max(b1, b2) + r1 t1 + r2 t2` slots. The new TAT is rounded up to whole nanoseconds.
    ///
    /// Proof of the bound: after the last old slot, at `l`, `u = (TAT - l) r1` slots are owed. A window from `s` to `l`
    /// holds at most `u + r1 (l - s)` slots, because each moved TAT by `1/r1` from `s` or later. From `l` on the new pacer
    /// releases at most `b2 - u + r2 (e - l)` until `e`, or nothing while `u` exceeds `b2`.
    pub fn change(&mut self, rate: Rate, burst: Burst) {
        if self.rate != rate && self.tat != Exact::default() {
            let parts = u128::from(self.rate.invocations());
            let owed_parts = u128::from(self.tat.ns.saturating_sub(self.last.as_nanos())) * parts + u128::from(self.tat.part);
            let owed = owed_parts.saturating_mul(DEBT_UNIT).div_ceil(u128::from(self.rate.per_ns()));
            let ns = owed.saturating_mul(u128::from(rate.per_ns())).div_ceil(u128::from(rate.invocations()) * DEBT_UNIT);
            let owed_time = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
            self.tat = Exact { ns: (self.last + owed_time).as_nanos(), part: 0 };
        } else if self.tat.part != 0 {
            self.tat = Exact { ns: self.tat.ns.saturating_add(1), part: 0 };
        }
        self.rate = rate;
        self.burst = burst;
    }

    /// Keeps the next slot from opening before `at` (by less than 1 ns later): a change of terms must not open slots in the
    /// past for what has been waiting. Of the tokens that are there, one is left.
    pub fn open_not_before(&mut self, at: Time) {
        if self.next_conforming() < at {
            let allowance = u128::from(self.burst.get() - 1) * u128::from(self.rate.per_ns());
            let ns = u128::from(at.as_nanos()) + allowance.div_ceil(u128::from(self.rate.invocations()));
            self.tat = Exact { ns: to_time(ns).as_nanos(), part: 0 };
        }
    }

    /// `from` moved by one interval.
    fn after(&self, from: Exact) -> Exact {
        let parts = u128::from(self.rate.invocations());
        let sum = u128::from(from.part) + u128::from(self.rate.per_ns());
        let whole = u64::try_from(sum / parts).unwrap_or(u64::MAX);
        let part = u64::try_from(sum % parts).expect("invariant: a remainder is below its divisor, a u64");
        Exact { ns: from.ns.saturating_add(whole), part }
    }
}

fn to_time(ns: u128) -> Time {
    u64::try_from(ns).map_or(Time::MAX, Time::from_nanos)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pacer(rate: &str, burst: u32) -> Pacer {
        Pacer::new(rate.parse().unwrap(), Burst::new(burst).unwrap())
    }

    fn taken(ms: u64) -> Slot {
        Slot::Taken { conforming: Time::from_millis(ms) }
    }

    #[test]
    fn a_second_invocation_waits_one_period() {
        let mut pacer = pacer("10/s", 1);
        assert_eq!(pacer.classify(Time::ZERO), taken(0));
        assert_eq!(pacer.classify(Time::ZERO), Slot::NotBefore(Time::from_millis(100)));
        assert_eq!(pacer.classify(Time::from_millis(100)), taken(100));
    }

    #[test]
    fn a_burst_conforms_at_once_after_any_idle_time() {
        let mut pacer = pacer("10/s", 3);
        for start in [0, 5_000] {
            for _ in 0..3 {
                assert_eq!(pacer.classify(Time::from_millis(start)), taken(start));
            }
            assert_eq!(pacer.classify(Time::from_millis(start)), Slot::NotBefore(Time::from_millis(start + 100)));
        }
    }

    #[test]
    fn a_late_release_keeps_its_conforming_start() {
        let mut pacer = pacer("10/s", 1);
        assert_eq!(pacer.classify(Time::ZERO), taken(0));
        assert_eq!(pacer.release(Time::from_millis(130), Time::from_millis(20)), taken(100));
        assert_eq!(pacer.next_conforming(), Time::from_millis(200));
    }

    #[test]
    fn a_week_of_slots_ends_where_the_ratio_puts_it() {
        for (text, slots) in [("7/s", 7 * 7 * 86_400), ("5/min", 5 * 7 * 1_440)] {
            let mut pacer = pacer(text, 1);
            for _ in 0..slots {
                let at = pacer.next_conforming();
                pacer.release(at, Time::ZERO);
            }
            assert_eq!(pacer.theoretical_arrival(), (Time::from_secs(7 * 86_400), 0), "{text}");
        }
    }

    #[test]
    fn a_change_of_terms_gives_no_second_burst() {
        let mut pacer = pacer("10/s", 3);
        let start = Time::from_secs(1);
        for _ in 0..3 {
            pacer.classify(start);
        }
        pacer.change("20/s".parse().unwrap(), Burst::new(3).unwrap());
        assert_eq!(pacer.classify(start), Slot::NotBefore(Time::from_millis(1_050)));
        pacer.change("20/s".parse().unwrap(), Burst::ONE);
        assert_eq!(pacer.next_conforming(), Time::from_millis(1_150));
    }

    #[test]
    fn a_change_of_terms_opens_no_slot_in_the_past() {
        let mut pacer = pacer("7/s", 3);
        pacer.open_not_before(Time::from_secs(1));
        assert!(pacer.next_conforming().since(Time::from_secs(1)) <= Duration::from_nanos(1));
        assert!(matches!(pacer.classify(Time::from_secs(2)), Slot::Taken { .. }));
    }

    /// The envelope by definition: any window from one slot to another holds at most `b + r t` of them, where `t` may be
    /// 1 ns more because instants are rounded.
    fn within_envelope(slots: &[u64], rate: Rate, burst: u64) -> bool {
        slots.iter().enumerate().all(|(first, from)| {
            slots[first..]
                .iter()
                .zip(1_u64..)
                .all(|(until, count)| count.saturating_sub(burst) <= rate.floor_in(Duration::from_nanos(until - from + 1)))
        })
    }

    fn rates() -> impl Strategy<Value = Rate> {
        (1_u64..2_000, 1_u64..100).prop_filter_map("in range", |(count, ms)| Rate::new(count, Duration::from_millis(ms * 7)).ok())
    }

    proptest! {
        #[test]
        fn slots_never_drift(rate in rates(), slots in 1_u64..5_000) {
            let mut pacer = Pacer::new(rate, Burst::ONE);
            for _ in 0..slots {
                let at = pacer.next_conforming();
                prop_assert_eq!(pacer.release(at, Time::ZERO), Slot::Taken { conforming: at });
            }
            let exact = u128::from(slots) * u128::from(rate.per_ns());
            let (tat, part) = pacer.theoretical_arrival();
            prop_assert_eq!(
                u128::from(tat.as_nanos()) * u128::from(rate.invocations()) + u128::from(part), exact
            );
        }

        #[test]
        fn no_window_holds_more_than_burst_and_rate_allow(
            rate in rates(), burst in 1_u32..6, gaps in proptest::collection::vec(0_u64..40_000_000, 1..80),
        ) {
            let mut pacer = Pacer::new(rate, Burst::new(burst).unwrap());
            let (mut now, mut slots) = (1_000_000, Vec::new());
            for gap in gaps {
                now += gap;
                let envelope_allows = {
                    let mut with = slots.clone();
                    with.push(now);
                    within_envelope(&with, rate, u64::from(burst))
                };
                match pacer.classify(Time::from_nanos(now)) {
                    Slot::Taken { conforming } => {
                        prop_assert_eq!(conforming, Time::from_nanos(now));
                        slots.push(now);
                    }
                    Slot::NotBefore(at) => {
                        prop_assert!(Time::from_nanos(now) < at);
                        // Nothing is turned away that the envelope, by definition, has room for a nanosecond earlier.
                        let mut earlier = slots.clone();
                        earlier.push(now.saturating_sub(2).max(*slots.last().unwrap()));
                        prop_assert!(!envelope_allows || !within_envelope(&earlier, rate, u64::from(burst)));
                    }
                }
                prop_assert!(within_envelope(&slots, rate, u64::from(burst)));
            }
        }

        #[test]
        fn a_change_of_terms_keeps_the_sum_of_both_envelopes(
            first in rates(), second in rates(), bursts in (1_u32..6, 1_u32..6),
            before in proptest::collection::vec(0_u64..20_000_000, 1..30), after in proptest::collection::vec(0_u64..20_000_000, 1..30),
        ) {
            let mut pacer = Pacer::new(first, Burst::new(bursts.0).unwrap());
            let mut now = 1_000_000;
            let mut take = |pacer: &mut Pacer, gap: u64| {
                now += gap;
                matches!(pacer.classify(Time::from_nanos(now)), Slot::Taken { .. }).then_some(now)
            };
            let old: Vec<u64> = before.iter().filter_map(|gap| take(&mut pacer, *gap)).collect();
            pacer.change(second, Burst::new(bursts.1).unwrap());
            let new: Vec<u64> = after.iter().filter_map(|gap| take(&mut pacer, *gap)).collect();
            let Some(last) = old.last() else { return Ok(()) };
            for (index, from) in old.iter().enumerate() {
                for (count, until) in new.iter().enumerate() {
                    let held = old.len() - index + count + 1;
                    let time = |ns: u64| Duration::from_nanos(ns + 2);
                    let allowed = u64::from(bursts.0.max(bursts.1)) + first.ceil_in(time(last - from)) + second.ceil_in(time(until - last));
                    prop_assert!(held as u64 <= allowed, "{held} slots, {allowed} allowed");
                }
            }
        }
    }
}
