%% Parked terms, and the slots of servers: what comes back, what is shared, what is freed.
-module(erlmcp_server_park_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_pool_help, [in_parallel/2]).
-import(erlmcp_optimizer_state_help, [alone/1, every_kind/0, nested/2, refused/3, settled_bytes/0]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_testcase/2]).
-export([
    every_kind_comes_back/1,
    random_terms_come_back/1,
    what_terms_name_still_works/1,
    resources_live_while_they_are_parked/1,
    funs_of_a_module_that_was_replaced/1,
    equal_parts_are_kept_once/1,
    equal_terms_without_large_parts_are_kept_once/1,
    closures_that_were_made_alike_are_kept_once/1,
    a_part_that_differs_leaves_the_rest_shared/1,
    parts_are_freed_with_the_last_term/1,
    the_part_in_the_same_place_is_not_taken_for_another/1,
    a_part_may_be_too_small_in_another_place/1,
    data_of_one_owner_takes_little_more_than_itself/1,
    growth_by_sharing_is_bounded/1,
    sharing_inside_a_closure_is_bounded/1,
    a_large_binary_is_held/1,
    a_part_of_a_large_binary_does_not_keep_it/1,
    parked_terms_in_values/1,
    a_chain_of_parked_terms_is_freed/1,
    parked_on_all_schedulers_at_once/1,
    wrong_arguments/1,
    a_fun_that_closes_over_large_parts/1,
    a_slot_has_the_state/1,
    a_folded_slot_has_the_state/1,
    the_roster_has_who_parks_after_a_peak/1,
    a_refused_state_leaves_the_slot_as_it_was/1,
    awake_bytes_are_those_of_all_slots/1,
    reserved_before_it_is_built/1,
    words_on_the_heap_are_told/1,
    keys_of_maps_in_any_order/1,
    places_are_limited/1,
    a_slot_gives_all_back_when_its_owner_is_killed/1,
    killed_at_any_instant/1
]).

-define(O, erlmcp_connection_optimizer).
-define(N, erlmcp_memory_nif).

all() ->
    [
        every_kind_comes_back,
        random_terms_come_back,
        what_terms_name_still_works,
        resources_live_while_they_are_parked,
        funs_of_a_module_that_was_replaced,
        equal_parts_are_kept_once,
        equal_terms_without_large_parts_are_kept_once,
        closures_that_were_made_alike_are_kept_once,
        a_part_that_differs_leaves_the_rest_shared,
        parts_are_freed_with_the_last_term,
        the_part_in_the_same_place_is_not_taken_for_another,
        a_part_may_be_too_small_in_another_place,
        data_of_one_owner_takes_little_more_than_itself,
        growth_by_sharing_is_bounded,
        sharing_inside_a_closure_is_bounded,
        a_large_binary_is_held,
        a_part_of_a_large_binary_does_not_keep_it,
        parked_terms_in_values,
        a_chain_of_parked_terms_is_freed,
        parked_on_all_schedulers_at_once,
        wrong_arguments,
        a_fun_that_closes_over_large_parts,
        a_slot_has_the_state,
        a_folded_slot_has_the_state,
        the_roster_has_who_parks_after_a_peak,
        a_refused_state_leaves_the_slot_as_it_was,
        awake_bytes_are_those_of_all_slots,
        reserved_before_it_is_built,
        words_on_the_heap_are_told,
        keys_of_maps_in_any_order,
        places_are_limited,
        a_slot_gives_all_back_when_its_owner_is_killed,
        killed_at_any_instant
    ].

init_per_testcase(_Case, Config) ->
    erlmcp_optimizer_state_help:default(),
    ok = settled(0),
    Config.

%% Until no slot has anything awake.
settled(Bytes) ->
    until(fun() ->
        garbage_collect(),
        ?N:awake_bytes() =:= Bytes
    end).

%% --- what a state is made of ---

%% Of a few hundred bytes to three kilobytes, as tools are.
tool(N) ->
    tool(N, 1).

tool(N, Version) ->
    #{
        name => <<"tool_", (integer_to_binary(N))/binary>>,
        description => binary:copy(<<"what it does ">>, 5 + N rem 7),
        version => Version,
        schema => #{
            <<"type">> => <<"object">>,
            <<"properties">> => maps:from_list([
                {<<"argument_", (integer_to_binary(I))/binary>>, #{
                    <<"type">> => <<"string">>,
                    <<"description">> => <<"argument of the tool: ", (integer_to_binary(N))/binary>>
                }}
             || I <- lists:seq(1, 5 + N rem 20)
            ])
        }
    }.

%% Made anew each time, so that nothing is the same but equal.
tools() ->
    tools(86).

tools(Count) ->
    [tool(N) || N <- lists:seq(1, Count)].

state(Id, Tools) ->
    {state, Id, Tools, #{pending => #{}, since => 17}, undefined}.

id(N) ->
    <<"session-", (integer_to_binary(N))/binary>>.

%% Native bytes that stay when Make was called, in a process that keeps what it gives.
taken(Make) ->
    Before = settled_bytes(),
    Kept = Make(),
    Taken = settled_bytes() - Before,
    true = is_reference(Kept) orelse is_list(Kept),
    Taken.

identical(Term) ->
    Parked = ?O:park(Term),
    ?assert(is_reference(Parked)),
    identical(Parked, Term).

%% Often enough for parts of it to be kept as terms.
identical(Parked, Term) ->
    [?assert(?O:unpark(Parked) =:= Term) || _ <- lists:seq(1, 7)],
    Parked.

%% --- values ---

every_kind_comes_back(_Config) ->
    Kinds = every_kind(),
    Large = tools(3),
    [
        begin
            identical(Term),
            %% In a part, and in what is not one.
            identical({state, Term, [{Term, Large} | Large], #{Term => Large}})
        end
     || Term <- Kinds
    ],
    identical(Kinds),
    identical({Kinds, Kinds}).

random_terms_come_back(_Config) ->
    [
        begin
            {Term, _} = random(rand:seed_s(exsss, {7, 9, Seed}), 4),
            Parked = identical(Term),
            %% An equal one that was made elsewhere.
            Again = ?O:park(binary_to_term(term_to_binary(Term))),
            ?assert(?O:unpark(Again) =:= ?O:unpark(Parked))
        end
     || Seed <- lists:seq(1, 200)
    ].

random(Seed, 0) ->
    leaf(Seed);
random(Seed0, Depth) ->
    {Kind, Seed1} = rand:uniform_s(7, Seed0),
    {Count, Seed2} = rand:uniform_s(5, Seed1),
    Parts = fun(Number) ->
        lists:mapfoldl(fun(_, Seed) -> random(Seed, Depth - 1) end, Seed2, lists:seq(1, Number))
    end,
    case Kind of
        1 -> leaf(Seed2);
        2 -> Parts(Count);
        3 -> {Elements, Seed} = Parts(Count), {list_to_tuple(Elements), Seed};
        4 -> {[Tail | Elements], Seed} = Parts(Count + 1), {Elements ++ Tail, Seed};
        5 -> {[Free | _], Seed} = Parts(1), {fun() -> Free end, Seed};
        _ -> {Elements, Seed} = Parts(2 * Count), {map(Elements), Seed}
    end.

map([Key, Value | Rest]) -> (map(Rest))#{Key => Value};
map([]) -> #{}.

leaf(Seed0) ->
    {Kind, Seed} = rand:uniform_s(8, Seed0),
    {Size, Seed1} = rand:uniform_s(700, Seed),
    Term =
        case Kind of
            1 -> Size;
            2 -> binary:copy(<<"x">>, Size);
            3 -> lists:duplicate(Size, $a);
            4 -> atom;
            5 -> Size * 1.5;
            6 -> 1 bsl Size;
            7 -> <<Size:13>>;
            8 -> []
        end,
    {Term, Seed1}.

what_terms_name_still_works(_Config) ->
    Self = self(),
    Timer = erlang:start_timer(60000, Self, later),
    {Pid, Monitor} = spawn_monitor(fun() -> receive stop -> ok end end),
    Alias = alias(),
    Table = ets:new(parked, []),
    {ok, Port} = gen_udp:open(0),
    State = {state, tools(4), Timer, Pid, Monitor, Alias, Table, Port, [Self]},
    Parked = ?O:park(State),
    garbage_collect(),
    {state, _, Timer1, Pid1, Monitor1, Alias1, Table1, Port1, [Self]} = ?O:unpark(Parked),
    ?assert(is_integer(erlang:cancel_timer(Timer1))),
    Alias1 ! through_the_alias,
    receive through_the_alias -> ok end,
    true = ets:insert(Table1, {k, v}),
    ?assertEqual([{k, v}], ets:lookup(Table, k)),
    ok = gen_udp:close(Port1),
    Pid1 ! stop,
    receive {'DOWN', Monitor1, process, _, normal} -> ok end.

%% Nothing but the parked term has the counter and what it counts in.
resources_live_while_they_are_parked(_Config) ->
    Parked = alone(fun() ->
        Counter = atomics:new(1, []),
        atomics:put(Counter, 1, 4711),
        Deep = counters:new(2, []),
        counters:put(Deep, 2, 17),
        ?O:park({state, Counter, [{deep, Deep} | tools(3)]})
    end),
    garbage_collect(),
    {state, Counter, [{deep, Deep} | _]} = ?O:unpark(Parked),
    ?assertEqual(4711, atomics:get(Counter, 1)),
    ?assertEqual(17, counters:get(Deep, 2)).

funs_of_a_module_that_was_replaced(_Config) ->
    Load = fun(Version) ->
        Forms = [
            {attribute, 1, module, erlmcp_park_replaced},
            {attribute, 2, export, [{make, 1}]},
            {function, 3, make, 1, [
                {clause, 3, [{var, 3, 'X'}], [], [
                    {'fun', 3, {clauses, [
                        {clause, 3, [], [], [{tuple, 3, [{integer, 3, Version}, {var, 3, 'X'}]}]}
                    ]}}
                ]}
            ]}
        ],
        {ok, Module, Binary} = compile:forms(Forms, []),
        {module, Module} = code:load_binary(Module, "replaced.erl", Binary),
        Module
    end,
    Module = Load(1),
    %% A purge ends whoever has one of these funs on the heap.
    Parked = alone(fun() -> identical({state, Module:make(tools(2))}) end),
    _ = Load(2),
    ok = alone(fun() ->
        {state, Old} = ?O:unpark(Parked),
        {1, [_, _]} = Old(),
        ok
    end),
    garbage_collect(),
    _ = code:purge(Module),
    _ = Load(3),
    ok = alone(fun() ->
        {state, Gone} = ?O:unpark(Parked),
        ?assert(is_function(Gone, 0)),
        ?assertError({badfun, _}, Gone()),
        identical({state, Gone}),
        ok
    end),
    _ = code:purge(Module),
    true = code:delete(Module),
    _ = code:purge(Module).

%% --- sharing ---

equal_parts_are_kept_once(_Config) ->
    One = taken(fun() -> ?O:park(state(id(0), tools())) end),
    Keep = ?O:park(state(id(0), tools())),
    Hundred = taken(fun() ->
        [alone(fun() -> ?O:park(state(id(N), tools())) end) || N <- lists:seq(1, 100)]
    end),
    ?assert(One > 40_000),
    ?assert(Hundred div 100 < 300),
    ?assert(?O:unpark(Keep) =:= state(id(0), tools())).

equal_terms_without_large_parts_are_kept_once(_Config) ->
    Data = fun() -> maps:from_list([{N, {entry, N}} || N <- lists:seq(1, 3000)]) end,
    Keep = [?O:park(Data()), ?O:park(Data())],
    Ten = taken(fun() -> [?O:park(Data()) || _ <- lists:seq(1, 10)] end),
    ?assert(Ten < 3000),
    ?assert(?O:unpark(hd(Keep)) =:= Data()).

handlers() ->
    [
        begin
            Inner = fun(X) -> {X, N} end,
            {N, tool(N), fun(Y) -> [Inner(Y), N] end}
        end
     || N <- lists:seq(1, 86)
    ].

closures_that_were_made_alike_are_kept_once(_Config) ->
    Keep = identical(state(id(0), handlers())),
    Ten = taken(fun() ->
        [alone(fun() -> identical(state(id(N), handlers())) end) || N <- lists:seq(1, 10)]
    end),
    ?assert(Ten div 10 < 300),
    ?assert(is_reference(Keep)).

a_part_that_differs_leaves_the_rest_shared(_Config) ->
    Differ = fun
        (List, N) when is_list(List) -> [own(Tool, N) || Tool <- List];
        (Map, N) -> Map#{40 => tool(40, N)}
    end,
    [
        begin
            Keep = identical(state(id(0), Make())),
            Park = fun(Numbers) ->
                [?O:park(state(id(N), Differ(Make(), N + 1))) || N <- Numbers]
            end,
            %% What is read again and again is kept as terms, too.
            Before = Park(lists:seq(1, 10)),
            Ten = taken(fun() -> Park(lists:seq(11, 20)) end),
            %% The tool, a run of it and some others, and the links to the other runs.
            ?assert(Ten div 10 < 5_000),
            ?assert(is_reference(Keep)),
            ?assert(lists:all(fun is_reference/1, Before))
        end
     || Make <- [
            fun() -> tools() end,
            fun() -> maps:from_list([{N, tool(N)} || N <- lists:seq(1, 86)]) end
        ]
    ].

own(#{name := <<"tool_40">>}, N) -> tool(40, N);
own(Tool, _N) -> Tool.

parts_are_freed_with_the_last_term(_Config) ->
    identical(state(id(0), tools())),
    Before = settled_bytes(),
    alone(fun() ->
        Kept = [identical(state(id(N), [own | tools(50)])) || N <- lists:seq(1, 20)],
        ?assert(settled_bytes() > Before + 20_000),
        length(Kept)
    end),
    until(fun() -> settled_bytes() - Before < 1_000 end).

the_part_in_the_same_place_is_not_taken_for_another(_Config) ->
    <<Negative/float>> = <<16#80, 0:56>>,
    Parked = [
        {identical({state, id(N), Tools, x}), {state, id(N), Tools, x}}
     || N <- lists:seq(1, 8),
        Last <- [a, b, 0.0, Negative, 0, 1, 1.0, <<1>>, [1], fun() -> N end, fun lists:map/2],
        Tools <- [tools(9) ++ [Last]]
    ],
    [identical(Ref, Term) || {Ref, Term} <- Parked].

%% What is a part of a large value is none in a small one, and equal terms are kept once all the
%% same.
a_part_may_be_too_small_in_another_place(_Config) ->
    Part = fun() -> binary:copy(<<"part">>, 200) end,
    Large = {s, {Part(), [binary:copy(<<N>>, 900) || N <- lists:seq(1, 9)]}},
    Keep = [identical(Large) || _ <- lists:seq(1, 9)],
    Small = fun() -> {s, {Part(), lists:seq(1, 400)}} end,
    First = identical(Small()),
    Ten = taken(fun() -> [identical(Small()) || _ <- lists:seq(1, 10)] end),
    ?assert(Ten div 10 < 700),
    ?assert(is_list(Keep) andalso is_reference(First)).

data_of_one_owner_takes_little_more_than_itself(_Config) ->
    [
        begin
            Bytes = byte_size(term_to_binary(Data)),
            Taken = taken(fun() -> ?O:park(Data) end),
            ?assert(Taken < Bytes * 2)
        end
     || Data <- [
            [{N, id(N), #{count => N}} || N <- lists:seq(1, 20_000)],
            maps:from_list([{id(N), {N, binary:copy(<<N:16>>, 300)}} || N <- lists:seq(1, 5000)]),
            {state, maps:from_list([{N, [id(N), N * 1.5]} || N <- lists:seq(1, 900)])}
        ]
    ].

%% --- bounds ---

dag(Levels, Wrap) ->
    lists:foldl(fun(_, Term) -> Wrap(Term) end, [leaf], lists:seq(1, Levels)).

%% Not printed, and not compared with another one: that takes as long as it is large.
too_shared(Term) ->
    try ?O:park(Term) of
        _ -> ct:fail(parked)
    catch
        error:badarg:Stack ->
            [{_, _, _, Info} | _] = Stack,
            #{cause := #{1 := Text}} = proplists:get_value(error_info, Info),
            ?assert(byte_size(Text) > 5)
    end.

growth_by_sharing_is_bounded(_Config) ->
    [
        begin
            too_shared(dag(40, Wrap)),
            too_shared({state, tools(3), #{deep => dag(64, Wrap)}}),
            %% What stays small is no matter.
            identical(dag(6, Wrap))
        end
     || Wrap <- [
            fun(T) -> [T, T] end,
            fun(T) -> {T, T} end,
            fun(T) -> #{a => T, b => T} end,
            fun(T) -> [T | T] end
        ]
    ],
    %% Megabytes of something else are no excuse.
    Data = lists:seq(1, 500_000),
    identical(Data),
    too_shared({Data, dag(40, fun(T) -> {T, T} end)}),
    Binary = binary:copy(<<"x">>, 60_000),
    too_shared(lists:duplicate(1000, Binary)).

sharing_inside_a_closure_is_bounded(_Config) ->
    Deep = dag(50, fun(T) -> [T, T] end),
    too_shared(fun() -> Deep end),
    Inner = fun() -> Deep end,
    too_shared([fun() -> Inner end | tools(3)]).

%% The VM's own binary, not a copy of it.
a_large_binary_is_held(_Config) ->
    Binary = binary:copy(<<"0123456789abcdef">>, 640 * 1024),
    Taken = taken(fun() -> ?O:park({state, Binary, tools(2)}) end),
    ?assert(Taken < 100_000),
    Parked = ?O:park({state, Binary, tools(2)}),
    {state, Back, _} = ?O:unpark(Parked),
    ?assert(Back =:= Binary),
    %% Nothing but the parked term has this one.
    Alone = alone(fun() ->
        ?O:park([a | binary:copy(<<"fedcba9876543210">>, 640 * 1024)])
    end),
    garbage_collect(),
    [a | Other] = ?O:unpark(Alone),
    ?assert(Other =:= binary:copy(<<"fedcba9876543210">>, 640 * 1024)).

a_part_of_a_large_binary_does_not_keep_it(_Config) ->
    [
        begin
            Parked = alone(fun() ->
                Whole = binary:copy(<<"0123456789abcdef">>, 2 * 1024 * 1024),
                ?O:park({state, binary:part(Whole, 100, Size), tools(2)})
            end),
            %% Gone with the process that had it.
            {state, Part, _} = ?O:unpark(Parked),
            ?assertEqual(Size, byte_size(Part)),
            ?assert(binary:referenced_byte_size(Part) =< 2 * Size)
        end
     || Size <- [100, 5000, 70_000, 1_000_000]
    ].

%% --- parked terms in other values ---

parked_terms_in_values(_Config) ->
    {ok, _} = erlmcp_pool_help:start_alone(),
    Term = state(id(1), tools(5)),
    Parked = ?O:park(Term),
    State = ?O:from_map(#{id => <<>>, parked => Parked}),
    Share = ?O:share([{parked, Parked}]),
    Within = ?O:park({Parked, State, Share, [Parked | tools(3)]}),
    {ok, Pooled} = erlmcp_memory_pool:acquire_connection_state(#{parked => Within}),
    ?assert(?O:get_state_field(State, parked) =:= Parked),
    ?assert(?O:shared(Share) =:= [{parked, Parked}]),
    {Parked1, State1, Share1, [Parked2 | _]} = ?O:unpark(Within),
    ?assert({Parked1, State1, Share1, Parked2} =:= {Parked, State, Share, Parked}),
    ?assert(?O:unpark(Parked1) =:= Term),
    {ok, #{parked := Within1}} = erlmcp_memory_pool:connection_state(Pooled),
    ?assert(Within1 =:= Within),
    %% The value is the only one that has it.
    Lone = alone(fun() -> ?O:park([?O:park(Term)]) end),
    garbage_collect(),
    [Inner] = ?O:unpark(Lone),
    ?assert(?O:unpark(Inner) =:= Term),
    ok = erlmcp_memory_pool:release_connection_state(Pooled),
    erlmcp_pool_help:stop().

a_chain_of_parked_terms_is_freed(_Config) ->
    Before = settled_bytes(),
    alone(fun() ->
        Chain = nested(100_000, fun(T) -> ?O:park([T]) end),
        [Next] = ?O:unpark(Chain),
        ?assertMatch([_], ?O:unpark(Next))
    end),
    until(fun() -> settled_bytes() - Before < 10_000 end).

parked_on_all_schedulers_at_once(_Config) ->
    Before = settled_bytes(),
    Expected = [state(id(N), [own(Tool, N rem 3) || Tool <- tools(45)]) || N <- lists:seq(0, 2)],
    in_parallel(4 * erlang:system_info(schedulers_online), fun(N) ->
        Slot = ?N:slot_new(),
        [
            begin
                Term = lists:nth(1 + Round rem 3, Expected),
                ok = slot_park(Slot, Term),
                ?assert(?N:slot_wake(Slot) =:= Term),
                identical({N, Term})
            end
         || Round <- lists:seq(1, 30)
        ]
    end),
    ok = settled(0),
    until(fun() -> settled_bytes() - Before < 10_000 end).

wrong_arguments(_Config) ->
    Parked = ?O:park(x),
    Through = binary_to_term(term_to_binary(Parked)),
    ?assert(?O:unpark(Through) =:= x),
    [refused(1, unpark, [Wrong]) || Wrong <- [x, make_ref(), ?O:share(x), <<>>, self()]],
    [
        ?assertError(badarg, ?N:Function(Wrong))
     || Function <- [slot_rest, slot_words, slot_wake, slot_peek, slot_leave, slot_enter],
        Wrong <- [x, make_ref(), Parked]
    ],
    Empty = ?N:slot_new(),
    ?assertEqual(0, ?N:slot_words(Empty)),
    ?assertError(badarg, ?N:slot_wake(Empty)),
    ?assertError(badarg, ?N:slot_peek(Empty)),
    ?assertError(badarg, ?N:slot_awake(Empty, -1)),
    ?assertError(badarg, ?N:slot_awake(Empty, many)).

%% --- slots ---

slot_park(Slot, Term) ->
    case ?N:slot_park(Slot, Term, []) of
        {closed, Terms} -> erlmcp_memory_opened:call(slot_park, [Slot, Term], [], Terms);
        Result -> Result
    end.

a_slot_has_the_state(_Config) ->
    Slot = ?N:slot_new(),
    [
        begin
            ?assertEqual(ok, slot_park(Slot, Term)),
            [
                ?assert(?N:Read(Slot) =:= Term)
             || _ <- lists:seq(1, 6), Read <- [slot_wake, slot_peek]
            ],
            ?assertEqual(ok, ?N:slot_rest(Slot)),
            ?assert(?N:slot_wake(Slot) =:= Term)
        end
     || Term <- [state(id(1), tools()), [], state(id(2), handlers()) | every_kind()]
    ].

%% The fun is what is parked, and what it closes over is taken apart.
a_fun_that_closes_over_large_parts(_Config) ->
    {First, Last} = {tools(4), tools(30)},
    Fun = fun(Argument) -> {First, Argument, Last} end,
    identical(Fun),
    identical({state, Fun, [fun() -> Fun end]}).

%% In one piece where it is small; in the place of what was there.
a_folded_slot_has_the_state(_Config) ->
    Shared = ?O:share(#{shared => tools(2)}),
    %% Larger than what is folded, and smaller than what is shared as a whole.
    Large = lists:seq(1000, 2000),
    Small = [
        {state, id(1)},
        state(id(1), tools()),
        state(id(2), maps:from_list([{N, tool(N)} || N <- lists:seq(1, 300)])),
        {state, #{share => Shared}, Shared, tools(3)},
        []
    ],
    [
        begin
            Slot = ?N:slot_new(),
            ?assertEqual(ok, slot_park(Slot, Term)),
            Folded = ?N:slot_fold(Slot),
            Again = ?N:slot_fold(Folded),
            ?assertEqual(Term =:= Large, Folded =:= Slot),
            ?assertEqual(Term =:= Large, Again =:= Folded),
            [
                ?assert(?N:Read(Again) =:= Term)
             || _ <- lists:seq(1, 6), Read <- [slot_wake, slot_peek]
            ],
            ?assertEqual(ok, ?N:slot_rest(Again)),
            ?assertEqual(ok, slot_park(Again, {changed, Term})),
            ?assert(?N:slot_wake(?N:slot_fold(Again)) =:= {changed, Term})
        end
     || Term <- [Large | Small]
    ],
    ?assertError(badarg, ?N:slot_fold(?N:slot_new())),
    ok = settled(0),
    %% Its own is a few hundred bytes, the object included.
    #{parked := #{count := Count, bytes := Bytes}} = ?N:inventory(),
    Kept = [
        begin
            Slot = ?N:slot_new(),
            ok = slot_park(Slot, state(id(N), tools())),
            ?N:slot_fold(Slot)
        end
     || N <- lists:seq(1, 100)
    ],
    true = erlang:garbage_collect(),
    #{parked := #{count := More, bytes := MoreBytes}} = ?N:inventory(),
    ?assertEqual(Count + 100, More),
    ?assert((MoreBytes - Bytes) div 100 < 300),
    ?assertEqual(100, length(Kept)).

the_roster_has_who_parks_after_a_peak(_Config) ->
    ok = erlmcp_server_help:no_peak(),
    [Peak, Told, Woken] = [?N:slot_new() || _ <- lists:seq(1, 3)],
    ?assertNot(?N:slot_list(Told)),
    ?assertEqual(0, ?N:roster()),
    _ = ?N:slot_awake(Peak, 64 bsl 20),
    ?assertNot(?N:is_peak_over()),
    [?assert(?N:slot_list(Slot)) || Slot <- [Told, Woken, Woken]],
    ?assertEqual(2, ?N:roster()),
    ?assertNot(?N:slot_unlist(Woken)),
    ?assertEqual(1, ?N:roster()),
    _ = ?N:slot_awake(Peak, 1 bsl 20),
    ?assert(?N:is_peak_over()),
    ?assertEqual(0, ?N:roster_tell(10, {tidy, 0})),
    ?assert(?N:slot_unlist(Told)),
    %% It is there when it is known of.
    receive {tidy, 0} -> ok after 0 -> ct:fail(told_nothing) end,
    ?assertNot(?N:slot_unlist(Told)),
    %% One that ends is in it no longer.
    {_, Monitor} = spawn_monitor(fun() -> true = ?N:slot_list(?N:slot_new()) end),
    receive {'DOWN', Monitor, _, _, normal} -> ok end,
    ok = until(fun() -> ?N:roster() =:= 0 end),
    _ = ?N:slot_awake(Peak, 0),
    ok = ?N:next_peak(),
    ?assertNot(?N:slot_list(Told)).

a_refused_state_leaves_the_slot_as_it_was(_Config) ->
    Slot = ?N:slot_new(),
    ok = slot_park(Slot, state(id(1), tools(5))),
    Awake = ?N:slot_awake(Slot, 4242),
    ?assertMatch({badarg, 2, _}, slot_park(Slot, dag(50, fun(T) -> {T, T} end))),
    ?assertEqual(Awake, ?N:awake_bytes()),
    ?assert(?N:slot_wake(Slot) =:= state(id(1), tools(5))).

awake_bytes_are_those_of_all_slots(_Config) ->
    [A, B] = [?N:slot_new() || _ <- [a, b]],
    State = state(id(1), tools()),
    ok = slot_park(A, State),
    ok = slot_park(B, State),
    ?assertEqual(0, ?N:awake_bytes()),
    _ = ?N:slot_wake(A),
    One = ?N:awake_bytes(),
    %% About what it takes on a heap.
    Heap = erts_debug:flat_size(State) * erlang:system_info(wordsize),
    ?assert(One > Heap * 0.7),
    ?assert(One < Heap * 1.6),
    _ = ?N:slot_peek(B),
    ?assertEqual(One, ?N:awake_bytes()),
    _ = ?N:slot_wake(A),
    ?assertEqual(One, ?N:awake_bytes()),
    ?assertEqual(One + 1000, ?N:slot_awake(B, 1000)),
    ?assertEqual(1007, ?N:slot_awake(A, 7)),
    ok = ?N:slot_rest(A),
    ?assertEqual(1000, ?N:awake_bytes()),
    ok = slot_park(B, State),
    ?assertEqual(0, ?N:awake_bytes()).

reserved_before_it_is_built(_Config) ->
    [A, B] = [?N:slot_new() || _ <- [a, b]],
    State = state(id(1), tools()),
    ok = slot_park(A, State),
    ok = slot_park(B, State),
    _ = ?N:slot_wake(A),
    One = ?N:awake_bytes(),
    ok = ?N:slot_rest(A),
    ?assertNot(?N:slot_reserve(A, One - 1)),
    ?assertEqual(0, ?N:awake_bytes()),
    ?assert(?N:slot_reserve(A, One)),
    ?assertEqual(One, ?N:awake_bytes()),
    _ = ?N:slot_wake(A),
    ?assertEqual(One, ?N:awake_bytes()),
    ?assertNot(?N:slot_reserve(B, 2 * One - 1)),
    ?assert(?N:slot_reserve(B, infinity)),
    ?assertEqual(2 * One, ?N:awake_bytes()),
    ok = ?N:slot_rest(B),
    ok = ?N:slot_rest(A).

%% Words are those on the heap: of large binaries, which are off it, only what refers to them.
%% Folded or not, and whether its parts were known or not.
words_on_the_heap_are_told(_Config) ->
    Binaries = [binary:copy(<<N>>, 20_000) || N <- lists:seq(1, 50)],
    [
        begin
            Slot = ?N:slot_new(),
            Words = erts_debug:flat_size(State),
            Close = fun(Told) -> ?assert(abs(Told - Words) =< Words div 5 + 1000, {Told, Words}) end,
            [
                begin
                    ok = slot_park(Slot, State),
                    Close(?N:slot_words(Slot)),
                    Folded = ?N:slot_fold(Slot),
                    Close(?N:slot_words(Folded)),
                    Moved = ?N:slot_fold(Folded),
                    Close(?N:slot_words(Moved)),
                    ?assert(?N:slot_wake(Moved) =:= State)
                end
             || _ <- lists:seq(1, 8)
            ]
        end
     || State <- [state(id(1), tools(86)), {state, Binaries}, lists:seq(1, 1 bsl 14), {big, 1 bsl 80}]
    ].

%% Keys that begin alike, that are shorter than what is compared at first, and of many kinds.
keys_of_maps_in_any_order(_Config) ->
    Keys = [<<"a">>, <<"ab">>, <<"abc">>, <<>>, a, ab, 1, -1, 1.0, 1 bsl 70, {a}, [1], []] ++
        [#{}, #{a => 1}] ++
        [<<"a key of the same beginning ", N>> || N <- lists:seq(1, 40)] ++
        [<<"same", N>> || N <- lists:seq(1, 40)] ++ [{same, [N]} || N <- lists:seq(1, 40)],
    [
        begin
            {_, Mixed} = lists:unzip(lists:sort([{erlang:phash2({N, K}), K} || K <- Keys])),
            Some = lists:sublist(Mixed, N),
            Map = maps:from_list([{K, tools(1)} || K <- Some]),
            Other = maps:from_list([{K, tools(1)} || K <- lists:reverse(Some)]),
            Parked = ?O:park({state, Map}),
            ?assert(?O:unpark(Parked) =:= {state, Map}),
            %% Equal content is one, in whatever order it was made.
            ?assertEqual(?O:share(Map), ?O:share(Other))
        end
     || N <- lists:seq(1, length(Keys))
    ].

places_are_limited(_Config) ->
    Places = max(1, erlang:system_info(dirty_cpu_schedulers_online) div 2),
    Slots = [?N:slot_new() || _ <- lists:seq(1, Places)],
    Late = ?N:slot_new(),
    [?assert(?N:slot_enter(Slot)) || Slot <- Slots],
    ?assertNot(?N:slot_enter(Late)),
    %% Once more is the same place.
    ?assert(?N:slot_enter(hd(Slots))),
    ok = ?N:slot_leave(hd(Slots)),
    ok = ?N:slot_leave(hd(Slots)),
    ?assert(?N:slot_enter(Late)),
    ?assertNot(?N:slot_enter(hd(Slots))),
    [ok = ?N:slot_leave(Slot) || Slot <- [Late | Slots]].

a_slot_gives_all_back_when_its_owner_is_killed(_Config) ->
    Test = self(),
    {Pid, Monitor} = spawn_monitor(fun() ->
        Slot = ?N:slot_new(),
        true = ?N:slot_enter(Slot),
        ok = slot_park(Slot, state(id(1), tools())),
        State = ?N:slot_wake(Slot),
        Test ! ready,
        receive never -> {Slot, State} end
    end),
    receive ready -> ok end,
    ?assert(?N:awake_bytes() > 0),
    exit(Pid, kill),
    receive {'DOWN', Monitor, process, Pid, killed} -> ok end,
    ok = settled(0),
    %% Its place, too.
    places_are_limited([]).

killed_at_any_instant(_Config) ->
    Before = settled_bytes(),
    State = state(id(1), handlers()),
    in_parallel(60, fun(N) ->
        {Pid, Monitor} = spawn_monitor(fun() -> live(?N:slot_new(), State, 0) end),
        timer:sleep(N rem 30),
        exit(Pid, kill),
        receive {'DOWN', Monitor, process, Pid, killed} -> ok end
    end),
    ok = settled(0),
    places_are_limited([]),
    until(fun() -> settled_bytes() - Before < 20_000 end).

live(Slot, State, Round) ->
    _ = ?N:slot_enter(Slot),
    ok = slot_park(Slot, setelement(2, State, id(Round))),
    ok = ?N:slot_leave(Slot),
    _ = ?N:slot_reserve(Slot, 1 bsl 40),
    Woken = ?N:slot_wake(Slot),
    _ = ?N:slot_awake(Slot, Round),
    live(Slot, Woken, Round + 1).
