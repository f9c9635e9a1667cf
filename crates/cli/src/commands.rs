//! One module per command.

pub mod audit;
pub mod backup;
pub mod delete;
pub mod demo;
pub mod deploy;
pub mod env;
pub mod guarantee;
pub mod internal;
pub mod invoke;
pub mod keys;
pub mod list;
pub mod logs;
pub mod new;
pub mod serve;
pub mod top;

use crate::args::NodeArgs;
use crate::home;

/// What a suggested command needs to find the same node.
#[must_use]
pub fn url_hint(node: &NodeArgs) -> String {
    if node.url == home::DEFAULT_URL { String::new() } else { format!(" --url {}", node.url) }
}
