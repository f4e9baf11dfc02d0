%% On all schedulers, against models, for a few seconds or for STRESS_SECONDS: what models with few
%% threads cannot reach.
-module(erlmcp_project_stress_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_wait_help, [until/1]).

-export([all/0, suite/0]).
-export([
    sixteen_processes_agree_with_a_model_and_leak_nothing/1,
    states_and_messages_are_their_owners/1
]).

-define(POOL, erlmcp_memory_pool).
-define(PROCESSES, 16).

suite() ->
    [{timetrap, {seconds, seconds() + 120}}].

all() ->
    [
        sixteen_processes_agree_with_a_model_and_leak_nothing,
        states_and_messages_are_their_owners
    ].

seconds() ->
    list_to_integer(os:getenv("STRESS_SECONDS", "3")).

%%% Shares and compact states

sixteen_processes_agree_with_a_model_and_leak_nothing(_Config) ->
    #{operations := Operations, left := Left, once := Once} =
        erlmcp_bench_stress:run(?PROCESSES, seconds() * 1000),
    ct:pal("~b operations, ~b bytes left", [Operations, Left]),
    ?assert(Operations > 0),
    ?assert(Left =< Once).

%%% Pooled states and message buffers

%% Processes acquire and release states, hand some to others, and take messages in random pieces,
%% while the pool's sizes change and its memory is trimmed all the time. Nobody ever reads what is
%% not its own, frames stay as they were when their blocks are long in other hands, and in the end
%% nothing is left.
states_and_messages_are_their_owners(_Config) ->
    erlmcp_pool_help:clear(),
    %% The first maximum that is set may be as low as 51.
    _ = erlmcp_pool_help:start(50, 1000),
    End = erlang:monotonic_time(millisecond) + seconds() * 1000,
    {Sizer, Sized} = spawn_monitor(fun() -> resize(End) end),
    Owners = [spawn_monitor(fun() -> owner(N, End) end) || N <- lists:seq(1, ?PROCESSES)],
    Pids = [Pid || {Pid, _} <- Owners],
    [Pid ! {others, Pids} || Pid <- Pids],
    Steps = [
        receive
            {'DOWN', Monitor, process, _, {done, Done}} -> Done;
            {'DOWN', Monitor, process, _, Reason} -> ct:fail(Reason)
        end
     || {_, Monitor} <- Owners
    ],
    receive
        {'DOWN', Sized, process, Sizer, Ended} -> ?assertEqual(normal, Ended)
    end,
    ct:pal("~b steps", [lists:sum(Steps)]),
    ?assert(lists:min(Steps) > 0),
    until(fun() -> maps:get(in_use, ?POOL:pool_stats()) =:= 0 end),
    until(fun() ->
        element(3, erlmcp_memory_nif:buffer_stats()) =:= 0
    end),
    #{in_use := 0, available := Available, total_allocated := Available} = ?POOL:pool_stats(),
    ?assertMatch(#{memory := #{live_bytes := 0}}, ?POOL:pool_info()),
    erlmcp_pool_help:clear().

resize(End) ->
    ok = ?POOL:configure(max_pool_size, 50 + rand:uniform(500)),
    _ = ?POOL:configure(pool_size, rand:uniform(50)),
    _ = erlmcp_memory_nif:pool_trim(),
    case erlang:monotonic_time(millisecond) < End of
        true -> resize(End);
        false -> ok
    end.

owner(Number, End) ->
    _ = rand:seed(exsss, Number),
    Others = receive {others, Pids} -> Pids end,
    {ok, Buffer, _} = ?POOL:acquire_message_buffer(0),
    exit({done, work(Buffer, [], [], Others, End, 0)}).

work(Buffer, States, Frames, Others, End, Done) ->
    case Done rem 16 =:= 0 andalso erlang:monotonic_time(millisecond) >= End of
        true ->
            lists:foreach(fun own/1, Frames),
            Done;
        false ->
            Received = received(States),
            {NextStates, NextFrames} = step(rand:uniform(8), Buffer, Received, Frames, Others),
            work(Buffer, NextStates, NextFrames, Others, End, Done + 1)
    end.

received(States) ->
    receive
        {take, State} -> received([State | States])
    after 0 -> States
    end.

step(N, _Buffer, States, Frames, _Others) when N =< 3, length(States) < 40 ->
    %% Keys that others do not have: what a state kept of its last owner would show.
    Content = #{
        owner => self(),
        number => rand:uniform(1000000),
        {key, rand:uniform(1000)} => rand:bytes(rand:uniform(400))
    },
    {ok, Ref} = ?POOL:acquire_connection_state(Content),
    {[{Ref, Content} | States], Frames};
step(4, _Buffer, [State | States], Frames, Others) ->
    lists:nth(rand:uniform(length(Others)), Others) ! {take, State},
    {States, Frames};
step(5, _Buffer, [{Ref, Content} | States], Frames, _Others) ->
    ok = ?POOL:update_connection_state(Ref, #{number => 0}),
    {[{Ref, Content#{number := 0}} | States], Frames};
step(N, _Buffer, [{Ref, Content} | States], Frames, _Others) when N =< 6 ->
    ?assertEqual({ok, Content}, ?POOL:connection_state(Ref)),
    ok = ?POOL:release_connection_state(Ref),
    ?assertEqual({error, released}, ?POOL:connection_state(Ref)),
    {States, Frames};
step(_, Buffer, States, Frames, _Others) ->
    Messages = [
        binary:replace(rand:bytes(rand:uniform(1 bsl rand:uniform(15))), [<<"\n">>, <<"\r">>], <<".">>, [global])
     || _ <- lists:seq(1, rand:uniform(3))
    ],
    Taken = pieces(Buffer, iolist_to_binary([[M, $\n] || M <- Messages]), []),
    ?assertEqual(Messages, Taken),
    lists:foreach(fun own/1, lists:nthtail(min(20, length(Frames)), Frames)),
    Kept = [{Frame, erlang:crc32(Frame)} || Frame <- Taken],
    {States, Kept ++ lists:sublist(Frames, 20)}.

own({Frame, Sum}) ->
    ?assertEqual(Sum, erlang:crc32(Frame)).

pieces(_Buffer, <<>>, Taken) ->
    lists:append(lists:reverse(Taken));
pieces(Buffer, Bytes, Taken) ->
    Length = rand:uniform(byte_size(Bytes)),
    <<Piece:Length/binary, Rest/binary>> = Bytes,
    {ok, _} = ?POOL:append_message_buffer(Buffer, Piece),
    pieces(Buffer, Rest, [frames(Buffer) | Taken]).

frames(Buffer) ->
    case ?POOL:next_message(Buffer) of
        {ok, Frame} -> [Frame | frames(Buffer)];
        more -> []
    end.
