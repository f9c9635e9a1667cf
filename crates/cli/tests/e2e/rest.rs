//! What instances of guaranteed functions do between invocations, and whom it delays.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::evidence::{assert_nothing_is_violated, records};
use super::support::{Node, at_level, wait_until};

/// A thread that began before the first invocation works from the end of each to the next; it rests now and then, so that the
/// handler's comes to its turn. The handler says of which class it is: 0 is ordinary, 1 FIFO.
const RESTLESS: &str = "import os, threading, time\nBETWEEN = threading.Event()\n\ndef burn():\n    while BETWEEN.wait():\n        \
                        end = time.monotonic() + 0.005\n        while time.monotonic() < end:\n            pass\n        \
                        time.sleep(0.0002)\n\nthreading.Thread(target=burn, daemon=True).start()\n\ndef handler(event, context):\n    \
                        BETWEEN.clear()\n    seen = [context.log_stream_name, os.sched_getscheduler(0) & 0xff]\n    \
                        BETWEEN.set()\n    return seen\n";
/// More urgent than its neighbour: where its threads kept their class, nobody else had a core.
const URGENT: &str =
    "[guarantee]\nrate = \"2/s\"\nmax_run_time = \"40ms\"\ncpu = 0.5\nstart_within = \"60ms\"\noverflow = \"queue\"\n";
const STEADY: &str = "[guarantee]\nrate = \"40/s\"\nburst = 2\nmax_run_time = \"10ms\"\ncpu = 0.3\nstart_within = \"100ms\"\n\
                      overflow = \"queue\"\nqueue_limit = 400\n";
const ECHO: &str = "def handler(event, context):\n    return event\n";

fn cores(node: &Node, name: &str) -> BTreeSet<u64> {
    let guarantee = node.get(&format!("/v1/functions/{name}/guarantee"));
    guarantee["shards"].as_array().unwrap().iter().map(|shard| shard["core"].as_u64().unwrap()).collect()
}

/// Fields of the kernel's account of an instance's programs: the policy of the first thread, and ticks of CPU used.
fn accounts(node: &Node, name: &str) -> Vec<(u64, u64)> {
    let stats = node.instances_of(name).into_iter().filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    let account = |stat: String| {
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let number = |at: usize| fields[at].parse::<u64>().unwrap();
        (number(38), number(11) + number(12))
    };
    stats.map(account).collect()
}

fn ticks(node: &Node, name: &str) -> u64 {
    accounts(node, name).iter().map(|(_, ticks)| *ticks).sum()
}

/// Functions that work between their invocations, one after the other, until one is on the core of `steady`.
fn restless(node: &Node) -> String {
    let shared = |name: &str| !cores(node, name).is_disjoint(&cores(node, "steady"));
    let mut names = (0..4).map(|nth| format!("restless-{nth}"));
    names.find(|name| node.python(name, &at_level(URGENT), RESTLESS) != Value::Null && shared(name)).expect("one core is shared")
}

fn invoked(data: &Path, name: &str) -> u64 {
    records(data, "invocation").iter().filter(|record| record["function"] == name).count() as u64
}

#[test]
fn an_instance_that_works_between_its_invocations_delays_nobody_and_has_its_class_when_it_is_invoked() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    let class = u64::from(node.ready["level"] == "hard");
    node.python("steady", &at_level(STEADY), ECHO);
    let restless = restless(&node);
    let first = node.invoke(&restless, &json!({})).json();
    assert_eq!(first[1], class, "{first}");
    wait_until("it to work while it rests", || 20 < ticks(&node, &restless));
    assert!(accounts(&node, &restless).iter().all(|(policy, _)| *policy == 0), "{:?}", accounts(&node, &restless));

    let report = node.load("steady", &["--rate", "40/s", "--for", "3s", "--connections", "8"]).report();
    assert_eq!(report["by_class"]["guaranteed"], 120, "{report}");
    let last = node.invoke(&restless, &json!({})).json();
    assert_eq!(last, first, "the same instance, with its class");
    node.stop();
    assert_nothing_is_violated(&data, invoked(&data, "steady") + invoked(&data, &restless));
    assert_eq!(invoked(&data, "steady"), 120);
}
