#!/usr/bin/env escript
%% make bench-memory: what a connection takes, the example host's three forms side by side.
%% Arguments: connections, a file with a tools/list ("" for generated tools), seconds of random work.

main(Arguments) ->
    Root = filename:dirname(filename:dirname(filename:absname(escript:script_name()))),
    true = code:add_patha(filename:join(Root, "_build/bench/lib/erlmcp_memory/ebin")),
    erlmcp_bench_memory:main(Arguments).
