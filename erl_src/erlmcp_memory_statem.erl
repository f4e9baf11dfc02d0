%% @doc `gen_statem' for processes that are idle most of the time: while one is, its data take a
%% small part of the memory.
%%
%% Of a callback module of `gen_statem', one line changes:
%% ```
%% gen_statem:start_link(?MODULE, Args, Options)             % before
%% erlmcp_memory_statem:start_link(?MODULE, Args, Options)   % after
%% '''
%%
%% When no message has come for `connection_idle_after' milliseconds, the data are <em>parked</em>:
%% packed off the heap, with their equal parts shared among all that is parked on the node, and the
%% process hibernates. The next message unparks them first. The state itself, postponed events and
%% timeouts are not touched. See {@link erlmcp_memory_server} for the settings and for how the
%% memory of a node is kept within its limit when many processes wake at once; all of it holds here.
%%
%% Everything else is as with `gen_statem': callbacks, return values, actions, timeouts, names,
%% links, `sys' and releases. Clients use the functions of `gen_statem', such as
%% `gen_statem:call/2'. With the setting `connection_state_compact' set to `false', the processes are
%% plain ones of `gen_statem' that hibernate after their idle time.
%%
%% What differs can be seen by looking closely at a process: stack traces name modules of this
%% library, `sys:get_status/1' says `{module, erlmcp_memory_statem}', a failing function in
%% `sys:replace_state/2' is said to have failed in this module. Such a function that does not return
%% `{State, Data}' has failed, too. And where `gen_statem' has faults, this module does what is
%% documented: a timeout of zero milliseconds may be replaced by a longer one before it is over (which
%% `gen_statem' before OTP 28 forgets), and a timeout action with options and a wrong time is a bad
%% action in all releases.
-module(erlmcp_memory_statem).

-export([start/3, start/4, start_link/3, start_link/4, start_monitor/3, start_monitor/4]).
-export([enter_loop/4, enter_loop/5, enter_loop/6]).

%% For gen and sys.
-export([init_it/6]).
-export([
    system_continue/3,
    system_terminate/4,
    system_code_change/4,
    system_get_state/1,
    system_replace_state/2,
    format_status/2
]).

%% For erlmcp_memory_wait.
-export([received/2, waited/1, slept/1, woken/1, returned/2]).

-export_type([option/0, enter_loop_option/0, then/0]).

-include("erlmcp_memory_error.hrl").
-include("erlmcp_memory_statem.hrl").

-type option() :: gen_statem:start_opt() | {idle_after, timeout()}.
%% An option of a start.

-type enter_loop_option() :: gen_statem:enter_loop_opt() | {idle_after, timeout()}.
%% An option of `enter_loop'.

-type then() ::
    rest
    | hibernate
    | {park, erlmcp_memory_parking:reason()}
    | {
        admit,
        erlmcp_memory_statem_report:event(),
        erlmcp_memory_parking:urgency(),
        Slept :: non_neg_integer()
    }.
%% What a machine goes on with after it has waited or slept. @private

%%% Start

%% @doc As `gen_statem:start/3'.
-spec start(module(), Args :: term(), [option()]) -> gen_statem:start_ret().
start(Module, Args, Options) ->
    started(?FUNCTION_NAME, nolink, [Module, Args, Options], Options).

%% @doc As `gen_statem:start/4'.
-spec start(gen_statem:server_name(), module(), Args :: term(), [option()]) ->
    gen_statem:start_ret().
start(ServerName, Module, Args, Options) ->
    started(?FUNCTION_NAME, nolink, [ServerName, Module, Args, Options], Options).

%% @doc As `gen_statem:start_link/3'.
-spec start_link(module(), Args :: term(), [option()]) -> gen_statem:start_ret().
start_link(Module, Args, Options) ->
    started(?FUNCTION_NAME, link, [Module, Args, Options], Options).

%% @doc As `gen_statem:start_link/4'.
-spec start_link(gen_statem:server_name(), module(), Args :: term(), [option()]) ->
    gen_statem:start_ret().
start_link(ServerName, Module, Args, Options) ->
    started(?FUNCTION_NAME, link, [ServerName, Module, Args, Options], Options).

%% @doc As `gen_statem:start_monitor/3'.
-spec start_monitor(module(), Args :: term(), [option()]) -> gen_statem:start_mon_ret().
start_monitor(Module, Args, Options) ->
    started(?FUNCTION_NAME, monitor, [Module, Args, Options], Options).

%% @doc As `gen_statem:start_monitor/4'.
-spec start_monitor(gen_statem:server_name(), module(), Args :: term(), [option()]) ->
    gen_statem:start_mon_ret().
start_monitor(ServerName, Module, Args, Options) ->
    started(?FUNCTION_NAME, monitor, [ServerName, Module, Args, Options], Options).

started(Function, Link, Args, Options) ->
    case is_start(Args) andalso erlmcp_memory_parking:options(Options) of
        {park, Known} ->
            apply(gen, start, [?MODULE, Link | lists:droplast(Args) ++ [Known]]);
        {plain, Known} ->
            apply(gen_statem, Function, lists:droplast(Args) ++ [Known]);
        {badarg, Text} ->
            ?BADARG(Args, length(Args), Text);
        {error, _} = Invalid ->
            Invalid;
        %% It raises what it raises in this release.
        false ->
            apply(gen_statem, Function, Args)
    end.

is_start([Module, _, Options]) -> is_atom(Module) andalso is_list(Options);
is_start([Name | Rest]) -> is_tuple(Name) andalso is_start(Rest).

%% @doc As `gen_statem:enter_loop/4'.
-spec enter_loop(module(), [enter_loop_option()], State :: term(), Data :: term()) -> no_return().
enter_loop(Module, Options, State, Data) ->
    enter_loop(Module, Options, State, Data, self(), []).

%% @doc As `gen_statem:enter_loop/5'.
-spec enter_loop(
    module(),
    [enter_loop_option()],
    State :: term(),
    Data :: term(),
    ServerOrActions :: gen_statem:server_name() | pid() | [gen_statem:action()]
) -> no_return().
enter_loop(Module, Options, State, Data, Actions) when is_list(Actions) ->
    enter_loop(Module, Options, State, Data, self(), Actions);
enter_loop(Module, Options, State, Data, Server) ->
    enter_loop(Module, Options, State, Data, Server, []).

%% @doc As `gen_statem:enter_loop/6'.
-spec enter_loop(
    module(),
    [enter_loop_option()],
    State :: term(),
    Data :: term(),
    gen_statem:server_name() | pid(),
    [gen_statem:action()] | gen_statem:action()
) -> no_return().
enter_loop(Module, Options, State, Data, Server, Actions) when is_atom(Module), is_list(Options) ->
    case erlmcp_memory_parking:options(Options) of
        {park, Known} ->
            Parent = gen:get_parent(),
            Loop = loop(Module, gen:get_proc_name(Server), Parent, Known),
            enter(Loop#loop{state = State, data = Data}, Actions);
        {plain, Known} ->
            gen_statem:enter_loop(Module, Known, State, Data, Server, Actions);
        {badarg, Text} ->
            ?BADARG([Module, Options, State, Data, Server, Actions], 2, Text);
        {error, Invalid} ->
            error(Invalid)
    end;
enter_loop(Module, Options, State, Data, Server, Actions) ->
    gen_statem:enter_loop(Module, Options, State, Data, Server, Actions).

%% @private
-spec init_it(pid(), pid() | self, term(), module(), term(), list()) -> no_return().
init_it(Starter, self, ServerRef, Module, Args, Options) ->
    init_it(Starter, self(), ServerRef, Module, Args, Options);
init_it(Starter, Parent, ServerRef, Module, Args, Options) ->
    Loop = loop(Module, gen:get_proc_name(ServerRef), Parent, Options),
    erlmcp_memory_wait:call(Module, init, [Args], ?MODULE, {init, Starter, ServerRef, Loop}).

loop(Module, Name, Parent, Options) ->
    #loop{
        name = Name,
        parent = Parent,
        debug = gen:debug_options(Name, Options),
        modules = [Module],
        hibernate_after = gen:hibernate_after(Options),
        parking = erlmcp_memory_parking:new(Options)
    }.

initiated({ok, {ok, State, Data}}, Starter, _ServerRef, Loop) ->
    acknowledged(Starter, Loop#loop{state = State, data = Data}, []);
initiated({ok, {ok, State, Data, Actions}}, Starter, _ServerRef, Loop) ->
    acknowledged(Starter, Loop#loop{state = State, data = Data}, Actions);
initiated({ok, Result} = Outcome, Starter, ServerRef, Loop) ->
    case is_refusal(Result) of
        true ->
            Parent = Loop#loop.parent,
            gen_statem:init_it(Starter, Parent, ServerRef, erlmcp_memory_replay, Outcome, []);
        false ->
            Reason = {bad_return_from_init, Result},
            failed(error, Reason, stack(), Starter, ServerRef, Loop),
            exit(Reason)
    end;
initiated({Class, Reason, Stack}, Starter, ServerRef, Loop) ->
    failed(Class, Reason, Stack, Starter, ServerRef, Loop),
    Library = proc_lib,
    case init_fails() of
        true -> Library:init_fail(Starter, {error, Reason}, {Class, Reason, Stack});
        false -> erlang:raise(Class, Reason, Stack)
    end.

is_refusal(ignore) -> true;
is_refusal({stop, _}) -> true;
is_refusal({error, _}) -> init_fails();
is_refusal(_) -> false.

%% From OTP 26 on the starter learns of a failure when the process is gone.
init_fails() ->
    erlang:function_exported(proc_lib, init_fail, 3).

acknowledged(Starter, Loop, Actions) ->
    proc_lib:init_ack(Starter, {ok, self()}),
    enter(Loop, Actions).

%% As gen_statem does it, whose report would name another module.
failed(Class, Reason, Stack, Starter, ServerRef, Loop) ->
    gen:unregister_name(ServerRef),
    init_fails() orelse proc_lib:init_ack(Starter, {error, Reason}),
    erlmcp_memory_statem_report:crash(Class, Reason, Stack, Loop, []).

enter(#loop{modules = Modules} = Loop, Actions) ->
    case erlmcp_memory_statem_step:mode(Modules, Loop) of
        #loop{modules = [Module | _], state = State} = Entered ->
            Debugged = erlmcp_memory_statem_report:debug({enter, Module, State}, Entered),
            next(erlmcp_memory_statem_step:first(Debugged, Actions));
        {Class, Reason, Stack} ->
            terminate(Class, Reason, Stack, Loop, [{internal, init_state}])
    end.

%%% The loop: wait for an event, handle it and all that it leads to
%%%
%%% erlmcp_memory_wait waits and calls, and goes on with the exported functions below.

%% Where no event is left. What is parked stays so: what came last was not for the module.
wait(#loop{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true ->
            wait(rest, 0, Loop);
        false ->
            case erlmcp_memory_parking:settle(Parking) of
                {How, Parking} -> wait_awake(How, Loop);
                {How, Now} -> wait_awake(How, Loop#loop{parking = Now})
            end
    end.

wait_awake(crowded, Loop) ->
    wait({park, crowded}, 0, Loop);
wait_awake(calm, #loop{hibernate = true} = Loop) ->
    wait(hibernate, 0, Loop);
wait_awake(calm, #loop{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:idle_after(Parking) of
        infinity -> wait(hibernate, Loop#loop.hibernate_after, Loop);
        IdleAfter -> wait({park, idle}, IdleAfter, Loop)
    end.

%% Most often it goes on as it did the last time.
wait(Then, Timeout, #loop{then = Then} = Loop) ->
    erlmcp_memory_wait:wait(?MODULE, Loop, Timeout);
wait(Then, Timeout, Loop) ->
    erlmcp_memory_wait:wait(?MODULE, Loop#loop{then = Then}, Timeout).

%% @private
-spec waited(#loop{}) -> no_return().
waited(Loop) ->
    nothing(current(Loop)).

nothing(#loop{then = rest} = Loop) ->
    erlmcp_memory_parking:rest(?MODULE, asleep(Loop));
nothing(#loop{then = hibernate} = Loop) ->
    #loop{parking = Parking} = Timed = with_timer(Loop),
    Held = erlmcp_memory_parking:hold(Parking),
    erlmcp_memory_wait:hibernate(?MODULE, Timed#loop{parking = Held});
nothing(#loop{then = {park, Reason}, modules = [Module | _], parking = Parking} = Loop) ->
    case erlmcp_memory_parking:park(Reason, Loop#loop.data, Module, Parking) of
        {parked, Now} ->
            nothing(Loop#loop{then = rest, data = undefined, parking = Now});
        {later, Time, Now} ->
            wait({park, Reason}, Time, Loop#loop{parking = Now});
        {awake, Now} when Reason =:= crowded ->
            wait_awake(calm, Loop#loop{parking = Now});
        {awake, Now} ->
            wait(hibernate, 0, Loop#loop{parking = Now})
    end.

asleep(#loop{debug = [], postponed = [], hibernate = false, timer = undefined} = Loop) ->
    case erlmcp_memory_statem_timers:is_empty(Loop#loop.timers) of
        true ->
            #asleep{
                name = Loop#loop.name,
                parent = Loop#loop.parent,
                modules = Loop#loop.modules,
                mode = Loop#loop.mode,
                enter = Loop#loop.enter,
                state = Loop#loop.state,
                hibernate_after = Loop#loop.hibernate_after,
                parking = erlmcp_memory_parking:compact(Loop#loop.parking)
            };
        false ->
            Loop
    end;
asleep(Loop) ->
    Loop.

%% One that an action has sent into hibernation keeps its data awake for the idle time. No receive
%% can be left after a time meanwhile, so a timer ends it.
with_timer(#loop{timer = undefined, parking = Parking} = Loop) ->
    IdleAfter = erlmcp_memory_parking:idle_after(Parking),
    case IdleAfter =:= infinity orelse erlmcp_memory_parking:is_refused(Parking) of
        true -> Loop;
        false -> Loop#loop{timer = erlang:start_timer(IdleAfter, self(), ?MODULE)}
    end;
with_timer(Loop) ->
    Loop.

without_timer(#loop{timer = undefined} = Loop) ->
    Loop;
without_timer(#loop{timer = Ref, timers = Timers} = Loop) ->
    Loop#loop{timer = undefined, timers = erlmcp_memory_statem_timers:stop(Ref, Timers)}.

%% @private
-spec woken(#loop{} | #asleep{}) -> no_return().
woken(Loop) ->
    %% If there is no message, it goes back to where it was.
    erlmcp_memory_wait:wait(?MODULE, current(Loop), 0).

%% @private
-spec received(Message :: term(), #loop{}) -> no_return().
received(Message, Old) ->
    case {Message, current(Old)} of
        {{timeout, Ref, ?MODULE}, #loop{timer = Ref} = Loop} when is_reference(Ref) ->
            wait({park, idle}, 0, Loop#loop{timer = undefined});
        {_, Loop} ->
            message(Message, without_timer(Loop))
    end.

message({'$gen_call', From, Request}, Loop) ->
    event({{call, From}, Request}, call, Loop);
message({'$gen_cast', Request}, Loop) ->
    event({cast, Request}, other, Loop);
message({timeout, Ref, Type} = Message, #loop{timers = Timers} = Loop) ->
    case erlmcp_memory_statem_timers:message(Ref, Type, Timers) of
        {timeout, Content, Left} -> event({Type, Content}, other, Loop#loop{timers = Left});
        {late, Left} -> wait(Loop#loop{timers = Left});
        foreign -> event({info, Message}, other, Loop)
    end;
message({system, From, Request}, #loop{parent = Parent, debug = Debug} = Loop) ->
    %% Never hibernating: a suspended process that hibernates spins while a message waits.
    Suspendable = Loop#loop{debug = []},
    sys:handle_system_msg(Request, From, Parent, ?MODULE, Debug, Suspendable, false);
message({'EXIT', Parent, Reason}, #loop{parent = Parent} = Loop) ->
    terminate(exit, Reason, stack(), Loop, []);
message(Message, Loop) ->
    event({info, Message}, other, Loop).

event(Event, Urgency, #loop{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true -> admit(Event, Urgency, 0, Loop);
        false -> handle_new(Event, false, Loop)
    end.

admit(Event, Urgency, Slept, #loop{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:admit(Urgency, Slept, Parking) of
        admitted ->
            handle_new(Event, false, awake(Loop));
        {sleep, Time} ->
            Then = {admit, Event, Urgency, Slept + Time},
            erlmcp_memory_wait:sleep(?MODULE, Loop#loop{then = Then}, Time)
    end.

%% @private
-spec slept(#loop{}) -> no_return().
slept(Loop) ->
    #loop{then = {admit, Event, Urgency, Slept}} = Now = current(Loop),
    admit(Event, Urgency, Slept, Now#loop{then = rest}).

awake(#loop{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true ->
            {Data, Now} = erlmcp_memory_parking:wake(Parking),
            Loop#loop{data = Data, parking = Now};
        false ->
            Loop
    end.

handle_new(Event, Hibernate, #loop{state = State} = Loop) ->
    handle([Event], Hibernate, ?DEBUG({in, Event, State}, Loop)).

handle([Event | _] = Queue, Hibernate, Loop) ->
    callback(Event, erlmcp_memory_statem_step:event(Loop, Queue, Hibernate)).

callback({Type, Content}, #step{state = State, data = Data, loop = Loop} = Step) ->
    case Loop of
        #loop{mode = state_functions, modules = [Module | _]} ->
            erlmcp_memory_wait:call(Module, State, [Type, Content, Data], ?MODULE, Step);
        #loop{mode = handle_event_function, modules = [Module | _]} ->
            Args = [Type, Content, State, Data],
            erlmcp_memory_wait:call(Module, handle_event, Args, ?MODULE, Step)
    end.

%% @private
-spec returned(erlmcp_memory_wait:outcome(), Context :: term()) -> no_return().
returned(Outcome, #step{} = Old) ->
    #step{loop = Loop, queue = Queue} = Step = current(Old),
    case Outcome of
        {ok, Result} -> next(erlmcp_memory_statem_step:result(Result, Step));
        {Class, Reason, Stack} -> terminate(Class, Reason, Stack, Loop, Queue)
    end;
returned(Outcome, {init, Starter, ServerRef, Loop}) ->
    initiated(Outcome, Starter, ServerRef, current(Loop));
returned(Outcome, {terminate, Class, Reason, Stack, Loop, Queue}) ->
    terminated(Outcome, Class, Reason, Stack, current(Loop), Queue).

next({enter, #step{loop = #loop{state = Last}} = Step}) ->
    callback({enter, Last}, Step);
next({done, #loop{hibernate = Hibernate} = Loop, [_ | _] = Queue}) ->
    %% It would have been collected if it had hibernated.
    _ = Hibernate andalso erlang:garbage_collect(),
    handle(Queue, carried(Hibernate), Loop);
next({done, #loop{hibernate = Hibernate, timers = Timers} = Loop, []}) ->
    case erlmcp_memory_statem_timers:due(Timers) of
        none ->
            wait(Loop);
        {Type, Content, Left} ->
            _ = Hibernate andalso erlang:garbage_collect(),
            handle_new({Type, Content}, carried(Hibernate), Loop#loop{timers = Left})
    end;
next({stop, Class, Reason, Stack, #step{loop = Loop, queue = Queue}}) ->
    terminate(Class, Reason, Stack, Loop, Queue).

%% From OTP 28 on, an event that is handled in the place of hibernation leads to it.
carried(Hibernate) ->
    Hibernate andalso erlang:system_info(otp_release) >= "28".

%% Loops and steps of older versions become those of this one here.
current(#asleep{version = ?LOOP_VERSION} = Asleep) ->
    #loop{
        name = Asleep#asleep.name,
        parent = Asleep#asleep.parent,
        modules = Asleep#asleep.modules,
        mode = Asleep#asleep.mode,
        enter = Asleep#asleep.enter,
        state = Asleep#asleep.state,
        hibernate_after = Asleep#asleep.hibernate_after,
        parking = erlmcp_memory_parking:expand(Asleep#asleep.parking),
        then = rest
    };
current(#loop{version = ?LOOP_VERSION} = Loop) -> Loop;
current(#step{loop = #loop{version = ?LOOP_VERSION}} = Step) -> Step.

%%% The end

terminate(Class, Reason, Stack, Loop, Queue) ->
    #loop{modules = [Module | _], state = State, data = Data} = Awake = awake(Loop),
    case erlang:function_exported(Module, terminate, 3) of
        true ->
            Context = {terminate, Class, Reason, Stack, Awake, Queue},
            erlmcp_memory_wait:call(Module, terminate, [Reason, State, Data], ?MODULE, Context);
        false ->
            terminated({ok, ok}, Class, Reason, Stack, Awake, Queue)
    end.

-spec terminated(
    erlmcp_memory_wait:outcome(),
    error | exit,
    Reason :: term(),
    Stack :: list(),
    #loop{},
    [erlmcp_memory_statem_report:event()]
) -> no_return().
terminated({ok, _}, Class, Reason, Stack, #loop{state = State} = Loop, Queue) ->
    _ =
        case is_normal(Reason) of
            true -> erlmcp_memory_statem_report:debug({terminate, Reason, State}, Loop);
            false -> erlmcp_memory_statem_report:crash(Class, Reason, Stack, Loop, Queue)
        end,
    erlang:raise(Class, Reason, Stack);
terminated({Class, Reason, Stack}, _, _, _, Loop, Queue) ->
    erlmcp_memory_statem_report:crash(Class, Reason, Stack, Loop, Queue),
    erlang:raise(Class, Reason, Stack).

is_normal(normal) -> true;
is_normal(shutdown) -> true;
is_normal({shutdown, _}) -> true;
is_normal(_) -> false.

stack() ->
    element(2, process_info(self(), current_stacktrace)).

%%% sys

%% @private
-spec system_continue(pid(), [sys:dbg_opt()], #loop{}) -> no_return().
system_continue(Parent, Debug, Loop) ->
    wait((current(Loop))#loop{parent = Parent, debug = Debug}).

%% @private
-spec system_terminate(term(), pid(), [sys:dbg_opt()], #loop{}) -> no_return().
system_terminate(Reason, Parent, Debug, Loop) ->
    terminate(exit, Reason, stack(), (current(Loop))#loop{parent = Parent, debug = Debug}, []).

%% @private
-spec system_code_change(#loop{}, module(), term(), term()) -> {ok, #loop{}} | term().
system_code_change(Old, _Module, OldVsn, Extra) ->
    #loop{modules = [Module | _] = Modules, state = State} = Loop = current(Old),
    Data = data(Loop),
    case erlmcp_memory_wait:call(Module, code_change, [OldVsn, State, Data, Extra]) of
        {ok, {ok, NewState, NewData}} ->
            case erlmcp_memory_statem_step:mode(Modules, Loop) of
                #loop{} = Changed -> {ok, changed(NewState, Data, NewData, Changed)};
                {Class, Reason, Stack} -> erlang:raise(Class, Reason, Stack)
            end;
        {ok, {ok, _} = Bad} ->
            error({case_clause, Bad});
        {ok, Failure} ->
            Failure;
        {Class, Reason, Stack} ->
            erlang:raise(Class, Reason, Stack)
    end.

%% @private
-spec system_get_state(#loop{}) -> {ok, {State :: term(), Data :: term()}}.
system_get_state(Old) ->
    #loop{state = State} = Loop = current(Old),
    {ok, {State, data(Loop)}}.

%% @private
-spec system_replace_state(fun((term()) -> term()), #loop{}) -> {ok, term(), #loop{}}.
system_replace_state(Fun, Old) ->
    #loop{state = State} = Loop = current(Old),
    Data = data(Loop),
    {NewState, NewData} = Replaced = Fun({State, Data}),
    {ok, Replaced, changed(NewState, Data, NewData, Loop)}.

%% @private
-spec format_status(normal | terminate, list()) -> list().
format_status(Option, [Dictionary, SysState, Parent, Debug, Old]) ->
    Loop = current(Old),
    Shown = Loop#loop{parent = Parent, debug = Debug, data = data(Loop)},
    erlmcp_memory_statem_report:status(Option, Dictionary, SysState, Shown).

%% The data, of which what is parked stays so.
data(#loop{data = Data, parking = Parking}) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true -> erlmcp_memory_parking:peek(Parking);
        false -> Data
    end.

%% Other data in the place of those: parked, if they were.
changed(State, Data, NewData, #loop{parking = Parking, modules = [Module | _]} = Loop) ->
    IsParked = erlmcp_memory_parking:is_parked(Parking),
    case IsParked andalso not erts_debug:same(Data, NewData) of
        true ->
            case erlmcp_memory_parking:replace(NewData, Module, Parking) of
                {parked, Now} -> Loop#loop{state = State, parking = Now};
                {awake, Now} -> Loop#loop{state = State, data = NewData, parking = Now}
            end;
        false when IsParked ->
            Loop#loop{state = State};
        false ->
            Now = erlmcp_memory_parking:changed(Data, NewData, Parking),
            Loop#loop{state = State, data = NewData, parking = Now}
    end.
