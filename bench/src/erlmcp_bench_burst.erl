%% @doc What a burst leaves behind. Runs in a VM of its own, see `erlmcp_bench_pool'.
-module(erlmcp_bench_burst).

-export([run/1]).

-define(P, erlmcp_memory_pool).

%% @doc Acquires this many states at once, releases them, and watches the pool with its default
%% settings: `idle_at_once', states idle right after the last release; `seconds', how long it took
%% until only those of `pool_size' were left, `infinity' when that took more than `limit'; and the
%% pool's `native' bytes `before', at the `peak', `at_once' after, and in the `end'.
-spec run(#{states := pos_integer(), limit := pos_integer()}) -> #{atom() => term()}.
run(#{states := States, limit := Limit}) ->
    {ok, _} = ?P:start_link(),
    #{connection_pool := #{pool_size := Size, max_size := Max}} = ?P:pool_info(),
    Before = native(),
    Refs = [
        begin
            {ok, Ref} = ?P:acquire_connection_state(#{id => N, user => <<"ann">>}),
            Ref
        end
     || N <- lists:seq(1, States)
    ],
    Peak = native(),
    lists:foreach(fun ?P:release_connection_state/1, Refs),
    #{available := AtOnce} = ?P:pool_stats(),
    AtOnceBytes = native(),
    Start = erlang:monotonic_time(millisecond),
    Seconds = wait(Size, Start, Start + Limit * 1000),
    #{
        pool_size => Size,
        max_pool_size => Max,
        idle_at_once => AtOnce,
        seconds => Seconds,
        native => #{before => Before, peak => Peak, at_once => AtOnceBytes, 'end' => native()}
    }.

native() ->
    #{memory := #{native_bytes := Bytes}} = ?P:pool_info(),
    Bytes.

wait(Size, Start, End) ->
    Now = erlang:monotonic_time(millisecond),
    case ?P:pool_stats() of
        #{available := Size} -> (Now - Start) / 1000;
        _ when Now > End -> infinity;
        _ -> timer:sleep(100), wait(Size, Start, End)
    end.
