//! A real node for one test, killed with everything it started when the test ends.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::alone::alone;

/// An answer that does not come within this time is not going to; a condition is looked at as long.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOOKS: u32 = 1_500;

pub(crate) struct Node {
    pub(crate) process: Child,
    pub(crate) ready: Value,
    pub(crate) address: SocketAddr,
    pub(crate) data: PathBuf,
    token: String,
    /// Words in front of every command: how to become the node's user.
    wrapper: Vec<String>,
    folder: tempfile::TempDir,
    _alone: File,
}

/// What the node answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) error: Option<String>,
    pub(crate) body: Value,
}

impl Answer {
    #[track_caller]
    pub(crate) fn value(self) -> Value {
        assert!(self.status == 200 && self.error.is_none(), "{self:?}");
        self.body
    }

    #[track_caller]
    pub(crate) fn failed_as(&self, kind: &str) {
        assert_eq!(self.body["errorType"], kind, "{self:?}");
    }
}

pub(crate) const TAKT: &str = env!("CARGO_BIN_EXE_takt");

/// Whether this test runs with the rights to make what it needs; says so where not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("not root: nothing was tested");
    }
    root
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_as(Path::new(TAKT), &[])
    }

    /// Starts `program` behind `wrapper`, on a folder that everybody may use.
    pub(crate) fn start_as(program: &Path, wrapper: &[&str]) -> Self {
        let alone = alone().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let data = folder.path().join("data");
        let wrapper: Vec<String> = wrapper.iter().map(|word| (*word).to_owned()).collect();
        let (process, ready) = launch(&wrapper, program, &data, "127.0.0.1:0");
        let url = ready["url"].as_str().unwrap();
        let address = url.strip_prefix("http://").unwrap().parse().unwrap();
        let keys: Value = serde_json::from_slice(&std::fs::read(data.join("keys.json")).unwrap()).unwrap();
        let token = keys["token"].as_str().unwrap().to_owned();
        Self { process, ready, address, data, token, wrapper, folder, _alone: alone }
    }

    /// Starts the node again, at the same address on the same data.
    pub(crate) fn restart(&mut self) {
        let (process, ready) = launch(&self.wrapper, Path::new(TAKT), &self.data, &self.address.to_string());
        (self.process, self.ready) = (process, ready);
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Deploys the misbehaving handler under a name; `more` are lines of its takt.toml.
    pub(crate) fn deploy(&self, name: &str, more: &str) -> Output {
        self.deploy_files(name, &format!("runtime = \"python\"\n{more}"), &[("handler.py", include_str!("handler.py"))])
    }

    pub(crate) fn deploy_files(&self, name: &str, toml: &str, files: &[(&str, &str)]) -> Output {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("takt.toml"), format!("name = \"{name}\"\n{toml}")).unwrap();
        for (file, text) in files {
            std::fs::write(folder.join(file), text).unwrap();
        }
        self.deploy_folder(&folder)
    }

    pub(crate) fn deploy_folder(&self, folder: &Path) -> Output {
        let url = format!("http://{}", self.address);
        let words = ["deploy", folder.to_str().unwrap(), "--url", &url, "--token", &self.token];
        Command::new(TAKT).args(words).output().unwrap()
    }

    /// Deploys, and says what went wrong if it did.
    #[track_caller]
    pub(crate) fn must_deploy(&self, name: &str, more: &str) {
        let output = self.deploy(name, more);
        assert!(output.status.success(), "{}", text_of(&output));
    }

    pub(crate) fn invoke(&self, name: &str, event: &Value) -> Answer {
        let (status, head, body) = self.ask("POST", &format!("/2015-03-31/functions/{name}/invocations"), &event.to_string());
        let error = head.iter().find_map(|line| line.strip_prefix("x-amz-function-error: ")).map(str::to_owned);
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answer { status, error, body }
    }

    #[track_caller]
    pub(crate) fn must_serve(&self, name: &str) -> Value {
        self.invoke(name, &json!({"do": "ok"})).value()
    }

    /// One request on a connection of its own.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Vec<String>, Vec<u8>) {
        let mut stream = self.connect();
        let (address, token) = (self.address, &self.token);
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        answer(&mut BufReader::new(stream)).expect("the node answers")
    }

    /// A request as text, for tests that send it in their own way.
    pub(crate) fn request(&self, function: &str, body: &str) -> String {
        let (address, token, length) = (self.address, &self.token, body.len());
        format!(
            "POST /2015-03-31/functions/{function}/invocations HTTP/1.1\r\nHost: {address}\r\n\
             Authorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    pub(crate) fn logs(&self, name: &str) -> String {
        let (_, _, body) = self.ask("GET", &format!("/v1/functions/{name}/logs"), "");
        String::from_utf8_lossy(&body).into_owned()
    }

    /// The audit of everything written so far, read from a copy, as a reader beside the node would.
    pub(crate) fn audit(&self) -> Value {
        let output = Command::new(TAKT).args(["audit", "--json"]).arg(&self.data).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text_of(&output)))
    }

    /// As of the node's last look at itself.
    pub(crate) fn metrics(&self) -> String {
        let (status, _, body) = self.ask("GET", "/metrics", "");
        assert_eq!(status, 200);
        String::from_utf8(body).unwrap()
    }

    /// Bytes of memory the daemon holds.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let killed = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = killed {
            println!("the node could not be killed: {error}");
        }
    }
}

fn launch(wrapper: &[String], program: &Path, data: &Path, listen: &str) -> (Child, Value) {
    let mut words = wrapper.to_vec();
    words.push(program.to_str().unwrap().to_owned());
    words.extend(["serve", "--json", "--listen", listen, "--data-dir", data.to_str().unwrap()].map(str::to_owned));
    let mut process = Command::new(&words[0]).args(&words[1..]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (process, serde_json::from_str(&line).unwrap_or_else(|_| panic!("the node said `{line}`")))
}

/// Reads one answer: its status, its header lines in lower case, its body. `None` at the end of the connection.
pub(crate) fn answer(reader: &mut impl BufRead) -> Option<(u16, Vec<String>, Vec<u8>)> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap();
        let name = name.to_ascii_lowercase();
        if name == "content-length" {
            length = value.parse().unwrap();
        }
        head.push(format!("{name}: {value}"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((status, head, body))
}

pub(crate) fn text_of(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..LOOKS {
        if holds() {
            return;
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
    panic!("waited in vain: {what}");
}

/// Processes of this machine whose command line holds a text.
pub(crate) fn processes_with(text: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    all.filter(|line| String::from_utf8_lossy(line).replace('\0', " ").contains(text)).count()
}
