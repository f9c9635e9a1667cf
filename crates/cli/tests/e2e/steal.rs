//! A core that is taken away, and what the evidence says of it: from the probe over the lane and the record to the audit.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::evidence::{audit, check_agreement, finding, records};
use super::support::{ECHO, Node, find, wait_until};

/// It may run long, so that nothing is stopped before its core comes back; it must start soon.
const FAR: &str = "[guarantee]\nrate = \"20/s\"\nmax_run_time = \"150ms\"\ncpu = 0.02\nstart_within = \"25ms\"\n\
                   overflow = \"queue\"\nqueue_limit = 400\n";
/// Holds its core at the highest class, as a hypervisor that runs another machine does.
const THIEF: &str = "import time\nend = time.monotonic() + 0.06\nwhile time.monotonic() < end: pass";

/// The kernel's number of a core, by the names of the node's probes: admission counts them from 0.
pub(crate) fn cpu_of(node: &Node, core: u64) -> String {
    let names = std::fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap().flatten();
    let names = names.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    let cpus: BTreeSet<u32> = names.filter_map(|name| name.trim().strip_prefix("probe-")?.parse().ok()).collect();
    cpus.iter().nth(usize::try_from(core).unwrap()).unwrap().to_string()
}

/// Takes a core away for a while; `false` where this machine does not let us.
fn steal(cpu: &str) -> bool {
    let words = ["-f", "99", "taskset", "-c", cpu, "python3", "-c", THIEF];
    Command::new("chrt").args(words).output().unwrap().status.success()
}

/// The core its instances run on, the front's left out: what the front does not see arrive has not arrived.
fn core_of_its_own(guarantee: &Value) -> Option<u64> {
    let cores: BTreeSet<u64> = guarantee["shards"].as_array().unwrap().iter().map(|it| it["core"].as_u64().unwrap()).collect();
    cores.into_iter().find(|core| *core != 0)
}

#[test]
fn a_violation_while_its_core_is_taken_away_is_proven_steal() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    if node.ready["level"] == "soft" {
        println!("skipped: taking a core away (at level soft nothing outranks a guest, so that no gap is evidence)");
        return;
    }
    node.python("far", FAR, ECHO);
    let guarantee = node.get("/v1/functions/far/guarantee");
    let core = core_of_its_own(&guarantee);
    let tools = ["chrt", "taskset", "python3"].iter().all(|tool| find(tool).is_some());
    let (Some(core), "hard", true) = (core, node.ready["level"].as_str().unwrap(), tools) else {
        println!("skipped: taking a core away (it needs two cores, the real-time classes, chrt and taskset)");
        return;
    };
    let cpu = cpu_of(&node, core);
    if !steal(&cpu) {
        println!("skipped: taking a core away (this user may not use class SCHED_FIFO 99)");
        return;
    }
    let counters = || node.get("/v1/functions/far/guarantee")["counters"].clone();
    let mut sent = 0;
    wait_until("a violation by steal", || {
        let load = node.load("far", &["--rate", "20/s", "--for", "1s", "--connections", "8", "--realtime"]);
        assert!(steal(&cpu) && steal(&cpu), "the class was there a moment ago");
        sent += load.report()["invocations"].as_u64().unwrap();
        counters()["violations_by_cause"]["steal"] != 0
    });
    wait_until("its last records", || counters()["arrivals"] == sent);
    let live = counters();
    node.stop();

    let audit = audit(&data);
    assert_eq!(audit["verdict"], "missed", "{audit}");
    assert_eq!(audit["report"]["contradictions_total"], 0, "{audit}");
    check_agreement(&live, &finding(&audit, "far")["counters"]);
    let gaps = records(&data, "probe-gap");
    let stolen: Vec<Value> = records(&data, "invocation").into_iter().filter(|it| it["violation"] == "steal").collect();
    assert!(!stolen.is_empty(), "{audit}");
    for invocation in &stolen {
        let overlaps = |gap: &&Value| {
            gap["core"] == invocation["core"]
                && gap["from"].as_u64() < invocation["started"].as_u64()
                && invocation["conforming"].as_u64() < gap["until"].as_u64()
        };
        assert!(gaps.iter().any(|gap| overlaps(&gap)), "no gap behind {invocation}");
    }
}
