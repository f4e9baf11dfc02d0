%% What the suites of states, shares and snapshots have in common.
-module(erlmcp_optimizer_state_help).

-include_lib("stdlib/include/assert.hrl").

-export([
    alone/1,
    badarg/3,
    default/0,
    every_kind/0,
    form/1,
    nested/2,
    peak/1,
    refused/3,
    settled_bytes/0,
    watch/0
]).

-define(O, erlmcp_connection_optimizer).

default() ->
    application:unset_env(erlmcp, connection_state_compact),
    application:unset_env(erlmcp, compression_enabled).

%% The settings of a group of cases. `native_only' and `bytes' are of the compact form, and have
%% cases that the other forms have not.
form(Group) ->
    default(),
    case Group of
        _ when Group =:= compact; Group =:= native_only; Group =:= bytes -> ok;
        compact_uncompressed -> application:set_env(erlmcp, compression_enabled, false);
        plain -> application:set_env(erlmcp, connection_state_compact, false)
    end.

%% The call raises badarg with a text for the argument at this position; gives the text.
badarg(Position, Function, Args) ->
    try apply(?O, Function, Args) of
        _ -> ct:fail({no_badarg, Function, length(Args)})
    catch
        error:badarg:Stack ->
            ?assertMatch([{?O, Function, Args, _} | _], Stack),
            Texts = erlmcp_memory_error:format_error(badarg, Stack),
            ?assertMatch([Position], maps:keys(Texts)),
            Text = maps:get(Position, Texts),
            Shown = unicode:characters_to_list(erl_error:format_exception(error, badarg, Stack)),
            ?assertNotEqual(nomatch, string:find(Shown, unicode:characters_to_list(Text))),
            Text
    end.

%% As badarg/3, where the text does not matter.
refused(Position, Function, Args) ->
    ?assert(byte_size(badarg(Position, Function, Args)) > 5).

%% Terms of every type.
every_kind() ->
    Counter = atomics:new(2, []),
    {ok, Port} = gen_udp:open(0),
    <<Negative/float>> = <<16#80, 0:56>>,
    ForeignPid = binary_to_term(<<131, 88, 119, 3, "a@b", 1:32, 2:32, 3:32>>),
    ForeignRef = binary_to_term(<<131, 90, 3:16, 119, 3, "a@b", 7:32, 1:32, 2:32, 3:32>>),
    ForeignPort = binary_to_term(<<131, 89, 119, 3, "a@b", 9:32, 1:32>>),
    [
        atom, '', 'späß', list_to_atom(lists:duplicate(255, $x)), list_to_atom([16#1F600]),
        0, 1, -1, 63, 64, 127, 128, 255, 256, -64, 1 bsl 31, 1 bsl 59, -(1 bsl 59), 1 bsl 60,
        (1 bsl 63) - 1, 1 bsl 63, -(1 bsl 63), -(1 bsl 63) - 1, 1 bsl 64, 1 bsl 4000, -(1 bsl 4000),
        0.0, Negative, 1.5, -2.25, 1.7976931348623157e308, 5.0e-324,
        <<>>, <<0>>, binary:copy(<<"a">>, 31), binary:copy(<<"a">>, 32), binary:copy(<<7>>, 64),
        binary:copy(<<"b">>, 65), binary:copy(<<"c">>, 100_000),
        <<1:1>>, <<5:3>>, <<0:7>>, <<0:70_001>>,
        binary:part(binary:copy(<<"sub">>, 100), 7, 150),
        [], "text", [0], [255], [256], [-1], lists:seq(1, 300), [a, [b, [c]]], [[]],
        [a | b], [1, 2 | 3], [[x | y] | z], [1 | <<"b">>], "ab" ++ tail,
        {}, {a}, {a, b, c}, list_to_tuple(lists:seq(1, 7)), list_to_tuple(lists:seq(1, 8)),
        list_to_tuple(lists:seq(1, 1000)),
        #{}, #{a => 1}, #{1 => a, 1.0 => b}, #{#{} => #{[] => {}}},
        maps:from_list([{N, N} || N <- lists:seq(1, 33)]),
        maps:from_list([{integer_to_binary(N), [N]} || N <- lists:seq(1, 2000)]),
        #{{k, [1]} => #{<<"k">> => #{"k" => v}}},
        self(), Port, make_ref(), alias(), ForeignPid, ForeignRef, ForeignPort,
        Counter, counters:new(1, []), ets:new(kinds, []), persistent_reference(),
        ?O:share(something_shared), [?O:share({x, 1}) | ?O:share({x, 1})],
        fun lists:map/2, fun erlang:node/0, fun no_such_module:f/3,
        fun() -> ok end, fun(X) -> {X, Counter} end, fun(A) -> [A, ForeignPid, Port] end,
        nested(200, fun(T) -> {T} end), nested(200, fun(T) -> [T] end),
        nested(12, fun(T) -> #{T => T} end), nested(300, fun(T) -> #{k => T} end),
        nested(300, fun(T) -> [T | t] end)
    ].

persistent_reference() ->
    {ok, Re} = re:compile("x"),
    {Re, erlang:monitor(process, self())}.

nested(Times, Wrap) ->
    lists:foldl(fun(_, Term) -> Wrap(Term) end, leaf, lists:seq(1, Times)).

alone(Fun) ->
    erlmcp_bench_measure:in_own_process(Fun).

%% Native bytes, when what others left to be freed is freed: two looks that agree.
settled_bytes() ->
    settled_bytes(600).

settled_bytes(Looks) ->
    garbage_collect(),
    Bytes = erlmcp_memory_nif:native_bytes(),
    timer:sleep(100),
    case erlmcp_memory_nif:native_bytes() of
        Bytes -> Bytes;
        _ when Looks > 0 -> settled_bytes(Looks - 1);
        Now -> ct:fail({still_changes, Bytes, Now})
    end.

%% Watches how much more memory the node takes from now on.
watch() ->
    Before = erlang:memory(total),
    spawn_link(fun() -> watching(Before, 0) end).

watching(Before, Peak) ->
    receive
        {stop, To} -> To ! {peak, self(), Peak}
    after 2 ->
        watching(Before, max(Peak, erlang:memory(total) - Before))
    end.

%% Ends the watch, and returns the most bytes that were seen.
peak(Watch) ->
    Watch ! {stop, self()},
    receive
        {peak, Watch, Peak} -> Peak
    after 60000 -> ct:fail(no_peak)
    end.
