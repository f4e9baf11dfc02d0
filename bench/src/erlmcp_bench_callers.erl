%% @doc Many callers of a pool: how many pairs of acquire and release they get done, and how long
%% each waits for one. Runs in a VM of its own, see `erlmcp_bench_pool'.
-module(erlmcp_bench_callers).

-export([run/1]).

-import(erlmcp_bench_measure, [medians/1]).

-define(P, erlmcp_memory_pool).
-define(TABLE, erlmcp_bench_ets).
%% Pairs between two looks at the clock.
-define(BLOCK, 100).

-type pool() :: ours | resource | server | poolboy | ets.
-type options() :: #{
    pools := [pool()],
    callers := [pos_integer()],
    maps := [small | typical],
    %% of each measurement
    ms := pos_integer(),
    rounds := pos_integer()
}.
-export_type([pool/0, options/0]).

%% @doc `{throughput, Pool, Map, Callers}': pairs a second, the median of the rounds.
%% `{latency, Pool, Callers}': nanoseconds of one acquisition, `p50', `p99', `p999', `max'. All
%% pools are measured in turn in each round, so that they have the same conditions.
-spec run(options()) -> #{tuple() => number() | #{atom() => number()}}.
run(#{pools := Pools, callers := Callers, maps := Maps, ms := Ms, rounds := Rounds}) ->
    lists:foreach(fun start/1, Pools),
    Throughput = medians([
        {{throughput, Pool, Map, Count}, rate(Pool, content(Map), Count, Ms)}
     || _ <- lists:seq(1, Rounds), Map <- Maps, Count <- Callers, Pool <- Pools
    ]),
    Latency = maps:from_list([
        {{latency, Pool, Count}, latency(Pool, content(small), Count, Ms)}
     || Count <- Callers, Pool <- Pools
    ]),
    maps:merge(Throughput, Latency).

%% Room for all callers in each.
start(ours) ->
    ok = application:set_env(erlmcp, memory_pool_size, 1000),
    {ok, _} = ?P:start_link();
start(resource) ->
    ok;
start(server) ->
    {ok, _} = erlmcp_bench_server:start_link(10000);
start(poolboy) ->
    {ok, _} = poolboy:start_link([
        {name, {local, erlmcp_bench_poolboy}},
        {worker_module, erlmcp_bench_worker},
        {size, 1000},
        {max_overflow, 0}
    ]);
start(ets) ->
    ?TABLE = ets:new(?TABLE, [
        named_table, public, {write_concurrency, true}, {read_concurrency, true}
    ]).

%% Made at run time: constants of a module are on no heap.
content(small) ->
    #{id => erlang:system_time() rem 7};
content(typical) ->
    Number = erlang:system_time() rem 7,
    #{
        id => <<"connection-", (integer_to_binary(Number))/binary>>,
        phase => initialized,
        transport => tcp,
        user => #{id => Number, name => <<"ann">>, roles => [reader, writer]},
        started => erlang:system_time(millisecond),
        requests => Number,
        client => {<<"example-client">>, <<"2.1.0">>}
    }.

acquire(ours, Map) ->
    {ok, Ref} = ?P:acquire_connection_state(Map),
    Ref;
acquire(resource, _Map) ->
    erlmcp_memory_nif:slot_new();
acquire(server, Map) ->
    {ok, Ref} = erlmcp_bench_server:acquire(Map),
    Ref;
acquire(poolboy, _Map) ->
    poolboy:checkout(erlmcp_bench_poolboy, true, infinity);
acquire(ets, Map) ->
    true = ets:insert(?TABLE, {self(), Map}),
    self().

release(ours, Ref) -> ok = ?P:release_connection_state(Ref);
release(resource, _Ref) -> ok;
release(server, Ref) -> ok = erlmcp_bench_server:release(Ref);
release(poolboy, Worker) -> ok = poolboy:checkin(erlmcp_bench_poolboy, Worker);
release(ets, Key) -> true = ets:delete(?TABLE, Key).

%% A loop for each pool, so that no choice is made in it.
pairs(_Pool, _Map, 0) ->
    ok;
pairs(ours, Map, Left) ->
    {ok, Ref} = ?P:acquire_connection_state(Map),
    ok = ?P:release_connection_state(Ref),
    pairs(ours, Map, Left - 1);
pairs(resource, Map, Left) ->
    _ = erlmcp_memory_nif:slot_new(),
    pairs(resource, Map, Left - 1);
pairs(ets, Map, Left) ->
    true = ets:insert(?TABLE, {self(), Map}),
    true = ets:delete(?TABLE, self()),
    pairs(ets, Map, Left - 1);
pairs(Pool, Map, Left) ->
    release(Pool, acquire(Pool, Map)),
    pairs(Pool, Map, Left - 1).

rate(Pool, Map, Count, Ms) ->
    Done = all(Count, fun(End) -> blocks(Pool, Map, End, 0) end, Ms),
    lists:sum(Done) * 1000 / Ms.

blocks(Pool, Map, End, Done) ->
    pairs(Pool, Map, ?BLOCK),
    case erlang:monotonic_time(microsecond) < End of
        true -> blocks(Pool, Map, End, Done + ?BLOCK);
        false -> Done + ?BLOCK
    end.

latency(Pool, Map, Count, Ms) ->
    Histogram = erlmcp_memory_nif:histogram_new(),
    _ = all(Count, fun(End) -> timed(Pool, Map, End, Histogram) end, Ms),
    maps:with([p50, p99, p999, max], erlmcp_memory_nif:histogram_read(Histogram)).

%% Each begins with a fresh time slice: a caller that is put behind all others in the middle waits
%% for the scheduler, not for the pool.
timed(Pool, Map, End, Histogram) ->
    true = erlang:yield(),
    Start = erlang:monotonic_time(nanosecond),
    Acquired = acquire(Pool, Map),
    Now = erlang:monotonic_time(nanosecond),
    ok = erlmcp_memory_nif:histogram_record(Histogram, max(0, Now - Start)),
    release(Pool, Acquired),
    case Now div 1000 < End of
        true -> timed(Pool, Map, End, Histogram);
        false -> ok
    end.

%% What the work of this many processes returns, all begun at one moment.
all(Count, Work, Ms) ->
    Self = self(),
    Pids = [
        spawn_link(fun() ->
            receive
                {go, End} -> Self ! {done, self(), Work(End)}
            end
        end)
     || _ <- lists:seq(1, Count)
    ],
    End = erlang:monotonic_time(microsecond) + Ms * 1000,
    [Pid ! {go, End} || Pid <- Pids],
    [
        receive
            {done, Pid, Result} -> Result
        end
     || Pid <- Pids
    ].
