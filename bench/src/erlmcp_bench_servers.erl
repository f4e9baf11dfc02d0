%% @doc `make bench-servers': many parked servers, and what happens when some or all of them wake,
%% start or go idle at once.
%%
%% The servers are plain connections of the example host, started by `erlmcp_memory_server'. Each
%% part runs in a fresh VM. The text that is printed says first what was measured, then which marks
%% are met.
-module(erlmcp_bench_servers).

-export([main/1]).
-export([waking/2, idling/1, broadcast/2, starting/2]).
-export([copied/3]).

-import(erlmcp_bench_measure, [
    in_own_process/1, median/1, nanoseconds/1, percentile/2, settled_total/0
]).
-import(erlmcp_bench_table, [row/1, mark/5, micros/1, ms/1, print/2]).

-define(FORM, erlmcp_host_parked).
-define(SMALL, 3).
%% Servers that start at the same time.
-define(STARTING, 1000).
%% Servers that handle calls all the time.
-define(AWAKE, 20).
%% Processes that hibernate and have their state in ETS.
-define(COPIERS, 500).
-define(LIMIT, 536870912).

%% @doc `Count' servers; one per cent of them wake each second for this many `Seconds'; random work
%% for `SoakSeconds'.
-spec main([string()]) -> ok.
main([CountText, SecondsText, SoakText]) ->
    [Count, Seconds, Soak] = [list_to_integer(Text) || Text <- [CountText, SecondsText, SoakText]],
    print("~b servers, OTP ~s, ~b schedulers~n", [
        Count, erlang:system_info(otp_release), erlang:system_info(schedulers_online)
    ]),
    Waking = [{Tools, run("waking", waking, [Count, {Tools, Seconds}])} || Tools <- [45, 86]],
    print_waking(Waking),
    Idling = run("going idle at once", idling, [Count]),
    print_idling(Idling),
    Broadcast = run("a message to each", broadcast, [Count, 86]),
    Starting = run("starting at once", starting, [Count, 86]),
    print_storms([{"a message to each", Broadcast}, {"starting at once", Starting}]),
    Random = erlmcp_bench_vm:run("random work", erlmcp_bench_servers_soak, run, [Soak]),
    print_random(Random),
    print("~nMarks~n", []),
    [
        mark(3, io_lib:format("from idle, ~b tools, against the VM's copy of the state", [Tools]), at_most,
            later(idle, awake, Times) / later(copy, at_hand, Times), 1.4)
     || {Tools, Times} <- Waking
    ],
    mark(6, "bytes in the second half, per cent", at_most, maps:get(growth, Random), 2.0),
    mark(6, "wrong states and leftovers", at_most, maps:get(wrong, Random), 0),
    mark(6, "going idle at once, longest gap, ms", at_most, maps:get(gap, Idling), 10),
    [
        mark(7, [Name, ", not handled"], at_most, Count - Handled, 0)
     || {Name, #{handled := Handled}} <- [
            {"a message to each", Broadcast}, {"starting at once", Starting}
        ]
    ],
    [
        mark(7, [Name, ", bytes above where it was"], at_most, Peak - Before, 1.3 * ?LIMIT)
     || {Name, #{before := Before, peak := Peak}} <- [
            {"a message to each", Broadcast}, {"starting at once", Starting}
        ]
    ],
    ok.

later(Idle, Awake, Times) ->
    maps:get(Idle, Times) - maps:get(Awake, Times).

run(What, Function, Arguments) ->
    erlmcp_bench_vm:run(What, ?MODULE, Function, Arguments).

%% --- one per cent wakes each second ---

%% @doc Medians in nanoseconds of a `tools/call': `awake' and from `idle', with the latter's `p99';
%% of a call to a process that hibernates with its state in ETS, and copies it when it wakes
%% (`copy', and `at_hand' without the copy); and of copies of the state one after the other (`hot').
-spec waking(pos_integer(), {pos_integer(), pos_integer()}) -> #{atom() => number()}.
waking(Count, {Number, Seconds}) ->
    Tools = erlmcp_bench_tools:generate(Number),
    Pids = list_to_tuple(start(Count, Tools)),
    lists:foreach(fun erlmcp_bench_form:asleep/1, tuple_to_list(Pids)),
    State = sys:get_state(element(1, Pids)),
    Hot = copy_time(State),
    Table = ets:new(states, [public, {read_concurrency, true}]),
    %% Each copies one of its own.
    Copiers = list_to_tuple([copier(Table, N, State) || N <- lists:seq(1, ?COPIERS)]),
    Call = erlmcp_bench_messages:call(1, lists:nth(Number div 2, Tools)),
    Every = max(1, 100_000 div Count),
    %% Awake ones beside: the same call, again and again.
    Awake = spawn_link(fun() -> ask_awake(element(Count, Pids), Call, []) end),
    End = erlang:monotonic_time(millisecond) + Seconds * 1000,
    Idle = ask_idle({Pids, Copiers}, Call, Every, End, []),
    Awake ! {times, self()},
    Times = receive {times, T} -> T end,
    {Ours, Copies, AtHand} = lists:unzip3(Idle),
    #{
        hot => Hot,
        copy => median(Copies),
        at_hand => median(AtHand),
        awake => median(Times),
        idle => median(Ours),
        p99 => percentile(99, Ours),
        calls => length(Idle)
    }.

ask_idle({Pids, Copiers} = Who, Call, Every, End, Times) ->
    case erlang:monotonic_time(millisecond) of
        Now when Now >= End ->
            Times;
        Now ->
            Pid = element(rand:uniform(tuple_size(Pids) - 1), Pids),
            Time = call_time(Pid, Call),
            Copier = element(rand:uniform(tuple_size(Copiers)), Copiers),
            Copied = nanoseconds(fun() -> ok = gen_server:call(Copier, copy) end),
            AtHand = nanoseconds(fun() -> ok = gen_server:call(Copier, copy) end),
            Left = Now + Every - erlang:monotonic_time(millisecond),
            Left > 0 andalso timer:sleep(Left),
            ask_idle(Who, Call, Every, End, [{Time, Copied, AtHand} | Times])
    end.

ask_awake(Pid, Call, Times) ->
    receive
        {times, From} -> From ! {times, Times}
    after 5 ->
        ask_awake(Pid, Call, [call_time(Pid, Call) | Times])
    end.

call_time(Pid, Call) ->
    nanoseconds(fun() -> erlmcp_host:request(Pid, Call) end).

copier(Table, N, State) ->
    true = ets:insert(Table, {N, State}),
    spawn_link(fun() -> asleep(Table, N) end).

%% As long awake as a parked server with default settings.
asleep(Table, N) ->
    proc_lib:hibernate(?MODULE, copied, [Table, N, none]).

%% @private
copied(Table, N, State) ->
    receive
        {'$gen_call', From, copy} when State =:= none ->
            [{N, Copy}] = ets:lookup(Table, N),
            gen_server:reply(From, ok),
            copied(Table, N, Copy);
        {'$gen_call', From, copy} ->
            gen_server:reply(From, ok),
            copied(Table, N, State)
    after 1000 -> asleep(Table, N)
    end.

%% `ets:lookup' copies a term as fast as the VM can. In a process of its own each time, as one that
%% wakes with an empty heap.
copy_time(State) ->
    Table = ets:new(copy, [public]),
    true = ets:insert(Table, {state, State}),
    Lookup = fun() -> nanoseconds(fun() -> [{state, _}] = ets:lookup(Table, state) end) end,
    median([in_own_process(Lookup) || _ <- lists:seq(1, 301)]).

%% --- all go idle at once ---

%% @doc Small servers, all awake, get a message each within a second; then nobody says anything
%% but to some who are asked all the time.
-spec idling(pos_integer()) -> #{atom() => number()}.
idling(Count) ->
    %% All of them have room.
    ok = application:set_env(erlmcp_memory, awake_memory_limit, 1 bsl 40),
    ok = application:set_env(erlmcp_memory, connection_idle_after, 2000),
    Tools = erlmcp_bench_tools:generate(?SMALL),
    Call = erlmcp_bench_messages:call(1, hd(Tools)),
    Pids = start(Count, Tools),
    Awake = start(?AWAKE, Tools),
    Calm = calls(Awake, Call, 2000),
    lists:foreach(fun erlmcp_host:idle/1, Pids),
    Hearts = erlmcp_bench_gaps:watch(),
    Start = erlang:monotonic_time(millisecond),
    Parked = spawn_monitor(fun() -> lists:foreach(fun erlmcp_bench_form:asleep/1, Pids) end),
    Times = calls_until(Parked, Awake, Call, []),
    Took = erlang:monotonic_time(millisecond) - Start,
    Gap = erlmcp_bench_gaps:longest(Hearts),
    #{
        gap => Gap,
        took => Took,
        calm => percentile(99, Calm),
        p99 => percentile(99, Times),
        calls => length(Times)
    }.

calls(Pids, Call, Ms) ->
    {_, Monitor} = spawn_monitor(fun() -> timer:sleep(Ms) end),
    calls_until({timer, Monitor}, Pids, Call, []).

calls_until({_, Monitor} = Until, Pids, Call, Times) ->
    receive
        {'DOWN', Monitor, process, _, normal} -> Times
    after 1 ->
        calls_until(Until, Pids, Call, [call_time(Pid, Call) || Pid <- Pids] ++ Times)
    end.

%% --- storms ---

%% @doc Each parked server gets a request, as fast as they can be sent; all must reply.
-spec broadcast(pos_integer(), pos_integer()) -> #{atom() => number()}.
broadcast(Count, Number) ->
    Tools = erlmcp_bench_tools:generate(Number),
    Pids = start(Count, Tools),
    lists:foreach(fun erlmcp_bench_form:asleep/1, Pids),
    Subscribe = erlmcp_bench_messages:subscribe(9, <<"file:///srv/example/documents/9.md">>),
    storm(fun() ->
        Requests = lists:foldl(
            fun(Pid, Ids) -> gen_server:send_request(Pid, {message, Subscribe}, Pid, Ids) end,
            gen_server:reqids_new(),
            Pids
        ),
        replies(Requests, 0)
    end).

replies(Requests, Handled) ->
    case gen_server:wait_response(Requests, 600_000, true) of
        no_request -> Handled;
        {{reply, _}, _, Left} -> replies(Left, Handled + 1)
    end.

%% @doc Starts this many servers, always many of them at the same time.
-spec starting(pos_integer(), pos_integer()) -> #{atom() => number()}.
starting(Count, Number) ->
    #{resources := Resources, prompts := Prompts} =
        Config = erlmcp_host:config(erlmcp_bench_tools:generate(Number)),
    %% Decoded one by one by who starts a server, as a host does that reads them: a thousand copies
    %% of all are not what is measured.
    Requests = [
        term_to_binary(Request)
     || Request <-
            [{add_tool, Tool, Handler} || {Tool, Handler} <- maps:get(tools, Config)] ++
                [{add_resource, R} || R <- maps:values(Resources)] ++
                [{add_prompt, P} || P <- maps:values(Prompts)]
    ],
    Server = maps:with([id, capabilities], Config),
    Start = fun(N) ->
        {ok, Pid} = erlmcp_memory_server:start(erlmcp_host_plain, {integer_to_binary(N), Server}, []),
        lists:foreach(fun(R) -> ok = gen_server:call(Pid, binary_to_term(R), infinity) end, Requests),
        opened(Pid, N)
    end,
    storm(fun() ->
        Starters = [
            spawn_monitor(fun() ->
                exit({started, length([Start(N) || N <- lists:seq(First, Count, ?STARTING)])})
            end)
         || First <- lists:seq(1, ?STARTING)
        ],
        lists:sum([
            receive {'DOWN', Monitor, process, _, {started, Started}} -> Started end
         || {_, Monitor} <- Starters
        ])
    end).

%% Handled messages, milliseconds, bytes before, at the peak and afterwards.
storm(Fun) ->
    Before = settled_total(),
    Watcher = spawn_link(fun() -> peak(Before) end),
    Hearts = erlmcp_bench_gaps:watch(),
    {Micros, Handled} = timer:tc(Fun),
    Gap = erlmcp_bench_gaps:longest(Hearts),
    Watcher ! {peak, self()},
    Peak = receive {peak, P} -> P end,
    timer:sleep(3000),
    #{
        handled => Handled,
        ms => Micros div 1000,
        before => Before,
        peak => Peak,
        afterwards => settled_total(),
        gap => Gap
    }.

peak(Highest) ->
    receive
        {peak, From} -> From ! {peak, Highest}
    after 5 ->
        peak(max(Highest, erlang:memory(total)))
    end.

%% Servers that went through an opening, started on all schedulers. They outlive the processes that
%% start them.
start(Count, Tools) ->
    Catalogue = ?FORM:catalogue(erlmcp_host:config(Tools)),
    Starters = erlang:system_info(schedulers_online),
    Monitors = [
        spawn_monitor(fun() ->
            exit({started, [start_one(N, Catalogue) || N <- lists:seq(First, Count, Starters)]})
        end)
     || First <- lists:seq(1, min(Starters, Count))
    ],
    lists:append([
        receive {'DOWN', Monitor, process, _, {started, Pids}} -> Pids end
     || {_, Monitor} <- Monitors
    ]).

start_one(N, Catalogue) ->
    {ok, Pid} = erlmcp_host:start_link(?FORM, integer_to_binary(N), Catalogue),
    true = unlink(Pid),
    opened(Pid, N).

opened(Pid, N) ->
    [_ = erlmcp_host:request(Pid, M) || M <- erlmcp_bench_messages:opening(N)],
    Pid.

%% --- tables ---

print_waking(Waking) ->
    print("~nA tools/call while one per cent of the servers wake each second~n", []),
    row(["", "awake", "from idle", "p99", "with ETS", "ets:lookup", "calls"]),
    [
        row([
            io_lib:format("~b tools", [Tools]),
            micros(maps:get(awake, Times)),
            micros(maps:get(idle, Times)),
            micros(maps:get(p99, Times)),
            micros(later(copy, at_hand, Times)),
            micros(maps:get(hot, Times)),
            integer_to_list(maps:get(calls, Times))
        ])
     || {Tools, Times} <- Waking
    ],
    print("  with ETS: what a process takes longer that hibernates with its state in ETS, and copies~n"
          "  it when it wakes, at the same pace. ets:lookup: copies of one state in a row.~n", []).

print_idling(#{gap := Gap, took := Took, calm := Calm, p99 := P99, calls := Calls}) ->
    print("~nAll go idle at once, with ~b tools each~n", [?SMALL]),
    row(["", "all parked", "longest gap", "p99 of calls", "(quiet)", "calls"]),
    row(["", [ms(Took), " ms"], [ms(Gap), " ms"], micros(P99), micros(Calm), integer_to_list(Calls)]).

print_storms(Storms) ->
    print("~nStorms, ~b bytes allowed to be awake; MB~n", [?LIMIT]),
    row(["", "handled", "seconds", "before", "peak", "afterwards", "longest gap"]),
    [
        row([Name, integer_to_list(Handled), ms(Ms / 1000)] ++
            [ms(Bytes / 1048576) || Bytes <- [Before, Peak, Afterwards]] ++ [[ms(Gap), " ms"]])
     || {Name, #{
            handled := Handled, ms := Ms, before := Before, peak := Peak,
            afterwards := Afterwards, gap := Gap
        }} <- Storms
    ].

print_random(#{operations := Operations, crashes := Crashes, growth := Growth, wrong := Wrong}) ->
    print("~nRandom work: ~b operations, ~b crashes, ~b wrong states or leftovers, ~.2f % growth~n", [
        Operations, Crashes, Wrong, Growth
    ]).
