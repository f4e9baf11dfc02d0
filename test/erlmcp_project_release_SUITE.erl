%% A host with this project in a release: built, moved, booted in embedded mode without the sources,
%% used from another node, upgraded while it works, stopped.
%%
%% test/host_release is the host, at 0.1.0 with the project as it is. Its next version has another
%% Erlang side of the project, every module of which says `-vsn("next")', and the same native
%% library.
-module(erlmcp_project_release_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include_lib("kernel/include/file.hrl").

-import(erlmcp_wait_help, [until/1]).

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_project_help).
-define(WAIT(Condition), until(Condition)).
-define(NEXT, "99.0.0").
-define(COOKIE, "erlmcp_memory_release").
-define(WRAPPERS, [
    erlmcp_memory_pool, erlmcp_connection_optimizer, erlmcp_memory_profiler, erlmcp_memory_sampler
]).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        runs_without_the_sources,
        serves_another_node,
        upgrade_keeps_ten_thousand_states,
        the_library_is_not_loaded_twice,
        stops_in_order
    ].

init_per_suite(Config) ->
    Dir = filename:join(proplists:get_value(priv_dir, Config), "build"),
    Project = filename:join(Dir, "erlmcp_memory"),
    Host = filename:join(Dir, "host"),
    ok = ?HELP:copy_built(Project),
    {0, _} = ?HELP:run(Dir, ["cp", "-R", filename:join(Project, "test/host_release"), Host], []),
    Checkouts = filename:join(Host, "_checkouts"),
    ok = file:make_dir(Checkouts),
    ok = file:make_symlink(Project, filename:join(Checkouts, "erlmcp_memory")),
    rebar3(Host, ["tar"]),
    Release = filename:join(Host, "_build/default/rel/erlmcp_host"),
    First = kept(Config, Release, "erlmcp_host-0.1.0.tar.gz"),
    next_version(Project, Host),
    rebar3(Host, ["release"]),
    rebar3(Host, ["relup", "-n", "erlmcp_host", "-v", ?NEXT, "-u", "0.1.0"]),
    rebar3(Host, ["tar"]),
    Next = kept(Config, Release, "erlmcp_host-" ?NEXT ".tar.gz"),
    %% What the release needs is in its archive, or nowhere.
    ok = file:rename(Dir, filename:join(proplists:get_value(priv_dir, Config), "away")),
    Peer = second_node(),
    [{first, First}, {next, Next}, {peer, Peer}, {built, Dir} | Config].

end_per_suite(Config) ->
    peer:stop(proplists:get_value(peer, Config)),
    {0, _} = ?HELP:run(proplists:get_value(priv_dir, Config), ["rm", "-rf", "away"], []),
    ok.

init_per_testcase(Case, Config) ->
    Dir = filename:join(proplists:get_value(priv_dir, Config), Case),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    ok = erl_tar:extract(proplists:get_value(first, Config), [compressed, {cwd, Dir}]),
    Node = list_to_atom("erlmcp_" ++ os:getpid() ++ "_" ++ atom_to_list(Case) ++ "@127.0.0.1"),
    Config1 = [{dir, Dir}, {node, Node} | Config],
    [{release, start(Config1)} | Config1].

end_per_testcase(_Case, Config) ->
    _ = on_node(Config, init, stop, []),
    ?WAIT(fun() -> {badrpc, nodedown} =:= on_node(Config, erlang, node, []) end),
    {0, _} = ?HELP:run("/", ["rm", "-rf", proplists:get_value(dir, Config)], []),
    ok.

%%% Cases

runs_without_the_sources(Config) ->
    Dir = proplists:get_value(dir, Config),
    ?assertNot(filelib:is_file(proplists:get_value(built, Config))),
    ?assertEqual(embedded, on_node(Config, code, get_mode, [])),
    ?assertEqual(real(Dir), real(on_node(Config, code, root_dir, []))),
    Modules = [erlmcp_memory_nif, erlmcp_server | ?WRAPPERS],
    [?assert(lists:prefix(Dir, on_node(Config, code, which, [M])), M) || M <- Modules],
    ?assert(lists:prefix(Dir, on_node(Config, code, priv_dir, [erlmcp_memory]))),
    Applications = [Name || {Name, _, _} <- on_node(Config, application, which_applications, [])],
    ?assertEqual([erlmcp, erlmcp_memory, kernel, sasl, stdlib], lists:sort(Applications)),
    case file:read_file("/proc/" ++ on_node(Config, os, getpid, []) ++ "/maps") of
        {ok, Maps} ->
            {match, Mapped} = re:run(Maps, "/[^ \n]*erlmcp_memory_nif\\.so", [
                global, {capture, first, list}
            ]),
            [?assert(lists:prefix(real(Dir), Path), Path) || [Path] <- Mapped];
        {error, enoent} ->
            %% No Linux: the paths above have to do.
            ok
    end.

serves_another_node(Config) ->
    %% The settings of sys.config are in force.
    ?assertMatch(
        #{connection_pool := #{pool_size := 500, max_size := 20000}},
        on_node(Config, erlmcp_memory_pool, pool_info, [])
    ),
    ok = connect(Config, 100),
    ?assertMatch(#{in_use := 100}, on_node(Config, erlmcp_memory_pool, pool_stats, [])),
    ?assertEqual([<<"list,read,write">>], received(Config, 7, <<"tools/list\n">>)),
    ?assertEqual([], received(Config, 7, <<"tools/call re">>)),
    ?assertEqual(
        [{called, <<"read">>, 1}, {called, <<"read">>, 2}, {error, unknown_tool}],
        received(Config, 7, <<"ad\ntools/call read\ntools/call nothing\n">>)
    ),
    Contents = contents(Config),
    ?assertMatch(
        {
            #{id := <<"conn-7">>, calls := #{<<"read">> := 2, <<"nothing">> := 1}},
            #{id := <<"conn-7">>, messages := 4}
        },
        maps:get(7, Contents)
    ),
    ?assertMatch({#{id := <<"conn-8">>}, #{messages := 0}}, maps:get(8, Contents)),
    %% Nothing is held between messages: the one buffer lies idle.
    ?assertMatch(
        #{buffer_pool := #{queue_length := 1}}, on_node(Config, erlmcp_memory_pool, pool_info, [])
    ),
    {Report, Alerts} = on_node(Config, erlmcp_server, memory, []),
    ?assertMatch([_ | _], Report),
    ?assertEqual([], [Alert || #{level := critical} = Alert <- Alerts]),
    %% The server goes, and takes nobody's state along.
    true = exit(on_node(Config, erlang, whereis, [erlmcp_memory_pool]), kill),
    ?WAIT(fun() -> is_pid(on_node(Config, erlang, whereis, [erlmcp_server])) end),
    ok = connect(Config, 1),
    ?assertEqual([<<"list,read,write">>], received(Config, 1, <<"tools/list\n">>)).

upgrade_keeps_ten_thousand_states(Config) ->
    ok = connect(Config, 10000),
    _ = [received(Config, N, <<"tools/call write\ntools/ca">>) || N <- lists:seq(1, 10000, 100)],
    Before = contents(Config),
    ?assertEqual(10000, maps:size(Before)),
    #{total_allocated := Total, in_use := 10000} = stats(Config),
    Library = on_node(Config, erlmcp_memory_nif, module_info, [md5]),
    Dir = proplists:get_value(dir, Config),
    Archive = filename:join(Dir, "releases/" ?NEXT "/erlmcp_host.tar.gz"),
    ok = filelib:ensure_dir(Archive),
    {ok, _} = file:copy(proplists:get_value(next, Config), Archive),
    {ok, ?NEXT} = handle(Config, unpack_release, [?NEXT "/erlmcp_host"]),
    {ok, "0.1.0", _} = handle(Config, install_release, [?NEXT]),
    ok = handle(Config, make_permanent, [?NEXT]),
    [?assertEqual("next", version(Config, Module), Module) || Module <- ?WRAPPERS],
    ?assertNotEqual("next", version(Config, erlmcp_memory_nif)),
    ?assertEqual(Library, on_node(Config, erlmcp_memory_nif, module_info, [md5])),
    ?assertEqual({ok, ?NEXT}, on_node(Config, application, get_key, [erlmcp_memory, vsn])),
    ?assertEqual(Before, contents(Config)),
    ?assertMatch(#{total_allocated := Total, in_use := 10000}, stats(Config)),
    %% The states work, half a message is still there, and the counters go on.
    ?assertEqual([{called, <<"write">>, 2}], received(Config, 1, <<"ll write\n">>)),
    ?assertEqual([{called, <<"write">>, 1}], received(Config, 2, <<"tools/call write\n">>)),
    ok = connect(Config, 1),
    #{in_use := 10001, created := Created, reused := Reused} = stats(Config),
    ?assert(Created + Reused >= 10001),
    %% And back.
    After = contents(Config),
    {ok, "0.1.0", _} = handle(Config, install_release, ["0.1.0"]),
    [?assertNotEqual("next", version(Config, Module), Module) || Module <- ?WRAPPERS],
    ?assertEqual(After, contents(Config)),
    ?assertMatch(#{in_use := 10001}, stats(Config)).

the_library_is_not_loaded_twice(Config) ->
    ok = connect(Config, 10),
    _ = received(Config, 3, <<"tools/call list\n">>),
    Before = contents(Config),
    ?assertEqual({error, on_load_failure}, on_node(Config, code, load_file, [erlmcp_memory_nif])),
    ?assertEqual({error, on_load_failure}, on_node(Config, code, load_file, [erlmcp_memory_nif])),
    ?assertEqual(Before, contents(Config)),
    ?assertEqual([{called, <<"list">>, 2}], received(Config, 3, <<"tools/call list\n">>)),
    ?assertMatch(#{in_use := 10}, stats(Config)).

stops_in_order(Config) ->
    ok = connect(Config, 100),
    {0, _} = script(Config, "stop"),
    {release, Port} = lists:keyfind(release, 1, Config),
    ?assertEqual(0, exit_status(Port)),
    ?assertEqual({badrpc, nodedown}, on_node(Config, erlang, node, [])).

%%% Building

rebar3(Host, Args) ->
    {Status, Output} = ?HELP:rebar3(Host, Args),
    Status =:= 0 orelse ct:fail("rebar3 ~p:~n~ts", [Args, Output]).

kept(Config, Release, Archive) ->
    To = filename:join(proplists:get_value(priv_dir, Config), Archive),
    ok = file:rename(filename:join(Release, Archive), To),
    To.

next_version(Project, Host) ->
    [
        ?HELP:edit(File, "^(-module\\(.*\\)\\.)$", "\\1\n-vsn(\"next\").")
     || File <- filelib:wildcard(filename:join(Project, "erl_src/*.erl")),
        filename:basename(File) =/= "erlmcp_memory_nif.erl"
    ],
    [
        ?HELP:edit(File, "{vsn, \".*\"}", "{vsn, \"" ?NEXT "\"}")
     || File <- [
            filename:join(Project, "erl_src/erlmcp_memory.app.src"),
            filename:join(Host, "src/erlmcp.app.src")
        ]
    ],
    ?HELP:edit(
        filename:join(Host, "rebar.config"), "{erlmcp_host, \".*\"}", "{erlmcp_host, \"" ?NEXT "\"}"
    ),
    %% All of it anew: what is edited within a second of its compilation looks unchanged.
    {0, _} = ?HELP:run(Host, ["rm", "-rf", "_build/default/lib", "_build/default/checkouts"], []),
    rebar3(Host, ["compile"]),
    [
        {ok, _} = file:copy(
            filename:join([Host, "upgrade", App ++ ".appup"]),
            filename:join([Host, "_build/default", Below, App, "ebin", App ++ ".appup"])
        )
     || {Below, App} <- [{"lib", "erlmcp"}, {"checkouts", "erlmcp_memory"}]
    ].

%%% The release

start(Config) ->
    Port = open_port({spawn_executable, executable(Config)}, [
        {args, ["foreground"]},
        {cd, "/"},
        {env, environment(Config)},
        exit_status,
        stderr_to_stdout,
        binary
    ]),
    ?WAIT(fun() ->
        erlang:port_info(Port) =/= undefined orelse ct:fail("it did not start: ~p", [flush()]),
        lists:keymember(erlmcp, 1, listed(on_node(Config, application, which_applications, [])))
    end),
    Port.

flush() ->
    receive
        Message -> [Message | flush()]
    after 0 -> []
    end.

listed({badrpc, _}) -> [];
listed(Applications) -> Applications.

script(Config, Command) ->
    ?HELP:run("/", [executable(Config), Command], environment(Config)).

executable(Config) ->
    filename:join([proplists:get_value(dir, Config), "bin", "erlmcp_host"]).

environment(Config) ->
    [
        {"HOST_NODE", atom_to_list(proplists:get_value(node, Config))},
        {"HOST_COOKIE", ?COOKIE}
        %% What the VM that runs this suite was given is not for the release.
        | ?HELP:clean()
    ].

exit_status(Port) ->
    receive
        {Port, {data, _}} -> exit_status(Port);
        {Port, {exit_status, Status}} -> Status
    end.

%%% The second node

second_node() ->
    {ok, Peer, _Node} = peer:start(#{
        name => peer:random_name(?MODULE),
        host => "127.0.0.1",
        longnames => true,
        connection => standard_io,
        args => ["-setcookie", ?COOKIE]
    }),
    Peer.

on_node(Config, Module, Function, Args) ->
    peer:call(
        proplists:get_value(peer, Config),
        rpc,
        call,
        [proplists:get_value(node, Config), Module, Function, Args],
        120000
    ).

handle(Config, Function, Args) ->
    on_node(Config, release_handler, Function, Args).

connect(Config, Count) ->
    on_node(Config, erlmcp_server, connect, [Count]).

received(Config, Number, Bytes) ->
    on_node(Config, erlmcp_server, received, [Number, Bytes]).

contents(Config) ->
    on_node(Config, erlmcp_server, contents, []).

stats(Config) ->
    on_node(Config, erlmcp_memory_pool, pool_stats, []).

version(Config, Module) ->
    proplists:get_value(vsn, on_node(Config, Module, module_info, [attributes])).

%%% Paths

%% The path of a folder without symbolic links.
real(Dir) ->
    {0, Path} = ?HELP:run(Dir, ["pwd", "-P"], []),
    string:trim(Path).
