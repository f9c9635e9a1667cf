//! The live view of a node: `takt top`.
//!
//! It asks the node twice a second at most, computes rates from the difference of two answers, and draws. Drawing is a
//! function of a [`Frame`], so that a pipe can have one frame as text and tests need no terminal.

mod draw;
mod frame;
mod screen;

pub use draw::{draw, text};
pub use frame::{Core, Frame, Function, Standing};
pub use screen::show;
