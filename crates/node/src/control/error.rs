//! Why control did not do what it was asked.

use std::time::Duration;

use model::{FunctionName, RateClassName, TermError};
use plan::admission::Refusal;

use crate::{code, registry};

/// Every way a management operation can end badly. Whatever it was, what served before serves on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{limit} management operations wait already; try again")]
    Busy { limit: usize },
    #[error("the node is shutting down")]
    Closing,
    #[error("the node is still bringing up the functions it had before its restart; try again")]
    Starting,
    #[error("function `{function}` exists already")]
    Exists { function: FunctionName },
    #[error("there is no function `{function}` on this node")]
    NoFunction { function: FunctionName },
    #[error("function `{function}` is being updated; wait for that update to end")]
    InProgress { function: FunctionName },
    #[error("function `{function}` has revision {found}, not {wanted}: somebody changed it in between")]
    Revision { function: FunctionName, found: u64, wanted: u64 },
    #[error("`{key}` of function `{function}`: {reason}")]
    Invalid { function: FunctionName, key: &'static str, reason: String },
    #[error("the guarantee of function `{function}`")]
    Terms { function: FunctionName, source: TermError },
    #[error("function `{function}` has no code yet: a first deployment brings a package")]
    NoCode { function: FunctionName },
    #[error("cannot keep the code of `{function}`")]
    Code { function: FunctionName, source: code::Error },
    #[error("{source}")]
    Refused { source: Box<Refusal> },
    #[error("there is no rate class `{class}` on this node")]
    NoRateClass { class: RateClassName },
    #[error("rate class `{class}` is used by {count} functions, among them `{function}`; take them out of it first")]
    RateClassInUse { class: RateClassName, count: usize, function: FunctionName },
    #[error("no guarantee is given while the evidence cannot be written: {reason}")]
    NoEvidence { reason: String },
    #[error("instances of function `{function}` do not become ready; their last output:\n{log}")]
    CannotServe { function: FunctionName, log: String },
    #[error("function `{function}` was not ready within {limit:?}")]
    NotReady { function: FunctionName, limit: Duration },
    #[error(
        "beside this change function `{neighbour}` needs {warm} warm instances and did not have them within {limit:?}: what served \
         before serves as before; see the log of `{neighbour}`, mend or delete it, or try again"
    )]
    NeighbourNotReady { neighbour: FunctionName, warm: u32, limit: Duration },
    #[error("cannot keep the change")]
    Registry { source: registry::Error },
    #[error("an operation on the disk was cancelled")]
    Cancelled,
}

/// Where a code is explained.
const PAGE: &str = "docs/reference/errors.md";

impl Error {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "busy",
            Self::Closing => "closing",
            Self::Starting => "starting",
            Self::Exists { .. } => "exists",
            Self::NoFunction { .. } => "no-function",
            Self::InProgress { .. } => "in-progress",
            Self::Revision { .. } => "revision",
            Self::Invalid { .. } => "invalid",
            Self::Terms { .. } => "terms",
            Self::NoCode { .. } => "no-code",
            Self::Code { .. } => "code",
            Self::Refused { .. } => "refused",
            Self::NoRateClass { .. } => "no-rate-class",
            Self::RateClassInUse { .. } => "rate-class-in-use",
            Self::NoEvidence { .. } => "no-evidence",
            Self::CannotServe { .. } => "cannot-serve",
            Self::NotReady { .. } => "not-ready",
            Self::NeighbourNotReady { .. } => "neighbour-not-ready",
            Self::Registry { .. } => "registry",
            Self::Cancelled => "cancelled",
        }
    }

    /// The page that says what to do.
    #[must_use]
    pub fn page(&self) -> String {
        format!("{PAGE}#{}", self.code())
    }

    /// The error with its causes, in one text for people.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(inner) = cause {
            let more = inner.to_string();
            if !text.contains(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = inner.source();
        }
        text
    }
}
