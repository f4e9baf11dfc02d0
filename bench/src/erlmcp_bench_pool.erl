%% @doc `make bench-pool': the pool beside a gen_server, poolboy and a bare ETS table, and message
%% buffers beside binaries that are appended to.
%%
%% The text that is printed says first what was measured, then which marks are met.
-module(erlmcp_bench_pool).

-export([main/1]).

-import(erlmcp_bench_table, [
    row/1, mark/5, truth/3, bytes/1, micros/1, ratio/2, print/2, print_machine/0
]).

-define(CALLERS, [1, 2, 16, 1000]).
-define(FRAGMENTS, [1, 10, 100]).
-define(BURST, 200000).

%% @doc `Ms' of each measurement. Ends with a status other than 0 when something could not be
%% measured, whether or not the marks are met.
-spec main([string()]) -> ok.
main([MsText]) ->
    Ms = list_to_integer(MsText),
    print_machine(),
    Pools = pools(),
    Options = #{pools => Pools, callers => ?CALLERS, maps => [small, typical], ms => Ms, rounds => 5},
    Calls = erlmcp_bench_vm:run("acquire and release", erlmcp_bench_callers, run, [Options]),
    print_throughput(Pools, Calls),
    print_latency(Pools, Calls),
    FramingOptions = #{fragments => ?FRAGMENTS, ms => max(20, Ms div 5)},
    Framing = erlmcp_bench_vm:run("messages", erlmcp_bench_framing, run, [FramingOptions]),
    print_framing(Framing),
    BurstOptions = #{states => ?BURST, limit => 120},
    Burst = erlmcp_bench_vm:run("a burst", erlmcp_bench_burst, run, [BurstOptions]),
    print_burst(Burst),
    print("~nMarks~n", []),
    marks_of_throughput(Calls),
    marks_of_latency(Calls),
    marks_of_framing(Framing),
    marks_of_burst(Burst).

%% Poolboy comes as a package of the system, and is left out where it is not installed.
pools() ->
    case code:ensure_loaded(poolboy) of
        {module, poolboy} ->
            [ours, resource, ets, server, poolboy];
        {error, _} ->
            print("Without poolboy, which is not installed here (erlang-poolboy).~n~n", []),
            [ours, resource, ets, server]
    end.

name(ours) -> "ours";
name(resource) -> "bare resource";
name(ets) -> "ETS pair";
name(server) -> "gen_server";
name(poolboy) -> "poolboy".

print_throughput(Pools, Calls) ->
    Rate = fun(Pool, Map, Count) -> maps:get({throughput, Pool, Map, Count}, Calls) end,
    print("Pairs of acquire and release, thousands a second, and as a multiple of ETS~n", []),
    row(["" | lists:append([[[integer_to_list(C), " callers"], ""] || C <- ?CALLERS])]),
    [
        row([
            [name(Pool), ", ", atom_to_list(Map)]
            | lists:append([
                [bytes(Rate(Pool, Map, C) / 1000), ratio(Rate(Pool, Map, C), Rate(ets, Map, C))]
             || C <- ?CALLERS
            ])
        ])
     || Map <- [small, typical], Pool <- Pools
    ],
    print(
        "  bare resource: an empty object of the VM, made and dropped, which is the least that a handle~n"
        "  takes. ETS pair: insert and delete. gen_server: with a queue and an ETS table. small: #{id => 1};~n  typical: seven keys with binaries, a map and a tuple. Of all these~n"
        "  ETS alone gives no owner anything: what it holds is never collected.~n",
        []
    ).

print_latency(Pools, Calls) ->
    print("~nOne acquisition, microseconds~n", []),
    row(["" | lists:append([[[integer_to_list(C), " p50"], "p99", "p99.9"] || C <- ?CALLERS])]),
    [
        row([
            name(Pool)
            | lists:append([
                [micros(maps:get(P, maps:get({latency, Pool, C}, Calls))) || P <- [p50, p99, p999]]
             || C <- ?CALLERS
            ])
        ])
     || Pool <- Pools
    ].

print_framing(#{messages := Messages, readers := Readers}) ->
    print("~nA message in fragments, and how many times the binary's throughput~n", []),
    row(["", "bytes", "fragments", "ours", "binary", "times"]),
    [
        row([
            kind(Kind),
            bytes(Size),
            bytes(Count),
            micros(Ours),
            micros(Binary),
            ratio(Binary, Ours)
        ])
     || #{kind := Kind, size := Size, fragments := Count, ours := Ours, binary := Binary} <- Messages
    ],
    print("~nBytes that a reader holds after a message of 16 KiB~n", []),
    row(["", "between", "in the next"]),
    [
        row([Name, bytes(maps:get(idle, Held)), bytes(maps:get(slow, Held))])
     || {Way, Name} <- [{ours, "ours, the handle included"}, {binary, "binary"}],
        Held <- [maps:get(Way, Readers)]
    ].

kind(segments) -> "TCP segments";
kind(fixed) -> "16 KiB".

print_burst(Burst) ->
    #{native := Native, idle_at_once := Idle, seconds := Seconds} = Burst,
    print("~nA burst of ~b states, the pool's bytes~n", [?BURST]),
    row(["", "before", "at the peak", "released", "trimmed"]),
    row(["native" | [bytes(maps:get(Key, Native)) || Key <- [before, peak, at_once, 'end']]]),
    print("  ~b states idle at once after the release; the rest trimmed after ~p s~n", [Idle, Seconds]).

%% --- marks ---

marks_of_throughput(Calls) ->
    Rate = fun(Pool, Count) -> maps:get({throughput, Pool, small, Count}, Calls) end,
    mark(1, "one caller, the time of a pair as a multiple of ETS", at_most, Rate(ets, 1) / Rate(ours, 1), 1.2),
    mark(1, "one caller, the time of a pair as a multiple of a bare resource", at_most, Rate(resource, 1) / Rate(ours, 1), 1.25),
    mark(1, "one caller, times the gen_server's throughput", at_least, Rate(ours, 1) / Rate(server, 1), 6),
    mark(1, "two callers, times the throughput of one", at_least, Rate(ours, 2) / Rate(ours, 1), 1.8),
    mark(1, "16 callers, times the gen_server's throughput", at_least, Rate(ours, 16) / Rate(server, 16), 9).

marks_of_latency(Calls) ->
    P999 = fun(Pool) -> maps:get(p999, maps:get({latency, Pool, 1000}, Calls)) end,
    mark(2, "1,000 callers, p99.9 as a part of the gen_server's", at_most, P999(ours) / P999(server), 0.1).

marks_of_framing(#{messages := Messages, readers := #{ours := #{idle := Idle}}}) ->
    Times = fun(Count) ->
        [
            {Kind, Binary / Ours}
         || #{kind := Kind, fragments := N, ours := Ours, binary := Binary} <- Messages, N =:= Count
        ]
    end,
    [
        mark(3, ["100 fragments, ", kind(Kind), ", times the binary's throughput"], at_least, Value, 5)
     || {Kind, Value} <- Times(100)
    ],
    [
        mark(3, ["1 fragment, ", kind(Kind), ", times the binary's throughput"], at_least, Value, 1)
     || {Kind, Value} <- Times(1)
    ],
    mark(3, "bytes of an idle reader, its handle and nothing else", at_most, Idle, 256).

marks_of_burst(Burst) ->
    #{idle_at_once := Idle, max_pool_size := Max, seconds := Seconds} = Burst,
    mark(4, "states idle right after the release", at_most, Idle, Max),
    truth(4, "pool_size is reached within the stated 75 seconds", is_number(Seconds) andalso Seconds =< 75).
