//! What a request of a runtime asks for.

use http::Method;
use http::request::Parts;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'p> {
    Next,
    /// The result of the invocation with this id, as text.
    Response(&'p str),
    Error(&'p str),
    InitError,
    Ping,
    /// Only instances restored from a snapshot have it; there are none here.
    Restore,
    Register,
    /// What a registered extension would ask; none can be.
    Extension,
    Telemetry,
    Unknown,
    WrongMethod,
}

impl<'p> Route<'p> {
    pub(super) fn of(parts: &'p Parts) -> Self {
        let path = parts.uri.path();
        let (method, route) = match path {
            "/ping" | "/2018-06-01/ping" => (Method::GET, Self::Ping),
            "/2018-06-01/runtime/invocation/next" => (Method::GET, Self::Next),
            "/2018-06-01/runtime/init/error" => (Method::POST, Self::InitError),
            "/2018-06-01/runtime/restore/next" | "/2018-06-01/runtime/restore/error" => return Self::Restore,
            "/2020-01-01/extension/register" => (Method::POST, Self::Register),
            "/2020-01-01/extension/event/next" => (Method::GET, Self::Extension),
            "/2020-01-01/extension/init/error" | "/2020-01-01/extension/exit/error" => (Method::POST, Self::Extension),
            "/2020-08-15/logs" | "/2022-07-01/telemetry" => (Method::PUT, Self::Telemetry),
            _ => match path.strip_prefix("/2018-06-01/runtime/invocation/").and_then(|rest| rest.split_once('/')) {
                Some((id, "response")) => (Method::POST, Self::Response(id)),
                Some((id, "error")) => (Method::POST, Self::Error(id)),
                Some(_) | None => return Self::Unknown,
            },
        };
        if parts.method == method { route } else { Self::WrongMethod }
    }
}
