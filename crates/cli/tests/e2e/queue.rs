//! Arrivals that wait for a slot: how many, in which order, for how long.

use std::io::Read;
use std::net::TcpStream;

use serde_json::json;
use tempfile::TempDir;

use super::evidence::{assert_kept, audit, finding};
use super::support::{Answer, Node, invoke_path, parse, send};

/// A slot a second, and four places to wait for one.
const PACED: &str = "[guarantee]\nrate = \"1/s\"\nmax_run_time = \"50ms\"\nstart_within = \"400ms\"\noverflow = \"queue\"\n\
                     queue_limit = 4\n";
/// Says when it ran, on the clock that all instances share.
const STAMP: &str = "import time\n\ndef handler(event, context):\n    return time.monotonic_ns()\n";

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
