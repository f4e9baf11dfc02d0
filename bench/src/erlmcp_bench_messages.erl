%% @doc What a client says to a connection, as decoded JSON.
-module(erlmcp_bench_messages).

-export([opening/0, opening/1, calls/1, list/1, call/2, subscribe/2]).

%% @doc `opening(0)'.
-spec opening() -> [erlmcp_host:message()].
opening() ->
    opening(0).

%% @doc Of a client, one of four kinds: initialize, initialized, tools/list, five subscriptions.
-spec opening(non_neg_integer()) -> [erlmcp_host:message()].
opening(Number) ->
    Kind = integer_to_binary(Number rem 4),
    Initialize = #{
        <<"protocolVersion">> => <<"2025-06-18">>,
        <<"capabilities">> => #{
            <<"roots">> => #{<<"listChanged">> => true},
            <<"sampling">> => #{},
            <<"elicitation">> => #{}
        },
        <<"clientInfo">> => #{
            <<"name">> => <<"example-client-", Kind/binary>>,
            <<"title">> => <<"Example client">>,
            <<"version">> => <<"2.1.", Kind/binary>>
        }
    },
    Uris = [
        <<"file:///srv/example/documents/", (integer_to_binary(N))/binary, ".md">>
     || N <- lists:seq(1, 5)
    ],
    [
        request(1, <<"initialize">>, Initialize),
        #{<<"jsonrpc">> => <<"2.0">>, <<"method">> => <<"notifications/initialized">>},
        list(2)
        | [subscribe(Id, Uri) || {Id, Uri} <- lists:enumerate(3, Uris)]
    ].

%% @doc Three calls of three tools, each with a progress token.
-spec calls([erlmcp_bench_tools:tool()]) -> [erlmcp_host:message()].
calls(Tools) ->
    [
        begin
            #{<<"params">> := Params} = Message = call(Id, Tool),
            Meta = #{<<"progressToken">> => <<"token-", (integer_to_binary(Id))/binary>>},
            Message#{<<"params">> := Params#{<<"_meta">> => Meta}}
        end
     || {Id, Tool} <- lists:enumerate(8, lists:sublist(Tools, 3))
    ].

-spec list(integer()) -> erlmcp_host:message().
list(Id) ->
    request(Id, <<"tools/list">>, #{}).

%% @doc A call with all required arguments.
-spec call(integer(), erlmcp_bench_tools:tool()) -> erlmcp_host:message().
call(Id, #{<<"name">> := Name, <<"inputSchema">> := Schema}) ->
    Arguments = maps:from_list([{Key, <<"value">>} || Key <- maps:get(<<"required">>, Schema, [])]),
    request(Id, <<"tools/call">>, #{<<"name">> => Name, <<"arguments">> => Arguments}).

-spec subscribe(integer(), binary()) -> erlmcp_host:message().
subscribe(Id, Uri) ->
    request(Id, <<"resources/subscribe">>, #{<<"uri">> => Uri}).

request(Id, Method, Params) ->
    #{
        <<"jsonrpc">> => <<"2.0">>,
        <<"id">> => Id,
        <<"method">> => Method,
        <<"params">> => Params
    }.
