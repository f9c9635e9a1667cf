//! What a machine and its user give a node, and that it says what they do not: at its start, later, and in what it promises.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::evidence::records;
use super::starts::Flood;
use super::support::{ECHO, Node, Rights, assert_exit};

const GUARANTEE: &str = "[guarantee]\nrate = \"2/s\"\nmax_run_time = \"50ms\"\ncpu = 0.5\nstart_within = \"2s\"\n";

fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout.trim_ascii() == b"0"
}

/// What is missing by name, with the reasons.
fn missing(node: &Node) -> BTreeMap<String, Value> {
    let list = node.ready["missing"].as_array().unwrap();
    list.iter().map(|it| (it["name"].as_str().unwrap().to_owned(), it["reason"].clone())).collect()
}

/// Level and T are of one measurement, in the evidence as in what the node says.
fn check_measured_for_its_level(node: Node, data: &Path) {
    let level = node.ready["level"].clone();
    assert_eq!(node.ready["measured_level"], level, "{}", node.ready);
    node.python("promised", GUARANTEE, ECHO);
    let answer = node.invoke("promised", &json!(1));
    assert_eq!((answer.json(), answer.header("x-takt-class")), (json!(1), "guaranteed"), "{answer:?}");
    assert_eq!(node.get("/v1/functions/promised/guarantee")["level"], level);
    let tolerance_us = node.ready["tolerance_us"].as_u64().unwrap();
    node.stop();
    let opening = records(data, "node-started").pop().unwrap();
    let tolerance = &opening["tolerance"];
    let nanos = tolerance["secs"].as_u64().unwrap() * 1_000_000_000 + tolerance["nanos"].as_u64().unwrap();
    assert_eq!((&opening["level"], nanos / 1_000), (&level, tolerance_us), "{opening}");
}

#[test]
fn what_a_node_is_not_given_is_one_list_at_its_start_and_later() {
    let all = [
        (Rights::All, &[][..]),
        (Rights::NoRealTime, &["real-time scheduling"][..]),
        (Rights::OfAUser, &["real-time scheduling", "a user for each instance"][..]),
    ];
    for (rights, expected) in all {
        if rights != Rights::All && !is_root() {
            println!("skipped: a node with {rights:?} (only root can take rights away)");
            continue;
        }
        let home = TempDir::new().unwrap();
        let node = Node::start_with(rights, &home.path().join("node"));
        let missing = missing(&node);
        assert!(expected.iter().all(|name| missing.contains_key(*name)), "{rights:?}: {missing:?}");
        let hard = missing.keys().all(|name| !name.starts_with("real-time scheduling"));
        assert_eq!(node.ready["level"], if hard { "hard" } else { "soft" }, "{rights:?}: {missing:?}");
        let later = node.get("/v1/node");
        let protections = later["protections"].as_array().unwrap().iter();
        let later: BTreeMap<String, Value> = protections
            .filter(|it| !it["missing"].is_null())
            .map(|it| (it["name"].as_str().unwrap().to_owned(), it["missing"]["reason"].clone()))
            .collect();
        assert_eq!(later, missing, "{rights:?}");
        if rights != Rights::OfAUser {
            let top = node.takt(&["top"]);
            assert_exit(&top, 0);
            let top = String::from_utf8(top.stdout).unwrap();
            assert!(missing.keys().all(|name| top.contains(name.as_str())), "{rights:?}: {top}");
        }
        node.stop();
    }
}

#[test]
fn t_is_measured_for_the_level_that_is_given_also_where_only_instances_are_refused_the_real_time_class() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("plain");
    check_measured_for_its_level(Node::start(&data, &[]), &data);
    if !is_root() {
        println!("skipped: a node that may be of real-time class and whose instances may not (only root can take rights away)");
        return;
    }
    let data = home.path().join("refused");
    let node = Node::start_with(Rights::RealTimeForOneself, &data);
    let missing = missing(&node);
    assert!(missing.contains_key("real-time scheduling of instances"), "{missing:?}");
    assert!(!missing.contains_key("real-time scheduling"), "its own threads may: {missing:?}");
    assert_eq!(node.ready["level"], "soft");
    check_measured_for_its_level(node, &data);
}

const STEADY: &str = "[guarantee]\nrate = \"40/s\"\nburst = 4\nmax_run_time = \"20ms\"\nstart_within = \"5s\"\noverflow = \"queue\"\n\
                      queue_limit = 400\n";
/// Where the node's CPU is weighed, and the group above that; `None` where this machine weighs it otherwise or not at all.
fn weighed(node: &Node) -> Option<(PathBuf, PathBuf)> {
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", node.pid())).unwrap();
    let path = own.lines().find_map(|line| line.split_once(":cpu:").map(|(_, path)| path.trim_start_matches('/')))?;
    let group = Path::new("/sys/fs/cgroup/cpu").join(path);
    path.ends_with("-daemon").then(|| (group.join("cgroup.procs"), group.with_file_name("cgroup.procs")))
}

/// What other sessions of the machine weigh, each.
const SESSION_SHARES: u64 = 1_024;

/// Beside busy sessions outside the node nothing fails, with its weight and without; it prints what nine of ten calls take.
#[test]
fn a_node_without_real_time_classes_weighs_more_than_others_and_fails_nothing_beside_a_flood() {
    if !is_root() {
        println!("skipped: a node without real-time classes and with a weight (only root can take rights away)");
        return;
    }
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start_with(Rights::NoRealTime, &data);
    let Some((weighed, above)) = weighed(&node) else {
        println!("skipped: a node with a weight (no v1 hierarchy of cpu here)");
        return;
    };
    let shares: u64 = std::fs::read_to_string(weighed.with_file_name("cpu.shares")).unwrap().trim().parse().unwrap();
    assert_eq!(shares, 8 * SESSION_SHARES);
    let members = std::fs::read_to_string(&weighed).unwrap();
    assert_eq!(members.split_whitespace().collect::<Vec<_>>(), [node.pid().to_string()], "the node and nobody else");
    node.python("steady", STEADY, ECHO);
    let flood = Flood::new(16);
    let mut p90_us = [0; 2];
    for _ in 0..3 {
        for (group, p90_us) in [&weighed, &above].into_iter().zip(&mut p90_us) {
            std::fs::write(group, node.pid().to_string()).unwrap();
            // The client is of real-time class: what is late is the node.
            let words = ["--rate", "40/s", "--for", "2s", "--connections", "8", "--realtime"];
            let report = node.load("steady", &words).report();
            assert_eq!(report["succeeded"], 80, "late or not, none fails: {report}");
            *p90_us += report["latency_us"]["p90"].as_u64().unwrap();
        }
    }
    drop(flood);
    std::fs::write(&weighed, node.pid().to_string()).unwrap();
    node.stop();
    let [with, without] = p90_us.map(|sum| sum / 3);
    println!("nine of ten calls within {with} us with the weight, {without} us without");
    super::evidence::assert_unknown_at_most(&data, "steady");
}
