//! Clients that mean harm: whatever they send, a guaranteed function is served and its records prove it.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Node, answer};

const GUARANTEED: &str = "memory = \"128MB\"\n[guarantee]\nrate = \"1/s\"\nburst = 6\nmax_run_time = \"100ms\"\ncpu = \"0.05\"\n\
                          start_within = \"1s\"\n";
const BEST_EFFORT: &str = "memory = \"128MB\"\n";

/// The place of our own bugs among the causes of violations.
const CAUSE_BUG: usize = 4;

/// A node with a guaranteed function `beat` and a best-effort one, `idle`.
fn node() -> Node {
    let node = Node::start();
    node.must_deploy("beat", GUARANTEED);
    node.must_deploy("idle", BEST_EFFORT);
    node
}

/// The guaranteed function still answers, and what was written shows no violation without a cause.
#[track_caller]
fn check(node: &Node, served: u64) {
    for _ in 0..3 {
        node.must_serve("beat");
    }
    crate::support::until("the audit counts what was served", || {
        let audit = node.audit();
        let guarantees = audit["report"]["guarantees"].as_array().cloned().unwrap_or_default();
        let arrivals: u64 = guarantees.iter().filter_map(|guarantee| guarantee["counters"]["arrivals"].as_u64()).sum();
        served + 3 <= arrivals
    });
    let audit = node.audit();
    assert_ne!(audit["verdict"], "contradicted", "{audit}");
    let guarantees = audit["report"]["guarantees"].as_array().unwrap();
    let bugs = guarantees.iter().filter_map(|guarantee| guarantee["counters"]["by_cause"][CAUSE_BUG].as_u64());
    assert_eq!(bugs.sum::<u64>(), 0, "{audit}");
}

fn refused(status: Option<u16>) -> bool {
    status.is_none_or(|status| status == 501 || (400..500).contains(&status))
}

/// Sends bytes, ends the sending side, and returns the status of every answer.
fn statuses(node: &Node, bytes: &[u8]) -> Vec<u16> {
    let mut stream = node.connect();
    // The node may hang up before everything is sent.
    let _sent = stream.write_all(bytes).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
    let mut reader = BufReader::new(stream);
    std::iter::from_fn(|| answer(&mut reader).map(|(status, _, _)| status)).collect()
}

#[test]
fn connections_that_send_nothing_or_never_end_hold_nobody_up() {
    let node = node();
    let request = node.request("beat", "{\"do\":\"ok\"}");
    let head = &request[..request.find("\r\n\r\n").unwrap()];
    let open = |text: &str| {
        let mut stream = node.connect();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let mut kept: Vec<TcpStream> = (0..800).map(|_| open("")).collect();
    kept.extend((0..100).map(|_| open(head)));
    kept.extend((0..100).map(|_| open(&request[..request.len() - 3])));
    check(&node, 0);
    drop(kept);
}

#[test]
fn nonsense_is_refused() {
    let node = node();
    let long = "x".repeat(64 << 10);
    let many: String = (0..200).map(|number| format!("x{number}: y\r\n")).collect();
    let host = node.address;
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        vec![0; 100_000],
        format!("GET /{long} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes(),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nx: {long}\r\n\r\n").into_bytes(),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\n{many}\r\n").into_bytes(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec(),
    ] {
        let found = statuses(&node, &bytes);
        assert!(found.len() <= 1 && refused(found.first().copied()), "{found:?} for {:?}", &bytes[..bytes.len().min(60)]);
    }
    check(&node, 0);
}

#[test]
fn a_request_cannot_hide_in_another() {
    let node = node();
    let hidden = node.request("beat", "{\"do\":\"ok\"}");
    let head = |more: &str| {
        let whole = node.request("beat", "");
        whole.replace("Content-Length: 0\r\n", more)
    };
    for more in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: 4, 4\r\n",
        "Content-Length: +4\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: 4\r\n Transfer-Encoding: chunked\r\n",
        "X: y\nContent-Length: 4\r\n\n",
    ] {
        let found = statuses(&node, format!("{}0\r\n\r\n{hidden}", head(more)).as_bytes());
        assert!(found.len() <= 1 && refused(found.first().copied()), "{found:?} for {more:?}");
    }
    check(&node, 0);
}

#[test]
fn requests_sent_at_once_are_answered_in_order_across_lanes() {
    let node = node();
    let names = ["beat", "idle", "beat", "idle", "idle", "beat"];
    let all: String = names.iter().map(|name| node.request(name, "{\"do\":\"ok\"}")).collect();
    let mut stream = node.connect();
    stream.write_all(all.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut instances = Vec::new();
    for name in names {
        let (status, _, body) = answer(&mut reader).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, 200, "{name}: {body}");
        instances.push(body["instance"].as_str().unwrap().to_owned());
    }
    // Each function has one instance that is free again before the next request of the connection is read.
    assert_eq!((&instances[0], &instances[1]), (&instances[2], &instances[3]), "{instances:?}");
    check(&node, 3);
}

#[test]
fn a_client_that_goes_away_stops_its_invocation() {
    let node = node();
    let request = node.request("idle", &json!({"do": "ignore"}).to_string());
    let mut stream = node.connect();
    stream.write_all(request.as_bytes()).unwrap();
    // The instance is busy until it is killed because its client left: then another one serves.
    drop(stream);
    node.must_serve("idle");
    check(&node, 0);
}

#[test]
fn a_body_beyond_the_limit_is_refused_before_it_is_read() {
    let node = node();
    let request = node.request("beat", "").replace("Content-Length: 0", "Content-Length: 7000000");
    let mut stream = node.connect();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
    check(&node, 0);
}
