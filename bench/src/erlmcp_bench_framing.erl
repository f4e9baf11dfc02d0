%% @doc Messages that arrive in fragments: a message buffer beside the usual binary that is
%% appended to and split. Runs in a VM of its own, see `erlmcp_bench_pool'.
-module(erlmcp_bench_framing).

-export([run/1]).

-import(erlmcp_bench_measure, [
    in_own_process/1, medians/1, nanoseconds_each/2, settled_total/0
]).

-define(P, erlmcp_memory_pool).
-define(READERS, 10000).
%% What a TCP segment over Ethernet carries.
-define(SEGMENT, 1448).

%% @doc `messages': for each number of fragments, and for messages of as many segments and for
%% ones of 16 KiB, the nanoseconds that a message takes in both ways, the median of rounds in turn.
%% `readers': bytes that a reader holds in each way, idle and with the first 100 bytes of a message
%% after one of 16 KiB.
-spec run(#{fragments := [pos_integer()], ms := pos_integer()}) ->
    #{messages := [map()], readers := map()}.
run(#{fragments := Fragments, ms := Ms}) ->
    {ok, _} = ?P:start_link(),
    Messages = [
        (times(Size, Count, Ms))#{kind => Kind, size => Size, fragments => Count}
     || {Kind, SizeOf} <- [
            {segments, fun(Count) -> Count * ?SEGMENT end}, {fixed, fun(_) -> 16 * 1024 end}
        ],
        Count <- Fragments,
        Size <- [SizeOf(Count)]
    ],
    Readers = maps:from_list([{Way, readers(Way)} || Way <- [ours, binary]]),
    #{messages => Messages, readers => Readers}.

times(Size, Count, Ms) ->
    Parts = parts(Size, Count),
    medians([
        {Way, in_own_process(fun() -> rate(Way, Parts, Ms) end)}
     || _ <- lists:seq(1, 5), Way <- [ours, binary]
    ]).

parts(Size, Count) ->
    Message = <<(binary:copy(<<"m">>, Size - 1))/binary, $\n>>,
    Length = Size div Count,
    split(Message, Length, Count).

%% Each part a binary of its own, as they come from a socket.
split(Rest, _Length, 1) ->
    [binary:copy(Rest)];
split(Bytes, Length, Count) ->
    <<Part:Length/binary, Rest/binary>> = Bytes,
    [binary:copy(Part) | split(Rest, Length, Count - 1)].

rate(ours, Parts, Ms) ->
    {ok, Buffer, _} = ?P:acquire_message_buffer(1),
    Time = nanoseconds_each(fun() -> ours(Buffer, Parts) end, Ms),
    ok = ?P:release_message_buffer(Buffer),
    Time;
rate(binary, Parts, Ms) ->
    nanoseconds_each(fun() -> <<>> = binary(<<>>, Parts) end, Ms).

ours(_Buffer, []) ->
    ok;
ours(Buffer, [Part | Parts]) ->
    {ok, _} = ?P:append_message_buffer(Buffer, Part),
    ours_frames(Buffer),
    ours(Buffer, Parts).

ours_frames(Buffer) ->
    case ?P:next_message(Buffer) of
        {ok, _Frame} -> ours_frames(Buffer);
        more -> ok
    end.

binary(Held, []) ->
    Held;
binary(Held, [Part | Parts]) ->
    binary(binary_frames(<<Held/binary, Part/binary>>), Parts).

binary_frames(Held) ->
    case binary:split(Held, <<"\n">>) of
        [_Frame, Rest] -> binary_frames(Rest);
        [Rest] -> Rest
    end.

%% Bytes for each of many processes that read a message and then wait: for the next one, and in
%% the middle of it. They do not hibernate: a reader is slow because its peer is.
readers(Way) ->
    Nothing = held(fun() -> none end),
    #{
        idle => held(fun() -> read(Way, parts(16 * 1024, 10)) end) - Nothing,
        slow => held(fun() ->
            read(Way, parts(16 * 1024, 10) ++ [binary:copy(<<"p">>, 100)])
        end) - Nothing
    }.

%% Only what is held stays on the heap of the process.
read(ours, Parts) ->
    {ok, Buffer, _} = ?P:acquire_message_buffer(1),
    ok = ours(Buffer, Parts),
    Buffer;
read(binary, Parts) ->
    binary(<<>>, Parts).

held(Make) ->
    true = erlang:garbage_collect(),
    Before = settled_total(),
    Self = self(),
    Pids = [
        spawn_link(fun() ->
            Held = Make(),
            true = erlang:garbage_collect(),
            Self ! {ready, self()},
            receive
                {stop, Held} -> ok
            end
        end)
     || _ <- lists:seq(1, ?READERS)
    ],
    [receive {ready, Pid} -> ok end || Pid <- Pids],
    true = erlang:garbage_collect(),
    After = settled_total(),
    [begin unlink(Pid), exit(Pid, kill) end || Pid <- Pids],
    (After - Before) / ?READERS.
