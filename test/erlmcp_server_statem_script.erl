%% A callback module of state machines that does as it is told: events, the arguments of init/1 and
%% the data say what a callback returns, and the owner is told of each callback.
%%
%% In what is returned, '$from' stands for the caller, '$same' for the data and '$data' for other
%% data than those.
-module(erlmcp_server_statem_script).

-export([init/1, callback_mode/0, handle_event/4, a/3, b/3, c/3, terminate/3, code_change/4]).
-export([data/1, data/2, run/3]).

%% What a machine holds: enough of it that one can see whether it is parked.
data(Owner) ->
    data(Owner, #{}).

data(Owner, More) ->
    maps:merge(#{owner => Owner, n => 0, pad => lists:seq(1, 2000)}, More).

init({Mode, Data, Result}) ->
    _ = Mode =:= none orelse put(mode, Mode),
    run(Result, none, Data).

callback_mode() ->
    case get(mode) of
        {crash, Reason} -> error(Reason);
        {throw, Mode} -> throw(Mode);
        Mode -> Mode
    end.

a(Type, Content, Data) -> event(Type, Content, a, Data).
b(Type, Content, Data) -> event(Type, Content, b, Data).
c(Type, Content, Data) -> event(Type, Content, c, Data).
handle_event(Type, Content, State, Data) -> event(Type, Content, State, Data).

event(enter, Last, State, #{owner := Owner, n := N} = Data) ->
    Owner ! {seen, enter, Last, State, N},
    run(maps:get(State, maps:get(enter, Data, #{}), keep_state_and_data), enter, Data);
event(Type, Content, State, #{owner := Owner, n := N} = Data) ->
    Owner ! {seen, kind(Type), tag(Content), State, N},
    case Content of
        {do, _Tag, Result} -> run(Result, Type, Data);
        get when is_tuple(Type), element(1, Type) =:= call -> get(Type, State, Data);
        _ -> keep_state_and_data
    end.

get({call, From}, State, Data) ->
    {keep_state_and_data, {reply, From, {State, Data}}}.

kind({call, _From}) -> call;
kind(Type) -> Type.

tag({do, Tag, _Result}) -> Tag;
tag(Content) -> Content.

terminate(Reason, State, #{owner := Owner, n := N} = Data) ->
    Owner ! {seen, terminate, Reason, State, N},
    run(maps:get(terminate, Data, ok), terminate, Data).

code_change(OldVsn, State, #{owner := Owner, n := N} = Data, {Mode, Result}) ->
    Owner ! {seen, code_change, OldVsn, State, N},
    put(mode, Mode),
    run(Result, code_change, Data).

run({'$throw', Result}, Type, Data) -> throw(run(Result, Type, Data));
run({'$error', Reason}, _, _) -> error(Reason);
run({'$exit', Reason}, _, _) -> exit(Reason);
run({'$eval', Fun}, Type, Data) -> Fun(Type, Data);
run(Result, Type, Data) -> fill(Result, Type, Data).

fill('$from', {call, From}, _Data) -> From;
fill('$from', _Type, #{from := From}) -> From;
fill('$same', _Type, Data) -> Data;
fill('$data', _Type, #{n := N} = Data) -> Data#{n := N + 1};
fill({do, _, _} = Content, _Type, _Data) -> Content;
fill([Head | Tail], Type, Data) -> [fill(Head, Type, Data) | fill(Tail, Type, Data)];
fill(Tuple, Type, Data) when is_tuple(Tuple) ->
    list_to_tuple(fill(tuple_to_list(Tuple), Type, Data));
fill(Other, _Type, _Data) -> Other.
