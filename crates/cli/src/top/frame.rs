//! What one look at a node shows.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::admission;

/// One look, with the rates since the one before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    pub software: String,
    pub phase: String,
    pub level: String,
    /// T, as frozen.
    pub tolerance: String,
    /// The largest dispatch delay seen.
    pub tolerance_seen: String,
    pub uptime: String,
    /// Billionths of each core that are not promised.
    pub cores_left: Vec<u64>,
    pub memory_left_mib: u64,
    pub instances_left: u64,
    pub queues: Vec<Queue>,
    /// What keeps the node from giving guarantees or keeping evidence, in its own words.
    pub problems: Vec<String>,
    /// What the machine and its user do not give the node.
    pub missing: Vec<String>,
    pub functions: Vec<Function>,
}

/// A bounded queue of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    pub name: String,
    pub length: u64,
    pub limit: u64,
}

/// One function; what the node does not state is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    pub name: String,
    /// `guaranteed`, `best-effort`, `suspended`, `pending` or `failed`.
    pub standing: String,
    /// As stated, such as "30/s".
    pub promised_rate: String,
    /// Arrivals per second since the look before; absent at the first one, and without a guarantee.
    pub rate: Option<f64>,
    /// S + T: the worst start delay as things stand.
    pub start_at_worst: String,
    /// B: the promised one.
    pub start_within: String,
    pub excess: u64,
    /// Conforming invocations that started too late.
    pub start_violations: u64,
    pub deadline_misses: u64,
    /// W and K.
    pub warm: u64,
    pub instances: u64,
    arrivals: u64,
}

/// The numbers of `/metrics`, by name and labels as they are written there.
#[derive(Clone, Debug, Default)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads Prometheus' text format; lines that are something else are left out.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .filter_map(|line| line.rsplit_once(' '))
                .filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?)))
                .collect(),
        )
    }

    /// The sum over a function's generations.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole and far below 2^53")]
    fn sum(&self, name: &str, function: &str, label: &str) -> u64 {
        let start = format!("{name}{{function=\"{function}\",");
        let end = format!(",{label}}}");
        let mine = self.0.range(start.clone()..).take_while(|(key, _)| key.starts_with(&start));
        mine.filter(|(key, _)| key.ends_with(&end)).map(|(_, value)| *value).sum::<f64>() as u64
    }
}

impl Frame {
    /// Reads the answers of `GET /v1/node`, `GET /v1/functions` and `GET /metrics`; `before` is the look so long ago.
    #[must_use]
    pub fn read(node: &Value, functions: &Value, metrics: &Metrics, before: Option<(&Self, Duration)>) -> Self {
        let left = &node["remaining"];
        let problems = [&node["admission_stopped"], &node["evidence"]["problem"], &node["code_problem"]];
        let mut frame = Self {
            software: text(&node["version"]),
            phase: text(&node["phase"]),
            level: text(&node["level"]),
            tolerance: admission::brief(&node["tolerance"]),
            tolerance_seen: admission::brief(&node["tolerance_seen"]),
            uptime: seconds(&node["uptime"]),
            cores_left: list(&left["cores"]).iter().filter_map(admission::free).collect(),
            memory_left_mib: number(&left["memory_bytes"]) >> 20,
            instances_left: number(&left["instances"]),
            queues: list(&node["queues"]).iter().map(Queue::read).collect(),
            missing: list(&node["protections"])
                .iter()
                .filter(|it| !it["missing"].is_null())
                .map(|it| text(&it["name"]))
                .collect(),
            problems: problems.into_iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            functions: list(&functions["functions"]).iter().map(|value| Function::read(value, metrics)).collect(),
        };
        if let Some((before, since)) = before.filter(|(_, since)| !since.is_zero()) {
            let earlier: BTreeMap<&str, u64> =
                before.functions.iter().map(|function| (function.name.as_str(), function.arrivals)).collect();
            for function in frame.functions.iter_mut().filter(|function| !function.promised_rate.is_empty()) {
                let earlier = earlier.get(function.name.as_str());
                function.rate = earlier.map(|earlier| per_second(function.arrivals.saturating_sub(*earlier), since));
            }
        }
        frame
    }
}

impl Queue {
    fn read(value: &Value) -> Self {
        Self { name: text(&value["name"]), length: number(&value["length"]), limit: number(&value["limit"]) }
    }
}

impl Function {
    fn read(value: &Value, metrics: &Metrics) -> Self {
        let name = text(&value["name"]);
        let guarantee = &value["guarantee"];
        let rate = [&guarantee["terms"]["rate"], &guarantee["terms"]["rate_class"]].into_iter().find_map(Value::as_str);
        Self {
            standing: text(&value["standing"]),
            promised_rate: rate.unwrap_or_default().to_owned(),
            rate: None,
            start_at_worst: if guarantee.is_null() { String::new() } else { admission::at_worst(guarantee, "start_bound") },
            start_within: text(&guarantee["start_within"]),
            excess: metrics.sum("takt_invocations_total", &name, "kind=\"excess\""),
            start_violations: metrics.sum("takt_missed_total", &name, "promise=\"start\""),
            deadline_misses: metrics.sum("takt_missed_total", &name, "promise=\"deadline\""),
            warm: number(&guarantee["warm"]),
            instances: number(&guarantee["instances"]),
            arrivals: metrics.sum("takt_invocations_total", &name, "kind=\"arrived\""),
            name,
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A duration in whole seconds, for what is long.
fn seconds(value: &Value) -> String {
    value.as_str().and_then(|text| model::parse_duration(text).ok()).map_or_else(String::new, |it| format!("{}s", it.as_secs()))
}

#[expect(clippy::cast_precision_loss, reason = "a rate for display")]
fn per_second(count: u64, since: Duration) -> f64 {
    count as f64 / since.as_secs_f64()
}
