%% @private
%% @doc Checks the levels of the node's health from time to time, so that changes are reported
%% when no session runs, too. It keeps no state: the library keeps the window.
-module(erlmcp_memory_monitor).
-behaviour(gen_server).

-export([start_link/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% Looks in a window of the settings, and milliseconds between two at least.
-define(LOOKS, 120).
-define(LEAST, 100).

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @private
-spec init([]) -> {ok, undefined}.
init([]) ->
    look_later(),
    {ok, undefined}.

%% @private
-spec handle_call(term(), gen_server:from(), State) ->
    {reply, {error, unknown_request}, State}.
handle_call(_Request, _From, State) ->
    {reply, {error, unknown_request}, State}.

%% @private
-spec handle_cast(term(), State) -> {noreply, State}.
handle_cast(_Message, State) ->
    {noreply, State}.

%% @private
-spec handle_info(term(), State) -> {noreply, State}.
handle_info(look, State) ->
    look_later(),
    ok = erlmcp_memory_watch:check(),
    {noreply, State};
handle_info(_Message, State) ->
    {noreply, State}.

look_later() ->
    _ = erlang:send_after(max(?LEAST, erlmcp_memory_watch:window() div ?LOOKS), self(), look),
    ok.
