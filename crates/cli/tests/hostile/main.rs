//! Functions, clients and circumstances that mean harm, against a real node.
//!
//! What needs root (control groups, other users, mounts) says so and tests nothing elsewhere.
#![cfg(test)]

#[path = "../common/alone.rs"]
mod alone;
mod front;
mod functions;
mod machine;
mod network;
mod support;
