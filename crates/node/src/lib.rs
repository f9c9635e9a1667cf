//! The daemon: it turns requests into events and actions into I/O.

pub mod code;
pub mod lanes;
pub mod registry;
pub mod store;
