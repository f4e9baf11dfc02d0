%% The README and the guides do what they say: every block of code is compiled, read, built or run,
%% in the order of its document. What a block is stands behind its ```:
%%
%%   erlang              a module; compiled and loaded
%%   erlang before       the same
%%   erlang config       terms
%%   erlang shell        expressions, whose matches must hold; variables last to the document's end
%%   KIND file=PATH      a file of the host that the document builds; .erl is compiled, too
%%   sh                  commands, run where that host is; `make ...' with -n, in the project
%%   sh recipe, text recipe   see erlmcp_project_recipe_SUITE
%%   diff parked         lines of the plain module in guides/integration.md, changed and loaded
%%   elixir file=PATH    a file of the Mix project of erlmcp_project_elixir_SUITE
%%   text                output
%%
%% Any other kind, or none, fails.
-module(erlmcp_project_docs_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include_lib("xmerl/include/xmerl.hrl").

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_project_help).
-define(GUIDE, erlmcp_project_guide_help).
-define(INTEGRATION, "guides/integration.md").

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        readme,
        integration,
        calls,
        operating,
        limits,
        internals,
        debugging,
        stores,
        elixir,
        nodes,
        report,
        contributing,
        no_guide_is_forgotten,
        places_to_touch_are_there,
        public_functions_have_pages,
        the_shell_shows_documentation
    ].

init_per_testcase(_Case, Config) ->
    erlmcp_pool_help:clear(),
    Dir = filename:join(proplists:get_value(priv_dir, Config), "host"),
    ok = filelib:ensure_dir(filename:join(Dir, "_checkouts/x")),
    _ = file:make_symlink(?HELP:root(), filename:join(Dir, "_checkouts/erlmcp_memory")),
    [{host, Dir} | Config].

end_per_testcase(_Case, Config) ->
    _ = erlmcp_memory_profiler:stop_profiling(),
    erlmcp_pool_help:clear(),
    {0, _} = ?HELP:run("/", ["rm", "-rf", proplists:get_value(host, Config)], []),
    ok.

readme(Config) ->
    run("README.md", Config, 7),
    gen_server:stop(erlmcp_memory_pool).

integration(Config) ->
    run(?INTEGRATION, Config, 22),
    gen_server:stop(my_host_sup).

calls(Config) ->
    {ok, _} = erlmcp_memory_pool:start_link(),
    run("guides/calls.md", Config, 5),
    gen_server:stop(erlmcp_memory_pool).

operating(Config) ->
    run("guides/operating.md", Config, 13).

limits(Config) ->
    run("guides/limits.md", Config, 0).

internals(Config) ->
    run("guides/internals.md", Config, 5).

debugging(Config) ->
    process_flag(trap_exit, true),
    run("guides/debugging.md", Config, 9).

stores(Config) ->
    {ok, _} = erlmcp_memory_pool:start_link(),
    run("guides/stores.md", Config, 1),
    gen_server:stop(erlmcp_memory_pool).

%% Its modules are those of erlmcp_project_elixir_SUITE.
elixir(Config) ->
    run("guides/elixir.md", Config, 0).

nodes(Config) ->
    run("guides/nodes.md", Config, 1).

report(Config) ->
    {ok, _} = erlmcp_memory_pool:start_link(),
    run("MEMORY_OPTIMIZATION_REPORT.md", Config, 3),
    gen_server:stop(erlmcp_memory_pool).

contributing(Config) ->
    run("CONTRIBUTING.md", Config, 0).

no_guide_is_forgotten(_Config) ->
    Guides = filelib:wildcard("guides/*.md", ?HELP:root()),
    Names = ["calls", "debugging", "elixir", "integration", "internals", "limits", "nodes",
        "operating", "stores"],
    ?assertEqual(["guides/" ++ Name ++ ".md" || Name <- Names], lists:sort(Guides)),
    %% Links between documents lead somewhere.
    [
        ?assert(
            filelib:is_file(filename:join([?HELP:root(), filename:dirname(Document), Link])), Link
        )
     || Document <- [
            "README.md", "MEMORY_OPTIMIZATION_REPORT.md", "CONTRIBUTING.md", "docs/decisions.md",
            "test/README.md"
            | Guides
        ],
        {match, Links} <- [
            re:run(?GUIDE:text(Document), "\\]\\(([^):#]+)[^):]*\\)", [
                global, {capture, [1], list}
            ])
        ],
        [Link] <- Links
    ].

%% The files, functions and suites that CONTRIBUTING.md and the map of the tests name.
places_to_touch_are_there(_Config) ->
    Root = ?HELP:root(),
    Files = filelib:wildcard("{erl_src,native,test,bench,include,docs,guides,scripts}/**/*", Root),
    Suites = [filename:rootname(filename:basename(File)) || File <- Files],
    [
        case {filename:extension(Name), Name} of
            {_, "erlmcp_" ++ _} ->
                Parts = string:lexemes(Name, ":/*"),
                ?assert(lists:any(fun(S) -> lists:prefix(hd(Parts), S) end, Suites), Name);
            {Extension, _} when Extension =:= ".rs"; Extension =:= ".erl"; Extension =:= ".hrl" ->
                ?assert(lists:any(fun(File) -> lists:suffix("/" ++ Name, "/" ++ File) end, Files), Name);
            _ ->
                ok
        end
     || Document <- ["CONTRIBUTING.md", "test/README.md"],
        {match, Named} <- [
            re:run(?GUIDE:text(Document), "`([^`\n]+)`", [global, {capture, [1], list}])
        ],
        [Name] <- Named
    ].

%% Every exported function of the public modules has a description and a spec.
public_functions_have_pages(_Config) ->
    [
        begin
            File = filename:join([?HELP:root(), "erl_src", Module ++ ".erl"]),
            {_, Page} = edoc:get_doc(File, [
                {preprocess, true}, {includes, [filename:join(?HELP:root(), "include")]}
            ]),
            ?assertMatch([_ | _], xmerl_xpath:string("//function", Page)),
            [
                ?assertEqual([], named(xmerl_xpath:string("//function[not(" ++ Part ++ ")]", Page)))
             || Part <- ["description", "typespec"]
            ]
        end
     || Module <- ["erlmcp_memory_pool", "erlmcp_connection_optimizer", "erlmcp_memory_profiler",
            "erlmcp_memory_server", "erlmcp_memory_statem"]
    ].

%% h/1 of the shell shows every public module, and h/3 every function of it.
the_shell_shows_documentation(_Config) ->
    case code:which(edoc_layout_chunks) of
        non_existing -> {skip, "edoc is not installed"};
        _ -> lists:foreach(fun documented/1, [
            erlmcp_memory_pool, erlmcp_connection_optimizer, erlmcp_memory_profiler
        ])
    end.

documented(Module) ->
    {ok, Docs} = code:get_doc(Module),
    {docs_v1, _, erlang, _, #{<<"en">> := _}, _, Items} = Docs,
    Described = [{F, A} || {{function, F, A}, _, _, #{<<"en">> := _}, _} <- Items],
    Callbacks = [{F, A} || F <- [init, handle_call, handle_cast, handle_info, handle_continue,
        terminate, code_change, format_error], A <- [1, 2, 3]],
    %% The library's own modules alone call it.
    Internal = [{acquire_aside, 1} | Callbacks],
    Public = [FA || FA <- Module:module_info(exports) -- Internal, element(1, FA) =/= module_info],
    ?assertEqual([], Public -- Described),
    ?assertMatch(<<_, _/binary>>, shown(shell_docs:render(Module, Docs))),
    [
        ?assertMatch(<<_, _/binary>>, shown(shell_docs:render(Module, F, A, Docs)))
     || {F, A} <- Public
    ].

shown(Text) ->
    unicode:characters_to_binary(Text).

named(Functions) ->
    [
        Name
     || #xmlElement{attributes = Attributes} <- Functions,
        #xmlAttribute{name = name, value = Name} <- Attributes
    ].

%%% A document

run(Document, Config, AtLeast) ->
    Host = proplists:get_value(host, Config),
    Blocks = ?GUIDE:blocks(Document),
    %% A document without examples would pass otherwise.
    ?assert(length([Text || {[Kind | _], Text} <- Blocks, Kind =/= "text"]) >= AtLeast),
    lists:foldl(
        fun({Kind, Text}, Bindings) -> block(Kind, Text, Bindings, Host) end,
        erl_eval:new_bindings(),
        Blocks
    ).

block([_, "file=" ++ File], Text, Bindings, Host) ->
    ?GUIDE:write(File, Text, Host),
    filename:extension(File) =:= ".erl" andalso compile_and_load(Text, Host),
    Bindings;
block(["erlang"], Text, Bindings, Host) ->
    compile_and_load(Text, Host),
    Bindings;
block(["erlang", "before"], Text, Bindings, Host) ->
    compile_and_load(Text, Host),
    Bindings;
block(["erlang", "config"], Text, Bindings, Host) ->
    ?GUIDE:write("read.config", Text, Host),
    ?assertMatch({ok, [_ | _]}, file:consult(filename:join(Host, "read.config"))),
    Bindings;
block(["erlang", "shell"], Text, Bindings, _Host) ->
    evaluate(Text, Bindings);
block(["sh"], Text, Bindings, Host) ->
    ?GUIDE:sh(Text, Host),
    Bindings;
block(["diff", "parked"], Text, Bindings, Host) ->
    [Before] = [T || {["erlang", "before"], T} <- ?GUIDE:blocks(?INTEGRATION)],
    ["-" ++ Old, "+" ++ New, ""] = string:split(Text, "\n", all),
    [Head, Tail] = string:split(Before, [Old, $\n]),
    compile_and_load([Head, New, $\n, Tail], Host),
    Bindings;
block(["text"], _, Bindings, _) ->
    Bindings;
block(["elixir", "file=" ++ _], _, Bindings, _) ->
    Bindings;
block([Kind, "recipe"], _, Bindings, _) when Kind =:= "sh"; Kind =:= "text" ->
    Bindings.

compile_and_load(Text, Dir) ->
    {match, [Name]} = re:run(Text, "^-module\\(([a-z_]+)\\)", [{capture, all_but_first, list}]),
    File = filename:join(Dir, Name ++ ".erl"),
    ok = file:write_file(File, Text),
    {ok, Module, Binary} = compile:file(File, [binary, warnings_as_errors, report]),
    ok = file:delete(File),
    {module, Module} = code:load_binary(Module, File, Binary).

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
