%% The package builds from exactly the files that erlmcp_memory.app.src names, and works.
-module(erlmcp_memory_package_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_memory_project_help).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [builds_from_the_files_it_names].

builds_from_the_files_it_names(Config) ->
    Package = filename:join(proplists:get_value(priv_dir, Config), "erlmcp_memory"),
    {ok, [{application, erlmcp_memory, Keys}]} =
        file:consult(filename:join(?HELP:root(), "erl_src/erlmcp_memory.app.src")),
    Named = proplists:get_value(files, Keys),
    Files = [{Name, files(Name)} || Name <- Named],
    ?assertEqual([], [Name || {Name, []} <- Files]),
    Paths = lists:append([Paths || {_, Paths} <- Files]),
    %% Sources, and nothing that was built or that only a developer of the project needs.
    ?assertEqual(
        [], [Path || Path <- Paths, Dir <- ["test/", "bench/"], lists:prefix(Dir, Path)]
    ),
    ?assertEqual(
        [],
        [
            Path
         || Path <- Paths, lists:member(filename:extension(Path), [".so", ".beam", ".dylib", ".o"])
        ]
    ),
    %% As written, not as copied: the modes of files need not survive.
    [
        begin
            {ok, Bytes} = file:read_file(filename:join(?HELP:root(), Path)),
            To = filename:join(Package, Path),
            ok = filelib:ensure_dir(To),
            ok = file:write_file(To, Bytes)
        end
     || Path <- Paths
    ],
    {Status, Output} = ?HELP:rebar3(Package, ["compile"]),
    Status =:= 0 orelse ct:fail("rebar3 compile:~n~ts", [Output]),
    Ebin = filename:join(Package, "_build/default/lib/erlmcp_memory/ebin"),
    ?assertEqual(
        lists:sort([
            filename:basename(Path, ".erl")
         || Path <- Paths, filename:extension(Path) =:= ".erl"
        ]),
        lists:sort([filename:basename(Beam, ".beam") || Beam <- filelib:wildcard("*.beam", Ebin)])
    ),
    ?assertEqual(
        "initialization",
        ?HELP:evaluated(
            Ebin,
            "S = erlmcp_connection_optimizer:create_optimized_state(<<\"a\">>),"
            "io:format(\"~p\", [erlmcp_connection_optimizer:get_state_field(S, phase)])"
        )
    ),
    {0, _} = ?HELP:run("/", ["rm", "-rf", Package], []),
    ok.

%% As rebar3_hex reads the list: a pattern for files and folders, and all that is below a folder.
files(Name) ->
    Root = ?HELP:root(),
    lists:flatmap(
        fun(Path) ->
            case filelib:is_dir(filename:join(Root, Path)) of
                true ->
                    [
                        File
                     || File <- filelib:wildcard(filename:join(Path, "**"), Root),
                        filelib:is_regular(filename:join(Root, File))
                    ];
                false ->
                    [Path]
            end
        end,
        filelib:wildcard(Name, Root)
    ).
