%% Shares: one copy for equal terms, freed with its last reference.
-module(erlmcp_optimizer_share_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_pool_help, [in_parallel/2]).
-import(erlmcp_optimizer_state_help, [alone/1, every_kind/0, nested/2, refused/3, settled_bytes/0]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_suite/1, end_per_suite/1]).
-export([
    terms_of_every_type/1,
    equal_terms_share_one_reference/1,
    a_hundred_processes_at_once/1,
    it_outlives_its_creator/1,
    freed_wherever_the_last_reference_was/1,
    one_value_is_found/1,
    large_binaries_are_not_copied/1,
    a_chain_of_a_hundred_thousand/1,
    many_references_in_one_value/1,
    made_and_lost_on_all_schedulers/1,
    wrong_arguments/1
]).

-define(O, erlmcp_connection_optimizer).

all() ->
    [
        terms_of_every_type,
        equal_terms_share_one_reference,
        a_hundred_processes_at_once,
        it_outlives_its_creator,
        freed_wherever_the_last_reference_was,
        one_value_is_found,
        large_binaries_are_not_copied,
        a_chain_of_a_hundred_thousand,
        many_references_in_one_value,
        made_and_lost_on_all_schedulers,
        wrong_arguments
    ].

init_per_suite(Config) ->
    erlmcp_optimizer_state_help:default(),
    Config.

end_per_suite(_Config) ->
    ok.

native() ->
    erlmcp_memory_nif:native_bytes().

terms_of_every_type(_Config) ->
    Kinds = every_kind(),
    [
        begin
            ?assert(?O:shared(?O:share(Term)) =:= Term),
            Ref = ?O:share(#{Term => {value, Term}, b => #{deep => Term}}),
            ?assert(?O:find_shared(Ref, [Term]) =:= {ok, {value, Term}}),
            ?assert(?O:find_shared(Ref, [b, deep]) =:= {ok, Term})
        end
     || Term <- Kinds
    ],
    ?assert(?O:shared(?O:share(Kinds)) =:= Kinds).

equal_terms_share_one_reference(_Config) ->
    [
        begin
            {A, B} = {?O:share(Term), ?O:share(binary_to_term(term_to_binary(Term)))},
            ?assert(is_reference(A)),
            ?assert(A =:= B)
        end
     || Term <- every_kind(), not is_float(Term)
    ],
    Different = [1, 1.0, <<1>>, [1], {1}, #{1 => 1}, '1', "1", <<1:1>>, -1, [1 | 1], [[1]], []],
    ?assertEqual(length(Different), length(lists:usort([?O:share(T) || T <- Different]))),
    %% The order in which a map was made does not matter.
    Pairs = [{N, N} || N <- lists:seq(1, 1000)],
    ?assertEqual(
        ?O:share(maps:from_list(Pairs)), ?O:share(maps:from_list(lists:reverse(Pairs)))
    ).

a_hundred_processes_at_once(_Config) ->
    Content = {lists:seq(1, 200_000), make_ref()},
    Before = settled_bytes(),
    Self = self(),
    Ready = [
        spawn_link(fun() ->
            receive go -> ok end,
            Self ! {shared, ?O:share(Content)},
            receive stop -> ok end
        end)
     || _ <- lists:seq(1, 100)
    ],
    [Pid ! go || Pid <- Ready],
    [First | Others] = [receive {shared, Ref} -> Ref end || _ <- Ready],
    ?assert(lists:all(fun(Other) -> Other =:= First end, Others)),
    ?assertEqual(Content, ?O:shared(First)),
    #{shared_bytes := Bytes} = ?O:state_size_info(?O:from_map(#{id => <<>>, c => First})),
    %% One packed content, and all that stands behind the reference; not a hundred: what others
    %% packed in vain goes soon.
    ?assert(Bytes < 10_000_000),
    ?assert(native() - Before >= 400_000),
    until(fun() -> native() - Before < Bytes end),
    [Pid ! stop || Pid <- Ready].

it_outlives_its_creator(_Config) ->
    Ref = alone(fun() -> ?O:share({outlives, lists:seq(1, 1000)}) end),
    ?assertEqual({outlives, lists:seq(1, 1000)}, ?O:shared(Ref)).

freed_wherever_the_last_reference_was(_Config) ->
    Size = 300_000,
    Table = ets:new(t, [public]),
    Held = settled_bytes(),
    Gone = fun() -> until(fun() -> native() < Held + Size div 2 end) end,
    Keepers = [
        fun(Ref) -> Ref end,
        fun(Ref) -> ?O:from_map(#{id => <<>>, capabilities_ref => Ref}) end,
        fun(Ref) -> ?O:from_map(#{id => <<>>, metadata => #{Ref => 1}}) end,
        fun(Ref) -> ?O:from_map(#{id => <<>>, metadata => #{k => [x, {Ref}]}}) end,
        fun(Ref) -> ?O:share([Ref]) end,
        fun(Ref) -> ?O:from_map(#{id => <<>>, f => fun() -> Ref end}) end,
        fun(Ref) -> ?O:from_map(#{id => <<>>, f => nested(500, fun(leaf) -> Ref; (T) -> {T} end)}) end,
        fun(Ref) -> ets:insert(Table, {k, Ref}), none end
    ],
    [
        begin
            alone(fun() ->
                Kept = Keep(?O:share({make_ref(), binary:copy(<<"x">>, Size)})),
                erlang:garbage_collect(),
                ?assert(native() >= Held + Size),
                {Kept, ok}
            end),
            case ets:take(Table, k) of
                [{k, Ref}] -> ?assertMatch({_, <<"x", _/binary>>}, ?O:shared(Ref));
                [] -> ok
            end,
            erlang:garbage_collect(),
            Gone()
        end
     || Keep <- Keepers
    ].

one_value_is_found(_Config) ->
    Tools = maps:from_list([
        {integer_to_binary(N), #{schema => #{type => N}, f => fun lists:map/2}}
     || N <- lists:seq(1, 20_000)
    ]),
    Ref = ?O:share(#{tools => Tools, prompts => [a]}),
    ?assertEqual({ok, 77}, ?O:find_shared(Ref, [tools, <<"77">>, schema, type])),
    ?assertEqual({ok, [a]}, ?O:find_shared(Ref, [prompts])),
    ?assertEqual(error, ?O:find_shared(Ref, [tools, <<"none">>])),
    ?assertEqual(error, ?O:find_shared(Ref, [prompts, a])),
    ?assertEqual({ok, #{tools => Tools, prompts => [a]}}, ?O:find_shared(Ref, [])),
    ?assertEqual({ok, 1}, ?O:find_shared(?O:share(1), [])),
    alone(fun() ->
        [?O:find_shared(Ref, [tools, <<"77">>]) || _ <- lists:seq(1, 100)],
        {memory, Memory} = process_info(self(), memory),
        ?assert(Memory < 500_000)
    end).

large_binaries_are_not_copied(_Config) ->
    Size = 10_000_000,
    Ref = ?O:share(#{reply => binary:copy(<<"r">>, Size), id => make_ref()}),
    Before = erlang:memory(total),
    Copies = [maps:get(reply, ?O:shared(Ref)) || _ <- lists:seq(1, 50)],
    {ok, Found} = ?O:find_shared(Ref, [reply]),
    ?assertEqual(Found, hd(Copies)),
    ?assert(erlang:memory(total) - Before < 2 * Size),
    %% A binary keeps the content by itself.
    Kept = alone(fun() -> ?O:shared(?O:share(binary:copy(<<"k">>, 1_000_000))) end),
    erlang:garbage_collect(),
    ?assertEqual(binary:copy(<<"k">>, 1_000_000), Kept).

a_chain_of_a_hundred_thousand(_Config) ->
    Held = settled_bytes(),
    alone(fun() ->
        Chain = lists:foldl(fun(N, Below) -> ?O:share([N | Below]) end, 0, lists:seq(1, 100_000)),
        ?assertMatch([100_000 | _], ?O:shared(Chain)),
        ?assert(native() - Held > 10_000_000),
        State = ?O:from_map(#{id => <<>>, chain => Chain}),
        ?assert(byte_size(?O:compress_state(State)) > 100_000)
    end),
    until(fun() -> native() < Held + 1_000_000 end).

many_references_in_one_value(_Config) ->
    Held = settled_bytes(),
    alone(fun() ->
        Refs = [?O:share({n, N}) || N <- lists:seq(1, 100_000)],
        All = ?O:share(Refs),
        ?assertEqual(Refs, ?O:shared(All)),
        %% As a key: it is found, replaced and taken out again.
        S1 = ?O:update_state_field(?O:create_optimized_state(<<>>), [metadata, Refs], 1),
        S2 = ?O:update_state_field(S1, [metadata, Refs], Refs),
        ?assertEqual(Refs, ?O:get_state_field(S2, [metadata, Refs])),
        ?assertEqual(#{}, ?O:get_state_field(?O:remove_state_field(S2, [metadata, Refs]), metadata))
    end),
    until(fun() -> native() < Held + 1_000_000 end).

made_and_lost_on_all_schedulers(_Config) ->
    Held = settled_bytes(),
    in_parallel(4 * erlang:system_info(schedulers_online), fun(_) ->
        [
            begin
                Term = {round, N rem 5, binary:copy(<<"x">>, 100)},
                Ref = ?O:share(Term),
                ?assertEqual(Ref, ?O:share(Term)),
                ?assertEqual(Term, ?O:shared(Ref)),
                N rem 7 =:= 0 andalso erlang:garbage_collect()
            end
         || N <- lists:seq(1, 5000)
        ]
    end),
    until(fun() -> native() < Held + 100_000 end).

wrong_arguments(_Config) ->
    State = ?O:create_optimized_state(<<>>),
    NoShares = [
        make_ref(), alias(), State, ets:new(t, []), atomics:new(1, []), undefined, 1, -1, [], "",
        <<>>, #{}, {}, self(), 1 bsl 70, fun() -> ok end
    ],
    [
        begin
            refused(1, shared, [No]),
            refused(1, find_shared, [No, []])
        end
     || No <- NoShares
    ],
    Ref = ?O:share(#{a => 1}),
    [
        refused(2, find_shared, [Ref, Path])
     || Path <- [a, {a}, <<>>, [a | b], [a, b | c], lists:duplicate(65, a), 1, #{}, make_ref()]
    ],
    %% More than 512 MiB in the native form.
    Half = binary:copy(<<0>>, 300_000_000),
    refused(1, share, [[Half, Half]]).
