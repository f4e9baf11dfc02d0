%% @private
%% @doc Explains the profiler's data: the report for an operator, and the alerts.
-module(erlmcp_memory_report).

-export([session/0, generate/0, alerts/0, evaluate/1]).

-export_type([metric/0]).

-include("erlmcp_memory.hrl").

-define(MB, 1048576).

-type metric() :: memory_per_connection | reuse_ratio | gc_pause | memory_growth.

%% @doc The last session, running or not, if it has a snapshot, and its status.
-spec session() -> {ok, reference(), #{atom() => term()}} | none.
session() ->
    case erlmcp_memory_nif:profiler_session() of
        undefined ->
            none;
        Session ->
            case erlmcp_memory_nif:profiler_status(Session) of
                #{baseline := #memory_snapshot{}} = Status -> {ok, Session, Status};
                _ -> none
            end
    end.

%% @doc The alerts of the node now.
-spec alerts() -> [erlmcp_memory_profiler:alert()] | {error, notsup}.
alerts() ->
    case erlmcp_memory_snapshot:total() of
        {ok, Total} ->
            _ = erlmcp_memory_sampler:look(),
            evaluate(figures(Total));
        {error, notsup} ->
            {error, notsup}
    end.

figures(Total) ->
    maps:merge(pool_figures(Total), session_figures()).

%% With at least this many states in use, what the node itself takes (some 50 MB) is a small part of
%% the total memory for each connection. With fewer, an idle node would raise an alert.
-define(MANY, 100).

%% The pool may not be running; then it has no figures.
pool_figures(Total) ->
    Pool = erlmcp_memory_pool,
    try whereis(Pool) =/= undefined andalso Pool:pool_stats() of
        #{in_use := InUse, reused := Reused, created := Created, reuse_ratio := Ratio} ->
            maps:from_list(
                [
                    {memory_per_connection, Total / InUse / ?MB}
                 || InUse >= ?MANY
                ] ++
                    [{reuse_ratio, Ratio} || Reused + Created > 0]
            );
        _ ->
            #{}
    catch
        %% It may stop between the check and the call.
        exit:_ -> #{};
        error:undef -> #{}
    end.

session_figures() ->
    case session() of
        {ok, Session, #{gc_measured := Measured}} ->
            #{pause_ms := #{max := Longest}} = erlmcp_memory_nif:profiler_gc(),
            maps:from_list(
                [{gc_pause, Longest} || Measured] ++
                    case erlmcp_memory_nif:profiler_trend(Session) of
                        #{leak_indication := <<"possible_memory_leak">>, trend_slope := Slope} ->
                            [{memory_growth, Slope * 3600 / ?MB}];
                        _ ->
                            []
                    end
            );
        none ->
            #{}
    end.

%% @doc The alerts for these figures: MB a connection, percent reused, milliseconds of pause, MB of
%% growth an hour. A figure that is missing raises none.
-spec evaluate(#{metric() => number()}) -> [erlmcp_memory_profiler:alert()].
evaluate(Figures) ->
    [
        #{
            metric => Metric,
            level => Level,
            value => Value,
            threshold => Threshold,
            advice => advice(Metric)
        }
     || {Metric, Bad, Warning, Critical} <- thresholds(),
        {ok, Value} <- [maps:find(Metric, Figures)],
        {Level, Threshold} <- level(Bad, Value, Warning, Critical)
    ].

thresholds() ->
    [
        {memory_per_connection, over, 2.5, 3.0},
        {reuse_ratio, under, 70.0, 50.0},
        {gc_pause, over, 80.0, 150.0},
        {memory_growth, over, 5.0, 10.0}
    ].

level(over, Value, _, Critical) when Value > Critical -> [{critical, Critical}];
level(over, Value, Warning, _) when Value > Warning -> [{warning, Warning}];
level(under, Value, _, Critical) when Value < Critical -> [{critical, Critical}];
level(under, Value, Warning, _) when Value < Warning -> [{warning, Warning}];
level(_, _, _, _) -> [].

advice(memory_per_connection) ->
    <<"Hold what is equal for all connections once with erlmcp_connection_optimizer:share/1, and "
        "let idle connections hibernate.">>;
advice(reuse_ratio) ->
    <<"Make more states ahead of need with erlmcp_memory_pool:configure(pool_size, N), and keep "
        "more idle ones with erlmcp_memory_pool:configure(max_pool_size, N).">>;
advice(gc_pause) ->
    <<"Move large states off the process heaps with "
        "erlmcp_connection_optimizer:create_optimized_state/1; "
        "erlmcp_memory_profiler:start_profiling/0 begins a new measurement.">>;
advice(memory_growth) ->
    <<"Read erlmcp_memory_profiler:generate_report/0 for the kind of memory that grows, and "
        "erlmcp_memory_pool:pool_info/0 for states that are not given back.">>.

%% @doc The report.
-spec generate() -> {ok, string()} | {error, no_profiling_data}.
generate() ->
    _ = erlmcp_memory_sampler:look(),
    case session() of
        {ok, Session, Status} -> {ok, lists:flatten(text(Session, Status))};
        none -> {error, no_profiling_data}
    end.

text(Session, #{baseline := First, last := Last} = Status) ->
    %% If there is a session, there is this too.
    {ok, Total} = erlmcp_memory_snapshot:total(),
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
        "\n",
        gc_text(Status, erlmcp_memory_nif:profiler_gc()),
        "\n",
        alerts_text(evaluate(figures(Total))),
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
    io_lib:format("~-10s ~15s ~15s ~15s~n", Columns).

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
gc_text(_, #{minor := Minor, major := Major, reclaimed_bytes := Reclaimed, pause_ms := Pause}) ->
    io_lib:format(
        "Garbage collections: ~b minor, ~b major, ~s reclaimed~n"
        "GC pauses in ms: mean ~.3f, p50 ~.3f, p90 ~.3f, p99 ~.3f, p99.9 ~.3f, max ~.3f~n",
        [Minor, Major, mb(Reclaimed)] ++
            [maps:get(Key, Pause) || Key <- [mean, p50, p90, p99, p999, max]]
    ).

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
