//! The management front: Takt's own API under `/v1`, AWS's function management at its own paths, and `/metrics`.
//!
//! It translates. What is asked for is done by the control plane, or read from its published view; whoever accepts the
//! connections has checked keys, Host and Origin before a request comes here. Every body, page and stream has a limit.

mod answer;
mod aws;
mod error;
mod functions;
mod guarantee;
mod keyring;
mod logs;
mod metrics;
mod node;
mod openapi;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::routing::{MethodRouter, get, post, put};
use http::StatusCode;
use runtime::host::Protection;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use answer::Seen;
pub use answer::{FunctionAnswer, GuaranteeAnswer};
pub use error::Error;
pub use openapi::document;

use crate::auth::keys::{self, Keys};
use crate::code::Codes;
use crate::control::Handle;
use crate::lambda::Home;
use crate::lane::counts::Counts;
use crate::lanes::Pending;
use crate::logs::Logs;
use crate::store::Sqlite;

/// Bytes of a request that carries a package: AWS's limit for CreateFunction.
pub const MAX_PACKAGE_REQUEST_BYTES: usize = 70_167_211;
/// Bytes of any other request.
pub const MAX_REQUEST_BYTES: usize = 256 << 10;
/// Requests with packages held in memory at once.
const MAX_PACKAGES: usize = 2;
/// Logs followed at once.
const MAX_FOLLOWERS: usize = 32;

/// What the node reports of itself beside what control knows.
pub trait Host: Send + Sync + 'static {
    /// The state now. Called for every look at the node or its metrics; must not block.
    fn report(&self) -> Report;
}

/// A node as its own parts see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub uptime: Duration,
    /// What the machine and its user give the node or do not, most consequential first.
    pub protections: Vec<Protection>,
    pub evidence: EvidenceHealth,
    pub queues: Vec<Queue>,
    pub traffic: Vec<Traffic>,
    pub best_effort: BestEffort,
    /// What runs now and ran since the start, per function.
    pub usage: Vec<Usage>,
    /// The largest dispatch delay seen since the start.
    pub tolerance_seen: Duration,
}

/// How the recorder is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvidenceHealth {
    pub records_written: u64,
    pub records_lost: u64,
    pub bytes: u64,
    /// Why records are not written now, if they are not.
    pub problem: Option<String>,
}

/// A bounded queue of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    pub name: &'static str,
    pub length: u64,
    pub limit: u64,
}

/// What a lane did with connections and requests since the node started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    pub lane: &'static str,
    pub counts: Counts,
}

/// Invocations outside any guarantee, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BestEffort {
    pub waiting: u64,
    pub running: u64,
}

/// A function's instances, and what they held and used since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub function: String,
    /// Instances that run an invocation now.
    pub busy: u64,
    /// Instances that are ready now.
    pub idle: u64,
    /// Invocations that wait now.
    pub waiting: u64,
    /// 99 of 100 guaranteed starts were not later after their slot.
    pub start_delay_p99: Option<Duration>,
    /// The slowest start of an instance, and the most CPU one used between an answer and asking again, since its version was
    /// installed.
    pub start_slowest: Duration,
    pub returning_dearest: Duration,
    /// Time in which its reserved instances existed, summed.
    pub reserved_seconds: f64,
    /// Time in which they ran invocations, summed.
    pub used_seconds: f64,
}

/// What a backup copies from.
#[derive(Clone, Debug)]
pub struct DataSource {
    pub folder: PathBuf,
    pub store: Arc<Sqlite>,
}

/// Changes who may ask this node.
pub trait Keyring: Send + Sync + 'static {
    /// Makes new keys and closes the node to the old ones. Called for every rotation that is asked for; whoever stops waiting
    /// does not stop it.
    fn rotate(&self) -> Pending<Result<Keys, RotationError>>;
}

/// Why the keys are not the ones that were wanted.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("the keys were not changed")]
    File { source: keys::Error },
    #[error("the keys are being changed already; try again")]
    Busy,
    #[error("the node is shutting down; its next start reads new keys")]
    Closed,
}

/// What the management front is made of.
#[derive(Clone)]
pub struct Parts {
    pub control: Handle,
    pub logs: Logs,
    pub codes: Codes,
    pub host: Arc<dyn Host>,
    pub home: Home,
    /// How clients reach this node, such as `http://127.0.0.1:9000`: where packages can be fetched.
    pub url: String,
    pub data: Option<DataSource>,
    pub keyring: Arc<dyn Keyring>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("url", &self.url).field("home", &self.home).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Shared {
    parts: Arc<Parts>,
    packages: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    backups: Arc<Semaphore>,
}

impl std::ops::Deref for Shared {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// The routes. The caller has authenticated every request.
pub fn router(parts: Parts) -> Router {
    let shared = Shared {
        parts: Arc::new(parts),
        packages: Arc::new(Semaphore::new(MAX_PACKAGES)),
        followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
        backups: Arc::new(Semaphore::new(1)),
    };
    let router = routes().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    router
        .method_not_allowed_fallback(not_allowed)
        .fallback(aws::answer)
        .layer(DefaultBodyLimit::disable()) // every handler states its own
        .with_state(shared)
}

/// Every path of the management front but AWS's; a test holds them against the description.
fn routes() -> [(&'static str, MethodRouter<Shared>); 15] {
    let function = get(functions::show).put(functions::deploy).delete(functions::delete);
    let guarantee = get(guarantee::show).put(guarantee::set).delete(guarantee::withdraw);
    let rate_class = put(guarantee::put_rate_class).delete(guarantee::delete_rate_class);
    [
        ("/v1/functions", get(functions::list)),
        ("/v1/functions/{name}", function),
        ("/v1/functions/{name}/code", get(functions::code)),
        ("/v1/functions/{name}/guarantee", guarantee),
        ("/v1/functions/{name}/guarantee/explain", get(guarantee::explain)),
        ("/v1/functions/{name}/pre-invoke", post(guarantee::pre_invoke)),
        ("/v1/functions/{name}/logs", get(logs::read)),
        ("/v1/admission", post(guarantee::would_admit)),
        ("/v1/rate-classes", get(guarantee::list_rate_classes)),
        ("/v1/rate-classes/{name}", rate_class),
        ("/v1/node", get(node::show)),
        ("/v1/backup", post(node::backup)),
        ("/v1/keys/rotate", post(keyring::rotate)),
        ("/v1/openapi.json", get(openapi::show)),
        ("/metrics", get(metrics::show)),
    ]
}

async fn not_allowed(State(_): State<Shared>, request: Request) -> Error {
    Error::NotAllowed { method: request.method().clone(), path: request.uri().path().chars().take(200).collect() }
}

/// Reads a body of at most `limit` bytes.
async fn read_body(body: Body, limit: usize) -> Result<Bytes, Error> {
    axum::body::to_bytes(body, limit).await.map_err(|_| Error::TooLarge { limit })
}

async fn read_json<T: DeserializeOwned>(body: Body, limit: usize) -> Result<T, Error> {
    let bytes = read_body(body, limit).await?;
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(bytes).map_err(|source| Error::Body { reason: source.to_string() })
}

impl Shared {
    async fn look(&self) -> Result<Seen, Error> {
        let counters = self.control.counters().await?;
        Ok(Seen { view: self.control.view(), counters, report: self.host.report() })
    }

    /// The right to hold one package in memory.
    fn package(&self) -> Result<OwnedSemaphorePermit, Error> {
        let permit = Arc::clone(&self.packages).try_acquire_owned();
        permit.map_err(|_| Error::Busy { what: "requests with packages", limit: MAX_PACKAGES })
    }
}

/// An empty success.
const NO_CONTENT: StatusCode = StatusCode::NO_CONTENT;
