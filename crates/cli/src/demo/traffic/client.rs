//! The camera's way to a node: kept connections, one invocation each at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Method;

use super::camera::{Client, Outcome};
use crate::client;
use crate::load::{Line, exchange, open};

/// Invokes functions of a node as AWS's clients do.
#[derive(Clone, Debug)]
pub(crate) struct NodeClient {
    node: client::Client,
    /// Connections without an invocation; at most as many as were ever under way at once.
    idle: Arc<Mutex<Vec<Line>>>,
    /// An answer later than this is not waited for.
    patience: Duration,
}

impl NodeClient {
    #[must_use]
    pub(crate) fn new(node: client::Client, patience: Duration) -> Self {
        Self { node, idle: Arc::default(), patience }
    }

    /// Opens so many connections, to be used later.
    pub(crate) async fn connect(&self, connections: usize) -> anyhow::Result<()> {
        for _ in 0..connections {
            self.keep(open(&self.node.address).await?);
        }
        Ok(())
    }

    fn take(&self) -> Option<Line> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|line| !line.is_closed())
    }

    fn keep(&self, line: Line) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

impl Client for NodeClient {
    async fn invoke(&self, function: &str, payload: Bytes) -> Result<Outcome, String> {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let request = self.node.request(Method::POST, &path, &[], payload).map_err(|error| format!("{error:#}"))?;
        let exchanged = tokio::time::timeout(self.patience, exchange(self.take(), &self.node.address, request)).await;
        let exchanged = exchanged.map_err(|_| format!("no answer within {:?}", self.patience))?;
        let (head, body, line) = exchanged.map_err(|error| format!("{error:#}"))?;
        if let Some(line) = line {
            self.keep(line);
        }
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        Ok(Outcome { status: head.status.as_u16(), headers, body })
    }
}
