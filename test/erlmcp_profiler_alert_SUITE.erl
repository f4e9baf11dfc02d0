%% Alerts where the node, the host or the clock is in trouble: none is lost, and nothing ends.
-module(erlmcp_profiler_alert_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_wait_help, [until/1]).
-import(erlmcp_profiler_health_SUITE, [on_peer/1, on_peer/2, set/2, stand_in/2]).

-compile([export_all, nowarn_export_all]).

-define(P, erlmcp_memory_profiler).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [
        a_full_process_table,
        telemetry_that_hangs_delays_no_handler,
        a_handler_that_comes_later,
        a_handler_after_a_restart,
        wrong_settings_and_the_clock
    ].

%% Nothing can be started: what measures goes on, and tells when it can.
a_full_process_table(_Config) ->
    on_peer(["+P", "1024"], fun() ->
        ok = logger:set_primary_config(level, none),
        handled_by(self()),
        ok = application:start(erlmcp_memory),
        ok = ?P:start_profiling(#{interval_ms => 20}),
        Calls = [
            fun ?P:health/0,
            fun ?P:gc_pauses/0,
            fun() -> ?P:top_processes(memory, 3) end,
            fun() -> ?P:top_processes(binary, 3) end,
            fun ?P:generate_report/0,
            fun ?P:memory_breakdown/0
        ],
        %% What is not loaded yet could not be in a full node.
        [Call() || Call <- Calls],
        Names = [erlmcp_memory_monitor, erlmcp_memory_sampler, erlmcp_memory_sampler_sup],
        Before = [whereis(Name) || Name <- Names],
        Session = erlmcp_memory_nif:profiler_session(),
        Fillers = filled([]),
        [?assertError(system_limit, spawn(fun() -> ok end)) || _ <- "12"],
        look(),
        #{taken := Taken} = erlmcp_memory_nif:profiler_status(Session),
        until(fun() ->
            maps:get(taken, erlmcp_memory_nif:profiler_status(Session)) > Taken + 20
        end),
        [Call() || Call <- Calls],
        look(),
        ?assertEqual(Before, [whereis(Name) || Name <- Names]),
        ?assertEqual(Session, erlmcp_memory_nif:profiler_session()),
        %% For some processes there is room again; the level is what it was.
        {[One, Two | Some], Rest} = lists:split(20, Fillers),
        %% For a process that tells, but not for one in which the handler runs.
        [begin ended(Filler), look() end || Filler <- [One, Two]],
        [ended(Filler) || Filler <- Some],
        look(),
        ?assertMatch(#{level := critical, previous := ok}, told(processes)),
        [ended(Filler) || Filler <- Rest]
    end).

filled(Fillers) ->
    try spawn(fun() -> timer:sleep(infinity) end) of
        Filler -> filled([Filler | Fillers])
    catch
        error:system_limit -> Fillers
    end.

ended(Pid) ->
    Monitor = monitor(process, Pid),
    exit(Pid, kill),
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    end.

telemetry_that_hangs_delays_no_handler(_Config) ->
    on_peer(fun() ->
        ok = logger:set_primary_config(level, none),
        stand_in(telemetry, "-module(telemetry).
            -export([execute/3]).
            execute(_, _, _) -> persistent_term:get(test) ! hangs, receive never -> ok end."),
        handled_by(self()),
        critical([ports, processes, file_descriptors]),
        Start = erlang:monotonic_time(millisecond),
        erlmcp_memory_watch:check(),
        [?assertMatch(#{level := critical}, told(Metric)) || Metric <- [ports, processes]],
        Took = erlang:monotonic_time(millisecond) - Start,
        receive
            hangs -> ok
        end,
        ?assert(Took < 5000, Took)
    end).

a_handler_that_comes_later(_Config) ->
    on_peer(fun() ->
        ok = application:start(erlmcp_memory),
        critical([ports]),
        look(),
        handled_by(self()),
        look(),
        ?assertMatch(#{level := critical, previous := ok}, told(ports)),
        %% Once.
        [look() || _ <- "123"],
        %% Another one is told as well.
        set(alert_handler, {?MODULE, another}),
        look(),
        receive
            {another, #{metric := ports, level := critical}} -> ok
        after 60000 -> ct:fail(not_told)
        end,
        receive
            {told, #{metric := ports}} -> ct:fail(told_again)
        after 0 -> ok
        end
    end).

a_handler_after_a_restart(_Config) ->
    on_peer(fun() ->
        handled_by(self()),
        critical([ports]),
        [
            begin
                ok = application:start(erlmcp_memory),
                look(),
                ?assertMatch(#{level := critical, previous := ok}, told(ports)),
                ok = application:stop(erlmcp_memory)
            end
         || _ <- "12"
        ]
    end).

%% What is said once a minute is said so whatever the system clock does.
wrong_settings_and_the_clock(Config) ->
    erlmcp_profiler_clock_help:stepped(Config, fun(Peer, Step) ->
        ?assertEqual(1, peer:call(Peer, ?MODULE, said, [], infinity)),
        From = peer:call(Peer, erlang, system_time, [second]),
        ok = Step("+1d"),
        until(fun() -> peer:call(Peer, erlang, system_time, [second]) - From > 80000 end),
        %% A minute has passed by the system clock alone.
        ?assertEqual(1, peer:call(Peer, ?MODULE, said, [], infinity))
    end).

%% Runs on the peer: how often a wrong setting was logged.
said() ->
    _ = logger:add_handler(?MODULE, ?MODULE, #{config => counters:new(1, [])}),
    set(alert_window, wrong),
    [erlmcp_memory_watch:check() || _ <- "123"],
    {ok, #{config := Count}} = logger:get_handler_config(?MODULE),
    counters:get(Count, 1).

%% A handler of logger.
log(#{msg := {report, #{label := {erlmcp_memory, invalid_config}}}}, #{config := Count}) ->
    counters:add(Count, 1, 1);
log(_, _) ->
    ok.

%%% Help

handled_by(Test) ->
    persistent_term:put(test, Test),
    set(alert_handler, {?MODULE, handle}).

handle(Change) ->
    persistent_term:get(test) ! {told, Change}.

another(Change) ->
    persistent_term:get(test) ! {another, Change}.

critical(Metrics) ->
    set(alert_thresholds, maps:from_list([{Metric, {0, 0}} || Metric <- Metrics])).

%% The monitor has looked.
look() ->
    Monitor = whereis(erlmcp_memory_monitor),
    Monitor ! look,
    _ = sys:get_state(Monitor),
    ?assertEqual(Monitor, whereis(erlmcp_memory_monitor)).

told(Metric) ->
    receive
        {told, #{metric := Metric} = Change} -> Change
    after 60000 -> ct:fail({not_told, Metric})
    end.
