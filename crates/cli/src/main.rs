//! The binary: everything lies in the library part, so that tests reach it.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Threads of real-time class allocate beside ordinary ones. The C library's allocator shares locked arenas between threads,
/// and a thread that is preempted while it holds one holds up whoever waits, whatever its class. Here every thread has its own
/// heap, and memory freed by another thread comes back through a list without a lock.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    takt_cli::main()
}
