%% @doc A host's day compressed into minutes, and the alarms that came and went.
%%
%% The window of the alarms, ten minutes on a real node, is some seconds here, and rates of growth
%% that matter are as much higher. Everything else is as it is: pool, states, session, monitor.
-module(erlmcp_bench_day).

-export([main/1, run/1, changed/1]).

-define(P, erlmcp_memory_profiler).
-define(POOL, erlmcp_memory_pool).
-define(O, erlmcp_connection_optimizer).
%% Connections that come and go in a window; with a leak, one in ONE_IN stays, with LEAKED bytes.
-define(CHURN, 4000).
-define(ONE_IN, 100).
-define(LEAKED, 100000).
%% Bytes of a message to the slow consumer.
-define(MESSAGE, 100000).
%% Milliseconds that the long collection takes at least.
-define(LONG_MS, 200).

main([Window, Connections]) ->
    {Day, Verdicts} = run(#{
        window => list_to_integer(Window), connections => list_to_integer(Connections)
    }),
    io:format("A day of ~s connections, a window in ~s ms~n~n", [Connections, Window]),
    erlmcp_bench_table:row(["came in", "metric", "after s", "level", "for s"]),
    [
        erlmcp_bench_table:row([
            atom_to_list(Phase), string:slice(atom_to_list(Metric), 0, 14), seconds(After),
            atom_to_list(Level), seconds(For)
        ])
     || #{phase := Phase, metric := Metric, level := Level, after_ms := After, for_ms := For} <- Day
    ],
    io:format("~n"),
    _ = [
        erlmcp_bench_table:mark(Number, Text, at_most, Value, 0)
     || {Number, {Text, Value}} <- lists:zip([1, 2, 3], [
            {"false alarms", length(maps:get(false, Verdicts))},
            {"alarms that did not come", length(maps:get(missed, Verdicts))},
            {"alarms that stayed", length(maps:get(stayed, Verdicts))}
        ])
    ],
    ok.

seconds(stays) -> "stays";
seconds(Ms) -> io_lib:format("~.1f", [Ms / 1000]).

%% @doc The alarms of the day, in their order, and what is wrong with them.
run(#{window := Window, connections := Connections}) ->
    true = register(?MODULE, self()),
    Factor = 600000 / Window,
    Rates = {5 * Factor, 10 * Factor},
    _ = [
        ok = application:set_env(erlmcp_memory, Key, Value)
     || {Key, Value} <- [
            {alert_window, Window},
            {alert_handler, {?MODULE, changed}},
            {alert_thresholds, #{memory_growth => Rates, resident_growth => Rates}},
            {memory_pool_max_size, 2 * Connections}
        ]
    ],
    ok = application:start(erlmcp_memory),
    {ok, _} = ?POOL:start_link(),
    ok = ?P:start_profiling(#{interval_ms => max(10, Window div 20), gc => always}),
    Churn = spawn_link(fun() -> churn(Window, none) end),
    Changes = lists:append([phase(Phase, Window, Connections, Churn) || Phase <- phases()]),
    _ = ?P:stop_profiling(),
    stop([Churn]),
    ok = gen_server:stop(?POOL),
    ok = application:stop(erlmcp_memory),
    true = unregister(?MODULE),
    Day = alarms(Changes),
    {Day, #{
        false => [Alarm || #{phase := Phase, metric := Metric, after_ms := After} = Alarm <- Day,
            not lists:member(Metric, possible(Phase)),
            not lists:member(Metric, lingering(Phase, After div Window))],
        missed => [{Phase, Metric} || Phase <- [leak, slow_consumer, pause],
            Metric <- required(Phase),
            not lists:any(fun(#{phase := P, metric := M}) -> {P, M} =:= {Phase, Metric} end, Day)],
        stayed => [Alarm || #{for_ms := stays} = Alarm <- Day]
    }}.

phases() ->
    [start, quiet, burst, calm, leak, repaired, quiet, slow_consumer, caught_up, quiet, pause, night].

%% How many windows a phase lasts at most. Those that follow one with an alarm end when it does.
windows(start) -> 2;
windows(quiet) -> 36;
windows(burst) -> 2;
windows(calm) -> 6;
windows(Phase) when Phase =:= leak; Phase =:= slow_consumer -> 24;
windows(Phase) when Phase =:= repaired; Phase =:= caught_up; Phase =:= night -> 60;
windows(pause) -> 2.

required(leak) -> [memory_growth];
required(slow_consumer) -> [memory_growth];
required(pause) -> [gc_pause];
required(_) -> [].

%% What is no false alarm: what is resident grows with the rest.
possible(Phase) when Phase =:= leak; Phase =:= slow_consumer -> [memory_growth, resident_growth];
possible(Phase) -> required(Phase).

%% Growth is looked for in many windows, and some after its end it may be named once more.
lingering(Phase, Windows) when Windows < 3, Phase =:= repaired; Windows < 3, Phase =:= caught_up ->
    [memory_growth, resident_growth];
lingering(_, _) ->
    [].

%% Lets it happen, and returns what changed meanwhile.
phase(Phase, Window, Connections, Churn) ->
    Began = now_ms(),
    _ = happen(Phase, Connections, Churn),
    wait(Phase, Began, now_ms() + windows(Phase) * Window, Window, []).

wait(Phase, Began, Most, Window, Changes) ->
    Ended =
        case Phase of
            _ when Phase =:= repaired; Phase =:= caught_up; Phase =:= night ->
                ?P:alerts() =:= [];
            _ -> false
        end,
    receive
        {changed, At, Change} ->
            wait(Phase, Began, Most, Window, [
                Change#{phase => Phase, at => At, after_ms => At - Began} | Changes
            ])
    after 50 ->
        case Ended orelse now_ms() > Most of
            true -> settled(Phase, Began, Window, lists:reverse(Changes));
            false -> wait(Phase, Began, Most, Window, Changes)
        end
    end.

%% What the monitor tells of it in its next looks.
settled(Phase, Began, Window, Changes) ->
    receive
        {changed, At, Change} ->
            settled(Phase, Began, Window, Changes ++ [
                Change#{phase => Phase, at => At, after_ms => At - Began}
            ])
    after 4 * Window -> Changes
    end.

happen(start, Count, _) -> put(connections, connect(Count));
happen(burst, Count, _) ->
    stop(connect(Count div 2));
happen(leak, _, Churn) -> Churn ! leak;
happen(repaired, _, Churn) -> Churn ! repaired;
happen(slow_consumer, _, Churn) ->
    Consumer = spawn_opt(fun slow/0, [link, {message_queue_data, off_heap}]),
    put(consumer, Consumer),
    Churn ! {to, Consumer};
happen(caught_up, _, Churn) ->
    Churn ! {to, none},
    get(consumer) ! consume;
happen(pause, _, _) ->
    {Pid, Monitor} = spawn_monitor(fun() -> long_pause(1000000) end),
    receive
        {'DOWN', Monitor, process, Pid, normal} -> ok
    end;
happen(night, _, _) -> stop(get(connections));
happen(_, _, _) -> ok.

%% Lists that are longer and longer, until a collection of one takes so long.
long_pause(Length) ->
    List = lists:seq(1, Length),
    {Micros, true} = timer:tc(erlang, garbage_collect, []),
    Length = length(List),
    Micros >= 1000 * ?LONG_MS orelse long_pause(2 * Length).

%% Reads nothing until it is asked to.
slow() ->
    receive
        consume -> fast()
    end.

fast() ->
    receive
        _ -> fast()
    after 0 ->
        true = erlang:garbage_collect(),
        erlang:hibernate(?MODULE, changed, [#{}])
    end.

%%% Connections

connect(Count) ->
    Self = self(),
    Pids = [spawn_link(fun() -> connection(Self) end) || _ <- lists:seq(1, Count)],
    _ = [receive {Pid, connected} -> ok end || Pid <- Pids],
    Pids.

connection(Parent) ->
    {ok, Ref} = ?POOL:acquire_connection_state(#{id => <<"c">>}),
    State = ?O:create_optimized_state(<<"c">>),
    Parent ! {self(), connected},
    erlang:hibernate(erlmcp_bench_day_connection, wait, [Ref, State]).

stop(Pids) ->
    Monitors = [monitor(process, Pid) || Pid <- Pids],
    _ = [begin unlink(Pid), exit(Pid, kill) end || Pid <- Pids],
    _ = [receive {'DOWN', Monitor, process, _, _} -> ok end || Monitor <- Monitors],
    ok.

%% Connections that come and go all day, and what else happens: twenty times in a window.
churn(Window, Stays) ->
    churn(Window, Stays, none, []).

churn(Window, Stays, To, Leaked) ->
    Each = ?CHURN div 20,
    More = [kept() || Stays =:= leak, _ <- lists:seq(1, Each div ?ONE_IN)],
    _ = [
        begin
            {ok, Ref} = ?POOL:acquire_connection_state(#{id => <<"c">>}),
            ok = ?POOL:release_connection_state(Ref)
        end
     || _ <- lists:seq(1, Each)
    ],
    _ = [To ! binary:copy(<<"m">>, ?MESSAGE) || is_pid(To), _ <- [1, 2]],
    receive
        leak -> churn(Window, leak, To, Leaked);
        repaired -> churn(Window, none, To, []);
        {to, Pid} -> churn(Window, Stays, Pid, Leaked)
    after Window div 20 ->
        churn(Window, Stays, To, More ++ Leaked)
    end.

%% What a connection leaves behind that nobody ends.
kept() ->
    {ok, Ref} = ?POOL:acquire_connection_state(#{id => <<"c">>}),
    {Ref, binary:copy(<<"l">>, ?LEAKED)}.

%%% Alarms

%% @doc The handler.
changed(#{metric := _} = Change) ->
    ?MODULE ! {changed, now_ms(), maps:with([metric, level, previous, value], Change)};
changed(_) ->
    ok.

%% From each alarm's beginning to its end, at its highest level.
alarms(Changes) ->
    alarms(Changes, #{}, []).

alarms([#{metric := Metric, level := Level, at := At} = Change | Rest], Open, Done) ->
    case {is_alarm(Level), Open} of
        {true, #{Metric := Alarm}} ->
            alarms(Rest, Open#{Metric := Alarm#{level := highest(Level, maps:get(level, Alarm))}}, Done);
        {true, _} ->
            alarms(Rest, Open#{Metric => Change}, Done);
        {false, #{Metric := #{at := Began} = Alarm}} ->
            alarms(Rest, maps:remove(Metric, Open), [Alarm#{for_ms => At - Began} | Done]);
        {false, _} ->
            alarms(Rest, Open, Done)
    end;
alarms([], Open, Done) ->
    Stay = [Alarm#{for_ms => stays} || Alarm <- maps:values(Open)],
    lists:sort(fun(#{at := A}, #{at := B}) -> A =< B end, Stay ++ Done).

is_alarm(Level) -> Level =:= warning orelse Level =:= critical.

highest(critical, _) -> critical;
highest(_, Level) -> Level.

now_ms() ->
    erlang:monotonic_time(millisecond).
