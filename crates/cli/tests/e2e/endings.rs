//! How invocations and nodes come to an end from outside.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Node, invoke_path, request, send, wait_until};

/// Sleeps for as many seconds as it is told, having said so in its log.
const SLEEPER: &str = "import time\n\ndef handler(event, context):\n    print('begun', event, flush=True)\n    time.sleep(event)\n    return event\n";

fn has_begun(node: &Node, name: &str, event: &str) -> bool {
    let log = node.request("GET", &format!("/v1/functions/{name}/logs"), &[], b"");
    log.text().contains(&format!("begun {event}"))
}

#[test]
fn a_node_that_is_told_to_stop_answers_what_runs_first() {
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    node.python("plain", "timeout = \"20s\"\n", SLEEPER);
    let further = "[guarantee]\nrate = \"1/s\"\nmax_run_time = \"4s\"\ncpu = 0.02\nstart_within = \"1s\"\n";
    node.python("promised", further, SLEEPER);
    let (address, token) = (node.address, format!("Bearer {}", node.token));
    let answers = std::thread::scope(|scope| {
        let running = ["plain", "promised"].map(|name| {
            let token = &token;
            scope.spawn(move || {
                let line = format!("POST {}", invoke_path(name));
                request(address, &line, &[("Authorization", token)], b"2")
            })
        });
        for name in ["plain", "promised"] {
            wait_until("both to run", || has_begun(&node, name, "2"));
        }
        node.ask_to_stop();
        running.map(|answer| answer.join().unwrap())
    });
    for answer in answers {
        assert_eq!((answer.status, answer.text()), (200, "2".to_owned()), "{answer:?}");
    }
    assert_eq!(node.ended().code(), Some(0));
}

fn instances(node: &Node, name: &str) -> Value {
    node.get(&format!("/v1/functions/{name}"))["instances"].clone()
}

#[test]
fn an_invocation_whose_client_goes_away_is_stopped() {
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    let promised = "[guarantee]\nrate = \"1/min\"\nmax_run_time = \"60s\"\ncpu = 0.01\nstart_within = \"120s\"\n";
    for (name, further) in [("plain", "timeout = \"600s\"\n"), ("promised", promised)] {
        node.python(name, further, SLEEPER);
        let bearer = format!("Bearer {}", node.token);
        let line = format!("POST {}", invoke_path(name));
        let client = send(node.address, &line, &[("Authorization", &bearer)], b"500");
        wait_until("it to run", || has_begun(&node, name, "500") && instances(&node, name)["busy"] == 1);
        drop(client);
        wait_until("it to be stopped", || instances(&node, name)["busy"] == 0);
        assert_eq!(node.invoke(name, &json!(0)).json(), json!(0));
    }
    node.stop();
}
