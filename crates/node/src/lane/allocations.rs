//! What the guaranteed lane allocates for an invocation: a number that no load changes.
//!
//! The lane's own loop runs on the thread that is counted. Clients and the function's runtime are on other threads, at the far
//! ends of real connections; each stage is run twice, and the difference is what the additional invocations took.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command as Program};
use std::time::Duration;

use allocation_counter::AllocationInfo;
use engine::port::{Deployment, Reservation, Shard};
use model::{FunctionKey, Level, Version};
use runtime::launcher::{CpuMeter, Handle};
use runtime::sys::process::Pidfd;
use rustix::process::Pid;
use tokio::sync::oneshot;

use super::links::{NewInstance, Order};
use super::tests::{front, image, request};
use super::*;
use crate::front_cost::{Ends, the_lane};
use crate::instance::Running;
use crate::lanes::{Installed, Route, Standing};

/// Allocations that one invocation takes of the lane's thread, and their bytes. Of what waits, the nodes of ordered maps: how full
/// they are depends on ids that are drawn, so that the bytes have room for that.
const COUNT_MAX: u64 = 45;
const BYTES_MAX: u64 = 7_000;
const LONG: Duration = Duration::from_secs(20);

/// The circumstances of the invocations.
#[derive(Clone, Copy, Debug)]
struct Stage {
    functions: u64,
    /// Clients that invoke at the same time: all but one of their invocations wait.
    clients: usize,
    rounds: usize,
}

fn deployment(key: u64) -> Deployment {
    let image = image(&name(key));
    let stated = [("rate", "10000/s"), ("overflow", "queue"), ("max_run_time", "5s"), ("deadline", "20s")];
    let terms = model::Terms::from_pairs(stated).unwrap().unwrap();
    let shards = vec![Shard { core: 0, priority: 1, instances: 1, warm: 1 }];
    Deployment {
        function: FunctionKey(key),
        name: image.spec.name.clone(),
        tenant: model::Tenant::default(),
        version: Version(1),
        memory: model::Memory::default(),
        timeout: LONG,
        reservation: Some(Reservation {
            terms: terms.resolve(LONG).unwrap(),
            generation: 1,
            rate_class: None,
            level: Level::Soft,
            shards,
            start_bound: LONG,
            response_bound: LONG,
            tolerance: LONG,
        }),
    }
}

fn name(key: u64) -> String {
    format!("function-{key}")
}

/// Stands for every instance's process.
pub(super) struct Stand(pub(super) Child);

impl Stand {
    pub(super) fn running(&self) -> Arc<Running> {
        let program = Pid::from_child(&self.0);
        let open = || Pidfd::open(program).unwrap();
        Arc::new(Running::new(Handle::new(open(), open()), program, CpuMeter::of(program), None))
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Installs function after function; gives the runtime's end of the instance of each.
fn install(
    ends: &mut Ends,
    stage: Stage,
    stand: &Stand,
    exits: &mut Vec<oneshot::Sender<runtime::launcher::Exit>>,
) -> Vec<TcpStream> {
    let mut runtimes = BTreeMap::new();
    for key in 0..stage.functions {
        let (done, mut installed) = oneshot::channel();
        let deployment = Box::new(deployment(key));
        ends.commands.blocking_send(Command::Install { deployment, image: image(&name(key)), beside: Vec::new(), done }).unwrap();
        while installed.try_recv() != Ok(Installed::Serving) {
            match ends.orders.blocking_recv().unwrap() {
                Order::Start(NewInstance { instance, .. }) => {
                    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                    let mut runtime = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    runtime.set_nodelay(true).unwrap();
                    runtime.write_all(NEXT.as_bytes()).unwrap();
                    runtimes.insert(instance, runtime);
                    listener.set_nonblocking(true).unwrap();
                    let (exited, exit) = oneshot::channel();
                    exits.push(exited);
                    let running = stand.running();
                    ends.news.blocking_send(News::Started { instance, running, listener, exit, began: clock::now() }).unwrap();
                }
                Order::Place { instance, on, .. } => {
                    ends.news.blocking_send(News::Placed { instance, on, threads: Vec::new() }).unwrap();
                    assert_eq!(installed.blocking_recv(), Ok(Installed::Serving));
                    break;
                }
            }
        }
        let route = Route { key: FunctionKey(key), standing: Standing::Guaranteed, image: image(&name(key)) };
        let (done, routed) = oneshot::channel();
        ends.commands.blocking_send(Command::Route { name: name(key).parse().unwrap(), route: Some(route), done }).unwrap();
        routed.blocking_recv().unwrap();
    }
    runtimes.into_values().collect()
}

const NEXT: &str = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: a\r\n\r\n";

/// One message whose body has a stated length; `None` at the end.
fn message(stream: &mut TcpStream, kept: &mut Vec<u8>) -> Option<String> {
    loop {
        let text = std::str::from_utf8(kept).unwrap();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |it| it.parse().unwrap());
            let whole = head.len() + 4 + length;
            if whole <= kept.len() {
                return Some(String::from_utf8(kept.drain(..whole).collect()).unwrap());
            }
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(count) => kept.extend_from_slice(&piece[..count]),
        }
    }
}

/// A runtime as our bootstraps are: a result and the question for the next invocation leave in one write.
fn runtime(mut stream: TcpStream) {
    let mut kept = Vec::new();
    while let Some(told) = message(&mut stream, &mut kept) {
        let id = told.lines().find_map(|line| line.strip_prefix("lambda-runtime-aws-request-id: "));
        let Some(id) = id else { continue };
        let path = format!("/2018-06-01/runtime/invocation/{id}/response");
        let answer = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}{NEXT}");
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Gives the connections back: what the lane does when they close is not what is counted.
fn clients((address, hand_over): (std::net::SocketAddr, &dyn Fn() -> io::Result<()>), stage: Stage) -> Vec<TcpStream> {
    let connect = |_| {
        let stream = TcpStream::connect(address).unwrap();
        hand_over().unwrap();
        stream
    };
    let mut clients: Vec<TcpStream> = (0..stage.clients).map(connect).collect();
    let request = request(&name(0), "", "{}");
    for _ in 0..stage.rounds {
        for client in &mut clients {
            client.write_all(request.as_bytes()).unwrap();
        }
        for client in &mut clients {
            let answer = message(client, &mut Vec::new()).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-takt-class: guaranteed"), "{answer}");
        }
    }
    clients
}

/// What the lane's thread allocated in all.
fn allocated(stage: Stage) -> AllocationInfo {
    let (start, mut ends) = the_lane((front(), None), Box::new(drop));
    let outside = std::thread::spawn(move || {
        let stand = Stand(Program::new("sleep").arg("1000").spawn().unwrap());
        let mut exits = Vec::new();
        let mut runtimes = install(&mut ends, stage, &stand, &mut exits);
        let first = runtimes.swap_remove(0);
        let serving = std::thread::spawn(move || runtime(first));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _clients = clients((address, &ends.door(&listener)), stage);
        drop(ends);
        serving.join().unwrap();
    });
    let info = allocation_counter::measure(|| run(start).unwrap());
    outside.join().unwrap();
    info
}

/// What one invocation takes: allocations and bytes.
fn per_invocation(stage: Stage) -> (u64, u64) {
    let (once, thrice) = (allocated(stage), allocated(Stage { rounds: 3 * stage.rounds, ..stage }));
    let more = (2 * stage.rounds * stage.clients) as u64;
    ((thrice.count_total - once.count_total) / more, (thrice.bytes_total - once.bytes_total) / more)
}

#[test]
fn an_invocation_allocates_the_same_whatever_waits_and_however_many_functions_there_are() {
    let alone = Stage { functions: 1, clients: 1, rounds: 200 };
    for stage in [alone, Stage { functions: 60, ..alone }, Stage { clients: 100, rounds: 16, ..alone }] {
        let (count, bytes) = per_invocation(stage);
        assert!((1..=COUNT_MAX).contains(&count) && bytes <= BYTES_MAX, "{stage:?}: {count} allocations, {bytes} bytes");
    }
}
