#!/bin/sh
# Builds the NIF library and puts it into priv/. Called by rebar3 before it compiles the Erlang
# modules; safe to call at any time, also while a VM has the library loaded.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

command -v cargo >/dev/null 2>&1 || {
    echo "erlmcp_memory: cargo is needed to build the native library; see https://rustup.rs" >&2
    exit 1
}

# Also what a link in _checkouts leads to.
mkdir -p "$root/priv" "$root/target" 2>/dev/null &&
    [ -w "$root/priv" ] && [ -w "$root/target" ] || {
    echo "erlmcp_memory: the native library is built in $root, which cannot be written: copy it" >&2
    exit 1
}
[ -e "$root/priv/erlmcp_memory_nif.so" ] ||
    echo 'erlmcp_memory: building the native library, which takes half a minute the first time' >&2

# A library that is loaded into a program needs the C library of that program: on musl (Alpine) Rust
# would link its own into it, and refuse.
case $(rustc -vV) in
    *"host: "*-musl*) export RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=-crt-static" ;;
esac

# A target folder of its own: the library must not depend on where a host of this project builds
# its Rust. A host's configuration of cargo may name another target all the same, so cargo itself
# says where the library is.
messages=$(cargo build --quiet --release --locked --package erlmcp-memory-nif \
    --manifest-path "$root/Cargo.toml" --target-dir "$root/target" \
    --message-format json-render-diagnostics)
built=$(printf '%s\n' "$messages" |
    sed -n 's/.*"filenames":\["\([^"]*liberlmcp_memory_nif\.[a-z]*\)".*/\1/p')
# The VM looks for .so on every Unix.
library="$root/priv/erlmcp_memory_nif.so"

if ! cmp -s "$built" "$library"; then
    # By rename, never by writing over it: a running VM has the old file mapped.
    cp "$built" "$library.$$"
    mv -f "$library.$$" "$library"
fi
