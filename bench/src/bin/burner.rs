//! The function under test: burns the CPU time that its event asks for and answers when it began.
//!
//! Started by a node it speaks the Runtime API; started as `takt-bench-burner serve` it is the baseline, the same work behind
//! the smallest HTTP server: one thread that takes requests as they become readable. Both answer
//! `{"started_ns":N}`, N on the machine's monotonic clock.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags};
use rustix::time::{ClockId, clock_gettime};

const MAX_HEAD_BYTES: u64 = 16 << 10;
const MAX_BODY_BYTES: usize = 6 << 20;
/// Connections of the baseline's server at once.
const MAX_CONNECTIONS: usize = 1_024;
const BASE: &str = "/2018-06-01/runtime/invocation";
/// The CPU clock is a system call; this much work lies between two looks at it.
const STEPS_PER_LOOK: u64 = 5_000;

fn main() -> ExitCode {
    let done = match std::env::var("AWS_LAMBDA_RUNTIME_API") {
        Ok(address) => instance(&address),
        Err(_) => serve(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is a function's log.
            let _ = writeln!(io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Takes invocations until the node is gone.
fn instance(address: &str) -> Result<()> {
    let stream = TcpStream::connect(address).context("cannot reach the Runtime API")?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let next = format!("GET {BASE}/next HTTP/1.1\r\nHost: {address}\r\n\r\n");
        stream.get_mut().write_all(next.as_bytes())?;
        let Some(invocation) = read_message(&mut stream)? else { return Ok(()) };
        let result = handle(&invocation.body)?;
        let id = invocation.id.context("an invocation without a request id")?;
        let started = result.started_ns;
        let body = result.json();
        let response = format!(
            "POST {BASE}/{id}/response HTTP/1.1\r\nHost: {address}\r\nTakt-Started-Ns: {started}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(response.as_bytes())?;
        read_message(&mut stream)?.context("the Runtime API closed the connection")?;
    }
}

/// Answers every request on a free port of the loopback, which it prints.
fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    io::stdout().flush()?;
    let mut connections: Vec<BufReader<TcpStream>> = Vec::new();
    loop {
        let readable = readable(&listener, &connections)?;
        let mut gone = Vec::new();
        for (index, connection) in connections.iter_mut().enumerate() {
            // A client that goes away in the middle is its own loss.
            if readable[index + 1] && !matches!(answer(connection), Ok(true)) {
                gone.push(index);
            }
        }
        for index in gone.into_iter().rev() {
            connections.swap_remove(index);
        }
        if readable[0] && connections.len() < MAX_CONNECTIONS {
            let (stream, _) = listener.accept().context("cannot accept")?;
            stream.set_nodelay(true)?;
            connections.push(BufReader::new(stream));
        }
    }
}

/// Which of the listener and the connections have something to read; waits until one has.
fn readable(listener: &TcpListener, connections: &[BufReader<TcpStream>]) -> Result<Vec<bool>> {
    let mut waiting = vec![PollFd::new(listener, PollFlags::IN)];
    waiting.extend(connections.iter().map(|connection| PollFd::new(connection.get_ref(), PollFlags::IN)));
    rustix::event::poll(&mut waiting, None).context("cannot wait")?;
    Ok(waiting.iter().map(|it| !it.revents().is_empty()).collect())
}

/// Answers one request; false when the client has closed.
fn answer(connection: &mut BufReader<TcpStream>) -> Result<bool> {
    let Some(request) = read_message(connection)? else { return Ok(false) };
    let body = handle(&request.body)?.json();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ";
    connection.get_mut().write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())?;
    Ok(true)
}

struct Handled {
    started_ns: u64,
}

impl Handled {
    fn json(&self) -> String {
        format!("{{\"started_ns\":{}}}", self.started_ns)
    }
}

fn handle(event: &[u8]) -> Result<Handled> {
    let started_ns = nanoseconds(ClockId::Monotonic);
    let event: serde_json::Value = serde_json::from_slice(event).context("the event is not JSON")?;
    burn(Duration::from_micros(event["burn_us"].as_u64().unwrap_or(0)));
    Ok(Handled { started_ns })
}

/// Uses this much CPU time of this thread.
fn burn(time: Duration) {
    let enough = nanoseconds(ClockId::ThreadCPUTime) + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    while !time.is_zero() && nanoseconds(ClockId::ThreadCPUTime) < enough {
        std::hint::black_box(
            (0..STEPS_PER_LOOK).fold(1_u64, |sum, step| sum.wrapping_mul(31).wrapping_add(std::hint::black_box(step))),
        );
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

struct Message {
    id: Option<String>,
    body: Vec<u8>,
}

/// One request or answer whose body has a stated length; `None` when the other side has closed.
fn read_message(stream: &mut impl BufRead) -> Result<Option<Message>> {
    let mut head = stream.take(MAX_HEAD_BYTES);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let (mut id, mut length) = (None, 0);
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            bail!("a message broke off in its head");
        }
        if line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').context("a header line without a colon")?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("a length that is no number")?;
        } else if name.eq_ignore_ascii_case("lambda-runtime-aws-request-id") {
            id = Some(value.trim().to_owned());
        }
    }
    if MAX_BODY_BYTES < length {
        bail!("a body of {length} bytes, more than {MAX_BODY_BYTES}");
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(Message { id, body }))
}
