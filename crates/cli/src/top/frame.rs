//! What one look at a node shows.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// One look, with the rates since the one before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    pub version: String,
    pub level: String,
    /// T, as frozen.
    pub tolerance_us: Option<u64>,
    pub cores: Vec<Core>,
    pub memory_used_mib: Option<u64>,
    pub memory_limit_mib: Option<u64>,
    pub best_effort_waiting: Option<u64>,
    pub best_effort_running: Option<u64>,
    pub functions: Vec<Function>,
}

/// A core's promised share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Core {
    pub used_nanocores: u64,
    pub limit_nanocores: u64,
}

/// Under which promise a function stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    Guaranteed,
    #[default]
    BestEffort,
    Suspended,
}

/// One function; what the node does not state is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    pub name: String,
    pub standing: Standing,
    /// As stated, such as "30/s".
    pub promised_rate: Option<String>,
    /// Arrivals per second since the look before; absent at the first one.
    pub rate: Option<f64>,
    pub start_delay_p99_us: Option<u64>,
    /// B.
    pub start_bound_us: Option<u64>,
    pub violations: u64,
    pub deadline_misses: u64,
    pub busy: Option<u64>,
    pub warm: Option<u64>,
    /// K.
    pub instances: Option<u64>,
    pub waiting: Option<u64>,
    arrivals: u64,
}

impl Frame {
    /// Reads the answers of `GET /v1/node` and `GET /v1/functions`; `before` is the look `since` ago.
    #[must_use]
    pub fn read(node: &Value, functions: &Value, before: Option<(&Self, Duration)>) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let earlier: BTreeMap<&str, u64> = before
            .iter()
            .flat_map(|(frame, _)| frame.functions.iter().map(|function| (function.name.as_str(), function.arrivals)))
            .collect();
        let since = before.map(|(_, since)| since).filter(|since| !since.is_zero());
        let functions = functions["functions"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            version: text(&node["version"]),
            level: text(&node["level"]),
            tolerance_us: duration_us(&node["tolerance"]),
            cores: node["remaining"]["cores"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(Core::read).collect(),
            memory_used_mib: node["memory"]["used_mib"].as_u64(),
            memory_limit_mib: node["memory"]["limit_mib"].as_u64(),
            best_effort_waiting: node["best_effort"]["waiting"].as_u64(),
            best_effort_running: node["best_effort"]["running"].as_u64(),
            functions: functions
                .iter()
                .map(|value| {
                    let mut function = Function::read(value);
                    let earlier = earlier.get(function.name.as_str());
                    function.rate = since.zip(earlier).map(|(since, earlier)| per_second(function.arrivals, *earlier, since));
                    function
                })
                .collect(),
        }
    }
}

impl Core {
    fn read(value: &Value) -> Self {
        let number = |key: &str| value[key].as_u64().unwrap_or(0);
        Self { used_nanocores: number("used_nanocores"), limit_nanocores: number("limit_nanocores") }
    }
}

impl Function {
    fn read(value: &Value) -> Self {
        let counters = &value["counters"];
        let count = |key: &str| counters[key].as_u64().unwrap_or(0);
        Self {
            name: value["name"].as_str().unwrap_or_default().to_owned(),
            standing: match value["standing"].as_str() {
                Some("guaranteed") => Standing::Guaranteed,
                Some("suspended") => Standing::Suspended,
                _ => Standing::BestEffort,
            },
            promised_rate: value["guarantee"]["rate"].as_str().map(str::to_owned),
            rate: None,
            start_delay_p99_us: counters["start_delay_p99_us"].as_u64(),
            start_bound_us: duration_us(&value["guarantee"]["start_within"]),
            violations: count("start_violations"),
            deadline_misses: count("deadline_misses"),
            busy: value["instances"]["busy"].as_u64(),
            warm: value["instances"]["idle"].as_u64(),
            instances: value["guarantee"]["instances"].as_u64(),
            waiting: value["waiting"].as_u64(),
            arrivals: count("arrivals"),
        }
    }
}

fn duration_us(value: &Value) -> Option<u64> {
    let duration = model::parse_duration(value.as_str()?).ok()?;
    u64::try_from(duration.as_micros()).ok()
}

#[expect(clippy::cast_precision_loss, reason = "a rate for display")]
fn per_second(now: u64, earlier: u64, since: Duration) -> f64 {
    now.saturating_sub(earlier) as f64 / since.as_secs_f64()
}
