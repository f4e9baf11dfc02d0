%% The project of guides/elixir.md is built and tested by Mix, with this project as a dependency.
-module(erlmcp_project_elixir_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_project_help).
-define(GUIDE, erlmcp_project_guide_help).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [a_mix_project_uses_the_modules].

init_per_suite(Config) ->
    case os:find_executable("mix") of
        false -> {skip, "there is no mix; Debian's package is elixir"};
        _ -> Config
    end.

end_per_suite(_Config) ->
    ok.

a_mix_project_uses_the_modules(Config) ->
    Dir = filename:join(proplists:get_value(priv_dir, Config), "my_host"),
    Files = [
        {File, Text}
     || {["elixir", "file=" ++ File], Text} <- ?GUIDE:blocks("guides/elixir.md")
    ],
    [?GUIDE:write(File, Text, Dir) || {File, Text} <- Files],
    ?HELP:edit(
        filename:join(Dir, "mix.exs"),
        "git: \"URL of this repository\", branch: \"main\"",
        "path: \"" ++ ?HELP:root() ++ "\""
    ),
    Env = [
        {"MIX_ENV", "test"},
        {"MIX_REBAR3", os:find_executable("rebar3")},
        {"MIX_HOME", Dir}
        | ?HELP:clean()
    ],
    {Status, Said} = ?HELP:run(Dir, ["mix", "test"], Env),
    Status =:= 0 orelse ct:fail("~ts", [Said]),
    %% Mix ends well, too, where it finds no test.
    [Tests] = [Text || {"test/my_host_test.exs", Text} <- Files],
    {match, Named} = re:run(Tests, "^  test \"", [global, multiline]),
    Counted = integer_to_list(length(Named)) ++ " tests, 0 failures",
    ?assertNotEqual(nomatch, string:find(Said, Counted), Said),
    {0, _} = ?HELP:run("/", ["rm", "-rf", Dir], []).
