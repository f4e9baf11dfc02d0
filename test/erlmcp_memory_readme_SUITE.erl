%% The README does what it says: every block marked as Erlang is compiled, read or run, in order.
%%
%% A block of ```erlang is a module, of ```erlang config a list of terms, of ```erlang shell a
%% sequence of expressions whose matches must hold.
-module(erlmcp_memory_readme_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

all() ->
    [readme_runs_as_printed].

readme_runs_as_printed(Config) ->
    Dir = proplists:get_value(priv_dir, Config),
    {ok, Readme} = file:read_file(filename:join(root(), "README.md")),
    Blocks = blocks(Readme),
    %% A README without examples would pass otherwise.
    ?assert(length([B || {module, _} = B <- Blocks]) >= 3),
    ?assert(length([B || {shell, _} = B <- Blocks]) >= 5),
    [compile_and_load(Text, Dir) || {module, Text} <- Blocks],
    [?assertMatch([_ | _], terms(Text, Dir)) || {config, Text} <- Blocks],
    %% The pool is linked to the process that evaluates.
    Bindings = lists:foldl(fun evaluate/2, erl_eval:new_bindings(), [T || {shell, T} <- Blocks]),
    ?assert(length(erl_eval:bindings(Bindings)) > 10),
    %% The monitor runs, and says nothing alarming of an idle node.
    {ok, Monitor} = my_monitor:start_link(),
    ?assertEqual(ok, gen_server:call(Monitor, ping)),
    gen_server:stop(Monitor),
    #{snapshots := _} = erlmcp_memory_profiler:stop_profiling(),
    unlink(whereis(my_sup)),
    gen_server:stop(my_sup),
    ok.

root() ->
    %% The suite is compiled in _build; the README stands beside the sources.
    Beam = filename:dirname(code:which(erlmcp_memory_nif)),
    find_up(filename:absname(Beam), "README.md").

find_up(Dir, Name) ->
    case filelib:is_regular(filename:join(Dir, Name)) of
        true -> Dir;
        false -> find_up(filename:dirname(Dir), Name)
    end.

blocks(Readme) ->
    {match, Found} = re:run(Readme, "^```(erlang[^\n]*)\n(.*?)^```$", [
        global, multiline, dotall, {capture, all_but_first, list}
    ]),
    [{kind(Info), Text} || [Info, Text] <- Found].

kind("erlang") -> module;
kind("erlang config") -> config;
kind("erlang shell") -> shell.

compile_and_load(Text, Dir) ->
    {match, [Name]} = re:run(Text, "^-module\\(([a-z_]+)\\)", [{capture, all_but_first, list}]),
    File = filename:join(Dir, Name ++ ".erl"),
    ok = file:write_file(File, Text),
    {ok, Module, Binary} = compile:file(File, [binary, warnings_as_errors, report]),
    {module, Module} = code:load_binary(Module, File, Binary).

terms(Text, Dir) ->
    File = filename:join(Dir, "readme.config"),
    ok = file:write_file(File, Text),
    {ok, Terms} = file:consult(File),
    Terms.

evaluate(Text, Bindings0) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    lists:foldl(
        fun(Expression, Bindings) ->
            {ok, Parsed} = erl_parse:parse_exprs(Expression),
            {value, _, New} = erl_eval:exprs(Parsed, Bindings),
            New
        end,
        Bindings0,
        expressions(Tokens)
    ).

%% The tokens of each expression, with the dot that ends it.
expressions([]) ->
    [];
expressions(Tokens) ->
    {Expression, [Dot | Rest]} = lists:splitwith(
        fun(Token) -> element(1, Token) =/= dot end, Tokens
    ),
    [Expression ++ [Dot] | expressions(Rest)].
