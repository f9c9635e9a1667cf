//! Durations and memory sizes as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::serde_as_text;

/// Why a text is no duration or size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("`{text}` is not a duration; write a number with a unit, such as \"200ms\", \"1.5s\" or \"2min\"")]
    Duration { text: String },
    #[error("`{text}` is not a memory size; write a number with a unit, such as \"128MB\" or \"1GB\"")]
    Memory { text: String },
    #[error("a memory of {mib} MB is outside the range from 16 MB to 10240 MB")]
    MemoryRange { mib: u64 },
}

const DURATION_UNITS: [(&str, u64); 6] =
    [("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("min", 60_000_000_000), ("s", 1_000_000_000), ("h", 3_600_000_000_000)];

/// Reads "200ms", "1.5s", "50us", "2min": a decimal number and a unit, rounded down to whole nanoseconds.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let error = || QuantityError::Duration { text: text.to_owned() };
    let trimmed = text.trim();
    let unit_at = trimmed.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(error)?;
    let (number, unit) = trimmed.split_at(unit_at);
    let (_, unit_ns) = DURATION_UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
    let number = number.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || 9 < fraction.len() {
        return Err(error());
    }
    let whole_ns = whole.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_ns)).ok_or_else(error)?;
    let fraction_ns = if fraction.is_empty() {
        0
    } else {
        let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| error())?);
        let parts = fraction.parse::<u128>().map_err(|_| error())? * u128::from(unit_ns) / scale;
        u64::try_from(parts).map_err(|_| error())?
    };
    whole_ns.checked_add(fraction_ns).map(Duration::from_nanos).ok_or_else(error)
}

/// Writes a duration so that [`parse_duration`] reads it back exactly (up to 584 years).
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    for (unit, unit_ns) in [("s", 1_000_000_000_u128), ("ms", 1_000_000), ("us", 1_000)] {
        if ns != 0 && ns.is_multiple_of(unit_ns) {
            return format!("{}{unit}", ns / unit_ns);
        }
    }
    format!("{ns}ns")
}

/// Writes a bound for people: rounded up to whole microseconds below 1 ms, to hundredths of the unit above.
#[must_use]
pub fn brief_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    let hundredths = |unit: &str, unit_ns: u128| {
        let hundredths = ns.div_ceil(unit_ns / 100);
        let digits = format!("{}.{:02}", hundredths / 100, hundredths % 100);
        format!("{}{unit}", digits.trim_end_matches('0').trim_end_matches('.'))
    };
    match ns {
        0..=999_000 => format!("{}us", ns.div_ceil(1_000)),
        999_001..=999_990_000 => hundredths("ms", 1_000_000),
        _ => hundredths("s", 1_000_000_000),
    }
}

/// `#[serde(with = "duration_text")]` for durations in configuration.
pub(crate) mod duration_text {
    use std::borrow::Cow;
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format_duration(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::parse_duration(&Cow::<'de, str>::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Memory of one instance: whole mebibytes from 16 to 10,240 (AWS's "MB" are mebibytes too).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory {
    mib: u32,
}

impl Memory {
    pub const DEFAULT: Self = Self { mib: 128 };
    const RANGE_MIB: std::ops::RangeInclusive<u64> = 16..=10_240;

    /// Errors outside 16 to 10,240 MiB.
    pub fn from_mib(mib: u64) -> Result<Self, QuantityError> {
        match u32::try_from(mib) {
            Ok(small) if Self::RANGE_MIB.contains(&mib) => Ok(Self { mib: small }),
            _ => Err(QuantityError::MemoryRange { mib }),
        }
    }

    #[must_use]
    pub const fn mib(self) -> u32 {
        self.mib
    }

    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.mib) << 20
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl FromStr for Memory {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError::Memory { text: text.to_owned() };
        let trimmed = text.trim();
        let unit_at = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let (number, unit) = trimmed.split_at(unit_at);
        let number: u64 = number.parse().map_err(|_| error())?;
        let mib = match unit.trim() {
            "M" | "MB" | "MiB" => Some(number),
            "G" | "GB" | "GiB" => number.checked_mul(1024),
            _ => None,
        };
        Self::from_mib(mib.ok_or_else(error)?)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}MB", self.mib)
    }
}

serde_as_text!(Memory);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bound_is_rounded_up_for_people() {
        for (ns, text) in [
            (0, "0us"),
            (1, "1us"),
            (999_000, "999us"),
            (999_001, "1ms"),
            (23_250_470, "23.26ms"),
            (80_000_000, "80ms"),
            (43_500_000, "43.5ms"),
            (999_990_001, "1s"),
            (61_234_000_000, "61.24s"),
        ] {
            assert_eq!(brief_duration(Duration::from_nanos(ns)), text);
        }
    }

    proptest! {
        #[test]
        fn a_bound_for_people_is_never_below_it_and_at_most_a_hundredth_above(ns in 1_000..u64::MAX / 2) {
            let read = parse_duration(&brief_duration(Duration::from_nanos(ns))).unwrap();
            prop_assert!(Duration::from_nanos(ns) <= read && read.as_nanos() <= u128::from(ns) + u128::from(ns) / 99 + 1_000);
        }
    }

    #[test]
    fn durations_read_with_their_units() {
        for (text, ns) in
            [("200ms", 200_000_000), ("1.5s", 1_500_000_000), ("50us", 50_000), ("2min", 120_000_000_000), ("7 ns", 7)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
        for text in ["", "5", "ms", "-3ms", "1e3s", "3 parsecs", "99999999999999999999s", "."] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_has_a_range_and_two_units() {
        assert_eq!("128MB".parse(), Ok(Memory::DEFAULT));
        assert_eq!("1GB".parse::<Memory>().map(Memory::mib), Ok(1024));
        assert_eq!("15MB".parse::<Memory>(), Err(QuantityError::MemoryRange { mib: 15 }));
        "12".parse::<Memory>().unwrap_err();
        "12KB".parse::<Memory>().unwrap_err();
    }

    proptest! {
        #[test]
        fn a_printed_duration_reads_back_as_itself(ns in any::<u64>()) {
            let duration = Duration::from_nanos(ns);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,24}") {
            let _ = parse_duration(&text);
            let _ = text.parse::<Memory>();
        }
    }
}
