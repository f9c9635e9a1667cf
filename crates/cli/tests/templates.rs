//! Templates that can run without a node are run.

#[cfg(test)]
mod common;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{FakeNode, takt};

/// A script that answers nothing within this time never does.
const LIMIT: Duration = Duration::from_secs(20);

/// Stops a child however the test ends.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn runtime_api(line: &str) -> (u16, &'static str) {
    match line {
        "GET /2018-06-01/runtime/invocation/next" => (200, r#"{"a": 1}"#),
        _ => (202, r#"{"status": "OK"}"#),
    }
}

#[test]
fn the_shell_template_answers_an_invocation() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: the shell template needs curl, and there is none on this machine");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let made = takt(&["new", "hello", "--template", "provided-sh", "--in", home.path().to_str().unwrap()], home.path());
    assert!(made.status.success(), "{made:?}");
    let api = FakeNode::start(runtime_api);
    let address = api.url.trim_start_matches("http://");
    let child = Command::new(home.path().join("hello/bootstrap")).env("AWS_LAMBDA_RUNTIME_API", address).spawn().unwrap();
    let _running = Stopped(child);
    assert_eq!(api.next(LIMIT).line, "GET /2018-06-01/runtime/invocation/next");
    let answer = api.next(LIMIT);
    assert_eq!(answer.line, "POST /2018-06-01/runtime/invocation/request-1/response");
    assert_eq!(answer.body, r#"{"you_sent": {"a": 1}}"#);
    assert_eq!(api.next(LIMIT).line, "GET /2018-06-01/runtime/invocation/next");
}
