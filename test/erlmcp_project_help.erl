%% For suites that build something of the project: where it lies, a copy of it, programs that run.
-module(erlmcp_project_help).

-export([root/0, copy/1, copy_built/1, run/3, rebar3/2, sh/2, erl/1, evaluated/2, clean/0, edit/3]).
-export([boot_script/2]).

%% The folder of the project: suites are compiled in _build, below it.
root() ->
    find_up(filename:absname(filename:dirname(code:which(erlmcp_memory_nif))), "rebar.config").

find_up(Dir, Name) ->
    case filelib:is_regular(filename:join(Dir, Name)) of
        true -> Dir;
        false -> find_up(filename:dirname(Dir), Name)
    end.

%% The sources, without what was built, in a new folder.
copy(To) ->
    ok = filelib:ensure_dir(filename:join(To, "x")),
    {0, _} = run(root(), ["sh", "-c",
        "tar -cf - --exclude=./_build --exclude=./target --exclude=./.git --exclude='./priv/*' . "
        "| tar -xf - -C \"$0\"", To], []),
    ok.

%% The sources and what cargo built of libraries from elsewhere: only the crates of the project
%% are compiled anew.
copy_built(To) ->
    ok = copy(To),
    ok = file:make_dir(filename:join(To, "target")),
    {0, _} = run(root(), ["cp", "-pR", "target/release", filename:join(To, "target")], []),
    ok.

%% Runs a program; returns {ExitStatus, Output}.
run(Dir, [Program | Args], Env) ->
    Port = open_port({spawn_executable, executable(Program)}, [
        {args, Args}, {cd, Dir}, {env, Env}, exit_status, stderr_to_stdout, binary, hide
    ]),
    collect(Port, []).

executable("/" ++ _ = Path) -> Path;
executable(Name) -> os:find_executable(Name).

collect(Port, Output) ->
    receive
        {Port, {data, Bytes}} -> collect(Port, [Output, Bytes]);
        {Port, {exit_status, Status}} ->
            {Status, unicode:characters_to_list(iolist_to_binary(Output))}
    end.

rebar3(Dir, Args) ->
    run(Dir, ["rebar3" | Args], clean()).

%% Commands; the first that fails ends them.
sh(Dir, Commands) ->
    run(Dir, ["sh", "-e", "-c", Commands], clean()).

%% Runs a VM that knows the modules of the project and of its tests.
erl(Args) ->
    Path = lists:usort([filename:dirname(code:which(M)) || M <- [?MODULE, erlmcp_memory_nif]]),
    run("/", ["erl", "-noshell", "-pa" | Path] ++ Args, clean()).

%% The arguments that boot a VM in embedded mode, with the project and an application of this name.
boot_script(Dir, Name) ->
    Ebin = filename:join(Dir, "ebin"),
    ok = filelib:ensure_dir(filename:join(Ebin, "x")),
    Version = fun(App) ->
        _ = application:load(App),
        element(2, application:get_key(App, vsn))
    end,
    Write = fun(File, Term) -> ok = file:write_file(File, io_lib:format("~p.~n", [Term])) end,
    Write(filename:join(Ebin, Name ++ ".app"),
        {application, list_to_atom(Name), [
            {description, ""}, {vsn, "1"}, {modules, []}, {registered, []},
            {applications, [kernel, stdlib, erlmcp_memory]}
        ]}),
    Write(filename:join(Dir, Name ++ ".rel"),
        {release, {Name, "1"}, {erts, erlang:system_info(version)}, [
            {list_to_atom(Name), "1"}
            | [{App, Version(App)} || App <- [kernel, stdlib, erlmcp_memory]]
        ]}),
    Path = [Dir, Ebin, filename:dirname(code:which(erlmcp_memory_nif))],
    {ok, _, _} = systools:make_script(Name, [
        {path, Path}, {outdir, Dir}, local, silent, no_module_tests
    ]),
    ["-mode", "embedded", "-boot", filename:join(Dir, Name)].

%% What an expression prints in a VM that knows of nothing but OTP and one folder of modules.
evaluated(Ebin, Expression) ->
    Args = ["-noshell", "-pa", Ebin, "-eval", Expression ++ ", halt()."],
    {0, Said} = run("/", ["erl" | Args], clean()),
    Said.

%% As in a shell of its own: nothing that the rebar3 and the VM that run these tests were told.
clean() ->
    [
        {Name, false}
     || Name <- [
            "REBAR_PROFILE",
            "ERL_LIBS",
            "ERL_FLAGS",
            "BINDIR",
            "ROOTDIR",
            "EMU",
            "PROGNAME",
            "MAKEFLAGS"
        ]
    ] ++ [{"TERM", "dumb"}].

%% Replaces what must occur in a file.
edit(File, Pattern, Replacement) ->
    {ok, Text} = file:read_file(File),
    Edited = iolist_to_binary(re:replace(Text, Pattern, Replacement, [multiline])),
    false = Text =:= Edited,
    ok = file:write_file(File, Edited).
