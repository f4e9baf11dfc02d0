%% The server that the connections belong to: it shares its tools once, starts the connections and
%% watches what they take.
-module(erlmcp_server).
-behaviour(gen_server).

-export([start_link/0, connect/1, received/2, contents/0, memory/0]).
-export([init/1, handle_call/3, handle_cast/2, terminate/2, code_change/3]).

-define(O, erlmcp_connection_optimizer).

start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Starts this many more connections, numbered on from those that exist.
connect(Count) ->
    gen_server:call(?MODULE, {connect, Count}, infinity).

%% Bytes for the connection of that number.
received(Number, Bytes) ->
    gen_server:call(?MODULE, {received, Number, Bytes}).

%% What every connection holds, by number.
contents() ->
    gen_server:call(?MODULE, contents, infinity).

%% What the node takes, by the profiler.
memory() ->
    gen_server:call(?MODULE, memory).

init([]) ->
    process_flag(trap_exit, true),
    ok = erlmcp_memory_profiler:start_profiling(#{interval_ms => 1000}),
    {ok, {capabilities(), #{}}}.

handle_call({connect, Count}, _From, {Capabilities, Connections}) ->
    First = maps:size(Connections) + 1,
    New = maps:from_list([
        {Number, start_connection(Number, Capabilities)}
     || Number <- lists:seq(First, First + Count - 1)
    ]),
    {reply, ok, {Capabilities, maps:merge(Connections, New)}};
handle_call({received, Number, Bytes}, _From, {_, Connections} = Server) ->
    {reply, erlmcp_connection:received(maps:get(Number, Connections), Bytes), Server};
handle_call(contents, _From, {_, Connections} = Server) ->
    {reply, maps:map(fun(_, Pid) -> erlmcp_connection:contents(Pid) end, Connections), Server};
handle_call(memory, _From, Server) ->
    {ok, Report} = erlmcp_memory_profiler:generate_report(),
    {reply, {Report, erlmcp_memory_profiler:alerts()}, Server}.

handle_cast(_, Server) ->
    {noreply, Server}.

terminate(_Reason, _Server) ->
    _ = erlmcp_memory_profiler:stop_profiling(),
    ok.

%% The state of the server is the same in both versions.
code_change(_FromVersion, Server, _Extra) ->
    {ok, Server}.

start_connection(Number, Capabilities) ->
    Id = <<"conn-", (integer_to_binary(Number))/binary>>,
    {ok, Pid} = erlmcp_connection_sup:start_connection(Id, Capabilities),
    Pid.

capabilities() ->
    Tools = maps:from_list([
        {Name, #{name => Name, schema => #{type => object, required => [<<"path">>]}}}
     || Name <- [<<"list">>, <<"read">>, <<"write">>]
    ]),
    ?O:share(#{tools => Tools, listed => iolist_to_binary(lists:join($,, lists:sort(maps:keys(Tools))))}).
