%% take_messages/2: frames taken while they are found; and a limit for each buffer.
-module(erlmcp_pool_take_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_pool_help, [badarg/3, clear/0, start/0]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    any_pieces_give_the_frames_of_the_whole/1,
    a_burst_over_the_limit_passes/1,
    a_frame_in_a_given_binary_is_a_part_of_it/1,
    a_small_frame_keeps_nothing_else/1,
    frames_that_were_held_come_first/1,
    a_message_over_the_limit_changes_nothing/1,
    wrong_data_changes_nothing/1,
    hostile_iodata_is_refused/1,
    large_work_is_not_done_on_a_normal_scheduler/1,
    a_buffer_has_a_limit_of_its_own/1,
    nothing_is_left/1
]).

-define(POOL, erlmcp_memory_pool).
-define(LIMIT, 16777216).

all() ->
    [
        any_pieces_give_the_frames_of_the_whole,
        a_burst_over_the_limit_passes,
        a_frame_in_a_given_binary_is_a_part_of_it,
        a_small_frame_keeps_nothing_else,
        frames_that_were_held_come_first,
        a_message_over_the_limit_changes_nothing,
        wrong_data_changes_nothing,
        hostile_iodata_is_refused,
        large_work_is_not_done_on_a_normal_scheduler,
        a_buffer_has_a_limit_of_its_own,
        nothing_is_left
    ].

init_per_testcase(_Case, Config) ->
    clear(),
    start(),
    Config.

end_per_testcase(_Case, _Config) ->
    clear().

buffer() ->
    {ok, Buffer, _} = ?POOL:acquire_message_buffer(0),
    Buffer.

held(Buffer) ->
    {ok, Held} = ?POOL:message_buffer(Buffer),
    Held.

%% What plain Erlang makes of the bytes: the frames, and the rest.
lines(Bytes) ->
    {Lines, [Rest]} = lists:split(
        length(binary:split(Bytes, <<"\n">>, [global])) - 1,
        binary:split(Bytes, <<"\n">>, [global])
    ),
    {[without_cr(Line) || Line <- Lines], Rest}.

without_cr(<<>>) -> <<>>;
without_cr(Line) ->
    case binary:last(Line) of
        $\r -> binary:part(Line, 0, byte_size(Line) - 1);
        _ -> Line
    end.

any_pieces_give_the_frames_of_the_whole(_Config) ->
    Seed = rand:seed(exsss),
    ct:pal("~p", [Seed]),
    [
        begin
            Buffer = buffer(),
            Pieces = [piece(rand:uniform(12)) || _ <- lists:seq(1, 30)],
            {Frames, Rest} = lists:foldl(
                fun(Piece, {Before, Held}) ->
                    {Expected, Left} = lines(iolist_to_binary([Held, Piece])),
                    {ok, Taken} = ?POOL:take_messages(Buffer, Piece),
                    ?assert(Taken =:= Expected),
                    ?assert(held(Buffer) =:= Left),
                    {Before ++ Taken, Left}
                end,
                {[], <<>>}, Pieces
            ),
            ?assert({Frames, Rest} =:= lines(iolist_to_binary(Pieces)))
        end
     || _ <- lists:seq(1, 100)
    ].

piece(1) -> <<>>;
piece(2) -> <<"\n">>;
piece(3) -> <<"\r">>;
piece(4) -> <<"a\r\n\r\n\nb\r\r\n">>;
piece(5) -> binary:copy(<<"x">>, rand:uniform(5000));
piece(6) -> <<(binary:copy(<<"y">>, rand:uniform(100_000)))/binary, "\r\n">>;
piece(7) -> [binary:copy(<<"abc\n">>, 3), $\n, [[], "list", [<<"bin\nary">>]] | <<"tail">>];
piece(8) -> binary:copy(<<"{\"a\":1}\n">>, rand:uniform(300));
piece(9) -> [binary:copy(<<"z">>, 300), <<"\r">>, <<"\n">>, binary:copy(<<"line\r\n">>, 100)];
piece(10) ->
    <<_:3, Unaligned:20/binary, _/bits>> = <<0:3, "1234567890\n123456789", 0:5>>,
    Unaligned;
piece(11) -> binary:part(binary:copy(<<"part of a binary\n">>, 50), 7, 700);
piece(12) -> [255, 0, 10, 13].

a_burst_over_the_limit_passes(_Config) ->
    Buffer = buffer(),
    {ok, []} = ?POOL:take_messages(Buffer, <<"begun, ">>),
    Line = <<"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n">>,
    Count = 18_000_000 div byte_size(Line),
    Burst = binary:copy(Line, Count),
    Frame = binary:part(Line, 0, byte_size(Line) - 1),
    [
        begin
            {ok, [First | Frames]} = ?POOL:take_messages(Buffer, [Data, <<"begun, ">>]),
            ?assertEqual(<<"begun, ", Frame/binary>>, First),
            ?assertEqual(Count - 1, length(Frames)),
            ?assertEqual([Frame], lists:usort(Frames)),
            ?assertEqual(<<"begun, ">>, held(Buffer))
        end
     || Data <- [Burst, [binary:part(Burst, 0, 1000), [binary:part(Burst, 1000, byte_size(Burst) - 1000)]]]
    ].

a_frame_in_a_given_binary_is_a_part_of_it(_Config) ->
    Buffer = buffer(),
    [A, B] = [binary:copy(<<C>>, 1000) || C <- "ab"],
    Data = <<A/binary, "\r\n", B/binary, "\nrest">>,
    [
        begin
            {ok, [FrameA, FrameB]} = ?POOL:take_messages(Buffer, Given),
            ?assert(FrameA =:= A andalso FrameB =:= B),
            [?assertEqual(byte_size(Data), binary:referenced_byte_size(F)) || F <- [FrameA, FrameB]],
            ?assertEqual({ok, [<<"rest">>]}, ?POOL:take_messages(Buffer, "\n"))
        end
     || Given <- [Data, [Data], [[] | Data]]
    ],
    %% One that was begun before is a copy.
    {ok, []} = ?POOL:take_messages(Buffer, <<"x">>),
    {ok, [Copied, Part]} = ?POOL:take_messages(Buffer, Data),
    ?assert(Copied =:= <<"x", A/binary>>),
    ?assertEqual(1001, binary:referenced_byte_size(Copied)),
    ?assertEqual(byte_size(Data), binary:referenced_byte_size(Part)).

a_small_frame_keeps_nothing_else(_Config) ->
    Buffer = buffer(),
    Data = <<(binary:copy(<<"s">>, 64))/binary, "\n", (binary:copy(<<"l">>, 100_000))/binary, "\n">>,
    {ok, [Small, _Large]} = ?POOL:take_messages(Buffer, Data),
    ?assert(binary:referenced_byte_size(Small) < 1000).

frames_that_were_held_come_first(_Config) ->
    Buffer = buffer(),
    {ok, _} = ?POOL:append_message_buffer(Buffer, <<"one\ntwo\nthr">>),
    {ok, <<"one">>} = ?POOL:next_message(Buffer),
    {ok, [<<"two">>, <<"three">>, <<"four">>]} = ?POOL:take_messages(Buffer, <<"ee\nfour\nfi">>),
    more = ?POOL:next_message(Buffer),
    {ok, 5} = ?POOL:append_message_buffer(Buffer, <<"ve\n">>),
    {ok, [<<"five">>]} = ?POOL:take_messages(Buffer, []),
    {ok, []} = ?POOL:take_messages(Buffer, <<>>),
    ?assertEqual(<<>>, held(Buffer)).

a_message_over_the_limit_changes_nothing(_Config) ->
    TooLarge = {error, {message_too_large, ?LIMIT}},
    Buffer = buffer(),
    Whole = binary:copy(<<"w">>, ?LIMIT - 1),
    {ok, 11} = ?POOL:append_message_buffer(Buffer, <<"first\nbegun">>),
    [
        begin
            ?assertEqual(TooLarge, ?POOL:take_messages(Buffer, Data)),
            ?assertEqual(<<"first\nbegun">>, held(Buffer))
        end
     || Data <- [
            Whole, [Whole, "\n"], <<"x\n", Whole/binary, "xx">>, [<<"x\n">>, Whole, <<"x\n">>],
            <<"x\n", Whole/binary, "x\nmore\n">>
        ]
    ],
    {ok, [<<"first">>, <<"begun">>, Frame]} = ?POOL:take_messages(Buffer, <<"\n", Whole/binary, "\n">>),
    ?assert(Frame =:= Whole),
    {ok, []} = ?POOL:take_messages(Buffer, Whole),
    {ok, []} = ?POOL:take_messages(Buffer, "\r"),
    ?assertEqual(TooLarge, ?POOL:take_messages(Buffer, "\n")),
    ?assertEqual(?LIMIT, byte_size(held(Buffer))).

wrong_data_changes_nothing(_Config) ->
    Buffer = buffer(),
    {ok, []} = ?POOL:take_messages(Buffer, <<"begun">>),
    [
        begin
            badarg(2, take_messages, [Buffer, Data]),
            ?assertEqual(<<"begun">>, held(Buffer))
        end
     || Data <- [
            an_atom, 7, {}, #{}, <<1:1>>, ["x\n", an_atom], [<<"x\n">> | 7], [256], [-1], self(),
            [<<"x\n">>, <<1:7>>]
        ]
    ],
    [badarg(1, take_messages, [Ref, "x\n"]) || Ref <- [make_ref(), no_buffer, 1, <<>>]],
    ok = ?POOL:release_message_buffer(Buffer),
    ?assertEqual({error, released}, ?POOL:take_messages(Buffer, "x\n")),
    ?assertEqual({error, released}, ?POOL:take_messages(Buffer, binary:copy(<<"x">>, 1_000_000))).

%% Terabytes in a kilobyte of lists.
hostile_iodata_is_refused(_Config) ->
    Buffer = buffer(),
    Lines = binary:copy(<<"x\n">>, 1_000_000),
    Shared = lists:foldl(fun(_, L) -> [L | L] end, [Lines], lists:seq(1, 40)),
    ?assertEqual({error, {message_too_large, ?LIMIT}}, ?POOL:take_messages(Buffer, Shared)),
    ?assertEqual(<<>>, held(Buffer)).

large_work_is_not_done_on_a_normal_scheduler(_Config) ->
    Buffer = buffer(),
    Many = binary:copy(<<"x\n">>, 100_000),
    Large = binary:copy(<<"x">>, 1_000_000),
    {normal, {ok, [_]}} = call(Buffer, <<"x\n">>),
    {dirty, {ok, [_ | _]}} = call(Buffer, Many),
    {dirty, {ok, []}} = call(Buffer, Large),
    {normal, {ok, []}} = call(Buffer, <<"x">>),
    {dirty, {ok, [Frame]}} = call(Buffer, <<"\n">>),
    ?assertEqual(1_000_001, byte_size(Frame)).

call(Buffer, Data) ->
    erlmcp_optimizer_lane_help:call(buffer_take, [Buffer, Data, byte_size(Data)]).

a_buffer_has_a_limit_of_its_own(_Config) ->
    {ok, Buffer, Zeros} = ?POOL:acquire_message_buffer(0, #{limit => 100}),
    ?assertEqual(65536, byte_size(Zeros)),
    TooLarge = {error, {message_too_large, 100}},
    {ok, 100} = ?POOL:append_message_buffer(Buffer, binary:copy(<<"x">>, 100)),
    ?assertEqual(TooLarge, ?POOL:append_message_buffer(Buffer, "x")),
    ?assertEqual(TooLarge, ?POOL:take_messages(Buffer, "\n")),
    ?assertEqual(100, byte_size(held(Buffer))),
    {ok, Other, _} = ?POOL:acquire_message_buffer(50, #{limit => 100}),
    {ok, Frames} = ?POOL:take_messages(Other, binary:copy(<<"0123456789\n">>, 100_000)),
    ?assertEqual(100_000, length(Frames)),
    Line = binary:copy(<<"x">>, 99),
    ?assertEqual({ok, [Line]}, ?POOL:take_messages(Other, <<Line/binary, "\n">>)),
    ?assertEqual(TooLarge, ?POOL:take_messages(Other, <<Line/binary, "y\n">>)),
    ?assertEqual(TooLarge, ?POOL:append_message_buffer(Other, [Line, "yz"])),
    ?assertEqual(TooLarge, ?POOL:acquire_message_buffer(101, #{limit => 100})),
    ?assertMatch({ok, _, _}, ?POOL:acquire_message_buffer(0, #{})),
    ?assertMatch({ok, _, _}, ?POOL:acquire_message_buffer(0, #{limit => ?LIMIT})),
    [
        badarg(2, acquire_message_buffer, [0, Options])
     || Options <- [
            [], #{limit => 0}, #{limit => ?LIMIT + 1}, #{limit => 1.0}, #{limit => infinity},
            #{limits => 1}, #{limit => 1, other => 2}, 100
        ]
    ],
    badarg(1, acquire_message_buffer, [-1, #{}]),
    badarg(1, acquire_message_buffer, [a, #{limit => 1}]).

nothing_is_left(_Config) ->
    Bytes = fun() -> #{memory := #{buffer_bytes := B}} = ?POOL:pool_info(), B end,
    Buffers = [buffer() || _ <- lists:seq(1, 200)],
    [{ok, []} = ?POOL:take_messages(B, binary:copy(<<"x">>, 3000)) || B <- Buffers],
    [{ok, [_]} = ?POOL:take_messages(B, "\n") || B <- Buffers],
    {_, _, Live} = erlmcp_memory_nif:buffer_stats(),
    ?assertEqual(0, Live),
    [{ok, [_]} = ?POOL:take_messages(B, binary:copy(<<"y\n">>, 1)) || B <- Buffers],
    ?assertEqual({_, _, Live} = erlmcp_memory_nif:buffer_stats(), erlmcp_memory_nif:buffer_stats()),
    ok = gen_server:stop(?POOL),
    start(),
    until(fun() -> Bytes() =:= 0 end).
