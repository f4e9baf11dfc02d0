#!/bin/sh
# Builds the NIF library and puts it into priv/. Called by rebar3 before it compiles the Erlang
# modules; safe to call at any time, also while a VM has the library loaded.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

command -v cargo >/dev/null 2>&1 || {
    echo "erlmcp_memory: cargo is needed to build the native library; see https://rustup.rs" >&2
    exit 1
}

# Its own target folder and the host's triple, whatever the caller's environment says: the
# library must be found below, also when this project is a dependency of another one.
unset CARGO_BUILD_TARGET CARGO_TARGET_DIR
cargo build --quiet --release --locked --package erlmcp-memory-nif \
    --manifest-path "$root/Cargo.toml" --target-dir "$root/target"

case $(uname -s) in
    Darwin) built=liberlmcp_memory_nif.dylib ;;
    *) built=liberlmcp_memory_nif.so ;;
esac
built="$root/target/release/$built"
# The VM looks for .so on every Unix.
library="$root/priv/erlmcp_memory_nif.so"

if ! cmp -s "$built" "$library"; then
    mkdir -p "$root/priv"
    # By rename, never by writing over it: a running VM has the old file mapped.
    cp "$built" "$library.$$"
    mv -f "$library.$$" "$library"
fi
