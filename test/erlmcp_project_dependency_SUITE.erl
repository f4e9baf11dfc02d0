%% The project as a dependency of a host that has Rust of its own: a Cargo workspace around it, and
%% a configuration of cargo that sends what is built elsewhere.
-module(erlmcp_project_dependency_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_project_help).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        from_a_git_repository,
        from_checkouts,
        a_tree_that_cannot_be_written_is_named
    ].

end_per_testcase(_Case, Config) ->
    {0, _} = ?HELP:run("/", ["rm", "-rf", proplists:get_value(priv_dir, Config)], []),
    ok.

from_a_git_repository(Config) ->
    case os:find_executable("git") of
        false ->
            {skip, "git is not installed"};
        _ ->
            Repository = filename:join(proplists:get_value(priv_dir, Config), "repository"),
            ok = ?HELP:copy(Repository),
            {0, _} = ?HELP:sh(
                Repository,
                "git init --quiet\n"
                "git add --all\n"
                "git -c user.name=test -c user.email=test@localhost commit --quiet -m 'as it is'\n"
                "git branch -M main"
            ),
            Source = {git, "file://" ++ Repository, {branch, "main"}},
            Host = host(Config, {erlmcp_memory, Source}),
            compile(Host),
            Built = "_build/default/lib/erlmcp_memory",
            works(Host, Built),
            %% Nothing changed: nothing is built, and the library stays as it is.
            Library = filename:join([Host, Built, "priv/erlmcp_memory_nif.so"]),
            {ok, Before} = file:read_file_info(Library),
            compile(Host),
            ?assertEqual({ok, Before}, file:read_file_info(Library))
    end.

from_checkouts(Config) ->
    Host = host(Config, erlmcp_memory),
    ok = file:make_dir(filename:join(Host, "_checkouts")),
    ok = ?HELP:copy_built(filename:join(Host, "_checkouts/erlmcp_memory")),
    compile(Host),
    works(Host, "_build/default/checkouts/erlmcp_memory").

%% As that of a link in _checkouts may be. (Modes of files do not keep root from writing.)
a_tree_that_cannot_be_written_is_named(Config) ->
    Tree = filename:join(proplists:get_value(priv_dir, Config), "tree"),
    Script = filename:join(Tree, "native/build.sh"),
    ok = filelib:ensure_dir(Script),
    {ok, _} = file:copy(filename:join(?HELP:root(), "native/build.sh"), Script),
    ok = file:write_file(filename:join(Tree, "target"), "no folder"),
    {1, Said} = ?HELP:run("/", ["sh", Script], ?HELP:clean()),
    ?assertNotEqual(nomatch, string:find(Said, Tree ++ ", which cannot be written: copy it"), Said).

%%% A host

host(Config, Dependency) ->
    Host = filename:join(proplists:get_value(priv_dir, Config), "host"),
    [
        begin
            Path = filename:join(Host, Name),
            ok = filelib:ensure_dir(Path),
            ok = file:write_file(Path, Text)
        end
     || {Name, Text} <- [
            {"rebar.config", io_lib:format("~p.~n", [{deps, [Dependency]}])},
            {"src/some_host.app.src",
                "{application, some_host, [\n"
                "    {vsn, \"1\"},\n"
                "    {applications, [kernel, stdlib, erlmcp_memory]}\n"
                "]}.\n"},
            {"Cargo.toml", "[workspace]\nmembers = [\"native\"]\nresolver = \"2\"\n"},
            {"native/Cargo.toml",
                "[package]\nname = \"host-crate\"\nversion = \"1.0.0\"\nedition = \"2021\"\n"},
            {"native/src/lib.rs", "pub fn nothing() {}\n"},
            {".cargo/config.toml",
                ["[build]\ntarget = \"", triple(), "\"\ntarget-dir = \"host-target\"\n"]}
        ]
    ],
    Host.

triple() ->
    {0, Said} = ?HELP:run("/", ["rustc", "-vV"], []),
    {match, [Triple]} = re:run(Said, "^host: (.*)$", [multiline, {capture, [1], list}]),
    Triple.

compile(Host) ->
    {Status, Output} = ?HELP:rebar3(Host, ["compile"]),
    Status =:= 0 orelse ct:fail("rebar3 compile:~n~ts", [Output]).

%% In a VM that knows of nothing but what the host was built with.
works(Host, Dependency) ->
    Ebin = filename:join([Host, Dependency, "ebin"]),
    Library = filename:join([Host, Dependency, "priv/erlmcp_memory_nif.so"]),
    ?assert(filelib:is_regular(Library)),
    %% Rust of the project went where the project says, that of the host where the host says.
    ?assertNot(filelib:is_file(filename:join(Host, "host-target"))),
    {0, _} = ?HELP:run(Host, ["cargo", "build", "--quiet", "--offline"], []),
    ?assert(filelib:is_dir(filename:join(Host, "host-target"))),
    Said = ?HELP:evaluated(
        Ebin,
        "{ok, _} = erlmcp_memory_pool:start_link(),"
        "{ok, State} = erlmcp_memory_pool:acquire_connection_state(#{id => 1}),"
        "Map = erlmcp_memory_pool:connection_state(State),"
        "io:format(\"~0p\", [{Map, code:which(erlmcp_memory_nif)}])"
    ),
    %% With documentation for the shell, where OTP has what makes it.
    {ok, {_, [{_, Docs}]}} = beam_lib:chunks(
        filename:join(Ebin, "erlmcp_memory_pool.beam"), ["Docs"], [allow_missing_chunks]
    ),
    ?assertEqual(code:which(edoc_layout_chunks) =/= non_existing, is_binary(Docs)),
    Beam = filename:join(Ebin, "erlmcp_memory_nif.beam"),
    ?assertEqual(lists:flatten(io_lib:format("~0p", [{{ok, #{id => 1}}, Beam}])), Said).
