%% @doc `make bench-schedulers': what one scheduler or one process does to others. Gaps while
%% something large is freed, contention on what all share, and what operations hold beside their
%% results.
%%
%% The text that is printed says first what was measured, then which marks are met.
-module(erlmcp_bench_schedulers).

-export([main/1]).
-export([contention/2, gaps/2, held/1, single/1]).

-import(erlmcp_bench_table, [
    row/1, mark/5, bytes/1, ms/1, ratio/2, print/2, print_machine/0
]).

-define(O, erlmcp_connection_optimizer).
%% Milliseconds: what a scheduler of the operating system leaves in one piece.
-define(SLICE, 5).
-define(WAYS, [{collected, owner}, {collected, other}, {killed, owner}, {killed, other}]).

%% @doc `Count' links, shares or objects are dropped, in this many `Rounds'; times are medians of
%% thirteen times as many, each of some milliseconds. Ends with a status other than 0 when something
%% could not be measured, whether or not the marks are met.
-spec main([string()]) -> ok.
main([CountText, RoundsText]) ->
    Count = list_to_integer(CountText),
    Rounds = list_to_integer(RoundsText),
    print_machine(),
    Gaps = run("gaps", gaps, [Count, Rounds]),
    print_gaps(Count, Gaps),
    Times = run("contention", contention, [?SLICE, 13 * Rounds]),
    print_contention(Times),
    Single = run("single operations", single, [33 * Rounds]),
    print_single(Single),
    Held = run("memory", held, [Count div 2]),
    print_held(Count div 2, Held),
    print("~nMarks~n", []),
    marks_of_gaps(Gaps),
    marks_of_contention(Times),
    marks_of_single(Single),
    marks_of_held(Held).

run(What, Function, Arguments) ->
    erlmcp_bench_vm:run(What, ?MODULE, Function, Arguments).

%% --- gaps ---

%% @doc The medians of this many rounds of each kind, and the gap of the idle node.
-spec gaps(pos_integer(), pos_integer()) ->
    #{idle := float(), {erlmcp_bench_gaps:kind(), term()} => erlmcp_bench_gaps:gap()}.
gaps(Count, Rounds) ->
    Drops = lists:append([
        begin
            ok = erlmcp_bench_gaps:warm(Kind, Count),
            [{{Kind, Way}, drops(Kind, Count, Way, Rounds)} || Way <- ?WAYS]
        end
     || Kind <- erlmcp_bench_gaps:kinds()
    ]),
    maps:from_list([{idle, erlmcp_bench_gaps:idle(1000)} | Drops]).

drops(Kind, Count, {How, On}, Rounds) ->
    Runs = [erlmcp_bench_gaps:drop({Kind, Count}, How, On) || _ <- lists:seq(1, Rounds)],
    #{gap => middle(gap, Runs), back => middle(back, Runs)}.

%% An atom, for memory that never came back, is more than any number.
middle(Key, Runs) ->
    erlmcp_bench_measure:median([maps:get(Key, Run) || Run <- Runs]).

print_gaps(Count, #{idle := Idle} = Gaps) ->
    print("~b dropped: the longest gap of a scheduler, until all memory is back; ms~n", [Count]),
    row(["" | lists:append([[atom_to_list(How), atom_to_list(On)] || {How, On} <- ?WAYS])]),
    [
        row([
            erlmcp_bench_gaps:name(Kind)
            | lists:append([
                [ms(Gap), back(Back)]
             || Way <- ?WAYS, #{gap := Gap, back := Back} <- [maps:get({Kind, Way}, Gaps)]
            ])
        ])
     || Kind <- erlmcp_bench_gaps:kinds()
    ],
    row(["nothing, for a second", ms(Idle)]),
    print(
        "  owner: on the scheduler of the process that made them. separate states and VM: that~n"
        "  many objects in the heap of one process, whose collection is the VM's own work.~n",
        []
    ).

back(never) -> "never";
back(Ms) -> ms(Ms).

marks_of_gaps(Gaps) ->
    [
        begin
            Longest = [maps:get(gap, maps:get({Kind, Way}, Gaps)) || Way <- ?WAYS],
            Text = ["longest gap, ms: ", erlmcp_bench_gaps:name(Kind)],
            mark(1, Text, at_most, lists:max(Longest), 10)
        end
     || Kind <- [chain_of_shares, chain_of_states, share_of_shares]
    ].

%% --- contention ---

-spec contention(pos_integer(), pos_integer()) ->
    #{erlmcp_bench_contention:operation() => erlmcp_bench_contention:times()}.
contention(Ms, Rounds) ->
    {ok, _} = erlmcp_memory_pool:start_link(),
    erlmcp_bench_contention:measure(erlmcp_bench_contention:operations(), Ms, Rounds).

print_contention(Times) ->
    print("~nOne scheduler alone; all at once with one object, with one each; ns, medians~n", []),
    row(["", "alone", "at once", "ratio", "one each", "ratio"]),
    [
        row([
            erlmcp_bench_contention:name(Op),
            bytes(Alone), bytes(Common), ratio(Common, Alone), bytes(Own), ratio(Common, Own)
        ])
     || Op <- erlmcp_bench_contention:operations(),
        #{alone := Alone, common := Common, own := Own} <- [maps:get(Op, Times)]
    ],
    print(
        "  The second ratio is the common object's alone: a busy machine moves the first one.~n"
        "  Where ten times atomics:add/3 shows none, this machine cannot show it.~n",
        []
    ).

marks_of_contention(Times) ->
    [
        begin
            #{alone := Alone, common := Common} = maps:get(Op, Times),
            Text = ["all at once, a multiple of alone: ", erlmcp_bench_contention:name(Op)],
            mark(2, Text, at_most, Common / Alone, 1.1)
        end
     || Op <- [find_1, find_10, find_100, shared, read, update_path, update, buffer]
    ].

%% --- single operations ---

-spec single(pos_integer()) -> #{atom() => float()}.
single(Rounds) ->
    Metadata = #{user_id => 1, locale => <<"en">>},
    Plain = ?O:from_map(#{id => <<"connection-000001">>, metadata => Metadata}),
    Share = ?O:share(#{tools => lists:seq(1, 100)}),
    Sharing = ?O:update_state_field(Plain, capabilities_ref, Share),
    Many = ?O:update_state_field(Plain, shares, [?O:share({N, x}) || N <- lists:seq(1, 1000)]),
    Path = [metadata, user_id],
    Funs = #{
        path => fun() -> ?O:update_state_field(Plain, Path, 7) end,
        path_with_share => fun() -> ?O:update_state_field(Sharing, Path, 7) end,
        field => fun() -> ?O:update_state_field(Plain, phase, closed) end,
        field_with_share => fun() -> ?O:update_state_field(Sharing, phase, closed) end,
        path_with_shares => fun() -> ?O:update_state_field(Many, Path, 7) end,
        field_with_shares => fun() -> ?O:update_state_field(Many, phase, closed) end,
        set_share => fun() -> ?O:update_state_field(Plain, capabilities_ref, Share) end
    },
    erlmcp_bench_contention:interleaved(Funs, Rounds).

print_single(Single) ->
    print("~nUpdates of a state by one process, ns, medians~n", []),
    row(["", "no share", "a share", "ratio", "1,000", "ratio"]),
    [
        row([Name, bytes(None), bytes(One), ratio(One, None), bytes(Many), ratio(Many, None)])
     || {Name, Keys} <- [
            {"update [metadata, user_id]", [path, path_with_share, path_with_shares]},
            {"update a field", [field, field_with_share, field_with_shares]}
        ],
        [None, One, Many] <- [[maps:get(Key, Single) || Key <- Keys]]
    ],
    row(["set capabilities_ref", "", bytes(maps:get(set_share, Single))]).

marks_of_single(#{path := Path, path_with_share := WithShare, field := Field, set_share := Set}) ->
    mark(3, "update of a path with a share, a multiple of without", at_most, WithShare / Path, 1.1),
    mark(3, "setting capabilities_ref, a multiple of another field", at_most, Set / Field, 1.5).

%% --- memory ---

-spec held(pos_integer()) -> #{atom() => map() | integer()}.
held(Shares) ->
    {ok, _} = erlmcp_memory_pool:start_link(),
    #{
        read => erlmcp_bench_held:read_snapshot(Shares),
        collections => erlmcp_bench_held:pairs(2000),
        closures => erlmcp_bench_held:closures(18),
        part => erlmcp_bench_held:closure_over_part()
    }.

print_held(Shares, Held) ->
    #{read := Read, collections := Collections, closures := Closures, part := Part} = Held,
    print("~nA snapshot with ~b shares is read, bytes~n", [Shares]),
    row(["", "snapshot", "at the peak", "afterwards", "its account"]),
    row(["" | [bytes(maps:get(Key, Read)) || Key <- [snapshot, peak, rest, state]]]),
    print("~n18 closures over one session, bytes~n", []),
    row(["", "on a heap", "estimate", "taken"]),
    row(["" | [bytes(maps:get(Key, Closures)) || Key <- [heap, estimate, taken]]]),
    print("~nA closure over 100 bytes of a binary of 50 MB, bytes~n", []),
    row(["", "binaries", "estimate"]),
    row(["" | [bytes(maps:get(Key, Part)) || Key <- [binaries, estimate]]]),
    print("~n~b collections for 2,000 pairs of acquire and release of a message buffer~n", [
        Collections
    ]).

marks_of_held(#{read := Read, collections := Collections, closures := Closures, part := Part}) ->
    #{snapshot := Snapshot, peak := Peak, state := State} = Read,
    mark(4, "reading a snapshot, the peak as a multiple of the state", at_most, Peak / State, 1.5),
    mark(4, "the state, bytes a byte of the snapshot", at_most, State / Snapshot, 60),
    mark(4, "collections for 2,000 pairs of a message buffer", at_most, Collections, 60),
    #{heap := Heap, estimate := Estimate, taken := Taken} = Closures,
    mark(4, "18 closures, a multiple of their heap", at_most, Taken / Heap, 4),
    Error = abs(Estimate - Taken) / Taken,
    mark(4, "18 closures, the estimate's error as a part of that", at_most, Error, 0.1),
    #{binaries := Binaries} = Part,
    mark(4, "a closure over a small part, bytes of binaries", at_most, Binaries, 65536).
