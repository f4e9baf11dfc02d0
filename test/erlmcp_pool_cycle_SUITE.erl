%% Pooled states that lead back to themselves: freed with their last owner, and not before.
-module(erlmcp_pool_cycle_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_optimizer_state_help, [alone/1]).
-import(erlmcp_pool_help, [clear/0, start/0]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    an_update_drops_a_link_to_the_state_itself/1,
    a_state_with_its_own_handle_is_freed/1,
    states_that_hold_each_other_are_freed/1,
    cycles_through_other_values_are_freed/1,
    either_order_of_owners_frees_a_cycle/1,
    a_cycle_is_freed_while_others_read/1,
    what_is_held_outside_is_not_freed/1,
    a_backlog_of_cycles_outlasts_a_sweep_and_is_freed/1,
    a_cycle_is_freed_beside_a_large_live_graph/1,
    a_large_cycle_is_freed/1,
    a_chain_of_states_is_freed/1,
    random_graphs_keep_what_is_reachable/1
]).

-define(O, erlmcp_connection_optimizer).
-define(P, erlmcp_memory_pool).

all() ->
    [
        an_update_drops_a_link_to_the_state_itself,
        a_state_with_its_own_handle_is_freed,
        states_that_hold_each_other_are_freed,
        cycles_through_other_values_are_freed,
        either_order_of_owners_frees_a_cycle,
        a_cycle_is_freed_while_others_read,
        what_is_held_outside_is_not_freed,
        a_backlog_of_cycles_outlasts_a_sweep_and_is_freed,
        a_cycle_is_freed_beside_a_large_live_graph,
        a_large_cycle_is_freed,
        a_chain_of_states_is_freed,
        random_graphs_keep_what_is_reachable
    ].

init_per_testcase(_Case, Config) ->
    erlmcp_optimizer_state_help:default(),
    clear(),
    start(),
    Config.

%% What a case could not free is not waited for.
end_per_testcase(_Case, _Config) ->
    erlmcp_pool_help:stop().

acquire(Map) ->
    {ok, Ref} = ?P:acquire_connection_state(Map),
    Ref.

update(Ref, Map) ->
    ok = ?P:update_connection_state(Ref, Map).

read(Ref) ->
    {ok, Map} = ?P:connection_state(Ref),
    Map.

all_back() ->
    until(fun() ->
        garbage_collect(),
        maps:get(in_use, ?P:pool_stats()) =:= 0
    end).

compact(Value) ->
    ?O:from_map(#{id => <<>>, f => Value}).

%% Values that lead to a pooled state.
ways() ->
    Large = fun(Ref) -> maps:from_list([{N, [N, Ref]} || N <- lists:seq(1, 1000)]) end,
    Links = fun(Ref) -> [Ref | [?O:share({link, N}) || N <- lists:seq(1, 300)]] end,
    [
        {itself, fun(Ref) -> Ref end},
        {list, fun(Ref) -> [Ref, {Ref, #{k => Ref}}] end},
        {key, fun(Ref) -> #{Ref => 1} end},
        {closure, fun(Ref) -> fun() -> Ref end end},
        {closures, fun(Ref) -> fun() -> fun() -> [Ref] end end end},
        {deep, fun(Ref) -> erlmcp_optimizer_state_help:nested(140, fun(T) -> [T, Ref] end) end},
        {share, fun(Ref) -> ?O:share(#{k => Ref}) end},
        {share_of_share, fun(Ref) -> [?O:share(?O:share({Ref}))] end},
        {share_of_closure, fun(Ref) -> ?O:share(fun() -> Ref end) end},
        {state, fun(Ref) -> compact(Ref) end},
        {state_of_share, fun(Ref) -> compact(?O:share([Ref])) end},
        {share_of_state, fun(Ref) -> ?O:share([compact(#{k => Ref})]) end},
        {closure_of_state, fun(Ref) -> S = compact(Ref), fun() -> S end end},
        {large_map, Large},
        {large_map_in_state, fun(Ref) -> compact(Large(Ref)) end},
        {large_map_in_share, fun(Ref) -> ?O:share(Large(Ref)) end},
        {parked, fun(Ref) -> ?O:park([Ref]) end},
        {parked_in_parked, fun(Ref) -> [?O:park({?O:park(Ref)})] end},
        {parked_large, fun(Ref) -> ?O:park({s, Large(Ref), Links(Ref)}) end},
        {share_of_parked, fun(Ref) -> ?O:share([?O:park(Large(Ref))]) end},
        {parked_closure, fun(Ref) -> ?O:park(fun() -> Ref end) end},
        {parked_state, fun(Ref) -> ?O:park(compact(Ref)) end},
        {state_of_parked, fun(Ref) -> compact(?O:park(Large(Ref))) end},
        {many_links, Links},
        {many_links_in_state, fun(Ref) -> compact(Links(Ref)) end}
    ].

a_state_with_its_own_handle_is_freed(_Config) ->
    [
        alone(fun() ->
            Ref = acquire(#{n => N}),
            update(Ref, #{handle => Ref}),
            ok
        end)
     || N <- lists:seq(1, 100)
    ],
    all_back().

%% It waited for itself, on a normal scheduler.
an_update_drops_a_link_to_the_state_itself(_Config) ->
    alone(fun() ->
        {Ref, Other} = {acquire(#{}), acquire(#{})},
        update(Ref, #{a => Ref}),
        update(Ref, #{b => Other}),
        update(Ref, #{a => 1, b => Ref}),
        ?assertEqual(#{a => 1, b => Ref}, read(Ref)),
        ok
    end),
    all_back().

states_that_hold_each_other_are_freed(_Config) ->
    alone(fun() ->
        {A, B} = {acquire(#{n => 1}), acquire(#{n => 2})},
        update(A, #{other => B}),
        update(B, #{other => A}),
        %% And a ring.
        Ring = [acquire(#{n => N}) || N <- lists:seq(1, 200)],
        [update(R, #{next => Next}) || {R, Next} <- lists:zip(Ring, tl(Ring) ++ [hd(Ring)])],
        ok
    end),
    all_back().

cycles_through_other_values_are_freed(_Config) ->
    [
        begin
            alone(fun() ->
                Refs = [acquire(#{n => N}) || N <- lists:seq(1, 3)],
                [update(Ref, #{way => Way(Ref)}) || Ref <- Refs],
                Ring = lists:zip(Refs, tl(Refs) ++ [hd(Refs)]),
                [update(Ref, #{next => Way(Next)}) || {Ref, Next} <- Ring],
                ok
            end),
            freed(Name)
        end
     || {Name, Way} <- ways()
    ],
    ok.

freed(Name) ->
    try all_back() catch exit:_ -> ct:fail({not_freed, Name}) end.

either_order_of_owners_frees_a_cycle(_Config) ->
    [
        begin
            [First, Second] = [holder() || _ <- [1, 2]],
            alone(fun() ->
                Ref = acquire(#{n => 1}),
                Value = Way(Ref),
                update(Ref, #{way => Value}),
                [hold(H, V) || {H, V} <- lists:zip([First, Second], Order(Ref, Value))],
                ok
            end),
            let_go(First),
            ?assertEqual({Name, 1}, {Name, maps:get(in_use, ?P:pool_stats())}),
            let_go(Second),
            freed(Name)
        end
     || {Name, Way} <- ways(), Order <- [fun(R, V) -> [R, V] end, fun(R, V) -> [V, R] end]
    ],
    ok.

%% A process that has a term until it is told to let it go.
holder() ->
    spawn(fun() ->
        receive {hold, From, Term} ->
            From ! {held, self()},
            held(Term)
        end
    end).

held(Term) ->
    receive
        let_go -> Term;
        {walk, From} ->
            %% In a process of its own: nothing that was read stays here.
            From ! {walked, self(), alone(fun() -> lists:sort(walk([Term], #{})) end)},
            held(Term)
    end.

%% The numbers of the pooled states that a term leads to.
walk([], Seen) ->
    [N || {pooled, N} <- maps:values(Seen)];
walk([Term | Rest], Seen) ->
    case Term of
        [Head | Tail] -> walk([Head, Tail | Rest], Seen);
        {N, {_Kind, Ref}} when is_map_key(Ref, Seen), is_integer(N) -> walk(Rest, Seen);
        {N, {pooled, Ref}} ->
            #{n := N, to := To} = read(Ref),
            walk([To | Rest], Seen#{Ref => {pooled, N}});
        {N, {share, Ref}} ->
            {_, N, Refs} = ?O:shared(Ref),
            walk([Refs | Rest], Seen#{Ref => other});
        {N, {state, State}} ->
            {N, Refs} = ?O:get_state_field(State, f),
            walk([Refs | Rest], Seen#{State => other});
        {N, {term, Fun}} ->
            {N, Refs} = Fun(),
            walk([Refs | Rest], Seen#{Fun => other});
        [] -> walk(Rest, Seen)
    end.

hold(Holder, Term) ->
    Holder ! {hold, self(), Term},
    receive {held, Holder} -> ok end.

let_go(Holder) ->
    Monitor = monitor(process, Holder),
    Holder ! let_go,
    receive {'DOWN', Monitor, process, Holder, _} -> ok end.

a_cycle_is_freed_while_others_read(_Config) ->
    Outside = acquire(#{outside => true}),
    [
        begin
            {Pid, Monitor} = spawn_monitor(fun() ->
                Ref = acquire(#{n => 1, payload => lists:seq(1, 50)}),
                update(Ref, #{way => Way(Ref), outside => Outside}),
                Readers = [spawn_monitor(fun() -> reading(Ref, 200) end) || _ <- [1, 2, 3]],
                [receive {'DOWN', M, process, P, Why} -> normal = Why end || {P, M} <- Readers],
                #{payload := [1 | _]} = read(Ref)
            end),
            receive {'DOWN', Monitor, process, Pid, Why} -> ?assertEqual({Name, normal}, {Name, Why}) end
        end
     || {Name, Way} <- ways(), _ <- lists:seq(1, 5)
    ],
    until(fun() -> maps:get(in_use, ?P:pool_stats()) =:= 1 end),
    ?assertEqual(#{outside => true}, read(Outside)).

reading(_Ref, 0) ->
    ok;
reading(Ref, Left) ->
    #{payload := [1 | _], outside := Outside, way := _} = read(Ref),
    #{outside := true} = read(Outside),
    reading(Ref, Left - 1).

what_is_held_outside_is_not_freed(_Config) ->
    Table = ets:new(held, [public]),
    [
        begin
            alone(fun() ->
                [A, B] = [acquire(#{n => N}) || N <- [1, 2]],
                update(A, #{next => Way(B)}),
                update(B, #{next => Way(A), last => true}),
                %% One of two, by itself or by what leads to it.
                ets:insert(Table, {a, Wrap(A)}),
                ok
            end),
            %% Others come and go meanwhile.
            [alone(fun() -> R = acquire(#{}), update(R, #{way => Way(R)}), ok end) || _ <- [1, 2, 3]],
            until(fun() -> maps:get(in_use, ?P:pool_stats()) =:= 2 end),
            alone(fun() ->
                [{a, Held}] = ets:lookup(Table, a),
                A = unwrap(Held),
                ?assertMatch({Name, #{n := 1}}, {Name, read(A)}),
                #{next := _} = read(A),
                ok
            end),
            ?assertEqual({Name, 2}, {Name, maps:get(in_use, ?P:pool_stats())}),
            ets:delete(Table, a),
            freed(Name)
        end
     || {Name, Way} <- ways(),
        Wrap <- [fun(A) -> A end, fun(A) -> ?O:share([A]) end, fun(A) -> {state, compact(A)} end]
    ],
    ok.

unwrap({state, State}) ->
    ?O:get_state_field(State, f);
unwrap(Ref) ->
    try ?O:shared(Ref) of
        [A] -> A
    catch
        error:badarg -> Ref
    end.

%% Each sweep held all that was still to be looked at, so nothing was freed after the second one.
a_backlog_of_cycles_outlasts_a_sweep_and_is_freed(_Config) ->
    alone(fun() ->
        [begin R = acquire(#{}), update(R, #{me => R}) end || _ <- lists:seq(1, 100_000)],
        ok
    end),
    until(fun() ->
        erlmcp_pool_help:tick(trim),
        maps:get(in_use, ?P:pool_stats()) =:= 0
    end).

%% Each owner that went had the whole graph looked at.
a_cycle_is_freed_beside_a_large_live_graph(_Config) ->
    Keeper = holder(),
    Leaves = 20_000,
    alone(fun() ->
        Hub = acquire(#{}),
        All = [acquire(#{hub => Hub, n => N}) || N <- lists:seq(1, Leaves)],
        update(Hub, #{all => All}),
        hold(Keeper, All),
        %% Processes that read a leaf, and with it the hub, and end.
        [alone(fun() -> read(Leaf), ok end) || Leaf <- All, _ <- [1, 2]],
        [begin R = acquire(#{}), update(R, #{me => R}) end || _ <- lists:seq(1, 100)],
        ok
    end),
    until(fun() -> maps:get(in_use, ?P:pool_stats()) =:= Leaves + 1 end),
    let_go(Keeper),
    all_back().

%% More than one look takes in: the sweep finds it.
a_large_cycle_is_freed(_Config) ->
    Keeper = holder(),
    alone(fun() ->
        Ring = [acquire(#{n => N}) || N <- lists:seq(1, 30_000)],
        [update(R, #{next => Next}) || {R, Next} <- lists:zip(Ring, tl(Ring) ++ [hd(Ring)])],
        hold(Keeper, hd(Ring)),
        ok
    end),
    erlmcp_pool_help:tick(trim),
    ?assertEqual(30_000, maps:get(in_use, ?P:pool_stats())),
    let_go(Keeper),
    all_back().

%%% Random graphs

%% A thousand graphs of pooled states, shares and compact states. Some nodes are kept by a process
%% of their own; what these reach must stay, and all else come back.
%% However long, and wherever it is cut: a chain that was freed by recursion ended the node.
a_chain_of_states_is_freed(_Config) ->
    Ways = [itself, list, closure, share, state, parked, state_of_share],
    [
        begin
            alone(fun() -> cut(Cut, chain(Length, Link)) end),
            all_back()
        end
     || {Way, Link} <- ways(),
        lists:member(Way, Ways),
        {Length, Cut} <- [{50_000, owner}, {20_000, release}, {20_000, update}]
    ].

chain(Length, Link) ->
    lists:foldl(fun(N, Ref) -> acquire(#{n => N, next => Link(Ref)}) end, acquire(#{}), lists:seq(2, Length)).

cut(owner, _Ref) ->
    ok;
cut(release, Ref) ->
    ok = ?P:release_connection_state(Ref);
cut(update, Ref) ->
    update(Ref, #{next => none}),
    garbage_collect(),
    #{n := _} = read(Ref),
    ok.

random_graphs_keep_what_is_reachable(_Config) ->
    [graphs(lists:seq(N, N + 99)) || N <- lists:seq(1, 1000, 100)],
    ok.

graphs(Seeds) ->
    Graphs = [{Seed, Keeper, graph(Seed, Keeper)} || Seed <- Seeds, Keeper <- [holder()]],
    Count = lists:sum([length(Alive) || {_, _, Alive} <- Graphs]),
    until(fun() -> maps:get(in_use, ?P:pool_stats()) =< Count end),
    ?assertEqual(Count, maps:get(in_use, ?P:pool_stats())),
    %% They are readable, from what was kept.
    [
        begin
            Keeper ! {walk, self()},
            receive {walked, Keeper, Found} -> ?assertEqual({Seed, Alive}, {Seed, Found}) end
        end
     || {Seed, Keeper, Alive} <- Graphs
    ],
    [let_go(Keeper) || {_, Keeper, _} <- Graphs],
    all_back().

%% The pooled states of it that are kept.
graph(Seed, Keeper) ->
    alone(fun() ->
        rand:seed(exsss, {Seed, 5, 7}),
        Size = 2 + rand:uniform(8),
        Pooled = [{N, acquire(#{n => N})} || N <- lists:seq(1, Size)],
        %% Nodes that do not change: each refers to ones made before.
        {Nodes, Edges} = lists:foldl(
            fun(N, {Known, Out}) ->
                Targets = some(Known, 3),
                Made =
                    case rand:uniform(3) of
                        1 -> {share, ?O:share({Seed, N, Targets})};
                        2 -> {state, compact({N, Targets})};
                        3 -> {term, fun() -> {N, Targets} end}
                    end,
                {[{N, Made} | Known], Out#{N => [To || {To, _} <- Targets]}}
            end,
            {[{N, {pooled, Ref}} || {N, Ref} <- Pooled], #{}},
            lists:seq(Size + 1, 2 * Size)
        ),
        %% Pooled states change afterwards: so cycles come about.
        All = lists:foldl(
            fun({N, Ref}, Out) ->
                Targets = some(Nodes, 3),
                update(Ref, #{to => Targets}),
                Out#{N => [To || {To, _} <- Targets]}
            end,
            Edges,
            Pooled
        ),
        Kept = some(Nodes, rand:uniform(3) - 1),
        hold(Keeper, Kept),
        Reached = reached([N || {N, _} <- Kept], All, #{}),
        lists:sort([N || N <- maps:keys(Reached), N =< Size])
    end).

some(Nodes, Count) ->
    [lists:nth(rand:uniform(length(Nodes)), Nodes) || _ <- lists:seq(1, Count)].

reached([], _Edges, Seen) ->
    Seen;
reached([N | Rest], Edges, Seen) when is_map_key(N, Seen) ->
    reached(Rest, Edges, Seen);
reached([N | Rest], Edges, Seen) ->
    reached(maps:get(N, Edges) ++ Rest, Edges, Seen#{N => true}).
