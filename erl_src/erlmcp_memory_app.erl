%% @private
%% @doc The application: a supervisor for the processes that measure. The host supervises the pool.
-module(erlmcp_memory_app).
-behaviour(application).

-export([start/2, stop/1]).

%% @private
-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Arguments) ->
    erlmcp_memory_sup:start_link().

%% @private
-spec stop(term()) -> ok.
stop(_State) ->
    ok.
