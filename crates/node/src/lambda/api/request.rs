//! What clients ask: bodies of the operations that create and change functions.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::{FunctionSpec, Memory, Outbound, Tenant, UrlAccess};
use runtime::environment;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::tags;
use crate::lambda::error::violation;
use crate::lambda::{Error, FunctionRef};

/// Bytes of a CreateFunction or UpdateFunctionCode request; AWS's number.
pub const MAX_CREATE_BYTES: usize = 70_167_211;
/// Bytes of a zipped package sent in a request; AWS's number.
pub const MAX_ZIP_BYTES: usize = 52_428_800;
/// Bytes of a function's environment as a JSON object; AWS's number.
pub const MAX_ENVIRONMENT_BYTES: usize = 4096;
const MAX_DESCRIPTION_CHARS: usize = 256;
const MAX_HANDLER_CHARS: usize = 128;
const ROLE_PATTERN: &str = "arn:(aws[a-zA-Z-]*)?:iam::\\d{12}:role/?[a-zA-Z_0-9+=,.@\\-_/]+";
const VARIABLE_PATTERN: &str = "[a-zA-Z]([a-zA-Z0-9_])+";

/// A function to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    pub spec: FunctionSpec,
    /// The zip archive.
    pub package: Vec<u8>,
}

/// New code for a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateCode {
    pub package: Vec<u8>,
    /// The revision the client saw, where it states one.
    pub revision: Option<u64>,
    pub dry_run: DryRun,
}

/// Whether a change is only checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    No,
    Yes,
}

/// New configuration for a function; what is not stated stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateConfiguration {
    settings: Settings,
    /// The revision the client saw, where it states one.
    pub revision: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawCreate {
    function_name: Option<String>,
    code: Option<RawCode>,
    tags: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    settings: Settings,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawCode {
    zip_file: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawUpdateCode {
    revision_id: Option<String>,
    #[serde(default)]
    dry_run: bool,
    #[serde(flatten)]
    code: RawCode,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawUpdateConfiguration {
    revision_id: Option<String>,
    #[serde(flatten)]
    settings: Settings,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawTags {
    tags: Option<BTreeMap<String, String>>,
}

/// The members that CreateFunction and UpdateFunctionConfiguration share.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    role: Option<String>,
    runtime: Option<String>,
    handler: Option<String>,
    description: Option<String>,
    timeout: Option<i64>,
    memory_size: Option<i64>,
    environment: Option<RawEnvironment>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RawEnvironment {
    variables: Option<BTreeMap<String, String>>,
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let text = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(text)
        .map_err(|error| Error::InvalidRequestContent { message: format!("Could not parse request body into json: {error}") })
}

/// Reads the body of CreateFunction.
pub fn create(body: &[u8]) -> Result<Create, Error> {
    let raw: RawCreate = read(body)?;
    let missing: Vec<String> =
        [("functionName", raw.function_name.is_none()), ("role", raw.settings.role.is_none()), ("code", raw.code.is_none())]
            .into_iter()
            .filter(|(_, missing)| *missing)
            .map(|(member, _)| null(member))
            .collect();
    let (Some(name), Some(code)) = (raw.function_name, raw.code) else {
        return Err(Error::Validation { violations: missing });
    };
    if !missing.is_empty() {
        return Err(Error::Validation { violations: missing });
    }
    refuse_rest(&raw.rest, "CreateFunction")?;
    let name = FunctionRef::parse(&name, None)?.unqualified()?.clone();
    let (Some(runtime_name), Some(handler)) = (raw.settings.runtime.clone(), raw.settings.handler.clone()) else {
        let message = "Runtime and Handler are mandatory parameters for functions created with deployment packages.";
        return Err(Error::InvalidParameterValue { message: message.to_owned() });
    };
    let mut spec = FunctionSpec {
        name,
        tenant: Tenant::default(),
        runtime: runtime(&runtime_name)?,
        runtime_name,
        handler,
        memory: Memory::DEFAULT,
        timeout: FunctionSpec::DEFAULT_TIMEOUT,
        environment: BTreeMap::new(),
        outbound: Outbound::default(),
        url: UrlAccess::default(),
        guarantee: None,
        description: String::new(),
        tags: BTreeMap::new(),
        role: String::new(),
    };
    raw.settings.apply(&mut spec)?;
    tags::add(&mut spec, &raw.tags.unwrap_or_default())?;
    Ok(Create { spec, package: package(code, "CreateFunction")? })
}

/// Reads the body of UpdateFunctionCode.
pub fn update_code(body: &[u8]) -> Result<UpdateCode, Error> {
    let raw: RawUpdateCode = read(body)?;
    let dry_run = if raw.dry_run { DryRun::Yes } else { DryRun::No };
    let package = package(raw.code, "UpdateFunctionCode")?;
    Ok(UpdateCode { package, revision: revision(raw.revision_id.as_deref())?, dry_run })
}

/// Reads the body of UpdateFunctionConfiguration.
pub fn update_configuration(body: &[u8]) -> Result<UpdateConfiguration, Error> {
    let raw: RawUpdateConfiguration = read(body)?;
    refuse_rest(&raw.rest, "UpdateFunctionConfiguration")?;
    Ok(UpdateConfiguration { settings: raw.settings, revision: revision(raw.revision_id.as_deref())? })
}

/// Reads the body of TagResource.
pub fn tag_resource(body: &[u8]) -> Result<BTreeMap<String, String>, Error> {
    let raw: RawTags = read(body)?;
    raw.tags.ok_or_else(|| Error::Validation { violations: vec![null("tags")] })
}

impl UpdateConfiguration {
    /// Changes a specification; on an error it is left as it was.
    pub fn apply(&self, spec: &mut FunctionSpec) -> Result<(), Error> {
        let mut changed = spec.clone();
        self.settings.apply(&mut changed)?;
        *spec = changed;
        Ok(())
    }
}

fn revision(text: Option<&str>) -> Result<Option<u64>, Error> {
    text.filter(|text| !text.is_empty()).map(read_revision).transpose()
}

/// The text of a revision, as clients see it.
#[must_use]
pub fn revision_id(revision: u64) -> String {
    format!("{:08x}-0000-4000-8000-{:012x}", revision >> 48, revision & 0xffff_ffff_ffff)
}

/// The revision whose text this is; a text that no revision has is refused as out of date.
pub fn read_revision(text: &str) -> Result<u64, Error> {
    let number = text.split_once("-0000-4000-8000-").and_then(|(high, low)| {
        let high = u64::from_str_radix(high, 16).ok()?;
        Some(high.checked_shl(48)? | u64::from_str_radix(low, 16).ok()?)
    });
    number.filter(|number| revision_id(*number) == text).ok_or_else(Error::stale_revision)
}

impl Settings {
    fn apply(&self, spec: &mut FunctionSpec) -> Result<(), Error> {
        let mut violations = Vec::new();
        if let Some(role) = &self.role {
            if is_role(role) {
                spec.role.clone_from(role);
            } else {
                violations.push(violation(role, "role", &format!("satisfy regular expression pattern: {ROLE_PATTERN}")));
            }
        }
        if let Some(handler) = &self.handler {
            if MAX_HANDLER_CHARS < handler.chars().count() {
                let constraint = format!("have length less than or equal to {MAX_HANDLER_CHARS}");
                violations.push(violation(handler, "handler", &constraint));
            } else if handler.is_empty() || handler.contains(|c: char| c.is_whitespace() || c.is_control()) {
                violations.push(violation(handler, "handler", "satisfy regular expression pattern: [^\\s]+"));
            }
            spec.handler.clone_from(handler);
        }
        if let Some(description) = &self.description {
            if MAX_DESCRIPTION_CHARS < description.chars().count() {
                let constraint = format!("have length less than or equal to {MAX_DESCRIPTION_CHARS}");
                violations.push(violation(description, "description", &constraint));
            }
            spec.description.clone_from(description);
        }
        if let Some(seconds) = self.timeout {
            let duration = u64::try_from(seconds).ok().map(Duration::from_secs);
            let fits = |timeout: &Duration| !timeout.is_zero() && *timeout <= FunctionSpec::MAX_TIMEOUT;
            match duration.filter(fits) {
                Some(timeout) => spec.timeout = timeout,
                None => violations.push(range(seconds, "timeout", (1, 900))),
            }
        }
        if let Some(mib) = self.memory_size {
            match u64::try_from(mib).ok().and_then(|mib| Memory::from_mib(mib).ok()) {
                Some(memory) => spec.memory = memory,
                None => violations.push(range(mib, "memorySize", (16, 10_240))),
            }
        }
        if !violations.is_empty() {
            return Err(Error::Validation { violations });
        }
        if let Some(name) = &self.runtime {
            spec.runtime = runtime(name)?;
            spec.runtime_name.clone_from(name);
        }
        if let Some(environment) = &self.environment {
            let variables = environment.variables.clone().unwrap_or_default();
            check_environment(&variables)?;
            spec.environment = variables;
        }
        Ok(())
    }
}

fn null(member: &str) -> String {
    format!("Value null at '{member}' failed to satisfy constraint: Member must not be null")
}

fn range(value: i64, member: &str, (least, most): (i64, i64)) -> String {
    let constraint = if value < least {
        format!("have value greater than or equal to {least}")
    } else {
        format!("have value less than or equal to {most}")
    };
    violation(&value.to_string(), member, &constraint)
}

fn runtime(name: &str) -> Result<model::Runtime, Error> {
    name.parse().map_err(|error| Error::InvalidParameterValue { message: format!("Value {name} at 'runtime': {error}") })
}

fn is_role(text: &str) -> bool {
    let rest = text.strip_prefix("arn:").and_then(|rest| rest.split_once(":iam::"));
    let Some((partition, (account, role))) = rest.and_then(|(partition, rest)| Some((partition, rest.split_once(":role")?)))
    else {
        return false;
    };
    let known = partition.is_empty()
        || partition.strip_prefix("aws").is_some_and(|tail| tail.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-'));
    let digits = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let name = role.strip_prefix('/').unwrap_or(role);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@-_/".contains(&byte);
    known && digits && (1..=512).contains(&name.len()) && name.bytes().all(allowed)
}

fn check_environment(variables: &BTreeMap<String, String>) -> Result<(), Error> {
    let refused = |what: &str| Error::InvalidParameterValue {
        message: format!(
            "Lambda was unable to configure your environment variables because the environment variables you have provided {what}"
        ),
    };
    let reserved: Vec<&str> = environment::RESERVED.into_iter().filter(|name| variables.contains_key(*name)).collect();
    if !reserved.is_empty() {
        let names = reserved.join(", ");
        return Err(refused(&format!(
            "contains reserved keys that are currently not supported for modification. Reserved keys used in this request: {names}"
        )));
    }
    let named_well = |name: &str| {
        let mut bytes = name.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
            && 2 <= name.len()
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if let Some(name) = variables.keys().find(|name| !named_well(name)) {
        return Err(Error::pattern(name, "environment.variables", VARIABLE_PATTERN));
    }
    if let Some((name, _)) = variables.iter().find(|(_, value)| value.contains('\0')) {
        return Err(refused(&format!("hold a zero byte in `{name}`")));
    }
    let bytes = json!(variables).to_string().len();
    if MAX_ENVIRONMENT_BYTES < bytes {
        return Err(refused(&format!("exceeded the 4KB limit. Bytes measured: {bytes}")));
    }
    Ok(())
}

/// The zip archive of a request; code from anywhere else is refused.
fn package(code: RawCode, operation: &'static str) -> Result<Vec<u8>, Error> {
    refuse_rest(&code.rest, operation)?;
    let Some(text) = code.zip_file else {
        let message = "Please provide a source for function code: this node takes a zip archive in ZipFile.";
        return Err(Error::InvalidParameterValue { message: message.to_owned() });
    };
    let unzip = || Error::InvalidParameterValue {
        message: "Could not unzip uploaded file. Please check your file, then try to upload again.".to_owned(),
    };
    let package = STANDARD.decode(text).map_err(|_| unzip())?;
    if package.is_empty() {
        return Err(Error::InvalidParameterValue { message: "Uploaded file must be a non-empty zip".to_owned() });
    }
    if MAX_ZIP_BYTES < package.len() {
        return Err(Error::RequestTooLarge { limit: MAX_ZIP_BYTES, operation });
    }
    Ok(package)
}

/// Refuses members that would change something this node does not do, by their names.
fn refuse_rest(rest: &Map<String, Value>, operation: &str) -> Result<(), Error> {
    match rest.iter().find(|(member, value)| !says_nothing(member, value)) {
        Some((member, _)) => Err(Error::NotSupported { what: format!("the member {member} of {operation} (with this value)") }),
        None => Ok(()),
    }
}

/// Whether a member states only what holds anyway.
fn says_nothing(member: &str, value: &Value) -> bool {
    match member {
        "PackageType" => value == "Zip",
        "EphemeralStorage" => value["Size"] == 512,
        "TracingConfig" => value["Mode"] == "PassThrough",
        "SnapStart" => value["ApplyOn"] == "None",
        "Architectures" => *value == json!([super::describe::ARCHITECTURE]),
        "LoggingConfig" => {
            value.as_object().is_some_and(|config| config.iter().all(|(key, value)| key == "LogFormat" && value == "Text"))
        }
        _ => is_empty(value),
    }
}

/// Null, false, an empty text or list, or an object of nothing else.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(change: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
        let mut body = json!({
            "FunctionName": "hello",
            "Role": "arn:aws:iam::000000000000:role/any",
            "Runtime": "python3.12",
            "Handler": "app.handler",
            "Code": { "ZipFile": STANDARD.encode(b"PK\x05\x06") },
        });
        change(body.as_object_mut().unwrap());
        body.to_string().into_bytes()
    }

    fn with(member: &str, value: Value) -> Vec<u8> {
        body(|members| drop(members.insert(member.to_owned(), value)))
    }

    #[test]
    fn a_function_is_created_from_what_the_client_states() {
        let create = create(&body(|members| {
            members.insert("Timeout".to_owned(), json!(7));
            members.insert("MemorySize".to_owned(), json!(256));
            members.insert("Environment".to_owned(), json!({ "Variables": { "MODE": "fast" } }));
            members.insert("Tags".to_owned(), json!({ "takt:rate": "30/s", "team": "a" }));
        }))
        .unwrap();
        let spec = create.spec;
        assert_eq!(
            (spec.name.as_str(), spec.runtime_name.as_str(), spec.handler.as_str()),
            ("hello", "python3.12", "app.handler")
        );
        assert_eq!((spec.timeout, spec.memory.mib()), (Duration::from_secs(7), 256));
        assert_eq!((spec.environment["MODE"].as_str(), spec.role.as_str()), ("fast", "arn:aws:iam::000000000000:role/any"));
        assert!(spec.guarantee.is_some());
        assert_eq!(create.package, b"PK\x05\x06");
    }

    #[test]
    fn what_this_node_cannot_honour_is_refused_by_name() {
        for (member, value) in [
            ("Layers", json!(["arn:x"])),
            ("VpcConfig", json!({ "SubnetIds": ["a"] })),
            ("DeadLetterConfig", json!({ "TargetArn": "arn:x" })),
            ("Publish", json!(true)),
            ("PackageType", json!("Image")),
            ("EphemeralStorage", json!({ "Size": 1024 })),
            ("TracingConfig", json!({ "Mode": "Active" })),
            ("Architectures", json!(["mips"])),
            ("SnapStart", json!({ "ApplyOn": "PublishedVersions" })),
            ("LoggingConfig", json!({ "LogFormat": "JSON" })),
            ("KMSKeyArn", json!("arn:x")),
            ("SomethingNew", json!({ "Size": 1 })),
        ] {
            let error = create(&with(member, value)).unwrap_err();
            assert_eq!(error.code(), "NotImplementedException", "{member}");
            assert!(error.to_string().contains(member), "{error}");
        }
        let s3 = create(&with("Code", json!({ "S3Bucket": "b", "S3Key": "k" }))).unwrap_err();
        assert!(s3.to_string().contains("S3Bucket"), "{s3}");
        let image = update_code(br#"{"ImageUri":"x"}"#).unwrap_err();
        assert!(image.to_string().contains("ImageUri of UpdateFunctionCode"), "{image}");
    }

    #[test]
    fn members_that_state_the_default_pass() {
        for (member, value) in [
            ("Layers", json!([])),
            ("VpcConfig", json!({ "SubnetIds": [], "SecurityGroupIds": [] })),
            ("Publish", json!(false)),
            ("PackageType", json!("Zip")),
            ("EphemeralStorage", json!({ "Size": 512 })),
            ("TracingConfig", json!({ "Mode": "PassThrough" })),
            ("Architectures", json!([super::super::describe::ARCHITECTURE])),
            ("DeadLetterConfig", json!({})),
            ("KMSKeyArn", json!("")),
        ] {
            create(&with(member, value)).unwrap();
        }
    }

    #[test]
    fn broken_constraints_are_told_in_aws_s_words() {
        let check = |body: Vec<u8>, code: &str, part: &str| {
            let error = create(&body).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        };
        let role = "1 validation error detected: Value 'x' at 'role' failed to satisfy constraint: Member must satisfy regular expression pattern: arn:";
        check(with("Role", json!("x")), "ValidationException", role);
        check(b"{}".to_vec(), "ValidationException", "3 validation errors detected: Value null at 'functionName'");
        check(
            with("Timeout", json!(901)),
            "ValidationException",
            "Value '901' at 'timeout' failed to satisfy constraint: Member must have value less than or equal to 900",
        );
        check(with("Timeout", json!(0)), "ValidationException", "greater than or equal to 1");
        check(with("MemorySize", json!(8)), "ValidationException", "memorySize");
        check(with("Handler", json!("a b")), "ValidationException", "handler");
        check(with("Description", json!("x".repeat(257))), "ValidationException", "256");
        check(with("FunctionName", json!("hello:live")), "InvalidParameterValueException", "Aliases");
        check(with("Runtime", json!("java21")), "InvalidParameterValueException", "java21");
        check(with("Runtime", Value::Null), "InvalidParameterValueException", "mandatory");
        check(with("Timeout", json!("7")), "InvalidRequestContentException", "Could not parse");
        check(with("Tags", json!({ "takt:rate": "fast" })), "InvalidParameterValueException", "rate");
        check(with("Code", json!({})), "InvalidParameterValueException", "ZipFile");
        check(with("Code", json!({ "ZipFile": "" })), "InvalidParameterValueException", "non-empty zip");
        check(with("Code", json!({ "ZipFile": "!" })), "InvalidParameterValueException", "Could not unzip");
        let environment = |variables: Value| with("Environment", json!({ "Variables": variables }));
        check(
            environment(json!({ "AWS_REGION": "x" })),
            "InvalidParameterValueException",
            "Reserved keys used in this request: AWS_REGION",
        );
        check(environment(json!({ "KEY": "x".repeat(4096) })), "InvalidParameterValueException", "4KB limit");
        check(environment(json!({ "A=B": "x" })), "ValidationException", "A=B");
        check(environment(json!({ "AB": "\u{0}" })), "InvalidParameterValueException", "zero byte");
    }

    #[test]
    fn an_update_changes_what_it_states_or_nothing() {
        let mut spec = create(&with("Timeout", json!(7))).unwrap().spec;
        update_configuration(br#"{"MemorySize":512,"RevisionId":""}"#).unwrap().apply(&mut spec).unwrap();
        assert_eq!((spec.memory.mib(), spec.timeout), (512, Duration::from_secs(7)));
        let before = spec.clone();
        update_configuration(br#"{"Timeout":9,"MemorySize":1}"#).unwrap().apply(&mut spec).unwrap_err();
        assert_eq!(spec, before);
        update_configuration(br#"{"Environment":{}}"#).unwrap().apply(&mut spec).unwrap();
        assert!(update_configuration(br#"{"Layers":["x"]}"#).unwrap_err().to_string().contains("Layers"));
    }

    #[test]
    fn a_revision_reads_back_and_what_is_none_is_a_failed_precondition() {
        assert_eq!(revision_id(u64::MAX), "0000ffff-0000-4000-8000-ffffffffffff");
        for revision in [0, 7, 1 << 48, u64::MAX] {
            assert_eq!(read_revision(&revision_id(revision)), Ok(revision));
        }
        for text in ["", "7", "b75dcd81-303e-4c1c-a0b4-6f1d0a4b5b0e", "+0000000-0000-4000-8000-000000000007"] {
            assert_eq!(read_revision(text).unwrap_err().status().as_u16(), 412, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_body_makes_the_readers_panic(text in "[\\[\\]{}\":,a-zA-Z0-9 ]{0,120}", member in "(FunctionName|Code|Tags|Environment|Timeout|Layers)", value in "(null|1|-1|\"a\"|\\[\\]|\\{\\}|true|1e9)") {
            for text in [text.clone(), format!("{{\"{member}\":{value}}}")] {
                let _ = (create(text.as_bytes()), update_code(text.as_bytes()), update_configuration(text.as_bytes()), tag_resource(text.as_bytes()));
            }
        }
    }
}
