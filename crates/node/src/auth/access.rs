//! One decision per request head: may this be asked, and what still has to be proven.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use model::UrlAccess;
use serde_json::json;

use super::keys::{Keys, Secret};
use super::origin::{self, Hosts};
use super::sigv4::{self, Unproven, Verifier};

/// What a path belongs to; each has its own rule. The front serves a request by this class too, so that what is guarded and
/// what is reached cannot differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathClass {
    /// AWS's own paths: a signature, or the bearer token.
    Aws,
    /// Takt's API, `/metrics`, and every path that no other rule names: the bearer token.
    V1,
    /// Functions by URL: as the function says.
    FunctionUrl,
}

impl PathClass {
    /// The class of a request's path.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let starts_with_date = || {
            let bytes = path.as_bytes();
            let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
            let dash = |at: usize| bytes.get(at) == Some(&b'-');
            (1..=4).all(digit) && dash(5) && digit(6) && digit(7) && dash(8) && digit(9) && digit(10)
        };
        match path.split('/').nth(1) {
            Some("fn") => Self::FunctionUrl,
            _ if starts_with_date() => Self::Aws,
            _ => Self::V1,
        }
    }
}

/// The rules of a node that its owner sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub hosts: Hosts,
}

/// A request that may go on.
#[derive(Debug)]
pub enum Grant {
    /// Nothing had to be shown.
    Open,
    /// The bearer token was shown. It must not be passed on to a function.
    Token,
    /// The head carries a signature in order; [`Unproven::finish`] decides once the body is there.
    Signature(Box<Unproven>),
}

/// Why a request may not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(transparent)]
    Origin(#[from] origin::Error),
    #[error(transparent)]
    Signature(#[from] sigv4::Error),
    #[error("this path needs the node's token (`Authorization: Bearer …`); `takt env` prints it")]
    NoToken,
    #[error("the bearer token is not this node's; `takt env` prints the one that is")]
    WrongToken,
}

/// Decides who may ask what. One per thread, because it keeps derived signing keys.
#[derive(Debug)]
pub struct Access {
    policy: Policy,
    token: Secret,
    verifier: Verifier,
}

impl Access {
    #[must_use]
    pub fn new(policy: Policy, keys: &Keys) -> Self {
        Self { policy, token: keys.token.clone(), verifier: Verifier::new(keys) }
    }

    /// Takes new keys; requests with the old ones are refused from the next head on.
    pub fn rotate(&mut self, keys: &Keys) {
        self.token = keys.token.clone();
        self.verifier = Verifier::new(keys);
    }

    /// Decides on a request's head. `url` is the function's own rule, where the class is [`PathClass::FunctionUrl`]; pass
    /// `Keyed` for a function that does not exist, so that nobody learns which ones do.
    pub fn check(&mut self, parts: &Parts, class: PathClass, url: UrlAccess, now: SystemTime) -> Result<Grant, Denied> {
        self.policy.hosts.check(parts)?;
        match class {
            PathClass::Aws => {
                origin::check_same_site(parts)?;
                self.token_or_signature(parts, now)
            }
            PathClass::V1 => {
                origin::check_same_site(parts)?;
                self.token(parts)
            }
            // A page of another site may call a function: it is either open to everybody, or needs a key no page holds.
            PathClass::FunctionUrl => match url {
                UrlAccess::Open => Ok(Grant::Open),
                UrlAccess::Keyed => self.token_or_signature(parts, now),
            },
        }
    }

    fn token_or_signature(&mut self, parts: &Parts, now: SystemTime) -> Result<Grant, Denied> {
        match bearer(parts) {
            Some(_) => self.token(parts),
            None => Ok(Grant::Signature(Box::new(self.verifier.begin(parts, now)?))),
        }
    }

    fn token(&self, parts: &Parts) -> Result<Grant, Denied> {
        match bearer(parts) {
            Some(offered) if self.token.matches(offered) => Ok(Grant::Token),
            Some(_) => Err(Denied::WrongToken),
            None => Err(Denied::NoToken),
        }
    }
}

fn bearer(parts: &Parts) -> Option<&[u8]> {
    let value = parts.headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

impl Denied {
    /// The error's name: AWS's on AWS's paths.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Origin(_) => "AccessDeniedException",
            Self::Signature(error) => error.code(),
            Self::NoToken => "MissingAuthenticationTokenException",
            Self::WrongToken => "UnrecognizedClientException",
        }
    }

    /// The answer to the request, in the words of the path's own API.
    #[must_use]
    pub fn response(&self, class: PathClass) -> Response<Bytes> {
        let wants_token = match self {
            Self::NoToken | Self::WrongToken => true,
            Self::Origin(_) | Self::Signature(_) => false,
        };
        let status = match class {
            PathClass::V1 if wants_token => StatusCode::UNAUTHORIZED,
            PathClass::V1 | PathClass::Aws | PathClass::FunctionUrl => StatusCode::FORBIDDEN,
        };
        let (code, body) = match class {
            PathClass::Aws => (self.code(), json!({ "message": self.to_string() })),
            PathClass::FunctionUrl => ("AccessDeniedException", json!({ "Message": crate::url::FORBIDDEN })),
            PathClass::V1 => {
                let page = "docs/reference/errors.md#access-denied";
                let error = json!({ "code": "access-denied", "message": self.to_string(), "page": page });
                (self.code(), json!({ "error": error }))
            }
        };
        let mut response = Response::new(Bytes::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-amzn-errortype", HeaderValue::from_static(code));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"takt\""));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn access() -> (Access, String) {
        let keys = Keys::generate().unwrap();
        let hosts = Hosts::new("127.0.0.1:9000".parse().unwrap(), []);
        (Access::new(Policy { hosts }, &keys), format!("Bearer {}", keys.token.reveal()))
    }

    fn parts(path: &str, headers: &[(&str, &str)]) -> Parts {
        let request = Request::post(path).header("host", "localhost:9000");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    const INVOKE: &str = "/2015-03-31/functions/hello/invocations";
    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn paths_fall_into_classes() {
        for (path, class) in [
            (INVOKE, PathClass::Aws),
            ("/2016-08-19/account-settings", PathClass::Aws),
            ("/v1/functions", PathClass::V1),
            ("/v1", PathClass::V1),
            ("/fn/hello/a", PathClass::FunctionUrl),
            ("/metrics", PathClass::V1),
            ("/", PathClass::V1),
            ("/v1evil", PathClass::V1),
            ("", PathClass::V1),
            ("/2015-03-3", PathClass::V1),
            ("*", PathClass::V1),
        ] {
            assert_eq!(PathClass::of(path), class, "{path}");
        }
    }

    #[test]
    fn nothing_is_managed_without_a_key() {
        let (mut access, _) = access();
        for path in [INVOKE, "/v1/functions", "/metrics", "/fn/hello/", "/"] {
            let class = PathClass::of(path);
            let denied = access.check(&parts(path, &[]), class, UrlAccess::Keyed, NOW).unwrap_err();
            assert_eq!(denied.code(), "MissingAuthenticationTokenException", "{path}");
            let wrong = [("authorization", "Bearer takt_AAAA")];
            assert_eq!(
                access.check(&parts(path, &wrong), class, UrlAccess::Keyed, NOW).unwrap_err(),
                Denied::WrongToken,
                "{path}"
            );
            let empty = [("authorization", "Bearer ")];
            assert_eq!(
                access.check(&parts(path, &empty), class, UrlAccess::Keyed, NOW).unwrap_err(),
                Denied::WrongToken,
                "{path}"
            );
        }
    }

    #[test]
    fn the_token_opens_every_path_and_an_open_function_needs_none() {
        let (mut access, token) = access();
        for path in [INVOKE, "/v1/functions", "/metrics", "/fn/hello/"] {
            let parts = parts(path, &[("authorization", &token)]);
            let grant = access.check(&parts, PathClass::of(path), UrlAccess::Keyed, NOW).unwrap();
            assert!(matches!(grant, Grant::Token), "{path}");
        }
        let open = access.check(&parts("/fn/hello/", &[]), PathClass::FunctionUrl, UrlAccess::Open, NOW);
        assert!(matches!(open, Ok(Grant::Open)));
    }

    #[test]
    fn a_page_that_somehow_holds_the_token_still_cannot_cross_sites_or_rebind() {
        let (mut access, token) = access();
        for path in [INVOKE, "/v1/functions", "/metrics"] {
            for trick in [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site"), ("host", "evil.example")] {
                let parts = parts(path, &[("authorization", &token), trick]);
                let denied = access.check(&parts, PathClass::of(path), UrlAccess::Keyed, NOW).unwrap_err();
                assert_eq!(denied.code(), "AccessDeniedException", "{path} {trick:?}");
            }
        }
        let rebound = Request::get("/fn/hello/").header("host", "evil.example").body(()).unwrap().into_parts().0;
        access.check(&rebound, PathClass::FunctionUrl, UrlAccess::Open, NOW).unwrap_err();
    }

    #[test]
    fn rotated_keys_close_the_door_to_the_old_ones() {
        let (mut access, token) = access();
        access.rotate(&Keys::generate().unwrap());
        let parts = parts("/v1/functions", &[("authorization", &token)]);
        assert_eq!(access.check(&parts, PathClass::V1, UrlAccess::Keyed, NOW).unwrap_err(), Denied::WrongToken);
    }

    #[test]
    fn a_denial_speaks_the_language_of_its_path() {
        let aws = Denied::Signature(sigv4::Error::Mismatch).response(PathClass::Aws);
        assert_eq!(
            (aws.status().as_u16(), &aws.headers()["x-amzn-errortype"]),
            (403, &"InvalidSignatureException".parse().unwrap())
        );
        assert!(aws.body().starts_with(b"{\"message\":\"The request signature we calculated"));
        let v1 = Denied::NoToken.response(PathClass::V1);
        assert_eq!((v1.status().as_u16(), &v1.headers()["www-authenticate"]), (401, &"Bearer realm=\"takt\"".parse().unwrap()));
        let url = Denied::NoToken.response(PathClass::FunctionUrl);
        assert!(url.body().starts_with(b"{\"Message\":\"Forbidden. "));
    }
}
