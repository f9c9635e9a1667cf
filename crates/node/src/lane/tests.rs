//! Lanes driven by hand: a machine that does as told, real connections on loopback, and queues that nobody else reads.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use engine::port::{Action, Deployment, Event, Placement, Refusal, Remark, Reservation};
use journal::record::Counters;
use model::{FunctionKey, FunctionName, InstanceId, Version};
use rand::SeedableRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::counts::Why;
use super::links::{NewInstance, Order};
use super::*;
use crate::auth::Policy;
use crate::auth::keys::{Keys, Secret};
use crate::auth::origin::Hosts;
use crate::budget::Payer;
use crate::lambda::Home;
use crate::lanes::{Image, Route, Standing};
use crate::scribe;

type Rule = dyn FnMut(Time, Event, &mut Vec<Action>);

/// Answers every event with what its rule says.
pub(super) struct Fake {
    rule: Box<Rule>,
}

impl Machine for Fake {
    fn handle(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        (self.rule)(now, event, actions);
    }

    fn next_wake(&self) -> Option<Time> {
        None
    }

    fn wake(&mut self, _: Time, _: &mut Vec<Action>) {}

    fn is_drained(&self) -> bool {
        true
    }

    fn is_warm(&self, function: FunctionKey) -> bool {
        function != COLD
    }

    fn counters(&self) -> Vec<Counters> {
        Vec::new()
    }
}

/// The function that never has its warm reserve.
const COLD: FunctionKey = FunctionKey(99);

/// What leaves a lane.
pub(super) struct Outside {
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) other_lane: mpsc::Receiver<Traffic>,
    pub(super) results: mpsc::Receiver<Box<Rendering>>,
    pub(super) management: mpsc::Receiver<Moved>,
    pub(super) scribe: mpsc::Receiver<scribe::Order>,
}

const TOKEN: &str = "token";
const EXCESS_PER_SECOND: u32 = 200;

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9000))
}

pub(crate) fn front() -> Arc<Front> {
    let secret = |text: &str| Secret::new(text.to_owned());
    let keys = Keys { access_key_id: "id".to_owned(), secret_access_key: secret("secret"), token: secret(TOKEN) };
    Arc::new(Front {
        home: Home::default(),
        policy: Policy { hosts: Hosts::new(address(), std::iter::empty()) },
        keys,
        excess_per_second: EXCESS_PER_SECOND,
        hand_overs_per_second: HAND_OVERS_PER_SECOND_MAX,
        connections: crate::descriptors::Connections::with(crate::descriptors::WANTED),
    })
}

/// A lane whose queues to the outside hold so many.
pub(super) fn lane_with(
    which: lanes::Lane,
    queue: usize,
    rule: impl FnMut(Time, Event, &mut Vec<Action>) + 'static,
) -> (Rc<Lane<Fake>>, Outside) {
    let (orders, orders_out) = mpsc::channel(queue);
    let (other_lane, other_lane_out) = mpsc::channel(queue);
    let (results, results_out) = mpsc::channel(queue);
    let (management, management_out) = mpsc::channel(queue);
    let (scribe, scribe_out) = mpsc::channel(64);
    let pulses = Arc::new(crate::probe::Pulses::new(0));
    let records = Box::new(drop);
    let links = Links { orders, other_lane, results, management, scribe, records, seen_ns: Arc::default(), pulses };
    let machine = Fake { rule: Box::new(rule) };
    let lane = Rc::new(Lane::new(machine, which, links, (front(), ChaCha12Rng::seed_from_u64(7))).unwrap());
    let outside = Outside {
        orders: orders_out,
        other_lane: other_lane_out,
        results: results_out,
        management: management_out,
        scribe: scribe_out,
    };
    (lane, outside)
}

pub(crate) fn image(name: &str) -> Arc<Image> {
    Arc::new(Image {
        spec: serde_json::from_value(serde_json::json!({
            "name": name, "runtime": "python", "runtime_name": "python", "handler": "app.run", "timeout": "3s",
        }))
        .unwrap(),
        version: Version(1),
        code: PathBuf::new(),
        code_sha256: String::new(),
    })
}

pub(super) fn route(lane: &Lane<Fake>, name: &str, key: u64) {
    let (done, _) = tokio::sync::oneshot::channel();
    let route = routed(name, FunctionKey(key));
    let name: FunctionName = name.parse().unwrap();
    lane.with(|core| core.command(Command::Route { name, route: Some(route), done }));
}

/// The route of a guaranteed function.
pub(crate) fn routed(name: &str, key: FunctionKey) -> Route {
    Route { key, standing: Standing::Guaranteed, image: image(name) }
}

/// The same on stated terms.
pub(crate) fn routed_on(name: &str, key: FunctionKey, terms: &[(&str, &str)]) -> Route {
    let mut image = Image::clone(&image(name));
    image.spec.guarantee = model::Terms::from_pairs(terms.iter().copied()).unwrap();
    Route { key, standing: Standing::Guaranteed, image: Arc::new(image) }
}

/// Has the lane start an instance of a function, as its machine's rule says.
pub(super) fn install(lane: &Lane<Fake>, name: &str, key: u64) {
    install_beside(lane, (name, key), Vec::new());
}

fn install_beside(lane: &Lane<Fake>, (name, key): (&str, u64), beside: Vec<(FunctionKey, Reservation)>) {
    let deployment = Box::new(Deployment {
        function: FunctionKey(key),
        name: name.parse().unwrap(),
        tenant: model::Tenant::default(),
        version: Version(1),
        memory: model::Memory::default(),
        timeout: Duration::from_secs(3),
        reservation: None,
    });
    let (done, _) = tokio::sync::oneshot::channel();
    lane.with(|core| core.command(Command::Install { deployment, image: image(name), beside, done }));
}

/// Starts instance 1 when its function is installed.
pub(super) fn start_one(_: Time, event: Event, actions: &mut Vec<Action>) {
    if let Event::Install(deployment) = event {
        let on = Placement::RealTime { core: 0, priority: 60 };
        let (function, version) = (deployment.function, deployment.version);
        actions.push(Action::Start { instance: InstanceId(1), function, version, on });
    }
}

/// A client's connection to the lane.
pub(super) async fn client_of(lane: &Rc<Lane<Fake>>) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let manners = Manners::default();
    lane.connect(Moved { stream: stream.into_std().unwrap(), peer, unread: bytes::BytesMut::new(), manners });
    client
}

pub(crate) fn request(function: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /2015-03-31/functions/{function}/invocations HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n\
         Authorization: Bearer {TOKEN}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

/// Sends a request and reads what comes; `None` when the connection does not answer because it left the lane.
pub(super) async fn ask(client: &mut TcpStream, outside: &mut Outside, text: &str) -> Option<String> {
    client.write_all(text.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    tokio::select! {
        read = client.read(&mut answer) => {
            let count = read.unwrap_or(0);
            Some(String::from_utf8_lossy(&answer[..count]).into_owned())
        }
        Some(Traffic::Connection(_)) = outside.other_lane.recv() => None,
    }
}

pub(super) fn on_lane<F: Future<Output = ()>>(work: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { work().await });
}

fn counted(lane: &Lane<Fake>, what: What) -> u64 {
    lane.core.borrow().counts.of(what)
}

/// Requests of one kind on one connection after the other, until the lane has answered for all of them or sent the
/// connections away: how many it answered.
async fn answered(lane: &Rc<Lane<Fake>>, outside: &mut Outside, (function, headers, body): (&str, &str, &str)) -> u32 {
    let mut answered = 0;
    for _ in 0..20 {
        let mut client = client_of(lane).await;
        for _ in 0..50 {
            match ask(&mut client, outside, &request(function, headers, body)).await {
                Some(answer) if answer.is_empty() => break,
                Some(_) => answered += 1,
                None => break,
            }
        }
    }
    answered
}

#[test]
fn cheap_answers_are_charged_and_their_senders_sent_off() {
    for (headers, body) in [("X-Amz-Invocation-Type: DryRun\r\n", "{}"), ("", "not JSON")] {
        on_lane(async || {
            let (lane, mut outside) = lane_with(lanes::Lane::Guaranteed, 64, |_, _, _| {});
            route(&lane, "beat", 1);
            let begun = clock::now();
            let answered = answered(&lane, &mut outside, ("beat", headers, body)).await;
            let seconds = u32::try_from(clock::now().since(begun).as_secs()).unwrap() + 1;
            // One on each connection may come before its charge, the rest is budget.
            let most = 20 + EXCESS_AT_ONCE + EXCESS_PER_SECOND * seconds;
            assert!((1..=most).contains(&answered), "{headers:?}: {answered} answers");
            assert!(0 < counted(&lane, What::Moved(Why::OverBudget)));
        });
    }
}

#[test]
fn twelve_functions_that_flood_at_once_get_the_budget_of_one_node() {
    on_lane(async || {
        let (lane, _outside) = lane_with(lanes::Lane::Guaranteed, 64, |_, _, _| {});
        (0..12).for_each(|key| route(&lane, &format!("f{key}"), key));
        let mut core = lane.core.borrow_mut();
        let begun = clock::now();
        let mut spent: Vec<u32> = vec![0; 12];
        for _ in 0..10_000 {
            for key in 0..12 {
                spent[usize::try_from(key).unwrap()] += u32::from(core.spend_excess(Payer::Function(FunctionKey(key))).is_ok());
            }
        }
        let seconds = u32::try_from(clock::now().since(begun).as_secs()).unwrap() + 1;
        let sum: u32 = spent.iter().sum();
        assert!(sum <= EXCESS_AT_ONCE + EXCESS_PER_SECOND / 2 * seconds, "{spent:?}");
    });
}

/// Tells a best-effort lane what a function is guaranteed in the other one.
pub(super) fn mirror(lane: &Lane<Fake>, key: u64, terms: &[(&str, &str)]) {
    let reservation = Box::new(reservation(terms));
    lane.with(|core| core.command(Command::Mirror { function: FunctionKey(key), reservation }));
}

fn reservation(terms: &[(&str, &str)]) -> Reservation {
    let terms = model::Terms::from_pairs(terms.iter().copied()).unwrap().unwrap().resolve(Duration::from_secs(3)).unwrap();
    Reservation {
        terms,
        generation: 1,
        rate_class: None,
        level: model::Level::Soft,
        shards: Vec::new(),
        start_bound: Duration::ZERO,
        response_bound: Duration::from_secs(3),
        tolerance: Duration::ZERO,
    }
}

#[test]
fn who_hung_up_on_the_way_to_the_guaranteed_lane_starts_nothing() {
    on_lane(async || {
        let arrivals = Rc::new(Cell::new(0));
        let seen = Rc::clone(&arrivals);
        let (lane, _outside) = lane_with(lanes::Lane::Guaranteed, 64, move |_, event, _| {
            seen.set(seen.get() + u32::from(matches!(event, Event::Arrived { .. })));
        });
        route(&lane, "beat", 1);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let unread = || bytes::BytesMut::from(request("beat", "", "{}").as_bytes());
        let mut stays = Vec::new();
        for hangs_up in [true, false] {
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            if hangs_up {
                drop(client);
                stream.readable().await.unwrap();
            } else {
                stays.push(client);
            }
            lane.connect(Moved { stream: stream.into_std().unwrap(), peer, unread: unread(), manners: Manners::default() });
        }
        while arrivals.get() == 0 || counted(&lane, What::HungUp) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((arrivals.get(), counted(&lane, What::HungUp)), (1, 1));
    });
}

/// Installs `f` beside `n`; says what the lane's machine was told.
fn told_beside(end: fn(FunctionKey, Version) -> Action) -> Vec<&'static str> {
    let told = Rc::new(RefCell::new(Vec::new()));
    on_lane(async || {
        let noted = Rc::clone(&told);
        let (lane, _outside) = lane_with(lanes::Lane::Guaranteed, 64, move |_, event, actions| {
            if matches!(&event, Event::Revise(all) if all.iter().any(|(function, _)| *function == FunctionKey(1))) {
                noted.borrow_mut().push("revise n");
            }
            if let Event::Install(deployment) = event
                && deployment.function == FunctionKey(2)
            {
                noted.borrow_mut().push("install f");
                actions.push(end(deployment.function, deployment.version));
            }
        });
        install(&lane, "n", 1);
        let beside = vec![(FunctionKey(1), reservation(&[("rate", "1/s"), ("max_run_time", "1ms")]))];
        install_beside(&lane, ("f", 2), beside);
    });
    told.take()
}

#[test]
fn who_is_beside_a_new_version_is_revised_as_it_begins_to_serve_and_only_then() {
    assert_eq!(told_beside(|function, version| Action::Serving { function, version }), ["install f", "revise n"]);
    assert_eq!(told_beside(|function, version| Action::CannotServe { function, version }), ["install f"]);
}

/// Sends so many large requests at once, and says how many went to the other lane and what the others were answered.
async fn large_at_once(lane: &Rc<Lane<Fake>>, outside: &mut Outside, count: usize) -> (usize, Vec<String>) {
    let text = request("beat", "", &format!("\"{}\"", "x".repeat(100_000)));
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let (mut client, text) = (client_of(lane).await, text.clone());
        clients.spawn_local(async move {
            client.write_all(text.as_bytes()).await.unwrap();
            let mut answer = vec![0; 4096];
            let count = client.read(&mut answer).await.unwrap_or(0);
            String::from_utf8_lossy(&answer[..count]).into_owned()
        });
    }
    let (mut forwarded, mut answers) = (Vec::new(), Vec::new());
    while forwarded.len() + answers.len() < count {
        tokio::select! {
            Some(Traffic::Forwarded(waiting)) = outside.other_lane.recv() => forwarded.push(waiting),
            Some(answer) = clients.join_next() => answers.push(answer.unwrap()),
        }
    }
    (forwarded.len(), answers)
}

#[test]
fn every_large_request_that_conforms_goes_to_the_guaranteed_lane_and_the_rest_within_a_budget() {
    on_lane(async || {
        let (lane, mut outside) = lane_with(lanes::Lane::BestEffort, 64, refuse_all);
        route(&lane, "beat", 1);
        mirror(&lane, 1, &[("rate", "1/min"), ("burst", "10"), ("overflow", "reject")]);
        assert_eq!(large_at_once(&lane, &mut outside, 10).await.0, 10);
        let begun = clock::now();
        let (forwarded, answers) = large_at_once(&lane, &mut outside, 20).await;
        let seconds = usize::try_from(clock::now().since(begun).as_secs()).unwrap() + 1;
        let most = (EXCESS_AT_ONCE + EXCESS_PER_SECOND / 2) as usize * seconds;
        assert!(forwarded <= most, "{forwarded}");
        assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 429")), "{answers:?}");
    });
}

/// Refuses whatever arrives.
#[expect(clippy::needless_pass_by_value, reason = "a machine is given its events")]
pub(super) fn refuse_all(_: Time, event: Event, actions: &mut Vec<Action>) {
    if let Event::Arrived { id, .. } = event {
        actions.push(Action::Refuse { id, refusal: Refusal::Draining });
    }
}

#[test]
fn where_excess_waits_for_slots_it_waits_for_the_guaranteed_lane_too() {
    on_lane(async || {
        let (lane, mut outside) = lane_with(lanes::Lane::BestEffort, 64, refuse_all);
        route(&lane, "beat", 1);
        mirror(&lane, 1, &[("rate", "1/min"), ("overflow", "queue"), ("queue_limit", "16")]);
        let many = 12 + EXCESS_AT_ONCE as usize;
        assert_eq!(large_at_once(&lane, &mut outside, many).await, (many, Vec::new()));
        assert!(lane.core.borrow().lines.is_empty());
    });
}

#[test]
fn what_finds_its_line_full_or_its_deadline_over_is_told_so() {
    for (further, status) in [(("queue_limit", "1"), "HTTP/1.1 429"), (("deadline", "4ms"), "HTTP/1.1 408")] {
        on_lane(async || {
            let (lane, mut outside) = lane_with(lanes::Lane::BestEffort, 64, refuse_all);
            route(&lane, "beat", 1);
            mirror(&lane, 1, &[("rate", "1/min"), ("overflow", "queue"), ("max_run_time", "1ms"), further]);
            let (_, answers) = large_at_once(&lane, &mut outside, 40).await;
            assert!(!answers.is_empty() && answers.iter().all(|answer| answer.starts_with(status)), "{answers:?}");
        });
    }
}

#[test]
fn input_for_leases_is_paid_for_before_it_reaches_the_guaranteed_lane() {
    on_lane(async || {
        let (lane, mut outside) = lane_with(lanes::Lane::BestEffort, 256, refuse_all);
        let text = request("beat", "", "5").replace("/2015-03-31/functions/beat/invocations", "/v1/leases/7");
        let begun = clock::now();
        let mut clients = Vec::new();
        for _ in 0..100 {
            let mut client = client_of(&lane).await;
            client.write_all(text.as_bytes()).await.unwrap();
            clients.push(client);
        }
        let (mut moved, mut refused) = (0, 0);
        let mut ends: JoinSet<String> = JoinSet::new();
        for mut client in clients {
            ends.spawn_local(async move {
                let mut answer = vec![0; 512];
                let count = client.read(&mut answer).await.unwrap_or(0);
                String::from_utf8_lossy(&answer[..count]).into_owned()
            });
        }
        while moved + refused < 100 {
            tokio::select! {
                Some(Traffic::Connection(connection)) = outside.other_lane.recv() => {
                    moved += 1;
                    drop(connection);
                }
                Some(answer) = ends.join_next() => refused += usize::from(answer.unwrap().starts_with("HTTP/1.1 503")),
            }
        }
        let seconds = usize::try_from(clock::now().since(begun).as_secs()).unwrap() + 1;
        assert!(0 < moved && moved <= (EXCESS_AT_ONCE + EXCESS_PER_SECOND / 2) as usize * seconds, "{moved}");
        assert!(0 < refused, "no more than some wait");
    });
}

#[test]
fn a_stranger_takes_nothing_of_a_functions_way_back() {
    on_lane(async || {
        let (lane, mut outside) = lane_with(lanes::Lane::BestEffort, 64, |_, _, _| {});
        route(&lane, "beat", 1);
        let stranger = request("beat", "", "{}").replace(TOKEN, "guessed");
        for _ in 0..EXCESS_AT_ONCE {
            let mut client = client_of(&lane).await;
            let answer = ask(&mut client, &mut outside, &stranger).await.expect("a stranger is answered where it is");
            assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        }
        let mut client = client_of(&lane).await;
        assert_eq!(ask(&mut client, &mut outside, &request("beat", "", "{}")).await, None, "it went to the other lane");
    });
}

#[test]
fn a_connection_that_finds_no_room_elsewhere_is_told_so() {
    on_lane(async || {
        let (lane, mut outside) = lane_with(lanes::Lane::Guaranteed, 1, |_, _, _| {});
        let mut first = client_of(&lane).await;
        assert_eq!(ask(&mut first, &mut outside, &request("unknown", "", "{}")).await, None);
        let (mut kept, mut told) = (client_of(&lane).await, client_of(&lane).await);
        kept.write_all(request("unknown", "", "{}").as_bytes()).await.unwrap();
        told.write_all(request("unknown", "", "{}").as_bytes()).await.unwrap();
        // One of the two found room, whichever came first; the other hears why not.
        let (mut a, mut b) = ([0; 512], [0; 512]);
        let answer = tokio::select! {
            count = kept.read(&mut a) => a[..count.unwrap()].to_vec(),
            count = told.read(&mut b) => b[..count.unwrap()].to_vec(),
        };
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
        assert_eq!([What::RefusedBusy, What::Moved(Why::BestEffortFunction)].map(|what| counted(&lane, what)), [1, 2]);
    });
}

#[test]
fn where_a_lane_is_full_the_silent_give_way_and_nobody_else() {
    on_lane(async || {
        let (mut lane, _outside) = lane_with(lanes::Lane::Guaranteed, 64, |_, _, _| {});
        let mut front = Arc::into_inner(front()).unwrap();
        front.connections.lane = 2;
        Rc::get_mut(&mut lane).unwrap().front = Arc::new(front);
        let (mut first, second) = (client_of(&lane).await, client_of(&lane).await);
        let mut refused = client_of(&lane).await;
        let mut answer = String::new();
        refused.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "nobody has been silent long: {answer}");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(2)).await;
        tokio::time::resume();
        let third = client_of(&lane).await;
        assert_eq!(first.read(&mut [0; 1]).await.unwrap_or(0), 0, "it was silent longest");
        assert_eq!([What::RefusedBusy, What::EvictedSilent].map(|what| counted(&lane, what)), [1, 1]);
        drop((second, third));
    });
}

/// Asks of an instance that are granted, out of many.
fn granted(lane: &Lane<Fake>) -> u32 {
    (0..1_000).map(|_| lane.with(|core| u32::from(core.asks(InstanceId(1)).is_ok()))).sum()
}

#[test]
fn an_instance_that_asks_without_end_is_killed_and_its_log_says_so() {
    on_lane(async || {
        let (lane, mut outside) = lane_with(lanes::Lane::Guaranteed, 64, start_one);
        install(&lane, "greedy", 1);
        assert!(matches!(outside.orders.try_recv(), Ok(Order::Start(NewInstance { instance: InstanceId(1), .. }))));
        assert_eq!(granted(&lane), ration::ASKS_PER_START);
        let Ok(scribe::Order::Note { text, .. }) = outside.scribe.try_recv() else { panic!("its log says nothing") };
        assert!(text.contains("may not ask for more"), "{text}");
        assert!(outside.scribe.try_recv().is_err(), "it is told once");
    });
}

#[test]
fn why_the_machine_has_an_instance_killed_stands_in_its_functions_log() {
    on_lane(async || {
        let within = Duration::from_secs(5);
        let (lane, mut outside) = lane_with(lanes::Lane::BestEffort, 64, move |now, event, actions| {
            if matches!(event, Event::Drain) {
                actions.push(Action::Tell { instance: InstanceId(1), what: Remark::NeverAsked { within } });
            } else {
                start_one(now, event, actions);
            }
        });
        install(&lane, "idler", 1);
        lane.with(|core| core.event(Event::Drain));
        let Ok(scribe::Order::Note { text, .. }) = outside.scribe.try_recv() else { panic!("its log says nothing") };
        assert!(text.starts_with("killed: ") && text.contains("did not ask for the next one within 5s"), "{text}");
    });
}

#[test]
fn an_instance_that_is_given_up_before_its_turn_is_not_started() {
    on_lane(async || {
        let (lane, mut outside) = lane_with(lanes::Lane::Guaranteed, 64, |now, event, actions| {
            if matches!(event, Event::Drain) {
                actions.push(Action::Kill { instance: InstanceId(1) });
            } else {
                start_one(now, event, actions);
            }
        });
        install(&lane, "late", 1);
        let Ok(Order::Start(start)) = outside.orders.try_recv() else { panic!("no start is ordered") };
        assert!(start.is_wanted());
        lane.with(|core| core.event(Event::Drain));
        assert!(!start.is_wanted());
    });
}

#[test]
fn an_instance_of_the_other_lane_takes_nothing_that_is_guaranteed() {
    on_lane(async || {
        let (lane, _outside) = lane_with(lanes::Lane::BestEffort, 64, start_one);
        install(&lane, "greedy", 1);
        assert_eq!(granted(&lane), 1_000);
    });
}

#[test]
fn a_request_for_the_management_leaves_with_its_connection() {
    on_lane(async || {
        let (lane, mut outside) = lane_with(lanes::Lane::Guaranteed, 64, |_, _, _| {});
        let mut client = client_of(&lane).await;
        client.write_all(b"GET /v1/functions HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n\r\n").await.unwrap();
        let moved = outside.management.recv().await.unwrap();
        assert!(moved.unread.starts_with(b"GET /v1/functions"));
        assert_eq!([What::ToManagement, What::Request].map(|what| counted(&lane, what)), [1, 1]);
    });
}

#[test]
fn what_a_connection_comes_to_is_counted() {
    on_lane(async || {
        let (lane, mut outside) = lane_with(lanes::Lane::Guaranteed, 64, |_, _, _| {});
        route(&lane, "beat", 1);
        let mut long = client_of(&lane).await;
        assert_eq!(ask(&mut long, &mut outside, &request("beat", "", &"1".repeat(70_000))).await, None);
        assert_eq!(counted(&lane, What::Moved(Why::LongBody)), 1);
        let mut odd = client_of(&lane).await;
        assert!(ask(&mut odd, &mut outside, "no request\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 400"));
        assert_eq!([What::CutShort, What::Request].map(|what| counted(&lane, what)), [1, 1]);
    });
}

#[test]
fn who_gave_up_waiting_for_a_warm_reserve_is_forgotten() {
    on_lane(async || {
        let (lane, _outside) = lane_with(lanes::Lane::Guaranteed, 64, |_, _, _| {});
        install(&lane, "cold", COLD.0);
        let wait = || {
            let (done, waits) = tokio::sync::oneshot::channel();
            lane.with(|core| core.command(Command::Warm { function: COLD, done }));
            waits
        };
        (0..10).for_each(|_| drop(wait()));
        let _waits = wait();
        assert_eq!(lane.core.borrow().warming.len(), 1);
    });
}

/// A lane with instance 1, whose program has ended; the second notes whether the machine was told so.
fn with_a_dead_instance() -> (Rc<Lane<Fake>>, Rc<RefCell<Vec<Event>>>) {
    let told = Rc::new(RefCell::new(Vec::new()));
    let noted = Rc::clone(&told);
    let (lane, _outside) = lane_with(lanes::Lane::BestEffort, 64, move |_, event, actions| {
        if let Event::Install(deployment) = event {
            let (function, version) = (deployment.function, deployment.version);
            actions.push(Action::Start { instance: InstanceId(1), function, version, on: Placement::BestEffort });
        } else {
            noted.borrow_mut().push(event);
        }
    });
    install(&lane, "dead", 1);
    let mut program = std::process::Command::new("true").spawn().unwrap();
    let running = Arc::new(crate::instance::Running::of_program(rustix::process::Pid::from_child(&program)));
    program.wait().unwrap();
    assert!(lane.with(|core| core.started(InstanceId(1), &running, clock::now())));
    (lane, told)
}

/// Opens a connection of the instance to its Runtime API.
async fn api_connection(lane: &Lane<Fake>) -> runtime::api::ConnectionId {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    lane.with(|core| core.connected(InstanceId(1), paced::Shared::new(stream))).unwrap()
}

#[test]
fn a_program_that_ends_is_noticed_when_its_last_connection_closes_while_it_waits() {
    on_lane(async || {
        let (lane, told) = with_a_dead_instance();
        let close = |connection| lane.with(|core| core.disconnected(InstanceId(1), connection));
        close(api_connection(&lane).await);
        assert!(told.borrow().is_empty(), "a start that fails says itself why");
        lane.with(|core| core.instances.get_mut(&InstanceId(1)).unwrap().settle());
        let (first, last) = (api_connection(&lane).await, api_connection(&lane).await);
        close(first);
        assert!(told.borrow().is_empty(), "it has a connection left");
        close(last);
        assert_eq!(told.take(), [Event::Dying { instance: InstanceId(1) }]);
        assert!(lane.core.borrow().instances.contains_key(&InstanceId(1)), "it is there until its death is told");
    });
}

#[test]
fn whether_programs_end_is_looked_at_within_a_budget() {
    on_lane(async || {
        let (lane, told) = with_a_dead_instance();
        lane.with(|core| core.instances.get_mut(&InstanceId(1)).unwrap().settle());
        let begun = clock::now();
        for _ in 0..1_000 {
            let connection = api_connection(&lane).await;
            lane.with(|core| core.disconnected(InstanceId(1), connection));
        }
        let seconds = u32::try_from(clock::now().since(begun).as_secs()).unwrap() + 1;
        let most = idle::LOOKS_AT_ONCE + idle::LOOKS_PER_SECOND * seconds;
        assert!((1..=most as usize).contains(&told.borrow().len()), "{} looks", told.borrow().len());
    });
}
