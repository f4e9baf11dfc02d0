%% Calls on several fields at once, on maps inside a state, and on shares along a path.
-module(erlmcp_optimizer_state_calls_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_optimizer_state_help, [alone/1, badarg/3, every_kind/0, refused/3]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, groups/0, init_per_suite/1, end_per_suite/1, init_per_group/2, end_per_group/2]).
-export([
    several_fields_are_set_as_one_by_one/1,
    one_wrong_field_changes_nothing/1,
    an_integer_is_added/1,
    undefined_is_told_from_never_set/1,
    a_map_is_counted_and_folded/1,
    a_share_on_the_path_is_followed/1,
    a_change_goes_through_a_share/1,
    funs_in_path_and_value/1,
    states_and_shares_are_told_apart/1,
    text_for_a_person/1,
    text_hides_secrets/1,
    text_is_bounded/1,
    text_of_a_cleaned_up_state/1,
    a_fold_builds_a_part_at_a_time/1,
    an_update_of_a_share_costs_the_path/1,
    equal_content_is_one_share_however_it_was_reached/1,
    a_changed_share_is_freed/1,
    a_changed_share_in_a_snapshot/1,
    an_object_of_the_library_in_a_field_is_a_link/1,
    a_state_in_a_field_may_be_cleaned_up/1,
    a_chain_of_states_is_freed/1,
    a_buffer_in_a_field_lives_and_dies_with_it/1,
    a_buffer_in_a_cycle_is_freed/1
]).

-define(O, erlmcp_connection_optimizer).
-define(P, erlmcp_memory_pool).

all() ->
    [{group, compact}, {group, plain}, {group, native_only}].

groups() ->
    Both = [
        several_fields_are_set_as_one_by_one,
        one_wrong_field_changes_nothing,
        an_integer_is_added,
        undefined_is_told_from_never_set,
        a_map_is_counted_and_folded,
        a_share_on_the_path_is_followed,
        a_change_goes_through_a_share,
        funs_in_path_and_value,
        states_and_shares_are_told_apart,
        text_for_a_person,
        text_hides_secrets,
        text_is_bounded
    ],
    Native = [
        text_of_a_cleaned_up_state,
        a_fold_builds_a_part_at_a_time,
        an_update_of_a_share_costs_the_path,
        equal_content_is_one_share_however_it_was_reached,
        a_changed_share_is_freed,
        a_changed_share_in_a_snapshot,
        an_object_of_the_library_in_a_field_is_a_link,
        a_state_in_a_field_may_be_cleaned_up,
        a_chain_of_states_is_freed,
        a_buffer_in_a_field_lives_and_dies_with_it,
        a_buffer_in_a_cycle_is_freed
    ],
    [{compact, [], Both}, {plain, [], Both}, {native_only, [], Native}].

init_per_suite(Config) ->
    {ok, Pool} = ?P:start_link(),
    unlink(Pool),
    Config.

end_per_suite(_Config) ->
    ok = gen_server:stop(?P).

init_per_group(Group, Config) ->
    erlmcp_optimizer_state_help:form(Group),
    Config.

end_per_group(_Group, _Config) ->
    erlmcp_optimizer_state_help:default().

new() ->
    ?O:create_optimized_state(<<"conn-1">>).

%%% Several fields

several_fields_are_set_as_one_by_one(_Config) ->
    Large = maps:from_list([{N, lists:seq(1, N rem 200)} || N <- lists:seq(1, 500)]),
    Deep = maps:from_list([{list_to_atom("f" ++ integer_to_list(N)), N} || N <- lists:seq(1, 40)]),
    Base = ?O:update_state_field(new(), metadata, #{a => 1, b => #{c => 2}}),
    [
        begin
            Ordered = lists:sort(fun({A, _}, {B, _}) -> depth(A) =< depth(B) end, maps:to_list(Fields)),
            OneByOne = lists:foldl(
                fun({Field, Value}, S) -> ?O:update_state_field(S, Field, Value) end, Base, Ordered
            ),
            Together = ?O:update_state_fields(Base, Fields),
            ?assert(?O:to_map(Together) =:= ?O:to_map(OneByOne)),
            ?assertEqual(#{a => 1, b => #{c => 2}}, ?O:get_state_field(Base, metadata))
        end
     || Fields <- [
            #{},
            #{phase => p},
            #{metadata => #{a => 3, d => Large}},
            #{metadata => Large, pending_refs => #{make_ref() => 1}},
            #{phase => p, transport => t, metadata => #{x => y}, id => <<"new">>, extra => Large},
            #{[metadata, b, c] => 4, metadata => #{b => #{d => 1}}, [subscriptions, u] => [1]},
            #{[metadata] => #{a => 9}, [metadata, a] => 10, [metadata, b, e, f] => 11},
            Deep#{[f1] => one, [deep, er] => Large},
            maps:from_list([{[metadata, K], K} || K <- every_kind()])
        ]
    ],
    ?assert(?O:to_map(?O:update_state_fields(Base, #{})) =:= ?O:to_map(Base)).

depth(Field) when is_atom(Field) -> 0;
depth(Path) -> length(Path).

one_wrong_field_changes_nothing(_Config) ->
    Base = ?O:update_state_field(new(), n, 1),
    [
        refused(2, update_state_fields, [Base, Fields])
     || Fields <- [
            not_a_map, [], #{1 => 2}, #{[] => 1}, #{[1, a] => 1}, #{"text" => 1},
            #{[a | b] => 1}, #{phase => p, id => no_binary}, #{created_at => now},
            #{phase => p, metadata => []}, #{[pending_refs] => []}, #{[n, x] => 1, phase => p},
            #{[metadata | lists:seq(1, 64)] => 1}
        ]
    ],
    refused(1, update_state_fields, [make_ref(), #{a => 1}]),
    refused(1, update_state_fields, [no_state, #{a => 1}]),
    ?assertEqual(initialization, ?O:get_state_field(Base, phase)).

%%% Integers

an_integer_is_added(_Config) ->
    S1 = ?O:increment_state_field(new(), count, 1),
    S2 = ?O:increment_state_field(S1, count, -5),
    S3 = ?O:increment_state_field(S2, [metadata, sums, x], 1 bsl 70),
    S4 = ?O:increment_state_field(S3, [metadata, sums, x], -(1 bsl 70)),
    S5 = ?O:increment_state_field(S4, [count], (1 bsl 63) - 1),
    ?assertEqual(1, ?O:get_state_field(S1, count)),
    ?assertEqual(-4, ?O:get_state_field(S2, count)),
    ?assertEqual(1 bsl 70, ?O:get_state_field(S3, [metadata, sums, x])),
    ?assertEqual(0, ?O:get_state_field(S4, [metadata, sums, x])),
    ?assertEqual((1 bsl 63) - 5, ?O:get_state_field(S5, count)),
    Created = ?O:get_state_field(S5, created_at),
    ?assertEqual(Created + 7, ?O:get_state_field(?O:increment_state_field(S5, created_at, 7), created_at)),
    refused(2, increment_state_field, [S5, created_at, 1 bsl 63]),
    refused(2, increment_state_field, [S5, id, 1]),
    refused(2, increment_state_field, [S5, metadata, 1]),
    refused(2, increment_state_field, [S5, [pending_refs], 1]),
    refused(2, increment_state_field, [S5, [count, x], 1]),
    refused(2, increment_state_field, [S5, phase, 1]),
    refused(2, increment_state_field, [?O:update_state_field(S5, f, 1.0), f, 1]),
    refused(2, increment_state_field, [S5, "no field", 1]),
    refused(3, increment_state_field, [S5, count, 1.0]),
    refused(1, increment_state_field, [make_ref(), count, 1]).

undefined_is_told_from_never_set(_Config) ->
    S1 = ?O:update_state_field(new(), set, undefined),
    ?assertEqual({ok, undefined}, ?O:find_state_field(S1, set)),
    ?assertEqual(error, ?O:find_state_field(S1, never_set)),
    ?assertEqual(error, ?O:find_state_field(S1, transport)),
    ?assertEqual(error, ?O:find_state_field(S1, [metadata, x])),
    ?assertEqual({ok, #{}}, ?O:find_state_field(S1, metadata)),
    ?assertEqual({ok, #{}}, ?O:find_state_field(S1, [pending_refs])),
    ?assertEqual({ok, initialization}, ?O:find_state_field(S1, phase)),
    ?assertEqual(error, ?O:find_state_field(?O:remove_state_field(S1, set), set)),
    refused(2, find_state_field, [S1, []]),
    refused(1, find_state_field, [make_ref(), set]).

%%% Maps inside a state

a_map_is_counted_and_folded(_Config) ->
    [
        begin
            Map = maps:from_list([{{key, N}, value(N)} || N <- lists:seq(1, Count)]),
            S = ?O:update_state_field(
                ?O:update_state_field(new(), metadata, Map), [m, below], Map
            ),
            [
                begin
                    ?assertEqual(Count, ?O:state_field_size(S, Field)),
                    Folded = ?O:fold_state_field(fun(K, V, Acc) -> [{K, V} | Acc] end, [], S, Field),
                    ?assertEqual(Count, length(Folded)),
                    ?assert(maps:from_list(Folded) =:= Map)
                end
             || Field <- [metadata, [metadata], [m, below]]
            ]
        end
     || Count <- [0, 1, 31, 33, 64, 65, 1000, 20_000]
    ],
    Empty = new(),
    ?assertEqual(0, ?O:state_field_size(Empty, metadata)),
    ?assertEqual(acc, ?O:fold_state_field(fun(_, _, _) -> x end, acc, Empty, pending_refs)),
    %% What the fun returns may look like an error.
    ?assertEqual(
        {badarg, 1, <<"x">>},
        ?O:fold_state_field(
            fun(_, _, _) -> {badarg, 1, <<"x">>} end, none,
            ?O:update_state_field(Empty, metadata, #{a => 1}), metadata
        )
    ),
    ?assertError(
        from_the_fun,
        ?O:fold_state_field(
            fun(_, _, _) -> error(from_the_fun) end, 0,
            ?O:update_state_field(Empty, metadata, #{a => 1}), metadata
        )
    ),
    refused(2, state_field_size, [Empty, id]),
    refused(2, state_field_size, [Empty, never_set]),
    refused(2, state_field_size, [Empty, [metadata, x]]),
    refused(2, state_field_size, [Empty, 7]),
    refused(1, state_field_size, [make_ref(), metadata]),
    refused(4, fold_state_field, [fun(_, _, A) -> A end, 0, Empty, id]),
    refused(4, fold_state_field, [fun(_, _, A) -> A end, 0, Empty, transport]),
    refused(3, fold_state_field, [fun(_, _, A) -> A end, 0, make_ref(), metadata]),
    refused(1, fold_state_field, [fun(A) -> A end, 0, Empty, metadata]).

%% Small ones, ones out of line, and maps.
value(N) when N rem 97 =:= 0 -> binary:copy(<<N>>, 5000);
value(N) when N rem 89 =:= 0 -> maps:from_list([{I, I} || I <- lists:seq(1, 300)]);
value(N) -> N.

%%% Shares along a path

a_share_on_the_path_is_followed(_Config) ->
    Tools = maps:from_list([{N, #{schema => lists:seq(1, N)}} || N <- lists:seq(1, 300)]),
    Inner = ?O:share(#{tools => Tools}),
    Outer = ?O:share(#{inner => Inner, here => 1}),
    OfShare = ?O:share(Outer),
    S = ?O:update_state_field(
        ?O:update_state_field(new(), capabilities_ref, Outer), metadata, #{c => Inner, o => OfShare}
    ),
    Schema = lists:seq(1, 7),
    [?assertEqual({ok, Schema}, ?O:find_shared(Outer, [inner, tools, 7, schema])) || _ <- lists:seq(1, 500)],
    ?assertEqual({ok, Schema}, ?O:find_shared(OfShare, [inner, tools, 7, schema])),
    ?assertEqual({ok, Inner}, ?O:find_shared(Outer, [inner])),
    ?assertEqual({ok, Outer}, ?O:find_shared(OfShare, [])),
    ?assertEqual(error, ?O:find_shared(Outer, [inner, tools, none])),
    ?assertEqual(error, ?O:find_shared(Outer, [here, tools])),
    ?assertEqual(1, ?O:get_state_field(S, [capabilities_ref, here])),
    ?assertEqual(Inner, ?O:get_state_field(S, [capabilities_ref, inner])),
    ?assertEqual(Schema, ?O:get_state_field(S, [capabilities_ref, inner, tools, 7, schema])),
    ?assertEqual({ok, Schema}, ?O:find_state_field(S, [metadata, o, inner, tools, 7, schema])),
    ?assertEqual(error, ?O:find_state_field(S, [metadata, c, tools, none])),
    ?assertEqual(300, ?O:state_field_size(S, [metadata, c, tools])),
    ?assertEqual(2, ?O:state_field_size(S, capabilities_ref)),
    Keys = ?O:fold_state_field(fun(K, _, A) -> [K | A] end, [], S, [capabilities_ref, inner, tools]),
    ?assertEqual(lists:seq(1, 300), lists:sort(Keys)),
    refused(2, find_shared, [Outer, [inner | lists:seq(1, 64)]]),
    refused(2, state_field_size, [S, [capabilities_ref, here]]).

a_change_goes_through_a_share(_Config) ->
    Inner = ?O:share(#{tools => #{a => 1, b => 2}}),
    Outer = ?O:share(#{inner => Inner, n => 1}),
    S = ?O:update_state_field(new(), capabilities_ref, Outer),
    S1 = ?O:update_state_field(S, [capabilities_ref, inner, tools, c], 3),
    S2 = ?O:increment_state_field(S1, [capabilities_ref, n], 41),
    S3 = ?O:remove_state_field(S2, [capabilities_ref, inner, tools, a]),
    S4 = ?O:update_state_fields(S3, #{phase => p, [capabilities_ref, inner, tools, b] => 20}),
    Ref = ?O:get_state_field(S4, capabilities_ref),
    ?assert(?O:is_share(Ref)),
    ?assertEqual({ok, #{b => 20, c => 3}}, ?O:find_shared(Ref, [inner, tools])),
    ?assertEqual({ok, 42}, ?O:find_shared(Ref, [n])),
    ?assertEqual(p, ?O:get_state_field(S4, phase)),
    ?assert(Ref =:= ?O:share(#{inner => ?O:share(#{tools => #{b => 20, c => 3}}), n => 42})),
    %% What was there is as it was.
    ?assertEqual(#{inner => Inner, n => 1}, ?O:shared(Outer)),
    ?assertEqual(#{a => 1, b => 2}, ?O:get_state_field(S, [capabilities_ref, inner, tools])),
    ?assert(?O:to_map(S) =:= ?O:to_map(?O:remove_state_field(S, [capabilities_ref, none, x]))),
    refused(2, update_state_field, [S, [capabilities_ref, n, x], 1]),
    refused(2, update_state_fields, [S, #{[capabilities_ref, n, x] => 1}]).

%% Opening the fun in the path was forgotten when that in the value was met.
funs_in_path_and_value(_Config) ->
    [A, B, C] = [fun() -> {X, make_ref()} end || X <- [a, b, c]],
    S = ?O:update_state_field(new(), [metadata, A], {B, C}),
    ?assertEqual({B, C}, ?O:get_state_field(S, [metadata, A])),
    S1 = ?O:update_state_fields(S, #{f => B, [metadata, B] => A}),
    ?assertEqual(A, ?O:get_state_field(S1, [metadata, B])),
    Ref = ?O:update_shared(?O:share(#{A => #{}}), [A, B], C),
    ?assertEqual({ok, C}, ?O:find_shared(Ref, [A, B])),
    ?assertEqual([{A, {B, C}}], ?O:fold_state_field(fun(K, V, L) -> [{K, V} | L] end, [], S, metadata)).

states_and_shares_are_told_apart(_Config) ->
    S = new(),
    Share = ?O:share(content),
    {ok, Pooled} = ?P:acquire_connection_state(#{}),
    {ok, Buffer, _} = ?P:acquire_message_buffer(0),
    ?assert(?O:is_state(S)),
    ?assert(?O:is_share(Share)),
    Others = [
        Pooled, Buffer, make_ref(), atomics:new(1, []), 1, a, <<"x">>, {connection_state, a},
        #{}, [], {}, self()
    ],
    [?assertEqual({false, false}, {?O:is_state(T), ?O:is_share(T)}) || T <- Others],
    ?assertEqual({false, false}, {?O:is_share(S), ?O:is_state(Share)}).

%%% Text

text(State, Options) ->
    iolist_to_binary(?O:format(State, Options)).

has(Text, Part) ->
    binary:match(Text, Part) =/= nomatch.

text_for_a_person(_Config) ->
    Share = ?O:share(lists:seq(1, 5000)),
    S = ?O:update_state_fields(new(), #{
        phase => initialized, capabilities_ref => Share, note => <<"späß"/utf8>>,
        inner => {a, Share}, big => maps:from_list([{N, N} || N <- lists:seq(1, 9000)])
    }),
    Text = iolist_to_binary(?O:format(S)),
    ?assert(is_list(unicode:characters_to_list(Text))),
    [
        ?assert(has(Text, Part), Part)
     || Part <- [
            <<"conn-1">>, <<"initialized">>, <<"capabilities_ref: share of ">>, <<"späß"/utf8>>,
            <<"big: map of 9000 entries">>, <<"{a,{share,">>,
            integer_to_binary(?O:estimate_memory(S))
        ]
    ],
    refused(1, format, [make_ref()]),
    refused(1, format, [no_state, #{}]).

text_hides_secrets(_Config) ->
    S = ?O:update_state_fields(new(), #{
        token => <<"s3cret">>, metadata => #{user => <<"ann">>, deep => #{key => <<"s3cret">>}},
        id => <<"s3cret-id">>
    }),
    Text = text(S, #{redact => [token, id, [metadata, deep, key], [metadata, none, x], nothing]}),
    ?assertNot(has(Text, <<"s3cret">>)),
    ?assert(has(Text, <<"ann">>)),
    ?assert(has(Text, <<"redacted">>)),
    ?assert(has(text(S, #{}), <<"s3cret">>)),
    [
        refused(2, format, [S, Options])
     || Options <- [
            [], #{redact => token}, #{redact => [1]}, #{redact => [a | b]}, #{redact => [[]]},
            #{max_bytes => 0}, #{max_bytes => many}, #{other => 1}
        ]
    ].

text_is_bounded(_Config) ->
    Wide = maps:from_list([{list_to_atom("w" ++ integer_to_list(N)), N} || N <- lists:seq(1, 1200)]),
    S = ?O:update_state_fields(
        ?O:update_state_fields(new(), Wide), #{text => binary:copy(<<"ä"/utf8>>, 30_000)}
    ),
    [
        begin
            Text = text(S, #{max_bytes => Max}),
            ?assert(byte_size(Text) =< Max),
            ?assert(byte_size(Text) >= min(Max, 1000) - 8),
            ?assert(is_list(unicode:characters_to_list(Text)))
        end
     || Max <- [1, 2, 3, 4, 50, 51, 1000, 100_000]
    ].

text_of_a_cleaned_up_state(_Config) ->
    S = new(),
    ok = ?O:cleanup_state(S),
    ?assert(has(iolist_to_binary(?O:format(S)), <<"cleaned up">>)),
    ?assert(byte_size(text(S, #{max_bytes => 9, redact => [id]})) =< 9),
    ?assert(?O:is_state(S)),
    refused(2, format, [S, #{max_bytes => -1}]).

%%% What it costs

a_fold_builds_a_part_at_a_time(_Config) ->
    Large = maps:from_list([{N, lists:seq(1, 200)} || N <- lists:seq(1, 5000)]),
    S = ?O:from_map(#{id => <<>>, metadata => Large, f => 1}),
    garbage_collect(),
    Peak = alone(fun() ->
        ?O:fold_state_field(
            fun(_, V, Acc) ->
                200 = length(V),
                {total_heap_size, Words} = process_info(self(), total_heap_size),
                max(Acc, Words)
            end,
            0, S, metadata
        )
    end),
    %% All of it takes two million words.
    ?assert(Peak < 300_000).

reductions_free(Fun) ->
    Times = [element(1, timer:tc(Fun)) || _ <- lists:seq(1, 15)],
    lists:nth(4, lists:sort(Times)).

an_update_of_a_share_costs_the_path(_Config) ->
    Of = fun(Count) ->
        ?O:share(#{
            tools => maps:from_list([
                {integer_to_binary(N), #{n => N, text => <<"a schema of some length">>}}
             || N <- lists:seq(1, Count)
            ])
        })
    end,
    Small = Of(300),
    Large = Of(300_000),
    %% The two have nearly all in common.
    Before = erlmcp_optimizer_state_help:settled_bytes(),
    Changed = ?O:update_shared(Large, [tools, <<"7">>, n], changed),
    Taken = erlmcp_optimizer_state_help:settled_bytes() - Before,
    ?assert(Taken < 30_000),
    ?assertEqual({ok, 7}, ?O:find_shared(Large, [tools, <<"7">>, n])),
    ?assertEqual({ok, changed}, ?O:find_shared(Changed, [tools, <<"7">>, n])),
    Time = fun(Ref) ->
        reductions_free(fun() ->
            [?O:update_shared(Ref, [tools, <<"9">>, n], {N, make_ref()}) || N <- lists:seq(1, 20)]
        end)
    end,
    %% A thousand times the content; a pass over it takes a hundred times as long.
    {OfSmall, OfLarge} = {Time(Small), Time(Large)},
    ?assert(OfLarge < 15 * OfSmall + 2000, {OfSmall, OfLarge}).

equal_content_is_one_share_however_it_was_reached(_Config) ->
    Value = fun(N) -> #{n => N, list => lists:seq(1, N rem 90), float => 0.0} end,
    Content = fun(Keys) -> maps:from_list([{{key, N}, Value(N)} || N <- Keys]) end,
    [
        begin
            Whole = ?O:share(Content(lists:seq(1, Count))),
            %% One by one, from nothing, and with detours.
            Grown = lists:foldl(
                fun(N, Ref) -> ?O:update_shared(Ref, [{key, N}], Value(N)) end,
                ?O:share(#{}), lists:seq(Count, 1, -1)
            ),
            ?assert(Grown =:= Whole),
            Detour = lists:foldl(
                fun(N, Ref) -> ?O:update_shared(Ref, [{key, N}], binary:copy(<<N>>, 3000)) end,
                Whole, lists:seq(1, Count, 3)
            ),
            ?assertNot(Detour =:= Whole),
            Back = lists:foldl(
                fun(N, Ref) -> ?O:update_shared(Ref, [{key, N}], Value(N)) end,
                Detour, lists:seq(1, Count, 3)
            ),
            ?assert(Back =:= Whole),
            ?assert(?O:share(?O:shared(Detour)) =:= Detour),
            Less = ?O:update_shared(Whole, [{key, 1}, n], other),
            ?assertNot(Less =:= Whole),
            ?assert(?O:update_shared(Less, [{key, 1}, n], 1) =:= Whole),
            ?assert(?O:update_shared(Whole, [], Content([1])) =:= ?O:share(Content([1])))
        end
     || Count <- [1, 5, 40, 700]
    ],
    Kinds = every_kind(),
    [
        begin
            Ref = ?O:update_shared(?O:share(#{Kind => 1, b => #{}}), [b, Kind], {Kind}),
            ?assert(?O:shared(Ref) =:= #{Kind => 1, b => #{Kind => {Kind}}}),
            ?assert(Ref =:= ?O:share(#{Kind => 1, b => #{Kind => {Kind}}}))
        end
     || Kind <- Kinds
    ],
    Ref = ?O:share(#{a => 1}),
    refused(1, update_shared, [make_ref(), [a], 1]),
    refused(2, update_shared, [Ref, a, 1]),
    refused(2, update_shared, [Ref, [a, b], 1]),
    refused(2, update_shared, [?O:share([]), [a], 1]),
    refused(2, update_shared, [Ref, lists:seq(1, 65), 1]),
    ?assertEqual(#{a => 1, b => #{c => 2}}, ?O:shared(?O:update_shared(Ref, [b, c], 2))).

a_changed_share_is_freed(_Config) ->
    Before = erlmcp_optimizer_state_help:settled_bytes(),
    alone(fun() ->
        Base = ?O:share(maps:from_list([{N, lists:seq(1, 20)} || N <- lists:seq(1, 20_000)])),
        Last = lists:foldl(
            fun(N, Ref) -> ?O:update_shared(Ref, [N], Ref) end, Base, lists:seq(1, 2000)
        ),
        ?assert(is_reference(Last))
    end),
    until(fun() -> erlmcp_memory_nif:native_bytes() < Before + 50_000 end).

a_changed_share_in_a_snapshot(_Config) ->
    Content = maps:from_list([{N, binary:copy(<<N>>, 300)} || N <- lists:seq(1, 2000)]),
    Ref = ?O:update_shared(?O:share(Content), [7], #{new => [1]}),
    S = ?O:from_map(#{id => <<"c">>, capabilities_ref => Ref}),
    Read = ?O:decompress_state(?O:compress_state(S)),
    ?assert(?O:get_state_field(Read, capabilities_ref) =:= Ref),
    ?assert(?O:shared(Ref) =:= Content#{7 => #{new => [1]}}).

%%% The library's own objects in a field

an_object_of_the_library_in_a_field_is_a_link(_Config) ->
    Count = 2000,
    Pooled = fun(_) -> {ok, Ref} = ?P:acquire_connection_state(#{a => 1}), Ref end,
    Buffer = fun(_) -> {ok, Ref, _} = ?P:acquire_message_buffer(0), Ref end,
    Compact = fun(_) -> ?O:from_map(#{id => <<"x">>}) end,
    Share = fun(N) -> ?O:share({content, N}) end,
    [
        begin
            Taken = alone(fun() ->
                Objects = [Make(N) || N <- lists:seq(1, Count)],
                Plain = [?O:from_map(#{id => <<N:32>>, f => N}) || N <- lists:seq(1, Count)],
                Before = erlmcp_optimizer_state_help:settled_bytes(),
                With = [?O:update_state_field(S, f, Ref) || {S, Ref} <- lists:zip(Plain, Objects)],
                Linked = erlmcp_optimizer_state_help:settled_bytes() - Before,
                Again = [?O:update_state_field(S, f, 1) || S <- Plain],
                Unlinked = erlmcp_optimizer_state_help:settled_bytes() - Before - Linked,
                ?assertEqual(3 * Count, length(Plain) + length(With) + length(Again)),
                ?assert(lists:all(
                    fun({S, Ref}) -> ?O:get_state_field(S, f) =:= Ref end, lists:zip(With, Objects)
                )),
                (Linked - Unlinked) / Count
            end),
            ct:pal("~p: ~.1f bytes in a field", [Kind, Taken]),
            ?assert(Taken =< Limit, {Kind, Taken})
        end
     || {Kind, Make, Limit} <- [
            {buffer, Buffer, 64}, {share, Share, 64}, {pooled, Pooled, 64}, {compact, Compact, 64}
        ]
    ].

a_state_in_a_field_may_be_cleaned_up(_Config) ->
    Share = ?O:share(#{tools => [one, two]}),
    Outer = alone(fun() ->
        Inner = ?O:from_map(#{id => <<"inner">>, capabilities_ref => Share}),
        ?O:from_map(#{id => <<"outer">>, inner => Inner, kept => ?O:share([Inner])})
    end),
    Inner = ?O:get_state_field(Outer, inner),
    ?assert(Inner =:= hd(?O:shared(?O:get_state_field(Outer, kept)))),
    ?assertEqual(Share, ?O:get_state_field(Inner, capabilities_ref)),
    #{shared_bytes := Shared, total_bytes := Total} = ?O:state_size_info(Outer),
    ok = ?O:cleanup_state(Inner),
    refused(1, get_state_field, [?O:get_state_field(Outer, inner), id]),
    #{shared_bytes := Less, total_bytes := Total} = ?O:state_size_info(Outer),
    ?assert(Less < Shared),
    ?assert(?O:get_state_field(Outer, inner) =:= Inner),
    %% A reference that leads nowhere is a value like any other.
    Again = ?O:update_state_field(new(), inner, Inner),
    ?assert(?O:get_state_field(Again, inner) =:= Inner).

a_chain_of_states_is_freed(_Config) ->
    Before = erlmcp_optimizer_state_help:settled_bytes(),
    alone(fun() ->
        Chain = lists:foldl(
            fun(_, S) -> ?O:update_state_field(new(), next, S) end, new(), lists:seq(1, 100_000)
        ),
        ?assert(?O:is_state(?O:get_state_field(Chain, next))),
        %% What a field refers to is counted where it is.
        ?assert(?O:estimate_memory(Chain) < 1000)
    end),
    until(fun() -> erlmcp_memory_nif:native_bytes() < Before + 100_000 end).

a_buffer_in_a_field_lives_and_dies_with_it(_Config) ->
    Live = fun() -> {_, _, Bytes} = erlmcp_memory_nif:buffer_stats(), Bytes end,
    Before = Live(),
    Keepers = [
        fun(B) -> ?O:update_state_field(new(), buffer, B) end,
        fun(B) -> ?O:update_state_field(new(), [metadata, B], 1) end,
        fun(B) -> ?O:share({[B], fun() -> B end}) end,
        fun(B) -> {ok, R} = ?P:acquire_connection_state(#{b => B}), R end
    ],
    [
        alone(fun() ->
            Kept = alone(fun() ->
                {ok, B, _} = ?P:acquire_message_buffer(0),
                {ok, _} = ?P:append_message_buffer(B, binary:copy(<<"x">>, 100_000)),
                Keep(B)
            end),
            garbage_collect(),
            timer:sleep(30),
            ?assert(Live() >= Before + 100_000),
            ?assert(is_reference(Kept))
        end)
     || Keep <- Keepers
    ],
    until(fun() -> Live() =< Before end),
    {ok, B, _} = ?P:acquire_message_buffer(0),
    S = ?O:update_state_field(new(), b, B),
    {ok, 3} = ?P:append_message_buffer(?O:get_state_field(S, b), "ab\n"),
    ?assert(?O:get_state_field(S, b) =:= B),
    ?assertEqual({ok, <<"ab">>}, ?P:next_message(B)),
    %% A released one stays what it is.
    ok = ?P:release_message_buffer(B),
    ?assertEqual({error, released}, ?P:next_message(?O:get_state_field(S, b))),
    Read = ?O:get_state_field(?O:decompress_state(?O:compress_state(S)), b),
    ?assert(is_reference(Read)).

a_buffer_in_a_cycle_is_freed(_Config) ->
    Live = fun() -> {_, _, Bytes} = erlmcp_memory_nif:buffer_stats(), Bytes end,
    #{in_use := InUse} = ?P:pool_stats(),
    Before = Live(),
    [
        alone(fun() ->
            {ok, B, _} = ?P:acquire_message_buffer(0),
            {ok, _} = ?P:append_message_buffer(B, binary:copy(<<"x">>, 10_000)),
            {ok, R} = ?P:acquire_connection_state(#{}),
            ok = ?P:update_connection_state(R, #{me => ?O:share([R, B]), b => B})
        end)
     || _ <- lists:seq(1, 20)
    ],
    until(fun() -> Live() =< Before andalso maps:get(in_use, ?P:pool_stats()) =< InUse end).
