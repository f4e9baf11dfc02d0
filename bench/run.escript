#!/usr/bin/env escript
%% Runs a benchmark: the first argument is its module, the others are its arguments.

main([Module | Arguments]) ->
    Root = filename:dirname(filename:dirname(filename:absname(escript:script_name()))),
    true = code:add_patha(filename:join(Root, "_build/bench/lib/erlmcp_memory/ebin")),
    (list_to_atom(Module)):main(Arguments).
