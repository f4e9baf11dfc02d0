# make demo: 100,000 connections, measured.  make test: all checks.  make help: the rest.

COUNT ?= 100000
TOOLS ?=
SECONDS ?= 60
MS ?= 500
SOAK_SECONDS ?= 600

# Each check says its name before it runs; the first one that fails ends the run.
say = @printf '\n== %s\n'

.DEFAULT_GOAL := help
.PHONY: help setup build demo test bench-memory bench-pool soak stress fmt clean

help:
	@echo 'make demo   run 100,000 connections through their life and print what they take'
	@echo '            (COUNT=n for another number)'
	@echo 'make test   all checks: formatting, lints, Rust tests, xref, dialyzer, eunit, ct'
	@echo 'make bench-memory  what a connection takes, beside a plain process and persistent_term'
	@echo '            (COUNT=n connections, TOOLS=file with a tools/list, SECONDS=n of random work)'
	@echo 'make bench-pool    the pool beside a gen_server, poolboy and ETS; messages beside binaries'
	@echo '            (MS=n milliseconds a measurement)'
	@echo 'make soak   a mixed load for ten minutes, and whether memory grows (SOAK_SECONDS=n)'
	@echo 'make stress random work of 16 processes against a model (SECONDS=n)'
	@echo 'make build  build the library and the Erlang modules'
	@echo 'make fmt    format the Rust code'
	@echo 'make clean  remove what was built'

setup:
	@./scripts/setup.sh

build: setup
	@rebar3 compile

demo: build
	@escript bench/demo.escript $(COUNT)

test: setup
	$(say) 'cargo fmt --check'
	@cargo fmt --all --check
	$(say) 'cargo clippy'
	@cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(say) 'cargo test'
	@cargo test --workspace --locked --quiet
	$(say) 'rebar3 xref'
	@rebar3 xref
	$(say) 'rebar3 dialyzer'
	@rebar3 dialyzer
	$(say) 'rebar3 eunit'
	@rebar3 eunit
	$(say) 'rebar3 ct'
	@rebar3 ct

bench-memory: setup
	@rebar3 as bench compile
	@escript bench/run.escript erlmcp_bench_memory $(COUNT) '$(TOOLS)' $(SECONDS)

bench-pool: setup
	@rebar3 as bench compile
	@escript bench/run.escript erlmcp_bench_pool $(MS)

soak: setup
	@rebar3 as bench compile
	@escript bench/run.escript erlmcp_bench_soak $(SOAK_SECONDS)

stress: setup
	@STRESS_SECONDS=$(SECONDS) rebar3 ct --suite=erlmcp_stress_SUITE

fmt: setup
	@cargo fmt --all

clean:
	@rm -rf _build target priv/*.so
