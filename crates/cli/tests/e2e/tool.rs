//! The tool against a running node: from an empty folder to a function, its logs, a load, a backup.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Beside, ECHO, Node, assert_exit, at_level, find, needs, takt_command, wait_until};

fn node(home: &TempDir) -> Node {
    Node::start(&home.path().join("node"), &[])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Gives a made function terms that the wanted level can give.
fn loosen(folder: &Path) {
    let file = folder.join("takt.toml");
    let terms = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, at_level(&terms)).unwrap();
}

/// The function that was made in this folder, and is called like it, is admitted and answers.
fn check_template(node: &Node, folder: &Path, said: &str) {
    loosen(folder);
    let name = folder.file_name().unwrap().to_str().unwrap();
    let deployed = node.takt_json(&["deploy", &folder.to_string_lossy()]);
    assert_eq!(deployed["standing"], "guaranteed", "{deployed}");
    let called = node.takt(&["invoke", name, "--data", r#"{"name": "you"}"#]);
    assert_exit(&called, 0);
    assert!(text(&called.stdout).contains(said), "{called:?}");
    assert_exit(&node.takt(&["delete", name]), 0);
}

#[test]
fn every_template_becomes_a_guaranteed_function() {
    let home = TempDir::new().unwrap();
    let node = node(&home);
    let folder = home.path().to_string_lossy().into_owned();
    let greeting = "Hello, you!";
    for (template, needed, said) in
        [("python", "python3", greeting), ("nodejs", "node", greeting), ("provided-sh", "curl", r#"{"name": "you"}"#)]
    {
        if find(needed).is_none() {
            println!("skipped: template {template} (there is no `{needed}`)");
            continue;
        }
        assert_exit(&node.takt(&["new", template, "--template", template, "--in", &folder]), 0);
        check_template(&node, &home.path().join(template), said);
    }
    if let Some(built) = needs("TAKT_TEST_RUST_TEMPLATE", "template rust") {
        let copy = home.path().join("rust");
        std::fs::create_dir(&copy).unwrap();
        for file in ["takt.toml", "bootstrap"] {
            std::fs::copy(Path::new(&built).join(file), copy.join(file)).unwrap();
        }
        check_template(&node, &copy, greeting);
    }
    let none = node.takt(&["list"]);
    assert!(text(&none.stdout).starts_with("No functions yet"), "{none:?}");
    node.stop();
}

#[test]
fn a_folder_that_is_watched_is_served_and_served_anew_when_it_changes() {
    let home = TempDir::new().unwrap();
    let folder = home.path().join("watched");
    let made = takt_command(home.path()).args(["new", "watched", "--in"]).arg(home.path()).output().unwrap();
    assert_exit(&made, 0);
    let code = |greeting: &str| format!("def handler(event, context):\n    return \"{greeting}\"\n");
    loosen(&folder);
    std::fs::write(folder.join("handler.py"), code("first")).unwrap();
    let node = Node::start(&home.path().join("node"), &["--dev", &folder.to_string_lossy()]);
    let says = |greeting: &str| {
        let answer = node.invoke("watched", &json!({}));
        answer.status == 200 && answer.json() == json!(greeting) && answer.header("x-takt-class") == "guaranteed"
    };
    wait_until("the folder to be served", || says("first"));
    let changed = tokio::time::Instant::now();
    std::fs::write(folder.join("handler.py"), code("second")).unwrap();
    wait_until("the change to be served", || says("second"));
    println!("the change was served after {:?}", changed.elapsed());
    assert_eq!(node.get("/v1/functions/watched")["version"], 2);
    // What cannot serve is told, and the version before it goes on.
    std::fs::write(folder.join("handler.py"), "def handler(:\n").unwrap();
    wait_until("the broken version to be refused", || node.get("/v1/functions/watched")["last_update"] == "failed");
    assert!(says("second"));
    node.stop();
}

/// What the `REPORT` line of a log says.
fn most_memory_mib(log: &str) -> Option<u64> {
    let (_, rest) = log.split_once("Max Memory Used: ")?;
    rest.split_once(" MB")?.0.parse().ok()
}

#[test]
fn logs_a_load_and_a_look_at_the_node() {
    let home = TempDir::new().unwrap();
    let node = node(&home);
    let guarantee = "[guarantee]\nrate = \"20/s\"\nburst = 2\nmax_run_time = \"20ms\"\ndeadline = \"500ms\"\n";
    let code = "import sys\n\ndef handler(event, context):\n    print('out', event)\n    print('err', event, file=sys.stderr)\n    return event\n";
    node.python("loud", guarantee, code);
    let called = node.takt(&["invoke", "loud", "--data", "7", "--log"]);
    assert_exit(&called, 0);
    assert_eq!(text(&called.stdout).trim(), "7");
    assert!(text(&called.stderr).contains("out 7") && text(&called.stderr).contains("err 7"), "{called:?}");
    match most_memory_mib(&text(&called.stderr)) {
        Some(mib) => assert!((1..=128).contains(&mib), "{called:?}"),
        None => println!("skipped: no control group of this machine counts memory"),
    }
    wait_until("both lines in the log", || {
        let log = text(&node.takt(&["logs", "loud"]).stdout);
        log.contains("out 7") && log.contains("err 7")
    });
    let mut followed = takt_command(&node.data);
    let mut followed =
        followed.args(["logs", "loud", "--follow"]).env("TAKT_URL", node.url()).stdout(Stdio::piped()).spawn().unwrap();
    let report: Value = node.takt_json(&["invoke", "loud", "--rate", "15/s", "--for", "2s", "--data", "8"]);
    assert_eq!((&report["invocations"], &report["succeeded"]), (&json!(30), &json!(30)), "{report}");
    assert_eq!((&report["by_class"]["guaranteed"], &report["conforming"]), (&json!(30), &json!(30)), "{report}");
    followed.kill().unwrap();
    let followed = followed.wait_with_output().unwrap();
    assert!(text(&followed.stdout).contains("out 8"), "{followed:?}");

    let top = text(&node.takt(&["top"]).stdout);
    assert!(top.contains("loud") && top.contains("left for guarantees") && top.contains("20/s"), "{top}");
    let seen = node.get("/v1/node");
    assert_eq!((&seen["functions"], &seen["guarantees"], &seen["admission_stopped"]), (&json!(1), &json!(1), &json!(null)));
    wait_until("the node to have looked at its evidence", || node.get("/v1/node")["evidence"]["bytes"] != 0);
    let metrics = || node.request("GET", "/metrics", &[], b"").text();
    assert!(metrics().contains("takt_invocations_total{function=\"loud\""), "{}", metrics());
    let count = |metrics: &str, line: &str| {
        metrics.lines().find_map(|found| found.strip_prefix(line)?.trim().parse::<u64>().ok()).unwrap()
    };
    wait_until("the node to have looked at its lanes", || 30 <= count(&metrics(), "takt_requests_total{lane=\"guaranteed\"}"));
    let metrics = metrics();
    let [accepted, managed] = ["accepted", "moved-management"]
        .map(|what| count(&metrics, &format!("takt_connections_total{{lane=\"door\",what=\"{what}\"}}")));
    assert!(0 < managed && managed < accepted, "{metrics}");
    node.stop();
}

#[test]
fn a_restored_backup_serves_what_was_promised() {
    let home = TempDir::new().unwrap();
    let node = node(&home);
    node.python("kept", "[guarantee]\nrate = \"5/s\"\nmax_run_time = \"20ms\"\nstart_within = \"500ms\"\n", ECHO);
    assert_eq!(node.invoke("kept", &json!(1)).json(), json!(1));
    let (backup, again) = (home.path().join("backup"), home.path().join("again"));
    assert_exit(&node.takt(&["backup", "make", &backup.to_string_lossy()]), 0);
    node.stop();
    let tool = |words: &[&str]| takt_command(home.path()).args(words).output().unwrap();
    assert_exit(&tool(&["backup", "inspect", &backup.to_string_lossy()]), 0);
    assert_exit(&tool(&["backup", "restore", &backup.to_string_lossy(), &again.to_string_lossy()]), 0);
    let node = Node::start(&again, &[]);
    let answer = node.invoke("kept", &json!(2));
    assert_eq!((answer.json(), answer.header("x-takt-class")), (json!(2), "guaranteed"));
    node.stop();
}

#[test]
fn a_guarantee_is_set_and_withdrawn_while_the_function_serves() {
    let home = TempDir::new().unwrap();
    let node = node(&home);
    node.python(
        "plain",
        "[environment]\nCOLOUR = \"blue\"\n",
        "import os\n\ndef handler(event, context):\n    return os.environ['COLOUR']\n",
    );
    assert_eq!(node.invoke("plain", &json!(1)).header("x-takt-class"), "best-effort");
    let set =
        node.takt_json(&["guarantee", "set", "plain", "--rate", "5/s", "--max-run-time", "20ms", "--start-within", "500ms"]);
    assert_eq!(set["rate"], "5/s");
    let answer = node.invoke("plain", &json!(1));
    assert_eq!((answer.header("x-takt-class"), answer.json()), ("guaranteed", json!("blue")));
    let explained = node.takt(&["guarantee", "explain", "plain"]);
    assert_exit(&explained, 0);
    assert!(text(&explained.stdout).contains("5/s"), "{explained:?}");
    assert_exit(&node.takt(&["guarantee", "withdraw", "plain"]), 0);
    let answer = node.invoke("plain", &json!(1));
    assert_eq!((answer.header("x-takt-class"), answer.json()), ("best-effort", json!("blue")));
    assert_exit(&node.takt(&["guarantee", "show", "plain"]), 1);
    node.stop();
}

#[test]
fn top_draws_on_a_terminal_and_gives_it_back() {
    if find("script").is_none() {
        println!("skipped: takt top on a terminal (there is no `script`)");
        return;
    }
    let home = TempDir::new().unwrap();
    let node = node(&home);
    node.python("watched", "", ECHO);
    let tool = takt_command(&node.data);
    let words = format!("stty rows 40 cols 150; {} top; echo; stty -a", tool.get_program().to_string_lossy());
    let mut script = Command::new("script");
    script.args(["-qec", &words, "/dev/null"]).env_clear().env("TERM", "xterm").env("SHELL", "/bin/sh");
    script.envs(tool.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TAKT_URL", node.url());
    let mut script = Beside(script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut output = script.0.stdout.take().unwrap();
    let seen = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut piece = [0; 4096];
            // The terminal is gone when everybody on it has ended.
            while let Ok(count @ 1..) = output.read(&mut piece) {
                seen.lock().unwrap().extend_from_slice(&piece[..count]);
            }
        });
        // It is killed when the wait is in vain, which ends the reading.
        let mut script = script;
        wait_until("a frame with the function", || text(&seen.lock().unwrap()).contains("watched"));
        script.0.stdin.as_mut().unwrap().write_all(b"q").unwrap();
        reading.join().unwrap();
        assert!(script.0.wait().unwrap().success());
    });
    let seen = text(&seen.into_inner().unwrap());
    let (drawn, after) = seen.split_once("\x1b[?1049l").unwrap_or_else(|| panic!("the screen is not given back: {seen:?}"));
    assert!(drawn.contains("\x1b[?1049h") && drawn.contains("watched"), "{drawn:?}");
    assert!(after.contains(" icanon") && after.contains(" echo "), "lines are edited and shown again: {after:?}");
    node.stop();
}
