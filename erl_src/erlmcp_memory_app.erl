%% @private
%% @doc The application: a supervisor for what measures. The pool is its host's.
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
