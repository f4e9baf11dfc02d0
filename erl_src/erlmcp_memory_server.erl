%% @doc A `gen_server' whose state takes very little memory while the server is idle.
%%
%% ```
%% gen_server:start_link(?MODULE, Args, Options)             % before
%% erlmcp_memory_server:start_link(?MODULE, Args, Options)   % after
%% '''
%%
%% The callback module stays as it is, and so does the code that calls the server: {@link
%% gen_server:call/2}, {@link gen_server:cast/2}, {@link gen_server:stop/1} and all other client
%% functions are those of `gen_server'. This module has the functions that start the server.
%%
%% When no message has come for the idle time, the state is <em>parked</em>: packed off the heap,
%% its equal parts shared among all parked states of the node, and the process hibernates. The next
%% message finds the state as it was. A state that has not changed since is parked again at next to
%% no cost. A state that cannot be parked stays on the heap; that is logged, at most once a minute.
%%
%% The idle time is the option `{idle_after, Milliseconds}' (or `infinity': it is not parked for
%% idleness, and `hibernate_after' works as usual), else the setting `connection_idle_after'. It is
%% spread: up to a quarter of it is added, different for each process, so that servers that became
%% idle together do not all park at once.
%%
%% While the states of the node that are not parked take more than `awake_memory_limit' bytes, a
%% server parks as soon as it finds no message, and a message to a parked one may wait for other
%% states to be parked: at most 20 milliseconds if it is a call, else at most 200.
%%
%% With the setting `connection_state_compact' set to `false', the servers are plain `gen_server'
%% processes that hibernate after their idle time.
%%
%% If a setting is wrong, a start returns `{error, {invalid_config, Key, Value}}', and `enter_loop'
%% raises `{invalid_config, Key, Value}'.
%%
%% What differs from `gen_server': stack traces name this library's functions instead of those of
%% `gen_server'; `sys:get_status/1' names this module; the sizes of the process. What is outside the
%% state stays where it is: the process dictionary, waiting messages, and the events that
%% `sys:log/2' keeps.
-module(erlmcp_memory_server).

-include("erlmcp_memory_error.hrl").
-include("erlmcp_memory_server.hrl").

-export([start/3, start/4, start_link/3, start_link/4, start_monitor/3, start_monitor/4]).
-export([enter_loop/3, enter_loop/4, enter_loop/5]).

%% Called by `gen' and `sys'.
-export([init_it/6]).
-export([system_continue/3, system_terminate/4, system_code_change/4]).
-export([system_get_state/1, system_replace_state/2, format_status/2]).
-export_type([option/0, enter_loop_option/0]).

-type option() :: gen_server:start_opt() | {idle_after, timeout()}.
%% An option of a start.

-type enter_loop_option() :: gen_server:enter_loop_opt() | {idle_after, timeout()}.
%% An option of `enter_loop'.

-type action() :: timeout() | hibernate | {continue, term()} | tuple().
%% As a callback returns it.

-define(LOOP, erlmcp_memory_server_loop).
-define(START(Args), erlmcp_memory_parking:start(?MODULE, gen_server, ?FUNCTION_NAME, Args)).

%%% Starting

%% @doc As {@link gen_server:start/3}.
-spec start(module(), Args :: term(), [option()]) -> gen_server:start_ret().
start(Module, Args, Options) ->
    ?START([Module, Args, Options]).

%% @doc As {@link gen_server:start/4}.
-spec start(gen_server:server_name(), module(), Args :: term(), [option()]) ->
    gen_server:start_ret().
start(ServerName, Module, Args, Options) ->
    ?START([ServerName, Module, Args, Options]).

%% @doc As {@link gen_server:start_link/3}.
-spec start_link(module(), Args :: term(), [option()]) -> gen_server:start_ret().
start_link(Module, Args, Options) ->
    ?START([Module, Args, Options]).

%% @doc As {@link gen_server:start_link/4}.
-spec start_link(gen_server:server_name(), module(), Args :: term(), [option()]) ->
    gen_server:start_ret().
start_link(ServerName, Module, Args, Options) ->
    ?START([ServerName, Module, Args, Options]).

%% @doc As {@link gen_server:start_monitor/3}.
-spec start_monitor(module(), Args :: term(), [option()]) -> gen_server:start_mon_ret().
start_monitor(Module, Args, Options) ->
    ?START([Module, Args, Options]).

%% @doc As {@link gen_server:start_monitor/4}.
-spec start_monitor(gen_server:server_name(), module(), Args :: term(), [option()]) ->
    gen_server:start_mon_ret().
start_monitor(ServerName, Module, Args, Options) ->
    ?START([ServerName, Module, Args, Options]).

%% @doc As {@link gen_server:enter_loop/3}.
-spec enter_loop(module(), [enter_loop_option()], State :: term()) -> no_return().
enter_loop(Module, Options, State) ->
    enter_loop(Module, Options, State, self(), infinity).

%% @doc As {@link gen_server:enter_loop/4}.
-spec enter_loop(
    module(), [enter_loop_option()], State :: term(), gen_server:server_name() | action()
) -> no_return().
enter_loop(Module, Options, State, {Scope, _} = ServerName) when
    Scope =:= local; Scope =:= global
->
    enter_loop(Module, Options, State, ServerName, infinity);
enter_loop(Module, Options, State, {via, _, _} = ServerName) ->
    enter_loop(Module, Options, State, ServerName, infinity);
enter_loop(Module, Options, State, Action) ->
    enter_loop(Module, Options, State, self(), Action).

%% @doc As {@link gen_server:enter_loop/5}.
-spec enter_loop(
    module(),
    [enter_loop_option()],
    State :: term(),
    gen_server:server_name() | pid(),
    action()
) -> no_return().
enter_loop(Module, Options, State, ServerName, Action) when is_atom(Module), is_list(Options) ->
    case erlmcp_memory_parking:options(Options) of
        {park, Known} ->
            Parking = erlmcp_memory_parking:new(Known),
            case erlmcp_memory_server_action:take(Action, erlmcp_memory_parking:tag()) of
                Wrong when Wrong =:= error; Wrong =:= foreign ->
                    gen_server:enter_loop(Module, Options, State, ServerName, Action);
                Taken ->
                    Name = gen:get_proc_name(ServerName),
                    Loop = server(gen:get_parent(), ServerName, Name, Module, Known, Parking),
                    ?LOOP:next(Taken, Loop#server_1{state = State})
            end;
        {plain, Known} ->
            gen_server:enter_loop(Module, Known, State, ServerName, Action);
        {badarg, Text} ->
            ?BADARG([Module, Options, State, ServerName, Action], 2, Text);
        {error, Invalid} ->
            error(Invalid)
    end;
enter_loop(Module, Options, State, ServerName, Action) ->
    gen_server:enter_loop(Module, Options, State, ServerName, Action).

%%% Called by `gen'

%% @private
-spec init_it(
    Starter :: pid(),
    Parent :: pid() | self,
    gen_server:server_name() | pid(),
    module(),
    Args :: term(),
    [option()]
) -> no_return().
init_it(Starter, self, ServerName, Module, Args, Options) ->
    init_it(Starter, self(), ServerName, Module, Args, Options);
init_it(Starter, Parent, ServerName, Module, Args, Options) ->
    Parking = erlmcp_memory_parking:new(Options),
    Loop = server(Parent, ServerName, gen:name(ServerName), Module, Options, Parking),
    ?LOOP:start(Args, Starter, Options, Loop).

server(Parent, ServerName, Name, Module, Options, Parking) ->
    #server_1{
        parent = Parent,
        name = ServerName,
        module = Module,
        hibernate_after = gen:hibernate_after(Options),
        debug = gen:debug_options(Name, Options),
        parking = Parking
    }.

%%% Called by `sys'

%% @private
-spec system_continue(pid(), [sys:dbg_opt()], server()) -> no_return().
system_continue(Parent, Debug, #server_1{} = Loop) ->
    ?LOOP:again(Loop#server_1{parent = Parent, debug = Debug}).

%% @private
-spec system_terminate(Reason :: term(), pid(), [sys:dbg_opt()], server()) -> no_return().
system_terminate(Reason, _Parent, Debug, #server_1{} = Loop) ->
    ?LOOP:stop(Reason, [], Loop#server_1{debug = Debug}).

%% @private
-spec system_code_change(server(), module(), OldVersion :: term(), Extra :: term()) ->
    {ok, server()} | term().
system_code_change(#server_1{module = Module} = Loop, _Module, OldVersion, Extra) ->
    Old = looked_at(Loop),
    try Module:code_change(OldVersion, Old, Extra) of
        Return -> code_changed(Return, Old, Loop)
    catch
        throw:Return -> code_changed(Return, Old, Loop);
        error:Reason:Stacktrace -> {'EXIT', {Reason, Stacktrace}};
        exit:Reason -> {'EXIT', Reason}
    end.

code_changed({ok, New}, Old, Loop) ->
    Changed = replaced(Old, New, Loop),
    %% An upgrade suspends all servers until each has been here: none keeps the state that it built.
    _ = erlmcp_memory_parking:is_parked(Changed#server_1.parking) andalso
        erlang:garbage_collect(),
    {ok, Changed};
code_changed(Return, _Old, _Loop) ->
    Return.

%% @private
-spec system_get_state(server()) -> {ok, State :: term()}.
system_get_state(#server_1{} = Loop) ->
    {ok, looked_at(Loop)}.

%% @private
-spec system_replace_state(fun((term()) -> term()), server()) -> {ok, State :: term(), server()}.
system_replace_state(Fun, #server_1{} = Loop) ->
    Old = looked_at(Loop),
    New = Fun(Old),
    {ok, New, replaced(Old, New, Loop)}.

%% @private
-spec format_status(normal | terminate, [term()]) -> [term()].
format_status(Option, [Dictionary, SysState, Parent, Debug, #server_1{} = Loop]) ->
    Server = {gen:name(Loop#server_1.name), Loop#server_1.module, looked_at(Loop), Debug},
    erlmcp_memory_server_report:status(Option, Dictionary, SysState, Parent, Server).

%% A parked state stays parked.
looked_at(#server_1{parking = Parking, state = State}) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true -> erlmcp_memory_parking:peek(Parking);
        false -> State
    end.

replaced(Old, New, #server_1{parking = Parking, module = Module} = Loop) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        false ->
            ?LOOP:state(New, Loop);
        true ->
            IsSame = erts_debug:same(Old, New),
            case IsSame orelse erlmcp_memory_parking:replace(New, Module, Parking) of
                true -> Loop;
                {parked, Parked} -> Loop#server_1{parking = Parked};
                {awake, Awake} -> Loop#server_1{state = New, parking = Awake}
            end
    end.
