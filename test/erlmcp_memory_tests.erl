%% Quick unit tests of the three public modules.
-module(erlmcp_memory_tests).

-include_lib("eunit/include/eunit.hrl").
-include("erlmcp_memory.hrl").

-define(POOL, erlmcp_memory_pool).
-define(STATE, erlmcp_connection_optimizer).
-define(PROFILER, erlmcp_memory_profiler).

%% --- the pool ---

pool_test_() ->
    {foreach, fun start_pool/0, fun stop_pool/1, [
        fun a_state_is_a_map_behind_a_reference/0,
        fun updates_merge/0,
        fun released_is_released/0,
        fun counters_agree/0,
        fun frames_come_in_order/0,
        fun a_buffer_starts_with_zeros/0,
        fun a_too_large_message_is_refused/0,
        fun settings_are_checked/0,
        fun test_connections_hold_states/0,
        fun a_load_simulation_succeeds/0
    ]}.

start_pool() ->
    {ok, Pid} = ?POOL:start_link(),
    Pid.

stop_pool(Pid) ->
    unlink(Pid),
    gen_server:stop(Pid).

a_state_is_a_map_behind_a_reference() ->
    {ok, Ref} = ?POOL:acquire_connection_state(#{id => <<"a">>, {any, 1} => [term | 2.5]}),
    ?assert(is_reference(Ref)),
    ?assertEqual({ok, #{id => <<"a">>, {any, 1} => [term | 2.5]}}, ?POOL:connection_state(Ref)),
    ok = ?POOL:release_connection_state(Ref).

updates_merge() ->
    {ok, Ref} = ?POOL:acquire_connection_state(#{a => 1, b => 2}),
    ok = ?POOL:update_connection_state(Ref, #{b => 3, c => 4}),
    ?assertEqual({ok, #{a => 1, b => 3, c => 4}}, ?POOL:connection_state(Ref)),
    ok = ?POOL:release_connection_state(Ref).

released_is_released() ->
    {ok, Ref} = ?POOL:acquire_connection_state(#{}),
    ?assertEqual(ok, ?POOL:release_connection_state(Ref)),
    ?assertEqual(ok, ?POOL:release_connection_state(Ref)),
    ?assertEqual({error, released}, ?POOL:connection_state(Ref)),
    ?assertEqual({error, released}, ?POOL:update_connection_state(Ref, #{})).

counters_agree() ->
    #{reused := Reused, created := Created, in_use := InUse} = ?POOL:pool_stats(),
    Refs = [element(2, ?POOL:acquire_connection_state(#{n => N})) || N <- lists:seq(1, 10)],
    #{in_use := Now, available := Idle, total_allocated := Total} = Stats = ?POOL:pool_stats(),
    ?assertEqual(InUse + 10, Now),
    ?assertEqual(Now + Idle, Total),
    ?assertEqual(Reused + Created + 10, maps:get(reused, Stats) + maps:get(created, Stats)),
    [ok = ?POOL:release_connection_state(Ref) || Ref <- Refs],
    ?assertMatch(#{in_use := InUse}, ?POOL:pool_stats()).

frames_come_in_order() ->
    {ok, Ref, _} = ?POOL:acquire_message_buffer(0),
    ?assertEqual(more, ?POOL:next_message(Ref)),
    ?assertEqual({ok, 9}, ?POOL:append_message_buffer(Ref, ["on", <<"e\ntwo\r\n">>])),
    ?assertEqual({ok, 13}, ?POOL:append_message_buffer(Ref, "thre")),
    ?assertEqual({ok, <<"one">>}, ?POOL:next_message(Ref)),
    ?assertEqual({ok, <<"two">>}, ?POOL:next_message(Ref)),
    ?assertEqual(more, ?POOL:next_message(Ref)),
    ?assertEqual({ok, <<"thre">>}, ?POOL:message_buffer(Ref)),
    ?assertEqual({ok, 6}, ?POOL:append_message_buffer(Ref, "e\n")),
    ?assertEqual({ok, <<"three">>}, ?POOL:next_message(Ref)),
    ok = ?POOL:release_message_buffer(Ref).

a_buffer_starts_with_zeros() ->
    {ok, Ref, Zeros} = ?POOL:acquire_message_buffer(70000),
    ?assert(byte_size(Zeros) >= 70000),
    Size = 8 * byte_size(Zeros),
    ?assertEqual(<<0:Size>>, Zeros),
    ok = ?POOL:release_message_buffer(Ref),
    ?assertEqual({error, released}, ?POOL:message_buffer(Ref)).

a_too_large_message_is_refused() ->
    {error, {message_too_large, Limit}} = ?POOL:acquire_message_buffer(1 bsl 40),
    {ok, Ref, _} = ?POOL:acquire_message_buffer(1),
    ?assertEqual({ok, 1}, ?POOL:append_message_buffer(Ref, "x")),
    ?assertEqual(
        {error, {message_too_large, Limit}},
        ?POOL:append_message_buffer(Ref, binary:copy(<<"y">>, Limit))
    ),
    ?assertEqual({ok, <<"x">>}, ?POOL:message_buffer(Ref)),
    ok = ?POOL:release_message_buffer(Ref).

settings_are_checked() ->
    [
        ?assertEqual({error, invalid_config}, ?POOL:configure(Key, Value))
     || {Key, Value} <- [{pool_size, 0}, {max_pool_size, 1.5}, {size, 1}, {pool_size, 1 bsl 60}]
    ],
    ?assertEqual(ok, ?POOL:configure(max_pool_size, 12345)),
    ?assertMatch(#{connection_pool := #{max_size := 12345}}, ?POOL:pool_info()).

test_connections_hold_states() ->
    #{in_use := InUse} = ?POOL:pool_stats(),
    {ok, Pids} = ?PROFILER:create_test_connections(25, self()),
    ?assertEqual(25, length(lists:usort(Pids))),
    ?assertEqual(InUse + 25, maps:get(in_use, ?POOL:pool_stats())),
    ?assertEqual(ok, ?PROFILER:stop_test_connections(Pids)),
    ?assertEqual(InUse, maps:get(in_use, ?POOL:pool_stats())).

a_load_simulation_succeeds() ->
    ?assertMatch(
        #{
            target_connections := 50,
            batches_completed := 1,
            batch_results := [#{connection_count := 50}],
            latency := #{message := #{count := 200}},
            errors := 0,
            states_left := 0,
            processes_left := 0,
            success := true
        },
        ?PROFILER:simulate_100k_load(50, #{progress => false, rounds => 3})
    ).

without_a_pool_test_() ->
    [
        ?_assertEqual({error, not_started}, ?POOL:acquire_connection_state(#{})),
        ?_assertEqual({error, not_started}, ?POOL:acquire_message_buffer(1)),
        ?_assertEqual({error, not_started}, ?PROFILER:create_test_connections(1, self())),
        ?_assertExit({noproc, _}, ?POOL:pool_stats()),
        ?_assertExit({noproc, _}, ?POOL:pool_info()),
        ?_assertExit({noproc, _}, ?POOL:configure(pool_size, 1))
    ].

child_spec_test() ->
    #{start := {?POOL, start_link, []}, id := ?POOL} = ?POOL:child_spec(),
    ?assertEqual(ok, supervisor:check_childspecs([?POOL:child_spec()])).

%% --- states ---

new_state_test_() ->
    State = ?STATE:create_optimized_state(<<"conn-1">>),
    [
        ?_assertEqual({Field, Value}, {Field, ?STATE:get_state_field(State, Field)})
     || {Field, Value} <- [
            {id, <<"conn-1">>},
            {phase, initialization},
            {transport, undefined},
            {capabilities_ref, undefined},
            {metadata, #{}},
            {pending_refs, #{}},
            {never_set, undefined},
            {[metadata, none], undefined}
        ]
    ] ++ [?_assert(abs(?STATE:get_state_field(State, created_at) -
        erlang:system_time(millisecond)) < 600000)].

any_value_test_() ->
    State = ?STATE:create_optimized_state(<<>>),
    [
        ?_assertEqual(Value, ?STATE:get_state_field(?STATE:update_state_field(State, f, Value), f))
     || Value <- [
            1 bsl 200, -1.5e300, [a | b], <<5:3>>, self(), make_ref(), {}, #{#{} => #{[] => {}}},
            <<"text">>, fun erlang:now/0
        ]
    ].

fields_test_() ->
    S0 = ?STATE:create_optimized_state(<<"c">>),
    S1 = ?STATE:update_state_field(S0, metadata, #{a => 1, b => 2}),
    S2 = ?STATE:update_state_field(S1, metadata, #{b => 3}),
    S3 = ?STATE:update_state_field(S2, pending_refs, #{r => 1}),
    S4 = ?STATE:update_state_field(S3, pending_refs, #{q => 2}),
    S5 = ?STATE:remove_state_field(S4, [metadata, a]),
    [
        {"metadata is merged",
            ?_assertEqual(#{a => 1, b => 3}, ?STATE:get_state_field(S2, metadata))},
        {"the older state stays",
            ?_assertEqual(#{a => 1, b => 2}, ?STATE:get_state_field(S1, metadata))},
        {"pending is replaced", ?_assertEqual(#{q => 2}, ?STATE:get_state_field(S4, pending_refs))},
        {"a path", ?_assertEqual(3, ?STATE:get_state_field(S5, [metadata, b]))},
        {"removed", ?_assertEqual(#{b => 3}, ?STATE:get_state_field(S5, metadata))},
        {"default", ?_assertEqual(d, ?STATE:get_field_safe(S5, transport, d))},
        {"no default", ?_assertEqual(initialization, ?STATE:get_field_safe(S5, phase, d))},
        {"to a map and back",
            ?_assertEqual(?STATE:to_map(S5), ?STATE:to_map(?STATE:from_map(?STATE:to_map(S5))))},
        {"through a snapshot",
            ?_assertEqual(
                ?STATE:to_map(S5),
                ?STATE:to_map(?STATE:decompress_state(?STATE:compress_state(S5)))
            )}
    ].

sizes_test() ->
    State = ?STATE:update_state_field(
        ?STATE:create_optimized_state(<<"c">>), metadata, #{big => binary:copy(<<"x">>, 10000)}
    ),
    #{total_bytes := Total, metadata := Metadata} = Sizes = ?STATE:state_size_info(State),
    ?assertEqual(Total, ?STATE:estimate_memory(State)),
    ?assert(Metadata >= 10000),
    Parts = [base, id, transport, capabilities_ref, metadata, pending_refs, extra],
    ?assertEqual(Total, lists:sum([maps:get(Part, Sizes) || Part <- Parts])),
    ?assertMatch(#{metadata_map_size := 1, pending_count := 0}, Sizes).

cleanup_test() ->
    State = ?STATE:create_optimized_state(<<"c">>),
    Newer = ?STATE:update_state_field(State, phase, closed),
    ?assertEqual(ok, ?STATE:cleanup_state(State)),
    ?assertEqual(ok, ?STATE:cleanup_state(State)),
    ?assertError(badarg, ?STATE:get_state_field(State, phase)),
    ?assertEqual(closed, ?STATE:get_state_field(Newer, phase)).

share_test_() ->
    Term = #{tools => #{<<"echo">> => [1, 2]}},
    Ref = ?STATE:share(Term),
    [
        ?_assertEqual(Term, ?STATE:shared(Ref)),
        ?_assertEqual(Ref, ?STATE:share(#{tools => #{<<"echo">> => [1, 2]}})),
        ?_assertEqual({ok, [1, 2]}, ?STATE:find_shared(Ref, [tools, <<"echo">>])),
        ?_assertEqual({ok, Term}, ?STATE:find_shared(Ref, [])),
        ?_assertEqual(error, ?STATE:find_shared(Ref, [tools, none]))
    ].

snapshot_of_version_1_test() ->
    Bytes = <<1, 1, 1, 8:16, "conn-123", 1769000000000:64, 2:16>>,
    #{pending_refs := Pending} = Map = ?STATE:to_map(?STATE:decompress_state(Bytes)),
    ?assertMatch(
        #{
            id := <<"conn-123">>,
            phase := initialized,
            transport := erlmcp_transport_tcp,
            created_at := 1769000000000
        },
        Map
    ),
    ?assertEqual([1, 2], lists:sort(maps:values(Pending))),
    ?assert(lists:all(fun is_reference/1, maps:keys(Pending))).

bad_snapshots_test_() ->
    [
        ?_assertMatch({error, _}, ?STATE:decompress_state(Bytes))
     || Bytes <- [<<>>, <<1>>, <<2>>, <<2, 0:2000>>, <<255:8, 1, 2>>, <<1, 1, 1, 99:16, "x">>]
    ] ++ [?_assertEqual({error, unsupported_version}, ?STATE:decompress_state(<<77, 1, 2>>))].

wrong_arguments_test_() ->
    Foreign = make_ref(),
    [
        {lists:flatten(io_lib:format("~p:~p", [Module, Function])),
            ?_assertEqual({badarg, Position}, wrong(Module, Function, Arguments))}
     || {Module, Function, Arguments, Position} <- [
            {?POOL, acquire_connection_state, [not_a_map], 1},
            {?POOL, connection_state, [Foreign], 1},
            {?POOL, acquire_message_buffer, [-1], 1},
            {?POOL, append_message_buffer, [Foreign, "x"], 1},
            {?STATE, create_optimized_state, ["not a binary"], 1},
            {?STATE, get_state_field, [Foreign, phase], 1},
            {?STATE, update_state_field, [?STATE:create_optimized_state(<<>>), metadata, 1], 3},
            {?STATE, from_map, [[]], 1},
            {?STATE, shared, [Foreign], 1},
            {?PROFILER, memory_per_connection, [0], 1},
            {?PROFILER, start_profiling, [#{every => 1}], 1},
            {?PROFILER, create_test_connections, [0, self()], 1},
            {?PROFILER, create_test_connections, [1, self(), #{x => 1}], 3},
            {?PROFILER, stop_test_connections, [[self()]], 1},
            {?PROFILER, simulate_100k_load, [0], 1},
            {?PROFILER, simulate_100k_load, [1, #{speed => high}], 2}
        ]
    ].

%% Which argument the exception's text is about.
wrong(Module, Function, Arguments) ->
    try
        {returned, erlang:apply(Module, Function, Arguments)}
    catch
        error:Reason:Stack ->
            [Position] = maps:keys(erlmcp_memory_error:format_error(Reason, Stack)),
            {Reason, Position}
    end.

%% --- the profiler ---

profiler_test_() ->
    {setup, fun() -> ?PROFILER:start_profiling(#{interval_ms => 60000}) end,
        fun(_) -> ?PROFILER:stop_profiling() end, fun(Started) ->
            [
                ?_assertEqual(ok, Started),
                ?_assertMatch(#{snapshot_count := 1}, ?PROFILER:get_profiling_data()),
                ?_assertMatch({ok, [_ | _]}, ?PROFILER:generate_report()),
                ?_assertEqual(
                    {error, profiling_in_progress}, ?PROFILER:simulate_100k_load(1)
                ),
                ?_assertMatch(
                    #{snapshots := 2, gc := #{measured := true}}, ?PROFILER:stop_profiling()
                ),
                ?_assertEqual({error, profiling_not_started}, ?PROFILER:stop_profiling()),
                ?_assertMatch(#{snapshot_count := 2}, ?PROFILER:get_profiling_data())
            ]
        end}.

measurements_test() ->
    #memory_snapshot{total_memory = Total, process_memory = Processes, binary_memory = Binaries} =
        ?PROFILER:measure_memory_snapshot(),
    ?assert(Total > Processes + Binaries),
    ?assertMatch({_, 1}, ?PROFILER:measure_memory_after_delay(1)),
    {Bytes, MegaBytes} = ?PROFILER:memory_per_connection(1000),
    ?assertEqual(Bytes / 1048576, MegaBytes).

trend_test_() ->
    Line = [#{timestamp => 1000 * N, total_memory => 5000000 + 100 * N} || N <- lists:seq(1, 50)],
    Level = [#memory_snapshot{timestamp = 1000 * N, total_memory = 7} || N <- lists:seq(1, 50)],
    [
        ?_assertEqual({error, no_data}, ?PROFILER:analyze_memory_trend([])),
        ?_assertEqual({error, need_multiple_snapshots}, ?PROFILER:analyze_memory_trend([hd(Line)])),
        ?_assertEqual({error, invalid_input}, ?PROFILER:analyze_memory_trend([1, 2])),
        ?_assertMatch(
            #{min_memory := 5000100, max_memory := 5005000, memory_delta := 4900},
            ?PROFILER:analyze_memory_trend(Line)
        ),
        ?_assert(abs(maps:get(trend_slope, ?PROFILER:analyze_memory_trend(Line)) - 100.0) < 0.001),
        ?_assertMatch(
            #{min_memory := 7, max_memory := 7, avg_memory := 7, memory_delta := 0,
                trend_slope := +0.0, leak_indication := <<"normal">>},
            ?PROFILER:analyze_memory_trend(Level)
        )
    ].

progress_line_test_() ->
    Figures = #{phase => "close", done => 10, of_done => 20, rate => 5.4, seconds_left => 1.2},
    [
        ?_assertEqual(
            "close: 10 of 20, 5 a second, 2 s left of all", erlmcp_memory_load_progress:line(Figures)
        ),
        ?_assertEqual(
            "close: 10 of 20, 5 a second",
            erlmcp_memory_load_progress:line(Figures#{seconds_left := undefined})
        )
    ].
