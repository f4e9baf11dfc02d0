%% @doc A connection of the compressed day, which waits.
-module(erlmcp_bench_day_connection).

-export([wait/2]).

wait(Ref, State) ->
    receive
        stop ->
            ok = erlmcp_memory_pool:release_connection_state(Ref),
            true = erlmcp_connection_optimizer:is_state(State)
    end.
