//! What becomes of an invocation that exceeds its bound, and of the one after it.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::evidence::{assert_kept, audit, finding, records};
use super::support::Node;

/// Sleeps, or works, for as many seconds as it is told.
const CODE: &str = "import time\n\ndef handler(event, context):\n    end = time.monotonic() + event.get('work', 0)\n    while \
                    time.monotonic() < end:\n        pass\n    time.sleep(event.get('sleep', 0))\n    return event\n";

fn terms(further: &str) -> String {
    format!("[guarantee]\nrate = \"4/s\"\nburst = 2\nstart_within = \"500ms\"\noverflow = \"queue\"\nqueue_limit = 10\n{further}")
}

/// The records of a function's invocations, oldest first.
fn invocations(data: &std::path::Path, function: &str) -> Vec<Value> {
    records(data, "invocation").into_iter().filter(|record| record["function"] == function).collect()
}

fn check_next(node: &Node, name: &str) {
    for n in 0..3 {
        let answer = node.invoke(name, &json!({ "n": n }));
        assert_eq!((answer.status, answer.json()), (200, json!({ "n": n })), "{answer:?}");
        assert_eq!(answer.header("x-amz-function-error"), "", "{answer:?}");
    }
}

#[test]
fn an_overrun_is_killed_at_its_bound_and_the_next_invocations_are_unharmed() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    node.python("waits", &terms("max_run_time = \"150ms\"\ncpu = 0.2\ndeadline = \"5s\"\n"), CODE);
    for event in [json!({ "sleep": 20 }), json!({ "work": 20 })] {
        let answer = node.invoke("waits", &event);
        assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, "Unhandled"), "{answer:?}");
        assert_eq!(answer.json()["errorType"], "Sandbox.Timedout", "{answer:?}");
        let said = answer.json()["errorMessage"].as_str().unwrap().to_owned();
        assert!(said.contains("Task timed out after 0.15 seconds"), "{said}");
        assert_eq!((answer.header("x-takt-class"), answer.header("x-takt-conforming")), ("guaranteed", "true"));
        check_next(&node, "waits");
    }
    node.stop();
    let audit = audit(&data);
    // Stopped at its bound, it is over long before its deadline: its own fault, and nobody's violation.
    assert_kept(&audit, "waits");
    let ends: Vec<Value> = invocations(&data, "waits").iter().map(|record| record["end"].clone()).collect();
    assert_eq!(ends.iter().filter(|end| **end == "overran").count(), 2, "{ends:?}");
    assert_eq!(ends.iter().filter(|end| **end == "succeeded").count(), 6, "{ends:?}");
}

/// Works until it is told to end, and says of which class it was at first and at last: 0 is ordinary, 1 FIFO.
const CLASSES: &str = "import os, time\n\ndef policy():\n    return os.sched_getscheduler(0) & 0xff\n\ndef handler(event, context):\n    \
                       first = policy()\n    end = time.monotonic() + event.get('work', 0)\n    while time.monotonic() < end:\n        \
                       pass\n    return [first, policy()]\n";

#[test]
fn an_overrun_that_demotes_goes_on_without_its_class_and_gets_it_back() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    let hard = node.ready["level"] == "hard";
    // It may use a tenth of a second, and works for six of them.
    let further = "max_run_time = \"1s\"\ncpu = 0.1\non_overrun = \"demote\"\n";
    node.python("works", &terms(further).replace("burst = 2", "burst = 1").replace("4/s", "1/s"), CLASSES);
    let answer = node.invoke("works", &json!({ "work": 0.6 }));
    assert_eq!((answer.status, answer.json()), (200, json!([u8::from(hard), 0])), "{answer:?}");
    assert_eq!((answer.header("x-takt-class"), answer.header("x-takt-conforming")), ("guaranteed", "true"));
    for _ in 0..3 {
        let answer = node.invoke("works", &json!({}));
        assert_eq!((answer.status, answer.json()), (200, json!([u8::from(hard), u8::from(hard)])), "{answer:?}");
    }
    node.stop();
    let audit = audit(&data);
    assert_kept(&audit, "works");
    let first = invocations(&data, "works").remove(0);
    let budget_ns = 100_000_000;
    assert_eq!(first["end"], "succeeded", "{first}");
    // A quota keeps it within its budget for longer than it works.
    assert!(
        !hard || budget_ns < first["cpu"]["nanos"].as_u64().unwrap() + 1_000_000_000 * first["cpu"]["secs"].as_u64().unwrap(),
        "{first}"
    );
    assert_eq!(finding(&audit, "works")["counters"]["start_violations"], 0, "{audit}");
}
