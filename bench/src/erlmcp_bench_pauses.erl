%% @doc `make bench-pauses': pauses as a session times them, beside those of `erlang:trace/3' with
%% timestamps, and rates as windows tell them.
%%
%% The VM gives a process one tracer, so both time the same work in turn: processes, one bound to
%% each scheduler, that hold a heap of a known size and collect it again and again, all at a time.
-module(erlmcp_bench_pauses).

-export([main/1, run/1, rates/1]).

-import(erlmcp_bench_measure, [median/1]).

-define(NIF, erlmcp_memory_nif).
-define(P, erlmcp_memory_profiler).
%% Words of the heaps, and rounds of each.
-define(WORDS, [1000, 10000, 100000, 1000000]).
-define(ROUNDS, 5).

%% @doc As many collections in all.
main([CountText]) ->
    erlmcp_bench_table:print_machine(),
    Each = list_to_integer(CountText) div (length(?WORDS) * ?ROUNDS),
    Rows = run(#{words => ?WORDS, rounds => ?ROUNDS, collections => Each}),
    io:format("Pauses in ms, each the median of ~b rounds~n~n", [?ROUNDS]),
    erlmcp_bench_table:row([
        "words of a heap", "collections", "traced", "median", "traced", "ratio", "mean", "traced",
        "ratio"
    ]),
    [
        erlmcp_bench_table:row([
            integer_to_list(Words), integer_to_list(Ours), integer_to_list(Traced)
            | lists:append([
                [decimal(A, 4), decimal(B, 4), decimal(A / B, 3)]
             || Key <- [p50, mean], {A, B} <- [maps:get(Key, Row)]
            ])
        ])
     || #{words := Words, count := {Ours, Traced}} = Row <- Rows
    ],
    #{windows := Rate, whole := Whole, timed_ms := Timed, ms := Ms, counted := Counted} =
        rates(10000),
    io:format(
        "~n~b collections in ~.1f s; windows of ~.1f s in all counted ~b: ~.1f a second, ~.1f in all~n~n",
        [round(Whole * Ms / 1000), Ms / 1000, Timed / 1000, Counted, Rate, Whole]
    ),
    erlmcp_bench_table:mark(1, "collections that one of the two did not count", at_most,
        lists:sum([abs(Ours - Traced) || #{count := {Ours, Traced}} <- Rows]), 0),
    [
        erlmcp_bench_table:mark(1, [Name, io_lib:format(", ~b words, per cent apart", [Words])],
            at_most, apart(maps:get(Key, Row)), 20)
     || {Key, Name} <- [{p50, "median"}, {mean, "mean"}], #{words := Words} = Row <- Rows
    ],
    erlmcp_bench_table:mark(2, "rate by windows, per cent apart", at_most, apart({Rate, Whole}), 5).

apart({Ours, Other}) ->
    100 * abs(Ours / Other - 1).

decimal(Value, Digits) ->
    float_to_list(float(Value), [{decimals, Digits}]).

%% @doc For each size: how many collections were counted, and the median of the rounds of their median
%% and mean pause in ms, of a session and of `erlang:trace/3'.
run(#{words := Sizes, rounds := Rounds, collections := Count}) ->
    [of_size(Words, Rounds, Count) || Words <- Sizes].

of_size(Words, Rounds, Count) ->
    Schedulers = erlang:system_info(schedulers_online),
    Workers = [worker(N, Words) || N <- lists:seq(1, Schedulers)],
    Each = max(1, Count div Schedulers),
    Work = fun() -> collect(Workers, Each) end,
    %% Heaps have their size.
    collect(Workers, 3),
    Measured = [
        case Round rem 2 of
            0 -> {ours(Workers, Work), traced(Workers, Work)};
            1 -> swap(traced(Workers, Work), ours(Workers, Work))
        end
     || Round <- lists:seq(1, Rounds)
    ],
    [begin unlink(Pid), exit(Pid, kill) end || Pid <- Workers],
    {Ours, Traced} = lists:unzip(Measured),
    Of = fun(Key, Sum) ->
        {Sum([maps:get(Key, One) || One <- Ours]), Sum([maps:get(Key, One) || One <- Traced])}
    end,
    #{
        words => Words,
        count => Of(count, fun lists:sum/1),
        p50 => Of(p50, fun erlmcp_bench_measure:median/1),
        mean => Of(mean, fun erlmcp_bench_measure:median/1)
    }.

swap(A, B) ->
    {B, A}.

%% A list takes two words an element.
worker(Scheduler, Words) ->
    spawn_opt(fun() -> held(lists:seq(1, Words div 2)) end, [link, {scheduler, Scheduler}]).

held(List) ->
    receive
        {collect, Count, From} ->
            ok = erlmcp_bench_measure:repeat(fun erlang:garbage_collect/0, Count),
            From ! {collected, self(), length(List)},
            held(List)
    end.

collect(Workers, Count) ->
    [Pid ! {collect, Count, self()} || Pid <- Workers],
    [receive {collected, Pid, _} -> ok end || Pid <- Workers],
    ok.

%% What a session does in a window, for these processes alone.
ours(Workers, Work) ->
    Session = ?NIF:profiler_start(self(), 1, true),
    [1 = erlang:trace(Pid, true, [garbage_collection, {tracer, ?NIF, []}]) || Pid <- Workers],
    ok = ?NIF:profiler_window(Session, count),
    Work(),
    ok = ?NIF:profiler_window(Session, stop),
    [1 = erlang:trace(Pid, false, [garbage_collection]) || Pid <- Workers],
    ok = ?NIF:profiler_window(Session, close),
    #{collections := Count, paused_ms := Paused, pause_ms := #{p50 := Median}} = ?NIF:profiler_gc(),
    ok = ?NIF:profiler_stop(Session),
    #{count => Count, p50 => Median, mean => Paused / max(1, Count)}.

traced(Workers, Work) ->
    Tracer = spawn_opt(fun() -> tracing(#{}, []) end, [link, {message_queue_data, off_heap}]),
    Flags = [garbage_collection, monotonic_timestamp, {tracer, Tracer}],
    [1 = erlang:trace(Pid, true, Flags) || Pid <- Workers],
    Work(),
    [
        begin
            1 = erlang:trace(Pid, false, [garbage_collection]),
            Ref = erlang:trace_delivered(Pid),
            receive {trace_delivered, Pid, Ref} -> ok end
        end
     || Pid <- Workers
    ],
    Tracer ! {pauses, self()},
    Pauses = receive {pauses, Found} -> [Native / 1.0e6 || Native <- Found] end,
    #{count => length(Pauses), p50 => median(Pauses), mean => lists:sum(Pauses) / length(Pauses)}.

%% Nanoseconds of each pause.
tracing(Open, Pauses) ->
    receive
        {trace_ts, Pid, What, _Info, At} when What =:= gc_major_start; What =:= gc_minor_start ->
            tracing(Open#{Pid => At}, Pauses);
        {trace_ts, Pid, What, _Info, At} when What =:= gc_major_end; What =:= gc_minor_end ->
            {Start, Left} = maps:take(Pid, Open),
            Pause = erlang:convert_time_unit(At - Start, native, nanosecond),
            tracing(Left, [Pause | Pauses]);
        {pauses, From} ->
            From ! {pauses, Pauses}
    end.

%% @doc A load that goes on at the same rate for so long: collections a second by the windows of a
%% session, and by the VM's own count of all.
rates(Ms) ->
    Loads = [
        spawn_link(fun Load() ->
            erlang:garbage_collect(),
            receive stop -> ok after 1 -> Load() end
        end)
     || _ <- lists:seq(1, 2 * erlang:system_info(schedulers_online))
    ],
    %% A window in the first quarter of each second, and none after the last.
    ok = ?P:start_profiling(#{interval_ms => 50, gc_window_ms => 250, gc_every_ms => 1000}),
    {Before, _, _} = erlang:statistics(garbage_collection),
    Began = erlang:monotonic_time(microsecond),
    timer:sleep(Ms),
    {After, _, _} = erlang:statistics(garbage_collection),
    Took = (erlang:monotonic_time(microsecond) - Began) / 1000,
    #{gc := #{per_second := Rate, timed_ms := Timed, collections := Counted}} = ?P:stop_profiling(),
    [Load ! stop || Load <- Loads],
    #{
        windows => Rate, whole => 1000 * (After - Before) / Took, timed_ms => Timed, ms => Took,
        counted => Counted
    }.
