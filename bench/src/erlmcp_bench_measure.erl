%% @doc What several measurements need.
-module(erlmcp_bench_measure).

-export([median/1, settled_total/0]).

-spec median([number(), ...]) -> number().
median(List) ->
    lists:nth((length(List) + 1) div 2, lists:sort(List)).

%% @doc `erlang:memory(total)' when it has come to rest: memory that one thread frees for another
%% comes back a moment later.
-spec settled_total() -> non_neg_integer().
settled_total() ->
    settled_total(erlang:memory(total), 3, 50).

settled_total(Last, Still, Tries) when Still =:= 0; Tries =:= 0 ->
    Last;
settled_total(Last, Still, Tries) ->
    timer:sleep(100),
    case erlang:memory(total) of
        Now when abs(Now - Last) < 65536 -> settled_total(Now, Still - 1, Tries - 1);
        Now -> settled_total(Now, 3, Tries - 1)
    end.
