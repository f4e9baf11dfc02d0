%% @private
%% @doc The load simulation: `erlmcp_memory_profiler:simulate_100k_load/2'.
%%
%% The run is a separate process that monitors its caller. It starts clients, which start the
%% connections and act as their clients, and tells them what to do: connect a batch, do a round,
%% close. Whatever happens, it ends in the same way: the clients close what they have connected,
%% then the profiler is stopped and, if the run started it, the pool. If the run itself is killed,
%% its clients end through their links, and the connections through their monitors.
-module(erlmcp_memory_load_simulation).

-export([run/2]).
-export([init/3]).

-export_type([options/0]).

-define(NIF, erlmcp_memory_nif).
-define(POOL, erlmcp_memory_pool).
-define(BATCH, 10000).
%% How long, in milliseconds, late releases (references to be collected, memory that another thread
%% frees) may take before they count as left over.
-define(PATIENCE, 20000).
-define(POLL, 100).

-type options() :: #{progress := boolean(), rounds := non_neg_integer(), drivers := pos_integer()}.

-record(run, {
    caller :: reference(),
    count :: pos_integer(),
    rounds :: non_neg_integer(),
    counter :: erlmcp_memory_load_client:progress(),
    shown :: erlmcp_memory_load_progress:progress() | none,
    clients :: [pid()],
    before :: erlmcp_memory_load_result:measured()
}).

%% @doc Runs it. Returns at once if it cannot be run.
-spec run(pos_integer(), options()) -> erlmcp_memory_load_result:result() | {error, term()}.
run(Count, Options) ->
    Caller = self(),
    {Run, Monitor} = spawn_monitor(?MODULE, init, [Count, Options, Caller]),
    receive
        {'DOWN', Monitor, process, Run, {?MODULE, Result}} -> Result;
        {'DOWN', Monitor, process, Run, Reason} -> exit(Reason)
    end.

%% @private
-spec init(pos_integer(), options(), pid()) -> no_return().
init(Count, Options, Caller) ->
    exit({?MODULE, start(Count, Options, Caller)}).

start(Count, Options, Caller) ->
    case erlmcp_memory_sample:total() of
        {ok, _} -> start(Count, Options, Caller, erlmcp_memory_load_test_connections:room());
        {error, notsup} -> {error, notsup}
    end.

start(Count, Options, Caller, Room) ->
    try register(?MODULE, self()) andalso whereis(erlmcp_memory_sampler) of
        _ when Count > Room -> {error, {too_many_connections, Room}};
        undefined -> whole(Count, Options, monitor(process, Caller));
        _Sampler -> {error, profiling_in_progress}
    catch
        error:badarg -> {error, simulation_in_progress}
    end.

whole(Count, Options, Caller) ->
    false = process_flag(trap_exit, true),
    Start = now_ms(),
    ok = load(),
    true = erlang:garbage_collect(),
    Before = erlmcp_memory_load_result:measure(),
    Ran = with_pool(fun() ->
        #{acquired := Acquired} =
            Lived = with_profiler(fun() -> life(Count, Options, Caller, Before) end),
        %% Without the sampler, which may have listed all processes.
        Lived#{afterwards => returned(Before, Acquired, now_ms() + ?PATIENCE)}
    end),
    case Ran of
        {error, _} ->
            Ran;
        #{clients := Clients} ->
            Left = processes_left([self() | Clients], now_ms() + ?PATIENCE),
            erlmcp_memory_load_result:of_run(Count, Before, Ran#{
                processes_left => Left, duration_ms => now_ms() - Start
            })
    end.

%% Code that is loaded during the run would be counted as the connections' memory.
load() ->
    lists:foreach(
        fun(Module) -> {module, Module} = code:ensure_loaded(Module) end,
        [
            ?NIF,
            ?POOL,
            erlmcp_connection_optimizer,
            erlmcp_memory_load_connection,
            erlmcp_memory_load_client,
            erlmcp_memory_load_protocol,
            erlmcp_memory_load_result,
            erlmcp_memory_pauses,
            erlmcp_memory_load_progress,
            erlmcp_memory_sampler,
            erlmcp_memory_sample
        ]
    ).

%%% What a run uses of the node

%% Calls Fun() with a pool: the running one, or one that is started for this run.
with_pool(Fun) ->
    case ?POOL:start_link() of
        {ok, Pool} ->
            {Result, ok} = finally(Fun, fun() -> stop_pool(Pool) end),
            Result#{pool_started => true};
        {error, {already_started, _}} ->
            Result = Fun(),
            Result#{pool_started => false};
        {error, _} = Error ->
            Error
    end.

stop_pool(Pool) ->
    try
        gen_server:stop(Pool)
    catch
        exit:_ ->
            %% It was killed in between; the pool that it opened must be closed all the same, unless
            %% it has a successor.
            case whereis(?POOL) of
                undefined -> ?NIF:pool_stop();
                _ -> ok
            end
    end.

%% Calls Fun() while collections are measured, or not measured if another tracer is active.
with_profiler(Fun) ->
    Options = (erlmcp_memory_sampler:defaults())#{interval_ms => 1000, gc => always},
    Unmeasured =
        case erlmcp_memory_sampler:start(Options) of
            ok ->
                none;
            {error, Reason} ->
                ok = erlmcp_memory_sampler:start(Options#{gc => false}),
                Reason
        end,
    Session = ?NIF:profiler_session(),
    {Result, Gc} = finally(Fun, fun() -> stop_profiler(Session) end),
    Result#{
        gc =>
            case Gc of
                #{measured := true} -> Gc;
                _ when Unmeasured =/= none -> {unmeasured, Unmeasured};
                #{measured := false} -> {unmeasured, trace_flags_cleared};
                none -> {unmeasured, session_replaced}
            end
    }.

%% Another session may have been started in between, which ended this one.
stop_profiler(Session) ->
    case ?NIF:profiler_session() =:= Session andalso erlmcp_memory_sampler:stop() of
        ok -> erlmcp_memory_pauses:gc();
        _ -> none
    end.

%%% The life of the connections

life(Count, #{progress := Shows, rounds := Rounds, drivers := Clients}, Caller, Before) ->
    Counter = erlmcp_memory_load_client:progress(),
    Capabilities = erlmcp_memory_load_protocol:capabilities(),
    Meters = maps:from_list([{Name, ?NIF:histogram_new()} || Name <- [acquire, update, message]]),
    Context = Meters#{
        run => self(),
        progress => Counter,
        capabilities => Capabilities,
        share => erlmcp_connection_optimizer:share(Capabilities)
    },
    Run = #run{
        caller = Caller,
        count = Count,
        rounds = Rounds,
        counter = Counter,
        shown =
            case Shows of
                %% Every connection is connected and closed.
                true -> erlmcp_memory_load_progress:start(Counter, Count * (Rounds + 2));
                false -> none
            end,
        clients = [
            erlmcp_memory_load_client:start_link(Context)
         || _ <- lists:seq(1, min(Count, Clients))
        ],
        before = Before
    },
    {Lived, Errors} = finally(fun() -> lived(Run) end, fun() -> close(Run) end),
    #{acquire := #{count := Acquired}} =
        Latency = maps:map(fun(_, Meter) -> ?NIF:histogram_read(Meter) end, Meters),
    Lived#{
        latency => Latency,
        clients => Run#run.clients,
        errors => erlmcp_memory_load_client:count(errors, Counter),
        first_errors => Errors,
        acquired => Acquired
    }.

lived(#run{count = Count, rounds = Rounds} = Run) ->
    Batches = [batch(Batch, Run) || Batch <- lists:seq(1, (Count - 1) div ?BATCH + 1)],
    lists:foreach(
        fun(Round) ->
            ok = shows(Run, "round ~b of ~b", [Round, Rounds], Count),
            ok = all({round, Round}, Run)
        end,
        lists:seq(1, Rounds)
    ),
    #{batches => Batches, peak => settled()}.

batch(Batch, #run{count = Count, clients = Clients, before = Before} = Run) ->
    First = (Batch - 1) * ?BATCH + 1,
    Last = min(Count, Batch * ?BATCH),
    Batches = (Count - 1) div ?BATCH + 1,
    ok = shows(Run, "connect, batch ~b of ~b", [Batch, Batches], Last - First + 1),
    Step = length(Clients),
    Orders = [
        erlmcp_memory_load_client:order(Client, {connect, lists:seq(Start, Last, Step)})
     || {Client, Start} <- lists:zip(Clients, lists:seq(First, First + Step - 1)), Start =< Last
    ],
    ok = await(Orders, Run),
    erlmcp_memory_load_result:of_batch(Batch, Last, Before, erlmcp_memory_load_result:measure()).

all(Order, #run{clients = Clients} = Run) ->
    await([erlmcp_memory_load_client:order(Client, Order) || Client <- Clients], Run).

await([], _Run) ->
    ok;
await([Order | Orders], #run{caller = Caller, clients = Clients} = Run) ->
    receive
        {Order, _Errors} ->
            await(Orders, Run);
        {'DOWN', Caller, process, _, _} ->
            exit(caller_gone);
        {'EXIT', Pid, Reason} ->
            case lists:member(Pid, Clients) of
                true -> exit({driver, Reason});
                %% The pool's; states live on without it.
                false -> await([Order | Orders], Run)
            end
    end.

%% Interrupts the clients, has them close what is connected, and ends them. Returns the first errors
%% of the run.
close(#run{count = Count, counter = Counter, clients = Clients, shown = Shown} = Run) ->
    ok = erlmcp_memory_load_client:abort(Counter),
    ok = shows(Run, "close", [], Count),
    Orders = [
        {Client, monitor(process, Client), erlmcp_memory_load_client:order(Client, close)}
     || Client <- Clients
    ],
    Errors = [
        receive
            {Order, Errors} ->
                exit(Client, kill),
                receive
                    {'DOWN', Monitor, process, Client, _} -> Errors
                end;
            {'DOWN', Monitor, process, Client, Reason} ->
                [{driver, Reason}]
        end
     || {Client, Monitor, Order} <- Orders
    ],
    ok = erlmcp_memory_load_progress:stop(Shown),
    lists:sublist(lists:append(Errors), 10).

shows(#run{shown = Shown}, Format, Arguments, Steps) ->
    erlmcp_memory_load_progress:phase(Shown, lists:flatten(io_lib:format(Format, Arguments)), Steps).

%%% What there is, and what is left

%% The memory when it has stopped falling: what one thread allocated and another one frees is
%% counted a little later.
settled() ->
    settled(erlmcp_memory_load_result:measure(), now_ms() + ?PATIENCE).

settled(#{memory := #{total := Total}} = Measured, Deadline) ->
    ok = timer:sleep(?POLL),
    #{memory := #{total := Now}} = Next = erlmcp_memory_load_result:measure(),
    case Now < Total - Total div 1000 andalso now_ms() < Deadline of
        true -> settled(Next, Deadline);
        false when Now < Total -> Next;
        false -> Measured
    end.

%% What there is when all states and buffers are released.
returned(Before, Acquired, Deadline) ->
    true = erlang:garbage_collect(),
    case erlmcp_memory_load_result:left(Before, erlmcp_memory_load_result:measure(), Acquired) of
        #{states_left := 0, buffer_bytes_left := 0} ->
            settled();
        _ ->
            case now_ms() < Deadline of
                true ->
                    ok = timer:sleep(?POLL),
                    returned(Before, Acquired, Deadline);
                false ->
                    settled()
            end
    end.

%% How many processes started by these processes are still alive after a while.
processes_left(Parents, Deadline) ->
    Own = maps:from_keys(Parents, []),
    Left = [
        Pid
     || Pid <- processes(),
        {parent, Parent} <- [erlang:process_info(Pid, parent)],
        is_map_key(Parent, Own)
    ],
    case Left =/= [] andalso now_ms() < Deadline of
        true ->
            ok = timer:sleep(?POLL),
            processes_left(Parents, Deadline);
        false ->
            length(Left)
    end.

%% Calls Last() after Fun(), whatever its outcome.
finally(Fun, Last) ->
    try Fun() of
        Result -> {Result, Last()}
    catch
        Class:Reason:Stack ->
            _ = Last(),
            erlang:raise(Class, Reason, Stack)
    end.

now_ms() ->
    erlang:monotonic_time(millisecond).
