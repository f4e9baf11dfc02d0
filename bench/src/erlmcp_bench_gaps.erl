%% @doc How long a scheduler does nothing else while something large is freed.
%%
%% A process bound to each scheduler wakes up every millisecond and looks at the clock. The VM's
%% own `long_schedule' sees processes and ports alone: it does not see destructors, which are
%% auxiliary work of a scheduler.
-module(erlmcp_bench_gaps).

-export([drop/3, idle/1, kinds/0, name/1, warm/2]).
-export([watch/0, longest/1]).

-define(O, erlmcp_connection_optimizer).
%% Milliseconds after which memory that is not back is called lost.
-define(DEADLINE, 60000).

%% What is dropped: chains, each link the last holder of the next; a share that is the last holder
%% of others; and, for comparison, independent objects in the heap of one process: compact states,
%% and two kinds of the VM's own, with a destructor of a NIF library and without.
-type kind() :: chain_of_shares | chain_of_states | share_of_shares | states | zlib | atomics.
%% How it is dropped, and on which scheduler: the one of the process that made it, or another.
-type way() :: collected | killed.
-type scheduler() :: owner | other.
%% Milliseconds: the longest gap, and after how long all memory was back.
-type gap() :: #{gap := float(), back := float() | never}.
-export_type([kind/0, way/0, scheduler/0, gap/0]).

-spec kinds() -> [kind()].
kinds() ->
    [chain_of_shares, chain_of_states, share_of_shares, states, zlib, atomics].

-spec name(kind()) -> string().
name(chain_of_shares) -> "chain of shares";
name(chain_of_states) -> "chain of states";
name(share_of_shares) -> "a share of shares";
name(states) -> "separate states";
name(zlib) -> "VM: zlib:open/0";
name(atomics) -> "VM: atomics:new/2".

make(chain_of_shares, Count) ->
    lists:foldl(fun(N, Next) -> ?O:share([N | Next]) end, 0, lists:seq(1, Count));
make(chain_of_states, Count) ->
    lists:foldl(
        fun(_, Next) -> ?O:update_state_field(?O:create_optimized_state(<<"c">>), next, Next) end,
        none,
        lists:seq(1, Count)
    );
make(share_of_shares, Count) ->
    ?O:share([?O:share({n, N}) || N <- lists:seq(1, Count)]);
make(states, Count) ->
    [?O:create_optimized_state(<<"c">>) || _ <- lists:seq(1, Count)];
make(zlib, Count) ->
    [zlib:open() || _ <- lists:seq(1, Count)];
make(atomics, Count) ->
    [atomics:new(1, []) || _ <- lists:seq(1, Count)].

%% @doc Makes and drops one, so that what is kept once and for all is there before a measurement.
-spec warm(kind(), pos_integer()) -> ok.
warm(Kind, Count) ->
    made(fun() -> make(Kind, Count) end),
    _ = erlmcp_bench_measure:settled_total(),
    ok.

%% @doc Drops one structure of `Count' links, shares or objects.
-spec drop({kind(), pos_integer()}, way(), scheduler()) -> gap().
drop({Kind, Count}, Way, Scheduler) ->
    Before = erlmcp_bench_measure:settled_total(),
    Holder = holder(fun() -> make(Kind, Count) end, Scheduler),
    Held = erlmcp_bench_measure:settled_total() - Before,
    Hearts = watch(),
    Start = erlang:monotonic_time(microsecond),
    case Way of
        collected -> Holder ! drop;
        killed -> exit(Holder, kill)
    end,
    Enough = Before + max(1 bsl 18, Held div 50),
    Back = back(Enough, Start, Start + ?DEADLINE * 1000),
    Gap = longest(Hearts),
    exit(Holder, kill),
    #{gap => Gap, back => Back}.

%% @doc The longest gap in this many milliseconds in which nothing is dropped: what else the machine
%% does.
-spec idle(pos_integer()) -> float().
idle(Ms) ->
    Hearts = watch(),
    timer:sleep(Ms),
    longest(Hearts).

back(Enough, Start, Deadline) ->
    Total = erlang:memory(total),
    case erlang:monotonic_time(microsecond) of
        Now when Total =< Enough -> (Now - Start) / 1000;
        Now when Now >= Deadline -> never;
        _ -> receive after 2 -> back(Enough, Start, Deadline) end
    end.

%% --- who holds it ---

holder(Make, Scheduler) ->
    Self = self(),
    Work =
        case Scheduler of
            owner -> fun() -> hold(Make(), Self) end;
            other -> fun() -> receive {take, Term} -> hold(Term, Self) end end
        end,
    Holder = spawn_opt(Work, [{scheduler, scheduler(Scheduler)}]),
    case Scheduler of
        owner -> ok;
        other -> made(fun() -> Holder ! {take, Make()} end)
    end,
    receive
        {holds, Holder} -> Holder
    end.

scheduler(owner) -> 1;
scheduler(other) -> erlang:system_info(schedulers_online).

%% Runs the fun on the first scheduler, in a process that is gone afterwards.
made(Fun) ->
    {Pid, Monitor} = spawn_opt(Fun, [monitor, {scheduler, 1}]),
    receive
        {'DOWN', Monitor, process, Pid, normal} -> ok
    end.

%% The last holder of the term.
hold(Term, Parent) ->
    true = erlang:garbage_collect(),
    Parent ! {holds, self()},
    receive
        drop -> dropped();
        {never, Term} -> ok
    end.

dropped() ->
    true = erlang:garbage_collect(),
    receive
        never -> ok
    end.

%% --- who watches ---

%% @doc Starts to watch: a process for each scheduler.
-spec watch() -> [pid()].
watch() ->
    Hearts = [
        spawn_opt(fun() -> heart(0, now_ns()) end, [link, {scheduler, N}])
     || N <- lists:seq(1, erlang:system_info(schedulers_online))
    ],
    %% What the start took is not counted.
    timer:sleep(20),
    lists:foreach(fun(Heart) -> Heart ! reset end, Hearts),
    Hearts.

%% @doc The longest gap since then, in milliseconds.
-spec longest([pid()]) -> float().
longest(Hearts) ->
    %% The last gap ends when the process runs again.
    timer:sleep(5),
    Gaps = [
        begin
            Heart ! {longest, self()},
            receive
                {longest, Heart, Longest} -> Longest
            end
        end
     || Heart <- Hearts
    ],
    lists:max(Gaps) / 1.0e6.

heart(Longest, Last) ->
    receive
        reset ->
            heart(0, now_ns());
        {longest, From} ->
            From ! {longest, self(), max(Longest, now_ns() - Last - 1000000)}
    after 1 ->
        Now = now_ns(),
        heart(max(Longest, Now - Last - 1000000), Now)
    end.

now_ns() ->
    erlang:monotonic_time(nanosecond).
