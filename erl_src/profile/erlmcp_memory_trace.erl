%% @private
%% @doc The trace flags of a profiling session, and whose flags there are beside them.
%%
%% The VM gives a process one tracer, and some releases of OTP 27 to 29 crash when two trace
%% sessions follow the collections of one process. So flags are set only if no other tracer is there,
%% and those of others are never cleared.
-module(erlmcp_memory_trace).

-export([other/0, sessions/0, set/0, clear/0, clear_new/0, are_ours/1, is_our_tracer/1]).

%% The same for every session: the VM takes two equal tracers for one.
-define(TRACER, {tracer, erlmcp_memory_nif, []}).
-define(FLAGS, [garbage_collection, ?TRACER]).

%% @doc Who else traces on this node. To be asked before anything is switched on.
-spec other() -> {ok, erlmcp_memory_profiler:tracer()} | none.
other() ->
    case sessions() of
        [] -> first_tracer([new_processes | erlang:processes()]);
        Sessions -> {ok, {sessions, Sessions}}
    end.

%% @doc The trace sessions of this node, where the VM has such: without that of erlang:trace/3, which
%% is used here and is looked at process by process. The functions for sessions refuse that one.
-spec sessions() -> [term()].
sessions() ->
    Module = trace,
    %% Where nobody has loaded it, nobody has made a session. Loading it here would search all of the
    %% code path again and again where the VM has none.
    case erlang:function_exported(Module, session_info, 1) andalso Module:session_info(all) of
        Sessions when is_list(Sessions) ->
            [Session || Session <- Sessions, answers(Module, Session)];
        _ ->
            []
    end.

answers(Module, Session) ->
    try Module:info(Session, new_processes, flags) of
        {flags, _} -> true;
        undefined -> false
    catch
        error:badarg -> false
    end.

first_tracer([Item | Rest]) ->
    case tracer(Item) of
        %% Ours: of the running session, or left behind by a killed sampler.
        {other, Tracer} -> {ok, Tracer};
        _ -> first_tracer(Rest)
    end;
first_tracer([]) ->
    none.

%% Of new processes, or of one that may be gone meanwhile.
tracer(Item) ->
    case erlang:trace_info(Item, tracer) of
        {tracer, []} -> none;
        undefined -> gone;
        {tracer, Tracer} ->
            case ?MODULE:is_our_tracer(Tracer) of
                true -> ours;
                false -> {other, Tracer}
            end
    end.

%% @doc Whether a tracer is that of sessions. Exported, because a tracer module comes back as
%% {Module, State}, which the type of erlang:trace_info/2 forgets.
-spec is_our_tracer(term()) -> boolean().
is_our_tracer(Tracer) ->
    is_tuple(Tracer) andalso element(1, Tracer) =:= erlmcp_memory_nif.

%% @doc Sets the flags of all processes, and of new ones. `false' if another tracer has one: then
%% the rest has none, and {@link clear/0} takes back what was set.
%%
%% Flags are set process by process: that waits for whoever runs the process at the time. The VM's
%% own pass over all of them stops all normal schedulers instead and, in releases before 25.3.2.11
%% and 26.2.4, crashes when a dirty scheduler looks at a process's tracer in that moment. New
%% processes come first, so that none is missed.
-spec set() -> boolean().
set() ->
    %% For new processes the VM replaces whatever tracer there is.
    case tracer(new_processes) of
        {other, _} ->
            false;
        _ ->
            _ = erlang:trace(new_processes, true, ?FLAGS),
            lists:all(fun set/1, erlang:processes())
    end.

%% Whether it succeeded: a process may be gone, but must not have another tracer.
set(Pid) ->
    try erlang:trace(Pid, true, ?FLAGS) of
        1 -> true
    catch
        error:badarg -> not is_process_alive(Pid)
    end.

%% @doc Takes our flags away, where the tracer is ours. It must not be named here: where somebody
%% else's traces a process, the VM refuses that before OTP 27 alone, and since then it gives the
%% process to the named one, with all flags that it has.
-spec clear() -> ok.
clear() ->
    lists:foreach(fun clear/1, [new_processes | erlang:processes()]).

%% @doc Takes our flag of new processes away.
-spec clear_new() -> ok.
clear_new() ->
    clear(new_processes).

clear(Item) ->
    try
        _ = tracer(Item) =:= ours andalso erlang:trace(Item, false, [garbage_collection]),
        ok
    catch
        error:badarg -> ok
    end.

%% @doc Whether new processes and these have our flags, as far as they are alive.
-spec are_ours([pid()]) -> boolean().
are_ours(Pids) ->
    tracer(new_processes) =:= ours andalso
        lists:all(
            fun(Pid) ->
                Tracer = tracer(Pid),
                Tracer =:= ours orelse Tracer =:= gone
            end,
            Pids
        ).
