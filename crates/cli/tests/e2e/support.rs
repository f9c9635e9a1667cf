//! A node of its own for a test, and the plainest client of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::alone::alone;

/// Looks at a condition until a wait gives up; one look every 20 ms.
const LOOKS: u32 = 1_500;
/// An answer that takes longer is none.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A running `takt serve`. It is killed when it is dropped; what it said is printed when the test failed.
pub(crate) struct Node {
    child: Child,
    said: PathBuf,
    /// The line it printed when it was ready.
    pub(crate) ready: Value,
    pub(crate) address: SocketAddr,
    pub(crate) data: PathBuf,
    pub(crate) token: String,
    _alone: File,
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case; those that came twice are joined by a line end.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Node {
    /// Starts a node on a data directory, with further arguments, and waits until it serves.
    pub(crate) fn start(data: &Path, arguments: &[&str]) -> Self {
        Self::start_on(&format!("127.0.0.1:{}", free_port()), data, arguments)
    }

    /// The same on a stated address.
    pub(crate) fn start_on(listen: &str, data: &Path, arguments: &[&str]) -> Self {
        let node = Self::start_by(node_command(data), (listen, data), arguments);
        if wanted_level().is_some() {
            assert_eq!(node.ready["level"], "soft", "without the right to real-time classes: {}", node.ready);
        }
        node
    }

    /// Starts a node that has these rights, whatever level is wanted.
    pub(crate) fn start_with(rights: Rights, data: &Path) -> Self {
        Self::start_by(node_command_with(rights, data), (&format!("127.0.0.1:{}", free_port()), data), &[])
    }

    fn start_by(mut command: Command, (listen, data): (&str, &Path), arguments: &[&str]) -> Self {
        let alone = alone().unwrap();
        let said = data.with_extension("stderr");
        let errors = OpenOptions::new().create(true).append(true).open(&said).unwrap();
        let mut child = command
            .args(["serve", "--json", "--listen", listen])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("the node is not ready, it said: {line}{}", fs::read_to_string(&said).unwrap()));
        let url = ready["url"].as_str().unwrap_or_else(|| panic!("the node is not ready, it said: {line}"));
        let address = url.strip_prefix("http://").unwrap().parse().unwrap();
        let token = token(data).unwrap();
        Self { child, said, ready, address, data: data.to_owned(), token, _alone: alone }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Runs the tool against this node.
    pub(crate) fn takt(&self, words: &[&str]) -> Output {
        // What reads the keys themselves runs as the node's user.
        let reads_keys = words.first().is_some_and(|word| ["env", "keys"].contains(word));
        let mut command = if reads_keys { node_command(&self.data) } else { takt_command(&self.data) };
        command.args(words).env("TAKT_URL", self.url()).output().unwrap()
    }

    /// Starts an open-loop load on a function; `words` are `--rate R --for T` and what else the tool takes.
    pub(crate) fn load(&self, name: &str, words: &[&str]) -> Load {
        let mut command = takt_command(&self.data);
        command.args(["invoke", name, "--json"]).args(words).env("TAKT_URL", self.url());
        Load(Beside(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()))
    }

    /// Processes of a function's instances, by the environment that the node gave them.
    pub(crate) fn instances_of(&self, name: &str) -> Vec<u32> {
        let mark = format!("AWS_LAMBDA_FUNCTION_NAME={name}\0");
        let runs = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.windows(mark.len()).any(|part| part == mark.as_bytes())
        };
        descendants(self.pid()).into_iter().map(|(pid, _)| pid).filter(runs).collect()
    }

    /// Runs the tool with `--json`, which must exit with 0, and reads what it printed.
    pub(crate) fn takt_json(&self, words: &[&str]) -> Value {
        let output = self.takt(&[words, &["--json"]].concat());
        assert_exit(&output, 0);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Deploys a function of one source file; the output of the tool is given back.
    pub(crate) fn deploy(&self, function: &Function<'_>) -> Output {
        let folder = TempDir::new_in(self.data.parent().unwrap()).unwrap();
        function.write(folder.path());
        self.takt(&["deploy", &folder.path().to_string_lossy(), "--json"])
    }

    /// Deploys a function that must be taken, and gives back what the node says of it.
    pub(crate) fn deployed(&self, function: &Function<'_>) -> Value {
        let output = self.deploy(function);
        assert_exit(&output, 0);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// One request with the node's token.
    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let all = [&[("Authorization", bearer.as_str())], headers].concat();
        request(self.address, &format!("{method} {path}"), &all, body)
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let answer = self.request("GET", path, &[], b"");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// AWS's Invoke.
    pub(crate) fn invoke(&self, name: &str, event: &Value) -> Answer {
        self.request("POST", &invoke_path(name), &[], event.to_string().as_bytes())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, as an operator would.
    pub(crate) fn ask_to_stop(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it ended by itself.
    pub(crate) fn ended(mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the node to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Stops it in order: the exit code must be 0.
    pub(crate) fn stop(self) {
        self.ask_to_stop();
        let said = self.said.clone();
        let status = self.ended();
        assert!(status.success(), "{status}, signal {:?}: {}", status.signal(), fs::read_to_string(said).unwrap());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended before; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("the node said:\n{}", fs::read_to_string(&self.said).unwrap_or_default());
        }
    }
}

/// A program beside the test; it is killed when it is dropped, however the test ends.
pub(crate) struct Beside(pub(crate) Child);

/// A load that runs beside the test.
pub(crate) struct Load(Beside);

impl Load {
    /// Waits for its end and reads its report.
    pub(crate) fn report(mut self) -> Value {
        let mut text = String::new();
        self.0.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.0.0.wait().unwrap();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("the load said: {text}"))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It may have ended before; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// A function folder to be.
pub(crate) struct Function<'a> {
    /// The text of its `takt.toml`.
    pub(crate) toml: &'a str,
    pub(crate) file: &'a str,
    pub(crate) code: &'a str,
}

impl Function<'_> {
    pub(crate) fn write(&self, folder: &Path) {
        fs::write(folder.join("takt.toml"), self.toml).unwrap();
        fs::write(folder.join(self.file), self.code).unwrap();
    }
}

/// A Python function with this source, named `name`, with further lines of `takt.toml`.
pub(crate) fn python(name: &str, further: &str, code: &str) -> (String, String) {
    (
        format!("name = \"{name}\"\nruntime = \"python\"\nhandler = \"main.handler\"\nmemory = \"64MB\"\n{further}"),
        code.to_owned(),
    )
}

impl Node {
    /// Deploys what [`python`] makes.
    pub(crate) fn python(&self, name: &str, further: &str, code: &str) -> Value {
        let (toml, code) = python(name, further, code);
        self.deployed(&Function { toml: &toml, file: "main.py", code: &code })
    }

    /// Tries to deploy what [`python`] makes.
    pub(crate) fn try_python(&self, name: &str, further: &str, code: &str) -> Output {
        let (toml, code) = python(name, further, code);
        self.deploy(&Function { toml: &toml, file: "main.py", code: &code })
    }
}

/// A handler that gives its event back.
pub(crate) const ECHO: &str = "def handler(event, context):\n    return event\n";

pub(crate) fn invoke_path(name: &str) -> String {
    format!("/2015-03-31/functions/{name}/invocations")
}

/// One request on a connection of its own. `line` is method and target; the `Host` is the address unless `headers` has one.
pub(crate) fn request(address: SocketAddr, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = send(address, line, headers, body);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    parse(&bytes)
}

/// Sends a request and does not wait for the answer.
pub(crate) fn send(address: SocketAddr, line: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
    let mut head = format!("{line} HTTP/1.1\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "Host") {
        head.push_str(&format!("Host: {address}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    // A server may refuse a body without reading it; what it answered is there all the same.
    let _ = stream.write_all(body);
    stream
}

pub(crate) fn parse(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {}", String::from_utf8_lossy(bytes)));
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = BTreeMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        headers
            .entry(name.to_ascii_lowercase())
            .and_modify(|known: &mut String| *known = format!("{known}\n{}", value.trim()))
            .or_insert_with(|| value.trim().to_owned());
    }
    let body = bytes[end + 4..].to_vec();
    let body = if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") { unchunked(&body) } else { body };
    Answer { status, headers, body }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
        if size == 0 {
            break;
        }
    }
    body
}

/// Waits for a condition, which must come within 30 s.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..LOOKS {
        if holds() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    panic!("waited in vain for {what}");
}

/// A program that the environment names, or `None` with a line that says what was skipped.
pub(crate) fn needs(variable: &str, story: &str) -> Option<OsString> {
    let found = std::env::var_os(variable);
    if found.is_none() {
        println!("skipped: {story} ({variable} is not set; .ci/run sets it)");
    }
    found
}

/// Where a program lies, if it is there.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists())
}

pub(crate) fn assert_exit(output: &Output, code: i32) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "out: {out}\nerr: {err}");
}

/// A process, with its start, which tells it from a later one of the same number.
pub(crate) type Process = (u32, u64);

/// Every process below this one, by the kernel's process list.
pub(crate) fn descendants(of: u32) -> BTreeSet<Process> {
    let all = processes();
    let mut found = BTreeSet::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for (process, _) in all.iter().filter(|(_, its_parent)| **its_parent == parent) {
            if found.insert(*process) {
                parents.push(process.0);
            }
        }
    }
    found
}

/// Those of these processes that still exist, zombies left out.
pub(crate) fn surviving(processes_before: &BTreeSet<Process>) -> BTreeSet<Process> {
    let now = processes();
    processes_before.iter().filter(|process| now.contains_key(process)).copied().collect()
}

/// Every living process and its parent.
fn processes() -> BTreeMap<Process, u32> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        // It may have ended since the folder was read.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        if fields[0] != "Z" {
            found.insert((pid, fields[19].parse().unwrap()), fields[1].parse().unwrap());
        }
    }
    found
}

/// The tool, with nothing of this process's environment but the path.
pub(crate) fn takt_command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_takt"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", data).env("TAKT_DATA_DIR", data);
    if is_ordinary_user()
        && let Some(token) = token(data)
    {
        // The tool of these stories is root's, and does not read another user's keys.
        command.env("TAKT_TOKEN", token);
    }
    command
}

/// The management token of the node whose data lies here, once it has one.
fn token(data: &Path) -> Option<String> {
    let keys: Value = serde_json::from_slice(&fs::read(data.join("keys.json")).ok()?).unwrap();
    Some(keys["token"].as_str().unwrap().to_owned())
}

/// The level that `TAKT_TEST_LEVEL` asks the nodes of all stories to run at; without it, the best the machine gives.
pub(crate) fn wanted_level() -> Option<String> {
    std::env::var("TAKT_TEST_LEVEL").ok()
}

/// What a node of these stories may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// All that the user who tells the stories has.
    All,
    /// The same without the right to real-time classes: control groups are left to it.
    NoRealTime,
    /// All for itself, and no right to real-time classes for the launcher and the instances that it starts.
    RealTimeForOneself,
    /// An ordinary user's.
    OfAUser,
}

/// Whether the nodes of all stories are an ordinary user's.
pub(crate) fn is_ordinary_user() -> bool {
    wanted_level().as_deref() == Some("user")
}

/// Terms as the wanted level can give them: without the real-time classes T is tens of milliseconds beside other work, and
/// bounds below it are refused as they should be. Without a wanted level they stay as stated.
pub(crate) fn at_level(terms: &str) -> String {
    let loose = |line: &str| match line.split_once(" = ") {
        Some((key @ ("start_within" | "deadline"), _)) => format!("{key} = \"{}ms\"\n", LOOSE.as_millis()),
        _ => format!("{line}\n"),
    };
    if wanted_level().is_none() { terms.to_owned() } else { terms.lines().map(loose).collect() }
}

/// What [`at_level`] makes of a bound.
pub(crate) fn bound_at_level(stated: Duration) -> Duration {
    if wanted_level().is_none() { stated } else { LOOSE }
}

/// A bound that a node without real-time classes can promise.
const LOOSE: Duration = Duration::from_secs(1);

/// The tool as a node is started with it. `TAKT_TEST_LEVEL=soft` takes the right to real-time classes away, and leaves root
/// its control groups; `TAKT_TEST_LEVEL=user` starts the node as an ordinary user.
pub(crate) fn node_command(data: &Path) -> Command {
    let rights = match wanted_level().as_deref() {
        None => Rights::All,
        Some("soft") => Rights::NoRealTime,
        Some("user") => Rights::OfAUser,
        Some(other) => panic!("TAKT_TEST_LEVEL is `soft` or `user`, not `{other}`"),
    };
    node_command_with(rights, data)
}

fn node_command_with(rights: Rights, data: &Path) -> Command {
    let plain = takt_command(data);
    let (priority, words): (&str, &[&str]) = match rights {
        Rights::All => return plain,
        Rights::NoRealTime => ("--rtprio=0:0", &["--bounding-set=-sys_nice", "--inh-caps=-sys_nice"]),
        Rights::RealTimeForOneself => return launcher_without_real_time(&plain, data),
        Rights::OfAUser => {
            let owned = Command::new("chown").args(["-R", ORDINARY_USER]).arg(data.parent().unwrap()).status().unwrap();
            assert!(owned.success());
            ("--rtprio=0:0", &["--reuid=61234", "--regid=61234", "--clear-groups"])
        }
    };
    let mut command = Command::new("prlimit");
    command.args([priority, "setpriv"]).args(words).arg(plain.get_program()).env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).env_remove("TAKT_TOKEN");
    command
}

/// A node whose program, once it runs, is covered by one that becomes a launcher without the right to real-time classes.
fn launcher_without_real_time(plain: &Command, data: &Path) -> Command {
    let folder = data.parent().unwrap();
    let (program, lesser) = (folder.join("takt"), folder.join("lesser"));
    fs::copy(plain.get_program(), &program).unwrap();
    let lowers = "exec setpriv --bounding-set=-sys_nice --inh-caps=-sys_nice";
    let script = format!("#!/bin/sh\n{lowers} {} \"$@\"\n", plain.get_program().to_string_lossy());
    fs::write(&lesser, script).unwrap();
    fs::set_permissions(&lesser, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let covers = "{ until [ \"$(readlink /proc/$$/exe)\" = \"$0\" ]; do :; done; mount --bind \"${0%takt}lesser\" \"$0\"; } & exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", covers]).arg(program).env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// Somebody no system knows.
const ORDINARY_USER: &str = "61234:61234";

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The first line; the pipe stays open, since a node may have more to say.
fn first_line(child: &mut Child) -> String {
    let output = child.stdout.as_mut().unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while output.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}
