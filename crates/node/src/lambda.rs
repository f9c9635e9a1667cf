//! The wire of AWS Lambda: paths, bodies and errors, as unmodified AWS clients speak it.
//!
//! Pure functions from request heads and bodies to typed calls, and from outcomes to responses. What an operation does is
//! the control plane's; what runs is the lanes'.

pub mod api;
pub mod client_context;
mod error;
mod home;
pub mod invoke;
pub mod path;
mod reference;

pub use error::{Error, ThrottleReason};
pub use home::Home;
pub use reference::{FunctionRef, Qualifier};
