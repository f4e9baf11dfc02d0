%% A host that has had modules of the names of the project's three: what the tools say when it takes
%% the project in beside them, and that the recipe of guides/integration.md leads to a release in
%% which the host's own code goes on as it is. The host is that of the guide, but for its past.
-module(erlmcp_project_recipe_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_project_help).
-define(GUIDE, erlmcp_project_guide_help).
-define(INTEGRATION, "guides/integration.md").
-define(MODULES, ["erlmcp_memory_pool", "erlmcp_connection_optimizer", "erlmcp_memory_profiler"]).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        a_host_of_the_past_works,
        both_at_once_compile_but_make_no_release,
        the_recipe_makes_a_release_that_works
    ].

init_per_testcase(_Case, Config) ->
    Host = filename:join(proplists:get_value(priv_dir, Config), "host"),
    [?GUIDE:write(File, Text, Host) || {[_, "file=" ++ File], Text} <- ?GUIDE:blocks(?INTEGRATION)],
    [?GUIDE:write("src/" ++ Name ++ ".erl", Text, Host) || {Name, Text} <- of_the_past()],
    [{host, Host} | Config].

end_per_testcase(_Case, Config) ->
    {0, _} = ?HELP:run("/", ["rm", "-rf", proplists:get_value(host, Config)], []),
    ok.

%% Otherwise the cases below would show nothing.
a_host_of_the_past_works(Config) ->
    Host = proplists:get_value(host, Config),
    ?HELP:edit(filename:join(Host, "rebar.config"), "^{deps, .*}\\.$", "{deps, []}."),
    ?HELP:edit(filename:join(Host, "src/my_host.app.src"), ", erlmcp_memory", ""),
    ?HELP:edit(
        filename:join(Host, "src/my_host_sup.erl"),
        "erlmcp_memory_pool:child_spec\\(\\)",
        "#{id => pool, start => {erlmcp_memory_pool, start_link, []}}"
    ),
    ok = file:delete(filename:join(Host, "src/my_connection.erl")),
    {0, _} = ?HELP:rebar3(Host, ["release"]),
    ?assertEqual({lists:duplicate(3, "my_host-1.0.0"), answer()}, released(Host)).

both_at_once_compile_but_make_no_release(Config) ->
    Host = depending(Config),
    {0, Compiled} = ?HELP:rebar3(Host, ["compile"]),
    [?assertEqual(nomatch, string:find(Compiled, Module)) || Module <- ?MODULES],
    %% In a VM, the place in the code path decides.
    [Own, Ours] = [
        filename:join([Host, "_build/default", Dir, "ebin"])
     || Dir <- ["lib/my_host", "checkouts/erlmcp_memory"]
    ],
    [
        ?assertEqual(First, directory_of("erlmcp_memory_pool", ["-pa", First, "-pz", Second]))
     || {First, Second} <- [{Own, Ours}, {Ours, Own}]
    ],
    {Status, Said} = ?HELP:rebar3(Host, ["release"]),
    ?assertNotEqual(0, Status),
    [Printed] = [Text || {["text", "recipe"], Text} <- ?GUIDE:blocks(?INTEGRATION)],
    Lines = [string:trim(Line) || Line <- string:lexemes(Printed, "\n")],
    ?assertEqual(1 + length(?MODULES), length(Lines)),
    [?assertNotEqual(nomatch, string:find(Said, Line), Line) || Line <- Lines].

the_recipe_makes_a_release_that_works(Config) ->
    Host = depending(Config),
    [Commands] = [Text || {["sh", "recipe"], Text} <- ?GUIDE:blocks(?INTEGRATION)],
    ?GUIDE:sh(Commands, Host),
    {Where, Answer} = released(Host),
    [?assertMatch("erlmcp_memory-" ++ _, Application) || Application <- Where],
    ?assertEqual(answer(), Answer).

%%% The host

%% The steps of the recipe that change the host's files are done in the files of the guide.
depending(Config) ->
    Host = proplists:get_value(host, Config),
    Link = filename:join(Host, "_checkouts/erlmcp_memory"),
    ok = filelib:ensure_dir(Link),
    ok = file:make_symlink(?HELP:root(), Link),
    Host.

%% Which application of the release each of the three modules is of, and what the host's caller of
%% them answers while the host runs.
released(Host) ->
    Ebins = filelib:wildcard(filename:join(Host, "_build/default/rel/my_host/lib/*/ebin")),
    Expression =
        "{ok, _} = application:ensure_all_started(my_host),"
        "Of = fun(M) -> filename:basename(filename:dirname(filename:dirname(code:which(M)))) end,"
        "Where = [Of(M) || M <- [" ++ lists:join(",", ?MODULES) ++ "]],"
        "io:format(\"~0p.\", [{Where, my_caller:run()}]), halt().",
    {Status, Said} = erl(lists:flatten(Expression), ["-pa" | Ebins]),
    Status =:= 0 orelse ct:fail("~ts", [Said]),
    {ok, Tokens, _} = erl_scan:string(Said),
    {ok, Term} = erl_parse:parse_term(Tokens),
    Term.

directory_of(Module, Path) ->
    {0, Said} = erl(
        "io:put_chars(filename:dirname(code:which(" ++ Module ++ "))), halt().", Path
    ),
    Said.

erl(Expression, Path) ->
    ?HELP:run("/", ["erl", "-noshell"] ++ Path ++ ["-eval", Expression], ?HELP:clean()).

answer() ->
    {initialized, undefined, true}.

%% Written before there was the project: its own three modules, and who calls them.
of_the_past() ->
    [
        {"erlmcp_memory_pool",
            "-module(erlmcp_memory_pool).\n"
            "-behaviour(gen_server).\n"
            "-export([start_link/0, acquire_connection_state/1, release_connection_state/1]).\n"
            "-export([init/1, handle_call/3, handle_cast/2]).\n"
            "start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).\n"
            "acquire_connection_state(State) -> gen_server:call(?MODULE, {acquire, State}).\n"
            "release_connection_state(Ref) -> gen_server:call(?MODULE, {release, Ref}).\n"
            "init([]) -> {ok, #{}}.\n"
            "handle_call({acquire, State}, _, Pool) ->\n"
            "    Ref = make_ref(),\n"
            "    {reply, {ok, Ref}, Pool#{Ref => State}};\n"
            "handle_call({release, Ref}, _, Pool) -> {reply, ok, maps:remove(Ref, Pool)}.\n"
            "handle_cast(_, Pool) -> {noreply, Pool}.\n"},
        {"erlmcp_connection_optimizer",
            "-module(erlmcp_connection_optimizer).\n"
            "-export([create_optimized_state/1, update_state_field/3, get_state_field/2]).\n"
            "create_optimized_state(Id) -> #{id => Id, phase => initialization}.\n"
            "update_state_field(State, Field, Value) -> State#{Field => Value}.\n"
            "get_state_field(State, Field) -> maps:get(Field, State, undefined).\n"},
        {"erlmcp_memory_profiler",
            "-module(erlmcp_memory_profiler).\n"
            "-export([memory_per_connection/1]).\n"
            "memory_per_connection(Count) ->\n"
            "    Bytes = erlang:memory(total) / Count,\n"
            "    {Bytes, Bytes / 1048576}.\n"},
        {"my_caller",
            "-module(my_caller).\n"
            "-export([run/0]).\n"
            "run() ->\n"
            "    {ok, Pooled} = erlmcp_memory_pool:acquire_connection_state(#{id => 1}),\n"
            "    true = is_reference(Pooled),\n"
            "    ok = erlmcp_memory_pool:release_connection_state(Pooled),\n"
            "    State0 = erlmcp_connection_optimizer:create_optimized_state(<<\"conn-1\">>),\n"
            "    State = erlmcp_connection_optimizer:update_state_field(\n"
            "        State0, phase, initialized),\n"
            "    {Bytes, Megabytes} = erlmcp_memory_profiler:memory_per_connection(10),\n"
            "    {erlmcp_connection_optimizer:get_state_field(State, phase),\n"
            "        erlmcp_connection_optimizer:get_state_field(State, transport),\n"
            "        Bytes > Megabytes}.\n"}
    ].
