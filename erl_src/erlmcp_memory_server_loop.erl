%% @private
%% @doc The engine of `erlmcp_memory_server': what `gen_server' does with messages, callbacks and
%% timeouts, and between them the parking.
%%
%% None of these functions returns to its caller: each ends with a call of the next one, and finally
%% with a wait or a callback in `erlmcp_memory_wait'. So the stack keeps nothing of a state that is
%% dropped, and a server continues in the newest version of this module.
-module(erlmcp_memory_server_loop).

-include("erlmcp_memory_parking.hrl").
-include("erlmcp_memory_server.hrl").

%% Called by `erlmcp_memory_server'.
-export([start/4, next/2, again/1, stop/3, state/2]).
%% Called by `erlmcp_memory_wait'.
-export([received/2, waited/1, slept/1, woken/1, returned/2]).

%% A server that sleeps until any message arrives, as most do.
-record(asleep_1, {
    parent :: pid(),
    name :: gen_server:server_name() | pid(),
    module :: module(),
    parking :: erlmcp_memory_parking:compact(),
    action :: infinity | hibernate,
    hibernate_after :: timeout()
}).

%% The same for a server without a name and settings of its own, in fewer words.
-record(calm_1, {
    parent :: pid(),
    module :: module(),
    parking :: erlmcp_memory_parking:compact()
}).

%% Why a server ends, and what to report about it.
-record(ending_1, {
    class = exit :: exit | error,
    reason :: term(),
    stacktrace :: erlang:stacktrace(),
    %% Whether a callback crashed, so that the report has the stack trace.
    is_crash = false :: boolean(),
    from = undefined :: undefined | gen_server:from(),
    message :: term(),
    reply = none :: none | {reply, term()}
}).

%%% Starting

%% @doc Calls `init' as soon as there is room for another server.
-spec start(Args :: term(), Starter :: pid(), Options :: [term()], server()) -> no_return().
start(Args, Starter, Options, Loop) ->
    start(Args, Starter, Options, erlmcp_memory_parking:start_wait(Options), Loop).

start(Args, Starter, Options, Left, #server_1{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:start(Left, Parking) of
        {started, Started} ->
            call(init, [Args], {init, Starter, Options}, Loop#server_1{parking = Started});
        {sleep, Ms, Then} ->
            erlmcp_memory_wait:sleep(?MODULE, {start_1, Args, Starter, Options, Then, Loop}, Ms)
    end.

%%% Waiting

%% @doc After a callback that wants this to happen next.
-spec next(erlmcp_memory_server_action:taken(), server()) -> no_return().
next({continue, Content}, #server_1{state = State} = Loop) ->
    call(handle_continue, [Content, State], {continue, Content}, Loop);
next({now, Message}, Loop) ->
    decode(Message, Loop#server_1{action = infinity, timer = none});
next({Action, Timer}, #server_1{action = Action, timer = Timer} = Loop) ->
    again(Loop);
next({Action, Timer}, Loop) ->
    again(Loop#server_1{action = Action, timer = Timer}).

%% @doc Waits for a message, from the beginning of the time that was asked for.
-spec again(server()) -> no_return().
again(#server_1{action = Time} = Loop) when is_integer(Time) ->
    %% One millisecond more, so that it never fires early.
    wait(Loop#server_1{until = now_ms() + Time + 1});
again(#server_1{until = none} = Loop) ->
    wait(Loop);
again(Loop) ->
    wait(Loop#server_1{until = none}).

wait(#server_1{action = Action, parking = Parking} = Loop) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true ->
            ok = erlmcp_memory_parking:remember(Parking),
            sleep(Loop);
        false when is_integer(Action), Action > 16#ffffffff ->
            %% Longer than the VM can wait: that ends this process, as it ends a gen_server.
            wait(timeout, Action, Loop);
        false ->
            {Crowd, Settled} = erlmcp_memory_parking:settle(Parking),
            case Crowd =:= crowded andalso Action =/= 0 of
                true -> wait(crowded, 0, parking(Settled, Loop));
                false -> wait_awake(Crowd, Action, parking(Settled, Loop))
            end
    end.

%% An unchanged record is not copied: copying it is most of what a message costs.
parking(Parking, #server_1{parking = Parking} = Loop) -> Loop;
parking(Parking, Loop) -> Loop#server_1{parking = Parking}.

%% `Time': what is left of an integer timeout.
wait_awake(_Crowd, hibernate, Loop) ->
    doze(Loop);
wait_awake(Crowd, Time, #server_1{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:idle_after(Crowd, Parking) of
        IdleAfter when is_integer(Time), Time =< IdleAfter -> wait(timeout, Time, Loop);
        infinity -> wait(hibernate, Loop#server_1.hibernate_after, Loop);
        IdleAfter -> wait(idle, IdleAfter, Loop)
    end.

wait(Plan, Time, #server_1{plan = Plan} = Loop) ->
    erlmcp_memory_wait:wait(?MODULE, Loop, Time);
wait(Plan, Time, Loop) ->
    erlmcp_memory_wait:wait(?MODULE, Loop#server_1{plan = Plan}, Time).

%% @private
%% @doc No message came in the time waited.
-spec waited(server()) -> no_return().
waited(#server_1{plan = timeout} = Loop) ->
    decode(timeout, Loop);
waited(#server_1{plan = hibernate} = Loop) ->
    doze(Loop);
waited(#server_1{plan = Reason, state = State, module = Module, parking = Parking} = Loop) ->
    case erlmcp_memory_parking:park(Reason, State, Module, Parking) of
        {parked, Parked} ->
            sleep(Loop#server_1{state = undefined, parking = Parked});
        {awake, Awake} when Reason =:= crowded ->
            wait_awake(calm, left(Loop), Loop#server_1{parking = Awake});
        {awake, Awake} ->
            doze(Loop#server_1{parking = Awake});
        {later, Ms, Awake} ->
            later(Ms, left(Loop), Loop#server_1{parking = Awake})
    end.

later(Ms, Left, Loop) when is_integer(Left), Left =< Ms -> wait(timeout, Left, Loop);
later(Ms, _Left, Loop) -> wait(idle, Ms, Loop).

left(#server_1{until = none, action = Action}) -> Action;
left(#server_1{until = Until}) -> max(0, Until - now_ms()).

now_ms() -> erlang:monotonic_time(millisecond).

%% Hibernates with the state parked.
sleep(#server_1{until = Until} = Loop) ->
    erlmcp_memory_parking:rest(?MODULE, asleep(alarm(Until, timeout, Loop))).

asleep(
    #server_1{
        timer = none,
        alarm = none,
        debug = [],
        name = Name,
        action = infinity,
        hibernate_after = infinity
    } = Loop
) when Name =:= self() ->
    #calm_1{
        parent = Loop#server_1.parent,
        module = Loop#server_1.module,
        parking = erlmcp_memory_parking:compact(Loop#server_1.parking)
    };
asleep(#server_1{timer = none, alarm = none, debug = []} = Loop) ->
    #asleep_1{
        parent = Loop#server_1.parent,
        name = Loop#server_1.name,
        module = Loop#server_1.module,
        parking = erlmcp_memory_parking:compact(Loop#server_1.parking),
        action = Loop#server_1.action,
        hibernate_after = Loop#server_1.hibernate_after
    };
asleep(Loop) ->
    Loop.

%% Hibernates with the state on the heap.
doze(#server_1{until = none, action = hibernate, parking = Parking} = Loop) ->
    IdleAfter = erlmcp_memory_parking:idle_after(Parking),
    case IdleAfter =:= infinity orelse erlmcp_memory_parking:is_refused(Parking) of
        true -> hibernate(Loop);
        false -> hibernate(alarm(now_ms() + IdleAfter, park, Loop))
    end;
doze(#server_1{until = Until} = Loop) ->
    hibernate(alarm(Until, timeout, Loop)).

hibernate(#server_1{parking = Parking} = Loop) ->
    Held = erlmcp_memory_parking:hold(Parking),
    erlmcp_memory_wait:hibernate(?MODULE, Loop#server_1{parking = Held}).

%% Alarms are set for a point in time, so that the time left does not drift.
alarm(none, _What, Loop) ->
    Loop;
alarm(Until, What, Loop) ->
    Timer = erlang:start_timer(Until, self(), ?MODULE, [{abs, true}]),
    Loop#server_1{alarm = {Timer, What}}.

%% Nothing else may see its message: neither a callback that receives nor a debugger.
cancel_alarm(Timer) ->
    case erlang:cancel_timer(Timer) of
        false ->
            %% It has fired, and its message may be on its way.
            receive
                {timeout, Timer, ?MODULE} -> ok
            end;
        _ ->
            ok
    end.

%% @private
%% @doc There is a message for a server that hibernates.
-spec woken(server() | #asleep_1{} | #calm_1{}) -> no_return().
woken(#calm_1{parent = Parent, module = Module, parking = Parking}) ->
    woken(#server_1{
        parent = Parent,
        name = self(),
        module = Module,
        parking = erlmcp_memory_parking:expand(Parking),
        hibernate_after = infinity
    });
woken(#asleep_1{} = Asleep) ->
    woken(#server_1{
        parent = Asleep#asleep_1.parent,
        name = Asleep#asleep_1.name,
        module = Asleep#asleep_1.module,
        parking = erlmcp_memory_parking:expand(Asleep#asleep_1.parking),
        action = Asleep#asleep_1.action,
        hibernate_after = Asleep#asleep_1.hibernate_after
    });
woken(Loop) ->
    erlmcp_memory_wait:wait(?MODULE, Loop, infinity).

%%% Messages

%% @private
%% @doc A message.
-spec received(Message :: term(), server()) -> no_return().
received({?TIDY, Times}, #server_1{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true ->
            Tidied = Loop#server_1{parking = erlmcp_memory_parking:tidy(Times, Parking)},
            %% The alarm goes on.
            erlmcp_memory_parking:rest(?MODULE, asleep(Tidied));
        false ->
            again(Loop)
    end;
received(Message, #server_1{alarm = none} = Loop) ->
    decode(Message, Loop);
received({timeout, Timer, _}, #server_1{alarm = {Timer, timeout}} = Loop) ->
    decode(timeout, Loop#server_1{alarm = none});
received({timeout, Timer, _}, #server_1{alarm = {Timer, park}} = Loop) ->
    %% Unless there is a message now.
    wait(idle, 0, Loop#server_1{alarm = none});
received(Message, #server_1{alarm = {Timer, _}} = Loop) ->
    ok = cancel_alarm(Timer),
    decode(Message, Loop#server_1{alarm = none}).

decode({system, From, Request}, #server_1{parent = Parent, debug = Debug} = Loop) ->
    ok = erlmcp_memory_parking:forget(Loop#server_1.parking),
    %% Never as hibernated: suspended, it would spin while a message of another kind waits.
    sys:handle_system_msg(Request, From, Parent, erlmcp_memory_server, Debug, Loop, false);
decode({'EXIT', Parent, Reason} = Message, #server_1{parent = Parent} = Loop) ->
    stop(Reason, Message, Loop);
decode({timeout, Ref, _Tag}, #server_1{timer = {Ref, Message}} = Loop) ->
    admit(Message, 0, Loop#server_1{timer = none});
decode({timeout, _, Tag} = Message, Loop) when is_atom(Tag) ->
    case erlmcp_memory_parking:tag() of
        %% It was cancelled too late.
        Tag -> again(Loop);
        _ -> decoded(Message, Loop)
    end;
decode(Message, Loop) ->
    decoded(Message, Loop).

decoded(Message, #server_1{timer = none} = Loop) ->
    admit(Message, 0, Loop);
decoded(Message, #server_1{timer = {Ref, _}} = Loop) ->
    ok = erlang:cancel_timer(Ref, [{async, true}, {info, false}]),
    admit(Message, 0, Loop#server_1{timer = none}).

%% While too much is awake, a message for the module waits before the state is unparked.
admit(Message, Slept, #server_1{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true ->
            case erlmcp_memory_parking:admit(urgency(Message), Slept, Parking) of
                admitted ->
                    handle(Message, awake(Loop));
                {sleep, Ms} ->
                    erlmcp_memory_wait:sleep(?MODULE, {admit_1, Message, Slept + Ms, Loop}, Ms)
            end;
        false ->
            handle(Message, Loop)
    end.

%% @private
%% @doc A message has waited, or a start.
-spec slept(
    {admit_1, Message :: term(), Slept :: pos_integer(), server()}
    | {start_1, Args :: term(), Starter :: pid(), Options :: [term()], Left :: timeout(), server()}
) -> no_return().
slept({admit_1, Message, Slept, Loop}) ->
    admit(Message, Slept, Loop);
slept({start_1, Args, Starter, Options, Left, Loop}) ->
    start(Args, Starter, Options, Left, Loop).

urgency({'$gen_call', _, _}) -> call;
urgency(_) -> other.

awake(#server_1{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true ->
            {State, Awake} = erlmcp_memory_parking:wake(Parking),
            Loop#server_1{state = State, parking = Awake};
        false ->
            Loop
    end.

handle(Message, Loop) ->
    dispatch(Message, debug({in, Message}, Loop)).

dispatch({'$gen_call', From, Request}, #server_1{state = State} = Loop) ->
    call(handle_call, [Request, From, State], {call, From, Request}, Loop);
dispatch({'$gen_cast', Request} = Message, #server_1{state = State} = Loop) ->
    call(handle_cast, [Request, State], {cast, Message}, Loop);
dispatch(Message, #server_1{state = State} = Loop) ->
    call(handle_info, [Message, State], {info, Message}, Loop).

debug(_Event, #server_1{debug = []} = Loop) ->
    Loop;
debug(Event, #server_1{debug = Debug, name = ServerName} = Loop) ->
    %% By name: a fun of this module would not outlive its second upgrade.
    Print = fun erlmcp_memory_server_report:print_event/3,
    Loop#server_1{debug = sys:handle_debug(Debug, Print, gen:name(ServerName), Event)}.

%%% Callbacks

%% Calls the module; the context tells what for.
-spec call(Function :: atom(), Args :: [term()], Context :: tuple(), server()) -> no_return().
call(Function, Args, Context, #server_1{module = Module} = Loop) ->
    erlmcp_memory_wait:call(Module, Function, Args, ?MODULE, {returned_1, Context, Loop}).

%% @private
%% @doc A callback has returned, or crashed.
-spec returned(erlmcp_memory_wait:outcome(), {returned_1, Context :: tuple(), server()}) ->
    no_return().
returned(Outcome, {returned_1, {init, Starter, Options}, Loop}) ->
    initialized(Outcome, Starter, Options, Loop);
returned(Outcome, {returned_1, {call, From, Request}, Loop}) ->
    called(Outcome, From, Request, Loop);
returned(Outcome, {returned_1, {cast, Message}, Loop}) ->
    handled(Outcome, undefined, Message, Loop);
returned(Outcome, {returned_1, {continue, _} = Message, Loop}) ->
    handled(Outcome, undefined, Message, debug(Message, Loop));
returned({error, undef, _} = Outcome, {returned_1, {info, Message}, Loop}) ->
    #server_1{module = Module, state = State} = Loop,
    %% The function itself may exist and have called one that does not.
    case erlang:function_exported(Module, handle_info, 2) of
        true ->
            handled(Outcome, undefined, Message, Loop);
        false ->
            erlmcp_memory_server_report:unhandled(Module, Message),
            handled({ok, {noreply, State}}, undefined, Message, Loop)
    end;
returned(Outcome, {returned_1, {info, Message}, Loop}) ->
    handled(Outcome, undefined, Message, Loop);
returned(Outcome, {returned_1, {terminate, Ending}, Loop}) ->
    terminated(Outcome, Ending, Loop).

called({ok, {reply, Reply, State}}, From, _Request, Loop) ->
    next({infinity, none}, replied(From, Reply, state(State, Loop)));
called({ok, {reply, Reply, State, Action} = Return}, From, Request, Loop) ->
    case take(Action) of
        error -> stop({bad_return_value, Return}, From, Request, Loop);
        foreign -> leave(State, Action, replied(From, Reply, state(State, Loop)));
        Taken -> next(Taken, replied(From, Reply, state(State, Loop)))
    end;
called({ok, {stop, Reason, Reply, State}}, From, Request, Loop) ->
    %% The reply is sent once it has terminated.
    Ending = ending(Reason, From, Request),
    terminate(Ending#ending_1{reply = {reply, Reply}}, state(State, Loop));
called(Outcome, From, Request, Loop) ->
    handled(Outcome, From, Request, Loop).

handled({ok, {noreply, State}}, _From, _Message, Loop) ->
    next({infinity, none}, debug({noreply, State}, state(State, Loop)));
handled({ok, {noreply, State, Action} = Return}, From, Message, Loop) ->
    case take(Action) of
        error -> stop({bad_return_value, Return}, From, Message, Loop);
        foreign -> leave(State, Action, state(State, Loop));
        Taken -> next(Taken, debug({noreply, State}, state(State, Loop)))
    end;
handled({ok, {stop, Reason, State}}, From, Message, Loop) ->
    stop(Reason, From, Message, state(State, Loop));
handled({ok, Return}, From, Message, Loop) ->
    stop({bad_return_value, Return}, From, Message, Loop);
handled({Class, Reason, Stacktrace}, From, Message, Loop) ->
    Crash = #ending_1{
        class = Class,
        reason = Reason,
        stacktrace = Stacktrace,
        is_crash = true,
        from = From,
        message = Message
    },
    terminate(Crash, Loop).

take(Action) ->
    erlmcp_memory_server_action:take(Action, erlmcp_memory_parking:tag()).

%% @doc The server with this state.
-spec state(State :: term(), server()) -> server().
state(New, #server_1{state = Old, parking = Parking} = Loop) ->
    case erts_debug:same(Old, New) of
        true -> Loop;
        false ->
            Changed = erlmcp_memory_parking:changed(Old, New, Parking),
            Loop#server_1{state = New, parking = Changed}
    end.

replied(From, Reply, #server_1{state = State} = Loop) ->
    %% Only that function knows all forms of a destination.
    _ = gen:reply(From, Reply),
    debug({out, Reply, From, State}, Loop).

%% A release newer than those reviewed may know this action: the server is a plain one from here.
leave(State, Action, #server_1{module = Module, name = ServerName} = Loop) ->
    gen_server:enter_loop(
        Module, [{hibernate_after, Loop#server_1.hibernate_after}], State, ServerName, Action
    ).

%%% The outcome of init

initialized({ok, {ok, State}}, Starter, _Options, Loop) ->
    proc_lib:init_ack(Starter, {ok, self()}),
    next({infinity, none}, Loop#server_1{state = State});
initialized({ok, {ok, State, Action}} = Outcome, Starter, Options, Loop) ->
    case take(Action) of
        error ->
            replay(Outcome, Starter, Options, Loop);
        foreign ->
            proc_lib:init_ack(Starter, {ok, self()}),
            leave(State, Action, Loop);
        Taken ->
            proc_lib:init_ack(Starter, {ok, self()}),
            next(Taken, Loop#server_1{state = State})
    end;
initialized(Outcome, Starter, Options, Loop) ->
    replay(Outcome, Starter, Options, Loop).

%% There is no server, and the running release decides what that means.
replay(Outcome, Starter, Options, #server_1{parent = Parent, name = ServerName}) ->
    %% Debugging was set up once already.
    Others = lists:keydelete(debug, 1, Options),
    gen_server:init_it(Starter, Parent, ServerName, erlmcp_memory_replay, Outcome, Others).

%%% Ending

%% @doc Ends for this reason.
-spec stop(Reason :: term(), Message :: term(), server()) -> no_return().
stop(Reason, Message, Loop) ->
    stop(Reason, undefined, Message, awake(Loop)).

stop(Reason, From, Message, Loop) ->
    terminate(ending(Reason, From, Message), Loop).

ending(Reason, From, Message) ->
    {current_stacktrace, Stacktrace} = process_info(self(), current_stacktrace),
    #ending_1{reason = Reason, stacktrace = Stacktrace, from = From, message = Message}.

terminate(Ending, #server_1{module = Module, state = State} = Loop) ->
    case erlang:function_exported(Module, terminate, 2) of
        true -> call(terminate, [reason(Ending), State], {terminate, Ending}, Loop);
        false -> terminated({ok, none}, Ending, Loop)
    end.

%% What a callback gets to see of a crash.
reason(#ending_1{class = error, reason = Reason, stacktrace = Stacktrace}) -> {Reason, Stacktrace};
reason(#ending_1{class = exit, reason = Reason}) -> Reason.

-spec terminated(erlmcp_memory_wait:outcome(), #ending_1{}, server()) -> no_return().
terminated({ok, _}, #ending_1{class = Class, reason = Reason} = Ending, Loop) ->
    #ending_1{stacktrace = Stacktrace, is_crash = IsCrash} = Ending,
    case {Class, Reason} of
        {exit, normal} -> ok;
        {exit, shutdown} -> ok;
        {exit, {shutdown, _}} -> ok;
        _ when IsCrash -> report(Reason, Stacktrace, Ending, Loop);
        _ -> report(Reason, undefined, Ending, Loop)
    end,
    ended(Class, Reason, Stacktrace, Ending, Loop);
terminated({Class, Reason, Stacktrace}, Ending, Loop) ->
    report(Reason, Stacktrace, Ending, Loop),
    ended(Class, Reason, Stacktrace, Ending, Loop).

report(Reason, Stacktrace, #ending_1{from = From, message = Message}, Loop) ->
    #server_1{name = ServerName, module = Module, state = State, debug = Debug} = Loop,
    Server = {gen:name(ServerName), Module, State, Debug},
    erlmcp_memory_server_report:terminating(Reason, Stacktrace, From, Message, Server).

-spec ended(error | exit, term(), erlang:stacktrace(), #ending_1{}, server()) -> no_return().
ended(Class, Reason, Stacktrace, #ending_1{reply = Reply, from = From}, Loop) ->
    _ =
        case Reply of
            none -> Loop;
            {reply, Term} -> replied(From, Term, Loop)
        end,
    erlang:raise(Class, Reason, Stacktrace).

