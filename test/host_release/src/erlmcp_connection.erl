%% One connection: a compact state, the pooled state of its session, and a message buffer only
%% while a message has begun and not ended.
-module(erlmcp_connection).
-behaviour(gen_server).

-export([start_link/2, received/2, contents/1]).
-export([init/1, handle_call/3, handle_cast/2]).

-define(O, erlmcp_connection_optimizer).
-define(P, erlmcp_memory_pool).

start_link(Id, Capabilities) ->
    gen_server:start_link(?MODULE, {Id, Capabilities}, []).

%% Bytes came in. Answers the replies to the messages that are whole by now.
received(Pid, Bytes) ->
    gen_server:call(Pid, {received, Bytes}).

contents(Pid) ->
    gen_server:call(Pid, contents).

init({Id, Capabilities}) ->
    {ok, Session} = ?P:acquire_connection_state(#{id => Id, messages => 0}),
    State = ?O:from_map(#{
        id => Id,
        phase => initialized,
        transport => erlmcp_transport_tcp,
        metadata => #{client => <<"host">>},
        capabilities_ref => Capabilities
    }),
    {ok, {State, Session, none}, hibernate}.

handle_call({received, Bytes}, _From, {State, Session, Buffer0}) ->
    Buffer = buffer(Buffer0),
    {ok, _} = ?P:append_message_buffer(Buffer, Bytes),
    {Replies, NewState} = answer(?P:next_message(Buffer), Buffer, State, []),
    {ok, #{messages := Before}} = ?P:connection_state(Session),
    ok = ?P:update_connection_state(Session, #{messages => Before + length(Replies)}),
    {reply, Replies, {NewState, Session, emptied(Buffer)}, hibernate};
handle_call(contents, _From, {State, Session, _} = Connection) ->
    {ok, Pooled} = ?P:connection_state(Session),
    {reply, {?O:to_map(State), Pooled}, Connection, hibernate}.

handle_cast(_, Connection) ->
    {noreply, Connection, hibernate}.

buffer(none) ->
    {ok, Buffer, _} = ?P:acquire_message_buffer(1024),
    Buffer;
buffer(Buffer) ->
    Buffer.

%% Nothing of a message is held between messages.
emptied(Buffer) ->
    case ?P:message_buffer(Buffer) of
        {ok, <<>>} ->
            ok = ?P:release_message_buffer(Buffer),
            none;
        {ok, _} ->
            Buffer
    end.

answer(more, _Buffer, State, Replies) ->
    {lists:reverse(Replies), State};
answer({ok, <<"tools/list">>}, Buffer, State, Replies) ->
    {ok, Reply} = ?O:find_shared(?O:get_state_field(State, capabilities_ref), [listed]),
    answer(?P:next_message(Buffer), Buffer, State, [Reply | Replies]);
answer({ok, <<"tools/call ", Tool/binary>>}, Buffer, State, Replies) ->
    Calls = ?O:get_field_safe(State, [calls, Tool], 0) + 1,
    Reply =
        case ?O:find_shared(?O:get_state_field(State, capabilities_ref), [tools, Tool]) of
            {ok, #{name := Name}} -> {called, Name, Calls};
            error -> {error, unknown_tool}
        end,
    Counted = ?O:update_state_field(State, [calls, Tool], Calls),
    answer(?P:next_message(Buffer), Buffer, Counted, [Reply | Replies]).
