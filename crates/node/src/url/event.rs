//! A request as the event of a function URL.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use model::InvocationId;
use percent_encoding::percent_decode;
use serde::Serialize;
use time::OffsetDateTime;

use super::Target;
use crate::lambda::invoke::{MAX_PAYLOAD_BYTES, too_large};
use crate::lambda::{Error, Home};

/// Headers that belong to the connection, not to the request.
const HOP_HEADERS: [&str; 8] =
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Who sent the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Anybody: the function is open. An `Authorization` header is the function's own affair.
    Anonymous,
    /// A holder of a key of the node; the `Authorization` header carried it and is kept from the function.
    KeyHolder,
}

/// A complete request by URL.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub id: InvocationId,
    pub target: &'a Target<'a>,
    pub parts: &'a Parts,
    pub body: &'a [u8],
    pub caller: Caller,
    /// The address the connection came from.
    pub source: IpAddr,
    /// When the request was complete, since 1970.
    pub at: Duration,
    /// The value of the trace header, the client's or a new one.
    pub trace: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    version: &'static str,
    route_key: &'static str,
    raw_path: &'a str,
    raw_query_string: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cookies: Vec<String>,
    headers: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    query_string_parameters: BTreeMap<String, String>,
    request_context: Context<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    is_base64_encoded: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Context<'a> {
    account_id: &'a str,
    api_id: &'a str,
    domain_name: &'a str,
    domain_prefix: &'a str,
    http: Http<'a>,
    request_id: String,
    route_key: &'static str,
    stage: &'static str,
    time: String,
    time_epoch: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Http<'a> {
    method: &'a str,
    path: &'a str,
    protocol: &'static str,
    source_ip: String,
    user_agent: &'a str,
}

/// Builds the event, as the JSON a runtime is handed. Refused when it would be larger than an invocation's payload may be.
pub fn event(request: &Request<'_>, home: &Home) -> Result<Bytes, Error> {
    let parts = request.parts;
    let host = text(&parts.headers, &HOST);
    let query = parts.uri.query().unwrap_or("");
    let (body, is_base64_encoded) = body(request.body, text(&parts.headers, &CONTENT_TYPE));
    let event = Event {
        version: "2.0",
        route_key: "$default",
        raw_path: request.target.path,
        raw_query_string: query,
        cookies: cookies(&parts.headers),
        headers: headers(request, host),
        query_string_parameters: parameters(query),
        request_context: Context {
            account_id: match request.caller {
                Caller::Anonymous => "anonymous",
                Caller::KeyHolder => &home.account,
            },
            api_id: request.target.function.as_str(),
            domain_name: host,
            domain_prefix: host.split(['.', ':']).next().unwrap_or(""),
            http: Http {
                method: parts.method.as_str(),
                path: request.target.path,
                protocol: "HTTP/1.1",
                source_ip: request.source.to_string(),
                user_agent: text(&parts.headers, &USER_AGENT),
            },
            request_id: request.id.to_string(),
            route_key: "$default",
            stage: "$default",
            time: log_time(request.at),
            time_epoch: u64::try_from(request.at.as_millis()).unwrap_or(u64::MAX),
        },
        body,
        is_base64_encoded,
    };
    let json = serde_json::to_vec(&event)
        .map_err(|error| Error::Service { message: format!("cannot write the event of the request: {error}") })?;
    if MAX_PAYLOAD_BYTES < json.len() {
        return Err(too_large());
    }
    Ok(Bytes::from(json))
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// Names in lower case, repeated ones joined by commas, and what AWS adds about the way the request took.
fn headers<'a>(request: &Request<'a>, host: &str) -> BTreeMap<&'a str, String> {
    let mut all: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in &request.parts.headers {
        let secret = request.caller == Caller::KeyHolder && *name == AUTHORIZATION;
        if secret || HOP_HEADERS.contains(&name.as_str()) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        let joined = all.entry(name.as_str()).or_default();
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(&value);
    }
    let forwarded = all.entry("x-forwarded-for").or_default();
    if !forwarded.is_empty() {
        forwarded.push_str(", ");
    }
    forwarded.push_str(&request.source.to_string());
    let port = host.rsplit_once(':').map(|(_, port)| port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    all.insert("x-forwarded-port", port.unwrap_or("80").to_owned());
    all.insert("x-forwarded-proto", "http".to_owned());
    all.insert("x-amzn-trace-id", request.trace.to_owned());
    all
}

fn cookies(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(';')).map(|cookie| cookie.trim().to_owned()).filter(|cookie| !cookie.is_empty()).collect()
}

/// The decoded parameters of a query; the values of a repeated one are joined by commas.
fn parameters(query: &str) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = form_decoded(value);
        all.entry(form_decoded(name))
            .and_modify(|joined| {
                joined.push(',');
                joined.push_str(&value);
            })
            .or_insert(value);
    }
    all
}

fn form_decoded(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_decode(spaced.as_bytes()).decode_utf8_lossy().into_owned()
}

/// The body as text where its type says text and it is UTF-8, else in base64; nothing when it is empty.
fn body(bytes: &[u8], content_type: &str) -> (Option<String>, bool) {
    if bytes.is_empty() {
        return (None, false);
    }
    let kind = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let textual = kind.is_empty()
        || kind.starts_with("text/")
        || kind.ends_with("+json")
        || kind.ends_with("+xml")
        || matches!(kind.as_str(), "application/json" | "application/javascript" | "application/xml");
    match str::from_utf8(bytes) {
        Ok(text) if textual => (Some(text.to_owned()), false),
        Ok(_) | Err(_) => (Some(STANDARD.encode(bytes)), true),
    }
}

/// `24/Nov/2026:06:16:57 +0000`, AWS's form.
fn log_time(since_1970: Duration) -> String {
    let at = OffsetDateTime::UNIX_EPOCH.checked_add(time::Duration::try_from(since_1970).unwrap_or(time::Duration::ZERO));
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let month = MONTHS[usize::from(u8::from(at.month())) - 1];
    format!("{:02}/{month}/{:04}:{:02}:{:02}:{:02} +0000", at.day(), at.year(), at.hour(), at.minute(), at.second())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn build(request: http::request::Builder, body: &[u8], caller: Caller) -> Result<Value, Error> {
        let (parts, ()) = request.header("host", "localhost:9000").body(()).unwrap().into_parts();
        let path = parts.uri.path().to_owned();
        let target = crate::url::parse(&path).unwrap();
        let request = Request {
            id: InvocationId::from_random(0),
            target: &target,
            parts: &parts,
            body,
            caller,
            source: "192.0.2.7".parse().unwrap(),
            at: Duration::from_millis(1_795_501_017_250),
            trace: "Root=1-a",
        };
        event(&request, &Home::default()).map(|event| serde_json::from_slice(&event).unwrap())
    }

    #[test]
    fn a_request_becomes_an_event_of_format_two() {
        let request = http::Request::post("/fn/hello/a%20b/?x=1&y=a%2Cb+c&x=2&flag")
            .header("Cookie", "a=1; b=2")
            .header("X-One", "1")
            .header("X-One", "2")
            .header("User-Agent", "test/1")
            .header("Content-Type", "application/json; charset=utf-8")
            .header("Connection", "keep-alive");
        let expected = json!({
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": "/a%20b/",
            "rawQueryString": "x=1&y=a%2Cb+c&x=2&flag",
            "cookies": ["a=1", "b=2"],
            "headers": {
                "content-type": "application/json; charset=utf-8",
                "cookie": "a=1; b=2",
                "host": "localhost:9000",
                "user-agent": "test/1",
                "x-amzn-trace-id": "Root=1-a",
                "x-forwarded-for": "192.0.2.7",
                "x-forwarded-port": "9000",
                "x-forwarded-proto": "http",
                "x-one": "1,2",
            },
            "queryStringParameters": { "x": "1,2", "y": "a,b c", "flag": "" },
            "requestContext": {
                "accountId": "anonymous",
                "apiId": "hello",
                "domainName": "localhost:9000",
                "domainPrefix": "localhost",
                "http": {
                    "method": "POST",
                    "path": "/a%20b/",
                    "protocol": "HTTP/1.1",
                    "sourceIp": "192.0.2.7",
                    "userAgent": "test/1",
                },
                "requestId": "00000000-0000-4000-8000-000000000000",
                "routeKey": "$default",
                "stage": "$default",
                "time": "24/Nov/2026:06:16:57 +0000",
                "timeEpoch": 1_795_501_017_250_u64,
            },
            "body": "{\"a\":1}",
            "isBase64Encoded": false,
        });
        assert_eq!(build(request, b"{\"a\":1}", Caller::Anonymous).unwrap(), expected);
    }

    #[test]
    fn bodies_that_are_no_text_come_in_base64() {
        let check = |content_type: &str, body: &[u8], expected: Value, encoded: bool| {
            let request = http::Request::post("/fn/hello").header("content-type", content_type);
            let event = build(request, body, Caller::Anonymous).unwrap();
            assert_eq!((&event["body"], &event["isBase64Encoded"]), (&expected, &json!(encoded)), "{content_type}");
        };
        check("text/plain", "ä".as_bytes(), json!("ä"), false);
        check("text/plain", b"\xff", json!("/w=="), true);
        check("image/png", b"a", json!("YQ=="), true);
        check("application/x-www-form-urlencoded", b"a=1", json!("YT0x"), true);
        check("application/problem+json", b"{}", json!("{}"), false);
        let none = build(http::Request::get("/fn/hello"), b"", Caller::Anonymous).unwrap();
        assert!(none.get("body").is_none() && none.get("queryStringParameters").is_none() && none.get("cookies").is_none());
    }

    #[test]
    fn a_key_of_the_node_is_kept_from_the_function() {
        let request = || http::Request::get("/fn/hello").header("authorization", "Bearer takt_secret");
        let keyed = build(request(), b"", Caller::KeyHolder).unwrap();
        assert!(!keyed.to_string().contains("takt_secret"));
        assert_eq!(keyed["requestContext"]["accountId"], "000000000000");
        let open = build(request(), b"", Caller::Anonymous).unwrap();
        assert_eq!(open["headers"]["authorization"], "Bearer takt_secret");
    }

    #[test]
    fn an_event_above_the_payload_s_limit_is_refused() {
        let request = || http::Request::post("/fn/hello").header("content-type", "image/png");
        build(request(), &vec![0; 4 * 1024 * 1024], Caller::Anonymous).unwrap();
        let error = build(request(), &vec![0; 5 * 1024 * 1024], Caller::Anonymous).unwrap_err();
        assert_eq!(error.status().as_u16(), 413);
    }

    proptest! {
        #[test]
        fn every_request_has_an_event(query in "[!$-;=?-Z_a-z~]{0,60}", cookie in "[ -~]{0,30}", body: Vec<u8>) {
            let request = http::Request::put(format!("/fn/hello/x?{query}")).header("cookie", cookie);
            let event = build(request, &body, Caller::Anonymous).unwrap();
            prop_assert_eq!(&event["rawQueryString"], &json!(query));
            let sent = match (&event["body"], &event["isBase64Encoded"]) {
                (Value::String(text), Value::Bool(true)) => STANDARD.decode(text).unwrap(),
                (Value::String(text), _) => text.clone().into_bytes(),
                _ => Vec::new(),
            };
            prop_assert_eq!(sent, body);
        }
    }
}
