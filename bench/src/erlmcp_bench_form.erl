%% @doc What many connections of one form take, and what a change of their tool list does to them.
%% Runs in a VM of its own, see `erlmcp_bench_memory'.
-module(erlmcp_bench_form).

-export([run/1, tools/1, asleep/1]).

-include("erlmcp_memory.hrl").

-define(SEGMENTS_MS, 15_000).
-define(BATCH, 2000).
-define(WATCH_MS, 3000).

-type options() :: #{
    form := module(),
    %% hibernated at the same time
    count := pos_integer(),
    %% awake at the same time; equal to `count' where memory allows it
    running := pos_integer(),
    hibernates := boolean(),
    %% each connection has a tool of its own besides
    own := boolean(),
    change := boolean(),
    file := file:name_all() | generated
}.
%% Bytes a connection: total, resident, processes, binaries, native, other.
-type bytes() :: #{atom() => float()}.
-export_type([options/0, bytes/0]).

%% @doc `running', `collected' and `hibernated', each `bytes()'; `change', what a change did.
-spec run(options()) -> #{atom() => term()}.
run(#{form := Form} = Options) ->
    _ = erlmcp_bench_json:library(),
    Tools = tools(Options),
    Catalogue = Form:catalogue(erlmcp_host:config(Tools)),
    Calls = erlmcp_bench_messages:calls(Tools),
    %% Everything that is made once is there before the measurement begins.
    stop([connect(Options, Catalogue, Calls, N) || N <- lists:seq(1, 8)]),
    _ = measure(),
    Base = settled(),
    connections(Options, Base, Tools, Catalogue, Calls).

connections(#{running := Running} = Options, Base, Tools, Catalogue, Calls) ->
    #{count := Count, hibernates := Hibernates, change := Change} = Options,
    Awake = [connect(Options, Catalogue, Calls, N) || N <- lists:seq(1, Running)],
    true = erlang:garbage_collect(),
    Phases0 = #{running => each(Base, settled(), Running)},
    lists:foreach(fun erlang:garbage_collect/1, Awake),
    Phases1 = Phases0#{collected => each(Base, settled(), Running)},
    case Hibernates of
        false ->
            stop(Awake),
            Phases1;
        true ->
            sleep(Awake),
            All = fill(Options, Catalogue, Calls, Running, Count, Awake),
            true = erlang:garbage_collect(),
            ok = moved(120),
            %% The VM gives segments that it has freed back one a second.
            timer:sleep(?SEGMENTS_MS),
            Phases2 = Phases1#{
                hibernated => each(Base, settled(), Count),
                process => average(All)
            },
            case Change of
                true -> Phases2#{change => change(Options, Tools, Catalogue, Calls, All)};
                false -> Phases2
            end
    end.

fill(_Options, _Catalogue, _Calls, Count, Count, Pids) ->
    Pids;
fill(Options, Catalogue, Calls, Held, Count, Pids) ->
    Next = min(Count, Held + ?BATCH),
    Batch = [connect(Options, Catalogue, Calls, N) || N <- lists:seq(Held + 1, Next)],
    sleep(Batch),
    fill(Options, Catalogue, Calls, Next, Count, Batch ++ Pids).

%% @doc The tools to serve: 86 generated ones, or those of a file.
-spec tools(#{file := file:name_all() | generated, _ => _}) -> [erlmcp_bench_tools:tool()].
tools(#{file := generated}) -> erlmcp_bench_tools:generate(86);
tools(#{file := File}) -> erlmcp_bench_tools:read(File).

%% A connection after initialize, tools/list, five subscriptions and three calls.
connect(#{form := Form, own := Own}, Catalogue, Calls, N) ->
    Id = iolist_to_binary(io_lib:format("connection-~6..0b", [N])),
    {ok, Pid} = erlmcp_host:start_link(Form, Id, Catalogue),
    Own andalso erlmcp_host_plain:add_tool(Pid, own_tool(N)),
    [_ = erlmcp_host:request(Pid, M) || M <- erlmcp_bench_messages:opening(N) ++ Calls],
    Pid.

own_tool(N) ->
    Number = integer_to_binary(N),
    #{
        <<"name">> => <<"own_tool_", Number/binary>>,
        <<"description">> => <<"Looks up what client ", Number/binary, " has stored.">>,
        <<"inputSchema">> => #{
            <<"type">> => <<"object">>,
            <<"properties">> => #{
                <<"key">> => #{
                    <<"type">> => <<"string">>,
                    <<"description">> => <<"The key under which client ", Number/binary, " stored it">>
                }
            },
            <<"required">> => [<<"key">>]
        }
    }.

sleep(Pids) ->
    lists:foreach(fun erlmcp_host:idle/1, Pids),
    lists:foreach(fun asleep/1, Pids).

%% @doc Waits until a process hibernates.
-spec asleep(pid()) -> ok.
asleep(Pid) ->
    case process_info(Pid, current_function) of
        {current_function, {erlang, hibernate, 3}} ->
            ok;
        %% Since OTP 28.
        {current_function, {gen_server, loop_hibernate, 4}} ->
            ok;
        _ ->
            timer:sleep(1),
            asleep(Pid)
    end.

stop(Pids) ->
    lists:foreach(
        fun(Pid) ->
            Monitor = monitor(process, Pid),
            unlink(Pid),
            exit(Pid, shutdown),
            receive
                {'DOWN', Monitor, process, Pid, _} -> ok
            end
        end,
        Pids
    ).

average(Pids) ->
    Sample = lists:sublist(Pids, 1000),
    lists:sum([element(2, process_info(Pid, memory)) || Pid <- Sample]) / length(Sample).

measure() ->
    erlmcp_memory_profiler:measure_memory_snapshot().

settled() ->
    ok = moved(120),
    Total = fun(#memory_snapshot{total_memory = Bytes}) -> Bytes end,
    erlmcp_bench_measure:settled(fun measure/0, Total).

%% Parked servers move when few are awake. Waits at most this many seconds.
moved(0) ->
    ok;
moved(Tries) ->
    case {erlmcp_memory_nif:roster(), whereis(erlmcp_memory_tidier)} of
        {0, undefined} ->
            ok;
        _ ->
            timer:sleep(1000),
            moved(Tries - 1)
    end.

each(Base, Snapshot, Count) ->
    Of = fun(Field) -> (element(Field, Snapshot) - element(Field, Base)) / Count end,
    Total = Of(#memory_snapshot.total_memory),
    Processes = Of(#memory_snapshot.process_memory),
    Binaries = Of(#memory_snapshot.binary_memory),
    Native = Of(#memory_snapshot.native_memory),
    #{
        total => Total,
        resident => Of(#memory_snapshot.resident_memory),
        processes => Processes,
        binaries => Binaries,
        native => Native,
        other => Total - Processes - Binaries - Native
    }.

%% The configuration with one tool changed, while all these connections are there: what it takes,
%% what other processes notice, who sees which version, and whether the old version goes with its
%% last user.
change(#{form := Form} = Options, Tools, Catalogue, Calls, Pids) ->
    Size = shared_bytes(Catalogue),
    Config = erlmcp_host:config(erlmcp_bench_tools:change(Tools)),
    Quiet = erlmcp_bench_pause:watch(fun() -> timer:sleep(?WATCH_MS) end),
    {Micros, New, Pauses} = watched(Form, Config),
    Fresh = [connect(Options, New, Calls, N) || N <- lists:seq(1, 100)],
    Result = #{
        micros => Micros,
        quiet => Quiet,
        pauses => Pauses,
        old_keep => not lists:any(fun changed/1, lists:sublist(Pids, 100)),
        new_get => lists:all(fun changed/1, Fresh),
        share => Size
    },
    [Last | Others] = Pids,
    stop(Others),
    true = erlang:garbage_collect(),
    #memory_snapshot{total_memory = Before} = settled(),
    LastKeeps = not changed(Last),
    stop([Last]),
    true = erlang:garbage_collect(),
    #memory_snapshot{total_memory = After} = settled(),
    NewStay = lists:all(fun changed/1, Fresh),
    stop(Fresh),
    Result#{last_keeps => LastKeeps, freed => Before - After, new_stay => NewStay}.

%% What the content behind a reference takes; a key of `persistent_term' is none.
shared_bytes(Share) when is_reference(Share) ->
    State = erlmcp_connection_optimizer:from_map(#{id => <<>>, capabilities_ref => Share}),
    maps:get(shared_bytes, erlmcp_connection_optimizer:state_size_info(State));
shared_bytes(_) ->
    0.

watched(Form, Config) ->
    Self = self(),
    Pauses = erlmcp_bench_pause:watch(fun() ->
        {Micros, New} = timer:tc(fun() -> Form:catalogue(Config) end),
        Self ! {changed, Micros, New},
        timer:sleep(?WATCH_MS)
    end),
    receive
        {changed, Micros, New} -> {Micros, New, Pauses}
    end.

changed(Pid) ->
    Reply = iolist_to_binary(erlmcp_host:request(Pid, erlmcp_bench_messages:list(1))),
    binary:match(Reply, <<"(changed) ">>) =/= nomatch.
