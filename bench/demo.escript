#!/usr/bin/env escript
%%! +P 1048576
%% Runs the load simulation in this fresh VM and prints what a connection costs; then starts a plain
%% server in three ways and prints what it costs while it is idle.
%%
%%   escript bench/demo.escript [Count]     from the root of the project, after `rebar3 compile'
%%
%% Count: connections, 100000 unless given. Ends with 1 where something is left over, went wrong,
%% or costs too much.
-mode(compile).
-export([init/1, handle_call/3, handle_cast/2]).

-define(MB, 1048576).
%% Plain servers that are started in each way, tools of each, and milliseconds until they are idle.
-define(SERVERS, 1000).
-define(TOOLS, 40).
-define(IDLE_MS, 30_000).

main([]) -> run(100000);
main([Argument]) ->
    try list_to_integer(Argument) of
        Count when Count > 0 -> run(Count);
        _ -> usage()
    catch
        error:badarg -> usage()
    end;
main(_) -> usage().

usage() ->
    io:put_chars(standard_error, "usage: escript bench/demo.escript [Count]\n"),
    halt(2).

run(Count) ->
    Root = filename:dirname(filename:dirname(filename:absname(escript:script_name()))),
    Ebin = filename:join([Root, "_build", "default", "lib", "erlmcp_memory", "ebin"]),
    true = code:add_patha(Ebin),
    case code:ensure_loaded(erlmcp_memory_profiler) of
        {module, _} -> ok;
        {error, _} -> fail("~ts is missing: run rebar3 compile first", [Ebin])
    end,
    ok = logger:update_formatter_config(default, #{legacy_header => false, single_line => true}),
    %% It runs with the default settings and is to create states; that is no news here.
    ok = logger:set_module_level(erlmcp_memory_pool, error),
    {ok, _} = erlmcp_memory_pool:start_link(),
    %% Loads all code and lets the VM set aside what it keeps for itself once it has been busy, so
    %% that what comes back is compared with a node that has worked before. What the pool keeps idle
    %% of that goes, or it would be in the figure before as well as on top of it.
    _ = simulate(min(Count, 10000), #{progress => false}),
    #{connection_pool := Pool} = erlmcp_memory_pool:pool_info(),
    #{pool_size := PoolSize, max_size := MaxSize} = Pool,
    ok = erlmcp_memory_pool:configure(max_pool_size, PoolSize),
    ok = erlmcp_memory_pool:configure(max_pool_size, MaxSize),
    [true = erlang:garbage_collect(Pid) || Pid <- processes(), is_process_alive(Pid)],
    io:format("~ts connections on ~b schedulers, OTP ~ts~n", [
        grouped(Count), erlang:system_info(schedulers_online), erlang:system_info(otp_release)
    ]),
    Result = simulate(Count, #{}),
    Returned = returned(Result),
    print(Result, Returned),
    %% What it gives back meanwhile is no saving of the servers.
    ok = gen_server:stop(erlmcp_memory_pool),
    servers(),
    halt(
        case Result of
            #{success := true} when element(1, Returned) -> 0;
            _ -> 1
        end
    ).

%% --- the simulation ---

simulate(Count, Options) ->
    case erlmcp_memory_profiler:simulate_100k_load(Count, Options) of
        {error, {too_many_connections, Limit}} ->
            fail("the process limit leaves room for ~b connections", [Limit]);
        {error, Reason} ->
            fail("~tp", [Reason]);
        Result ->
            Result
    end.

fail(Format, Arguments) ->
    io:format(standard_error, "demo: " ++ Format ++ "~n", Arguments),
    halt(1).

%% Whether total memory came back to within 10 % of the start, and what the pool keeps idle on top.
returned(#{memory := Memory, pool := Pool}) ->
    #{before := #{total := Before}, afterwards := #{total := Afterwards}} = Memory,
    #{idle_bytes := States, idle_buffer_bytes := Buffers} = Pool,
    Limit = Before + Before div 10 + States + Buffers,
    {Afterwards =< Limit, Limit}.

print(Result, {Returned, Limit}) ->
    #{memory := #{before := Before, peak := Peak, afterwards := Afterwards}} = Result,
    #{bytes_per_connection := Each, latency := Latency, gc_pause := Gc, pool := Pool} = Result,
    #{success := Success, errors := Errors, first_errors := FirstErrors} = Result,
    #{states_left := States, processes_left := Processes, buffer_bytes_left := Buffers} = Result,
    #{duration_ms := Duration, batches_completed := Batches} = Result,
    heading("Memory, MB", ["before", "at peak", "after", "bytes a connection"]),
    [
        line(Name, [mb(maps:get(Kind, Memory)) || Memory <- [Before, Peak, Afterwards]] ++
            [grouped(maps:get(Kind, Each))])
     || {Name, Kind} <- [
            {"total", total},
            {"  processes", processes},
            {"  binaries", binaries},
            {"  native", native},
            {"resident (system)", resident}
        ]
    ],
    heading("Latency, microseconds", ["p50", "p90", "p99", "p99.9", "max"]),
    [
        line(Name, percentiles(maps:get(Kind, Latency), 1))
     || {Name, Kind} <- [
            {"acquire a state", acquire},
            {"update a field", update},
            {"message to answer", message}
        ]
    ],
    case Gc of
        #{measured := true, collections := Collections} ->
            heading("GC pauses, milliseconds", ["p50", "p90", "p99", "p99.9", "max"]),
            line([grouped(Collections), " collections"], percentiles(Gc, 3));
        #{reason := Reason} ->
            io:format("~nGC pauses were not measured: ~tp~n", [Reason])
    end,
    io:format("~nLeft over             ~b states, ~b processes, ~b bytes of message buffers~n", [
        States, Processes, Buffers
    ]),
    io:format("Errors                ~b~n", [Errors]),
    [io:format("                      ~tp~n", [Error]) || Error <- FirstErrors],
    io:format("Kept idle by the pool ~ts states, ~ts bytes~n", [
        grouped(maps:get(idle_states, Pool)),
        grouped(maps:get(idle_bytes, Pool) + maps:get(idle_buffer_bytes, Pool))
    ]),
    io:format("Total memory after    ~ts MB, ", [mb(maps:get(total, Afterwards))]),
    io:format("at most ~ts MB (before + 10 % + what the pool keeps idle): ~ts~n", [
        mb(Limit), yes(Returned)
    ]),
    io:format("Took                  ~.1f s, ~b batches~n", [Duration / 1000, Batches]),
    io:format("Success               ~ts~n", [Success]).

percentiles(Figures, Decimals) ->
    [
        float_to_list(float(maps:get(Key, Figures)), [{decimals, Decimals}])
     || Key <- [p50, p90, p99, p999, max]
    ].

heading(Name, Columns) ->
    io:nl(),
    line(Name, Columns).

line(Name, Columns) ->
    io:format("~-24ts", [Name]),
    [io:format("~*ts", [max(11, length(Column) + 2), Column]) || Column <- Columns],
    io:nl().

mb(Bytes) -> float_to_list(Bytes / ?MB, [{decimals, 1}]).

yes(true) -> "yes";
yes(false) -> "NO".

%% 1234567 as 1,234,567.
grouped(Number) when Number < 1000 -> integer_to_list(Number);
grouped(Number) ->
    lists:flatten(io_lib:format("~ts,~3..0b", [grouped(Number div 1000), Number rem 1000])).

%% --- one line ---

%% A server as it is usually written: it builds a tool list of its own, with handlers that are
%% closures, and keeps it in its state.
init(Name) ->
    Tools = maps:from_list([tool(N) || N <- lists:seq(1, ?TOOLS)]),
    {ok, {Name, Tools, 0}}.

tool(N) ->
    Name = <<"tool_", (integer_to_binary(N))/binary>>,
    Property = #{
        <<"type">> => <<"string">>,
        <<"description">> => <<"What ", Name/binary, " is to look for, in the words of a person">>
    },
    {Name, #{
        <<"description">> => <<"Looks up something in the documents, for tool ", Name/binary>>,
        <<"inputSchema">> => #{
            <<"type">> => <<"object">>,
            <<"properties">> => #{<<"query">> => Property, <<"in">> => Property},
            <<"required">> => [<<"query">>]
        },
        handler => fun(Arguments) -> {Name, Arguments} end
    }}.

handle_call({call_tool, Name, Arguments}, _From, {Id, Tools, Calls}) ->
    #{Name := #{handler := Handler}} = Tools,
    {reply, Handler(Arguments), {Id, Tools, Calls + 1}}.

handle_cast(_, State) ->
    {noreply, State}.

servers() ->
    heading([grouped(?SERVERS), " servers, ", integer_to_list(?TOOLS), " tools"], [
        "bytes each, idle", "a call, awake", "from idle"
    ]),
    [
        line(Name, alone(fun() -> servers(Start, HowIdle) end))
     || {Name, Start, HowIdle} <- [
            {"gen_server", fun(Id) -> gen_server:start(?MODULE, Id, []) end, waiting},
            {"  with hibernate_after",
                fun(Id) -> gen_server:start(?MODULE, Id, [{hibernate_after, 1000}]) end, hibernating},
            {"erlmcp_memory_server",
                fun(Id) -> erlmcp_memory_server:start(?MODULE, Id, []) end, hibernating}
        ]
    ].

%% In a process of its own, whose heap has nothing left over from before.
alone(Fun) ->
    {_, Monitor} = spawn_monitor(fun() -> exit({result, Fun()}) end),
    receive
        {'DOWN', Monitor, process, _, {result, Result}} -> Result;
        {'DOWN', Monitor, process, _, Reason} -> fail("~tp", [Reason])
    end.

servers(Start, HowIdle) ->
    %% What is kept once for all of them is no cost of one.
    {ok, First} = Start(<<"first">>),
    Before = total(),
    Pids = [element(2, Start(integer_to_binary(N))) || N <- lists:seq(1, ?SERVERS)],
    [call(Pid) || Pid <- Pids],
    idle(HowIdle, Pids, erlang:monotonic_time(millisecond) + ?IDLE_MS),
    Each = (total() - Before) / ?SERVERS,
    FromIdle = [call_micros(Pid) || Pid <- Pids],
    Awake = [call_micros(Pid) || Pid <- Pids],
    [ok = gen_server:stop(Pid) || Pid <- [First | Pids]],
    [grouped(round(Each)) | [[median(Times), " us"] || Times <- [Awake, FromIdle]]].

%% When what was given back before has come back: looks that agree, for some seconds at most.
total() ->
    true = erlang:garbage_collect(),
    total(erlang:memory(total), 4, 50).

total(Last, Still, Tries) when Still =:= 0; Tries =:= 0 ->
    Last;
total(Last, Still, Tries) ->
    timer:sleep(100),
    case erlang:memory(total) of
        Now when abs(Now - Last) < 16384 -> total(Now, Still - 1, Tries - 1);
        Now -> total(Now, 4, Tries - 1)
    end.

idle(waiting, _Pids, _Deadline) ->
    ok;
idle(hibernating, Pids, Deadline) ->
    Awake = [Pid || Pid <- Pids, not hibernates(Pid)],
    case erlang:monotonic_time(millisecond) of
        Now when Awake =/= [], Now > Deadline -> fail("~b servers stay awake", [length(Awake)]);
        _ when Awake =:= [] -> ok;
        _ ->
            timer:sleep(50),
            idle(hibernating, Awake, Deadline)
    end.

hibernates(Pid) ->
    case process_info(Pid, current_function) of
        {current_function, {erlang, hibernate, 3}} -> true;
        %% Since OTP 28.
        {current_function, {gen_server, loop_hibernate, 4}} -> true;
        _ -> false
    end.

call(Pid) ->
    {<<"tool_7">>, again} = gen_server:call(Pid, {call_tool, <<"tool_7">>, again}, infinity).

call_micros(Pid) ->
    Start = erlang:monotonic_time(nanosecond),
    _ = call(Pid),
    (erlang:monotonic_time(nanosecond) - Start) / 1000.

median(Times) ->
    float_to_list(lists:nth(length(Times) div 2, lists:sort(Times)), [{decimals, 1}]).
