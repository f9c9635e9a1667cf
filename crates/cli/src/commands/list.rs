//! `takt list`: the functions of a node.

use anyhow::Result;
use http::Method;
use serde_json::Value;

use crate::args::ListArgs;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{self, Format};

/// Prints one line per function.
pub fn run(args: &ListArgs, format: Format) -> Result<Exit> {
    let value = Client::new(&args.node)?.call(Method::GET, "/v1/functions", None)?.success()?;
    match format {
        Format::Json => output::json(&value),
        Format::Human => print!("{}", text(&value)),
    }
    Ok(Exit::Ok)
}

fn text(value: &Value) -> String {
    let functions = value["functions"].as_array().cloned().unwrap_or_default();
    if functions.is_empty() {
        return "No functions yet; `takt new NAME` makes one, `takt deploy NAME` brings it here.\n".to_owned();
    }
    let cell = |value: &Value| {
        value.as_str().map_or_else(|| if value.is_null() { "-".to_owned() } else { value.to_string() }, str::to_owned)
    };
    let rows: Vec<Vec<String>> = functions
        .iter()
        .map(|function| ["name", "version", "runtime", "standing"].map(|key| cell(&function[key])).to_vec())
        .collect();
    output::table(&["name", "version", "runtime", "standing"], &rows)
}
