//! A guarantee at its full rate, beside everything that can happen to other functions of the node.

use serde_json::json;
use tempfile::TempDir;

use super::evidence::{assert_kept, audit, finding};
use super::support::{ECHO, Node, Process, assert_exit, at_level, descendants, surviving, wait_until};

/// Waits for its slots, so that a client that is late for a moment is served under the guarantee all the same.
const STEADY: &str = "[guarantee]\nrate = \"40/s\"\nburst = 4\nmax_run_time = \"20ms\"\nstart_within = \"100ms\"\n\
                      overflow = \"queue\"\nqueue_limit = 400\n";
const NEIGHBOUR: &str = "[guarantee]\nrate = \"4/s\"\nburst = 3\nmax_run_time = \"50ms\"\ncpu = 0.5\nstart_within = \"500ms\"\n";
const PLAIN: &str = "timeout = \"1s\"\n";
const LOAD: [&str; 6] = ["--rate", "40/s", "--for", "6s", "--connections", "8"];
const FLOOD: [&str; 6] = ["--rate", "300/s", "--for", "3s", "--connections", "32"];

const MISBEHAVING: &str = "import os, time\n\ndef handler(event, context):\n    if event == 'exit':\n        os._exit(3)\n    if \
                           event == 'sleep':\n        time.sleep(60)\n    while event == 'burn':\n        pass\n    return event\n";

/// Kills every instance of a function from outside, with `kill -9`.
fn kill_instances(node: &Node, name: &str) {
    let pids = node.instances_of(name);
    if pids.is_empty() {
        println!("skipped: killing instances of {name} (this user cannot tell whose processes they are)");
        return;
    }
    let doomed = descendants(node.pid()).into_iter().filter(|(pid, _)| pids.contains(pid)).collect();
    for pid in pids {
        // It may have ended in the meantime.
        let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
    }
    wait_until("the killed instances to be gone", || surviving(&doomed).is_empty());
}

#[test]
fn a_guarantee_under_full_load_is_untouched_by_all_that_happens_beside_it() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    node.python("steady", &at_level(STEADY), ECHO);
    let before = node.get("/v1/functions/steady");
    let instances: std::collections::BTreeSet<Process> = descendants(node.pid());
    let load = node.load("steady", &LOAD);

    assert_exit(&node.try_python("greedy", &STEADY.replace("40/s", "9000/s"), ECHO), 3);
    node.python("neighbour", NEIGHBOUR, MISBEHAVING);
    node.python("plain", PLAIN, MISBEHAVING);
    let floods = [node.load("plain", &FLOOD), node.load("neighbour", &FLOOD)];
    for (event, kind) in [("exit", "Runtime.ExitError"), ("burn", "Sandbox.Timedout"), ("sleep", "Sandbox.Timedout")] {
        for name in ["neighbour", "plain"] {
            // Under the flood an excess invocation may be turned away; the one that runs is ended.
            wait_until("an invocation to be ended", || {
                let answer = node.invoke(name, &json!(event));
                answer.status == 200 && answer.json()["errorType"] == kind
            });
        }
    }
    kill_instances(&node, "neighbour");
    kill_instances(&node, "plain");
    node.python("neighbour", &NEIGHBOUR.replace("4/s", "5/s"), MISBEHAVING);
    node.python("plain", PLAIN, &format!("# another version\n{MISBEHAVING}"));
    assert_exit(&node.takt(&["delete", "neighbour"]), 0);
    assert_exit(&node.takt(&["delete", "plain"]), 0);
    for flood in floods {
        assert_eq!(flood.report()["invocations"], 900);
    }

    let report = load.report();
    assert_eq!((&report["invocations"], &report["succeeded"]), (&json!(240), &json!(240)), "{report}");
    assert_eq!(report["by_class"]["guaranteed"], 240, "{report}");
    let after = node.get("/v1/functions/steady");
    for kept in ["version", "standing", "revision"] {
        assert_eq!(before[kept], after[kept], "{kept}");
    }
    assert_eq!(before["guarantee"]["generation"], after["guarantee"]["generation"]);
    assert_eq!(surviving(&instances), instances, "its instances are the same as before");
    node.stop();
    let audit = audit(&data);
    assert_kept(&audit, "steady");
    assert_eq!(finding(&audit, "steady")["counters"]["conforming"], 240, "{audit}");
}
