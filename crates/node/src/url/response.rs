//! A function's result as the answer to a request by URL.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, SET_COOKIE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::lambda::invoke::{Answer, MAX_RESULT_BYTES, Outcome};

/// Headers that the front writes itself, whatever a function says.
const FRONT_HEADERS: [&str; 7] = ["connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// Members, about, that an answer in full may have where it is made of it at once: building each costs as much as looking at many
/// bytes.
const MEMBERS_MAX: usize = 200;

/// Renders an outcome by AWS's rules: an object with `statusCode` is an answer in full, anything else is the body of a 200, a
/// function error is a 502.
#[must_use]
pub fn response(answer: &Answer<'_>, outcome: Outcome) -> Response<Bytes> {
    let mut response = match outcome {
        Outcome::Succeeded(result) if result.len() <= MAX_RESULT_BYTES => rendered(&result).unwrap_or_else(bad_gateway),
        Outcome::Succeeded(_)
        | Outcome::Failed(_)
        | Outcome::TimedOut(_)
        | Outcome::Exited(_)
        | Outcome::Killed(_)
        | Outcome::OutOfMemory
        | Outcome::ResultTooLarge => bad_gateway(),
    };
    answer.write(response.headers_mut());
    response
}

fn bad_gateway() -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(b"Internal Server Error"));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `None` when the result asks for an answer that HTTP does not have.
fn rendered(result: &Bytes) -> Option<Response<Bytes>> {
    // A custom runtime may give what is no JSON at all: it is passed on as it is.
    let text = |result| serde_json::from_slice(result).ok().map(|text: String| plain(Bytes::from(text)));
    match first(result) {
        Some(b'"') => Some(text(result).unwrap_or_else(|| plain(result.clone()))),
        // What looks like an object and is none after all, nested too deep for instance, is passed on as well.
        Some(b'{') if has_status(result) => match serde_json::from_slice(result) {
            Ok(members) => full(&members),
            Err(_) => Some(plain(result.clone())),
        },
        Some(_) | None => Some(plain(result.clone())),
    }
}

/// Whether making an answer of a result takes long for its length: an answer in full with many members.
#[must_use]
pub fn is_dear(result: &[u8]) -> bool {
    first(result) == Some(b'{') && MEMBERS_MAX < result.iter().filter(|byte| **byte == b',').count() && has_status(result)
}

fn first(result: &[u8]) -> Option<u8> {
    result.iter().copied().find(|byte| !byte.is_ascii_whitespace())
}

/// Whether a result is an object with `statusCode`. Looks it through and builds nothing.
fn has_status(result: &[u8]) -> bool {
    serde_json::from_slice(result).is_ok_and(|Status(is_there)| is_there)
}

struct Status(bool);

#[derive(Deserialize)]
#[serde(field_identifier)]
enum Member {
    #[serde(rename = "statusCode")]
    Status,
    #[serde(other)]
    Other,
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Status;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Status, A::Error> {
                let mut is_there = false;
                while let Some((member, IgnoredAny)) = map.next_entry()? {
                    is_there |= match member {
                        Member::Status => true,
                        Member::Other => false,
                    };
                }
                Ok(Status(is_there))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

fn plain(body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn full(members: &Map<String, Value>) -> Option<Response<Bytes>> {
    let status = match members.get("statusCode") {
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    let status = status.and_then(|status| u16::try_from(status).ok()).filter(|status| (200..=599).contains(status))?;
    let text = match members.get("body") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let body = match members.get("isBase64Encoded") {
        Some(Value::Bool(true)) => STANDARD.decode(text).ok()?,
        _ => text.into_bytes(),
    };
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = StatusCode::from_u16(status).ok()?;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in members.get("headers").and_then(Value::as_object).into_iter().flatten() {
        let name = HeaderName::try_from(name.as_str()).ok()?;
        if FRONT_HEADERS.contains(&name.as_str()) {
            continue;
        }
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
        };
        headers.insert(name, HeaderValue::try_from(value).ok()?);
    }
    for cookie in members.get("cookies").and_then(Value::as_array).into_iter().flatten() {
        headers.append(SET_COOKIE, HeaderValue::try_from(cookie.as_str()?).ok()?);
    }
    if matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        *response.body_mut() = Bytes::new();
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::{Class, InvocationId, Time};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::lambda::invoke::Timing;

    fn answer(outcome: Outcome) -> Response<Bytes> {
        let timing = Timing {
            class: Class::BestEffort,
            conforming: None,
            arrived: Time::ZERO,
            delivered: None,
            started: None,
            start_within: None,
            instance: None,
        };
        response(&Answer { id: InvocationId::from_random(0), trace: "Root=1-a", timing, log_tail: None }, outcome)
    }

    fn result(json: &Value) -> Response<Bytes> {
        answer(Outcome::Succeeded(json.to_string().into()))
    }

    #[test]
    fn an_answer_in_full_with_many_members_is_dear_and_nothing_else_is() {
        let many = vec![1; 1_000];
        for (result, dear) in [
            (json!({ "statusCode": 200, "body": many }), true),
            (json!({ "statusCode": 200, "body": "text" }), false),
            (json!({ "a": many, "b": { "statusCode": 200 } }), false),
            (json!(many), false),
        ] {
            assert_eq!(is_dear(result.to_string().as_bytes()), dear, "{result}");
        }
    }

    #[test]
    fn a_status_counts_however_its_name_is_written() {
        let escaped = Outcome::Succeeded(Bytes::from_static(br#" {"a": [1], "status\u0043ode": 204} "#));
        assert_eq!(answer(escaped).status().as_u16(), 204);
        let deep = format!("{{\"statusCode\": 204, \"body\": {}{}}}", "[".repeat(200), "]".repeat(200));
        for broken in [deep.as_str(), r#"{"statusCode": 204"#, r#"{"statusCode": 204} x"#, "\"text", "{"] {
            let response = answer(Outcome::Succeeded(broken.to_owned().into()));
            assert_eq!((response.status().as_u16(), &response.body()[..]), (200, broken.as_bytes()));
        }
    }

    #[test]
    fn an_object_with_a_status_is_an_answer_in_full() {
        let response = result(&json!({
            "statusCode": 201,
            "headers": { "Content-Type": "text/html", "X-N": 7, "Transfer-Encoding": "chunked", "Content-Length": "99", "X-Takt-Class": "guaranteed" },
            "cookies": ["a=1", "b=2"],
            "body": "PGI+",
            "isBase64Encoded": true,
        }));
        assert_eq!((response.status().as_u16(), &response.body()[..]), (201, &b"<b>"[..]));
        let headers = response.headers();
        assert_eq!((&headers["content-type"], &headers["x-n"]), (&"text/html".parse().unwrap(), &"7".parse().unwrap()));
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
        assert!(!headers.contains_key("transfer-encoding") && !headers.contains_key("content-length"));
        assert_eq!(headers["x-takt-class"], "best-effort", "a function cannot speak for the node");
        assert_eq!(headers["x-amzn-requestid"], "00000000-0000-4000-8000-000000000000");
    }

    #[test]
    fn anything_else_is_the_body_of_a_200() {
        for (json, body) in [
            (json!({ "a": 1 }), "{\"a\":1}"),
            (json!("text"), "text"),
            (json!(null), "null"),
            (json!([1, 2]), "[1,2]"),
            (json!({ "statusCode": "200", "body": { "a": 1 } }), "{\"a\":1}"),
            (json!({ "statusCode": 200 }), ""),
            (json!({ "statusCode": 204, "body": "dropped" }), ""),
        ] {
            let response = result(&json);
            assert!(response.status().is_success(), "{json}");
            assert_eq!(
                (&response.body()[..], &response.headers()["content-type"]),
                (body.as_bytes(), &"application/json".parse().unwrap()),
                "{json}"
            );
        }
        assert_eq!(answer(Outcome::Succeeded(Bytes::from_static(b"<no json>"))).body(), "<no json>");
    }

    #[test]
    fn what_http_cannot_say_and_function_errors_are_a_bad_gateway() {
        for json in [
            json!({ "statusCode": 99 }),
            json!({ "statusCode": 101 }),
            json!({ "statusCode": 1000 }),
            json!({ "statusCode": null }),
            json!({ "statusCode": 200, "headers": { "a": "x\r\nSet-Cookie: y" } }),
            json!({ "statusCode": 200, "headers": { "a b": "x" } }),
            json!({ "statusCode": 200, "body": "!", "isBase64Encoded": true }),
            json!({ "statusCode": 200, "cookies": [1] }),
        ] {
            assert_eq!(result(&json).status().as_u16(), 502, "{json}");
        }
        for outcome in [
            Outcome::Failed(Bytes::from_static(b"{}")),
            Outcome::TimedOut(Duration::from_secs(1)),
            Outcome::Exited(None),
            Outcome::Killed(9),
            Outcome::OutOfMemory,
            Outcome::ResultTooLarge,
        ] {
            let response = answer(outcome);
            assert_eq!((response.status().as_u16(), &response.body()[..]), (502, &b"Internal Server Error"[..]));
        }
    }

    proptest! {
        #[test]
        fn every_result_has_an_answer(status in any::<i64>(), name in ".{0,10}", value in ".{0,10}", body in ".{0,20}", encoded: bool) {
            result(&json!({ "statusCode": status, "headers": { name: value }, "body": body, "isBase64Encoded": encoded }));
        }
    }
}
