%% Message buffers: zero bytes, frames, limits, iodata; and wrong arguments of every call.
-module(erlmcp_pool_buffer_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_pool_help, [
    badarg/3,
    clear/0,
    release_buffers/1,
    start/0
]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    released_buffers_stay_released/1,
    zero_bytes/1,
    zero_bytes_cause_no_collections/1,
    zero_bytes_are_nobodys_binaries/1,
    zero_bytes_take_no_memory_and_outlive_the_pool/1,
    a_burst_over_the_limit_passes_in_pieces/1,
    frames/1,
    frames_never_change/1,
    large_frames/1,
    message_limits/1,
    idle_buffers_hold_no_block/1,
    any_iodata_is_appended/1,
    what_is_no_iodata_changes_nothing/1,
    shared_iolists_are_refused/1,
    wrong_arguments/1
]).

%% Called in a node of its own.
-export([resident_and_sums/0]).

-include("erlmcp_memory.hrl").

-define(POOL, erlmcp_memory_pool).
-define(LIMIT, 16777216).

all() ->
    [
        released_buffers_stay_released,
        zero_bytes,
        zero_bytes_cause_no_collections,
        zero_bytes_are_nobodys_binaries,
        zero_bytes_take_no_memory_and_outlive_the_pool,
        a_burst_over_the_limit_passes_in_pieces,
        frames,
        frames_never_change,
        large_frames,
        message_limits,
        idle_buffers_hold_no_block,
        any_iodata_is_appended,
        what_is_no_iodata_changes_nothing,
        shared_iolists_are_refused,
        wrong_arguments
    ].

init_per_testcase(_Case, Config) ->
    clear(),
    start(),
    Config.

end_per_testcase(_Case, _Config) ->
    clear().

%%% Message buffers
released_buffers_stay_released(_Config) ->
    {ok, Old, _} = ?POOL:acquire_message_buffer(10),
    {ok, 4} = ?POOL:append_message_buffer(Old, "old\n"),
    ok = ?POOL:release_message_buffer(Old),
    {ok, New, _} = ?POOL:acquire_message_buffer(10),
    {ok, 4} = ?POOL:append_message_buffer(New, "new\n"),
    ?assertEqual({error, released}, ?POOL:append_message_buffer(Old, "x")),
    ?assertEqual({error, released}, ?POOL:append_message_buffer(Old, [])),
    ?assertEqual({error, released}, ?POOL:append_message_buffer(Old, <<0:(8 * 100000)>>)),
    ?assertEqual({error, released}, ?POOL:next_message(Old)),
    ?assertEqual({error, released}, ?POOL:message_buffer(Old)),
    ?assertEqual(ok, ?POOL:release_message_buffer(Old)),
    ?assertEqual({ok, <<"new\n">>}, ?POOL:message_buffer(New)),
    ?assertEqual({ok, <<"new">>}, ?POOL:next_message(New)).


zero_bytes(_Config) ->
    [
        begin
            {ok, Ref, Binary} = ?POOL:acquire_message_buffer(Size),
            ?assert(is_reference(Ref)),
            ?assertEqual(max(Size, 65536), byte_size(Binary)),
            ?assert(binary:copy(<<0>>, byte_size(Binary)) =:= Binary),
            {ok, _} = ?POOL:append_message_buffer(Ref, binary:copy(<<255>>, 65536)),
            ?assert(binary:copy(<<0>>, byte_size(Binary)) =:= Binary)
        end
     || Size <- [0, 1, 65535, 65536, 65537, 1000000, ?LIMIT]
    ],
    TooLarge = {error, {message_too_large, ?LIMIT}},
    [
        ?assertEqual(TooLarge, ?POOL:acquire_message_buffer(Size))
     || Size <- [?LIMIT + 1, 1 bsl 40, 1 bsl 64, 1 bsl 1000]
    ],
    %% The zeros of all of them are the same memory.
    Total = erlang:memory(total),
    Many = [?POOL:acquire_message_buffer(?LIMIT) || _ <- lists:seq(1, 1000)],
    ?assert(erlang:memory(total) - Total < 50000000),
    1000 = length(Many),
    ok.

%% They were 64 KB of garbage for each buffer, as OTP 25 and 26 see it.
zero_bytes_cause_no_collections(_Config) ->
    {Pid, Monitor} = spawn_monitor(fun() ->
        receive go -> ok end,
        [
            begin
                {ok, Ref, _} = ?POOL:acquire_message_buffer(1024),
                ok = ?POOL:release_message_buffer(Ref)
            end
         || _ <- lists:seq(1, 2000)
        ]
    end),
    1 = erlang:trace(Pid, true, [garbage_collection]),
    Pid ! go,
    receive {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
    after 60_000 -> ct:fail(timeout)
    end,
    Delivered = erlang:trace_delivered(Pid),
    receive {trace_delivered, Pid, Delivered} -> ok
    after 60_000 -> ct:fail(timeout)
    end,
    Collections = collections(Pid),
    ?assert(Collections > 0),
    ?assert(Collections =< 60, Collections).

collections(Pid) ->
    receive
        {trace, Pid, Start, _} when Start =:= gc_minor_start; Start =:= gc_major_start ->
            1 + collections(Pid);
        {trace, Pid, _, _} ->
            collections(Pid)
    after 0 -> 0
    end.

zero_bytes_are_nobodys_binaries(_Config) ->
    Limit = #{
        size => 1_000_000,
        kill => true,
        error_logger => false,
        %% From OTP 27 on; not looked at before.
        include_shared_binaries => true
    },
    {Pid, Monitor} = spawn_monitor(fun() ->
        _ = process_flag(max_heap_size, Limit),
        Held = [?POOL:acquire_message_buffer(Size) || Size <- [?LIMIT, 100_000], _ <- lists:seq(1, 100)],
        true = erlang:garbage_collect(),
        {binary, []} = process_info(self(), binary),
        exit({held, length(Held)})
    end),
    receive {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual({held, 200}, Reason)
    after 60_000 -> ct:fail(timeout)
    end.

zero_bytes_take_no_memory_and_outlive_the_pool(_Config) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    try
        {Before, After, Sums} = peer:call(Peer, ?MODULE, resident_and_sums, [], 60_000),
        [?assertEqual(1, length(lists:usort(Of))) || Of <- Sums],
        ?assert(After - Before < ?LIMIT div 2, {Before, After})
    after
        peer:stop(Peer)
    end.

%% The resident bytes before and after all zeros were read, and of each size what a buffer came with
%% at the start, after the module was loaded again, after the pool was killed, and after a stop.
resident_and_sums() ->
    Again = fun() ->
        {ok, Pid} = ?POOL:start_link(),
        unlink(Pid),
        sums()
    end,
    {error, not_started} = ?POOL:acquire_message_buffer(1),
    {ok, Pid} = ?POOL:start_link(),
    unlink(Pid),
    #memory_snapshot{resident_memory = Before} = erlmcp_memory_profiler:measure_memory_snapshot(),
    First = sums(),
    #memory_snapshot{resident_memory = After} = erlmcp_memory_profiler:measure_memory_snapshot(),
    code:purge(?POOL),
    {module, ?POOL} = code:load_file(?POOL),
    Loaded = sums(),
    exit(Pid, kill),
    ok = until(fun() -> whereis(?POOL) =:= undefined end),
    Killed = sums(),
    Restarted = Again(),
    ok = gen_server:stop(?POOL),
    {error, not_started} = ?POOL:acquire_message_buffer(1),
    Stopped = Again(),
    {Before, After, lists:zipwith3(fun(A, B, {C, D, E}) -> [A, B, C, D, E] end, First, Loaded,
        lists:zip3(Killed, Restarted, Stopped))}.

sums() ->
    [
        begin
            {ok, _, Zeros} = ?POOL:acquire_message_buffer(Size),
            Bytes = max(Size, 65536),
            Bytes = byte_size(Zeros),
            {Bytes, erlang:crc32(Zeros)}
        end
     || Size <- [0, 65536, 65537, 131072, 1000000, ?LIMIT - 1, ?LIMIT]
    ].

%% The limit is on what is held. An append is all or nothing, whatever the messages are.
a_burst_over_the_limit_passes_in_pieces(_Config) ->
    Message = <<"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n">>,
    Frame = binary:part(Message, 0, byte_size(Message) - 1),
    Burst = binary:copy(Message, 350_000),
    {ok, Ref, _} = ?POOL:acquire_message_buffer(1024),
    {ok, 3} = ?POOL:append_message_buffer(Ref, <<"12\n">>),
    TooLarge = {error, {message_too_large, ?LIMIT}},
    ?assertEqual(TooLarge, ?POOL:append_message_buffer(Ref, Burst)),
    ?assertEqual({ok, <<"12\n">>}, ?POOL:message_buffer(Ref)),
    ?assertEqual({ok, <<"12">>}, ?POOL:next_message(Ref)),
    ?assertEqual(TooLarge, ?POOL:append_message_buffer(Ref, [Burst])),
    ?assertEqual(more, ?POOL:next_message(Ref)),
    Taken = in_pieces(Ref, Burst, Frame, 0),
    ?assertEqual(350_000, Taken),
    ?assertEqual({ok, <<>>}, ?POOL:message_buffer(Ref)).

in_pieces(Ref, <<Piece:1_000_000/binary, Rest/binary>>, Frame, Taken) ->
    {ok, _} = ?POOL:append_message_buffer(Ref, Piece),
    in_pieces(Ref, Rest, Frame, take(Ref, Frame, Taken));
in_pieces(Ref, Piece, Frame, Taken) ->
    {ok, _} = ?POOL:append_message_buffer(Ref, Piece),
    take(Ref, Frame, Taken).

take(Ref, Frame, Taken) ->
    case ?POOL:next_message(Ref) of
        {ok, Frame} -> take(Ref, Frame, Taken + 1);
        more -> Taken
    end.

frames(_Config) ->
    {ok, Ref, _} = ?POOL:acquire_message_buffer(10),
    ?assertEqual(more, ?POOL:next_message(Ref)),
    ?assertEqual({ok, <<>>}, ?POOL:message_buffer(Ref)),
    ?assertEqual({ok, 0}, ?POOL:append_message_buffer(Ref, [])),
    ?assertEqual({ok, 3}, ?POOL:append_message_buffer(Ref, "on\r")),
    ?assertEqual(more, ?POOL:next_message(Ref)),
    ?assertEqual({ok, 15}, ?POOL:append_message_buffer(Ref, <<"\n\n\r\n\rtwo\nthr">>)),
    ?assertEqual({ok, <<"on">>}, ?POOL:next_message(Ref)),
    ?assertEqual({ok, <<>>}, ?POOL:next_message(Ref)),
    ?assertEqual({ok, <<>>}, ?POOL:next_message(Ref)),
    ?assertEqual({ok, <<"\rtwo\nthr">>}, ?POOL:message_buffer(Ref)),
    ?assertEqual({ok, <<"\rtwo">>}, ?POOL:next_message(Ref)),
    ?assertEqual(more, ?POOL:next_message(Ref)),
    ?assertEqual({ok, <<"thr">>}, ?POOL:message_buffer(Ref)),
    ?assertEqual({ok, 6}, ?POOL:append_message_buffer(Ref, "ee\n")),
    ?assertEqual({ok, <<"three">>}, ?POOL:next_message(Ref)),
    ?assertEqual({ok, <<>>}, ?POOL:message_buffer(Ref)),
    %% A message in pieces of one byte.
    Message = binary:copy(<<"0123456789">>, 1000),
    [?POOL:append_message_buffer(Ref, <<Byte>>) || <<Byte>> <= Message],
    ?assertEqual(more, ?POOL:next_message(Ref)),
    {ok, 10002} = ?POOL:append_message_buffer(Ref, "\r\n"),
    ?assertEqual({ok, Message}, ?POOL:next_message(Ref)).

frames_never_change(_Config) ->
    {ok, Ref, _} = ?POOL:acquire_message_buffer(10),
    Write = fun(Byte, Size) ->
        Frame = binary:copy(<<Byte>>, Size),
        {ok, _} = ?POOL:append_message_buffer(Ref, [Frame, $\n]),
        Frame
    end,
    Taken = [
        begin
            Frame = Write($a + N rem 26, Size),
            {ok, Held} = ?POOL:message_buffer(Ref),
            {ok, Next} = ?POOL:next_message(Ref),
            {Frame, Held, Next}
        end
     || N <- lists:seq(1, 60), Size <- [1, 65, 5000, 100000]
    ],
    ok = ?POOL:release_message_buffer(Ref),
    {ok, Other, _} = ?POOL:acquire_message_buffer(10),
    [
        begin
            {ok, _} = ?POOL:append_message_buffer(Other, binary:copy(<<"!">>, Size)),
            ok
        end
     || Size <- [1, 65, 5000, 100000]
    ],
    [
        begin
            ?assert(Next =:= Frame),
            ?assert(Held =:= <<Frame/binary, "\n">>)
        end
     || {Frame, Held, Next} <- Taken
    ].

large_frames(_Config) ->
    {ok, Ref, _} = ?POOL:acquire_message_buffer(10),
    Large = binary:copy(<<"0123456789abcdef">>, 500000),
    {ok, _} = ?POOL:append_message_buffer(Ref, ["small\n", Large]),
    {ok, Size} = ?POOL:append_message_buffer(Ref, "\r\nrest"),
    ?assertEqual(6 + 8000000 + 6, Size),
    ?assertEqual({ok, <<"small">>}, ?POOL:next_message(Ref)),
    {dirty, {ok, Held}} = erlmcp_optimizer_lane_help:call(buffer_held, [Ref]),
    ?assertEqual(8000006, byte_size(Held)),
    {dirty, {ok, Frame}} = erlmcp_optimizer_lane_help:call(buffer_next, [Ref]),
    ?assert(Frame =:= Large),
    ?assertEqual(more, ?POOL:next_message(Ref)),
    ?assertEqual({ok, <<"rest">>}, ?POOL:message_buffer(Ref)),
    %% The short rest does not keep the megabytes.
    {_, _, Live} = erlmcp_memory_nif:buffer_stats(),
    ?assert(Live < 10000).

message_limits(_Config) ->
    {ok, Ref, _} = ?POOL:acquire_message_buffer(10),
    TooLarge = {error, {message_too_large, ?LIMIT}},
    Mega = binary:copy(<<"m">>, 1 bsl 20),
    {ok, 4} = ?POOL:append_message_buffer(Ref, "1234"),
    ?assertEqual(TooLarge, ?POOL:append_message_buffer(Ref, lists:duplicate(16, Mega))),
    ?assertEqual(TooLarge, ?POOL:append_message_buffer(Ref, binary:copy(<<"m">>, ?LIMIT))),
    ?assertEqual(TooLarge, ?POOL:append_message_buffer(Ref, lists:duplicate(100000, Mega))),
    ?assertEqual({ok, <<"1234">>}, ?POOL:message_buffer(Ref)),
    [{ok, _} = ?POOL:append_message_buffer(Ref, Mega) || _ <- lists:seq(1, 15)],
    {ok, ?LIMIT} = ?POOL:append_message_buffer(Ref, binary:part(Mega, 0, (1 bsl 20) - 4)),
    ?assertEqual(TooLarge, ?POOL:append_message_buffer(Ref, "x")),
    ?assertEqual({ok, ?LIMIT}, ?POOL:append_message_buffer(Ref, "")),
    ?assertEqual(more, ?POOL:next_message(Ref)).

idle_buffers_hold_no_block(_Config) ->
    Buffers = [
        begin
            {ok, Ref, _} = ?POOL:acquire_message_buffer(65536),
            Ref
        end
     || _ <- lists:seq(1, 10000)
    ],
    ?assertEqual({0, 0, 0}, erlmcp_memory_nif:buffer_stats()),
    [{ok, 2001} = ?POOL:append_message_buffer(Ref, [<<0:16000>>, $\n]) || Ref <- Buffers],
    {_, _, Live} = erlmcp_memory_nif:buffer_stats(),
    ?assert(Live >= 20010000),
    [{ok, <<0:16000>>} = ?POOL:next_message(Ref) || Ref <- Buffers],
    {Kept, Idle, 0} = erlmcp_memory_nif:buffer_stats(),
    ?assert(Kept > 0),
    ?assert(Idle =< 32 * 1024 * 1024),
    #{buffer_pool := #{queue_length := Kept}} = ?POOL:pool_info(),
    release_buffers(Buffers).

any_iodata_is_appended(_Config) ->
    {ok, Ref, _} = ?POOL:acquire_message_buffer(10),
    <<_:3, Unaligned:5/binary, _/bits>> = <<"0123456789">>,
    Data = [
        [[binary:copy(<<N>>, N), $x] || N <- [0, 1, 255, 256, 257, 500, 256, 3, 70_000]],
        "text", [], <<>>, [[[]]], [1 | <<2, 3>>], [[[[4] | <<5>>] | <<>>]], 0, 255, Unaligned,
        lists:seq(0, 255), binary:copy(<<"b">>, 300), [[<<"x">>, $y] | [<<"z">>]],
        lists:foldl(fun(N, List) -> [List, N rem 256] end, [], lists:seq(1, 1000)),
        lists:foldl(fun(N, List) -> [N rem 256 | List] end, <<"tail">>, lists:seq(1, 100000))
    ],
    [
        begin
            IoData = if is_integer(Part) -> [Part]; true -> Part end,
            Bytes = iolist_to_binary(IoData),
            {ok, Held} = ?POOL:append_message_buffer(Ref, IoData),
            {ok, Binary} = ?POOL:message_buffer(Ref),
            ?assertEqual(Held, byte_size(Binary)),
            ?assertEqual(Bytes, binary:part(Binary, Held, -byte_size(Bytes)))
        end
     || Part <- Data ++ [Data]
    ].

what_is_no_iodata_changes_nothing(_Config) ->
    {ok, Ref, _} = ?POOL:acquire_message_buffer(10),
    {ok, 3} = ?POOL:append_message_buffer(Ref, "abc"),
    Long = lists:duplicate(100000, $x),
    [
        begin
            badarg(2, append_message_buffer, [Ref, Data]),
            ?assertEqual({ok, <<"abc">>}, ?POOL:message_buffer(Ref))
        end
     || Data <- [
            atom, 1, 1.0, {}, #{}, self(), make_ref(), <<1:3>>, [a], [256], [-1], [1 bsl 70],
            [1 | 2], [[1 | a]], [<<1:1>>], ["ok" | <<2:7>>], [1.0], Long ++ [bad], [Long | 7]
        ]
    ].

%% Lists that share their parts and so name more bytes, or more cells, than anybody has.
shared_iolists_are_refused(_Config) ->
    {ok, Ref, _} = ?POOL:acquire_message_buffer(10),
    {ok, 3} = ?POOL:append_message_buffer(Ref, "abc"),
    [
        begin
            Shared = lists:foldl(fun(_, List) -> [List | List] end, Seed, lists:seq(1, 60)),
            ?assertEqual(
                {error, {message_too_large, ?LIMIT}}, ?POOL:append_message_buffer(Ref, Shared)
            )
        end
     || Seed <- [[$a], [<<"bytes">>], [<<>>], []]
    ],
    ?assertEqual({ok, <<"abc">>}, ?POOL:message_buffer(Ref)).

%%% Wrong arguments

wrong_arguments(_Config) ->
    {ok, State} = ?POOL:acquire_connection_state(#{}),
    {ok, Buffer, _} = ?POOL:acquire_message_buffer(1),
    Counters = ets:new(table, []),
    Foreign = [
        make_ref(), ets:info(Counters, id), atomics:new(1, []), State, Buffer, self(), ref, 1, "", #{}
    ],
    [
        begin
            badarg(1, connection_state, [Ref]),
            badarg(1, release_connection_state, [Ref]),
            badarg(1, update_connection_state, [Ref, #{}])
        end
     || Ref <- Foreign, Ref =/= State
    ],
    [
        begin
            badarg(1, release_message_buffer, [Ref]),
            badarg(1, append_message_buffer, [Ref, <<>>]),
            badarg(1, next_message, [Ref]),
            badarg(1, message_buffer, [Ref])
        end
     || Ref <- Foreign, Ref =/= Buffer
    ],
    [
        begin
            badarg(1, acquire_connection_state, [NotMap]),
            badarg(2, update_connection_state, [State, NotMap])
        end
     || NotMap <- [[], [{a, 1}], {}, a, 1, <<>>, 1 bsl 100, State]
    ],
    [
        badarg(1, acquire_message_buffer, [Size])
     || Size <- [-1, -(1 bsl 80), 1.0, "1", a, #{}]
    ],
    ?assertEqual({ok, #{}}, ?POOL:connection_state(State)),
    ?assertEqual({ok, <<>>}, ?POOL:message_buffer(Buffer)).
