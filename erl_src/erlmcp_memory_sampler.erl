%% @private
%% @doc The process that owns the trace and takes a snapshot every interval.
%%
%% It is registered, so there is one session on a node; a start while one runs ends that one first.
%% It is linked to no process: a session belongs to the node, and goes on when the shell or the
%% remote call that started it has ended. The native session watches this process and ends with it;
%% the session holds the data, so they outlive this process.
-module(erlmcp_memory_sampler).
-behaviour(gen_server).

-export([start/1, stop/0, look/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([options/0]).

-include("erlmcp_memory.hrl").

-type options() :: #{interval_ms := pos_integer(), keep := pos_integer(), gc := boolean()}.

-record(state, {
    %% the native session
    session :: reference(),
    interval_ms :: pos_integer(),
    %% whether trace flags are set, and are all that were set
    gc :: boolean(),
    %% processes whose flags are still to be checked before all are checked again
    to_look_at = [] :: [pid()]
}).

%% The same for every session: to the VM, two equal tracers are one.
-define(TRACER, {tracer, erlmcp_memory_nif, []}).
-define(FLAGS, [garbage_collection, ?TRACER]).
%% The most processes whose flags are checked with each snapshot. Each check is a signal.
-define(AT_ONCE, 32).

%% @doc Starts a session, after ending the running one. Anything that prevents the start is looked
%% for before that one is ended.
-spec start(options()) -> ok | {error, {already_traced, erlmcp_memory_profiler:tracer()} | notsup}.
start(#{gc := Gc} = Options) ->
    case erlmcp_memory_snapshot:total() of
        {ok, _} ->
            case Gc andalso other_tracer() of
                {ok, Tracer} -> {error, {already_traced, Tracer}};
                _ -> replace(Options)
            end;
        {error, notsup} ->
            {error, notsup}
    end.

replace(Options) ->
    _ = stop(),
    case gen_server:start({local, ?MODULE}, ?MODULE, Options, []) of
        {ok, _} ->
            ok;
        {error, {already_started, _}} ->
            %% Another caller was faster; the last one to start wins.
            replace(Options)
    end.

%% @doc Takes the last snapshot and ends the running session.
-spec stop() -> ok | {error, profiling_not_started}.
stop() ->
    call(stop).

%% @doc Checks whether the running session still has its trace flags, so that what is read of it
%% next is true.
-spec look() -> ok | {error, profiling_not_started}.
look() ->
    call(look).

call(Request) ->
    try
        gen_server:call(?MODULE, Request, infinity)
    catch
        exit:{_, {gen_server, call, _}} -> {error, profiling_not_started}
    end.

%% @private
-spec init(options()) -> {ok, #state{}}.
init(#{interval_ms := Interval, keep := Keep, gc := Gc}) ->
    Session = erlmcp_memory_nif:profiler_start(self(), Keep, Gc),
    State = #state{session = Session, interval_ms = Interval, gc = Gc},
    Traced = kept(not Gc orelse trace_all(), State),
    schedule(Traced),
    {ok, sample(Traced)}.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) ->
    {stop, normal, ok, #state{}} | {reply, ok | {error, unknown_request}, #state{}}.
handle_call(stop, _From, State) ->
    #state{session = Session, gc = Gc} = Last = sample(State),
    ok = erlmcp_memory_nif:profiler_stop(Session),
    _ = Gc andalso untrace_all(),
    {stop, normal, ok, Last};
handle_call(look, _From, State) ->
    {reply, ok, looked(State)};
handle_call(_Request, _From, State) ->
    {reply, {error, unknown_request}, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(_Message, State) ->
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(sample, State) ->
    schedule(State),
    {noreply, sample(State)};
handle_info(_Message, State) ->
    {noreply, State}.

sample(State) ->
    #state{session = Session} = Looked = looked(State),
    #memory_snapshot{} = Snapshot = erlmcp_memory_snapshot:measure(sampler),
    true = erlmcp_memory_nif:profiler_push(Session, Snapshot),
    Looked.

schedule(#state{interval_ms = Interval}) ->
    _ = erlang:send_after(Interval, self(), sample),
    ok.

%%% Trace flags

%% Flags are set process by process: that waits for the scheduler that runs the process at the time.
%% The VM's own pass over all of them stops all normal schedulers instead and, in releases before
%% 25.3.2.11 and 26.2.4, crashes when a dirty scheduler reads a process's tracer at that moment. New
%% processes come first, so that none is missed.
trace_all() ->
    _ = erlang:trace(new_processes, true, ?FLAGS),
    lists:all(fun trace/1, erlang:processes()).

%% Whether the flag is set: a process may have ended, but must not be traced by another tracer.
trace(Pid) ->
    try erlang:trace(Pid, true, ?FLAGS) of
        1 -> true
    catch
        error:badarg -> not is_process_alive(Pid)
    end.

%% The tracer is named: the flags of other tracers are left alone.
untrace_all() ->
    _ = untrace_new(),
    lists:foreach(
        fun(Pid) ->
            try
                erlang:trace(Pid, false, ?FLAGS)
            catch
                error:badarg -> gone
            end
        end,
        erlang:processes()
    ).

untrace_new() ->
    is_ours(new_processes) andalso erlang:trace(new_processes, false, [garbage_collection]).

%% Somebody else may clear our flags at any time (`dbg', `recon_trace'): of all processes, of those
%% that exist, of new ones, of single ones. So each time a few processes are checked in turn, and
%% always this one and new ones.
looked(#state{gc = false} = State) ->
    State;
looked(#state{to_look_at = []} = State) ->
    looked(State, erlang:processes());
looked(#state{to_look_at = Pids} = State) ->
    looked(State, Pids).

looked(State, Pids) ->
    {Some, Rest} = lists:split(min(?AT_ONCE, length(Pids)), Pids),
    kept(
        lists:all(fun is_ours/1, [new_processes, self() | Some]),
        State#state{to_look_at = Rest}
    ).

%% The flags that remain when some were cleared go away by themselves, since no session counts any
%% more: process by process they could be mistaken for another tracer's.
kept(true, State) ->
    State;
kept(false, #state{session = Session} = State) ->
    ok = erlmcp_memory_nif:profiler_gc_lost(Session),
    _ = untrace_new(),
    State#state{gc = false, to_look_at = []}.

%% Whether this session traces the process, or it is gone. A tracer module is returned as {Module,
%% State}, which the type of erlang:trace_info/2 omits; hence no pattern.
is_ours(Item) ->
    case erlang:trace_info(Item, tracer) of
        {tracer, Tracer} -> is_our_tracer(Tracer);
        undefined -> true
    end.

is_our_tracer(Tracer) ->
    is_tuple(Tracer) andalso element(1, Tracer) =:= erlmcp_memory_nif.

%% Who else traces on this node. Looked for before anything is switched on: the VM allows one tracer
%% for a process, so a second one would silently miss what the first one traces, and some releases
%% of OTP 27 crash when two trace sessions follow one process's collections.
other_tracer() ->
    case sessions() of
        [] -> first_tracer([new_processes | erlang:processes()]);
        Sessions -> {ok, {sessions, Sessions}}
    end.

%% The trace sessions of this node, if the VM has sessions, without that of erlang:trace/3, which is
%% used here and is checked process by process. The functions for sessions refuse that one.
sessions() ->
    Module = trace,
    case
        code:ensure_loaded(Module) =:= {module, Module} andalso
            erlang:function_exported(Module, session_info, 1) andalso
            Module:session_info(all)
    of
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
    case erlang:trace_info(Item, tracer) of
        {tracer, Tracer} ->
            %% Ours: of the running session, or left behind by a killed sampler.
            case Tracer =:= [] orelse is_our_tracer(Tracer) of
                true -> first_tracer(Rest);
                false -> {ok, Tracer}
            end;
        undefined ->
            %% it has ended since
            first_tracer(Rest)
    end;
first_tracer([]) ->
    none.
