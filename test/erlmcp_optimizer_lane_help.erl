%% Which kind of scheduler a native function works on.
-module(erlmcp_optimizer_lane_help).

-export([call/2]).

-define(NIF, erlmcp_memory_nif).

%% Calls a native function; gives the kind of scheduler that it ended on, and what it returned.
call(Function, Args) ->
    Self = self(),
    %% A heap so large that nothing is collected on the way: that may take a dirty scheduler, too.
    Options = [monitor, {min_heap_size, 1 bsl 20}],
    {Pid, Monitor} = spawn_opt(
        fun() ->
            receive
                go -> Self ! {self(), apply(?NIF, Function, Args)}
            end
        end,
        Options
    ),
    1 = erlang:trace(Pid, true, [running, scheduler_id]),
    Pid ! go,
    Result =
        receive
            {Pid, Returned} -> Returned;
            {'DOWN', Monitor, process, Pid, Reason} -> error({Function, Reason})
        after 30_000 -> error({timeout, Function})
        end,
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    after 30_000 -> error({timeout, Function})
    end,
    Delivered = erlang:trace_delivered(Pid),
    receive
        {trace_delivered, Pid, Delivered} -> ok
    after 30_000 -> error({timeout, Function})
    end,
    Into = {?NIF, Function, length(Args)},
    Normal = lists:seq(1, erlang:system_info(schedulers)),
    Entered = [Id || {in, Mfa, Id} <- events(Pid), Mfa =:= Into],
    case Entered -- Normal of
        [] -> {normal, Result};
        [_ | _] -> {dirty, Result}
    end.

events(Pid) ->
    receive
        {trace, Pid, What, Mfa, Id} -> [{What, Mfa, Id} | events(Pid)]
    after 0 -> []
    end.
