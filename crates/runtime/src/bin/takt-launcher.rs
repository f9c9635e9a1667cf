//! The launcher as a program of its own, for the tests of this crate. The product reaches the same role by
//! `takt internal launcher`.

use std::process::ExitCode;

fn main() -> ExitCode {
    takt_runtime::launcher::main()
}
