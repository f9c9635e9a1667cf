//! Who may ask what of the node: keys, signatures, and the browser tricks that reach a local port.
//!
//! Pure functions over the head of a request; the front calls them before it reads a body. Deploying is running code, so
//! nothing here has an off switch.

mod access;
pub mod keys;
pub mod origin;
pub mod sigv4;

pub use access::{Access, Denied, Grant, PathClass, Policy};
