//! Invoke: the request's head and payload, and every outcome as AWS answers it.
//!
//! A function that fails is a success of Lambda: status 200, `X-Amz-Function-Error` and the error as the body.
//!
//! Every answer to an invocation, by AWS's path or by URL, carries Takt's own headers beside AWS's:
//!
//! | header | meaning |
//! |---|---|
//! | `X-Takt-Class` | `guaranteed` or `best-effort`: what the invocation ran as |
//! | `X-Takt-Conforming` | `true`: it kept to the guarantee's envelope; `false`: it did not, or there is no guarantee |
//! | `X-Takt-Queue-Wait-Us` | from arrival to hand-over to an instance, microseconds |
//! | `X-Takt-Start-Delay-Us` | from the conforming start (from arrival, where there is none) to the start, microseconds |
//! | `X-Takt-Start-Within-Us` | B: the promised start delay, microseconds; absent without a promise |
//! | `X-Takt-Instance` | the instance it ran on; absent when none did |

mod answer;
mod log;

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use serde::de::IgnoredAny;

use super::{Error, FunctionRef, client_context};

pub use answer::{Answer, Outcome, Timing, dry_run, refusal};
pub use log::{MAX_TAIL_BYTES, Report};

/// Bytes of an invocation's payload.
pub const MAX_PAYLOAD_BYTES: usize = 6 * 1024 * 1024;
/// Bytes of a function's result: the payload's limit and 100 for its wrapping.
pub const MAX_RESULT_BYTES: usize = MAX_PAYLOAD_BYTES + 100;
/// The longest deadline a request may carry.
pub const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a trace header that is passed on.
const MAX_TRACE_BYTES: usize = 512;

/// Whether the function is to be run at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    RequestResponse,
    /// Only whether it could be: answered 204.
    DryRun,
}

/// Whether the answer carries the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogType {
    None,
    Tail,
}

/// The head of an invocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoke {
    pub function: FunctionRef,
    pub kind: Kind,
    pub log: LogType,
    /// The decoded client context, one line of ASCII JSON.
    pub client_context: Option<String>,
    /// `X-Deadline`: how long after its arrival the invocation has to have ended ("80ms").
    pub deadline: Option<Duration>,
    /// `X-Amzn-Trace-Id`, as sent.
    pub trace: Option<String>,
}

impl Invoke {
    /// Reads the headers of an invocation. What this node does not do yet (asynchronous invocation, tenants, durable
    /// executions) is refused by name.
    pub fn parse(function: FunctionRef, headers: &HeaderMap) -> Result<Self, Error> {
        let not_supported = |what: &str| Error::NotSupported { what: what.to_owned() };
        let kind = match text(headers, "x-amz-invocation-type")? {
            None | Some("RequestResponse") => Kind::RequestResponse,
            Some("DryRun") => Kind::DryRun,
            Some("Event") => return Err(not_supported("asynchronous invocation (X-Amz-Invocation-Type: Event of Invoke)")),
            Some(other) => return Err(not_in_enum(other, "invocationType", "[Event, RequestResponse, DryRun]")),
        };
        let log = match text(headers, "x-amz-log-type")? {
            None | Some("None") => LogType::None,
            Some("Tail") => LogType::Tail,
            Some(other) => return Err(not_in_enum(other, "logType", "[None, Tail]")),
        };
        for (header, what) in [
            ("x-amz-tenant-id", "tenant isolation (X-Amz-Tenant-Id of Invoke)"),
            ("x-amz-durable-execution-name", "a durable execution (X-Amz-Durable-Execution-Name of Invoke)"),
        ] {
            if headers.contains_key(header) {
                return Err(not_supported(what));
            }
        }
        let client_context = text(headers, "x-amz-client-context")?.map(client_context::decode).transpose()?;
        let trace = text(headers, "x-amzn-trace-id")?.filter(|trace| trace.len() <= MAX_TRACE_BYTES).map(str::to_owned);
        Ok(Self { function, kind, log, client_context, deadline: deadline(headers)?, trace })
    }
}

/// Reads `X-Deadline`: a duration with its unit, from the request's arrival, at most [`MAX_DEADLINE`].
pub fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(text) = text(headers, "x-deadline")? else {
        return Ok(None);
    };
    let refused = |reason: String| Error::InvalidParameterValue { message: format!("The header X-Deadline: {reason}") };
    let deadline = model::parse_duration(text).map_err(|error| refused(error.to_string()))?;
    if deadline.is_zero() || MAX_DEADLINE < deadline {
        return Err(refused(format!("a deadline of {deadline:?} is outside the range from 1ns to 24h")));
    }
    Ok(Some(deadline))
}

/// Checks the payload of an invocation: its size, and that it is JSON. An empty one is an empty object, as on AWS.
pub fn payload(body: Bytes) -> Result<Bytes, Error> {
    if MAX_PAYLOAD_BYTES < body.len() {
        return Err(too_large());
    }
    if body.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    match serde_json::from_slice::<IgnoredAny>(&body) {
        Ok(IgnoredAny) => Ok(body),
        Err(error) => Err(Error::InvalidRequestContent { message: format!("Could not parse request body into json: {error}") }),
    }
}

/// The refusal of a payload above its limit, for the front that stops reading there.
#[must_use]
pub fn too_large() -> Error {
    Error::RequestTooLarge { limit: MAX_PAYLOAD_BYTES, operation: "InvokeFunction" }
}

/// The trace header of an invocation: the client's own root, or a new one made from the invocation's id and the time
/// (seconds since 1970).
#[must_use]
pub fn trace_id(sent: Option<&str>, id: model::InvocationId, unix_seconds: u64) -> String {
    match sent {
        Some(sent) => sent.to_owned(),
        None => format!("Root=1-{:08x}-{:024x};Sampled=0", unix_seconds & 0xffff_ffff, id.as_u128() >> 32),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Error> {
    let message = || Error::InvalidParameterValue { message: format!("The header {name} holds other characters than ASCII") };
    headers.get(name).map(|value| value.to_str().map_err(|_| message())).transpose()
}

fn not_in_enum(value: &str, member: &str, set: &str) -> Error {
    let violations = vec![super::error::violation(value, member, &format!("satisfy enum value set: {set}"))];
    Error::Validation { violations }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn parse(headers: &[(&str, &str)]) -> Result<Invoke, Error> {
        let request = headers.iter().fold(Request::post("/"), |request, (name, value)| request.header(*name, *value));
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Invoke::parse(FunctionRef::parse("hello", None)?, &parts.headers)
    }

    #[test]
    fn the_head_of_an_invocation_is_read() {
        let plain = parse(&[]).unwrap();
        assert_eq!(
            (plain.kind, plain.log, plain.client_context, plain.deadline),
            (Kind::RequestResponse, LogType::None, None, None)
        );
        let full = parse(&[
            ("X-Amz-Invocation-Type", "DryRun"),
            ("X-Amz-Log-Type", "Tail"),
            ("X-Amz-Client-Context", "eyJhIjoxfQ=="),
            ("X-Deadline", "80ms"),
            ("X-Amzn-Trace-Id", "Root=1-5759e988-bd862e3fe1be46a994272793"),
        ])
        .unwrap();
        assert_eq!((full.kind, full.log, full.client_context.as_deref()), (Kind::DryRun, LogType::Tail, Some("{\"a\":1}")));
        assert_eq!(full.deadline, Some(Duration::from_millis(80)));
        assert_eq!(full.trace.as_deref(), Some("Root=1-5759e988-bd862e3fe1be46a994272793"));
    }

    #[test]
    fn what_is_not_done_yet_is_refused_by_name() {
        let check = |header: (&str, &str), code: &str, part: &str| {
            let error = parse(&[header]).unwrap_err();
            assert_eq!(error.code(), code);
            assert!(error.to_string().contains(part), "{error}");
        };
        check(("x-amz-invocation-type", "Event"), "NotImplementedException", "asynchronous invocation");
        check(("x-amz-tenant-id", "a"), "NotImplementedException", "X-Amz-Tenant-Id");
        check(("x-amz-durable-execution-name", "a"), "NotImplementedException", "durable");
        check(("x-amz-invocation-type", "event"), "ValidationException", "invocationType");
        check(("x-amz-log-type", "tail"), "ValidationException", "logType");
        check(("x-deadline", "80"), "InvalidParameterValueException", "X-Deadline");
        check(("x-deadline", "0ms"), "InvalidParameterValueException", "X-Deadline");
        check(("x-deadline", "25h"), "InvalidParameterValueException", "24h");
    }

    #[test]
    fn a_payload_is_json_of_at_most_six_mebibytes() {
        assert_eq!(payload(Bytes::new()).unwrap(), "{}");
        assert_eq!(payload(Bytes::from_static(b"[1]")).unwrap(), "[1]");
        assert_eq!(payload(Bytes::from_static(b"{")).unwrap_err().code(), "InvalidRequestContentException");
        let quoted = |bytes: usize| Bytes::from(format!("\"{}\"", "x".repeat(bytes - 2)));
        payload(quoted(MAX_PAYLOAD_BYTES)).unwrap();
        let error = payload(quoted(MAX_PAYLOAD_BYTES + 1)).unwrap_err();
        assert_eq!(error.to_string(), "Request must be smaller than 6291456 bytes for the InvokeFunction operation");
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        payload(Bytes::from("[".repeat(MAX_PAYLOAD_BYTES))).unwrap_err();
    }

    #[test]
    fn a_trace_keeps_the_client_s_root_or_gets_one() {
        let id = model::InvocationId::from_random(u128::MAX);
        assert_eq!(trace_id(Some("Root=1-a"), id, 1), "Root=1-a");
        assert_eq!(trace_id(None, id, 0x5759_e988), "Root=1-5759e988-ffffffffffff4fffbfffffff;Sampled=0");
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(name in 0_usize..5, value in "[ -~]{0,40}") {
            let name = ["x-amz-invocation-type", "x-amz-log-type", "x-amz-client-context", "x-deadline", "x-amzn-trace-id"][name];
            let _ = parse(&[(name, &value)]);
        }
    }
}
