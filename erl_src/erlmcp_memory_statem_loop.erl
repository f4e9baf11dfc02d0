%% @private
%% @doc The engine of `erlmcp_memory_statem': it waits for an event, handles it and everything that
%% follows from it, and waits again, with the data parked if the wait is long.
%%
%% None of these functions returns to its caller: each ends with a call of the next one, and finally
%% with a wait or a callback in `erlmcp_memory_wait', which continues with the functions that are
%% exported for it. So the stack keeps nothing of data that were dropped, and a machine continues in
%% the newest version of this module.
-module(erlmcp_memory_statem_loop).

%% For erlmcp_memory_statem.
-export([start/1, enter/2, wait/1, terminate/5, current/1]).

%% For erlmcp_memory_wait.
-export([received/2, waited/1, slept/1, woken/1, returned/2]).

-export_type([then/0]).

-include("erlmcp_memory_parking.hrl").
-include("erlmcp_memory_statem.hrl").

-type start() ::
    {
        start,
        Args :: term(),
        Starter :: pid(),
        gen_statem:server_name() | pid(),
        Left :: timeout(),
        #loop{}
    }.
%% A start, and how long it may wait.

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
%% What a machine continues with after it has waited or slept.

%% @doc Calls `init' as soon as there is room for another machine.
-spec start(start()) -> no_return().
start({start, Args, Starter, ServerRef, Left, #loop{modules = [Module], parking = Parking} = Loop}) ->
    case erlmcp_memory_parking:start(Left, Parking) of
        {started, Started} ->
            Init = {init, Starter, ServerRef, Loop#loop{parking = Started}},
            erlmcp_memory_wait:call(Module, init, [Args], ?MODULE, Init);
        {sleep, Ms, Then} ->
            erlmcp_memory_wait:sleep(?MODULE, {start, Args, Starter, ServerRef, Then, Loop}, Ms)
    end.

%% @doc Enters the first state, once the start was acknowledged.
-spec enter(#loop{}, Actions :: term()) -> no_return().
enter(#loop{modules = Modules} = Loop, Actions) ->
    case erlmcp_memory_statem_step:mode(Modules, Loop) of
        #loop{modules = [Module | _], state = State} = Entered ->
            Debugged = erlmcp_memory_statem_report:debug({enter, Module, State}, Entered),
            next(erlmcp_memory_statem_step:first(Debugged, Actions));
        {Class, Reason, Stack} ->
            terminate(Class, Reason, Stack, Loop, [{internal, init_state}])
    end.

%%% Waiting

%% @doc To be called when no event is left. Parked data stay parked: the last message was not for
%% the module.
-spec wait(#loop{}) -> no_return().
wait(#loop{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true ->
            ok = erlmcp_memory_parking:remember(Parking),
            wait(rest, 0, Loop);
        false ->
            case erlmcp_memory_parking:settle(Parking) of
                {How, Parking} -> wait_awake(How, Loop);
                {How, Now} -> wait_awake(How, Loop#loop{parking = Now})
            end
    end.

wait_awake(crowded, Loop) ->
    wait({park, crowded}, 0, Loop);
wait_awake(_Crowd, #loop{hibernate = true} = Loop) ->
    wait(hibernate, 0, Loop);
wait_awake(Crowd, #loop{parking = Parking} = Loop) ->
    case erlmcp_memory_parking:idle_after(Crowd, Parking) of
        infinity -> wait(hibernate, Loop#loop.hibernate_after, Loop);
        IdleAfter -> wait({park, idle}, IdleAfter, Loop)
    end.

%% Usually it continues as it did last time.
wait(Then, Timeout, #loop{then = Then} = Loop) ->
    erlmcp_memory_wait:wait(?MODULE, Loop, Timeout);
wait(Then, Timeout, Loop) ->
    erlmcp_memory_wait:wait(?MODULE, Loop#loop{then = Then}, Timeout).

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

%% A machine that an action has sent into hibernation keeps its data awake for the idle time.
%% Hibernation has no timeout, so a timer ends it.
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

-spec woken(#loop{} | #asleep{}) -> no_return().
woken(Loop) ->
    %% If there is no message, it returns to where it was.
    erlmcp_memory_wait:wait(?MODULE, current(Loop), 0).

-spec received(Message :: term(), #loop{}) -> no_return().
received(Message, Old) ->
    case {Message, current(Old)} of
        {{?TIDY, Times}, #loop{parking = Parking} = Loop} ->
            case erlmcp_memory_parking:is_parked(Parking) of
                true ->
                    Tidied = Loop#loop{parking = erlmcp_memory_parking:tidy(Times, Parking)},
                    nothing(Tidied#loop{then = rest});
                false ->
                    wait(Loop)
            end;
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
    ok = erlmcp_memory_parking:forget(Loop#loop.parking),
    %% Never hibernating: a suspended process that hibernates spins while a message waits.
    Suspendable = Loop#loop{debug = []},
    sys:handle_system_msg(Request, From, Parent, erlmcp_memory_statem, Debug, Suspendable, false);
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

-spec slept(#loop{} | start()) -> no_return().
slept({start, Args, Starter, ServerRef, Left, Loop}) ->
    start({start, Args, Starter, ServerRef, Left, current(Loop)});
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

%% The outcome of the module's `init/1'.
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

%% From OTP 26 on the starter learns of a failure once the process has ended.
init_fails() ->
    erlang:function_exported(proc_lib, init_fail, 3).

acknowledged(Starter, Loop, Actions) ->
    proc_lib:init_ack(Starter, {ok, self()}),
    enter(Loop, Actions).

%% As gen_statem does, whose report would name another module.
failed(Class, Reason, Stack, Starter, ServerRef, Loop) ->
    gen:unregister_name(ServerRef),
    init_fails() orelse proc_lib:init_ack(Starter, {error, Reason}),
    erlmcp_memory_statem_report:crash(Class, Reason, Stack, Loop, []).

next({enter, #step{loop = #loop{state = Last}} = Step}) ->
    callback({enter, Last}, Step);
next({done, #loop{hibernate = Hibernate} = Loop, [_ | _] = Queue}) ->
    %% It would have been collected on hibernation.
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

%% From OTP 28 on, an event that is handled instead of hibernating leads to hibernation.
carried(Hibernate) ->
    Hibernate andalso erlang:system_info(otp_release) >= "28".

%% @doc Converts loops and steps of older versions to this one.
-spec current(#asleep{} | #loop{}) -> #loop{};
    (#step{}) -> #step{}.
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

%% @doc Ends the machine. The event being handled is the first one of the queue.
-spec terminate(
    error | exit,
    Reason :: term(),
    Stack :: list(),
    #loop{},
    [erlmcp_memory_statem_report:event()]
) -> no_return().
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
