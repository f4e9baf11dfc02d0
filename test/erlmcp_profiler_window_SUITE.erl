%% Collections are timed in windows, which open beside no other tracer; the process that opens them
%% is supervised where the application is started.
-module(erlmcp_profiler_window_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_wait_help, [until/1]).

-compile([export_all, nowarn_export_all]).

-define(P, erlmcp_memory_profiler).
-define(NIF, erlmcp_memory_nif).
-define(TRACE, erlmcp_memory_trace).
%% Short windows, and as much time between them.
-define(WINDOWS, #{interval_ms => 20, gc_window_ms => 150, gc_every_ms => 400}).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [
        collections_count_in_windows_alone,
        a_window_is_open_at_the_start,
        rates_are_those_of_windows,
        pauses_are_those_of_trace_messages,
        nothing_is_asked_of_the_code_server,
        no_window_beside_a_tracer,
        no_window_beside_a_tracer_of_new_processes,
        no_window_beside_a_trace_session,
        a_window_ends_for_a_trace_session,
        the_end_of_a_window_takes_nothing_away,
        clearing_takes_nothing_away,
        another_tracer_works_between_windows,
        dbg_works_between_windows,
        call_tracing_of_all_works_between_windows,
        flags_cleared_in_a_window_end_the_measurement,
        flags_cleared_between_windows_do_not,
        the_worst_pauses_have_names,
        the_worst_pause_of_one_that_is_gone,
        a_killed_sampler_goes_on,
        a_sampler_killed_while_it_starts,
        a_sampler_that_dies_again_and_again,
        the_application_stops,
        without_the_application
    ].

init_per_testcase(_Case, Config) ->
    _ = ?P:stop_profiling(),
    Config.

end_per_testcase(_Case, _Config) ->
    _ = dbg:stop(),
    _ = ?P:stop_profiling(),
    _ = application:stop(erlmcp_memory),
    _ = erlang:trace(all, false, [all]),
    ok.

%%% Windows

collections_count_in_windows_alone(_Config) ->
    Process = idle(),
    ok = ?P:start_profiling(?WINDOWS),
    [
        begin
            until(fun() -> has_flags(Process) end),
            until(fun() -> not has_flags(Process) end),
            ?assertEqual([], flagged()),
            %% No window opens within so short a time: what is collected in it does not count, and
            %% where the machine was too slow it is tried again.
            until(fun() -> between_windows(Process) end)
        end
     || _ <- "123"
    ],
    #{gc := #{measured := true, timed_ms := Timed}, duration_ms := Duration} = ?P:stop_profiling(),
    ?assert(Timed > 0 andalso Timed < Duration),
    ?assertEqual([], flagged()),
    stop(Process).

between_windows(Process) ->
    #{collections := Before, timed_ms := Timed} = erlmcp_memory_pauses:gc(),
    [erlang:garbage_collect(Process) || _ <- lists:seq(1, 50)],
    case erlmcp_memory_pauses:gc() of
        #{timed_ms := Timed, collections := Before} -> true;
        #{timed_ms := Later} -> ?assert(Later > Timed), false
    end.

a_window_is_open_at_the_start(_Config) ->
    Process = idle(),
    ok = ?P:start_profiling(#{interval_ms => 60000, gc_window_ms => 50000}),
    ?assert(has_flags(Process)),
    [erlang:garbage_collect(Process) || _ <- lists:seq(1, 10)],
    ?assertMatch(#{gc := #{collections := N}} when N >= 10, ?P:stop_profiling()),
    stop(Process).

%% The same load all the time: its rate in windows is that of all, by the VM's own count.
rates_are_those_of_windows(_Config) ->
    Load = spawn_link(fun Load() ->
        _ = lists:seq(1, 100),
        erlang:garbage_collect(),
        receive stop -> ok after 1 -> Load() end
    end),
    ok = ?P:start_profiling(?WINDOWS),
    until(fun() -> maps:get(timed_ms, erlmcp_memory_pauses:gc()) > 1200 end),
    #{
        baseline := #{gc_collections := First}, final := #{gc_collections := Last},
        duration_ms := Duration, gc := #{per_second := Rate, time_share := Share}
    } = ?P:stop_profiling(),
    Load ! stop,
    Whole = 1000 * (Last - First) / Duration,
    ct:pal("~.1f a second in windows, ~.1f in all; share ~.5f", [Rate, Whole, Share]),
    %% What the machine does beside is not the same all the time.
    ?assert(Rate > Whole / 2 andalso Rate < Whole * 2),
    ?assert(Share > 0.0 andalso Share < 1.0).

%% Heaps that take long enough that a busy machine does not matter most.
pauses_are_those_of_trace_messages(_Config) ->
    Rows = erlmcp_bench_pauses:run(#{words => [30000, 300000], rounds => 5, collections => 100}),
    ct:pal("~p", [Rows]),
    [
        begin
            ?assertEqual(Ours, Traced),
            ?assert(Ours >= 5 * (100 div erlang:system_info(schedulers_online))),
            ?assert(Median > 0.5 * Truth andalso Median < 2.0 * Truth)
        end
     || #{count := {Ours, Traced}, p50 := {Median, Truth}} <- Rows
    ],
    %% Nothing of it is left.
    ?assertEqual([], flagged()).

%% What a VM does not have would be looked for in all of the code path, with each sample and window.
nothing_is_asked_of_the_code_server(_Config) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    try
        ?assertMatch(#{gc := #{measured := true}}, peer:call(Peer, ?MODULE, code_server_stands, [], infinity))
    after
        peer:stop(Peer)
    end.

code_server_stands() ->
    Process = idle(),
    Session = fun() ->
        ok = ?P:start_profiling(?WINDOWS),
        taken(?NIF:profiler_session(), 3),
        [closed(Process) || _ <- "12"],
        ?P:stop_profiling()
    end,
    %% All modules are loaded then.
    _ = Session(),
    true = erlang:suspend_process(whereis(code_server)),
    Result = Session(),
    true = erlang:resume_process(whereis(code_server)),
    Result.

no_window_beside_a_tracer(_Config) ->
    Traced = idle(),
    Tracer = collector(),
    ok = ?P:start_profiling(?WINDOWS),
    closed(Traced),
    1 = erlang:trace(Traced, true, ['receive', {tracer, Tracer}]),
    stays_closed(Traced),
    ?assertEqual({tracer, Tracer}, erlang:trace_info(Traced, tracer)),
    ?assertEqual({flags, ['receive']}, erlang:trace_info(Traced, flags)),
    Traced ! hello,
    until(fun() -> lists:member({trace, Traced, 'receive', hello}, collected(Tracer)) end),
    1 = erlang:trace(Traced, false, ['receive']),
    %% Then they open again, and the session has measured all its windows.
    until(fun() -> has_flags(Traced) end),
    ?assertMatch(#{gc := #{measured := true}}, ?P:stop_profiling()),
    stop(Traced).

no_window_beside_a_tracer_of_new_processes(_Config) ->
    Process = idle(),
    Tracer = collector(),
    ok = ?P:start_profiling(?WINDOWS),
    closed(Process),
    _ = erlang:trace(new_processes, true, [procs, {tracer, Tracer}]),
    stays_closed(Process),
    ?assertMatch(#{gc := #{measured := true}}, ?P:stop_profiling()),
    ?assertEqual({tracer, Tracer}, erlang:trace_info(new_processes, tracer)),
    {flags, Flags} = erlang:trace_info(new_processes, flags),
    ?assert(lists:member(procs, Flags)),
    ?assertNot(lists:member(garbage_collection, Flags)),
    stop(Process).

no_window_beside_a_trace_session(_Config) ->
    with_sessions(fun(Trace) ->
        Process = idle(),
        Tracer = collector(),
        ok = ?P:start_profiling(?WINDOWS),
        closed(Process),
        Session = Trace:session_create(somebody, Tracer, []),
        %% The one that must not meet another of its kind.
        1 = Trace:process(Session, Process, true, [garbage_collection]),
        stays_closed(Process),
        erlang:garbage_collect(Process),
        until(fun() ->
            lists:any(fun(M) -> element(3, M) =:= gc_major_start end, collected(Tracer))
        end),
        true = Trace:session_destroy(Session),
        until(fun() -> has_flags(Process) end),
        ?assertMatch(#{gc := #{measured := true}}, ?P:stop_profiling()),
        stop(Process)
    end).

a_window_ends_for_a_trace_session(_Config) ->
    with_sessions(fun(Trace) ->
        Process = idle(),
        Tracer = collector(),
        ok = ?P:start_profiling(#{interval_ms => 20, gc_window_ms => 100000, gc_every_ms => 100000}),
        ?assert(has_flags(Process)),
        Session = Trace:session_create(somebody, Tracer, []),
        until(fun() -> flagged() =:= [] end),
        1 = Trace:process(Session, Process, true, [send]),
        ?assertMatch(#{gc := #{measured := true}}, ?P:stop_profiling()),
        ?assertEqual({flags, [send]}, Trace:info(Session, Process, flags)),
        true = Trace:session_destroy(Session),
        stop(Process)
    end).

%% Somebody takes a process over while a window is open; its end leaves that alone.
the_end_of_a_window_takes_nothing_away(_Config) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    try
        ?assertEqual(
            {[garbage_collection], tracer, false},
            peer:call(Peer, ?MODULE, taken_over, [], infinity)
        )
    after
        peer:stop(Peer)
    end.

%% On the peer, since the VM logs that a process can have only one tracer.
taken_over() ->
    [Taken, Other] = [idle(), idle()],
    Tracer = collector(),
    ok = ?P:start_profiling(#{interval_ms => 60000, gc_window_ms => 300, gc_every_ms => 100000}),
    true = has_flags(Taken),
    1 = erlang:trace(Taken, false, [all]),
    1 = erlang:trace(Taken, true, [garbage_collection, {tracer, Tracer}]),
    until(fun() -> erlmcp_memory_session:look() =:= ok andalso not has_flags(Other) end),
    #{gc := #{measured := Measured}} = ?P:stop_profiling(),
    {flags, Flags} = erlang:trace_info(Taken, flags),
    Whose = case erlang:trace_info(Taken, tracer) of {tracer, Tracer} -> tracer; Else -> Else end,
    %% The window may have ended before or after the session looked at this process.
    _ = Measured,
    {Flags, Whose, lists:member(Taken, ours())}.

%% By themselves: what is another tracer's stays as it is, whichever flags it has.
clearing_takes_nothing_away(_Config) ->
    Tracer = collector(),
    [
        begin
            Traced = idle(),
            1 = erlang:trace(Traced, true, Flags ++ [{tracer, Tracer}]),
            ok = ?TRACE:clear(),
            ?assertEqual({tracer, Tracer}, erlang:trace_info(Traced, tracer)),
            ?assertEqual({flags, Flags}, erlang:trace_info(Traced, flags)),
            ?assertEqual({ok, Tracer}, ?TRACE:other()),
            stop(Traced)
        end
     || Flags <- [['receive'], [garbage_collection]]
    ],
    _ = erlang:trace(new_processes, true, [garbage_collection, {tracer, Tracer}]),
    ok = ?TRACE:clear(),
    ?assertEqual({tracer, Tracer}, erlang:trace_info(new_processes, tracer)),
    ?assertEqual(false, ?TRACE:set()),
    ?assertEqual({tracer, Tracer}, erlang:trace_info(new_processes, tracer)),
    _ = erlang:trace(new_processes, false, [all]).

another_tracer_works_between_windows(_Config) ->
    Traced = idle(),
    ok = ?P:start_profiling(?WINDOWS),
    [
        begin
            Tracer = collector(),
            between_windows(Traced, fun() ->
                try
                    1 =:= erlang:trace(Traced, true, ['receive', {tracer, Tracer}])
                catch
                    error:badarg -> false
                end
            end),
            Traced ! N,
            until(fun() -> lists:member({trace, Traced, 'receive', N}, collected(Tracer)) end),
            1 = erlang:trace(Traced, false, ['receive'])
        end
     || N <- [1, 2, 3]
    ],
    ?assertMatch(#{gc := #{measured := true}}, ?P:stop_profiling()),
    stop(Traced).

%% The next window may open first.
between_windows(Process, Trace) ->
    until(fun() ->
        closed(Process),
        Trace()
    end).

dbg_works_between_windows(_Config) ->
    Process = idle(),
    ok = ?P:start_profiling(?WINDOWS),
    Self = self(),
    {ok, _} = dbg:tracer(process, {fun(Message, _) -> Self ! {dbg, Message}, ok end, ok}),
    between_windows(Process, fun() ->
        case dbg:p(Process, ['receive']) of
            {ok, [{matched, _, 1}]} -> true;
            {ok, [{matched, _, 0, _}]} -> false
        end
    end),
    stays_closed(Process),
    Process ! for_dbg,
    receive
        {dbg, {trace, Process, 'receive', for_dbg}} -> ok
    end,
    %% Before OTP 27 this is erlang:trace(all, false, [all]): nothing of ours is there to be lost.
    dbg:stop(),
    until(fun() -> has_flags(Process) end),
    ?assertMatch(#{gc := #{measured := true}}, ?P:stop_profiling()),
    stop(Process).

%% As recon_trace does it: a pattern, the flag for all processes, and everything cleared at the end.
call_tracing_of_all_works_between_windows(_Config) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    try
        ?assertEqual(
            {#{measured => true}, [{lists, last, [[1, 2, 3]]}]},
            peer:call(Peer, ?MODULE, calls_traced, [], infinity)
        )
    after
        peer:stop(Peer)
    end.

calls_traced() ->
    Caller = spawn_link(fun Call() ->
        receive
            {last, List} -> lists:last(List), Call()
        end
    end),
    Tracer = collector(),
    ok = ?P:start_profiling(?WINDOWS),
    between_windows(Caller, fun() ->
        _ = erlang:trace_pattern({lists, last, 1}, true, [local]),
        try erlang:trace(all, true, [call, {tracer, Tracer}]) of
            _ -> {tracer, Tracer} =:= erlang:trace_info(Caller, tracer)
        catch
            error:badarg -> false
        end
    end),
    stays_closed(Caller),
    Caller ! {last, [1, 2, 3]},
    until(fun() -> [C || {trace, Pid, call, C} <- collected(Tracer), Pid =:= Caller] =/= [] end),
    Calls = [Call || {trace, Pid, call, Call} <- collected(Tracer), Pid =:= Caller],
    %% What clearing takes away is all theirs: no window is open.
    _ = erlang:trace(all, false, [all]),
    _ = erlang:trace_pattern({'_', '_', '_'}, false, [local, meta, call_time, call_count]),
    until(fun() -> has_flags(Caller) end),
    #{gc := Gc} = ?P:stop_profiling(),
    {maps:with([measured], Gc), Calls}.

flags_cleared_in_a_window_end_the_measurement(_Config) ->
    Process = idle(),
    ok = ?P:start_profiling(#{interval_ms => 20, gc_window_ms => 100000, gc_every_ms => 100000}),
    ?assert(has_flags(Process)),
    _ = erlang:trace(all, false, [all]),
    Session = ?NIF:profiler_session(),
    until(fun() -> not maps:get(gc_measured, ?NIF:profiler_status(Session)) end),
    ?assertMatch(#{measured := false}, ?P:gc_pauses()),
    ?assertMatch([#{level := not_measured}], [H || #{metric := gc_pause} = H <- ?P:health()]),
    ?assertMatch(#{gc := #{measured := false}}, ?P:stop_profiling()),
    stop(Process).

flags_cleared_between_windows_do_not(_Config) ->
    Process = idle(),
    ok = ?P:start_profiling(?WINDOWS),
    until(fun() ->
        until(fun() -> not has_flags(Process) end),
        #{timed_ms := Timed} = erlmcp_memory_pauses:gc(),
        _ = erlang:trace(all, false, [all]),
        %% Unless a window opened in this moment.
        maps:get(timed_ms, erlmcp_memory_pauses:gc()) =:= Timed
    end),
    until(fun() -> has_flags(Process) end),
    ?assertMatch(#{gc := #{measured := true}}, ?P:stop_profiling()),
    stop(Process).

%%% The worst pauses

the_worst_pauses_have_names(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 20}),
    Large = spawn_link(fun large/0),
    true = register(a_large_process, Large),
    _ = [call(Large, collect) || _ <- lists:seq(1, 20)],
    until(fun() ->
        #{worst := Worst} = ?P:gc_pauses(),
        lists:any(fun(#{name := Name}) -> Name =:= <<"a_large_process">> end, Worst)
    end),
    #{measured := true, worst := Worst, time_share := Share} = Pauses = ?P:gc_pauses(),
    ct:pal("~p", [Pauses]),
    ?assert(length(Worst) =< 10),
    [Longest | _] = [Pause || #{pid := Pid} = Pause <- Worst, Pid =:= Large],
    ?assertMatch(
        #{kind := _, name := <<"a_large_process">>, function := <<_, _/binary>>}, Longest
    ),
    #{pause_ms := Ms, timestamp := At} = Longest,
    ?assert(Ms > 1.0),
    ?assert(abs(erlang:system_time(millisecond) - At) < 60000),
    Times = [Pause || #{pause_ms := Pause} <- Worst],
    ?assertEqual(lists:reverse(lists:sort(Times)), Times),
    ?assert(Share > 0.0 andalso Share < 1.0),
    {ok, Report} = ?P:generate_report(),
    ?assertMatch(
        {match, _},
        re:run(
            Report, "^ +[0-9.]+ ms  [0-9-]{10} [0-9:]{8}  <[0-9.]+> a_large_process \\S+$", [multiline]
        )
    ),
    %% The pause counts for the health of the node.
    [#{value := Value}] = [H || #{metric := gc_pause} = H <- ?P:health()],
    ?assert(Value >= Ms),
    _ = call(Large, stop).

the_worst_pause_of_one_that_is_gone(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 60000}),
    Large = spawn_link(fun large/0),
    _ = [call(Large, collect) || _ <- lists:seq(1, 20)],
    unlink(Large),
    Monitor = monitor(process, Large),
    exit(Large, kill),
    receive
        {'DOWN', Monitor, process, Large, killed} -> ok
    end,
    #{worst := Worst} = ?P:gc_pauses(),
    ?assertMatch(
        [#{name := <<>>, function := <<>>} | _], [Pause || #{pid := Pid} = Pause <- Worst, Pid =:= Large]
    ).

large() ->
    put(held, lists:seq(1, 500000)),
    Loop = fun Loop() ->
        receive
            {Ref, From, collect} ->
                true = erlang:garbage_collect(),
                From ! {Ref, ok},
                Loop();
            {Ref, From, stop} ->
                From ! {Ref, ok}
        end
    end,
    Loop().

call(Pid, Request) ->
    Ref = make_ref(),
    Pid ! {Ref, self(), Request},
    receive
        {Ref, Reply} -> Reply
    end.

%%% The supervised sampler

a_killed_sampler_goes_on(_Config) ->
    ok = application:start(erlmcp_memory),
    Process = idle(),
    {Caller, Monitor} = spawn_monitor(fun() ->
        ok = ?P:start_profiling(#{interval_ms => 20, gc_window_ms => 100000, gc_every_ms => 100000})
    end),
    receive
        {'DOWN', Monitor, process, Caller, Reason} -> ?assertEqual(normal, Reason)
    end,
    Session = ?NIF:profiler_session(),
    taken(Session, 5),
    #{baseline := Baseline} = ?P:get_profiling_data(),
    [
        begin
            Sampler = whereis(erlmcp_memory_sampler),
            exit(Sampler, kill),
            until(fun() ->
                not lists:member(whereis(erlmcp_memory_sampler), [Sampler, undefined])
            end),
            taken(Session, 5)
        end
     || _ <- "123"
    ],
    ?assertEqual(Session, ?NIF:profiler_session()),
    until(fun() -> has_flags(Process) end),
    erlang:garbage_collect(Process),
    %% A refused start leaves it as it is.
    ?assertError(badarg, ?P:start_profiling(#{interval_ms => 0})),
    ?assertEqual(Session, ?NIF:profiler_session()),
    #{baseline := Baseline, snapshots := Count, gc := Gc} = ?P:stop_profiling(),
    ?assert(Count >= 20),
    ?assertMatch(#{measured := true, collections := N} when N >= 1, Gc),
    until(fun() -> supervisor:which_children(erlmcp_memory_sampler_sup) =:= [] end),
    ?assertEqual(undefined, whereis(erlmcp_memory_sampler)),
    ?assertEqual([], flagged()),
    %% And another one.
    ok = ?P:start_profiling(#{interval_ms => 20}),
    ok = ?P:start_profiling(#{interval_ms => 20}),
    ?assertMatch([_], supervisor:which_children(erlmcp_memory_sampler_sup)),
    ?assertNotEqual(Session, ?NIF:profiler_session()),
    stop(Process).

%% Its start goes on with another one, supervised or not.
a_sampler_killed_while_it_starts(_Config) ->
    [
        begin
            _ = Supervised andalso application:start(erlmcp_memory),
            [
                begin
                    {Killer, Monitor} = spawn_monitor(fun() -> kill_samplers(3) end),
                    ?assertEqual(ok, ?P:start_profiling(?WINDOWS)),
                    exit(Killer, kill),
                    receive {'DOWN', Monitor, process, Killer, _} -> ok end
                end
             || _ <- lists:seq(1, 20)
            ],
            ok = ?P:start_profiling(#{interval_ms => 60000}),
            ?assertMatch(#{snapshots := N} when N >= 2, ?P:stop_profiling()),
            ?assertEqual([], flagged())
        end
     || Supervised <- [false, true]
    ].

kill_samplers(0) ->
    ok;
kill_samplers(Left) ->
    case whereis(erlmcp_memory_sampler) of
        undefined -> erlang:yield(), kill_samplers(Left);
        Sampler -> exit(Sampler, kill), kill_samplers(Left - 1)
    end.

%% Measuring that cannot go on ends no node and no application.
a_sampler_that_dies_again_and_again(_Config) ->
    ok = application:start(erlmcp_memory),
    ok = ?P:start_profiling(#{interval_ms => 60000, gc => false}),
    until(fun() ->
        case whereis(erlmcp_memory_sampler) of
            undefined -> ok;
            Sampler -> exit(Sampler, kill)
        end,
        whereis(erlmcp_memory_sampler_sup) =:= undefined
    end),
    ?assert(lists:keymember(erlmcp_memory, 1, application:which_applications())),
    ?assert(is_pid(whereis(erlmcp_memory_monitor))),
    until(fun() -> whereis(erlmcp_memory_sampler) =:= undefined end),
    ?assertMatch(#{snapshot_count := _}, ?P:get_profiling_data()),
    %% The next session is supervised as all are, and ends with the application.
    ok = ?P:start_profiling(#{interval_ms => 60000}),
    Sampler = whereis(erlmcp_memory_sampler),
    ?assertMatch([{_, Sampler, _, _}], supervisor:which_children(erlmcp_memory_sampler_sup)),
    ?assertMatch(#{snapshots := 2}, ?P:stop_profiling()),
    exit(whereis(erlmcp_memory_sampler_sup), kill),
    until(fun() -> whereis(erlmcp_memory_sampler_sup) =:= undefined end),
    ok = ?P:start_profiling(#{interval_ms => 60000}),
    ?assertNotEqual([], flagged()),
    ok = application:stop(erlmcp_memory),
    ?assertEqual(undefined, whereis(erlmcp_memory_sampler)),
    ?assertEqual([], flagged()).

the_application_stops(_Config) ->
    ok = application:start(erlmcp_memory),
    ok = ?P:start_profiling(#{interval_ms => 60000}),
    Session = ?NIF:profiler_session(),
    ?assertNotEqual([], flagged()),
    ok = application:stop(erlmcp_memory),
    ?assertEqual(undefined, whereis(erlmcp_memory_sampler)),
    ?assertEqual([], flagged()),
    until(fun() -> not maps:get(running, ?NIF:profiler_status(Session)) end),
    ?assertMatch(#{snapshot_count := 1}, ?P:get_profiling_data()).

without_the_application(_Config) ->
    ?assertNot(lists:keymember(erlmcp_memory, 1, application:which_applications())),
    ok = ?P:start_profiling(#{interval_ms => 20}),
    Sampler = whereis(erlmcp_memory_sampler),
    Monitor = monitor(process, Sampler),
    %% The application is started meanwhile; the session is the one it was.
    ok = application:start(erlmcp_memory),
    ok = application:stop(erlmcp_memory),
    ?assertEqual(Sampler, whereis(erlmcp_memory_sampler)),
    exit(Sampler, kill),
    receive
        {'DOWN', Monitor, process, Sampler, killed} -> ok
    end,
    until(fun() -> not maps:get(running, ?NIF:profiler_status(?NIF:profiler_session())) end),
    ?assertEqual({error, profiling_not_started}, ?P:stop_profiling()).

%%% Help

idle() ->
    spawn_link(fun Idle() ->
        receive
            stop -> ok;
            _ -> Idle()
        end
    end).

stop(Process) ->
    unlink(Process),
    exit(Process, kill).

%% Of the old interface, which the session uses.
has_flags(Process) ->
    lists:member(Process, ours()).

ours() ->
    [
        Pid
     || Pid <- processes(),
        {tracer, Tracer} <- [erlang:trace_info(Pid, tracer)],
        is_tuple(Tracer),
        element(1, Tracer) =:= erlmcp_memory_nif
    ].

flagged() ->
    [Pid || Pid <- processes(), {flags, [garbage_collection]} <- [erlang:trace_info(Pid, flags)]].

%% A window has just ended, so that there is some time until the next one.
closed(Process) ->
    until(fun() -> has_flags(Process) end),
    until(fun() -> not has_flags(Process) end).

%% Through the time of some windows nobody gets a flag, and nothing is timed.
stays_closed(Process) ->
    #{timed_ms := Timed} = erlmcp_memory_pauses:gc(),
    Upto = erlang:monotonic_time(millisecond) + 1500,
    until(fun() ->
        ?assertNot(has_flags(Process)),
        erlang:monotonic_time(millisecond) > Upto
    end),
    ?assertMatch(#{timed_ms := Timed}, erlmcp_memory_pauses:gc()).

%% Keeps what it is sent.
collector() ->
    spawn_link(fun() -> collecting([]) end).

collecting(Messages) ->
    receive
        {collected, From} ->
            From ! {self(), Messages},
            collecting(Messages);
        Message ->
            collecting([Message | Messages])
    end.

collected(Collector) ->
    Collector ! {collected, self()},
    receive
        {Collector, Messages} -> Messages
    end.

with_sessions(Fun) ->
    %% By name, or xref would miss what older releases do not have.
    Trace = trace,
    case code:ensure_loaded(Trace) of
        {module, Trace} -> Fun(Trace);
        {error, _} -> {skip, "this VM has no trace sessions"}
    end.

taken(Session, More) ->
    #{taken := Taken} = ?NIF:profiler_status(Session),
    until(fun() -> maps:get(taken, ?NIF:profiler_status(Session)) >= Taken + More end).
