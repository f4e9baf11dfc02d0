%% The profiler's promises, against the live VM.
-module(erlmcp_profiler_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").
-include("erlmcp_memory.hrl").

-import(erlmcp_wait_help, [until/1]).

-compile([export_all, nowarn_export_all]).

-define(P, erlmcp_memory_profiler).
-define(MB, 1048576).
-define(HOUR, 3600000).

all() ->
    [
        nothing_before_the_first_start,
        wrong_options,
        wrong_arguments,
        a_session_has_the_promised_shape,
        data_stay_readable_until_the_next_start,
        only_the_newest_snapshots_are_kept,
        a_long_session_is_read_whole,
        collections_are_counted,
        no_collections_on_request,
        longest_pause_is_each_readers_own,
        a_stop_clears_every_flag,
        a_killed_sampler_leaves_nothing_on,
        a_session_outlives_its_caller,
        a_start_ends_the_running_session,
        a_refused_start_leaves_the_running_session,
        many_callers_at_once,
        refused_beside_a_tracer_of_new_processes,
        refused_beside_a_tracer_of_one_process,
        refused_beside_a_trace_session,
        cleared_trace_flags_are_noticed,
        dbg_beside_a_session,
        trace_flags_taken_over_are_noticed,
        trace_flags_of_one_process_are_noticed,
        trace_flags_cleared_in_a_simulation,
        anothers_trace_outlives_a_stop,
        trace_sessions_of_others_do_no_harm,
        processes_die_while_traced,
        started_and_stopped_beside_dirty_work,
        many_processes_alive,
        a_snapshot_is_the_vms_memory,
        a_snapshot_is_of_the_monotonic_clock,
        allocators_switched_off,
        memory_after_delay,
        memory_over_connections,
        trend_of_records_and_maps,
        a_step_of_the_clock_changes_no_verdict,
        the_clock_is_set_while_a_session_runs,
        a_node_that_filled_up_is_no_leak,
        trend_refuses_the_rest,
        trend_finds_a_leak,
        trend_of_many_snapshots,
        native_memory_is_counted,
        histograms_count_for_many_processes,
        report_for_an_operator,
        records_of_an_older_header,
        resident_growth_is_in_the_report,
        alerts_of_a_session
    ].

init_per_testcase(_Case, Config) ->
    _ = ?P:stop_profiling(),
    Config.

end_per_testcase(_Case, _Config) ->
    _ = erlang:trace(all, false, [all]),
    _ = ?P:stop_profiling(),
    ok.

%% --- sessions ---

nothing_before_the_first_start(_Config) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    Call = fun(Function) -> peer:call(Peer, ?P, Function, []) end,
    try
        ?assertEqual({error, profiling_not_started}, Call(stop_profiling)),
        ?assertEqual({error, no_profiling_data}, Call(get_profiling_data)),
        ?assertEqual({error, no_profiling_data}, Call(generate_report)),
        ?assertEqual([], Call(alerts)),
        ?assertEqual(0.0, (Call(measure_memory_snapshot))#memory_snapshot.gc_pause_max),
        ?assertEqual(ok, Call(start_profiling))
    after
        peer:stop(Peer)
    end.

wrong_options(_Config) ->
    [
        refused(start_profiling, [Options], Text)
     || {Options, Text} <- [
            {[], "not a map"},
            {undefined, "not a map"},
            {#{colour => red}, "unknown option"},
            {#{"interval_ms" => 1}, "unknown option"},
            {#{interval_ms => 0}, "interval_ms"},
            {#{interval_ms => -5}, "interval_ms"},
            {#{interval_ms => 1.5}, "interval_ms"},
            {#{interval_ms => 1 bsl 32}, "interval_ms"},
            {#{interval_ms => 1 bsl 200}, "interval_ms"},
            {#{keep => 0}, "keep"},
            {#{keep => 1000000000000}, "keep"},
            {#{keep => many}, "keep"},
            {#{gc => yes}, "gc"},
            {#{gc_window_ms => 0}, "gc_window_ms"},
            {#{gc_every_ms => infinity}, "gc_every_ms"},
            {#{gc_window_ms => 70000}, "more than gc_every_ms"}
        ]
    ],
    ?assertEqual(undefined, whereis(erlmcp_memory_sampler)),
    %% The largest of all is legal and takes no memory in advance.
    Before = erlmcp_memory_nif:native_bytes(),
    ok = ?P:start_profiling(#{interval_ms => 16#FFFFFFFF, keep => 1000000}),
    ?assert(erlmcp_memory_nif:native_bytes() - Before < 10 * ?MB),
    ?assertMatch(#{snapshots := 2}, ?P:stop_profiling()).

wrong_arguments(_Config) ->
    [refused(memory_per_connection, [N], "positive") || N <- [0, -1, 1.0, many, 1 bsl 70 * -1]],
    [refused(measure_memory_after_delay, [Ms], "milliseconds") || Ms <- [-1, 0.5, x, 1 bsl 32]],
    [
        ?assertError(badarg, erlang:apply(erlmcp_memory_nif, Function, Arguments))
     || {Function, Arguments} <- [
            {profiler_push, [make_ref(), #memory_snapshot{}]},
            {profiler_status, [self()]},
            {profiler_start, [dead(), 5, false]},
            {profiler_probe, [somebody]},
            {memory_trend, [[{1, 2} | {3, 4}]]},
            {profiler_samples, [make_ref()]},
            {profiler_trend, [make_ref()]},
            {histogram_record, [make_ref(), 1]},
            {histogram_record, [erlmcp_memory_nif:histogram_new(), -1]}
        ]
    ].

refused(Function, Arguments, Text) ->
    try erlang:apply(?P, Function, Arguments) of
        Result -> ct:fail({Function, Arguments, Result})
    catch
        error:badarg:Stack ->
            Shown = unicode:characters_to_list(erl_error:format_exception(error, badarg, Stack)),
            ?assertNotEqual(nomatch, string:find(Shown, "argument 1"), Shown),
            ?assertNotEqual(nomatch, string:find(Shown, Text), Shown)
    end.

a_session_has_the_promised_shape(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 5}),
    Held = [spawn(fun wait/0) || _ <- lists:seq(1, 100)],
    taken(5),
    #{
        baseline := Baseline,
        final := Final,
        snapshots := Count,
        total_memory_delta := MemoryDelta,
        process_count_delta := ProcessDelta,
        avg_gc_pause := Pause,
        gc := Gc,
        duration_ms := Duration
    } = ?P:stop_profiling(),
    stop(Held),
    ?assert(Count >= 5),
    ?assert(Duration >= 20),
    ?assert(is_float(Pause)),
    ?assertMatch(
        #{
            measured := true,
            collections := _,
            reclaimed_bytes := _,
            pause_ms := #{p50 := _, p90 := _, p99 := _, p999 := _, max := _}
        },
        Gc
    ),
    #{total_memory := M0, process_count := P0} = Baseline,
    #{total_memory := M1, process_count := P1} = Final,
    ?assertEqual(M1 - M0, MemoryDelta),
    ?assertEqual(P1 - P0, ProcessDelta),
    ?assert(ProcessDelta > 50),
    ?assertEqual(M0 div ?MB, maps:get(total_memory_mb, Baseline)),
    ?assertEqual(
        lists:sort([total_memory_mb | record_info(fields, memory_snapshot)]),
        lists:sort(maps:keys(Final))
    ),
    ?assert(lists:all(fun is_number/1, maps:values(Final))).

data_stay_readable_until_the_next_start(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 5}),
    taken(3),
    #{snapshots := Count, baseline := Baseline, final := Final, duration_ms := Duration} =
        ?P:stop_profiling(),
    ?assertEqual({error, profiling_not_started}, ?P:stop_profiling()),
    #{snapshots := Snapshots} = Data = ?P:get_profiling_data(),
    ?assertMatch(
        #{baseline := Baseline, snapshot_count := Count, duration_ms := Duration}, Data
    ),
    ?assertEqual(Count, length(Snapshots)),
    ?assertEqual(Baseline, hd(Snapshots)),
    ?assertEqual(Final, lists:last(Snapshots)),
    Times = [Time || #{timestamp := Time} <- Snapshots],
    ?assertEqual(lists:sort(Times), Times),
    timer:sleep(20),
    ?assertEqual(Data, ?P:get_profiling_data()),
    ok = ?P:start_profiling(#{interval_ms => 60000}),
    ?assertMatch(#{snapshot_count := 1}, ?P:get_profiling_data()).

only_the_newest_snapshots_are_kept(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 1, keep => 4}),
    #{baseline := Baseline} = ?P:get_profiling_data(),
    taken(20),
    #{snapshots := 4, final := Final} = ?P:stop_profiling(),
    #{snapshots := Snapshots, snapshot_count := 4, baseline := Baseline} =
        ?P:get_profiling_data(),
    ?assertEqual(Final, lists:last(Snapshots)),
    ?assertNot(lists:member(Baseline, Snapshots)).

a_long_session_is_read_whole(_Config) ->
    %% More snapshots than one call on a normal scheduler reads; constructed, with a leak.
    Sampler = spawn(fun wait/0),
    Session = erlmcp_memory_nif:profiler_start(Sampler, 5000, false),
    [
        true = erlmcp_memory_nif:profiler_push(Session, #memory_snapshot{
            timestamp = N * 5000, total_memory = N * 10000
        })
     || N <- lists:seq(1, 6000)
    ],
    #{snapshots := Snapshots, snapshot_count := 5000} = ?P:get_profiling_data(),
    ?assertEqual(lists:seq(1001, 6000), [Time div 5000 || #{timestamp := Time} <- Snapshots]),
    ?assertMatch([#{metric := memory_growth, level := warning}], growth(?P:alerts())),
    stop([Sampler]),
    until(fun() -> not maps:get(running, erlmcp_memory_nif:profiler_status(Session)) end),
    ?assertEqual(false, erlmcp_memory_nif:profiler_push(Session, #memory_snapshot{})),
    ?assertMatch(#{snapshot_count := 5000}, ?P:get_profiling_data()).

a_session_outlives_its_caller(_Config) ->
    {Caller, Monitor} = spawn_monitor(fun() -> ok = ?P:start_profiling() end),
    receive
        {'DOWN', Monitor, process, Caller, Reason} -> ?assertEqual(normal, Reason)
    end,
    ?assertMatch(#{snapshots := 2}, ?P:stop_profiling()),
    no_trace_left().

a_start_ends_the_running_session(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 60000, gc => false}),
    First = whereis(erlmcp_memory_sampler),
    ok = ?P:start_profiling(#{interval_ms => 60000}),
    ?assertNot(is_process_alive(First)),
    %% Junk does no harm.
    erlmcp_memory_sampler ! junk,
    ok = gen_server:cast(erlmcp_memory_sampler, junk),
    ?assertEqual({error, unknown_request}, gen_server:call(erlmcp_memory_sampler, junk)),
    ?assertMatch(#{snapshots := 2, gc := #{measured := true}}, ?P:stop_profiling()).

a_refused_start_leaves_the_running_session(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 60000, gc => false}),
    Session = erlmcp_memory_nif:profiler_session(),
    Sampler = whereis(erlmcp_memory_sampler),
    #{baseline := Baseline} = ?P:get_profiling_data(),
    Tracer = spawn(fun drain/0),
    1 = erlang:trace(self(), true, [send, {tracer, Tracer}]),
    ?assertEqual({error, {already_traced, Tracer}}, ?P:start_profiling()),
    ?assertError(badarg, ?P:start_profiling(#{interval_ms => 0})),
    ?assertEqual(Session, erlmcp_memory_nif:profiler_session()),
    ?assertEqual(Sampler, whereis(erlmcp_memory_sampler)),
    ?assertMatch(#{baseline := Baseline, snapshots := 2}, ?P:stop_profiling()),
    1 = erlang:trace(self(), false, [send]),
    stop([Tracer]).

many_callers_at_once(_Config) ->
    Self = self(),
    Callers = [
        spawn_monitor(fun() ->
            Results = [{?P:start_profiling(#{interval_ms => 1}), ?P:stop_profiling()} || _ <- "12345"],
            Self ! {results, Results}
        end)
     || _ <- lists:seq(1, 20)
    ],
    [
        receive
            {'DOWN', Monitor, process, Caller, Reason} -> ?assertEqual(normal, Reason)
        end
     || {Caller, Monitor} <- Callers
    ],
    [
        receive
            {results, Results} ->
                [
                    begin
                        ?assertEqual(ok, Started),
                        ?assert(is_map(Stopped) orelse Stopped =:= {error, profiling_not_started})
                    end
                 || {Started, Stopped} <- Results
                ]
        end
     || _ <- Callers
    ],
    _ = ?P:stop_profiling(),
    ?assertEqual(undefined, whereis(erlmcp_memory_sampler)),
    no_trace_left().

%% --- collections ---

collections_are_counted(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 60000, gc => always}),
    garbage(100, 50000),
    #{baseline := Baseline, final := Final, gc := Gc, avg_gc_pause := Mean} = ?P:stop_profiling(),
    #{
        measured := true,
        collections := Collections,
        minor := Minor,
        major := Major,
        reclaimed_bytes := Reclaimed,
        pause_ms := #{min := Min, mean := Mean, p50 := P50, p99 := P99, p999 := P999, max := Max}
    } = Gc,
    ?assertEqual(Collections, Minor + Major),
    ?assert(Minor > 0 andalso Major > 0),
    ?assert(Min > 0.0),
    ?assert(Min =< P50 andalso P50 =< P99 andalso P99 =< P999 andalso P999 =< Max),
    ?assert(Min =< Mean andalso Mean =< Max),
    %% The VM's own count of the same time: the session is a little shorter.
    Counted = maps:get(gc_collections, Final) - maps:get(gc_collections, Baseline),
    ct:log("collections: ~b traced, ~b by the VM; pauses ~p", [Collections, Counted, Gc]),
    ?assert(Counted > 200),
    ?assert(abs(Collections - Counted) =< 20 + Counted div 20),
    %% Each of 100 processes drops a list of 50,000 integers: two words each.
    Dropped = 100 * 50000 * 2 * erlang:system_info(wordsize),
    ?assert(Reclaimed >= Dropped * 9 div 10),
    %% The longest pause is in one of the two snapshots, but for what came after the last one.
    Longest = max(maps:get(gc_pause_max, Baseline), maps:get(gc_pause_max, Final)),
    ?assert(P99 =< Longest andalso Longest =< Max).

no_collections_on_request(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 60000, gc => false}),
    garbage(10, 1000),
    no_trace_left(),
    ?assertEqual(0.0, (?P:measure_memory_snapshot())#memory_snapshot.gc_pause_max),
    #{final := Final, gc := Gc, avg_gc_pause := Mean} = ?P:stop_profiling(),
    ?assertEqual(0.0, maps:get(gc_pause_max, Final)),
    ?assertEqual(0.0, Mean),
    ?assertMatch(#{measured := false, collections := 0, reclaimed_bytes := 0}, Gc).

longest_pause_is_each_readers_own(_Config) ->
    Pause = fun() -> (?P:measure_memory_snapshot())#memory_snapshot.gc_pause_max end,
    ok = ?P:start_profiling(#{interval_ms => 1, gc => always}),
    garbage(5, 100000),
    taken(10),
    %% The sampler has asked many times since; the caller's register still has the maximum.
    #{snapshots := Before} = ?P:get_profiling_data(),
    Longest = Pause(),
    ?assert(is_float(Longest)),
    ?assert(Longest >= lists:max([P || #{gc_pause_max := P} <- Before])),
    #{gc := #{pause_ms := #{p99 := P99, max := Max}}} = ?P:stop_profiling(),
    ?assert(Longest > 0.0 andalso Longest =< Max),
    #{snapshots := Snapshots} = ?P:get_profiling_data(),
    Sampled = lists:max([P || #{gc_pause_max := P} <- Snapshots]),
    ?assert(P99 =< Sampled andalso Sampled =< Max),
    ?assertEqual(0.0, Pause()).

a_stop_clears_every_flag(_Config) ->
    Process = spawn(fun wait/0),
    ok = ?P:start_profiling(),
    _ = ?P:stop_profiling(),
    %% A flag that was left on would dissolve when it is looked at, were no session active.
    Sampler = spawn(fun wait/0),
    _ = erlmcp_memory_nif:profiler_start(Sampler, 1, true),
    no_trace_left(),
    stop([Process, Sampler]).

a_killed_sampler_leaves_nothing_on(_Config) ->
    Process = spawn(fun wait/0),
    ok = ?P:start_profiling(#{interval_ms => 5}),
    taken(3),
    ?assertEqual({flags, [garbage_collection]}, erlang:trace_info(Process, flags)),
    Sampler = whereis(erlmcp_memory_sampler),
    Monitor = monitor(process, Sampler),
    exit(Sampler, kill),
    receive
        {'DOWN', Monitor, process, Sampler, killed} -> ok
    end,
    until(fun() ->
        Session = erlmcp_memory_nif:profiler_session(),
        not maps:get(running, erlmcp_memory_nif:profiler_status(Session))
    end),
    erlang:garbage_collect(Process),
    ?assertEqual({flags, []}, erlang:trace_info(Process, flags)),
    Fresh = spawn(fun wait/0),
    erlang:garbage_collect(Fresh),
    ?assertEqual({flags, []}, erlang:trace_info(Fresh, flags)),
    ?assertEqual({error, profiling_not_started}, ?P:stop_profiling()),
    ?assertEqual(0.0, (?P:measure_memory_snapshot())#memory_snapshot.gc_pause_max),
    #{snapshot_count := Count} = Data = ?P:get_profiling_data(),
    ?assert(Count >= 3),
    {ok, _} = ?P:generate_report(),
    timer:sleep(20),
    ?assertEqual(Data, ?P:get_profiling_data()),
    %% What is left over of the old session does not stop a new one.
    ok = ?P:start_profiling(),
    ?assertEqual({flags, [garbage_collection]}, erlang:trace_info(Process, flags)),
    garbage(5, 1000),
    ?assertMatch(#{gc := #{collections := N}} when N > 0, ?P:stop_profiling()),
    no_trace_left(),
    stop([Process, Fresh]).

refused_beside_a_tracer_of_new_processes(_Config) ->
    Tracer = spawn(fun drain/0),
    erlang:trace(new_processes, true, [send, {tracer, Tracer}]),
    ?assertEqual({error, {already_traced, Tracer}}, ?P:start_profiling()),
    ?assertEqual(undefined, whereis(erlmcp_memory_sampler)),
    no_trace_left(),
    ok = ?P:start_profiling(#{gc => false}),
    ?assert(is_map(?P:stop_profiling())),
    ?assertEqual({tracer, Tracer}, erlang:trace_info(new_processes, tracer)),
    erlang:trace(new_processes, false, [send]),
    stop([Tracer]),
    ok = ?P:start_profiling().

refused_beside_a_tracer_of_one_process(_Config) ->
    [Traced, Other, Tracer] = [spawn(Fun) || Fun <- [fun wait/0, fun wait/0, fun drain/0]],
    1 = erlang:trace(Traced, true, [garbage_collection, {tracer, Tracer}]),
    ?assertEqual({error, {already_traced, Tracer}}, ?P:start_profiling()),
    ?assertEqual({flags, []}, erlang:trace_info(Other, flags)),
    ?assertEqual({tracer, Tracer}, erlang:trace_info(Traced, tracer)),
    1 = erlang:trace(Traced, false, [garbage_collection]),
    ok = ?P:start_profiling(),
    ?assertEqual({flags, [garbage_collection]}, erlang:trace_info(Other, flags)),
    stop([Traced, Other, Tracer]).

refused_beside_a_trace_session(_Config) ->
    %% By name, or xref would miss what older releases do not have.
    Trace = trace,
    case code:ensure_loaded(Trace) of
        {module, Trace} ->
            Tracer = spawn(fun drain/0),
            Session = Trace:session_create(somebody, Tracer, []),
            ?assertMatch(
                {error, {already_traced, {sessions, [{somebody, _}]}}}, ?P:start_profiling()
            ),
            no_trace_left(),
            true = Trace:session_destroy(Session),
            ok = ?P:start_profiling(),
            stop([Tracer]);
        {error, _} ->
            {skip, "this VM has no trace sessions"}
    end.

%% Each of these leaves the session without some of what it measures by.
cleared_trace_flags_are_noticed(_Config) ->
    Clear = fun(Of) -> fun() -> erlang:trace(Of, false, [all]) end end,
    [
        begin
            ok = ?P:start_profiling(#{interval_ms => 10, gc => always}),
            erlang:garbage_collect(),
            Take(),
            {ok, Report} = ?P:generate_report(),
            ?assertNotEqual(nomatch, string:find(Report, "not measured since"), Name),
            ?assertEqual([], [Alert || #{metric := gc_pause} = Alert <- ?P:alerts()]),
            [erlang:garbage_collect() || _ <- lists:seq(1, 50)],
            ?assertEqual(0.0, (?P:measure_memory_snapshot())#memory_snapshot.gc_pause_max, Name),
            %% The rest is measured on.
            taken(2),
            #{final := Final, gc := Gc} = ?P:stop_profiling(),
            ?assertMatch(#{measured := false, collections := N} when N >= 1, Gc, Name),
            ?assertEqual(0.0, maps:get(gc_pause_max, Final), Name),
            no_trace_left(),
            %% The next one measures.
            ok = ?P:start_profiling(#{interval_ms => 60000}),
            garbage(5, 1000),
            ?assertMatch(
                #{gc := #{measured := true, collections := N}} when N >= 5, ?P:stop_profiling(), Name
            )
        end
     || {Name, Take} <- [
            {all, Clear(all)},
            {processes, Clear(processes)},
            {existing, Clear(existing)},
            {existing_processes, Clear(existing_processes)},
            {new, Clear(new)},
            {new_processes, Clear(new_processes)},
            {the_flag, fun() -> erlang:trace(all, false, [garbage_collection]) end}
        ]
    ].

%% Where the VM has trace sessions, dbg has one of its own and takes nothing away.
dbg_beside_a_session(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 60000, gc => always}),
    {ok, _} = dbg:tracer(process, {fun(_, _) -> ok end, ok}),
    {ok, _} = dbg:p(all, clear),
    dbg:stop(),
    garbage(5, 1000),
    #{gc := #{measured := Measured, collections := Collections}} = ?P:stop_profiling(),
    case code:ensure_loaded(trace) of
        {module, trace} -> ?assert(Measured andalso Collections >= 5);
        {error, _} -> ?assertNot(Measured)
    end,
    ok = ?P:start_profiling().

trace_flags_taken_over_are_noticed(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 60000, gc => always}),
    Tracer = spawn(fun drain/0),
    erlang:trace(new_processes, true, [send, {tracer, Tracer}]),
    ?assertMatch(#{gc := #{measured := false}}, ?P:stop_profiling()),
    {flags, Flags} = erlang:trace_info(new_processes, flags),
    ?assert(lists:member(send, Flags)),
    ?assertEqual({tracer, Tracer}, erlang:trace_info(new_processes, tracer)),
    ?assertEqual({error, {already_traced, Tracer}}, ?P:start_profiling()),
    erlang:trace(new_processes, false, [all]),
    stop([Tracer]),
    ok = ?P:start_profiling().

trace_flags_of_one_process_are_noticed(_Config) ->
    Process = spawn(fun wait/0),
    ok = ?P:start_profiling(#{interval_ms => 1, gc => always}),
    taken(5),
    Session = erlmcp_memory_nif:profiler_session(),
    ?assertMatch(#{gc_measured := true}, erlmcp_memory_nif:profiler_status(Session)),
    1 = erlang:trace(Process, false, [all]),
    until(fun() ->
        not maps:get(gc_measured, erlmcp_memory_nif:profiler_status(Session))
    end),
    ?assertMatch(#{gc := #{measured := false}}, ?P:stop_profiling()),
    stop([Process]).

trace_flags_cleared_in_a_simulation(_Config) ->
    Clear = spawn_link(fun() ->
        until(fun() -> erlmcp_memory_session:look() =:= ok end),
        erlang:trace(all, false, [all])
    end),
    ?assertMatch(
        #{
            success := true,
            gc_pause := #{measured := false, reason := trace_flags_cleared}
        },
        ?P:simulate_100k_load(200, #{progress => false})
    ),
    ?assertNot(is_process_alive(Clear)).

anothers_trace_outlives_a_stop(_Config) ->
    %% In a node of its own: the VM logs that a process can have only one tracer.
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    try
        ?assertEqual([garbage_collection], peer:call(Peer, ?MODULE, taken_over, []))
    after
        peer:stop(Peer)
    end.

%% Runs on the peer: what is left of somebody else's flags when the session has stopped.
taken_over() ->
    [Process, Tracer] = [spawn(fun wait/0), spawn(fun drain/0)],
    ok = ?P:start_profiling(#{interval_ms => 60000, gc => always}),
    1 = erlang:trace(Process, false, [all]),
    1 = erlang:trace(Process, true, [garbage_collection, {tracer, Tracer}]),
    #{} = ?P:stop_profiling(),
    {flags, Flags} = erlang:trace_info(Process, flags),
    stop([Process, Tracer]),
    Flags.

trace_sessions_of_others_do_no_harm(_Config) ->
    Trace = trace,
    case code:ensure_loaded(Trace) of
        {module, Trace} ->
            ok = ?P:start_profiling(#{interval_ms => 60000, gc => always}),
            Tracer = spawn(fun drain/0),
            Session = Trace:session_create(somebody, Tracer, []),
            Trace:process(Session, all, true, [send]),
            Trace:process(Session, all, false, [all]),
            true = Trace:session_destroy(Session),
            garbage(5, 1000),
            ?assertMatch(
                #{gc := #{measured := true, collections := N}} when N >= 5, ?P:stop_profiling()
            ),
            stop([Tracer]);
        {error, _} ->
            {skip, "this VM has no trace sessions"}
    end.

%% Setting flags meets processes that dirty schedulers run, collect and end.
started_and_stopped_beside_dirty_work(_Config) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    try
        ?assertEqual(ok, peer:call(Peer, ?MODULE, beside_dirty_work, [2000], infinity))
    after
        peer:stop(Peer)
    end.

%% Runs on the peer.
beside_dirty_work(Ms) ->
    Work = fun Work() ->
        Ref = erlmcp_connection_optimizer:share(lists:seq(1, 20000)),
        _ = erlang:garbage_collect(),
        _ = file:read_file_info(".", [raw]),
        true = is_reference(Ref),
        Work()
    end,
    Workers = [spawn(Work) || _ <- lists:seq(1, 8)],
    Upto = erlang:monotonic_time(millisecond) + Ms,
    ok = rounds(Work, Upto),
    stop(Workers).

rounds(Work, Upto) ->
    Pid = spawn(Work),
    ok = ?P:start_profiling(#{interval_ms => 1000}),
    exit(Pid, kill),
    #{gc := #{measured := true}} = ?P:stop_profiling(),
    case erlang:monotonic_time(millisecond) < Upto of
        true -> rounds(Work, Upto);
        false -> ok
    end.

processes_die_while_traced(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 1, gc => always}),
    [
        begin
            Pid = spawn(fun() -> burn(lists:seq(1, 2000)) end),
            erlang:yield(),
            exit(Pid, kill)
        end
     || _ <- lists:seq(1, 5000)
    ],
    Heaped = [
        spawn_opt(fun() -> burn(lists:seq(1, 2000)) end, [
            {max_heap_size, #{size => 20000, kill => true, error_logger => false}}
        ])
     || _ <- lists:seq(1, 200)
    ],
    stop(Heaped),
    ?assertMatch(#{gc := #{collections := N}} when N > 0, ?P:stop_profiling()),
    no_trace_left().

many_processes_alive(_Config) ->
    Limit = erlang:system_info(process_limit) - erlang:system_info(process_count),
    Count = min(50000, Limit div 2),
    Held = [spawn(fun wait/0) || _ <- lists:seq(1, Count)],
    ok = ?P:start_profiling(#{interval_ms => 1, gc => always}),
    taken(5),
    [erlang:garbage_collect(Pid) || Pid <- lists:sublist(Held, 1000)],
    ?assert((?P:measure_memory_snapshot())#memory_snapshot.process_count >= Count),
    #{gc := #{collections := Collections}} = ?P:stop_profiling(),
    ?assert(Collections >= 1000),
    ?assertEqual({flags, []}, erlang:trace_info(lists:last(Held), flags)),
    stop(Held).

%% --- measurements ---

a_snapshot_is_the_vms_memory(_Config) ->
    Now = erlang:system_time(millisecond),
    Snapshot = ?P:measure_memory_snapshot(),
    ?assertEqual(
        [
            timestamp,
            process_count,
            total_memory,
            process_memory,
            binary_memory,
            ets_memory,
            atom_memory,
            gc_collections,
            gc_reclaimed,
            gc_pause_max
        ],
        lists:sublist(record_info(fields, memory_snapshot), 10)
    ),
    ?assert(abs(Snapshot#memory_snapshot.timestamp - Now) < 60000),
    [
        ?assert(abs(Value - erlang:memory(Kind)) < 20 * ?MB)
     || {Value, Kind} <- [
            {Snapshot#memory_snapshot.total_memory, total},
            {Snapshot#memory_snapshot.process_memory, processes},
            {Snapshot#memory_snapshot.binary_memory, binary},
            {Snapshot#memory_snapshot.ets_memory, ets},
            {Snapshot#memory_snapshot.atom_memory, atom}
        ]
    ],
    ?assert(Snapshot#memory_snapshot.gc_collections > 0),
    ?assert(Snapshot#memory_snapshot.gc_reclaimed > 0),
    ?assert(Snapshot#memory_snapshot.resident_memory > Snapshot#memory_snapshot.binary_memory),
    ?assert(Snapshot#memory_snapshot.resident_memory > 10 * ?MB).

a_snapshot_is_of_the_monotonic_clock(_Config) ->
    Before = erlang:monotonic_time(millisecond),
    #memory_snapshot{timestamp = Timestamp, time_offset = Offset} = ?P:measure_memory_snapshot(),
    After = erlang:monotonic_time(millisecond),
    %% Both are rounded to milliseconds.
    ?assert(Timestamp - Offset >= Before - 1),
    ?assert(Timestamp - Offset =< After + 1).

allocators_switched_off(_Config) ->
    {ok, Peer, _} = peer:start(#{
        connection => standard_io, args => ["+Mea", "min", "-pa" | code:get_path()]
    }),
    Call = fun(Module, Function, Arguments) -> peer:call(Peer, Module, Function, Arguments) end,
    try
        [
            ?assertEqual({error, notsup}, Call(?P, Function, Arguments), Function)
         || {Function, Arguments} <- [
                {start_profiling, []},
                {start_profiling, [#{gc => false}]},
                {measure_memory_snapshot, []},
                {measure_memory_after_delay, [60000]},
                {memory_per_connection, [1000]},
                {alerts, []},
                {simulate_100k_load, [10]},
                {simulate_100k_load, [10, #{progress => false}]}
            ]
        ],
        ?assertEqual(undefined, Call(erlang, whereis, [erlmcp_memory_sampler])),
        ?assertEqual({error, profiling_not_started}, Call(?P, stop_profiling, [])),
        ?assertEqual({error, no_profiling_data}, Call(?P, generate_report, [])),
        ?assertMatch(#{trend_slope := 1000.0}, Call(?P, analyze_memory_trend, [line()])),
        ?assertMatch(#{in_use := 1}, Call(?MODULE, pool_and_states, []))
    after
        peer:stop(Peer)
    end.

line() ->
    [#{timestamp => N * 1000, total_memory => N * 1000} || N <- lists:seq(1, 10)].

%% Runs on the peer.
pool_and_states() ->
    {ok, Pool} = erlmcp_memory_pool:start_link(),
    {ok, Pooled} = erlmcp_memory_pool:acquire_connection_state(#{a => 1}),
    {ok, #{a := 1}} = erlmcp_memory_pool:connection_state(Pooled),
    State = erlmcp_connection_optimizer:create_optimized_state(<<"c">>),
    <<"c">> = erlmcp_connection_optimizer:get_state_field(State, id),
    {ok, Pids} = ?P:create_test_connections(1, Pool),
    ok = ?P:stop_test_connections(Pids),
    until(fun() -> maps:get(in_use, erlmcp_memory_pool:pool_stats()) =:= 1 end),
    Stats = erlmcp_memory_pool:pool_stats(),
    ok = erlmcp_memory_pool:release_connection_state(Pooled),
    ok = gen_server:stop(Pool),
    Stats.

memory_after_delay(_Config) ->
    Self = self(),
    spawn_link(fun() ->
        %% Not before the first of the two measurements.
        until(fun() ->
            {current_function, {timer, sleep, 1}} =:= process_info(Self, current_function)
        end),
        Self ! {big, binary:copy(<<0>>, 64 * ?MB)}
    end),
    {Delta, 2000} = ?P:measure_memory_after_delay(2000),
    receive
        {big, Big} -> ?assertEqual(64 * ?MB, byte_size(Big))
    end,
    ?assert(Delta > 32 * ?MB),
    ?assertMatch({_, 0}, ?P:measure_memory_after_delay(0)).

memory_over_connections(_Config) ->
    {Bytes, MegaBytes} = ?P:memory_per_connection(10),
    ?assertEqual(Bytes / ?MB, MegaBytes),
    ?assert(abs(Bytes * 10 - erlang:memory(total)) < 20 * ?MB),
    ?assertEqual({0, 0.0}, ?P:memory_per_connection(1 bsl 80)).

trend_of_records_and_maps(_Config) ->
    Record = #memory_snapshot{timestamp = 1000, total_memory = 30},
    %% As a host compiled against a header of ten fields has it.
    Old = {memory_snapshot, 3000, 0, 20, 0, 0, 0, 0, 0, 0, 0.0},
    Map = #{timestamp => 2000.0, total_memory => 10},
    Expected = #{
        min_memory => 10,
        max_memory => 30,
        avg_memory => 20,
        memory_delta => -10,
        avg_growth_per_snapshot => -5,
        trend_slope => -5.0,
        leak_indication => <<"normal">>
    },
    ?assertEqual(Expected, ?P:analyze_memory_trend([Record, Map, Old])),
    ?assertEqual(Expected, ?P:analyze_memory_trend([Old, Record, Map])),
    ok = ?P:start_profiling(#{interval_ms => 1}),
    taken(5),
    #{snapshots := Snapshots} = ?P:get_profiling_data(),
    #{max_memory := Max} = ?P:analyze_memory_trend(Snapshots),
    ?assertEqual(lists:max([Total || #{total_memory := Total} <- Snapshots]), Max).

%% An hour of 20 MB and noise; the clock is set after half of it, by so many milliseconds.
stepped(Step) ->
    Clock = 1769000000000,
    {Snapshots, _} = lists:mapfoldl(
        fun(N, Random) ->
            {Noise, Next} = rand:uniform_s(Random),
            Ahead =
                case N > 360 of
                    true -> Step;
                    false -> 0
                end,
            {
                #memory_snapshot{
                    timestamp = Clock + Ahead + N * 5000,
                    time_offset = Clock + Ahead + 7000000,
                    total_memory = round((500 + 20 * N / 720 + 2 * Noise) * ?MB)
                },
                Next
            }
        end,
        rand:seed_s(exsss, 1),
        lists:seq(1, 720)
    ),
    Snapshots.

a_step_of_the_clock_changes_no_verdict(_Config) ->
    Sampler = spawn(fun wait/0),
    Level = ?P:analyze_memory_trend(stepped(0)),
    #{trend_slope := Slope, leak_indication := <<"possible_memory_leak">>} = Level,
    ?assert(abs(Slope * 3600 / ?MB - 20) < 1),
    [
        begin
            Snapshots = stepped(Step),
            ?assertEqual(Level, ?P:analyze_memory_trend(Snapshots), Step),
            Session = erlmcp_memory_nif:profiler_start(Sampler, 1000, false),
            [true = erlmcp_memory_nif:profiler_push(Session, Snapshot) || Snapshot <- Snapshots],
            [#{level := critical, value := Value}] = growth(?P:alerts()),
            ?assertEqual(Slope * 3600 / ?MB, Value),
            #{snapshots := Maps} = ?P:get_profiling_data(),
            ?assertEqual(Level, ?P:analyze_memory_trend(Maps), Step),
            {ok, Report} = ?P:generate_report(),
            Text = io_lib:format("~.2f MB/hour, possible_memory_leak", [Value]),
            ?assertNotEqual(nomatch, string:find(Report, Text), Report)
        end
     || Step <- [0, -1800000, 3600000, 86400000, -40 * 365 * 86400000]
    ],
    %% One snapshot without it among them: the timestamps, which the hour in between bends.
    [First | Rest] = stepped(3600000),
    [
        ?assertMatch(
            #{trend_slope := Bent} when Bent < Slope / 2,
            ?P:analyze_memory_trend([First#memory_snapshot{time_offset = Offset} | Rest])
        )
     || Offset <- [0, undefined, 1.5]
    ],
    stop([Sampler]).

%% With a system clock that a file sets, where the library that does it is installed.
the_clock_is_set_while_a_session_runs(Config) ->
    erlmcp_profiler_clock_help:stepped(Config, fun(Peer, Step) ->
        Call = fun(Module, Function, Arguments) -> peer:call(Peer, Module, Function, Arguments) end,
        ok = Call(?P, start_profiling, [#{interval_ms => 20, gc => false}]),
        #{baseline := #{timestamp := From}} = Call(?P, get_profiling_data, []),
        ok = Step("+1d"),
        %% The VM looks at the system clock at most once in some seconds.
        until(fun() -> Call(erlang, system_time, [millisecond]) - From > 80000000 end),
        timer:sleep(100),
        #{duration_ms := Duration} = Call(?P, stop_profiling, []),
        #{snapshots := Snapshots} = Call(?P, get_profiling_data, []),
        ct:log("~b snapshots in ~b ms", [length(Snapshots), Duration]),
        Times = [Time - Offset || #{timestamp := Time, time_offset := Offset} <- Snapshots],
        ?assertEqual(lists:sort(Times), Times),
        ?assert(lists:last(Times) - hd(Times) =< Duration + 1),
        ?assert(maps:get(timestamp, lists:last(Snapshots)) - From > 80000000)
    end).

a_node_that_filled_up_is_no_leak(_Config) ->
    Hour = fun(Level, Noise) ->
        {Snapshots, _} = lists:mapfoldl(
            fun(N, Random) ->
                {Uniform, Next} = rand:uniform_s(Random),
                Bytes = 500 + Level(N / 720) + (2 * Uniform - 1) * Noise,
                {#memory_snapshot{timestamp = N * 5000, total_memory = round(Bytes * ?MB)}, Next}
            end,
            rand:seed_s(exsss, {1, 2, 3}),
            lists:seq(1, 720)
        ),
        Sampler = spawn(fun wait/0),
        Session = erlmcp_memory_nif:profiler_start(Sampler, 1000, false),
        [true = erlmcp_memory_nif:profiler_push(Session, Snapshot) || Snapshot <- Snapshots],
        Alerts = growth(?P:alerts()),
        stop([Sampler]),
        #{leak_indication := Indication} = ?P:analyze_memory_trend(Snapshots),
        {Indication, Alerts}
    end,
    [
        ?assertEqual({<<"normal">>, []}, Hour(Level, Noise), {Name, Noise})
     || Noise <- [0, 1, 3, 10, 30],
        {Name, Level} <- [
            {ramp, fun(X) -> 100 * min(1.0, X * 3) end},
            {saturating, fun(X) -> 100 * (1 - math:exp(-6 * X)) end},
            {steps, fun(X) -> 40 * min(3, trunc(X * 12)) end}
        ]
    ],
    [
        ?assertMatch({<<"possible_memory_leak">>, _}, Hour(fun(X) -> 5 * X end, Noise), Noise)
     || Noise <- [0, 1, 3]
    ].

trend_refuses_the_rest(_Config) ->
    Good = #{timestamp => 1, total_memory => 1},
    ?assertEqual({error, no_data}, ?P:analyze_memory_trend([])),
    ?assertEqual({error, need_multiple_snapshots}, ?P:analyze_memory_trend([Good])),
    [
        ?assertEqual({error, invalid_input}, ?P:analyze_memory_trend(Input), Input)
     || Input <- [
            atom,
            <<"binary">>,
            Good,
            [Good | Good],
            [Good, atom],
            [atom],
            [Good, #{}],
            [Good, #{timestamp => now, total_memory => 1}],
            [Good, #{timestamp => 1, total_memory => undefined}],
            [Good, #{timestamp => 1, total_memory => -1}],
            [Good, #{timestamp => 1, total_memory => 1 bsl 70}],
            [Good, #{timestamp => 1 bsl 2000, total_memory => 1}],
            [M#{time_offset => 1 bsl 2000} || M <- [Good, Good]],
            [Good, #memory_snapshot{timestamp = undefined}],
            [Good, {memory_snapshot, 1, 2, 3}],
            [Good, {other, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}]
        ]
    ].

trend_finds_a_leak(_Config) ->
    Hour = fun(MbPerHour, NoiseMb) ->
        {Snapshots, _} = lists:mapfoldl(
            fun(N, Random) ->
                {Noise, Next} = rand:uniform_s(Random),
                Bytes = 500 + MbPerHour * N / 720 + (2 * Noise - 1) * NoiseMb,
                {#{timestamp => N * 5000, total_memory => round(Bytes * ?MB)}, Next}
            end,
            rand:seed_s(exsss, 1),
            lists:seq(1, 720)
        ),
        #{leak_indication := Indication, trend_slope := Slope} =
            ?P:analyze_memory_trend(Snapshots),
        {Indication, Slope * 3600 / ?MB}
    end,
    {<<"possible_memory_leak">>, Found} = Hour(5, 3),
    ?assert(abs(Found - 5) < 1.5),
    ?assertMatch({<<"normal">>, _}, Hour(0, 10)),
    ?assertMatch({<<"normal">>, _}, Hour(-20, 3)),
    Line = fun(Count) ->
        Snapshots = [
            #{timestamp => N * 1000, total_memory => N * ?MB}
         || N <- lists:seq(1, Count)
        ],
        #{trend_slope := Slope, leak_indication := Indication} =
            ?P:analyze_memory_trend(Snapshots),
        {Slope, Indication}
    end,
    ?assertEqual({1048576.0, <<"normal">>}, Line(2)),
    ?assertEqual({1048576.0, <<"possible_memory_leak">>}, Line(3)),
    Moment = [#{timestamp => 7, total_memory => N * ?MB} || N <- lists:seq(1, 9)],
    ?assertMatch(
        #{trend_slope := +0.0, leak_indication := <<"normal">>}, ?P:analyze_memory_trend(Moment)
    ).

trend_of_many_snapshots(_Config) ->
    Many = [#{timestamp => N * 10, total_memory => N} || N <- lists:seq(1, 100000)],
    #{trend_slope := Slope, avg_memory := 50001, memory_delta := 99999} =
        ?P:analyze_memory_trend(Many),
    ?assert(abs(Slope - 100) < 0.01),
    ?assertEqual({error, invalid_input}, ?P:analyze_memory_trend(Many ++ [bad])),
    Points = [{N, N} || N <- lists:seq(1, 1000)],
    ?assertMatch({dirty, #{}}, erlmcp_optimizer_lane_help:call(memory_trend, [Points])).

native_memory_is_counted(_Config) ->
    Before = ?P:measure_memory_snapshot(),
    Histograms = [erlmcp_memory_nif:histogram_new() || _ <- lists:seq(1, 1000)],
    [ok = erlmcp_memory_nif:histogram_record(H, 1000) || H <- Histograms],
    Held = ?P:measure_memory_snapshot(),
    Grown = Held#memory_snapshot.native_memory - Before#memory_snapshot.native_memory,
    Total = Held#memory_snapshot.total_memory - Before#memory_snapshot.total_memory,
    ct:log("native grew by ~b, total by ~b", [Grown, Total]),
    ?assert(Grown > 20 * ?MB),
    %% Other processes may have let something go meanwhile.
    ?assert(Total > Grown - 5 * ?MB),
    ?assert(Total < Grown * 5 div 4 + 5 * ?MB),
    ?assertEqual(1000, length([H || H <- Histograms, is_reference(H)])),
    erlang:garbage_collect(),
    until(fun() ->
        After = erlmcp_memory_nif:native_bytes(),
        After < Before#memory_snapshot.native_memory + ?MB
    end).

histograms_count_for_many_processes(_Config) ->
    Histogram = erlmcp_memory_nif:histogram_new(),
    ?assertMatch(
        #{count := 0, min := 0, max := 0, mean := +0.0, p50 := 0},
        erlmcp_memory_nif:histogram_read(Histogram)
    ),
    Recorders = [
        spawn_monitor(fun() ->
            [ok = erlmcp_memory_nif:histogram_record(Histogram, N) || N <- lists:seq(1, 1000)]
        end)
     || _ <- lists:seq(1, 50)
    ],
    [
        receive
            {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
        end
     || {Pid, Monitor} <- Recorders
    ],
    #{count := 50000, min := 1, max := 1000, mean := 500.5, p50 := P50, p99 := P99} =
        erlmcp_memory_nif:histogram_read(Histogram),
    ?assert(P50 >= 500 andalso P50 =< 506),
    ?assert(P99 >= 990 andalso P99 =< 1000),
    ?assertEqual(1000, erlmcp_memory_nif:histogram_percentile(Histogram, 100.0)).

%% --- report and alerts ---

report_for_an_operator(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 5}),
    garbage(5, 10000),
    taken(3),
    {ok, Report} = ?P:generate_report(),
    ct:log("~ts", [Report]),
    ?assert(io_lib:char_list(Report)),
    [
        ?assertNotEqual(nomatch, string:find(Report, Text), Text)
     || Text <- [
            "Running", "min", "max", "avg", "Trend", "GC pauses", "native", "resident", "Alerts"
        ]
    ],
    _ = ?P:stop_profiling(),
    {ok, Later} = ?P:generate_report(),
    ?assertNotEqual(nomatch, string:find(Later, "Ran for")),
    ok = ?P:start_profiling(#{interval_ms => 60000, gc => false}),
    {ok, Short} = ?P:generate_report(),
    ?assertNotEqual(nomatch, string:find(Short, "not measured")),
    ?assertNotEqual(nomatch, string:find(Short, "at least two")).

records_of_an_older_header(_Config) ->
    Old = fun(N) -> {memory_snapshot, N * 60000, 7, N * ?MB, 1, 2, 3, 4, 5, 6, 0.5} end,
    Sampler = spawn(fun wait/0),
    Session = erlmcp_memory_nif:profiler_start(Sampler, 1000, false),
    [true = erlmcp_memory_nif:profiler_push(Session, Old(N)) || N <- lists:seq(1, 60)],
    #{baseline := Baseline, snapshots := Snapshots} = ?P:get_profiling_data(),
    ?assertMatch(
        #{
            timestamp := 60000,
            process_count := 7,
            total_memory := ?MB,
            gc_pause_max := 0.5,
            native_memory := 0,
            resident_memory := 0,
            time_offset := 0
        },
        Baseline
    ),
    ?assertEqual(Baseline, erlmcp_memory_sample:to_map(Old(1))),
    ?assertMatch(#{leak_indication := <<"possible_memory_leak">>}, ?P:analyze_memory_trend(Snapshots)),
    ?assertMatch([#{level := critical}], growth(?P:alerts())),
    {ok, Report} = ?P:generate_report(),
    ?assertNotEqual(nomatch, string:find(Report, "59.00 MB")),
    [
        ?assertError(badarg, erlmcp_memory_nif:profiler_push(Session, Wrong))
     || Wrong <- [{}, {other, 1}, {memory_snapshot, x}, [memory_snapshot], memory_snapshot]
    ],
    stop([Sampler]).

resident_growth_is_in_the_report(_Config) ->
    Sampler = spawn(fun wait/0),
    Session = erlmcp_memory_nif:profiler_start(Sampler, 1000, false),
    [
        true = erlmcp_memory_nif:profiler_push(Session, #memory_snapshot{
            timestamp = N * 5000,
            total_memory = 16869880,
            resident_memory = 1000 * ?MB + N * ?MB
        })
     || N <- lists:seq(0, 720)
    ],
    {ok, Report} = ?P:generate_report(),
    Resident = [string:lexemes(Line, " ") || "resident" ++ Line <- string:split(Report, "\n", all)],
    ?assertMatch(
        [["1000.00", "MB", "1720.00", "MB", "720.00", "MB"], ["growing", "720.00", _Confidence]],
        Resident
    ),
    ?assertNotEqual(nomatch, string:find(Report, "0.00 MB/hour, normal")),
    stop([Sampler]).

alerts_of_a_session(_Config) ->
    Sampler = spawn(fun wait/0),
    Grow = fun(MbPerHour) ->
        Session = erlmcp_memory_nif:profiler_start(Sampler, 1000, false),
        [
            true = erlmcp_memory_nif:profiler_push(Session, #memory_snapshot{
                timestamp = N * 60000, total_memory = round((100 + MbPerHour * N / 60) * ?MB)
            })
         || N <- lists:seq(0, 60)
        ],
        growth(?P:alerts())
    end,
    ?assertMatch([#{level := warning, threshold := 5.0}], Grow(7)),
    ?assertMatch([#{level := critical, threshold := 10.0}], Grow(20)),
    ?assertEqual([], Grow(4)),
    ?assertEqual([], Grow(-30)),
    {ok, Report} = ?P:generate_report(),
    ?assertNotEqual(nomatch, string:find(Report, "-30.00 MB/hour")),
    stop([Sampler]).

growth(Alerts) ->
    [Alert || #{metric := memory_growth} = Alert <- Alerts].

%% --- helpers ---

wait() ->
    receive
        stop -> ok
    end.

drain() ->
    receive
        stop -> ok;
        _ -> drain()
    end.

burn(List) ->
    burn(lists:reverse([N + 1 || N <- List])).

dead() ->
    Pid = spawn(fun wait/0),
    stop([Pid]),
    Pid.

%% Kills them, and waits until all are gone.
stop(Pids) ->
    Monitors = [monitor(process, Pid) || Pid <- Pids],
    [exit(Pid, kill) || Pid <- Pids],
    [
        receive
            {'DOWN', Monitor, process, _, _} -> ok
        end
     || Monitor <- Monitors
    ],
    ok.

%% This many processes each drop a list of this many integers, and collect.
garbage(Processes, Length) ->
    Pids = [
        spawn_monitor(fun() ->
            Sum = lists:sum(lists:seq(1, Length)),
            erlang:garbage_collect(),
            Sum = Length * (Length + 1) div 2
        end)
     || _ <- lists:seq(1, Processes)
    ],
    [
        receive
            {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
        end
     || {Pid, Monitor} <- Pids
    ],
    ok.

%% Waits until the session has taken this many more samples.
taken(Count) ->
    Taken = fun() ->
        maps:get(taken, erlmcp_memory_nif:profiler_status(erlmcp_memory_nif:profiler_session()))
    end,
    Upto = Taken() + Count,
    until(fun() -> Taken() >= Upto end).

no_trace_left() ->
    ?assertEqual(
        [],
        [
            {Pid, Flags}
         || Pid <- processes(),
            {flags, [garbage_collection | _] = Flags} <- [erlang:trace_info(Pid, flags)]
        ]
    ),
    {flags, Flags} = erlang:trace_info(new_processes, flags),
    ?assertNot(lists:member(garbage_collection, Flags)).
