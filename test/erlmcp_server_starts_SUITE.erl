%% Servers that start while memory is short, and those that are idle then.
-module(erlmcp_server_starts_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_server_help).
-define(SCRIPT, erlmcp_server_script).
-define(S, erlmcp_memory_server).
-define(NIF, erlmcp_memory_nif).
-define(PARKING, erlmcp_memory_parking).
-define(MB, 1048576).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        servers_that_start_at_once_stay_within_the_limit,
        machines_that_start_at_once_stay_within_the_limit,
        a_server_that_starts_others_does_not_wait_for_ever,
        a_start_that_waits_ends_with_its_parent,
        a_start_that_waits_is_traced_and_named,
        a_starter_that_waits_for_a_time_gets_its_server,
        a_limit_that_is_raised_lets_all_start,
        what_is_expected_of_a_server_is_learned,
        a_server_counts_as_expected_until_it_is_idle,
        a_server_that_never_parks_counts_as_it_is,
        idle_servers_park_sooner_when_a_quarter_of_the_limit_is_awake
    ].

init_per_testcase(_Case, Config) ->
    process_flag(trap_exit, true),
    ok = ?HELP:no_peak(),
    Config.

end_per_testcase(Case, Config) ->
    erlmcp_server_faults_SUITE:end_per_testcase(Case, Config).

limit(Bytes) ->
    application:set_env(erlmcp, awake_memory_limit, Bytes).

%% Grows by this much with each call.
grown(Server, Times) ->
    lists:foreach(
        fun(N) ->
            Add = fun(_, State) -> {reply, N, [{N, lists:seq(N, N + 1000)} | State]} end,
            N = gen_server:call(Server, {do, Add}, infinity)
        end,
        lists:seq(1, Times)
    ).

expect(Bytes) ->
    [ok = ?NIF:started(Bytes) || _ <- lists:seq(1, 100)],
    ok.

%% Half a megabyte each, of three hundred.
servers_that_start_at_once_stay_within_the_limit(_Config) ->
    Limit = 16 * ?MB,
    at_once_within(Limit, 300, fun() ->
        {ok, Server} = ?S:start(?SCRIPT, [], []),
        grown(Server, 15),
        true = 15 =:= length(gen_server:call(Server, get, infinity)),
        exit(Server, kill)
    end).

machines_that_start_at_once_stay_within_the_limit(_Config) ->
    Limit = 4 * ?MB,
    Script = erlmcp_server_statem_script,
    at_once_within(Limit, 100, fun() ->
        Args = {state_functions, Script:data(self()), {ok, a, '$same'}},
        {ok, Machine} = erlmcp_memory_statem:start(Script, Args, []),
        {a, #{n := 0}} = gen_statem:call(Machine, get),
        exit(Machine, kill)
    end).

at_once_within(Limit, Count, Do) ->
    %% Code is not loaded while they wait for each other.
    Do(),
    limit(Limit),
    ok = expect(?MB),
    Start = erlang:monotonic_time(millisecond),
    Most = erlmcp_server_faults_SUITE:most_awake(fun() -> all_at_once(Count, Do) end),
    Took = erlang:monotonic_time(millisecond) - Start,
    %% Every 20 ms, one is let in whatever is awake.
    ?assert(Most < 2 * Limit + Took div 20 * ?MB, {Most, Took}).

all_at_once(Count, Do) ->
    Started = [spawn_monitor(Do) || _ <- lists:seq(1, Count)],
    [
        receive
            {'DOWN', Monitor, _, _, Reason} -> ?assertEqual(normal, Reason)
        end
     || {_, Monitor} <- Started
    ].

%% The limit is reached by the first one alone, and each waits for the next.
a_server_that_starts_others_does_not_wait_for_ever(_Config) ->
    limit(0),
    {ok, Server} = ?S:start_link(?SCRIPT, nested(20), []),
    ?assertEqual(20, gen_server:call(Server, get, infinity)).

nested(0) ->
    0;
nested(Depth) ->
    fun() ->
        {ok, Next} = ?S:start_link(?SCRIPT, nested(Depth - 1), []),
        {ok, gen_server:call(Next, get, infinity) + 1}
    end.

%% Nothing is let in while it holds this.
with_nothing_left(Do) ->
    limit(0),
    Slot = ?NIF:slot_new(),
    _ = ?NIF:slot_awake(Slot, ?MB),
    Do(Slot),
    _ = ?NIF:slot_awake(Slot, 0),
    ok.

%% A thousand start, of which one is let in now and then.
waiting(Parent) ->
    Starters = [
        spawn(fun() ->
            Parent andalso process_flag(trap_exit, true),
            _ = ?S:start_link(?SCRIPT, s, [])
        end)
     || _ <- lists:seq(1, 1000)
    ],
    Waits = fun() -> [Pid || Pid <- processes(), sleeps(Pid)] end,
    erlmcp_wait_help:until(fun() -> length(Waits()) > 10 end),
    {Starters, Waits}.

sleeps(Pid) ->
    process_info(Pid, current_function) =:= {current_function, {erlmcp_memory_wait, sleep, 3}}.

a_start_that_waits_ends_with_its_parent(_Config) ->
    with_nothing_left(fun(Slot) ->
        {Starters, Waits} = waiting(false),
        [exit(Starter, kill) || Starter <- Starters],
        erlmcp_wait_help:until(fun() -> Waits() =:= [] end),
        %% None of them is counted as waiting: the pause is the shortest.
        erlmcp_wait_help:until(fun() ->
            case ?NIF:slot_start(?NIF:slot_new(), 0) of
                {false, 2} -> true;
                _ -> false
            end
        end),
        ?assert(is_reference(Slot))
    end).

a_start_that_waits_is_traced_and_named(_Config) ->
    with_nothing_left(fun(_Slot) ->
        {Starters, Waits} = waiting(true),
        [One | _] = Waits(),
        ?assertEqual({?SCRIPT, init, 1}, proc_lib:translate_initial_call(One)),
        [exit(Starter, kill) || Starter <- Starters]
    end).

a_starter_that_waits_for_a_time_gets_its_server(_Config) ->
    ?assertEqual(infinity, ?PARKING:start_wait([])),
    ?assertEqual(infinity, ?PARKING:start_wait([{timeout, infinity}])),
    ?assertEqual(5000, ?PARKING:start_wait([{timeout, 10001}])),
    with_nothing_left(fun(_Slot) ->
        Options = [{idle_after, 1000}],
        %% It has waited long enough.
        ?assertMatch({started, _}, ?PARKING:start(0, ?PARKING:new(Options))),
        Waits = [?PARKING:start(7, ?PARKING:new(Options)) || _ <- lists:seq(1, 50)],
        Sleeps = [{Ms, Left} || {sleep, Ms, Left} <- Waits],
        ?assert(length(Sleeps) > 0),
        [?assert(Ms > 0 andalso Ms + Left =:= 7) || {Ms, Left} <- Sleeps],
        {ok, Server} = ?S:start_link(?SCRIPT, s, [{timeout, 20000}]),
        s = gen_server:call(Server, get)
    end).

%% Those that wait see the new limit. At the pace of one in 20 ms,
%% a thousand would take 20 seconds.
a_limit_that_is_raised_lets_all_start(_Config) ->
    with_nothing_left(fun(_Slot) ->
        {Starters, Waits} = waiting(true),
        Left = length(Waits()),
        Raised = erlang:monotonic_time(millisecond),
        limit(1 bsl 40),
        erlmcp_wait_help:until(fun() -> Waits() =:= [] end),
        Took = erlang:monotonic_time(millisecond) - Raised,
        ct:pal("~b started in ~b ms", [Left, Took]),
        ?assert(Left < 100 orelse Took < Left * 20, {Left, Took}),
        [exit(Starter, kill) || Starter <- Starters]
    end).

what_is_expected_of_a_server_is_learned(_Config) ->
    ok = expect(50 * ?MB),
    limit(1 bsl 40),
    [{ok, _} = ?S:start_link(?SCRIPT, s, []) || _ <- lists:seq(1, 200)],
    erlmcp_wait_help:until(fun() -> ?NIF:awake_bytes() =:= 0 end),
    {true, Bytes} = ?NIF:slot_start(?NIF:slot_new(), infinity),
    ?assert(Bytes < 100000, Bytes).

a_server_counts_as_expected_until_it_is_idle(_Config) ->
    ok = expect(10 * ?MB),
    limit(1 bsl 40),
    {ok, Server} = ?S:start_link(?SCRIPT, s, [{idle_after, 3600000}]),
    s = gen_server:call(Server, get),
    erlmcp_wait_help:until(fun() -> ?NIF:awake_bytes() < 100000 end),
    %% It waits on with its state awake.
    ?assert(?NIF:awake_bytes() > 0),
    {current_function, {Module, _, _}} = process_info(Server, current_function),
    ?assertEqual(erlmcp_memory_wait, Module),
    %% And one that hibernates.
    ok = gen_server:stop(Server),
    {ok, Other} = ?S:start_link(?SCRIPT, fun() -> {ok, s, hibernate} end, [{idle_after, 3600000}]),
    ?HELP:hibernates(Other),
    erlmcp_wait_help:until(fun() -> ?NIF:awake_bytes() < 100000 end).

a_server_that_never_parks_counts_as_it_is(_Config) ->
    ok = expect(10 * ?MB),
    limit(1 bsl 40),
    {ok, Server} = ?S:start_link(?SCRIPT, s, [{idle_after, infinity}]),
    s = gen_server:call(Server, get),
    erlmcp_wait_help:until(fun() -> ?NIF:awake_bytes() < 100000 end).

idle_servers_park_sooner_when_a_quarter_of_the_limit_is_awake(_Config) ->
    ok = expect(10000),
    Large = lists:seq(1, 100000),
    limit(1 bsl 40),
    {ok, Server} = ?S:start_link(?SCRIPT, Large, [{idle_after, 3600000}]),
    Large = gen_server:call(Server, get),
    erlmcp_wait_help:until(fun() -> process_info(Server, status) =:= {status, waiting} end),
    timer:sleep(300),
    Bytes = ?NIF:awake_bytes(),
    ?assert(Bytes > ?MB),
    %% More than a quarter of the limit, and less than seven eighths.
    limit(Bytes * 3 div 2),
    Large = gen_server:call(Server, get),
    ok = ?HELP:parked(Server),
    ?assert(Large =:= gen_server:call(Server, get)).
