%% @private
%% @doc What a state machine shows: its status, its debug events, and the log event of its end, all
%% as gen_statem shows them. The functions of gen_statem format the log event.
-module(erlmcp_memory_statem_report).

-export([status/4, debug/2, print/3, crash/5]).

-export_type([event/0]).

-include_lib("kernel/include/logger.hrl").
-include("erlmcp_memory_statem.hrl").

-type event() :: {Type :: term(), Content :: term()}.

%% @doc The last element of the return value of sys:get_status/1. The loop's data are not parked.
-spec status(normal | terminate, list(), running | suspended, #loop{}) -> list().
status(Option, Dictionary, SysState, Loop) ->
    #loop{name = Name, modules = [Module | _] = Modules, state = State, data = Data} = Loop,
    Timeouts = erlmcp_memory_statem_timers:list(Loop#loop.timers),
    Status = #{
        state => State,
        data => Data,
        postponed => Loop#loop.postponed,
        log => sys:get_log(Loop#loop.debug),
        timeouts => Timeouts
    },
    {Shown, Last} = shown(Module, Option, Status, [Dictionary, State, Data]),
    [
        {header, gen:format_status_header("Status for state machine", Name)},
        {data, [
            {"Status", SysState},
            {"Parent", Loop#loop.parent},
            {"Modules", Modules},
            {"Time-outs", {length(Timeouts), maps:get(timeouts, Shown)}},
            {"Logged Events", maps:get(log, Shown)},
            {"Postponed", maps:get(postponed, Shown)}
        ]}
        | Last
    ].

%% What is shown as the module wants it, and the last element for that. If the module's function
%% fails, no less is shown.
shown(Module, Option, #{state := State} = Status, Arguments) ->
    case gen:format_status(Module, Option, Status, Arguments) of
        #{'EXIT' := Why} -> {Status, [{data, [{"State", {State, Why}}]}]};
        #{'$status' := Last} = Shown when is_list(Last) -> {Shown, Last};
        #{'$status' := Last} = Shown -> {Shown, [Last]};
        #{state := S, data := D} = Shown -> {Shown, [{data, [{"State", {S, D}}]}]}
    end.

%% @doc Passes an event to the process's debug functions.
-spec debug(Event :: term(), #loop{}) -> #loop{}.
debug(_Event, #loop{debug = []} = Loop) ->
    Loop;
debug(Event, #loop{debug = Debug, name = Name} = Loop) ->
    Loop#loop{debug = sys:handle_debug(Debug, fun ?MODULE:print/3, Name, Event)}.

%% @doc Prints one, in gen_statem's words.
-spec print(io:device(), Event :: term(), Name :: term()) -> ok.
print(Device, Event, Name) ->
    {Format, Arguments} = words(Event),
    io:format(Device, "*DBG* ~tp " ++ Format ++ "~n", [Name | Arguments]).

words({in, Event, State}) ->
    {"receive ~ts in state ~tp", [event(Event), State]};
words({out, Reply, {To, _Tag}}) ->
    {"send ~tp to ~tw", [Reply, To]};
words({enter, Module, State}) ->
    {"enter ~tp in state ~tp", [Module, State]};
words({module, Module, State}) ->
    {"module ~tp in state ~tp", [Module, State]};
words({start_timer, Timeout, State}) ->
    {"start_timer ~tp in state ~tp", [Timeout, State]};
words({terminate, Reason, State}) ->
    {"terminate ~tp in state ~tp", [Reason, State]};
words({Done, Event, State, State}) ->
    {"~tw ~ts in state ~tp", [Done, event(Event), State]};
words({Done, Event, State, Next}) ->
    {"~tw ~ts in state ~tp => ~tp", [Done, event(Event), State, Next]}.

event({{call, {Pid, _Tag}}, Request}) -> io_lib:format("call ~tp from ~tw", [Request, Pid]);
event({Type, Content}) -> io_lib:format("~tw ~tp", [Type, Content]).

%% @doc Logs that a state machine ends, and why. The event being handled is the first one of the
%% queue.
-spec crash(error | exit, Reason :: term(), Stack :: list(), #loop{}, [event()]) -> ok.
crash(Class, Reason, Stack, Loop, Queue) ->
    #loop{modules = [Module | _] = Modules, state = State, data = Data} = Loop,
    Timeouts = erlmcp_memory_statem_timers:list(Loop#loop.timers),
    Status = #{
        reason => Reason,
        state => State,
        data => Data,
        queue => Queue,
        postponed => Loop#loop.postponed,
        timeouts => Timeouts,
        log => sys:get_log(Loop#loop.debug)
    },
    Shown = gen:format_status(Module, terminate, Status, [get(), State, Data]),
    Report = #{
        label => {gen_statem, terminate},
        name => Loop#loop.name,
        queue => maps:get(queue, Shown),
        postponed => maps:get(postponed, Shown),
        modules => Modules,
        callback_mode => Loop#loop.mode,
        state_enter => Loop#loop.enter,
        state => last_state(Shown),
        timeouts => {length(Timeouts), maps:get(timeouts, Shown)},
        log => maps:get(log, Shown),
        reason => {Class, maps:get(reason, Shown), Stack},
        client_info => client(Queue)
    },
    ?LOG_ERROR(labelled(Report), #{
        domain => [otp],
        report_cb => fun gen_statem:format_log/2,
        error_logger => #{tag => error, report_cb => fun gen_statem:format_log/1}
    }).

last_state(#{'$status' := Shown}) -> Shown;
last_state(#{state := State, data := Data}) -> {State, Data}.

%% Processes have labels, and reports name them, from OTP 27 on.
labelled(Report) ->
    Library = proc_lib,
    case erlang:function_exported(Library, get_label, 1) of
        true -> Report#{process_label => Library:get_label(self())};
        false -> Report
    end.

%% Where the caller was whose request the state machine could not handle.
client([{{call, {Pid, _Tag}}, _Request} | _]) when is_pid(Pid), node(Pid) =/= node() ->
    {Pid, remote};
client([{{call, {Pid, _Tag}}, _Request} | _]) when is_pid(Pid) ->
    case process_info(Pid, [current_stacktrace, registered_name]) of
        undefined -> {Pid, dead};
        [{_, Stack}, {_, []}] -> {Pid, {Pid, Stack}};
        [{_, Stack}, {_, Name}] -> {Pid, {Name, Stack}}
    end;
client(_) ->
    undefined.
