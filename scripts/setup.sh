#!/bin/sh
# Makes sure that everything the Makefile needs is there. Quick and silent when it is. On Debian
# and its relatives it installs what is missing; elsewhere it says what to install.
set -eu

missing=""
need() { # need PROGRAM PACKAGE...
    program=$1
    shift
    command -v "$program" >/dev/null 2>&1 || missing="$missing $*"
}

need erl erlang-base
need dialyzer erlang-dialyzer
need ct_run erlang-common-test
need rebar3 rebar3
need git git

# Libraries of Erlang that Debian keeps in packages of their own.
library() { # library NAME PACKAGE
    for dir in /usr/lib/erlang/lib/"$1"-*; do
        [ -d "$dir" ] && return
    done
    missing="$missing $2"
}

if command -v apt-get >/dev/null 2>&1; then
    # Only where Erlang is Debian's: one built from source brings its libraries along.
    case $(command -v erl || echo /usr/bin/erl) in
        /usr/bin/erl)
            library eunit erlang-eunit
            library tools erlang-tools
            library edoc erlang-edoc
            library runtime_tools erlang-runtime-tools
            library proper erlang-proper
            library poolboy erlang-poolboy
            # Newer releases of Erlang have JSON in stdlib, and newer ones of Debian no jiffy.
            ls /usr/lib/erlang/lib/stdlib-*/ebin/json.beam >/dev/null 2>&1 ||
                library jiffy erlang-jiffy
            ;;
    esac
fi

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        cat >&2 <<'EOF'
erlmcp_memory needs, to be built and tested:
  - Erlang/OTP 25 or later, with its development files, dialyzer and common_test
  - rebar3 3.19 or later, and git
  - Rust 1.95 or later with cargo, rustfmt and clippy (https://rustup.rs)
and uses where they are found: PropEr (property tests), jiffy before OTP 27 (JSON for the example
host), and poolboy (a peer in make bench-pool).
Please install what is missing, then run make again.
EOF
        exit 1
    fi
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 || {
            echo "Please install as root: apt-get install$missing" >&2
            exit 1
        }
        as_root=sudo
    fi
    echo "Installing with apt-get:$missing"
    $as_root apt-get update -qq
    # Not every Debian has these; what would use them says that it goes without.
    for package in erlang-proper erlang-poolboy erlang-jiffy; do
        case "$missing " in
            *" $package "*)
                apt-cache show "$package" >/dev/null 2>&1 || {
                    echo "Not available on this system, left out: $package"
                    missing=$(echo "$missing" | sed "s/ $package//")
                }
                ;;
        esac
    done
    # shellcheck disable=SC2086 # a list of packages
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

for tool in cargo rustfmt cargo-clippy; do
    command -v "$tool" >/dev/null 2>&1 || {
        echo "erlmcp_memory needs Rust 1.95 or later with $tool; see https://rustup.rs" >&2
        exit 1
    }
done
command -v cc >/dev/null 2>&1 || {
    echo "erlmcp_memory needs a C linker (cc), which Rust links with" >&2
    exit 1
}
