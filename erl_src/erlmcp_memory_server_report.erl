%% @private
%% @doc What a server reports to `sys' and to `logger', as a `gen_server' would.
-module(erlmcp_memory_server_report).

-export([terminating/5, unhandled/2, print_event/3, status/5]).

%% What `gen_server' sends with its reports, so that they are formatted and filtered in the same
%% way.
-define(METADATA(Tag), #{
    mfa => {?MODULE, ?FUNCTION_NAME, ?FUNCTION_ARITY},
    file => ?FILE,
    line => ?LINE,
    domain => [otp],
    report_cb => fun gen_server:format_log/2,
    error_logger => #{tag => Tag, report_cb => fun gen_server:format_log/1}
}).

-type server() :: {Name :: term(), module(), State :: term(), [sys:dbg_opt()]}.

%% @doc Reports that a server ends for an abnormal reason. `From' is the caller that got no reply.
-spec terminating(
    Reason :: term(),
    erlang:stacktrace() | undefined,
    From :: undefined | {pid(), term()},
    Message :: term(),
    server()
) -> ok.
terminating(Reason, Stacktrace, From, Message, {Name, Module, State, Debug}) ->
    Status = gen:format_status(
        Module,
        terminate,
        #{reason => Reason, state => State, message => Message, log => sys:get_log(Debug)},
        [get(), State]
    ),
    #{reason := Formatted, message := LastMessage, log := Log} = Status,
    Report = #{
        label => {gen_server, terminate},
        name => Name,
        last_message => LastMessage,
        state => formatted_state(Status),
        log => formatted_log(Module, Log),
        reason =>
            case Stacktrace of
                undefined -> Formatted;
                _ -> {Formatted, Stacktrace}
            end,
        client_info => client(From)
    },
    log(error, with_label(Report), ?METADATA(error)).

formatted_state(#{'EXIT' := Text}) -> Text;
formatted_state(#{'$status' := Status}) -> Status;
formatted_state(#{state := State}) -> State.

client(undefined) ->
    undefined;
client({Pid, _Tag}) when node(Pid) =/= node() ->
    {Pid, remote};
client({Pid, _Tag}) ->
    case process_info(Pid, [current_stacktrace, registered_name]) of
        undefined -> {Pid, dead};
        [{_, Stacktrace}, {_, []}] -> {Pid, {Pid, Stacktrace}};
        [{_, Stacktrace}, {_, Name}] -> {Pid, {Name, Stacktrace}}
    end.

%% OTP 27 and later have labels of processes, and their `gen_server:format_log/2' needs the key.
with_label(Report) ->
    ProcLib = proc_lib,
    case erlang:function_exported(ProcLib, get_label, 1) of
        true -> Report#{process_label => ProcLib:get_label(self())};
        false -> Report
    end.

%% @doc A message came that the callback module has no function for.
-spec unhandled(module(), Message :: term()) -> ok.
unhandled(Module, Message) ->
    log(
        warning,
        #{label => {gen_server, no_handle_info}, module => Module, message => Message},
        ?METADATA(warning_msg)
    ).

%% Silencing the reports of the module gen_server silences these.
log(Level, Report, Metadata) ->
    case logger:allow(Level, gen_server) of
        true -> logger:log(Level, Report, Metadata);
        false -> ok
    end.

%% @doc Prints an event of `sys'.
-spec print_event(io:device(), Event :: term(), Name :: term()) -> ok.
print_event(Device, {in, {'$gen_call', {From, _Tag}, Request}}, Name) ->
    io:format(Device, "*DBG* ~tp got call ~tp from ~tw~n", [Name, Request, From]);
print_event(Device, {in, {'$gen_cast', Request}}, Name) ->
    io:format(Device, "*DBG* ~tp got cast ~tp~n", [Name, Request]);
print_event(Device, {in, Message}, Name) ->
    io:format(Device, "*DBG* ~tp got ~tp~n", [Name, Message]);
print_event(Device, {out, Reply, {To, _Tag}, State}, Name) ->
    io:format(Device, "*DBG* ~tp sent ~tp to ~tw, new state ~tp~n", [Name, Reply, To, State]);
print_event(Device, {noreply, State}, Name) ->
    io:format(Device, "*DBG* ~tp new state ~tp~n", [Name, State]);
print_event(Device, Event, Name) ->
    io:format(Device, "*DBG* ~tp dbg  ~tp~n", [Name, Event]).

%% @doc What `sys:get_status/1' shows.
-spec status(normal | terminate, Dictionary :: list(), running | suspended, pid(), server()) ->
    [term()].
status(Option, Dictionary, SysState, Parent, {Name, Module, State, Debug}) ->
    Status = gen:format_status(
        Module, Option, #{state => State, log => sys:get_log(Debug)}, [Dictionary, State]
    ),
    [
        {header, gen:format_status_header("Status for generic server", Name)},
        {data, [
            {"Status", SysState},
            {"Parent", Parent},
            {"Logged events", formatted_log(Module, maps:get(log, Status))}
        ]}
        | shown(Status)
    ].

shown(#{'EXIT' := Text}) -> [{data, [{"State", Text}]}];
shown(#{'$status' := Status}) when is_list(Status) -> Status;
shown(#{'$status' := Status}) -> [Status];
shown(#{state := State}) -> [{data, [{"State", State}]}].

%% A module with format_status/1 has been given the whole log already.
formatted_log(Module, Log) ->
    case erlang:function_exported(Module, format_status, 1) of
        true -> Log;
        false -> [formatted_event(Module, Event) || Event <- Log]
    end.

formatted_event(Module, {out, Reply, From, State}) ->
    {out, Reply, From, logged_state(Module, State)};
formatted_event(Module, {noreply, State}) ->
    {noreply, logged_state(Module, State)};
formatted_event(_Module, Event) ->
    Event.

%% Of this status, OTP takes the state that was passed in.
logged_state(Module, State) ->
    maps:get(state, gen:format_status(Module, terminate, #{state => State}, [get(), State])).
