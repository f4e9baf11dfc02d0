%% The guide that users of the planned modules have: each of its steps and examples, run.
-module(erlmcp_project_quick_start_SUITE).
-behaviour(application).

-include_lib("stdlib/include/assert.hrl").
-include("erlmcp_memory.hrl").

-import(erlmcp_pool_help, [clear/0, start/0]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_testcase/2, end_per_testcase/2]).
-export([start/2, stop/1, init/1]).
-export([
    the_pool_starts_with_the_application/1,
    a_record_becomes_a_state/1,
    settings_of_the_host_are_in_force/1,
    a_system_is_profiled/1,
    a_load_is_simulated/1,
    the_pool_is_watched/1,
    a_state_is_used/1,
    a_state_is_stored/1,
    the_monitor_runs/1,
    the_monitor_alerts/1,
    a_depleted_pool_is_enlarged/1,
    a_state_is_analyzed/1,
    collections_are_counted/1,
    the_named_tests_are_there/1
]).

-define(P, erlmcp_memory_pool).
-define(O, erlmcp_connection_optimizer).
-define(M, erlmcp_memory_profiler).

all() ->
    [
        the_pool_starts_with_the_application,
        a_record_becomes_a_state,
        settings_of_the_host_are_in_force,
        a_system_is_profiled,
        a_load_is_simulated,
        the_pool_is_watched,
        a_state_is_used,
        a_state_is_stored,
        the_monitor_runs,
        the_monitor_alerts,
        a_depleted_pool_is_enlarged,
        a_state_is_analyzed,
        collections_are_counted,
        the_named_tests_are_there
    ].

init_per_testcase(_Case, Config) ->
    clear(),
    Config.

end_per_testcase(_Case, _Config) ->
    clear().

%%% Integration

%% An application that starts the pool in start/2, without a supervisor for it.
start(_Type, _Args) ->
    {ok, _} = ?P:start_link(),
    supervisor:start_link(?MODULE, []).

stop(_State) ->
    ok.

init([]) ->
    {ok, {#{}, []}}.

the_pool_starts_with_the_application(_Config) ->
    Spec = {application, quick_start_host, [
        {vsn, "1"}, {modules, [?MODULE]}, {registered, []}, {applications, [kernel, stdlib]},
        {mod, {?MODULE, []}}
    ]},
    ok = application:load(Spec),
    ok = application:start(quick_start_host),
    {ok, Ref} = ?P:acquire_connection_state(#{id => 1}),
    ok = application:stop(quick_start_host),
    ok = application:unload(quick_start_host),
    until(fun() -> whereis(?P) =:= undefined end),
    ?assertEqual({ok, #{id => 1}}, ?P:connection_state(Ref)),
    ok = ?P:release_connection_state(Ref).

-record(state, {server_id, phase, capabilities, resources = #{}, tools = #{}}).

a_record_becomes_a_state(_Config) ->
    Before = #state{server_id = <<"conn-1">>, phase = initialization, capabilities = caps},
    New = ?O:create_optimized_state(Before#state.server_id),
    ?assertEqual(initialization, ?O:get_state_field(New, phase)),
    Updated = ?O:update_state_field(New, phase, initialized),
    ?assertEqual(initialized, ?O:get_state_field(Updated, phase)),
    %% All of it, field by field.
    Moved = lists:foldl(
        fun({Field, Value}, S) -> ?O:update_state_field(S, Field, Value) end,
        New,
        lists:zip(record_info(fields, state), tl(tuple_to_list(Before)))
    ),
    ?assertMatch(#{server_id := <<"conn-1">>, capabilities := caps, tools := #{}}, ?O:to_map(Moved)).

settings_of_the_host_are_in_force(_Config) ->
    Settings = [{memory_pool_size, 123}, {memory_pool_max_size, 4567}, {connection_state_compact, true}],
    [application:set_env(erlmcp, Key, Value) || {Key, Value} <- Settings],
    start(),
    ?assertMatch(#{connection_pool := #{pool_size := 123, max_size := 4567}}, ?P:pool_info()),
    ?assert(is_reference(?O:create_optimized_state(<<"c">>))),
    application:set_env(erlmcp, connection_state_compact, false),
    ?assertNot(is_reference(?O:create_optimized_state(<<"c">>))),
    application:unset_env(erlmcp, connection_state_compact).

%%% Examples

a_system_is_profiled(_Config) ->
    ok = ?M:start_profiling(),
    Data = ?M:stop_profiling(),
    ?assertMatch(#{baseline := _, final := _, snapshots := _, total_memory_delta := _}, Data),
    ?assert(is_record(?M:measure_memory_snapshot(), memory_snapshot)),
    {Bytes, Megabytes} = ?M:memory_per_connection(10000),
    ?assert(Bytes > 0 andalso Megabytes > 0.0).

a_load_is_simulated(_Config) ->
    start(),
    Result = ?M:simulate_100k_load(100),
    ?assertEqual(true, maps:get(success, Result)),
    ?assert(maps:get(final_memory_per_connection_mb, Result) < 2.0),
    %% What hosts print of it.
    _ = io_lib:format("~B MB of ~B MB, ~.3f MB each", [
        maps:get(memory_delta_mb, Result), maps:get(final_total_memory_mb, Result),
        maps:get(final_memory_per_connection_mb, Result)
    ]).

the_pool_is_watched(_Config) ->
    start(),
    Stats = ?P:pool_stats(),
    ?assertEqual(
        lists:sort([in_use, available, total_allocated, reused, created, reuse_ratio]),
        lists:sort(maps:keys(Stats))
    ),
    ?assertMatch(#{connection_pool := _, buffer_pool := _, ets_table := _, stats := _}, ?P:pool_info()).

a_state_is_used(_Config) ->
    S1 = ?O:create_optimized_state(<<"conn-123">>),
    S2 = ?O:update_state_field(S1, phase, initialized),
    S3 = ?O:update_state_field(S2, transport, erlmcp_transport_tcp),
    S4 = ?O:update_state_field(S3, metadata, #{user_id => 42}),
    ?assertEqual(initialized, ?O:get_state_field(S4, phase)),
    ?assertEqual(#{user_id => 42}, ?O:get_field_safe(S4, metadata, #{})),
    Bytes = ?O:estimate_memory(S4),
    Info = ?O:state_size_info(S4),
    [
        ?assert(is_integer(maps:get(Key, Info)))
     || Key <- [total_bytes, base, id, transport, metadata, pending_refs]
    ],
    ?assertEqual(Bytes, maps:get(total_bytes, Info)),
    %% The guide shows 256 bytes.
    ?assert(Bytes < 512).

a_state_is_stored(_Config) ->
    State = ?O:update_state_field(?O:create_optimized_state(<<"conn-123">>), phase, initialized),
    Load = fun(Compressed) ->
        case ?O:decompress_state(Compressed) of
            {error, Reason} -> {error, Reason};
            Read -> ?O:get_state_field(Read, phase)
        end
    end,
    Compressed = ?O:compress_state(State),
    ?assert(is_binary(Compressed)),
    ?assertEqual(initialized, Load(Compressed)),
    ?assertMatch({error, _}, Load(<<"damaged">>)).

%%% Monitoring

monitor_memory(Alert) ->
    Stats = ?P:pool_stats(),
    Snapshot = ?M:measure_memory_snapshot(),
    case maps:get(reuse_ratio, Stats) < 70 of
        true -> Alert("pool reuse too low");
        false -> ok
    end,
    case Snapshot#memory_snapshot.gc_pause_max > 100 of
        true -> Alert("long collection");
        false -> ok
    end.

the_monitor_runs(_Config) ->
    start(),
    %% Also while nothing is measured. What other cases acquired is in the ratio.
    ?assertEqual(ok, monitor_memory(fun("pool reuse too low") -> ok end)),
    ?assertEqual(0.0, (?M:measure_memory_snapshot())#memory_snapshot.gc_pause_max),
    ok = ?M:start_profiling(),
    Self = self(),
    _ = monitor_memory(fun(Text) -> Self ! {alert, Text} end),
    _ = ?M:stop_profiling().

%% The thresholds of the guide's table.
the_monitor_alerts(_Config) ->
    start(),
    Alerts = ?M:alerts(),
    ?assert(is_list(Alerts)),
    [
        ?assertMatch(#{metric := _, level := _, value := _, threshold := _, advice := _}, Alert)
     || Alert <- Alerts
    ].

%%% Troubleshooting

a_depleted_pool_is_enlarged(_Config) ->
    start(),
    #{in_use := 0, available := Available} = ?P:pool_stats(),
    ?assertEqual(1000, Available),
    ok = ?P:configure(pool_size, 5000),
    ?assertMatch(#{available := 5000}, ?P:pool_stats()).

a_state_is_analyzed(_Config) ->
    State = ?O:create_optimized_state(<<"test">>),
    ?assert(maps:get(metadata, ?O:state_size_info(State)) < 100).

collections_are_counted(_Config) ->
    {Collections, Words, _} = erlang:statistics(garbage_collection),
    _ = io_lib:format("GC: ~B collections, ~B words reclaimed~n", [Collections, Words]).

the_named_tests_are_there(_Config) ->
    Cases = erlmcp_memory_optimization_SUITE:all(),
    [
        ?assert(erlang:function_exported(erlmcp_memory_optimization_SUITE, Case, 1))
     || Case <- [
            test_memory_pool_initialization, test_100k_simulation, test_connection_optimizer_state
        ]
    ],
    ?assert(length(Cases) > 0),
    {module, _} = code:ensure_loaded(erlmcp_memory_tests).
