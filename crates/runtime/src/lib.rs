//! Starts, feeds and kills instances.

pub mod http1;
