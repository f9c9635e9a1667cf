//! The daemon: it turns requests into events and actions into I/O.

pub mod audit;
pub mod auth;
pub mod backup;
pub mod code;
pub mod control;
pub mod lambda;
pub mod lanes;
pub mod logs;
pub mod management;
pub mod recorder;
pub mod registry;
pub mod store;
pub mod url;
pub mod wall_clock;

/// What a process becomes that starts instances for a node; it must be called before the process has other threads.
pub use runtime::launcher::main as become_launcher;
/// For commands whose output somebody may stop reading.
pub use runtime::sys::process::end_with_the_reader;
/// Scheduling classes, for the tool's load generator and its demonstrations.
pub use runtime::sys::sched;

mod assemble;
mod budget;
pub mod calibrate;
mod capacity;
mod descriptors;
mod door;
mod front;
pub mod front_cost;
mod handle;
mod instance;
mod invocation;
mod keyring;
mod lane;
mod manage;
mod probe;
mod protections;
mod runtime_cost;
mod scribe;
pub mod serve;
mod starter;
pub mod starts;
mod threads;
