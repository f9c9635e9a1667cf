//! Tenants share what best effort has, by the node's own numbers.

use std::cell::RefCell;

use tempfile::TempDir;

use super::support::{Load, Node, wait_until};

/// Works until it has had 20 ms of its core.
const COMPUTE: &str = "import time\n\ndef handler(event, context):\n    until = time.process_time() + 0.02\n    \
                       while time.process_time() < until:\n        pass\n    return event\n";
/// Waits for as long.
const WAIT: &str = "import time\n\ndef handler(event, context):\n    time.sleep(0.02)\n    return event\n";

const MANY: [&str; 8] = ["m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"];

/// Time in which a function's instances ran invocations, as the metrics say.
fn used_s(node: &Node, function: &str) -> f64 {
    let metrics = node.request("GET", "/metrics", &[], b"").text();
    let line = format!("takt_used_instance_seconds_total{{function=\"{function}\"}} ");
    metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or(0.0)
}

fn deploy(node: &Node, tenant: &str, name: &str, code: &str) {
    node.python(name, &format!("timeout = \"60s\"\ntenant = \"{tenant}\"\n"), code);
    assert_eq!(node.invoke(name, &serde_json::json!(1)).json(), 1);
}

fn flood(node: &Node, name: &str, (rate, connections): (&str, &str)) -> Load {
    node.load(name, &["--rate", rate, "--for", "40s", "--connections", connections, "--data", "1"])
}

/// What instances of these functions were at work from now on, when in all they were for so long.
fn shares(node: &Node, names: &[&str], seconds: f64) -> Vec<f64> {
    let begun: Vec<f64> = names.iter().map(|name| used_s(node, name)).collect();
    let used = RefCell::new(Vec::new());
    wait_until("the floods to have run for seconds", || {
        let so_far: Vec<f64> = names.iter().zip(&begun).map(|(name, begun)| used_s(node, name) - begun).collect();
        let enough = seconds <= so_far.iter().sum();
        used.replace(so_far);
        enough
    });
    used.into_inner()
}

#[test]
fn a_tenant_with_eight_functions_gets_what_one_with_one_gets_and_the_eight_get_alike() {
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    deploy(&node, "one", "one", COMPUTE);
    for name in MANY {
        deploy(&node, "many", name, COMPUTE);
    }
    // Each tenant asks for more than any two cores can do.
    let _one = flood(&node, "one", ("200/s", "8"));
    let _many = MANY.map(|name| flood(&node, name, ("40/s", "3")));
    let names: Vec<&str> = ["one"].into_iter().chain(MANY).collect();
    let used = shares(&node, &names, 16.0);
    let (one, eight): (f64, f64) = (used[0], used[1..].iter().sum());
    assert!(one < 1.5 * eight && eight < 1.5 * one, "{one} s and {eight} s of instances at work");
    let mean = eight / 8.0;
    assert!(used[1..].iter().all(|time| *time < 2.0 * mean && mean < 2.0 * time), "{used:?} s of instances at work");
}

#[test]
fn who_waits_is_served_beside_floods_that_compute() {
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    deploy(&node, "waits", "waits", WAIT);
    for name in &MANY[..4] {
        deploy(&node, "many", name, COMPUTE);
    }
    let _many: Vec<Load> = MANY[..4].iter().map(|name| flood(&node, name, ("100/s", "3"))).collect();
    let _waits = flood(&node, "waits", ("100/s", "8"));
    let used = shares(&node, &["waits", "m1", "m2", "m3", "m4"], 12.0);
    let computed: f64 = used[1..].iter().sum();
    // It takes next to nothing of the cores, so it is not charged for the time it waits.
    assert!(computed < 2.0 * used[0], "{used:?} s of instances at work");
}

/// Best-effort invocations that run now.
fn running(node: &Node) -> u64 {
    node.request("GET", "/v1/node", &[], b"").json()["best_effort"]["running"].as_u64().unwrap()
}

#[test]
fn a_lone_tenant_uses_every_core() {
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    deploy(&node, "one", "one", COMPUTE);
    let cores = u64::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    let _flood = flood(&node, "one", ("1000/s", "32"));
    wait_until("as many to run as there are cores", || running(&node) == cores);
}
