%% @doc `make bench-take': messages that are appended and taken in one call, beside the best that
%% plain Erlang has for it, `<<Held/binary, Data/binary>>' and `binary:split(.., .., [global])'.
%%
%% The text that is printed says first what was measured, then which marks are met.
-module(erlmcp_bench_take).

-export([main/1]).
-export([times/1, burst/0]).

-import(erlmcp_bench_measure, [in_own_process/1, medians/1, nanoseconds_each/2]).
-import(erlmcp_bench_table, [
    row/1, mark/5, truth/3, micros/1, ratio/2, print/2, print_machine/0
]).

-define(P, erlmcp_memory_pool).
%% What a TCP segment over Ethernet carries.
-define(SEGMENT, 1448).
-define(ROUNDS, 9).
-define(BURST, 18000000).

%% @doc Each measurement runs for this many milliseconds, in nine rounds of both ways in turn.
-spec main([string()]) -> ok.
main([MsText]) ->
    Ms = list_to_integer(MsText),
    print_machine(),
    Times = erlmcp_bench_vm:run("messages", ?MODULE, times, [Ms]),
    Frames = erlmcp_bench_vm:run("a burst", ?MODULE, burst, []),
    row(["", "ours", "plain", "ratio"]),
    [
        row([name(Kind), micros(Ours), micros(Plain), ratio(Plain, Ours)])
     || {Kind, #{ours := Ours, plain := Plain}} <- Times
    ],
    print("~nMarks~n", []),
    Ratio = fun(Kind) ->
        #{ours := Ours, plain := Plain} = proplists:get_value(Kind, Times),
        Plain / Ours
    end,
    mark(1, "a message in one piece, times as fast", at_least, Ratio({1, ?SEGMENT}), 1.3),
    mark(2, "100 segments, times as fast", at_least, Ratio({100, 100 * ?SEGMENT}), 5),
    mark(3, "16 KiB in 100 pieces, times as fast", at_least, Ratio({100, 16384}), 3),
    truth(4, "18 MB of short messages in one call", Frames =:= ?BURST div 50).

name({messages, Count}) -> io_lib:format("~b messages in one piece", [Count]);
name({Pieces, Size}) -> io_lib:format("~b bytes in ~b", [Size, Pieces]).

%% @doc The nanoseconds of each kind of message in both ways: medians.
-spec times(pos_integer()) -> [{term(), #{ours | plain => number()}}].
times(Ms) ->
    {ok, _} = ?P:start_link(),
    Kinds = [
        {1, 100}, {1, ?SEGMENT}, {1, 16384}, {messages, 20}, {messages, 1000}, {10, 10 * ?SEGMENT},
        {100, 100 * ?SEGMENT}, {100, 16384}
    ],
    [{Kind, both(pieces(Kind), Ms)} || Kind <- Kinds].

both(Pieces, Ms) ->
    medians([
        {Way, in_own_process(fun() -> rate(Way, Pieces, Ms) end)}
     || _ <- lists:seq(1, ?ROUNDS), Way <- [ours, plain]
    ]).

%% Each piece a binary of its own, as they come from a socket.
pieces({messages, Count}) ->
    [binary:copy(<<(binary:copy(<<"m">>, 199))/binary, $\n>>, Count)];
pieces({Count, Size}) ->
    Message = <<(binary:copy(<<"m">>, Size - 1))/binary, $\n>>,
    Each = Size div Count,
    [binary:copy(binary:part(Message, N * Each, Each)) || N <- lists:seq(0, Count - 2)] ++
        [binary:copy(binary:part(Message, (Count - 1) * Each, Size - (Count - 1) * Each))].

rate(ours, Pieces, Ms) ->
    {ok, Buffer, _} = ?P:acquire_message_buffer(0),
    Time = nanoseconds_each(fun() -> ours(Buffer, Pieces) end, Ms),
    ok = ?P:release_message_buffer(Buffer),
    Time;
rate(plain, Pieces, Ms) ->
    nanoseconds_each(fun() -> <<>> = plain(<<>>, Pieces) end, Ms).

ours(_Buffer, []) ->
    ok;
ours(Buffer, [Piece | Pieces]) ->
    {ok, _Frames} = ?P:take_messages(Buffer, Piece),
    ours(Buffer, Pieces).

plain(Held, []) ->
    Held;
plain(Held, [Piece | Pieces]) ->
    plain(rest(binary:split(<<Held/binary, Piece/binary>>, <<"\n">>, [global])), Pieces).

%% The frames are there; the rest is the last.
rest([Rest]) -> Rest;
rest([_Frame | Frames]) -> rest(Frames).

%% @doc How many messages a burst over the limit gives.
-spec burst() -> non_neg_integer().
burst() ->
    {ok, _} = ?P:start_link(),
    {ok, Buffer, _} = ?P:acquire_message_buffer(0),
    Line = <<(binary:copy(<<"m">>, 49))/binary, $\n>>,
    {ok, Frames} = ?P:take_messages(Buffer, binary:copy(Line, ?BURST div 50)),
    {ok, <<>>} = ?P:message_buffer(Buffer),
    length(Frames).
