%% A callback module that does what it is told: `{do, Fun}' is a message, a request and a term to
%% continue with whose fun is the callback. Everything it is called with it tells to the process
%% that started it, as `{told, What}'.
-module(erlmcp_server_script).

-behaviour(gen_server).

-export([init/1, handle_call/3, handle_cast/2, handle_info/2, handle_continue/2]).
-export([terminate/2, code_change/3]).
-export([module/2, module/3]).

init(Fun) when is_function(Fun, 0) ->
    tell({init, self()}),
    Fun();
init(State) ->
    {ok, State}.

handle_call({do, Fun}, From, State) -> Fun(From, State);
handle_call(get, _From, State) -> {reply, State, State};
handle_call({put, New}, _From, _Old) -> {reply, ok, New};
handle_call(Return, _From, _State) -> Return.

handle_cast({do, Fun}, State) ->
    Fun(State);
handle_cast(Message, State) ->
    tell({cast, Message, State}),
    {noreply, State}.

handle_info({do, Fun}, State) ->
    Fun(State);
handle_info(Message, State) ->
    tell({info, Message, State}),
    {noreply, State}.

handle_continue({do, Fun}, State) ->
    Fun(State);
handle_continue(Content, State) ->
    tell({continue, Content, State}),
    {noreply, State}.

terminate(Reason, State) ->
    tell({terminate, Reason, State}),
    case State of
        {at_end, Fun} -> Fun();
        _ -> ok
    end.

code_change(Old, State, {do, Fun}) ->
    tell({code_change, Old, State}),
    Fun(State);
code_change(Old, State, Extra) ->
    tell({code_change, Old, State, Extra}),
    {ok, {Extra, State}}.

tell(What) ->
    [Starter | _] = get('$ancestors'),
    Starter ! {told, What}.

%% Loads a module with some of these callbacks and whatever else.
module(Name, Callbacks) ->
    module(Name, Callbacks, []).

module(Name, Callbacks, Functions) ->
    Delegated = [delegate(Callback) || Callback <- Callbacks],
    Text =
        io_lib:format("-module(~p). -compile([export_all, nowarn_export_all]). ", [Name]) ++
            Delegated ++ Functions,
    {ok, Tokens, _} = erl_scan:string(lists:flatten(Text)),
    {ok, Name, Binary} = compile:forms(forms(Tokens)),
    _ = code:purge(Name),
    {module, Name} = code:load_binary(Name, atom_to_list(Name), Binary),
    Name.

delegate({Function, Arity}) ->
    Args = lists:join(",", [["A", integer_to_list(N)] || N <- lists:seq(1, Arity)]),
    io_lib:format("~p(~s) -> ~p:~p(~s). ", [Function, Args, ?MODULE, Function, Args]).

forms([]) ->
    [];
forms(Tokens) ->
    {Form, [Dot | Rest]} = lists:splitwith(fun(Token) -> element(1, Token) =/= dot end, Tokens),
    {ok, Parsed} = erl_parse:parse_form(Form ++ [Dot]),
    [Parsed | forms(Rest)].
