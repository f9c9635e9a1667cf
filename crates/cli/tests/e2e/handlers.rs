//! What becomes of handlers that end well or badly, on every runtime.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Answer, Function, Node, assert_exit, needs, wait_until};

const PYTHON: &str = r#"
import os, sys, time

def handler(event, context):
    what = event["do"]
    if what == "context":
        return {
            "id": context.aws_request_id,
            "name": context.function_name,
            "version": context.function_version,
            "memory": context.memory_limit_in_mb,
            "arn": context.invoked_function_arn,
            "remaining": context.get_remaining_time_in_millis(),
            "pid": os.getpid(),
        }
    if what == "raise":
        raise ValueError("not this one")
    if what == "exit":
        sys.exit(3)
    if what == "crash":
        os.kill(os.getpid(), 11)
    if what == "die":
        os._exit(7)
    if what == "sleep":
        time.sleep(30)
    if what == "unserialisable":
        return {1, 2}
    if what == "large":
        return "x" * (7 << 20)
    return what
"#;

const NODEJS: &str = r#"
exports.handler = async (event, context) => {
  switch (event.do) {
    case "context":
      return {
        id: context.awsRequestId, name: context.functionName, version: context.functionVersion,
        memory: context.memoryLimitInMB, arn: context.invokedFunctionArn,
        remaining: context.getRemainingTimeInMillis(), pid: process.pid,
      };
    case "raise": throw new TypeError("not this one");
    case "exit": process.exit(3);
    case "crash": process.kill(process.pid, "SIGKILL"); return new Promise(() => {});
    case "die": process.abort();
    case "sleep": return new Promise((done) => setTimeout(done, 30000));
    case "unserialisable": { const loop = {}; loop.loop = loop; return loop; }
    case "large": return "x".repeat(7 << 20);
    default: return event.do;
  }
};
"#;

fn done(node: &Node, name: &str, what: &str) -> Answer {
    let answer = node.invoke(name, &json!({ "do": what }));
    assert_eq!(answer.status, 200, "{what}: {answer:?}");
    answer
}

/// The error that a handler's end becomes; afterwards the function still works.
fn failure(node: &Node, name: &str, what: &str) -> Value {
    let answer = done(node, name, what);
    assert_eq!(answer.header("x-amz-function-error"), "Unhandled", "{what}: {answer:?}");
    assert_eq!(done(node, name, "well").json(), json!("well"), "after {what}");
    answer.json()
}

fn check_context(node: &Node, name: &str) {
    let answer = done(node, name, "context");
    let context = answer.json();
    assert_eq!(context["id"], answer.header("x-amzn-requestid"));
    assert_eq!((&context["name"], &context["version"]), (&json!(name), &json!("$LATEST")));
    assert_eq!(context["memory"].to_string().trim_matches('"'), "128");
    assert!(context["arn"].as_str().unwrap().ends_with(&format!(":function:{name}")), "{context}");
    let remaining = context["remaining"].as_u64().unwrap();
    assert!(0 < remaining && remaining <= 1_000, "{context}");
}

fn check_endings(node: &Node, name: &str, raised: &str) {
    check_context(node, name);
    let raise = failure(node, name, "raise");
    assert_eq!((&raise["errorType"], &raise["errorMessage"]), (&json!(raised), &json!("not this one")));
    let trace = raise.get("stackTrace").or_else(|| raise.get("trace"));
    assert!(trace.is_some_and(|trace| !trace.as_array().unwrap().is_empty()), "{raise}");
    assert!(failure(node, name, "exit")["errorType"].as_str().unwrap().starts_with("Runtime."));
    for crash in ["crash", "die"] {
        assert_eq!(failure(node, name, crash)["errorType"], "Runtime.ExitError");
    }
    let timeout = failure(node, name, "sleep");
    assert_eq!(timeout["errorType"], "Sandbox.Timedout");
    assert!(timeout["errorMessage"].as_str().unwrap().ends_with("Task timed out after 1.00 seconds"), "{timeout}");
    assert_eq!(failure(node, name, "unserialisable")["errorType"], "Runtime.MarshalError");
    assert_eq!(failure(node, name, "large")["errorType"], "Function.ResponseSizeTooLarge");
    // What the node itself did stands in the log beside what the function wrote.
    let said = ["Task timed out after 1.00 seconds", "Runtime exited with error"];
    wait_until("the log says why each ended", || {
        let log = String::from_utf8(node.takt(&["logs", name]).stdout).unwrap();
        said.iter().all(|what| log.contains(what))
    });
}

fn node(home: &TempDir) -> Node {
    Node::start(&home.path().join("node"), &[])
}

fn toml(name: &str, runtime: &str) -> String {
    format!("name = \"{name}\"\nruntime = \"{runtime}\"\nhandler = \"main.handler\"\nmemory = \"128MB\"\ntimeout = \"1s\"\n")
}

#[test]
fn python_handlers_end_as_they_do_at_aws() {
    let home = TempDir::new().unwrap();
    let node = node(&home);
    node.deployed(&Function { toml: &toml("py", "python3.12"), file: "main.py", code: PYTHON });
    check_endings(&node, "py", "ValueError");
    node.stop();
}

#[test]
fn nodejs_handlers_end_as_they_do_at_aws() {
    if super::support::find("node").is_none() {
        println!("skipped: handlers in JavaScript (there is no `node`)");
        return;
    }
    let home = TempDir::new().unwrap();
    let node = node(&home);
    node.deployed(&Function { toml: &toml("js", "nodejs22.x"), file: "main.js", code: NODEJS });
    check_endings(&node, "js", "TypeError");
    node.stop();
}

#[test]
fn a_handler_that_does_not_load_is_told_at_deployment_and_changes_nothing() {
    let home = TempDir::new().unwrap();
    let node = node(&home);
    let guarantee = "[guarantee]\nrate = \"2/s\"\nmax_run_time = \"50ms\"\nstart_within = \"500ms\"\n";
    let broken = node.try_python("fresh", guarantee, "import absent_module\n");
    assert_exit(&broken, 1);
    assert!(String::from_utf8_lossy(&broken.stdout).contains("absent_module"), "{broken:?}");
    assert_eq!(node.request("GET", "/v1/functions/fresh", &[], b"").status, 404);

    node.python("kept", guarantee, "def handler(event, context):\n    return 'old'\n");
    assert_exit(&node.try_python("kept", guarantee, "raise RuntimeError('at import')\n"), 1);
    let answer = node.invoke("kept", &json!(1));
    assert_eq!((answer.json(), answer.header("x-takt-class")), (json!("old"), "guaranteed"));
    node.stop();
}

/// A package that holds files from elsewhere, deployed over `/v1`.
fn deploy_files(node: &Node, toml: &str, folder: &Path) {
    std::fs::write(folder.join("takt.toml"), toml).unwrap();
    assert_exit(&node.takt(&["deploy", &folder.to_string_lossy()]), 0);
}

#[test]
fn the_runtime_client_of_aws_runs_unmodified() {
    let Some(python) = needs("TAKT_TEST_AWSLAMBDARIC", "awslambdaric") else { return };
    let home = TempDir::new().unwrap();
    let node = node(&home);
    let folder = TempDir::new().unwrap();
    let found = std::process::Command::new(&python)
        .args(["-c", "import awslambdaric, os; print(os.path.dirname(os.path.dirname(awslambdaric.__file__)))"])
        .output()
        .unwrap();
    assert_exit(&found, 0);
    let packages = String::from_utf8(found.stdout).unwrap();
    for package in ["awslambdaric", "simplejson", "snapshot_restore_py", "runtime_client"] {
        for entry in std::fs::read_dir(packages.trim()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with(package) {
                let copied = std::process::Command::new("cp").arg("-r").arg(entry.path()).arg(folder.path()).status().unwrap();
                assert!(copied.success());
            }
        }
    }
    std::fs::write(folder.path().join("main.py"), PYTHON).unwrap();
    let bootstrap = folder.path().join("bootstrap");
    std::fs::write(&bootstrap, "#!/bin/sh\nexec python3 -m awslambdaric main.handler\n").unwrap();
    std::process::Command::new("chmod").arg("755").arg(&bootstrap).status().unwrap();
    deploy_files(&node, &toml("ric", "provided.al2023"), folder.path());
    check_context(&node, "ric");
    let raise = failure(&node, "ric", "raise");
    assert_eq!((&raise["errorType"], &raise["errorMessage"]), (&json!("ValueError"), &json!("not this one")));
    assert_eq!(failure(&node, "ric", "die")["errorType"], "Runtime.ExitError");
    assert_eq!(failure(&node, "ric", "sleep")["errorType"], "Sandbox.Timedout");
    node.stop();
}

#[test]
fn a_function_on_the_rust_crate_of_aws_runs_unmodified() {
    let Some(program) = needs("TAKT_TEST_RUST_LAMBDA", "lambda_runtime") else { return };
    let home = TempDir::new().unwrap();
    let node = node(&home);
    let folder = TempDir::new().unwrap();
    std::fs::copy(program, folder.path().join("bootstrap")).unwrap();
    deploy_files(&node, &toml("rust", "provided"), folder.path());
    let answer = node.invoke("rust", &json!({ "n": 1 }));
    assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, ""), "{answer:?}");
    node.stop();
}
