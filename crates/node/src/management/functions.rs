//! `/v1/functions`: what is deployed.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{StatusCode, header};
use model::{FunctionName, FunctionSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Error, FunctionAnswer, MAX_PACKAGE_REQUEST_BYTES, NO_CONTENT, Shared, read_json};
use crate::assemble::error_line;
use crate::control::{Answer, Change, Deploy};

/// Every function of the node.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FunctionList {
    functions: Vec<FunctionAnswer>,
}

/// A deployment: what the function is, as a `takt.toml` or as fields, and its code.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Deployment {
    /// The text of a `takt.toml`. Either this or `spec`.
    #[serde(default)]
    takt_toml: Option<String>,
    /// The same as fields.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    spec: Option<FunctionSpec>,
    /// A zip archive in base64. Without it the function keeps the code it has.
    #[serde(default)]
    zip: Option<String>,
}

/// Conditions on a change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Condition {
    /// The change is made only to this revision.
    #[serde(default)]
    pub(super) revision: Option<u64>,
}

/// Reads the name in a path.
pub(super) fn name(text: &str) -> Result<FunctionName, Error> {
    text.parse().map_err(|error: model::NameError| Error::Body { reason: error.to_string() })
}

#[utoipa::path(get, path = "/v1/functions", responses((status = 200, body = FunctionList)))]
pub(super) async fn list(State(shared): State<Shared>) -> Result<Json<FunctionList>, Error> {
    let seen = shared.look().await?;
    Ok(Json(FunctionList { functions: seen.view.functions.values().map(|function| seen.function(function)).collect() }))
}

#[utoipa::path(get, path = "/v1/functions/{name}", params(("name" = String, Path)),
    responses((status = 200, body = FunctionAnswer), (status = 404)))]
pub(super) async fn show(State(shared): State<Shared>, Path(text): Path<String>) -> Result<Json<FunctionAnswer>, Error> {
    let seen = shared.look().await?;
    Ok(Json(seen.function(seen.view.function(&name(&text)?)?)))
}

/// Deploys a function, new or not; answers when it serves. All or nothing: whatever the error, what served before serves.
#[utoipa::path(put, path = "/v1/functions/{name}", params(("name" = String, Path), ("revision" = Option<u64>, Query)), request_body = Deployment,
    responses((status = 200, body = FunctionAnswer), (status = 409, description = "Refused by admission, with the numbers"),
        (status = 422, description = "Its instances do not start, with their last output")))]
pub(super) async fn deploy(
    State(shared): State<Shared>,
    Path(text): Path<String>,
    Query(condition): Query<Condition>,
    body: Body,
) -> Result<Json<FunctionAnswer>, Error> {
    let name = name(&text)?;
    let _room = shared.package()?;
    let deployment: Deployment = read_json(body, MAX_PACKAGE_REQUEST_BYTES).await?;
    let mut spec = specification(deployment.takt_toml.as_deref(), deployment.spec)?;
    if spec.name != name {
        return Err(Error::Body { reason: format!("the path names `{name}`, the configuration `{}`", spec.name) });
    }
    if let Some(known) = shared.control.view().functions.get(&name).filter(|_| deployment.takt_toml.is_some()) {
        // A `takt.toml` has no tags and no role; those that AWS clients set stay.
        spec.tags.clone_from(&known.current.spec.tags);
        spec.role.clone_from(&known.current.spec.role);
    }
    let package = match deployment.zip {
        Some(text) => Some(Bytes::from(
            STANDARD.decode(text).map_err(|error| Error::Body { reason: format!("`zip` is not base64: {error}") })?,
        )),
        None => None,
    };
    let change = Change::Put { spec: Box::new(spec), package };
    let deploy = Deploy { name, change, revision: condition.revision, answer: Answer::WhenServing };
    let function = shared.control.deploy(deploy).await?;
    Ok(Json(shared.look().await?.function(&function)))
}

/// The specification that a `takt.toml` or fields state, exactly one of the two.
pub(super) fn specification(text: Option<&str>, fields: Option<FunctionSpec>) -> Result<FunctionSpec, Error> {
    match (text, fields) {
        (Some(text), None) => model::config::parse(text).map_err(|error| Error::Body { reason: error_line(&error) }),
        (None, Some(fields)) => Ok(fields),
        (None, None) | (Some(_), Some(_)) => {
            Err(Error::Body { reason: "either `takt_toml` or `spec` says what the function is".to_owned() })
        }
    }
}

#[utoipa::path(delete, path = "/v1/functions/{name}", params(("name" = String, Path), ("revision" = Option<u64>, Query)),
    responses((status = 204), (status = 404)))]
pub(super) async fn delete(
    State(shared): State<Shared>,
    Path(text): Path<String>,
    Query(condition): Query<Condition>,
) -> Result<StatusCode, Error> {
    let name = name(&text)?;
    shared.control.delete(&name, condition.revision).await?;
    shared.logs.forget(&name);
    Ok(NO_CONTENT)
}

/// The package as it was uploaded.
#[utoipa::path(get, path = "/v1/functions/{name}/code", params(("name" = String, Path)),
    responses((status = 200, content_type = "application/zip"), (status = 404)))]
pub(super) async fn code(State(shared): State<Shared>, Path(text): Path<String>) -> Result<Response, Error> {
    let view = shared.control.view();
    let id = view.function(&name(&text)?)?.current.code.id;
    let _room = shared.package()?;
    let path = shared.codes.package(&id);
    let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
    match read {
        Ok(Ok(package)) => Ok(([(header::CONTENT_TYPE, "application/zip")], package).into_response()),
        Ok(Err(error)) => Err(Error::Internal { reason: format!("the package cannot be read: {error}") }),
        Err(error) => Err(Error::Internal { reason: error.to_string() }),
    }
}
