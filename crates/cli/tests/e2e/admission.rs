//! What the node promises, what it refuses, and what becomes of arrivals beyond the rate.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Answer, ECHO, Node, assert_exit};

fn node(home: &TempDir) -> Node {
    Node::start(&home.path().join("node"), &[])
}

fn guarantee(rate: &str, further: &str) -> String {
    format!("[guarantee]\nrate = \"{rate}\"\nmax_run_time = \"10ms\"\nstart_within = \"500ms\"\n{further}")
}

#[test]
fn a_refusal_names_what_binds_and_its_offer_is_admitted() {
    let home = TempDir::new().unwrap();
    let node = node(&home);
    node.python("neighbour", &guarantee("5/s", ""), ECHO);
    let before = node.get("/v1/functions/neighbour");
    let refused = node.try_python("greedy", &guarantee("10000/s", ""), ECHO);
    assert_exit(&refused, 3);
    let refusal: Value = serde_json::from_slice(&refused.stdout).unwrap();
    let refusal = &refusal["error"]["refusal"];
    let offer = refusal["offer"].as_str().unwrap_or_else(|| panic!("no offer: {refusal}"));
    assert!(refusal["resource"].is_string(), "{refusal}");
    assert_eq!(node.request("GET", "/v1/functions/greedy", &[], b"").status, 404, "a refusal leaves nothing");

    let taken = node.python("greedy", &guarantee(offer, ""), ECHO);
    assert_eq!(taken["standing"], "guaranteed");
    let answer = node.invoke("greedy", &json!("hello"));
    assert_eq!((answer.header("x-takt-class"), answer.json()), ("guaranteed", json!("hello")));

    let after = node.get("/v1/functions/neighbour");
    for kept in ["version", "standing", "revision"] {
        assert_eq!(before[kept], after[kept], "{kept}");
    }
    assert_eq!(before["guarantee"]["generation"], after["guarantee"]["generation"]);
    assert_eq!(node.invoke("neighbour", &json!(1)).header("x-takt-conforming"), "true");

    let human = node.takt(&["guarantee", "set", "neighbour", "--rate", "9999/s", "--max-run-time", "10ms"]);
    assert_exit(&human, 3);
    let text = String::from_utf8_lossy(&human.stdout).into_owned();
    assert!(text.contains("resource") && text.contains("Nothing was changed"), "{text}");
    assert_eq!(node.get("/v1/functions/neighbour/guarantee")["rate"], "5/s");
    node.stop();
}

#[test]
fn a_deployment_shows_what_is_left() {
    let home = TempDir::new().unwrap();
    let node = node(&home);
    node.python("one", &guarantee("5/s", ""), ECHO);
    let shown = node.takt(&["guarantee", "show", "one"]);
    assert_exit(&shown, 0);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains("left ") && text.contains("core 0"), "{text}");
    node.stop();
}

/// Invokes one after the other: of a rate of one a minute only the first conforms.
fn three(node: &Node, name: &str) -> [Answer; 3] {
    [1, 2, 3].map(|n| node.invoke(name, &json!(n)))
}

#[test]
fn what_comes_beyond_the_rate_goes_where_overflow_says() {
    let home = TempDir::new().unwrap();
    let node = node(&home);
    node.python("excess", &guarantee("1/min", ""), ECHO);
    let [first, second, third] = three(&node, "excess");
    assert_eq!((first.header("x-takt-class"), first.header("x-takt-conforming")), ("guaranteed", "true"));
    for answer in [second, third] {
        assert_eq!((answer.header("x-takt-class"), answer.header("x-takt-conforming")), ("best-effort", "false"), "{answer:?}");
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    node.python("strict", &guarantee("1/min", "overflow = \"reject\"\n"), ECHO);
    let [first, second, _] = three(&node, "strict");
    assert_eq!((first.status, second.status), (200, 429), "{second:?}");
    assert_eq!(second.header("x-amzn-errortype"), "TooManyRequestsException");
    assert_eq!(second.json()["Reason"], "ReservedFunctionInvocationRateLimitExceeded");
    let wait: u64 = second.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&wait), "{second:?}");

    node.python("patient", &guarantee("20/s", "overflow = \"queue\"\nqueue_limit = 8\n"), ECHO);
    for answer in three(&node, "patient") {
        assert_eq!((answer.header("x-takt-class"), answer.header("x-takt-conforming")), ("guaranteed", "true"), "{answer:?}");
    }
    let counters = node.get("/v1/functions/patient/guarantee")["counters"].clone();
    assert_eq!((&counters["arrivals"], &counters["conforming"], &counters["refused"]), (&json!(3), &json!(3), &json!(0)));
    node.stop();
}
