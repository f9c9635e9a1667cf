//! Tenants share what best effort has, by the node's own numbers.

use std::cell::Cell;

use tempfile::TempDir;

use super::support::{Node, wait_until};

/// Works until it has had 20 ms of its core.
const COMPUTE: &str = "import time\n\ndef handler(event, context):\n    until = time.process_time() + 0.02\n    \
                       while time.process_time() < until:\n        pass\n    return event\n";

/// Time in which a function's instances ran invocations, as the metrics say.
fn used_s(node: &Node, function: &str) -> f64 {
    let metrics = node.request("GET", "/metrics", &[], b"").text();
    let line = format!("takt_used_instance_seconds_total{{function=\"{function}\"}} ");
    metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or(0.0)
}

#[test]
fn two_tenants_that_flood_alike_get_alike() {
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    for name in ["left", "right"] {
        node.python(name, &format!("timeout = \"60s\"\ntenant = \"{name}\"\n"), COMPUTE);
        assert_eq!(node.invoke(name, &serde_json::json!(1)).json(), 1);
    }
    // More than any two cores can do, on as many connections.
    let flood = |name| node.load(name, &["--rate", "300/s", "--for", "30s", "--connections", "6", "--data", "1"]);
    let _floods = [flood("left"), flood("right")];
    let begun = ["left", "right"].map(|name| used_s(&node, name));
    let used = Cell::new([0.0, 0.0]);
    wait_until("both floods to have run for seconds", || {
        let [left, right] = ["left", "right"].map(|name| used_s(&node, name));
        used.set([left - begun[0], right - begun[1]]);
        8.0 <= used.get().iter().sum()
    });
    let [left, right] = used.get();
    assert!(left < 2.0 * right && right < 2.0 * left, "{left} s and {right} s of instances at work");
}
