#!/bin/sh
# Runs a command in a Debian of its own: scripts/chroot.sh SUITE DIR COMMAND...
#
# DIR is made by debootstrap where it is not there yet, with what building Rust needs besides Rust:
# make, git, a C compiler. The Rust of the calling system stands in it, read-only. All mounts are in
# a namespace that ends with the command, so nothing stays mounted and no removal of DIR can reach
# what is outside.
set -eu

suite=$1
dir=$2
shift 2

need() {
    echo "This needs Linux, the rights of root, debootstrap and Rust: $1" >&2
    exit 1
}
[ "$(uname -s)" = Linux ] || need "this is $(uname -s)"
[ "$(id -u)" -eq 0 ] || need "please run it as root"
rust=$(rustc --print sysroot) || need "no rustc was found"
if ! command -v debootstrap >/dev/null 2>&1; then
    command -v apt-get >/dev/null 2>&1 || need "please install debootstrap"
    echo "Installing with apt-get: debootstrap"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap \
        >/dev/null
fi

if [ ! -e "$dir/.complete" ]; then
    rm -rf "$dir"
    mkdir -p "$dir"
    echo "Making a Debian $suite in $dir"
    debootstrap --variant=minbase --include=ca-certificates,make,git,gcc,libc6-dev \
        "$suite" "$dir" >"$dir.log" 2>&1 || {
        tail -n 20 "$dir.log" >&2
        exit 1
    }
    mkdir -p "$dir/rust" "$dir/project"
    # The project may be somebody else's there.
    printf '[safe]\n\tdirectory = *\n' >"$dir/root/.gitconfig"
    # The mirror may be a copy of some weeks ago.
    echo 'Acquire::Check-Valid-Until "false";' >"$dir/etc/apt/apt.conf.d/old-mirror"
    touch "$dir/.complete"
fi
# The way to the network is that of the calling system, its certificates included.
cp /etc/resolv.conf /etc/hosts "$dir/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$dir/etc/ssl/certs/"

export dir rust
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
export root
# shellcheck disable=SC2016 # expanded by the inner shell
exec unshare --mount --pid --fork --kill-child --propagation private sh -c '
    mount -t proc proc "$dir/proc"
    mount --rbind /dev "$dir/dev"
    mount --bind "$rust" "$dir/rust"
    mount -o remount,bind,ro "$dir/rust"
    mount --bind "$root" "$dir/project"
    mount -o remount,bind,ro "$dir/project"
    exec chroot "$dir" env -i HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" \
        PATH=/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        ${http_proxy:+"http_proxy=$http_proxy"} ${https_proxy:+"https_proxy=$https_proxy"} "$@"
' sh "$@"
