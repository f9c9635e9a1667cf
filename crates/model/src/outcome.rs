//! How invocations are classed and how they end.

use serde::{Deserialize, Serialize};

/// Under which promise an invocation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// It took a slot of an admitted guarantee.
    Guaranteed,
    /// It runs on what is idle: a function without a guarantee, or the excess of one with it.
    BestEffort,
}

/// How an invocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The handler returned a result.
    Succeeded,
    /// The handler reported an error.
    Failed,
    /// It was stopped at its run-time or CPU bound.
    Overran,
    /// The instance died under it.
    Crashed,
    /// Its client went away and it was stopped.
    Cancelled,
    /// It waited beyond its deadline and was dropped without starting.
    Expired,
    /// It was refused without starting.
    Refused,
    /// It was handed to best effort without taking a slot; how it ended there is outside the promise.
    Demoted,
}

/// Why a conforming invocation missed its promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The machine was taken away: the highest-priority probe on the same core saw a gap that overlaps the violation.
    Steal,
    /// The invocation itself exceeded its stated bound.
    Overrun,
    /// The function's code crashed or was given up by its client.
    Function,
    /// The invocation waited in a call to something outside the platform.
    HostCall,
    /// A fault of the platform: something that the analysis says cannot happen did.
    Bug,
    /// No evidence for any of the others.
    Unknown,
}
