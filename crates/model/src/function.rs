//! What a deployed function is.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::quantity::duration_text;
use crate::{FunctionName, Memory, Tenant, Terms, serde_as_text};

/// What starts the instances of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runtime {
    Python,
    NodeJs,
    /// Any executable named `bootstrap` that speaks the Lambda Runtime API.
    Provided,
}

/// A runtime name nobody knows here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a runtime of this node; use `python`, `nodejs` or `provided` (or an AWS name such as `python3.12`, `nodejs22.x`, `provided.al2023`)"
)]
pub struct RuntimeError {
    text: String,
}

impl FromStr for Runtime {
    type Err = RuntimeError;

    fn from_str(text: &str) -> Result<Self, RuntimeError> {
        let digits_and_dots = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        match text {
            "provided" | "provided.al2" | "provided.al2023" => Ok(Self::Provided),
            "nodejs" => Ok(Self::NodeJs),
            _ => {
                let python = text.strip_prefix("python").is_some_and(digits_and_dots);
                let nodejs = text.strip_prefix("nodejs").and_then(|rest| rest.strip_suffix(".x")).is_some_and(digits_and_dots);
                match (python, nodejs) {
                    (true, _) => Ok(Self::Python),
                    (_, true) => Ok(Self::NodeJs),
                    (false, false) => Err(RuntimeError { text: text.chars().take(64).collect() }),
                }
            }
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Python => "python",
            Self::NodeJs => "nodejs",
            Self::Provided => "provided",
        })
    }
}

serde_as_text!(Runtime);

/// One address a function may connect to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// A host name or an IP address without brackets.
    pub host: String,
    pub port: u16,
}

/// A text that is not `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address a function may be allowed to reach; write \"host:port\"")]
pub struct PeerError {
    text: String,
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        let error = || PeerError { text: text.chars().take(300).collect() };
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        if host.is_empty() || 253 < host.len() || !host.bytes().all(allowed) {
            return Err(error());
        }
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(error)?;
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

serde_as_text!(Peer);

/// Which connections the code of a function may open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outbound {
    /// Its owner did not say: all, where the node can give that, else none.
    #[default]
    Unstated,
    All,
    Only(Vec<Peer>),
    None,
}

/// Who may call a function by its URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UrlAccess {
    /// Anybody who reaches the node's port.
    Open,
    /// Only holders of a key of the node.
    #[default]
    Keyed,
}

/// A function as its owner states it. Code is kept apart, by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSpec {
    pub name: FunctionName,
    #[serde(default)]
    pub tenant: Tenant,
    pub runtime: Runtime,
    /// The runtime as the owner wrote it (`python3.12`), given back to AWS clients unchanged.
    pub runtime_name: String,
    /// `module.function` for Python and Node.js; passed on unread to `provided`.
    pub handler: String,
    #[serde(default)]
    pub memory: Memory,
    /// AWS's `Timeout`: 1 to 900 whole seconds; the run-time bound where no guarantee states a finer one.
    #[serde(with = "duration_text")]
    pub timeout: Duration,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    #[serde(default)]
    pub outbound: Outbound,
    #[serde(default)]
    pub url: UrlAccess,
    /// What its owner wants promised; `None` is best effort.
    #[serde(default)]
    pub guarantee: Option<Terms>,
    #[serde(default)]
    pub description: String,
    /// Tags without the `takt:` ones, which are read into `guarantee` and written back from it.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The role an AWS client named; kept and given back to AWS clients, otherwise without meaning. Empty: none was named.
    #[serde(default)]
    pub role: String,
}

impl FunctionSpec {
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(900);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aws_runtime_names_map_onto_ours() {
        for (text, runtime) in [
            ("python3.12", Runtime::Python),
            ("python", Runtime::Python),
            ("nodejs22.x", Runtime::NodeJs),
            ("provided.al2023", Runtime::Provided),
        ] {
            assert_eq!(text.parse(), Ok(runtime), "{text}");
        }
        for text in ["", "java21", "pythonic", "nodejs22", "provided.al3"] {
            assert!(text.parse::<Runtime>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_peer_is_a_host_and_a_port() {
        assert_eq!("Example.org:443".parse::<Peer>().unwrap().to_string(), "example.org:443");
        assert_eq!("[::1]:80".parse::<Peer>().unwrap().to_string(), "[::1]:80");
        for text in ["", "host", "host:0", "host:99999", ":80", "ho st:80"] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }
}
