%% A random sequence of calls, casts, messages, timeouts, continues, hibernations, suspensions,
%% replacements and upgrades has a server tell and reply what a gen_server does, whatever its idle
%% time and however full the node is.
%%
%% PropEr's header is not used, see erlmcp_pool_prop.
-module(erlmcp_server_prop).

-import(proper_types, [any/0, frequency/1, integer/0, list/1, oneof/1, range/2]).

-export([check/0]).

-define(HELP, erlmcp_server_help).
-define(SCRIPT, erlmcp_server_script).

check() ->
    Options = [{numtests, 100}, {max_size, 30}, {to_file, user}, quiet],
    try
        proper:quickcheck(agrees_with_gen_server(), Options)
    after
        application:unset_env(erlmcp, awake_memory_limit)
    end.

agrees_with_gen_server() ->
    proper:forall(
        {oneof([infinity, 0, 1, 5]), oneof([0, 3000, 1 bsl 40]), list(command())},
        fun({IdleAfter, Limit, Commands}) ->
            application:set_env(erlmcp, awake_memory_limit, Limit),
            [Expected, Found] = [
                ?HELP:run(Engine, fun(E) -> driven(E, Commands) end)
             || Engine <- [
                    {gen_server, []}, {erlmcp_memory_server, [{idle_after, IdleAfter}]}
                ]
            ],
            Expected =:= Found orelse
                begin
                    io:format(user, "~ts~n~ts~n", [?HELP:show(Expected), ?HELP:show(Found)]),
                    false
                end
        end
    ).

command() ->
    frequency([
        {4, {call, change(), action()}},
        {2, {cast, change(), action()}},
        {2, {info, change(), action()}},
        {1, {later, change(), action()}},
        {1, {throw, change(), action()}},
        {3, {pause, range(0, 8)}},
        {1, state},
        {1, status},
        {1, {replace, change()}},
        {1, replace_fails},
        {1, {suspended, list({cast, change(), action()})}},
        {1, {upgrade, change()}},
        {1, upgrade_fails},
        {1, collect}
    ]).

change() ->
    frequency([{3, keep}, {2, {put, any()}}, {2, {add, integer()}}, {1, grow}]).

action() ->
    frequency([
        {4, none},
        {1, infinity},
        {2, hibernate},
        {1, 0},
        {2, {timeout, range(1, 15)}},
        {1, 1000000},
        {2, {continue, change()}}
    ]).

%% What came of each command, then how it ended.
driven(Engine, Commands) ->
    Server = ?HELP:start(Engine, {0, [], large}),
    Done = [{Command, do(Command, Server)} || Command <- Commands],
    State = gen_server:call(Server, get, 30000),
    ok = gen_server:stop(Server),
    {Done, State, ?HELP:told(), ?HELP:exited(Server)}.

do({call, Change, Action}, Server) ->
    Fun = fun(_, State) -> with(Action, {reply, State, changed(Change, State)}) end,
    Reply = gen_server:call(Server, {do, Fun}, 30000),
    {Reply, follow(Action, Server)};
do({throw, Change, Action}, Server) ->
    Fun = fun(_, State) -> throw(with(Action, {reply, State, changed(Change, State)})) end,
    Reply = gen_server:call(Server, {do, Fun}, 30000),
    {Reply, follow(Action, Server)};
do({later, Change, Action}, Server) ->
    Fun = fun(From, State) ->
        gen_server:reply(From, State),
        with(Action, {noreply, changed(Change, State)})
    end,
    Reply = gen_server:call(Server, {do, Fun}, 30000),
    {Reply, follow(Action, Server)};
do({cast, Change, Action}, Server) ->
    Fun = fun(State) -> with(Action, {noreply, changed(Change, State)}) end,
    gen_server:cast(Server, {do, Fun}),
    follow(Action, Server);
do({info, Change, Action}, Server) ->
    Server ! {do, fun(State) -> with(Action, {noreply, changed(Change, State)}) end},
    follow(Action, Server);
do({pause, Ms}, _Server) ->
    timer:sleep(Ms);
do(state, Server) ->
    sys:get_state(Server, 30000);
do(status, Server) ->
    sys:get_status(Server, 30000);
do({replace, Change}, Server) ->
    sys:replace_state(Server, fun(State) -> changed(Change, State) end, 30000);
do(replace_fails, Server) ->
    try
        sys:replace_state(Server, fun(_) -> error(reason) end, 30000)
    catch
        error:{callback_failed, _, What} -> What
    end;
do({suspended, Casts}, Server) ->
    ok = sys:suspend(Server, 30000),
    [
        gen_server:cast(
            Server, {do, fun(State) -> with(quiet(Action), {noreply, changed(Change, State)}) end}
        )
     || {cast, Change, Action} <- Casts
    ],
    ok = sys:resume(Server, 30000),
    gen_server:call(Server, get, 30000);
do({upgrade, Change}, Server) ->
    ok = sys:suspend(Server, 30000),
    Changed = sys:change_code(
        Server, ?SCRIPT, 1, {do, fun(State) -> {ok, changed(Change, State)} end}, 30000
    ),
    ok = sys:resume(Server, 30000),
    {Changed, ?HELP:told()};
do(upgrade_fails, Server) ->
    ok = sys:suspend(Server, 30000),
    Failed = sys:change_code(Server, ?SCRIPT, 1, {do, fun(_) -> failed end}, 30000),
    ok = sys:resume(Server, 30000),
    {Failed, ?HELP:told()};
do(collect, Server) ->
    erlang:garbage_collect(Server).

%% A timeout is waited for, as another command would cancel it; with none, a call is a fence.
follow({timeout, _}, _Server) -> ?HELP:told();
follow(0, _Server) -> ?HELP:told();
follow(_Action, _Server) -> none.

%% With other messages behind it, whether a timeout comes is a matter of time.
quiet({timeout, _}) -> none;
quiet(0) -> none;
quiet(Action) -> Action.

with(none, Return) ->
    Return;
with({timeout, Ms}, Return) ->
    erlang:append_element(Return, Ms);
with({continue, Change}, Return) ->
    Continue = {do, fun(State) -> {noreply, changed(Change, State)} end},
    erlang:append_element(Return, {continue, Continue});
with(Action, Return) ->
    erlang:append_element(Return, Action).

changed(keep, State) -> State;
changed({put, Term}, {N, _, Part}) -> {N, Term, Part};
changed({add, More}, {N, Term, Part}) -> {N + More, Term, Part};
changed(grow, {N, Term, _}) -> {N, Term, lists:seq(1, 500)}.
