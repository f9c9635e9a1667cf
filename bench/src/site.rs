//! What is compared: a node of its own in a folder of its own, and plain servers.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cli::args::NodeArgs;
use cli::client::{Address, Client};
use cli::package::{Dependencies, Staging};
use http::Method;
use journal::record::Record;
use node::audit::Audited;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::load::{Send, Stream};

/// How long a node may take to stop, and to fall idle.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The programs under test, built like this one.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) takt: PathBuf,
    pub(crate) burner: PathBuf,
}

impl Programs {
    /// Builds them where cargo started this program, and finds them beside it.
    pub(crate) fn find() -> Result<Self> {
        let own = std::env::current_exe().context("cannot find this program")?;
        let folder = own.parent().context("this program lies nowhere")?;
        if let Some(cargo) = std::env::var_os("CARGO") {
            let mut command = Command::new(cargo);
            command.args(["build", "--quiet", "--package", "takt-cli", "--package", "takt-bench", "--bins"]);
            if !cfg!(debug_assertions) {
                command.arg("--release");
            }
            if !command.status().context("cannot start cargo")?.success() {
                bail!("the programs under test do not build");
            }
        }
        let (takt, burner) = (folder.join("takt"), folder.join("takt-bench-burner"));
        for program in [&takt, &burner] {
            if !program.is_file() {
                bail!("{} is missing; build it with `cargo build --release --workspace --bins`", program.display());
            }
        }
        Ok(Self { takt, burner })
    }
}

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    process: Child,
    data: TempDir,
    pub(crate) url: String,
    pub(crate) client: Client,
    /// What it said when it was ready.
    pub(crate) ready: Value,
    stopped: bool,
}

impl Node {
    /// Starts one and waits until it serves.
    pub(crate) fn start(programs: &Programs) -> Result<Self> {
        Self::start_with(programs, &[])
    }

    /// The same, with more of `takt serve`'s arguments.
    pub(crate) fn start_with(programs: &Programs, arguments: &[&OsStr]) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("takt-bench-").tempdir()?;
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o755))?;
        let mut command = Command::new(&programs.takt);
        command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data.path()).args(arguments);
        let mut process = command.stdout(Stdio::piped()).spawn().context("cannot start a node")?;
        let ready: Value = serde_json::from_str(&first_line(&mut process)?).context("the node did not say that it is ready")?;
        let url = ready["url"].as_str().context("the node did not say where it is")?.to_owned();
        let args = NodeArgs { url: url.clone(), token: None, data_dir: Some(data.path().to_owned()) };
        let client = Client::new(&args)?;
        Ok(Self { process, data, url, client, ready, stopped: false })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Deploys code under the name that `toml` states; gives the node's answer.
    pub(crate) fn deploy(&self, toml: &str, zip: &str) -> Result<Value> {
        let spec = model::config::parse(toml).context("a function of the comparison is stated wrongly")?;
        let body = json!({ "takt_toml": toml, "zip": zip });
        let answer = self.client.call(Method::PUT, &format!("/v1/functions/{}", spec.name), Some(&body))?;
        answer.success().with_context(|| format!("`{}` cannot be deployed", spec.name))
    }

    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        self.client.call(Method::DELETE, &format!("/v1/functions/{name}"), None)?.success().map(drop)
    }

    /// Invocations of a function on it.
    pub(crate) fn stream(&self, name: &str, event: &str, send: Send) -> Stream {
        Stream { url: self.url.clone(), token: self.client.token.clone(), path: path(name), event: event.to_owned(), send }
    }

    /// One invocation; errors when it does not succeed.
    pub(crate) fn invoke(&self, name: &str, event: &str) -> Result<cli::client::Answer> {
        let answer = self.client.send(Method::POST, &path(name), &[("x-amz-log-type", "Tail")], event.as_bytes().to_vec())?;
        if !answer.status.is_success() || answer.headers.contains_key("x-amz-function-error") {
            bail!("`{name}` answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        Ok(answer)
    }

    /// Waits until no best-effort work is left.
    pub(crate) fn settle(&self) -> Result<()> {
        for _ in 0..PATIENCE.as_millis() / LOOK_EVERY.as_millis() {
            let node = self.client.call(Method::GET, "/v1/node", None)?.success()?;
            let left = ["waiting", "running"].map(|what| node["best_effort"][what].as_u64().unwrap_or(0));
            if left == [0, 0] {
                return Ok(());
            }
            crate::clock::pause(LOOK_EVERY);
        }
        bail!("best-effort work is left {PATIENCE:?} after its last client went away")
    }

    /// Stops the node and audits what it left, showing every record.
    pub(crate) fn audit(mut self, mut record: impl FnMut(&Record)) -> Result<Audited> {
        self.stop()?;
        node::audit::audit(self.data.path(), |entry| record(&entry.record)).context("cannot audit")
    }

    fn stop(&mut self) -> Result<()> {
        self.stopped = true;
        stop(&mut self.process)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.stopped {
            // Nothing is left to tell: the comparison has ended or failed.
            let _ = self.stop();
        }
    }
}

fn path(name: &str) -> String {
    format!("/2015-03-31/functions/{name}/invocations")
}

/// A plain server: the baseline.
#[derive(Debug)]
pub(crate) struct Plain {
    process: Child,
    url: String,
}

impl Plain {
    /// Starts a program that prints the address it listens on.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut process = command.stdout(Stdio::piped()).spawn().context("cannot start a plain server")?;
        let url = format!("http://{}", first_line(&mut process)?.trim());
        Ok(Self { process, url })
    }

    /// The burner behind its own small server.
    pub(crate) fn burner(programs: &Programs) -> Result<Self> {
        Self::start(&mut Command::new(&programs.burner))
    }

    /// One call.
    pub(crate) fn call(&self, event: &str) -> Result<()> {
        let client = Client { address: Address::parse(&self.url)?, token: "none".to_owned() };
        client.send(Method::POST, "/", &[], event.as_bytes().to_vec())?.success().map(drop)
    }

    pub(crate) fn stream(&self, event: &str, send: Send) -> Stream {
        Stream { url: self.url.clone(), token: "none".to_owned(), path: "/".to_owned(), event: event.to_owned(), send }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // It holds nothing that needs an orderly end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn first_line(process: &mut Child) -> Result<String> {
    let output = process.stdout.as_mut().context("a server without standard output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).context("a server says nothing")?;
    if line.is_empty() {
        bail!("a server ended before it was ready: {}", process.wait()?);
    }
    Ok(line)
}

fn stop(process: &mut Child) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(process.id())?).context("a process without a number")?;
    rustix::process::kill_process(pid, Signal::TERM).context("cannot stop the node")?;
    for _ in 0..PATIENCE.as_millis() / LOOK_EVERY.as_millis() {
        if process.try_wait()?.is_some() {
            return Ok(());
        }
        crate::clock::pause(LOOK_EVERY);
    }
    process.kill()?;
    process.wait()?;
    bail!("the node did not stop within {PATIENCE:?}")
}

/// A package of these files (name, content, mode), as base64.
pub(crate) fn package(toml: &str, files: &[(&str, &[u8], u32)]) -> Result<String> {
    let folder = tempfile::tempdir()?;
    for (name, content, mode) in files {
        let path = folder.path().join(name);
        fs::File::create(&path)?.write_all(content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
    }
    let spec = model::config::parse(toml).context("a function of the comparison is stated wrongly")?;
    let staging = Staging::prepare(folder.path(), spec.runtime, &mut Dependencies::default())?;
    Ok(STANDARD.encode(staging.zip()?))
}

/// The burner as the package of a `provided` function.
pub(crate) fn burner_package(programs: &Programs) -> Result<String> {
    let code = read(&programs.burner)?;
    package("name = \"burner\"\nruntime = \"provided\"\n", &[("bootstrap", &code, 0o755)])
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
