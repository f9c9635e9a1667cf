//! The arithmetic of guarantees: worst-case response times, admission, instances and required rates.
//!
//! Everything here is a function of its arguments. Decisions use integers only; each formula says whether it is published
//! (and where) or derived (with the argument).

pub mod admission;
pub mod burst;
pub mod flow;
pub mod instances;
pub mod quota;
mod ratio;
pub mod required_rate;
pub mod response;

pub use ratio::Ratio;
#[cfg(test)]
mod simulator;
