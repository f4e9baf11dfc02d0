%% @doc `make bench-profiling': what it costs to measure a node, and whether the figures add up.
%%
%% Each part runs in a fresh VM. The text that is printed says first what was measured, then which
%% marks are met.
-module(erlmcp_bench_profiling).

-export([main/1]).
-export([throughput/1, figures/1, breakdowns/1]).

-import(erlmcp_bench_measure, [median/1, nanoseconds/1]).
-import(erlmcp_bench_table, [row/1, mark/5, micros/1, ms/1, print/2]).

-define(P, erlmcp_memory_profiler).
-define(TRACE, erlmcp_memory_trace).
-define(NIF, erlmcp_memory_nif).
-define(ROUNDS, 10).
%% Rounds that time collections always, too.
-define(ALWAYS, 3).
%% How often a round goes there and back.
-define(TURNS, 2).
-define(CONNECTIONS, 300).
-define(TOOLS, 45).
%% One over the share of time in windows: that of the default.
-define(WINDOWS_IN, 6).
-define(CALLS, 101).

%% @doc `Count' connections, and milliseconds of a measurement at full load.
main([CountText, MsText]) ->
    Count = list_to_integer(CountText),
    erlmcp_bench_table:print_machine(),
    Load = run("full load", throughput, [list_to_integer(MsText)]),
    print_load(Load),
    #{calls := Calls, window := Window} = run("figures", figures, [Count]),
    print_figures(Count, Calls, Window),
    Breakdowns = run("breakdown", breakdowns, [[Count div 10, Count]]),
    print_breakdowns(Breakdowns),
    print("~nMarks~n", []),
    mark(2, "requests lost to a session, per cent", at_most, median(lost(on, time, Load)), 1),
    [
        mark(2, [Name, ", microseconds"], at_most, maps:get(Key, Calls) / 1000, 1000)
     || {Key, Name} <- [
            {metrics, "metrics/0"}, {breakdown, "memory_breakdown/0"}, {inventory, "inventory/0"}
        ]
    ],
    #{sample := Sample, memory := Memory} = Calls,
    mark(2, "a sample, a multiple of erlang:memory/0", at_most, Sample / Memory, 1.5),
    Worst = lists:max([abs(Percent) || #{percent := Percent} <- Breakdowns]),
    mark(3, "unaccounted, per cent of the resident size, the worst", at_most, Worst, 2).

run(What, Function, Arguments) ->
    erlmcp_bench_vm:run(What, ?MODULE, Function, Arguments).

%%% Full load

%% @doc Requests a second of clients that each always have one in flight, two for each scheduler: with
%% no session, with one that times collections in windows, with none again (what the machine does by
%% itself), and in some rounds with one that always times. What a machine does beside changes within
%% seconds, so each round runs them all there and back, some times.
%%
%% A measurement has one window, of the share of time that the default has, which opens and closes
%% within it: so both come some eighty times as often, and samples too.
throughput(Ms) ->
    Tools = erlmcp_bench_tools:generate(?TOOLS),
    Catalogue = erlmcp_host_parked:catalogue(erlmcp_host:config(Tools)),
    Pids = list_to_tuple([
        begin
            {ok, Pid} = erlmcp_host:start_link(erlmcp_host_parked, integer_to_binary(N), Catalogue),
            [_ = erlmcp_host:request(Pid, M) || M <- erlmcp_bench_messages:opening(N)],
            Pid
        end
     || N <- lists:seq(1, ?CONNECTIONS)
    ]),
    Requests = list_to_tuple(
        [erlmcp_bench_messages:list(1) | [erlmcp_bench_messages:call(1, T) || T <- lists:sublist(Tools, 9)]]
    ),
    _ = rate(Pids, Requests, Ms),
    [
        begin
            There = turned(Round, [off, on, again | [always || Round =< ?ALWAYS]]),
            Rates = [
                {How, under(How, Pids, Requests, Ms)}
             || _ <- lists:seq(1, ?TURNS), How <- There ++ lists:reverse(There)
            ],
            maps:from_list([
                {{How, Of}, lists:sum([maps:get(Of, Rate) || {H, Rate} <- Rates, H =:= How])}
             || How <- There, Of <- [time, processor]
            ])
        end
     || Round <- lists:seq(1, ?ROUNDS)
    ].

turned(Round, List) ->
    {Some, Others} = lists:split(Round rem length(List), List),
    Others ++ Some.

under(How, Pids, Requests, Ms) when How =:= off; How =:= again ->
    rate(Pids, Requests, Ms);
under(How, Pids, Requests, Ms) ->
    Gc = #{on => true, always => always},
    ok = ?P:start_profiling(#{
        gc => maps:get(How, Gc), interval_ms => Ms div 10, gc_window_ms => Ms div ?WINDOWS_IN,
        gc_every_ms => 2 * Ms
    }),
    Rate = rate(Pids, Requests, Ms),
    #{gc := #{measured := true}} = ?P:stop_profiling(),
    Rate.

%% Requests a second, and a second of processors, which other machines of the same host do not take.
rate(Pids, Requests, Ms) ->
    {Before, _} = erlang:statistics(runtime),
    End = erlang:monotonic_time(millisecond) + Ms,
    Clients = [
        spawn_monitor(fun() -> exit({asked, ask(Pids, Requests, Client * 7919, End, 0)}) end)
     || Client <- lists:seq(1, 2 * erlang:system_info(schedulers_online))
    ],
    Asked = [receive {'DOWN', Monitor, process, _, {asked, N}} -> N end || {_, Monitor} <- Clients],
    {After, _} = erlang:statistics(runtime),
    #{time => 1000 * lists:sum(Asked) / Ms, processor => 1000 * lists:sum(Asked) / (After - Before)}.

ask(Pids, Requests, At, End, Asked) ->
    Pid = element(1 + At rem tuple_size(Pids), Pids),
    _ = erlmcp_host:request(Pid, element(1 + At rem tuple_size(Requests), Requests)),
    case erlang:monotonic_time(millisecond) < End of
        true -> ask(Pids, Requests, At + 1, End, Asked + 1);
        false -> Asked + 1
    end.

%% Per cent of the requests that each round loses, beside its own runs without a session.
lost(How, Of, Load) ->
    [
        100 * (1 - Rate / maps:get({off, Of}, Round))
     || Round <- Load, {Key, Rate} <- maps:to_list(Round), Key =:= {How, Of}
    ].

print_load(Load) ->
    print("Requests a second at full load, ~b connections, ~b rounds~n", [?CONNECTIONS, ?ROUNDS]),
    row(["", "median", "lost %", "least lost", "most lost", "processor %"]),
    [
        begin
            Lost = lost(How, time, Load),
            Median = median([Rate || Round <- Load, {{H, time}, Rate} <- maps:to_list(Round), H =:= How]),
            row([
                Name, integer_to_list(round(Median / (2 * ?TURNS))), ms(median(Lost)),
                ms(lists:min(Lost)), ms(lists:max(Lost)), ms(median(lost(How, processor, Load)))
            ])
        end
     || {How, Name} <- [
            {off, "no session"}, {again, "no session again"}, {on, "timed in a sixth of it"},
            {always, "always timed"}
        ]
    ],
    print(
        "  Lost: the median of rounds, each beside its own runs without a session; the last column~n"
        "  is per cent more time of processors for a request.~n",
        []
    ).

%%% Figures

%% @doc Nanoseconds of each call with that many connections and a session, the median; and of what
%% happens at both ends of a window, with the longest gap of any scheduler meanwhile in ms.
figures(Count) ->
    {ok, _} = erlmcp_memory_pool:start_link(),
    Server = spawn_link(fun() -> receive stop -> ok end end),
    {ok, Pids} = ?P:create_test_connections(Count, Server),
    ok = ?P:start_profiling(#{interval_ms => 5000, gc => false}),
    Calls = [
        {metrics, fun ?P:metrics/0},
        {breakdown, fun ?P:memory_breakdown/0},
        {inventory, fun ?P:inventory/0},
        {sample, fun ?P:measure_memory_snapshot/0},
        {memory, fun erlang:memory/0}
    ],
    Times = erlmcp_bench_measure:medians([
        {Name, rested(Call)}
     || _ <- lists:seq(1, ?CALLS), {Name, Call} <- Calls
    ]),
    _ = ?P:stop_profiling(),
    Idle = erlmcp_bench_gaps:idle(1000),
    Session = ?NIF:profiler_start(self(), 1, true),
    Steps = [
        {look, fun() -> none = ?TRACE:other() end},
        {set, fun() -> true = ?TRACE:set() end},
        {clear, fun() -> ok = ?TRACE:clear() end}
    ],
    Window = [{Name, step(Step)} || {Name, Step} <- Steps],
    ok = ?NIF:profiler_stop(Session),
    ok = ?P:stop_test_connections(Pids),
    #{calls => Times, window => [{idle, #{ms => 1000.0, gap => Idle}} | Window]}.

%% Schedulers have gone to sleep before each, or the one that follows another would find them awake.
rested(Call) ->
    timer:sleep(3),
    nanoseconds(Call).

step(Step) ->
    Hearts = erlmcp_bench_gaps:watch(),
    Ns = nanoseconds(Step),
    #{ms => Ns / 1.0e6, gap => erlmcp_bench_gaps:longest(Hearts)}.

print_figures(Count, Calls, Window) ->
    print("~nOne call with ~b connections, the median of ~b~n", [Count, ?CALLS]),
    [
        row([Name, micros(maps:get(Key, Calls))])
     || {Key, Name} <- [
            {metrics, "metrics/0"}, {breakdown, "memory_breakdown/0"},
            {inventory, "inventory/0"}, {sample, "measure_memory_snapshot/0"},
            {memory, "erlang:memory/0"}
        ]
    ],
    print("~nA window opens and closes among ~b processes, in ms~n", [Count]),
    row(["", "took", "longest gap"]),
    [
        row([Name, ms(Ms), ms(Gap)])
     || {Key, Name} <- [
            {look, "looking for other tracers"}, {set, "setting flags"}, {clear, "taking them away"},
            {idle, "nothing"}
        ],
        #{ms := Ms, gap := Gap} <- [proplists:get_value(Key, Window)]
    ],
    print("  Gap: of a process on each scheduler that wakes up every millisecond.~n", []).

%%% Breakdown

%% @doc What of the resident size is unaccounted, in per cent: with no connections, and for each of
%% these counts while they rise to it, with all, while they fall, and without any again.
breakdowns(Counts) ->
    {ok, _} = erlmcp_memory_pool:start_link(),
    None = unaccounted(0, none),
    [None | lists:append([rise_and_fall(Count) || Count <- Counts])].

rise_and_fall(Count) ->
    Half = Count div 2,
    Pool = whereis(erlmcp_memory_pool),
    {ok, First} = ?P:create_test_connections(Half, Pool),
    Rising = unaccounted(Half, rising),
    {ok, Second} = ?P:create_test_connections(Count - Half, Pool),
    There = unaccounted(Count, all),
    ok = ?P:stop_test_connections(First),
    Falling = unaccounted(Count - Half, falling),
    ok = ?P:stop_test_connections(Second),
    [Rising, There, Falling, unaccounted(0, gone)].

unaccounted(Count, Phase) ->
    #{unaccounted := Bytes} = Breakdown = ?P:memory_breakdown(),
    Resident = lists:sum(maps:values(Breakdown)),
    #{connections => Count, phase => Phase, resident => Resident, percent => 100 * Bytes / Resident}.

print_breakdowns(Breakdowns) ->
    print("~nResident memory, and what of it memory_breakdown/0 cannot say~n", []),
    row(["connections", "", "MB", "unknown %"]),
    [
        row([integer_to_list(Count), atom_to_list(Phase), ms(Resident / 1048576), ms(Percent)])
     || #{connections := Count, phase := Phase, resident := Resident, percent := Percent} <- Breakdowns
    ],
    ok.
