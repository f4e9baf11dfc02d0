%% @private
%% @doc Runs a function of the host, which may crash or never return, in a separate process.
-module(erlmcp_memory_bounded).

-export([run/2]).
-export([guard/3, work/2]).

%% It reports the outcome in its exit reason.
-dialyzer({no_return, [guard/3]}).

-type failure() :: {error, timeout | system_limit | {Class :: atom(), Reason :: term()}}.

%% @doc Runs a function in a process of its own, and returns what it returns within `Ms'
%% milliseconds. That process ends when the caller does. `{error, system_limit}' where the node has no
%% room for another process: nothing was run then.
-spec run(fun(() -> Result), Ms :: pos_integer()) -> {ok, Result} | failure().
run(Fun, Ms) ->
    Caller = self(),
    case started(guard, [Caller, Fun, Ms]) of
        {Guard, Monitor} ->
            receive
                {'DOWN', Monitor, process, Guard, {?MODULE, Result}} -> Result;
                {'DOWN', Monitor, process, Guard, Reason} -> {error, {exit, Reason}}
            end;
        system_limit ->
            {error, system_limit}
    end.

started(Function, Arguments) ->
    try
        spawn_monitor(?MODULE, Function, Arguments)
    catch
        error:system_limit -> system_limit
    end.

%% @private
-spec guard(pid(), fun(() -> term()), pos_integer()) -> true | no_return().
guard(Caller, Fun, Ms) ->
    Lives = monitor(process, Caller),
    case started(work, [self(), Fun]) of
        {Worker, Works} ->
            receive
                {Worker, Result} ->
                    exit({?MODULE, Result});
                {'DOWN', Works, process, Worker, Reason} ->
                    exit({?MODULE, {error, {exit, Reason}}});
                {'DOWN', Lives, process, Caller, _} ->
                    exit(Worker, kill)
            after Ms ->
                true = exit(Worker, kill),
                exit({?MODULE, {error, timeout}})
            end;
        system_limit ->
            exit({?MODULE, {error, system_limit}})
    end.

%% @private
%% Ends as a process that runs the function itself would, for those that it linked to itself.
-spec work(pid(), fun(() -> term())) -> ok.
work(Guard, Fun) ->
    Result = result(Fun),
    Guard ! {self(), Result},
    case Result of
        {ok, _} -> ok;
        {error, {_, Reason}} -> exit(Reason)
    end.

result(Fun) ->
    try
        {ok, Fun()}
    catch
        Class:Reason -> {error, {Class, Reason}}
    end.
