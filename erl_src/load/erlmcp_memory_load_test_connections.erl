%% @private
%% @doc Starts and stops connections for tests: see `erlmcp_memory_profiler'.
-module(erlmcp_memory_load_test_connections).

-export([create/3, stop/1, are_connections/1, room/0]).

%% Connections that are started, or asked to end, before the first of them has replied.
-define(CHUNK, 1000).
%% How long connections may take to end before they are killed, in milliseconds.
-define(GRACE, 5000).
%% Processes that are reserved for the rest of the node.
-define(RESERVE, 1000).

%% @doc How many connections the node's process limit leaves room for.
-spec room() -> non_neg_integer().
room() ->
    Free = erlang:system_info(process_limit) - erlang:system_info(process_count),
    max(0, Free - ?RESERVE).

%% @doc Starts this many connections, or none.
-spec create(pos_integer(), pid(), #{metadata => map(), capabilities => term()}) ->
    {ok, [pid()]} | {error, term()}.
create(Count, Server, Options) ->
    Room = room(),
    case whereis(erlmcp_memory_pool) of
        undefined ->
            {error, not_started};
        _ when Count > Room ->
            {error, {too_many_connections, Room}};
        _ ->
            Capabilities =
                case Options of
                    #{capabilities := Given} -> Given;
                    #{} -> erlmcp_memory_load_protocol:capabilities()
                end,
            Share = erlmcp_connection_optimizer:share(Capabilities),
            start(1, Count, Server, Options, Share, [])
    end.

start(Next, Count, _Server, _Options, _Share, Pids) when Next > Count ->
    lists:foreach(fun erlmcp_memory_load_connection:commit/1, Pids),
    {ok, lists:reverse(Pids)};
start(Next, Count, Server, Options, Share, Pids) ->
    Last = min(Count, Next + ?CHUNK - 1),
    Starting = [start_one(Number, Server, Options, Share) || Number <- lists:seq(Next, Last)],
    {More, Errors} = lists:foldl(fun await/2, {Pids, []}, Starting),
    case Errors of
        [] ->
            start(Last + 1, Count, Server, Options, Share, More);
        _ ->
            ok = stop(More),
            {error, lists:last(Errors)}
    end.

start_one(Number, Server, Options, Share) ->
    Spec = #{
        id => <<"test-connection-", (integer_to_binary(Number))/binary>>,
        server => Server,
        metadata =>
            case Options of
                #{metadata := Metadata} -> Metadata;
                #{} -> erlmcp_memory_load_protocol:metadata(Number)
            end,
        capabilities => Share,
        acquire_meter => undefined
    },
    try
        {starting, erlmcp_memory_load_connection:start(Spec)}
    catch
        error:system_limit -> {error, system_limit}
    end.

await({error, Reason}, {Pids, Errors}) ->
    {Pids, [Reason | Errors]};
await({starting, Starting}, {Pids, Errors}) ->
    case erlmcp_memory_load_connection:await(Starting) of
        {ok, Pid} -> {[Pid | Pids], Errors};
        {error, Reason} -> {Pids, [Reason | Errors]}
    end.

%% @doc Whether the term is a list of connections, alive or ended: any other process must not be
%% killed.
-spec are_connections(term()) -> boolean().
are_connections([Pid | Rest]) when is_pid(Pid), node(Pid) =:= node() ->
    erlmcp_memory_load_connection:is_connection(Pid) andalso are_connections(Rest);
are_connections(Other) ->
    Other =:= [].

%% @doc Ends connections; those that do not respond are killed.
-spec stop([pid()]) -> ok.
stop([]) ->
    ok;
stop(Pids) ->
    {Chunk, Rest} = lists:split(min(?CHUNK, length(Pids)), Pids),
    Monitors = [
        begin
            Monitor = monitor(process, Pid),
            ok = erlmcp_memory_load_connection:close(Pid),
            {Monitor, Pid}
        end
     || Pid <- Chunk
    ],
    Deadline = erlang:monotonic_time(millisecond) + ?GRACE,
    lists:foreach(fun(Monitored) -> gone(Monitored, Deadline) end, Monitors),
    stop(Rest).

gone({Monitor, Pid}, Deadline) ->
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    after max(0, Deadline - erlang:monotonic_time(millisecond)) ->
        exit(Pid, kill),
        receive
            {'DOWN', Monitor, process, Pid, _} -> ok
        end
    end.
