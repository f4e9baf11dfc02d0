%% The pool's settings and figures: configure, trimming, the depletion warning, honest bytes.
-module(erlmcp_pool_sizing_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_pool_help, [
    acquire/1, clear/0, logging/2, release/1, release_buffers/1, start/0, start/2, tick/1,
    warnings/0
]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    configure_takes_effect_at_once/1,
    configure_refuses_what_is_invalid/1,
    info_has_its_shape/1,
    unused_states_are_trimmed_to_pool_size/1,
    trimming_goes_by_itself/1,
    depletion_is_logged_once_a_minute/1,
    native_bytes_are_the_vms/1
]).

-define(POOL, erlmcp_memory_pool).

all() ->
    [
        configure_takes_effect_at_once,
        configure_refuses_what_is_invalid,
        info_has_its_shape,
        unused_states_are_trimmed_to_pool_size,
        trimming_goes_by_itself,
        depletion_is_logged_once_a_minute,
        native_bytes_are_the_vms
    ].

init_per_testcase(_Case, Config) ->
    clear(),
    start(),
    Config.

end_per_testcase(_Case, _Config) ->
    clear().

%%% Settings and figures

configure_takes_effect_at_once(_Config) ->
    start(10, 100),
    ?assertEqual(ok, ?POOL:configure(pool_size, 60)),
    ?assertMatch(#{available := 60}, ?POOL:pool_stats()),
    Refs = acquire(100),
    ?assertEqual(ok, ?POOL:configure(max_pool_size, 80)),
    release(Refs),
    ?assertMatch(#{available := 80}, ?POOL:pool_stats()),
    ?assertEqual(ok, ?POOL:configure(pool_size, 5)),
    ?assertMatch(#{available := 80}, ?POOL:pool_stats()),
    ?assertEqual(ok, ?POOL:configure(max_pool_size, 7)),
    ?assertMatch(#{available := 7}, ?POOL:pool_stats()),
    ?assertMatch(
        #{connection_pool := #{queue_length := 7, pool_size := 5, max_size := 7}},
        ?POOL:pool_info()
    ).

configure_refuses_what_is_invalid(_Config) ->
    start(10, 100),
    Before = ?POOL:pool_info(),
    Refused = [
        {pool_size, 0}, {pool_size, -1}, {pool_size, 1.0}, {pool_size, many}, {pool_size, 101},
        {pool_size, 1 bsl 80}, {max_pool_size, 9}, {max_pool_size, 0}, {max_pool_size, "50"},
        {max_pool_size, 1000000000000}, {min_pool_size, 10}, {"pool_size", 10}, {true, 10}, {{}, []}
    ],
    [?assertEqual({error, invalid_config}, ?POOL:configure(K, V)) || {K, V} <- Refused],
    ?assertEqual(Before, ?POOL:pool_info()).

info_has_its_shape(_Config) ->
    start(10, 100),
    {ok, Ref} = ?POOL:acquire_connection_state(#{a => lists:seq(1, 100)}),
    {ok, Buffer, _} = ?POOL:acquire_message_buffer(1),
    {ok, _} = ?POOL:append_message_buffer(Buffer, binary:copy(<<"m">>, 5000)),
    Info = ?POOL:pool_info(),
    Memory = maps:get(memory, Info),
    ?assertEqual(
        [buffer_pool, connection_pool, ets_table, memory, stats], lists:sort(maps:keys(Info))
    ),
    ?assertEqual(
        #{queue_length => 9, pool_size => 10, max_size => 100}, maps:get(connection_pool, Info)
    ),
    ?assertEqual(#{queue_length => 0, buffer_size => 65536}, maps:get(buffer_pool, Info)),
    ?assertEqual(maps:remove(reuse_ratio, ?POOL:pool_stats()), maps:get(stats, Info)),
    ?assertEqual(5, maps:size(maps:get(stats, Info))),
    #{native_bytes := Native, idle_bytes := Idle, live_bytes := Live, buffer_bytes := Bytes} =
        Memory,
    ?assertEqual(4, maps:size(Memory)),
    ?assertEqual(#{size => 1, memory_bytes => Native}, maps:get(ets_table, Info)),
    ?assertEqual(Native, Idle + Live + Bytes),
    ?assert(Idle > 0),
    ?assert(Live > 100),
    ?assert(Bytes >= 5000 andalso Bytes < 20000),
    ok = ?POOL:release_message_buffer(Buffer),
    ok = ?POOL:release_connection_state(Ref),
    ?assertMatch(
        #{buffer_pool := #{queue_length := 1}, memory := #{live_bytes := 0}}, ?POOL:pool_info()
    ).

unused_states_are_trimmed_to_pool_size(_Config) ->
    start(10, 5000),
    release(acquire(5000)),
    ?assertMatch(#{available := 5000}, ?POOL:pool_stats()),
    %% A period in which all were needed frees none; then they go, at most half of them a tick.
    tick(trim),
    Steps = trim_until(10, 5000),
    ?assert(Steps >= 8),
    tick(trim),
    ?assertMatch(#{available := 10}, ?POOL:pool_stats()),
    %% What is needed in every period stays.
    release(acquire(1000)),
    tick(trim),
    [
        begin
            release(acquire(1000)),
            tick(trim)
        end
     || _ <- lists:seq(1, 5)
    ],
    ?assertMatch(#{available := 1000}, ?POOL:pool_stats()).

trim_until(Size, Before) ->
    tick(trim),
    case ?POOL:pool_stats() of
        #{available := Size} ->
            1;
        #{available := Now} ->
            ?assert(Now < Before),
            ?assert(Now >= Before div 2),
            1 + trim_until(Size, Now)
    end.

trimming_goes_by_itself(_Config) ->
    start(10, 1000),
    release(acquire(1000)),
    until(fun() -> maps:get(available, ?POOL:pool_stats()) < 1000 end).

depletion_is_logged_once_a_minute(_Config) ->
    logging("pool depleted", fun() ->
        start(10, 1000),
        Refs = acquire(10),
        tick(watch),
        ?assertEqual([], warnings()),
        More = acquire(25),
        %% Without a tick out of turn: the pool looks often enough by itself.
        First =
            receive
                {warning, Text} -> Text
            after 60000 -> ct:fail(timeout)
            end,
        ?assertNotEqual(nomatch, string:find(First, "pool depleted: 25 ")),
        ?assertNotEqual(
            nomatch, string:find(First, "erlmcp_memory_pool:configure(pool_size, 35)")
        ),
        Again = acquire(7),
        [tick(watch) || _ <- lists:seq(1, 10)],
        ?assertEqual([], warnings()),
        %% A minute later: what was created since the first one.
        sys:replace_state(?POOL, fun(Server) ->
            Warned = tuple_size(Server),
            setelement(Warned, Server, element(Warned, Server) - 60000)
        end),
        Last = acquire(1),
        [tick(watch) || _ <- lists:seq(1, 10)],
        [Second] = warnings(),
        ?assertNotEqual(nomatch, string:find(Second, "pool depleted: 8 ")),
        release(Refs ++ More ++ Again ++ Last),
        %% The advice is one that helps.
        Enough = acquire(35),
        release(Enough),
        ok = ?POOL:configure(pool_size, 43),
        #{created := Created} = ?POOL:pool_stats(),
        release(acquire(43)),
        ?assertMatch(#{created := Created}, ?POOL:pool_stats())
    end).

%%% Honesty

native_bytes_are_the_vms(_Config) ->
    garbage_collect(),
    Before = erlang:memory(total),
    Blob = binary:copy(<<"b">>, 1000000),
    States = [
        begin
            {ok, Ref} = ?POOL:acquire_connection_state(#{n => N, blob => Blob}),
            Ref
        end
     || N <- lists:seq(1, 30)
    ],
    Buffers = [
        begin
            {ok, Ref, _} = ?POOL:acquire_message_buffer(1),
            {ok, _} = ?POOL:append_message_buffer(Ref, Blob),
            Ref
        end
     || _ <- lists:seq(1, 30)
    ],
    Grown = erlang:memory(total) - Before,
    #{memory := #{live_bytes := Live, buffer_bytes := Bytes}} = ?POOL:pool_info(),
    ?assert(Live >= 30000000),
    ?assert(Bytes >= 30000000),
    %% Meanwhile others may free some memory.
    ?assert(Grown > 0.95 * (Live + Bytes)),
    ?assert(Grown < 1.2 * (Live + Bytes)),
    release(States),
    release_buffers(Buffers),
    #{memory := After} = ?POOL:pool_info(),
    #{live_bytes := 0, buffer_bytes := Idle, idle_bytes := IdleStates} = After,
    %% No block is held; what is idle is bounded, and goes when nobody needs it.
    ?assertMatch({_, Idle, 0}, erlmcp_memory_nif:buffer_stats()),
    ?assert(Idle < 6000000),
    ?assert(IdleStates < 1000000),
    until(fun() ->
        _ = erlmcp_memory_nif:pool_trim(),
        {0, 0, 0} =:= erlmcp_memory_nif:buffer_stats()
    end),
    %% The VM's allocators take back what another thread freed when that thread gets to it.
    until(fun() -> erlang:memory(total) - Before < 10000000 end).
