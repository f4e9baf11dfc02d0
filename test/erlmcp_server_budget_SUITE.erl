%% The byte budget of an idle connection: what it may take beside a hibernated gen_server that holds
%% nothing. A change that makes each connection some bytes larger is small in every other test, and
%% large for a hundred thousand connections.
-module(erlmcp_server_budget_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_suite/1, end_per_suite/1]).
-export([a_parked_connection/1, a_connection_with_a_compact_state/1, a_pooled_state/1]).
-export([init/1, handle_call/3, handle_cast/2]).

-define(O, erlmcp_connection_optimizer).
-define(POOL, erlmcp_memory_pool).
%% Enough that 64 KB of the node's own are three bytes of each.
-define(COUNT, 20000).
%% So few are awake at a time that they leave no gaps.
-define(BATCH, 200).
-define(TOOLS, 40).

%% Bytes beside a gen_server, as measured on OTP 25, 27 and 29, and the most that it may be more:
%% less than half of what must not pass unnoticed.
-define(SLACK, 80).
-define(PARKED, 245).
-define(COMPACT, 330).
-define(POOLED, 315).

all() ->
    [a_parked_connection, a_connection_with_a_compact_state, a_pooled_state].

init_per_suite(Config) ->
    Bare = bytes(fun(_) -> start(gen_server, nothing) end),
    ct:pal("a hibernated gen_server: ~b bytes", [Bare]),
    [{bare, Bare} | Config].

end_per_suite(_Config) ->
    ok.

%% Each builds its own list of tools, which all have in common, and has five subscriptions.
a_parked_connection(Config) ->
    within(?PARKED, Config, fun(N) -> start(erlmcp_memory_server, {own, N}) end).

a_connection_with_a_compact_state(Config) ->
    Share = ?O:share(tools()),
    within(?COMPACT, Config, fun(N) -> start(gen_server, {compact, N, Share}) end).

a_pooled_state(Config) ->
    _ = erlmcp_pool_help:start(),
    within(?POOLED, Config, fun(N) -> start(gen_server, {pooled, N}) end),
    erlmcp_pool_help:clear().

within(Budget, Config, Start) ->
    Taken = bytes(Start) - proplists:get_value(bare, Config),
    ct:pal("~b bytes beside a gen_server; the budget is ~b", [Taken, Budget]),
    ?assert(Taken =< Budget + ?SLACK),
    %% A budget that is far too large would let later changes pass.
    ?assert(Taken >= Budget - ?SLACK).

%% What one of many connections takes when all are idle.
bytes(Start) ->
    First = [idle(Start(N)) || N <- lists:seq(1, ?BATCH)],
    Before = settled(),
    Pids = lists:append([
        [idle(Pid) || Pid <- [Start(N) || N <- lists:seq(From, From + ?BATCH - 1)]]
     || From <- lists:seq(?BATCH + 1, ?COUNT + ?BATCH, ?BATCH)
    ]),
    Bytes = (settled() - Before) div ?COUNT,
    [stop(Pid) || Pid <- First ++ Pids],
    Bytes.

settled() ->
    ok = until(fun() -> erlmcp_memory_nif:roster() =:= 0 end),
    true = erlang:garbage_collect(),
    erlmcp_bench_measure:settled_total().

start(Module, Args) ->
    {ok, Pid} = Module:start_link(?MODULE, Args, options(Module)),
    Pid.

options(gen_server) -> [{hibernate_after, 1}];
options(erlmcp_memory_server) -> [{idle_after, 1}].

idle(Pid) ->
    ok = erlmcp_server_help:hibernates(Pid),
    Pid.

stop(Pid) ->
    unlink(Pid),
    Monitor = monitor(process, Pid),
    exit(Pid, kill),
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    after 60000 -> ct:fail({does_not_end, Pid})
    end.

%%% The connections

init(nothing) ->
    {ok, nothing};
init({own, N}) ->
    {ok, maps:put(tools, tools(), fields(N))};
init({compact, N, Share}) ->
    Id = maps:get(id, fields(N)),
    State = ?O:update_state_fields(?O:create_optimized_state(Id), maps:without([id], fields(N))),
    {ok, ?O:update_state_field(State, capabilities_ref, Share)};
init({pooled, N}) ->
    ?POOL:acquire_connection_state(fields(N)).

handle_call(get, _From, State) ->
    {reply, State, State}.

handle_cast(_, State) ->
    {noreply, State}.

fields(N) ->
    #{
        id => iolist_to_binary(io_lib:format("connection-~6..0b", [N])),
        phase => initialized,
        subscriptions => maps:from_list([
            {<<"file:///resource/", (integer_to_binary(I))/binary>>, N * 5 + I}
         || I <- lists:seq(1, 5)
        ])
    }.

tools() ->
    maps:from_list([
        {<<"tool_", (integer_to_binary(N))/binary>>, #{
            description => iolist_to_binary(io_lib:format("Looks up ~b in the store.", [N])),
            schema => #{type => object, properties => #{<<"key">> => #{type => string, number => N}}}
        }}
     || N <- lists:seq(1, ?TOOLS)
    ]).
