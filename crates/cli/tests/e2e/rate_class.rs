//! Functions that share one rate.

use serde_json::json;
use tempfile::TempDir;

use super::support::{Answer, ECHO, Node, assert_exit, invoke_path};

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
