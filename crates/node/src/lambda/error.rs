//! Errors as AWS Lambda answers them: a status, a name in `x-amzn-ErrorType`, and a JSON body.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::json;

/// Characters of a client's value that an error repeats.
const SHOWN_CHARS: usize = 256;

/// What a client is told when an operation is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Members of the request do not have the form AWS's model states.
    #[error("{}", validation_text(violations))]
    Validation { violations: Vec<String> },
    #[error("{message}")]
    InvalidParameterValue { message: String },
    #[error("{message}")]
    InvalidRequestContent { message: String },
    #[error("{message}")]
    ResourceNotFound { message: String },
    #[error("{message}")]
    ResourceConflict { message: String },
    #[error("{message}")]
    PreconditionFailed { message: String },
    #[error("Request must be smaller than {limit} bytes for the {operation} operation")]
    RequestTooLarge { limit: usize, operation: &'static str },
    #[error("{message}")]
    CodeStorageExceeded { message: String },
    #[error("{message}")]
    TooManyRequests { reason: ThrottleReason, message: String, retry_after: Option<Duration> },
    /// The function's instances do not start.
    #[error("{message}")]
    ResourceNotReady { message: String },
    /// Waited past its deadline and was dropped; no AWS client retries this by itself.
    #[error("{message}")]
    DeadlineExpired { message: String },
    /// The node is going down or cannot look at the request now; AWS clients retry this.
    #[error("{message}")]
    Unavailable { message: String, retry_after: Duration },
    /// AWS has it, this node does not.
    #[error("{what} is not supported by this node yet")]
    NotSupported { what: String },
    #[error("there is no operation `{method} {path}` in the Lambda API")]
    UnknownOperation { method: Method, path: String },
    #[error("{message}")]
    Service { message: String },
}

/// Which limit an invocation met, in AWS's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThrottleReason {
    /// Best effort is full.
    Concurrency,
    /// The function is over the rate it was guaranteed.
    GuaranteedRate,
    /// The caller sends more than a connection or the node's front may.
    CallerRate,
}

impl ThrottleReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Concurrency => "ConcurrentInvocationLimitExceeded",
            Self::GuaranteedRate => "ReservedFunctionInvocationRateLimitExceeded",
            Self::CallerRate => "CallerRateLimitExceeded",
        }
    }
}

fn validation_text(violations: &[String]) -> String {
    let count = violations.len();
    let errors = if count == 1 { "error" } else { "errors" };
    format!("{count} validation {errors} detected: {}", violations.join("; "))
}

fn shown(value: &str) -> String {
    value.chars().take(SHOWN_CHARS).collect()
}

/// One constraint that a member of a request breaks, in AWS's words.
#[must_use]
pub(super) fn violation(value: &str, member: &str, constraint: &str) -> String {
    format!("Value '{}' at '{member}' failed to satisfy constraint: Member must {constraint}", shown(value))
}

impl Error {
    /// A change whose client saw another revision than the current one.
    #[must_use]
    pub fn stale_revision() -> Self {
        let message = "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the latest Revision Id";
        Self::PreconditionFailed { message: message.to_owned() }
    }

    /// A member that does not match its pattern.
    #[must_use]
    pub fn pattern(value: &str, member: &str, pattern: &str) -> Self {
        Self::Validation { violations: vec![violation(value, member, &format!("satisfy regular expression pattern: {pattern}"))] }
    }

    /// A member that is longer than it may be.
    #[must_use]
    pub fn too_long(value: &str, member: &str, limit: usize) -> Self {
        Self::Validation { violations: vec![violation(value, member, &format!("have length less than or equal to {limit}"))] }
    }

    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Validation { .. }
            | Self::InvalidParameterValue { .. }
            | Self::InvalidRequestContent { .. }
            | Self::CodeStorageExceeded { .. } => StatusCode::BAD_REQUEST,
            Self::ResourceNotFound { .. } | Self::UnknownOperation { .. } => StatusCode::NOT_FOUND,
            Self::ResourceConflict { .. } => StatusCode::CONFLICT,
            Self::PreconditionFailed { .. } => StatusCode::PRECONDITION_FAILED,
            Self::RequestTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::ResourceNotReady { .. } => StatusCode::BAD_GATEWAY,
            Self::DeadlineExpired { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotSupported { .. } => StatusCode::NOT_IMPLEMENTED,
            Self::Service { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The error's name, which clients raise it under.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Validation { .. } => "ValidationException",
            Self::InvalidParameterValue { .. } => "InvalidParameterValueException",
            Self::InvalidRequestContent { .. } => "InvalidRequestContentException",
            Self::ResourceNotFound { .. } => "ResourceNotFoundException",
            Self::ResourceConflict { .. } => "ResourceConflictException",
            Self::PreconditionFailed { .. } => "PreconditionFailedException",
            Self::RequestTooLarge { .. } => "RequestTooLargeException",
            Self::CodeStorageExceeded { .. } => "CodeStorageExceededException",
            Self::TooManyRequests { .. } => "TooManyRequestsException",
            Self::ResourceNotReady { .. } => "ResourceNotReadyException",
            Self::DeadlineExpired { .. } => "DeadlineExpiredException",
            Self::Unavailable { .. } => "ServiceUnavailableException",
            Self::NotSupported { .. } => "NotImplementedException",
            Self::UnknownOperation { .. } => "UnknownOperationException",
            Self::Service { .. } => "ServiceException",
        }
    }

    /// AWS's models spell the member `Message` for some errors and `message` for others; clients read the model.
    fn message_key(&self) -> &'static str {
        match self {
            Self::ResourceNotFound { .. } | Self::Service { .. } => "Message",
            Self::Validation { .. }
            | Self::InvalidParameterValue { .. }
            | Self::InvalidRequestContent { .. }
            | Self::ResourceConflict { .. }
            | Self::PreconditionFailed { .. }
            | Self::RequestTooLarge { .. }
            | Self::CodeStorageExceeded { .. }
            | Self::TooManyRequests { .. }
            | Self::ResourceNotReady { .. }
            | Self::DeadlineExpired { .. }
            | Self::Unavailable { .. }
            | Self::NotSupported { .. }
            | Self::UnknownOperation { .. } => "message",
        }
    }

    /// How long the client should wait, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after, .. } => *retry_after,
            Self::Unavailable { retry_after, .. } => Some(*retry_after),
            Self::Validation { .. }
            | Self::InvalidParameterValue { .. }
            | Self::InvalidRequestContent { .. }
            | Self::ResourceNotFound { .. }
            | Self::ResourceConflict { .. }
            | Self::PreconditionFailed { .. }
            | Self::RequestTooLarge { .. }
            | Self::CodeStorageExceeded { .. }
            | Self::ResourceNotReady { .. }
            | Self::DeadlineExpired { .. }
            | Self::NotSupported { .. }
            | Self::UnknownOperation { .. }
            | Self::Service { .. } => None,
        }
    }

    /// The answer, without the request id, which the front adds to every answer.
    #[must_use]
    pub fn response(&self) -> Response<Bytes> {
        let side = if self.status().is_server_error() { "Service" } else { "User" };
        let mut body = json!({ "Type": side, self.message_key(): self.to_string() });
        if let (Self::TooManyRequests { reason, .. }, Some(members)) = (self, body.as_object_mut()) {
            members.insert("Reason".to_owned(), reason.as_str().into());
        }
        let mut response = Response::new(Bytes::from(body.to_string()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-amzn-errortype", HeaderValue::from_static(self.code()));
        if let Some(wait) = self.retry_after() {
            // Whole seconds, rounded up: a client that keeps to it is let in.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() != 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            let micros = u64::try_from(wait.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
            headers.insert("x-takt-retry-after-us", HeaderValue::from(micros));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_shape_that_aws_clients_read() {
        let error = Error::pattern("x", "role", "arn:.*").response();
        assert_eq!(
            (error.status().as_u16(), &error.headers()["x-amzn-errortype"]),
            (400, &"ValidationException".parse().unwrap())
        );
        let body: serde_json::Value = serde_json::from_slice(error.body()).unwrap();
        let text = "1 validation error detected: Value 'x' at 'role' failed to satisfy constraint: Member must satisfy regular expression pattern: arn:.*";
        assert_eq!(body, json!({ "Type": "User", "message": text }));
        let missing = Error::ResourceNotFound { message: "Function not found: x".to_owned() }.response();
        assert_eq!(missing.body(), "{\"Message\":\"Function not found: x\",\"Type\":\"User\"}");
    }

    #[test]
    fn a_wait_is_told_in_whole_seconds_and_exactly() {
        let reason = ThrottleReason::GuaranteedRate;
        let retry_after = Some(Duration::from_nanos(33_000_001));
        let response = Error::TooManyRequests { reason, message: "Rate Exceeded.".to_owned(), retry_after }.response();
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["x-takt-retry-after-us"], "33001");
        let body =
            "{\"Reason\":\"ReservedFunctionInvocationRateLimitExceeded\",\"Type\":\"User\",\"message\":\"Rate Exceeded.\"}";
        assert_eq!(response.body(), body);
    }
}
