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
[ "$rust" != /usr ] || need "Rust must have a folder of its own, as rustup gives it"
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
    # In a namespace as well: debootstrap mounts /proc in DIR, and may be killed before it unmounts.
    unshare --mount --pid --fork --kill-child --propagation private \
        debootstrap --variant=minbase --include=ca-certificates,make,git,gcc,libc6-dev \
        "$suite" "$dir" >"$dir.log" 2>&1 || {
        tail -n 20 "$dir.log" >&2
        exit 1
    }
    mkdir -p "$dir/rust" "$dir/project"
    # The project may be somebody else's there.
    printf '[safe]\n\tdirectory = *\n' >"$dir/root/.gitconfig"
    touch "$dir/.complete"
fi
# The way to the network is that of the calling system: names, certificates, what apt and cargo are
# told of it, and proxies.
cp /etc/resolv.conf /etc/hosts "$dir/etc/"
certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[ ! -f "$certificates" ] || cp "$certificates" "$dir/etc/ssl/certs/ca-certificates.crt"
if command -v apt-config >/dev/null 2>&1; then
    apt-config dump Acquire | sed -n '/^Acquire::\(http\|https\|Check\)/p' \
        >"$dir/etc/apt/apt.conf.d/calling-system"
fi
mkdir -p "$dir/root/.cargo"
for config in config config.toml; do
    rm -f "$dir/root/.cargo/$config"
    [ ! -f "${CARGO_HOME:-$HOME/.cargo}/$config" ] ||
        cp "${CARGO_HOME:-$HOME/.cargo}/$config" "$dir/root/.cargo/"
done
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    eval "value=\${$name-}"
    # shellcheck disable=SC2154 # set by eval
    [ -z "$value" ] || set -- "$name=$value" "$@"
done

export dir rust
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
export root
# shellcheck disable=SC2016 # expanded by the inner shell
exec unshare --mount --pid --fork --kill-child --propagation private sh -e -c '
    mount -t proc proc "$dir/proc"
    mount --rbind /dev "$dir/dev"
    mount --bind "$rust" "$dir/rust"
    mount -o remount,bind,ro "$dir/rust"
    mount --bind "$root" "$dir/project"
    mount -o remount,bind,ro "$dir/project"
    exec chroot "$dir" env -i HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" \
        PATH=/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
' sh "$@"
