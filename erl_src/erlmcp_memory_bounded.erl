%% @private
%% @doc Somebody else's function, which may crash or never return, in a process of its own.
-module(erlmcp_memory_bounded).

-export([run/2]).

%% Its processes say what came of it by how they end.
-dialyzer({no_return, [run/2, guard/3]}).

-type failure() :: {error, timeout | {Class :: atom(), Reason :: term()}}.

%% @doc What the function returns within so many milliseconds. When the caller ends, the process of
%% the function does.
-spec run(fun(() -> Result), Ms :: pos_integer()) -> {ok, Result} | failure().
run(Fun, Ms) ->
    Caller = self(),
    {Guard, Monitor} = spawn_monitor(fun() -> guard(Caller, Fun, Ms) end),
    receive
        {'DOWN', Monitor, process, Guard, {?MODULE, Result}} -> Result;
        {'DOWN', Monitor, process, Guard, Reason} -> {error, {exit, Reason}}
    end.

guard(Caller, Fun, Ms) ->
    Lives = monitor(process, Caller),
    {Worker, Works} = spawn_monitor(fun() -> exit({?MODULE, result(Fun)}) end),
    receive
        {'DOWN', Works, process, Worker, {?MODULE, _} = Result} ->
            exit(Result);
        {'DOWN', Works, process, Worker, Reason} ->
            exit({?MODULE, {error, {exit, Reason}}});
        {'DOWN', Lives, process, Caller, _} ->
            exit(Worker, kill)
    after Ms ->
        true = exit(Worker, kill),
        exit({?MODULE, {error, timeout}})
    end.

result(Fun) ->
    try
        {ok, Fun()}
    catch
        Class:Reason -> {error, {Class, Reason}}
    end.
