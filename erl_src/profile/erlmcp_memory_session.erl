%% @private
%% @doc The data of the profiler's session, for all that read them.
-module(erlmcp_memory_session).

-export([last/0, is_running/0, look/0]).

-include("erlmcp_memory.hrl").

-define(LOOK_MS, 5000).

%% @doc The last session, running or not, if it has a snapshot, and its status.
-spec last() -> {ok, reference(), #{atom() => term()}} | none.
last() ->
    case erlmcp_memory_nif:profiler_session() of
        undefined ->
            none;
        Session ->
            case erlmcp_memory_nif:profiler_status(Session) of
                #{baseline := #memory_snapshot{}} = Status -> {ok, Session, Status};
                _ -> none
            end
    end.

%% @doc Whether a session runs.
-spec is_running() -> boolean().
is_running() ->
    case last() of
        {ok, _, #{running := Running}} -> Running;
        none -> false
    end.

%% @doc Has the sampler check whether the running session still has its trace flags, so that what is
%% read of it next is true. It may be busy with the flags of all processes; one that is suspended
%% never replies.
-spec look() -> ok | {error, profiling_not_started | timeout}.
look() ->
    try
        gen_server:call(erlmcp_memory_sampler, look, ?LOOK_MS)
    catch
        exit:{timeout, {gen_server, call, _}} -> {error, timeout};
        exit:{_, {gen_server, call, _}} -> {error, profiling_not_started}
    end.
