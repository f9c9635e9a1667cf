//! What a runtime costs around a handler: the CPU of taking an invocation, calling a handler that does nothing, and answering.
//!
//! Measured in a real instance, sandbox included, when the node starts for the first time with an interpreter; kept in the
//! data directory and measured again when the interpreter, our client or the machine is another one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use engine::port::Placement;
use http::{HeaderValue, Response};
use model::{InstanceId, InvocationId, Runtime, Version};
use runtime::api::{self, ConnectionId, Content, Delivery, Reply, Session};
use runtime::bootstrap;
use runtime::http1::{After, Connection, Limits};
use runtime::launcher::{Client, CpuMeter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::assemble::error_line;
use crate::calibrate::Classes;
use crate::code::CodeId;
use crate::lanes::Image;
use crate::starter::{Kit, Shares};

/// Invocations before those that count: a runtime compiles and caches at first.
const WARM_UP: u32 = 20;
const ROUNDS: u32 = 100;
const WITHIN: Duration = Duration::from_secs(3);
/// Nothing is charged less: the measured invocations follow each other, and find caches warm that later ones will not.
pub(crate) const LEAST: Duration = Duration::from_micros(200);
/// What is charged where nothing could be measured: more than any runtime needed so far.
const UNMEASURED: Duration = Duration::from_millis(1);
/// What an executable of unknown make is charged at least, until what it uses is seen.
const UNKNOWN_LEAST: Duration = Duration::from_micros(300);
const LIMITS: Limits = Limits { head_bytes: api::MAX_HEAD_BYTES, headers: 100 };
const FILE: &str = "runtime-costs.json";
const FOLDER: &str = "runtime-costs";

/// CPU per invocation around the handler, with a margin of a half, and at least [`LEAST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Costs {
    pub(crate) python: Duration,
    pub(crate) nodejs: Duration,
    /// The dearest of the others: what an executable does around its handler is its own.
    pub(crate) provided: Duration,
}

/// Measures every runtime that has an interpreter, or takes what was measured before. Says what could not be measured.
pub(crate) async fn measure(client: &Client, kit: &Kit, data: &Path) -> (Costs, Vec<String>) {
    let mut known = load(data);
    let before = known.clone();
    let mut complaints = Vec::new();
    let mut costs = Vec::new();
    for (runtime, handler) in [
        (Runtime::Python, ("main.py", "def handler(event, context):\n    return event\n")),
        (Runtime::NodeJs, ("main.js", "exports.handler = async (event) => event\n")),
    ] {
        let interpreter = match runtime {
            Runtime::Python => &kit.python,
            Runtime::NodeJs | Runtime::Provided => &kit.nodejs,
        };
        let Ok(interpreter) = interpreter else {
            costs.push(None); // nothing of it can run here
            continue;
        };
        let key = key(runtime, &interpreter.program, &kit.clients);
        let cost = match known.get(&key) {
            Some(ns) => Some(Duration::from_nanos(*ns).max(LEAST)),
            None => match tokio::time::timeout(WITHIN, one(client, kit, (runtime, handler), data)).await {
                Ok(Ok(mean)) => {
                    let cost = (mean * 3 / 2).max(LEAST);
                    known.insert(key, u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX));
                    Some(cost)
                }
                failed => {
                    let reason = failed.map_or_else(|_| format!("not done within {WITHIN:?}"), |it| it.err().unwrap_or_default());
                    complaints.push(format!(
                        "the cost of runtime `{runtime}` could not be measured ({reason}): {UNMEASURED:?} per invocation are charged; restart the node to try again"
                    ));
                    None
                }
            },
        };
        costs.push(cost);
    }
    if known != before
        && let Err(error) = keep(data, &known)
    {
        complaints.push(format!("what runtimes cost cannot be kept ({error}): the next start measures it again"));
    }
    let [python, nodejs] = [costs[0], costs[1]].map(|cost| cost.unwrap_or(UNMEASURED));
    let dearest = costs.into_iter().flatten().max().unwrap_or(UNMEASURED);
    (Costs { python, nodejs, provided: dearest.max(UNKNOWN_LEAST) }, complaints)
}

/// What the cost depends on: interpreter, our client, machine.
fn key(runtime: Runtime, interpreter: &Path, clients: &Path) -> String {
    let about = fs::metadata(interpreter).map(|about| format!("{} {}.{}", about.size(), about.mtime(), about.mtime_nsec()));
    let client = fs::read(bootstrap::program(runtime, clients, Path::new("/"))).unwrap_or_default();
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find(|line| line.starts_with("model name")).unwrap_or_default().to_owned();
    let about = about.unwrap_or_default();
    format!("{runtime} {} {about} {} {} {processor}", interpreter.display(), CodeId::of(&client), machine.trim())
}

/// Costs in nanoseconds by what they depend on. A file that is not there or cannot be read only means measuring again.
fn load(data: &Path) -> BTreeMap<String, u64> {
    fs::read(data.join(FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn keep(data: &Path, known: &BTreeMap<String, u64>) -> io::Result<()> {
    let (file, next) = (data.join(FILE), data.join(format!("{FILE}.next")));
    fs::write(&next, serde_json::to_vec(known)?)?;
    fs::rename(next, file)
}

async fn one(
    client: &Client,
    kit: &Kit,
    (runtime, (file, source)): (Runtime, (&str, &str)),
    data: &Path,
) -> Result<Duration, String> {
    let text = |error: &dyn std::error::Error| error_line(error);
    let code = data.join(FOLDER).join(runtime.to_string());
    fs::create_dir_all(&code).and_then(|()| fs::write(code.join(file), source)).map_err(|error| text(&error))?;
    let spec =
        format!("name = \"measured\"\nruntime = \"{runtime}\"\nhandler = \"main.handler\"\n[network]\noutbound = \"none\"\n");
    let spec = model::config::parse(&spec).map_err(|error| text(&error))?;
    let image = Image { spec, version: Version(1), code, code_sha256: String::new() };
    let shares = Shares { classes: Classes::Ordinary, costs: None };
    let launch = kit.launch(InstanceId(0), &image, (Placement::BestEffort, shares)).map_err(|error| text(&error))?;
    let started = client.start(&launch).await.map_err(|error| text(&error))?;
    let listener = started.listener.try_clone().and_then(TcpListener::from_std).map_err(|error| text(&error))?;
    let trial = Rc::new(Trial { meter: started.cpu_meter(), state: RefCell::default(), over: Notify::new() });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.map_err(|error| text(&error))?;
                // Two small answers in a row would wait for an acknowledgement; a socket that refuses the option still works.
                let _ = stream.set_nodelay(true);
                let (trial, id) = (Rc::clone(&trial), ConnectionId(connections.len() as u64));
                connections.spawn_local(async move { trial.serve(stream, id).await });
            }
            () = trial.over.notified() => break,
        }
    }
    // `started` is dropped here, which kills the instance.
    trial.state.borrow().mean()
}

/// One instance under measurement.
struct Trial {
    meter: CpuMeter,
    state: RefCell<State>,
    over: Notify,
}

#[derive(Default)]
struct State {
    session: Session,
    rounds: u32,
    warm_at: Option<Duration>,
    over_at: Option<Duration>,
    failure: Option<String>,
}

impl State {
    fn mean(&self) -> Result<Duration, String> {
        match (&self.failure, self.warm_at, self.over_at) {
            (None, Some(warm), Some(over)) => Ok(over.saturating_sub(warm) / ROUNDS),
            (Some(failure), ..) => Err(failure.clone()),
            (None, ..) => Err("its CPU time could not be read".to_owned()),
        }
    }
}

impl Trial {
    async fn serve(&self, stream: TcpStream, id: ConnectionId) {
        let mut connection = Connection::new(stream);
        while let Some(parts) = connection.read_head(&LIMITS).await.ok().flatten() {
            let Ok(body) = connection.read_body(&parts, api::body_limit(&parts)).await else { return };
            let Some(response) = self.answer(id, &parts, body) else { return };
            if connection.write_response(response, After::KeepAlive).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, from: ConnectionId, parts: &http::request::Parts, body: Bytes) -> Option<Response<Bytes>> {
        let mut state = self.state.borrow_mut();
        let outcome = state.session.request(from, parts, Content::whole(body));
        match outcome.event {
            Some(api::Event::InitFailed(failure)) => {
                state.failure = Some(String::from_utf8_lossy(&failure.body).into_owned());
                self.over.notify_one();
            }
            Some(api::Event::Ready { .. }) => {
                if state.rounds == WARM_UP {
                    state.warm_at = self.meter.program_used().ok();
                }
                if state.rounds == WARM_UP + ROUNDS {
                    state.over_at = self.meter.program_used().ok();
                    self.over.notify_one();
                    return None;
                }
                state.rounds += 1;
            }
            Some(api::Event::Ended(_) | api::Event::Taken { .. }) | None => {}
        }
        match outcome.reply {
            Reply::Now(response) => Some(response),
            Reply::Held | Reply::HeldInsteadOf(_) => {
                let number = u128::from(state.rounds);
                match state.session.deliver(invocation(InvocationId::from_random(number))) {
                    Ok(Delivery::Now(_, response)) => Some(response),
                    Ok(Delivery::WhenAsked) | Err(_) => None,
                }
            }
        }
    }
}

fn invocation(id: InvocationId) -> api::Invocation {
    api::Invocation {
        id,
        deadline_epoch_ms: u64::MAX >> 12,
        function_arn: HeaderValue::from_static("arn:aws:lambda:local:000000000000:function:measured"),
        trace_id: None,
        client_context: None,
        cognito_identity: None,
        tenant_id: None,
        content_type: Some(HeaderValue::from_static("application/json")),
        payload: Bytes::from_static(b"{\"key\": \"value\"}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_interpreter_or_another_client_is_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        fs::write(&one, "1").unwrap();
        fs::write(&two, "22").unwrap();
        let client = bootstrap::program(Runtime::Python, folder.path(), Path::new("/"));
        let first = key(Runtime::Python, &one, folder.path());
        assert_eq!(first, key(Runtime::Python, &one, folder.path()));
        assert_ne!(first, key(Runtime::Python, &two, folder.path()));
        fs::create_dir_all(client.parent().unwrap()).unwrap();
        fs::write(client, "another").unwrap();
        assert_ne!(first, key(Runtime::Python, &one, folder.path()));
    }

    #[test]
    fn what_was_kept_is_found_and_a_broken_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).is_empty());
        let known = BTreeMap::from([("python".to_owned(), 250_000)]);
        keep(folder.path(), &known).unwrap();
        assert_eq!(load(folder.path()), known);
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(load(folder.path()).is_empty());
    }
}
