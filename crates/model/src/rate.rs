//! Rates as exact ratios.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use crate::serde_as_text;

/// An invocation rate: `invocations` in every `per_ns` nanoseconds, in lowest terms, from 0.01/s to 10,000/s.
///
/// The ratio is never rounded, so "30/s" and "5/min" stay exact however long a pacer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    invocations: NonZeroU64,
    per_ns: NonZeroU64,
}

/// Why a text or a pair of numbers is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    #[error("`{text}` is not a rate; write invocations per time unit, such as \"30/s\", \"5/min\" or \"0.5/s\"")]
    Syntax { text: String },
    #[error("a rate of {rate} is outside the range from 0.01/s to 10000/s")]
    Range { rate: String },
}

const NS_PER_SECOND: u64 = 1_000_000_000;
/// Decimals accepted in a rate's number ("0.0001/ms"); more would overflow the exact ratio.
const MAX_DECIMALS: usize = 9;

impl Rate {
    /// The rate `invocations / per`, exact. Errors when it is outside 0.01/s to 10,000/s.
    pub fn new(invocations: u64, per: Duration) -> Result<Self, RateError> {
        let out_of_range = || RateError::Range { rate: format!("{invocations} in {per:?}") };
        let per_ns = u64::try_from(per.as_nanos()).ok().and_then(NonZeroU64::new);
        let (Some(invocations_nonzero), Some(per_ns)) = (NonZeroU64::new(invocations), per_ns) else {
            return Err(out_of_range());
        };
        let rate = Self { invocations: invocations_nonzero, per_ns }.reduced();
        if rate.in_range() { Ok(rate) } else { Err(out_of_range()) }
    }

    /// A whole number of invocations per second, 1 to 10,000.
    pub fn per_second(invocations: u64) -> Result<Self, RateError> {
        Self::new(invocations, Duration::from_secs(1))
    }

    /// The numerator of the ratio, in lowest terms.
    #[must_use]
    pub const fn invocations(self) -> u64 {
        self.invocations.get()
    }

    /// The denominator of the ratio in nanoseconds, in lowest terms.
    #[must_use]
    pub const fn per_ns(self) -> u64 {
        self.per_ns.get()
    }

    /// The time between two invocations, rounded up to the next nanosecond (at most 1 ns too long; pacing uses the
    /// ratio itself).
    #[must_use]
    pub const fn interval(self) -> Duration {
        Duration::from_nanos(self.per_ns.get().div_ceil(self.invocations.get()))
    }

    /// Invocations per second as a float, for display and for estimates; decisions use the ratio.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a display value; both numbers stay below 2^53 for rates people write")]
    pub fn per_second_f64(self) -> f64 {
        self.invocations.get() as f64 * NS_PER_SECOND as f64 / self.per_ns.get() as f64
    }

    /// `ceil(rate x window)`, the number of slots that fit any half-open window of this length, without the burst.
    #[must_use]
    pub fn ceil_in(self, window: Duration) -> u64 {
        let slots = (window.as_nanos()).saturating_mul(u128::from(self.invocations.get()));
        u64::try_from(slots.div_ceil(u128::from(self.per_ns.get()))).unwrap_or(u64::MAX)
    }

    /// `floor(rate x window)`.
    #[must_use]
    pub fn floor_in(self, window: Duration) -> u64 {
        let slots = (window.as_nanos()).saturating_mul(u128::from(self.invocations.get()));
        u64::try_from(slots / u128::from(self.per_ns.get())).unwrap_or(u64::MAX)
    }

    fn reduced(self) -> Self {
        let divisor = gcd(self.invocations.get(), self.per_ns.get());
        let divide = |value: NonZeroU64| {
            NonZeroU64::new(value.get() / divisor).expect("invariant: a divisor of a positive number divides it to one or more")
        };
        Self { invocations: divide(self.invocations), per_ns: divide(self.per_ns) }
    }

    /// 0.01/s <= rate <= 10,000/s, in integers.
    fn in_range(self) -> bool {
        let scaled = u128::from(self.invocations.get()) * u128::from(NS_PER_SECOND);
        let per_ns = u128::from(self.per_ns.get());
        per_ns <= scaled * 100 && scaled <= per_ns * 10_000
    }
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl PartialOrd for Rate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let left = u128::from(self.invocations.get()) * u128::from(other.per_ns.get());
        let right = u128::from(other.invocations.get()) * u128::from(self.per_ns.get());
        left.cmp(&right)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let syntax = || RateError::Syntax { text: text.to_owned() };
        let (number, unit) = text.trim().split_once('/').ok_or_else(syntax)?;
        let (count, scale) = parse_decimal(number.trim()).ok_or_else(syntax)?;
        let unit_ns = unit_ns(unit.trim()).ok_or_else(syntax)?;
        let range = || RateError::Range { rate: text.to_owned() };
        let per_ns = unit_ns.checked_mul(scale).ok_or_else(range)?;
        let rate =
            Self { invocations: NonZeroU64::new(count).ok_or_else(range)?, per_ns: NonZeroU64::new(per_ns).ok_or_else(range)? }
                .reduced();
        if rate.in_range() { Ok(rate) } else { Err(range()) }
    }
}

/// "2.50" becomes (250, 100).
fn parse_decimal(text: &str) -> Option<(u64, u64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || MAX_DECIMALS < fraction.len() {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let digits = format!("{whole}{fraction}");
    Some((digits.parse().ok()?, scale))
}

fn unit_ns(unit: &str) -> Option<u64> {
    match unit {
        "ms" => Some(1_000_000),
        "s" | "sec" | "second" => Some(NS_PER_SECOND),
        "min" | "m" | "minute" => Some(60 * NS_PER_SECOND),
        "h" | "hour" => Some(3_600 * NS_PER_SECOND),
        _ => None,
    }
}

impl fmt::Display for Rate {
    /// The shortest exact form: a decimal per second, minute or hour where one exists, else `N/Mns`-free `N in M ns`
    /// never appears because every accepted text has a decimal form in one of those units.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, ns) in [("s", NS_PER_SECOND), ("min", 60 * NS_PER_SECOND), ("h", 3_600 * NS_PER_SECOND)] {
            if let Some(number) =
                exact_decimal(u128::from(self.invocations.get()) * u128::from(ns), u128::from(self.per_ns.get()))
            {
                return write!(f, "{number}/{unit}");
            }
        }
        write!(f, "{:.6}/s", self.per_second_f64())
    }
}

/// `numerator / denominator` with at most `MAX_DECIMALS` decimals, if it is exactly that.
fn exact_decimal(numerator: u128, denominator: u128) -> Option<String> {
    let mut decimals = String::new();
    let mut rest = numerator % denominator;
    while rest != 0 {
        if decimals.len() == MAX_DECIMALS {
            return None;
        }
        rest *= 10;
        decimals.push(char::from(b'0' + u8::try_from(rest / denominator).ok()?));
        rest %= denominator;
    }
    let whole = numerator / denominator;
    Some(if decimals.is_empty() { whole.to_string() } else { format!("{whole}.{decimals}") })
}

serde_as_text!(Rate);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, invocations: u64, per_ns: u64) {
        let rate: Rate = text.parse().unwrap();
        assert_eq!((rate.invocations(), rate.per_ns()), (invocations, per_ns), "{text}");
    }

    #[test]
    fn rates_are_exact_ratios_in_lowest_terms() {
        check("30/s", 3, 100_000_000);
        check("5/min", 1, 12_000_000_000);
        check("0.01/s", 1, 100_000_000_000);
        check("10000/s", 1, 100_000);
        check("7/s", 7, 1_000_000_000);
        check("2.5/s", 1, 400_000_000);
    }

    #[test]
    fn what_is_no_rate_is_refused_with_the_reason() {
        for text in ["", "30", "/s", "-1/s", "1e3/s", "30/parsec", "1..2/s", "0.00000000001/s"] {
            assert!(matches!(text.parse::<Rate>(), Err(RateError::Syntax { .. })), "{text}");
        }
        for text in ["0/s", "0.009/s", "10001/s", "18446744073709551615/ms", "0.000000001/h"] {
            assert!(matches!(text.parse::<Rate>(), Err(RateError::Range { .. })), "{text}");
        }
    }

    #[test]
    fn windows_count_slots_exactly() {
        let rate: Rate = "30/s".parse().unwrap();
        assert_eq!(rate.ceil_in(Duration::from_millis(100)), 3);
        assert_eq!(rate.ceil_in(Duration::from_millis(101)), 4);
        assert_eq!(rate.floor_in(Duration::from_millis(99)), 2);
    }

    proptest! {
        #[test]
        fn a_printed_rate_reads_back_as_itself(number in 1_u64..1_000_000, decimals in 0_usize..3, unit in 0_usize..3) {
            let unit = ["s", "min", "h"][unit];
            let text = match decimals { 0 => format!("{number}/{unit}"), n => format!("{}.{:0n$}/{unit}", number / 100, number % [1, 10, 100][n]) };
            if let Ok(rate) = text.parse::<Rate>() {
                prop_assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,24}") {
            let _ = text.parse::<Rate>();
        }
    }
}
