%% @doc The longest pauses on a node while something is done: of processes that have nothing to do
%% but to wake up every millisecond, of garbage collections, and of time slices.
-module(erlmcp_bench_pause).

-export([watch/1]).

%% Milliseconds. `heartbeat': the longest that a heartbeat was late, one process a scheduler;
%% `gc': the longest collection of any process; `slice': the longest uninterrupted run of any
%% process or port, 0 when none took 2 ms; `collections': how many there were.
-type pauses() :: #{heartbeat := float(), gc := float(), slice := number(), collections := integer()}.
-export_type([pauses/0]).

%% @doc Runs the fun in the calling process and returns the pauses of the node during it.
-spec watch(fun(() -> term())) -> pauses().
watch(Fun) ->
    ok = erlmcp_memory_profiler:start_profiling(#{interval_ms => 600000, gc => always}),
    Slices = spawn_link(fun() -> slices(0) end),
    undefined = erlang:system_monitor(Slices, [{long_schedule, 2}]),
    Hearts = [spawn_link(fun() -> heart(0) end) || _ <- lists:seq(1, erlang:system_info(schedulers))],
    timer:sleep(100),
    %% What switching all this on took is not counted.
    lists:foreach(fun(Pid) -> Pid ! reset end, [Slices | Hearts]),
    _ = Fun(),
    Late = lists:max([ask(Heart) || Heart <- Hearts]),
    Slice = ask(Slices),
    _ = erlang:system_monitor(undefined),
    #{gc := #{collections := Collections, pause_ms := #{max := Gc}}} =
        erlmcp_memory_profiler:stop_profiling(),
    #{heartbeat => Late / 1.0e6, gc => Gc, slice => Slice, collections => Collections}.

ask(Pid) ->
    Pid ! {longest, self()},
    receive
        {longest, Pid, Longest} -> Longest
    end.

heart(Longest) ->
    Start = erlang:monotonic_time(nanosecond),
    receive
        reset -> heart(0);
        {longest, From} -> From ! {longest, self(), Longest}
    after 1 ->
        heart(max(Longest, erlang:monotonic_time(nanosecond) - Start - 1000000))
    end.

slices(Longest) ->
    receive
        reset -> slices(0);
        {longest, From} -> From ! {longest, self(), Longest};
        {monitor, _Who, long_schedule, Info} -> slices(max(Longest, proplists:get_value(timeout, Info)))
    end.
