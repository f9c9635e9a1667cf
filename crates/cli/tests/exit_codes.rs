//! What a shell sees of the tool: its exit codes, and where it writes what.

#[cfg(test)]
mod common;

use std::path::Path;
use std::process::Output;

use common::{FakeNode, takt};

const REFUSAL: &str = r#"{"error": {"code": "refused", "message": "core 0 is full: needs 1.2, has 0.4",
    "refusal": {"resource": "cpu", "offer": "12/s"}}}"#;

fn rule(line: &str) -> (u16, &'static str) {
    match line {
        "PUT /v1/functions/hello" => (200, r#"{"name": "hello", "version": 1, "guarantee": {"instances": 3}}"#),
        "PUT /v1/functions/greedy" | "PUT /v1/functions/hello/guarantee" => (409, REFUSAL),
        "GET /v1/functions" => (200, r#"{"functions": []}"#),
        "POST /2015-03-31/functions/hello/invocations" => (200, r#"{"message": "Hello"}"#),
        _ => (404, r#"{"error": {"code": "no-function", "message": "there is no such function"}}"#),
    }
}

fn check(output: &Output, code: i32, said: &str) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "out: {out}\nerr: {err}");
    assert!(out.contains(said) || err.contains(said), "`{said}` in\nout: {out}\nerr: {err}");
}

fn with_node(home: &Path, words: &[&str]) -> (Output, FakeNode) {
    let node = FakeNode::start(rule);
    let mut all = words.to_vec();
    all.extend(["--url", &node.url, "--token", "secret"]);
    (takt(&all, home), node)
}

fn folder(home: &Path, name: &str) -> String {
    check(&takt(&["new", name, "--in", &home.to_string_lossy()], home), 0, "takt.toml");
    home.join(name).to_string_lossy().into_owned()
}

#[test]
fn a_deployment_that_is_admitted_exits_with_0() {
    let home = tempfile::tempdir().unwrap();
    let folder = folder(home.path(), "hello");
    let (output, node) = with_node(home.path(), &["deploy", &folder, "--rate", "12/s"]);
    check(&output, 0, "Deployed hello, version 1.");
    let asked = node.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].line.as_str(), asked[0].authorization.as_str()), ("PUT /v1/functions/hello", "Bearer secret"));
    let body: serde_json::Value = serde_json::from_str(&asked[0].body).unwrap();
    assert!(body["takt_toml"].as_str().unwrap().contains("rate = \"12/s\""), "{body}");
}

#[test]
fn a_refusal_by_admission_exits_with_3_and_says_what_would_fit() {
    let home = tempfile::tempdir().unwrap();
    let folder = folder(home.path(), "greedy");
    check(&with_node(home.path(), &["deploy", &folder]).0, 3, "12/s");
    check(&with_node(home.path(), &["guarantee", "set", "hello", "--rate", "9000/s"]).0, 3, "core 0 is full");
    let (output, _) = with_node(home.path(), &["--json", "guarantee", "set", "hello", "--rate", "9000/s"]);
    assert_eq!(output.status.code(), Some(3));
    serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
}

#[test]
fn what_cannot_be_done_exits_with_1() {
    let home = tempfile::tempdir().unwrap();
    check(&with_node(home.path(), &["delete", "absent"]).0, 1, "there is no such function");
    check(&takt(&["list", "--url", "http://127.0.0.1:1", "--token", "t"], home.path()), 1, "no node at http://127.0.0.1:1");
    check(&takt(&["list"], home.path()), 1, "--data-dir");
    check(&takt(&["deploy", "/nowhere"], home.path()), 1, "takt new");
}

#[test]
fn an_error_is_a_document_where_json_is_wanted() {
    let home = tempfile::tempdir().unwrap();
    let (output, _) = with_node(home.path(), &["delete", "absent", "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["error"]["message"], "there is no such function");
}

#[test]
fn a_command_line_that_makes_no_sense_exits_with_2() {
    let home = tempfile::tempdir().unwrap();
    check(&takt(&["frobnicate"], home.path()), 2, "frobnicate");
    check(&takt(&["invoke", "a/b"], home.path()), 2, "function name");
    check(&takt(&["help"], home.path()), 0, "deploy");
}

#[test]
fn an_invocation_prints_the_answer_alone() {
    let home = tempfile::tempdir().unwrap();
    let (output, _) = with_node(home.path(), &["invoke", "hello"]);
    check(&output, 0, "Hello");
    assert_eq!(output.stdout, b"{\"message\": \"Hello\"}\n");
    check(&with_node(home.path(), &["invoke", "hello", "--data", "{"]).0, 1, "not JSON");
}

#[test]
fn a_load_reports_every_invocation() {
    let home = tempfile::tempdir().unwrap();
    let csv = home.path().join("rows.csv");
    let words = ["invoke", "hello", "--rate", "100/s", "--for", "100ms", "--json", "--csv", csv.to_str().unwrap()];
    let (output, _) = with_node(home.path(), &words);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["invocations"], 10, "{report}");
    assert_eq!(std::fs::read_to_string(csv).unwrap().lines().count(), 11);
}

#[test]
fn variables_for_aws_clients_come_from_the_data_directory() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join(".local/share/takt");
    std::fs::create_dir_all(&data).unwrap();
    let keys = node::auth::keys::load_or_create(&data).unwrap();
    let output = takt(&["env", "--url", "http://127.0.0.1:9999"], home.path());
    check(&output, 0, "export AWS_ENDPOINT_URL_LAMBDA='http://127.0.0.1:9999'");
    check(&output, 0, &format!("export AWS_ACCESS_KEY_ID='{}'", keys.access_key_id));
}
