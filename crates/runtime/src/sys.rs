//! The kernel: clocks, scheduling, processes, sockets that carry descriptors.
//!
//! The only module of this crate with unsafe code; everything it exports is safe to call. It decides nothing: no policy,
//! no limits, no retries except on `EINTR`.

#![expect(unsafe_code, reason = "system calls that no safe wrapper offers")]

pub mod clock;
pub mod link;
pub mod process;
pub mod sched;
pub mod socket;

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;

mod seal {
    /// Types whose raw descriptor is the same, and open, as long as the value lives.
    pub trait Steady {}
    impl Steady for std::os::fd::OwnedFd {}
    impl Steady for super::clock::Timer {}
    impl Steady for super::process::Pidfd {}
    impl Steady for super::socket::Packets {}
}

/// Watches a descriptor in the calling task's tokio runtime. Errors outside a runtime with I/O, and for descriptors the
/// kernel cannot poll.
pub fn watch<T: AsRawFd + seal::Steady>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `Steady` types own their descriptor: it stays open and the same until the value, which the result owns, drops.
    let watched = unsafe { AsyncFd::register(inner) };
    watched.map_err(|error| error.into_parts().1)
}
