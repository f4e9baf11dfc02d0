%% @doc What several measurements need.
-module(erlmcp_bench_measure).

-export([median/1, medians/1, percentile/2]).
-export([nanoseconds/1, nanoseconds_each/2, repeat/2]).
-export([in_own_process/1, in_own_process/2]).
-export([settled_total/0, settled/2]).

-spec median([number(), ...]) -> number().
median(List) ->
    lists:nth((length(List) + 1) div 2, lists:sort(List)).

%% @doc The median of the values of each key.
-spec medians([{Key, number()}]) -> #{Key => number()}.
medians(Values) ->
    Keys = lists:usort([Key || {Key, _} <- Values]),
    maps:from_list([{Key, median([V || {K, V} <- Values, K =:= Key])} || Key <- Keys]).

-spec percentile(1..100, [number(), ...]) -> number().
percentile(Percent, List) ->
    lists:nth(max(1, length(List) * Percent div 100), lists:sort(List)).

%% @doc How long a call takes.
-spec nanoseconds(fun(() -> term())) -> integer().
nanoseconds(Fun) ->
    Start = erlang:monotonic_time(nanosecond),
    _ = Fun(),
    erlang:monotonic_time(nanosecond) - Start.

%% @doc How long each call takes, of as many as fill `Ms' milliseconds.
-spec nanoseconds_each(fun(() -> term()), Ms :: pos_integer()) -> float().
nanoseconds_each(Fun, Ms) ->
    Start = erlang:monotonic_time(nanosecond),
    nanoseconds_each(Fun, Start, Start + Ms * 1000000, 0).

nanoseconds_each(Fun, Start, End, Done) ->
    ok = repeat(Fun, 10),
    case erlang:monotonic_time(nanosecond) of
        Now when Now < End -> nanoseconds_each(Fun, Start, End, Done + 10);
        Now -> (Now - Start) / (Done + 10)
    end.

-spec repeat(fun(() -> term()), Times :: non_neg_integer()) -> ok.
repeat(_Fun, 0) ->
    ok;
repeat(Fun, Times) ->
    _ = Fun(),
    repeat(Fun, Times - 1).

%% @doc The result of a call in a process of its own, which is gone then: all begin with the same
%% heap, and leave none behind. Its failure is the caller's.
-spec in_own_process(fun(() -> Result)) -> Result.
in_own_process(Fun) ->
    in_own_process(Fun, []).

%% @doc The same, with options of `spawn_opt/2'.
-spec in_own_process(fun(() -> Result), list()) -> Result.
in_own_process(Fun, Options) ->
    {Pid, Monitor} = spawn_opt(fun() -> exit({result, Fun()}) end, [monitor | Options]),
    receive
        {'DOWN', Monitor, process, Pid, {result, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> exit(Reason)
    end.

%% @doc `erlang:memory(total)' when it has come to rest: memory that one thread frees for another
%% comes back a moment later.
-spec settled_total() -> non_neg_integer().
settled_total() ->
    settled(fun() -> erlang:memory(total) end, fun(Total) -> Total end).

%% @doc What `Look' returns when the bytes that `Bytes' takes from it have come to rest.
-spec settled(Look :: fun(() -> Seen), Bytes :: fun((Seen) -> integer())) -> Seen.
settled(Look, Bytes) ->
    settled(Look, Bytes, Look(), 3, 50).

settled(_Look, _Bytes, Last, Still, Tries) when Still =:= 0; Tries =:= 0 ->
    Last;
settled(Look, Bytes, Last, Still, Tries) ->
    timer:sleep(100),
    Now = Look(),
    case abs(Bytes(Now) - Bytes(Last)) < 65536 of
        true -> settled(Look, Bytes, Now, Still - 1, Tries - 1);
        false -> settled(Look, Bytes, Now, 3, Tries - 1)
    end.
