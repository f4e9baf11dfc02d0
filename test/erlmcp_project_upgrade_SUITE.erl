%% The Erlang modules are replaced in a running node; the native library is not.
-module(erlmcp_project_upgrade_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(POOL, erlmcp_memory_pool).
-define(O, erlmcp_connection_optimizer).
-define(COUNT, 10000).

all() ->
    [
        modules_are_replaced_under_ten_thousand_states,
        the_library_is_not_replaced
    ].

init_per_testcase(_Case, Config) ->
    erlmcp_pool_help:clear(),
    _ = erlmcp_pool_help:start(100, 20000),
    Config.

end_per_testcase(_Case, _Config) ->
    _ = erlmcp_memory_profiler:stop_profiling(),
    erlmcp_pool_help:clear().

modules_are_replaced_under_ten_thousand_states(_Config) ->
    ok = erlmcp_memory_profiler:start_profiling(#{interval_ms => 50}),
    Before = [connection(N) || N <- lists:seq(1, ?COUNT)],
    {ok, Buffer, _} = ?POOL:acquire_message_buffer(100),
    {ok, _} = ?POOL:append_message_buffer(Buffer, <<"half">>),
    #{in_use := ?COUNT, created := Created, reused := Reused} = ?POOL:pool_stats(),
    Pool = whereis(?POOL),
    %% Twice: after the first time nothing is left of the code that all of it began with.
    [
        begin
            _ = code:purge(Module),
            ?assertEqual({module, Module}, code:load_file(Module))
        end
     || _ <- [once, again], Module <- wrappers()
    ],
    ?assertEqual(Pool, whereis(?POOL)),
    ?assertMatch(
        #{in_use := ?COUNT, created := Created, reused := Reused}, ?POOL:pool_stats()
    ),
    [?assertEqual(expected(N), held(Connection)) || {N, _, _} = Connection <- Before],
    %% All of it works on, and what is counted goes on.
    After = [step(Connection) || Connection <- Before],
    [
        ?assertMatch(
            {#{metadata := #{n := N, step := 1}}, #{n := N, step := 1}}, held(Connection)
        )
     || {N, _, _} = Connection <- After
    ],
    {ok, _} = ?POOL:append_message_buffer(Buffer, <<" a message\n">>),
    ?assertEqual({ok, <<"half a message">>}, ?POOL:next_message(Buffer)),
    ok = ?POOL:release_message_buffer(Buffer),
    ok = ?POOL:configure(max_pool_size, 30000),
    [ok = ?POOL:release_connection_state(Pooled) || {_, _, Pooled} <- After],
    {ok, _} = ?POOL:acquire_connection_state(#{}),
    #{in_use := 1, reused := NowReused} = ?POOL:pool_stats(),
    ?assertEqual(Reused + 1, NowReused),
    ?assertMatch(#{snapshots := [_ | _]}, erlmcp_memory_profiler:get_profiling_data()),
    ?assertMatch(#{gc := #{measured := true}}, erlmcp_memory_profiler:stop_profiling()).

the_library_is_not_replaced(_Config) ->
    Connection = connection(1),
    Library = erlmcp_memory_nif:module_info(md5),
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
    %% Loading a module that is loaded makes the one before old; twice would find no room for it.
    [
        ?assertEqual({error, on_load_failure}, code:load_file(erlmcp_memory_nif))
     || _ <- [1, 2, 3]
    ],
    receive
        {log, Text} -> ?assertMatch({match, _}, re:run(Text, "restart the node"))
    end,
    ok = logger:remove_handler(?MODULE),
    ?assertEqual(Library, erlmcp_memory_nif:module_info(md5)),
    ?assertEqual(expected(1), held(Connection)),
    ?assertMatch(
        {#{metadata := #{step := 1}}, #{step := 1}}, held(step(Connection))
    ),
    ?assertMatch({ok, _}, ?POOL:acquire_connection_state(#{})).

%%% A handler of logger: what the code server says of a library that did not load.

log(#{msg := Message}, #{config := Suite}) ->
    Text =
        case Message of
            {string, String} -> String;
            {report, Report} -> io_lib:format("~tp", [Report]);
            {Format, Args} -> io_lib:format(Format, Args)
        end,
    Suite ! {log, unicode:characters_to_list(Text)}.

%%% A connection: its number, its compact state, its pooled one

wrappers() ->
    _ = application:load(erlmcp_memory),
    {ok, Modules} = application:get_key(erlmcp_memory, modules),
    %% The test profile compiles the example host and the benchmarks as well.
    [
        Module
     || Module <- Modules,
        Module =/= erlmcp_memory_nif,
        not lists:prefix("erlmcp_bench", atom_to_list(Module)),
        not lists:prefix("erlmcp_host", atom_to_list(Module))
    ].

connection(N) ->
    Fresh = ?O:create_optimized_state(integer_to_binary(N)),
    State = ?O:update_state_field(Fresh, metadata, #{n => N}),
    {ok, Pooled} = ?POOL:acquire_connection_state(#{n => N}),
    {N, State, Pooled}.

step({N, State, Pooled}) ->
    ok = ?POOL:update_connection_state(Pooled, #{step => 1}),
    {N, ?O:update_state_field(State, [metadata, step], 1), Pooled}.

held({_, State, Pooled}) ->
    {ok, Map} = ?POOL:connection_state(Pooled),
    {maps:with([id, metadata], ?O:to_map(State)), Map}.

expected(N) ->
    {#{id => integer_to_binary(N), metadata => #{n => N}}, #{n => N}}.
