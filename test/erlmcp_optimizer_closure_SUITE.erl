%% Funs, and what the VM alone can build: who made a fun, what it closes over, deep terms, and the
%% native records of OTP 29.
-module(erlmcp_optimizer_closure_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_optimizer_state_help, [alone/1, nested/2, peak/1, settled_bytes/0, watch/0]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, groups/0]).
-export([init_per_suite/1, end_per_suite/1, init_per_group/2, end_per_group/2]).
-export([
    equal_funs_of_other_processes_are_one_share/1,
    equal_funs_of_other_processes_are_one_key/1,
    equal_funs_are_one_element_of_a_shared_set/1,
    a_path_through_a_share_leads_over_funs/1,
    funs_of_modules_are_equal_everywhere/1,
    a_pooled_state_has_an_equal_fun_once/1,
    a_piece_of_a_binary_keeps_no_more/1,
    a_binary_in_a_fun_is_held_once_and_counted/1,
    handlers_take_little_more_than_on_a_heap/1,
    large_binaries_in_funs_and_deep_terms/1,
    more_funs_than_a_snapshot_used_to_hold/1,
    parts_that_unfold_are_refused_before_they_do/1,
    parts_of_a_plain_state_are_counted_once/1,
    funs_in_funs_are_bounded/1,
    funs_around_a_term_are_read_at_the_size_of_the_term/1,
    a_tree_of_funs_is_read_whole/1,
    opening_funs_looks_at_each_a_few_times/1,
    the_last_element_of_a_list_or_a_tuple_takes_no_level/1,
    maps_that_are_keys_of_maps_are_bounded/1,
    references_of_other_libraries_take_one_environment/1,
    large_states_one_after_the_other_are_collected/1,
    deep_terms_in_every_call/1,
    deep_terms_are_keys/1,
    deep_terms_of_other_processes_are_one_share/1,
    records_come_back/1,
    records_around_a_term_are_read_at_the_size_of_the_term/1,
    records_are_keys/1,
    records_are_shared_and_pooled/1,
    a_record_with_a_field_twice_is_corrupt/1
]).

-define(O, erlmcp_connection_optimizer).
-define(P, erlmcp_memory_pool).

all() ->
    [{group, funs}, {group, sizes}, {group, deep}, {group, records}].

groups() ->
    [
        {funs, [], [
            equal_funs_of_other_processes_are_one_share,
            equal_funs_of_other_processes_are_one_key,
            equal_funs_are_one_element_of_a_shared_set,
            a_path_through_a_share_leads_over_funs,
            funs_of_modules_are_equal_everywhere,
            a_pooled_state_has_an_equal_fun_once
        ]},
        {sizes, [], [
            a_piece_of_a_binary_keeps_no_more,
            a_binary_in_a_fun_is_held_once_and_counted,
            handlers_take_little_more_than_on_a_heap,
            large_binaries_in_funs_and_deep_terms,
            more_funs_than_a_snapshot_used_to_hold,
            parts_that_unfold_are_refused_before_they_do,
            parts_of_a_plain_state_are_counted_once,
            funs_in_funs_are_bounded,
            funs_around_a_term_are_read_at_the_size_of_the_term,
            a_tree_of_funs_is_read_whole,
            opening_funs_looks_at_each_a_few_times,
            the_last_element_of_a_list_or_a_tuple_takes_no_level,
            maps_that_are_keys_of_maps_are_bounded,
            references_of_other_libraries_take_one_environment,
            large_states_one_after_the_other_are_collected
        ]},
        {deep, [], [
            deep_terms_in_every_call,
            deep_terms_are_keys,
            deep_terms_of_other_processes_are_one_share
        ]},
        {records, [], [
            records_come_back,
            records_around_a_term_are_read_at_the_size_of_the_term,
            records_are_keys,
            records_are_shared_and_pooled,
            a_record_with_a_field_twice_is_corrupt
        ]}
    ].

init_per_suite(Config) ->
    erlmcp_optimizer_state_help:default(),
    erlmcp_pool_help:clear(),
    erlmcp_pool_help:start(),
    Config.

end_per_suite(_Config) ->
    erlmcp_pool_help:clear().

init_per_group(records, Config) ->
    case code:ensure_loaded(records) of
        {module, records} -> Config;
        {error, _} -> {skip, "no native records before OTP 29"}
    end;
init_per_group(_Group, Config) ->
    Config.

end_per_group(_Group, _Config) ->
    erlmcp_optimizer_state_help:default().

with(Value) ->
    ?O:from_map(#{id => <<>>, f => Value}).

again(State) ->
    ?O:decompress_state(?O:compress_state(State)).

%%% Funs

%% Funs in funs, three deep.
handler(Name, Scope) ->
    Innermost = fun(Args) -> {Scope, Args} end,
    Check = fun(Args) -> {Scope, Innermost(Args)} end,
    fun(Args) -> {Name, Check(Args)} end.

%% Terms with such a fun in every place that a term has.
with_handlers() ->
    Handler = handler(echo, admin),
    Containers = [
        [Handler], [a | Handler], {Handler}, #{k => Handler}, #{Handler => v},
        maps:from_list([{N, handler(N, admin)} || N <- lists:seq(1, 40)]),
        #{{k, [Handler]} => 1}
    ],
    [
        Handler,
        nested(140, fun(T) -> [T, Handler] end),
        nested(140, fun(T) -> #{Handler => T} end)
        | Containers
    ] ++ [fun(A) -> {C, A} end || C <- Containers].

equal_funs_of_other_processes_are_one_share(_Config) ->
    Here = with_handlers(),
    There = alone(fun with_handlers/0),
    ?assert(Here =:= There),
    Shares = [?O:share(Term) || Term <- Here],
    [
        ?assertEqual({N, Share}, {N, ?O:share(Term)})
     || {N, Share, Term} <- lists:zip3(lists:seq(1, length(Here)), Shares, There)
    ],
    Same = alone(fun() -> [?O:share(Term) || Term <- with_handlers()] end),
    ?assertEqual(Shares, Same),
    Tools = fun() -> #{tools => handler(echo, admin), pad => lists:seq(1, 2000)} end,
    Many = [alone(fun() -> ?O:share(Tools()) end) || _ <- lists:seq(1, 200)],
    ?assertEqual(1, length(lists:usort(Many))),
    [?assert((maps:get(tools, ?O:shared(Ref)))(x) =:= (handler(echo, admin))(x)) || Ref <- Many],
    ok.

%% Keys that are funs, or have one in them; those of `with_handlers/0' are not equal.
equal_funs_of_other_processes_are_one_key(_Config) ->
    Here = with_handlers(),
    There = alone(fun with_handlers/0),
    Count = length(Here),
    State = ?O:from_map(#{id => <<>>, metadata => maps:from_keys(Here, here)}),
    [
        begin
            ?assertEqual({N, here}, {N, ?O:get_state_field(State, [metadata, Key])}),
            Changed = ?O:update_state_field(State, [metadata, Key], there),
            ?assertEqual(
                {N, Count}, {N, maps:get(metadata_map_size, ?O:state_size_info(Changed))}
            ),
            ?assertEqual({N, there}, {N, ?O:get_state_field(Changed, [metadata, Key])}),
            Removed = ?O:remove_state_field(State, [metadata, Key]),
            ?assertEqual({N, undefined}, {N, ?O:get_state_field(Removed, [metadata, Key])})
        end
     || {N, Key} <- lists:zip(lists:seq(1, Count), There)
    ],
    %% The metadata are merged.
    Merged = ?O:update_state_field(State, metadata, maps:from_keys(There, there)),
    ?assert(?O:get_state_field(Merged, metadata) =:= maps:from_keys(Here, there)),
    %% In a snapshot, too.
    Read = again(State),
    [?assertEqual(here, ?O:get_state_field(Read, [metadata, Key])) || Key <- There],
    ok.

equal_funs_are_one_element_of_a_shared_set(_Config) ->
    Set = fun() -> sets:from_list(with_handlers(), [{version, 2}]) end,
    Here = ?O:share(Set()),
    ?assertEqual(Here, alone(fun() -> ?O:share(Set()) end)),
    %% A set of shares of funs has one element, whoever made the funs.
    Shares = [alone(fun() -> ?O:share(handler(in_a_set, X)) end) || X <- [1, 1, 1, 2]],
    ?assertEqual(2, sets:size(sets:from_list(Shares, [{version, 2}]))),
    Both = [
        ?O:share(sets:from_list(lists:reverse(Some), [{version, 2}])) || Some <- [Shares, tl(Shares)]
    ],
    ?assertMatch([_], lists:usort(Both)).

a_path_through_a_share_leads_over_funs(_Config) ->
    Content = fun() -> #{handler(a, b) => #{[handler(c, d)] => handler(e, f)}} end,
    Share = alone(fun() ->
        Made = ?O:share(Content()),
        until(fun() -> ?O:shared(Made) =:= Content() end),
        Made
    end),
    {ok, Found} = ?O:find_shared(Share, [handler(a, b), [handler(c, d)]]),
    ?assert(Found =:= handler(e, f)),
    ?assertEqual({e, {f, {f, x}}}, Found(x)),
    ?assertEqual(error, ?O:find_shared(Share, [handler(a, c)])),
    ?assertMatch({ok, _}, alone(fun() -> ?O:find_shared(Share, [handler(a, b)]) end)).

funs_of_modules_are_equal_everywhere(_Config) ->
    Terms = fun() ->
        F = fun lists:map/2,
        [F, fun erlang:node/0, fun no_such_module:f/3, [F], #{F => F}, fun() -> F end,
         nested(140, fun(T) -> [T, F] end)]
    end,
    There = alone(Terms),
    Read = binary_to_term(term_to_binary(Terms())),
    State = ?O:from_map(#{id => <<>>, metadata => maps:from_keys(Terms(), 1)}),
    [
        begin
            ?assert(?O:share(Here) =:= ?O:share(Other)),
            ?assertEqual(1, ?O:get_state_field(State, [metadata, Other])),
            ?assertEqual(1, ?O:get_state_field(again(State), [metadata, Other]))
        end
     || Others <- [There, Read], {Here, Other} <- lists:zip(Terms(), Others)
    ],
    ok.

a_pooled_state_has_an_equal_fun_once(_Config) ->
    {ok, Ref} = ?P:acquire_connection_state(maps:from_keys(with_handlers(), here)),
    There = alone(fun with_handlers/0),
    ok = ?P:update_connection_state(Ref, maps:from_keys(There, there)),
    {ok, Map} = ?P:connection_state(Ref),
    ?assert(Map =:= maps:from_keys(There, there)),
    ok = ?P:update_connection_state(Ref, #{handler(echo, admin) => handler(x, y)}),
    {ok, #{} = Last} = ?P:connection_state(Ref),
    ?assertEqual(map_size(Map), map_size(Last)),
    ?assertEqual({x, {y, {y, 1}}}, (maps:get(handler(echo, admin), Last))(1)),
    ok = ?P:release_connection_state(Ref).

%%% Sizes

%% What a call leaves behind, in a process of its own that has the result meanwhile.
left(Make) ->
    alone(fun() ->
        Before = settled_total(),
        Result = Make(),
        garbage_collect(),
        {settled_total() - Before, size_of(Result)}
    end).

size_of(Result) ->
    try ?O:estimate_memory(Result) catch error:badarg -> none end.

settled_total() ->
    _ = settled_bytes(),
    erlang:memory(binary) + erlang:memory(system).

a_piece_of_a_binary_keeps_no_more(_Config) ->
    Piece = fun() -> binary:part(binary:copy(<<"x">>, 50_000_000), 10, 100) end,
    Bits = fun() ->
        <<_:3, Bits:333/bitstring, _/bitstring>> = binary:copy(<<"x">>, 50_000_000),
        Bits
    end,
    Closed = fun(Sub) -> fun() -> Sub end end,
    Terms = [
        {closure, fun() -> Closed(Piece()) end},
        {closure_of_bits, fun() -> Closed(Bits()) end},
        {closure_of_closure, fun() -> Closed(Closed(#{k => [Piece()]})) end},
        {deep, fun() -> Sub = Piece(), nested(140, fun(T) -> [T, Sub] end) end},
        {deep_tuples, fun() -> Sub = Piece(), nested(140, fun(T) -> {T, Sub} end) end},
        {deep_closure, fun() -> Sub = Piece(), nested(140, fun(T) -> [T, Closed(Sub)] end) end},
        {key, fun() -> #{Closed(Piece()) => 1} end}
    ],
    Calls = [
        {state, fun(Term) -> with(Term) end},
        {share, fun(Term) -> ?O:share(Term) end},
        {pool, fun(Term) -> {ok, Ref} = ?P:acquire_connection_state(#{f => Term}), Ref end}
    ],
    [
        begin
            {Left, _} = left(fun() -> Call(Make()) end),
            ?assertMatch({Name, Kind, Bytes} when Bytes < 2_000_000, {Name, Kind, Left})
        end
     || {Name, Make} <- Terms, {Kind, Call} <- Calls
    ],
    ok.

a_binary_in_a_fun_is_held_once_and_counted(_Config) ->
    Size = 20_000_000,
    Closed = fun(Big) -> fun() -> Big end end,
    Forms = [
        {closure, Closed},
        {closure_of_closure, fun(Big) -> Closed(Closed(Big)) end},
        {deep, fun(Big) -> nested(140, fun(leaf) -> [Big]; (T) -> [T] end) end}
    ],
    [
        begin
            {Left, Said} = left(fun() -> with(Form(binary:copy(<<"y">>, Size))) end),
            ?assertMatch({Name, L, _} when L < 21_500_000, {Name, Left, Said}),
            ?assertMatch({Name, _, S} when S > 19_000_000, {Name, Left, Said}),
            ?assertMatch({Name, _, S} when S < 21_500_000, {Name, Left, Said})
        end
     || {Name, Form} <- Forms
    ],
    %% Large parts of the heap of another kind are counted as well.
    {Left, Said} = left(fun() -> with(Closed(lists:seq(1, 1_000_000))) end),
    ?assertMatch({_, L} when L > 900_000 andalso L < 32_000_000, {Said, Left}),
    ?assertMatch({S, _} when S > Left * 9 div 10 - 100_000, {Said, Left}),
    ?assertMatch({S, _} when S < Left * 13 div 10 + 100_000, {Said, Left}).

handlers_take_little_more_than_on_a_heap(_Config) ->
    Handlers = fun(User) ->
        maps:from_list([{integer_to_binary(I), fun(A) -> {User, I, A} end} || I <- lists:seq(1, 18)])
    end,
    Heap = erts_debug:flat_size(Handlers(1)) * erlang:system_info(wordsize),
    Native = alone(fun() ->
        Before = settled_bytes(),
        States = [?O:from_map(#{id => <<"c">>, handlers => Handlers(U)}) || U <- lists:seq(1, 1000)],
        Bytes = (settled_bytes() - Before) div 1000,
        Said = lists:sum([?O:estimate_memory(State) || State <- States]) div 1000,
        {Bytes, Said}
    end),
    ?assertMatch({B, S} when B < 3 * Heap andalso S < 3 * Heap, Native).

large_binaries_in_funs_and_deep_terms(_Config) ->
    Image = binary:copy(<<"i">>, 17_000_000),
    Terms = [
        nested(140, fun(leaf) -> [Image]; (T) -> [T] end),
        nested(140, fun(leaf) -> {Image}; (T) -> {T} end),
        fun() -> Image end,
        fun() -> fun() -> Image end end
    ],
    [
        begin
            State = ?O:update_state_field(?O:create_optimized_state(<<"x">>), f, Term),
            ?assert(?O:get_state_field(State, f) =:= Term),
            ?assert(?O:get_state_field(again(State), f) =:= Term),
            ?assert(?O:shared(?O:share(Term)) =:= Term)
        end
     || Term <- Terms
    ],
    ok.

more_funs_than_a_snapshot_used_to_hold(_Config) ->
    Subscribers = [fun() -> N end || N <- lists:seq(1, 70_000)],
    State = with(Subscribers),
    Read = again(State),
    ?assert(?O:get_state_field(Read, f) =:= Subscribers),
    ?assert(?O:estimate_memory(State) < 10 * 1024 * 1024).

%% A term of 28 cells that has 2^28 ways through it.
unfolding(Cells) ->
    nested(Cells, fun(T) -> [T | T] end).

parts_that_unfold_are_refused_before_they_do(_Config) ->
    Unfolding = unfolding(28),
    Terms = [
        Unfolding,
        fun() -> Unfolding end,
        fun() -> fun() -> Unfolding end end,
        #{fun() -> Unfolding end => 1},
        nested(28, fun(T) -> {T, T} end),
        nested(28, fun(T) -> #{a => T, b => T} end),
        nested(140, fun(leaf) -> Unfolding; (T) -> [T] end)
    ],
    Watch = watch(),
    %% Not printed: that is a way through it.
    [
        begin
            ?assertEqual({N, badarg}, {N, raised(fun() -> ?O:share(Term) end)}),
            ?assertEqual({N, badarg}, {N, raised(fun() -> with(Term) end)}),
            ?assertEqual(
                {N, badarg}, {N, raised(fun() -> ?P:acquire_connection_state(#{k => Term}) end)}
            )
        end
     || {N, Term} <- lists:zip(lists:seq(1, length(Terms)), Terms)
    ],
    ?assertMatch(Peak when Peak < 1_100_000_000, peak(Watch)),
    %% A fun that others close over twice is no more than one fun.
    Funs = with(nested(100, fun(T) -> fun() -> {T, T} end end)),
    ?assert(?O:estimate_memory(Funs) < 20_000),
    ?assert(is_function(?O:get_state_field(again(Funs), f))).

raised(Fun) ->
    try Fun() of
        _ -> nothing
    catch
        error:Reason -> Reason
    end.

funs_in_funs_are_bounded(_Config) ->
    Nested = fun(Levels) -> nested(Levels, fun(T) -> fun() -> T end end) end,
    Deep = Nested(1000),
    ?assert(?O:get_state_field(again(with(Deep)), f) =:= Deep),
    [
        ?assertEqual({Levels, badarg}, {Levels, raised(fun() -> with(Nested(Levels)) end)})
     || Levels <- [1001, 1002, 5000]
    ],
    ?assertEqual(badarg, raised(fun() -> ?O:share(Nested(1001)) end)).

%% Each was made anew with all that is in it, and nothing of that went before the call ended.
funs_around_a_term_are_read_at_the_size_of_the_term(_Config) ->
    Around = fun(Term) -> nested(200, fun(leaf) -> Term; (T) -> fun(X) -> {T, X} end end) end,
    read_at_its_size(Around(binary:copy(<<"b">>, 4_000_000))),
    read_at_its_size(Around(lists:seq(1000, 250_000))).

read_at_its_size(Term) ->
    State = ?O:update_state_field(?O:create_optimized_state(<<"x">>), f, Term),
    Share = ?O:share(Term),
    Parked = ?O:park(Term),
    Reads = [
        {field, fun() -> ?O:get_state_field(State, f) end},
        {snapshot, fun() -> ?O:get_state_field(again(State), f) end},
        {shared, fun() -> ?O:shared(Share) end},
        {found, fun() -> element(2, ?O:find_shared(Share, [])) end},
        {unparked, fun() -> ?O:unpark(Parked) end}
    ],
    [
        begin
            true = erlang:garbage_collect(),
            Watch = watch(),
            ?assert({Name, true} =:= {Name, Read() =:= Term}),
            ?assertMatch({_, Peak} when Peak < 100_000_000, {Name, peak(Watch)})
        end
     || {Name, Read} <- Reads
    ],
    ok.

%% Each kind of term, and what it refers to, in funs in funs.
a_tree_of_funs_is_read_whole(_Config) ->
    Share = ?O:share({shared, make_ref()}),
    Other = ?O:create_optimized_state(<<"other">>),
    Table = ets:new(t, []),
    Leaves = [
        0, 255, 256, -1, 1 bsl 31, -(1 bsl 40), -(1 bsl 63), 1 bsl 63, 0.5, [], {}, #{}, "bytes",
        lists:duplicate(70_000, $a), <<1:3>>, <<"b">>, binary:copy(<<"b">>, 100), [a | b],
        list_to_tuple(lists:seq(1, 300)), maps:from_list([{N, N} || N <- lists:seq(1, 100)]),
        self(), hd(erlang:ports()), make_ref(), fun lists:map/2, binary_to_atom(<<"ä"/utf8>>),
        Share, Other, Table
    ],
    Tree = nested(6, fun(T) -> fun(X) -> {[T, X | Leaves], #{k => T, T => Leaves}} end end),
    Pair = nested(10, fun(T) -> L = fun(X) -> {T, X} end, R = fun(X) -> [T | X] end, {L, R} end),
    [
        begin
            State = with(Term),
            ?assert(?O:get_state_field(State, f) =:= Term),
            ?assert(?O:shared(?O:share(Term)) =:= Term),
            ?assert(?O:unpark(?O:park(Term)) =:= Term)
        end
     || Term <- [Tree, Pair, fun() -> Pair end]
    ],
    %% A fun keeps what it refers to.
    Kept = alone(fun() ->
        Content = {content, [erlang:unique_integer()]},
        Ref = ?O:share(Content),
        {with(fun() -> fun() -> Ref end end), Content}
    end),
    {KeptIn, Content} = Kept,
    true = erlang:garbage_collect(),
    Outer = ?O:get_state_field(KeptIn, f),
    ?assertEqual(Content, ?O:shared((Outer())())).

%% All that was opened was looked at once more for each level of funs in funs.
opening_funs_looks_at_each_a_few_times(_Config) ->
    {Funs, Levels} = {3000, 300},
    Opener = spawn_link(fun() ->
        receive go -> ok end,
        Chain = nested(Levels, fun(T) -> fun() -> T end end),
        with([Chain | [fun() -> N end || N <- lists:seq(1, Funs)]])
    end),
    %% How long the lists are that the calls are given.
    Both = {'+', {length, '$1'}, {length, '$2'}},
    Lengths = [
        {['$1', '$2'], [{is_list, '$2'}], [{message, Both}]},
        {['$1', '_'], [], [{message, {length, '$1'}}]}
    ],
    Calls = [{erlmcp_memory_nif, F, 2} || F <- [terms_closed, terms_unopened]],
    _ = [erlang:trace_pattern(Call, Lengths, [global]) || Call <- Calls],
    1 = erlang:trace(Opener, true, [call, arity]),
    Monitor = monitor(process, Opener),
    Opener ! go,
    receive {'DOWN', Monitor, process, Opener, normal} -> ok after 60_000 -> ct:fail(slow) end,
    Delivered = erlang:trace_delivered(Opener),
    receive {trace_delivered, Opener, Delivered} -> ok after 60_000 -> ct:fail(slow) end,
    _ = [erlang:trace_pattern(Call, false, [global]) || Call <- Calls],
    Lookups = lookups(Opener, []),
    ?assert(length(Lookups) >= Levels),
    ?assertMatch(Sum when Sum < 4 * (Funs + Levels), lists:sum(Lookups)).

lookups(Pid, Seen) ->
    receive
        {trace, Pid, call, _Function, Length} -> lookups(Pid, [Length | Seen])
    after 0 -> Seen
    end.

the_last_element_of_a_list_or_a_tuple_takes_no_level(_Config) ->
    Levels = 1_048_576,
    Last = nested(Levels + 10, fun(T) -> {[T]} end),
    ?assert(?O:get_state_field(again(with(Last)), f) =:= Last),
    Wraps = [fun(T) -> {T, x} end, fun(T) -> [T, x] end, fun(T) -> #{k => T} end],
    [
        ?assertEqual(badarg, raised(fun() -> with(nested(Levels + 10, Wrap)) end))
     || Wrap <- Wraps
    ],
    Below = nested(Levels - 10, hd(Wraps)),
    ?assert(?O:get_state_field(again(with(Below)), f) =:= Below).

%% A key is moved once for each key that it is in.
maps_that_are_keys_of_maps_are_bounded(_Config) ->
    Nested = fun(Levels) -> nested(Levels, fun(T) -> #{T => 1} end) end,
    Deep = Nested(250),
    ?assert(?O:get_state_field(again(with(Deep)), f) =:= Deep),
    [
        ?assertEqual({Levels, badarg}, {Levels, raised(fun() -> with(Nested(Levels)) end)})
     || Levels <- [300, 200_000]
    ].

references_of_other_libraries_take_one_environment(_Config) ->
    Tables = [ets:new(table, []) || _ <- lists:seq(1, 10)],
    Before = erlang:memory(total),
    States = [with(Tables) || _ <- lists:seq(1, 1000)],
    Taken = (erlang:memory(total) - Before) / length(States),
    Estimate = ?O:estimate_memory(hd(States)),
    ?assert(Estimate < 5000, Estimate),
    ?assert(abs(Taken - Estimate) < 0.3 * Estimate, {Taken, Estimate}),
    ?assertEqual(Tables, ?O:get_state_field(hd(States), f)).

%% The VM sees some words of each.
large_states_one_after_the_other_are_collected(_Config) ->
    Catalogue = lists:seq(1, 1_000_000),
    Pending = maps:from_keys([make_ref() || _ <- lists:seq(1, 10_000)], 1),
    [
        begin
            Growth = alone(fun() ->
                New = ?O:create_optimized_state(<<"c">>),
                Before = erlang:memory(total),
                {_, Most} = lists:foldl(
                    fun(_, {State, Peak}) ->
                        Next = ?O:update_state_field(State, Field, Value),
                        {Next, max(Peak, erlang:memory(total) - Before)}
                    end,
                    {New, 0},
                    lists:seq(1, Times)
                ),
                Most
            end),
            ?assert(Growth < Limit, {Field, Growth})
        end
     || {Field, Value, Times, Limit} <- [
            {catalogue, Catalogue, 60, 50_000_000},
            {pending_refs, Pending, 200, 25_000_000}
        ]
    ].

%% Without end, where each way through the term is gone.
parts_of_a_plain_state_are_counted_once(_Config) ->
    application:set_env(erlmcp, connection_state_compact, false),
    try
        Said = within(20_000, fun() ->
            %% Made here: what goes to another process is copied way by way.
            State = ?O:update_state_field(?O:create_optimized_state(<<"x">>), f, unfolding(40)),
            %% Without the stack, which has the argument.
            {is, raised(fun() -> ?O:estimate_memory(State) end)}
        end),
        ?assertMatch({is, _}, Said)
    after
        erlmcp_optimizer_state_help:default()
    end.

%% Far more than it takes, and far less than 2^40 steps do.
within(Ms, Fun) ->
    {Pid, Monitor} = spawn_monitor(fun() -> exit({done, Fun()}) end),
    receive
        {'DOWN', Monitor, process, Pid, {done, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> Reason
    after Ms ->
        exit(Pid, kill),
        timeout
    end.

%%% Deep terms

deep() ->
    Levels = 200_000,
    [
        {lists, nested(Levels, fun(T) -> [T] end)},
        {tuples, nested(Levels, fun(T) -> {T} end)},
        {maps, nested(Levels, fun(T) -> #{k => T} end)},
        {improper, nested(Levels, fun(T) -> [T | t] end)},
        {funs, nested(300, fun(T) -> fun() -> T end end)},
        {mixed, nested(Levels div 4, fun(T) -> {[#{k => [T | t]}]} end)}
    ].

deep_terms_in_every_call(_Config) ->
    [
        begin
            Same = fun(What, Term) -> ?assertEqual({Name, What, true}, {Name, What, Deep =:= Term}) end,
            State = ?O:update_state_field(?O:create_optimized_state(<<"x">>), f, Deep),
            Same(field, ?O:get_state_field(State, f)),
            Same(safe, ?O:get_field_safe(State, f, none)),
            #{f := InMap} = ?O:to_map(State),
            Same(map, InMap),
            Below = ?O:update_state_field(State, [metadata, k, l], Deep),
            Same(path, ?O:get_state_field(Below, [metadata, k, l])),
            Same(from_map, ?O:get_state_field(?O:from_map(?O:to_map(Below)), [metadata, k, l])),
            Pending = ?O:update_state_field(State, pending_refs, #{make_ref() => Deep}),
            [InPending] = maps:values(?O:get_state_field(Pending, pending_refs)),
            Same(pending, InPending),
            ?assert(?O:estimate_memory(State) > 5000),
            ?assert(maps:get(extra, ?O:state_size_info(State)) > 5000),
            Removed = ?O:remove_state_field(Below, [metadata, k]),
            ?assertEqual(undefined, ?O:get_state_field(Removed, [metadata, k])),
            Same(snapshot, ?O:get_state_field(again(State), f)),
            Share = ?O:share(Deep),
            Same(share, ?O:shared(Share)),
            {ok, Found} = ?O:find_shared(?O:share(#{k => #{l => Deep}}), [k, l]),
            Same(find, Found),
            {ok, Ref} = ?P:acquire_connection_state(#{k => Deep}),
            {ok, #{k := Pooled}} = ?P:connection_state(Ref),
            Same(pooled, Pooled),
            ok = ?P:update_connection_state(Ref, #{k => [Deep], l => Deep}),
            {ok, #{k := [Updated], l := Updated}} = ?P:connection_state(Ref),
            Same(updated, Updated),
            ok = ?P:release_connection_state(Ref),
            ok = ?O:cleanup_state(State)
        end
     || {Name, Deep} <- deep()
    ],
    ok.

deep_terms_are_keys(_Config) ->
    There = alone(fun deep/0),
    [
        begin
            State = ?O:from_map(#{id => <<>>, metadata => #{Here => 1, small => 2}}),
            ?assertEqual({Name, 1}, {Name, ?O:get_state_field(State, [metadata, Key])}),
            Changed = ?O:update_state_field(State, [metadata, Key], 3),
            ?assertEqual(
                {Name, 2}, {Name, maps:get(metadata_map_size, ?O:state_size_info(Changed))}
            ),
            ?assertEqual({Name, 3}, {Name, ?O:get_state_field(Changed, [metadata, Here])}),
            ?assertEqual({Name, 1}, {Name, ?O:get_state_field(again(State), [metadata, Key])}),
            Share = ?O:share(#{Here => found}),
            ?assertEqual({Name, {ok, found}}, {Name, ?O:find_shared(Share, [Key])}),
            ?assertEqual({Name, error}, {Name, ?O:find_shared(Share, [[Key]])}),
            {ok, Ref} = ?P:acquire_connection_state(#{Here => 1}),
            ok = ?P:update_connection_state(Ref, #{Key => 2}),
            {ok, Map} = ?P:connection_state(Ref),
            ?assertEqual({Name, [2]}, {Name, maps:values(Map)}),
            ok = ?P:release_connection_state(Ref)
        end
     || {{Name, Here}, {Name, Key}} <- lists:zip(deep(), There)
    ],
    ok.

deep_terms_of_other_processes_are_one_share(_Config) ->
    Here = [{Name, ?O:share(Deep)} || {Name, Deep} <- deep()],
    There = alone(fun() -> [{Name, ?O:share(Deep)} || {Name, Deep} <- deep()] end),
    ?assertEqual(Here, There),
    %% As keys, 0.0 and -0.0 are what the running VM takes them for, deep down as well.
    <<Negative/float>> = <<16#80, 0:56>>,
    Closed = fun(Float) -> fun() -> Float end end,
    Key = fun(Float) -> #{Float => 1} end,
    Forms = [
        {key, Key},
        {key_in_key, fun(F) -> #{{Key(F)} => 1} end},
        {deep_key, fun(F) -> nested(140, fun(leaf) -> Key(F); (T) -> [T] end) end}
    ],
    [
        ?assertEqual(
            {N, Form(0.0) =:= Form(Negative)},
            {N, ?O:share(Form(0.0)) =:= ?O:share(Form(Negative))}
        )
     || {N, Form} <- Forms
    ],
    ?assert(?O:shared(?O:share(Closed(Negative))) =:= Closed(Negative)).

%%% Native records

record(Fields) ->
    apply(records, create, [some_module, some_record, Fields, #{is_exported => true}]).

record() ->
    record([{a, 1}, {b, <<"x">>}]).

%% Terms with a record in every place.
with_records() ->
    R = record(),
    [
        R, [R], [a | R], {R}, #{k => R}, #{R => 1}, #{{R} => R},
        fun() -> R end, fun() -> [R, fun() -> R end] end,
        nested(140, fun(T) -> [T, R] end), nested(140, fun(T) -> #{T => R} end),
        record([{a, R}, {b, [R]}]), record([]),
        nested(200, fun(T) -> record([{a, T}]) end),
        record([{a, binary:copy(<<"b">>, 100_000)}]),
        record([{a, self()}, {b, make_ref()}, {c, fun lists:map/2}, {d, fun() -> R end}]),
        record([{a, ?O:share({x, make_ref()})}, {b, ets:new(t, [])}])
    ].

records_come_back(_Config) ->
    [
        begin
            ?assert({N, true} =:= {N, ?O:get_state_field(with(Term), f) =:= Term}),
            ?assert({N, true} =:= {N, ?O:get_state_field(again(with(Term)), f) =:= Term}),
            ?assert(?O:estimate_memory(with(Term)) > 0),
            Path = [metadata, k, l],
            Below = ?O:update_state_field(?O:create_optimized_state(<<>>), Path, Term),
            ?assert({N, true} =:= {N, ?O:get_state_field(Below, Path) =:= Term})
        end
     || {N, Term} <- lists:zip(lists:seq(1, length(with_records())), with_records())
    ],
    ok.

a_record_with_a_field_twice_is_corrupt(_Config) ->
    application:set_env(erlmcp, compression_enabled, false),
    Snapshot = ?O:compress_state(with(record([{field_aa, 1}, {field_bb, 2}]))),
    erlmcp_optimizer_state_help:default(),
    ?assert(is_reference(?O:decompress_state(Snapshot))),
    <<2, Flags, _:32, Rest/binary>> = binary:replace(Snapshot, <<"field_bb">>, <<"field_aa">>),
    Forged = <<2, Flags, (erlang:crc32([Flags, Rest])):32, Rest/binary>>,
    ?assertEqual({error, corrupt_data}, ?O:decompress_state(Forged)).

records_around_a_term_are_read_at_the_size_of_the_term(_Config) ->
    Big = binary:copy(<<"b">>, 4_000_000),
    read_at_its_size(nested(200, fun(leaf) -> Big; (T) -> record([{a, T}]) end)).

records_are_keys(_Config) ->
    Make = fun() -> lists:sublist(with_records(), 15) end,
    Here = Make(),
    There = alone(Make),
    Count = length(Here),
    State = ?O:from_map(#{id => <<>>, metadata => maps:from_keys(Here, 1)}),
    [
        begin
            ?assertEqual({N, 1}, {N, ?O:get_state_field(S, [metadata, Key])}),
            Changed = ?O:update_state_field(S, [metadata, Key], 2),
            ?assertEqual(
                {N, Count}, {N, maps:get(metadata_map_size, ?O:state_size_info(Changed))}
            )
        end
     || S <- [State, again(State)], {N, Key} <- lists:zip(lists:seq(1, Count), There)
    ],
    ?assertEqual(undefined, ?O:get_state_field(State, [metadata, record([{a, 2}])])).

records_are_shared_and_pooled(_Config) ->
    Make = fun() -> lists:sublist(with_records(), 15) end,
    Here = [?O:share(Term) || Term <- Make()],
    There = alone(fun() -> [?O:share(Term) || Term <- Make()] end),
    ?assertEqual(Here, There),
    [?assert(?O:shared(Ref) =:= Term) || {Ref, Term} <- lists:zip(Here, Make())],
    {ok, found} = ?O:find_shared(?O:share(#{record() => #{[record()] => found}}),
        [record(), [record()]]),
    {ok, Ref} = ?P:acquire_connection_state(maps:from_list([{Key, Key} || Key <- Make()])),
    {ok, Map} = ?P:connection_state(Ref),
    ?assert(Map =:= maps:from_list([{Key, Key} || Key <- Make()])),
    ok = ?P:update_connection_state(Ref, maps:from_keys(Make(), 1)),
    {ok, Ones} = ?P:connection_state(Ref),
    ?assert(Ones =:= maps:from_keys(Make(), 1)),
    ok = ?P:release_connection_state(Ref).
