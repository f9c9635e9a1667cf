//! The one place that asks what day it is. Decisions use the monotonic clock; this one dates things for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970; zero when the machine's clock stands before that.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is where the node asks")]
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
