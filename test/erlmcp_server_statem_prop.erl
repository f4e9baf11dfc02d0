%% Random events: a machine of gen_statem and those that park come to the same.
%%
%% PropEr's header is not used: see erlmcp_pool_prop.
%%
%% What is left out, because gen_statem may not come to an end of it or is known to forget it: an
%% event that is postponed leads to nothing else; a timeout of zero milliseconds and a longer one
%% are never of the same type.
-module(erlmcp_server_statem_prop).

-import(proper_types, [frequency/1, list/1, oneof/1]).
-import(erlmcp_server_statem_twin, [rest/1]).

-export([check/0]).

-define(NEVER, 10000000).
-define(SCRIPT, erlmcp_server_statem_script).

check() ->
    proper:quickcheck(agree(), [{numtests, 60}, {max_size, 25}, {to_file, user}, quiet, noshrink]).

agree() ->
    proper:forall({mode(), list(operation())}, fun({Mode, Operations}) ->
        Act = fun(Side) ->
            put(machine, none),
            [operate(Operation, Mode, Side) || Operation <- Operations]
        end,
        try
            ok = erlmcp_server_statem_twin:same(Act, [{idle_after, Idle} || Idle <- [0, 1, infinity]]),
            true
        catch
            %% It was said where they differ.
            exit:_ -> false
        end
    end).

mode() ->
    oneof([
        state_functions,
        [state_functions, state_enter],
        handle_event_function,
        [handle_event_function, state_enter]
    ]).

operation() ->
    frequency([
        {6, {call, result(2)}},
        {4, {cast, result(2)}},
        {2, {cast, {keep_state, '$data', postpone}}},
        {1, {cast, {keep_state_and_data, [hibernate, postpone]}}},
        {1, {cast, {repeat_state, '$data', postpone}}},
        {1, {message, hello}},
        {2, suspended},
        {1, {call, ending()}},
        {1, {cast, ending()}},
        {1, {cast, oneof([nothing, {keep_state_and_data, nothing}, {next_state, b}])}}
    ]).

ending() ->
    Reason = oneof([normal, shutdown, oops]),
    oneof([
        stop,
        {stop, Reason},
        {stop, Reason, '$data'},
        {stop_and_reply, Reason, []},
        {stop_and_reply, Reason, [], '$data'},
        {'$error', oops},
        {'$exit', Reason}
    ]).

result(Depth) ->
    State = oneof([a, b, c]),
    Data = oneof(['$data', '$same']),
    Plain = oneof([
        {next_state, State, Data, list(action(Depth))},
        {keep_state, Data, list(action(Depth))},
        {keep_state_and_data, list(action(Depth))},
        {repeat_state, Data, list(action(Depth))},
        {repeat_state_and_data, list(action(Depth))}
    ]),
    frequency([{6, Plain}, {1, {'$throw', Plain}}]).

action(0) ->
    oneof([hibernate, {hibernate, false}]);
action(Depth) ->
    Content = {do, oneof([x, y, z]), result(Depth - 1)},
    Brief = oneof([state_timeout, timeout, {timeout, zero}]),
    frequency([
        {2, hibernate},
        {3, {next_event, oneof([internal, cast, info, timeout]), Content}},
        {2, {Brief, 0, Content}},
        {1, {Brief, update, Content}},
        {1, {Brief, cancel}},
        {1, {timeout, ?NEVER, Content}},
        {1, {{timeout, long}, oneof([?NEVER, infinity]), Content}},
        {1, {{timeout, long}, cancel}},
        {1, {change_callback_module, ?SCRIPT}},
        {1, {push_callback_module, ?SCRIPT}}
    ]).

%% Each begins with a machine that rests, and ends when all of it was done.
operate(Operation, Mode, Side) ->
    Machine = machine(Mode, Side),
    Done = operate(Operation, Machine),
    _ = erlmcp_server_statem_twin:tried(fun() -> sys:get_state(Machine, 30000) end),
    rest(Machine),
    Done.

operate({call, Result}, Machine) -> erlmcp_server_statem_twin:call(Machine, replying(Result));
operate({cast, Result}, Machine) -> erlmcp_server_statem_twin:cast(Machine, Result);
operate({message, Message}, Machine) -> Machine ! Message;
operate(suspended, Machine) ->
    ok = sys:suspend(Machine),
    Machine ! waiting,
    Replaced = sys:replace_state(Machine, fun({S, #{n := N} = D}) -> {S, D#{n := N + 1}} end),
    {_, _, _, [_, _, _, _, Shown]} = sys:get_status(Machine),
    ok = sys:resume(Machine),
    {Replaced, Shown}.

replying({'$throw', Result}) -> {'$throw', replying(Result)};
replying({stop_and_reply, Reason, _}) -> {stop_and_reply, Reason, {reply, '$from', bye}};
replying({stop_and_reply, Reason, _, Data}) ->
    {stop_and_reply, Reason, {reply, '$from', bye}, Data};
replying({Kind, _} = Result) when Kind =:= stop; Kind =:= '$error'; Kind =:= '$exit' -> Result;
replying({stop, _, _} = Result) -> Result;
replying(stop) -> stop;
replying(Result) ->
    Actions = element(tuple_size(Result), Result),
    setelement(tuple_size(Result), Result, [{reply, '$from', ok} | Actions]).

machine(Mode, Side) ->
    case get(machine) of
        Machine when is_pid(Machine) ->
            case is_process_alive(Machine) of
                true -> Machine;
                false -> new(Mode, Side)
            end;
        none ->
            new(Mode, Side)
    end.

new(Mode, Side) ->
    Enter = #{
        b => {keep_state, '$data', {state_timeout, 0, entered}},
        c => {keep_state_and_data, hibernate}
    },
    Data = erlmcp_server_statem_script:data(self(), #{enter => Enter}),
    {ok, Machine} = erlmcp_server_statem_twin:start(Side, start, [
        ?SCRIPT, {Mode, Data, {ok, a, '$same'}}
    ]),
    put(machine, Machine),
    Machine.
