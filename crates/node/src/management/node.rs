//! `/v1/node` and `/v1/backup`: the node itself.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use model::format_duration;
use runtime::host::{Missing, Protection};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::RemainingAnswer;
use super::{Error, MAX_REQUEST_BYTES, Shared, read_json};
use crate::backup::{self, Manifest};
use crate::control::{Gate, Phase};
use crate::wall_clock;

/// The node: what it can promise, what it has promised, and how it is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodeAnswer {
    /// The version of takt.
    version: &'static str,
    uptime: String,
    /// `starting`: functions of before the restart are being brought up; then `running`.
    phase: &'static str,
    /// The best level it can give: `hard` or `soft`.
    level: String,
    /// T, as frozen.
    tolerance: String,
    /// The largest dispatch delay seen since the start.
    tolerance_seen: String,
    cores: u16,
    functions: usize,
    guarantees: usize,
    remaining: RemainingAnswer,
    memory: MemoryAnswer,
    best_effort: BestEffortAnswer,
    /// Why no guarantees are given now, if they are not.
    admission_stopped: Option<String>,
    /// What the machine and its user give the node or do not, most consequential first.
    protections: Vec<ProtectionAnswer>,
    evidence: EvidenceAnswer,
    queues: Vec<QueueAnswer>,
    /// Log lines that were lost because their queue was full.
    log_lines_lost: u64,
    /// Why unused code cannot be removed, if it cannot.
    code_problem: Option<String>,
}

/// Memory for instances of guaranteed functions.
#[derive(Debug, Serialize, ToSchema)]
struct MemoryAnswer {
    used_mib: u64,
    limit_mib: u64,
}

/// Invocations outside any guarantee.
#[derive(Debug, Serialize, ToSchema)]
struct BestEffortAnswer {
    waiting: u64,
    running: u64,
}

/// Something that a machine and its user give a node, or do not.
#[derive(Debug, Serialize, ToSchema)]
struct ProtectionAnswer {
    name: String,
    /// `null`: it is in force.
    missing: Option<MissingAnswer>,
}

/// Why something is not there, what follows, and what to do.
#[derive(Debug, Serialize, ToSchema)]
struct MissingAnswer {
    reason: String,
    consequence: String,
    remedy: String,
}

impl From<Protection> for ProtectionAnswer {
    fn from(Protection { name, missing }: Protection) -> Self {
        let missing = missing.map(|Missing { reason, consequence, remedy }| MissingAnswer { reason, consequence, remedy });
        Self { name, missing }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct EvidenceAnswer {
    records_written: u64,
    records_lost: u64,
    bytes: u64,
    problem: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct QueueAnswer {
    name: &'static str,
    length: u64,
    limit: u64,
}

#[utoipa::path(get, path = "/v1/node", responses((status = 200, body = NodeAnswer)))]
pub(super) async fn show(State(shared): State<Shared>) -> Json<NodeAnswer> {
    let view = shared.control.view();
    let report = shared.host.report();
    let capacity = view.book.capacity();
    let control = QueueAnswer {
        name: "control",
        length: u64::try_from(shared.control.waiting()).unwrap_or(u64::MAX),
        limit: u64::try_from(crate::control::MAX_WAITING).unwrap_or(u64::MAX),
    };
    let queues = report.queues.iter().map(|it| QueueAnswer { name: it.name, length: it.length, limit: it.limit });
    Json(NodeAnswer {
        version: env!("CARGO_PKG_VERSION"),
        uptime: format_duration(report.uptime),
        phase: match view.phase {
            Phase::Starting => "starting",
            Phase::Running => "running",
        },
        level: capacity.level.to_string(),
        tolerance: format_duration(capacity.tolerance),
        tolerance_seen: format_duration(report.tolerance_seen),
        cores: capacity.cores,
        functions: view.functions.len(),
        guarantees: view.book.grants().len(),
        remaining: RemainingAnswer::new(view.book.remaining()),
        memory: MemoryAnswer {
            used_mib: capacity.memory.saturating_sub(view.book.remaining().memory_bytes) >> 20,
            limit_mib: capacity.memory >> 20,
        },
        best_effort: BestEffortAnswer { waiting: report.best_effort.waiting, running: report.best_effort.running },
        admission_stopped: match &view.gate {
            Gate::Open => None,
            Gate::Shut { reason } => Some(reason.clone()),
        },
        protections: report.protections.into_iter().map(ProtectionAnswer::from).collect(),
        evidence: EvidenceAnswer {
            records_written: report.evidence.records_written,
            records_lost: report.evidence.records_lost,
            bytes: report.evidence.bytes,
            problem: report.evidence.problem.clone(),
        },
        queues: queues.chain([control]).collect(),
        log_lines_lost: shared.logs.refused(),
        code_problem: view.code_problem.clone(),
    })
}

/// A backup to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BackupRequest {
    /// An absolute path on the node's machine, outside its data directory, that does not exist yet.
    to: String,
}

/// A backup that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BackupAnswer {
    to: String,
    /// The data-format version in it.
    format: usize,
    files: u64,
    bytes: u64,
    /// Unix time, milliseconds.
    made_ms: u64,
}

/// Copies registry, code and evidence into a new folder while the node runs.
#[utoipa::path(post, path = "/v1/backup", request_body = BackupRequest, responses((status = 200, body = BackupAnswer), (status = 409)))]
pub(super) async fn backup(State(shared): State<Shared>, body: Body) -> Result<Json<BackupAnswer>, Error> {
    let asked: BackupRequest = read_json(body, MAX_REQUEST_BYTES).await?;
    let permit = Arc::clone(&shared.backups).try_acquire_owned();
    let permit = permit.map_err(|_| Error::Busy { what: "backups", limit: 1 })?;
    let source = shared.data.clone().ok_or(Error::NoData)?;
    let codes = shared.codes.clone();
    let target = PathBuf::from(&asked.to);
    let made = tokio::task::spawn_blocking(move || {
        let _one_at_a_time = permit;
        let now_ms = u64::try_from(wall_clock::since_1970().as_millis()).unwrap_or(u64::MAX);
        backup::make(backup::Source { data: &source.folder, store: &source.store, codes: &codes, now_ms }, &target)
    });
    let made: Result<Manifest, backup::Error> = made.await.map_err(|error| Error::Internal { reason: error.to_string() })?;
    let Manifest { format, made_ms, files, bytes, .. } = made.map_err(|source| Error::Backup { source })?;
    Ok(Json(BackupAnswer { to: asked.to, format, files, bytes, made_ms }))
}
