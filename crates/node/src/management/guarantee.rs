//! Guarantees, pre-invocations and rate classes under `/v1`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use model::{FunctionName, FunctionSpec, RateClass, Terms, brief_duration, format_duration, parse_duration};
use plan::admission::Grant;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{RemainingAnswer, standing};
use super::functions::{name, specification};
use super::{Error, GuaranteeAnswer, MAX_REQUEST_BYTES, NO_CONTENT, Shared, read_json};
use crate::control::{self, View};
use crate::lanes::LeaseError;

#[utoipa::path(get, path = "/v1/functions/{name}/guarantee", params(("name" = String, Path)),
    responses((status = 200, body = GuaranteeAnswer), (status = 404)))]
pub(super) async fn show(State(shared): State<Shared>, Path(text): Path<String>) -> Result<Json<GuaranteeAnswer>, Error> {
    in_force(&shared, &name(&text)?).await
}

async fn in_force(shared: &Shared, name: &FunctionName) -> Result<Json<GuaranteeAnswer>, Error> {
    let seen = shared.look().await?;
    seen.view.function(name)?;
    seen.guarantee(name).map(Json).ok_or_else(|| Error::NoGuarantee { function: name.to_string() })
}

/// Whether a change is made or only tried.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trial {
    /// `true`: answer what admission would, and change nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Gives a function these terms (an object with the keys of `[guarantee]`); answers when they are in force.
#[utoipa::path(put, path = "/v1/functions/{name}/guarantee", params(("name" = String, Path), ("dry_run" = bool, Query)),
    request_body(content = BTreeMap<String, String>),
    responses((status = 200, body = GuaranteeAnswer), (status = 409, description = "Refused by admission, with the numbers")))]
pub(super) async fn set(
    State(shared): State<Shared>,
    Path(text): Path<String>,
    Query(trial): Query<Trial>,
    body: Body,
) -> Result<Json<GuaranteeAnswer>, Error> {
    let name = name(&text)?;
    let pairs: BTreeMap<String, serde_json::Value> = read_json(body, MAX_REQUEST_BYTES).await?;
    let terms = terms(&name, &pairs)?;
    if trial.dry_run {
        let view = shared.control.view();
        let spec = FunctionSpec { guarantee: Some(terms), ..view.function(&name)?.current.spec.clone() };
        return tried(view, spec).await.map(Json);
    }
    shared.control.set_guarantee(&name, Some(terms)).await?;
    in_force(&shared, &name).await
}

fn terms(name: &FunctionName, pairs: &BTreeMap<String, serde_json::Value>) -> Result<Terms, Error> {
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let texts: Vec<(&str, String)> = pairs.iter().map(|(key, value)| (key.as_str(), text(value))).collect();
    let terms = Terms::from_pairs(texts.iter().map(|(key, value)| (*key, value.as_str())));
    let invalid = |source| Error::Control(control::Error::Terms { function: name.clone(), source });
    terms.map_err(invalid)?.ok_or_else(|| invalid(model::TermError::NoRate))
}

/// Asks admission on a thread of its own: the search for an offer may take a good part of a second.
async fn tried(view: Arc<View>, spec: FunctionSpec) -> Result<GuaranteeAnswer, Error> {
    let function = spec.name.to_string();
    let decided = tokio::task::spawn_blocking(move || view.would_admit(&spec)).await;
    match decided.map_err(|_| control::Error::Cancelled)?? {
        Some(answer) => Ok(GuaranteeAnswer::granted(&answer.grant, &answer.remaining)),
        None => Err(Error::NoGuarantee { function }),
    }
}

/// Takes a function's guarantee away; it runs on as best effort.
#[utoipa::path(delete, path = "/v1/functions/{name}/guarantee", params(("name" = String, Path)),
    responses((status = 204), (status = 404)))]
pub(super) async fn withdraw(State(shared): State<Shared>, Path(text): Path<String>) -> Result<StatusCode, Error> {
    shared.control.set_guarantee(&name(&text)?, None).await?;
    Ok(NO_CONTENT)
}

/// A function that is asked about before it is deployed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    #[serde(default)]
    takt_toml: Option<String>,
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    spec: Option<FunctionSpec>,
}

/// Answers what admission would say to a function now; changes nothing.
#[utoipa::path(post, path = "/v1/admission", request_body = Question,
    responses((status = 200, body = GuaranteeAnswer), (status = 409, description = "Refused by admission, with the numbers")))]
pub(super) async fn would_admit(State(shared): State<Shared>, body: Body) -> Result<Json<GuaranteeAnswer>, Error> {
    let question: Question = read_json(body, MAX_REQUEST_BYTES).await?;
    let spec = specification(question.takt_toml.as_deref(), question.spec)?;
    tried(shared.control.view(), spec).await.map(Json)
}

/// A guarantee in words, with the numbers it rests on.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Explanation {
    function: String,
    standing: &'static str,
    /// Why it is suspended or failed.
    reason: Option<String>,
    /// One sentence per line.
    explanation: Vec<String>,
    guarantee: Option<GuaranteeAnswer>,
    remaining: RemainingAnswer,
}

#[utoipa::path(get, path = "/v1/functions/{name}/guarantee/explain", params(("name" = String, Path)),
    responses((status = 200, body = Explanation), (status = 404)))]
pub(super) async fn explain(State(shared): State<Shared>, Path(text): Path<String>) -> Result<Json<Explanation>, Error> {
    let name = name(&text)?;
    let view = shared.control.view();
    let function = view.function(&name)?;
    let (standing, reason) = standing(&view, function);
    let explanation = match view.grant(&name) {
        Some(grant) => sentences(grant),
        None => vec![match &reason {
            Some(reason) => format!("`{name}` is {standing}: {reason}"),
            None => format!("`{name}` has no guarantee: it runs on what is idle, and nothing is promised."),
        }],
    };
    let guarantee = GuaranteeAnswer::of(&view, &name);
    let remaining = RemainingAnswer::new(view.book.remaining());
    Ok(Json(Explanation { function: name.to_string(), standing, reason, explanation, guarantee, remaining }))
}

fn sentences(grant: &Grant) -> Vec<String> {
    let terms = &grant.demand.terms;
    let (function, level, tolerance) = (&grant.demand.function, grant.level, brief_duration(grant.tolerance));
    let start = brief_duration(grant.start_bound + grant.tolerance);
    let mut lines = vec![
        match (&terms.pacing, &grant.demand.rate_class) {
            (model::Pacing::Own { rate, burst }, _) => {
                format!("`{function}` may be invoked {rate}, and {burst} at once; this is guaranteed at level {level}.")
            }
            (model::Pacing::Shared(class), shared) => {
                let rate = shared.as_ref().map_or_else(String::new, |class| format!(" of {}", class.rate));
                format!("`{function}` shares the rate{rate} of class `{class}`, guaranteed at level {level}.")
            }
        },
        format!(
            "A conforming invocation starts within {} of its slot; as things stand within {start}, of which {tolerance} are the dispatch tolerance of this node.",
            format_duration(terms.start_within)
        ),
        format!(
            "It may take {} of its own time and {} of CPU; beyond, it is stopped.",
            format_duration(terms.max_run_time),
            format_duration(terms.cpu_budget())
        ),
    ];
    if let Some(deadline) = terms.deadline {
        let response = brief_duration(grant.response_bound + grant.tolerance);
        lines.push(format!("It ends within {deadline} of its arrival; as things stand within {response} of its slot."));
    }
    lines.push(format!(
        "{} instances may exist and {} are kept ready, {} MB each.",
        grant.instances(),
        grant.warm(),
        grant.demand.memory.mib()
    ));
    lines.extend(grant.shards.iter().map(|shard| {
        format!(
            "On core {}: {} instances at priority {}, {} kept ready.",
            shard.core, shard.instances, shard.priority, shard.warm
        )
    }));
    lines.push(
        "It rests on: run times enforced, the dispatch tolerance as measured, no time stolen from the machine, the node up."
            .to_owned(),
    );
    lines
}

/// A pre-invocation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PreInvocation {
    /// In how long the input will come, such as "200ms"; at most the function's declared `lead`.
    lead: String,
}

/// A held instance.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LeaseAnswer {
    /// Its input goes to `POST /v1/leases/{lease}`.
    lease: u64,
    /// From now; unused until then, the instance is free again.
    expires_in: String,
    expires_in_ns: u64,
}

/// Starts and holds an instance before its input is there.
#[utoipa::path(post, path = "/v1/functions/{name}/pre-invoke", params(("name" = String, Path)), request_body = PreInvocation,
    responses((status = 200, body = LeaseAnswer), (status = 409)))]
pub(super) async fn pre_invoke(
    State(shared): State<Shared>,
    Path(text): Path<String>,
    body: Body,
) -> Result<Json<LeaseAnswer>, Error> {
    let name = name(&text)?;
    let asked: PreInvocation = read_json(body, MAX_REQUEST_BYTES).await?;
    let lead = parse_duration(&asked.lead).map_err(|error| Error::Body { reason: format!("`lead`: {error}") })?;
    let view = shared.control.view();
    view.function(&name)?;
    check_lead(&view, &name, lead).map_err(Error::Lease)?;
    let lease = shared.control.pre_invoke(&name, lead).await?.map_err(Error::Lease)?;
    Ok(Json(LeaseAnswer {
        lease: lease.id.0,
        expires_in: format_duration(lease.expires_in),
        expires_in_ns: u64::try_from(lease.expires_in.as_nanos()).unwrap_or(u64::MAX),
    }))
}

fn check_lead(view: &View, function: &FunctionName, wanted: Duration) -> Result<(), LeaseError> {
    let declared = view.grant(function).map_or(Duration::ZERO, |grant| grant.demand.terms.lead);
    if declared.is_zero() {
        return Err(LeaseError::NoLead { function: function.clone(), wanted });
    }
    if declared < wanted {
        return Err(LeaseError::LeadTooLong { function: function.clone(), wanted, declared });
    }
    Ok(())
}

/// A rate that functions share.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RateClassTerms {
    /// Such as "30/s".
    rate: String,
    /// How many may come at once, 1 to 10,000.
    #[serde(default = "one")]
    burst: u32,
}

const fn one() -> u32 {
    1
}

/// Every rate class by its name.
#[utoipa::path(get, path = "/v1/rate-classes", responses((status = 200, body = BTreeMap<String, RateClassTerms>)))]
pub(super) async fn list_rate_classes(State(shared): State<Shared>) -> Json<BTreeMap<String, RateClassTerms>> {
    let view = shared.control.view();
    let terms = |class: &RateClass| RateClassTerms { rate: class.rate.to_string(), burst: class.burst.get() };
    Json(view.rate_classes.iter().map(|(name, class)| (name.to_string(), terms(class))).collect())
}

/// Makes a rate class, or changes one for all its functions: all or nothing, when everybody is ready for the new rate.
#[utoipa::path(put, path = "/v1/rate-classes/{name}", params(("name" = String, Path)), request_body = RateClassTerms,
    responses((status = 204), (status = 409, description = "Refused by admission; nothing changed")))]
pub(super) async fn put_rate_class(
    State(shared): State<Shared>,
    Path(text): Path<String>,
    body: Body,
) -> Result<StatusCode, Error> {
    let asked: RateClassTerms = read_json(body, MAX_REQUEST_BYTES).await?;
    let invalid = |reason: String| Error::Body { reason };
    let class = RateClass {
        name: text.parse().map_err(|error: model::NameError| invalid(error.to_string()))?,
        rate: asked.rate.parse().map_err(|error: model::RateError| invalid(error.to_string()))?,
        burst: model::Burst::new(asked.burst)
            .ok_or_else(|| invalid(format!("a burst of {} is outside the range from 1 to 10000", asked.burst)))?,
    };
    shared.control.put_rate_class(class).await?;
    Ok(NO_CONTENT)
}

/// Deletes a rate class that no function uses.
#[utoipa::path(delete, path = "/v1/rate-classes/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404), (status = 409, description = "Functions use it")))]
pub(super) async fn delete_rate_class(State(shared): State<Shared>, Path(text): Path<String>) -> Result<StatusCode, Error> {
    let name = text.parse().map_err(|error: model::NameError| Error::Body { reason: error.to_string() })?;
    shared.control.delete_rate_class(name).await?;
    Ok(NO_CONTENT)
}
