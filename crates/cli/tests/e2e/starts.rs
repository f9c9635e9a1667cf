//! Starts beside everything else: lost instances come back, and whatever starts disturbs nobody who was promised something.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::evidence::records;
use super::support::{Node, invoke_path, is_ordinary_user, parse, send, takt_command, wait_until, wanted_level};

const GUARANTEE: &str = "[guarantee]\nrate = \"20/s\"\nburst = 2\nmax_run_time = \"20ms\"\ndeadline = \"500ms\"\n";
/// The same with a bound beyond what other programs can take.
const PATIENT: &str = "[guarantee]\nrate = \"20/s\"\nburst = 2\nmax_run_time = \"20ms\"\ndeadline = \"10s\"\n";
const CODE: &str = "import os\n\ndef handler(event, context):\n    return os.environ['AWS_LAMBDA_LOG_STREAM_NAME']\n";
/// Uses all the CPU it gets before it is ready.
const SLOW_TO_START: &str = "import time\nend = time.process_time() + 1.5\nwhile time.process_time() < end:\n    pass\n\ndef handler(event, context):\n    return 1\n";

/// Busy processes outside the node, each in a session of its own, so that the kernel does not count them as one.
pub(crate) struct Flood(Vec<Child>);

impl Flood {
    pub(crate) fn new(processes: usize) -> Self {
        let busy = || Command::new("setsid").args(["sh", "-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap();
        Self((0..processes).map(|_| busy()).collect())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        for process in &mut self.0 {
            // Nothing else ends them.
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

/// Processes that run our Python client and are below the node.
fn instances(node: &Node) -> Vec<i32> {
    let mut known = vec![i32::try_from(node.pid()).unwrap()];
    let mut found = Vec::new();
    let mut all: Vec<(i32, i32)> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process that ended meanwhile is none.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        all.extend(parent.map(|parent| (pid, parent)));
    }
    while let Some(at) = all.iter().position(|(_, parent)| known.contains(parent)) {
        let (pid, _) = all.swap_remove(at);
        known.push(pid);
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains("bootstrap.py") {
            found.push(pid);
        }
    }
    found
}

fn load(node: &Node, name: &str, seconds: u32) -> Child {
    let words = ["invoke", name, "--rate", "20/s", "--for", &format!("{seconds}s"), "--connections", "8", "--json"];
    takt_command(&node.data).args(words).env("TAKT_URL", node.url()).stdout(Stdio::piped()).spawn().unwrap()
}

fn guarantee(node: &Node, name: &str) -> Value {
    node.get(&format!("/v1/functions/{name}/guarantee"))
}

#[test]
fn an_instance_that_is_killed_beside_a_flood_comes_back_and_costs_its_own_invocation_alone() {
    if is_ordinary_user() {
        println!("skipped: a flood outside the node (processes of an ordinary user share the cores with it, each alike)");
        return;
    }
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    // A flood of other programs is no load of the node's: without real-time classes all is late beside it.
    let deployed = node.python("steady", if wanted_level().is_none() { GUARANTEE } else { PATIENT }, CODE);
    assert_eq!(deployed["standing"], "guaranteed");
    let before = instances(&node);
    assert!(!before.is_empty(), "it is warm");
    let flood = Flood::new(16);
    let load = load(&node, "steady", 8);
    for _ in 0..3 {
        let running = instances(&node);
        let killed = running[0];
        assert!(Command::new("kill").args(["-9", &killed.to_string()]).status().unwrap().success());
        wait_until("an instance in its place", || {
            let now = instances(&node);
            !now.contains(&killed) && running.len() <= now.len()
        });
    }
    let output = load.wait_with_output().unwrap();
    drop(flood);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["invocations"], 160, "{report}");
    assert!(157 <= report["succeeded"].as_u64().unwrap(), "three instances died, at most three invocations with them: {report}");
    let counters = guarantee(&node, "steady")["counters"].clone();
    let by_cause = &counters["violations_by_cause"];
    for cause in ["overrun", "host-call", "bug"] {
        assert_eq!(by_cause[cause], 0, "{counters}");
    }
    assert!(by_cause["unknown"] == 0 || wanted_level().is_some(), "{counters}");
    assert!(by_cause["function"].as_u64().unwrap() <= 3, "{counters}");
    node.stop();
}

#[test]
fn a_start_that_uses_all_the_cpu_it_gets_disturbs_no_promise() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    node.python("steady", GUARANTEE, CODE);
    let load = load(&node, "steady", 6);
    let deployed =
        node.python("slow", "[guarantee]\nrate = \"1/s\"\nmax_run_time = \"10ms\"\nstart_within = \"500ms\"\n", SLOW_TO_START);
    assert_eq!(deployed["standing"], "guaranteed");
    assert_eq!(node.invoke("slow", &json!(0)).json(), json!(1));
    let output = load.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["invocations"], &report["succeeded"]), (&json!(120), &json!(120)), "{report}");
    node.stop();
    super::evidence::assert_nothing_is_violated(&data, 120 + 1);
}

/// As many may come at once as there are instances; one that is lost takes two seconds to come back.
const ALL_WARM: &str = "[guarantee]\nrate = \"1/min\"\nburst = 3\nmax_run_time = \"5s\"\ncpu = 0.02\nstart_within = \"20s\"\n";
/// Runs for so long that no instance is free again before all three have arrived, and the lost one is back.
const SLOW: &str = "import time\ntime.sleep(2)\n\ndef handler(event, context):\n    time.sleep(3)\n    return 1\n";
/// No delivery to a warm instance takes so long, and none to an instance that is only starting is shorter.
const A_START_NS: u64 = 1_000_000_000;

#[test]
fn as_many_warm_instances_as_the_burst_wait_for_no_start_and_one_less_waits_for_one() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    for name in ["whole", "short"] {
        let deployed = node.python(name, ALL_WARM, SLOW);
        assert_eq!((&deployed["guarantee"]["instances"], &deployed["guarantee"]["warm"]), (&json!(3), &json!(3)), "{deployed}");
    }
    let idle = |name: &str| node.get(&format!("/v1/functions/{name}"))["instances"]["idle"].clone();
    wait_until("three of each to be warm", || idle("whole") == 3 && idle("short") == 3);
    let known = instances(&node);
    let doomed = node.instances_of("short").into_iter().find(|pid| known.contains(&i32::try_from(*pid).unwrap()));
    let Some(doomed) = doomed else {
        println!("skipped: losing one instance of three (this user cannot tell whose processes they are)");
        return;
    };
    assert!(Command::new("kill").args(["-9", &doomed.to_string()]).status().unwrap().success());
    // The loss was seen once there is one in its place, which sleeps before it is ready.
    wait_until("an instance in its place", || {
        let now = instances(&node);
        !now.iter().any(|pid| u32::try_from(*pid) == Ok(doomed)) && known.len() <= now.len()
    });
    let bearer = format!("Bearer {}", node.token);
    let all = ["whole", "whole", "whole", "short", "short", "short"];
    let asked = all.map(|name| send(node.address, &format!("POST {}", invoke_path(name)), &[("Authorization", &bearer)], b"1"));
    for mut stream in asked {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let answer = parse(&bytes);
        assert_eq!((answer.status, answer.json(), answer.header("x-takt-conforming")), (200, json!(1), "true"), "{answer:?}");
    }
    node.stop();
    let waited = |name: &str| {
        let records = records(&data, "invocation").into_iter().filter(|record| record["function"] == name);
        let waits = records.map(|record| record["delivered"].as_u64().unwrap() - record["conforming"].as_u64().unwrap());
        waits.filter(|wait| A_START_NS < *wait).count()
    };
    assert_eq!((waited("whole"), waited("short")), (0, 1));
}
