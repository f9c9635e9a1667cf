//! `takt list`: the functions of a node.

use anyhow::Result;
use http::Method;
use serde_json::Value;

use crate::admission::plain;
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
    let rows: Vec<Vec<String>> = functions
        .iter()
        .map(|function| {
            let guarantee = &function["guarantee"];
            let [name, version, runtime, standing] = ["name", "version", "runtime", "standing"].map(|key| plain(&function[key]));
            let rate = guarantee["terms"]["rate"].as_str().or_else(|| guarantee["terms"]["rate_class"].as_str());
            let rate = rate.unwrap_or("-").to_owned();
            let [level, start, deadline] = ["level", "start_within", "deadline"].map(|key| plain(&guarantee[key]));
            vec![name, version, runtime, standing, level, rate, start, deadline]
        })
        .collect();
    output::table(&["name", "version", "runtime", "standing", "level", "rate", "start", "deadline"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_what_is_promised() {
        let functions = json!({ "functions": [
            { "name": "detect", "version": 2, "runtime": "provided", "standing": "guaranteed",
              "guarantee": { "level": "hard", "terms": { "rate": "30/s" }, "start_within": "80ms", "deadline": "100ms" } },
            { "name": "other", "version": 1, "runtime": "python", "standing": "best-effort", "guarantee": null },
        ] });
        assert_eq!(
            text(&functions),
            "NAME    VERSION  RUNTIME   STANDING     LEVEL  RATE  START  DEADLINE\n\
             detect  2        provided  guaranteed   hard   30/s  80ms   100ms\n\
             other   1        python    best-effort  -      -     -      -\n"
        );
    }
}
