//! What invocations cost the guaranteed lane's thread on this machine, measured with the lane itself.
//!
//! A lane runs as it will run: real connections, its Runtime API, the engine, records, the signature and the hash and check of
//! the body. A client and a runtime made of a few lines are its far ends. At every record the lane's thread reads its own
//! CPU time; between two records of a stage lies one invocation.
//!
//! Requests are signed, bodies are made of the tokens that take longest to check, and the runtime asks in two steps.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use engine::port::{Deployment, Reservation, Shard};
use engine::reserved;
use hmac::{Hmac, KeyInit, Mac};
use journal::record::Record;
use model::{FunctionKey, Level, Version};
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use runtime::launcher::Exit;
use runtime::sys::{clock, sched};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use crate::auth::Policy;
use crate::auth::keys::{Keys, Secret};
use crate::auth::origin::Hosts;
use crate::calibrate::Classes;
use crate::front::{Front, today};
use crate::instance::Running;
use crate::lambda::Home;
use crate::lane::links::{Links, NewInstance, Order, RecordSink};
use crate::lane::message::{Command, Moved, News, Traffic};
use crate::lane::{self, Inbox, Start, ThreadPlacement};
use crate::lanes::{Image, Installed, Lane, Route, Standing};
use crate::probe;

/// Invocations of each stage after the first; those that wait for a budget take about 3 ms each.
const ROUNDS: usize = 40;
const CLASS_ROUNDS: u32 = 200;
const NAME: &str = "calibrate";
const LONG: Duration = Duration::from_secs(20);
/// The far ends give up when nothing comes for this long.
const SILENCE: Duration = Duration::from_secs(5);
/// No new connection is charged less: the difference that is measured holds the noise of both sides.
const ACCEPT_LEAST: Duration = Duration::from_micros(60);
/// What is looked at of a message for its head.
const HEAD_BYTES: usize = 1_536;
/// The largest body that the guaranteed lane reads itself.
const LONG_BYTES: usize = 64 << 10;

/// CPU time of the guaranteed lane's thread: means, and half as much again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// A signed invocation with a small request and a small result.
    pub invocation: Duration,
    /// Taking in and closing a connection, beside the first invocation on it.
    pub accept: Duration,
    /// Making one thread real-time for an invocation, and ordinary after it.
    pub thread: Duration,
    /// What 64 KiB of request cost beside that: read, hashed, checked, handed over. Not charged.
    pub long_request: Duration,
    /// What 64 KiB of result cost beside that. Not charged.
    pub long_result: Duration,
}

/// Measures with the lane on the first core and the function's runtime on the last.
pub(crate) fn measure(cores: &[u16], classes: Classes) -> io::Result<Costs> {
    let small = Stage { path: Path::Invoke, input: 2, output: 2, connection: Connection::Kept };
    let stages = [
        small, // caches and allocators become warm
        small,
        Stage { path: Path::Url, ..small },
        Stage { connection: Connection::New, ..small },
        Stage { input: LONG_BYTES, ..small },
        Stage { output: LONG_BYTES, ..small },
    ];
    let [_, invoke, url, accepted, long_request, long_result] = rehearse(stages, (cores, classes))?;
    let charged = |cost: Duration, beside: Duration| cost.saturating_sub(beside) * 3 / 2;
    Ok(Costs {
        invocation: charged(invoke.max(url), Duration::ZERO),
        accept: charged(accepted, invoke).max(ACCEPT_LEAST),
        thread: match classes {
            Classes::RealTime => charged(class_changes()?, Duration::ZERO),
            Classes::Ordinary => Duration::ZERO,
        },
        long_request: charged(long_request, invoke),
        long_result: charged(long_result, invoke),
    })
}

/// Making a thread that waits real-time and ordinary again, once each.
fn class_changes() -> io::Result<Duration> {
    let (tell, told) = sync_channel(1);
    let (end, ended) = sync_channel::<()>(0);
    thread::scope(|scope| {
        scope.spawn(move || {
            let own = tell.send(sched::current_thread());
            // It waits until nobody is left to tell it anything.
            own.map(|()| ended.recv())
        });
        let own = rustix::process::getpid();
        let threads = [told.recv().map_err(io::Error::other)?];
        let round = || sched::raise(own, &threads, 60).and_then(|()| sched::lower(own, &threads)).map_err(io::Error::other);
        round()?;
        let before = clock::thread_cpu();
        (0..CLASS_ROUNDS).try_for_each(|_| round())?;
        let cost = clock::thread_cpu().saturating_sub(before) / CLASS_ROUNDS;
        drop(end);
        Ok(cost)
    })
}

/// Invocations of one kind.
#[derive(Clone, Copy, Debug)]
struct Stage {
    path: Path,
    /// Bytes of the request's body and of the result.
    input: usize,
    output: usize,
    connection: Connection,
}

#[derive(Clone, Copy, Debug)]
enum Path {
    Invoke,
    Url,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Kept,
    /// One for every invocation.
    New,
}

/// The mean cost of an invocation in each stage.
fn rehearse<const N: usize>(stages: [Stage; N], (cores, classes): (&[u16], Classes)) -> io::Result<[Duration; N]> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = listener.local_addr()?;
    let keys = Keys {
        access_key_id: "TAKTCALIBRATE".to_owned(),
        secret_access_key: Secret::new("not-a-secret".to_owned()),
        token: Secret::new("not-a-token".to_owned()),
    };
    let front = Arc::new(Front {
        home: Home::default(),
        policy: Policy { hosts: Hosts::new(address, std::iter::empty()) },
        keys: keys.clone(),
        excess_per_second: 1_000,
        hand_overs_per_second: lane::HAND_OVERS_PER_SECOND_MAX,
        connections: crate::descriptors::Connections::with(crate::descriptors::WANTED),
    });
    // The lane's thread alone writes it; it is read after that thread has ended.
    let spent = Arc::new(Mutex::new(Vec::with_capacity(N * (ROUNDS + 1))));
    let placement = (classes == Classes::RealTime).then(|| ThreadPlacement { core: cores[0] });
    let at_records = Arc::clone(&spent);
    let records = Box::new(move |record| {
        if let Record::Invocation(_) = record {
            at_records.lock().unwrap_or_else(PoisonError::into_inner).push(clock::thread_cpu());
        }
    });
    let (start, ends) = the_lane((front, placement), records);
    let instance_core = *cores.last().expect("invariant: a machine has a core");
    thread::scope(|scope| {
        let lane = scope.spawn(|| lane::run(start));
        let (result_bytes, told) = sync_channel(1);
        let far_ends = scope.spawn(move || {
            let (ends, instance) = install(ends)?;
            thread::scope(|scope| {
                let runtime = scope.spawn(move || play_runtime(instance, (instance_core, classes), &told));
                let client = play_client(((address, &keys), &ends.door(&listener)), &stages, (&result_bytes, classes));
                drop(result_bytes);
                // The runtime may still read what the lane says to its last result. Where the client failed it may wait for an
                // invocation that never comes, until the lane ends.
                let ends = client.is_ok().then_some(ends);
                let runtime = runtime.join().map_err(panicked)?;
                drop(ends);
                runtime.and(client)
            })
        });
        far_ends.join().map_err(panicked)??;
        lane.join().map_err(panicked)?
    })?;
    let spent = spent.lock().unwrap_or_else(PoisonError::into_inner);
    let mut means = [Duration::ZERO; N];
    for (mean, stage) in means.iter_mut().zip(spent.chunks(ROUNDS + 1)) {
        if let ([first, .., last], true) = (stage, stage.len() == ROUNDS + 1) {
            let rounds = u32::try_from(ROUNDS).expect("invariant: rounds are few");
            *mean = last.saturating_sub(*first) / rounds;
        }
    }
    Ok(means)
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> io::Error {
    io::Error::other("a thread of the measurement panicked")
}

/// The far ends of the lane's queues.
pub(crate) struct Ends {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) news: mpsc::Sender<News>,
    pub(crate) orders: mpsc::Receiver<Order>,
    traffic: mpsc::Sender<Traffic>,
    exit: Option<oneshot::Sender<Exit>>,
}

impl Ends {
    /// Hands the lane each connection that was made to `listener`, as the door would: the next one, once it was made.
    pub(crate) fn door<'a>(&'a self, listener: &'a TcpListener) -> impl Fn() -> io::Result<()> {
        || {
            let (stream, peer) = listener.accept()?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let moved = Moved { stream, peer, unread: bytes::BytesMut::new(), manners: lane::Manners::default() };
            self.traffic.blocking_send(Traffic::New(moved)).map_err(|_| io::Error::other("the lane ended"))
        }
    }
}

/// A guaranteed lane on its own: what it hands to the other lane, the management and the scribe is dropped.
pub(crate) fn the_lane(
    (front, placement): (Arc<Front>, Option<ThreadPlacement>),
    records: RecordSink,
) -> (Start<reserved::Engine>, Ends) {
    let (commands, commands_in) = mpsc::channel(64);
    let (news, news_in) = mpsc::channel(64);
    let (orders, orders_out) = mpsc::channel(64);
    let (traffic, traffic_in) = mpsc::channel(64);
    let links = Links {
        orders,
        other_lane: mpsc::channel(1).0,
        results: mpsc::channel(1).0,
        management: mpsc::channel(1).0,
        scribe: mpsc::channel(1).0,
        records,
        seen_ns: Arc::default(),
        pulses: Arc::new(probe::Pulses::new(0)),
    };
    let start = Start {
        lane: Lane::Guaranteed,
        machine: reserved::Engine::new(reserved::Options::default()),
        links,
        inbox: Inbox { commands: commands_in, news: news_in, traffic: traffic_in, results: mpsc::channel(1).1 },
        front,
        rng: ChaCha12Rng::seed_from_u64(7),
        placement,
    };
    (start, Ends { commands, news, orders: orders_out, traffic, exit: None })
}

fn image() -> Arc<Image> {
    let spec = serde_json::json!({ "name": NAME, "runtime": "provided", "runtime_name": "provided", "handler": "none", "timeout": "20s" });
    let spec = serde_json::from_value(spec).expect("invariant: the function of the measurement is in order");
    Arc::new(Image { spec, version: Version(1), code: PathBuf::new(), code_sha256: String::new() })
}

/// As much as a guarantee can hold, so that nothing but the machine sets the pace.
fn deployment() -> Deployment {
    let stated = [("rate", "10000/s"), ("overflow", "queue"), ("max_run_time", "5s"), ("deadline", "20s")];
    let terms = model::Terms::from_pairs(stated).ok().flatten().and_then(|terms| terms.resolve(LONG).ok());
    Deployment {
        function: FunctionKey(1),
        name: NAME.parse().expect("invariant: the name is one"),
        tenant: model::Tenant::default(),
        version: Version(1),
        memory: model::Memory::default(),
        timeout: LONG,
        reservation: Some(Reservation {
            terms: terms.expect("invariant: the terms of the measurement are in order"),
            generation: 1,
            rate_class: None,
            level: Level::Soft,
            shards: vec![Shard { core: 0, priority: 1, instances: 1, warm: 1 }],
            start_bound: LONG,
            response_bound: LONG,
            tolerance: LONG,
        }),
    }
}

/// Has the lane serve the function; gives the runtime's end of its one instance.
fn install(mut ends: Ends) -> io::Result<(Ends, TcpStream)> {
    let ended = || io::Error::other("the measured lane ended");
    let tell = |ends: &Ends, command| ends.commands.blocking_send(command).map_err(|_| ended());
    let (done, installed) = oneshot::channel();
    tell(&ends, Command::Install { deployment: Box::new(deployment()), image: image(), beside: Vec::new(), done })?;
    let Some(Order::Start(NewInstance { instance, .. })) = ends.orders.blocking_recv() else { return Err(ended()) };
    let for_instance = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let mut stream = TcpStream::connect(for_instance.local_addr()?)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.write_all(NEXT)?;
    for_instance.set_nonblocking(true)?;
    let (exited, exit) = oneshot::channel();
    ends.exit = Some(exited);
    let started =
        News::Started { instance, running: Arc::new(Running::stand_in()), listener: for_instance, exit, began: clock::now() };
    ends.news.blocking_send(started).map_err(|_| ended())?;
    let Some(Order::Place { instance, on, .. }) = ends.orders.blocking_recv() else { return Err(ended()) };
    ends.news.blocking_send(News::Placed { instance, on, threads: Vec::new() }).map_err(|_| ended())?;
    if installed.blocking_recv() != Ok(Installed::Serving) {
        return Err(ended());
    }
    let route = Route { key: FunctionKey(1), standing: Standing::Guaranteed, image: image() };
    let (done, routed) = oneshot::channel();
    let name = NAME.parse().expect("invariant: the name is one");
    tell(&ends, Command::Route { name, route: Some(route), done })?;
    routed.blocking_recv().map_err(|_| ended())?;
    Ok((ends, stream))
}

const NEXT: &[u8] = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: a\r\n\r\n";

/// A runtime that asks in two steps, as custom ones do. It ends when the lane closes its connection.
fn play_runtime(
    mut stream: TcpStream,
    (core, classes): (u16, Classes),
    result_bytes: &std::sync::mpsc::Receiver<usize>,
) -> io::Result<()> {
    if classes == Classes::RealTime {
        sched::set_cores(sched::current_thread(), &[core]).map_err(io::Error::other)?;
        sched::set_current(sched::Class::Fifo { priority: 60 }).map_err(io::Error::other)?;
    }
    let mut kept = Vec::new();
    while let Ok(output) = result_bytes.recv() {
        let told = message(&mut stream, &mut kept)?;
        let head = String::from_utf8_lossy(&told[..told.len().min(HEAD_BYTES)]).into_owned();
        let id = head.lines().find_map(|line| line.strip_prefix("lambda-runtime-aws-request-id: "));
        let id = id.ok_or_else(|| io::Error::other("the measured lane delivered no invocation"))?;
        let path = format!("/2018-06-01/runtime/invocation/{id}/response");
        let mut answer = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {output}\r\n\r\n").into_bytes();
        answer.extend(tokens(output));
        stream.write_all(&answer)?;
        message(&mut stream, &mut kept)?;
        stream.write_all(NEXT)?;
    }
    Ok(())
}

fn play_client(
    ((address, keys), hand_over): ((SocketAddr, &Keys), &dyn Fn() -> io::Result<()>),
    stages: &[Stage],
    (result_bytes, classes): (&SyncSender<usize>, Classes),
) -> io::Result<()> {
    if classes == Classes::RealTime {
        sched::set_current(sched::Class::Fifo { priority: probe::PRIORITY - 1 }).map_err(io::Error::other)?;
    }
    let connect = || {
        let stream = TcpStream::connect(address)?;
        hand_over()?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok::<TcpStream, io::Error>(stream)
    };
    let mut stream = connect()?;
    for stage in stages {
        let (head, body) = request(*stage, address, keys);
        for _ in 0..=ROUNDS {
            if stage.connection == Connection::New {
                stream = connect()?;
            }
            result_bytes.send(stage.output).map_err(|_| io::Error::other("the runtime of the measurement ended"))?;
            stream.write_all(&head)?;
            stream.write_all(&body)?;
            let answer = message(&mut stream, &mut Vec::new())?;
            if !answer.starts_with(b"HTTP/1.1 200") {
                let text = String::from_utf8_lossy(&answer[..answer.len().min(HEAD_BYTES)]).into_owned();
                return Err(io::Error::other(format!("the measured lane refused: {text}")));
            }
        }
    }
    Ok(())
}

/// JSON that takes long to check: as many tokens as its length allows.
fn tokens(bytes: usize) -> Vec<u8> {
    let Some(room) = bytes.checked_sub(3) else { return b"[]".to_vec() };
    let mut text = b"[".to_vec();
    text.extend(b"1,".iter().cycle().take(room / 2 * 2));
    text.push(b'1');
    text.resize(bytes - 1, b' ');
    text.push(b']');
    text
}

/// A signed request, as head and body.
fn request(stage: Stage, address: SocketAddr, keys: &Keys) -> (Vec<u8>, Vec<u8>) {
    let (path, body) = match stage.path {
        Path::Invoke => (format!("/2015-03-31/functions/{NAME}/invocations"), tokens(stage.input)),
        Path::Url => (format!("/fn/{NAME}/"), vec![b'1'; stage.input]),
    };
    let now = OffsetDateTime::from(today());
    let date = format!("{:04}{:02}{:02}", now.year(), u8::from(now.month()), now.day());
    let stamp = format!("{date}T{:02}{:02}{:02}Z", now.hour(), now.minute(), now.second());
    let payload = hex(&Sha256::digest(&body));
    let canonical = format!("POST\n{path}\n\nhost:{address}\nx-amz-date:{stamp}\n\nhost;x-amz-date\n{payload}");
    let scope = format!("{date}/us-east-1/lambda/aws4_request");
    let to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let secret = format!("AWS4{}", keys.secret_access_key.reveal()).into_bytes();
    let key = [date.as_str(), "us-east-1", "lambda", "aws4_request"].iter().fold(secret, |key, part| keyed_hash(&key, part));
    let signature = hex(&keyed_hash(&key, &to_sign));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Boto3/1.35.0 md/Botocore#1.35.0 ua/2.0 os/linux\r\n\
         Accept-Encoding: identity\r\nX-Amz-Date: {stamp}\r\nContent-Type: text/plain\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders=host;x-amz-date, Signature={signature}\r\n\
         amz-sdk-request: attempt=1\r\nContent-Length: {}\r\n\r\n",
        keys.access_key_id,
        body.len()
    );
    (head.into_bytes(), body)
}

fn keyed_hash(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("invariant: a key of any length will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One message whose body has a stated length, or none.
fn message(stream: &mut TcpStream, kept: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        if let Some(head) = kept.windows(4).position(|four| four == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&kept[..head]);
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            let whole = head + 4 + length.unwrap_or(0);
            if whole <= kept.len() {
                return Ok(kept.drain(..whole).collect());
            }
        }
        let mut piece = [0; 16 << 10];
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => kept.extend_from_slice(&piece[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_to_check_is_json_of_its_length() {
        for bytes in 2..60 {
            let text = tokens(bytes);
            assert_eq!(text.len(), bytes);
            serde_json::from_slice::<serde_json::Value>(&text).unwrap();
        }
    }

    #[test]
    fn every_stage_is_served_and_costs_something() {
        let costs = measure(&[0], Classes::Ordinary).unwrap();
        assert!(Duration::ZERO < costs.invocation && costs.accept < Duration::from_secs(1), "{costs:?}");
    }
}
