%% @private
%% @doc What the connections of the load simulation talk about: a server's generated tools, the
%% JSON-RPC messages of a client, and the server's side of them.
%%
%% The capabilities hold the tools by name and the replies already encoded; shared, they are kept
%% once for all connections, and no process builds a reply on its heap.
-module(erlmcp_memory_load_protocol).

-export([capabilities/0, metadata/1, request/2, expected/2, handle/2]).

-export_type([capabilities/0]).

-define(STATE, erlmcp_connection_optimizer).

%% A server of medium size: GitHub's default set has 45.
-define(TOOLS, 40).

-type capabilities() :: #{tools := #{binary() => map()}, replies := #{binary() => binary()}}.

%% @doc The tools of a server, with their schemas, and its encoded replies.
-spec capabilities() -> capabilities().
capabilities() ->
    Tools = [tool(Number) || Number <- lists:seq(0, ?TOOLS - 1)],
    Initialize = #{
        <<"protocolVersion">> => <<"2025-06-18">>,
        <<"serverInfo">> => #{<<"name">> => <<"simulation">>, <<"version">> => <<"1">>},
        <<"capabilities">> => #{<<"tools">> => #{<<"listChanged">> => true}}
    },
    #{
        tools => maps:from_list([{Name, Tool} || #{<<"name">> := Name} = Tool <- Tools]),
        replies => #{
            <<"initialize">> => encoded(Initialize),
            <<"tools/list">> => encoded(#{<<"tools">> => Tools})
        }
    }.

tool(Number) ->
    Verb = lists:nth(Number rem 5 + 1, ["list", "get", "create", "update", "delete"]),
    Things = [
        "issues", "pull_requests", "files", "branches", "releases", "labels", "reviews", "users"
    ],
    Thing = lists:nth(Number div 5 + 1, Things),
    #{
        <<"name">> => name(Number),
        <<"description">> => text([
            Verb, " ", Thing, " of a repository. The caller needs the permission to ", Verb,
            " them; what is answered comes in pages, newest first, and at most a hundred a page."
        ]),
        <<"inputSchema">> => #{
            <<"type">> => <<"object">>,
            <<"required">> => [<<"owner">>, <<"repository">>],
            <<"additionalProperties">> => false,
            <<"properties">> => #{
                <<"owner">> => string("The account that owns the repository."),
                <<"repository">> => string("The name of the repository, without the owner."),
                <<"filter">> => string(["Only those of the ", Thing, " that match this text."]),
                <<"order">> => #{
                    <<"type">> => <<"string">>,
                    <<"enum">> => [<<"created">>, <<"updated">>, <<"name">>],
                    <<"default">> => <<"created">>
                },
                <<"page">> => #{<<"type">> => <<"integer">>, <<"minimum">> => 1},
                <<"perPage">> => #{
                    <<"type">> => <<"integer">>, <<"minimum">> => 1, <<"maximum">> => 100
                }
            }
        }
    }.

string(Description) ->
    #{<<"type">> => <<"string">>, <<"description">> => text(Description)}.

name(Number) -> text(["tool_", integer_to_list(Number)]).

text(Characters) -> unicode:characters_to_binary(Characters).

%% @doc What a connection knows about its client.
-spec metadata(Number :: integer()) -> map().
metadata(Number) ->
    #{
        client => #{name => <<"simulated-client">>, version => <<"1.0">>},
        protocol => <<"2025-06-18">>,
        user => <<"user-", (integer_to_binary(Number))/binary>>,
        address => {10, Number bsr 16 band 255, Number bsr 8 band 255, Number band 255}
    }.

%% @doc The message of a round, in the pieces in which it arrives: `initialize' in round 0, then
%% `tools/list' and `tools/call' in turn.
-spec request(Round :: non_neg_integer(), RequestId :: binary()) -> [binary()].
request(Round, RequestId) ->
    Message = encoded(#{
        <<"jsonrpc">> => <<"2.0">>,
        <<"id">> => RequestId,
        <<"method">> => method(Round),
        <<"params">> => params(Round)
    }),
    %% A network splits messages anywhere; the newline comes last, alone.
    Cut = byte_size(Message) div 3,
    <<First:Cut/binary, Second/binary>> = Message,
    [First, Second, <<"\r\n">>].

method(0) -> <<"initialize">>;
method(Round) when Round rem 2 =:= 1 -> <<"tools/list">>;
method(_Round) -> <<"tools/call">>.

params(0) ->
    #{
        <<"protocolVersion">> => <<"2025-06-18">>,
        <<"capabilities">> => #{<<"sampling">> => #{}},
        <<"clientInfo">> => #{<<"name">> => <<"simulated-client">>, <<"version">> => <<"1.0">>}
    };
params(Round) when Round rem 2 =:= 1 ->
    #{};
params(Round) ->
    #{<<"arguments">> => #{<<"owner">> => <<"ann">>}, <<"name">> => called(Round)}.

called(Round) -> name(Round rem ?TOOLS).

%% @doc The result that the reply of a round must have.
-spec expected(Round :: non_neg_integer(), capabilities()) -> binary().
expected(Round, #{tools := Tools, replies := Replies}) ->
    case method(Round) of
        <<"tools/call">> ->
            #{<<"description">> := Description} = maps:get(called(Round), Tools),
            Description;
        Method ->
            maps:get(Method, Replies)
    end.

%% @doc The server's side: the state after a message, the id of the request, and the result.
-spec handle(Frame :: binary(), State) -> {State, RequestId :: binary(), Result :: binary()} when
    State :: erlmcp_connection_optimizer:state().
handle(Frame, State) ->
    Capabilities = ?STATE:get_state_field(State, capabilities_ref),
    {New, Path} =
        case value(<<"method">>, Frame) of
            <<"initialize">> ->
                Running = ?STATE:update_state_field(State, phase, initialized),
                {Running, [replies, <<"initialize">>]};
            <<"tools/list">> ->
                {State, [replies, <<"tools/list">>]};
            <<"tools/call">> ->
                Tool = value(<<"name">>, Frame),
                Called = ?STATE:update_state_field(State, [metadata, last_tool], Tool),
                {Called, [tools, Tool, <<"description">>]}
        end,
    {ok, Result} = ?STATE:find_shared(Capabilities, Path),
    {New, value(<<"id">>, Frame), Result}.

%% The text of a member. The messages are those made above: each key occurs once in a message, and
%% no text has a quotation mark.
value(Key, Frame) ->
    [_, Rest] = binary:split(Frame, <<"\"", Key/binary, "\":\"">>),
    [Value, _] = binary:split(Rest, <<"\"">>),
    %% A copy, so that the frame does not live on in the state.
    binary:copy(Value).

encoded(Term) -> iolist_to_binary(json(Term)).

json(Map) when is_map(Map) ->
    Members = [[json(Key), $:, json(Value)] || {Key, Value} <- maps:to_list(Map)],
    [${, lists:join($,, Members), $}];
json(List) when is_list(List) -> [$[, lists:join($,, [json(Item) || Item <- List]), $]];
json(Text) when is_binary(Text) -> [$", Text, $"];
json(Integer) when is_integer(Integer) -> integer_to_binary(Integer);
json(Boolean) when is_boolean(Boolean) -> atom_to_binary(Boolean).
