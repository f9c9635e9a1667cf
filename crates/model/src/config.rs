//! `takt.toml`: how a function folder states what it is.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::function::RuntimeError;
use crate::{
    FunctionName, FunctionSpec, Memory, NameError, Outbound, Peer, QuantityError, Tenant, TermError, Terms, UrlAccess,
    parse_duration,
};

/// The file's name inside a function folder.
pub const FILE_NAME: &str = "takt.toml";

/// Why a `takt.toml` states no function.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("takt.toml is not valid")]
    Toml { source: Box<toml::de::Error> },
    #[error("`name` in takt.toml")]
    Name { source: NameError },
    #[error("`tenant` in takt.toml")]
    Tenant { source: NameError },
    #[error("`runtime` in takt.toml")]
    Runtime { source: RuntimeError },
    #[error("`memory` in takt.toml")]
    Memory { source: QuantityError },
    #[error("`timeout` in takt.toml")]
    Timeout { source: QuantityError },
    #[error("a timeout of {timeout:?} is outside the range from 1ms to 900s")]
    TimeoutRange { timeout: Duration },
    #[error("`[guarantee]` in takt.toml")]
    Guarantee { source: TermError },
    #[error("`[guarantee] {key}` in takt.toml is a {found}; write it as a text with its unit, such as \"30/s\" or \"20ms\"")]
    GuaranteeValue { key: String, found: &'static str },
    #[error("`[network] outbound` in takt.toml: {reason}")]
    Outbound { reason: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    runtime: String,
    #[serde(default)]
    handler: String,
    memory: Option<String>,
    tenant: Option<String>,
    timeout: Option<String>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    url: UrlAccess,
    #[serde(default)]
    guarantee: BTreeMap<String, toml::Value>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    network: RawNetwork,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    outbound: Option<RawOutbound>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawOutbound {
    Word(String),
    Peers(Vec<String>),
}

/// Reads the text of a `takt.toml`. Terms are checked as terms here and resolved at admission.
pub fn parse(text: &str) -> Result<FunctionSpec, Error> {
    let raw: RawConfig = toml::from_str(text).map_err(|source| Error::Toml { source: Box::new(source) })?;
    let timeout = match &raw.timeout {
        Some(text) => parse_duration(text).map_err(|source| Error::Timeout { source })?,
        None => FunctionSpec::DEFAULT_TIMEOUT,
    };
    if timeout < Duration::from_millis(1) || FunctionSpec::MAX_TIMEOUT < timeout {
        return Err(Error::TimeoutRange { timeout });
    }
    Ok(FunctionSpec {
        name: raw.name.parse::<FunctionName>().map_err(|source| Error::Name { source })?,
        tenant: match &raw.tenant {
            Some(text) => text.parse().map_err(|source| Error::Tenant { source })?,
            None => Tenant::default(),
        },
        runtime: raw.runtime.parse().map_err(|source| Error::Runtime { source })?,
        handler: handler(&raw),
        runtime_name: raw.runtime,
        memory: match &raw.memory {
            Some(text) => text.parse().map_err(|source| Error::Memory { source })?,
            None => Memory::DEFAULT,
        },
        timeout,
        environment: raw.environment,
        outbound: outbound(raw.network.outbound)?,
        url: raw.url,
        guarantee: terms(&raw.guarantee)?,
        description: raw.description,
        tags: BTreeMap::new(),
        role: String::new(),
    })
}

fn handler(raw: &RawConfig) -> String {
    match (raw.handler.is_empty(), raw.runtime.starts_with("provided")) {
        (false, _) => raw.handler.clone(),
        (true, true) => "bootstrap".to_owned(),
        (true, false) => "handler.handler".to_owned(),
    }
}

fn outbound(raw: Option<RawOutbound>) -> Result<Outbound, Error> {
    match raw {
        None => Ok(Outbound::default()),
        Some(RawOutbound::Word(word)) => match word.as_str() {
            "all" => Ok(Outbound::All),
            "none" => Ok(Outbound::None),
            other => Err(Error::Outbound { reason: format!("`{other}` is not \"all\", \"none\" or a list of \"host:port\"") }),
        },
        Some(RawOutbound::Peers(peers)) => {
            let parsed: Result<Vec<Peer>, _> = peers.iter().map(|peer| peer.parse()).collect();
            parsed.map(Outbound::Only).map_err(|error| Error::Outbound { reason: error.to_string() })
        }
    }
}

fn terms(raw: &BTreeMap<String, toml::Value>) -> Result<Option<Terms>, Error> {
    let mut pairs = Vec::new();
    for (key, value) in raw {
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) if matches!(key.as_str(), "burst" | "queue_limit" | "cpu") => number.to_string(),
            toml::Value::Float(number) if key == "cpu" => number.to_string(),
            toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_)
            | toml::Value::Table(_) => {
                return Err(Error::GuaranteeValue { key: key.clone(), found: value.type_str() });
            }
        };
        pairs.push((key.as_str(), text));
    }
    Terms::from_pairs(pairs.iter().map(|(key, text)| (*key, text.as_str()))).map_err(|source| Error::Guarantee { source })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Pacing, Runtime};

    #[test]
    fn a_function_folder_states_its_guarantee() {
        let spec = parse(
            "name = \"detect\"\nruntime = \"provided\"\nmemory = \"64MB\"\n\
             [guarantee]\nrate = \"30/s\"\nburst = 3\nmax_run_time = \"20ms\"\ndeadline = \"100ms\"\ncpu = 0.5\n\
             [environment]\nMODE = \"fast\"\n[network]\noutbound = [\"db.example:5432\"]\n",
        )
        .unwrap();
        assert_eq!(spec.runtime, Runtime::Provided);
        assert_eq!(spec.handler, "bootstrap");
        assert_eq!(spec.outbound, Outbound::Only(vec!["db.example:5432".parse().unwrap()]));
        let terms = spec.guarantee.unwrap();
        assert!(matches!(terms.pacing, Pacing::Own { burst, .. } if burst.get() == 3));
        assert_eq!(terms.cpu.thousandths(), 500);
    }

    #[test]
    fn mistakes_name_the_key() {
        for (text, part) in [
            ("name = \"a b\"\nruntime = \"python\"", "name"),
            ("name = \"a\"\nruntime = \"cobol\"", "runtime"),
            ("name = \"a\"\nruntime = \"python\"\nmemry = \"1GB\"", "not valid"),
            ("name = \"a\"\nruntime = \"python\"\ntimeout = \"0s\"", "timeout"),
            ("name = \"a\"\nruntime = \"python\"\n[guarantee]\nrate = 30", "rate"),
            ("name = \"a\"\nruntime = \"python\"\n[network]\noutbound = \"some\"", "outbound"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    const PAGE: &str = include_str!("../../../docs/reference/takt-toml.md");

    /// The first cells of the tables of a section of the page, without their quotes, and their rows.
    fn rows(title: &str) -> BTreeMap<&'static str, &'static str> {
        let section = PAGE.split("\n## ").find(|section| section.starts_with(title)).unwrap();
        let rows = section.lines().filter_map(|line| Some((line.strip_prefix("| `")?.split('`').next()?, line)));
        rows.collect()
    }

    /// The keys a table takes, as its parser names them when it is given another one.
    fn keys_of<T: serde::de::DeserializeOwned>() -> Vec<String> {
        let error = toml::from_str::<T>("no_such_key = 1").err().unwrap().message().to_owned();
        let (_, keys) = error.split_once("expected ").unwrap();
        keys.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    fn check_page(title: &str, mut keys: Vec<String>) {
        keys.sort();
        assert_eq!(rows(title).into_keys().collect::<Vec<_>>(), keys, "the keys under \"{title}\"");
    }

    #[test]
    fn the_reference_holds_every_key_and_no_other() {
        check_page("The function", keys_of::<RawConfig>());
        check_page("[network]", keys_of::<RawNetwork>());
        check_page("[guarantee]", Terms::KEYS.map(str::to_owned).to_vec());
    }

    #[test]
    fn the_reference_states_the_defaults_and_its_example_is_a_function() {
        let example = PAGE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let stated = parse(example).unwrap().guarantee.unwrap();
        assert!(stated.resolve(FunctionSpec::DEFAULT_TIMEOUT).is_ok(), "{stated:?}");
        let bare = parse("name = \"a\"\nruntime = \"python\"").unwrap();
        let terms = Terms::from_pairs([("rate", "1/s")]).unwrap().unwrap().resolve(bare.timeout).unwrap();
        let function = rows("The function");
        for (key, default) in [
            ("handler", bare.handler),
            ("memory", format!("{}MB", bare.memory.mib())),
            ("timeout", crate::format_duration(bare.timeout)),
            ("tenant", bare.tenant.to_string()),
        ] {
            assert!(function[key].contains(&format!("| `{default}`")), "{key} is {default} by default: {}", function[key]);
        }
        let within = crate::format_duration(terms.start_within);
        assert!(rows("[guarantee]")["start_within"].contains(&format!("else `{within}`")), "{within}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z\\[\\]=\"\n0-9/ .]{0,200}") {
            let _ = parse(&text);
        }
    }
}
