%% @private
%% @doc What the profiler's data mean: the report for an operator.
-module(erlmcp_memory_report).

-export([generate/0, time_text/1]).

-include("erlmcp_memory.hrl").

-define(MB, 1048576).

%% @doc The report.
-spec generate() -> {ok, string()} | {error, no_profiling_data}.
generate() ->
    %% First these, which have the session looked at, so that all of them are among the collections
    %% that are counted.
    Pauses = erlmcp_memory_pauses:pauses(),
    case erlmcp_memory_session:last() of
        {ok, Session, Status} -> {ok, lists:flatten(text(Session, Status, Pauses))};
        none -> {error, no_profiling_data}
    end.

text(Session, #{baseline := First, last := Last} = Status, Pauses) ->
    [
        "Memory profile of ", atom_to_list(node()), "\n\n",
        duration(Status), "\n\n",
        row(["", "baseline", "last", "change"]),
        [
            bytes_row(Name, element(Field, First), element(Field, Last))
         || {Name, Field} <- fields()
        ],
        count_row(
            "processes", First#memory_snapshot.process_count, Last#memory_snapshot.process_count
        ),
        "\n",
        trend_text(erlmcp_memory_nif:profiler_trend(Session)),
        growth_text(erlmcp_memory_growth:session()),
        "\n",
        gc_text(Status, erlmcp_memory_pauses:gc()),
        worst_text(Pauses),
        "\n",
        alerts_text(erlmcp_memory_health:alerts(erlmcp_memory_health:levels())),
        "\n",
        breakdown_text(erlmcp_memory_figures:breakdown()),
        "\n",
        inventory_text(erlmcp_memory_figures:inventory())
    ].

fields() ->
    [
        {"total", #memory_snapshot.total_memory},
        {"processes", #memory_snapshot.process_memory},
        {"binaries", #memory_snapshot.binary_memory},
        {"ETS", #memory_snapshot.ets_memory},
        {"atoms", #memory_snapshot.atom_memory},
        {"native", #memory_snapshot.native_memory},
        {"resident", #memory_snapshot.resident_memory}
    ].

duration(#{running := Running, duration_ms := Ms, held := Held, taken := Taken}) ->
    io_lib:format("~s for ~.1f s; ~b snapshots taken, ~b kept", [
        case Running of
            true -> "Running";
            false -> "Ran"
        end,
        Ms / 1000,
        Taken,
        Held
    ]).

row(Columns) ->
    Row = io_lib:format("~-10s ~15s ~15s ~15s", Columns),
    [string:trim(Row, trailing), "\n"].

bytes_row(Name, From, To) ->
    row([Name, mb(From), mb(To), mb(To - From)]).

count_row(Name, From, To) ->
    row([Name, integer_to_list(From), integer_to_list(To), integer_to_list(To - From)]).

mb(Bytes) ->
    io_lib:format("~.2f MB", [Bytes / ?MB]).

trend_text(#{
    min_memory := Min,
    max_memory := Max,
    avg_memory := Avg,
    trend_slope := Slope,
    leak_indication := Indication
}) ->
    io_lib:format(
        "Total memory: min ~s, max ~s, avg ~s~nTrend: ~.2f MB/hour, ~s~n",
        [mb(Min), mb(Max), mb(Avg), Slope * 3600 / ?MB, Indication]
    );
trend_text(undefined) ->
    "Trend: needs at least two snapshots\n".

growth_text({error, no_profiling_data}) ->
    [];
growth_text(Growth) ->
    [
        "\n",
        row(["Growth", "verdict", "MB/hour", "confidence"]),
        [
            row([atom_to_list(Kind), atom_to_list(Verdict) | sure(Of)])
         || Kind <- erlmcp_memory_growth:kinds(),
            #{verdict := Verdict} = Of <- [maps:get(Kind, Growth)]
        ]
    ].

sure(#{verdict := too_short}) ->
    ["", ""];
sure(#{mb_per_hour := Rate, confidence := Confidence}) ->
    [io_lib:format("~.2f", [Rate]), io_lib:format("~.3f", [Confidence])].

gc_text(#{gc_measured := false, gc_lost_ms := nil}, _) ->
    "Garbage collections: not measured in this session\n";
gc_text(#{gc_lost_ms := Ms} = Status, Gc) when Ms =/= nil ->
    [
        io_lib:format(
            "Garbage collections: not measured since somebody else cleared trace flags at ~.1f s;~n"
            "until then:~n",
            [Ms / 1000]
        ),
        gc_text(Status#{gc_lost_ms := nil, gc_measured := true}, Gc)
    ];
gc_text(_, #{minor := Minor, major := Major, reclaimed_bytes := Reclaimed, pause_ms := Pause} = Gc) ->
    #{timed_ms := Timed, per_second := Rate, time_share := Share} = Gc,
    io_lib:format(
        "Garbage collections: ~b minor, ~b major, ~s reclaimed~n"
        "Timed for ~.1f s: ~.1f a second, ~.3f % of the time of schedulers~n"
        "GC pauses in ms: mean ~.3f, p50 ~.3f, p90 ~.3f, p99 ~.3f, p99.9 ~.3f, max ~.3f~n",
        [Minor, Major, mb(Reclaimed), Timed / 1000, Rate, 100 * Share] ++
            [maps:get(Key, Pause) || Key <- [mean, p50, p90, p99, p999, max]]
    ).

worst_text(#{worst := []}) ->
    [];
worst_text(#{worst := Worst, window_ms := Window}) ->
    [
        io_lib:format("Longest pauses of the last ~.1f minutes, and when they ended (UTC):~n", [
            Window / 60000
        ]),
        [
            io_lib:format("  ~9.3f ms  ~s  ~p ~ts ~ts~n", [
                Pause, time_text(At), Pid, Name, Function
            ])
         || #{pause_ms := Pause, timestamp := At, pid := Pid, name := Name, function := Function} <-
                Worst
        ]
    ].

%% @doc A time in milliseconds since the epoch, in UTC.
-spec time_text(integer()) -> string().
time_text(Ms) ->
    {{Year, Month, Day}, {Hour, Minute, Second}} = calendar:system_time_to_universal_time(
        Ms, millisecond
    ),
    lists:flatten(
        io_lib:format("~4..0b-~2..0b-~2..0b ~2..0b:~2..0b:~2..0b", [
            Year, Month, Day, Hour, Minute, Second
        ])
    ).

alerts_text({error, notsup}) ->
    [];
alerts_text([]) ->
    "Alerts: none\n";
alerts_text(Alerts) ->
    [
        "Alerts:\n",
        [
            io_lib:format("  ~s: ~s is ~.2f, threshold ~.1f. ~s~n", [
                Level, Metric, float(Value), Threshold, Advice
            ])
         || #{
                metric := Metric,
                level := Level,
                value := Value,
                threshold := Threshold,
                advice := Advice
            } <- Alerts
        ]
    ].

breakdown_text({error, notsup}) ->
    [];
breakdown_text(Breakdown) ->
    [
        io_lib:format("Resident memory now: ~s~n", [mb(lists:sum(maps:values(Breakdown)))]),
        [
            io_lib:format("  ~-18s ~13s~n", [Kind, mb(maps:get(Kind, Breakdown))])
         || Kind <- erlmcp_memory_figures:kinds()
        ]
    ].

inventory_text(#{shares := #{largest := Largest}} = Inventory) ->
    [
        io_lib:format("~-20s ~11s ~15s ~11s ~15s~n", ["Held", "count", "bytes", "idle", "bytes"]),
        [
            held_row(Kind, maps:get(Kind, Inventory))
         || Kind <- [pooled_states, compact_states, parked, shares, buffers]
        ],
        [
            io_lib:format("  share of ~b bytes, ~b holders: ~ts~n", [Bytes, Holders, Summary])
         || #{bytes := Bytes, holders := Holders, summary := Summary} <- Largest
        ]
    ].

held_row(Kind, #{count := Count, bytes := Bytes} = Held) ->
    Keys = [Key || Key <- [idle, idle_bytes], is_map_key(Key, Held)],
    Idle = [integer_to_list(maps:get(Key, Held)) || Key <- Keys],
    io_lib:format("  ~-18s ~11b ~15b ~11s ~15s~n", [Kind, Count, Bytes | two(Idle)]).

two([]) -> ["", ""];
two(Two) -> Two.
