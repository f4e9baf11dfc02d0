#!/bin/sh
# The pages of the Erlang modules (doc/) and of the crates (target/doc/). A warning is an error.
set -eu
cd "$(dirname "$0")/.."

rm -rf doc
said=$(rebar3 edoc 2>&1) || {
    printf '%s\n' "$said" >&2
    exit 1
}
case $said in
    *[Ww]arning*)
        printf '%s\n' "$said" >&2
        exit 1
        ;;
esac
RUSTDOCFLAGS='-D warnings' cargo doc --quiet --locked --workspace --no-deps --document-private-items
echo 'doc/index.html and target/doc are written'
