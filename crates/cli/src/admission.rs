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
        Format::Human => {
            println!("Refused: {}", answer.message());
            print!("{}", output::facts(&pairs(&value["error"]["refusal"])));
        }
    }
    Ok(Exit::Refused)
}

/// The numbers of a guarantee that was given, one a line.
#[must_use]
pub fn given(answer: &Value) -> String {
    output::facts(&pairs(answer))
}

/// Every number or text of an answer, by the name the node gives it.
fn pairs(answer: &Value) -> Vec<(&str, String)> {
    let Some(object) = answer.as_object() else {
        return Vec::new();
    };
    object.iter().map(|(name, value)| (name.as_str(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))).collect()
}
