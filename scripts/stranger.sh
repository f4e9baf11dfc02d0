#!/bin/sh
# What somebody with a new machine sees: a fresh Debian with Rust and make, a clone, make demo; and
# how long that takes, downloads included.
set -eu

cd "$(dirname "$0")/.."
debian=$PWD/_build/stranger
trap 'rm -rf "$debian" "$debian.log"' EXIT
# Some shells run that only where the script itself exits.
trap 'exit 1' HUP INT TERM
rm -rf "$debian"

# Made before the clock starts: the machine is the stranger's own.
scripts/chroot.sh bookworm "$debian" sh -c '
    if command -v erl rebar3; then echo "There is an Erlang already" >&2; exit 1; fi'
began=$(date +%s)
scripts/chroot.sh bookworm "$debian" sh -c '
    git clone --quiet /project /root/erlmcp_memory
    cd /root/erlmcp_memory
    exec make demo'
took=$(($(date +%s) - began))
printf '\ngit clone and make demo on a new Debian: %d:%02d minutes\n' $((took / 60)) $((took % 60))
