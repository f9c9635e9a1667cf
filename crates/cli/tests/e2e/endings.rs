//! How invocations and nodes come to an end from outside.

use std::io::Read;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Beside, Node, descendants, free_port, invoke_path, node_command, request, send, surviving, wait_until};

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

/// Whether a starting node came so far: it listens to signals, or has a thread of this name.
fn came_to(moment: &str, pid: u32) -> bool {
    if moment == "signals" {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let both = (1 << 1) | (1 << 14);
        return u64::from_str_radix(caught.trim(), 16).unwrap() & both == both;
    }
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names.any(|name| name.trim().starts_with(moment))
}

#[test]
fn a_node_that_is_told_to_stop_before_it_is_ready_leaves_nothing_behind() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    node.python("promised", "[guarantee]\nrate = \"1/s\"\nmax_run_time = \"20ms\"\nstart_within = \"1s\"\n", SLEEPER);
    node.python("plain", "", SLEEPER);
    // Where a probe may not outrank everybody, its thread ends at once.
    let latest = if node.ready["level"] == "hard" { "probe-" } else { "recorder" };
    node.stop();
    for (signal, moment) in [("-INT", "signals"), ("-TERM", "starter"), ("-INT", "recorder"), ("-TERM", latest)] {
        let mut starting = node_command(&data);
        starting.args(["serve", "--json", "--listen", &format!("127.0.0.1:{}", free_port())]);
        let mut starting = Beside(starting.stdout(Stdio::piped()).spawn().unwrap());
        wait_until("it to come so far", || came_to(moment, starting.0.id()));
        let below = descendants(starting.0.id());
        let sent = Command::new("kill").args([signal, &starting.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let mut said = String::new();
        starting.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        let status = starting.0.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{signal} at {moment}: {status}");
        if !said.is_empty() {
            println!("the signal at {moment} came when the node was ready already");
        }
        wait_until("everything below it to be gone", || surviving(&below).is_empty());
    }
    // It starts as if nothing had been, and no start left a gap in the evidence.
    let node = Node::start(&data, &[]);
    for name in ["promised", "plain"] {
        assert_eq!(node.invoke(name, &json!(0)).json(), json!(0));
    }
    node.stop();
    let audit = super::evidence::audit(&data);
    assert_eq!((&audit["verdict"], &audit["report"]["unclean_stops"]), (&json!("kept"), &json!(0)), "{audit}");
}
