//! Our runtime clients, and AWS's own, run unchanged against the Runtime API.
//!
//! Interpreters and clients that are not there are passed over with a line that says so: `TAKT_TEST_AWSLAMBDARIC` names a
//! Python that can import `awslambdaric`, `TAKT_TEST_RUST_LAMBDA` the built `bootstrap` of `examples/rust-lambda`, and
//! `TAKT_TEST_NODES` further versions of Node.js.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests fail fast, as tests do")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use http::HeaderValue;
use model::Runtime;
use serde_json::{Value, json};
use support::{ARN, Instance, command, run};
use takt_runtime::api::{Event, Failure, MAX_RESPONSE_BYTES, ResponseMode, client_context};
use takt_runtime::bootstrap;
use tempfile::TempDir;

const CONTEXT: &str = r#"{"custom":{"k":"ä"},"client":{"app_title":"t"},"w3c":{"traceparent":"00-1","x":"y"}}"#;

fn functions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/functions")
}

fn answers(program: &Path, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Every Python 3.9 or later that is at hand, one per minor version.
fn pythons() -> Vec<PathBuf> {
    let versions = std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv/versions"));
    let entries = versions.and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let wanted = |name: &str| ["3.9.", "3.11.", "3.13."].iter().any(|start| name.starts_with(start));
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path().join("bin/python3"))
        .filter(|path| answers(path, &["-c", "pass"]))
        .collect();
    let system = PathBuf::from("python3");
    if found.is_empty() && answers(&system, &["-c", "import sys; assert (3, 9) <= sys.version_info"]) {
        found.push(system);
    }
    if found.is_empty() {
        println!("skipped: no Python 3.9 or later is here");
    }
    found
}

/// The Node.js of this machine, where it is of version 18 or later, and those that `TAKT_TEST_NODES` names as a path does.
fn nodes() -> Vec<PathBuf> {
    let named = std::env::var_os("TAKT_TEST_NODES").unwrap_or_default();
    let mut found: Vec<PathBuf> = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect();
    let node = PathBuf::from("node");
    if answers(&node, &["-e", "if (parseInt(process.versions.node) < 18) process.exit(1)"]) {
        found.push(node);
    }
    if found.is_empty() {
        println!("skipped: no Node.js 18 or later is here");
    }
    found
}

struct Client {
    program: PathBuf,
    arguments: &'static [&'static str],
    script: PathBuf,
    _dir: TempDir,
}

impl Client {
    fn new(program: &Path, runtime: Runtime) -> Self {
        let dir = tempfile::tempdir().unwrap();
        bootstrap::install(dir.path()).unwrap();
        let script = bootstrap::program(runtime, dir.path(), &functions());
        let arguments = bootstrap::interpreter_arguments(runtime);
        Self { program: resolved(program), arguments, script, _dir: dir }
    }

    async fn start(&self, handler: &str) -> Instance {
        Instance::start(self.command(handler)).await
    }

    fn command(&self, handler: &str) -> Command {
        let mut command = command(&self.program, &functions(), handler);
        command.args(self.arguments).arg(&self.script).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    async fn serving(&self, handler: &str) -> Instance {
        let mut instance = self.start(handler).await;
        instance.ready().await;
        instance
    }

    async fn init_failure(&self, handler: &str) -> (Failure, Value, Instance) {
        let mut instance = self.start(handler).await;
        let Event::InitFailed(failure) = instance.event().await else { panic!("it started: {}", instance.log()) };
        let body = serde_json::from_slice(&failure.body).unwrap();
        (failure, body, instance)
    }
}

/// The program's own path: the instances get another `PATH`.
fn resolved(program: &Path) -> PathBuf {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&dirs).map(|dir| dir.join(program));
    candidates.find(|path| path.is_file()).unwrap_or_else(|| program.to_owned())
}

/// The id of an invocation with a context, and what the handler saw of that.
async fn context_of(instance: &mut Instance) -> (String, Value) {
    let mut invocation = instance.invocation(r#"{"do": "context"}"#);
    let id = invocation.id.to_string();
    invocation.client_context = Some(client_context(&base64(CONTEXT)).unwrap());
    invocation.cognito_identity = Some(HeaderValue::from_static(r#"{"cognitoIdentityId":"c"}"#));
    instance.deliver(invocation);
    let Event::Ended(ended) = instance.event().await else { panic!("no end: {}", instance.log()) };
    assert!(ended.started.is_some());
    (id, serde_json::from_slice(&ended.result.unwrap().payload).unwrap())
}

#[test]
fn a_python_function_gets_its_event_and_context() {
    for python in pythons() {
        let client = Client::new(&python, Runtime::Python);
        run(async {
            let mut instance = client.start("main.handler").await;
            assert!(matches!(instance.event().await, Event::Ready { init: Some(_) }));
            let event = json!({ "do": "echo", "text": "ä€", "numbers": [1, 2.5, null, true] });
            assert_eq!(instance.call(&event.to_string()).await, Ok(event));

            let (id, told) = context_of(&mut instance).await;
            let expected = json!({
                "aws_request_id": id, "log_group_name": "group", "log_stream_name": "stream", "function_name": "f",
                "memory_limit_in_mb": "128", "function_version": "$LATEST", "invoked_function_arn": ARN, "remaining": true,
                "identity": "c", "custom": {"k": "ä"}, "title": "t", "w3c": {"traceparent": "00-1"},
                "trace": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700", "process_keeps_trace": false, "cwd": true, "path": true,
            });
            assert_eq!(told, expected, "{}", python.display());
        });
    }
}

#[test]
fn a_python_error_has_the_shape_of_awss_and_no_frame_of_ours() {
    for python in pythons() {
        let client = Client::new(&python, Runtime::Python);
        run(async {
            let mut instance = client.serving("main.handler").await;
            let error = instance.call(r#"{"do": "raise"}"#).await.unwrap_err();
            assert_eq!((&error["errorType"], &error["errorMessage"]), (&json!("ValueError"), &json!("wrong\nin two lines")));
            error["requestId"].as_str().unwrap().parse::<model::InvocationId>().unwrap();
            let trace = error["stackTrace"].as_array().unwrap();
            assert_eq!(trace.len(), 2, "{trace:?}");
            assert!(trace[0].as_str().unwrap().contains("main.py\", line") && trace[1].as_str().unwrap().contains("in inner\n"));
            for (what, kind) in [("unserialisable", "Runtime.MarshalError"), ("odd", "Odd")] {
                let error = instance.call(&json!({ "do": what }).to_string()).await.unwrap_err();
                assert_eq!(error["errorType"], kind, "{}", python.display());
            }
            let error = instance.call("not json").await.unwrap_err();
            assert_eq!(error["errorType"], "Runtime.UnmarshalError");
            let too_large = instance.invoke(r#"{"do": "large"}"#).await.result.unwrap_err();
            assert_eq!(too_large.error_type, "Function.ResponseSizeTooLarge");
            assert_eq!(instance.call(r#"{"do": "decimal"}"#).await, Ok(json!([1.5, 7])));
            assert_eq!(instance.invoke(r#"{"do": "bytes"}"#).await.result.unwrap().payload, [0, 0xff].as_slice());
            let error = instance.call(r#"{"do": "closed"}"#).await.unwrap_err();
            assert_eq!(error["errorType"], "ValueError", "closing the output hides no error");
        });
    }
}

#[test]
fn a_python_function_that_cannot_start_says_why() {
    for python in pythons() {
        let client = Client::new(&python, Runtime::Python);
        for (handler, kind) in [
            ("absent.handler", "Runtime.ImportModuleError"),
            ("broken_import.handler", "Runtime.ImportModuleError"),
            ("broken_syntax.handler", "Runtime.UserCodeSyntaxError"),
            ("broken_start.handler", "KeyError"),
            ("main.absent", "Runtime.HandlerNotFound"),
            ("main", "Runtime.MalformedHandlerName"),
            ("sys.exit", "Runtime.BuiltInModuleConflict"),
        ] {
            run(async {
                let (failure, body, mut instance) = client.init_failure(handler).await;
                assert_eq!((failure.error_type.as_str(), &body["errorType"]), (kind, &json!(kind)), "{handler}");
                assert_eq!(instance.exit().await.code(), Some(1));
                assert!(!instance.log().contains("bootstrap.py"), "{}", instance.log());
            });
        }
    }
}

#[test]
fn python_logs_come_line_by_line_in_awss_format() {
    for python in pythons() {
        let client = Client::new(&python, Runtime::Python);
        run(async {
            let mut instance = client.serving("main.handler").await;
            assert_eq!(instance.call(r#"{"do": "log"}"#).await, Ok(Value::Null));
            let log = instance.log();
            let lines: Vec<_> = log.lines().collect();
            let fields: Vec<_> = lines[1].split('\t').collect();
            assert_eq!((lines.len(), lines[0], lines[3]), (4, "loading", "half line ä"), "{log}");
            assert_eq!((fields[0], fields[3]), ("[WARNING]", "careful"));
            assert!(fields[2].parse::<model::InvocationId>().is_ok() && fields[1].ends_with('Z'));
            assert!(lines[2].starts_with("[ERROR]\t"));
            instance.call(r#"{"do": "raise"}"#).await.unwrap_err();
            let log = instance.log();
            let report = log.lines().nth(4).unwrap();
            assert!(report.starts_with("[ERROR] ValueError: wrong\rin two lines\rTraceback (most recent call last):\r\u{a0}"));
        });
    }
}

#[test]
fn logs_are_json_where_that_is_asked_for() {
    let clients = pythons().into_iter().map(|python| (Client::new(&python, Runtime::Python), "main.handler", "careful"));
    let clients =
        clients.chain(nodes().into_iter().map(|node| (Client::new(&node, Runtime::NodeJs), "main.async", "two\nlines 5")));
    for (client, handler, message) in clients {
        run(async {
            let mut command = client.command(handler);
            command.env("AWS_LAMBDA_LOG_FORMAT", "JSON");
            let mut instance = Instance::start(command).await;
            instance.ready().await;
            instance.call(r#"{"do": "log"}"#).await.unwrap();
            let log = instance.log();
            let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let line = lines.iter().find(|line| line["message"] == message).expect(&log);
            line["requestId"].as_str().unwrap().parse::<model::InvocationId>().unwrap();
            assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
        });
    }
}

#[test]
fn a_python_function_that_exits_takes_its_instance_with_it() {
    for python in pythons() {
        let client = Client::new(&python, Runtime::Python);
        run(async {
            let mut instance = client.serving("main.handler").await;
            let invocation = instance.invocation(r#"{"do": "exit"}"#);
            instance.deliver(invocation);
            assert_eq!(instance.exit().await.code(), Some(7));
            assert!(instance.log().ends_with("going"));
            assert_eq!(client.start("broken_exit.handler").await.exit().await.code(), Some(3));
        });
    }
}

#[test]
fn a_node_function_is_async_or_calls_back_or_ends_through_its_context() {
    for node in nodes() {
        let client = Client::new(&node, Runtime::NodeJs);
        run(async {
            let mut instance = client.serving("main.async").await;
            let event = json!({ "do": "later", "text": "ä€" });
            assert_eq!(instance.call(&event.to_string()).await, Ok(event));
            let mut nested = client.serving("main.nested.handler").await;
            assert_eq!(nested.call("{}").await, Ok(json!({})));
            let mut module = client.serving("module.handler").await;
            assert_eq!(module.call("1").await, Ok(json!({ "esm": 1, "url": true })));

            let mut callback = client.serving("main.callback").await;
            for (what, expected) in [
                ("succeed", Ok(json!("s"))),
                ("done", Ok(json!("d"))),
                ("nothing", Ok(Value::Null)),
                ("plain", Ok(json!({ "do": "plain" }))),
                ("both", Ok(json!("first"))),
                ("at-once", Ok(json!("at once"))),
                ("waits", Ok(json!(true))),
                ("fail", Err("f")),
                ("throw", Err("t")),
                ("error", Err("e")),
            ] {
                let answer = callback.call(&json!({ "do": what }).to_string()).await;
                let answer = answer.map_err(|error| error["errorMessage"].as_str().unwrap().to_owned());
                assert_eq!(answer, expected.map_err(str::to_owned), "{what}");
            }
        });
    }
}

#[test]
fn a_streaming_node_function_is_delivered_as_a_whole() {
    for node in nodes() {
        let client = Client::new(&node, Runtime::NodeJs);
        run(async {
            let mut instance = client.serving("main.stream").await;
            for (what, content_type, payload) in [
                ("end", "text/plain", "part rest"),
                ("open", "text/plain", "part "),
                ("http", "application/vnd.awslambda.http-integration-response", "{\"statusCode\":201}\0\0\0\0\0\0\0\0a0"),
            ] {
                let value = instance.invoke(&json!({ "do": what }).to_string()).await.result.unwrap();
                assert_eq!((value.content_type.unwrap().to_str().unwrap(), value.mode), (content_type, ResponseMode::Streaming));
                assert_eq!(value.payload, payload, "{what}");
            }
            let error = instance.call(r#"{"do": "fail"}"#).await.unwrap_err();
            assert_eq!(error["errorMessage"], "broke off");
        });
    }
}

#[test]
fn a_node_function_gets_its_context() {
    for node in nodes() {
        let client = Client::new(&node, Runtime::NodeJs);
        run(async {
            let mut instance = client.serving("main.async").await;
            let (id, told) = context_of(&mut instance).await;
            let expected = json!({
                "awsRequestId": id, "logGroupName": "group", "logStreamName": "stream", "functionName": "f",
                "memoryLimitInMB": "128", "functionVersion": "$LATEST", "invokedFunctionArn": ARN, "remaining": true,
                "identity": {"cognitoIdentityId": "c"}, "clientContext": serde_json::from_str::<Value>(CONTEXT).unwrap(),
                "callbackWaitsForEmptyEventLoop": true, "trace": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700",
                "processKeepsTrace": false,
            });
            assert_eq!(told, expected);
        });
    }
}

#[test]
fn a_node_error_has_the_shape_of_awss_and_no_frame_of_ours() {
    for node in nodes() {
        let client = Client::new(&node, Runtime::NodeJs);
        run(async {
            let mut instance = client.serving("main.async").await;
            let error = instance.call(r#"{"do": "raise"}"#).await.unwrap_err();
            assert_eq!((&error["errorType"], &error["errorMessage"]), (&json!("TypeError"), &json!("wrong\nin two lines")));
            let trace = error["trace"].to_string();
            assert!(trace.contains("main.js") && !trace.contains("bootstrap.cjs") && !trace.contains("node:internal"), "{trace}");
            for (what, kind) in [("string", "string"), ("circular", "Runtime.MarshalError")] {
                let error = instance.call(&json!({ "do": what }).to_string()).await.unwrap_err();
                assert_eq!(error["errorType"], kind);
            }
            let error = instance.call("not json").await.unwrap_err();
            assert_eq!(error["errorType"], "Runtime.UnmarshalError");
            let too_large = instance.invoke(r#"{"do": "large"}"#).await.result.unwrap_err();
            assert_eq!(too_large.error_type, "Function.ResponseSizeTooLarge");
            assert_eq!(instance.call(r#"{"do": "log"}"#).await, Ok(Value::Null));
            let log = instance.log();
            let line = log.lines().find(|line| line.contains("\tINFO\t")).unwrap();
            assert!(line.ends_with("\tINFO\ttwo\rlines 5"), "{line}");
            assert!(log.contains("\tERROR\tshown\n"));
        });
    }
}

#[test]
fn a_node_function_that_cannot_start_or_falls_over_says_why() {
    for node in nodes() {
        let client = Client::new(&node, Runtime::NodeJs);
        run(async {
            for (handler, kind) in [
                ("absent.handler", "Runtime.ImportModuleError"),
                ("broken_import.handler", "Runtime.ImportModuleError"),
                ("broken_syntax.handler", "Runtime.UserCodeSyntaxError"),
                ("broken_start.handler", "RangeError"),
                ("main.absent", "Runtime.HandlerNotFound"),
                ("main", "Runtime.MalformedHandlerName"),
            ] {
                let (failure, body, mut instance) = client.init_failure(handler).await;
                assert_eq!((failure.error_type.as_str(), &body["errorType"]), (kind, &json!(kind)), "{handler}");
                assert_eq!(instance.exit().await.code(), Some(1));
            }
            for (what, kind, code) in [("reject", "Runtime.UnhandledPromiseRejection", 128), ("uncaught", "RangeError", 129)] {
                let mut instance = client.serving("main.async").await;
                let invocation = instance.invocation(&json!({ "do": what }).to_string());
                instance.deliver(invocation);
                let Event::Ended(ended) = instance.event().await else { panic!("no end: {}", instance.log()) };
                assert_eq!(ended.result.unwrap_err().error_type, kind);
                assert_eq!(instance.exit().await.code(), Some(code));
            }
            let mut instance = client.serving("main.async").await;
            let invocation = instance.invocation(r#"{"do": "exit"}"#);
            instance.deliver(invocation);
            assert_eq!(instance.exit().await.code(), Some(7));
        });
    }
}

#[test]
fn our_python_client_is_python_3_9() {
    let parse = "import ast, sys; ast.parse(open(sys.argv[1]).read(), feature_version=(3, 9))";
    for python in pythons() {
        let client = Client::new(&python, Runtime::Python);
        assert!(answers(&python, &["-c", parse, &client.script.to_string_lossy()]), "{}", python.display());
    }
}

#[test]
fn awss_python_client_runs_unchanged() {
    let python = std::env::var_os("TAKT_TEST_AWSLAMBDARIC").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    if !answers(&python, &["-c", "import awslambdaric"]) {
        println!("skipped: {} cannot import awslambdaric (set TAKT_TEST_AWSLAMBDARIC)", python.display());
        return;
    }
    let start = async |handler: &str| {
        let mut command = command(&resolved(&python), &functions(), handler);
        command.args(["-m", "awslambdaric", handler]).env("PYTHONDONTWRITEBYTECODE", "1");
        Instance::start(command).await
    };
    run(async {
        let mut instance = start("main.handler").await;
        assert_eq!(instance.event().await, Event::Ready { init: None });
        for _ in 0..3 {
            let event = json!({ "do": "echo", "text": "ä€" });
            assert_eq!(instance.call(&event.to_string()).await, Ok(event));
        }
        let failure = instance.invoke(r#"{"do": "raise"}"#).await.result.unwrap_err();
        assert_eq!(failure.error_type, "ValueError");
        let Event::InitFailed(failure) = start("absent.handler").await.event().await else { panic!("it started") };
        assert_eq!(failure.error_type, "Runtime.ImportModuleError");
    });
}

#[test]
fn awss_rust_crate_runs_unchanged() {
    let Some(program) = std::env::var_os("TAKT_TEST_RUST_LAMBDA").map(PathBuf::from) else {
        println!("skipped: build examples/rust-lambda and set TAKT_TEST_RUST_LAMBDA to its `bootstrap`");
        return;
    };
    run(async {
        let mut instance = Instance::start(command(&program, &functions(), "bootstrap")).await;
        instance.ready().await;
        for _ in 0..5 {
            let told = instance.call(r#"{"a": 1}"#).await.unwrap();
            assert_eq!((&told["input"], &told["memory_mb"]), (&json!({ "a": 1 }), &json!(128)));
            assert_eq!((&told["function_arn"], &told["deadline_ms"]), (&json!(ARN), &json!(support::DEADLINE_MS)));
        }
        let error = instance.call(r#"{"fail": "why"}"#).await.unwrap_err();
        assert_eq!(error["errorMessage"], "why");
        let large = "x".repeat(MAX_RESPONSE_BYTES);
        let failure = instance.invoke(&json!({ "large": large }).to_string()).await.result.unwrap_err();
        assert_eq!(failure.error_type, "Function.ResponseSizeTooLarge");
    });
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}
