//! Starts, feeds and kills instances.

pub mod api;
pub mod http1;
pub mod sys;
