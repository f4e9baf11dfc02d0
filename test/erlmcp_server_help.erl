%% Twins: one scenario under `gen_server' and under `erlmcp_memory_server', and what a client, the
%% module and the logs see of both.
-module(erlmcp_server_help).

-import(erlmcp_wait_help, [until/1]).

-compile([export_all, nowarn_export_all]).

-define(DEADLINE, 60000).
-define(SCRIPT, erlmcp_server_script).

%%% Twins

%% The engines: the one that is imitated, and ours with different idle times.
engines() ->
    [{gen_server, []} | [{erlmcp_memory_server, [{idle_after, I}]} || I <- [infinity, 0, 20]]].

%% Runs a scenario under each engine, and under ours with parking switched off by the setting. What
%% it returned, the messages that were left and the reports are the same; returns the first.
twins(Scenario) ->
    [Expected | Others] =
        [{Engine, run(Engine, Scenario)} || Engine <- engines()] ++ [switched_off(Scenario)],
    _ = [is_same(Expected, Other) || Other <- Others],
    {_, {Result, _, _}} = Expected,
    Result.

switched_off(Scenario) ->
    ok = application:set_env(erlmcp, connection_state_compact, false),
    Engine = {erlmcp_memory_server, [{idle_after, 20}]},
    try
        {{switched_off, Engine}, run(Engine, Scenario)}
    after
        application:unset_env(erlmcp, connection_state_compact)
    end.

is_same({_, Same}, {_, Same}) ->
    ok;
is_same({_, {Result, Messages, Logs}}, {Engine, {OtherResult, OtherMessages, OtherLogs}}) ->
    Differ = [
        {What, show(A), show(B)}
     || {What, A, B} <- [
            {result, Result, OtherResult},
            {messages, Messages, OtherMessages},
            {logs, Logs, OtherLogs}
        ],
        A =/= B
    ],
    [
        ct:pal("~p under ~p:~nexpected ~ts~nfound    ~ts", [What, Engine, A, B])
     || {What, A, B} <- Differ
    ],
    ct:fail({differs, Engine, [What || {What, _, _} <- Differ]}).

%% Bounded: a state may be huge.
show(Term) -> io_lib:format("~0tP", [Term, 300]).

run(Engine, Scenario) ->
    Parent = self(),
    {Pid, Monitor} = spawn_monitor(fun() ->
        true = register(erlmcp_server_runner, self()),
        process_flag(trap_exit, true),
        Result = Scenario(Engine),
        Parent ! {self(), collect(mask(Result))},
        %% Takes the servers that are linked to it along.
        exit(done)
    end),
    receive
        {Pid, Ran} ->
            receive
                {'DOWN', Monitor, _, _, _} -> Ran
            end;
        {'DOWN', Monitor, _, _, Reason} ->
            ct:fail({Engine, Reason})
    after ?DEADLINE * 2 ->
        Stack = process_info(Pid, current_stacktrace),
        exit(Pid, kill),
        ct:fail({no_end, Engine, Stack})
    end.

collect(Result) ->
    Messages = messages(),
    {Result, [mask(M) || M <- Messages, element(1, M) =/= log], [mask(L) || {log, L} <- Messages]}.

messages() ->
    receive
        Message -> [Message | messages()]
    after 0 -> []
    end.

%% Every pid and reference is as good as any other; our frames and OTP's are not compared, nor what
%% counts words and reductions.
mask(Pid) when is_pid(Pid) -> pid;
mask(Ref) when is_reference(Ref) -> reference;
mask(Fun) when is_function(Fun) ->
    {module, Module} = erlang:fun_info(Fun, module),
    case is_ours(Module) of
        true -> {'fun', gen_server};
        false -> {'fun', Module}
    end;
mask([{Module, Function, Arity, Info} | Rest]) when
    is_atom(Module), is_atom(Function), is_list(Info), is_integer(Arity) or is_list(Arity)
->
    case is_ours(Module) of
        true -> mask_stack(Rest);
        false -> [{Module, Function, mask(Arity)} | mask_stack(Rest)]
    end;
mask([Head | Tail]) -> [mask(Head) | mask(Tail)];
mask({Sized, Number}) when
    is_integer(Number), Sized =:= heap_size;
    is_integer(Number), Sized =:= stack_size;
    is_integer(Number), Sized =:= reductions
->
    Sized;
%% Who got a reply before may be anywhere.
mask({client_info, {Pid, {Name, Stack}}}) when is_list(Stack) -> {client_info, mask({Pid, Name})};
mask({header, Text}) when is_list(Text) -> {header, no_pids(Text)};
mask({module, erlmcp_memory_server}) -> {module, gen_server};
mask({Time, {{_, _, _}, _}}) when Time =:= start_time; Time =:= current_time -> Time;
mask(Map) when is_map(Map) -> maps:from_list(mask(maps:to_list(Map)));
mask(Tuple) when is_tuple(Tuple) -> list_to_tuple(mask(tuple_to_list(Tuple)));
mask(Term) -> Term.

mask_stack([]) -> [];
mask_stack([_ | _] = Stack) -> mask(Stack).

is_ours(Module) ->
    lists:member(Module, [gen, gen_server, proc_lib, sys, erlmcp_memory_server]) orelse
        lists:prefix("erlmcp_memory", atom_to_list(Module)).

%%% Reports: a handler that sends those of a runner's servers to the runner

add_handler() ->
    _ = remove_handler(),
    logger:add_handler(?MODULE, ?MODULE, #{level => all}).

remove_handler() ->
    logger:remove_handler(?MODULE).

log(#{level := Level, msg := Message, meta := Meta}, _Config) ->
    case get('$ancestors') of
        [erlmcp_server_runner | _] ->
            Kept = maps:with([domain, report_cb, error_logger], Meta),
            send_runner({log, {Level, text(Message, Meta), Message, Kept}});
        _ ->
            ok
    end.

%% A server may outlive it.
send_runner(Message) ->
    case whereis(erlmcp_server_runner) of
        undefined -> ok;
        Runner -> Runner ! Message
    end.

%% As a person reads it, up to the stack trace.
text({report, #{label := {gen_server, _}} = Report}, #{report_cb := Callback}) ->
    try lists:flatten(Callback(Report#{client_info => undefined}, #{depth => 8})) of
        Text -> hd(string:split(no_pids(Text), "** Reason for termination"))
    catch
        %% It cannot format an `undef' that somebody raised.
        error:badarg -> unformatted
    end;
text(_Message, _Meta) ->
    none.

no_pids(Text) ->
    re:replace(Text, "<[0-9.]+>", "pid", [global, {return, list}]).

%%% Servers

start(Engine, State) ->
    start(Engine, State, []).

%% A server of the script, linked to the caller.
start({Module, Options}, State, Others) ->
    {ok, Pid} = Module:start_link(?SCRIPT, State, Options ++ Others),
    Pid.

%% Waits until the state is parked, where the engine does so for idleness.
idle({erlmcp_memory_server, [{idle_after, Ms}]}, Pid) when is_integer(Ms) ->
    parked(Pid);
idle(_Engine, _Pid) ->
    ok.

%% Only of a server that is alone. In this order: it may hibernate before it parks, not after.
parked(Pid) ->
    until(fun() -> erlmcp_memory_nif:awake_bytes() =:= 0 end),
    hibernates(Pid).

hibernates(Pid) ->
    until(fun() ->
        %% The latter is a gen_server of OTP 28 or later.
        lists:member(process_info(Pid, current_function), [
            {current_function, {erlang, hibernate, 3}},
            {current_function, {gen_server, loop_hibernate, 4}}
        ])
    end).

%% The next message of the module.
told() ->
    receive
        {told, What} -> What
    after ?DEADLINE -> ct:fail({told_nothing, process_info(self(), messages)})
    end.

down(Pid) ->
    Monitor = monitor(process, Pid),
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    after ?DEADLINE -> ct:fail(does_not_end)
    end.

exited(Pid) ->
    receive
        {'EXIT', Pid, Reason} -> Reason
    after ?DEADLINE -> ct:fail(does_not_exit)
    end.

%% A term that the library refuses: maps in keys of maps, and some 300 KB.
unparkable() ->
    {lists:foldl(fun(_, Key) -> #{Key => value} end, key, lists:seq(1, 300)), lists:seq(1, 20000)}.

%% What earlier cases had awake is no peak any more, and no server of theirs is still to move.
no_peak() ->
    until(fun() ->
        erlmcp_memory_nif:roster() =:= 0 andalso whereis(erlmcp_memory_tidier) =:= undefined
    end),
    ok = erlmcp_memory_nif:next_peak().
