# make demo: 100,000 connections, measured.  make check: before each commit.  make test: all checks.
# make help: the rest.

COUNT ?= 100000
TOOLS ?=
SECONDS ?= 60
MS ?= 500
DROPPED ?= 200000
ROUNDS ?= 3
RUNS ?= 100
SOAK_SECONDS ?= 600
SERIES ?= 500
WINDOW_MS ?= 2000
PAUSES ?= 10000
LOAD_MS ?= 700

# Each check says its name before it runs; the first one that fails ends the run.
say = @printf '\n== %s\n'

circles = escript scripts/circles.escript --knot scripts/circles.knot \
    --beams _build/default/lib/erlmcp_memory/ebin native/core/src native/nif/src

# Compiles the benchmarks and runs one, with its arguments.
define bench
@rebar3 as bench compile
@escript bench/run.escript $(1)
endef

# What make check leaves out of the core's tests, and the suites that it runs: together one of each
# subject, in some seconds.
SLOW := for_each_kind_of_hour lose_nothing agrees_with
comma := ,
empty :=
QUICK := $(subst $(empty) $(empty),$(comma),$(strip \
    erlmcp_optimizer_state_SUITE erlmcp_optimizer_share_SUITE erlmcp_pool_SUITE \
    erlmcp_pool_take_SUITE erlmcp_server_SUITE))

.DEFAULT_GOAL := help
.PHONY: help setup build demo check test docs bench-day bench-growth bench-memory bench-park bench-pauses \
    bench-pool bench-profiling bench-schedulers bench-servers bench-take soak stress loom memcheck miri \
    fuzz matrix stranger fmt clean

help:
	@echo 'make demo   run 100,000 connections through their life and print what they take'
	@echo '            (COUNT=n for another number)'
	@echo 'make check  what to run before each commit: formatting, lints, quick tests, in a minute'
	@echo 'make test   all checks: formatting, lints, Rust tests, xref, dialyzer, eunit, ct'
	@echo 'make bench-memory  what a connection takes, beside a plain process and persistent_term'
	@echo '            (COUNT=n connections, TOOLS=file with a tools/list, SECONDS=n of random work)'
	@echo 'make bench-pool    the pool beside a gen_server, poolboy and ETS; messages beside binaries'
	@echo '            (MS=n milliseconds a measurement)'
	@echo 'make bench-schedulers  gaps of schedulers while long chains are freed, contention, memory'
	@echo '            (DROPPED=n links of a chain, ROUNDS=n)'
	@echo 'make bench-servers  many parked servers: waking, going idle at once, storms, random work'
	@echo '            (COUNT=n servers, SECONDS=n of waking, SOAK_SECONDS=n of random work)'
	@echo 'make bench-growth  how often the verdict on growth is right (SERIES=n of each kind)'
	@echo "make bench-day     a host's day in minutes, and the alarms that came and went (COUNT=n,"
	@echo '            WINDOW_MS=n for the ten minutes that alarms look back)'
	@echo 'make bench-pauses  pauses beside those of erlang:trace/3, rates by windows (PAUSES=n in all)'
	@echo 'make bench-profiling  what measuring costs at full load and with 100,000 connections'
	@echo '            (COUNT=n connections, LOAD_MS=n of each measurement)'
	@echo 'make bench-take    messages appended and taken in one call, beside plain Erlang (MS=n)'
	@echo 'make bench-park    parking beside the external format and ETS (RUNS=n of each)'
	@echo 'make soak   a mixed load for ten minutes, and whether memory grows (SOAK_SECONDS=n)'
	@echo 'make stress random work of 16 processes against models (SECONDS=n)'
	@echo 'make loom   the concurrent parts in every order of their threads'
	@echo 'make memcheck  the tests of the Rust core under valgrind'
	@echo 'make fuzz   fuzz the readers of snapshots, external terms and packed bytes (SECONDS=n each)'
	@echo 'make docs   the pages of the Erlang modules and of the crates'
	@echo 'make matrix     make test on Debian with OTP 25, 27 and 29, each in a chroot'
	@echo 'make stranger   git clone and make demo on a new Debian, timed'
	@echo 'make miri   the quick tests of the Rust core in Miri (a component of nightly Rust)'
	@echo 'make build  build the library and the Erlang modules'
	@echo 'make fmt    format the Rust code'
	@echo 'make clean  remove what was built'

setup:
	@./scripts/setup.sh

build: setup
	@rebar3 compile

demo: build
	@escript bench/demo.escript $(COUNT)

check: setup
	$(say) 'cargo fmt --check'
	@cargo fmt --all --check
	$(say) 'cargo clippy'
	@cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(say) 'cargo test of the core'
	@cargo test -p erlmcp-memory-core --lib --locked --quiet -- $(addprefix --skip ,$(SLOW))
	$(say) 'rebar3 xref'
	@rebar3 xref
	$(say) 'circles between files'
	@$(circles)
	$(say) 'rebar3 eunit'
	@rebar3 eunit
	$(say) 'rebar3 ct, the quick suites'
	@rebar3 ct --suite=$(QUICK)

test: setup
	$(say) 'cargo fmt --check'
	@cargo fmt --all --check
	$(say) 'cargo clippy'
	@cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(say) 'cargo test'
	@cargo test --workspace --locked --quiet
	$(say) 'cargo test with loom'
	@$(MAKE) --no-print-directory loom
	$(say) 'rebar3 xref'
	@rebar3 xref
	$(say) 'circles between files'
	@$(circles)
	$(say) 'rebar3 dialyzer'
	@rebar3 dialyzer
	$(say) 'documentation'
	@./scripts/docs.sh
	$(say) 'rebar3 eunit'
	@rebar3 eunit
	$(say) 'rebar3 ct'
	@rebar3 ct

docs: setup
	@./scripts/docs.sh

bench-memory: setup
	$(call bench,erlmcp_bench_memory $(COUNT) '$(TOOLS)' $(SECONDS))

bench-pool: setup
	$(call bench,erlmcp_bench_pool $(MS))

bench-schedulers: setup
	$(call bench,erlmcp_bench_schedulers $(DROPPED) $(ROUNDS))

bench-servers: setup
	$(call bench,erlmcp_bench_servers $(COUNT) $(SECONDS) $(SOAK_SECONDS))

bench-growth: setup
	$(call bench,erlmcp_bench_growth $(SERIES))

bench-day: setup
	$(call bench,erlmcp_bench_day $(WINDOW_MS) $(COUNT))

bench-pauses: setup
	$(call bench,erlmcp_bench_pauses $(PAUSES))

bench-profiling: setup
	$(call bench,erlmcp_bench_profiling $(COUNT) $(LOAD_MS))

bench-take: MS = 20
bench-take: setup
	$(call bench,erlmcp_bench_take $(MS))

bench-park: setup
	$(call bench,erlmcp_bench_park $(RUNS))

soak: setup
	$(call bench,erlmcp_bench_soak $(SOAK_SECONDS))

stress: setup
	@STRESS_SECONDS=$(SECONDS) rebar3 ct --suite=erlmcp_project_stress_SUITE

# Built apart: loom takes the place of locks, atomics and threads.
loom: setup
	@RUSTFLAGS='--cfg loom' cargo test --locked --quiet -p erlmcp-memory-core --test loom \
	    --target-dir target/loom

# A few cases of each property: valgrind is slow, and looks for other faults.
memcheck: setup
	@command -v valgrind >/dev/null || { echo 'make memcheck needs valgrind; please install it' >&2; exit 1; }
	@PROPTEST_CASES=4 cargo test --locked --quiet -p erlmcp-memory-core \
	    --config "target.'cfg(all())'.runner = 'valgrind --quiet --error-exitcode=1 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite --fair-sched=yes'" \
	    -- --skip for_each_kind_of_hour

# Miri interprets: what is done thousands of times takes it too long. The core has no unsafe code,
# but what it is built on has.
SLOW_IN_MIRI := a_byte_is_searched_once agrees_with_a_byte_vector an_idle_buffer lost_ends \
    lose_nothing map::buf pool::tests::agrees_with_a_model content_is_gone never_share_an_object \
    trimming_spares a_full_ring meet_at_one_content trend

miri:
	@MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=2 cargo +nightly miri test --locked --quiet \
	    -p erlmcp-memory-core --lib --target-dir target/miri -- $(addprefix --skip ,$(SLOW_IN_MIRI))

fuzz: SECONDS = 300
fuzz:
	@./scripts/fuzz.sh $(SECONDS)

matrix:
	@./scripts/matrix.sh

stranger:
	@./scripts/stranger.sh

fmt: setup
	@cargo fmt --all

clean:
	@rm -rf _build target priv/*.so
