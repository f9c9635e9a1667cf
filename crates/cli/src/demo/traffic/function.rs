//! The functions as instances: this binary started again, speaking the Lambda Runtime API.
//!
//! One invocation at a time over one connection that is kept; when it breaks, it is opened anew for the next invocation.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{detect, watch};

/// Longest payload, as AWS states it: 6 MB.
const MAX_PAYLOAD_BYTES: usize = 6 * 1024 * 1024;
const MAX_HEAD_BYTES: u64 = 16 * 1024;
const BASE: &str = "/2018-06-01/runtime/invocation";

/// Which of the camera's two functions something is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    Watch,
    Detect,
}

/// Why an instance ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("AWS_LAMBDA_RUNTIME_API is not set: this process is started by a node as an instance")]
    NotAnInstance,
    #[error("no function is called `{0}`; there are `watch`, `detect` and `burn`")]
    NoSuchHandler(String),
    #[error("the Runtime API at {address}")]
    Connection { address: String, source: std::io::Error },
    #[error("the Runtime API at {address} answered {what}")]
    Answer { address: String, what: String },
}

impl Role {
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Detect => "detect",
        }
    }
}

/// What an instance does with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handler {
    Watch,
    Detect,
    /// The neighbour's: uses the processor for as long as it is told.
    Burn,
}

/// What the neighbour's function is asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Burn {
    /// Processor time to use, in milliseconds, up to a second.
    pub(crate) cpu_ms: u64,
}

const MAX_BURN_MS: u64 = 1_000;

impl std::str::FromStr for Handler {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "watch" => Ok(Self::Watch),
            "detect" => Ok(Self::Detect),
            "burn" => Ok(Self::Burn),
            other => Err(Error::NoSuchHandler(other.to_owned())),
        }
    }
}

impl Handler {
    /// Handles one event.
    ///
    /// # Errors
    /// What cannot be analysed, with its reasons in one line.
    pub(crate) fn handle(self, event: &[u8]) -> anyhow::Result<Vec<u8>> {
        Ok(match self {
            Self::Watch => serde_json::to_vec(&watch::watch(&serde_json::from_slice(event)?)?)?,
            Self::Detect => serde_json::to_vec(&detect::detect(&serde_json::from_slice(event)?)?)?,
            Self::Burn => serde_json::to_vec(&burn(serde_json::from_slice(event)?))?,
        })
    }
}

fn burn(wanted: Burn) -> Burn {
    let wanted = Burn { cpu_ms: wanted.cpu_ms.min(MAX_BURN_MS) };
    let until = thread_cpu() + Duration::from_millis(wanted.cpu_ms);
    while thread_cpu() < until {
        std::hint::black_box((0..1_000_u64).fold(0_u64, |sum, value| sum.rotate_left(5) ^ value));
    }
    wanted
}

/// Serves invocations until the Runtime API is gone.
///
/// # Errors
/// A missing `AWS_LAMBDA_RUNTIME_API`, and a Runtime API that cannot be reached or understood.
pub(crate) fn main(handler: Handler) -> Result<(), Error> {
    let address = std::env::var("AWS_LAMBDA_RUNTIME_API").map_err(|_| Error::NotAnInstance)?;
    serve(handler, &address)
}

fn serve(handler: Handler, address: &str) -> Result<(), Error> {
    let mut api = Api::connect(address)?;
    loop {
        let invocation = api.next()?;
        let started_ns = monotonic_ns();
        match handler.handle(&invocation.event) {
            Ok(result) => api.respond(&invocation.id, &result, started_ns)?,
            Err(error) => api.fail(&invocation.id, &error, started_ns)?,
        }
    }
}

/// The clock that the node stamps arrivals with.
fn monotonic_ns() -> u64 {
    u64::try_from(read(ClockId::Monotonic).as_nanos()).unwrap_or(u64::MAX)
}

/// Processor time that this thread has used.
pub(crate) fn thread_cpu() -> Duration {
    read(ClockId::ThreadCPUTime)
}

fn read(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    // Neither clock is ever negative.
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

struct Invocation {
    id: String,
    event: Vec<u8>,
}

struct Api {
    address: String,
    stream: BufReader<TcpStream>,
}

struct Answer {
    status: u16,
    id: Option<String>,
    body: Vec<u8>,
}

impl Api {
    fn connect(address: &str) -> Result<Self, Error> {
        let connected = TcpStream::connect(address).and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        let stream = connected.map_err(|source| Error::Connection { address: address.to_owned(), source })?;
        Ok(Self { address: address.to_owned(), stream: BufReader::new(stream) })
    }

    fn next(&mut self) -> Result<Invocation, Error> {
        let request = format!("GET {BASE}/next HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        let answer = match self.exchange(request.as_bytes(), &[]) {
            // A kept connection may have been closed in between; asking for the next invocation may be repeated.
            Err(_) => {
                self.stream = Self::connect(&self.address)?.stream;
                self.exchange(request.as_bytes(), &[]).map_err(|source| self.broken(source))?
            }
            Ok(answer) => answer,
        };
        match answer {
            Answer { status: 200, id: Some(id), body } => Ok(Invocation { id, event: body }),
            Answer { status, id, .. } => {
                let with = if id.is_some() { "with" } else { "without" };
                Err(self.odd(format!("the wait for an invocation with status {status} {with} a request id")))
            }
        }
    }

    fn respond(&mut self, id: &str, result: &[u8], started_ns: u64) -> Result<(), Error> {
        self.post(&format!("{id}/response"), result, &format!("Takt-Started-Ns: {started_ns}\r\n"))
    }

    fn fail(&mut self, id: &str, error: &anyhow::Error, started_ns: u64) -> Result<(), Error> {
        let body = serde_json::json!({ "errorType": "Analysis", "errorMessage": format!("{error:#}"), "stackTrace": [] });
        let headers = format!("Takt-Started-Ns: {started_ns}\r\nLambda-Runtime-Function-Error-Type: Analysis\r\n");
        self.post(&format!("{id}/error"), body.to_string().as_bytes(), &headers)
    }

    fn post(&mut self, path: &str, body: &[u8], headers: &str) -> Result<(), Error> {
        let head = format!(
            "POST {BASE}/{path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n",
            self.address,
            body.len()
        );
        let answer = self.exchange(head.as_bytes(), body).map_err(|source| self.broken(source))?;
        // 4xx: the invocation is over without us, its bound passed or its client gave up. The next one is wanted all the same.
        if answer.status < 500 { Ok(()) } else { Err(self.odd(format!("a result with status {}", answer.status))) }
    }

    fn exchange(&mut self, head: &[u8], body: &[u8]) -> std::io::Result<Answer> {
        let mut message = Vec::with_capacity(head.len() + body.len());
        message.extend_from_slice(head);
        message.extend_from_slice(body);
        self.stream.get_mut().write_all(&message)?;
        read_answer(&mut self.stream)
    }

    fn broken(&self, source: std::io::Error) -> Error {
        Error::Connection { address: self.address.clone(), source }
    }

    fn odd(&self, what: String) -> Error {
        Error::Answer { address: self.address.clone(), what }
    }
}

/// Reads one HTTP/1.1 answer whose body has a stated length.
fn read_answer(stream: &mut impl BufRead) -> std::io::Result<Answer> {
    let odd = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let mut head = stream.take(MAX_HEAD_BYTES);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.trim().parse().ok());
    let status = status.ok_or_else(|| odd(format!("no HTTP status in {:?}", line.trim_end())))?;
    let (mut id, mut length) = (None, 0_usize);
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.split_once(':') else {
            if line.trim_end().is_empty() {
                break;
            }
            return Err(odd(format!("a header line {:?}", line.trim_end())));
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| odd(format!("a length of {:?}", value.trim())))?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(odd(format!("a body in the encoding {:?}", value.trim())));
        } else if name.eq_ignore_ascii_case("lambda-runtime-aws-request-id") {
            id = Some(value.trim().to_owned());
        }
    }
    if MAX_PAYLOAD_BYTES < length {
        return Err(odd(format!("a body of {length} bytes over the limit of {MAX_PAYLOAD_BYTES}")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Answer { status, id, body })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    /// Reads one request, answers it, and gives back its first line, headers and body.
    fn exchange(peer: &mut BufReader<TcpStream>, answer: &str) -> (String, String) {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            peer.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            head += &line;
        }
        let mut body = vec![0; length];
        peer.read_exact(&mut body).unwrap();
        peer.get_mut().write_all(answer.as_bytes()).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    #[test]
    fn an_instance_answers_and_reports_errors_and_ends_with_its_node() {
        let node = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = node.local_addr().unwrap().to_string();
        let instance = std::thread::spawn(move || serve(Handler::Detect, &address));
        let mut peer = BufReader::new(node.accept().unwrap().0);
        let event = "{\"index\":1}";
        let invocation =
            format!("HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: abc\r\nContent-Length: {}\r\n\r\n{event}", event.len());
        let (asked, _) = exchange(&mut peer, &invocation);
        assert!(asked.starts_with("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\n"), "{asked}");
        let (posted, body) = exchange(&mut peer, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");
        assert!(posted.starts_with("POST /2018-06-01/runtime/invocation/abc/error HTTP/1.1\r\n"), "{posted}");
        assert!(posted.contains("\r\nTakt-Started-Ns: "), "{posted}");
        assert!(body.contains("missing field"), "{body}");
        drop(peer);
        drop(node);
        assert!(matches!(instance.join().unwrap(), Err(Error::Connection { .. })));
    }

    proptest! {
        #[test]
        fn no_answer_makes_an_instance_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), head in any::<bool>()) {
            let start = if head { &b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n"[..] } else { &[] };
            let _ = read_answer(&mut BufReader::new(&[start, &bytes].concat()[..]));
        }
    }
}
