//! What a function can do to its node and its neighbours: nothing but fail.

use std::io::{BufReader, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Node, answer, is_root, processes_with, text_of, until};

const SHORT: &str = "memory = \"128MB\"\ntimeout = \"1s\"\n";
const LONG: &str = "memory = \"128MB\"\ntimeout = \"30s\"\n";
/// Small enough to fit beside others on any machine.
const GUARANTEED: &str =
    "[guarantee]\nrate = \"2/s\"\nburst = 1\nmax_run_time = \"100ms\"\ncpu = \"0.2\"\nstart_within = \"1s\"\n";

#[test]
fn a_function_that_does_not_end_is_ended_and_the_next_is_served() {
    let node = Node::start();
    node.must_deploy("bad", SHORT);
    for event in [json!({"do": "spin"}), json!({"do": "ignore"}), json!({"do": "flood"})] {
        let answer = node.invoke("bad", &event);
        if event["do"] == "flood" {
            // Killed at its bound, or before it because it took too much of the lane's time.
            let kind = answer.body["errorType"].as_str().unwrap().to_owned();
            assert!(kind == "Runtime.ExitError" || kind == "Sandbox.Timedout", "{answer:?}");
        } else {
            answer.failed_as("Sandbox.Timedout");
            let message = answer.body["errorMessage"].as_str().unwrap();
            assert!(message.contains("Task timed out after 1.00 seconds"), "{message}");
        }
        node.must_serve("bad");
    }
}

#[test]
fn memory_processes_and_files_are_bounded() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    node.must_deploy("bad", LONG);
    node.must_deploy("good", LONG);
    node.invoke("bad", &json!({"do": "allocate"})).failed_as("Runtime.OutOfMemory");
    // A fork bomb meets the limit of memory or of processes; both end inside the instance.
    let forked = node.invoke("bad", &json!({"do": "fork"}));
    assert!(forked.body["errorType"] == "Runtime.OutOfMemory" || forked.body["errno"] == 11, "{forked:?}");
    node.invoke("bad", &json!({"do": "fill"})).failed_as("Runtime.OutOfMemory");
    assert_eq!(node.invoke("bad", &json!({"do": "write"})).value(), json!([]));
    node.must_serve("bad");
    node.must_serve("good");
}

#[test]
fn children_end_with_their_instance() {
    let node = Node::start();
    node.must_deploy("bad", SHORT);
    let mark = 800_000 + std::process::id();
    assert_eq!(node.invoke("bad", &json!({"do": "children", "mark": mark})).value(), "left");
    assert_ne!(processes_with(&format!("sleep {mark}")), 0);
    node.invoke("bad", &json!({"do": "spin"})).failed_as("Sandbox.Timedout");
    until("the children are gone", || processes_with(&format!("sleep {mark}")) == 0);
}

#[test]
fn a_flood_of_output_is_dropped_with_a_note() {
    let node = Node::start();
    node.must_deploy("bad", LONG);
    node.must_deploy("good", LONG);
    let before = node.resident();
    assert_eq!(node.invoke("bad", &json!({"do": "log", "bytes": 1 << 30})).value(), "written");
    node.must_serve("good");
    assert!(node.resident() < before + (64 << 20), "{before} bytes became {}", node.resident());
    until("the log says what was dropped", || node.logs("bad").contains("bytes of output dropped"));
}

#[test]
fn an_instance_sees_itself_alone() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    node.must_deploy("secret", &format!("{LONG}[environment]\nSECRET = \"hidden\"\n"));
    node.must_deploy("nosy", LONG);
    node.invoke("secret", &json!({"do": "mark"})).value();
    let seen = node.invoke("nosy", &json!({"do": "look"})).value();
    assert_eq!(seen["tmp"], json!([]));
    assert_eq!(seen["processes"].as_array().unwrap().len(), 2, "its init and itself: {seen}");
    assert!(!seen["environments"].as_str().unwrap().contains("hidden"), "{seen}");
    assert_ne!(seen["user"], node.invoke("secret", &json!({"do": "look"})).value()["user"]);
    let keys = node.data.join("keys.json");
    for path in [keys.to_str().unwrap(), "/root/.profile", "/proc/1/environ", "/etc/shadow"] {
        let read = node.invoke("nosy", &json!({"do": "read", "path": path})).value();
        assert!(read.as_str().unwrap().starts_with("errno "), "{path}: {read}");
    }
}

#[test]
fn a_link_in_a_package_leads_nowhere() {
    let node = Node::start();
    for target in ["/etc/shadow", "../../etc/shadow", "/proc/1/root/etc/shadow"] {
        let mut package = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        package.add_symlink("stolen", target, options).unwrap();
        package.start_file("handler.py", options).unwrap();
        package.write_all(include_bytes!("handler.py")).unwrap();
        let package = package.finish().unwrap().into_inner();
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, package);
        let create = json!({
            "FunctionName": "linked",
            "Runtime": "python3.12",
            "Handler": "handler.handler",
            "Role": "arn:aws:iam::000000000000:role/any",
            "Code": {"ZipFile": text},
        });
        let (status, _, body) = node.ask("POST", "/2015-03-31/functions", &create.to_string());
        assert_eq!(status, 400, "{target}: {}", String::from_utf8_lossy(&body));
    }
}

#[test]
fn the_runtime_api_bears_nonsense() {
    let node = Node::start();
    node.must_deploy("bad", LONG);
    node.must_deploy("good", LONG);
    let raw = |data: &str| node.invoke("bad", &json!({"do": "raw", "data": data})).value();
    for data in [
        "\u{0}\u{1}\u{2}\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "POST /2018-06-01/runtime/invocation/x/response HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /2018-06-01/runtime/invocation/x/response HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ] {
        let said = raw(data);
        let said = said.as_str().unwrap();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4") || said.starts_with("errno"), "{data:?}: {said}");
    }
    let huge = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    assert!(!raw(&huge).as_str().unwrap().starts_with("HTTP/1.1 2"));
    assert_eq!(node.invoke("bad", &json!({"do": "slow"})).value(), "begun");
    let served = node.invoke("bad", &json!({"do": "connections", "count": 100})).value();
    assert!(served.as_u64().unwrap() <= 64, "{served} connections were served at once");
    assert_eq!(node.invoke("bad", &json!({"do": "foreign", "id": "00000000-0000-4000-8000-000000000000"})).value(), 400);
    node.must_serve("bad");
    node.must_serve("good");
}

#[test]
fn a_flood_of_functions_that_answer_and_ask_for_no_more_leaves_the_others_their_turns() {
    let node = Node::start();
    let stated: Value = serde_json::from_slice(&node.ask("GET", "/v1/node", "").2).unwrap();
    // Guarantees may hold six tenths of the machine's memory, best effort three.
    let lane_mib = stated["memory"]["limit_mib"].as_u64().unwrap() / 2;
    let parts = lane_mib.div_ceil(10_000);
    let mute: Vec<String> = (0..parts).map(|nth| format!("mute{nth}")).collect();
    for name in &mute {
        node.must_deploy(name, &format!("memory = \"{}MB\"\ntimeout = \"30s\"\n", (lane_mib - 64) / parts));
    }
    node.must_deploy("good", &format!("{LONG}tenant = \"other\"\n"));
    let flood: Vec<TcpStream> = mute
        .iter()
        .cycle()
        .take(24)
        .map(|name| {
            let mut stream = node.connect();
            stream.write_all(node.request(name, &json!({"do": "mute"}).to_string()).as_bytes()).unwrap();
            stream
        })
        .collect();
    let first = answer(&mut BufReader::new(&flood[0])).unwrap();
    assert_eq!((first.0, first.2.as_slice()), (200, br#""said""#.as_slice()));
    for _ in 0..3 {
        node.must_serve("good");
    }
}

#[test]
fn an_answer_beyond_the_limit_is_an_error_of_its_own() {
    let node = Node::start();
    node.must_deploy("bad", LONG);
    node.invoke("bad", &json!({"do": "big", "bytes": 7_000_000})).failed_as("Function.ResponseSizeTooLarge");
    node.must_serve("bad");
}

#[test]
fn a_guaranteed_instance_that_floods_its_runtime_api_is_replaced() {
    let node = Node::start();
    node.must_deploy("greedy", &format!("memory = \"128MB\"\n{GUARANTEED}"));
    node.must_deploy("good", &format!("memory = \"128MB\"\n{GUARANTEED}"));
    for _ in 0..3 {
        node.invoke("greedy", &json!({"do": "flood"}));
        node.must_serve("good");
    }
    until("the log says that it was killed", || node.logs("greedy").contains("may not ask for more"));
    until("another instance serves", || node.invoke("greedy", &json!({"do": "ok"})).error.is_none());
}

#[test]
fn answers_of_megabytes_of_a_guaranteed_function_arrive_whole_beside_others() {
    let node = Node::start();
    let toml = "runtime = \"python\"\nhandler = \"app.run\"\nmemory = \"128MB\"\n[guarantee]\nrate = \"1/s\"\nburst = 2\n\
                max_run_time = \"1s\"\ncpu = \"0.1\"\nstart_within = \"2s\"\n";
    let code = "def run(event, context):\n    by_url = 'rawPath' in event\n    text = 'x' * (1_000_000 if by_url else 5_000_000)\n    \
                return {'statusCode': 201, 'body': text} if by_url else text\n";
    let output = node.deploy_files("large", toml, &[("app.py", code)]);
    assert!(output.status.success(), "{}", text_of(&output));
    node.must_deploy("good", &format!("memory = \"128MB\"\n{GUARANTEED}"));
    let answer = node.invoke("large", &json!({}));
    assert_eq!((answer.status, answer.body.as_str().map(str::len)), (200, Some(5_000_000)), "{:?}", answer.error);
    node.must_serve("good");
    let (status, _, body) = node.ask("GET", "/fn/large/", "");
    assert_eq!((status, body.len()), (201, 1_000_000));
    node.must_serve("good");
}

#[test]
fn what_cannot_run_is_refused_at_deploy_in_words() {
    let node = Node::start();
    let refused = |name: &str, toml: &str, files: &[(&str, &str)], words: &str| {
        let output = node.deploy_files(name, toml, files);
        assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
        let said = text_of(&output);
        assert!(said.contains(words), "{said}");
    };
    refused("nothing", "runtime = \"provided\"\n", &[("readme", "")], "bootstrap");
    refused("asleep", "runtime = \"provided\"\n", &[("bootstrap", "#!/bin/sh\n")], "executable");
    let plain = "runtime = \"python\"\nhandler = \"app.run\"\n";
    refused("nowhere", plain, &[("other.py", "")], "no app.py for the handler `app.run`");
    refused("formless", "runtime = \"nodejs\"\nhandler = \"run\"\n", &[("run.js", "")], "module.export");
    refused("foreign", &format!("{plain}[environment]\nAWS_REGION = \"x\"\n"), &[("app.py", "")], "AWS_REGION");
    // What loading shows, a deployment says of a guaranteed function; without a guarantee the first invocation does.
    let python = &format!("runtime = \"python\"\nhandler = \"app.run\"\nmemory = \"128MB\"\n{GUARANTEED}");
    refused("absent", python, &[("app.py", "import nothing")], "No module named 'nothing'");
    refused("empty", python, &[("app.py", "")], "run");
    refused("broken", python, &[("app.py", "def run(:\n")], "SyntaxError");
    refused("dying", python, &[("app.py", "raise SystemExit(7)\n")], "7");
    let listed: Value = serde_json::from_slice(&node.ask("GET", "/v1/functions", "").2).unwrap();
    assert_eq!(listed["functions"].as_array().map(Vec::len), Some(0), "{listed}");
}
