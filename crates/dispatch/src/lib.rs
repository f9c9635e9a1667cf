//! Pacers and queues: which invocation goes next, and when.
//!
//! Everything here is told the time and decides; nothing here waits. [`Pacer`] keeps the envelope of a guarantee,
//! [`DeadlineQueue`] orders what waits for its slots, [`FairQueue`] orders what runs on idle capacity.

mod deadline_queue;
mod fair;
mod pacer;

pub use deadline_queue::{DeadlineQueue, Full};
pub use fair::{Charge, Error, FairQueue, Limits, Order};
pub use pacer::{Pacer, Slot};
