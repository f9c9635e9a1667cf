//! What the front of both lanes knows: where a path belongs and who may ask it.

use std::time::{SystemTime, UNIX_EPOCH};

use model::LeaseId;
use runtime::sys::clock;

use crate::auth::keys::Keys;
use crate::auth::{Access, Policy};
use crate::descriptors::Connections;
use crate::lambda::{Home, path};

/// The same for both lanes; each thread makes its own [`Access`] from it.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) home: Home,
    pub(crate) policy: Policy,
    pub(crate) keys: Keys,
    /// Excess that the guaranteed lane answers itself and admission accounts for; a function's own budget is a part of it.
    pub(crate) excess_per_second: u32,
    /// New connections that it is handed, likewise.
    pub(crate) hand_overs_per_second: u32,
    /// How many connections of clients there may be.
    pub(crate) connections: Connections,
}

/// What a path asks for, from its shape alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// AWS's Invoke.
    Invoke,
    /// A function by URL.
    Url,
    /// Input for a held instance.
    Lease(Option<LeaseId>),
    Management,
}

impl Target {
    pub(crate) fn of(text: &str) -> Self {
        if path::is_invocation(text) {
            return Self::Invoke;
        }
        let mut segments = text.split('/').skip(1);
        match (segments.next(), segments.next(), segments.next()) {
            (Some("fn"), _, _) => Self::Url,
            (Some("v1"), Some("leases"), Some(id)) if segments.next().is_none() => Self::Lease(id.parse().ok().map(LeaseId)),
            _ => Self::Management,
        }
    }
}

impl Front {
    pub(crate) fn access(&self) -> Access {
        Access::new(self.policy.clone(), &self.keys)
    }
}

/// The wall clock, as signatures are dated by it.
pub(crate) fn today() -> SystemTime {
    UNIX_EPOCH + clock::since_epoch()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_sorted_by_its_shape() {
        for (path, target) in [
            ("/2015-03-31/functions/hello/invocations", Target::Invoke),
            ("/fn/hello/a/b", Target::Url),
            ("/fn/hello", Target::Url),
            ("/fn/..%2f", Target::Url),
            ("/v1/leases/7", Target::Lease(Some(LeaseId(7)))),
            ("/v1/leases/7/more", Target::Management),
            ("/2015-03-31/functions", Target::Management),
            ("/", Target::Management),
            ("*", Target::Management),
        ] {
            assert_eq!(Target::of(path), target, "{path}");
        }
    }
}
