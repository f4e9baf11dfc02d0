#!/bin/sh
# Fuzzes all targets at once, for the given number of seconds, and prints the outcome. What libFuzzer finds
# lies in target/fuzz afterwards: inputs that reach further in corpus/, those that break a property
# in artifacts/. `scripts/fuzz.sh corpus` puts what is in corpus/ into the corpus of the repository,
# made as small as it gets.
#
#   scripts/fuzz.sh SECONDS [TARGET...]
#   scripts/fuzz.sh corpus [TARGET...]
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
out=$root/target/fuzz
job=${1:?usage: scripts/fuzz.sh SECONDS|corpus [TARGET...]}
shift
[ $# -gt 0 ] || set -- snapshot external packed

# libFuzzer is C++, and comes as a crate with its source.
if ! command -v "${CXX:-c++}" >/dev/null 2>&1; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "make fuzz needs a C++ compiler (c++); please install one, then run it again" >&2
        exit 1
    fi
    as_root=""
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    echo "Installing with apt-get: g++"
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends g++ >/dev/null
fi

# What cargo-fuzz would say to rustc. The sanitizers themselves are for nightly Rust alone; the code
# that is fuzzed is safe, so debug assertions and checks of overflow take their place.
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags="$flags -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags="$flags -Cllvm-args=-sanitizer-coverage-pc-table"
flags="$flags -Cllvm-args=-sanitizer-coverage-trace-compares"
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="$flags" cargo build --quiet --release --locked --features libfuzzer --bin libfuzzer \
    --manifest-path "$root/native/fuzz/Cargo.toml" --target "$host" --target-dir "$out/build"
fuzzer=$out/build/$host/release/libfuzzer

# An input that needs more is found by a crash: 512 KiB, and the code is larger than in a release.
ulimit -s 512

if [ "$job" = corpus ]; then
    for target; do
        kept=$root/native/fuzz/corpus/$target
        rm -rf "$out/merged"
        mkdir -p "$out/merged" "$out/corpus/$target" "$kept"
        # What fails must stay, whatever it covers.
        FUZZ_TARGET=$target "$fuzzer" -set_cover_merge=1 -use_counters=0 -max_len=2048 \
            "$out/merged" "$kept" "$out/corpus/$target" 2>/dev/null
        find "$kept" -type f ! -name 'found-*' -delete
        cp "$out/merged"/* "$kept"
        echo "$target: $(find "$kept" -type f | wc -l) files, $(cat "$kept"/* | wc -c) bytes"
    done
    exit
fi

mkdir -p "$out/artifacts" "$out/logs"
echo "Fuzzing $* for $job seconds each, all at once"
for target; do
    mkdir -p "$out/corpus/$target"
    rm -f "$out/logs/$target.ok"
    (
        FUZZ_TARGET=$target nice -n 19 "$fuzzer" -max_total_time="$job" -max_len=4096 -timeout=20 \
            -rss_limit_mb=4096 -print_final_stats=1 -artifact_prefix="$out/artifacts/$target-" \
            "$out/corpus/$target" "$root/native/fuzz/corpus/$target" \
            >"$out/logs/$target.log" 2>&1 && touch "$out/logs/$target.ok"
    ) &
done
wait

failed=0
for target; do
    log=$out/logs/$target.log
    stat() { sed -n "s/^stat::$1: *//p" "$log"; }
    coverage=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) corp: \([0-9]*\).*/\1 edges, \2 features, corpus of \3/p' "$log" | tail -n 1)
    echo "$target: $(stat number_of_executed_units) executions ($(stat average_exec_per_sec)/s)," \
        "$coverage, peak $(stat peak_rss_mb) MB"
    if [ ! -e "$out/logs/$target.ok" ]; then
        failed=1
        echo "$target FAILED; see $log:"
        grep -E -A2 'panicked at|over the limit|SUMMARY|Test unit written' "$log" | head -n 20
    fi
done
exit $failed
