//! Measures our runtime clients against the plainest server of the Runtime API that `http1` and `api` make: the time from
//! writing an invocation to having read its result, and from start to readiness.
//!
//! `cargo run --release -p takt-runtime --example overhead -- python3 node`

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response};
use model::{InvocationId, Runtime, Time};
use takt_runtime::api::{ConnectionId, Content, Delivery, Event, Invocation, Reply, Session, body_limit};
use takt_runtime::bootstrap;
use takt_runtime::http1::{After, Connection, Limits};
use takt_runtime::sys::clock;
use tokio::net::{TcpListener, TcpStream};

type Failure = Box<dyn Error>;

const WIRE: ConnectionId = ConnectionId(1);
const WARM_UP: u32 = 500;
const INVOCATIONS: u32 = 5000;

fn main() -> Result<(), Failure> {
    let dir = std::env::temp_dir().join(format!("takt-overhead-{}", std::process::id()));
    bootstrap::install(&dir)?;
    std::fs::write(dir.join("main.py"), "def handler(event, context):\n    return event\n")?;
    std::fs::write(dir.join("main.js"), "exports.handler = async (event) => event;\n")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for interpreter in std::env::args().skip(1) {
        let kind = if interpreter.contains("node") { Runtime::NodeJs } else { Runtime::Python };
        runtime.block_on(measure(&PathBuf::from(interpreter), &dir, kind))?;
    }
    Ok(std::fs::remove_dir_all(dir)?)
}

async fn measure(interpreter: &Path, dir: &Path, kind: Runtime) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let spawned = clock::now();
    let mut child = Command::new(interpreter)
        .args(bootstrap::interpreter_arguments(kind))
        .arg(bootstrap::program(kind, dir, dir))
        .env("AWS_LAMBDA_RUNTIME_API", listener.local_addr()?.to_string())
        .env("LAMBDA_TASK_ROOT", dir)
        .env("_HANDLER", "main.handler")
        .spawn()?;
    let measured = invocations(&listener, spawned).await;
    end(&mut child)?;
    let (ready, mut round_trips, mut entries) = measured?;
    let name = interpreter.display();
    println!("{name}: ready in {:.1} ms", ready.as_secs_f64() * 1e3);
    println!("{name}: round trip     p50 {:>6.1} us, p99 {:>6.1} us", at(&mut round_trips, 50), at(&mut round_trips, 99));
    println!("{name}: to the handler p50 {:>6.1} us, p99 {:>6.1} us", at(&mut entries, 50), at(&mut entries, 99));
    Ok(())
}

fn end(child: &mut Child) -> Result<(), Failure> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

async fn invocations(listener: &TcpListener, spawned: Time) -> Result<(Duration, Vec<Duration>, Vec<Duration>), Failure> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let mut connection = Connection::new(stream);
    let mut session = Session::new();
    held(&mut connection, &mut session).await?;
    let ready = clock::now().since(spawned);
    let (mut round_trips, mut entries) = (Vec::new(), Vec::new());
    for number in 0..WARM_UP + INVOCATIONS {
        let delivered = clock::now();
        let Delivery::Now(_, response) = session.deliver(invocation(number))? else { return Err("nobody waits".into()) };
        connection.write_response(response, After::KeepAlive).await?;
        let (response, event) = answered(&mut connection, &mut session).await?;
        let ended = clock::now();
        connection.write_response(response, After::KeepAlive).await?;
        held(&mut connection, &mut session).await?;
        if WARM_UP <= number {
            round_trips.push(ended.since(delivered));
            let Some(Event::Ended(end)) = event else { return Err("no result".into()) };
            entries.push(end.started.ok_or("no entry")?.since(delivered));
        }
    }
    Ok((ready, round_trips, entries))
}

/// Reads the question for the next invocation.
async fn held(connection: &mut Connection<TcpStream>, session: &mut Session) -> Result<(), Failure> {
    let parts = connection.read_head(&Limits::default()).await?.ok_or("it left")?;
    let content = Content::whole(connection.read_body(&parts, body_limit(&parts)).await?);
    match session.request(WIRE, &parts, content).reply {
        Reply::Held => Ok(()),
        other @ (Reply::Now(_) | Reply::HeldInsteadOf(_)) => Err(format!("it did not ask: {other:?}").into()),
    }
}

async fn answered(
    connection: &mut Connection<TcpStream>,
    session: &mut Session,
) -> Result<(Response<Bytes>, Option<Event>), Failure> {
    let parts = connection.read_head(&Limits::default()).await?.ok_or("it left")?;
    let content = Content::whole(connection.read_body(&parts, body_limit(&parts)).await?);
    let outcome = session.request(WIRE, &parts, content);
    match outcome.reply {
        Reply::Now(response) => Ok((response, outcome.event)),
        other @ (Reply::Held | Reply::HeldInsteadOf(_)) => Err(format!("no answer: {other:?}").into()),
    }
}

fn invocation(number: u32) -> Invocation {
    Invocation {
        id: InvocationId::from_random(u128::from(number)),
        deadline_epoch_ms: 4_102_444_800_000,
        function_arn: HeaderValue::from_static("arn:aws:lambda:us-east-1:000000000000:function:f"),
        trace_id: Some(HeaderValue::from_static("Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700")),
        client_context: None,
        cognito_identity: None,
        tenant_id: None,
        content_type: None,
        payload: Bytes::from_static(b"{\"key\": \"value\"}"),
    }
}

fn at(sample: &mut [Duration], percent: usize) -> f64 {
    sample.sort_unstable();
    sample[(sample.len() * percent / 100).min(sample.len() - 1)].as_secs_f64() * 1e6
}
