%% @private
%% @doc The process that holds the trace and takes a snapshot every interval.
%%
%% It is registered, so there is one session a node; a start while one runs ends that one first.
%% It is linked to nobody: a session belongs to the node, and goes on when the shell or the remote
%% call that started it is gone. The native session watches this process and ends with it; its data
%% lie there, so they outlive this process.
-module(erlmcp_memory_sampler).
-behaviour(gen_server).

-export([start/1, stop/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([options/0]).

-type options() :: #{interval_ms := pos_integer(), keep := pos_integer(), gc := boolean()}.

-record(state, {
    %% the native session
    session :: reference(),
    interval_ms :: pos_integer(),
    %% whether trace flags are to be cleared
    gc :: boolean()
}).

%% The same for every session: the VM takes two equal tracers for one.
-define(TRACER, {tracer, erlmcp_memory_nif, []}).

%% @doc Starts a session, after the end of the running one.
-spec start(options()) -> ok | {error, {already_traced, erlmcp_memory_profiler:tracer()}}.
start(Options) ->
    _ = stop(),
    case gen_server:start({local, ?MODULE}, ?MODULE, Options, []) of
        {ok, _} ->
            ok;
        {error, {already_started, _}} ->
            %% Another caller was faster; the last one to start wins.
            start(Options);
        {error, {shutdown, Reason}} ->
            {error, Reason}
    end.

%% @doc Takes the last snapshot and ends the running session.
-spec stop() -> ok | {error, profiling_not_started}.
stop() ->
    try
        gen_server:call(?MODULE, stop, infinity)
    catch
        exit:{_, {gen_server, call, _}} -> {error, profiling_not_started}
    end.

%% @private
-spec init(options()) ->
    {ok, #state{}} | {stop, {shutdown, {already_traced, erlmcp_memory_profiler:tracer()}}}.
init(#{interval_ms := Interval, keep := Keep, gc := Gc}) ->
    case Gc andalso other_tracer() of
        {ok, Tracer} ->
            {stop, {shutdown, {already_traced, Tracer}}};
        _ ->
            Session = erlmcp_memory_nif:profiler_start(self(), Keep, Gc),
            Gc andalso erlang:trace(processes, true, [garbage_collection, ?TRACER]),
            State = #state{session = Session, interval_ms = Interval, gc = Gc},
            sample(State),
            schedule(State),
            {ok, State}
    end.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) ->
    {stop, normal, ok, #state{}} | {reply, {error, unknown_request}, #state{}}.
handle_call(stop, _From, #state{session = Session, gc = Gc} = State) ->
    sample(State),
    ok = erlmcp_memory_nif:profiler_stop(Session),
    Gc andalso erlang:trace(processes, false, [garbage_collection]),
    {stop, normal, ok, State};
handle_call(_Request, _From, State) ->
    {reply, {error, unknown_request}, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(_Message, State) ->
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(sample, State) ->
    sample(State),
    schedule(State),
    {noreply, State};
handle_info(_Message, State) ->
    {noreply, State}.

sample(#state{session = Session}) ->
    true = erlmcp_memory_nif:profiler_push(Session, erlmcp_memory_snapshot:measure(sampler)),
    ok.

schedule(#state{interval_ms = Interval}) ->
    _ = erlang:send_after(Interval, self(), sample),
    ok.

%% Who else traces on this node. Looked for before anything is switched on: the VM gives a process
%% one tracer, so a second one would silently miss what the first one has, and some releases of
%% OTP 27 crash when two trace sessions follow one process's collections.
other_tracer() ->
    case sessions() of
        [] -> first_tracer([new_processes | erlang:processes()]);
        Sessions -> {ok, {sessions, Sessions}}
    end.

%% The trace sessions of this node, where the VM has such: without that of erlang:trace/3, which is
%% used here and is looked at process by process. The functions for sessions refuse that one.
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
            case is_ours(Tracer) of
                true -> first_tracer(Rest);
                false -> {ok, Tracer}
            end;
        undefined ->
            %% gone meanwhile
            first_tracer(Rest)
    end;
first_tracer([]) ->
    none.

%% None, or left behind by a killed sampler. A tracer module comes back as {Module, State}, which
%% the type of erlang:trace_info/2 forgets; hence no pattern.
is_ours(Tracer) ->
    Tracer =:= [] orelse (is_tuple(Tracer) andalso element(1, Tracer) =:= erlmcp_memory_nif).
