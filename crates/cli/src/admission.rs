//! What admission answered, as text.

use anyhow::Result;
use serde_json::Value;

use crate::client::Answer;
use crate::exit::Exit;
use crate::output::{self, Format};

/// The code of the node's error when admission says no.
const REFUSED: &str = "refused";

/// Whether the node said that a guarantee cannot be given (and not that something went wrong).
#[must_use]
pub fn is_refusal(answer: &Answer) -> bool {
    !answer.status.is_success() && answer.json().is_ok_and(|value| value["error"]["code"] == REFUSED)
}

/// Prints why, by how much, and what would fit.
pub fn print_refusal(answer: &Answer, format: Format) -> Result<Exit> {
    let value = answer.json()?;
    match format {
        Format::Json => output::json(&value),
        Format::Human => print!("{}", refusal(&value)),
    }
    Ok(Exit::Refused)
}

/// A refusal: the node's sentence, its numbers, and the rate that would fit.
#[must_use]
pub fn refusal(answer: &Value) -> String {
    let error = &answer["error"];
    let mut text = format!("Refused: {}. Nothing was changed.\n", error["message"].as_str().unwrap_or("admission said no"));
    let refusal = &error["refusal"];
    let numbers: Vec<(&str, String)> = refusal
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| *name != "offer" && !value.is_null())
        .map(|(name, value)| (name.as_str(), plain(value)))
        .collect();
    text.push_str(&output::facts(&numbers));
    text.push_str(&match refusal["offer"].as_str() {
        Some(rate) => format!("The largest rate that fits now: --rate {rate}\n"),
        None => "No rate fits as things stand.\n".to_owned(),
    });
    text
}

/// A guarantee with its numbers; without one, a line that says so.
#[must_use]
pub fn given(guarantee: &Value) -> String {
    if guarantee.is_null() {
        return "  no guarantee: it runs on what is idle\n".to_owned();
    }
    let text = |key: &str| plain(&guarantee[key]);
    let terms = &guarantee["terms"];
    let rate = match (terms["rate"].as_str(), terms["rate_class"].as_str()) {
        (Some(rate), _) => format!("{rate}, burst {}", plain(&terms["burst"])),
        (None, Some(class)) => format!("that of class {class}"),
        (None, None) => "-".to_owned(),
    };
    let mut facts = vec![
        ("level", text("level")),
        ("rate", rate),
        ("run time", format!("at most {} (C)", plain(&terms["max_run_time"]))),
        (
            "start",
            format!("within {} promised (B), {} at worst now (S + T)", text("start_within"), at_worst(guarantee, "start_bound")),
        ),
    ];
    let end = format!("{} at worst now (R + T)", at_worst(guarantee, "response_bound"));
    facts.push(match guarantee["deadline"].as_str() {
        Some(deadline) => ("end", format!("within {deadline} promised (D), {end}")),
        None => ("end", end),
    });
    facts.push(("tolerance", format!("{} (T)", brief(&guarantee["tolerance"]))));
    facts.push(("instances", format!("{} at most (K), {} kept warm (W)", text("instances"), text("warm"))));
    if let Some(left) = left(&guarantee["remaining"]) {
        facts.push(("left", left));
    }
    output::facts(&facts)
}

/// What a node has left for further guarantees.
fn left(value: &Value) -> Option<String> {
    let cores: Vec<String> = value["cores"]
        .as_array()?
        .iter()
        .enumerate()
        .map(|(core, share)| Some(format!("core {core} {} %", percent(free(share)?))))
        .collect::<Option<_>>()?;
    let memory = value["memory_bytes"].as_u64()? >> 20;
    let front = percent(free(&value["front"])?);
    Some(format!("{}; front {front} %; {memory} MB; {} instances", cores.join(", "), plain(&value["instances"])))
}

/// What is not promised yet of a share of a core, in billionths of a core.
pub(crate) fn free(share: &Value) -> Option<u64> {
    Some(share["limit_nanocores"].as_u64()?.saturating_sub(share["used_nanocores"].as_u64()?))
}

/// Billionths of a core as hundredths, rounded down.
const fn percent(nanocores: u64) -> u64 {
    nanocores / 10_000_000
}

/// A duration that was computed, as people read it; what is none stays as it came.
pub(crate) fn brief(value: &Value) -> String {
    let text = plain(value);
    model::parse_duration(&text).map_or(text, model::brief_duration)
}

/// A bound of a guarantee with the tolerance of its node, as people read it (S + T, R + T).
pub(crate) fn at_worst(guarantee: &Value, bound: &str) -> String {
    let duration = |key: &str| model::parse_duration(guarantee[key].as_str()?).ok();
    match (duration(bound), duration("tolerance")) {
        (Some(bound), Some(tolerance)) => model::brief_duration(bound.saturating_add(tolerance)),
        _ => "-".to_owned(),
    }
}

/// A value without the quotes of JSON; nothing as a dash.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_guarantee_is_shown_with_what_is_promised_and_what_is_now() {
        let guarantee = json!({
            "level": "hard", "terms": { "rate": "30/s", "burst": "3", "max_run_time": "20ms" }, "instances": 5, "warm": 4,
            "start_within": "80ms", "start_bound": "11593010ns", "deadline": "100ms", "response_bound": "39600us", "tolerance": "400us",
            "remaining": {
                "cores": [
                    { "used_nanocores": 600_000_000, "limit_nanocores": 850_000_000 },
                    { "used_nanocores": 0, "limit_nanocores": 850_000_000 },
                ],
                "front": { "used_nanocores": 150_000_000, "limit_nanocores": 250_000_000 },
                "memory_bytes": 1_073_741_824, "instances": 95,
            },
        });
        assert_eq!(
            given(&guarantee),
            "  level      hard\n  \
               rate       30/s, burst 3\n  \
               run time   at most 20ms (C)\n  \
               start      within 80ms promised (B), 12ms at worst now (S + T)\n  \
               end        within 100ms promised (D), 40ms at worst now (R + T)\n  \
               tolerance  400us (T)\n  \
               instances  5 at most (K), 4 kept warm (W)\n  \
               left       core 0 25 %, core 1 85 %; front 10 %; 1024 MB; 95 instances\n"
        );
    }

    #[test]
    fn a_refusal_ends_with_the_rate_that_fits() {
        let answer = json!({ "error": { "code": "refused", "message": "core 0 is full",
            "refusal": { "resource": "cpu", "core": 0, "needed_nanocores": 1_200_000_000_u64, "offer": "12/s" } } });
        let text = refusal(&answer);
        assert!(text.starts_with("Refused: core 0 is full. Nothing was changed.\n"), "{text}");
        assert!(text.contains("needed_nanocores  1200000000") && text.ends_with("--rate 12/s\n"), "{text}");
        let none = refusal(&json!({ "error": { "refusal": { "resource": "cpu", "offer": null } } }));
        assert!(none.ends_with("No rate fits as things stand.\n"), "{none}");
    }

    proptest! {
        #[test]
        fn whatever_a_node_answers_is_printed(text in "[{}\\[\\]\":,0-9a-z]{0,60}") {
            let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            let _ = (given(&value), refusal(&value));
        }
    }
}
