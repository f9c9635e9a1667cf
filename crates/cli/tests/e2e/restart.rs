//! What is left of a node after `kill -9`, and what it takes up again.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{ECHO, Node, assert_exit, descendants, surviving, wait_until};

const GUARANTEE: &str = "[guarantee]\nrate = \"10/s\"\nmax_run_time = \"50ms\"\nstart_within = \"500ms\"\n";

fn standing(node: &Node, name: &str) -> Value {
    node.get(&format!("/v1/functions/{name}"))["standing"].clone()
}

#[test]
fn a_killed_node_leaves_no_instance_and_comes_back_with_its_guarantees_warm() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    for name in ["first", "second"] {
        node.python(name, GUARANTEE, ECHO);
        assert_eq!(node.invoke(name, &json!({ "n": 1 })).json(), json!({ "n": 1 }));
    }
    node.python("plain", "", ECHO);
    assert_eq!(node.invoke("plain", &json!(7)).json(), json!(7));
    let before = descendants(node.pid());
    assert!(4 < before.len(), "the launchers and three instances at least: {before:?}");
    node.kill();
    wait_until("every instance to be gone", || surviving(&before).is_empty());

    let node = Node::start(&data, &[]);
    assert_eq!(node.ready["suspended"], 0);
    for name in ["first", "second"] {
        assert_eq!(standing(&node, name), "guaranteed");
        let answer = node.invoke(name, &json!({ "n": 2 }));
        assert_eq!(answer.json(), json!({ "n": 2 }), "{answer:?}");
        assert_eq!((answer.header("x-takt-class"), answer.header("x-takt-conforming")), ("guaranteed", "true"));
    }
    assert_eq!(standing(&node, "plain"), "best-effort");
    assert_eq!(node.invoke("plain", &json!(8)).json(), json!(8));
    let orders: Vec<u64> =
        ["first", "second"].map(|name| node.get(&format!("/v1/functions/{name}/guarantee"))["order"].as_u64().unwrap()).to_vec();
    assert!(orders[0] < orders[1], "{orders:?}");
    node.stop();
}

#[test]
fn a_guarantee_that_no_longer_fits_is_suspended_and_says_so() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    // One instance is enough for each, whatever the machine's T.
    let rare = GUARANTEE.replace("10/s", "1/min");
    node.python("early", &rare, ECHO);
    node.python("late", &rare, ECHO);
    node.stop();

    let one_instance_and_a_half = "96MB";
    let node = Node::start(&data, &["--memory", one_instance_and_a_half]);
    assert_eq!(node.ready["suspended"], 1);
    assert_eq!((standing(&node, "early"), standing(&node, "late")), (json!("guaranteed"), json!("suspended")));
    assert_eq!(node.invoke("early", &json!(1)).json(), json!(1));
    let refused = node.invoke("late", &json!(1));
    assert_eq!((refused.status, refused.header("x-amzn-errortype")), (409, "ResourceConflictException"), "{refused:?}");
    assert!(refused.text().contains("suspended"), "{refused:?}");
    let list = node.takt(&["list"]);
    assert_exit(&list, 0);
    assert!(String::from_utf8_lossy(&list.stdout).contains("suspended"), "{list:?}");
    let explained = node.takt_json(&["guarantee", "explain", "late"]);
    assert_eq!(explained["standing"], "suspended");
    assert!(explained["reason"].as_str().unwrap().contains("memory"), "{explained}");
    node.stop();

    let node = Node::start(&data, &[]);
    assert_eq!((standing(&node, "early"), standing(&node, "late")), (json!("guaranteed"), json!("guaranteed")));
    assert_eq!(node.invoke("late", &json!(3)).json(), json!(3));
    node.stop();
}
