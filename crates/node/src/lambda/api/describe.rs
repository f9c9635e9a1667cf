//! What clients are answered: functions as AWS describes them.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use model::FunctionName;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::request::{MAX_ZIP_BYTES, revision_id};
use super::tags;
use crate::lambda::Home;
use crate::lambda::path::Page;
use crate::registry::{Function, LastUpdate, State};

/// AWS's name of the machine this node runs on.
pub(super) const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };
/// Bytes of an unpacked package; AWS's number.
const MAX_UNZIPPED_BYTES: u64 = 262_144_000;

/// A function as it is shown to clients: the version that is being installed, where there is one.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    home: &'a Home,
    function: &'a Function,
}

impl<'a> Described<'a> {
    #[must_use]
    pub fn new(home: &'a Home, function: &'a Function) -> Self {
        Self { home, function }
    }

    /// `FunctionConfiguration`, with the unqualified ARN.
    #[must_use]
    pub fn configuration(&self) -> Value {
        let shown = self.function.pending.as_ref().unwrap_or(&self.function.current);
        let spec = &shown.spec;
        let whole_seconds = spec.timeout.as_secs() + u64::from(spec.timeout.subsec_nanos() != 0);
        let mut members = Map::new();
        let mut put = |name: &str, value: Value| drop(members.insert(name.to_owned(), value));
        put("FunctionName", json!(spec.name));
        put("FunctionArn", json!(self.home.arn(&spec.name)));
        put("Runtime", json!(spec.runtime_name));
        put("Handler", json!(spec.handler));
        put("CodeSize", json!(shown.code.bytes));
        put("CodeSha256", json!(shown.code.id.base64()));
        put("Description", json!(spec.description));
        put("Timeout", json!(whole_seconds.max(1)));
        put("MemorySize", json!(spec.memory.mib()));
        put("LastModified", json!(last_modified(self.function.modified_ms)));
        put("RevisionId", json!(revision_id(self.function.revision)));
        put("Version", json!("$LATEST"));
        put("PackageType", json!("Zip"));
        put("Architectures", json!([ARCHITECTURE]));
        put("EphemeralStorage", json!({ "Size": 512 }));
        put("TracingConfig", json!({ "Mode": "PassThrough" }));
        put("SnapStart", json!({ "ApplyOn": "None", "OptimizationStatus": "Off" }));
        put("LoggingConfig", json!({ "LogFormat": "Text", "LogGroup": format!("/aws/lambda/{}", spec.name) }));
        if !spec.role.is_empty() {
            put("Role", json!(spec.role));
        }
        if !spec.environment.is_empty() {
            put("Environment", json!({ "Variables": spec.environment }));
        }
        put_state(&mut members, &self.function.state, &self.function.last_update);
        Value::Object(members)
    }

    /// The answer of GetFunction. `location` is where the package can be fetched.
    #[must_use]
    pub fn with_code(&self, location: &str) -> Value {
        let mut answer = json!({
            "Configuration": self.configuration(),
            "Code": { "RepositoryType": "Takt", "Location": location },
        });
        let tags = self.tags();
        if let (Some(members), Some(true)) = (answer.as_object_mut(), tags.as_object().map(|tags| !tags.is_empty())) {
            members.insert("Tags".to_owned(), tags);
        }
        answer
    }

    /// The answer of ListTags.
    #[must_use]
    pub fn list_tags(&self) -> Value {
        json!({ "Tags": self.tags() })
    }

    fn tags(&self) -> Value {
        let shown = self.function.pending.as_ref().unwrap_or(&self.function.current);
        json!(tags::of(&shown.spec))
    }

    /// The answer of ListVersionsByFunction: `$LATEST` alone, which has a qualified ARN there.
    #[must_use]
    pub fn versions(&self) -> Value {
        let mut latest = self.configuration();
        let arn = format!("{}:$LATEST", self.home.arn(&self.function.current.spec.name));
        if let Some(members) = latest.as_object_mut() {
            members.insert("FunctionArn".to_owned(), json!(arn));
        }
        json!({ "Versions": [latest] })
    }
}

/// `State` and `LastUpdateStatus` are what the clients' waiters poll.
fn put_state(members: &mut Map<String, Value>, state: &State, last_update: &LastUpdate) {
    let (state, reason) = match state {
        State::Pending => ("Pending", Some(("Creating", "The function is being created."))),
        State::Active => ("Active", None),
        State::Failed { reason } => ("Failed", Some(("FunctionError", reason.as_str()))),
        // AWS knows no suspension; its waiters end on `Failed`.
        State::Suspended { reason } => ("Failed", Some(("InsufficientCapacity", reason.as_str()))),
    };
    members.insert("State".to_owned(), json!(state));
    if let Some((code, text)) = reason {
        members.insert("StateReasonCode".to_owned(), json!(code));
        members.insert("StateReason".to_owned(), json!(text));
    }
    let (status, reason) = match last_update {
        LastUpdate::Successful => ("Successful", None),
        LastUpdate::InProgress => ("InProgress", Some(("Creating", "The function is being updated."))),
        LastUpdate::Failed { reason } => ("Failed", Some(("FunctionError", reason.as_str()))),
    };
    members.insert("LastUpdateStatus".to_owned(), json!(status));
    if let Some((code, text)) = reason {
        members.insert("LastUpdateStatusReasonCode".to_owned(), json!(code));
        members.insert("LastUpdateStatusReason".to_owned(), json!(text));
    }
}

/// `2026-11-23T00:00:00.000+0000`.
fn last_modified(unix_ms: u64) -> String {
    let nanos = i128::from(unix_ms) * 1_000_000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}+0000",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}

/// The answer of ListFunctions: a page of the functions, which come sorted by name.
///
/// The marker is the last name of the page before, so functions that come or go in between are neither repeated nor skipped.
#[must_use]
pub fn list<'a>(home: &Home, functions: impl Iterator<Item = &'a Function>, page: &Page) -> Value {
    let after = page.marker.as_deref().unwrap_or("");
    let mut rest = functions.filter(|function| after < function.current.spec.name.as_str()).peekable();
    let mut shown = Vec::new();
    let mut last = None;
    while shown.len() < page.max_items
        && let Some(function) = rest.next()
    {
        shown.push(Described::new(home, function).configuration());
        last = Some(&function.current.spec.name);
    }
    let mut answer = json!({ "Functions": shown });
    if let (Some(_), Some(last), Some(members)) = (rest.peek(), last, answer.as_object_mut()) {
        members.insert("NextMarker".to_owned(), json!(last));
    }
    answer
}

/// What GetAccountSettings tells of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Bytes of code that the node may keep, and keeps.
    pub code_limit_bytes: u64,
    pub code_bytes: u64,
    pub functions: u64,
    /// Instances that may run at once, and those of them that no guarantee holds.
    pub instances: u32,
    pub unreserved_instances: u32,
}

/// The answer of GetAccountSettings.
#[must_use]
pub fn account_settings(account: &Account) -> Value {
    json!({
        "AccountLimit": {
            "TotalCodeSize": account.code_limit_bytes,
            "CodeSizeUnzipped": MAX_UNZIPPED_BYTES,
            "CodeSizeZipped": MAX_ZIP_BYTES,
            "ConcurrentExecutions": account.instances,
            "UnreservedConcurrentExecutions": account.unreserved_instances,
        },
        "AccountUsage": { "TotalCodeSize": account.code_bytes, "FunctionCount": account.functions },
    })
}

/// The answer of GetFunctionCodeSigningConfig: none is set, said as AWS says it.
#[must_use]
pub fn signing_config(function: &FunctionName) -> Value {
    json!({ "FunctionName": function })
}

/// The answer of GetFunctionConcurrency: nothing is reserved in AWS's sense.
#[must_use]
pub fn concurrency() -> Value {
    json!({})
}

/// An answer with a JSON body.
#[must_use]
pub fn json_response(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer of DeleteFunction, TagResource and UntagResource.
#[must_use]
pub fn no_content() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod tests {
    use model::{Version, config};

    use super::*;
    use crate::code::{Code, CodeId};
    use crate::registry::Deployed;

    fn function(name: &str) -> Function {
        let text = format!("name = \"{name}\"\nruntime = \"python3.12\"\ntimeout = \"1500ms\"\n[guarantee]\nrate = \"30/s\"");
        let code = Code { id: CodeId::of(b"PK"), bytes: 2 };
        let current = Deployed { spec: config::parse(&text).unwrap(), code, version: Version(1) };
        Function {
            current,
            state: State::Active,
            pending: None,
            last_update: LastUpdate::Successful,
            admitted: None,
            measured: crate::registry::Measured::default(),
            created_ms: 0,
            modified_ms: 1_795_392_000_123,
            revision: 7,
        }
    }

    #[test]
    fn a_function_is_described_as_aws_does() {
        let function = function("hello");
        let home = Home::default();
        let described = Described::new(&home, &function);
        let shown = described.configuration();
        for (member, value) in [
            ("FunctionArn", json!("arn:aws:lambda:us-east-1:000000000000:function:hello")),
            ("Runtime", json!("python3.12")),
            ("Timeout", json!(2)),
            ("MemorySize", json!(128)),
            ("LastModified", json!("2026-11-23T00:00:00.123+0000")),
            ("CodeSize", json!(2)),
            ("State", json!("Active")),
            ("LastUpdateStatus", json!("Successful")),
            ("Version", json!("$LATEST")),
        ] {
            assert_eq!(shown[member], value, "{member}");
        }
        assert_eq!(described.with_code("http://x/")["Tags"], json!({ "takt:rate": "30/s" }));
        assert_eq!(described.list_tags(), json!({ "Tags": { "takt:rate": "30/s" } }));
        let version = &described.versions()["Versions"][0];
        assert_eq!(version["FunctionArn"], "arn:aws:lambda:us-east-1:000000000000:function:hello:$LATEST");
    }

    #[test]
    fn waiters_see_every_state() {
        let mut function = function("hello");
        let mut check = |state: State, update: LastUpdate, expected: [&str; 2]| {
            (function.state, function.last_update) = (state, update);
            let shown = Described::new(&Home::default(), &function).configuration();
            assert_eq!([&shown["State"], &shown["LastUpdateStatus"]], expected);
        };
        let reason = || "why".to_owned();
        check(State::Pending, LastUpdate::InProgress, ["Pending", "InProgress"]);
        check(State::Active, LastUpdate::Failed { reason: reason() }, ["Active", "Failed"]);
        check(State::Failed { reason: reason() }, LastUpdate::Successful, ["Failed", "Successful"]);
        check(State::Suspended { reason: reason() }, LastUpdate::Successful, ["Failed", "Successful"]);
    }

    #[test]
    fn pages_show_every_function_once() {
        let functions: Vec<Function> = ["a", "b", "c", "d", "e"].map(function).into();
        let mut marker = None;
        let mut names = Vec::new();
        let mut pages = 0;
        loop {
            let answer = list(&Home::default(), functions.iter(), &Page { marker: marker.clone(), max_items: 2 });
            names.extend(
                answer["Functions"].as_array().unwrap().iter().map(|shown| shown["FunctionName"].as_str().unwrap().to_owned()),
            );
            pages += 1;
            match answer["NextMarker"].as_str() {
                Some(next) => marker = Some(next.to_owned()),
                None => break,
            }
        }
        assert_eq!((names.concat(), pages), ("abcde".to_owned(), 3));
    }
}
