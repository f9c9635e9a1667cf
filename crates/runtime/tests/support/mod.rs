//! A plain server of the Runtime API on loopback, made of `http1` and `api`, and the program that runs against it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response};
use model::InvocationId;
use takt_runtime::api::{self, ConnectionId, Content, Delivery, Ended, Event, Invocation, Reply, Session};
use takt_runtime::http1::{After, Connection, Error, Limits};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const ARN: &str = "arn:aws:lambda:us-east-1:000000000000:function:f";
pub(crate) const DEADLINE_MS: u64 = 4_102_444_800_000;

#[derive(Debug)]
struct Shared {
    session: Session,
    waiting: BTreeMap<ConnectionId, oneshot::Sender<Response<Bytes>>>,
    events: mpsc::Sender<Event>,
}

/// One running program with its Runtime API.
#[derive(Debug)]
pub(crate) struct Instance {
    shared: Arc<Mutex<Shared>>,
    events: mpsc::Receiver<Event>,
    child: Child,
    log: PathBuf,
    count: u128,
    _dir: TempDir,
    _server: JoinSet<()>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, future).await.expect("within the limit") })
}

/// The program with what any Lambda runtime expects of its environment.
pub(crate) fn command(program: &Path, code: &Path, handler: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir(code);
    for (name, value) in [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("LANG", "C"),
        ("_HANDLER", handler),
        ("AWS_LAMBDA_FUNCTION_NAME", "f"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "group"),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "stream"),
    ] {
        command.env(name, value);
    }
    command.env("LAMBDA_TASK_ROOT", code);
    command
}

impl Instance {
    pub(crate) async fn start(mut command: Command) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, events) = mpsc::channel(64);
        let session = Session::new();
        let shared = Arc::new(Mutex::new(Shared { session, waiting: BTreeMap::new(), events: sender }));
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let output = File::create(&log).unwrap();
        command.env("AWS_LAMBDA_RUNTIME_API", listener.local_addr().unwrap().to_string());
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap();
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&shared)));
        Self { shared, events, child, log, count: 0, _dir: dir, _server: server }
    }

    pub(crate) async fn event(&mut self) -> Event {
        match tokio::time::timeout(LIMIT, self.events.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) | Err(_) => panic!("no event; the log says: {}", self.log()),
        }
    }

    pub(crate) async fn ready(&mut self) {
        let event = self.event().await;
        assert!(matches!(event, Event::Ready { .. }), "not ready but {event:?}; the log says: {}", self.log());
    }

    pub(crate) fn invocation(&mut self, payload: &str) -> Invocation {
        self.count += 1;
        Invocation {
            id: InvocationId::from_random(self.count),
            deadline_epoch_ms: DEADLINE_MS,
            function_arn: HeaderValue::from_static(ARN),
            trace_id: Some(HeaderValue::from_static("Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700")),
            client_context: None,
            cognito_identity: None,
            tenant_id: None,
            content_type: None,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        }
    }

    pub(crate) fn deliver(&mut self, invocation: Invocation) {
        let mut shared = self.shared.lock().unwrap();
        match shared.session.deliver(invocation).unwrap() {
            Delivery::Now(connection, response) => {
                shared.waiting.remove(&connection).unwrap().send(response).unwrap();
            }
            Delivery::WhenAsked => panic!("nobody waits"),
        }
    }

    /// Runs one invocation and waits until the instance is ready again.
    pub(crate) async fn invoke(&mut self, payload: &str) -> Ended {
        let invocation = self.invocation(payload);
        let id = invocation.id;
        self.deliver(invocation);
        let Event::Ended(ended) = self.event().await else { panic!("no end; the log says: {}", self.log()) };
        assert_eq!(ended.id, id);
        self.ready().await;
        ended
    }

    /// Invokes with JSON; gives the result or the error object.
    pub(crate) async fn call(&mut self, payload: &str) -> Result<serde_json::Value, serde_json::Value> {
        let ended = self.invoke(payload).await;
        let read = |body: &[u8]| serde_json::from_slice(body).unwrap();
        ended.result.map(|value| read(&value.payload)).map_err(|failure| read(&failure.body))
    }

    /// Waits until the program has ended, serving it meanwhile.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Mutex<Shared>>) {
    let mut connections = JoinSet::new();
    for number in 0.. {
        let (stream, _) = listener.accept().await.unwrap();
        let (id, shared) = (ConnectionId(number), Arc::clone(&shared));
        connections.spawn(async move {
            // A client that goes away in the middle is not this server's failure.
            let _ = connection(id, stream, &shared).await;
            shared.lock().unwrap().session.closed(id);
        });
    }
}

async fn connection(id: ConnectionId, stream: TcpStream, shared: &Mutex<Shared>) -> Result<(), Error> {
    stream.set_nodelay(true).unwrap();
    let mut connection = Connection::new(stream);
    while let Some(parts) = connection.read_head(&Limits { head_bytes: api::MAX_HEAD_BYTES, ..Limits::default() }).await? {
        let content = match connection.read_body(&parts, api::body_limit(&parts)).await {
            Ok(body) => Content::Whole(body, connection.take_trailers()),
            Err(Error::BodyTooLong { .. }) => {
                connection.discard_body(&parts, usize::MAX).await?;
                Content::TooLong
            }
            Err(other) => return Err(other),
        };
        let held = {
            let mut shared = shared.lock().unwrap();
            let outcome = shared.session.request(id, &parts, content);
            let (sender, receiver) = oneshot::channel();
            let held = match outcome.reply {
                Reply::Now(response) => Err(response),
                Reply::Held | Reply::HeldInsteadOf(_) => {
                    shared.waiting.insert(id, sender);
                    Ok(receiver)
                }
            };
            if let Some(event) = outcome.event {
                shared.events.try_send(event).unwrap();
            }
            held
        };
        let response = match held {
            Err(response) => response,
            Ok(receiver) => tokio::select! {
                response = receiver => response.unwrap(),
                () = connection.closed() => return Ok(()),
            },
        };
        connection.write_response(response, After::KeepAlive).await?;
    }
    Ok(())
}
