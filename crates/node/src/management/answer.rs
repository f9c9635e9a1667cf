//! What `/v1` says of functions and guarantees.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use journal::record::Counters;
use model::{FunctionName, Guarantee, Pacing, format_duration};
use plan::admission::{Grant, Remaining, Share};
use serde::Serialize;
use utoipa::ToSchema;

use super::Report;
use crate::control::View;
use crate::registry::{Function, LastUpdate, State};

/// A function.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FunctionAnswer {
    pub name: String,
    pub tenant: String,
    /// Counts code and configurations from 1.
    pub version: u64,
    /// As its owner wrote it, such as `python3.12`.
    pub runtime: String,
    pub handler: String,
    pub memory: String,
    pub timeout: String,
    /// `guaranteed`, `best-effort`, `suspended`, `pending` or `failed`.
    pub standing: &'static str,
    /// Why it is suspended or failed.
    pub reason: Option<String>,
    /// `successful`, `in-progress` or `failed`: the last change. After a failed one the version before it serves.
    pub last_update: &'static str,
    pub last_update_reason: Option<String>,
    /// SHA-256 of the package, hexadecimal.
    pub code_sha256: String,
    /// Size of the package.
    pub code_bytes: u64,
    /// Unix time, milliseconds.
    pub created_ms: u64,
    /// Unix time, milliseconds.
    pub modified_ms: u64,
    /// Changes with every change; a deployment may be made conditional on it.
    pub revision: u64,
    pub description: String,
    pub tags: BTreeMap<String, String>,
    /// What is promised now; `null` for none.
    pub guarantee: Option<GuaranteeAnswer>,
    /// Live counters of the guarantee.
    pub counters: Option<CountersAnswer>,
    pub instances: Option<InstancesAnswer>,
    /// Invocations that wait for a slot or an instance.
    pub waiting: Option<u64>,
}

/// A guarantee with its numbers. Durations are texts with units.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct GuaranteeAnswer {
    /// `hard` or `soft`.
    pub level: String,
    /// Such as "30/s"; `null` where a rate class is shared.
    pub rate: Option<String>,
    /// The terms as stated, defaults filled in.
    pub terms: BTreeMap<&'static str, String>,
    /// K: instances that may exist.
    pub instances: u32,
    /// W: instances kept ready.
    pub warm: u32,
    /// B: the promised start delay.
    pub start_within: String,
    /// S: the worst start delay now as analysed, without T.
    pub start_bound: String,
    /// D: the promised end after arrival.
    pub deadline: Option<String>,
    /// R: the worst end after the conforming start now as analysed, without T.
    pub response_bound: String,
    /// T: the dispatch tolerance as frozen, part of both S + T <= B and R + T <= D.
    pub tolerance: String,
    /// Where its instances run.
    pub shards: Vec<ShardAnswer>,
    /// Records of invocations name it; rises with every change and restart. `null` in a dry run.
    pub generation: Option<u64>,
    /// Guarantees are re-admitted in this order. `null` in a dry run.
    pub order: Option<u64>,
    /// Live counters of this generation.
    pub counters: Option<CountersAnswer>,
    /// What the node has left.
    pub remaining: RemainingAnswer,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ShardAnswer {
    pub core: u16,
    /// SCHED_FIFO priority.
    pub priority: u8,
    pub instances: u32,
    pub warm: u32,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CountersAnswer {
    pub arrivals: u64,
    pub conforming: u64,
    pub excess: u64,
    pub expired: u64,
    pub refused: u64,
    pub start_violations: u64,
    /// Microseconds; 99 of 100 starts were not later after their slot.
    pub start_delay_p99_us: Option<u64>,
    pub deadline_misses: u64,
    pub violations_by_cause: BTreeMap<&'static str, u64>,
    /// Time leases held instances without use.
    pub held: String,
}

/// What is left for further guarantees.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RemainingAnswer {
    /// Each core, from core 0.
    pub cores: Vec<ShareAnswer>,
    /// The front's part of its core, for taking and answering requests.
    pub front: ShareAnswer,
    pub memory_bytes: u64,
    pub instances: u32,
}

/// How much of a core is promised, in billionths of a core.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ShareAnswer {
    pub used_nanocores: u64,
    pub limit_nanocores: u64,
}

impl ShareAnswer {
    fn new(share: &Share) -> Self {
        Self { used_nanocores: share.used_nanocores, limit_nanocores: share.limit_nanocores }
    }
}

/// The instances of a function now.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct InstancesAnswer {
    pub busy: u64,
    pub idle: u64,
}

/// The causes of violations, in the order of the counters.
pub(super) const CAUSES: [&str; 6] = ["steal", "overrun", "function", "host-call", "bug", "unknown"];

/// What one look at the node saw.
pub(super) struct Seen {
    pub(super) view: Arc<View>,
    pub(super) counters: Vec<Counters>,
    pub(super) report: Report,
}

impl Seen {
    pub(super) fn function(&self, function: &Function) -> FunctionAnswer {
        let mut answer = FunctionAnswer::new(&self.view, function);
        answer.guarantee = self.guarantee(&function.current.spec.name);
        answer.counters = answer.guarantee.as_ref().and_then(|guarantee| guarantee.counters.clone());
        if let Some(usage) = self.report.usage.iter().find(|usage| usage.function == answer.name) {
            answer.instances = Some(InstancesAnswer { busy: usage.busy, idle: usage.idle });
            answer.waiting = Some(usage.waiting);
        }
        answer
    }

    /// The guarantee of a function with its live counters; `None` when it has none in force.
    pub(super) fn guarantee(&self, name: &FunctionName) -> Option<GuaranteeAnswer> {
        let mut answer = GuaranteeAnswer::of(&self.view, name)?;
        let mine = |it: &&Counters| it.function == name.as_str() && Some(it.generation) == answer.generation;
        answer.counters = self.counters.iter().find(mine).map(|counters| {
            let usage = self.report.usage.iter().find(|usage| usage.function == counters.function);
            CountersAnswer::new(counters, usage.and_then(|usage| usage.start_delay_p99))
        });
        Some(answer)
    }
}

impl FunctionAnswer {
    fn new(view: &View, function: &Function) -> Self {
        let deployed = &function.current;
        let spec = &deployed.spec;
        let (standing, reason) = standing(view, function);
        let (last_update, last_update_reason) = match &function.last_update {
            LastUpdate::Successful => ("successful", None),
            LastUpdate::InProgress => ("in-progress", None),
            LastUpdate::Failed { reason } => ("failed", Some(reason.clone())),
        };
        Self {
            name: spec.name.to_string(),
            tenant: spec.tenant.to_string(),
            version: deployed.version.0,
            runtime: spec.runtime_name.clone(),
            handler: spec.handler.clone(),
            memory: spec.memory.to_string(),
            timeout: format_duration(spec.timeout),
            standing,
            reason,
            last_update,
            last_update_reason,
            code_sha256: deployed.code.id.to_string(),
            code_bytes: deployed.code.bytes,
            created_ms: function.created_ms,
            modified_ms: function.modified_ms,
            revision: function.revision,
            description: spec.description.clone(),
            tags: spec.tags.clone(),
            guarantee: None,
            counters: None,
            instances: None,
            waiting: None,
        }
    }
}

/// How a function stands, in one word, and why.
pub(super) fn standing(view: &View, function: &Function) -> (&'static str, Option<String>) {
    match &function.state {
        State::Pending => ("pending", None),
        State::Failed { reason } => ("failed", Some(reason.clone())),
        State::Suspended { reason } => ("suspended", Some(reason.clone())),
        State::Active if view.grant(&function.current.spec.name).is_some() => ("guaranteed", None),
        State::Active => ("best-effort", None),
    }
}

impl GuaranteeAnswer {
    /// The guarantee of a function as it stands; `None` when it has none in force.
    pub(super) fn of(view: &View, name: &FunctionName) -> Option<Self> {
        let grant = view.grant(name)?;
        let admitted = view.functions.get(name).and_then(|function| function.admitted);
        let mut answer = Self::granted(grant, view.book.remaining());
        answer.generation = admitted.map(|admitted| admitted.generation);
        answer.order = admitted.map(|admitted| admitted.order);
        Some(answer)
    }

    /// What admission grants, or would grant.
    pub(super) fn granted(grant: &Grant, remaining: &Remaining) -> Self {
        let terms = &grant.demand.terms;
        let shard = |shard: &plan::admission::Shard| ShardAnswer {
            core: shard.core,
            priority: shard.priority,
            instances: shard.instances,
            warm: shard.warm,
        };
        Self {
            level: grant.level.to_string(),
            rate: match &terms.pacing {
                Pacing::Own { rate, .. } => Some(rate.to_string()),
                Pacing::Shared(_) => None,
            },
            terms: stated(terms),
            instances: grant.instances(),
            warm: grant.warm(),
            start_within: format_duration(terms.start_within),
            start_bound: format_duration(grant.start_bound),
            deadline: terms.deadline.map(|deadline| deadline.to_string()),
            response_bound: format_duration(grant.response_bound),
            tolerance: format_duration(grant.tolerance),
            shards: grant.shards.iter().map(shard).collect(),
            generation: None,
            order: None,
            counters: None,
            remaining: RemainingAnswer::new(remaining),
        }
    }
}

/// Terms as pairs, each a key of `[guarantee]`.
fn stated(terms: &Guarantee) -> BTreeMap<&'static str, String> {
    let whole = model::Terms {
        pacing: terms.pacing.clone(),
        max_run_time: Some(model::DurationText(terms.max_run_time)),
        cpu: terms.cpu,
        start_within: Some(model::DurationText(terms.start_within)),
        deadline: terms.deadline,
        overflow: terms.overflow,
        require: terms.require,
        on_overrun: terms.on_overrun,
        lead: terms.lead,
    };
    whole.to_pairs().into_iter().collect()
}

impl CountersAnswer {
    fn new(counters: &Counters, start_delay_p99: Option<Duration>) -> Self {
        Self {
            arrivals: counters.arrivals,
            conforming: counters.conforming,
            excess: counters.excess,
            expired: counters.expired,
            refused: counters.refused,
            start_violations: counters.start_violations,
            start_delay_p99_us: start_delay_p99.map(|delay| u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)),
            deadline_misses: counters.deadline_misses,
            violations_by_cause: CAUSES.into_iter().zip(counters.by_cause).collect(),
            held: format_duration(counters.held),
        }
    }
}

impl RemainingAnswer {
    pub(super) fn new(remaining: &Remaining) -> Self {
        Self {
            cores: remaining.cores.iter().map(ShareAnswer::new).collect(),
            front: ShareAnswer::new(&remaining.front),
            memory_bytes: remaining.memory_bytes,
            instances: remaining.instances,
        }
    }
}
