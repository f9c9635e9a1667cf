//! The environment variables of an instance, as AWS Lambda sets them.
//!
//! What AWS reserves cannot be stated by a function and is refused when it is deployed; what AWS sets but does not reserve,
//! such as `PATH`, is a default that the function's own value replaces.

use std::collections::BTreeMap;
use std::path::Path;

use model::{FunctionSpec, Runtime};

/// The most bytes of names and values together, as on AWS.
pub const MAX_BYTES: usize = 4096;

/// Names that only the platform sets.
pub const RESERVED: [&str; 22] = [
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_MAX_CONCURRENCY",
    "AWS_LAMBDA_METADATA_API",
    "AWS_LAMBDA_METADATA_TOKEN",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
    "_HANDLER",
    "_LAMBDA_TELEMETRY_LOG_FD",
    "_X_AMZN_TRACE_ID",
];

/// Why a function's variables cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("the environment variables {} are reserved for the platform", names.join(", "))]
    Reserved { names: Vec<String> },
    #[error("`{name}` cannot name an environment variable: use a letter, then letters, digits and `_`")]
    Name { name: String },
    #[error("the value of environment variable `{name}` has a zero byte")]
    Value { name: String },
    #[error("the environment variables have {bytes} bytes, the limit is {MAX_BYTES}")]
    TooLong { bytes: usize },
}

/// Why an instance is started: `AWS_LAMBDA_INITIALIZATION_TYPE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialization {
    OnDemand,
    /// To be kept warm for a guarantee.
    Provisioned,
}

/// Keys that AWS SDKs inside the instance find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: String,
}

/// What an instance is told about itself beyond its function's own statements.
#[derive(Clone, Debug)]
pub struct Instance<'a> {
    pub spec: &'a FunctionSpec,
    /// As AWS writes it: `$LATEST` or a number.
    pub version: &'a str,
    pub initialization: Initialization,
    pub region: &'a str,
    pub credentials: &'a Credentials,
    pub log_stream: &'a str,
    /// Host and port, without a scheme, as the instance reaches it.
    pub runtime_api: &'a str,
    /// The package, as the instance sees it.
    pub code: &'a Path,
    /// The runtime clients, as the instance sees them.
    pub clients: &'a Path,
}

/// Checks what a function states. Called when it is deployed; [`variables`] checks again.
pub fn check(stated: &BTreeMap<String, String>) -> Result<(), Error> {
    let names: Vec<String> = stated.keys().filter(|name| RESERVED.contains(&name.as_str())).cloned().collect();
    if !names.is_empty() {
        return Err(Error::Reserved { names });
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if let Some(name) =
        stated.keys().find(|name| !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.bytes().all(allowed))
    {
        return Err(Error::Name { name: name.chars().take(64).collect() });
    }
    if let Some((name, _)) = stated.iter().find(|(_, value)| value.contains('\0')) {
        return Err(Error::Value { name: name.clone() });
    }
    let bytes = stated.iter().map(|(name, value)| name.len() + value.len()).sum();
    if MAX_BYTES < bytes {
        return Err(Error::TooLong { bytes });
    }
    Ok(())
}

/// The whole environment of an instance.
pub fn variables(instance: &Instance<'_>) -> Result<BTreeMap<String, String>, Error> {
    let spec = instance.spec;
    check(&spec.environment)?;
    let mut variables = BTreeMap::new();
    let mut put = |name: &str, value: &str| {
        variables.insert(name.to_owned(), value.to_owned());
    };
    let code = instance.code.to_string_lossy();
    for (name, value) in defaults(spec.runtime, &code) {
        put(name, &value);
    }
    for (name, value) in &spec.environment {
        put(name, value);
    }
    let memory = spec.memory.mib().to_string();
    let log_group = format!("/aws/lambda/{}", spec.name);
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", instance.credentials.access_key_id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", &instance.credentials.secret_access_key),
        ("AWS_SESSION_TOKEN", &instance.credentials.session_token),
        ("_HANDLER", &spec.handler),
        ("LAMBDA_TASK_ROOT", &code),
        ("LAMBDA_RUNTIME_DIR", &instance.clients.to_string_lossy()),
        ("AWS_REGION", instance.region),
        ("AWS_DEFAULT_REGION", instance.region),
        ("AWS_LAMBDA_RUNTIME_API", instance.runtime_api),
        ("AWS_LAMBDA_FUNCTION_NAME", spec.name.as_str()),
        ("AWS_LAMBDA_FUNCTION_VERSION", instance.version),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", &memory),
        ("AWS_LAMBDA_LOG_GROUP_NAME", &log_group),
        ("AWS_LAMBDA_LOG_STREAM_NAME", instance.log_stream),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", initialization(instance.initialization)),
    ] {
        put(name, value);
    }
    match spec.runtime {
        Runtime::Python | Runtime::NodeJs => put("AWS_EXECUTION_ENV", &format!("AWS_Lambda_{}", spec.runtime_name)),
        Runtime::Provided => {}
    }
    Ok(variables)
}

const fn initialization(initialization: Initialization) -> &'static str {
    match initialization {
        Initialization::OnDemand => "on-demand",
        Initialization::Provisioned => "provisioned-concurrency",
    }
}

/// What AWS sets and lets functions replace. The locale is one that every glibc has, where AWS says `en_US.UTF-8`.
fn defaults(runtime: Runtime, code: &str) -> Vec<(&'static str, String)> {
    let mut defaults = vec![
        ("LANG", "C.UTF-8".to_owned()),
        ("TZ", ":UTC".to_owned()),
        ("PATH", "/usr/local/bin:/usr/bin:/bin:/opt/bin".to_owned()),
        ("LD_LIBRARY_PATH", format!("{code}:{code}/lib:/opt/lib")),
        ("PWD", code.to_owned()),
        ("AWS_LAMBDA_LOG_FORMAT", "Text".to_owned()),
        ("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR".to_owned()),
    ];
    match runtime {
        Runtime::NodeJs => defaults.push(("NODE_PATH", format!("/opt/nodejs/node_modules:{code}"))),
        Runtime::Python | Runtime::Provided => {}
    }
    defaults
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn made(toml: &str) -> Result<BTreeMap<String, String>, Error> {
        let spec = model::config::parse(toml).unwrap();
        let credentials =
            Credentials { access_key_id: "id".into(), secret_access_key: "secret".into(), session_token: "token".into() };
        variables(&Instance {
            spec: &spec,
            version: "$LATEST",
            initialization: Initialization::Provisioned,
            region: "us-east-1",
            credentials: &credentials,
            log_stream: "stream",
            runtime_api: "127.0.0.1:9001",
            code: Path::new("/var/task"),
            clients: Path::new("/var/runtime"),
        })
    }

    #[test]
    fn an_instance_finds_what_aws_tells_it() {
        let found = made(
            "name = \"f\"\nruntime = \"python3.12\"\nhandler = \"m.h\"\nmemory = \"64MB\"\n[environment]\nMODE = \"fast\"\nTZ = \"CET\"\n",
        )
        .unwrap();
        for (name, value) in [
            ("MODE", "fast"),
            ("TZ", "CET"),
            ("_HANDLER", "m.h"),
            ("AWS_EXECUTION_ENV", "AWS_Lambda_python3.12"),
            ("AWS_LAMBDA_FUNCTION_NAME", "f"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "64"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/f"),
            ("AWS_LAMBDA_INITIALIZATION_TYPE", "provisioned-concurrency"),
            ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001"),
            ("LAMBDA_TASK_ROOT", "/var/task"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_SESSION_TOKEN", "token"),
        ] {
            assert_eq!(found.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(made("name = \"f\"\nruntime = \"provided\"\n").unwrap().get("AWS_EXECUTION_ENV"), None);
    }

    #[test]
    fn what_a_function_may_not_state_is_refused() {
        let check = |name: &str, value: &str| check(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
        assert_eq!(check("AWS_REGION", "x"), Err(Error::Reserved { names: vec!["AWS_REGION".to_owned()] }));
        for name in ["", "1A", "A=B", "A B", "_A", "Ä"] {
            assert!(matches!(check(name, "x"), Err(Error::Name { .. })), "{name}");
        }
        assert_eq!(check("A", "\0"), Err(Error::Value { name: "A".to_owned() }));
        assert_eq!(check("A", &"x".repeat(MAX_BYTES)), Err(Error::TooLong { bytes: MAX_BYTES + 1 }));
        check("A", &"x".repeat(MAX_BYTES - 1)).unwrap();
    }

    proptest! {
        #[test]
        fn no_name_or_value_makes_it_panic(name in ".{0,12}", value in ".{0,12}") {
            let _ = check(&BTreeMap::from([(name, value)]));
        }
    }
}
