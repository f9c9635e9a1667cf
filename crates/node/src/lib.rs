//! The daemon: it turns requests into events and actions into I/O.

pub mod lanes;
