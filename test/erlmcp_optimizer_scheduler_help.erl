%% What the suite of schedulers shares: attempts, and the counters behind binaries.
-module(erlmcp_optimizer_scheduler_help).

-export([attempts/2, counters/2, gap_is_bounded/2, on_two_schedulers/0]).

%% Until an attempt returns ok: a fault is there in all of them, what else the machine does is not.
attempts(Count, Attempt) ->
    attempts(Count, Attempt, []).

attempts(0, _Attempt, Seen) ->
    ct:fail(lists:reverse(Seen));
attempts(Left, Attempt, Seen) ->
    case Attempt() of
        ok -> ok;
        Why -> attempts(Left - 1, Attempt, [Why | Seen])
    end.

%% No gap is longer than 10 ms; or, on a machine that is busy, than three times those of the idle
%% node, or than the collection of as many separate states takes, which is one piece of the VM's own work. A
%% chain that is freed in one piece makes a gap of some 60 ms, each time.
gap_is_bounded(Kind, Count) ->
    ok = erlmcp_bench_gaps:warm(Kind, Count),
    [
        attempts(8, fun() -> gap(Kind, Count, How, On) end)
     || How <- [collected, killed], On <- [owner, other]
    ],
    ok.

gap(Kind, Count, How, On) ->
    case erlmcp_bench_gaps:drop({Kind, Count}, How, On) of
        #{back := never} = Lost ->
            {How, On, Lost};
        #{gap := Gap} when Gap =< 10 ->
            ok;
        #{gap := Gap, back := Back} ->
            Idle = erlmcp_bench_gaps:idle(max(500, round(Back))),
            #{gap := Separate} = erlmcp_bench_gaps:drop({states, Count}, How, On),
            ct:pal("~p ~p ~p: ~.1f ms, idle ~.1f, separate ~.1f", [
                Kind, How, On, Gap, Idle, Separate
            ]),
            case Gap =< max(3 * Idle, Separate) of
                true -> ok;
                false -> {How, On, #{gap => Gap, idle => Idle, separate => Separate}}
            end
    end.

%% The counters behind what Fun() returns in a process of that scheduler, by address and size, while
%% the process holds it. None for what lies on its heap.
counters(Scheduler, Fun) ->
    Self = self(),
    {Pid, Monitor} = spawn_opt(
        fun() ->
            Held = Fun(),
            true = erlang:garbage_collect(),
            {binary, Binaries} = process_info(self(), binary),
            Counters = [{Address, Size} || {Address, Size, _References} <- Binaries],
            Self ! {counters, self(), lists:usort(Counters)},
            receive
                {stop, Held} -> ok
            end
        end,
        [monitor, {scheduler, Scheduler}]
    ),
    receive
        {counters, Pid, Addresses} -> {Pid, Addresses};
        {'DOWN', Monitor, process, Pid, Reason} -> ct:fail(Reason)
    end.

%% For cases that need them.
on_two_schedulers() ->
    case erlang:system_info(schedulers_online) of
        1 -> {skip, "one scheduler"};
        _ -> ok
    end.
