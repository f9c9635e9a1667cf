//! What the Runtime API answers, in the shapes of AWS's own emulator.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;

use super::Invocation;
use crate::http1::number;

pub(super) const INVOCATION_ID: HeaderName = HeaderName::from_static("lambda-runtime-invocation-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("lambda-runtime-aws-request-id");
const DEADLINE_MS: HeaderName = HeaderName::from_static("lambda-runtime-deadline-ms");
const FUNCTION_ARN: HeaderName = HeaderName::from_static("lambda-runtime-invoked-function-arn");
const TRACE_ID: HeaderName = HeaderName::from_static("lambda-runtime-trace-id");
const CLIENT_CONTEXT: HeaderName = HeaderName::from_static("lambda-runtime-client-context");
const COGNITO_IDENTITY: HeaderName = HeaderName::from_static("lambda-runtime-cognito-identity");
const TENANT_ID: HeaderName = HeaderName::from_static("lambda-runtime-aws-tenant-id");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What the client of an invocation is told whose result is too large.
pub(super) const TOO_LARGE_REPORT: &[u8] = b"{\"errorMessage\":\"Response payload size exceeded maximum allowed payload size (6291556 bytes).\",\"errorType\":\"Function.ResponseSizeTooLarge\"}";

fn make(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    // One of these answers every result: a map that grows by itself begins with room for six headers.
    *response.headers_mut() = HeaderMap::with_capacity(1);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// The answer to `/next`: the invocation and what the runtime is told about it.
pub(super) fn invocation(invocation: Invocation, attempt: u64) -> Response<Bytes> {
    let mut headers = HeaderMap::with_capacity(12);
    if let Ok(id) = HeaderValue::from_str(invocation.id.text().as_str()) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(INVOCATION_ID, self::attempt(attempt));
    headers.insert(DEADLINE_MS, number(invocation.deadline_epoch_ms));
    headers.insert(FUNCTION_ARN, invocation.function_arn);
    headers.insert(header::CONTENT_TYPE, invocation.content_type.unwrap_or(JSON));
    for (name, value) in [
        (TRACE_ID, invocation.trace_id),
        (CLIENT_CONTEXT, invocation.client_context),
        (COGNITO_IDENTITY, invocation.cognito_identity),
        (TENANT_ID, invocation.tenant_id),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            headers.insert(name, value);
        }
    }
    let mut response = Response::new(invocation.payload);
    *response.headers_mut() = headers;
    response
}

/// The name of one delivery within its instance.
pub(super) fn attempt(count: u64) -> HeaderValue {
    number(count)
}

pub(super) fn accepted() -> Response<Bytes> {
    make(StatusCode::ACCEPTED, JSON, Bytes::from_static(b"{\"status\":\"OK\"}\n"))
}

pub(super) fn pong() -> Response<Bytes> {
    make(StatusCode::OK, HeaderValue::from_static("text/plain; charset=utf-8"), Bytes::from_static(b"pong"))
}

pub(super) fn too_large() -> Response<Bytes> {
    error(413, "RequestEntityTooLarge", "Exceeded maximum allowed payload size (6291556 bytes).")
}

/// The emulator's legal minimum: subscriptions are accepted and never served.
pub(super) fn telemetry() -> Response<Bytes> {
    error(202, "Telemetry.NotSupported", "Telemetry API is not supported")
}

pub(super) fn not_found() -> Response<Bytes> {
    make(StatusCode::NOT_FOUND, HeaderValue::from_static("text/plain; charset=utf-8"), "404 page not found\n")
}

pub(super) fn wrong_method() -> Response<Bytes> {
    make(StatusCode::METHOD_NOT_ALLOWED, HeaderValue::from_static("text/plain; charset=utf-8"), Bytes::new())
}

pub(super) fn error(status: u16, error_type: &str, text: &str) -> Response<Bytes> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    make(status, JSON, json!({ "errorMessage": text, "errorType": error_type }).to_string())
}
