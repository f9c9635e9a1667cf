//! What a runtime's answer to an invocation says: its mode, its result or its error.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Failure, ResponseMode, Value};

const ERROR_TYPE: &str = "lambda-runtime-function-error-type";
const ERROR_BODY: &str = "lambda-runtime-function-error-body";
const MAX_ERROR_TYPE_CHARS: usize = 256;
/// How much of a body is looked into for an error's type. Whoever reads answers may be of real-time class: a look into
/// megabytes would take milliseconds.
const MAX_LOOK_BYTES: usize = 64 << 10;
/// The most base64 text a client context may be, as on AWS.
const MAX_CONTEXT_BYTES: usize = 3583;

/// Why a text is no client context.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    #[error("a client context of {bytes} bytes exceeds {MAX_CONTEXT_BYTES} bytes of base64")]
    TooLong { bytes: usize },
    #[error("the client context is not base64 of a JSON object")]
    NotAnObject,
}

/// Decodes `X-Amz-Client-Context` into what runtimes are told: the same JSON on one line of ASCII.
pub fn client_context(base64: &str) -> Result<HeaderValue, ContextError> {
    if MAX_CONTEXT_BYTES < base64.len() {
        return Err(ContextError::TooLong { bytes: base64.len() });
    }
    let json = STANDARD.decode(base64).map_err(|_| ContextError::NotAnObject)?;
    let text = std::str::from_utf8(&json).map_err(|_| ContextError::NotAnObject)?.trim();
    if !text.starts_with('{') || serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Err(ContextError::NotAnObject);
    }
    // In valid JSON, control characters stand only between tokens and other than ASCII only within strings.
    let mut line = String::with_capacity(text.len());
    let mut units = [0; 2];
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => line.push(' '),
            '\u{7f}'.. => {
                line.extend(character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
            }
            _ => line.push(character),
        }
    }
    HeaderValue::try_from(line).map_err(|_| ContextError::NotAnObject)
}

/// Reads a header of our bootstraps: whole nanoseconds in decimal.
pub(super) fn header_ns(parts: &Parts, name: &str) -> Option<u64> {
    let text = parts.headers.get(name)?.to_str().ok()?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// `None` for a mode nobody knows.
pub(super) fn mode(parts: &Parts) -> Option<ResponseMode> {
    match parts.headers.get("lambda-runtime-function-response-mode").map(HeaderValue::as_bytes) {
        None | Some(b"" | b"buffered") => Some(ResponseMode::Whole),
        Some(b"streaming") => Some(ResponseMode::Streaming),
        Some(_) => None,
    }
}

/// The result that a response carries; an error where one broke off its stream.
pub(super) fn result(parts: &Parts, mode: ResponseMode, body: Bytes, trailers: &HeaderMap) -> Result<Value, Failure> {
    if mode == ResponseMode::Streaming
        && let Some((error_type, error_body)) = stream_error(&body, trailers)
    {
        let body = STANDARD.decode(&error_body).map_or_else(|_| Bytes::from(error_body), Bytes::from);
        return Err(describe(Some(&error_type), body, "Function.Unknown"));
    }
    Ok(Value { payload: body, content_type: parts.headers.get(header::CONTENT_TYPE).cloned(), mode })
}

/// What a runtime reported to `/error`.
pub(super) fn failure(parts: &Parts, body: Bytes, unknown: &str) -> Failure {
    describe(parts.headers.get(ERROR_TYPE).and_then(|value| value.to_str().ok()), body, unknown)
}

/// An error in the middle of a stream. It comes in trailers, or, from the Rust runtime client, as the text of these trailers
/// at the end of the body.
fn stream_error(body: &[u8], trailers: &HeaderMap) -> Option<(String, String)> {
    let trailer = |name| trailers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    if let Some(error_type) = trailer(ERROR_TYPE) {
        return Some((error_type, trailer(ERROR_BODY).unwrap_or_default()));
    }
    let marker = b"Lambda-Runtime-Function-Error-Type: ";
    let tail = &body[body.len().saturating_sub(MAX_LOOK_BYTES)..];
    let start = tail.windows(marker.len()).rposition(|window| window == marker)?;
    let text = std::str::from_utf8(&tail[start + marker.len()..]).ok()?;
    let (error_type, rest) = text.split_once("\r\n")?;
    let error_body = rest.strip_prefix("Lambda-Runtime-Function-Error-Body: ")?.strip_suffix("\r\n")?;
    Some((error_type.to_owned(), error_body.to_owned()))
}

fn describe(stated: Option<&str>, body: Bytes, unknown: &str) -> Failure {
    #[derive(Deserialize)]
    struct Report {
        #[serde(rename = "errorType")]
        error_type: String,
    }
    let known = stated.filter(|text| has_aws_form(text)).map(str::to_owned);
    let reported = || match body.len() {
        0..=MAX_LOOK_BYTES => serde_json::from_slice::<Report>(&body).ok().map(|report| report.error_type),
        _ => None,
    };
    let error_type = known.or_else(reported).filter(|text| !text.is_empty()).unwrap_or_else(|| unknown.to_owned());
    Failure { error_type: error_type.chars().take(MAX_ERROR_TYPE_CHARS).collect(), body }
}

/// `Runtime.Something` or `Function.Something`.
fn has_aws_form(text: &str) -> bool {
    let rest = text.strip_prefix("Runtime.").or_else(|| text.strip_prefix("Function."));
    rest.is_some_and(|rest| {
        rest.starts_with(|first: char| first.is_ascii_uppercase()) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}
