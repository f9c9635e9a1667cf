//! The arithmetic of guarantees: worst-case response times, admission, instances and required rates.
//!
//! Everything here is a function of its arguments. Decisions use integers only; each formula says whether it is published
//! (and where) or derived (with the argument).

pub mod admission;
pub mod flow;
pub mod instances;
pub mod response;
#[cfg(test)]
mod simulator;
