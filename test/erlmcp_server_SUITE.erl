%% A server is a gen_server in all that its callback module, its clients and the logs see of it.
%% Each case runs under both, see erlmcp_server_help; the faults that are likely have cases of their
%% own in erlmcp_server_faults_SUITE.
-module(erlmcp_server_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_server_help).
-define(SCRIPT, erlmcp_server_script).
-define(S, erlmcp_memory_server).

-import(erlmcp_server_help, [
    twins/1, start/2, start/3, idle/2, told/0, down/1, exited/1
]).
-import(erlmcp_wait_help, [until/1]).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        outcomes_of_init,
        names_that_are_taken,
        returns_of_handle_call,
        returns_of_handle_cast,
        returns_of_handle_info,
        returns_of_handle_continue,
        returns_of_terminate,
        callbacks_that_are_not_there,
        continues_in_chains,
        integer_timeouts,
        timeouts_with_a_message,
        hibernation,
        exits_of_the_parent,
        exits_of_others,
        system_calls,
        states_that_are_replaced,
        code_that_is_changed,
        events_that_are_printed,
        formatted_states,
        processes_that_enter_the_loop,
        options,
        wrong_options,
        wrong_settings,
        plain_servers,
        replies_by_others,
        random_calls_agree_with_a_gen_server,
        the_releases_that_were_reviewed
    ].

init_per_suite(Config) ->
    ok = ?HELP:add_handler(),
    {ok, _} = application:ensure_all_started(stdlib),
    Config.

end_per_suite(_Config) ->
    ?HELP:remove_handler().

init_per_testcase(_Case, Config) ->
    Config.

end_per_testcase(_Case, _Config) ->
    %% It is removed where it fails, and then no report was compared.
    ?assertMatch({ok, _}, logger:get_handler_config(?HELP)),
    [
        application:unset_env(App, Key)
     || App <- [erlmcp, erlmcp_memory],
        Key <- [connection_state_compact, connection_idle_after, awake_memory_limit]
    ].

%%% Starts

outcomes_of_init(_Config) ->
    [
        twins(fun(Engine) -> started(Engine, Function, Name, Init) end)
     || Function <- [start, start_link, start_monitor],
        Name <- names(),
        Init <- [
            fun() -> {ok, s} end,
            fun() -> {ok, s, infinity} end,
            fun() -> {ok, s, 0} end,
            fun() -> {ok, s, hibernate} end,
            fun() -> {ok, s, {continue, c}} end,
            fun() -> {ok, s, {timeout, 0, m}} end,
            fun() -> {ok, s, -1} end,
            fun() -> {ok, s, infinity, more} end,
            fun() -> {stop, reason} end,
            fun() -> {stop, normal} end,
            fun() -> {stop, {shutdown, s}} end,
            fun() -> {error, reason} end,
            fun() -> ignore end,
            fun() -> neither end,
            fun() -> throw({ok, s}) end,
            fun() -> throw(neither) end,
            fun() -> exit(reason) end,
            fun() -> error(reason) end,
            fun() -> ?SCRIPT:no_such_function() end
        ]
    ].

names() ->
    [none, {local, erlmcp_named}, {global, erlmcp_named}, {via, global, erlmcp_named}].

started({Module, Options}, Function, Name, Init) ->
    Args = [?SCRIPT, Init, Options],
    Started = apply(Module, Function, [Name || Name =/= none] ++ Args),
    {init, Pid} = told(),
    Named =
        case Started of
            {ok, _} ->
                Who = whereis_name(Name),
                State = gen_server:call(Pid, get),
                Messages = ?HELP:messages(),
                ok = gen_server:stop(Pid),
                {Who =:= Pid, State, Messages};
            _ ->
                case erlang:system_info(otp_release) of
                    "25" when Function =:= start_link -> exited(Pid);
                    _ -> down(Pid)
                end,
                until(fun() -> whereis_name(Name) =:= undefined end)
        end,
    down(Pid),
    {Started, Named, [M || M <- ?HELP:messages(), is_told_or_logged(M)]}.

%% Links and monitors of a process that ends: in no order.
is_told_or_logged({log, _}) -> true;
is_told_or_logged({told, _}) -> true;
is_told_or_logged(_) -> false.

whereis_name(none) -> undefined;
whereis_name({local, Name}) -> whereis(Name);
whereis_name({global, Name}) -> global:whereis_name(Name);
whereis_name({via, Module, Name}) -> Module:whereis_name(Name).

names_that_are_taken(_Config) ->
    [
        twins(fun({Module, Options}) ->
            {ok, Pid} = Module:start_link(Name, ?SCRIPT, s, Options),
            Again = [
                Module:Function(Name, ?SCRIPT, s, Options)
             || Function <- [start, start_link, start_monitor]
            ],
            Expected = lists:duplicate(3, {error, {already_started, Pid}}),
            Called = [gen_server:call(To, get) || To <- [Pid, reference_to(Name)]],
            ok = gen_server:stop(reference_to(Name)),
            {Again =:= Expected, Called, exited(Pid)}
        end)
     || Name <- names(), Name =/= none
    ].

reference_to({local, Name}) -> Name;
reference_to(Name) -> Name.

%%% Returns

%% What a server does then: nothing that is seen, tell of another callback, end.
actions() ->
    Timed =
        case list_to_integer(erlang:system_info(otp_release)) >= 28 of
            true -> tells;
            false -> ends
        end,
    Now = erlang:monotonic_time(millisecond),
    [
        {infinity, quiet},
        {hibernate, quiet},
        {0, tells},
        {30, tells},
        {{continue, c}, tells},
        {-1, ends},
        {16#100000000, ends},
        {1.0, ends},
        {timeout, ends},
        {{continue, c, d}, ends},
        {{timeout, 0, m}, Timed},
        {{hibernate, 0, m}, Timed},
        {{timeout, 30, m}, Timed},
        {{hibernate, 30, {'$gen_cast', m}}, Timed},
        {{timeout, 30, m, []}, Timed},
        {{timeout, 30, m, {abs, false}}, Timed},
        {{timeout, Now - 1000, m, [{abs, false}, {abs, true}]}, Timed},
        {{timeout, Now + 30, m, {abs, true}}, Timed},
        {{timeout, -1, m}, ends},
        {{timeout, 30, m, [{abs, neither}]}, ends},
        {{other, 30, m}, ends}
    ].

common_returns() ->
    [{{noreply, new}, quiet}] ++
        [{{noreply, new, Action}, Then} || {Action, Then} <- actions()] ++
        [
            {{stop, Reason, new}, ends}
         || Reason <- [normal, shutdown, {shutdown, s}, reason, {error, [not_a_stack]}]
        ] ++
        [{Return, ends} || Return <- [neither, {noreply}, {ok, new}, {noreply, new, 1, 2}]].

returns_of_handle_call(_Config) ->
    Returns =
        [{{reply, r, new}, quiet}] ++
            [{{reply, r, new, Action}, Then} || {Action, Then} <- actions()] ++
            [
                {{stop, Reason, r, new}, ends}
             || Reason <- [normal, shutdown, {shutdown, s}, reason]
            ] ++ common_returns(),
    [
        twins(fun(Engine) -> returned(Engine, How, Return, Then, fun called/2) end)
     || How <- [return, throw], {Return, Then} <- Returns
    ],
    crashes(fun called/2).

returns_of_handle_cast(_Config) ->
    returns(fun(Server, Fun) -> gen_server:cast(Server, {do, Fun}) end).

returns_of_handle_info(_Config) ->
    returns(fun(Server, Fun) -> Server ! {do, Fun} end).

returns_of_handle_continue(_Config) ->
    returns(fun(Server, Fun) ->
        gen_server:cast(Server, {do, fun(State) -> {noreply, State, {continue, {do, Fun}}} end})
    end).

returns(Send) ->
    Sent = fun(Server, Fun) ->
        _ = Send(Server, Fun),
        sent
    end,
    [
        twins(fun(Engine) -> returned(Engine, How, Return, Then, Sent) end)
     || How <- [return, throw], {Return, Then} <- common_returns() ++ [{{reply, r, new}, ends}]
    ],
    crashes(Sent).

crashes(Send) ->
    [
        twins(fun(Engine) ->
            Server = start(Engine, old),
            ok = idle(Engine, Server),
            {Send(Server, Crash), exited(Server)}
        end)
     || Crash <- [
            fun(_) -> error(reason) end,
            fun(_) -> exit(reason) end,
            fun(_) -> exit(normal) end,
            fun(_) -> exit({shutdown, s}) end,
            fun(_) -> error(undef) end,
            fun(_) -> ?SCRIPT:no_such_function() end,
            fun(a) -> ok end
        ]
    ].

called(Server, Fun) when is_function(Fun, 1) ->
    called(Server, fun(_From, State) -> Fun(State) end);
called(Server, Fun) ->
    try
        gen_server:call(Server, {do, Fun}, 10000)
    catch
        exit:Reason -> {exit, Reason}
    end.

returned(Engine, How, Return, Then, Send) ->
    Server = start(Engine, old),
    ok = idle(Engine, Server),
    Fun = fun
        ({_, _} = From, _) when element(1, Return) =:= noreply ->
            gen_server:reply(From, r),
            how(How, Return);
        (_, _) ->
            how(How, Return)
    end,
    Sent =
        case erlang:fun_info(Send, name) =:= erlang:fun_info(fun called/2, name) of
            true -> Send(Server, Fun);
            false -> Send(Server, fun(_) -> how(How, Return) end)
        end,
    case Then of
        ends ->
            {Sent, exited(Server)};
        tells ->
            Told = told(),
            {Sent, Told, ended(Engine, Server)};
        quiet ->
            {Sent, ended(Engine, Server)}
    end.

how(return, Return) -> Return;
how(throw, Return) -> throw(Return).

ended(Engine, Server) ->
    State = gen_server:call(Server, get),
    ok = idle(Engine, Server),
    ok = gen_server:stop(Server),
    {State, told(), exited(Server)}.

returns_of_terminate(_Config) ->
    [
        twins(fun(Engine) ->
            Server = start(Engine, fun() ->
                process_flag(trap_exit, true),
                {ok, {at_end, End}}
            end),
            {init, Server} = told(),
            ok = idle(Engine, Server),
            Stopped =
                try
                    Stop(Server)
                catch
                    Class:Reason -> {Class, Reason}
                end,
            {Stopped, told(), exited(Server)}
        end)
     || End <- [
            fun() -> ok end,
            fun() -> throw(t) end,
            fun() -> exit(t) end,
            fun() -> error(t) end,
            fun() -> exit(normal) end
        ],
        Stop <- [
            fun(Server) -> gen_server:stop(Server) end,
            fun(Server) -> gen_server:stop(Server, reason, 10000) end,
            fun(Server) -> sys:terminate(Server, {shutdown, s}) end,
            fun(Server) -> called(Server, fun(_, State) -> {stop, reason, r, State} end) end,
            fun(Server) -> called(Server, fun(_, _) -> error(crash) end) end,
            fun(Server) -> exit(Server, reason) end
        ]
    ].

callbacks_that_are_not_there(_Config) ->
    Bare = ?SCRIPT:module(erlmcp_server_bare, [{init, 1}, {handle_call, 3}, {handle_cast, 2}]),
    Begin = fun({Module, Options} = Engine) ->
        {ok, Server} = Module:start_link(Bare, s, Options),
        ok = idle(Engine, Server),
        Server
    end,
    %% A warning, and it goes on.
    twins(fun(Engine) ->
        Server = Begin(Engine),
        Server ! hello,
        s = sys:get_state(Server),
        ok = idle(Engine, Server),
        r = called(Server, fun(_, State) -> {reply, r, State, 0} end),
        sys:get_state(Server)
    end),
    %% It ends.
    [
        twins(fun(Engine) ->
            Server = Begin(Engine),
            {Do(Server), exited(Server)}
        end)
     || Do <- [
            fun(Server) -> gen_server:call(Server, {reply, r, s, {continue, c}}) end,
            fun(Server) -> called(Server, fun(_, State) -> {stop, reason, State} end) end,
            fun(Server) -> gen_server:stop(Server) end
        ]
    ],
    twins(fun(Engine) ->
        Server = Begin(Engine),
        ok = sys:suspend(Server),
        Changed = sys:change_code(Server, Bare, 1, extra),
        ok = sys:resume(Server),
        ok = idle(Engine, Server),
        {Changed, sys:get_state(Server)}
    end).

continues_in_chains(_Config) ->
    twins(fun(Engine) ->
        Server = start(Engine, 0),
        ok = idle(Engine, Server),
        Chain = fun Chain(N) ->
            {do, fun(State) ->
                case N of
                    0 -> {noreply, State + 1, hibernate};
                    _ -> {noreply, State + 1, {continue, Chain(N - 1)}}
                end
            end}
        end,
        %% Before any message that was there.
        ok = sys:suspend(Server),
        gen_server:cast(Server, {do, fun(State) -> {noreply, State, {continue, Chain(5)}} end}),
        gen_server:cast(Server, second),
        ok = sys:resume(Server),
        {told(), ended(Engine, Server)}
    end).

%%% Timeouts: what comes first, not when

integer_timeouts(_Config) ->
    [
        twins(fun(Engine) ->
            Server = start(Engine, s),
            r = called(Server, fun(_, State) -> {reply, r, State, Time} end),
            case Time of
                100 ->
                    %% Parked meanwhile, where that is sooner.
                    told();
                _ ->
                    %% A message cancels it, a foreign one of its name is nothing special.
                    Server ! timeout,
                    Server ! another,
                    {told(), told(), ended(Engine, Server)}
            end
        end)
     || Time <- [100, 100000]
    ],
    %% A message that waits wins over a timeout that is over.
    twins(fun(Engine) ->
        Server = start(Engine, s),
        ok = sys:suspend(Server),
        gen_server:cast(Server, {do, fun(State) -> {noreply, State, 0} end}),
        gen_server:cast(Server, waits),
        ok = sys:resume(Server),
        {told(), gen_server:call(Server, get), ended(Engine, Server)}
    end).

timeouts_with_a_message(_Config) ->
    case list_to_integer(erlang:system_info(otp_release)) >= 28 of
        false -> {skip, "OTP 28 and later have them"};
        true -> timed_actions()
    end.

timed_actions() ->
    Set = fun(Server, Action) ->
        r = called(Server, fun(_, State) -> {reply, r, State, Action} end)
    end,
    [
        twins(fun(Engine) ->
            Server = start(Engine, s),
            ok = idle(Engine, Server),
            %% System messages leave it alone, others cancel it.
            Set(Server, {Kind, 150, first}),
            s = sys:get_state(Server),
            ok = sys:suspend(Server),
            ok = sys:resume(Server),
            First = told(),
            Set(Server, {Kind, 100000, second}),
            ok = idle(Engine, Server),
            s = gen_server:call(Server, get),
            Set(Server, {Kind, infinity, third}),
            ok = idle(Engine, Server),
            %% Expired while it was suspended: before what came later.
            Set(Server, {Kind, 20, fourth}),
            ok = sys:suspend(Server),
            until(fun() -> process_info(Server, message_queue_len) =:= {message_queue_len, 1} end),
            Server ! fifth,
            ok = sys:resume(Server),
            Fourth = [told(), told()],
            %% Expired, but overtaken: never delivered.
            ok = sys:suspend(Server),
            gen_server:cast(Server, {do, fun(State) -> {noreply, State, {Kind, 20, sixth}} end}),
            Server ! {do, fun(State) -> timer:sleep(100), {noreply, State} end},
            ok = sys:resume(Server),
            {First, Fourth, ended(Engine, Server)}
        end)
     || Kind <- [timeout, hibernate]
    ].

hibernation(_Config) ->
    twins(fun(Engine) ->
        Server = start(Engine, lists:seq(1, 1000)),
        [
            begin
                r = called(Server, fun(_, State) -> {reply, r, [N | State], hibernate} end),
                _ = N rem 2 =:= 0 andalso idle(Engine, Server),
                _ = N rem 3 =:= 0 andalso sys:get_state(Server),
                N rem 5 =:= 0 andalso erlang:garbage_collect(Server)
            end
         || N <- lists:seq(1, 20)
        ],
        ended(Engine, Server)
    end).

%%% Exits

%% In which a server is met: what is done before.
conditions() ->
    [
        fun(_Engine, _Server) -> ok end,
        fun(Engine, Server) -> idle(Engine, Server) end,
        fun(_Engine, Server) ->
            r = called(Server, fun(_, State) -> {reply, r, State, hibernate} end),
            until(fun() -> process_info(Server, status) =:= {status, waiting} end)
        end,
        fun(_Engine, Server) -> sys:suspend(Server) end,
        fun(Engine, Server) ->
            ok = idle(Engine, Server),
            sys:suspend(Server)
        end,
        fun(_Engine, Server) ->
            r = called(Server, fun(_, State) -> {reply, r, State, 100000} end),
            ok
        end
    ].

exits_of_the_parent(_Config) ->
    [
        twins(fun(Engine) ->
            Server = start(Engine, fun() ->
                process_flag(trap_exit, Traps),
                {ok, state}
            end),
            {init, Server} = told(),
            ok = Condition(Engine, Server),
            exit(Server, Reason),
            exited(Server)
        end)
     || Traps <- [true, false],
        Reason <- [shutdown, reason, {shutdown, s}, kill],
        Condition <- conditions()
    ],
    %% Not the parent's: a message.
    twins(fun(Engine) ->
        Server = start(Engine, fun() ->
            process_flag(trap_exit, true),
            {ok, state}
        end),
        {init, Server} = told(),
        ok = idle(Engine, Server),
        spawn(fun() -> exit(Server, shutdown) end),
        {told(), ended(Engine, Server)}
    end).

exits_of_others(_Config) ->
    [
        twins(fun(Engine) ->
            Self = self(),
            Server = start(Engine, fun() ->
                process_flag(trap_exit, Traps),
                Linked = spawn_link(fun() -> receive R -> exit(R) end end),
                Watched = spawn(fun() -> receive R -> exit(R) end end),
                _ = monitor(process, Watched),
                Self ! {others, Linked, Watched},
                {ok, state}
            end),
            {init, Server} = told(),
            {Linked, Watched} = receive {others, L, W} -> {L, W} end,
            ok = idle(Engine, Server),
            Watched ! gone,
            Down = told(),
            ok = idle(Engine, Server),
            Linked ! gone,
            case Traps of
                true -> {Down, told(), ended(Engine, Server)};
                false -> {Down, exited(Server)}
            end
        end)
     || Traps <- [true, false]
    ].

%%% System messages

system_calls(_Config) ->
    [
        twins(fun(Engine) ->
            Server = start(Engine, state, [{debug, [{log, 100}]}]),
            ok = Condition(Engine, Server),
            Suspend = fun() ->
                ok = sys:suspend(Server),
                %% It is not served until it is resumed.
                gen_server:cast(Server, waits),
                {messages, [{'$gen_cast', waits}]} = process_info(Server, messages),
                ok = sys:resume(Server),
                told()
            end,
            Seen = [
                Suspend(),
                sys:get_state(Server),
                sys:get_status(Server),
                sys:statistics(Server, true),
                sys:install(Server, {fun(S, Event, _) -> self() ! {S, Event}, done end, seen}),
                called(Server, fun(_, State) -> {reply, r, State} end),
                element(2, sys:statistics(Server, get)),
                sys:log(Server, get),
                sys:log(Server, false),
                sys:no_debug(Server),
                idle(Engine, Server),
                sys:get_status(Server),
                sys:get_state(Server),
                sys:change_code(Server, ?SCRIPT, 1, extra),
                sys:terminate(Server, reason),
                exited(Server)
            ],
            [sorted(S) || S <- Seen]
        end)
     || Condition <- conditions()
    ].

%% Statistics count reductions.
sorted([{start_time, _} | _] = Statistics) -> [S || {K, _} = S <- Statistics, is_count(K)];
sorted(Term) -> Term.

is_count(Key) -> lists:member(Key, [messages_in, messages_out]).

states_that_are_replaced(_Config) ->
    [
        twins(fun(Engine) ->
            Server = start(Engine, old),
            ok = Condition(Engine, Server),
            New = sys:replace_state(Server, fun(old) -> {new, 1} end),
            Same = sys:replace_state(Server, fun(State) -> State end),
            Failed = [
                try
                    sys:replace_state(Server, Fun)
                catch
                    error:{callback_failed, Where, What} -> {element(2, Where), What}
                end
             || Fun <- [fun(_) -> exit(e) end, fun(_) -> error(e) end, fun(_) -> throw(e) end]
            ],
            Got = sys:get_state(Server),
            ok = sys:resume(Server),
            {New, Same, Failed, Got, ended(Engine, Server)}
        end)
     || Condition <- conditions()
    ].

code_that_is_changed(_Config) ->
    Changes = [
        extra,
        {do, fun(_) -> {error, e} end},
        {do, fun(_) -> neither end},
        {do, fun(_) -> throw({ok, thrown}) end},
        {do, fun(_) -> throw(e) end},
        {do, fun(_) -> exit(e) end},
        {do, fun(S) -> {ok, S} end}
    ],
    [
        twins(fun(Engine) ->
            Server = start(Engine, old),
            ok = Condition(Engine, Server),
            ok = sys:suspend(Server),
            Changed = sys:change_code(Server, ?SCRIPT, {down, 1}, Change),
            Suspended = sys:get_state(Server),
            ok = sys:resume(Server),
            {Changed, Suspended, told(), ended(Engine, Server)}
        end)
     || Condition <- conditions(), Change <- Changes
    ],
    twins(fun(Engine) ->
        Server = start(Engine, old),
        ok = sys:suspend(Server),
        {error, {'EXIT', {e, _}}} =
            sys:change_code(Server, ?SCRIPT, 1, {do, fun(_) -> error(e) end}),
        ok = sys:resume(Server),
        {told(), ended(Engine, Server)}
    end).

events_that_are_printed(Config) ->
    twins(fun({Module, Options} = Engine) ->
        File = filename:join(proplists:get_value(priv_dir, Config), "events"),
        {ok, Server} = Module:start_link(
            {local, erlmcp_printed}, ?SCRIPT, s, [{debug, [{log_to_file, File}]} | Options]
        ),
        ok = idle(Engine, Server),
        r = called(Server, fun(_, State) -> {reply, r, State, {continue, c}} end),
        c = element(2, told()),
        gen_server:cast(Server, cast),
        Server ! info,
        _ = [told(), told()],
        ok = idle(Engine, Server),
        _ = called(Server, fun(From, State) ->
            gen_server:reply(From, r),
            {noreply, State, 0}
        end),
        _ = told(),
        ok = gen_server:stop(Server),
        {ok, Text} = file:read_file(File),
        re:replace(Text, "(<[0-9.]+>|#Ref<[0-9.]+>|#Fun<[^>]*>)", "x", [global, {return, binary}])
    end).

formatted_states(_Config) ->
    Callbacks = [
        {init, 1}, {handle_call, 3}, {handle_cast, 2}, {handle_info, 2}, {handle_continue, 2},
        {terminate, 2}
    ],
    Forms = [
        {erlmcp_status_1, "format_status(S) -> maps:map(fun(K, V) -> {K, V} end, S). "},
        {erlmcp_status_2, "format_status(O, [_, S]) -> {O, S}. "},
        {erlmcp_status_l, "format_status(O, [_, S]) -> [{data, [{\"State\", {O, S}}]}]. "},
        {erlmcp_status_e, "format_status(_) -> error(e). "},
        {erlmcp_status_f, "format_status(_, _) -> error(e). "},
        {erlmcp_status_n, "format_status(_) -> no_map. "},
        {erlmcp_status_m, "format_status(S) -> S#{more => 1}. "},
        {erlmcp_status_0, ""}
    ],
    [
        begin
            Name = ?SCRIPT:module(Name, Callbacks, Text),
            [
                twins(fun({Module, Options} = Engine) ->
                    {ok, Server} = Module:start_link(Name, old, [{debug, [log]} | Options]),
                    gen_server:cast(Server, first),
                    _ = told(),
                    r = called(Server, fun(_, State) -> {reply, r, State} end),
                    ok = Condition(Engine, Server),
                    Status = sys:get_status(Server),
                    ok = sys:resume(Server),
                    {called(Server, fun(_, _) -> error(crash) end), Status, exited(Server)}
                end)
             || Condition <- conditions()
            ]
        end
     || {Name, Text} <- Forms
    ].

%%% Other ways to be a server

processes_that_enter_the_loop(_Config) ->
    Names = [
        {none, fun(_) -> ok end},
        {{local, erlmcp_named}, fun(_) -> register(erlmcp_named, self()) end},
        {{local, erlmcp_named}, fun(_) -> ok end},
        {{global, erlmcp_named}, fun(_) -> global:register_name(erlmcp_named, self()) end},
        {{global, erlmcp_named}, fun(_) -> ok end},
        {{via, global, erlmcp_named}, fun(_) -> global:register_name(erlmcp_named, self()) end},
        {self, fun(_) -> ok end}
    ],
    Actions = [none, infinity, hibernate, 0, 30, {continue, c}, bad, -1, {timeout, 0, m}],
    [
        twins(fun({Module, Options} = Engine) ->
            {ok, Server} = proc_lib:start_link(?MODULE, enter, [Module, Options, Name, Do, Action]),
            case told_or_exit(Server, Action) of
                {exit, Reason} -> {exit, element(1, {Reason})};
                Told -> {Told, ended(Engine, Server)}
            end
        end)
     || {Name, Do} <- Names, Action <- Actions
    ],
    %% Not by proc_lib.
    twins(fun({Module, Options}) ->
        Server = spawn_link(fun() -> Module:enter_loop(?SCRIPT, Options, s) end),
        exited(Server)
    end).

enter(Module, Options, Name, Do, Action) ->
    Do(self()),
    proc_lib:init_ack({ok, self()}),
    case {Name, Action} of
        {none, none} -> Module:enter_loop(?SCRIPT, Options, s);
        {none, _} -> Module:enter_loop(?SCRIPT, Options, s, Action);
        {self, none} -> Module:enter_loop(?SCRIPT, Options, s, self());
        {self, _} -> Module:enter_loop(?SCRIPT, Options, s, self(), Action);
        {_, none} -> Module:enter_loop(?SCRIPT, Options, s, Name);
        {_, _} -> Module:enter_loop(?SCRIPT, Options, s, Name, Action)
    end.

told_or_exit(Server, Action) ->
    Quiet = lists:member(Action, [none, infinity, hibernate]),
    Known = Quiet andalso catch_exit(fun() -> gen_server:call(Server, get) end),
    receive
        {'EXIT', Server, Reason} -> {exit, Reason};
        {told, What} -> What
    after case Quiet andalso Known =:= s of true -> 0; false -> 30000 end ->
        Known
    end.

options(_Config) ->
    %% An init that takes too long.
    twins(fun({Module, Options}) ->
        Slow = fun() -> timer:sleep(infinity) end,
        [
            begin
                Started = Module:Function(?SCRIPT, Slow, [{timeout, 30} | Options]),
                {init, Pid} = told(),
                down(Pid),
                Started
            end
         || Function <- [start, start_monitor]
        ]
    end),
    twins(fun({Module, Options}) ->
        {ok, Server} = Module:start(?SCRIPT, s, [{debug, no_options} | Options]),
        gen_server:stop(Server)
    end),
    twins(fun({Module, Options} = Engine) ->
        {ok, Server} = Module:start_link(?SCRIPT, s, [
            {spawn_opt, [{priority, high}, {min_heap_size, 5000}, {max_heap_size, 10000000}]}
            | Options
        ]),
        ok = idle(Engine, Server),
        {process_info(Server, [priority, max_heap_size, dictionary, links, group_leader]),
            proc_lib:initial_call(Server), ended(Engine, Server)}
    end),
    %% It counts where ours does not.
    {ok, Server} = ?S:start_link(?SCRIPT, s, [{idle_after, infinity}, {hibernate_after, 0}]),
    until(fun() ->
        process_info(Server, current_function) =:= {current_function, {erlang, hibernate, 3}}
    end),
    ?assert(erlmcp_memory_nif:awake_bytes() > 0),
    ?assertEqual(s, gen_server:call(Server, get)),
    ok = gen_server:stop(Server).

wrong_options(_Config) ->
    [
        ?assertError(badarg, apply(?S, Function, Name ++ [?SCRIPT, s, [{idle_after, Wrong}]]))
     || Function <- [start, start_link, start_monitor],
        Name <- [[], [{local, erlmcp_named}]],
        Wrong <- [-1, 1.0, "1", undefined, 1 bsl 32]
    ],
    [
        twins(fun({Module, _}) ->
            try
                apply(Module, start, Args)
            catch
                Class:Reason -> {Class, Reason}
            end
        end)
     || Args <- [[?SCRIPT, s, not_a_list], [named, ?SCRIPT, s, []], [?SCRIPT, s, [a | b]]]
    ],
    try
        ?S:start(?SCRIPT, s, [{idle_after, -1}])
    catch
        error:badarg:Stack ->
            ?assertMatch([{?S, start, [?SCRIPT, s, [_]], _} | _], Stack),
            #{3 := Text} = erlmcp_memory_error:format_error(badarg, Stack),
            ?assertMatch({match, _}, re:run(Text, "idle_after"))
    end.

wrong_settings(_Config) ->
    [
        begin
            application:set_env(App, Key, Wrong),
            ?assertEqual(
                {error, {invalid_config, Key, Wrong}}, ?S:Function(?SCRIPT, s, [])
            ),
            {_, Monitor} = spawn_monitor(fun() -> ?S:enter_loop(?SCRIPT, [], s) end),
            receive
                {'DOWN', Monitor, _, _, Reason} ->
                    ?assertMatch({{invalid_config, Key, Wrong}, _}, Reason)
            end,
            application:unset_env(App, Key)
        end
     || App <- [erlmcp, erlmcp_memory],
        Function <- [start, start_link, start_monitor],
        {Key, Wrongs} <- [
            {connection_state_compact, ["false", 1, undefined]},
            {connection_idle_after, [-1, 1.0, "1000", undefined, 1 bsl 32]},
            {awake_memory_limit, [-1, 1.0, "1", undefined, infinity, 1 bsl 63]}
        ],
        Wrong <- Wrongs
    ],
    %% One that becomes wrong while servers run changes nothing for them.
    {ok, Server} = ?S:start_link(?SCRIPT, s, [{idle_after, 0}]),
    application:set_env(erlmcp, awake_memory_limit, wrong),
    [
        begin
            ?HELP:parked(Server),
            ?assertEqual(s, gen_server:call(Server, get))
        end
     || _ <- [1, 2]
    ],
    application:unset_env(erlmcp, awake_memory_limit),
    %% In force at the next start.
    application:set_env(erlmcp, connection_idle_after, 0),
    {ok, Soon} = ?S:start_link(?SCRIPT, s, []),
    ?HELP:parked(Soon),
    [ok = gen_server:stop(Pid) || Pid <- [Server, Soon]].

plain_servers(_Config) ->
    application:set_env(erlmcp, connection_state_compact, false),
    application:set_env(erlmcp, connection_idle_after, 0),
    {ok, ByStart} = ?S:start_link(?SCRIPT, s, []),
    {ok, ByOption} = ?S:start_link(?SCRIPT, s, [{idle_after, 10}]),
    {ok, {Monitored, _}} = ?S:start_monitor({local, erlmcp_named}, ?SCRIPT, s, []),
    {ok, Entered} = proc_lib:start_link(?MODULE, enter, [?S, [], none, fun(_) -> ok end, none]),
    [
        begin
            ?assertMatch({status, Pid, {module, gen_server}, _}, sys:get_status(Pid)),
            until(fun() ->
                case process_info(Pid, current_function) of
                    {_, {erlang, hibernate, 3}} -> true;
                    %% OTP 28 and later.
                    {_, {erlang, hibernate, 0}} -> true;
                    {_, {gen_server, loop_hibernate, 4}} -> true;
                    _ -> false
                end
            end),
            ok = gen_server:stop(Pid)
        end
     || Pid <- [ByStart, ByOption, Monitored, Entered]
    ].

replies_by_others(_Config) ->
    twins(fun({Module, Options} = Engine) ->
        {ok, Server} = Module:start_link({local, erlmcp_named}, ?SCRIPT, s, Options),
        ok = idle(Engine, Server),
        Request = gen_server:send_request(Server, get),
        {reply, s} = gen_server:wait_response(Request, 30000),
        ok = idle(Engine, Server),
        Multi = gen_server:multi_call([node()], erlmcp_named, get),
        abcast = gen_server:abcast([node()], erlmcp_named, cast),
        Cast = told(),
        %% A later message replies; then another process.
        Self = self(),
        Later = gen_server:send_request(
            Server, {do, fun(From, _) -> {noreply, {keeps, From}} end}
        ),
        ok = idle(Engine, Server),
        Server ! {do, fun({keeps, From}) ->
            gen_server:reply(From, later),
            Self ! done,
            {noreply, s}
        end},
        {reply, later} = gen_server:receive_response(Later, 30000),
        receive done -> ok end,
        Other = called(Server, fun(From, State) ->
            spawn(fun() -> gen_server:reply(From, other) end),
            {noreply, State}
        end),
        %% A reply to who does not wait any more is dropped.
        timeout = element(1, element(2, catch_exit(fun() ->
            gen_server:call(Server, {do, fun(From, _) -> {noreply, {keeps, From}} end}, 10)
        end))),
        ok = idle(Engine, Server),
        Server ! {do, fun({keeps, From}) ->
            gen_server:reply(From, too_late),
            {noreply, s}
        end},
        {Multi, Cast, Other, ended(Engine, Server)}
    end).

catch_exit(Fun) ->
    try
        Fun()
    catch
        exit:Reason -> {exit, Reason}
    end.

%%% A property

random_calls_agree_with_a_gen_server(_Config) ->
    case code:which(proper) of
        non_existing -> {skip, "PropEr is not installed"};
        _ -> ?assert(erlmcp_server_prop:check())
    end.

%%% Releases

%% On a newer release: read what changed in gen, gen_server, gen_statem, sys and proc_lib since the
%% last one here, do the same in the engines, and add the release.
the_releases_that_were_reviewed(_Config) ->
    Release = list_to_integer(erlang:system_info(otp_release)),
    ?assert(lists:member(Release, erlmcp_memory_server_action:reviewed())),
    %% What the engines use of gen is there.
    [
        ?assert(erlang:function_exported(gen, Function, Arity), {Function, Arity})
     || {module, gen} <- [code:ensure_loaded(gen)],
        {Function, Arity} <- [
            {start, 5},
            {start, 6},
            {name, 1},
            {get_proc_name, 1},
            {get_parent, 0},
            {debug_options, 2},
            {hibernate_after, 1},
            {format_status, 4},
            {format_status_header, 2},
            {reply, 2}
        ]
    ].
