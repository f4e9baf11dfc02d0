%% The one way of waiting in tests: for a condition, with a deadline.
-module(erlmcp_wait_help).

-export([until/1, until/2]).

%% So long that it is a failure on any machine.
-define(DEADLINE_MS, 60000).
-define(INTERVAL_MS, 2).

%% Until Fun() is true.
until(Fun) ->
    until(Fun, ?DEADLINE_MS).

%% The same, with a deadline in milliseconds.
until(Fun, Ms) ->
    looked(Fun, Fun(), erlang:monotonic_time(millisecond) + Ms).

looked(_Fun, true, _Deadline) ->
    ok;
looked(Fun, false, Deadline) ->
    case erlang:monotonic_time(millisecond) < Deadline of
        true -> ok;
        false -> ct:fail({still_false, process_info(self(), current_stacktrace)})
    end,
    %% A receive takes what came into the process's list of messages, which conditions may look at.
    receive
        {?MODULE, never} -> ok
    after ?INTERVAL_MS -> ok
    end,
    looked(Fun, Fun(), Deadline).
