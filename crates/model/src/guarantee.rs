//! What is promised for a function: the terms its owner states, and the guarantee they resolve to.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::quantity::duration_text;
use crate::{QuantityError, Rate, RateClassName, RateError, format_duration, parse_duration, serde_as_text};

/// How many invocations may come at once: 1 to 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Burst(NonZeroU32);

impl Burst {
    pub const ONE: Self = Self(NonZeroU32::MIN);
    const MAX: u32 = 10_000;

    /// `None` outside 1 to 10,000.
    #[must_use]
    pub fn new(count: u32) -> Option<Self> {
        NonZeroU32::new(count).filter(|count| count.get() <= Self::MAX).map(Self)
    }

    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// A share of one core in thousandths: 0.001 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuShare {
    thousandths: u16,
}

impl CpuShare {
    pub const FULL: Self = Self { thousandths: 1000 };

    /// `None` outside 1 to 1000.
    #[must_use]
    pub const fn from_thousandths(thousandths: u16) -> Option<Self> {
        if 1 <= thousandths && thousandths <= 1000 { Some(Self { thousandths }) } else { None }
    }

    #[must_use]
    pub const fn thousandths(self) -> u16 {
        self.thousandths
    }

    /// The CPU budget of an invocation that may take `run_time`: `c = C x cpu`, rounded up to whole nanoseconds.
    #[must_use]
    pub fn budget(self, run_time: Duration) -> Duration {
        let ns = (run_time.as_nanos() * u128::from(self.thousandths)).div_ceil(1000);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// What happens to a nonconforming arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// It runs on idle capacity, labelled so.
    #[default]
    BestEffort,
    /// It waits for a slot; at most this many wait at once.
    Queue { limit: u32 },
    /// It is refused with the instant at which the next one conforms.
    Reject,
}

/// The kind of promise an owner accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Require {
    /// The best level this node can give; the answer says which.
    #[default]
    Any,
    /// Hard or nothing.
    Hard,
}

/// The kind of promise a node gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Real-time scheduling is in force and the response-time analysis passed.
    Hard,
    /// The arithmetic passed, but the node runs without real-time scheduling.
    Soft,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hard => "hard",
            Self::Soft => "soft",
        })
    }
}

/// What happens to an invocation that exceeds its run time or CPU budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnOverrun {
    #[default]
    Kill,
    /// It goes on as best effort, up to its admitted response bound.
    Demote,
}

/// Which pacer releases a function's invocations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pacing {
    Own {
        rate: Rate,
        burst: Burst,
    },
    /// The pacer of a rate class; the function's invocations carry their own deadlines.
    Shared(RateClassName),
}

/// One rate that several functions share, with earliest-deadline release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateClass {
    pub name: RateClassName,
    pub rate: Rate,
    pub burst: Burst,
}

/// What an owner asks for, as stated: the keys of `[guarantee]`, the `takt:` tags and the flags are these fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub pacing: Pacing,
    /// Bound on an invocation's own time; absent: the function's `timeout`.
    #[serde(default)]
    pub max_run_time: Option<DurationText>,
    #[serde(default = "full_share")]
    pub cpu: CpuShare,
    /// Promised start delay; absent: `deadline - max_run_time`, else 50 ms.
    #[serde(default)]
    pub start_within: Option<DurationText>,
    /// Promised end, from arrival.
    #[serde(default)]
    pub deadline: Option<DurationText>,
    #[serde(default)]
    pub overflow: Overflow,
    #[serde(default)]
    pub require: Require,
    #[serde(default)]
    pub on_overrun: OnOverrun,
    /// The longest lead of a pre-invocation; zero: none is declared.
    #[serde(default, with = "duration_text")]
    pub lead: Duration,
}

const fn full_share() -> CpuShare {
    CpuShare::FULL
}

/// A duration that travels as text with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurationText(pub Duration);

impl FromStr for DurationText {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse_duration(text).map(Self)
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_duration(self.0))
    }
}

serde_as_text!(DurationText);

/// Terms with every default filled in: what admission decides on and the pacer keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarantee {
    pub pacing: Pacing,
    /// C: bound on the invocation's own time.
    #[serde(with = "duration_text")]
    pub max_run_time: Duration,
    pub cpu: CpuShare,
    /// B: promised start delay from the conforming start.
    #[serde(with = "duration_text")]
    pub start_within: Duration,
    /// D: promised end from arrival.
    pub deadline: Option<DurationText>,
    pub overflow: Overflow,
    pub require: Require,
    pub on_overrun: OnOverrun,
    #[serde(with = "duration_text")]
    pub lead: Duration,
}

/// Why terms make no guarantee.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermError {
    #[error("unknown guarantee key `{key}`; the keys are {known}")]
    UnknownKey { key: String, known: String },
    #[error("the guarantee key `{key}` cannot be `{value}`: {reason}")]
    Value { key: &'static str, value: String, reason: String },
    #[error("a guarantee needs `rate` (such as \"30/s\") or `rate_class` (the name of a shared rate)")]
    NoRate,
    #[error("`rate_class` takes the place of `rate` and `burst`; state one or the other")]
    RateAndClass,
    #[error("a run time of {run_time} cannot end within the deadline of {deadline}; state a `max_run_time` below the `deadline`")]
    RunTimeAboveDeadline { run_time: String, deadline: String },
    #[error(
        "a start within {start_within} and a run time of {run_time} do not fit the deadline of {deadline}; lower one of the two by {excess}"
    )]
    StartAndRunAboveDeadline { start_within: String, run_time: String, deadline: String, excess: String },
    #[error("`max_run_time` is zero; state the longest time an invocation may take")]
    ZeroRunTime,
    #[error("`start_within` is zero; a start takes at least the dispatch tolerance of the node")]
    ZeroStartDelay,
}

const DEFAULT_START_WITHIN: Duration = Duration::from_millis(50);
const DEFAULT_QUEUE_LIMIT: u32 = 1000;
const MAX_QUEUE_LIMIT: u32 = 100_000;

impl Terms {
    /// The keys that state terms, in `takt.toml`, as tags (`takt:KEY`) and as flags.
    pub const KEYS: [&'static str; 12] = [
        "rate",
        "burst",
        "rate_class",
        "max_run_time",
        "cpu",
        "start_within",
        "deadline",
        "overflow",
        "queue_limit",
        "require",
        "on_overrun",
        "lead",
    ];

    /// Reads terms from key and value texts. `-` and `_` in keys are the same. An empty map means no terms are stated.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Option<Self>, TermError> {
        let mut given: BTreeMap<&'static str, &'a str> = BTreeMap::new();
        for (key, value) in pairs {
            let normal = key.replace('-', "_");
            let known = Self::KEYS.into_iter().find(|known| *known == normal);
            let known = known.ok_or_else(|| TermError::UnknownKey { key: key.to_owned(), known: Self::KEYS.join(", ") })?;
            given.insert(known, value);
        }
        if given.is_empty() {
            return Ok(None);
        }
        Self::from_known(&given).map(Some)
    }

    fn from_known(given: &BTreeMap<&'static str, &str>) -> Result<Self, TermError> {
        let pacing = match (read::<Rate>(given, "rate")?, read::<RateClassName>(given, "rate_class")?) {
            (Some(_), Some(_)) => return Err(TermError::RateAndClass),
            (Some(rate), None) => Pacing::Own { rate, burst: read(given, "burst")?.unwrap_or(Burst::ONE) },
            (None, Some(_)) if given.contains_key("burst") => return Err(TermError::RateAndClass),
            (None, Some(class)) => Pacing::Shared(class),
            (None, None) => return Err(TermError::NoRate),
        };
        Ok(Self {
            pacing,
            max_run_time: read(given, "max_run_time")?,
            cpu: read(given, "cpu")?.unwrap_or(CpuShare::FULL),
            start_within: read(given, "start_within")?,
            deadline: read(given, "deadline")?,
            overflow: read_overflow(given)?,
            require: read(given, "require")?.unwrap_or_default(),
            on_overrun: read(given, "on_overrun")?.unwrap_or_default(),
            lead: read::<DurationText>(given, "lead")?.map_or(Duration::ZERO, |lead| lead.0),
        })
    }

    /// The pairs that [`Terms::from_pairs`] reads back as these terms.
    #[must_use]
    pub fn to_pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = Vec::new();
        match &self.pacing {
            Pacing::Own { rate, burst } => pairs.extend([("rate", rate.to_string()), ("burst", burst.to_string())]),
            Pacing::Shared(class) => pairs.push(("rate_class", class.to_string())),
        }
        let durations = [("max_run_time", self.max_run_time), ("start_within", self.start_within), ("deadline", self.deadline)];
        pairs.extend(durations.into_iter().filter_map(|(key, value)| value.map(|value| (key, value.to_string()))));
        if self.cpu != CpuShare::FULL {
            pairs.push(("cpu", self.cpu.to_string()));
        }
        match self.overflow {
            Overflow::BestEffort => {}
            Overflow::Reject => pairs.push(("overflow", "reject".to_owned())),
            Overflow::Queue { limit } => pairs.extend([("overflow", "queue".to_owned()), ("queue_limit", limit.to_string())]),
        }
        if self.require == Require::Hard {
            pairs.push(("require", "hard".to_owned()));
        }
        if self.on_overrun == OnOverrun::Demote {
            pairs.push(("on_overrun", "demote".to_owned()));
        }
        if !self.lead.is_zero() {
            pairs.push(("lead", format_duration(self.lead)));
        }
        pairs
    }

    /// Fills in the defaults; `timeout` is the function's whole-second fallback of `max_run_time`.
    pub fn resolve(&self, timeout: Duration) -> Result<Guarantee, TermError> {
        let max_run_time = self.max_run_time.map_or(timeout, |stated| stated.0);
        if max_run_time.is_zero() {
            return Err(TermError::ZeroRunTime);
        }
        let slack = match self.deadline {
            Some(deadline) if deadline.0 <= max_run_time => {
                return Err(TermError::RunTimeAboveDeadline {
                    run_time: format_duration(max_run_time),
                    deadline: deadline.to_string(),
                });
            }
            Some(deadline) => Some(deadline.0.saturating_sub(max_run_time)),
            None => None,
        };
        let start_within = self.start_within.map_or_else(|| slack.unwrap_or(DEFAULT_START_WITHIN), |stated| stated.0);
        if start_within.is_zero() {
            return Err(TermError::ZeroStartDelay);
        }
        if let (Some(slack), Some(deadline)) = (slack, self.deadline)
            && slack < start_within
        {
            return Err(TermError::StartAndRunAboveDeadline {
                start_within: format_duration(start_within),
                run_time: format_duration(max_run_time),
                deadline: deadline.to_string(),
                excess: format_duration(start_within.saturating_sub(slack)),
            });
        }
        Ok(Guarantee {
            pacing: self.pacing.clone(),
            max_run_time,
            cpu: self.cpu,
            start_within,
            deadline: self.deadline,
            overflow: self.overflow,
            require: self.require,
            on_overrun: self.on_overrun,
            lead: self.lead,
        })
    }
}

impl Guarantee {
    /// c: the CPU time one invocation may use.
    #[must_use]
    pub fn cpu_budget(&self) -> Duration {
        self.cpu.budget(self.max_run_time)
    }
}

fn read<T>(given: &BTreeMap<&'static str, &str>, key: &'static str) -> Result<Option<T>, TermError>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    let Some(text) = given.get(key) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            let value = text.chars().take(64).collect();
            Err(TermError::Value { key, value, reason: T::Err::to_string(&error) })
        }
    }
}

fn read_overflow(given: &BTreeMap<&'static str, &str>) -> Result<Overflow, TermError> {
    let value_error = |key, value: &str, reason: &str| TermError::Value {
        key,
        value: value.chars().take(64).collect(),
        reason: reason.to_owned(),
    };
    let limit = read::<u32>(given, "queue_limit")?;
    if let Some(limit) = limit
        && !(1..=MAX_QUEUE_LIMIT).contains(&limit)
    {
        return Err(value_error("queue_limit", &limit.to_string(), "a queue holds 1 to 100000 invocations"));
    }
    match (given.get("overflow").copied(), limit) {
        (Some("queue"), limit) => Ok(Overflow::Queue { limit: limit.unwrap_or(DEFAULT_QUEUE_LIMIT) }),
        (_, Some(limit)) => Err(value_error("queue_limit", &limit.to_string(), "it needs overflow = \"queue\"")),
        (None | Some("best-effort"), None) => Ok(Overflow::BestEffort),
        (Some("reject"), None) => Ok(Overflow::Reject),
        (Some(other), None) => Err(value_error("overflow", other, "it is \"best-effort\", \"queue\" or \"reject\"")),
    }
}

/// A text that is none of the words or numbers a key takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct WordError {
    expected: &'static str,
}

impl FromStr for Burst {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        text.parse().ok().and_then(Self::new).ok_or(WordError { expected: "a whole number from 1 to 10000" })
    }
}

impl fmt::Display for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CpuShare {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let error = WordError { expected: "a share of one core from 0.001 to 1, with at most three decimals" };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.len() != 1 || !digits(whole) || !digits(fraction) || 3 < fraction.len() {
            return Err(error);
        }
        let thousandths: Option<u16> = format!("{whole}{fraction:0<3}").parse().ok();
        thousandths.and_then(Self::from_thousandths).ok_or(error)
    }
}

impl fmt::Display for CpuShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.thousandths / 1000, self.thousandths % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl FromStr for Require {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        match text {
            "any" => Ok(Self::Any),
            "hard" => Ok(Self::Hard),
            _ => Err(WordError { expected: "\"any\" or \"hard\"" }),
        }
    }
}

impl FromStr for OnOverrun {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        match text {
            "kill" => Ok(Self::Kill),
            "demote" => Ok(Self::Demote),
            _ => Err(WordError { expected: "\"kill\" or \"demote\"" }),
        }
    }
}

serde_as_text!(CpuShare);

impl Serialize for Burst {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.get())
    }
}

impl<'de> Deserialize<'de> for Burst {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let count = u32::deserialize(deserializer)?;
        Self::new(count).ok_or_else(|| serde::de::Error::custom("a burst is a whole number from 1 to 10000"))
    }
}

/// The error of a rate inside terms keeps its own words.
impl From<RateError> for TermError {
    fn from(error: RateError) -> Self {
        Self::Value { key: "rate", value: String::new(), reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms(pairs: &[(&str, &str)]) -> Result<Option<Terms>, TermError> {
        Terms::from_pairs(pairs.iter().copied())
    }

    #[test]
    fn the_start_bound_defaults_to_the_slack_or_fifty_milliseconds() {
        let with_deadline = terms(&[("rate", "30/s"), ("max_run_time", "20ms"), ("deadline", "100ms")]).unwrap().unwrap();
        assert_eq!(with_deadline.resolve(Duration::from_secs(3)).unwrap().start_within, Duration::from_millis(80));
        let without = terms(&[("rate", "30/s")]).unwrap().unwrap().resolve(Duration::from_secs(3)).unwrap();
        assert_eq!((without.start_within, without.max_run_time), (Duration::from_millis(50), Duration::from_secs(3)));
    }

    #[test]
    fn terms_that_contradict_each_other_are_refused_with_the_numbers() {
        let late = terms(&[("rate", "1/s"), ("max_run_time", "100ms"), ("deadline", "100ms")]).unwrap().unwrap();
        assert!(matches!(late.resolve(Duration::from_secs(3)), Err(TermError::RunTimeAboveDeadline { .. })));
        let tight = terms(&[("rate", "1/s"), ("max_run_time", "60ms"), ("deadline", "100ms"), ("start_within", "50ms")])
            .unwrap()
            .unwrap();
        let error = tight.resolve(Duration::from_secs(3)).unwrap_err().to_string();
        assert!(error.contains("lower one of the two by 10ms"), "{error}");
        assert_eq!(terms(&[("burst", "3")]), Err(TermError::NoRate));
        assert_eq!(terms(&[("rate", "1/s"), ("rate_class", "vr")]), Err(TermError::RateAndClass));
        assert!(matches!(terms(&[("rat", "1/s")]), Err(TermError::UnknownKey { .. })));
        assert_eq!(terms(&[]), Ok(None));
    }

    #[test]
    fn a_cpu_share_makes_the_budget() {
        let share: CpuShare = "0.25".parse().unwrap();
        assert_eq!(share.budget(Duration::from_millis(20)), Duration::from_millis(5));
        assert_eq!("1".parse(), Ok(CpuShare::FULL));
        for text in ["0", "1.001", "0.0001", "-1", ".5", "1.0000"] {
            assert!(text.parse::<CpuShare>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn terms_survive_the_way_through_tags(
            rate in 1_u64..10_000, burst in 1_u32..100, run in 1_u64..10_000, slack in 2_u64..1000,
            cpu in 1_u16..=1000, overflow in 0_u8..3, hard: bool, demote: bool, lead in 0_u64..100,
        ) {
            let stated = Terms {
                pacing: Pacing::Own { rate: Rate::per_second(rate).unwrap(), burst: Burst::new(burst).unwrap() },
                max_run_time: Some(DurationText(Duration::from_millis(run))),
                cpu: CpuShare::from_thousandths(cpu).unwrap(),
                start_within: Some(DurationText(Duration::from_millis(slack / 2))),
                deadline: Some(DurationText(Duration::from_millis(run + slack))),
                overflow: match overflow { 0 => Overflow::BestEffort, 1 => Overflow::Reject, _ => Overflow::Queue { limit: 7 } },
                require: if hard { Require::Hard } else { Require::Any },
                on_overrun: if demote { OnOverrun::Demote } else { OnOverrun::Kill },
                lead: Duration::from_millis(lead),
            };
            let pairs = stated.to_pairs();
            let read = Terms::from_pairs(pairs.iter().map(|(key, value)| (*key, value.as_str()))).unwrap().unwrap();
            prop_assert_eq!(&read, &stated);
            let json = serde_json::to_string(&stated).unwrap();
            prop_assert_eq!(serde_json::from_str::<Terms>(&json).unwrap(), stated);
        }
    }
}
