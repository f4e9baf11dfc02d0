%% The pool's calls: starting, states, counters.
%%
%% The counters belong to the node and are never reset, so cases look at differences.
-module(erlmcp_pool_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_pool_help, [
    acquire/1, badarg/3, clear/0, idle/0, in_parallel/2, release/1, start/0, start/2
]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    not_started/1,
    starts_once/1,
    invalid_settings_are_refused_without_an_exit/1,
    runs_under_a_supervisor/1,
    acquire_read_update_release/1,
    states_hold_any_term/1,
    large_states_go_through_the_dirty_lane/1,
    large_updates_of_large_states_go_through_the_dirty_lane/1,
    prepared_states_have_room/1,
    a_refused_update_changes_nothing/1,
    counters_agree/1,
    counters_agree_on_all_schedulers/1,
    prepared_states_count_as_reused/1,
    exactly_the_maximum_is_kept_idle/1,
    a_hundred_thousand_in_use_with_default_settings/1,
    random_calls_agree_with_a_model/1
]).

%% Called by supervisor.
-export([init/1]).

-define(POOL, erlmcp_memory_pool).

all() ->
    [
        not_started,
        starts_once,
        invalid_settings_are_refused_without_an_exit,
        runs_under_a_supervisor,
        acquire_read_update_release,
        states_hold_any_term,
        large_states_go_through_the_dirty_lane,
        large_updates_of_large_states_go_through_the_dirty_lane,
        prepared_states_have_room,
        a_refused_update_changes_nothing,
        counters_agree,
        counters_agree_on_all_schedulers,
        prepared_states_count_as_reused,
        exactly_the_maximum_is_kept_idle,
        a_hundred_thousand_in_use_with_default_settings,
        random_calls_agree_with_a_model
    ].

init_per_testcase(Case, Config) when
    Case =:= not_started;
    Case =:= starts_once;
    Case =:= invalid_settings_are_refused_without_an_exit;
    Case =:= runs_under_a_supervisor;
    Case =:= random_calls_agree_with_a_model
->
    clear(),
    Config;
init_per_testcase(_Case, Config) ->
    clear(),
    start(),
    Config.

end_per_testcase(_Case, _Config) ->
    clear().

%%% Starting

not_started(_Config) ->
    ?assertEqual({error, not_started}, ?POOL:acquire_connection_state(#{})),
    ?assertEqual({error, not_started}, ?POOL:acquire_message_buffer(10)),
    ?assertExit({noproc, _}, ?POOL:pool_stats()),
    ?assertExit({noproc, _}, ?POOL:pool_info()),
    ?assertExit({noproc, _}, ?POOL:configure(pool_size, 10)).

starts_once(_Config) ->
    {ok, Pid} = ?POOL:start_link(),
    ?assertEqual(Pid, whereis(?POOL)),
    ?assertEqual({error, {already_started, Pid}}, ?POOL:start_link()),
    #{connection_pool := Settings} = ?POOL:pool_info(),
    ?assertEqual(#{queue_length => 1000, pool_size => 1000, max_size => 10000}, Settings).

invalid_settings_are_refused_without_an_exit(_Config) ->
    process_flag(trap_exit, true),
    Refused = [
        {0, 10, memory_pool_size, 0},
        {-1, 10, memory_pool_size, -1},
        {1.5, 10, memory_pool_size, 1.5},
        {many, 10, memory_pool_size, many},
        {"10", 10, memory_pool_size, "10"},
        {1 bsl 70, 10, memory_pool_size, 1 bsl 70},
        {10, 0, memory_pool_max_size, 0},
        {10, 9, memory_pool_max_size, 9},
        {10, undefined, memory_pool_max_size, undefined},
        {10, 1 bsl 40, memory_pool_max_size, 1 bsl 40}
    ],
    [
        begin
            application:set_env(erlmcp, memory_pool_size, Size),
            application:set_env(erlmcp, memory_pool_max_size, Max),
            ?assertEqual({error, {invalid_config, Key, Value}}, ?POOL:start_link()),
            ?assertEqual(undefined, whereis(?POOL))
        end
     || {Size, Max, Key, Value} <- Refused
    ],
    receive
        {'EXIT', _, _} = Exit -> ct:fail(Exit)
    after 0 -> ok
    end.

runs_under_a_supervisor(_Config) ->
    Spec = ?POOL:child_spec(),
    ?assertEqual(ok, supervisor:check_childspecs([Spec])),
    {ok, Sup} = supervisor:start_link(?MODULE, []),
    unlink(Sup),
    {ok, First} = supervisor:start_child(Sup, Spec),
    {ok, Ref} = ?POOL:acquire_connection_state(#{a => 1}),
    exit(First, kill),
    until(fun() -> is_pid(whereis(?POOL)) andalso whereis(?POOL) =/= First end),
    ?assertEqual({ok, #{a => 1}}, ?POOL:connection_state(Ref)),
    ?assertMatch(#{in_use := 1}, ?POOL:pool_stats()),
    ok = supervisor:terminate_child(Sup, ?POOL),
    ?assertEqual({error, not_started}, ?POOL:acquire_connection_state(#{})),
    ?assertEqual({ok, #{a => 1}}, ?POOL:connection_state(Ref)),
    ?assertEqual(0, idle()),
    exit(Sup, kill).

%% A supervisor without children.
init([]) ->
    {ok, {#{}, []}}.

%%% States

acquire_read_update_release(_Config) ->
    {ok, Ref} = ?POOL:acquire_connection_state(#{id => 1, name => <<"a">>}),
    ?assert(is_reference(Ref)),
    ?assertEqual({ok, #{id => 1, name => <<"a">>}}, ?POOL:connection_state(Ref)),
    ?assertEqual(ok, ?POOL:update_connection_state(Ref, #{name => <<"b">>, new => []})),
    ?assertEqual({ok, #{id => 1, name => <<"b">>, new => []}}, ?POOL:connection_state(Ref)),
    ?assertEqual(ok, ?POOL:update_connection_state(Ref, #{})),
    ?assertEqual({ok, #{id => 1, name => <<"b">>, new => []}}, ?POOL:connection_state(Ref)),
    ?assertEqual(ok, ?POOL:release_connection_state(Ref)),
    ?assertEqual({error, released}, ?POOL:connection_state(Ref)),
    ?assertEqual({error, released}, ?POOL:update_connection_state(Ref, #{id => 2})),
    ?assertEqual(ok, ?POOL:release_connection_state(Ref)),
    %% The next owner of the same native object starts empty.
    {ok, Next} = ?POOL:acquire_connection_state(#{}),
    ?assertEqual({ok, #{}}, ?POOL:connection_state(Next)),
    ?assertEqual({error, released}, ?POOL:connection_state(Ref)).

states_hold_any_term(_Config) ->
    Port = hd(erlang:ports()),
    Terms = [
        0, -1, 1 bsl 59, -(1 bsl 64), 1 bsl 4000, 0.1, -1.0e300, a, '', [], [a | b], {}, {1, {2}},
        <<>>, <<"bytes">>, <<1:3>>, <<0:65537>>, self(), Port, make_ref(), fun lists:map/2,
        fun() -> Port end, #{}, #{#{a => 1} => [#{}]}, lists:seq(1, 1000), "text", 'ünï'
    ],
    Map = maps:from_list([{T, T} || T <- Terms] ++ [{N, T} || {N, T} <- lists:enumerate(Terms)]),
    {ok, Ref} = ?POOL:acquire_connection_state(Map),
    {ok, Read} = ?POOL:connection_state(Ref),
    ?assert(Read =:= Map),
    {ok, One} = ?POOL:acquire_connection_state(#{}),
    [
        begin
            ok = ?POOL:update_connection_state(One, #{term => T}),
            ?assertEqual({ok, #{term => T}}, ?POOL:connection_state(One))
        end
     || T <- Terms
    ].

large_states_go_through_the_dirty_lane(_Config) ->
    Large = maps:from_list([{N, <<N:64>>} || N <- lists:seq(1, 50000)]),
    Blob = #{blob => binary:copy(<<"b">>, 5000000), n => 1},
    #{reused := Reused, created := Created} = ?POOL:pool_stats(),
    {dirty, {ok, Ref}} = erlmcp_optimizer_lane_help:call(pool_acquire, [Large, [], false]),
    {dirty, {ok, BlobRef}} = erlmcp_optimizer_lane_help:call(pool_acquire, [Blob, [], false]),
    ?assertEqual({dirty, {ok, Large}}, erlmcp_optimizer_lane_help:call(pool_read, [Ref])),
    ?assertEqual({ok, Blob}, ?POOL:connection_state(BlobRef)),
    %% An acquisition that was begun on a normal scheduler counts once.
    #{reused := ReusedNow, created := CreatedNow} = ?POOL:pool_stats(),
    ?assertEqual(2, ReusedNow + CreatedNow - Reused - Created),
    ok = ?POOL:update_connection_state(Ref, Blob),
    ?assertEqual({ok, maps:merge(Large, Blob)}, ?POOL:connection_state(Ref)),
    %% Others use the handle while a large call has it.
    Self = self(),
    Busy = spawn_link(fun() ->
        [ok = ?POOL:update_connection_state(Ref, Large) || _ <- lists:seq(1, 5)],
        Self ! {done, self()}
    end),
    Merged = maps:merge(Large, Blob),
    [?assertEqual({ok, Merged}, ?POOL:connection_state(Ref)) || _ <- lists:seq(1, 5)],
    receive {done, Busy} -> ok end,
    ok = ?POOL:release_connection_state(Ref).

large_updates_of_large_states_go_through_the_dirty_lane(_Config) ->
    Update = fun(Ref, Keys) ->
        Map = maps:from_list([{Key, new} || Key <- Keys]),
        erlmcp_optimizer_lane_help:call(pool_update, [Ref, Map, []])
    end,
    {ok, Ref} = ?POOL:acquire_connection_state(
        maps:from_list([{N, old} || N <- lists:seq(1, 20_000)])
    ),
    ?assertEqual({dirty, ok}, Update(Ref, lists:seq(1, 19_001, 50))),
    ?assertEqual({normal, ok}, Update(Ref, [2, 20_000])),
    {ok, Map} = ?POOL:connection_state(Ref),
    ?assertEqual(20_000, map_size(Map)),
    ?assertEqual(
        lists:seq(1, 19_001, 50) ++ [2, 20_000],
        lists:sort(fun(A, B) -> {A rem 50 =/= 1, A} =< {B rem 50 =/= 1, B} end,
            [Key || {Key, new} <- maps:to_list(Map)])
    ),
    %% Into a state that holds nothing they are merely written.
    {ok, Empty} = ?POOL:acquire_connection_state(#{}),
    ?assertEqual({normal, ok}, Update(Empty, lists:seq(1, 400))).

%% A state that was made in advance takes no memory when it is acquired with a few entries.
prepared_states_have_room(_Config) ->
    #{available := 1000} = ?POOL:pool_stats(),
    Content = fun(N) -> #{id => N, client => binary:copy(<<"c">>, 100)} end,
    #{memory := #{idle_bytes := Idle}} = ?POOL:pool_info(),
    Bytes = erlmcp_memory_nif:native_bytes(),
    Refs = [element(2, ?POOL:acquire_connection_state(Content(N))) || N <- lists:seq(1, 500)],
    %% What a scheduler packs into may have grown; the contents are above 50,000 bytes.
    ?assert(erlmcp_memory_nif:native_bytes() - Bytes < 20_000),
    %% And none is counted as more than it was.
    #{memory := #{idle_bytes := Left, live_bytes := Live}} = ?POOL:pool_info(),
    ?assertEqual(Idle, Left + Live),
    ?assertEqual(Live, Left),
    [
        ?assertEqual({ok, Content(N)}, ?POOL:connection_state(Ref))
     || {N, Ref} <- lists:zip(lists:seq(1, 500), Refs)
    ],
    release(Refs).

a_refused_update_changes_nothing(_Config) ->
    {ok, Ref} = ?POOL:acquire_connection_state(#{id => 1}),
    %% 2^60 times one cell: shared on the heap, not so when packed.
    Endless = lists:foldl(fun(_, Term) -> [Term | Term] end, [a], lists:seq(1, 60)),
    badarg(2, update_connection_state, [Ref, #{id => 2, endless => Endless}]),
    badarg(2, update_connection_state, [Ref, not_a_map]),
    badarg(1, acquire_connection_state, [#{endless => Endless}]),
    ?assertEqual({ok, #{id => 1}}, ?POOL:connection_state(Ref)),
    ?assertMatch(#{in_use := 1}, ?POOL:pool_stats()).

%%% Counters

counters_agree(_Config) ->
    start(5, 10),
    Before = ?POOL:pool_stats(),
    Refs = acquire(8),
    Stats = ?POOL:pool_stats(),
    ?assertEqual(8, maps:get(in_use, Stats)),
    ?assertEqual(0, maps:get(available, Stats)),
    ?assertEqual(8, maps:get(total_allocated, Stats)),
    ?assertEqual(5, maps:get(reused, Stats) - maps:get(reused, Before)),
    ?assertEqual(3, maps:get(created, Stats) - maps:get(created, Before)),
    #{reused := Reused, created := Created, reuse_ratio := Ratio} = Stats,
    ?assert(is_float(Ratio)),
    ?assert(abs(Ratio - 100.0 * Reused / (Reused + Created)) < 1.0e-9),
    ?assertEqual(6, maps:size(Stats)),
    release(Refs),
    ?assertMatch(#{in_use := 0, available := 8, total_allocated := 8}, ?POOL:pool_stats()).

counters_agree_on_all_schedulers(_Config) ->
    start(50, 100),
    #{reused := Reused, created := Created} = ?POOL:pool_stats(),
    Workers = 4 * erlang:system_info(schedulers_online),
    in_parallel(Workers, fun(_) ->
        [
            begin
                Refs = acquire(20),
                [ok = ?POOL:release_connection_state(R) || R <- Refs]
            end
         || _ <- lists:seq(1, 200)
        ]
    end),
    Stats = ?POOL:pool_stats(),
    ?assertMatch(#{in_use := 0}, Stats),
    ?assert(maps:get(available, Stats) =< 100),
    ?assertEqual(maps:get(available, Stats), maps:get(total_allocated, Stats)),
    ?assertEqual(
        Workers * 20 * 200,
        maps:get(reused, Stats) + maps:get(created, Stats) - Reused - Created
    ).

prepared_states_count_as_reused(_Config) ->
    start(100, 100),
    #{reused := Reused, created := Created} = ?POOL:pool_stats(),
    ?assertMatch(#{available := 100}, ?POOL:pool_stats()),
    Refs = acquire(100),
    ?assertEqual(Reused + 100, maps:get(reused, ?POOL:pool_stats())),
    ?assertEqual(Created, maps:get(created, ?POOL:pool_stats())),
    [Last] = acquire(1),
    ?assertEqual(Created + 1, maps:get(created, ?POOL:pool_stats())),
    release([Last | Refs]).

exactly_the_maximum_is_kept_idle(_Config) ->
    start(1, 10),
    Refs = acquire(20),
    [
        in_parallel(1, fun(_) -> ?POOL:release_connection_state(Ref) end)
     || Ref <- Refs
    ],
    ?assertMatch(#{in_use := 0, available := 10}, ?POOL:pool_stats()).

a_hundred_thousand_in_use_with_default_settings(_Config) ->
    Refs = acquire(100000),
    ?assertMatch(#{in_use := 100000, available := 0}, ?POOL:pool_stats()),
    #{memory := #{live_bytes := Live}, ets_table := #{size := 100000}} = ?POOL:pool_info(),
    ?assert(Live > 100000),
    [?assertMatch({ok, #{n := N}}, ?POOL:connection_state(R)) || {N, R} <- lists:enumerate(Refs)],
    release(Refs),
    ?assertMatch(#{in_use := 0, available := 10000}, ?POOL:pool_stats()),
    ?assertMatch(#{memory := #{live_bytes := 0}}, ?POOL:pool_info()).

%%% A model

random_calls_agree_with_a_model(_Config) ->
    case code:which(proper) of
        non_existing -> {skip, "PropEr is not installed"};
        _ -> ?assert(erlmcp_pool_prop:check())
    end.
