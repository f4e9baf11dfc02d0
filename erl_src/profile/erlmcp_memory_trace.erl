%% @private
%% @doc The trace flags of a profiling session, and other tracers on the node.
%%
%% The VM gives a process one tracer, and some releases of OTP 27 to 29 crash when two trace
%% sessions follow the collections of one process. So flags are set only if no other tracer is there,
%% and those of others are never cleared.
-module(erlmcp_memory_trace).

-export([other/0, sessions/0, set/0, clear/0, clear_new/0, are_ours/1, is_our_tracer/1]).

%% The same for every session: the VM treats two equal tracers as one.
-define(TRACER, {tracer, erlmcp_memory_nif, []}).
-define(FLAGS, [garbage_collection, ?TRACER]).

%% @doc Another tracer that is active on this node. Call this before switching anything on.
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
    %% If the module is not loaded, there is no session. Loading it here would search the whole code
    %% path again and again on releases that do not have it.
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

%% The tracer of new processes, or of a process that may have ended.
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

%% @doc Sets the flags of all processes, and of new ones. `false' if one has another tracer: the
%% flags of the rest are not set then, and {@link clear/0} removes those that were.
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

%% @doc Removes our flags where the tracer is ours. The call must not name the tracer: if a process
%% has another one, only releases before OTP 27 refuse the call; later ones hand the process over to
%% the named tracer, with all its flags.
-spec clear() -> ok.
clear() ->
    lists:foreach(fun clear/1, [new_processes | erlang:processes()]).

%% @doc Removes our flag from new processes.
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

%% @doc Whether new processes, and those of these that are alive, have our flags.
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
