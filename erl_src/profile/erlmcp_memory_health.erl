%% @private
%% @doc The node's health: a level for each metric.
%%
%% Figures of a window come from the library, which keeps marks of its counters: so they are there
%% whichever process lives, and no process has to check all the time.
-module(erlmcp_memory_health).

-export([health/0, levels/0, alerts/1, evaluate/2, connections/0]).

-export_type([figures/0]).

-include("erlmcp_memory.hrl").

-define(MB, 1048576).
%% From this number of connections on, what the node itself takes (some 50 MB) is a small part of
%% total memory over connections. Below it, an idle node would be an alert.
-define(MANY, 100).
%% More than any node has: a larger number from the host is not a count, and may not fit a float.
-define(MOST, 16#ffffffff).
%% Acquisitions that say something about the pool.
-define(JUDGED, 100).
%% How long the host's count of connections may take.
-define(COUNT_MS, 1000).

-type figures() :: #{erlmcp_memory_profiler:metric() => number()}.

%% @doc The level of each metric now, after a check of the running session.
-spec health() -> [erlmcp_memory_profiler:health()] | {error, notsup}.
health() ->
    _ = erlmcp_memory_session:look(),
    levels().

%% @doc The same without that look.
-spec levels() -> [erlmcp_memory_profiler:health()] | {error, notsup}.
levels() ->
    %% Settings are checked also where they are not needed.
    Thresholds = erlmcp_memory_settings:alert_thresholds(),
    Window = erlmcp_memory_settings:alert_window(),
    Count = erlmcp_memory_settings:connection_count(),
    _ = erlmcp_memory_settings:alert_handler(),
    case erlmcp_memory_sample:total() of
        {ok, Total} ->
            Over = erlmcp_memory_nif:health_window(Window),
            Figures = [
                per_connection(Total, connections(Count, Over)),
                reuse(Over),
                pause(Over, Window),
                growth(Window, Thresholds),
                limits()
            ],
            evaluate(lists:foldl(fun maps:merge/2, #{}, Figures), Thresholds);
        {error, notsup} ->
            {error, notsup}
    end.

%% @doc The metrics that need attention.
-spec alerts([erlmcp_memory_profiler:health()] | {error, notsup}) ->
    [erlmcp_memory_profiler:alert()] | {error, notsup}.
alerts({error, notsup}) ->
    {error, notsup};
alerts(Levels) ->
    [Item || #{level := Level} = Item <- Levels, Level =:= warning orelse Level =:= critical].

%% @doc How many connections there are, as the host says, or else the library; 0 where the host fails.
-spec connections() -> non_neg_integer().
connections() ->
    Over = erlmcp_memory_nif:health_window(erlmcp_memory_settings:alert_window()),
    connections(erlmcp_memory_settings:connection_count(), Over).

%%% Figures: one that cannot be said is missing

connections(undefined, #{connections := Connections}) ->
    Connections;
connections({Module, Function}, _) ->
    case erlmcp_memory_bounded:run(fun Module:Function/0, ?COUNT_MS) of
        {ok, Count} when is_integer(Count), Count >= 0, Count =< ?MOST -> Count;
        _ -> 0
    end.

per_connection(Total, Connections) when Connections >= ?MANY ->
    #{memory_per_connection => Total / Connections / ?MB};
per_connection(_, _) ->
    #{}.

reuse(#{pool_started := true, reused := Reused, avoidable := Avoidable}) when
    Reused + Avoidable >= ?JUDGED
->
    #{reuse_ratio => 100.0 * Reused / (Reused + Avoidable)};
reuse(_) ->
    #{}.

pause(#{gc_measured := true, timed_ns := Timed}, Window) when Timed > 0 ->
    case erlmcp_memory_session:is_running() andalso erlmcp_memory_nif:gc_worst(Window) of
        [#{ns := Longest} | _] -> #{gc_pause => Longest / 1.0e6};
        [] -> #{gc_pause => 0.0};
        false -> #{}
    end;
pause(_, _) ->
    #{}.

growth(Window, #{memory_growth := {Total, _}, resident_growth := {Resident, _}}) ->
    case erlmcp_memory_session:last() of
        {ok, Session, #{running := true, last := Last}} ->
            Of = fun(Kind, Warning, Kinds) ->
                Said = erlmcp_memory_nif:profiler_growth(
                    Session,
                    erlmcp_memory_growth:back(Window),
                    erlmcp_memory_growth:asked(Window, Warning),
                    Kinds
                ),
                mb_an_hour(proplists:get_value(Kind, Said))
            end,
            maps:merge(
                named(memory_growth, Of(<<"total">>, Total, 1)),
                case Last#memory_snapshot.resident_memory of
                    0 -> #{};
                    _ -> named(resident_growth, Of(<<"resident">>, Resident, 2))
                end
            );
        _ ->
            #{}
    end.

named(Metric, Value) when is_float(Value) -> #{Metric => Value};
named(_, too_short) -> #{}.

%% What memory does not go on growing by is nothing.
mb_an_hour({growing, Bytes, _}) -> Bytes / ?MB;
mb_an_hour({steady, _, _}) -> 0.0;
mb_an_hour({too_short, _, _}) -> too_short.

limits() ->
    Of = fun(Metric, Used, Limit) -> #{Metric => 100.0 * Used / max(1, Limit)} end,
    Info = fun erlang:system_info/1,
    lists:foldl(fun maps:merge/2, #{}, [
        Of(processes, Info(process_count), Info(process_limit)),
        Of(ports, Info(port_count), Info(port_limit)),
        case erlmcp_memory_nif:file_descriptors() of
            {Used, Limit} -> Of(file_descriptors, Used, Limit);
            nil -> #{}
        end
    ]).

%%% Levels

%% @doc The levels that figures give. One that is missing is not measured.
-spec evaluate(figures(), erlmcp_memory_settings:thresholds()) ->
    [erlmcp_memory_profiler:health()].
evaluate(Figures, Thresholds) ->
    [
        item(Metric, maps:get(Metric, Figures, undefined), maps:get(Metric, Thresholds))
     || Metric <- metrics()
    ].

metrics() ->
    [
        memory_per_connection, reuse_ratio, gc_pause, memory_growth, resident_growth, processes,
        ports, file_descriptors
    ].

item(Metric, Value, {Warning, Critical}) ->
    {Level, Threshold} = level(Metric, Value, Warning, Critical),
    #{
        metric => Metric,
        level => Level,
        value => Value,
        threshold => Threshold,
        advice => advice(Metric)
    }.

level(_, undefined, Warning, _) -> {not_measured, Warning};
level(reuse_ratio, Value, _, Critical) when Value < Critical -> {critical, Critical};
level(reuse_ratio, Value, Warning, _) when Value < Warning -> {warning, Warning};
level(reuse_ratio, _, Warning, _) -> {ok, Warning};
level(_, Value, _, Critical) when Value > Critical -> {critical, Critical};
level(_, Value, Warning, _) when Value > Warning -> {warning, Warning};
level(_, _, Warning, _) -> {ok, Warning}.

advice(memory_per_connection) ->
    <<"Hold what is equal for all connections once with erlmcp_connection_optimizer:share/1, and "
        "let idle connections hibernate.">>;
advice(reuse_ratio) ->
    <<"Keep more idle states with erlmcp_memory_pool:configure(max_pool_size, N), and make more "
        "in advance with erlmcp_memory_pool:configure(pool_size, N).">>;
advice(gc_pause) ->
    <<"Read erlmcp_memory_profiler:gc_pauses/0 for the process, and move what lies on its heap off "
        "it with erlmcp_connection_optimizer:create_optimized_state/1.">>;
advice(memory_growth) ->
    <<"Read erlmcp_memory_profiler:memory_growth/0 for the kind of memory that grows, and "
        "erlmcp_memory_pool:pool_info/0 for states that are not given back.">>;
advice(resident_growth) ->
    <<"Where memory_growth is ok, memory is in pieces or allocated past the VM: see "
        "allocated_unused and unaccounted in erlmcp_memory_profiler:memory_breakdown/0.">>;
advice(processes) ->
    <<"Start the node with a greater +P, or find what does not end with "
        "erlmcp_memory_profiler:top_processes(message_queue_len, 20).">>;
advice(ports) ->
    <<"Start the node with a greater +Q, or close what is not needed; see "
        "erlmcp_memory_profiler:top_processes(memory, 20).">>;
advice(file_descriptors) ->
    <<"Raise the limit of the operating system (ulimit -n, LimitNOFILE=) before more connect; "
        "erlmcp_memory_profiler:health/0 has how many there are.">>.
