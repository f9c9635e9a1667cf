//! Best effort takes what is idle and is pushed aside: what was promised is kept by the instants in the records themselves.

use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::evidence::{assert_kept, audit, finding, records};
use super::support::{ECHO, Node, at_level, bound_at_level};

const STEADY: &str = "[guarantee]\nrate = \"40/s\"\nburst = 4\nmax_run_time = \"20ms\"\ndeadline = \"200ms\"\noverflow = \"queue\"\n\
                      queue_limit = 400\n";
/// Works until it has had a tenth of a second of its core.
const BURN: &str = "import time\n\ndef handler(event, context):\n    while time.process_time() - start(context) < 0.1:\n        pass\n    \
                    return 'done'\n\nSTARTS = {}\n\ndef start(context):\n    return STARTS.setdefault(context.aws_request_id, \
                    time.process_time())\n";

fn instant(record: &Value, name: &str) -> u64 {
    record[name].as_u64().unwrap_or_else(|| panic!("no {name} in {record}"))
}

fn duration_ns(value: &Value) -> u64 {
    value["secs"].as_u64().unwrap() * 1_000_000_000 + value["nanos"].as_u64().unwrap()
}

fn duration(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap()
}

#[test]
fn promises_hold_by_their_instants_while_best_effort_takes_all_that_is_idle() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    node.python("steady", &at_level(STEADY), ECHO);
    node.python("greedy", "timeout = \"30s\"\n", BURN);
    // Three cores' worth of work, beside a guarantee at its full rate.
    let greedy = node.load("greedy", &["--rate", "30/s", "--for", "3s", "--connections", "16"]);
    let report = node.load("steady", &["--rate", "40/s", "--for", "4s", "--connections", "8"]).report();
    let greedy = greedy.report();
    node.stop();
    assert_eq!(report["by_class"]["guaranteed"], 160, "{report}");
    assert_ne!(greedy["by_class"]["best-effort"], 0, "{greedy}");
    assert!(2 < greedy["succeeded"].as_u64().unwrap(), "best effort gets on beside the guarantee: {greedy}");

    let audit = audit(&data);
    assert_kept(&audit, "steady");
    assert_eq!(finding(&audit, "steady")["counters"]["conforming"], 160, "{audit}");
    let given = records(&data, "guarantee-given").pop().unwrap();
    let (start_bound, tolerance) = (duration_ns(&given["start_bound"]), duration_ns(&given["tolerance"]));
    let deadline = duration(bound_at_level(Duration::from_millis(200)));
    let start_within = deadline - duration(Duration::from_millis(20));
    let gaps = records(&data, "probe-gap");
    for record in records(&data, "invocation") {
        let due = instant(&record, "conforming").max(instant(&record, "arrived"));
        let stolen = gaps.iter().any(|gap| instant(gap, "from") < instant(&record, "ended") && due < instant(gap, "until"));
        // An instance was there: it did not wait for one beyond the analysed bound.
        assert!(stolen || instant(&record, "delivered") <= due + start_bound + tolerance, "{record}");
        assert!(stolen || instant(&record, "started") <= due + start_within, "by v + B: {record}");
        assert!(stolen || instant(&record, "ended") <= instant(&record, "arrived").max(due) + deadline, "by D: {record}");
    }
}
