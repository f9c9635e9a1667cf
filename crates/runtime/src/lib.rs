//! Starts, feeds and kills instances.

pub mod api;
pub mod bootstrap;
pub mod forward;
pub mod http1;
pub mod sys;
