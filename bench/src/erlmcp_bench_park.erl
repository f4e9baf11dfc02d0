%% @doc `make bench-park': parking and unparking beside the external format and ETS.
%%
%% Each figure is the shortest of many short runs, because a run that was interrupted says nothing
%% of what was run; ratios are of runs that took turns.
-module(erlmcp_bench_park).

-export([main/1]).

-import(erlmcp_bench_measure, [in_own_process/2, median/1, nanoseconds/1, repeat/2]).
-import(erlmcp_bench_table, [
    row/1, mark/5, bytes/1, micros/1, ratio/2, print/2, print_machine/0
]).

-define(O, erlmcp_connection_optimizer).
-define(N, erlmcp_memory_nif).
-define(RUN_NS, 300_000).

%% @doc Measures each `Rounds' times.
-spec main([string()]) -> ok.
main([RoundsText]) ->
    Rounds = list_to_integer(RoundsText),
    print_machine(),
    row(["", "to_binary", "park", "to_term", "unpark", "ets insert", "ets lookup", "rest"]),
    [Tools, Small | _] = [times(Name, State, Rounds) || {Name, State} <- states()],
    First = first_times(Rounds),
    #{to_binary := FirstToBinary, park := FirstPark, again := FirstAgain} = First,
    print("~nContent that the node does not have yet, 45 tools, medians~n", []),
    row(["", "to_binary", "park", "once more"]),
    row(["", micros(FirstToBinary), micros(FirstPark), micros(FirstAgain)]),
    row(["", "1", ratio(FirstPark, FirstToBinary), ratio(FirstAgain, FirstToBinary)]),
    Own = native(),
    print("~nBytes for a parked state of 86 tools with closures, that differs~n", []),
    row(["in its id", bytes(maps:get(id, Own))]),
    row(["in a tool as well", bytes(maps:get(tool, Own))]),
    row(["in all of its tools", bytes(maps:get(all, Own))]),
    print("~nMarks~n", []),
    mark(1, "unpark 45 tools / binary_to_term", at_most, quotient(unpark, to_term, Tools), 0.8),
    mark(2, "park 45 tools / term_to_binary", at_most, quotient(park, to_binary, Tools), 2.5),
    mark(2, "the same, content that is new", at_most, quotient(park, to_binary, First), 2.5),
    mark(3, "unchanged state, us", at_most, maps:get(rest, Tools) / 1000, 5.0),
    SmallBoth = (maps:get(park, Small) + maps:get(unpark, Small)) / 1000,
    mark(4, "park and unpark 1 KB, us", at_most, SmallBoth, 10.0),
    mark(5, "bytes of a state that differs in its id", at_most, maps:get(id, Own), 500.0).

quotient(A, B, Times) ->
    maps:get(A, Times) / maps:get(B, Times).

states() ->
    [
        {"45 tools", state(erlmcp_bench_tools:generate(45))},
        {"1 KB", {state, <<"session-1">>, #{phase => ready, pending => [1, 2, 3]}, lists:seq(1, 40)}},
        {"10 KB of its own", state([{N, integer_to_binary(N), #{n => N}} || N <- lists:seq(1, 80)])},
        {"500 KB of its own",
            state(maps:from_list([{N, {entry, integer_to_binary(N)}} || N <- lists:seq(1, 6000)]))},
        {"86 tools with closures", state(handlers(1))}
    ].

state(Data) ->
    {state, <<"session-1">>, Data, #{since => 17}, undefined}.

handlers(Number) ->
    [
        begin
            Inner = fun(Arguments) -> {Name, Arguments, Number} end,
            {Name, Tool, fun(Arguments) -> [Inner(Arguments)] end}
        end
     || #{<<"name">> := Name} = Tool <- erlmcp_bench_tools:generate(86)
    ].

%% --- time ---

times(Name, State, Rounds) ->
    Slot = ?N:slot_new(),
    Binary = term_to_binary(State),
    Table = ets:new(states, [public]),
    Actions = [
        {to_binary, fun() -> term_to_binary(State) end},
        {park, fun() -> ok = park(Slot, State) end},
        {to_term, fun() -> binary_to_term(Binary) end},
        {unpark, fun() -> ?N:slot_wake(Slot) end},
        {insert, fun() -> ets:insert(Table, {state, State}) end},
        {lookup, fun() -> ets:lookup(Table, state) end},
        {rest, fun() -> ok = ?N:slot_rest(Slot) end}
    ],
    Sized = [{What, Action, calls(Action)} || {What, Action} <- Actions],
    true = ?N:slot_wake(Slot) =:= State,
    Times = lists:foldl(
        fun(_, Best) ->
            maps:merge_with(
                fun(_, A, B) -> min(A, B) end,
                Best,
                maps:from_list([{What, run(Action, Calls)} || {What, Action, Calls} <- Sized])
            )
        end,
        #{},
        lists:seq(1, Rounds)
    ),
    #{to_binary := ToBinary, to_term := ToTerm, park := Park, unpark := Unpark} = Times,
    #{insert := Insert, lookup := Lookup, rest := Rest} = Times,
    row([Name | [micros(T) || T <- [ToBinary, Park, ToTerm, Unpark, Insert, Lookup, Rest]]]),
    row(["", "1", ratio(Park, ToBinary), "1", ratio(Unpark, ToTerm),
        ratio(Insert, ToBinary), ratio(Lookup, ToTerm)]),
    true = ets:delete(Table),
    Times.

%% Each state is parked while no other one has its tools, and all stay parked until the end. `again'
%% is the same state once more: its parts are known then, and are not kept as terms yet.
first_times(Rounds) ->
    Tools = erlmcp_bench_tools:generate(45),
    States = [state([renamed(Round, Tool) || Tool <- Tools]) || Round <- lists:seq(1, Rounds)],
    Measure = fun() ->
        [
            begin
                Slot = ?N:slot_new(),
                Park = fun() -> ok = park(Slot, State) end,
                {Slot, [
                    {to_binary, nanoseconds(fun() -> term_to_binary(State) end)},
                    {park, nanoseconds(Park)},
                    {again, nanoseconds(Park)}
                ]}
            end
         || State <- States
        ]
    end,
    {_Slots, Times} = lists:unzip(in_own_process(Measure, [{min_heap_size, 20_000_000}])),
    maps:map(
        fun(What, _) -> median([proplists:get_value(What, T) || T <- Times]) end, maps:from_list(hd(Times))
    ).

renamed(Round, #{<<"description">> := Description} = Tool) ->
    Tool#{<<"description">> := <<(integer_to_binary(Round))/binary, " ", Description/binary>>}.

park(Slot, State) ->
    case ?N:slot_park(Slot, State, []) of
        {closed, Terms} -> erlmcp_memory_opened:call(slot_park, [Slot, State], [], Terms);
        ok -> ok
    end.

%% Calls of a run, after enough for parts to be kept as terms.
calls(Action) ->
    _ = run(Action, 6),
    max(1, round(?RUN_NS / max(1, run(Action, 3)))).

%% Nanoseconds a call, in a process with room for what it makes.
run(Action, Calls) ->
    Run = fun() -> nanoseconds(fun() -> repeat(Action, Calls) end) / Calls end,
    in_own_process(Run, [{min_heap_size, 500_000}]).

%% --- memory ---

native() ->
    Own = fun
        (id, N) -> {state, N, handlers(1), undefined};
        (tool, N) -> {state, N, [{own, N, hd(handlers(N))} | tl(handlers(1))], undefined};
        (all, N) -> {state, N, handlers(N), undefined}
    end,
    First = [?O:park(Own(id, 0)), ?O:park(Own(tool, 0))],
    Taken = maps:from_list([{What, taken(fun(N) -> Own(What, N) end)} || What <- [id, tool, all]]),
    [_, _] = First,
    Taken.

%% Native bytes of one of twenty, without the object of the slot.
taken(Make) ->
    Before = ?N:native_bytes(),
    Slots = [
        begin
            Slot = ?N:slot_new(),
            ok = park(Slot, Make(N)),
            Slot
        end
     || N <- lists:seq(2, 21)
    ],
    Taken = ?N:native_bytes() - Before,
    Taken / length(Slots).
