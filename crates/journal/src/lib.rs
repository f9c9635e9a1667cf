//! What must survive: the records of a node, numbered and hash-chained.
//!
//! This crate knows the format; whoever owns a disk writes it.

pub mod chain;
pub mod record;
pub mod store;
