//! An open-loop load generator: every invocation has an instant at which it is meant to be sent.
//!
//! Latency counts from that instant, so an answer that is late delays nobody else's measurement and a pause of the
//! generator itself shows (no coordinated omission). The schedule is exact and known beforehand; connections are opened as
//! they are needed, up to a named limit, beyond which invocations wait for one and their wait counts.

mod beat;
mod drive;
mod report;
mod schedule;

pub use beat::{Beat, Wall};
pub use drive::{Drive, Outcome, Sample, Target};
pub(crate) use drive::{Line, exchange, open};
pub use report::{Report, csv};
pub use schedule::{Arrivals, Schedule};
