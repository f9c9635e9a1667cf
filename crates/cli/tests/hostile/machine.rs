//! Circumstances: a node that is killed, a user without rights, a machine that lacks something.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::{Node, TAKT, is_root, processes_with, text_of, until};

const LONG: &str = "memory = \"128MB\"\ntimeout = \"30s\"\n";

/// Control groups of a node, found by the port in their names.
fn groups(node: &Node) -> usize {
    fn count(folder: &Path, name: &str, depth: u32) -> usize {
        let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
        let folders = entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders
            .map(|entry| {
                let here = usize::from(entry.file_name().to_string_lossy().contains(name));
                here + if depth == 0 { 0 } else { count(&entry.path(), name, depth - 1) }
            })
            .sum()
    }
    count(Path::new("/sys/fs/cgroup"), &format!("takt-{}-", node.address.port()), 4)
}

fn mounts() -> usize {
    std::fs::read_to_string("/proc/self/mounts").unwrap().lines().count()
}

#[test]
fn nothing_outlives_a_killed_node_and_the_next_one_goes_on() {
    if !is_root() {
        return;
    }
    let before = mounts();
    let mut node = Node::start();
    node.must_deploy("kept", LONG);
    let mark = 810_000 + std::process::id();
    node.invoke("kept", &json!({"do": "children", "mark": mark})).value();
    assert_ne!(groups(&node), 0);
    node.kill();
    until("its instances are gone", || processes_with(&format!("sleep {mark}")) == 0);
    until("its groups are gone", || groups(&node) == 0);
    assert_eq!(mounts(), before);
    node.restart();
    node.must_serve("kept");
}

#[test]
fn groups_that_a_dead_launcher_left_are_taken_over() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.must_deploy("kept", LONG);
    node.must_serve("kept");
    // Both die at once, so nobody cleans up.
    let data = node.data.to_str().unwrap().to_owned();
    let launchers = children_of(node.process.id());
    for launcher in &launchers {
        let killed = Command::new("kill").args(["-9", launcher]).status().unwrap();
        assert!(killed.success());
    }
    node.kill();
    assert_ne!(groups(&node), 0, "the test leaves groups behind");
    until("the instances are gone", || processes_with("/var/runtime/bootstrap.py") == 0 || !launchers.is_empty());
    node.restart();
    node.must_serve("kept");
    assert_eq!(node.data.to_str().unwrap(), data);
    node.kill();
    until("its groups are gone", || groups(&node) == 0);
}

fn children_of(process: u32) -> Vec<String> {
    let path = format!("/proc/{process}/task");
    let tasks = std::fs::read_dir(path).unwrap().filter_map(Result::ok);
    let listed = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    listed.flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn an_ordinary_user_gets_a_node_that_says_what_it_lacks() {
    if !is_root() {
        return;
    }
    // The program must lie where that user may read it.
    let shared = tempfile::tempdir().unwrap();
    std::fs::set_permissions(shared.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = shared.path().join("takt");
    std::fs::copy(TAKT, &program).unwrap();
    let words = ["setpriv", "--reuid", "61234", "--regid", "61234", "--clear-groups", "env", "PATH=/usr/bin:/bin"];
    let node = Node::start_as(&program, &words);
    assert_eq!(node.ready["level"], "soft");
    let missing = node.ready["missing"].to_string();
    assert!(missing.contains("guarantees are given at level soft only"), "{missing}");
    if !missing.contains("control groups") {
        println!("this user has control groups: {missing}");
    }
    node.must_deploy("mine", LONG);
    node.must_serve("mine");
    let seen = node.invoke("mine", &json!({"do": "look"})).value();
    assert_eq!((&seen["tmp"], seen["processes"].as_array().unwrap().len()), (&json!([]), 2), "{seen}");
    assert_eq!(node.invoke("mine", &json!({"do": "write"})).value(), json!([]));
    // Without groups an allocation fails inside the process; nothing else is harmed.
    let allocated = node.invoke("mine", &json!({"do": "allocate"}));
    let kinds = ["MemoryError", "Runtime.OutOfMemory", "Runtime.ExitError"];
    assert!(kinds.iter().any(|kind| allocated.body["errorType"] == *kind), "{allocated:?}");
    node.must_serve("mine");
    let terms = "[guarantee]\nrate = \"1/s\"\nmax_run_time = \"50ms\"\ncpu = \"0.1\"\nstart_within = \"2s\"\n";
    let hard = node.deploy("insists", &format!("memory = \"128MB\"\n{terms}require = \"hard\"\n"));
    assert_eq!(hard.status.code(), Some(3), "{}", text_of(&hard));
    node.must_deploy("content", &format!("memory = \"128MB\"\n{terms}"));
    node.must_serve("content");
}

#[test]
fn without_tun_devices_connections_are_refused_at_deploy() {
    if !is_root() {
        return;
    }
    let hide = "mount -t tmpfs none /dev/net && exec \"$0\" \"$@\"";
    let node = Node::start_as(Path::new(TAKT), &["unshare", "--mount", "--propagation", "private", "sh", "-c", hide]);
    assert!(node.ready["missing"].to_string().contains("TUN devices"), "{}", node.ready);
    for outbound in ["\"all\"", "[\"192.0.2.1:80\"]"] {
        let deployed = node.deploy("wants", &format!("{LONG}[network]\noutbound = {outbound}\n"));
        assert_eq!(deployed.status.code(), Some(1), "{}", text_of(&deployed));
        let said = text_of(&deployed);
        assert!(said.contains("outbound") && said.contains("/dev/net/tun"), "{said}");
    }
    node.must_deploy("none", &format!("{LONG}[network]\noutbound = \"none\"\n"));
    node.must_deploy("unstated", LONG);
    let tried = node.invoke("unstated", &json!({"do": "tcp", "host": "192.0.2.1", "port": 80})).value();
    assert_eq!(tried, json!({"error": "OSError"}), "there is no way out at all");
}

const PROMISED: &str = "memory = \"128MB\"\n[guarantee]\nrate = \"20/s\"\nburst = 4\nmax_run_time = \"50ms\"\ncpu = \"0.2\"\n\
                        start_within = \"1s\"\n";

#[test]
fn a_full_disk_stops_admission_alone_and_the_audit_tells_what_was_lost() {
    if !is_root() {
        return;
    }
    // The last argument is the data directory; only this node sees the small disk in it.
    let mount = "umask 077; for last; do :; done; mkdir -p \"$last/evidence\" && \
                 mount -t tmpfs -o size=2m none \"$last/evidence\" && exec \"$0\" \"$@\"";
    let node = Node::start_as(Path::new(TAKT), &["unshare", "--mount", "--propagation", "private", "sh", "-c", mount]);
    node.must_deploy("beat", PROMISED);
    let seen = format!("/proc/{}/root{}", node.process.id(), node.data.display());
    let filler = format!("{seen}/evidence/filler");
    assert!(std::fs::write(&filler, vec![0; 3 << 20]).is_err(), "there is no room for 3 MiB");
    let stopped = || {
        let (_, _, body) = node.ask("GET", "/v1/node", "");
        serde_json::from_slice::<serde_json::Value>(&body).unwrap()["admission_stopped"].clone()
    };
    let mut served = 0;
    let mut serve = || {
        node.must_serve("beat");
        served += 1;
    };
    until("admission is stopped", || {
        serve();
        !stopped().is_null()
    });
    let refused = node.deploy("late", PROMISED);
    assert_ne!(refused.status.code(), Some(0), "{}", text_of(&refused));
    assert!(text_of(&refused).contains(stopped().as_str().unwrap()), "{} {}", stopped(), text_of(&refused));
    for _ in 0..10 {
        serve();
    }
    std::fs::remove_file(&filler).unwrap();
    until("admission goes on", || {
        serve();
        stopped().is_null()
    });
    node.must_deploy("late", PROMISED);
    node.must_serve("late");
    until("the audit counts what was written since", || {
        let output = Command::new(TAKT).args(["audit", "--json", &seen]).output().unwrap();
        let audit: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let report = &audit["report"];
        let arrivals: u64 =
            report["guarantees"].as_array().unwrap().iter().map(|it| it["counters"]["arrivals"].as_u64().unwrap()).sum();
        let lost = report["lost_records"].as_u64().unwrap();
        println!("{served} served, {arrivals} proven, {lost} records lost, {}", audit["verdict"]);
        assert_eq!(report["contradictions_total"], 0, "{audit}");
        served < arrivals + lost && (lost == 0) == (audit["verdict"] == "kept")
    });
}
