%% Who owns a state: death of owners, of references and of the pool's process.
-module(erlmcp_pool_ownership_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_pool_help, [
    acquire/1, clear/0, idle/0, in_parallel/2, kill/0, release/1, start/0, start/2, stop/0, tick/1
]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    dead_processes_give_everything_back/1,
    a_reference_outlives_its_process/1,
    a_released_handle_stays_released/1,
    a_killed_pool_process_changes_nothing/1,
    an_orderly_stop_frees_what_is_idle/1,
    unknown_messages_do_no_harm/1
]).

-define(POOL, erlmcp_memory_pool).

all() ->
    [
        dead_processes_give_everything_back,
        a_reference_outlives_its_process,
        a_released_handle_stays_released,
        a_killed_pool_process_changes_nothing,
        an_orderly_stop_frees_what_is_idle,
        unknown_messages_do_no_harm
    ].

init_per_testcase(_Case, Config) ->
    clear(),
    start(),
    Config.

end_per_testcase(_Case, _Config) ->
    clear().

dead_processes_give_everything_back(_Config) ->
    Self = self(),
    #{memory := #{live_bytes := 0}} = ?POOL:pool_info(),
    Total = erlang:memory(total),
    Owners = [
        spawn(fun() ->
            {ok, State} = ?POOL:acquire_connection_state(#{n => N, blob => <<0:8000>>}),
            {ok, Buffer, Zeros} = ?POOL:acquire_message_buffer(10),
            {ok, 2000} = ?POOL:append_message_buffer(Buffer, <<1:16000>>),
            Self ! {ready, self()},
            receive
                never -> {State, Buffer, Zeros}
            end
        end)
     || N <- lists:seq(1, 10000)
    ],
    [receive {ready, Owner} -> ok end || Owner <- Owners],
    #{memory := #{live_bytes := Live, buffer_bytes := Buffers}} = ?POOL:pool_info(),
    ?assertMatch(#{in_use := 10000}, ?POOL:pool_stats()),
    ?assert(Live > 10000 * 1000),
    ?assert(Buffers > 10000 * 2000),
    [exit(Owner, kill) || Owner <- Owners],
    until(fun() -> maps:get(in_use, ?POOL:pool_stats()) =:= 0 end),
    ?assertMatch(#{memory := #{live_bytes := 0}}, ?POOL:pool_info()),
    %% Blocks that are idle may stay for a while; none is live.
    until(fun() ->
        tick(trim),
        case ?POOL:pool_info() of
            #{buffer_pool := #{queue_length := 0}, memory := #{buffer_bytes := 0}} -> true;
            _ -> false
        end
    end),
    #{memory := #{native_bytes := Native}} = ?POOL:pool_info(),
    until(fun() -> erlang:memory(total) - Total < Native + 10000000 end).

a_reference_outlives_its_process(_Config) ->
    Table = ets:new(references, [public]),
    {Owner, Monitor} = spawn_monitor(fun() ->
        {ok, Ref} = ?POOL:acquire_connection_state(#{kept => true}),
        {ok, Buffer, _} = ?POOL:acquire_message_buffer(10),
        {ok, 5} = ?POOL:append_message_buffer(Buffer, "frame"),
        ets:insert(Table, [{state, Ref}, {buffer, Buffer}])
    end),
    receive {'DOWN', Monitor, process, Owner, normal} -> ok end,
    in_parallel(1, fun(_) ->
        [{state, Ref}] = ets:lookup(Table, state),
        [{buffer, Buffer}] = ets:lookup(Table, buffer),
        ?assertEqual({ok, #{kept => true}}, ?POOL:connection_state(Ref)),
        ?assertEqual(ok, ?POOL:update_connection_state(Ref, #{more => 1})),
        ?assertEqual({ok, #{kept => true, more => 1}}, ?POOL:connection_state(Ref)),
        ?assertEqual({ok, 6}, ?POOL:append_message_buffer(Buffer, "\n")),
        ?assertEqual({ok, <<"frame">>}, ?POOL:next_message(Buffer))
    end),
    ?assertMatch(#{in_use := 1}, ?POOL:pool_stats()),
    ets:delete(Table),
    until(fun() -> maps:get(in_use, ?POOL:pool_stats()) =:= 0 end).

%% A hundred owners make a million calls; each state has its owner's mark, and old handles are
%% tried all the while.
a_released_handle_stays_released(_Config) ->
    start(20, 50),
    Released = acquire(100),
    release(Released),
    Rounds = 2000,
    Prober = spawn_link(fun() -> probe(Released, 0) end),
    in_parallel(100, fun(Owner) ->
        lists:foldl(
            fun(Round, Old) ->
                Mark = {Owner, Round, self()},
                {ok, Ref} = ?POOL:acquire_connection_state(#{mark => Mark}),
                {ok, #{mark := Mark} = First} = ?POOL:connection_state(Ref),
                1 = map_size(First),
                ok = ?POOL:update_connection_state(Ref, #{round => Round}),
                {ok, #{mark := Mark, round := Round}} = ?POOL:connection_state(Ref),
                {error, released} = ?POOL:connection_state(Old),
                ok = ?POOL:release_connection_state(Ref),
                Ref
            end,
            hd(Released),
            lists:seq(1, Rounds)
        )
    end),
    Prober ! {stop, self()},
    receive {probed, Times} -> ?assert(Times > 0) end,
    ?assertMatch(#{in_use := 0}, ?POOL:pool_stats()).

probe(Released, Times) ->
    lists:foreach(
        fun(Ref) ->
            {error, released} = ?POOL:connection_state(Ref),
            {error, released} = ?POOL:update_connection_state(Ref, #{stolen => true}),
            ok = ?POOL:release_connection_state(Ref)
        end,
        Released
    ),
    receive
        {stop, From} -> From ! {probed, Times + 1}
    after 0 -> probe(Released, Times + 1)
    end.

a_killed_pool_process_changes_nothing(_Config) ->
    start(100, 500),
    Refs = acquire(1000),
    Before = ?POOL:pool_stats(),
    kill(),
    %% No process: what is in use works, and acquisitions go on.
    check(Refs),
    {ok, Extra} = ?POOL:acquire_connection_state(#{extra => true}),
    ?assertExit({noproc, _}, ?POOL:pool_stats()),
    start(),
    Between = ?POOL:pool_stats(),
    ?assertEqual(1001, maps:get(in_use, Between)),
    ?assertEqual(
        maps:get(reused, Before) + maps:get(created, Before) + 1,
        maps:get(reused, Between) + maps:get(created, Between)
    ),
    ?assertEqual({ok, #{extra => true}}, ?POOL:connection_state(Extra)),
    check(Refs),
    [?assertEqual(ok, ?POOL:update_connection_state(R, #{again => R})) || R <- Refs],
    [?assertMatch({ok, #{again := R}}, ?POOL:connection_state(R)) || R <- Refs],
    release([Extra | Refs]),
    ?assertMatch(#{in_use := 0, available := 500}, ?POOL:pool_stats()).

check(Refs) ->
    [?assertMatch({ok, #{n := N}}, ?POOL:connection_state(R)) || {N, R} <- lists:enumerate(Refs)].

an_orderly_stop_frees_what_is_idle(_Config) ->
    Refs = acquire(10),
    {ok, Buffer, _} = ?POOL:acquire_message_buffer(10),
    {ok, Spare, _} = ?POOL:acquire_message_buffer(10),
    {ok, 5} = ?POOL:append_message_buffer(Buffer, "frame"),
    {ok, 5} = ?POOL:append_message_buffer(Spare, "spare"),
    ok = ?POOL:release_message_buffer(Spare),
    #{reused := Reused, created := Created} = ?POOL:pool_stats(),
    stop(),
    ?assertEqual({error, not_started}, ?POOL:acquire_connection_state(#{})),
    ?assertEqual({error, not_started}, ?POOL:acquire_message_buffer(1)),
    ?assertEqual(0, idle()),
    ?assertMatch({0, 0, _}, erlmcp_memory_nif:buffer_stats()),
    check(Refs),
    [?assertEqual(ok, ?POOL:update_connection_state(R, #{late => true})) || R <- Refs],
    release(Refs),
    ?assertEqual({ok, 6}, ?POOL:append_message_buffer(Buffer, "\n")),
    ?assertEqual({ok, <<"frame">>}, ?POOL:next_message(Buffer)),
    ?assertEqual(0, idle()),
    ?assertEqual({0, 0, 0}, erlmcp_memory_nif:buffer_stats()),
    start(),
    ?assertMatch(
        #{in_use := 0, available := 1000, reused := Reused, created := Created}, ?POOL:pool_stats()
    ).

unknown_messages_do_no_harm(_Config) ->
    Pid = whereis(?POOL),
    Pid ! hello,
    Pid ! {prepare, many},
    Pid ! {timeout, make_ref(), other},
    Pid ! {'EXIT', spawn(fun() -> ok end), kill},
    gen_server:cast(Pid, hello),
    ?assertEqual({error, unknown_call}, gen_server:call(Pid, hello)),
    ?assertEqual(Pid, whereis(?POOL)),
    ?assertMatch(#{in_use := 0}, ?POOL:pool_stats()).
