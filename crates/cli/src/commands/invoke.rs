//! `takt invoke`: one invocation, or a load of them.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use node::sched;
use serde_json::{Value, json};

use crate::args::{ArrivalsArg, InvokeArgs, LoadArgs};
use crate::client::{Answer, Client};
use crate::exit::Exit;
use crate::load::{Arrivals, Drive, Report, Schedule, Target, Wall, csv};
use crate::output::{self, Format, Progress};

/// AWS's limit on a synchronous event.
const MAX_EVENT_BYTES: u64 = 6 << 20;
/// Above everything that is best effort, below every guaranteed instance: the generator delays nothing that is promised.
const REALTIME_PRIORITY: u8 = 5;
/// How long a load waits for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Invokes the function.
pub fn run(args: &InvokeArgs, format: Format) -> Result<Exit> {
    let event = event(args)?;
    match args.load.rate {
        None => once(args, event, format),
        Some(rate) => {
            let arrivals = match args.load.arrivals {
                ArrivalsArg::Even => Arrivals::Even,
                ArrivalsArg::Poisson => Arrivals::Poisson { seed: args.load.seed },
            };
            load(args, event, Schedule::new(rate, args.load.length, arrivals), format)
        }
    }
}

fn event(args: &InvokeArgs) -> Result<Vec<u8>> {
    let text = match (&args.data, &args.file) {
        (Some(data), _) => data.clone().into_bytes(),
        (None, Some(path)) => read_limited(path)?,
        (None, None) => b"{}".to_vec(),
    };
    if let Err(error) = serde_json::from_slice::<&serde_json::value::RawValue>(&text) {
        bail!("the event is not JSON: {error}");
    }
    Ok(text)
}

fn read_limited(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let shown = path.display();
    let mut source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(fs::File::open(path).with_context(|| format!("cannot open {shown}"))?)
    };
    source.by_ref().take(MAX_EVENT_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    if MAX_EVENT_BYTES < u64::try_from(bytes.len()).unwrap_or(u64::MAX) {
        bail!("{shown} is larger than an event may be ({MAX_EVENT_BYTES} bytes)");
    }
    Ok(bytes)
}

fn path(args: &InvokeArgs) -> String {
    format!("/2015-03-31/functions/{}/invocations", args.name)
}

fn once(args: &InvokeArgs, event: Vec<u8>, format: Format) -> Result<Exit> {
    let client = Client::new(&args.node)?;
    let headers: &[(&str, &str)] = if args.log { &[("x-amz-log-type", "Tail")] } else { &[] };
    let answer = client.send(Method::POST, &path(args), headers, event)?;
    if args.log {
        print_log(&answer)?;
    }
    if !answer.status.is_success() {
        bail!("{}", answer.message());
    }
    let function_error = answer.headers.get("x-amz-function-error").and_then(|value| value.to_str().ok());
    match format {
        Format::Json => output::json(&document(&answer, function_error)),
        Format::Human => {
            let mut out = std::io::stdout().lock();
            let newline: &[u8] = if answer.body.ends_with(b"\n") { b"" } else { b"\n" };
            out.write_all(&answer.body).and_then(|()| out.write_all(newline)).context("cannot write to standard output")?;
        }
    }
    match function_error {
        None => Ok(Exit::Ok),
        Some(kind) => bail!("the function ended with an error ({kind}); its message is the answer"),
    }
}

/// The fields of `takt invoke --json`: `status`, `function_error`, `headers` (those of the node's own), `result`.
fn document(answer: &Answer, function_error: Option<&str>) -> Value {
    let own =
        answer.headers.iter().filter(|(name, _)| name.as_str().starts_with("x-takt-") || name.as_str() == "x-amzn-requestid");
    let headers: serde_json::Map<String, Value> =
        own.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.into()))).collect();
    let result = answer.json().unwrap_or_else(|_| String::from_utf8_lossy(&answer.body).into_owned().into());
    json!({ "status": answer.status.as_u16(), "function_error": function_error, "headers": headers, "result": result })
}

fn print_log(answer: &Answer) -> Result<()> {
    let Some(log) = answer.headers.get("x-amz-log-result") else {
        return Ok(());
    };
    let text = STANDARD.decode(log).context("the node's log is not base64")?;
    eprintln!("{}", String::from_utf8_lossy(&text).trim_end());
    Ok(())
}

fn load(args: &InvokeArgs, event: Vec<u8>, schedule: Schedule, format: Format) -> Result<Exit> {
    let client = Client::new(&args.node)?;
    let options = &args.load;
    let deadline = match options.deadline {
        Some(deadline) => Some(deadline),
        None => promised_deadline(&client, args)?,
    };
    let target = Target::new(client, path(args), event)?;
    let samples = drive(options, target, schedule, format)?;
    if let Some(path) = &options.csv {
        fs::write(path, csv(&samples)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let report = Report::new(&samples, deadline);
    match format {
        Format::Json => output::json(&serde_json::to_value(&report).context("cannot write the report")?),
        Format::Human => print!("{}", report.text()),
    }
    Ok(Exit::Ok)
}

fn drive(options: &LoadArgs, target: Target, schedule: Schedule, format: Format) -> Result<Vec<crate::load::Sample>> {
    if options.realtime {
        let class = sched::Class::Fifo { priority: REALTIME_PRIORITY };
        sched::set_current(class).context("--realtime needs root or CAP_SYS_NICE; leave it out to run at the usual class")?;
    }
    let progress = Progress::counting(format, schedule.expected(), "invoking");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start an event loop")?;
    let samples = runtime.block_on(async {
        let mut wall = Wall::start().context("cannot make a timer")?;
        Drive::new(target, options.connections, PATIENCE).run(schedule, &mut wall, |_| progress.advance()).await
    });
    progress.end();
    samples
}

/// D of the function's guarantee, where it has one.
fn promised_deadline(client: &Client, args: &InvokeArgs) -> Result<Option<Duration>> {
    let answer = client.call(Method::GET, &format!("/v1/functions/{}/guarantee", args.name), None)?;
    if !answer.status.is_success() {
        return Ok(None);
    }
    let value = answer.json()?;
    value["deadline"].as_str().map(model::parse_duration).transpose().context("the node states a deadline that is no duration")
}
