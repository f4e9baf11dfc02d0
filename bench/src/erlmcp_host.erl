%% @doc An example host: what an MCP server holds, and what its connection processes say.
%%
%% There are three connection processes, and they reply alike, byte for byte: `erlmcp_host_plain'
%% keeps everything on its heap, `erlmcp_host_persistent' keeps the tools with their schemas in
%% `persistent_term', `erlmcp_host_compact' shares what is equal and packs the rest. The plain one
%% is started in three ways: as it is, with `hibernate_after' (`erlmcp_host_hibernating'), and by
%% `erlmcp_memory_server' (`erlmcp_host_parked'). This module has what they share and what does not
%% concern memory. Messages come as decoded JSON and go as encoded JSON.
-module(erlmcp_host).

-export([forms/0, config/1, handler/1]).
-export([start_link/3, request/2, delivered/2, idle/1]).
-export([initialized/2, listed/1, called/3, ask/2, answer/2, error/3]).

%% What equals for all connections of a server.
-type config() :: #{
    id := binary(),
    capabilities := map(),
    tools := [{erlmcp_bench_tools:tool(), handler()}],
    resources := #{binary() => map()},
    prompts := #{binary() => map()}
}.
-type handler() :: fun((map()) -> binary()).
-type message() :: #{binary() => term()}.
-export_type([config/0, handler/0, message/0]).

%% What a form makes of the configuration, once a server, to start connections with.
-callback catalogue(config()) -> Catalogue :: term().
-callback start_link(Id :: binary(), Catalogue :: term()) -> {ok, pid()}.

%% @doc All forms, the plain one first.
-spec forms() -> [module()].
forms() ->
    [
        erlmcp_host_plain,
        erlmcp_host_hibernating,
        erlmcp_host_persistent,
        erlmcp_host_compact,
        erlmcp_host_parked
    ].

%% @doc A server with these tools, 20 resources and 10 prompts.
-spec config([erlmcp_bench_tools:tool()]) -> config().
config(Tools) ->
    #{
        id => <<"example-server">>,
        capabilities => #{
            <<"tools">> => #{<<"listChanged">> => true},
            <<"resources">> => #{<<"subscribe">> => true, <<"listChanged">> => true},
            <<"prompts">> => #{<<"listChanged">> => true},
            <<"logging">> => #{}
        },
        tools => [{Tool, handler(Name)} || #{<<"name">> := Name} = Tool <- Tools],
        resources => maps:from_list([resource(N) || N <- lists:seq(1, 20)]),
        prompts => maps:from_list([prompt(N) || N <- lists:seq(1, 10)])
    }.

%% @doc What a tool does when it is called: a fun that closes over another one, as handlers do.
-spec handler(binary()) -> handler().
handler(Name) ->
    Say = fun(Text) -> <<Name/binary, ": ", Text/binary>> end,
    fun(Arguments) ->
        Say(<<(integer_to_binary(map_size(Arguments)))/binary, " arguments">>)
    end.

resource(N) ->
    Number = integer_to_binary(N),
    Uri = <<"file:///srv/example/documents/", Number/binary, ".md">>,
    {Uri, #{
        <<"uri">> => Uri,
        <<"name">> => <<"Document ", Number/binary>>,
        <<"description">> => <<"One of the documents that this example server offers to read.">>,
        <<"mimeType">> => <<"text/markdown">>
    }}.

prompt(N) ->
    Name = <<"summarize_", (integer_to_binary(N))/binary>>,
    Argument = #{<<"name">> => <<"style">>, <<"description">> => <<"short or long">>},
    {Name, #{
        <<"name">> => Name,
        <<"description">> => <<"Summarizes a document in the given style.">>,
        <<"arguments">> => [Argument#{<<"required">> => true}]
    }}.

%% @doc A connection of one of the forms.
-spec start_link(Form :: module(), Id :: binary(), Catalogue :: term()) -> {ok, pid()}.
start_link(Form, Id, Catalogue) ->
    Form:start_link(Id, Catalogue).

%% @doc Passes a client's message on; returns what goes back to the client, perhaps nothing.
-spec request(pid(), message()) -> iodata().
request(Connection, Message) ->
    gen_server:call(Connection, {message, Message}, infinity).

%% @doc Tells a connection that the client has the result to which a progress token belongs.
-spec delivered(pid(), Token :: binary()) -> ok.
delivered(Connection, Token) ->
    gen_server:cast(Connection, {delivered, Token}).

%% @doc Tells a connection that there was no message for a while: one that hibernates does so now,
%% if it has not before.
-spec idle(pid()) -> ok.
idle(Connection) ->
    gen_server:cast(Connection, idle).

%% @doc The result of `initialize'.
-spec initialized(ServerId :: binary(), Capabilities :: map()) -> iodata().
initialized(ServerId, Capabilities) ->
    erlmcp_bench_json:encode(#{
        <<"protocolVersion">> => <<"2025-06-18">>,
        <<"capabilities">> => Capabilities,
        <<"serverInfo">> => #{<<"name">> => ServerId, <<"version">> => <<"1.0.0">>}
    }).

%% @doc The result of `tools/list' of a map of tools.
-spec listed(#{binary() => {Tool :: map(), handler(), Schema :: map()}}) -> binary().
listed(Tools) ->
    erlmcp_bench_json:encode(#{
        <<"tools">> =>
            [Tool#{<<"inputSchema">> => Schema} || {Tool, _, Schema} <- maps:values(Tools)]
    }).

%% @doc The result of `tools/call': the handler's, if all required arguments are there.
-spec called(Required :: [binary()], handler(), Arguments :: map()) ->
    {ok, iodata()} | {missing, binary()}.
called(Required, Handler, Arguments) ->
    case [Key || Key <- Required, not is_map_key(Key, Arguments)] of
        [] ->
            Content = #{<<"type">> => <<"text">>, <<"text">> => Handler(Arguments)},
            {ok, erlmcp_bench_json:encode(#{<<"content">> => [Content], <<"isError">> => false})};
        [Key | _] ->
            {missing, Key}
    end.

%% @doc A request of the server to its client.
-spec ask(Id :: integer(), Method :: binary()) -> iodata().
ask(Id, Method) ->
    [<<"{\"jsonrpc\":\"2.0\",\"id\":">>, integer_to_binary(Id), <<",\"method\":\"">>, Method,
        <<"\"}\n">>].

%% @doc The reply to a request, around a result that is encoded already.
-spec answer(Id :: integer(), Result :: iodata()) -> iodata().
answer(Id, Result) ->
    [<<"{\"jsonrpc\":\"2.0\",\"id\":">>, integer_to_binary(Id), <<",\"result\":">>, Result,
        <<"}\n">>].

%% @doc The reply to a request that fails.
-spec error(Id :: integer(), Code :: integer(), Text :: binary()) -> iodata().
error(Id, Code, Text) ->
    Error = #{<<"code">> => Code, <<"message">> => Text},
    [<<"{\"jsonrpc\":\"2.0\",\"id\":">>, integer_to_binary(Id), <<",\"error\":">>,
        erlmcp_bench_json:encode(Error), <<"}\n">>].
