%% @doc A connection that keeps everything on its heap, as servers written without a thought for
%% memory do: it adds its own tools one by one, and builds the reply to `tools/list' every time.
-module(erlmcp_host_plain).

-behaviour(erlmcp_host).
-behaviour(gen_server).

-export([catalogue/1, start_link/2, start_link/4, add_tool/2]).
-export([init/1, handle_call/3, handle_cast/2]).

-record(state, {
    id :: binary(),
    server :: map(),
    phase = initialization :: atom(),
    transport = tcp :: atom(),
    client :: map() | undefined,
    tools = #{} :: #{binary() => {map(), erlmcp_host:handler(), map()}},
    resources = #{} :: #{binary() => map()},
    prompts = #{} :: #{binary() => map()},
    subscriptions = #{} :: #{binary() => pid()},
    progress = #{} :: #{binary() => binary()},
    pending = #{} :: #{integer() => binary()}
}).

%% @doc Each connection takes the configuration as it is.
-spec catalogue(erlmcp_host:config()) -> erlmcp_host:config().
catalogue(Config) ->
    Config.

-spec start_link(binary(), erlmcp_host:config()) -> {ok, pid()}.
start_link(Id, Config) ->
    start_link(Id, Config, gen_server, []).

%% @doc The same module, started by another one, or with other options.
-spec start_link(binary(), erlmcp_host:config(), Starter :: module(), Options :: list()) ->
    {ok, pid()}.
start_link(Id, Config, Starter, Options) ->
    #{tools := Tools, resources := Resources, prompts := Prompts} = Config,
    Server = maps:with([id, capabilities], Config),
    {ok, Pid} = Starter:start_link(?MODULE, {Id, Server}, Options),
    [ok = add_tool(Pid, Tool) || {Tool, _} <- Tools],
    [ok = gen_server:call(Pid, {add_resource, R}) || R <- maps:values(Resources)],
    [ok = gen_server:call(Pid, {add_prompt, P}) || P <- maps:values(Prompts)],
    {ok, Pid}.

%% @doc One tool more, with a handler of its own.
-spec add_tool(pid(), erlmcp_bench_tools:tool()) -> ok.
add_tool(Pid, #{<<"name">> := Name} = Tool) ->
    gen_server:call(Pid, {add_tool, Tool, erlmcp_host:handler(Name)}).

init({Id, Server}) ->
    {ok, #state{id = Id, server = Server}}.

handle_call({message, Message}, {From, _Tag}, State) ->
    {Reply, NewState} = message(Message, From, State),
    {reply, Reply, NewState};
handle_call({add_tool, Tool, Handler}, _From, #state{tools = Tools} = State) ->
    {Schema, #{<<"name">> := Name} = Rest} = maps:take(<<"inputSchema">>, Tool),
    {reply, ok, State#state{tools = Tools#{Name => {Rest, Handler, Schema}}}};
handle_call({add_resource, #{<<"uri">> := Uri} = R}, _From, State) ->
    {reply, ok, State#state{resources = (State#state.resources)#{Uri => R}}};
handle_call({add_prompt, #{<<"name">> := Name} = P}, _From, State) ->
    {reply, ok, State#state{prompts = (State#state.prompts)#{Name => P}}}.

handle_cast({delivered, Token}, State) ->
    {noreply, State#state{progress = maps:remove(Token, State#state.progress)}};
handle_cast(idle, State) ->
    {noreply, State}.

message(#{<<"id">> := Id, <<"method">> := <<"initialize">>, <<"params">> := Client}, _, State) ->
    #{id := ServerId, capabilities := Capabilities} = State#state.server,
    Reply = erlmcp_host:answer(Id, erlmcp_host:initialized(ServerId, Capabilities)),
    {Reply, State#state{phase = initialized, client = Client}};
message(#{<<"method">> := <<"notifications/initialized">>}, _, State) ->
    Pending = #{1 => <<"roots/list">>, 2 => <<"ping">>},
    Requests = [erlmcp_host:ask(Id, Method) || {Id, Method} <- lists:sort(maps:to_list(Pending))],
    {Requests, State#state{pending = Pending}};
message(#{<<"id">> := Id, <<"method">> := <<"tools/list">>}, _, State) ->
    {erlmcp_host:answer(Id, erlmcp_host:listed(State#state.tools)), State};
message(#{<<"id">> := Id, <<"method">> := <<"tools/call">>, <<"params">> := Params}, _, State) ->
    #{<<"name">> := Name, <<"arguments">> := Arguments} = Params,
    case State#state.tools of
        #{Name := {_Tool, Handler, Schema}} ->
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
    case State of
        #state{resources = #{Uri := _}, subscriptions = Subscriptions} ->
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
