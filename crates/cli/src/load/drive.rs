//! Sends the invocations of a schedule and measures what comes back.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use model::Class;
use tokio::task::JoinSet;

use super::beat::Beat;
use super::schedule::Schedule;
use crate::client::{Address, Client};

/// A synchronous answer is at most 6 MiB, plus what its headers and our reading need.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// No load is longer than this many invocations: their samples are kept.
const MAX_INVOCATIONS: u64 = 20_000_000;

/// What is invoked.
#[derive(Clone, Debug)]
pub struct Target {
    client: Client,
    path: String,
    body: Bytes,
    results: Results,
}

/// Whether samples hold what the function returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Results {
    Dropped,
    Kept,
}

impl Target {
    /// Invocations of `path` on a node, each with the same body. Errors when these make no request.
    pub fn new(client: Client, path: String, body: Vec<u8>) -> Result<Self> {
        let target = Self { client, path, body: Bytes::from(body), results: Results::Dropped };
        target.request()?;
        Ok(target)
    }

    /// The same, with the body of every answer in its sample; they are held in memory together.
    #[must_use]
    pub fn keeping_results(mut self) -> Self {
        self.results = Results::Kept;
        self
    }

    fn request(&self) -> Result<Request<Full<Bytes>>> {
        self.client.request(Method::POST, &self.path, &[], self.body.clone())
    }
}

/// What became of one invocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The node answered.
    Answered(Answered),
    /// No connection, or it broke.
    Broken(String),
    /// Nothing came until the generator stopped waiting.
    Unanswered,
}

/// The parts of an answer that a report needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub status: StatusCode,
    /// The handler reported an error (`X-Amz-Function-Error`).
    pub function_error: bool,
    pub class: Option<Class>,
    pub conforming: Option<bool>,
    pub start_delay_us: Option<u64>,
    pub queue_wait_us: Option<u64>,
    /// The body, where the target keeps results.
    pub result: Option<Bytes>,
}

impl Answered {
    fn read(status: StatusCode, headers: &HeaderMap, result: Option<Bytes>) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let number = |name: &str| text(name).and_then(|value| value.parse().ok());
        Self {
            status,
            function_error: headers.contains_key("x-amz-function-error"),
            class: text("x-takt-class").and_then(|value| match value {
                "guaranteed" => Some(Class::Guaranteed),
                "best-effort" => Some(Class::BestEffort),
                _ => None,
            }),
            conforming: text("x-takt-conforming").and_then(|value| value.parse().ok()),
            start_delay_us: number("x-takt-start-delay-us"),
            queue_wait_us: number("x-takt-queue-wait-us"),
            result,
        }
    }

    /// The function ran and returned a result.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.status.is_success() && !self.function_error
    }
}

/// One invocation as the generator saw it. Times count from the load's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub index: u64,
    /// When it was meant to be sent.
    pub intended: Duration,
    /// When its bytes were handed to a connection.
    pub sent: Duration,
    /// From `intended` to the last byte of the answer.
    pub latency: Duration,
    pub outcome: Outcome,
}

/// Runs loads against one target.
#[derive(Debug)]
pub struct Drive {
    target: Target,
    /// Connections open at once, at most.
    connections: usize,
    /// How long one invocation's answer is waited for.
    patience: Duration,
    pool: Pool,
}

/// A connection that can carry a request.
pub(crate) type Line = SendRequest<Full<Bytes>>;

/// How one exchange ended, and the connection where it can be used again.
type Exchanged = (Sample, Option<Line>);

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Line>,
    /// Connections that carry an exchange or are idle.
    open: usize,
    /// Due, and waiting for a connection: the schedule's invocations at most.
    waiting: VecDeque<(u64, Duration)>,
    exchanges: JoinSet<Exchanged>,
}

impl Drive {
    #[must_use]
    pub fn new(target: Target, connections: u16, patience: Duration) -> Self {
        Self { target, connections: usize::from(connections), patience, pool: Pool::default() }
    }

    /// Opens some of the connections before the load begins, as a client does that keeps a pool. Errors when it gets none.
    pub async fn opening_ahead(mut self, connections: u16) -> Result<Self> {
        while self.pool.open < usize::from(connections).min(self.connections) {
            self.pool.idle.push(open(&self.target.client.address).await?);
            self.pool.open += 1;
        }
        Ok(self)
    }

    /// Runs the schedule to its end and gives the samples in its order; `progress` is told of each as it is taken.
    ///
    /// Must run inside a tokio runtime. What the node does wrong is in the samples; errors are the generator's own.
    pub async fn run<B: Beat>(
        mut self,
        schedule: Schedule,
        beat: &mut B,
        mut progress: impl FnMut(&Sample),
    ) -> Result<Vec<Sample>> {
        if MAX_INVOCATIONS < schedule.expected() {
            bail!("a load of {} invocations is larger than {MAX_INVOCATIONS}", schedule.expected());
        }
        let mut pool = std::mem::take(&mut self.pool);
        let mut samples = Vec::new();
        let mut last = Duration::ZERO;
        for (index, intended) in (0_u64..).zip(schedule) {
            last = intended;
            while let Some(exchanged) = next_before(intended, &mut pool, beat).await? {
                samples.push(pool.take(exchanged, &mut progress));
                self.send(&mut pool, beat)?;
            }
            pool.waiting.push_back((index, intended));
            self.send(&mut pool, beat)?;
        }
        while let Some(exchanged) = pool.exchanges.join_next().await {
            samples.push(pool.take(exchanged.context("an exchange was lost")?, &mut progress));
            if last + self.patience < beat.now() {
                break; // whoever has no connection by now gets none
            }
            self.send(&mut pool, beat)?;
        }
        while let Some(exchanged) = pool.exchanges.join_next().await {
            samples.push(pool.take(exchanged.context("an exchange was lost")?, &mut progress));
        }
        let now = beat.now();
        samples.extend(pool.waiting.drain(..).map(|(index, intended)| {
            let latency = now.saturating_sub(intended);
            Sample { index, intended, sent: now, latency, outcome: Outcome::Unanswered }
        }));
        samples.sort_by_key(|sample| sample.index);
        Ok(samples)
    }

    /// Sends what waits while there are connections, or room to open some.
    fn send<B: Beat>(&self, pool: &mut Pool, beat: &B) -> Result<()> {
        while let Some(&(index, intended)) = pool.waiting.front() {
            let line = match pool.idle.pop() {
                Some(line) if line.is_closed() => {
                    pool.open -= 1;
                    continue;
                }
                Some(line) => Some(line),
                None if pool.open < self.connections => {
                    pool.open += 1;
                    None
                }
                None => return Ok(()),
            };
            pool.waiting.pop_front();
            let request = self.target.request()?;
            let (address, results) = (self.target.client.address.clone(), self.target.results);
            let (patience, clock, sent) = (self.patience, beat.clock(), beat.now());
            pool.exchanges.spawn(async move {
                let exchange = exchange(line, &address, request);
                let (outcome, line) = match tokio::time::timeout(patience, exchange).await {
                    Ok(Ok((head, body, line))) => {
                        let kept = match results {
                            Results::Dropped => None,
                            Results::Kept => Some(body),
                        };
                        (Outcome::Answered(Answered::read(head.status, &head.headers, kept)), line)
                    }
                    Ok(Err(error)) => (Outcome::Broken(format!("{error:#}")), None),
                    Err(_elapsed) => (Outcome::Unanswered, None),
                };
                let latency = clock().saturating_sub(intended);
                (Sample { index, intended, sent, latency, outcome }, line)
            });
        }
        Ok(())
    }
}

impl Pool {
    fn take(&mut self, (sample, line): Exchanged, progress: &mut impl FnMut(&Sample)) -> Sample {
        match line {
            Some(line) => self.idle.push(line),
            None => self.open -= 1,
        }
        progress(&sample);
        sample
    }
}

/// The next exchange that ends before `intended`; `None` when that instant has come.
async fn next_before<B: Beat>(intended: Duration, pool: &mut Pool, beat: &mut B) -> Result<Option<Exchanged>> {
    if beat.now() < intended {
        tokio::select! {
            biased;
            waited = beat.until(intended) => waited.context("the timer failed")?,
            Some(exchanged) = pool.exchanges.join_next() => return Ok(Some(exchanged.context("an exchange was lost")?)),
        }
        return Ok(None);
    }
    // Behind schedule, answers are still taken: they free connections.
    match pool.exchanges.try_join_next() {
        Some(exchanged) => Ok(Some(exchanged.context("an exchange was lost")?)),
        None => Ok(None),
    }
}

/// One request and its whole answer, on `line` or on a new connection, and the connection where it can be used again.
pub(crate) async fn exchange(
    line: Option<Line>,
    address: &Address,
    request: Request<Full<Bytes>>,
) -> Result<(Parts, Bytes, Option<Line>)> {
    let mut line = match line {
        Some(line) => line,
        None => open(address).await?,
    };
    let response = line.send_request(request).await.context("the connection broke")?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?.to_bytes();
    let reusable = line.ready().await.is_ok();
    Ok((head, body, reusable.then_some(line)))
}

#[expect(clippy::disallowed_methods, reason = "hyper's half of a connection ends with the half that is held here")]
pub(crate) async fn open(address: &Address) -> Result<Line> {
    let stream = TokioIo::new(address.connect().await?);
    let (line, connection) = http1::handshake(stream).await.context("cannot set up the connection")?;
    tokio::spawn(async move {
        // What goes wrong with it shows in the exchange it carries.
        let _ = connection.await;
    });
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use http::Response;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    use super::super::schedule::Arrivals;
    use super::*;

    /// Time that passes when it is waited for.
    #[derive(Clone, Default)]
    struct Virtual(Arc<AtomicU64>);

    impl Beat for Virtual {
        type Clock = Box<dyn Fn() -> Duration + Send>;

        fn now(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::Relaxed))
        }

        fn clock(&self) -> Self::Clock {
            let beat = self.clone();
            Box::new(move || beat.now())
        }

        async fn until(&mut self, at: Duration) -> io::Result<()> {
            tokio::task::yield_now().await;
            self.0.fetch_max(u64::try_from(at.as_nanos()).unwrap(), Ordering::Relaxed);
            Ok(())
        }
    }

    #[derive(Default)]
    struct Seen {
        requests: AtomicUsize,
        connections: AtomicUsize,
    }

    /// A node whose every second invocation is excess.
    async fn serve(listener: TcpListener, seen: Arc<Seen>) {
        let mut tasks = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            seen.connections.fetch_add(1, Ordering::Relaxed);
            let seen = Arc::clone(&seen);
            let service = service_fn(move |_request| {
                let excess = seen.requests.fetch_add(1, Ordering::Relaxed) % 2 == 1;
                let (status, class) = if excess { (429, "best-effort") } else { (200, "guaranteed") };
                let response = Response::builder().status(status).header("x-takt-class", class);
                let response = response.header("x-takt-conforming", (!excess).to_string()).header("x-takt-start-delay-us", "250");
                async move { Ok::<_, Infallible>(response.body(Full::new(Bytes::from_static(b"{}"))).unwrap()) }
            });
            tasks.spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    }

    fn drive(rate: &str, connections: u16) -> (Vec<Sample>, Arc<Seen>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let seen = Arc::new(Seen::default());
            let mut tasks = JoinSet::new();
            tasks.spawn(serve(listener, Arc::clone(&seen)));
            let client = Client { address: Address::parse(&url).unwrap(), token: "key".to_owned() };
            let target = Target::new(client, "/".to_owned(), b"{}".to_vec()).unwrap().keeping_results();
            let schedule = Schedule::new(rate.parse().unwrap(), Duration::from_secs(1), Arrivals::Even);
            let drive = Drive::new(target, connections, Duration::from_secs(20));
            let mut told = 0;
            let samples = drive.run(schedule, &mut Virtual::default(), |_| told += 1).await.unwrap();
            assert_eq!(told, samples.len());
            (samples, seen)
        })
    }

    #[test]
    fn every_instant_of_the_schedule_becomes_one_invocation() {
        let (samples, seen) = drive("200/s", 8);
        assert_eq!((samples.len(), seen.requests.load(Ordering::Relaxed)), (200, 200));
        assert!(samples.iter().zip(0..).all(|(sample, index)| sample.index == index));
        let excess =
            samples.iter().filter(|sample| matches!(&sample.outcome, Outcome::Answered(answered) if answered.status == 429));
        assert_eq!(excess.count(), 100);
        let Outcome::Answered(first) = &samples[0].outcome else { panic!("{:?}", samples[0]) };
        assert_eq!((first.class, first.conforming, first.start_delay_us), (Some(Class::Guaranteed), Some(true), Some(250)));
        assert_eq!(first.result.as_deref(), Some(&b"{}"[..]));
    }

    #[test]
    fn no_more_connections_are_opened_than_allowed() {
        let (samples, seen) = drive("100/s", 1);
        assert_eq!((samples.len(), seen.connections.load(Ordering::Relaxed)), (100, 1));
    }

    #[test]
    fn a_node_that_is_not_there_breaks_every_invocation() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let samples = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = Address::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
            drop(listener);
            let target = Target::new(Client { address, token: String::new() }, "/".to_owned(), Vec::new()).unwrap();
            let schedule = Schedule::new("20/s".parse().unwrap(), Duration::from_secs(1), Arrivals::Even);
            Drive::new(target, 4, Duration::from_secs(20)).run(schedule, &mut Virtual::default(), |_| {}).await.unwrap()
        });
        assert_eq!(samples.len(), 20);
        assert!(samples.iter().all(|sample| matches!(&sample.outcome, Outcome::Broken(why) if why.contains("no node at"))));
    }
}
