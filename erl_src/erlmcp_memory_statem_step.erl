%% @private
%% @doc What the return value of a callback does to a state machine: the states and actions of
%% gen_statem.
%%
%% A step is what one event leads to. It may take several callbacks, as a state enter call follows
%% the event's callback; their actions are collected, and done at its end.
-module(erlmcp_memory_statem_step).

-export([first/2, event/3, result/2, mode/2]).

-export_type([outcome/0]).

-include("erlmcp_memory_statem.hrl").

-type outcome() ::
    %% The state enter call is due.
    {enter, #step{}}
    %% The step is done; these events are still to be handled.
    | {done, #loop{}, [erlmcp_memory_statem_report:event()]}
    | {stop, error | exit, Reason :: term(), Stack :: list(), #step{}}.

%% @doc The step into the first state. The event that it begins with is never visible.
-spec first(#loop{}, Actions :: term()) -> outcome().
first(Loop, Actions) ->
    Step = event(Loop, [{internal, init_state}], false),
    actions(listed(Actions) ++ [{postpone, false}], Step#step{enter = true}).

%% @doc The step that the first of these events begins.
-spec event(#loop{}, [erlmcp_memory_statem_report:event(), ...], Hibernate :: boolean()) ->
    #step{}.
event(#loop{state = State, data = Data} = Loop, Queue, Hibernate) ->
    #step{loop = Loop, queue = Queue, state = State, data = Data, hibernate = Hibernate}.

%% @doc Continues with what a state callback or a state enter call returned.
-spec result(term(), #step{}) -> outcome().
result({next_state, State, Data} = Result, Step) ->
    next(State, Data, [], Result, Step);
result({next_state, State, Data, Actions} = Result, Step) ->
    next(State, Data, Actions, Result, Step);
result({keep_state, Data}, Step) ->
    actions([], Step#step{data = Data, enter = false});
result({keep_state, Data, Actions}, Step) ->
    actions(listed(Actions), Step#step{data = Data, enter = false});
result(keep_state_and_data, Step) ->
    actions([], kept(Step));
result({keep_state_and_data, Actions}, Step) ->
    actions(listed(Actions), kept(Step));
result({repeat_state, Data}, Step) ->
    actions([], Step#step{data = Data, enter = true});
result({repeat_state, Data, Actions}, Step) ->
    actions(listed(Actions), Step#step{data = Data, enter = true});
result(repeat_state_and_data, Step) ->
    actions([], Step#step{enter = true});
result({repeat_state_and_data, Actions}, Step) ->
    actions(listed(Actions), Step#step{enter = true});
result(stop, Step) ->
    stop(exit, normal, Step);
result({stop, Reason}, Step) ->
    stop(exit, Reason, Step);
result({stop, Reason, Data}, Step) ->
    stop(exit, Reason, Step#step{data = Data});
result({stop_and_reply, Reason, Replies}, Step) ->
    replies(listed(Replies), Reason, Step);
result({stop_and_reply, Reason, Replies, Data}, Step) ->
    replies(listed(Replies), Reason, Step#step{data = Data});
result(Result, Step) ->
    stop(error, {bad_return_from_state_function, Result}, Step).

kept(#step{enter = false} = Step) -> Step;
kept(Step) -> Step#step{enter = false}.

next(State, Data, Actions, _Result, #step{state = State} = Step) ->
    actions(listed(Actions), Step#step{data = Data, enter = false});
next(_State, _Data, _Actions, Result, #step{entering = true} = Step) ->
    stop(error, {bad_state_enter_return_from_state_function, Result}, Step);
next(State, Data, Actions, _Result, Step) ->
    actions(listed(Actions), Step#step{state = State, data = Data, enter = true}).

replies([], Reason, Step) ->
    stop(exit, Reason, Step);
replies([{reply, {Pid, _} = From, Reply} | Rest], Reason, Step) when is_pid(Pid) ->
    replies(Rest, Reason, reply(From, Reply, Step));
replies([Bad | _], _Reason, Step) ->
    stop(error, {bad_reply_action_from_state_function, Bad}, Step).

%%% Actions

actions([], #step{enter = true, loop = #loop{enter = true}} = Step) ->
    {enter, Step#step{entering = true}};
actions([], Step) ->
    done(Step);
actions([Action | Rest], Step) ->
    case action(Action, Step) of
        #step{} = Next -> actions(Rest, Next);
        {stop, _, _, _, _} = Stop -> Stop
    end.

action({reply, {Pid, _} = From, Reply}, Step) when is_pid(Pid) ->
    reply(From, Reply, Step);
action(hibernate, Step) ->
    Step#step{hibernate = true};
action({hibernate, Hibernate}, Step) when is_boolean(Hibernate) ->
    Step#step{hibernate = Hibernate};
action({postpone, false}, Step) ->
    Step#step{postpone = false};
action({postpone, true}, #step{entering = false} = Step) ->
    Step#step{postpone = true};
action(postpone, #step{entering = false} = Step) ->
    Step#step{postpone = true};
action(postpone, Step) ->
    stop(error, {bad_state_enter_action_from_state_function, postpone}, Step);
action({next_event, _, _} = Action, #step{entering = true} = Step) ->
    stop(error, {bad_state_enter_action_from_state_function, Action}, Step);
action({next_event, Type, Content} = Action, #step{inserted = Inserted} = Step) ->
    case is_event(Type) of
        true ->
            Event = {Type, Content},
            Next = debug({in, Event, Step#step.state}, Step),
            Next#step{inserted = [Event | Inserted]};
        false ->
            bad(Action, Step)
    end;
action({change_callback_module, Module} = Action, Step) when is_atom(Module) ->
    modules(Action, [Module | tl(Step#step.loop#loop.modules)], Step);
action({push_callback_module, Module} = Action, Step) when is_atom(Module) ->
    modules(Action, [Module | Step#step.loop#loop.modules], Step);
action(pop_callback_module = Action, #step{loop = #loop{modules = [_ | [_ | _] = Left]}} = Step) ->
    modules(Action, Left, Step);
action(Action, #step{timeouts = Timeouts} = Step) ->
    case timeout(Action) of
        false -> bad(Action, Step);
        Timeout -> Step#step{timeouts = [Timeout | Timeouts]}
    end.

bad(Action, Step) ->
    stop(error, {bad_action_from_state_function, Action}, Step).

reply(From, Reply, Step) ->
    _ = gen:reply(From, Reply),
    debug({out, Reply, From}, Step).

modules(Action, _Modules, #step{entering = true} = Step) ->
    stop(error, {bad_state_enter_action_from_state_function, Action}, Step);
modules(_Action, [Module | _] = Modules, #step{loop = Loop} = Step) ->
    case mode(Modules, Loop) of
        #loop{} = Changed ->
            debug({module, Module, Step#step.state}, Step#step{loop = Changed});
        {Class, Reason, Stack} ->
            stop(Class, Reason, Stack, Step)
    end.

%% @doc Asks the first of the modules how it wants to be called.
-spec mode([module(), ...], #loop{}) ->
    #loop{} | {error | exit, Reason :: term(), Stack :: list()}.
mode([Module | _] = Modules, Loop) ->
    try Module:callback_mode() of
        Result -> mode(Result, Modules, Loop)
    catch
        throw:Result -> mode(Result, Modules, Loop);
        Class:Reason:Stack -> {Class, Reason, Stack}
    end.

mode(Result, Modules, Loop) ->
    case mode(listed(Result), undefined, false, Result) of
        {Mode, Enter} when Mode =/= undefined ->
            Loop#loop{modules = Modules, mode = Mode, enter = Enter};
        _ ->
            {error, {bad_return_from_callback_mode, Result}, stack()}
    end.

mode([Mode | Rest], _, Enter, Result) when
    Mode =:= state_functions; Mode =:= handle_event_function
->
    mode(Rest, Mode, Enter, Result);
mode([state_enter | Rest], Mode, _, Result) ->
    mode(Rest, Mode, true, Result);
mode([], Mode, Enter, _Result) ->
    {Mode, Enter};
mode([_ | _], _, _, _Result) ->
    bad.

is_event({call, {Pid, _Tag}}) -> is_pid(Pid);
is_event(cast) -> true;
is_event(info) -> true;
is_event(internal) -> true;
is_event(Type) -> is_timeout(Type).

is_timeout(timeout) -> true;
is_timeout(state_timeout) -> true;
is_timeout({timeout, _Name}) -> true;
is_timeout(_) -> false.

%% The action as the timers accept it, or false if it is not for them.
timeout({Type, Time, Content, Options}) ->
    is_timeout(Type) andalso timeout(Type, Time, Content, listed(Options));
timeout({Type, update, _Content} = Action) ->
    is_timeout(Type) andalso Action;
timeout({Type, Time, Content}) ->
    is_timeout(Type) andalso timeout(Type, Time, Content, []);
timeout({Type, cancel}) ->
    is_timeout(Type) andalso {Type, infinity, undefined};
timeout(Time) ->
    timeout(timeout, Time, Time, []).

timeout(Type, Time, Content, [{abs, true}] = Options) when is_integer(Time); Time =:= infinity ->
    {Type, Time, Content, Options};
timeout(Type, Time, Content, [{abs, false}]) ->
    timeout(Type, Time, Content, []);
timeout(Type, Time, Content, []) when is_integer(Time), Time >= 0; Time =:= infinity ->
    {Type, Time, Content};
timeout(_, _, _, _) ->
    false.

%%% The end of a step

done(Step) ->
    #step{loop = Loop, queue = [Event | Rest], state = State} = Step,
    #loop{state = Last, postponed = Postponed, timers = Timers} = Loop,
    {Done, NowPostponed} =
        case Step#step.postpone of
            true -> {postpone, [Event | Postponed]};
            false -> {consume, Postponed}
        end,
    Debugged = ?DEBUG({Done, Event, Last, State}, Loop),
    Left = erlmcp_memory_statem_timers:cancel(timeout, Timers),
    case State =:= Last of
        true ->
            done(Step, Debugged, NowPostponed, Left, Rest);
        false ->
            Others = erlmcp_memory_statem_timers:cancel(state_timeout, Left),
            done(Step, Debugged, [], Others, lists:reverse(NowPostponed, Rest))
    end.

done(Step, Loop, Postponed, Timers, Queue) ->
    #step{state = State, data = Data, timeouts = Timeouts, inserted = Inserted} = Step,
    {Now, NowTimers} = set(Timeouts, State, Timers, Loop),
    Next = Now#loop{
        state = State,
        data = Data,
        postponed = Postponed,
        timers = NowTimers,
        hibernate = Step#step.hibernate,
        parking = erlmcp_memory_parking:changed(Loop#loop.data, Data, Loop#loop.parking)
    },
    {done, Next, lists:reverse(Inserted, Queue)}.

set([], _State, Timers, Loop) ->
    {Loop, Timers};
set(Timeouts, State, Timers, Loop) ->
    {NowTimers, Started} = erlmcp_memory_statem_timers:set(Timeouts, Timers),
    Debug = fun(Timeout, L) ->
        erlmcp_memory_statem_report:debug({start_timer, Timeout, State}, L)
    end,
    {lists:foldl(Debug, Loop, Started), NowTimers}.

%% The machine ends in the state and with the data that the step has reached.
stop(Class, Reason, Step) ->
    stop(Class, Reason, stack(), Step).

stop(Class, Reason, Stack, #step{loop = Loop, state = State, data = Data} = Step) ->
    {stop, Class, Reason, Stack, Step#step{loop = Loop#loop{state = State, data = Data}}}.

debug(_Event, #step{loop = #loop{debug = []}} = Step) ->
    Step;
debug(Event, #step{loop = Loop} = Step) ->
    Step#step{loop = erlmcp_memory_statem_report:debug(Event, Loop)}.

stack() ->
    element(2, process_info(self(), current_stacktrace)).

listed(Item) when is_list(Item) -> Item;
listed(Item) -> [Item].
