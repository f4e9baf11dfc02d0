%% @private
%% @doc The process that takes a snapshot every interval, and opens the windows in which garbage
%% collections are timed.
%%
%% It is registered, so there is one session a node; a start while one runs ends that one first.
%% If the application is started, the sampler has a supervisor, which owns the native session with
%% the data, and a restarted sampler continues the session. If only the library is used, it has no
%% supervisor, and the session ends with it.
%%
%% In both cases it keeps running when the shell or the remote call that started it is gone.
-module(erlmcp_memory_sampler).
-behaviour(gen_server).

-export([defaults/0, start/1, start_link/1, stop/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([options/0]).

-include("erlmcp_memory.hrl").

-type options() :: #{
    interval_ms := pos_integer(),
    keep := pos_integer(),
    gc := boolean() | always,
    gc_window_ms := pos_integer(),
    gc_every_ms := pos_integer()
}.

-type argument() :: {options(), Owner :: pid() | self, Tag :: pos_integer()}.

-record(state, {
    %% the native session
    session :: reference(),
    options :: options(),
    %% whether trace flags are set, now and again, and all that were set were there when they were
    %% looked at
    gc :: boolean(),
    is_open = false :: boolean(),
    %% processes whose flags are still to be checked in this round
    to_look_at = [] :: [pid()],
    %% tells others of a snapshot
    teller = none :: pid() | none
}).

%% Processes whose flags are looked at with each snapshot, at most. Each is asked by a signal.
-define(AT_ONCE, 32).
%% How often a start is tried.
-define(TRIES, 10).
%% How often levels are checked when no monitor does.
-define(WATCH_MS, 5000).
%% How long the last snapshot and the flags of all processes may take.
-define(STOP_MS, 15000).

%% @doc The options of a session where none are given.
-spec defaults() -> options().
defaults() ->
    #{
        interval_ms => 5000, keep => 10080, gc => true, gc_window_ms => 10000, gc_every_ms => 60000
    }.

%% @doc Starts a session, after ending the running one. Anything that prevents the start is looked
%% for before that one is ended.
-spec start(options()) ->
    ok | {error, {already_traced, erlmcp_memory_profiler:tracer()} | notsup | timeout}.
start(#{gc := Gc} = Options) ->
    case erlmcp_memory_sample:total() of
        {ok, _} ->
            case Gc =/= false andalso erlmcp_memory_trace:other() of
                {ok, Tracer} -> {error, {already_traced, Tracer}};
                _ -> replace(Options)
            end;
        {error, notsup} ->
            {error, notsup}
    end.

replace(Options) ->
    replace(Options, ?TRIES).

replace(Options, Tries) ->
    case stop() of
        {error, timeout} = Error -> Error;
        _ -> replaced(Options, Tries)
    end.

replaced(Options, Tries) ->
    case start_one(Options, erlang:unique_integer([positive])) of
        {ok, _} ->
            ok;
        {error, {already_started, _}} ->
            %% Another caller was faster; the last one to start wins.
            replace(Options, Tries);
        {error, _} when Tries > 1 ->
            %% It was killed, or its supervisor ended, while it started.
            replace(Options, Tries - 1)
    end.

start_one(Options, Tag) ->
    Owner = erlmcp_memory_sup:sampler_sup(),
    try Owner =/= none andalso supervisor:start_child(Owner, [{Options, Owner, Tag}]) of
        false -> gen_server:start({local, ?MODULE}, ?MODULE, {Options, self, Tag}, []);
        Started -> Started
    catch
        %% The application is stopped in this moment.
        exit:{_, {gen_server, call, _}} -> start_one(Options, Tag)
    end.

%% @doc For the supervisor.
-spec start_link(argument()) -> gen_server:start_ret().
start_link(Argument) ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, Argument, []).

%% @doc Takes the last snapshot and ends the running session. One whose process is suspended, or busy
%% for too long, ends when that goes on.
-spec stop() -> ok | {error, profiling_not_started | timeout}.
stop() ->
    try
        gen_server:call(?MODULE, stop, ?STOP_MS)
    catch
        exit:{timeout, {gen_server, call, _}} -> {error, timeout};
        exit:{_, {gen_server, call, _}} -> {error, profiling_not_started}
    end.

%% @private
-spec init(argument()) -> {ok, #state{}}.
init({#{gc := Gc} = Options, Owner, Tag}) ->
    _ = process_flag(trap_exit, true),
    State =
        case resumed(Tag) of
            {ok, Running, Measured} ->
                %% What its predecessor had set is set again, unless another tracer is active.
                Measured andalso closed(Running),
                opened(#state{session = Running, options = Options, gc = Measured});
            none ->
                %% Other tracers were looked for by start/1.
                Measured = Gc =/= false,
                New = erlmcp_memory_nif:profiler_start(owner(Owner), keep(Options), Measured),
                ok = erlmcp_memory_nif:profiler_tag(New, Tag),
                opened(#state{session = New, options = Options, gc = Measured}, fun() -> none end)
        end,
    sample_later(State),
    watch_later(),
    {ok, sample(State)}.

owner(self) -> self();
owner(Owner) -> Owner.

keep(#{keep := Keep}) -> Keep.

%% The session that a sampler with this tag had.
resumed(Tag) ->
    case erlmcp_memory_nif:profiler_session() of
        undefined ->
            none;
        Session ->
            case erlmcp_memory_nif:profiler_status(Session) of
                #{tag := Tag, running := true, gc_measured := Measured} -> {ok, Session, Measured};
                _ -> none
            end
    end.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) ->
    {stop, normal, ok, #state{}} | {reply, ok | {error, unknown_request}, #state{}}.
handle_call(stop, _From, State) ->
    #state{session = Session} = Last = close(sample(State)),
    ok = erlmcp_memory_nif:profiler_stop(Session),
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
    sample_later(State),
    {noreply, sample(State)};
handle_info(open, #state{is_open = false} = State) ->
    {noreply, opened(State)};
handle_info(close, #state{is_open = true} = State) ->
    %% Flags that were cleared in the window are noticed before ours go.
    {noreply, close(looked(State))};
handle_info(watch, State) ->
    watch_later(),
    %% Where the application is started, its own process does that.
    _ = whereis(erlmcp_memory_monitor) =:= undefined andalso erlmcp_memory_watch:check(),
    {noreply, State};
handle_info(_Message, State) ->
    {noreply, State}.

%% @private
-spec terminate(term(), #state{}) -> term().
terminate(_Reason, State) ->
    close(State).

sample(State) ->
    #state{session = Session, teller = Teller} = Looked = looked(State),
    #memory_snapshot{} = Snapshot = erlmcp_memory_sample:measure(sampler),
    _ = erlmcp_memory_nif:profiler_push(Session, Snapshot),
    Looked#state{teller = erlmcp_memory_watch:sampled(Snapshot, Teller)}.

sample_later(#state{options = #{interval_ms := Interval}}) ->
    _ = erlang:send_after(Interval, self(), sample),
    ok.

watch_later() ->
    _ = erlang:send_after(?WATCH_MS, self(), watch),
    ok.

%%% Windows

%% Opens a window if no other tracer is active: else the next one is tried.
opened(State) ->
    opened(State, fun erlmcp_memory_trace:other/0).

opened(#state{gc = false} = State, _) ->
    State;
opened(#state{session = Session, options = #{gc := Gc} = Options} = State, Other) ->
    #{gc_window_ms := Window, gc_every_ms := Every} = Options,
    _ = Gc =:= true andalso erlang:send_after(Every, self(), open),
    case Other() of
        none ->
            ok = erlmcp_memory_nif:profiler_window(Session, open),
            case erlmcp_memory_trace:set() of
                true ->
                    ok = erlmcp_memory_nif:profiler_window(Session, count),
                    _ = Gc =:= true andalso erlang:send_after(Window, self(), close),
                    State#state{is_open = true, to_look_at = []};
                false ->
                    %% Somebody was faster.
                    closed(Session),
                    shut(State)
            end;
        {ok, _} ->
            shut(State)
    end.

%% The next window is tried, unless there is to be only one.
shut(#state{options = #{gc := true}} = State) -> State;
shut(State) -> lost(State).

close(#state{session = Session, is_open = true} = State) ->
    closed(Session),
    State#state{is_open = false, to_look_at = []};
close(State) ->
    State.

%% First nothing counts, then flags go, and last the tracer says that it wants none: before, it would
%% leave a process to another tracer with our flag on it.
closed(Session) ->
    ok = erlmcp_memory_nif:profiler_window(Session, stop),
    ok = erlmcp_memory_trace:clear(),
    ok = erlmcp_memory_nif:profiler_window(Session, close).

%% Another tool (`dbg', `recon_trace') may clear our flags in a window: those of all processes, of
%% the existing ones, of new ones or of single ones. So each time a few processes are checked in
%% turn, this one and new ones always. A window ends early if a trace session was started since.
looked(#state{is_open = false} = State) ->
    State;
looked(#state{options = #{gc := Gc}, to_look_at = ToLookAt} = State) ->
    case Gc =:= true andalso erlmcp_memory_trace:sessions() of
        [_ | _] ->
            close(State);
        _ when ToLookAt =:= [] ->
            looked(State, erlang:processes());
        _ ->
            looked(State, ToLookAt)
    end.

looked(State, Pids) ->
    {Some, Rest} = lists:split(min(?AT_ONCE, length(Pids)), Pids),
    case erlmcp_memory_trace:are_ours([self() | Some]) of
        true -> State#state{to_look_at = Rest};
        false -> lost(State)
    end.

%% What is left of our flags when some were taken dissolves by itself, since nothing counts any
%% more: process by process they could be taken for those of another tracer.
lost(#state{session = Session} = State) ->
    ok = erlmcp_memory_nif:profiler_gc_lost(Session),
    _ = erlmcp_memory_trace:clear_new(),
    State#state{gc = false, is_open = false, to_look_at = []}.
