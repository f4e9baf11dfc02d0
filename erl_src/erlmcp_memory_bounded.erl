%% @private
%% @doc Runs a function of the host, which may crash or never return, in a separate process.
-module(erlmcp_memory_bounded).

-export([run/2]).
-export([guard/3, work/1]).

%% Both report the outcome in their exit reasons.
-dialyzer({no_return, [guard/3, work/1]}).

-type failure() :: {error, timeout | {Class :: atom(), Reason :: term()}}.

%% @doc Runs a function in a process of its own, and returns what it returns within `Ms'
%% milliseconds. That process ends when the caller does.
-spec run(fun(() -> Result), Ms :: pos_integer()) -> {ok, Result} | failure().
run(Fun, Ms) ->
    Caller = self(),
    {Guard, Monitor} = spawn_monitor(?MODULE, guard, [Caller, Fun, Ms]),
    receive
        {'DOWN', Monitor, process, Guard, {?MODULE, Result}} -> Result;
        {'DOWN', Monitor, process, Guard, Reason} -> {error, {exit, Reason}}
    end.

%% @private
-spec guard(pid(), fun(() -> term()), pos_integer()) -> true | no_return().
guard(Caller, Fun, Ms) ->
    Lives = monitor(process, Caller),
    {Worker, Works} = spawn_monitor(?MODULE, work, [Fun]),
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

%% @private
-spec work(fun(() -> term())) -> no_return().
work(Fun) ->
    exit({?MODULE, result(Fun)}).

result(Fun) ->
    try
        {ok, Fun()}
    catch
        Class:Reason -> {error, {Class, Reason}}
    end.
