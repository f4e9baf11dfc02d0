%% What the suites of the pool share.
-module(erlmcp_pool_help).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_wait_help, [until/1]).

-export([
    acquire/1,
    badarg/3,
    clear/0,
    gone/1,
    holding/1,
    idle/0,
    in_parallel/2,
    kill/0,
    logging/2,
    release/1,
    release_buffers/1,
    start/0,
    start/2,
    start_alone/0,
    stop/0,
    tick/1,
    warnings/0
]).

%% Called by logger.
-export([log/2]).

-define(POOL, erlmcp_memory_pool).

%% No pool, default settings, nothing in use.
clear() ->
    stop(),
    application:unset_env(erlmcp, memory_pool_size),
    application:unset_env(erlmcp, memory_pool_max_size),
    until(fun() ->
        lists:foreach(fun erlang:garbage_collect/1, processes()),
        element(1, erlmcp_memory_nif:pool_stats()) =:= 0
    end).

start() ->
    {ok, Pid} = ?POOL:start_link(),
    unlink(Pid),
    Pid.

%% By a process that may end.
start_alone() ->
    {ok, start()}.

start(Size, Max) ->
    stop(),
    application:set_env(erlmcp, memory_pool_size, Size),
    application:set_env(erlmcp, memory_pool_max_size, Max),
    start().

stop() ->
    case whereis(?POOL) of
        undefined -> ok;
        _ -> gen_server:stop(?POOL)
    end.

%% The call raises badarg, and the exception says which argument is wrong and why.
badarg(Position, Function, Args) ->
    try apply(?POOL, Function, Args) of
        Result -> ct:fail({no_badarg, Function, Args, Result})
    catch
        error:Reason:Stack ->
            ?assertEqual(badarg, Reason),
            ?assertMatch([{?POOL, Function, Args, _} | _], Stack),
            [{_, _, _, Info} | _] = Stack,
            #{module := Module} = proplists:get_value(error_info, Info),
            Texts = Module:format_error(Reason, Stack),
            ?assertMatch([Position], maps:keys(Texts)),
            ?assert(byte_size(maps:get(Position, Texts)) > 5)
    end.

release_buffers(Buffers) ->
    [?assertEqual(ok, ?POOL:release_message_buffer(Ref)) || Ref <- Buffers].

acquire(Count) ->
    [
        begin
            {ok, Ref} = ?POOL:acquire_connection_state(#{n => N}),
            Ref
        end
     || N <- lists:seq(1, Count)
    ].

release(Refs) ->
    lists:foreach(fun(Ref) -> ok = ?POOL:release_connection_state(Ref) end, Refs).

idle() ->
    element(2, erlmcp_memory_nif:pool_stats()).

%% A tick of the pool's process out of turn, done when this returns.
tick(Tick) ->
    ?POOL ! Tick,
    _ = ?POOL:pool_stats(),
    ok.

kill() ->
    Pid = whereis(?POOL),
    Monitor = monitor(process, Pid),
    exit(Pid, kill),
    receive {'DOWN', Monitor, process, Pid, _} -> ok end.

%% Runs Fun(1) to Fun(Count) in processes of their own; fails when one of them does.
in_parallel(Count, Fun) ->
    Running = [spawn_monitor(fun() -> Fun(N) end) || N <- lists:seq(1, Count)],
    [
        receive
            {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
        end
     || {Pid, Monitor} <- Running
    ],
    ok.

%% A process that holds what `Make' returns, once it has it.
holding(Make) ->
    Self = self(),
    Pid = spawn_link(fun() ->
        %% Where the compiler does not see that nobody reads it.
        put(held, Make()),
        %% What making it left behind is no part of it.
        true = erlang:garbage_collect(),
        Self ! {self(), holds},
        receive
            {stop, Self} -> ok
        end
    end),
    receive
        {Pid, holds} -> {Pid, {held, Pid}}
    after 60000 -> ct:fail(nothing_held)
    end.

gone(Pid) ->
    Ref = monitor(process, Pid),
    Pid ! {stop, self()},
    receive
        {'DOWN', Ref, process, Pid, _} -> ok
    after 60000 -> ct:fail({still_there, Pid})
    end.

%% Calls Fun() while warnings with these words in them are collected.
logging(Words, Fun) ->
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => {self(), Words}}),
    try
        Fun()
    after
        logger:remove_handler(?MODULE)
    end.

%% A logger handler. What the library logs are reports of its domain.
log(#{level := warning, msg := {report, #{label := {erlmcp_memory, _}} = Report}} = Event, #{config := {Pid, Words}}) ->
    #{meta := #{domain := [erlmcp_memory], report_cb := Text}} = Event,
    {Format, Args} = Text(Report),
    Logged = lists:flatten(io_lib:format(Format, Args)),
    case string:find(Logged, Words) of
        nomatch -> ok;
        _ -> Pid ! {warning, Logged}
    end;
log(_Event, _Config) ->
    ok.

%% The warnings that came since the last call.
warnings() ->
    receive
        {warning, Text} -> [Text | warnings()]
    after 0 -> []
    end.
