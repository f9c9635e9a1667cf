#!/bin/sh
# Makes the executable that `takt deploy` uploads.
set -eu
cd "$(dirname "$0")"
cargo build --release
cp target/release/bootstrap bootstrap
