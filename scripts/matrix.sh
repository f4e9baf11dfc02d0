#!/bin/sh
# make test in a Debian for each release of Erlang/OTP, on the committed tree, and a table of what
# came of it: scripts/matrix.sh [SUITE...]. The chroots are kept in _build/matrix.
set -eu
[ $# -gt 0 ] || set -- bookworm trixie sid

cd "$(dirname "$0")/.."
matrix=$PWD/_build/matrix
mkdir -p "$matrix"
table=$matrix/table
printf '%-10s %-6s %-8s %-8s %s\n' Debian OTP rebar3 outcome minutes >"$table"

status=0
for suite in "$@"; do
    printf '\n== make test on Debian %s\n' "$suite"
    began=$(date +%s)
    outcome=failed
    if scripts/chroot.sh "$suite" "$matrix/$suite" sh -c '
        rm -rf /root/erlmcp_memory
        git clone --quiet /project /root/erlmcp_memory
        cd /root/erlmcp_memory
        exec make test'; then
        outcome=passed
    else
        status=1
    fi
    took=$(($(date +%s) - began))
    otp='' rebar3=''
    if [ -e "$matrix/$suite/.complete" ]; then
        otp=$(scripts/chroot.sh "$suite" "$matrix/$suite" erl -noshell -eval \
            'io:put_chars(erlang:system_info(otp_release)), halt().') || otp=''
        rebar3=$(scripts/chroot.sh "$suite" "$matrix/$suite" rebar3 --version | cut -d' ' -f2)
    fi
    printf '%-10s %-6s %-8s %-8s %d:%02d\n' "$suite" "${otp:-none}" "${rebar3:-none}" "$outcome" \
        $((took / 60)) $((took % 60)) >>"$table"
done

printf '\n'
cat "$table"
exit $status
