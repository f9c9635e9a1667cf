//! New code under load: the hand-over is nobody's business but the node's.

use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Node, takt_command};

const GUARANTEE: &str = "[guarantee]\nrate = \"40/s\"\nburst = 4\nmax_run_time = \"20ms\"\ndeadline = \"500ms\"\n";

fn code(version: u32) -> String {
    format!("def handler(event, context):\n    return {version}\n")
}

#[test]
fn redeployments_under_load_violate_nothing() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    node.python("steady", GUARANTEE, &code(1));
    let words = ["invoke", "steady", "--rate", "30/s", "--for", "12s", "--connections", "8", "--json"];
    let load = takt_command(&data).args(words).env("TAKT_URL", node.url()).stdout(Stdio::piped()).spawn().unwrap();
    for version in 2..=4 {
        node.python("steady", GUARANTEE, &code(version));
        assert_eq!(node.invoke("steady", &json!(0)).json(), json!(version));
    }
    let output = load.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["invocations"], 360, "{report}");
    assert_eq!(report["succeeded"], 360, "{report}");
    node.stop();
    super::evidence::assert_nothing_is_violated(&data, 360 + 3);
}
