%% The package builds from exactly the files that erlmcp_memory.app.src names, and works. rebar3_hex
%% puts one file more into every package, the resource file as src/NAME.app.src, and so does this.
-module(erlmcp_project_package_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_project_help).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        says_what_hex_asks_for,
        builds_from_the_files_it_names
    ].

%% rebar3_hex refuses a package without the first three.
says_what_hex_asks_for(_Config) ->
    {ok, [{application, erlmcp_memory, Keys}]} = resource(),
    ?assertMatch([_ | _], proplists:get_value(description, Keys)),
    ?assertEqual(["Apache-2.0"], proplists:get_value(licenses, Keys)),
    Version = proplists:get_value(vsn, Keys),
    ?assertMatch({match, _}, re:run(Version, "^[0-9]+\\.[0-9]+\\.[0-9]+$")),
    [
        ?assertMatch({[_ | _], "https://" ++ _}, Link)
     || Link <- proplists:get_value(links, Keys)
    ],
    %% One version in both languages.
    {ok, Cargo} = file:read_file(filename:join(?HELP:root(), "Cargo.toml")),
    ?assertMatch(
        {match, _}, re:run(Cargo, ["^version = \"\\Q", Version, "\\E\"$"], [multiline])
    ).

builds_from_the_files_it_names(Config) ->
    Package = filename:join(proplists:get_value(priv_dir, Config), "erlmcp_memory"),
    {ok, [{application, erlmcp_memory, Keys} = Resource]} = resource(),
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
    Added = filename:join(Package, "src/erlmcp_memory.app.src"),
    ok = filelib:ensure_dir(Added),
    ok = file:write_file(Added, io_lib:format("~tp.~n", [Resource])),
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

resource() ->
    file:consult(filename:join(?HELP:root(), "erl_src/erlmcp_memory.app.src")).

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
