%% @doc A `gen_statem' for processes that are idle most of the time: while a process is idle, its
%% data take a small part of the memory.
%%
%% One line changes where a callback module of `gen_statem' is started:
%% ```
%% gen_statem:start_link(?MODULE, Args, Options)             % before
%% erlmcp_memory_statem:start_link(?MODULE, Args, Options)   % after
%% '''
%%
%% When no message has come for `connection_idle_after' milliseconds, the data are <em>parked</em>:
%% packed off the heap, with their equal parts shared among everything that is parked on the node,
%% and the process hibernates. The next message unparks them first. The state itself, postponed
%% events and timeouts are not touched. See {@link erlmcp_memory_server} for the settings and for
%% how the memory of a node is kept within its limit when many processes wake at once; all of it
%% applies here too.
%%
%% Everything else is as with `gen_statem': callbacks, return values, actions, timeouts, names,
%% links, `sys' and releases. Clients use the functions of `gen_statem', such as
%% `gen_statem:call/2'. With the setting `connection_state_compact' set to `false', the processes
%% are plain `gen_statem' processes that hibernate after their idle time.
%%
%% What differs shows only when a process is inspected: stack traces name modules of this library,
%% `sys:get_status/1' returns `{module, erlmcp_memory_statem}', and a failing function in
%% `sys:replace_state/2' is reported as failing in this module. Such a function also fails if it
%% does not return `{State, Data}'. And where `gen_statem' has faults, this module does what is
%% documented: a timeout of zero milliseconds may be replaced by a longer one before it expires,
%% which `gen_statem' before OTP 28 forgets; a timeout action with options and a wrong time is a bad
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

-export_type([option/0, enter_loop_option/0]).

-include("erlmcp_memory_error.hrl").
-include("erlmcp_memory_statem.hrl").

-define(LOOP, erlmcp_memory_statem_loop).
-define(START(Args), erlmcp_memory_parking:start(?MODULE, gen_statem, ?FUNCTION_NAME, Args)).

-type option() :: gen_statem:start_opt() | {idle_after, timeout()}.
%% An option of a start.

-type enter_loop_option() :: gen_statem:enter_loop_opt() | {idle_after, timeout()}.
%% An option of `enter_loop'.

%%% Start

%% @doc As `gen_statem:start/3'.
-spec start(module(), Args :: term(), [option()]) -> gen_statem:start_ret().
start(Module, Args, Options) ->
    ?START([Module, Args, Options]).

%% @doc As `gen_statem:start/4'.
-spec start(gen_statem:server_name(), module(), Args :: term(), [option()]) ->
    gen_statem:start_ret().
start(ServerName, Module, Args, Options) ->
    ?START([ServerName, Module, Args, Options]).

%% @doc As `gen_statem:start_link/3'.
-spec start_link(module(), Args :: term(), [option()]) -> gen_statem:start_ret().
start_link(Module, Args, Options) ->
    ?START([Module, Args, Options]).

%% @doc As `gen_statem:start_link/4'.
-spec start_link(gen_statem:server_name(), module(), Args :: term(), [option()]) ->
    gen_statem:start_ret().
start_link(ServerName, Module, Args, Options) ->
    ?START([ServerName, Module, Args, Options]).

%% @doc As `gen_statem:start_monitor/3'.
-spec start_monitor(module(), Args :: term(), [option()]) -> gen_statem:start_mon_ret().
start_monitor(Module, Args, Options) ->
    ?START([Module, Args, Options]).

%% @doc As `gen_statem:start_monitor/4'.
-spec start_monitor(gen_statem:server_name(), module(), Args :: term(), [option()]) ->
    gen_statem:start_mon_ret().
start_monitor(ServerName, Module, Args, Options) ->
    ?START([ServerName, Module, Args, Options]).

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
            ?LOOP:enter(Loop#loop{state = State, data = Data}, Actions);
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
    Left = erlmcp_memory_parking:start_wait(Options),
    ?LOOP:start({start, Args, Starter, ServerRef, Left, Loop}).

loop(Module, Name, Parent, Options) ->
    #loop{
        name = Name,
        parent = Parent,
        debug = gen:debug_options(Name, Options),
        modules = [Module],
        hibernate_after = gen:hibernate_after(Options),
        parking = erlmcp_memory_parking:new(Options)
    }.

%%% sys

%% @private
-spec system_continue(pid(), [sys:dbg_opt()], #loop{}) -> no_return().
system_continue(Parent, Debug, Loop) ->
    ?LOOP:wait((?LOOP:current(Loop))#loop{parent = Parent, debug = Debug}).

%% @private
-spec system_terminate(term(), pid(), [sys:dbg_opt()], #loop{}) -> no_return().
system_terminate(Reason, Parent, Debug, Loop) ->
    Last = (?LOOP:current(Loop))#loop{parent = Parent, debug = Debug},
    ?LOOP:terminate(exit, Reason, stack(), Last, []).

%% @private
-spec system_code_change(#loop{}, module(), term(), term()) -> {ok, #loop{}} | term().
system_code_change(Old, _Module, OldVsn, Extra) ->
    #loop{modules = [Module | _] = Modules, state = State} = Loop = ?LOOP:current(Old),
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
    #loop{state = State} = Loop = ?LOOP:current(Old),
    {ok, {State, data(Loop)}}.

%% @private
-spec system_replace_state(fun((term()) -> term()), #loop{}) -> {ok, term(), #loop{}}.
system_replace_state(Fun, Old) ->
    #loop{state = State} = Loop = ?LOOP:current(Old),
    Data = data(Loop),
    {NewState, NewData} = Replaced = Fun({State, Data}),
    {ok, Replaced, changed(NewState, Data, NewData, Loop)}.

%% @private
-spec format_status(normal | terminate, list()) -> list().
format_status(Option, [Dictionary, SysState, Parent, Debug, Old]) ->
    Loop = ?LOOP:current(Old),
    Shown = Loop#loop{parent = Parent, debug = Debug, data = data(Loop)},
    erlmcp_memory_statem_report:status(Option, Dictionary, SysState, Shown).

%% The data; parked data stay parked.
data(#loop{data = Data, parking = Parking}) ->
    case erlmcp_memory_parking:is_parked(Parking) of
        true -> erlmcp_memory_parking:peek(Parking);
        false -> Data
    end.

%% New data in place of the old: parked, if those were.
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

stack() ->
    element(2, process_info(self(), current_stacktrace)).
