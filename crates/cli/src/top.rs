//! The live view of a node: `takt top`.
//!
//! It asks the node once a second, computes rates from the difference of two answers, and draws. Drawing is a
//! function of a [`Frame`], so that a pipe can have one frame as text and tests need no terminal.

mod draw;
mod frame;
mod screen;

pub use draw::{draw, text};
pub use frame::{Frame, Function, Metrics, Queue};
pub use screen::show;
