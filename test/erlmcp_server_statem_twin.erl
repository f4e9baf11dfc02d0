%% Twins: what is done to a state machine of gen_statem is done to one of erlmcp_memory_statem, and
%% all that can be seen of the two is the same.
-module(erlmcp_server_statem_twin).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_wait_help, [until/1]).

-export([same/1, same/2, transcript/2]).
-export([side/1, start/3, start/4, watch/1, call/2, cast/2, get/2, rest/1, await/1]).
-export([is_parked/1, ended/1, tried/1]).
-export([log/2]).

-define(DEADLINE, 30000).

%% How a machine runs: by gen_statem, or by erlmcp_memory_statem with this option.
sides() ->
    [{idle_after, 0}, {idle_after, 20}, {idle_after, infinity}].

%% Act: a function of a side that does all to it and returns what it came to. What its process gets
%% as messages, and what is logged, is compared as well.
same(Act) ->
    same(Act, sides()).

same(Act, Sides) ->
    Expected = transcript(plain, Act),
    [ct:fail({log_failed, Failed}) || Failed <- failed(Expected)],
    [
        case transcript(Side, Act) of
            Expected ->
                ok;
            Seen ->
                {Here, There} = first_difference(Expected, Seen),
                ct:pal("~p~nexpected ~P~nseen ~P", [Side, Here, 120, There, 120]),
                ct:fail({differs, Side})
        end
     || Side <- Sides
    ],
    ok.

%% The smallest parts of two terms that differ, with what surrounds them in a list.
first_difference([Same | Here], [Same | There]) ->
    first_difference(Here, There);
first_difference([Here | _] = All, [There | _] = Others) ->
    case {Here, There} of
        {_, _} when is_tuple(Here), is_tuple(There), tuple_size(Here) =:= tuple_size(There) ->
            case first_difference(tuple_to_list(Here), tuple_to_list(There)) of
                {[A | _], [B | _]} -> {{within, Here, A}, {within, There, B}};
                Parts -> Parts
            end;
        {[_ | _], [_ | _]} ->
            first_difference(Here, There);
        _ ->
            {lists:sublist(All, 3), lists:sublist(Others, 3)}
    end;
first_difference(Here, There) when is_tuple(Here), is_tuple(There) ->
    first_difference(tuple_to_list(Here), tuple_to_list(There));
first_difference(Here, There) ->
    {Here, There}.

failed({_Value, _Ends, Messages}) ->
    [Failed || Failed <- Messages, element(1, Failed) =:= log_failed].

transcript(Side, Act) ->
    Self = self(),
    {Stage, Monitor} = spawn_monitor(fun() ->
        ok = logger:add_handler(?MODULE, ?MODULE, #{level => notice, config => self()}),
        put(machines, []),
        put(side, Side),
        Value = Act(Side),
        Ends = [end_of(Machine) || Machine <- lists:reverse(erase(machines))],
        ok = logger:remove_handler(?MODULE),
        Self ! {self(), mask({Value, Ends, messages()})}
    end),
    receive
        {Stage, Transcript} ->
            erlang:demonitor(Monitor, [flush]),
            Transcript;
        {'DOWN', Monitor, process, Stage, Reason} ->
            _ = logger:remove_handler(?MODULE),
            ct:pal("~p: ~P", [Side, Reason, 60]),
            ct:fail(stage)
    after 4 * ?DEADLINE ->
        ct:pal("~p: ~P", [Side, process_info(Stage, current_stacktrace), 60]),
        exit(Stage, kill),
        _ = logger:remove_handler(?MODULE),
        ct:fail(deadline)
    end.

end_of({Pid, Monitor}) ->
    Stopping = spawn(fun() ->
        unlink(Pid),
        _ = tried(fun() -> sys:resume(Pid) end),
        tried(fun() -> gen_statem:stop(Pid) end)
    end),
    receive
        {'DOWN', Monitor, process, Pid, Reason} ->
            exit(Stopping, kill),
            Reason
    after ?DEADLINE -> ct:fail(machine_lives)
    end.

messages() ->
    receive
        Message -> [Message | messages()]
    after 0 -> []
    end.

%%% What an act does

side(plain) -> {gen_statem, []};
side(Option) -> {erlmcp_memory_statem, [Option]}.

start(Side, Function, Arguments) ->
    start(Side, Function, Arguments, []).

%% Arguments: a name, if there is one, module, and arguments of init/1.
start(Side, Function, Arguments, Options) ->
    {Module, More} = side(Side),
    Started = apply(Module, Function, Arguments ++ [Options ++ More]),
    case Started of
        {ok, {Pid, _}} -> watch(Pid);
        {ok, Pid} -> watch(Pid);
        _ -> ok
    end,
    Started.

watch(Pid) ->
    put(machines, [{Pid, monitor(process, Pid)} | get(machines)]),
    Pid.

call(Machine, Result) ->
    try
        gen_statem:call(Machine, {do, tag(Result), Result}, ?DEADLINE)
    catch
        exit:{Reason, _} -> {exit, Reason}
    end.

cast(Machine, Result) ->
    gen_statem:cast(Machine, {do, tag(Result), Result}).

tag(Result) -> erlang:phash2(Result).

get(Machine, Key) ->
    {State, Data} = gen_statem:call(Machine, get, ?DEADLINE),
    {State, maps:get(Key, Data)}.

%% Waits until the machine hibernates, where it is to. So what comes next finds it parked.
rest(Machine) ->
    case get(side) of
        {idle_after, Time} when is_integer(Time) ->
            until(fun() ->
                case process_info(Machine, [current_function, message_queue_len]) of
                    undefined -> true;
                    [{_, {erlang, hibernate, _}}, {_, 0}] -> true;
                    _ -> false
                end
            end);
        _ ->
            ok
    end.

%% Waits until a callback was called with this tag.
await(Tag) ->
    until(fun() ->
        {messages, Messages} = process_info(self(), messages),
        lists:any(
            fun
                ({seen, _, T, _, _}) -> T =:= Tag;
                (_) -> false
            end,
            Messages
        )
    end).

%% Whether its data are not on its heap.
is_parked(Machine) ->
    {memory, Bytes} = process_info(Machine, memory),
    Bytes < 10000.

ended(Machine) ->
    until(fun() -> not is_process_alive(Machine) end).

tried(Act) ->
    try
        Act()
    catch
        Class:Reason -> {Class, Reason}
    end.


%%% A handler of logger

%% One that fails is removed, so it says so instead.
log(Event, #{config := Stage}) ->
    Stage !
        try
            logged(Event)
        catch
            Class:Reason:Stack -> {log_failed, Class, Reason, Stack}
        end.

logged(#{level := Level, msg := {report, Report}, meta := #{report_cb := Format} = Meta}) ->
    Shown = maps:with([domain, report_cb, error_logger], Meta),
    {log, Level, Report, Shown, text(Format, Report)};
logged(#{level := Level, msg := Message}) ->
    {log, Level, Message}.

%% What a module shows of itself may be nothing that OTP can format.
text(Format, Report) ->
    try
        case Format of
            _ when is_function(Format, 1) -> {_, _} = Format(Report);
            _ -> unicode:characters_to_list(Format(Report, #{depth => 30, chars_limit => 3000}))
        end,
        formatted
    catch
        _:_ -> not_formatted
    end.

%%% What differs between any two processes, or is a frame of an engine

mask(Term) ->
    element(1, mask(Term, #{})).

mask(Pid, Names) when is_pid(Pid); is_port(Pid) ->
    case Names of
        #{Pid := Name} -> {Name, Names};
        #{} -> {{pid, map_size(Names)}, Names#{Pid => {pid, map_size(Names)}}}
    end;
mask(Ref, Names) when is_reference(Ref) ->
    {ref, Names};
mask(Fun, Names) when is_function(Fun) ->
    {module, Module} = erlang:fun_info(Fun, module),
    case is_engine(Module) andalso erlang:fun_info(Fun, type) of
        {type, local} -> {printing, Names};
        {type, external} when Module =:= erlmcp_memory_statem_report -> {printing, Names};
        _ -> {{Module, erlang:fun_info(Fun, name)}, Names}
    end;
mask({Key, Value}, Names) when
    is_integer(Value),
    Key =:= heap_size orelse Key =:= stack_size orelse Key =:= reductions orelse
        Key =:= message_queue_len
->
    {{Key, masked}, Names};
mask({messages, _}, Names) ->
    %% Some may have come after the last event.
    {messages, Names};
mask({client_info, {Pid, {Name, _Stack}}}, Names) ->
    %% One that has its reply may be anywhere.
    mask({client_info, Pid, Name}, Names);
mask({module, erlmcp_memory_statem}, Names) ->
    {{module, gen_statem}, Names};
mask({erlmcp_memory_statem, system_replace_state}, Names) ->
    {{gen_statem, system_replace_state}, Names};
mask([Number | _] = List, Names) when is_integer(Number), length(List) > 100 ->
    {{list, erlang:phash2(List)}, Names};
mask("Status for state machine <" ++ _, Names) ->
    {status_of_a_pid, Names};
mask([{Module, Function, Arity, Where} = Frame | Rest], Names) when
    is_atom(Module), is_atom(Function), is_integer(Arity) orelse is_list(Arity), is_list(Where)
->
    case is_engine(Module) of
        true ->
            mask(Rest, Names);
        false ->
            {First, Known} = mask(setelement(4, Frame, where), Names),
            {Others, Last} = mask(Rest, Known),
            {[First | Others], Last}
    end;
mask([Head | Tail], Names) ->
    {First, Known} = mask(Head, Names),
    {Rest, Last} = mask(Tail, Known),
    {[First | Rest], Last};
mask(Tuple, Names) when is_tuple(Tuple) ->
    {List, Last} = mask(tuple_to_list(Tuple), Names),
    {list_to_tuple(List), Last};
mask(Map, Names) when is_map(Map) ->
    {List, Last} = mask(lists:sort(maps:to_list(Map)), Names),
    {{map, List}, Last};
mask(Other, Names) ->
    {Other, Names}.

is_engine(Module) ->
    lists:member(Module, [gen_statem, gen, gen_server, proc_lib, sys, erlang]) orelse
        lists:prefix("erlmcp_memory_", atom_to_list(Module)).
