%% The whole library through its public calls: pool, states, profiler, and the load simulation.
-module(erlmcp_memory_optimization_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include("erlmcp_memory.hrl").

-import(erlmcp_wait_help, [until/1]).

-compile([export_all, nowarn_export_all]).

-define(POOL, erlmcp_memory_pool).
-define(STATE, erlmcp_connection_optimizer).
-define(PROFILER, erlmcp_memory_profiler).
-define(MB, 1048576).

suite() ->
    [{timetrap, {minutes, 15}}].

all() ->
    [
        test_memory_pool_initialization,
        test_memory_pool_acquire_release,
        test_memory_pool_reuse_efficiency,
        test_connection_optimizer_state,
        test_connection_optimizer_compression,
        test_memory_per_connection_1k,
        test_memory_per_connection_10k,
        test_memory_per_connection_50k,
        test_memory_growth_analysis,
        test_profiler_baseline,
        test_100k_simulation,
        test_memory_constraints_validation,
        simulation_refuses,
        simulation_one_at_a_time,
        simulation_beside_a_profiler,
        simulation_beside_a_tracer,
        simulation_starts_and_stops_the_pool,
        simulation_beside_states_of_others,
        simulation_goes_with_its_caller,
        simulation_goes_when_killed,
        simulation_counts_a_lost_connection,
        simulation_of_one,
        connections_are_all_or_none,
        connections_refuse,
        connections_go_with_their_server,
        connections_stop
    ].

init_per_testcase(Case, Config) ->
    erlmcp_pool_help:clear(),
    _ = ?PROFILER:stop_profiling(),
    case lists:prefix("simulation_", atom_to_list(Case)) of
        true -> ok;
        false -> _ = erlmcp_pool_help:start(100, 1000)
    end,
    Config.

end_per_testcase(_Case, _Config) ->
    _ = erlang:trace(all, false, [all]),
    _ = ?PROFILER:stop_profiling(),
    erlmcp_pool_help:clear().

%% --- the pool ---

test_memory_pool_initialization(_Config) ->
    Pid = whereis(?POOL),
    ?assertEqual({error, {already_started, Pid}}, ?POOL:start_link()),
    #{available := 100, in_use := 0, total_allocated := 100} = ?POOL:pool_stats(),
    ?assertMatch(
        #{
            connection_pool := #{queue_length := 100, pool_size := 100, max_size := 1000},
            buffer_pool := #{queue_length := _, buffer_size := 65536},
            ets_table := #{size := 0, memory_bytes := _},
            stats := #{in_use := 0, available := 100, total_allocated := 100},
            memory := #{live_bytes := 0}
        },
        ?POOL:pool_info()
    ).

test_memory_pool_acquire_release(_Config) ->
    {ok, Ref} = ?POOL:acquire_connection_state(#{id => <<"a">>}),
    ?assert(is_reference(Ref)),
    ?assertEqual({ok, #{id => <<"a">>}}, ?POOL:connection_state(Ref)),
    ok = ?POOL:update_connection_state(Ref, #{user => 1}),
    ?assertEqual({ok, #{id => <<"a">>, user => 1}}, ?POOL:connection_state(Ref)),
    ?assertMatch(#{in_use := 1, available := 99}, ?POOL:pool_stats()),
    ok = ?POOL:release_connection_state(Ref),
    ok = ?POOL:release_connection_state(Ref),
    ?assertMatch(#{in_use := 0, available := 100}, ?POOL:pool_stats()),
    ?assertEqual({error, released}, ?POOL:connection_state(Ref)),
    {ok, Buffer, Zeros} = ?POOL:acquire_message_buffer(100000),
    ?assertEqual(0, iolist_size(binary:replace(Zeros, <<0>>, <<>>, [global]))),
    ?assert(byte_size(Zeros) >= 100000),
    ?assertEqual({ok, 3}, ?POOL:append_message_buffer(Buffer, "one")),
    ?assertEqual(more, ?POOL:next_message(Buffer)),
    ?assertEqual({ok, 9}, ?POOL:append_message_buffer(Buffer, [<<"\r\n">>, "two", $\n])),
    ?assertEqual({ok, <<"one">>}, ?POOL:next_message(Buffer)),
    ?assertEqual({ok, <<"two\n">>}, ?POOL:message_buffer(Buffer)),
    ok = ?POOL:release_message_buffer(Buffer),
    ?assertEqual({error, released}, ?POOL:next_message(Buffer)).

test_memory_pool_reuse_efficiency(_Config) ->
    #{reused := Reused, created := Created} = ?POOL:pool_stats(),
    [
        erlmcp_pool_help:release(erlmcp_pool_help:acquire(100))
     || _ <- lists:seq(1, 100)
    ],
    #{reused := ReusedNow, created := CreatedNow, reuse_ratio := Ratio} = ?POOL:pool_stats(),
    ?assertEqual({10000, 0}, {ReusedNow - Reused, CreatedNow - Created}),
    ?assertEqual(100.0 * ReusedNow / (ReusedNow + CreatedNow), Ratio),
    %% Twenty more than there are: these must be made.
    erlmcp_pool_help:release(erlmcp_pool_help:acquire(120)),
    ?assertEqual(CreatedNow + 20, maps:get(created, ?POOL:pool_stats())).

%% --- states ---

test_connection_optimizer_state(_Config) ->
    New = ?STATE:create_optimized_state(<<"conn-1">>),
    ?assertEqual(initialization, ?STATE:get_state_field(New, phase)),
    ?assertEqual(undefined, ?STATE:get_state_field(New, transport)),
    Tools = #{tools => #{<<"echo">> => #{<<"description">> => <<"says it again">>}}},
    Share = ?STATE:share(Tools),
    State = lists:foldl(
        fun({Field, Value}, Acc) -> ?STATE:update_state_field(Acc, Field, Value) end,
        New,
        [
            {phase, initialized},
            {metadata, #{user => 1, name => <<"ann">>}},
            {metadata, #{user => 2}},
            {capabilities_ref, Share},
            {[subscriptions, <<"file:///a">>], self()}
        ]
    ),
    ?assertEqual(#{user => 2, name => <<"ann">>}, ?STATE:get_state_field(State, metadata)),
    ?assertEqual(self(), ?STATE:get_state_field(State, [subscriptions, <<"file:///a">>])),
    ?assertEqual(
        {ok, <<"says it again">>},
        ?STATE:find_shared(
            ?STATE:get_state_field(State, capabilities_ref),
            [tools, <<"echo">>, <<"description">>]
        )
    ),
    %% The older version is as it was.
    ?assertEqual(initialization, ?STATE:get_state_field(New, phase)),
    ?assertEqual(#{}, ?STATE:get_state_field(New, metadata)),
    #{total_bytes := Total, shared_bytes := Shared} = ?STATE:state_size_info(State),
    ?assertEqual(Total, ?STATE:estimate_memory(State)),
    ?assert(Shared > 0),
    ok = ?STATE:cleanup_state(State),
    ?assertError(badarg, ?STATE:get_state_field(State, phase)).

test_connection_optimizer_compression(_Config) ->
    Map = #{
        id => <<"conn-1">>,
        phase => initialized,
        transport => erlmcp_transport_tcp,
        created_at => 1769000000000,
        capabilities_ref => undefined,
        metadata => #{text => binary:copy(<<"again and ">>, 1000)},
        pending_refs => #{make_ref() => 1},
        extra => [1.5, {self(), 1 bsl 70} | improper]
    },
    Binary = ?STATE:compress_state(?STATE:from_map(Map)),
    ?assert(byte_size(Binary) < 1000),
    ?assertEqual(Map, ?STATE:to_map(?STATE:decompress_state(Binary))),
    <<Version, Rest/binary>> = Binary,
    Flipped = <<Version, (binary:part(Rest, 0, byte_size(Rest) - 1))/binary>>,
    ?assertMatch({error, _}, ?STATE:decompress_state(Flipped)),
    ?assertEqual({error, unsupported_version}, ?STATE:decompress_state(<<200, Rest/binary>>)).

%% --- memory per connection ---

%% Published are 1.9 KB. A thousand share what the pool takes for itself; erlmcp_server_budget_SUITE
%% knows each byte.
test_memory_per_connection_1k(_Config) -> connected(1000, 4500).
test_memory_per_connection_10k(_Config) -> connected(10000, 2600).
test_memory_per_connection_50k(_Config) -> connected(50000, 2300).

%% This many connections at once take what is published, and give everything back.
connected(Count, Most) ->
    Server = spawn_link(fun() -> receive stop -> ok end end),
    Before = erlang:memory(total),
    Processes = erlang:system_info(process_count),
    {ok, Pids} = ?PROFILER:create_test_connections(Count, Server),
    ?assertEqual(Count, length(lists:usort(Pids))),
    ?assertEqual(Count, maps:get(in_use, ?POOL:pool_stats())),
    {Bytes, MegaBytes} = ?PROFILER:memory_per_connection(Count),
    ct:pal("~b connections: ~b bytes of total memory for each, ~b of them its own", [
        Count, Bytes, (erlang:memory(total) - Before) div Count
    ]),
    ?assertEqual(Bytes / ?MB, MegaBytes),
    Own = (erlang:memory(total) - Before) div Count,
    %% Garbage of others that goes meanwhile makes it less.
    ?assert(Own > 500),
    ?assert(Own < Most),
    ?assert(erlang:system_info(process_count) >= Processes + Count - 10),
    ok = ?PROFILER:stop_test_connections(Pids),
    ?assertEqual([], [Pid || Pid <- Pids, is_process_alive(Pid)]),
    ?assertMatch(#{in_use := 0}, ?POOL:pool_stats()),
    Server ! stop,
    ok.

test_memory_growth_analysis(_Config) ->
    ok = ?PROFILER:start_profiling(#{interval_ms => 20, gc => false}),
    {Kept, Grown} = lists:unzip([grow(Minute) || Minute <- lists:seq(1, 20)]),
    ct:pal("bytes: ~w", [[Total || #memory_snapshot{total_memory = Total} <- Grown]]),
    #{total_memory_delta := Delta} = ?PROFILER:stop_profiling(),
    #{snapshots := Snapshots} = ?PROFILER:get_profiling_data(),
    ok = ?PROFILER:stop_test_connections(lists:append([Pids || {Pids, _} <- Kept])),
    #{memory_delta := TrendDelta, trend_slope := Slope} =
        ?PROFILER:analyze_memory_trend(Snapshots),
    ?assertEqual(Delta, TrendDelta),
    ?assert(Delta > 20 * (4 * ?MB + 500 * 1000)),
    ?assert(Slope > 0),
    ?assertMatch(
        #{leak_indication := <<"possible_memory_leak">>}, ?PROFILER:analyze_memory_trend(Grown)
    ),
    Steady = [
        #memory_snapshot{timestamp = 60000 * N, total_memory = 100 * ?MB + (N rem 3) * 1000}
     || N <- lists:seq(1, 60)
    ],
    ?assertMatch(#{leak_indication := <<"normal">>}, ?PROFILER:analyze_memory_trend(Steady)).

%% Real growth, sampled after each step and dated a minute apart: how long a step takes on this
%% machine, and how many of the profiler's samples fall into it, says nothing about growth. The
%% binary is several times what a step's garbage comes to.
grow(Minute) ->
    {ok, Pids} = ?PROFILER:create_test_connections(500, self()),
    Kept = {Pids, binary:copy(<<Minute>>, 4 * ?MB)},
    true = erlang:garbage_collect(),
    Snapshot = ?PROFILER:measure_memory_snapshot(),
    {Kept, Snapshot#memory_snapshot{timestamp = 60000 * Minute}}.

test_profiler_baseline(_Config) ->
    #memory_snapshot{total_memory = Total, process_count = Processes, resident_memory = Resident} =
        ?PROFILER:measure_memory_snapshot(),
    ?assert(Total > 0),
    ?assert(Resident > 0),
    ok = ?PROFILER:start_profiling(#{interval_ms => 10000}),
    {ok, Pids} = ?PROFILER:create_test_connections(100, self()),
    #{baseline := Baseline, final := Final, process_count_delta := Delta, gc := Gc} =
        ?PROFILER:stop_profiling(),
    ok = ?PROFILER:stop_test_connections(Pids),
    #{process_count := Count} = Baseline,
    ?assert(abs(Count - Processes) < 50),
    ?assertEqual(maps:get(process_count, Final) - Count, Delta),
    ?assert(Delta >= 90),
    %% Each hibernated, and that is a collection.
    #{measured := true, collections := Collections} = Gc,
    ?assert(Collections >= 100),
    ?assertMatch({ok, [_ | _]}, ?PROFILER:generate_report()).

%% --- the load simulation ---

test_100k_simulation(_Config) ->
    Result = ?PROFILER:simulate_100k_load(100000),
    ct:pal("~p", [maps:remove(batch_results, Result)]),
    succeeded(100000, Result),
    #{batch_results := Batches, latency := #{acquire := Acquire, message := Message}} = Result,
    ?assertEqual(lists:seq(1, 10), [Batch || #{batch := Batch} <- Batches]),
    ?assertEqual(
        lists:seq(10000, 100000, 10000), [Count || #{connection_count := Count} <- Batches]
    ),
    ?assertMatch(#{count := 100000}, Acquire),
    ?assertMatch(#{count := 300000}, Message),
    #{final_process_count := Processes, resident_bytes_per_connection := Resident} = Result,
    ?assert(Processes >= 100000),
    ?assert(Resident > 0),
    ?assertMatch(#{in_use := 0, available := 1000}, ?POOL:pool_stats()),
    ?assertEqual([], [P || P <- processes(), is_connection(P)]).

is_connection(Pid) ->
    process_info(Pid, initial_call) =:= {initial_call, {erlmcp_memory_load_connection, init, 1}}.

succeeded(Count, Result) ->
    ?assertMatch(
        #{
            target_connections := Count,
            errors := 0,
            first_errors := [],
            states_left := 0,
            processes_left := 0,
            buffer_bytes_left := 0,
            success := true
        },
        maps:remove(batch_results, Result)
    ),
    #{
        final_memory_per_connection := Bytes,
        final_memory_per_connection_mb := MegaBytes,
        final_total_memory_mb := Peak,
        baseline_memory_mb := Baseline,
        memory_delta_mb := Delta,
        batches_completed := Completed,
        batch_results := Batches,
        gc_pause := Pause,
        latency := Latency,
        memory := #{before := Before, peak := AtPeak, afterwards := Afterwards},
        final_process_count := _,
        bytes_per_connection := _,
        pool := #{idle_states := _, idle_bytes := _, started := _}
    } = Result,
    ?assertEqual(Bytes / ?MB, MegaBytes),
    %% Each is cut to whole megabytes.
    ?assert(abs(Peak - Baseline - Delta) =< 1),
    ?assertEqual(max(0, maps:get(total, AtPeak) - maps:get(total, Before)) div Count, Bytes),
    ?assertEqual((Count + 9999) div 10000, Completed),
    ?assertEqual(Completed, length(Batches)),
    [
        ?assertEqual(
            [
                batch, connection_count, memory_per_connection, memory_per_connection_mb,
                process_count, timestamp, total_memory_mb
            ],
            lists:sort(maps:keys(Batch))
        )
     || Batch <- Batches
    ],
    ?assert(is_boolean(maps:get(measured, Pause))),
    [
        ?assert(is_number(maps:get(Key, maps:get(Kind, Latency))))
     || Kind <- [acquire, update, message], Key <- [p50, p90, p99, p999, max]
    ],
    [
        ?assert(is_integer(maps:get(Kind, Memory)))
     || Memory <- [Before, AtPeak, Afterwards],
        Kind <- [total, processes, binaries, native, resident]
    ],
    ok.

test_memory_constraints_validation(_Config) ->
    %% The figure is measured: half a megabyte that is a connection's own shows.
    Result = ?PROFILER:simulate_100k_load(2000, #{progress => false}),
    succeeded(2000, Result),
    #{final_memory_per_connection := Bytes} = Result,
    ?assert(Bytes > 500),
    ?assert(Bytes < 4500),
    Own = #{metadata => #{own => binary:copy(<<"x">>, 500000)}},
    Before = erlang:memory(total),
    {ok, Pids} = ?PROFILER:create_test_connections(100, self(), Own),
    ?assert(erlang:memory(total) - Before > 100 * 500000),
    ok = ?PROFILER:stop_test_connections(Pids).

simulation_refuses(_Config) ->
    [
        refused(simulate_100k_load, [Count], 1, "positive")
     || Count <- [0, -1, 1.0, many, -(1 bsl 70)]
    ],
    [
        refused(simulate_100k_load, [1, Options], 2, Text)
     || {Options, Text} <- [
            {[], "not a map"},
            {#{progress => perhaps}, "progress"},
            {#{rounds => -1}, "rounds"},
            {#{drivers => 0}, "drivers"},
            {#{colour => red}, "unknown option"}
        ]
    ],
    {error, {too_many_connections, Limit}} = ?PROFILER:simulate_100k_load(1000000000000),
    ?assert(Limit > 0),
    ?assert(Limit < erlang:system_info(process_limit)),
    ?assertEqual(undefined, whereis(?POOL)),
    application:set_env(erlmcp, memory_pool_size, none),
    ?assertEqual(
        {error, {invalid_config, memory_pool_size, none}}, ?PROFILER:simulate_100k_load(1)
    ).

refused(Function, Arguments, Position, Text) ->
    try erlang:apply(?PROFILER, Function, Arguments) of
        Result -> ct:fail({Function, Arguments, Result})
    catch
        error:badarg:Stack ->
            ?assertMatch([{?PROFILER, Function, Arguments, _} | _], Stack),
            #{Position := Shown} = erlmcp_memory_error:format_error(badarg, Stack),
            ?assertNotEqual(nomatch, string:find(Shown, Text), Shown)
    end.

simulation_one_at_a_time(_Config) ->
    Simulate = fun() -> exit(?PROFILER:simulate_100k_load(5000, #{progress => false})) end,
    Running = [spawn_monitor(Simulate) || _ <- lists:seq(1, 4)],
    Results = [
        receive {'DOWN', Monitor, process, Pid, Result} -> Result end
     || {Pid, Monitor} <- Running
    ],
    {Errors, Ran} = lists:partition(fun(Result) -> is_tuple(Result) end, Results),
    ?assert(length(Ran) >= 1),
    [?assertEqual({error, simulation_in_progress}, Error) || Error <- Errors],
    [succeeded(5000, Result) || Result <- Ran].

simulation_beside_a_profiler(_Config) ->
    ok = ?PROFILER:start_profiling(),
    ?assertEqual({error, profiling_in_progress}, ?PROFILER:simulate_100k_load(10)),
    ?assertMatch(#{snapshots := 2}, ?PROFILER:stop_profiling()),
    Result = ?PROFILER:simulate_100k_load(10, #{progress => false}),
    succeeded(10, Result),
    ?assertMatch(#{gc_pause := #{measured := true, p50 := _, max := _}}, Result).

simulation_beside_a_tracer(_Config) ->
    Tracer = spawn_link(fun() -> receive stop -> ok end end),
    1 = erlang:trace(Tracer, true, [procs, {tracer, self()}]),
    Result = ?PROFILER:simulate_100k_load(10, #{progress => false}),
    succeeded(10, Result),
    Me = self(),
    ?assertMatch(
        #{gc_pause := #{measured := false, reason := {already_traced, Me}}}, Result
    ),
    %% It still traces.
    ?assertEqual({tracer, Me}, erlang:trace_info(Tracer, tracer)).

simulation_starts_and_stops_the_pool(_Config) ->
    #{pool := #{started := true}} = Result =
        ?PROFILER:simulate_100k_load(1500, #{progress => false, rounds => 0, drivers => 3}),
    succeeded(1500, Result),
    ?assertMatch(#{latency := #{message := #{count := 1500}}}, Result),
    ?assertEqual(undefined, whereis(?POOL)),
    ?assertEqual({error, not_started}, ?POOL:acquire_connection_state(#{})),
    ?assertEqual(undefined, whereis(erlmcp_memory_sampler)).

simulation_beside_states_of_others(_Config) ->
    Pool = erlmcp_pool_help:start(100, 1000),
    Before = erlmcp_pool_help:acquire(700),
    {Other, Monitor} = spawn_monitor(fun() -> acquire_now_and_then([]) end),
    Result = ?PROFILER:simulate_100k_load(3000, #{progress => false}),
    Other ! stop,
    receive {'DOWN', Monitor, process, Other, normal} -> ok end,
    succeeded(3000, Result),
    ?assertMatch(#{pool := #{started := false}}, Result),
    ?assertEqual(Pool, whereis(?POOL)),
    ?assertEqual({ok, #{n => 700}}, ?POOL:connection_state(lists:last(Before))).

%% Somebody else, who keeps what he acquires.
acquire_now_and_then(Kept) ->
    receive
        stop -> ok
    after 10 ->
        acquire_now_and_then([erlmcp_pool_help:acquire(1) | Kept])
    end.

simulation_goes_with_its_caller(_Config) ->
    Caller = spawn(fun() -> ?PROFILER:simulate_100k_load(50000, #{progress => false}) end),
    until(fun() -> connections() > 2000 end),
    exit(Caller, kill),
    gone().

simulation_goes_when_killed(_Config) ->
    {Caller, Monitor} = spawn_monitor(fun() ->
        ?PROFILER:simulate_100k_load(50000, #{progress => false})
    end),
    until(fun() -> connections() > 2000 end),
    exit(whereis(erlmcp_memory_load_simulation), kill),
    receive {'DOWN', Monitor, process, Caller, Reason} -> ?assertEqual(killed, Reason) end,
    until(fun() -> connections() =:= 0 end),
    until(fun() -> whereis(?POOL) =:= undefined end).

connections() ->
    length([Pid || Pid <- processes(), is_connection(Pid)]).

gone() ->
    until(fun() ->
        whereis(erlmcp_memory_load_simulation) =:= undefined andalso connections() =:= 0 andalso
            whereis(?POOL) =:= undefined andalso whereis(erlmcp_memory_sampler) =:= undefined
    end).

%% A killed connection is an error, and nothing else breaks.
simulation_counts_a_lost_connection(_Config) ->
    {Caller, Monitor} = spawn_monitor(fun() ->
        exit(?PROFILER:simulate_100k_load(20000, #{progress => false, rounds => 8}))
    end),
    until(fun() -> connections() > 500 end),
    [Victim | _] = [Pid || Pid <- processes(), is_connection(Pid)],
    exit(Victim, kill),
    receive
        {'DOWN', Monitor, process, Caller, Result} ->
            #{errors := Errors, first_errors := First} = Result,
            %% It is missed in the rounds that were left, and at the close.
            ?assert(Errors >= 1),
            ?assertEqual(Errors, length(First)),
            ?assertMatch(
                #{success := false, states_left := 0, processes_left := 0},
                maps:remove(batch_results, Result)
            )
    end.

simulation_of_one(_Config) ->
    Result = ?PROFILER:simulate_100k_load(1),
    succeeded(1, Result),
    ?assertMatch(#{batch_results := [#{batch := 1, connection_count := 1}]}, Result).

%% --- test connections ---

connections_are_all_or_none(_Config) ->
    {error, {too_many_connections, Limit}} =
        ?PROFILER:create_test_connections(1000000000000, self()),
    ?assert(Limit < erlang:system_info(process_limit)),
    %% No pool: nothing to hold.
    erlmcp_pool_help:stop(),
    ?assertEqual({error, not_started}, ?PROFILER:create_test_connections(10, self())),
    %% A pool's name without a pool: each connection fails to start.
    true = register(?POOL, self()),
    ?assertEqual({error, not_started}, ?PROFILER:create_test_connections(2500, self())),
    true = unregister(?POOL),
    until(fun() -> connections() =:= 0 end),
    receive Message -> ct:fail(Message) after 0 -> ok end.

connections_refuse(_Config) ->
    {Dead, Monitor} = spawn_monitor(fun() -> ok end),
    receive {'DOWN', Monitor, process, Dead, _} -> ok end,
    [
        refused(create_test_connections, [Count, self()], 1, "positive")
     || Count <- [0, -1, 2.0, x]
    ],
    [refused(create_test_connections, [1, Pid], 2, "not") || Pid <- [Dead, x, make_ref()]],
    [
        refused(create_test_connections, [1, self(), Options], 3, Text)
     || {Options, Text} <- [
            {[], "not a map"}, {#{metadata => 1}, "metadata"}, {#{meta => #{}}, "unknown"}
        ]
    ],
    [
        refused(stop_test_connections, [Pids], 1, "test connections")
     || Pids <- [x, [x], [self()], [whereis(?POOL)], #{}]
    ],
    ?assert(is_pid(whereis(?POOL))),
    ?assertEqual(ok, ?PROFILER:stop_test_connections([])),
    ?assertEqual(ok, ?PROFILER:stop_test_connections([Dead])).

connections_go_with_their_server(_Config) ->
    Server = spawn(fun() -> receive stop -> ok end end),
    Me = self(),
    %% The process that creates them is gone, they stay.
    {Creator, Monitor} = spawn_monitor(fun() ->
        Me ! ?PROFILER:create_test_connections(1200, Server, #{
            metadata => #{a => 1}, capabilities => [any, "term"]
        })
    end),
    {ok, Pids} = receive {ok, _} = Created -> Created end,
    receive {'DOWN', Monitor, process, Creator, normal} -> ok end,
    ?assert(lists:all(fun is_process_alive/1, Pids)),
    %% Whatever comes, they are not moved.
    hd(Pids) ! {some, message},
    ?assertMatch(#{in_use := 1200}, ?POOL:pool_stats()),
    Server ! stop,
    until(fun() -> not lists:any(fun is_process_alive/1, Pids) end),
    ?assertMatch(#{in_use := 0}, ?POOL:pool_stats()).

connections_stop(_Config) ->
    {ok, Pids} = ?PROFILER:create_test_connections(1001, self()),
    %% One that does not answer is killed.
    Deaf = lists:nth(500, Pids),
    true = erlang:suspend_process(Deaf),
    exit(hd(Pids), kill),
    ?assertEqual(ok, ?PROFILER:stop_test_connections(Pids)),
    ?assertNot(lists:any(fun is_process_alive/1, Pids)),
    until(fun() -> maps:get(in_use, ?POOL:pool_stats()) =:= 0 end),
    ?assertEqual(ok, ?PROFILER:stop_test_connections(Pids)).
