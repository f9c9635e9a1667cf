//! A dispatch that was slower than T says that T is too small: it rises, and everything is admitted again.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::evidence::records;
use super::steal::cpu_of;
use super::support::{Beside, ECHO, Node, assert_exit, find, wait_until};

const BUSY: &str = "[guarantee]\nrate = \"150/s\"\nburst = 4\nmax_run_time = \"2ms\"\ncpu = 0.2\nstart_within = \"2s\"\n\
                    overflow = \"queue\"\nqueue_limit = 400\n";
const TIGHT: &str = "[guarantee]\nrate = \"1/s\"\nmax_run_time = \"2ms\"\ncpu = 0.2\nstart_within = \"2s\"\n";

/// Holds its core again and again for so many milliseconds, with pauses as long: above the lane, below the probe, so that what
/// it takes is no gap.
fn rival(cpu: &str, ms: f64) -> Beside {
    let code = format!(
        "import time\nwhile True:\n    end = time.monotonic() + {ms} / 1000\n    while time.monotonic() < end: pass\n    \
         time.sleep({ms} / 1000)"
    );
    let words = ["-f", "80", "taskset", "-c", cpu, "python3", "-c", &code];
    Beside(Command::new("chrt").args(words).stdin(Stdio::null()).spawn().unwrap())
}

fn nanos(value: &Value) -> u64 {
    value["secs"].as_u64().unwrap() * 1_000_000_000 + value["nanos"].as_u64().unwrap()
}

fn micros(guarantee: &Value, name: &str) -> u128 {
    let text = guarantee[name].as_str().unwrap_or_else(|| panic!("no {name} in {guarantee}"));
    model::parse_duration(text).unwrap().as_micros()
}

#[test]
fn a_dispatch_slower_than_t_raises_it_and_everything_is_admitted_again() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    let tools = ["chrt", "taskset", "python3"].iter().all(|tool| find(tool).is_some());
    if node.ready["level"] == "soft" || !tools {
        println!("skipped: a late dispatch (it needs the real-time classes, chrt and taskset)");
        return;
    }
    node.python("busy", BUSY, ECHO);
    node.python("tight", TIGHT, ECHO);
    let guarantee = || node.get("/v1/functions/tight/guarantee");
    let frozen = guarantee()["tolerance"].clone();
    // A nearer bound has it served first, which makes S smaller: the second time it is promised what can just be kept.
    for _ in 0..2 {
        let now = guarantee();
        let within = format!("{}us", micros(&now, "start_bound") + micros(&now, "tolerance") + 100);
        let terms = ["--rate", "1/s", "--max-run-time", "2ms", "--cpu", "0.2", "--start-within", &within];
        assert_exit(&node.takt(&[&["guarantee", "set", "tight"][..], &terms].concat()), 0);
    }
    assert_eq!(node.get("/v1/functions/tight")["standing"], "guaranteed");
    let first = node.ready["tolerance_us"].as_u64().unwrap();
    let rival = rival(&cpu_of(&node, 0), f64::from(u32::try_from(first).unwrap()) / 1_000.0 + 3.0);
    wait_until("T to rise", || {
        let report = node.load("busy", &["--rate", "150/s", "--for", "1s", "--connections", "8"]).report();
        assert_eq!(report["succeeded"], report["invocations"], "{report}");
        node.get("/v1/node")["tolerance"] != frozen
    });
    drop(rival);
    wait_until("what no longer fits to be suspended", || node.get("/v1/functions/tight")["standing"] == "suspended");
    assert_eq!(node.invoke("tight", &json!(1)).status, 409);
    let busy = node.get("/v1/functions/busy/guarantee");
    assert_eq!(node.invoke("busy", &json!(1)).header("x-takt-class"), "guaranteed");
    assert!(u128::from(first) < micros(&busy, "tolerance"), "{busy}");
    node.stop();
    let raised = records(&data, "tolerance-raised");
    assert_eq!(nanos(&raised[0]["from"]) / 1_000, first);
    assert!(raised.iter().any(|it| u128::from(nanos(&it["to"]) / 1_000) == micros(&busy, "tolerance")), "{raised:?} {busy}");
}
