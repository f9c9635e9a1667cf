//! Arrivals that wait for a slot: how many, in which order, for how long.

use std::io::Read;
use std::net::TcpStream;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::evidence::{assert_kept, audit, finding, records};
use super::support::{Answer, ECHO, Node, at_level, invoke_path, parse, send};

/// A slot a second, and four places to wait for one.
const PACED: &str = "[guarantee]\nrate = \"1/s\"\nmax_run_time = \"50ms\"\nstart_within = \"400ms\"\noverflow = \"queue\"\n\
                     queue_limit = 4\n";
/// Says when it ran, on the clock that all instances share.
const STAMP: &str = "import time\n\ndef handler(event, context):\n    return time.monotonic_ns()\n";

/// Invocations that come at one instant, each on a connection of its own, to each of three functions that they wait for.
const BURST: u64 = 50;
const RATES: [u64; 3] = [10, 20, 25];

fn ask(node: &Node, deadline: &str) -> TcpStream {
    let bearer = format!("Bearer {}", node.token);
    let headers = [("Authorization", bearer.as_str()), ("X-Deadline", deadline)];
    send(node.address, &format!("POST {}", invoke_path("paced")), &headers, b"1")
}

fn answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    parse(&bytes)
}

#[test]
fn a_queue_is_bounded_goes_by_deadline_and_drops_what_expired() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    node.python("paced", PACED, STAMP);
    let first = answer(ask(&node, "20s"));
    assert_eq!((first.status, first.header("x-takt-conforming")), (200, "true"), "{first:?}");
    let expired = answer(ask(&node, "1ms"));
    assert_eq!((expired.status, expired.header("x-amzn-errortype")), (408, "DeadlineExpiredException"), "{expired:?}");

    // Five at once for four places; the later they came, the earlier is their deadline.
    let waiting = ["50s", "40s", "30s", "20s", "10s"].map(|deadline| ask(&node, deadline));
    let answers = waiting.map(answer);
    let (served, refused): (Vec<&Answer>, Vec<&Answer>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!((served.len(), refused.len()), (4, 1), "{answers:?}");
    assert_eq!(
        (refused[0].status, refused[0].json()["Reason"].clone()),
        (429, json!("ReservedFunctionInvocationRateLimitExceeded"))
    );
    let ran: Vec<u64> = served.iter().map(|answer| answer.json().as_u64().unwrap()).collect();
    assert!(ran.is_sorted_by(|earlier, later| later < earlier), "earliest deadline first: {ran:?}");
    for answer in served {
        assert_eq!((answer.header("x-takt-class"), answer.header("x-takt-conforming")), ("guaranteed", "true"));
        assert_eq!(answer.header("x-takt-start-within-us"), "400000");
        let number = |name: &str| answer.header(name).parse::<u64>().unwrap_or_else(|_| panic!("{name}: {answer:?}"));
        assert!(0 < number("x-takt-queue-wait-us") && 0 < number("x-takt-start-delay-us"), "{answer:?}");
        assert_ne!(answer.header("x-takt-instance"), "");
    }
    node.stop();
    let audit = audit(&data);
    assert_kept(&audit, "paced");
    let counters = &finding(&audit, "paced")["counters"];
    let counted = ["arrivals", "conforming", "expired", "refused"].map(|name| counters[name].as_u64().unwrap());
    assert_eq!(counted, [7, 5, 1, 1], "{audit}");
}

/// The records of one function, in the order of the slots they took.
fn by_slot(all: &[Value], function: &str) -> Vec<Value> {
    let mut own: Vec<Value> = all.iter().filter(|record| record["function"] == function).cloned().collect();
    own.sort_by_key(|record| record["slot"].as_u64());
    own
}

fn instant(record: &Value, name: &str) -> u64 {
    record[name].as_u64().unwrap_or_else(|| panic!("no {name} in {record}"))
}

#[test]
fn bursts_on_new_connections_wait_whole_and_start_at_their_slots() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    let name = |rate: u64| format!("burst{rate}");
    for rate in RATES {
        let terms = format!(
            "[guarantee]\nrate = \"{rate}/s\"\nmax_run_time = \"20ms\"\ncpu = \"0.25\"\nstart_within = \"400ms\"\n\
             overflow = \"queue\"\nqueue_limit = {BURST}\n"
        );
        node.python(&name(rate), &at_level(&terms), ECHO);
    }
    let bearer = format!("Bearer {}", node.token);
    let headers = [("Authorization", bearer.as_str())];
    let ask = |rate: &u64| send(node.address, &format!("POST {}", invoke_path(&name(*rate))), &headers, b"1");
    let waiting: Vec<TcpStream> = (0..BURST).flat_map(|_| RATES.iter().map(ask)).collect();
    for stream in waiting {
        let answer = answer(stream);
        let told = (answer.status, answer.header("x-takt-class"), answer.header("x-takt-conforming"));
        assert_eq!(told, (200, "guaranteed", "true"), "{answer:?}");
    }
    node.stop();
    let (audit, all) = (audit(&data), records(&data, "invocation"));
    for rate in RATES {
        assert_kept(&audit, &name(rate));
        let (own, period) = (by_slot(&all, &name(rate)), 1_000_000_000 / rate);
        let slots: Vec<Option<u64>> = own.iter().map(|record| record["slot"].as_u64()).collect();
        assert_eq!(slots, (0..BURST).map(Some).collect::<Vec<_>>(), "every one of them took a slot");
        for pair in own.windows(2) {
            let next = instant(&pair[0], "conforming") + period;
            assert_eq!(instant(&pair[1], "conforming"), instant(&pair[1], "arrived").max(next), "{pair:?}");
        }
        assert!(own.iter().all(|record| instant(record, "conforming") <= instant(record, "started")), "none is ahead");
    }
}
