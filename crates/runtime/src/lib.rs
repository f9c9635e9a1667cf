//! Starts, feeds and kills instances.

pub mod api;
pub mod bootstrap;
pub mod cgroup;
pub mod environment;
pub mod forward;
pub mod host;
pub mod http1;
pub mod launcher;
pub mod package;
pub mod room;
pub mod sandbox;
pub mod sys;
