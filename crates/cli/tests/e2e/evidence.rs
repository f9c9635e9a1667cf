//! What the records prove, and that they prove it of exactly what happened.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{ECHO, Node, takt_command, wait_until, wanted_level};

pub(crate) fn audit(data: &Path) -> Value {
    let output = takt_command(data).args(["audit", "--json"]).arg(data).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// The records of one kind, oldest first.
pub(crate) fn records(data: &Path, kind: &str) -> Vec<Value> {
    let mut segments: Vec<_> = fs::read_dir(data.join("evidence")).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    let text: String = segments.iter().map(|segment| fs::read_to_string(segment).unwrap()).collect();
    // A line is `NUMBER CRC HASH JSON`; a segment begins with a header that is no record.
    let record = |line: &str| serde_json::from_str::<Value>(line.splitn(4, ' ').nth(3)?).ok();
    text.lines().filter_map(record).filter_map(|record| record.get(kind).cloned()).collect()
}

/// What the audit found of one guarantee's latest generation.
pub(crate) fn finding<'a>(audit: &'a Value, function: &str) -> &'a Value {
    let findings = audit["report"]["guarantees"].as_array().unwrap();
    findings.iter().rfind(|finding| finding["function"] == function).unwrap_or_else(|| panic!("no {function}: {audit}"))
}

/// The records of a function are whole, and nothing it missed was the node's fault or its own.
pub(crate) fn assert_unknown_at_most(data: &Path, function: &str) {
    let audit = audit(data);
    let finding = finding(&audit, function);
    assert_eq!((&audit["report"]["contradictions_total"], &finding["missing_records"]), (&json!(0), &json!(0)), "{audit}");
    let by_cause = finding["counters"]["by_cause"].as_array().unwrap();
    assert!(by_cause[1..5].iter().all(|count| *count == 0), "{finding}");
}

/// No promise was missed but for proven steal. Without real-time classes other programs of the machine may keep an invocation
/// from its core, which nobody sees: its cause is unknown then, and still neither the node's fault nor the function's.
fn assert_nobodys_fault(finding: &Value) {
    let by_cause = finding["counters"]["by_cause"].as_array().unwrap().as_slice();
    let [_steal, ours @ .., unknown] = by_cause else { panic!("{finding}") };
    assert!(ours.iter().all(|count| *count == 0), "{finding}");
    assert!(*unknown == 0 || wanted_level().is_some(), "{finding}");
}

/// The records of a function are whole, and none of its promises was missed but for proven steal.
pub(crate) fn assert_kept(audit: &Value, function: &str) {
    let finding = finding(audit, function);
    assert_eq!(audit["report"]["contradictions_total"], 0, "{audit}");
    assert_eq!(finding["missing_records"], 0, "{finding}");
    assert_nobodys_fault(finding);
}

/// The sum of a counter over all generations of all guarantees.
fn sum(audit: &Value, counter: &str) -> u64 {
    let findings = audit["report"]["guarantees"].as_array().unwrap();
    findings.iter().map(|finding| finding["counters"][counter].as_u64().unwrap()).sum()
}

/// The records of this many arrivals or more are whole, and no promise was missed but for proven steal.
pub(crate) fn assert_nothing_is_violated(data: &Path, arrivals: u64) {
    let audit = audit(data);
    assert_eq!(audit["report"]["contradictions_total"], 0, "{audit}");
    assert!(arrivals <= sum(&audit, "arrivals"), "{audit}");
    for finding in audit["report"]["guarantees"].as_array().unwrap() {
        assert_eq!(finding["missing_records"], 0, "{audit}");
        assert_nobodys_fault(finding);
    }
}

/// What one function's live counters and the audit both count.
pub(crate) fn check_agreement(live: &Value, audited: &Value) {
    for counter in ["arrivals", "conforming", "excess", "expired", "refused", "start_violations", "deadline_misses"] {
        assert_eq!(live[counter], audited[counter], "{counter}: live {live}, audited {audited}");
    }
    let causes = ["steal", "overrun", "function", "host-call", "bug", "unknown"];
    for (cause, count) in causes.iter().zip(audited["by_cause"].as_array().unwrap()) {
        assert_eq!(&live["violations_by_cause"][*cause], count, "{cause}");
    }
}

const SLEEPER: &str = "import time\n\ndef handler(event, context):\n    time.sleep(event)\n    return event\n";

fn lease(node: &Node) -> u64 {
    let answer = node.request("POST", "/v1/functions/held/pre-invoke", &[], br#"{"lead": "100ms"}"#);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["lease"].as_u64().unwrap()
}

/// Everything that leaves a record: excess, refusals, an overrun, leases used and not.
fn mixed_load(node: &Node) {
    let terms = |rate: &str, further: &str| {
        format!("[guarantee]\nrate = \"{rate}\"\nmax_run_time = \"100ms\"\nstart_within = \"500ms\"\n{further}")
    };
    node.python("excess", &terms("1/min", ""), ECHO);
    node.python("strict", &terms("1/min", "overflow = \"reject\"\n"), ECHO);
    node.python("slow", &terms("4/s", "burst = 2\ncpu = 0.1\n"), SLEEPER);
    node.python("held", &terms("2/s", "burst = 4\nlead = \"200ms\"\n"), ECHO);
    for n in 0..4 {
        assert_eq!(node.invoke("excess", &json!(n)).status, 200);
        node.invoke("strict", &json!(n));
    }
    assert_eq!(node.invoke("slow", &json!(0)).header("x-amz-function-error"), "");
    let overrun = node.invoke("slow", &json!(20));
    assert_eq!(overrun.json()["errorType"], "Sandbox.Timedout", "{overrun:?}");
    let answer = node.request("POST", &format!("/v1/leases/{}", lease(node)), &[], b"5");
    assert_eq!((answer.status, answer.text()), (200, "5".to_owned()), "{answer:?}");
    assert_eq!((answer.header("x-takt-class"), answer.header("x-takt-conforming")), ("guaranteed", "true"));
    for gone in [lease(node) ^ 1, u64::MAX] {
        let unknown = node.request("POST", &format!("/v1/leases/{gone}"), &[], b"5");
        assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("no-lease")), "{unknown:?}");
    }
    wait_until("the unused lease to expire and be accounted as waste", || {
        let counters = node.get("/v1/functions/held/guarantee")["counters"].clone();
        counters["arrivals"] == 2 && counters["held"] != "0ns" && counters["expired"] == 1
    });
}

/// What was delivered to the lease started as promised of an instance that is there; what was held for nothing is counted.
fn check_leases(data: &Path) {
    let ns = |value: &Value| value["secs"].as_u64().unwrap() * 1_000_000_000 + value["nanos"].as_u64().unwrap();
    let given = records(data, "guarantee-given").into_iter().rfind(|given| given["function"] == "held").unwrap();
    let bound = ns(&given["start_bound"]) + ns(&given["tolerance"]);
    let leases = records(data, "invocation").into_iter().filter(|record| record["function"] == "held");
    let (used, unused): (Vec<Value>, Vec<Value>) = leases.partition(|record| record["end"] == "succeeded");
    let ([used], [unused]) = (&used[..], &unused[..]) else { panic!("{used:?} {unused:?}") };
    assert!(used["held"].is_object() && 0 < ns(&unused["held"]), "{used} {unused}");
    let supplied = used["arrived"].as_u64().max(used["conforming"].as_u64()).unwrap();
    let delay = used["started"].as_u64().unwrap() - supplied;
    assert!(delay <= bound || used["violation"] == "steal", "{delay} ns, {bound} ns at most: {used}");
}

#[test]
fn an_audit_agrees_with_the_live_counters_after_a_mixed_load() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    mixed_load(&node);
    let names = ["excess", "strict", "slow", "held"];
    let live = names.map(|name| node.get(&format!("/v1/functions/{name}/guarantee")));
    node.stop();
    let audit = audit(&data);
    assert_eq!(audit["report"]["contradictions_total"], 0, "{audit}");
    for (name, guarantee) in names.iter().zip(live) {
        let findings = audit["report"]["guarantees"].as_array().unwrap();
        let finding = findings.iter().find(|it| it["function"] == **name && it["generation"] == guarantee["generation"]);
        check_agreement(&guarantee["counters"], &finding.unwrap()["counters"]);
    }
    assert_eq!((sum(&audit, "excess"), sum(&audit, "refused")), (3 + 3, 3), "{audit}");
    check_leases(&data);
    assert_eq!(audit["report"]["unclean_stops"], 0);
    assert_eq!(audit["report"]["running_at_end"], false);
}

#[test]
fn a_flipped_bit_and_a_kill_are_found() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    node.python("one", "[guarantee]\nrate = \"5/s\"\nmax_run_time = \"50ms\"\nstart_within = \"500ms\"\n", ECHO);
    assert_eq!(node.invoke("one", &json!(1)).status, 200);
    node.stop();
    assert_eq!(audit(&data)["verdict"], "kept");
    let segment = data.join("evidence/00000001.takt");
    let whole = fs::read(&segment).unwrap();
    for place in [whole.len() / 3, whole.len() / 2, whole.len() - 40] {
        let mut flipped = whole.clone();
        flipped[place] ^= 1;
        fs::write(&segment, flipped).unwrap();
        let audit = audit(&data);
        assert_eq!(audit["verdict"], "contradicted", "bit 0 of byte {place}: {audit}");
        assert!(audit["broken"].is_string(), "{audit}");
    }
    fs::write(&segment, &whole).unwrap();

    Node::start(&data, &[]).kill();
    Node::start(&data, &[]).stop();
    let audit = audit(&data);
    assert_eq!((&audit["verdict"], &audit["report"]["unclean_stops"]), (&json!("unproven"), &json!(1)), "{audit}");
}
