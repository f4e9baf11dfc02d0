%% @doc A connection with nothing on its heap: what is equal for all connections is behind one
%% shared reference, the reply to `tools/list' encoded once; its own is a compact state; and it
%% hibernates after every message, which takes next to nothing where the heap is empty.
-module(erlmcp_host_compact).

-behaviour(erlmcp_host).
-behaviour(gen_server).

-export([catalogue/1, start_link/2]).
-export([init/1, handle_call/3, handle_cast/2]).

-define(O, erlmcp_connection_optimizer).

%% @doc Shares the configuration. Who holds the reference keeps this version of it; the last one
%% to go frees it.
-spec catalogue(erlmcp_host:config()) -> erlmcp_connection_optimizer:share().
catalogue(#{id := Id, capabilities := Capabilities, tools := Tools} = Config) ->
    %% Maps all the way down: `find_shared/2' goes by map keys.
    ByName = [
        {Name, #{tool => maps:remove(<<"inputSchema">>, Tool), handler => Handler, schema => Schema}}
     || {#{<<"name">> := Name, <<"inputSchema">> := Schema} = Tool, Handler} <- Tools
    ],
    Triples = [{Name, {T, H, S}} || {Name, #{tool := T, handler := H, schema := S}} <- ByName],
    ?O:share(Config#{
        tools := maps:from_list(ByName),
        initialized => iolist_to_binary(erlmcp_host:initialized(Id, Capabilities)),
        listed => erlmcp_host:listed(maps:from_list(Triples))
    }).

-spec start_link(binary(), erlmcp_connection_optimizer:share()) -> {ok, pid()}.
start_link(Id, Catalogue) ->
    gen_server:start_link(?MODULE, {Id, Catalogue}, []).

init({Id, Catalogue}) ->
    %% Two hundred bytes: what proc_lib notes for crash reports, and nobody else reads.
    _ = erase(),
    {ok, ?O:from_map(#{id => Id, transport => tcp, capabilities_ref => Catalogue}), hibernate}.

handle_call({message, Message}, {From, _Tag}, State) ->
    {Reply, NewState} = message(Message, From, State),
    {reply, Reply, NewState, hibernate}.

handle_cast({delivered, Token}, State) ->
    {noreply, ?O:remove_state_field(State, [progress, Token])};
handle_cast(idle, State) ->
    {noreply, State, hibernate}.

message(#{<<"id">> := Id, <<"method">> := <<"initialize">>, <<"params">> := Client}, _, State) ->
    {ok, Result} = find(State, [initialized]),
    Initialized = ?O:update_state_field(State, phase, initialized),
    %% Clients of one kind say the same of themselves.
    {erlmcp_host:answer(Id, Result), ?O:update_state_field(Initialized, client, ?O:share(Client))};
message(#{<<"method">> := <<"notifications/initialized">>}, _, State) ->
    Pending = #{1 => <<"roots/list">>, 2 => <<"ping">>},
    Requests = [erlmcp_host:ask(Id, Method) || {Id, Method} <- lists:sort(maps:to_list(Pending))],
    {Requests, ?O:update_state_field(State, pending_refs, Pending)};
message(#{<<"id">> := Id, <<"method">> := <<"tools/list">>}, _, State) ->
    {ok, Result} = find(State, [listed]),
    {erlmcp_host:answer(Id, Result), State};
message(#{<<"id">> := Id, <<"method">> := <<"tools/call">>, <<"params">> := Params}, _, State) ->
    #{<<"name">> := Name, <<"arguments">> := Arguments} = Params,
    Catalogue = ?O:get_state_field(State, capabilities_ref),
    case ?O:find_shared(Catalogue, [tools, Name, handler]) of
        {ok, Handler} ->
            Required =
                case ?O:find_shared(Catalogue, [tools, Name, schema, <<"required">>]) of
                    {ok, Keys} -> Keys;
                    error -> []
                end,
            case erlmcp_host:called(Required, Handler, Arguments) of
                {ok, Result} -> {erlmcp_host:answer(Id, Result), progress(Params, State)};
                {missing, Key} -> {erlmcp_host:error(Id, -32602, Key), State}
            end;
        error ->
            {erlmcp_host:error(Id, -32601, Name), State}
    end;
message(#{<<"id">> := Id, <<"method">> := <<"resources/subscribe">>} = Message, From, State) ->
    #{<<"params">> := #{<<"uri">> := Uri}} = Message,
    case find(State, [resources, Uri]) of
        {ok, _} ->
            New = ?O:update_state_field(State, [subscriptions, Uri], From),
            {erlmcp_host:answer(Id, <<"{}">>), New};
        error ->
            {erlmcp_host:error(Id, -32002, Uri), State}
    end;
message(#{<<"id">> := Id, <<"result">> := _}, _, State) ->
    {[], ?O:remove_state_field(State, [pending_refs, Id])}.

find(State, Path) ->
    ?O:find_shared(?O:get_state_field(State, capabilities_ref), Path).

progress(#{<<"name">> := Name, <<"_meta">> := #{<<"progressToken">> := Token}}, State) ->
    ?O:update_state_field(State, [progress, Token], Name);
progress(_, State) ->
    State.
