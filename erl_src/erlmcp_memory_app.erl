%% @private
%% @doc The application: a supervisor for the processes that measure. The host supervises the pool.
-module(erlmcp_memory_app).
-behaviour(application).

-export([start/2, stop/1]).

%% @private
-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Arguments) ->
    %% Now, and not at the first look at levels: to load the library the code server needs a process,
    %% and where the node has none left it ends, and the node with it.
    {ok, Modules} = application:get_key(erlmcp_memory, modules),
    case code:ensure_modules_loaded([erlmcp_memory_nif | Modules]) of
        ok ->
            ok = erlmcp_memory_log:show(),
            erlmcp_memory_sup:start_link();
        {error, _} = Error ->
            Error
    end.

%% @private
-spec stop(term()) -> ok.
stop(_State) ->
    erlmcp_memory_log:hide().
