%% What hosts of the planned modules rely on: types of results, settings, and the pool's process.
-module(erlmcp_project_promises_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include("erlmcp_memory.hrl").

-import(erlmcp_pool_help, [
    badarg/3, clear/0, kill/0, logging/2, start/0, start/2, tick/1, warnings/0
]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    every_figure_has_its_type/1,
    figures_of_a_simulation_have_their_types/1,
    a_wrong_setting_is_refused_by_name/1,
    what_was_configured_outlives_a_crash/1,
    an_orderly_stop_forgets_what_was_configured/1,
    a_supervisor_in_elixir_starts_the_pool/1,
    a_simulation_is_no_depleted_pool/1,
    a_reference_that_travelled_is_told_so/1
]).

-define(P, erlmcp_memory_pool).
-define(O, erlmcp_connection_optimizer).
-define(M, erlmcp_memory_profiler).

all() ->
    [
        every_figure_has_its_type,
        figures_of_a_simulation_have_their_types,
        a_wrong_setting_is_refused_by_name,
        what_was_configured_outlives_a_crash,
        an_orderly_stop_forgets_what_was_configured,
        a_supervisor_in_elixir_starts_the_pool,
        a_simulation_is_no_depleted_pool,
        a_reference_that_travelled_is_told_so
    ].

init_per_testcase(_Case, Config) ->
    clear(),
    Config.

end_per_testcase(_Case, _Config) ->
    [application:unset_env(erlmcp, Key) || Key <- [connection_state_compact, compression_enabled]],
    clear().

%% Hosts print these with ~B, which refuses floats, or ~.2f, which refuses integers.
types(Integers, Floats, Map) ->
    [?assertEqual({Key, true}, {Key, is_integer(maps:get(Key, Map))}) || Key <- Integers],
    [?assertEqual({Key, true}, {Key, is_float(maps:get(Key, Map))}) || Key <- Floats].

every_figure_has_its_type(_Config) ->
    start(),
    {ok, _} = ?P:acquire_connection_state(#{}),
    types([in_use, available, total_allocated, reused, created], [reuse_ratio], ?P:pool_stats()),
    #{
        connection_pool := ConnectionPool, buffer_pool := BufferPool, ets_table := Table,
        stats := Stats, memory := Memory
    } = ?P:pool_info(),
    types([queue_length, pool_size, max_size], [], ConnectionPool),
    types([queue_length, buffer_size], [], BufferPool),
    types([size, memory_bytes], [], Table),
    types([in_use, available, total_allocated, reused, created], [], Stats),
    types([native_bytes, idle_bytes, live_bytes, buffer_bytes], [], Memory),
    State = ?O:create_optimized_state(<<"c">>),
    types(maps:keys(?O:state_size_info(State)), [], ?O:state_size_info(State)),
    ok = ?M:start_profiling(#{interval_ms => 50, gc => false}),
    timer:sleep(200),
    #{baseline := Baseline, final := Final} = Stopped = ?M:stop_profiling(),
    types([snapshots, total_memory_delta, process_count_delta], [avg_gc_pause], Stopped),
    [
        types(
            [
                timestamp, process_count, total_memory, process_memory, binary_memory, ets_memory,
                atom_memory, gc_collections, gc_reclaimed, total_memory_mb
            ],
            [gc_pause_max], Snapshot
        )
     || Snapshot <- [Baseline, Final]
    ],
    #{total_memory := Total, total_memory_mb := Megabytes} = Baseline,
    ?assertEqual(Total div 1048576, Megabytes),
    Trend = ?M:analyze_memory_trend([
        #{timestamp => N, total_memory => Bytes} || {N, Bytes} <- [{1, 10}, {2, 11}, {3, 13}]
    ]),
    types(
        [min_memory, max_memory, avg_memory, memory_delta, avg_growth_per_snapshot],
        [trend_slope], Trend
    ),
    ?assertMatch(#{avg_memory := 11, avg_growth_per_snapshot := 2}, Trend),
    {Bytes, PerConnection} = ?M:memory_per_connection(1000),
    ?assert(is_number(Bytes) andalso is_float(PerConnection)),
    ?assert(is_number((?M:measure_memory_snapshot())#memory_snapshot.gc_pause_max)).

figures_of_a_simulation_have_their_types(_Config) ->
    start(),
    Result = ?M:simulate_100k_load(20),
    types(
        [
            target_connections, batches_completed, final_process_count, final_total_memory_mb,
            baseline_memory_mb, memory_delta_mb
        ],
        [final_memory_per_connection_mb], Result
    ),
    #{batch_results := [Batch], success := true} = Result,
    types(
        [batch, connection_count, total_memory_mb, process_count, timestamp],
        [memory_per_connection_mb], Batch
    ),
    ?assert(is_number(maps:get(final_memory_per_connection, Result))).

a_wrong_setting_is_refused_by_name(_Config) ->
    [
        begin
            application:set_env(erlmcp, Key, Value),
            ?assertEqual({error, {invalid_config, Key, Value}}, ?P:start_link()),
            application:unset_env(erlmcp, Key)
        end
     || Key <- [memory_pool_size, memory_pool_max_size],
        Value <- [0, -1, 1.0, "1000", <<"1000">>, many, undefined, [], 10_000_001, 1 bsl 70]
    ],
    Id = <<"c">>,
    State = ?O:create_optimized_state(Id),
    Snapshot = ?O:compress_state(State),
    [
        begin
            application:set_env(erlmcp, Key, Value),
            [?assertError({invalid_config, Key, Value}, Call()) || Call <- Calls],
            application:unset_env(erlmcp, Key)
        end
     || {Key, Calls} <- [
            {connection_state_compact, [
                fun() -> ?O:create_optimized_state(Id) end,
                fun() -> ?O:from_map(#{id => Id}) end,
                fun() -> ?O:decompress_state(Snapshot) end
            ]},
            {compression_enabled, [fun() -> ?O:compress_state(State) end]}
        ],
        Value <- ["false", <<"false">>, 0, 1, undefined, no, []]
    ].

what_was_configured_outlives_a_crash(_Config) ->
    Sizes = fun() ->
        #{connection_pool := #{pool_size := Size, max_size := Max}} = ?P:pool_info(),
        {Size, Max}
    end,
    start(10, 100),
    ok = ?P:configure(max_pool_size, 300),
    ok = ?P:configure(pool_size, 200),
    kill(),
    start(),
    ?assertEqual({200, 300}, Sizes()),
    ?assertEqual({error, invalid_config}, ?P:configure(pool_size, 301)),
    ok = ?P:configure(pool_size, 20),
    kill(),
    kill_again(),
    start(),
    ?assertEqual({20, 300}, Sizes()),
    %% What was refused is not remembered.
    ?assertEqual({error, invalid_config}, ?P:configure(max_pool_size, 19)),
    kill(),
    start(),
    ?assertEqual({20, 300}, Sizes()).

kill_again() ->
    start(),
    kill().

an_orderly_stop_forgets_what_was_configured(_Config) ->
    start(10, 100),
    ok = ?P:configure(max_pool_size, 300),
    ok = gen_server:stop(?P),
    start(),
    ?assertMatch(#{connection_pool := #{pool_size := 10, max_size := 100}}, ?P:pool_info()),
    %% One that was told, beside a setting that has changed since.
    ok = ?P:configure(pool_size, 90),
    kill(),
    application:set_env(erlmcp, memory_pool_max_size, 50),
    start(),
    ?assertMatch(#{connection_pool := #{pool_size := 90, max_size := 90}}, ?P:pool_info()).

%% Elixir's Supervisor calls child_spec/1 of a module that stands alone among the children, with [].
a_supervisor_in_elixir_starts_the_pool(_Config) ->
    ?assertEqual(?P:child_spec(), ?P:child_spec([])),
    ?assertEqual(?P:child_spec(), ?P:child_spec(#{})),
    ?assertMatch(
        #{id := pool, restart := transient, shutdown := 100, start := {?P, start_link, []}},
        ?P:child_spec([{id, pool}, {restart, transient}, {shutdown, 100}])
    ),
    [
        badarg(1, child_spec, [Options])
     || Options <- [name, [name], #{name => x}, [{restart, a, b}], [{name, x}], "x", 1]
    ],
    Self = self(),
    {Pid, Monitor} = spawn_monitor(fun() ->
        {ok, Sup} = supervisor:start_link(erlmcp_project_promises_sup, [?P:child_spec([])]),
        {ok, _} = ?P:acquire_connection_state(#{}),
        [{?P, _, worker, [?P]}] = supervisor:which_children(Sup),
        Self ! checked
    end),
    receive
        checked -> receive {'DOWN', Monitor, process, Pid, _} -> ok end;
        {'DOWN', Monitor, process, Pid, Reason} -> ct:fail(Reason)
    end,
    until(fun() -> whereis(?P) =:= undefined end).

a_simulation_is_no_depleted_pool(_Config) ->
    start(5, 20),
    tick(watch),
    logging("", fun() ->
        #{success := true} = ?M:simulate_100k_load(100),
        {ok, Pids} = ?M:create_test_connections(50, self()),
        tick(watch),
        ?assertEqual([], warnings()),
        %% What the host itself creates still is.
        Refs = erlmcp_pool_help:acquire(7),
        tick(watch),
        ?assertMatch(["pool depleted: 7 " ++ _], warnings()),
        erlmcp_pool_help:release(Refs),
        ok = ?M:stop_test_connections(Pids)
    end).

a_reference_that_travelled_is_told_so(_Config) ->
    start(),
    {ok, State} = ?P:acquire_connection_state(#{}),
    {ok, Buffer, _} = ?P:acquire_message_buffer(0),
    Compact = ?O:create_optimized_state(<<"c">>),
    Share = ?O:share(content),
    %% Where the object is still there, some releases find it again; that is no harm.
    [State2, Buffer2, Compact2, Share2] = gone([State, Buffer, Compact, Share]),
    Calls = [
        {?P, connection_state, [State2]}, {?P, update_connection_state, [State2, #{}]},
        {?P, release_connection_state, [State2]}, {?P, take_messages, [Buffer2, "x\n"]},
        {?P, append_message_buffer, [Buffer2, "x\n"]}, {?P, next_message, [Buffer2]},
        {?O, get_state_field, [Compact2, id]}, {?O, state_field_size, [Compact2, metadata]},
        {?O, update_state_fields, [Compact2, #{}]}, {?O, shared, [Share2]},
        {?O, update_shared, [Share2, [a], 1]}
    ],
    [
        try apply(Module, Function, Args) of
            Result -> ct:fail({Function, Result})
        catch
            error:badarg:Stack ->
                #{1 := Text} = erlmcp_memory_error:format_error(badarg, Stack),
                ?assertNotEqual(nomatch, string:find(Text, "term_to_binary/1"))
        end
     || {Module, Function, Args} <- Calls
    ].

%% These references as another node would send them back.
gone(Refs) ->
    [
        begin
            <<Head:(byte_size(Bin) - 4)/binary, Last:32>> = Bin,
            binary_to_term(<<Head/binary, (Last bxor 16#55555):32>>)
        end
     || Ref <- Refs, Bin <- [term_to_binary(Ref)]
    ].
