//! The binary: everything lies in the library part, so that tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    takt_cli::main()
}
