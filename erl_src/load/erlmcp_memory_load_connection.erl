%% @private
%% @doc A connection process of the load simulation, which works as a server's connection does: it
%% holds a pooled state and a compact state, receives messages in pieces, replies to them, and
%% hibernates.
%%
%% It monitors its server and ends with it. Between messages it holds the two states and that
%% monitor; a message buffer is held only while a message is in flight.
%%
%% Both states hold the connection's id and the number of its messages, and they must agree at every
%% message. A connection whose states differ ends with `{states_differ, _, _}', as it would if a
%% state had two owners.
-module(erlmcp_memory_load_connection).

-export([start/1, await/1, commit/1, request/4, close/1, is_connection/1]).
-export([init/1, idle/1]).

-export_type([spec/0, starting/0, meters/0]).

-define(POOL, erlmcp_memory_pool).
-define(STATE, erlmcp_connection_optimizer).
-define(NIF, erlmcp_memory_nif).

%% The longest time to wait for a reply, in milliseconds: far more than one ever takes.
-define(ANSWER_TIMEOUT, 60000).

-type spec() :: #{
    id := binary(),
    %% the connection ends when this process does
    server := pid(),
    metadata := map(),
    capabilities := erlmcp_connection_optimizer:share(),
    %% a histogram of how long the acquisition of the pooled state takes
    acquire_meter := reference() | undefined
}.
-type starting() :: {pid(), reference()}.
%% Histograms: of state updates, and of messages from the first piece sent to the reply.
-type meters() :: {Update :: reference(), Message :: reference()}.

-record(connection, {
    server :: reference(),
    %% the process that starts it: until it has committed, its end is the connection's end
    starter :: reference() | false,
    pooled :: erlmcp_memory_pool:state_ref(),
    state :: erlmcp_connection_optimizer:state()
}).

%%% For those who start one

%% @doc Starts a connection; {@link await/1} must follow, in the same process. Raises
%% `system_limit' where the node takes no more processes.
-spec start(spec()) -> starting().
start(Spec) ->
    erlang:spawn_opt(?MODULE, init, [Spec#{starter => self()}], [monitor]).

%% @doc Waits until the connection has its states.
-spec await(starting()) -> {ok, pid()} | {error, term()}.
await({Pid, Monitor}) ->
    receive
        {?MODULE, ready, Pid} ->
            true = demonitor(Monitor, [flush]),
            {ok, Pid};
        {'DOWN', Monitor, process, Pid, Reason} ->
            {error, Reason}
    end.

%% @doc From now on the connection does not need its starter.
-spec commit(pid()) -> ok.
commit(Pid) ->
    Pid ! {?MODULE, commit},
    ok.

%% @doc Sends a message in pieces and waits for the reply: the connection's id, how many messages it
%% has received, the JSON-RPC id of the reply, and its result.
-spec request(pid(), [binary()], meters(), SentAt :: integer()) ->
    {ok, {Id :: binary(), Count :: pos_integer(), RequestId :: binary(), Result :: binary()}}
    | {error, term()}.
request(Pid, Pieces, Meters, SentAt) ->
    Alias = monitor(process, Pid, [{alias, reply_demonitor}]),
    lists:foreach(fun(Piece) -> Pid ! {?MODULE, bytes, Piece, Alias, Meters, SentAt} end, Pieces),
    receive
        {Alias, Answer} ->
            {ok, Answer};
        {'DOWN', Alias, process, Pid, Reason} ->
            {error, Reason}
    after ?ANSWER_TIMEOUT ->
        true = demonitor(Alias, [flush]),
        {error, timeout}
    end.

%% @doc Asks the connection to end. It exits with `normal' once its pooled state is released.
-spec close(pid()) -> ok.
close(Pid) ->
    Pid ! {?MODULE, close},
    ok.

%% @doc Whether the process is a connection. A process that has ended may have been one.
-spec is_connection(pid()) -> boolean().
is_connection(Pid) ->
    case erlang:process_info(Pid, initial_call) of
        {initial_call, {?MODULE, init, 1}} -> true;
        {initial_call, _} -> false;
        undefined -> true
    end.

%%% The process

%% @private
-spec init(map()) -> no_return().
init(#{id := Id, server := Server, starter := Starter, metadata := Metadata} = Spec) ->
    #{capabilities := Capabilities, acquire_meter := Meter} = Spec,
    Connection = #connection{
        server = monitor(process, Server),
        starter = Starter =/= Server andalso monitor(process, Starter),
        pooled = acquire(Id, Meter),
        state = state(Id, Metadata, Capabilities)
    },
    Starter ! {?MODULE, ready, self()},
    hibernate(Connection).

acquire(Id, Meter) ->
    case timed(Meter, fun() -> ?POOL:acquire_aside(#{id => Id, messages => 0}) end) of
        {ok, Pooled} -> Pooled;
        {error, Reason} -> exit(Reason)
    end.

state(Id, Metadata, Capabilities) ->
    lists:foldl(
        fun({Field, Value}, State) -> ?STATE:update_state_field(State, Field, Value) end,
        ?STATE:create_optimized_state(Id),
        [{metadata, Metadata}, {capabilities_ref, Capabilities}, {messages, 0}]
    ).

-spec hibernate(#connection{}) -> no_return().
hibernate(Connection) ->
    erlang:hibernate(?MODULE, idle, [Connection]).

%% @private
-spec idle(#connection{}) -> no_return().
idle(#connection{server = Server, starter = Starter} = Connection) ->
    receive
        {?MODULE, bytes, Bytes, Alias, Meters, SentAt} ->
            case ?POOL:acquire_message_buffer(0) of
                {ok, Buffer, _Zeros} ->
                    take(Bytes, Buffer, {Alias, Meters, SentAt}, Connection);
                {error, Reason} ->
                    exit(Reason)
            end;
        {?MODULE, commit} ->
            true = is_boolean(Starter) orelse demonitor(Starter, [flush]),
            hibernate(Connection#connection{starter = false});
        {?MODULE, close} ->
            terminate(Connection);
        {'DOWN', Monitor, process, _, _} when Monitor =:= Server; Monitor =:= Starter ->
            terminate(Connection);
        _Unknown ->
            hibernate(Connection)
    end.

%% Adds a piece to the message in flight.
take(Bytes, Buffer, Request, Connection) ->
    {ok, _} = ?POOL:append_message_buffer(Buffer, Bytes),
    case ?POOL:next_message(Buffer) of
        {ok, Frame} ->
            ok = ?POOL:release_message_buffer(Buffer),
            hibernate(answer(Frame, Request, Connection));
        more ->
            more(Buffer, Connection)
    end.

more(Buffer, #connection{server = Server, starter = Starter} = Connection) ->
    receive
        {?MODULE, bytes, Bytes, Alias, Meters, SentAt} ->
            take(Bytes, Buffer, {Alias, Meters, SentAt}, Connection);
        {?MODULE, close} ->
            ok = ?POOL:release_message_buffer(Buffer),
            terminate(Connection);
        {'DOWN', Monitor, process, _, _} when Monitor =:= Server; Monitor =:= Starter ->
            ok = ?POOL:release_message_buffer(Buffer),
            terminate(Connection)
    end.

answer(Frame, {Alias, {UpdateMeter, MessageMeter}, SentAt}, Connection) ->
    #connection{pooled = Pooled, state = State} = Connection,
    Id = ?STATE:get_state_field(State, id),
    Count = ?STATE:get_state_field(State, messages),
    case ?POOL:connection_state(Pooled) of
        {ok, #{id := Id, messages := Count}} -> ok;
        Other -> exit({states_differ, {Id, Count}, Other})
    end,
    ok = ?POOL:update_connection_state(Pooled, #{messages => Count + 1}),
    Counted = timed(UpdateMeter, fun() ->
        ?STATE:update_state_field(State, messages, Count + 1)
    end),
    {New, RequestId, Result} = erlmcp_memory_load_protocol:handle(Frame, Counted),
    Alias ! {Alias, {Id, Count + 1, RequestId, Result}},
    ok = ?NIF:histogram_record(MessageMeter, erlang:monotonic_time(nanosecond) - SentAt),
    Connection#connection{state = New}.

%% The exit reason tells whether the state was really released.
-spec terminate(#connection{}) -> no_return().
terminate(#connection{pooled = Pooled, state = State}) ->
    ok = ?POOL:release_connection_state(Pooled),
    ok = ?STATE:cleanup_state(State),
    case ?POOL:connection_state(Pooled) of
        {error, released} -> exit(normal);
        {ok, _} -> exit(state_not_released)
    end.

timed(undefined, Fun) ->
    Fun();
timed(Meter, Fun) ->
    Start = erlang:monotonic_time(nanosecond),
    Result = Fun(),
    ok = ?NIF:histogram_record(Meter, erlang:monotonic_time(nanosecond) - Start),
    Result.
