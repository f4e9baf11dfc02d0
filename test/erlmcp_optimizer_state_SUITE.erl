%% Connection states: every call, in both forms.
-module(erlmcp_optimizer_state_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_optimizer_state_help, [every_kind/0, nested/2, refused/3]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, groups/0, init_per_group/2, end_per_group/2]).
-export([
    a_new_state/1,
    fields_are_read_and_written/1,
    metadata_is_merged/1,
    pending_refs_are_replaced/1,
    paths/1,
    the_longest_path/1,
    removal/1,
    maps_and_back/1,
    an_update_leaves_the_old_state_as_it_was/1,
    terms_of_every_type/1,
    terms_of_every_type_as_keys/1,
    equal_keys_are_one_key/1,
    wide_states/1,
    long_ids/1,
    cleanup_of_one_version/1,
    bad_arguments/1,
    a_foreign_reference_is_no_state/1,
    what_a_state_keeps_alive/1,
    a_million_levels/1,
    a_reader_during_cleanup/1,
    states_in_states/1,
    one_key_of_a_large_map/1
]).

-define(O, erlmcp_connection_optimizer).

all() ->
    [{group, compact}, {group, plain}, {group, native_only}].

groups() ->
    Both = [
        a_new_state,
        fields_are_read_and_written,
        metadata_is_merged,
        pending_refs_are_replaced,
        paths,
        the_longest_path,
        removal,
        maps_and_back,
        an_update_leaves_the_old_state_as_it_was,
        terms_of_every_type,
        terms_of_every_type_as_keys,
        equal_keys_are_one_key,
        wide_states,
        long_ids,
        bad_arguments,
        a_foreign_reference_is_no_state,
        a_million_levels
    ],
    Native = [
        cleanup_of_one_version,
        what_a_state_keeps_alive,
        a_reader_during_cleanup,
        states_in_states,
        one_key_of_a_large_map
    ],
    [{compact, [], Both}, {plain, [], Both}, {native_only, [], Native}].

init_per_group(Group, Config) ->
    erlmcp_optimizer_state_help:form(Group),
    Config.

end_per_group(_Group, _Config) ->
    erlmcp_optimizer_state_help:default().

new() ->
    ?O:create_optimized_state(<<"conn-1">>).

%%% Fields

a_new_state(_Config) ->
    Before = erlang:system_time(millisecond),
    State = new(),
    After = erlang:system_time(millisecond),
    Created = ?O:get_state_field(State, created_at),
    ?assert(Created >= Before - 1 andalso Created =< After + 1),
    ?assertEqual(
        #{
            id => <<"conn-1">>,
            phase => initialization,
            transport => undefined,
            capabilities_ref => undefined,
            metadata => #{},
            pending_refs => #{},
            created_at => Created
        },
        ?O:to_map(State)
    ),
    ?assertEqual(#{}, ?O:get_state_field(State, metadata)),
    ?assertEqual(#{}, ?O:get_state_field(State, [pending_refs])),
    ?assertEqual(undefined, ?O:get_state_field(State, no_such_field)),
    ?assertEqual(none, ?O:get_field_safe(State, transport, none)),
    ?assertEqual(#{}, ?O:get_field_safe(State, metadata, none)).

fields_are_read_and_written(_Config) ->
    [
        begin
            State = ?O:update_state_field(new(), Field, Value),
            ?assertEqual(Value, ?O:get_state_field(State, Field)),
            ?assertEqual(Value, ?O:get_state_field(State, [Field])),
            ?assertEqual(Value, maps:get(Field, ?O:to_map(State))),
            ?assertEqual(Value, ?O:get_field_safe(State, Field, default))
        end
     || {Field, Value} <- [
            {phase, any_phase},
            {transport, {tcp, 1}},
            {capabilities_ref, #{tools => []}},
            {id, <<"other">>},
            {created_at, -5},
            {server_name, <<"x">>},
            {'', 0}
        ]
    ],
    Unset = ?O:update_state_field(?O:update_state_field(new(), phase, a), phase, undefined),
    ?assertEqual(default, ?O:get_field_safe(Unset, phase, default)).

metadata_is_merged(_Config) ->
    S1 = ?O:update_state_field(new(), metadata, #{a => 1, b => 2}),
    S2 = ?O:update_state_field(S1, metadata, #{b => 3, c => #{}}),
    S3 = ?O:update_state_field(S2, [metadata], #{}),
    ?assertEqual(#{a => 1, b => 3, c => #{}}, ?O:get_state_field(S3, metadata)),
    Large = maps:from_list([{N, [N]} || N <- lists:seq(1, 3000)]),
    S4 = ?O:update_state_field(S3, metadata, Large),
    ?assertEqual(Large#{a => 1, b => 3, c => #{}}, ?O:get_state_field(S4, metadata)),
    Half = maps:from_list([{N, new} || N <- lists:seq(1501, 4500)]),
    S5 = ?O:update_state_field(S4, metadata, Half),
    ?assertEqual(
        maps:merge(Large#{a => 1, b => 3, c => #{}}, Half), ?O:get_state_field(S5, metadata)
    ).

pending_refs_are_replaced(_Config) ->
    {R1, R2} = {make_ref(), make_ref()},
    S1 = ?O:update_state_field(new(), pending_refs, #{R1 => 1}),
    S2 = ?O:update_state_field(S1, pending_refs, #{R2 => {2, self()}}),
    ?assertEqual(#{R2 => {2, self()}}, ?O:get_state_field(S2, pending_refs)),
    ?assertEqual(1, ?O:get_state_field(S1, [pending_refs, R1])).

paths(_Config) ->
    S1 = ?O:update_state_field(new(), [metadata, user_id], 42),
    S2 = ?O:update_state_field(S1, [subscriptions, <<"file:///x">>, level], 3),
    ?assertEqual(42, ?O:get_state_field(S2, [metadata, user_id])),
    ?assertEqual(3, ?O:get_state_field(S2, [subscriptions, <<"file:///x">>, level])),
    ?assertEqual(#{level => 3}, ?O:get_state_field(S2, [subscriptions, <<"file:///x">>])),
    ?assertEqual(undefined, ?O:get_state_field(S2, [subscriptions, none, level])),
    ?assertEqual(undefined, ?O:get_state_field(S2, [metadata, user_id, x])),
    ?assertEqual(d, ?O:get_field_safe(S2, [id, x], d)),
    refused(2, update_state_field, [S2, [metadata, user_id, x], 1]),
    refused(2, update_state_field, [S2, [id, x], 1]),
    %% A field that is undefined counts as missing.
    S3 = ?O:update_state_field(S2, [transport, kind], tcp),
    ?assertEqual(#{kind => tcp}, ?O:get_state_field(S3, transport)),
    %% What lies on a path is a map as any other.
    S4 = ?O:update_state_field(S3, [metadata, nested], #{deep => #{deeper => 1}}),
    S5 = ?O:update_state_field(S4, [metadata, nested, deep, more], 2),
    ?assertEqual(
        #{deep => #{deeper => 1, more => 2}}, ?O:get_state_field(S5, [metadata, nested])
    ).

the_longest_path(_Config) ->
    Path = [metadata | lists:seq(2, 64)],
    Value = nested(300, fun(T) -> #{k => [T]} end),
    State = ?O:update_state_field(new(), Path, Value),
    ?assertEqual(Value, ?O:get_state_field(State, Path)),
    ?assertEqual(undefined, ?O:get_state_field(?O:remove_state_field(State, Path), Path)),
    TooLong = Path ++ [65],
    refused(2, get_state_field, [State, TooLong]),
    refused(2, update_state_field, [State, TooLong, 1]),
    refused(2, remove_state_field, [State, TooLong]),
    %% Keys of a size that is too much for a normal scheduler when taken together.
    Large = [metadata | [binary:copy(<<N>>, 50_000) || N <- lists:seq(2, 64)]],
    Filled = ?O:update_state_field(State, Large, found),
    ?assertEqual(found, ?O:get_state_field(Filled, Large)).

removal(_Config) ->
    S1 = ?O:update_state_field(new(), metadata, #{a => 1, b => #{c => 2, d => 3}}),
    S2 = ?O:remove_state_field(S1, [metadata, b, c]),
    ?assertEqual(#{a => 1, b => #{d => 3}}, ?O:get_state_field(S2, metadata)),
    S3 = ?O:remove_state_field(S2, metadata),
    ?assertEqual(#{}, ?O:get_state_field(S3, metadata)),
    ?assertEqual(?O:to_map(S3), ?O:to_map(?O:remove_state_field(S3, nothing))),
    ?assertEqual(?O:to_map(S1), ?O:to_map(?O:remove_state_field(S1, [metadata, a, b]))),
    ?assertEqual(undefined, ?O:get_state_field(?O:remove_state_field(S1, phase), phase)),
    refused(2, remove_state_field, [S1, id]),
    refused(2, remove_state_field, [S1, [created_at]]).

maps_and_back(_Config) ->
    Map = #{
        id => <<"x">>, phase => p, transport => t, capabilities_ref => c, created_at => 7,
        metadata => #{1 => 2}, pending_refs => #{make_ref() => 1}, extra => [e]
    },
    ?assertEqual(Map, ?O:to_map(?O:from_map(Map))),
    #{phase := initialization, created_at := Now} = ?O:to_map(?O:from_map(#{id => <<"x">>})),
    ?assert(abs(Now - erlang:system_time(millisecond)) < 60_000),
    Odd = [
        #{}, #{id => id}, #{id => <<1:1>>}, #{id => <<>>, metadata => []},
        #{id => <<>>, pending_refs => 1}, #{id => <<>>, created_at => 1 bsl 63},
        #{id => <<>>, created_at => now}, #{id => <<>>, "field" => 1}, [], undefined
    ],
    [refused(1, from_map, [Wrong]) || Wrong <- Odd].

an_update_leaves_the_old_state_as_it_was(_Config) ->
    Step = fun(N, [{State, _} | _] = Versions) ->
        New = ?O:update_state_field(State, [metadata, N rem 300], {N, binary:copy(<<N>>, N)}),
        Other = ?O:remove_state_field(New, [metadata, (N * 7) rem 300]),
        [{Other, ?O:to_map(Other)} | Versions]
    end,
    First = new(),
    Versions = lists:foldl(Step, [{First, ?O:to_map(First)}], lists:seq(1, 700)),
    [?assertEqual(Map, ?O:to_map(State)) || {State, Map} <- Versions].

%%% Terms

terms_of_every_type(_Config) ->
    [
        begin
            S1 = ?O:update_state_field(new(), field, Term),
            ?assert(?O:get_state_field(S1, field) =:= Term),
            S2 = ?O:update_state_field(S1, [metadata, key], Term),
            ?assert(?O:get_state_field(S2, [metadata, key]) =:= Term),
            S3 = ?O:update_state_field(S2, metadata, #{other => {Term, [Term | Term]}}),
            ?assert(?O:get_state_field(S3, metadata) =:= #{key => Term, other => {Term, [Term | Term]}})
        end
     || Term <- every_kind()
    ],
    %% All in one, and the sign of a zero with it.
    All = every_kind(),
    State = ?O:from_map(#{id => <<"x">>, all => All}),
    Read = ?O:get_state_field(State, all),
    ?assert(Read =:= All),
    ?assertEqual([<<F/float>> || F <- All, is_float(F)], [<<F/float>> || F <- Read, is_float(F)]).

terms_of_every_type_as_keys(_Config) ->
    Kinds = every_kind(),
    [
        begin
            S1 = ?O:update_state_field(new(), [metadata, Key], v1),
            ?assertEqual(v1, ?O:get_state_field(S1, [metadata, Key])),
            ?assert(?O:get_state_field(S1, metadata) =:= #{Key => v1}),
            S2 = ?O:update_state_field(S1, metadata, #{Key => v2}),
            ?assert(?O:get_state_field(S2, metadata) =:= #{Key => v2}),
            S3 = ?O:remove_state_field(S2, [metadata, Key]),
            ?assertEqual(#{}, ?O:get_state_field(S3, metadata)),
            %% Deep below other maps, where the value as a whole was written.
            Path = lists:duplicate(40, k),
            Deep = lists:foldl(fun(K, Map) -> #{K => Map} end, #{Key => v}, Path),
            S4 = ?O:update_state_field(new(), deep, Deep),
            ?assertEqual(v, ?O:get_state_field(S4, [deep | Path] ++ [Key]))
        end
     || Key <- Kinds
    ],
    Map = maps:from_list([{Key, Key} || Key <- Kinds]),
    State = ?O:update_state_field(new(), metadata, Map),
    ?assert(?O:get_state_field(State, metadata) =:= Map),
    [?assert(?O:get_state_field(State, [metadata, Key]) =:= Value) || {Key, Value} <- maps:to_list(Map)].

equal_keys_are_one_key(_Config) ->
    <<Negative/float>> = <<16#80, 0:56>>,
    Closure = fun(X) -> fun() -> X end end,
    [
        begin
            Expected = #{A => 1, B => 2},
            S1 = ?O:update_state_field(new(), [metadata, A], 1),
            S2 = ?O:update_state_field(S1, [metadata, B], 2),
            ?assertEqual(map_size(Expected), map_size(?O:get_state_field(S2, metadata)))
        end
     || {A, B} <- [
            {0.0, Negative},
            {{0.0, [0.0]}, {0.0, [Negative]}},
            {1, 1.0},
            {Closure(0.0), Closure(Negative)},
            {Closure(a), Closure(a)}
        ]
    ].

a_million_levels(_Config) ->
    [
        begin
            Deep = nested(1_000_000, Wrap),
            State = ?O:update_state_field(new(), [metadata, deep], Deep),
            ?assert(?O:get_state_field(State, [metadata, deep]) =:= Deep),
            Twice = ?O:update_state_field(State, again, {Deep, 1}),
            ?assert(?O:get_state_field(Twice, again) =:= {Deep, 1})
        end
     || Wrap <- [fun(T) -> {T} end, fun(T) -> [T] end, fun(T) -> [x | T] end, fun(T) -> #{k => T} end]
    ].

%%% Sizes of states

wide_states(_Config) ->
    Fields = maps:from_list([
        {list_to_atom("wide_" ++ integer_to_list(N)), [N, <<N:32>>]}
     || N <- lists:seq(1, 10_000)
    ]),
    State = ?O:from_map(Fields#{id => <<"wide">>}),
    ?assertEqual([77, <<77:32>>], ?O:get_state_field(State, wide_77)),
    Changed = ?O:update_state_field(State, wide_77, changed),
    ?assertEqual(Fields#{wide_77 := changed}, maps:with(maps:keys(Fields), ?O:to_map(Changed))),
    #{total_bytes := Total, extra := Extra} = ?O:state_size_info(Changed),
    ?assert(Extra > 100_000 andalso Total > Extra),
    Removed = lists:foldl(fun(F, S) -> ?O:remove_state_field(S, F) end, State, maps:keys(Fields)),
    ?assertEqual(7, map_size(?O:to_map(Removed))),
    ?assertEqual(Total, ?O:estimate_memory(Changed)).

long_ids(_Config) ->
    [
        begin
            Id = binary:copy(<<"i">>, Size),
            State = ?O:update_state_field(?O:create_optimized_state(Id), phase, ready),
            ?assertEqual(Id, ?O:get_state_field(State, id)),
            #{id := Bytes, total_bytes := Total} = ?O:state_size_info(State),
            ?assert(Bytes >= Size andalso Total > Bytes)
        end
     || Size <- [0, 1, 31, 32, 255, 256, 257, 65_535, 65_536, 1_000_000]
    ].

cleanup_of_one_version(_Config) ->
    S1 = ?O:update_state_field(new(), metadata, #{k => lists:seq(1, 100_000)}),
    S2 = ?O:update_state_field(S1, phase, later),
    ?assertEqual(ok, ?O:cleanup_state(S1)),
    %% Twice is no error.
    ?assertEqual(ok, ?O:cleanup_state(S1)),
    Calls = [
        {get_state_field, [S1, id]}, {get_field_safe, [S1, id, d]}, {to_map, [S1]},
        {update_state_field, [S1, a, 1]}, {remove_state_field, [S1, a]}, {compress_state, [S1]},
        {estimate_memory, [S1]}, {state_size_info, [S1]}
    ],
    [refused(1, Function, Args) || {Function, Args} <- Calls],
    ?assertEqual(lists:seq(1, 100_000), ?O:get_state_field(S2, [metadata, k])),
    ?assertEqual(later, ?O:get_state_field(S2, phase)),
    %% At once: no garbage collection is needed for it.
    Before = erlmcp_optimizer_state_help:settled_bytes(),
    Large = ?O:update_state_field(new(), blob, binary:copy(<<"x">>, 20_000_000)),
    ?assert(erlmcp_memory_nif:native_bytes() - Before >= 20_000_000),
    ok = ?O:cleanup_state(Large),
    ?assert(erlmcp_memory_nif:native_bytes() - Before < 1_000_000),
    refused(1, to_map, [Large]).

%%% Wrong arguments

bad_arguments(_Config) ->
    State = new(),
    [
        refused(1, create_optimized_state, [Id])
     || Id <- [undefined, "conn", 1, <<1:1>>, [], {}, #{}, make_ref(), [<<"a">>], -1, 1 bsl 70]
    ],
    Paths = [
        [], [1], [<<"x">>, a], [a | b], [a, b | c], 1, 1.5, <<"phase">>, {a}, #{}, self(),
        make_ref(), "phase", 1 bsl 64, lists:duplicate(65, a), lists:duplicate(1_000_000, a),
        fun() -> ok end
    ],
    [
        begin
            refused(2, get_state_field, [State, Path]),
            refused(2, get_field_safe, [State, Path, d]),
            refused(2, update_state_field, [State, Path, 1]),
            refused(2, remove_state_field, [State, Path])
        end
     || Path <- Paths
    ],
    [
        refused(3, update_state_field, [State, Field, Value])
     || Field <- [metadata, [metadata], pending_refs, [pending_refs]],
        Value <- [undefined, [], [{a, 1}], 1, <<>>, make_ref(), {}]
    ],
    [refused(3, update_state_field, [State, id, V]) || V <- [undefined, "x", <<1:7>>, 1]],
    [
        refused(3, update_state_field, [State, created_at, V])
     || V <- [undefined, 1.0, 1 bsl 63, -(1 bsl 63) - 1, <<>>]
    ].

a_foreign_reference_is_no_state(_Config) ->
    application:unset_env(erlmcp, memory_pool_size),
    {ok, Pool} = erlmcp_memory_pool:start_link(),
    {ok, Pooled} = erlmcp_memory_pool:acquire_connection_state(#{}),
    {ok, Buffer, _} = erlmcp_memory_pool:acquire_message_buffer(10),
    NoStates = [
        make_ref(), alias(), Pooled, Buffer, ets:new(t, []), atomics:new(1, []), ?O:share(1),
        undefined, 1, [], #{}, <<>>, {}, self(), {connection_state, 1}
    ],
    [
        begin
            refused(1, get_state_field, [No, id]),
            refused(1, get_field_safe, [No, id, d]),
            refused(1, update_state_field, [No, phase, x]),
            refused(1, remove_state_field, [No, phase]),
            refused(1, to_map, [No]),
            refused(1, compress_state, [No]),
            refused(1, estimate_memory, [No]),
            refused(1, state_size_info, [No]),
            refused(1, cleanup_state, [No])
        end
     || No <- NoStates
    ],
    ok = erlmcp_memory_pool:release_connection_state(Pooled),
    ok = erlmcp_memory_pool:release_message_buffer(Buffer),
    unlink(Pool),
    gen_server:stop(Pool).

%%% What is kept alive

what_a_state_keeps_alive(_Config) ->
    State = erlmcp_optimizer_state_help:alone(fun() ->
        Counter = atomics:new(1, []),
        ok = atomics:put(Counter, 1, 42),
        Counters = counters:new(1, []),
        ok = counters:add(Counters, 1, 43),
        {ok, Re} = re:compile("a+b"),
        Read = fun() -> {atomics:get(Counter, 1), counters:get(Counters, 1)} end,
        ?O:from_map(#{
            id => <<"x">>, counter => Counter, metadata => #{Counters => [Counters]}, re => Re,
            read => Read, state => ?O:create_optimized_state(<<"inner">>)
        })
    end),
    lists:foreach(fun erlang:garbage_collect/1, processes()),
    ?assertEqual(42, atomics:get(?O:get_state_field(State, counter), 1)),
    [Counters] = maps:keys(?O:get_state_field(State, metadata)),
    ?assertEqual(43, counters:get(Counters, 1)),
    ?assertEqual([Counters], ?O:get_state_field(State, [metadata, Counters])),
    ?assertEqual({42, 43}, (?O:get_state_field(State, read))()),
    ?assertEqual({match, [{1, 3}]}, re:run("xaab", ?O:get_state_field(State, re))),
    ?assertEqual(<<"inner">>, ?O:get_state_field(?O:get_state_field(State, state), id)),
    %% A plain reference needs nothing of that, and an alias is still one.
    Plain = ?O:update_state_field(new(), ref, make_ref()),
    Resource = ?O:update_state_field(new(), ref, atomics:new(1, [])),
    ?assert(?O:estimate_memory(Plain) < ?O:estimate_memory(new()) + 100),
    ?assert(?O:estimate_memory(Resource) > ?O:estimate_memory(Plain) + 1000),
    Alias = ?O:get_state_field(?O:update_state_field(new(), alias, alias()), alias),
    Alias ! hello,
    receive hello -> ok after 5000 -> ct:fail(no_alias) end.

a_reader_during_cleanup(_Config) ->
    Content = lists:seq(1, 1_000_000),
    [
        begin
            State = ?O:update_state_field(new(), content, Content),
            erlmcp_pool_help:in_parallel(8, fun
                (1) ->
                    ok = ?O:cleanup_state(State);
                (N) ->
                    try ?O:get_state_field(State, field(N)) of
                        undefined -> ok;
                        Read -> ?assertEqual(Content, Read)
                    catch
                        error:badarg -> ok
                    end
            end)
        end
     || _ <- lists:seq(1, 3)
    ].

field(N) when N rem 2 =:= 0 -> content;
field(_) -> none.

states_in_states(_Config) ->
    Bytes = erlmcp_optimizer_state_help:settled_bytes(),
    erlmcp_optimizer_state_help:alone(fun() ->
        Chain = lists:foldl(
            fun(_, State) -> ?O:update_state_field(new(), below, State) end,
            new(),
            lists:seq(1, 50_000)
        ),
        ?assertEqual(<<"conn-1">>, ?O:get_state_field(?O:get_state_field(Chain, below), id)),
        ok
    end),
    until(fun() -> erlmcp_memory_nif:native_bytes() < Bytes + 1_000_000 end).

one_key_of_a_large_map(_Config) ->
    Map = maps:from_list([{N, {value, N, <<N:64>>}} || N <- lists:seq(1, 100_000)]),
    State = ?O:update_state_field(new(), metadata, Map),
    Held = erlmcp_optimizer_state_help:settled_bytes(),
    Versions = [
        ?O:update_state_field(State, [metadata, N], changed)
     || N <- lists:seq(1, 100_000, 1000)
    ],
    Removed = [?O:remove_state_field(State, [metadata, N]) || N <- lists:seq(1, 100_000, 1000)],
    %% 200 versions: a page and the branches above it each.
    ?assert(erlmcp_memory_nif:native_bytes() - Held < 200 * 16_384),
    ?assertEqual(?O:get_state_field(State, metadata), Map),
    ?assertEqual(changed, ?O:get_state_field(hd(Versions), [metadata, 1])),
    ?assertEqual(undefined, ?O:get_state_field(hd(Removed), [metadata, 1])),
    ?assertEqual({value, 2, <<2:64>>}, ?O:get_state_field(hd(Removed), [metadata, 2])),
    %% Reading one key builds that one: no garbage to speak of.
    erlmcp_optimizer_state_help:alone(fun() ->
        {memory, Before} = process_info(self(), memory),
        [?O:get_state_field(State, [metadata, N]) || N <- lists:seq(1, 100)],
        {memory, After} = process_info(self(), memory),
        ?assert(After - Before < 1_000_000)
    end).
