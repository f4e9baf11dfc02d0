%% Where settings may stand, which of them counts, and what a wrong one does.
-module(erlmcp_project_settings_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_project_help).
-define(POOL, erlmcp_memory_pool).
-define(O, erlmcp_connection_optimizer).

-define(DEFAULT, {1000, 10000, true, true}).
%% Not the default of any setting.
-define(HOST, {7, 70, false, false}).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [
        the_own_environment_comes_first,
        a_change_is_in_force_at_once,
        a_wrong_boolean_is_not_taken_for_another,
        a_wrong_size_starts_no_pool,
        a_configuration_file_counts_without_an_application,
        the_command_line_counts_without_an_application,
        what_is_loaded_is_not_read_from_files,
        a_second_boot_reads_anew,
        a_release_of_another_name_has_its_settings,
        a_mix_release_has_its_settings
    ].

init_per_testcase(_Case, Config) ->
    default(),
    Config.

end_per_testcase(_Case, _Config) ->
    default().

default() ->
    erlmcp_pool_help:clear(),
    [
        application:unset_env(App, Key)
     || App <- [erlmcp, erlmcp_memory], {Key, _} <- settings(?HOST)
    ].

%%% Cases

the_own_environment_comes_first(_Config) ->
    ?assertEqual(?DEFAULT, in_force()),
    set(erlmcp, ?HOST),
    ?assertEqual(?HOST, in_force()),
    set(erlmcp_memory, {8, 80, true, true}),
    ?assertEqual({8, 80, true, true}, in_force()),
    %% Each for itself.
    application:unset_env(erlmcp_memory, memory_pool_size),
    application:unset_env(erlmcp_memory, compression_enabled),
    ?assertEqual({7, 80, true, false}, in_force()).

a_change_is_in_force_at_once(_Config) ->
    [
        begin
            application:set_env(App, connection_state_compact, Compact),
            ?assertEqual(Compact, is_reference(?O:create_optimized_state(<<>>)), App)
        end
     || App <- [erlmcp, erlmcp_memory], Compact <- [false, true, false, true]
    ],
    application:set_env(erlmcp, connection_state_compact, false),
    ?assert(is_reference(?O:create_optimized_state(<<>>))),
    application:unset_env(erlmcp_memory, connection_state_compact),
    ?assertNot(is_reference(?O:create_optimized_state(<<>>))).

a_wrong_boolean_is_not_taken_for_another(_Config) ->
    State = ?O:create_optimized_state(<<"c">>),
    Snapshot = ?O:compress_state(State),
    [
        begin
            application:set_env(App, Key, Value),
            [?assertError({invalid_config, Key, Value}, Use()) || Use <- Uses],
            application:unset_env(App, Key)
        end
     || App <- [erlmcp, erlmcp_memory],
        Value <- ["false", <<"false">>, 0, 1, no, undefined, [], 'False'],
        {Key, Uses} <- [
            {connection_state_compact, [
                fun() -> ?O:create_optimized_state(<<"c">>) end,
                fun() -> ?O:from_map(#{id => <<"c">>}) end,
                fun() -> ?O:decompress_state(Snapshot) end
            ]},
            {compression_enabled, [fun() -> ?O:compress_state(State) end]}
        ]
    ],
    %% What does not need the setting works.
    application:set_env(erlmcp, connection_state_compact, "false"),
    ?assertEqual(<<"c">>, ?O:get_state_field(State, id)),
    ?assertEqual(Snapshot, ?O:compress_state(State)).

a_wrong_size_starts_no_pool(_Config) ->
    [
        begin
            application:set_env(App, Key, Value),
            ?assertEqual({error, {invalid_config, Key, Value}}, ?POOL:start_link()),
            application:unset_env(App, Key)
        end
     || App <- [erlmcp, erlmcp_memory],
        Key <- [memory_pool_size, memory_pool_max_size],
        Value <- [0, -1, 1.0, "10", undefined, infinity, 10000001, 1 bsl 70]
    ],
    %% Of two places.
    application:set_env(erlmcp_memory, memory_pool_size, 11),
    application:set_env(erlmcp, memory_pool_max_size, 10),
    ?assertEqual({error, {invalid_config, memory_pool_max_size, 10}}, ?POOL:start_link()),
    application:set_env(erlmcp_memory, memory_pool_max_size, 11),
    ?assertMatch({11, 11, _, _}, in_force()).

a_configuration_file_counts_without_an_application(Config) ->
    Host = file(Config, "host", [{erlmcp, settings(?HOST)}]),
    Own = file(Config, "own", [{erlmcp_memory, settings({8, 80, true, false})}]),
    ?assertEqual(?DEFAULT, in_force([])),
    ?assertEqual(?HOST, in_force(["-config", Host])),
    ?assertEqual({8, 80, true, false}, in_force(["-config", Own])),
    ?assertEqual({8, 80, true, false}, in_force(["-config", Own, "-config", Host])),
    %% A file that names the other, and one that says it all in a single place.
    Named = file(Config, "sys", [{kernel, []}, Host ++ ".config"]),
    ?assertEqual(?HOST, in_force(["-config", Named])),
    Wrong = file(Config, "wrong", [{erlmcp, [{connection_state_compact, "false"}]}]),
    ?assertEqual({invalid_config, connection_state_compact, "false"}, in_force(["-config", Wrong])).

the_command_line_counts_without_an_application(Config) ->
    Host = ["-erlmcp" | words(?HOST)],
    ?assertEqual(?HOST, in_force(Host)),
    Own = ["-erlmcp_memory" | words({8, 80, true, true})],
    ?assertEqual({8, 80, true, true}, in_force(Own ++ Host)),
    %% It outweighs the files, as with any application.
    File = file(Config, "other", [{erlmcp, settings({9, 90, false, true})}]),
    ?assertEqual(
        {9, 99, false, true},
        in_force(["-config", File, "-erlmcp", "memory_pool_max_size", "99"])
    ),
    ?assertEqual(
        {invalid_config, memory_pool_size, "not a term"},
        in_force(["-erlmcp", "memory_pool_size", "not a term"])
    ).

%% What was taken out of an environment is not found in the file that it came from.
what_is_loaded_is_not_read_from_files(Config) ->
    Host = file(Config, "loaded", [{erlmcp, settings(?HOST)}]),
    ?assertEqual(
        {?HOST, {7, 10000, false, true}},
        evaluated(
            ["-config", Host],
            "ok = application:load({application, erlmcp, []}),"
            "First = erlmcp_project_settings_SUITE:in_force(),"
            "application:unset_env(erlmcp, memory_pool_max_size),"
            "application:unset_env(erlmcp, compression_enabled),"
            "{First, erlmcp_project_settings_SUITE:in_force()}"
        )
    ).

%% A release that computes its configuration boots twice in one VM, then with another file.
a_second_boot_reads_anew(Config) ->
    File = file(Config, "twice", [{erlmcp, settings(?HOST)}]),
    Next = file(Config, "next", [{erlmcp, settings({8, 80, true, false})}]),
    Said = filename:join(proplists:get_value(priv_dir, Config), "in_force_in_each_boot"),
    Expression = lists:flatten(io_lib:format(
        "Force = erlmcp_project_settings_SUITE:in_force(),"
        "file:write_file(~p, io_lib:format(\"~~0p.~~n\", [Force]), [append]),"
        "case file:rename(~p, ~p) of ok -> init:restart(); _ -> halt() end",
        [Said, Next ++ ".config", File ++ ".config"]
    )),
    {0, _} = ?HELP:erl(["-config", File, "-eval", Expression]),
    ?assertEqual({ok, [?HOST, {8, 80, true, false}]}, file:consult(Said)).

a_release_of_another_name_has_its_settings(Config) ->
    Dir = filename:join(proplists:get_value(priv_dir, Config), "release"),
    Boot = ?HELP:boot_script(Dir, "another"),
    Own = file(Config, "sys", [
        {erlmcp_memory, settings({8, 80, true, false})}, {erlmcp, settings(?HOST)}
    ]),
    ?assertEqual({8, 80, true, false}, in_force(Boot ++ ["-config", Own])),
    Host = file(Config, "sys", [{erlmcp, settings(?HOST)}]),
    ?assertEqual(?HOST, in_force(Boot ++ ["-config", Host])),
    ?assertEqual(
        {9, 70, false, false},
        in_force(Boot ++ ["-config", Host, "-erlmcp_memory", "memory_pool_size", "9"])
    ).

a_mix_release_has_its_settings(Config) ->
    case os:find_executable("mix") of
        false -> {skip, "there is no mix; Debian's package is elixir"};
        _ -> mix_release(filename:join(proplists:get_value(priv_dir, Config), "mix_host"))
    end.

%% config/config.exs goes into the release's sys.config; config/runtime.exs is computed at the boot,
%% in a first one, and in force in the second.
mix_release(Dir) ->
    Text = fun(Name, Lines) ->
        File = filename:join(Dir, Name),
        ok = filelib:ensure_dir(File),
        ok = file:write_file(File, lists:join($\n, Lines ++ [""]))
    end,
    Text("mix.exs", [
        "defmodule MixHost.MixProject do",
        "  use Mix.Project",
        "  def project do",
        "    [app: :mix_host, version: \"1.0.0\", deps: [",
        "      {:erlmcp_memory, path: \"" ++ ?HELP:root() ++ "\", manager: :rebar3}",
        "    ]]",
        "  end",
        "  def application, do: []",
        "end"
    ]),
    Text("config/config.exs", [
        "import Config",
        "config :erlmcp, memory_pool_size: 7, memory_pool_max_size: 70",
        "config :erlmcp_memory, connection_state_compact: false"
    ]),
    Text("config/runtime.exs", [
        "import Config",
        "config :erlmcp, compression_enabled: false, memory_pool_size: 8"
    ]),
    Text("lib/mix_host.ex", [
        "defmodule MixHost do",
        "  def in_force do",
        "    {:ok, pool} = :erlmcp_memory_pool.start_link()",
        "    %{connection_pool: pool_info} = :erlmcp_memory_pool.pool_info()",
        "    %{pool_size: size, max_size: max} = pool_info",
        "    :ok = :gen_server.stop(pool)",
        "    state = :erlmcp_connection_optimizer.from_map(%{id: :binary.copy(\"id\", 1000)})",
        "    <<2, compressed, _::binary>> = :erlmcp_connection_optimizer.compress_state(state)",
        "    :io.format(\"~0p.\", [{size, max, is_reference(state), compressed == 1}])",
        "  end",
        "end"
    ]),
    Env = [
        {"MIX_ENV", "prod"},
        {"MIX_REBAR3", os:find_executable("rebar3")},
        {"MIX_HOME", Dir}
        | ?HELP:clean()
    ],
    {Status, Built} = ?HELP:run(Dir, ["mix", "release"], Env),
    Status =:= 0 orelse ct:fail("~ts", [Built]),
    Script = filename:join(Dir, "_build/prod/rel/mix_host/bin/mix_host"),
    {0, Said} = ?HELP:run(Dir, [Script, "eval", "MixHost.in_force()"], Env),
    ?assertEqual("{8,70,false,false}.", Said).

%%% Help

settings({Size, Max, Compact, Compressed}) ->
    [
        {memory_pool_size, Size},
        {memory_pool_max_size, Max},
        {connection_state_compact, Compact},
        {compression_enabled, Compressed}
    ].

set(App, Settings) ->
    [application:set_env(App, Key, Value) || {Key, Value} <- settings(Settings)].

words(Settings) ->
    [
        lists:flatten(io_lib:format("~w", [Word]))
     || {Key, Value} <- settings(Settings), Word <- [Key, Value]
    ].

%% The settings as what they do shows them, or the error that one of them is.
in_force() ->
    try
        {ok, Pool} =
            case ?POOL:start_link() of
                {ok, _} = Started -> Started;
                {error, Error} -> error(Error)
            end,
        #{connection_pool := #{pool_size := Size, max_size := Max}} = ?POOL:pool_info(),
        ok = gen_server:stop(Pool),
        State = ?O:from_map(#{id => binary:copy(<<"id">>, 1000)}),
        <<2, Compressed, _/binary>> = ?O:compress_state(State),
        {Size, Max, is_reference(State), Compressed =:= 1}
    catch
        error:{invalid_config, _, _} = Invalid -> Invalid
    end.

%% As in_force/0, in a VM of its own, to which these arguments are given.
in_force(Args) ->
    evaluated(Args, "erlmcp_project_settings_SUITE:in_force()").

evaluated(Args, Expression) ->
    {0, Said} = ?HELP:erl(Args ++ [
        "-eval",
        "{module, _} = code:load_file(erlmcp_project_settings_SUITE),"
        "io:format(\"~0p.\", [begin " ++ Expression ++ " end]), halt()."
    ]),
    {ok, Tokens, _} = erl_scan:string(Said),
    {ok, Term} = erl_parse:parse_term(Tokens),
    Term.

%% The name of a configuration file without its ending.
file(Config, Name, Content) ->
    File = filename:join(proplists:get_value(priv_dir, Config), Name),
    write(File ++ ".config", Content),
    File.

write(File, Term) ->
    ok = file:write_file(File, io_lib:format("~p.~n", [Term])).
