%% @doc Fresh VMs to measure in.
-module(erlmcp_bench_vm).

-export([run/4]).

%% @doc The result of a function in a VM of its own. `What' is printed for who waits.
-spec run(What :: string(), module(), atom(), [term()]) -> term().
run(What, Module, Function, Arguments) ->
    io:format(standard_error, "~s ...~n", [What]),
    {ok, Peer, _Node} = peer:start_link(#{
        connection => standard_io,
        args => ["+P", "400000", "-pa" | code:get_path()]
    }),
    Result = peer:call(Peer, Module, Function, Arguments, infinity),
    ok = peer:stop(Peer),
    Result.
