//! Errors of `/v1`: a status and `{"error": {"code", "message", "page", …}}`.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, StatusCode, header};
use plan::admission::{Binding, Refusal};
use serde_json::{Map, Value, json};

use super::RotationError;
use crate::lanes::LeaseError;
use crate::{backup, control};

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Control(#[from] control::Error),
    #[error("the request is not what it should be: {reason}")]
    Body { reason: String },
    #[error("the body exceeds the limit of {limit} bytes, or broke off")]
    TooLarge { limit: usize },
    #[error("{limit} {what} are being served already; try again")]
    Busy { what: &'static str, limit: usize },
    #[error("`{method}` cannot be done to {path}")]
    NotAllowed { method: Method, path: String },
    #[error("there is nothing at {path}")]
    NoPath { path: String },
    #[error("function `{function}` has no guarantee")]
    NoGuarantee { function: String },
    #[error(transparent)]
    Lease(LeaseError),
    #[error("no backup was made")]
    Backup { source: backup::Error },
    #[error("this node keeps nothing on a disk, so there is nothing to back up")]
    NoData,
    #[error("no new keys")]
    Keys { source: RotationError },
    #[error("the node could not answer: {reason}")]
    Internal { reason: String },
}

impl Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Control(error) => error.code(),
            Self::Body { .. } => "body",
            Self::TooLarge { .. } => "too-large",
            Self::Busy { .. } => "busy",
            Self::NotAllowed { .. } => "not-allowed",
            Self::NoPath { .. } => "no-path",
            Self::NoGuarantee { .. } => "no-guarantee",
            Self::Lease(_) => "no-lease",
            Self::Backup { .. } => "backup",
            Self::NoData => "no-data",
            Self::Keys { source: RotationError::File { .. } } => "keys",
            Self::Keys { source: RotationError::Busy } => "busy",
            Self::Keys { source: RotationError::Closed } => "closing",
            Self::Internal { .. } => "internal",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Control(error) => control_status(error),
            Self::Body { .. } => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy { .. } | Self::Keys { source: RotationError::Busy } => StatusCode::TOO_MANY_REQUESTS,
            Self::NotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoPath { .. } | Self::NoGuarantee { .. } => StatusCode::NOT_FOUND,
            Self::Lease(_) | Self::Backup { .. } | Self::NoData => StatusCode::CONFLICT,
            Self::Internal { .. } | Self::Keys { source: RotationError::File { .. } } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Keys { source: RotationError::Closed } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn explain(&self) -> String {
        match self {
            Self::Control(error) => error.explain(),
            Self::Backup { source } => format!("{self}: {source}"),
            Self::Keys { source: RotationError::File { source } } => format!("the keys were not changed: {source}"),
            Self::Keys { source } => source.to_string(),
            other @ (Self::Body { .. }
            | Self::TooLarge { .. }
            | Self::Busy { .. }
            | Self::NotAllowed { .. }
            | Self::NoPath { .. }
            | Self::NoGuarantee { .. }
            | Self::Lease(_)
            | Self::NoData
            | Self::Internal { .. }) => other.to_string(),
        }
    }
}

fn control_status(error: &control::Error) -> StatusCode {
    use control::Error as E;
    match error {
        E::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
        E::Closing | E::Starting | E::NoEvidence { .. } => StatusCode::SERVICE_UNAVAILABLE,
        E::NoFunction { .. } | E::NoRateClass { .. } => StatusCode::NOT_FOUND,
        E::Exists { .. } | E::InProgress { .. } | E::Refused { .. } | E::RateClassInUse { .. } => StatusCode::CONFLICT,
        E::Revision { .. } => StatusCode::PRECONDITION_FAILED,
        E::Invalid { .. } | E::Terms { .. } | E::NoCode { .. } => StatusCode::BAD_REQUEST,
        E::Code { source, .. } => match source {
            crate::code::Error::Package { .. } => StatusCode::BAD_REQUEST,
            crate::code::Error::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        },
        E::CannotServe { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        E::NotReady { .. } | E::NeighbourNotReady { .. } => StatusCode::GATEWAY_TIMEOUT,
        E::Registry { .. } | E::Cancelled => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut error = Map::new();
        error.insert("code".to_owned(), json!(self.code()));
        error.insert("message".to_owned(), json!(self.explain()));
        error.insert("page".to_owned(), json!(format!("docs/reference/errors.md#{}", self.code())));
        if let Self::Control(control::Error::Refused { source }) = &self {
            error.insert("refusal".to_owned(), refusal(source));
        }
        let status = self.status();
        let mut response = (status, axum::Json(json!({ "error": error }))).into_response();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The numbers of a refusal: the resource that binds, what is needed of it, what there is, and the largest rate that fits.
fn refusal(refusal: &Refusal) -> Value {
    let text = |duration: std::time::Duration| json!(model::format_duration(duration));
    let facts = match &refusal.binding {
        Binding::Cpu { core, needed, available } => {
            json!({ "resource": "cpu", "core": core, "needed_nanocores": needed, "available_nanocores": available })
        }
        Binding::Second { core, needed, available } => {
            json!({ "resource": "second", "core": core, "needed_ns": needed, "available_ns": available })
        }
        Binding::Front { needed, available } => {
            json!({ "resource": "front", "needed_nanocores": needed, "available_nanocores": available })
        }
        Binding::Start { function, core, bound, tolerance, promised } => json!({
            "resource": "start", "function": function, "core": core,
            "start_bound": text(*bound), "tolerance": text(*tolerance), "promised": text(*promised),
        }),
        Binding::Deadline { function, core, bound, tolerance, promised } => json!({
            "resource": "deadline", "function": function, "core": core,
            "response_bound": text(*bound), "tolerance": text(*tolerance), "promised": text(*promised),
        }),
        Binding::Unbounded { function, core } => json!({ "resource": "response", "function": function, "core": core }),
        Binding::Instances { needed, available } => {
            json!({ "resource": "instances", "needed": needed, "available": available })
        }
        Binding::Memory { needed, available } => {
            json!({ "resource": "memory", "needed_bytes": needed, "available_bytes": available })
        }
        Binding::Level { required, available } => {
            json!({ "resource": "level", "required": required, "available": available })
        }
        Binding::RateClass { class, admitted_rate, admitted_burst, asked_rate, asked_burst } => json!({
            "resource": "rate-class", "rate_class": class, "admitted_rate": admitted_rate, "admitted_burst": admitted_burst,
            "asked_rate": asked_rate, "asked_burst": asked_burst,
        }),
        Binding::Handover { needed, available } => {
            json!({ "resource": "hand-over", "needed_bytes": needed, "available_bytes": available })
        }
        Binding::Unknown => json!({ "resource": "guarantee" }),
    };
    let mut facts = facts;
    if let Some(members) = facts.as_object_mut() {
        members.insert("offer".to_owned(), json!(refusal.offer));
    }
    facts
}
