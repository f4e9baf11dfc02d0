%% @doc The best that is written by hand without this library: what is equal for all is a literal
%% in `persistent_term', the reply to `tools/list' encoded once, its own is on the heap of a
%% connection that hibernates when it is idle.
-module(erlmcp_host_persistent).

-behaviour(erlmcp_host).
-behaviour(gen_server).

-export([catalogue/1, start_link/2]).
-export([init/1, handle_call/3, handle_cast/2]).

-record(state, {
    id :: binary(),
    key :: term(),
    phase = initialization :: atom(),
    transport = tcp :: atom(),
    client :: map() | undefined,
    subscriptions = #{} :: #{binary() => pid()},
    progress = #{} :: #{binary() => binary()},
    pending = #{} :: #{integer() => binary()}
}).

%% @doc Puts the configuration where all processes read it without a copy. Another configuration
%% under the same key makes the VM look through all processes.
-spec catalogue(erlmcp_host:config()) -> Key :: term().
catalogue(#{id := Id, tools := Tools} = Config) ->
    Key = {?MODULE, Id},
    ByName = [
        {Name, {maps:remove(<<"inputSchema">>, Tool), Handler, Schema}}
     || {#{<<"name">> := Name, <<"inputSchema">> := Schema} = Tool, Handler} <- Tools
    ],
    ToolsByName = maps:from_list(ByName),
    Listed = erlmcp_host:listed(ToolsByName),
    persistent_term:put(Key, Config#{tools := ToolsByName, listed => Listed}),
    Key.

-spec start_link(binary(), Key :: term()) -> {ok, pid()}.
start_link(Id, Key) ->
    gen_server:start_link(?MODULE, {Id, Key}, []).

init({Id, Key}) ->
    %% Two hundred bytes: what proc_lib notes for crash reports, and nobody else reads.
    _ = erase(),
    {ok, #state{id = Id, key = Key}}.

handle_call({message, Message}, {From, _Tag}, State) ->
    {Reply, NewState} = message(Message, From, State),
    {reply, Reply, NewState}.

handle_cast({delivered, Token}, State) ->
    {noreply, State#state{progress = maps:remove(Token, State#state.progress)}};
handle_cast(idle, State) ->
    {noreply, State, hibernate}.

message(#{<<"id">> := Id, <<"method">> := <<"initialize">>, <<"params">> := Client}, _, State) ->
    #{id := ServerId, capabilities := Capabilities} = persistent_term:get(State#state.key),
    Reply = erlmcp_host:answer(Id, erlmcp_host:initialized(ServerId, Capabilities)),
    {Reply, State#state{phase = initialized, client = Client}};
message(#{<<"method">> := <<"notifications/initialized">>}, _, State) ->
    Pending = #{1 => <<"roots/list">>, 2 => <<"ping">>},
    Requests = [erlmcp_host:ask(Id, Method) || {Id, Method} <- lists:sort(maps:to_list(Pending))],
    {Requests, State#state{pending = Pending}};
message(#{<<"id">> := Id, <<"method">> := <<"tools/list">>}, _, State) ->
    #{listed := Listed} = persistent_term:get(State#state.key),
    {erlmcp_host:answer(Id, Listed), State};
message(#{<<"id">> := Id, <<"method">> := <<"tools/call">>, <<"params">> := Params}, _, State) ->
    #{<<"name">> := Name, <<"arguments">> := Arguments} = Params,
    case persistent_term:get(State#state.key) of
        #{tools := #{Name := {_Tool, Handler, Schema}}} ->
            Required = maps:get(<<"required">>, Schema, []),
            case erlmcp_host:called(Required, Handler, Arguments) of
                {ok, Result} -> {erlmcp_host:answer(Id, Result), progress(Params, State)};
                {missing, Key} -> {erlmcp_host:error(Id, -32602, Key), State}
            end;
        _ ->
            {erlmcp_host:error(Id, -32601, Name), State}
    end;
message(#{<<"id">> := Id, <<"method">> := <<"resources/subscribe">>} = Message, From, State) ->
    #{<<"params">> := #{<<"uri">> := Uri}} = Message,
    case persistent_term:get(State#state.key) of
        #{resources := #{Uri := _}} ->
            Subscriptions = State#state.subscriptions,
            New = State#state{subscriptions = Subscriptions#{Uri => From}},
            {erlmcp_host:answer(Id, <<"{}">>), New};
        _ ->
            {erlmcp_host:error(Id, -32002, Uri), State}
    end;
message(#{<<"id">> := Id, <<"result">> := _}, _, #state{pending = Pending} = State) ->
    {[], State#state{pending = maps:remove(Id, Pending)}}.

progress(#{<<"name">> := Name, <<"_meta">> := #{<<"progressToken">> := Token}}, State) ->
    State#state{progress = (State#state.progress)#{Token => Name}};
progress(_, State) ->
    State.
