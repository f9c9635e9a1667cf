//! A node of a demonstration's own: a child process with a folder and a port of its own, gone when the value is.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde::Deserialize;

use crate::args::NodeArgs;
use crate::client::Client;
use crate::scratch::Scratch;

/// A node that is not ready by then will not be.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node that was told to stop may take; then it is killed, and its instances with it.
const STOP_WITHIN: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// How much of what a node printed is shown when it does not start.
const MAX_SHOWN_BYTES: usize = 4_096;
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// What a node says when it is ready (`takt serve --json`).
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Ready {
    pub(crate) url: String,
    pub(crate) level: String,
    pub(crate) tolerance_us: u64,
    pub(crate) missing: Vec<Missing>,
}

/// Something that this machine and user do not give a node.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Missing {
    pub(crate) name: String,
    pub(crate) consequence: String,
}

/// The node's process, stopped when dropped.
#[derive(Debug)]
pub(crate) struct OwnNode {
    child: Child,
    folder: Scratch,
}

impl OwnNode {
    /// Starts a node; it ends with this process whatever happens. Must be called on the thread that lives longest.
    pub(crate) fn spawn() -> Result<(Self, ChildStdout)> {
        let folder = Scratch::new("demo")?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let log = File::create(folder.path().join("node.log")).context("cannot make the node's log")?;
        let mut command = Command::new(program);
        command.args(["internal", "node", "--json", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path().join("data"));
        // A group of its own: Ctrl-C reaches the demonstration, which stops its node in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().context("cannot start a node")?;
        let output = child.stdout.take().context("the node has no output")?;
        Ok((Self { child, folder }, output))
    }

    /// Reads what the node says when it is ready.
    pub(crate) async fn ready(&self, output: ChildStdout) -> Result<Ready> {
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).take(MAX_LINE_BYTES).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(READY_WITHIN, reading).await;
        let line = line.with_context(|| format!("the node was not ready within {READY_WITHIN:?}"))?;
        let line = line.context("nobody read what the node said")?.context("cannot read what the node says")?;
        match serde_json::from_str(&line) {
            Ok(ready) => Ok(ready),
            Err(_) => bail!("the node did not start: {}", self.last_words(&line)),
        }
    }

    fn last_words(&self, line: &str) -> String {
        let log = fs::read_to_string(self.folder.path().join("node.log")).unwrap_or_default();
        let words = format!("{}\n{}", line.trim(), log.trim());
        let from = words.len().saturating_sub(MAX_SHOWN_BYTES);
        words.get(words.ceil_char_boundary(from)..).unwrap_or_default().trim().to_owned()
    }

    /// Where the node keeps everything.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for what the demonstration itself needs; it goes with the node.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.folder.path().join("parts")
    }

    /// How commands find it.
    pub(crate) fn arguments(&self, ready: &Ready) -> NodeArgs {
        NodeArgs { url: ready.url.clone(), token: None, data_dir: Some(self.data_dir()) }
    }

    pub(crate) fn client(&self, ready: &Ready) -> Result<Client> {
        Client::new(&self.arguments(ready))
    }

    /// Stops the node in order, so that its evidence is complete. Blocks for as long as that takes.
    pub(crate) fn stop(&mut self) -> Result<()> {
        if self.ended()? {
            return Ok(());
        }
        let process = Pid::from_child(&self.child);
        let handle = pidfd_open(process, PidfdFlags::empty()).context("cannot watch the node")?;
        kill_process(process, Signal::TERM).context("cannot tell the node to stop")?;
        let mut watched = [PollFd::new(&handle, PollFlags::IN)];
        let ended = rustix::io::retry_on_intr(|| poll(&mut watched, Some(&STOP_WITHIN)));
        if ended.context("cannot wait for the node")? == 0 {
            self.child.kill().context("cannot kill the node")?;
            self.child.wait().context("cannot wait for the node")?;
            bail!("the node did not stop within {} s and was killed", STOP_WITHIN.tv_sec);
        }
        self.child.wait().context("cannot wait for the node")?;
        Ok(())
    }

    fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("cannot wait for the node")?.is_some())
    }
}

impl Drop for OwnNode {
    fn drop(&mut self) {
        // Whoever needs the node's last words has called `stop`.
        let _ = self.stop();
    }
}
