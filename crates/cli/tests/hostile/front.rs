//! Clients that mean harm: whatever they send, a guaranteed function is served and its records prove it.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Node, answer, processes_with};

const GUARANTEED: &str = "memory = \"128MB\"\n[guarantee]\nrate = \"1/s\"\nburst = 6\nmax_run_time = \"100ms\"\ncpu = \"0.05\"\n\
                          start_within = \"1s\"\n";
const BEST_EFFORT: &str = "memory = \"128MB\"\n";

/// A node with a guaranteed function `beat` and a best-effort one, `idle`.
fn node() -> Node {
    let node = Node::start();
    node.must_deploy("beat", GUARANTEED);
    node.must_deploy("idle", BEST_EFFORT);
    node
}

/// The guaranteed function still answers, and what was written shows no violation but for proven steal.
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
    for guarantee in audit["report"]["guarantees"].as_array().unwrap() {
        assert_eq!(guarantee["missing_records"], 0, "{audit}");
        let [_steal, other @ ..] = guarantee["counters"]["by_cause"].as_array().unwrap().as_slice() else { panic!("{audit}") };
        assert!(other.iter().all(|count| *count == 0), "{audit}");
    }
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
fn a_client_that_goes_away_stops_its_invocation_and_the_children_of_it() {
    let node = node();
    let children = format!("sleep {}", 820_000 + std::process::id());
    for (name, served) in [("idle", 0), ("beat", 1)] {
        let event = json!({"do": "children_and_ignore", "mark": 820_000 + std::process::id()});
        let mut stream = node.connect();
        stream.write_all(node.request(name, &event.to_string()).as_bytes()).unwrap();
        crate::support::until("its children run", || processes_with(&children) != 0);
        // The instance is busy until it is killed because its client left: then another one serves.
        drop(stream);
        crate::support::until("its children are gone", || processes_with(&children) == 0);
        node.must_serve(name);
        check(&node, served);
    }
}

/// Clients, for each core, of a function of 20 ms runs: three times as many as are served while one waits.
const IMPATIENT_PER_CORE: usize = 48;
const PATIENCE_RUNS: u32 = 15;
const ANSWERS: usize = 200;

/// What clients got that ask again at once, whether they were answered or hung up.
#[derive(Default)]
struct Got {
    answers: usize,
    hung_up: usize,
    instances: std::collections::BTreeSet<String>,
}

/// How long the clients wait: a number of runs as long as they take here and now, each of which is 20 ms long where nothing else runs.
#[expect(clippy::disallowed_methods, reason = "nothing is decided on it but how hard the story tries")]
fn patience(node: &Node) -> Duration {
    let run = || {
        let begun = std::time::Instant::now();
        node.invoke("idle", &json!({"do": "burn", "ms": 20})).value();
        begun.elapsed()
    };
    run(); // with its start
    (0..5).map(|_| run()).max().unwrap() * PATIENCE_RUNS
}

/// Tells the clients that it is over, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn ask_impatiently(node: &Node, patience: Duration, over: &AtomicBool, got: &std::sync::Mutex<Got>) {
    let request = node.request("idle", "{\"do\":\"burn\",\"ms\":20}");
    while !over.load(Ordering::Relaxed) {
        let mut stream = node.connect();
        stream.set_read_timeout(Some(patience)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let answered = answer(&mut BufReader::new(stream));
        let mut got = got.lock().unwrap();
        let Some((status, head, _)) = answered else {
            got.hung_up += 1;
            continue;
        };
        assert!(status == 200 && !head.iter().any(|line| line.starts_with("x-amz-function-error")), "{head:?}");
        let instance = head.iter().find_map(|line| line.strip_prefix("x-takt-instance: ")).unwrap();
        got.instances.insert(instance.to_owned());
        got.answers += 1;
    }
}

#[test]
fn a_flood_of_clients_that_hang_up_is_served_on_instances_that_live_on() {
    let node = node();
    let clients = IMPATIENT_PER_CORE * std::thread::available_parallelism().unwrap().get();
    let (over, got) = (AtomicBool::new(false), std::sync::Mutex::new(Got::default()));
    let patience = patience(&node);
    std::thread::scope(|scope| {
        let _over = Over(&over);
        let asking: Vec<_> = (0..clients).map(|_| scope.spawn(|| ask_impatiently(&node, patience, &over, &got))).collect();
        let done = || ANSWERS <= got.lock().unwrap().answers || asking.iter().any(std::thread::ScopedJoinHandle::is_finished);
        crate::support::until("results in time", done);
    });
    let Got { answers, hung_up, instances } = got.into_inner().unwrap();
    println!("{answers} answers of {} instances, {hung_up} hung up", instances.len());
    // In order of arrival whoever is served hangs up meanwhile, and takes an instance with him.
    assert!(answers / 8 < hung_up && instances.len() * 4 <= answers, "{answers} of {}, {hung_up} hung up", instances.len());
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

/// Waits for its slots, so that a few clients that ask again at once keep it at its full rate.
const PACED: &str = "memory = \"128MB\"\n[guarantee]\nrate = \"40/s\"\nmax_run_time = \"10ms\"\nstart_within = \"250ms\"\n\
                     overflow = \"queue\"\nqueue_limit = 16\n";
/// So many wait for a slot that one of them does whenever another one's client is late.
const CLIENTS: usize = 8;
const STORM: usize = 2_000;
const HUNG_UP: usize = 200;
/// Invocations beside it at least.
const BESIDE: u64 = 100;

/// What a client that keeps its connection got until it was told to stop.
struct Kept {
    served: u64,
    /// How many of them found the function at its full rate.
    waited: u64,
}

/// Asks one thing after the other on one connection.
fn keep_asking(node: &Node, name: &str, (over, served): (&AtomicBool, &AtomicU64)) -> Kept {
    let mut reader = BufReader::new(node.connect());
    let request = node.request(name, "{\"do\":\"ok\"}");
    let mut kept = Kept { served: 0, waited: 0 };
    while !over.load(Ordering::Relaxed) {
        reader.get_mut().write_all(request.as_bytes()).unwrap();
        let (status, head, body) = answer(&mut reader).expect("a connection that keeps to its promise is kept");
        assert_eq!(status, 200, "{head:?} {}", String::from_utf8_lossy(&body));
        for part in ["x-takt-class: guaranteed", "x-takt-conforming: true"] {
            assert!(head.iter().any(|line| line == part), "{head:?}");
        }
        let wait = head.iter().find_map(|line| line.strip_prefix("x-takt-queue-wait-us: ")).unwrap_or("0");
        kept.served += 1;
        served.fetch_add(1, Ordering::Relaxed);
        kept.waited += u64::from(wait != "0");
    }
    kept
}

/// Connections that are opened and closed, and clients that hang up in the middle of their requests, until enough was served.
fn storm(node: &Node, served: &AtomicU64) {
    let half = node.request("beat", "{\"do\":\"ok\"}");
    for number in 0.. {
        if STORM <= number && BESIDE <= served.load(Ordering::Relaxed) {
            break;
        }
        let mut stream = node.connect();
        if number % (STORM / HUNG_UP) == 0 {
            // In its head, or in its body.
            let sent = if number % 2 == 0 { half.len() / 2 } else { half.len() - 3 };
            stream.write_all(&half.as_bytes()[..sent]).unwrap();
        }
    }
}

#[test]
fn a_storm_of_connections_stays_at_the_door_and_a_full_rate_is_kept() {
    let node = node();
    let deployed = node.deploy("paced", PACED);
    assert!(deployed.status.success(), "{}", crate::support::text_of(&deployed));
    let descriptors = node.descriptors();
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let kept: Vec<Kept> = std::thread::scope(|scope| {
        // However the storm ends, the clients do.
        let stop = Stop(&over);
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| keep_asking(&node, "paced", (&over, &served)))).collect();
        storm(&node, &served);
        // The kernel hands connections on in their order: once this one is served, all of the storm were taken.
        node.must_serve("beat");
        drop(stop);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let (served, waited) = kept.iter().fold((0, 0), |(served, waited), kept| (served + kept.served, waited + kept.waited));
    println!("{served} invocations beside the storm, {waited} of them waited for their slots");
    assert!(served < waited + waited / 4, "the function was at its full rate: {waited} of {served} waited for a slot");
    crate::support::until("nothing is left of the storm", || node.descriptors() <= descriptors);
    check(&node, served + 1);
    let audit = node.audit();
    let arrivals = |function: &str| {
        let guarantees = audit["report"]["guarantees"].as_array().unwrap();
        let finding = guarantees.iter().find(|guarantee| guarantee["function"] == function).unwrap();
        finding["counters"]["arrivals"].as_u64().unwrap()
    };
    assert_eq!((arrivals("paced"), arrivals("beat")), (served, 4), "half a request is no invocation");
    // The clients of `paced`, and each request for `beat` on a connection of its own.
    let handed_over = CLIENTS as u64 + 4;
    let came = || counted_by("guaranteed", &node, "from-door") + counted_by("guaranteed", &node, "taken-over");
    crate::support::until("the node has looked at its counters", || handed_over <= came());
    assert_eq!(came(), handed_over, "nothing of the storm came to the guaranteed lane");
}

/// Its inputs and results are long, and their ways take longer than it may run.
const LONG: &str = "runtime = \"python\"\nhandler = \"app.run\"\nmemory = \"128MB\"\n[guarantee]\nrate = \"4/s\"\nburst = 2\n\
                    max_run_time = \"20ms\"\nstart_within = \"1s\"\ndeadline = \"2s\"\noverflow = \"queue\"\n";
const LONG_CODE: &str = "def run(event, context):\n    return 'y' * 2_000_000 if event == 'long' else len(event)\n";

#[test]
fn long_inputs_and_results_of_a_short_function_arrive_beside_one_at_its_full_rate() {
    let node = node();
    let deployed = node.deploy("paced", PACED);
    assert!(deployed.status.success(), "{}", crate::support::text_of(&deployed));
    let deployed = node.deploy_files("long", LONG, &[("app.py", LONG_CODE)]);
    assert!(deployed.status.success(), "{}", crate::support::text_of(&deployed));
    let (over, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let input = json!("x".repeat(4_000_000));
    let served: u64 = std::thread::scope(|scope| {
        let stop = Stop(&over);
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| keep_asking(&node, "paced", (&over, &count)).served)).collect();
        for _ in 0..6 {
            assert_eq!(node.invoke("long", &input).value(), json!(4_000_000));
            assert_eq!(node.invoke("long", &json!("long")).value().as_str().map(str::len), Some(2_000_000));
        }
        drop(stop);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    check(&node, served + 12);
}

/// Says that it is over when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Floods that connect anew for everything they do.
const FLOODS: [fn(&Node, u64) -> Option<TcpStream>; 4] = [closed_at_once, silent, half_a_head, best_effort];
/// Connections that a flood keeps open.
const KEPT_OPEN: usize = 100;
/// Invocations of each client of the guaranteed function.
const EACH: usize = 20;

fn closed_at_once(node: &Node, _: u64) -> Option<TcpStream> {
    drop(node.connect());
    None
}

fn silent(node: &Node, _: u64) -> Option<TcpStream> {
    Some(node.connect())
}

fn half_a_head(node: &Node, number: u64) -> Option<TcpStream> {
    let mut stream = node.connect();
    let request = node.request("beat", "{}");
    let sent = usize::try_from(number).unwrap() % (request.len() - 4);
    // It may be sent away meanwhile.
    let _sent = stream.write_all(&request.as_bytes()[..=sent]);
    Some(stream)
}

/// Asks whether it might invoke: no instance is needed for that.
fn best_effort(node: &Node, _: u64) -> Option<TcpStream> {
    let mut stream = node.connect();
    stream.write_all(asks_whether(node).as_bytes()).unwrap();
    let (status, head, _) = answer(&mut BufReader::new(stream)).expect("a best-effort request is answered");
    assert!([204, 503].contains(&status), "{status} {head:?}");
    None
}

fn asks_whether(node: &Node) -> String {
    node.request("idle", "{}").replace("Content-Length", "X-Amz-Invocation-Type: DryRun\r\nContent-Length")
}

fn counted(node: &Node, what: &str) -> u64 {
    counted_by("door", node, what)
}

fn counted_by(lane: &str, node: &Node, what: &str) -> u64 {
    let metrics = node.metrics();
    let line = format!("takt_connections_total{{lane=\"{lane}\",what=\"{what}\"}} ");
    metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or_else(|| panic!("{what}: {metrics}"))
}

/// A client that opens a connection for each invocation. Returns how long its slowest took, from before it connected, beside
/// the wait for a slot that the node states.
fn connect_for_each(node: &Node, name: &str) -> Duration {
    let slowest = (0..EACH).map(|_| {
        let begin = Instant::now();
        let mut stream = node.connect();
        stream.write_all(node.request(name, "{\"do\":\"ok\"}").as_bytes()).unwrap();
        let (status, head, body) = answer(&mut BufReader::new(stream)).expect("who asks for a guaranteed function is answered");
        assert_eq!(status, 200, "{head:?} {}", String::from_utf8_lossy(&body));
        for part in ["x-takt-class: guaranteed", "x-takt-conforming: true"] {
            assert!(head.iter().any(|line| line == part), "{head:?}");
        }
        let waited = head.iter().find_map(|line| line.strip_prefix("x-takt-queue-wait-us: ")?.parse().ok()).unwrap();
        begin.elapsed().saturating_sub(Duration::from_micros(waited))
    });
    slowest.max().unwrap()
}

#[test]
fn floods_of_connections_take_nothing_from_new_connections_for_a_guaranteed_function() {
    let node = node();
    let deployed = node.deploy("paced", PACED);
    assert!(deployed.status.success(), "{}", crate::support::text_of(&deployed));
    let slowest_of = |clients: usize| {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..clients).map(|_| scope.spawn(|| connect_for_each(&node, "paced"))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).max().unwrap()
        })
    };
    let alone = slowest_of(CLIENTS);
    let over = AtomicBool::new(false);
    let (before, begin) = (counted(&node, "accepted"), Instant::now());
    let beside = std::thread::scope(|scope| {
        let stop = Stop(&over);
        let (over, node) = (&over, &node);
        for flood in FLOODS {
            scope.spawn(move || {
                let (mut kept, mut number) = (std::collections::VecDeque::new(), 0);
                while !over.load(Ordering::Relaxed) {
                    kept.extend(flood(node, number));
                    number += 1;
                    if KEPT_OPEN < kept.len() {
                        kept.pop_front();
                    }
                }
            });
        }
        let beside = slowest_of(CLIENTS);
        drop(stop);
        beside
    });
    let seconds = begin.elapsed().as_secs_f64();
    let served = u64::try_from(2 * CLIENTS * EACH).unwrap();
    check(&node, served);
    crate::support::until("the node has looked at its counters", || served <= counted(&node, "moved-guaranteed"));
    let flooded = counted(&node, "accepted") - before;
    println!(
        "{flooded} connections in {seconds:.1} s; slowest with a connection for each, beside its wait for a slot: {alone:?} \
         alone, {beside:?} beside them"
    );
    assert_eq!(counted(&node, "moved-over-budget"), 0, "every connection for the function found its hand-over");
}

#[test]
fn best_effort_on_a_connection_for_each_request_is_not_held_to_a_rate() {
    let node = node();
    let count = 2_000;
    let known = ["moved-best-effort", "moved-guaranteed", "moved-over-budget", "refused-busy"];
    let before = known.map(|what| counted(&node, what));
    let begin = Instant::now();
    for number in 0..count {
        best_effort(&node, number);
    }
    let per_second = f64::from(u32::try_from(count).unwrap()) / begin.elapsed().as_secs_f64();
    println!("{per_second:.0} a second");
    // All went straight on: none used up what there is a rate of, none was put off, none was sent away.
    crate::support::until("the node has looked at its counters", || before[0] + count <= counted(&node, known[0]));
    let after = known.map(|what| counted(&node, what));
    assert_eq!(after, [before[0] + count, before[1], before[2], before[3]], "{known:?}");
    check(&node, 0);
}

const INVOKE_IDLE: &str = "/2015-03-31/functions/idle/invocations";
/// Descriptors of a node for this test: more connections are opened than it can hold.
const FEW_DESCRIPTORS: usize = 1_500;

#[test]
fn more_silent_connections_than_the_node_has_descriptors_shut_nobody_out() {
    let limit = format!("ulimit -n {FEW_DESCRIPTORS} && exec \"$@\"");
    let node = Node::start_as(std::path::Path::new(crate::support::TAKT), &["sh", "-c", &limit, "sh"]);
    node.must_deploy("beat", GUARANTEED);
    node.must_deploy("idle", BEST_EFFORT);
    let mut kept = Vec::new();
    for number in 0..FEW_DESCRIPTORS + 500 {
        kept.push(node.connect());
        if number % 250 == 0 {
            node.must_serve("idle");
        }
    }
    check(&node, 0);
    node.must_serve("idle");
    // Those that were served once and stay silent give way too, when they have been silent for a second.
    kept.extend((0..FEW_DESCRIPTORS).map(|_| {
        let mut stream = node.connect();
        stream.write_all(asks_whether(&node).as_bytes()).unwrap();
        let (status, head, _) = answer(&mut BufReader::new(&stream)).expect("a best-effort request is answered");
        assert!([204, 503].contains(&status), "{status} {head:?}");
        stream
    }));
    crate::support::until("there is room again", || node.ask("POST", INVOKE_IDLE, "{\"do\":\"ok\"}").0 == 200);
    check(&node, 3);
    crate::support::until("the node has looked at its counters", || 0 < counted(&node, "evicted-silent"));
    drop(kept);
}
