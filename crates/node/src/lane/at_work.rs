//! Instances at work on a lane driven by hand: what is ready when time is up, and results on their way to clients.

use std::process::Command as Program;
use std::time::Duration;

use engine::port::{Action, Allowance, Event, Placement};
use journal::record::Transfer;
use model::{CpuShare, End, FunctionKey, InstanceId, InvocationId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::allocations::Stand;
use super::links::Order;
use super::tests::{Fake, Outside, client_of, install, lane_with, on_lane, route, start_one};
use super::*;
use crate::invocation::{Ending, Outcome, Request};
use crate::lambda::invoke::{self, LogType};
use crate::lanes::Standing;

const ONE: InstanceId = InstanceId(1);
const RUN_TIME: Duration = Duration::from_millis(20);
const NEXT: &str = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: a\r\n\r\n";

/// A lane with an instance that asked for its first invocation, and the instance's end of its connection.
struct Work {
    lane: Rc<Lane<Fake>>,
    outside: Outside,
    runtime: TcpStream,
    /// What the machine was told.
    events: Rc<RefCell<Vec<Event>>>,
    _stand: Stand,
    _exit: oneshot::Sender<runtime::launcher::Exit>,
}

impl Work {
    async fn begin() -> Self {
        let events: Rc<RefCell<Vec<Event>>> = Rc::default();
        let told = Rc::clone(&events);
        let (lane, mut outside) = lane_with(lanes::Lane::Guaranteed, 1, move |now, event, actions| {
            told.borrow_mut().push(event.clone());
            if let Event::Arrived { id, .. } = event {
                let allowance = Allowance { run_time: RUN_TIME, cpu: CpuShare::FULL, until: now + Duration::from_secs(60) };
                actions.push(Action::Deliver { id, instance: ONE, allowance, conforming: Some(now) });
            } else {
                start_one(now, event, actions);
            }
        });
        install(&lane, "beat", 1);
        route(&lane, "beat", 1);
        outside.orders.try_recv().expect("its start is ordered");
        let stand = Stand(Program::new("sleep").arg("1000").spawn().unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut runtime = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (exited, exit) = oneshot::channel();
        let running = stand.running();
        until(|| !running.wants_its_core()).await; // it sleeps
        let started = News::Started { instance: ONE, running, listener, exit, began: clock::now() };
        news_of(&lane, started);
        serve_tasks(&lane);
        runtime.write_all(NEXT.as_bytes()).await.unwrap();
        let Some(Order::Place { on, .. }) = outside.orders.recv().await else { panic!("its class is ordered") };
        assert!(matches!(on, Placement::RealTime { .. }));
        news_of(&lane, News::Placed { instance: ONE, on, threads: Vec::new() });
        Self { lane, outside, runtime, events, _stand: stand, _exit: exited }
    }

    /// The runtime is handed the next invocation, perhaps behind the answer to its last result.
    async fn handed(&mut self) -> InvocationId {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.runtime.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
            let length = value("content-length: ").unwrap().parse().unwrap();
            self.runtime.read_exact(&mut vec![0; length]).await.unwrap();
            if let Some(id) = value("lambda-runtime-aws-request-id: ") {
                return id.parse().unwrap();
            }
        }
    }

    /// Sends a result, and looks at nothing that comes back.
    async fn answer(&mut self, id: InvocationId, body: &str) {
        let length = body.len();
        let head =
            format!("POST /2018-06-01/runtime/invocation/{id}/response HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        self.runtime.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    }

    /// Looks at an invocation whose time is up, so many times in a row.
    fn look(&self, id: InvocationId, times: usize) {
        for _ in 0..times {
            self.lane.with(|core| core.check_watch(clock::now() + 2 * RUN_TIME, id));
        }
    }

    fn overran(&self) -> bool {
        self.events.borrow().iter().any(|event| matches!(event, Event::Overran { .. }))
    }

    /// Waits until the machine is told how the invocation ended.
    async fn end(&self) -> End {
        let ended = |event: &Event| if let Event::Ended { end, .. } = event { Some(*end) } else { None };
        let found = || self.events.borrow().iter().find_map(ended);
        until(|| found().is_some()).await;
        found().unwrap()
    }
}

/// Runs the lane's tasks, as its loop does.
fn serve_tasks(lane: &Rc<Lane<Fake>>) {
    let lane = Rc::clone(lane);
    tokio::task::spawn_local(async move {
        loop {
            join(&lane).await;
        }
    });
}

fn request() -> String {
    tests::request("beat", "", "{}")
}

#[test]
fn a_result_that_is_there_when_time_is_up_counts() {
    on_lane(async || {
        let mut work = Work::begin().await;
        let mut client = client_of(&work.lane).await;
        client.write_all(request().as_bytes()).await.unwrap();
        let id = work.handed().await;
        work.answer(id, "[1]").await;
        work.look(id, 3);
        assert_eq!(work.end().await, End::Succeeded);
        assert!(!work.overran());
    });
}

#[test]
fn whoever_sends_no_result_gains_three_pauses_and_whoever_sends_nothing_none() {
    for (sent, looks) in [("", 2), ("POST /nowhere HTTP/1.1\r\n", 5)] {
        on_lane(async || {
            let mut work = Work::begin().await;
            let mut client = client_of(&work.lane).await;
            client.write_all(request().as_bytes()).await.unwrap();
            let id = work.handed().await;
            work.runtime.write_all(sent.as_bytes()).await.unwrap();
            work.look(id, looks - 1);
            assert!(!work.overran(), "{sent:?}");
            work.look(id, 1);
            assert!(work.overran(), "{sent:?}");
        });
    }
}

/// Asks by URL, and has the runtime answer with a result too large to be made an answer of here.
async fn ask_for_much(work: &mut Work) -> TcpStream {
    let mut client = client_of(&work.lane).await;
    let request = "GET /fn/beat/ HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nAuthorization: Bearer token\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let id = work.handed().await;
    work.answer(id, &format!("\"{}\"", "x".repeat(100_000))).await;
    work.runtime.write_all(NEXT.as_bytes()).await.unwrap();
    client
}

#[test]
fn large_results_reach_their_clients_though_the_other_lane_takes_nothing_else() {
    on_lane(async || {
        let mut work = Work::begin().await;
        let other_lane = work.lane.core.borrow().links.other_lane.clone();
        other_lane.try_send(Traffic::Abandoned(InvocationId::from_u128(1))).unwrap();
        // Their own queue holds one, too: the second waits for room.
        let clients = [ask_for_much(&mut work).await, ask_for_much(&mut work).await];
        for mut client in clients {
            work.outside.results.recv().await.expect("a result comes").make();
            let mut answer = vec![0; 64];
            client.read_exact(&mut answer).await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        }
    });
}

/// Hands the lane an invocation with an input of so many bytes.
fn submit(work: &Work, bytes: usize) -> (InvocationId, oneshot::Receiver<Outcome>) {
    let mut core = work.lane.core.borrow_mut();
    let request = Request {
        id: core.new_id(),
        function: FunctionKey(1),
        payload: vec![b'1'; bytes].into(),
        trace_id: None,
        client_context: None,
        log: LogType::None,
        deadline: None,
        arrived: clock::now(),
    };
    (request.id, core.submit(request, Standing::Guaranteed, None))
}

/// Nobody's turn comes for a long time.
fn use_up_turns(work: &Work) {
    let mut turns = work.lane.for_instances.as_ref().unwrap().slots.borrow_mut();
    for _ in 0..100_000 {
        turns.book(clock::now());
    }
}

/// Whether the lane has something long of an invocation in its hands.
fn is_with_lane(work: &Work, id: InvocationId) -> bool {
    let core = work.lane.core.borrow();
    let now = clock::now();
    core.transits.with_lane(id, now) < core.transits.with_lane(id, now + RUN_TIME)
}

/// Looks until the condition holds; gives up so late that only what never comes is given up.
async fn until(condition: impl Fn() -> bool) {
    let begun = clock::now();
    while !condition() {
        assert!(clock::now().since(begun) < Duration::from_secs(60), "it does not come");
        tokio::task::yield_now().await;
    }
}

/// How long the machine was told that the node had the last input and result.
fn told(work: &Work) -> Transfer {
    let transfer = |event: &Event| if let Event::Transferred { so_far, .. } = event { Some(*so_far) } else { None };
    work.events.borrow().iter().rev().find_map(transfer).unwrap()
}

#[test]
fn an_input_that_waits_for_its_turn_uses_no_run_time_and_moves_its_bounds() {
    on_lane(async || {
        let work = Work::begin().await;
        use_up_turns(&work);
        let (id, _client) = submit(&work, 200_000);
        until(|| is_with_lane(&work, id)).await;
        work.look(id, 5);
        assert!(!work.overran());
        work.lane.with(|core| core.wake(clock::now()));
        assert!(RUN_TIME < told(&work).input, "until its turn comes");
    });
}

#[test]
fn an_instance_that_does_not_read_its_input_does_so_on_its_own_time() {
    on_lane(async || {
        let work = Work::begin().await;
        let (id, _client) = submit(&work, 16 << 20);
        until(|| is_with_lane(&work, id)).await;
        until(|| !is_with_lane(&work, id)).await;
        work.look(id, 2);
        assert!(work.overran());
    });
}

#[test]
fn a_result_that_waits_for_its_turn_uses_no_run_time() {
    on_lane(async || {
        let mut work = Work::begin().await;
        use_up_turns(&work);
        let (id, _client) = submit(&work, 2);
        work.handed().await;
        work.answer(id, &"1".repeat(200_000)).await;
        until(|| is_with_lane(&work, id)).await;
        work.look(id, 5);
        assert!(!work.overran());
    });
}

#[test]
fn a_long_result_that_is_found_ends_the_pauses() {
    on_lane(async || {
        let mut work = Work::begin().await;
        use_up_turns(&work);
        let (id, _client) = submit(&work, 2);
        work.handed().await;
        let pauses = |work: &Work| work.lane.core.borrow().watches.pauses(id).unwrap();
        work.runtime.write_all(b"POST /").await.unwrap();
        work.look(id, 2);
        assert_eq!(pauses(&work), 1);
        let body = "1".repeat(200_000);
        let rest = format!(
            "2018-06-01/runtime/invocation/{id}/response HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        work.runtime.write_all(rest.as_bytes()).await.unwrap();
        until(|| is_with_lane(&work, id)).await;
        work.look(id, 1);
        assert_eq!(pauses(&work), 0, "whether it waits for its core is asked again");
    });
}

#[test]
fn long_ways_that_wait_for_nobody_are_told_before_the_end() {
    on_lane(async || {
        let mut work = Work::begin().await;
        let (id, client) = submit(&work, 1_000_000);
        work.handed().await;
        work.answer(id, &"1".repeat(1_000_000)).await;
        assert_eq!(work.end().await, End::Succeeded);
        assert!(!told(&work).input.is_zero() && !told(&work).result.is_zero(), "{:?}", told(&work));
        let outcome = client.await.unwrap();
        assert!(matches!(outcome.ending, Ending::Ran(invoke::Outcome::Succeeded(result)) if result.len() == 1_000_000));
        assert_eq!(work.lane.core.borrow().transits.with_lane(id, clock::now()), Duration::ZERO, "it is forgotten");
    });
}
