#!/usr/bin/env escript
%% Writes the snapshots that the reader must go on reading: those of the first release, which kept
%% funs and deep terms in the external term format. Run with that release in the code path:
%%
%%   ERL_LIBS=_build/default/lib escript make.escript external_terms.bin
%%
%% The file holds a list of {Name, Fields, Snapshot}. The field `capabilities_ref' is shared.

main([File]) ->
    Made = [{Name, Fields, snapshot(Fields)} || {Name, Fields} <- states()],
    ok = file:write_file(File, term_to_binary(Made, [compressed])).

snapshot(#{capabilities_ref := Content} = Fields) ->
    Share = erlmcp_connection_optimizer:share(Content),
    written(Fields#{capabilities_ref := Share});
snapshot(Fields) ->
    written(Fields).

written(Fields) ->
    State = erlmcp_connection_optimizer:from_map(Fields#{id => <<"made">>}),
    erlmcp_connection_optimizer:compress_state(State).

states() ->
    Close = closer(),
    Big = maps:from_list([{N, {integer_to_binary(N), [N, N * 1.5]}} || N <- lists:seq(1, 200)]),
    Outer = Close({Close(inner), Close([Close(innermost)])}),
    Interpreted = fun(X) -> {X, Outer} end,
    Keys = #{
        Outer => 1, Close(1.5) => 2, fun lists:map/2 => 3, Close(#{Close(in) => Close(a_key)}) => 4,
        Close("abc") => #{fun lists:seq/3 => [Outer]}
    },
    [
        {a_closure_over_closures, #{metadata => #{handler => Outer}}},
        {a_closure_over_a_large_map, #{metadata => #{handler => Close(Big)}}},
        {interpreted_funs, #{metadata => #{handler => [Interpreted, fun() -> Big end]}}},
        {functions_of_modules, #{
            metadata => #{fun lists:map/2 => [fun erlang:node/0 | fun lists:seq/2]}
        }},
        {closures_as_keys, #{metadata => Keys}},
        {in_a_share, #{
            capabilities_ref => [Keys, Outer, nested(300, Close(1), fun(T) -> {T, Keys} end)]
        }},
        {terms_of_every_kind, #{deep => nested(300, kinds(), fun(T) -> [T] end)}},
        {terms_of_every_kind_in_a_closure, #{metadata => #{handler => Close(kinds())}}},
        %% Where the first release stopped to look.
        {strings, #{metadata => maps:from_list(
            [{D, nested(D, "text", fun(T) -> {T} end)} || D <- lists:seq(120, 135)])}}
        | [
            {{Name, Levels}, #{deep => nested(Levels, leaf, Wrap)}}
         || {Name, Wrap} <- ways(), Levels <- [128, 300, 100_000]
        ]
    ].

ways() ->
    [
        {tuples, fun(T) -> {T} end},
        {tuples_with_more, fun(T) -> {1, T, x} end},
        {lists, fun(T) -> [T] end},
        {lists_with_more, fun(T) -> [T, $a, $b] end},
        {tails, fun(T) -> [T | t] end},
        {maps, fun(T) -> #{k => T} end},
        {maps_with_more, fun(T) -> #{z => {T, 1}, 1 => b, <<"k">> => [x, y]} end}
    ].

kinds() ->
    Kinds = [
        atom, '', 'späß', '日本', 0, 255, 256, -1, 1 bsl 31, -(1 bsl 31) - 1, 1 bsl 40, 1 bsl 59,
        (1 bsl 63) - 1, -(1 bsl 63), 1 bsl 63, -(1 bsl 64), 1 bsl 4000, 1.5, -2.25, 0.0, <<>>,
        binary:copy(<<"b">>, 300), <<1:1>>, <<0:70_001>>, [], "text", [255], [256], [0, 1 | 2],
        lists:duplicate(70_000, $x), {}, {a, "b"}, list_to_tuple(lists:seq(1, 300)),
        #{}, #{1 => a, 1.5 => b}, #{#{#{} => 1} => #{[] => {}}},
        maps:from_list([{integer_to_binary(N), [N]} || N <- lists:seq(1, 100)]),
        binary_to_term(<<131, 88, 119, 3, "a@b", 1:32, 2:32, 3:32>>),
        binary_to_term(<<131, 89, 119, 3, "a@b", 9:32, 1:32>>),
        binary_to_term(<<131, 90, 3:16, 119, 3, "a@b", 7:32, 1:32, 2:32, 3:32>>)
    ],
    {Kinds, maps:from_list([{Kind, Kind} || Kind <- Kinds])}.

nested(Times, Leaf, Wrap) ->
    lists:foldl(fun(_, Term) -> Wrap(Term) end, Leaf, lists:seq(1, Times)).

%% Makes funs of compiled code.
closer() ->
    Forms = [
        element(2, erl_parse:parse_form(element(2, erl_scan:string(Line))))
     || Line <- [
            "-module(erlmcp_snapshot_made).", "-export([close/0]).",
            "close() -> fun(Free) -> fun() -> Free end end."
        ]
    ],
    {ok, Module, Code} = compile:forms(Forms),
    {module, Module} = code:load_binary(Module, "", Code),
    Module:close().
