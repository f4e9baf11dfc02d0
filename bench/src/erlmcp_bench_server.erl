%% @doc A peer to measure against: a pool behind one process, as such pools are usually built.
%%
%% A gen_server with a queue of idle references and an ETS table of states. It does as little as
%% it can: it keeps its own count instead of asking the queue for its length, watches no owners,
%% and its table can be read without asking it.
-module(erlmcp_bench_server).
-behaviour(gen_server).

-export([start_link/1, acquire/1, release/1]).
-export([init/1, handle_call/3, handle_cast/2]).

-define(TABLE, ?MODULE).

-record(server, {
    idle :: queue:queue(reference()),
    available :: non_neg_integer(),
    max :: pos_integer()
}).

%% @doc A pool that keeps this many states idle, and makes them at the start.
-spec start_link(pos_integer()) -> {ok, pid()}.
start_link(Max) ->
    {ok, _} = gen_server:start_link({local, ?MODULE}, ?MODULE, Max, []).

-spec acquire(map()) -> {ok, reference()}.
acquire(Map) ->
    gen_server:call(?MODULE, {acquire, Map}, infinity).

-spec release(reference()) -> ok.
release(Ref) ->
    gen_server:call(?MODULE, {release, Ref}, infinity).

-spec init(pos_integer()) -> {ok, #server{}}.
init(Max) ->
    ?TABLE = ets:new(?TABLE, [named_table, protected, {read_concurrency, true}]),
    Idle = queue:from_list([make_ref() || _ <- lists:seq(1, Max)]),
    {ok, #server{idle = Idle, available = Max, max = Max}}.

-spec handle_call({acquire, map()} | {release, reference()}, {pid(), term()}, #server{}) ->
    {reply, {ok, reference()} | ok, #server{}}.
handle_call({acquire, Map}, _From, #server{idle = Idle, available = Available} = Server) ->
    case queue:out(Idle) of
        {{value, Ref}, Rest} ->
            true = ets:insert(?TABLE, {Ref, Map}),
            {reply, {ok, Ref}, Server#server{idle = Rest, available = Available - 1}};
        {empty, _} ->
            Ref = make_ref(),
            true = ets:insert(?TABLE, {Ref, Map}),
            {reply, {ok, Ref}, Server}
    end;
handle_call({release, Ref}, _From, #server{idle = Idle, available = Available} = Server) ->
    true = ets:delete(?TABLE, Ref),
    case Available < Server#server.max of
        true ->
            Back = Server#server{idle = queue:in(Ref, Idle), available = Available + 1},
            {reply, ok, Back};
        false ->
            {reply, ok, Server}
    end.

-spec handle_cast(term(), #server{}) -> {noreply, #server{}}.
handle_cast(_, Server) ->
    {noreply, Server}.
