//! Keeps web pages away from a port on the same machine.
//!
//! A page that rebinds its own name to 127.0.0.1 still sends that name as `Host`; a page that posts across sites still sends
//! its `Origin` or `Sec-Fetch-Site`. Both are headers that scripts cannot set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use http::header::{HOST, ORIGIN};
use http::request::Parts;

/// Bytes of `Host`, `Origin` or `Sec-Fetch-Site` that an error repeats.
const SHOWN_BYTES: usize = 100;

/// Why a request is taken for a browser trick.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a request needs exactly one `Host` header; this one has {count}")]
    HostCount { count: usize },
    #[error(
        "this node does not answer as `{host}`; use its listen address or localhost, or make the name known to it when it is started"
    )]
    Host { host: String },
    #[error("the request was made by a page of another site (`{header}: {value}`)")]
    CrossSite { header: &'static str, value: String },
}

/// The names a node answers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    listen: IpAddr,
    names: Vec<String>,
}

impl Hosts {
    /// The listen address, `localhost`, `127.0.0.1`, `[::1]` and the configured names. A node that listens on every address
    /// (`0.0.0.0` or `[::]`) answers to any address literal: rebinding needs a name.
    #[must_use]
    pub fn new(listen: SocketAddr, names: impl IntoIterator<Item = String>) -> Self {
        Self { listen: listen.ip(), names: names.into_iter().collect() }
    }

    /// Whether the node answers to this `Host`; the port does not matter (it may be forwarded).
    #[must_use]
    pub fn knows(&self, host: &str) -> bool {
        let Some(name) = without_port(host) else {
            return false;
        };
        let bare = name.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
        let address: Option<IpAddr> = match bare {
            Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => name.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        };
        match address {
            Some(address) => {
                self.listen.is_unspecified()
                    || address == self.listen
                    || address == IpAddr::V4(Ipv4Addr::LOCALHOST)
                    || address == IpAddr::V6(Ipv6Addr::LOCALHOST)
            }
            None => {
                let same = |known: &str| known.eq_ignore_ascii_case(name);
                same("localhost") || self.names.iter().any(|known| same(known))
            }
        }
    }

    /// Refuses a request whose `Host` (or whose target in absolute form) is not a name of this node.
    pub fn check(&self, parts: &Parts) -> Result<(), Error> {
        let count = parts.headers.get_all(HOST).iter().count();
        if count != 1 {
            return Err(Error::HostCount { count });
        }
        let header = text(&parts.headers, HOST.as_str());
        for host in [Some(header), parts.uri.authority().map(http::uri::Authority::as_str)].into_iter().flatten() {
            if !self.knows(host) {
                return Err(Error::Host { host: shown(host) });
            }
        }
        Ok(())
    }
}

/// Refuses a request that a page of another site made. Requests of programs carry neither header and pass.
pub fn check_same_site(parts: &Parts) -> Result<(), Error> {
    for value in parts.headers.get_all("sec-fetch-site") {
        if !matches!(value.as_bytes(), b"same-origin" | b"none") {
            let value = shown(&String::from_utf8_lossy(value.as_bytes()));
            return Err(Error::CrossSite { header: "Sec-Fetch-Site", value });
        }
    }
    let host = text(&parts.headers, HOST.as_str());
    for value in parts.headers.get_all(ORIGIN) {
        let origin = value.to_str().unwrap_or("");
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if !authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host)) {
            return Err(Error::CrossSite { header: "Origin", value: shown(origin) });
        }
    }
    Ok(())
}

/// `name`, `name:port`, `[v6]` or `[v6]:port`; `None` for anything else.
fn without_port(host: &str) -> Option<&str> {
    let name_bytes = match host.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(name_bytes);
    let digits = |port: &str| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    let port_is_fine = port.is_empty() || port.strip_prefix(':').is_some_and(digits);
    (port_is_fine && !name.is_empty()).then_some(name)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

fn shown(value: &str) -> String {
    value.chars().take(SHOWN_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn hosts(listen: &str) -> Hosts {
        Hosts::new(listen.parse().unwrap(), ["takt.example".to_owned()])
    }

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request = headers.iter().fold(Request::post(uri), |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_node_answers_to_its_own_names_only() {
        let local = hosts("127.0.0.1:9000");
        for host in ["127.0.0.1:9000", "127.0.0.1", "localhost:9000", "LocalHost", "[::1]:9000", "[::1]", "takt.example:80"] {
            assert!(local.knows(host), "{host}");
        }
        for host in [
            "",
            ":",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "::1",
            "[::1",
            "[]",
            "localhost:9000@evil",
            "localhost:http",
            "localhost evil",
            "[::ffff:7f00:1]",
        ] {
            assert!(!local.knows(host), "{host}");
        }
    }

    #[test]
    fn a_node_on_every_address_answers_to_literals_but_not_to_unknown_names() {
        let everywhere = hosts("0.0.0.0:9000");
        assert!(everywhere.knows("192.168.1.7:9000") && everywhere.knows("[fe80::1]:9000"));
        assert!(!everywhere.knows("evil.example"));
        assert!(hosts("192.168.1.7:9000").knows("192.168.1.7"));
        assert!(!hosts("192.168.1.7:9000").knows("192.168.1.8"));
    }

    #[test]
    fn a_rebound_name_is_refused_wherever_it_stands() {
        let local = hosts("127.0.0.1:9000");
        assert_eq!(local.check(&parts("/v1/functions", &[("host", "localhost:9000")])), Ok(()));
        let rebound = local.check(&parts("/v1/functions", &[("host", "evil.example:9000")]));
        assert_eq!(rebound, Err(Error::Host { host: "evil.example:9000".to_owned() }));
        let absolute = local.check(&parts("http://evil.example/v1", &[("host", "localhost")]));
        assert_eq!(absolute, Err(Error::Host { host: "evil.example".to_owned() }));
        assert_eq!(local.check(&parts("/", &[])), Err(Error::HostCount { count: 0 }));
        let two = local.check(&parts("/", &[("host", "localhost"), ("host", "evil.example")]));
        assert_eq!(two, Err(Error::HostCount { count: 2 }));
    }

    #[test]
    fn a_post_from_another_site_is_refused() {
        let check = |headers: &[(&str, &str)], fine: bool| {
            let mut all = vec![("host", "localhost:9000")];
            all.extend(headers);
            assert_eq!(check_same_site(&parts("/v1/functions", &all)).is_ok(), fine, "{headers:?}");
        };
        check(&[], true);
        check(&[("origin", "http://localhost:9000")], true);
        check(&[("sec-fetch-site", "same-origin")], true);
        check(&[("sec-fetch-site", "none")], true);
        check(&[("origin", "https://evil.example")], false);
        check(&[("origin", "http://localhost:3000")], false);
        check(&[("origin", "http://localhost:9000.evil.example")], false);
        check(&[("origin", "null")], false);
        check(&[("origin", "")], false);
        check(&[("origin", "http://localhost:9000"), ("origin", "https://evil.example")], false);
        check(&[("sec-fetch-site", "cross-site")], false);
        check(&[("sec-fetch-site", "same-site")], false);
        check(&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], false);
    }

    proptest! {
        #[test]
        fn only_the_known_names_pass(host in "[a-zA-Z0-9.:\\[\\]@-]{0,30}") {
            let local = hosts("127.0.0.1:9000");
            if local.knows(&host) {
                let lower = host.to_ascii_lowercase();
                prop_assert!(["127.0.0.1", "localhost", "[", "takt.example"].iter().any(|known| lower.starts_with(known)), "{}", host);
            }
        }
    }
}
