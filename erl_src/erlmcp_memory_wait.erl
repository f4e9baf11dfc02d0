%% @private
%% @doc Where the servers wait and where their callbacks run. This module never changes.
%%
%% A process that waits in a module dies when that module is replaced twice; so does one in whose
%% callback the module has a call to come back to. The engines of `erlmcp_memory_server' and
%% `erlmcp_memory_statem' are to be replaced while thousands of servers wait and work. So they wait
%% and call here, leave nothing of theirs on the stack, and are called by name when it goes on:
%% then the newest version does.
%%
%% `Engine' is the module that goes on, `Loop' what it gets back. Whatever shape it had when the
%% wait began, a later version of the engine must take.
%%
%% Do not change this file: servers that wait in it would die of the second change. What is missing
%% goes into a new module.
-module(erlmcp_memory_wait).

-export([wait/3, sleep/3, hibernate/2, call/5, call/3]).

-export_type([outcome/0]).

-type outcome() ::
    {ok, Return :: term()} | {error | exit, Reason :: term(), erlang:stacktrace()}.
%% What a callback came to. A thrown term is a return, as in OTP's behaviours.

%% @doc Goes on with `Engine:received(Message, Loop)', or with `Engine:waited(Loop)' when none came
%% for so long.
-spec wait(Engine :: module(), Loop :: term(), timeout()) -> no_return().
wait(Engine, Loop, Timeout) ->
    receive
        Message -> Engine:received(Message, Loop)
    after Timeout -> Engine:waited(Loop)
    end.

%% @doc Goes on with `Engine:slept(Loop)' after this time, whatever comes meanwhile.
-spec sleep(Engine :: module(), Loop :: term(), timeout()) -> no_return().
sleep(Engine, Loop, Time) ->
    receive
    after Time -> Engine:slept(Loop)
    end.

%% @doc Hibernates, and goes on with `Engine:woken(Loop)' when a message is there.
-spec hibernate(Engine :: module(), Loop :: term()) -> no_return().
hibernate(Engine, Loop) ->
    %% By proc_lib: its crash reports are gone after the plain one, which dies of the second
    %% replacement as well where it keeps the stack (OTP 28 and later).
    proc_lib:hibernate(Engine, woken, [Loop]).

%% @doc Calls, and goes on with `Engine:returned(Outcome, Loop)'.
-spec call(module(), Function :: atom(), Args :: [term()], Engine :: module(), Loop :: term()) ->
    no_return().
call(Module, Function, Args, Engine, Loop) ->
    Engine:returned(call(Module, Function, Args), Loop).

%% @doc Calls, for what takes no time: the caller is on the stack meanwhile.
-spec call(module(), Function :: atom(), Args :: [term()]) -> outcome().
call(Module, Function, Args) ->
    try
        {ok, apply(Module, Function, Args)}
    catch
        throw:Return -> {ok, Return};
        Class:Reason:Stacktrace -> {Class, Reason, Stacktrace}
    end.
