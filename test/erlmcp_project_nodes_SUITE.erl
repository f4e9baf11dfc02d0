%% Sessions that go from node to node, by the server of guides/nodes.md and on connected nodes.
-module(erlmcp_project_nodes_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_wait_help, [until/1]).


-compile([export_all, nowarn_export_all]).

-define(O, erlmcp_connection_optimizer).
-define(GUIDE, erlmcp_project_guide_help).
-define(COUNT, 10000).
-define(OTHERS, 500).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [sessions_move_while_both_nodes_serve, what_is_of_a_node_stays_of_it].

%% A second node is a node of the system: epmd must be there.
init_per_suite(Config) ->
    case os:find_executable("epmd") of
        false -> {skip, "there is no epmd"};
        Epmd -> _ = os:cmd(Epmd ++ " -daemon"), Config
    end.

end_per_suite(_Config) ->
    ok.

init_per_testcase(_Case, Config) ->
    Peers = [peer() || _ <- [1, 2]],
    [{peers, Peers} | Config].

end_per_testcase(_Case, Config) ->
    [peer:stop(Peer) || {Peer, _} <- proplists:get_value(peers, Config)],
    ok.

%%% Cases

sessions_move_while_both_nodes_serve(Config) ->
    [{A, _}, {B, NodeB}] = proplists:get_value(peers, Config),
    [serve(Peer) || Peer <- [A, B]],
    ok = peer:call(A, ?MODULE, fill, [a, ?COUNT], 60000),
    ok = peer:call(B, ?MODULE, fill, [b, ?OTHERS], 60000),
    ?assertEqual(true, peer:call(A, net_kernel, connect_node, [NodeB])),
    TakeShare = {my_sessions, take_share, 2},
    1 = peer:call(B, erlang, trace_pattern, [TakeShare, true, [call_count]]),
    Before = peer:call(A, ?MODULE, digests, [a, ?COUNT], 60000),
    Clients = [
        {Peer, peer:call(Peer, ?MODULE, client, [Name, Count])}
     || {Peer, Name, Count} <- [{A, a, ?COUNT}, {B, b, ?OTHERS}]
    ],
    %% Both have served before it begins, and go on until it is over.
    [until(fun() -> served(Client) > 0 end) || Client <- Clients],
    Start = [served(Client) || Client <- Clients],
    Moved = peer:call(A, my_sessions, move, [NodeB], 240000),
    End = [served(Client) || Client <- Clients],
    %% A request for each that has moved goes to the other node.
    [until(fun() -> served(Client) > Last end) || {Client, Last} <- lists:zip(Clients, End)],
    [ServedA, ServedB] = [stop(Client) || Client <- Clients],
    ct:pal("~p~nrequests meanwhile: ~p and ~p", [
        Moved | [Last - First || {First, Last} <- lists:zip(Start, End)]
    ]),
    ?assertEqual({ok, #{moved => ?COUNT, failed => [], shares => 1}}, Moved),
    ?assertEqual({call_count, 1}, peer:call(B, erlang, trace_info, [TakeShare, call_count])),
    [?assert(Last > First) || {First, Last} <- lists:zip(Start, End)],
    %% All of them are there, as they were; of what was changed meanwhile, nothing is lost.
    After = peer:call(B, ?MODULE, digests, [a, ?COUNT], 60000),
    ?assertEqual(?COUNT, length(After)),
    ?assert(Before =:= After),
    ?assertEqual(ServedA, peer:call(B, ?MODULE, calls, [a, ?COUNT], 60000)),
    ?assertEqual(ServedB, peer:call(B, ?MODULE, calls, [b, ?OTHERS], 60000)),
    ?assertEqual({moved, NodeB}, peer:call(A, my_sessions, find, [{a, 1}])),
    ?assertEqual(true, peer:call(B, ?MODULE, is_timed, [{a, 1}])),
    %% One copy of the tools for all on each node, and none is left where no session is.
    until(fun() -> held(A) =:= {0, 0} end),
    until(fun() -> held(B) =:= {?COUNT + ?OTHERS, 1} end).

what_is_of_a_node_stays_of_it(Config) ->
    [{A, NodeA}, {B, NodeB}] = proplists:get_value(peers, Config),
    {Snapshot, Owner} = peer:call(A, ?MODULE, of_this_node, []),
    Name = atom_to_binary(NodeA),
    ?assertEqual({error, {unknown_atom, Name}}, peer:call(B, ?O, decompress_state, [Snapshot])),
    ?assertEqual(true, peer:call(B, net_kernel, connect_node, [NodeA])),
    ?assertEqual(NodeA, node(Owner)),
    ?assertEqual(
        #{
            owner => {Owner, NodeA}, answers => {hello, NodeB}, cancelled => false,
            socket => {NodeA, refused}, state => false, share => {ok, [1, 2, 3]}
        },
        peer:call(B, ?MODULE, elsewhere, [Snapshot])
    ),
    ?assertEqual(true, peer:call(A, erlang, is_process_alive, [Owner])).

%%% On a peer

fill(Name, Count) ->
    Tools = ?O:share(tools()),
    [ok = my_sessions:put({Name, N}, ?O:from_map(session(N, Tools))) || N <- lists:seq(1, Count)],
    ok.

%% What 86 tools with schemas are, and a handler for each.
tools() ->
    Handler = fun lists:reverse/1,
    #{tools => maps:from_list([
        {integer_to_binary(N), #{schema => binary:copy(<<N>>, 300), handler => Handler}}
     || N <- lists:seq(1, 86)
    ])}.

session(N, Tools) ->
    #{
        id => integer_to_binary(N), phase => initialized, capabilities_ref => Tools,
        metadata => #{user => N, name => binary:copy(<<N>>, 100)},
        subscriptions => maps:from_list([{{uri, U}, N * 1.5} || U <- lists:seq(1, N rem 40)]),
        owner => self(), created_at => N,
        expires => erlang:system_time(millisecond) + 3600000
    }.

%% Of each session all that travels, and the tools that it has a share of.
digests(Name, Count) ->
    [
        begin
            {ok, State} = my_sessions:find({Name, N}),
            #{capabilities_ref := Tools} = Map = ?O:to_map(State),
            Rest = maps:without([capabilities_ref, owner, timer, calls], Map),
            {erlang:phash2({Rest, ?O:shared(Tools) =:= tools()}, 1 bsl 32), maps:size(Rest)}
        end
     || N <- lists:seq(1, Count)
    ].

calls(Name, Count) ->
    lists:sum([
        begin
            {ok, State} = my_sessions:find({Name, N}),
            ?O:get_field_safe(State, calls, 0)
        end
     || N <- lists:seq(1, Count)
    ]).

is_timed(Id) ->
    {ok, State} = my_sessions:find(Id),
    is_integer(erlang:read_timer(?O:get_state_field(State, timer))).

%% A process that changes one session after the other, wherever they are.
client(Name, Count) ->
    spawn(fun() -> client(Name, Count, 0) end).

client(Name, Count, Served) ->
    receive
        {served, From} ->
            From ! {self(), Served},
            client(Name, Count, Served);
        {stop, From} ->
            From ! {self(), Served}
    after 0 ->
        %% A step that has no divisor in common with the counts, so that all have their turn.
        Id = {Name, Served * 7919 rem Count + 1},
        Call = fun(State) -> ?O:increment_state_field(State, calls, 1) end,
        case my_sessions:update(Id, Call) of
            ok -> ok;
            {moved, Node} -> ok = erpc:call(Node, my_sessions, update, [Id, Call])
        end,
        client(Name, Count, Served + 1)
    end.

of_this_node() ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    Owner = spawn(fun() -> echo(Socket) end),
    ok = gen_tcp:controlling_process(Socket, Owner),
    State = ?O:from_map(#{
        id => <<"c">>, owner => Owner, socket => Socket,
        timer => erlang:send_after(600000, Owner, over),
        state => ?O:create_optimized_state(<<"other">>),
        catalogue => ?O:share(#{list => [1, 2, 3]})
    }),
    {?O:compress_state(State), Owner}.

echo(Socket) ->
    receive
        {From, Word} -> From ! {self(), Word}
    end,
    echo(Socket).

elsewhere(Snapshot) ->
    State = ?O:decompress_state(Snapshot),
    #{owner := Owner, socket := Socket, timer := Timer, state := Other} = ?O:to_map(State),
    Owner ! {self(), hello},
    Answer =
        receive
            {Owner, Word} -> {Word, node()}
        after 30000 -> none
        end,
    #{
        owner => {Owner, node(Owner)},
        answers => Answer,
        cancelled => erlang:cancel_timer(Timer),
        socket => {node(Socket), refused(fun() -> gen_tcp:accept(Socket, 100) end)},
        state => ?O:is_state(Other),
        share => ?O:find_shared(?O:get_state_field(State, catalogue), [list])
    }.

refused(Fun) ->
    try Fun() of
        {error, _} -> refused;
        Other -> Other
    catch
        _:_ -> refused
    end.

%%% Peers

peer() ->
    {ok, Peer, Node} = peer:start(#{
        name => peer:random_name(?MODULE),
        host => "127.0.0.1",
        longnames => true,
        connection => standard_io,
        args => ["-setcookie", "nodes", "-pa", filename:dirname(code:which(?MODULE))
            | code:get_path()]
    }),
    {module, _} = peer:call(Peer, code, ensure_loaded, [?O]),
    {module, _} = peer:call(Peer, code, ensure_loaded, [?MODULE]),
    {Peer, Node}.

%% Starts the guide's server, in a process that lives on.
serve(Peer) ->
    [Text] = [T || {["erlang"], T} <- ?GUIDE:blocks("guides/nodes.md")],
    File = filename:join(peer_dir(), "my_sessions.erl"),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, Text),
    {ok, Module, Binary} = compile:file(File, [binary, warnings_as_errors, report]),
    {module, Module} = peer:call(Peer, code, load_binary, [Module, File, Binary]),
    {ok, _} = peer:call(Peer, gen_server, start, [{local, Module}, Module, [], []]).

peer_dir() ->
    filename:join(filename:dirname(code:which(?MODULE)), "nodes_guide").

served({Peer, Client}) ->
    peer:call(Peer, ?MODULE, ask, [Client, served], 60000).

stop({Peer, Client}) ->
    peer:call(Peer, ?MODULE, ask, [Client, stop], 60000).

%% Runs on a peer.
ask(Client, What) ->
    Client ! {What, self()},
    receive
        {Client, Served} -> Served
    after 50000 -> exit(timeout)
    end.

held(Peer) ->
    peer:call(Peer, ?MODULE, holds, [], 60000).

%% States and shares after a collection of all.
holds() ->
    [erlang:garbage_collect(Pid) || Pid <- processes()],
    #{compact_states := #{count := States}, shares := #{count := Shares}} =
        erlmcp_memory_profiler:inventory(),
    {States, Shares}.
