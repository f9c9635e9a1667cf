//! The door on real connections, with lanes that only tell what they are given.

use model::FunctionKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::lane::counts::Why;
use crate::lane::tests::{front, request, routed, routed_on};

/// A running door, and what comes out of it.
struct World {
    door: Rc<Door>,
    listener: Listener,
    address: SocketAddr,
    guaranteed: mpsc::Receiver<Traffic>,
    best_effort: mpsc::Receiver<Traffic>,
    management: mpsc::Receiver<Moved>,
    tasks: JoinSet<()>,
}

/// Where connections go, and what comes out there.
type Outside = (mpsc::Receiver<Traffic>, mpsc::Receiver<Traffic>, mpsc::Receiver<Moved>);

fn exits() -> (Exits, Outside) {
    let ((to_guaranteed, guaranteed), (to_best_effort, best_effort), (to_management, management)) =
        (mpsc::channel(4_096), mpsc::channel(4_096), mpsc::channel(4_096));
    let exits = Exits { guaranteed: to_guaranteed, best_effort: to_best_effort, management: to_management };
    (exits, (guaranteed, best_effort, management))
}

impl World {
    /// Its guaranteed functions are numbered from 1 and named by their numbers.
    async fn new(functions: u64, stage: usize) -> Self {
        let mut front = Arc::into_inner(front()).unwrap();
        front.connections.stage = stage;
        let (exits, (guaranteed, best_effort, management)) = exits();
        let door = Rc::new(Door::new(exits, Arc::new(front), Classes::Ordinary));
        for key in 1..=functions {
            door.routed(name(key).parse().unwrap(), Some(routed(&name(key), FunctionKey(key))));
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = runtime::sys::watch(OwnedFd::from(listener)).unwrap();
        Self { door, listener, address, guaranteed, best_effort, management, tasks: JoinSet::new() }
    }

    /// A client that sends this, once the door has looked at it.
    async fn client(&mut self, bytes: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(bytes.as_bytes()).await.unwrap();
        let first = accept(Some(&self.listener)).await.unwrap();
        take_in(&self.door, &mut self.tasks, first);
        client
    }

    fn counted(&self, what: What) -> u64 {
        self.door.counts.borrow().of(what)
    }
}

fn name(key: u64) -> String {
    format!("function-{key}")
}

fn unread(traffic: Option<Traffic>) -> String {
    let Some(Traffic::New(moved)) = traffic else { panic!("no connection came") };
    String::from_utf8(moved.unread.to_vec()).unwrap()
}

fn local<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, work)
}

#[test]
fn a_first_request_goes_whole_to_where_it_belongs() {
    local(async {
        let mut world = World::new(1, 8).await;
        let whole = request(&name(1), "", "{\"a\":1}");
        let (begin, end) = whole.split_at(whole.len() - 3);
        let mut client = world.client(begin).await;
        let other = world.client(&request("other", "", "{}")).await;
        assert_eq!(unread(world.best_effort.recv().await), request("other", "", "{}"));
        assert!(world.guaranteed.try_recv().is_err(), "its body is not there yet");
        client.write_all(end.as_bytes()).await.unwrap();
        assert_eq!(unread(world.guaranteed.recv().await), whole);
        let page = world.client("GET /v1/node HTTP/1.1\r\nHost: localhost:9000\r\n\r\n").await;
        assert!(world.management.recv().await.is_some());
        let what = [What::Moved(Why::BestEffortFunction), What::Moved(Why::Guaranteed), What::ToManagement];
        assert_eq!(what.map(|what| world.counted(what)), [1, 1, 1]);
        assert_eq!(world.door.usage().waiting, 0);
        drop((client, other, page));
    });
}

#[test]
fn a_stranger_takes_nothing_of_a_functions_hand_overs() {
    local(async {
        let mut world = World::new(1, 8).await;
        let whole = request(&name(1), "", "{}");
        let stranger = whole.replace("Bearer token", "Bearer guess");
        assert_ne!(whole, stranger);
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(world.client(&stranger).await);
            unread(world.best_effort.recv().await);
        }
        for _ in 0..HAND_OVERS_AT_ONCE {
            clients.push(world.client(&whole).await);
            unread(world.guaranteed.recv().await);
        }
        assert_eq!(world.counted(What::Moved(Why::NotLetIn)), 20);
    });
}

#[test]
fn a_flood_of_one_function_leaves_another_its_hand_overs_and_goes_on_as_it_can() {
    local(async {
        let mut world = World::new(2, 8).await;
        let mut clients = Vec::new();
        while world.counted(What::Moved(Why::OverBudget)) == 0 {
            clients.push(world.client(&request(&name(1), "", "{}")).await);
        }
        // Its line is full now.
        let moved = usize::try_from(world.counted(What::Moved(Why::Guaranteed))).unwrap();
        clients.push(world.client(&request(&name(2), "", "{}")).await);
        let came = async {
            let mut before = 0;
            while unread(world.guaranteed.recv().await) != request(&name(2), "", "{}") {
                before += 1;
            }
            before
        };
        let before = came.await;
        assert!(
            before < moved + LINE_MAX,
            "{before} connections of the flood went before the other function's, {moved} of them before it came"
        );
        let moved = async { unread(world.best_effort.recv().await) };
        assert_eq!(moved.await, request(&name(1), "", "{}"), "what finds the line full goes on as it can");
    });
}

#[test]
fn bursts_of_functions_whose_excess_waits_go_whole_to_the_guaranteed_lane_and_in_order() {
    local(async {
        let mut world = World::new(0, 8).await;
        for key in 1..=4 {
            let route = routed_on(&name(key), FunctionKey(key), &[("rate", "5/s"), ("overflow", "queue")]);
            world.door.routed(name(key).parse().unwrap(), Some(route));
        }
        let mut clients = Vec::new();
        for number in 0..200 {
            clients.push(world.client(&request(&name(number % 4 + 1), "", &number.to_string())).await);
        }
        let mut came: [Vec<u64>; 4] = Default::default();
        for _ in 0..200 {
            let request = unread(world.guaranteed.recv().await);
            let number: u64 = request.rsplit("\r\n").next().unwrap().parse().unwrap();
            came[usize::try_from(number % 4).unwrap()].push(number);
        }
        assert!(came.iter().all(|numbers| numbers.len() == 50 && numbers.is_sorted()), "{came:?}");
        assert!(world.best_effort.try_recv().is_err());
    });
}

#[test]
fn a_line_is_as_long_as_its_queue_but_no_longer_than_a_second_or_a_deadline() {
    let longest = |terms: &[(&str, &str)]| {
        let queue = Line::of(&routed_on("f", FunctionKey(1), terms));
        Line { queue, ..Line::default() }.longest(60)
    };
    let rate = ("rate", "5/s");
    assert_eq!(longest(&[rate]), LINE_MAX);
    assert_eq!(longest(&[rate, ("overflow", "reject")]), LINE_MAX);
    assert_eq!(longest(&[rate, ("overflow", "queue"), ("queue_limit", "50")]), 50);
    assert_eq!(longest(&[rate, ("overflow", "queue"), ("queue_limit", "500")]), 60);
    assert_eq!(longest(&[rate, ("overflow", "queue"), ("queue_limit", "5")]), LINE_MAX);
    assert_eq!(longest(&[rate, ("overflow", "queue"), ("deadline", "2s")]), 60);
    assert_eq!(longest(&[rate, ("overflow", "queue"), ("deadline", "800ms")]), 48);
}

#[test]
fn who_hangs_up_in_a_line_costs_no_hand_over_and_leaves_its_place() {
    local(async {
        let mut world = World::new(1, 8).await;
        let whole = request(&name(1), "", "{}");
        let (payer, mut clients) = (Payer::Function(FunctionKey(1)), Vec::new());
        let line = world.door.lines.borrow().get(&payer).unwrap().turn.clone();
        let first = line.lock().await;
        // One of them has sent more than its request.
        for number in 0..10 {
            clients.push(world.client(&whole.repeat(1 + usize::from(number == 4))).await);
        }
        while world.door.room.borrow().taken_by(&payer) < 10 {
            tokio::task::yield_now().await;
        }
        let stays = clients.pop();
        drop(clients);
        while world.counted(What::HungUp) < 9 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.door.room.borrow().taken_by(&payer), 1);
        drop(first);
        assert_eq!(unread(world.guaranteed.recv().await), whole);
        assert_eq!(world.counted(What::Moved(Why::Guaranteed)), 1);
        drop(stays);
    });
}

#[test]
fn those_that_send_nothing_or_never_end_give_way_to_whoever_sends() {
    local(async {
        let mut world = World::new(1, 4).await;
        let whole = request(&name(1), "", "{}");
        let mut clients = Vec::new();
        for half in ["", "", "", &whole[..20]].iter().cycle().take(100) {
            clients.push(world.client(half).await);
            tokio::task::yield_now().await;
        }
        clients.push(world.client(&whole).await);
        assert_eq!(unread(world.guaranteed.recv().await), whole);
        assert!(world.door.usage().waiting <= 8);
        assert!((71..=72).contains(&world.counted(What::EvictedSilent)), "{}", world.counted(What::EvictedSilent));
        assert!(0 < world.counted(What::EvictedBegun));
        // Whoever had to leave sees its connection end.
        assert_eq!(clients[0].read(&mut [0; 1]).await.unwrap_or(0), 0);
    });
}

#[test]
fn who_is_let_in_and_sends_its_body_is_not_pushed_out_by_half_heads() {
    local(async {
        let mut world = World::new(1, 2).await;
        let whole = request(&name(1), "", "{\"a\":1}");
        let (begin, end) = whole.split_at(whole.len() - 3);
        let mut sender = world.client(begin).await;
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(world.client(&whole[..20]).await);
            tokio::task::yield_now().await;
        }
        assert_eq!(world.counted(What::EvictedBegun), 8);
        sender.write_all(end.as_bytes()).await.unwrap();
        assert_eq!(unread(world.guaranteed.recv().await), whole);
    });
}

#[test]
fn nonsense_is_answered_at_the_door() {
    local(async {
        let mut world = World::new(1, 4).await;
        let mut client = world.client("GET nonsense HTTP/1.1\r\n\r\n").await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert_eq!(world.counted(What::CutShort), 1);
    });
}

#[test]
fn empty_lines_without_end_are_refused_at_the_door() {
    local(async {
        let mut world = World::new(1, 4).await;
        let mut client = world.client("\r\n").await;
        // Whether all of it can be written is the door's choice.
        let _ = client.write_all("\r\n".repeat(10_000).as_bytes()).await;
        let mut answer = String::new();
        // An answer beside unread input may end in a reset.
        let _ = client.read_to_string(&mut answer).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert_eq!(world.counted(What::CutShort), 1);
    });
}

#[test]
fn input_for_a_lease_goes_to_the_guaranteed_lane_from_who_holds_the_token_alone() {
    local(async {
        let mut world = World::new(0, 4).await;
        let whole = request("x", "", "5").replace("/2015-03-31/functions/x/invocations", "/v1/leases/7");
        let (begin, end) = whole.split_at(whole.len() - 1);
        let mut client = world.client(begin).await;
        assert!(world.guaranteed.try_recv().is_err(), "its body is not there yet");
        client.write_all(end.as_bytes()).await.unwrap();
        let clients = [client, world.client(&whole.replace("Bearer token", "Bearer guess")).await];
        assert_eq!(unread(world.guaranteed.recv().await), whole);
        assert!(unread(world.best_effort.recv().await).contains("guess"));
        drop(clients);
    });
}

#[test]
fn the_door_leaves_real_time_class_with_its_allowance_and_comes_back() {
    if let refused @ sched::RealTime::Refused { .. } = sched::probe_fifo(PRIORITY) {
        println!("skipped: {refused:?}");
        return;
    }
    local(async {
        let (exits, _outside) = exits();
        let door = Door::new(exits, front(), Classes::RealTime);
        let class = || sched::class_of(sched::current_thread()).unwrap();
        door.look();
        assert_eq!(class(), Some(sched::Class::Fifo { priority: PRIORITY }));
        let until = clock::thread_cpu() + WITHIN_A_SECOND;
        while clock::thread_cpu() < until && class() != Some(door.ordinary) {
            door.step(0);
        }
        assert_eq!(class(), Some(door.ordinary), "its allowance is used up");
        assert!(clock::thread_cpu() < until);
        door.resumes().await;
        door.look();
        assert_eq!(class(), Some(sched::Class::Fifo { priority: PRIORITY }));
    });
}
