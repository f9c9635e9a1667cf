//! Outcomes of invocations as HTTP answers.

use std::time::Duration;

use bytes::Bytes;
use engine::port::Refusal;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use journal::record;
use model::{Class, FunctionName, InstanceId, InvocationId, Time};
use runtime::http1;
use serde_json::json;

use super::MAX_RESULT_BYTES;
use crate::lambda::{Error, Home, ThrottleReason};

/// Headers of an answer, with some to spare: room for them is made once.
const HEADERS: usize = 12;

/// How an invocation that was taken on ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The handler's result, as it gave it.
    Succeeded(Bytes),
    /// The handler reported this error (a JSON object with `errorMessage` and `errorType`).
    Failed(Bytes),
    /// It was stopped at a bound of this length.
    TimedOut(Duration),
    /// Its instance ended under it, with this exit status where there is one.
    Exited(Option<i32>),
    /// Its instance was killed by this signal.
    Killed(i32),
    /// Its instance was killed because it used up its memory.
    OutOfMemory,
    /// The handler gave more than [`MAX_RESULT_BYTES`].
    ResultTooLarge,
}

/// What Takt's own headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub class: Class,
    /// v: the conforming start, where the invocation took a slot.
    pub conforming: Option<Time>,
    pub arrived: Time,
    pub delivered: Option<Time>,
    pub started: Option<Time>,
    /// B: the promised start delay, where there is a promise.
    pub start_within: Option<Duration>,
    pub instance: Option<InstanceId>,
}

impl Timing {
    /// The timing that the record of an invocation tells.
    #[must_use]
    pub fn of(record: &record::Invocation, start_within: Option<Duration>) -> Self {
        Self {
            class: record.class,
            conforming: record.conforming,
            arrived: record.arrived,
            delivered: record.delivered,
            started: record.started,
            start_within,
            instance: record.instance,
        }
    }

    /// Adds Takt's headers to an answer.
    pub fn write(&self, headers: &mut HeaderMap) {
        let class = match self.class {
            Class::Guaranteed => "guaranteed",
            Class::BestEffort => "best-effort",
        };
        headers.insert(HeaderName::from_static("x-takt-class"), HeaderValue::from_static(class));
        let conforming = if self.conforming.is_some() { "true" } else { "false" };
        headers.insert(HeaderName::from_static("x-takt-conforming"), HeaderValue::from_static(conforming));
        let mut micros = |name: &'static str, duration: Option<Duration>| {
            if let Some(duration) = duration {
                let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
                headers.insert(HeaderName::from_static(name), http1::number(micros));
            }
        };
        micros("x-takt-queue-wait-us", self.delivered.map(|delivered| delivered.since(self.arrived)));
        // A lease's slot was taken before its input arrived.
        let from = self.conforming.map_or(self.arrived, |conforming| conforming.max(self.arrived));
        micros("x-takt-start-delay-us", self.started.map(|started| started.since(from)));
        micros("x-takt-start-within-us", self.start_within);
        if let Some(instance) = self.instance {
            insert(headers, "x-takt-instance", &instance.to_string());
        }
    }
}

/// Everything that an answer to an invocation says.
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    pub id: InvocationId,
    pub trace: &'a str,
    pub timing: Timing,
    /// The end of the log in base64, where it was asked for.
    pub log_tail: Option<&'a str>,
}

impl Answer<'_> {
    /// The answer of AWS's Invoke.
    #[must_use]
    pub fn response(&self, outcome: Outcome) -> Response<Bytes> {
        let (body, error) = body(self.id, outcome);
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.reserve(HEADERS);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(HeaderName::from_static("x-amz-executed-version"), HeaderValue::from_static("$LATEST"));
        match error {
            FunctionError::None => {}
            FunctionError::Unhandled => {
                headers.insert("x-amz-function-error", HeaderValue::from_static("Unhandled"));
            }
        }
        if let Some(tail) = self.log_tail {
            insert(headers, "x-amz-log-result", tail);
        }
        self.write(headers);
        response
    }

    /// The headers that answers by AWS's path and by URL share.
    pub fn write(&self, headers: &mut HeaderMap) {
        insert(headers, "x-amzn-requestid", self.id.text().as_str());
        insert(headers, "x-amzn-trace-id", self.trace);
        self.timing.write(headers);
    }
}

pub(crate) enum FunctionError {
    None,
    Unhandled,
}

fn body(id: InvocationId, outcome: Outcome) -> (Bytes, FunctionError) {
    outcome.settle(id).unwrap_or_else(|(kind, message)| {
        let body = json!({ "errorType": kind, "errorMessage": message }).to_string();
        (Bytes::from(body), FunctionError::Unhandled)
    })
}

impl Outcome {
    /// What the handler answered. The error is AWS's type and message where the platform or the system has the last word.
    pub(crate) fn settle(self, id: InvocationId) -> Result<(Bytes, FunctionError), (&'static str, String)> {
        let ended = |kind, what: String| Err((kind, format!("RequestId: {id} Error: {what}")));
        match self {
            // A handler without a result answered `null`; a custom runtime may send nothing at all.
            Self::Succeeded(body) if body.is_empty() => Ok((Bytes::from_static(b"null"), FunctionError::None)),
            Self::Succeeded(body) if body.len() <= MAX_RESULT_BYTES => Ok((body, FunctionError::None)),
            Self::Failed(body) => Ok((body, FunctionError::Unhandled)),
            Self::Succeeded(_) | Self::ResultTooLarge => Err((
                "Function.ResponseSizeTooLarge",
                format!("Response payload size exceeded maximum allowed payload size ({MAX_RESULT_BYTES} bytes)."),
            )),
            Self::TimedOut(bound) => ended("Sandbox.Timedout", format!("Task timed out after {} seconds", seconds(bound))),
            Self::Exited(Some(status)) if status != 0 => {
                ended("Runtime.ExitError", format!("Runtime exited with error: exit status {status}"))
            }
            Self::Exited(_) => ended("Runtime.ExitError", "Runtime exited without providing a reason".to_owned()),
            Self::Killed(signal) => {
                ended("Runtime.ExitError", format!("Runtime exited with error: signal: {}", signal_name(signal)))
            }
            Self::OutOfMemory => ended("Runtime.OutOfMemory", "Runtime exited with error: signal: killed".to_owned()),
        }
    }
}

/// Signals in AWS's (Go's) words.
fn signal_name(signal: i32) -> String {
    match signal {
        libc::SIGKILL => "killed".to_owned(),
        libc::SIGTERM => "terminated".to_owned(),
        libc::SIGSEGV => "segmentation fault".to_owned(),
        libc::SIGABRT => "aborted".to_owned(),
        libc::SIGBUS => "bus error".to_owned(),
        libc::SIGFPE => "floating point exception".to_owned(),
        libc::SIGILL => "illegal instruction".to_owned(),
        libc::SIGSYS => "bad system call".to_owned(),
        other => format!("signal {other}"),
    }
}

/// Seconds with two decimals as AWS writes them, with more where the bound is finer.
fn seconds(bound: Duration) -> String {
    let nanos = format!("{:09}", bound.subsec_nanos());
    let decimals = nanos.trim_end_matches('0').len().max(2);
    format!("{}.{}", bound.as_secs(), &nanos[..decimals])
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // Ids, base64 and header text that came in as such: all visible ASCII. What is not is left out rather than sent mangled.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// The answer of `DryRun`: the caller may, and the function is there.
#[must_use]
pub fn dry_run(id: InvocationId) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    insert(headers, "x-amzn-requestid", id.text().as_str());
    headers.insert("x-amz-executed-version", HeaderValue::from_static("$LATEST"));
    response
}

/// Why an invocation was not run, as AWS would say it. `Retry-After` is the time from `now` to the instant at which the next
/// one conforms.
#[must_use]
pub fn refusal(refusal: Refusal, function: &FunctionName, home: &Home, now: Time) -> Error {
    let over_rate = ThrottleReason::GuaranteedRate;
    let throttled = |reason, message, wait| Error::TooManyRequests { reason, message, retry_after: Some(wait) };
    match refusal {
        Refusal::OverRate { next } => throttled(over_rate, "Rate Exceeded.".to_owned(), next.since(now)),
        Refusal::QueueFull { limit, next } => {
            let message = format!("Rate Exceeded. The queue of function `{function}` holds {limit} invocations already.");
            throttled(over_rate, message, next.since(now))
        }
        Refusal::Busy { limit } => {
            let message = format!("Rate Exceeded. {limit} best-effort invocations of the tenant of `{function}` wait already.");
            throttled(ThrottleReason::Concurrency, message, Duration::from_secs(1))
        }
        Refusal::Expired { deadline } => {
            let late = model::brief_duration(now.since(deadline));
            let message =
                format!("the invocation of `{function}` could not start in time for its deadline, {late} ago, and was dropped");
            Error::DeadlineExpired { message }
        }
        Refusal::NoLease => Error::ResourceNotFound {
            message: format!("Lease not found: it is unknown, expired or used, for {}", home.arn(function)),
        },
        Refusal::NoFunction => Error::ResourceNotFound { message: format!("Function not found: {}:$LATEST", home.arn(function)) },
        Refusal::Suspended => Error::ResourceConflict {
            message: format!(
                "The operation cannot be performed at this time. The function is currently in the following state: suspended (the guarantee of `{function}` no longer fits this node; lower it or free capacity)"
            ),
        },
        Refusal::Unstartable => Error::ResourceNotReady {
            message: format!("The instances of function `{function}` do not start; `takt logs {function}` shows why."),
        },
        Refusal::Draining => {
            Error::Unavailable { message: "The node is shutting down.".to_owned(), retry_after: Duration::from_secs(1) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00000000-0000-4000-8000-000000000000";

    fn timing() -> Timing {
        Timing {
            class: Class::Guaranteed,
            conforming: Some(Time::from_millis(10)),
            arrived: Time::from_millis(10),
            delivered: Some(Time::from_micros(10_250)),
            started: Some(Time::from_micros(10_400)),
            start_within: Some(Duration::from_millis(80)),
            instance: Some(InstanceId(7)),
        }
    }

    fn answer(outcome: Outcome) -> Response<Bytes> {
        Answer { id: InvocationId::from_random(0), trace: "Root=1-a", timing: timing(), log_tail: Some("YQ==") }.response(outcome)
    }

    #[test]
    fn a_success_carries_aws_s_headers_and_takt_s() {
        let response = answer(Outcome::Succeeded(Bytes::from_static(b"{\"a\":1}")));
        assert_eq!((response.status(), &response.body()[..]), (StatusCode::OK, &b"{\"a\":1}"[..]));
        for (name, value) in [
            ("x-amzn-requestid", ID),
            ("x-amzn-trace-id", "Root=1-a"),
            ("x-amz-executed-version", "$LATEST"),
            ("x-amz-log-result", "YQ=="),
            ("x-takt-class", "guaranteed"),
            ("x-takt-conforming", "true"),
            ("x-takt-queue-wait-us", "250"),
            ("x-takt-start-delay-us", "400"),
            ("x-takt-start-within-us", "80000"),
            ("x-takt-instance", "i-7"),
        ] {
            assert_eq!(response.headers()[name], value, "{name}");
        }
        assert!(!response.headers().contains_key("x-amz-function-error"));
        assert_eq!(answer(Outcome::Succeeded(Bytes::new())).body(), "null");
    }

    #[test]
    fn function_errors_are_successes_with_a_mark() {
        let check = |outcome: Outcome, kind: &str, message: &str| {
            let response = answer(outcome);
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()["x-amz-function-error"], "Unhandled");
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body, json!({ "errorType": kind, "errorMessage": message }));
        };
        let with_id = |rest: &str| format!("RequestId: {ID} Error: {rest}");
        check(Outcome::TimedOut(Duration::from_secs(1)), "Sandbox.Timedout", &with_id("Task timed out after 1.00 seconds"));
        check(Outcome::TimedOut(Duration::from_micros(500)), "Sandbox.Timedout", &with_id("Task timed out after 0.0005 seconds"));
        check(Outcome::Exited(Some(127)), "Runtime.ExitError", &with_id("Runtime exited with error: exit status 127"));
        check(Outcome::Exited(Some(0)), "Runtime.ExitError", &with_id("Runtime exited without providing a reason"));
        check(Outcome::Exited(None), "Runtime.ExitError", &with_id("Runtime exited without providing a reason"));
        check(Outcome::Killed(11), "Runtime.ExitError", &with_id("Runtime exited with error: signal: segmentation fault"));
        check(Outcome::OutOfMemory, "Runtime.OutOfMemory", &with_id("Runtime exited with error: signal: killed"));
        let text = "Response payload size exceeded maximum allowed payload size (6291556 bytes).";
        check(Outcome::ResultTooLarge, "Function.ResponseSizeTooLarge", text);
        check(Outcome::Succeeded(vec![b'1'; MAX_RESULT_BYTES + 1].into()), "Function.ResponseSizeTooLarge", text);
        let own = Bytes::from_static(b"{\"errorMessage\":\"x\"}");
        assert_eq!(answer(Outcome::Failed(own.clone())).body(), &own);
    }

    #[test]
    fn a_refusal_says_which_limit_and_how_long() {
        let check = |reason: Refusal, status: u16, code: &str, wait_ms: Option<u64>| {
            let error = refusal(reason, &"hello".parse().unwrap(), &Home::default(), Time::from_millis(1000));
            assert_eq!((error.status().as_u16(), error.code()), (status, code));
            assert_eq!(error.retry_after(), wait_ms.map(Duration::from_millis), "{code}");
            error
        };
        let next = Time::from_millis(1033);
        let over = check(Refusal::OverRate { next }, 429, "TooManyRequestsException", Some(33));
        assert!(String::from_utf8_lossy(over.response().body()).contains("ReservedFunctionInvocationRateLimitExceeded"));
        check(Refusal::QueueFull { limit: 9, next }, 429, "TooManyRequestsException", Some(33));
        let busy = check(Refusal::Busy { limit: 9 }, 429, "TooManyRequestsException", Some(1000));
        assert!(String::from_utf8_lossy(busy.response().body()).contains("\"ConcurrentInvocationLimitExceeded\""));
        check(Refusal::Expired { deadline: Time::from_millis(900) }, 408, "DeadlineExpiredException", None);
        check(Refusal::NoLease, 404, "ResourceNotFoundException", None);
        let missing = check(Refusal::NoFunction, 404, "ResourceNotFoundException", None);
        assert_eq!(missing.to_string(), "Function not found: arn:aws:lambda:us-east-1:000000000000:function:hello:$LATEST");
        check(Refusal::Suspended, 409, "ResourceConflictException", None);
        check(Refusal::Unstartable, 502, "ResourceNotReadyException", None);
        check(Refusal::Draining, 503, "ServiceUnavailableException", Some(1000));
    }

    #[test]
    fn without_a_promise_no_bound_is_told() {
        let timing = Timing { class: Class::BestEffort, conforming: None, start_within: None, started: None, ..timing() };
        let mut headers = HeaderMap::new();
        timing.write(&mut headers);
        assert_eq!(
            (&headers["x-takt-class"], &headers["x-takt-conforming"]),
            (&"best-effort".parse().unwrap(), &"false".parse().unwrap())
        );
        assert!(!headers.contains_key("x-takt-start-within-us") && !headers.contains_key("x-takt-start-delay-us"));
    }
}
