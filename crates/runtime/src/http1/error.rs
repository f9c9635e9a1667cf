//! What goes wrong on a connection, and what to answer.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

/// Why a request could not be read or a response not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("the request's head exceeds {limit} bytes")]
    HeadTooLong { limit: usize },
    #[error("the request has more than {limit} headers")]
    TooManyHeaders { limit: usize },
    #[error("the request's body exceeds {limit} bytes")]
    BodyTooLong { limit: usize },
    #[error("the request's head is malformed: {reason}")]
    Head { reason: &'static str },
    #[error("the request does not say clearly where its body ends: {reason}")]
    Framing { reason: &'static str },
    #[error("a transfer coding other than `chunked` is not served")]
    Coding,
    #[error("the method CONNECT is not served")]
    Method,
    #[error("only HTTP/1.0 and HTTP/1.1 are served here")]
    Version,
    #[error("the only expectation that can be met is `100-continue`")]
    Expectation,
    #[error("the client closed the connection in the middle of a request")]
    Truncated,
    #[error("the connection is broken")]
    Io { source: std::io::Error },
}

impl Error {
    /// The status that tells the client, or `None` when nobody is there to be told.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::HeadTooLong { .. } | Self::TooManyHeaders { .. } => Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Self::BodyTooLong { .. } => Some(StatusCode::PAYLOAD_TOO_LARGE),
            Self::Head { .. } | Self::Framing { .. } => Some(StatusCode::BAD_REQUEST),
            Self::Coding | Self::Method => Some(StatusCode::NOT_IMPLEMENTED),
            Self::Version => Some(StatusCode::HTTP_VERSION_NOT_SUPPORTED),
            Self::Expectation => Some(StatusCode::EXPECTATION_FAILED),
            Self::Truncated | Self::Io { .. } => None,
        }
    }

    /// A plain-text answer with [`Error::status`]. After it the connection must be closed: where the next request begins
    /// is unknown.
    #[must_use]
    pub fn response(&self) -> Option<Response<Bytes>> {
        let status = self.status()?;
        let mut response = Response::new(Bytes::from(format!("{self}\n")));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Some(response)
    }
}
