//! Functions that share one rate.

use std::io::Read;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::evidence::assert_nothing_is_violated;
use super::support::{Answer, ECHO, Node, assert_exit, at_level, invoke_path, parse, send};

fn within(node: &Node, name: &str, deadline: &str) -> Answer {
    node.request("POST", &invoke_path(name), &[("X-Deadline", deadline)], b"1")
}

#[test]
fn functions_of_a_class_share_its_rate_and_keep_their_deadlines() {
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    assert_exit(&node.takt(&["guarantee", "class", "set", "vr", "--rate", "20/s"]), 0);
    assert_eq!(node.get("/v1/rate-classes"), json!({ "vr": { "rate": "20/s", "burst": 1 } }));
    let terms = "[guarantee]\nrate_class = \"vr\"\nmax_run_time = \"10ms\"\nstart_within = \"500ms\"\noverflow = \"queue\"\n";
    node.python("left", terms, ECHO);
    node.python("right", terms, ECHO);
    for _ in 0..3 {
        for name in ["left", "right"] {
            let answer = within(&node, name, "2s");
            assert_eq!((answer.status, answer.header("x-takt-class")), (200, "guaranteed"), "{answer:?}");
            assert_eq!(answer.header("x-takt-conforming"), "true");
        }
    }
    let late = within(&node, "left", "1ns");
    assert_eq!((late.status, late.header("x-amzn-errortype")), (408, "DeadlineExpiredException"), "{late:?}");
    let nonsense = within(&node, "left", "soon");
    assert_eq!(nonsense.status, 400, "{nonsense:?}");
    let used = node.request("DELETE", "/v1/rate-classes/vr", &[], b"");
    assert_eq!(used.status, 409, "{used:?}");
    assert_exit(&node.try_python("lost", "[guarantee]\nrate_class = \"absent\"\nmax_run_time = \"10ms\"\n", ECHO), 1);
    node.stop();
}

/// Says when it ran, on the clock that all instances share.
const STAMP: &str = "import time\n\ndef handler(event, context):\n    return time.monotonic_ns()\n";

#[test]
fn the_slots_of_a_class_go_to_the_earliest_deadline_of_all_its_functions() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    let made = node.request("PUT", "/v1/rate-classes/vr", &[], json!({ "rate": "1/s", "burst": 1 }).to_string().as_bytes());
    assert_eq!(made.status, 204, "{made:?}");
    let terms = "[guarantee]\nrate_class = \"vr\"\nmax_run_time = \"10ms\"\nstart_within = \"500ms\"\noverflow = \"queue\"\n";
    node.python("left", terms, STAMP);
    node.python("right", terms, STAMP);
    assert_eq!(within(&node, "left", "20s").status, 200, "it takes the slot of this second");
    // The later they come, the earlier is their deadline, and the functions take turns.
    let bearer = format!("Bearer {}", node.token);
    let asked = [("left", "50s"), ("right", "40s"), ("left", "30s"), ("right", "20s")].map(|(name, deadline)| {
        let headers = [("Authorization", bearer.as_str()), ("X-Deadline", deadline)];
        send(node.address, &format!("POST {}", invoke_path(name)), &headers, b"1")
    });
    let ran = asked.map(|mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let answer = parse(&bytes);
        assert_eq!((answer.status, answer.header("x-takt-conforming")), (200, "true"), "{answer:?}");
        answer.json().as_u64().unwrap()
    });
    assert!(ran.is_sorted_by(|earlier, later| later < earlier), "earliest deadline first, of both: {ran:?}");
    node.stop();
    assert_nothing_is_violated(&data, 5);
}

#[test]
fn a_class_changes_while_its_functions_are_invoked_and_a_refusal_changes_nothing() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    let set = |rate: &str| node.takt(&["guarantee", "class", "set", "vr", "--rate", rate, "--burst", "2"]);
    assert_exit(&set("10/s"), 0);
    let terms = "[guarantee]\nrate_class = \"vr\"\nmax_run_time = \"10ms\"\ncpu = 0.5\nstart_within = \"500ms\"\n\
                 overflow = \"queue\"\nqueue_limit = 400\n";
    node.python("left", &at_level(terms), ECHO);
    node.python("right", &at_level(terms), ECHO);
    let load = |name| node.load(name, &["--rate", "8/s", "--for", "4s", "--connections", "8"]);
    let loads = [load("left"), load("right")];
    assert_exit(&set("30/s"), 0);
    let (before, class) = (node.get("/v1/functions/left/guarantee"), json!({ "vr": { "rate": "30/s", "burst": 2 } }));
    assert_eq!(node.get("/v1/rate-classes"), class);
    let refused = node.takt(&["--json", "guarantee", "class", "set", "vr", "--rate", "9000/s", "--burst", "2"]);
    assert_exit(&refused, 3);
    let offer = serde_json::from_slice::<Value>(&refused.stdout).unwrap()["error"]["refusal"]["offer"].clone();
    let as_was = node.get("/v1/functions/left/guarantee");
    assert_eq!((&as_was["generation"], &as_was["shards"]), (&before["generation"], &before["shards"]));
    assert_eq!(node.get("/v1/rate-classes"), class);
    assert_exit(&set(offer.as_str().expect("some rate fits")), 0);
    assert_exit(&set("20/s"), 0);
    for load in loads {
        let report = load.report();
        assert_eq!(report["by_class"]["guaranteed"], 32, "{report}");
    }
    node.stop();
    assert_nothing_is_violated(&data, 64);
}
