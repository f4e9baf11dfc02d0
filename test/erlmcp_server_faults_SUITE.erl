%% What goes wrong easily where a server's state is parked. Each case is named after the fault.
-module(erlmcp_server_faults_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(HELP, erlmcp_server_help).
-define(SCRIPT, erlmcp_server_script).
-define(S, erlmcp_memory_server).
-define(LOOP, erlmcp_memory_server_loop).
-define(NIF, erlmcp_memory_nif).

-import(erlmcp_server_help, [
    twins/1, start/2, start/3, idle/2, parked/1, hibernates/1, told/0, down/1, exited/1
]).
-import(erlmcp_server_SUITE, [called/2, catch_exit/1]).
-import(erlmcp_wait_help, [until/1]).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        reply_before_terminate,
        parent_lost_at_wake,
        exit_ignored_while_parked,
        suspended_server_spins,
        events_forgotten_by_parking,
        stray_timeout_eaten,
        timeout_not_restarted_by_system_messages,
        timeout_restarted_by_parking,
        expired_timer_delivered_late,
        messages_of_parking_seen_by_a_callback,
        code_on_the_stack_while_it_waits,
        code_on_the_stack_in_a_callback,
        old_loop_shape_refused,
        crash_report_lost_by_hibernation,
        state_kept_alive_on_the_heap,
        yield_between_unparking_and_parking,
        idle_servers_queue_for_parking,
        idle_servers_park_in_step,
        count_wrong_after_kills,
        gate_deadlocks,
        gate_lets_all_wake_at_once,
        broadcast_wakes_all_at_once,
        change_taken_for_equality,
        clean_state_packed_again,
        state_that_cannot_be_parked_tried_again,
        refusals_flood_the_log,
        throw_taken_for_a_crash,
        error_of_init_reported,
        undef_deep_inside_taken_for_absence,
        name_left_after_failed_init,
        wrong_last_message_or_client,
        format_status_given_the_reference,
        failed_replacement_loses_the_state,
        refused_replacement_loses_the_state,
        reply_to_who_does_not_wait,
        dictionary_has_keys_of_ours,
        parked_before_acknowledgement,
        parked_before_continue,
        looking_unparks_for_long,
        upgrade_keeps_what_it_looked_at,
        more_than_a_hibernated_server,
        moving_seen_by_a_callback,
        too_long_a_wait_over_the_limit
    ].

init_per_suite(Config) ->
    ok = ?HELP:add_handler(),
    Config.

end_per_suite(_Config) ->
    ?HELP:remove_handler().

init_per_testcase(_Case, Config) ->
    process_flag(trap_exit, true),
    Config.

end_per_testcase(_Case, _Config) ->
    [
        application:unset_env(erlmcp, Key)
     || Key <- [connection_idle_after, awake_memory_limit]
    ],
    %% Whatever was killed: nothing is awake.
    [exit(Pid, kill) || Pid <- processes(), is_server(Pid)],
    until(fun() -> ?NIF:awake_bytes() =:= 0 end).

is_server(Pid) ->
    case process_info(Pid, dictionary) of
        {dictionary, Dictionary} ->
            {?SCRIPT, init, 1} =:= proplists:get_value('$initial_call', Dictionary);
        undefined ->
            false
    end.

%% A server that parks at once, and is parked.
parked_server(State) ->
    Server = start(engine(0), State),
    ok = parked(Server),
    Server.

engine(IdleAfter) ->
    {?S, [{idle_after, IdleAfter}]}.

%% Some 200 KB on a heap.
large() ->
    [{tool, N, #{name => integer_to_binary(N), schema => [N, {n, N}]}} || N <- lists:seq(1, 1500)].

crowd() ->
    application:set_env(erlmcp, awake_memory_limit, 0).

%%% 1 to 5

reply_before_terminate(_Config) ->
    Server = parked_server(s),
    Request = gen_server:send_request(
        Server, {do, fun(_, _) -> {stop, normal, r, {at_end, fun() -> waits(go) end}} end}
    ),
    {terminate, normal, _} = told(),
    ?assertEqual(timeout, gen_server:wait_response(Request, 50)),
    Server ! go,
    ?assertEqual({reply, r}, gen_server:wait_response(Request, 30000)),
    ?assertEqual(normal, exited(Server)).

waits(For) ->
    receive
        For -> ok
    after 30000 -> error({missing, For})
    end.

parent_lost_at_wake(_Config) ->
    [
        begin
            {ok, Server} = ?S:Start(?SCRIPT, s, [{idle_after, 0}]),
            ok = parked(Server),
            s = gen_server:call(Server, get),
            ok = parked(Server),
            {status, Server, _, [_, running, Parent | _]} = sys:get_status(Server),
            ?assertEqual(
                case Start of
                    start -> Server;
                    start_link -> self()
                end,
                Parent
            ),
            ok = gen_server:stop(Server)
        end
     || Start <- [start, start_link]
    ].

exit_ignored_while_parked(_Config) ->
    Server = start(engine(0), fun() ->
        process_flag(trap_exit, true),
        {ok, large()}
    end),
    {init, Server} = told(),
    ok = parked(Server),
    exit(Server, shutdown),
    {terminate, shutdown, State} = told(),
    ?assert(State =:= large()),
    ?assertEqual(shutdown, exited(Server)).

suspended_server_spins(_Config) ->
    Server = parked_server(s),
    ok = sys:suspend(Server),
    gen_server:cast(Server, waits),
    {reductions, Before} = process_info(Server, reductions),
    %% As long as it takes to run many others.
    _ = [erlang:yield() || _ <- lists:seq(1, 100000)],
    {reductions, After} = process_info(Server, reductions),
    ?assert(After - Before < 100),
    ok = sys:resume(Server),
    ?assertEqual({cast, waits, s}, told()).

events_forgotten_by_parking(_Config) ->
    Server = start(engine(0), s, [{debug, [{log, 10}, statistics]}]),
    [
        begin
            ok = parked(Server),
            gen_server:cast(Server, N),
            {cast, N, s} = told()
        end
     || N <- [1, 2, 3]
    ],
    ok = parked(Server),
    {ok, Events} = sys:log(Server, get),
    ?assertEqual(
        [{'$gen_cast', 1}, {'$gen_cast', 2}, {'$gen_cast', 3}], [M || {in, M} <- Events]
    ),
    {ok, Statistics} = sys:statistics(Server, get),
    ?assertEqual(3, proplists:get_value(messages_in, Statistics)).

%%% Timeouts

stray_timeout_eaten(_Config) ->
    Server = parked_server(s),
    Server ! timeout,
    ?assertEqual({info, timeout, s}, told()),
    ok = parked(Server),
    Server ! {timeout, make_ref(), make_ref()},
    ?assertMatch({info, {timeout, _, _}, s}, told()),
    Server ! {timeout, make_ref(), erlmcp_memory_server},
    ?assertMatch({info, {timeout, _, erlmcp_memory_server}, s}, told()).

%% The second of two servers gets its timeout first when the first one is asked again and again.
timeout_not_restarted_by_system_messages(_Config) ->
    [
        begin
            Asked = start(engine(IdleAfter), asked),
            Alone = start(engine(IdleAfter), alone),
            [
                r = called(Server, fun(_, State) -> {reply, r, State, 1000} end)
             || Server <- [Asked, Alone]
            ],
            ?assertEqual(alone, asked_until_told(Asked, 0)),
            {info, timeout, asked} = told()
        end
     || IdleAfter <- [infinity, 0, 20]
    ].

asked_until_told(Asked, Times) ->
    receive
        {told, {info, timeout, State}} when Times > 0 -> State
    after 20 ->
        asked = sys:get_state(Asked),
        asked_until_told(Asked, Times + 1)
    end.

%% It is parked meanwhile, or tries to be; its time goes on. It ends before that of a gen_server
%% whose time is longer, but not longer than the idle time and the whole once more.
timeout_restarted_by_parking(_Config) ->
    Plain = start({gen_server, []}, plain),
    Servers = [start(engine(IdleAfter), IdleAfter) || IdleAfter <- [0, 20, 1500]],
    Places = take_places(),
    [
        r = called(Server, fun(_, State) -> {reply, r, State, 2000} end)
     || Server <- Servers
    ],
    r = called(Plain, fun(_, State) -> {reply, r, State, 2900} end),
    %% It was awake to now, as there was no place.
    timer:sleep(100),
    [?NIF:slot_leave(Place) || Place <- Places],
    ?assertEqual([0, 20, 1500], lists:sort([element(3, told()) || _ <- Servers])),
    ?assertEqual({info, timeout, plain}, told()).

take_places() ->
    take_places(?NIF:slot_new()).

take_places(Slot) ->
    case ?NIF:slot_enter(Slot) of
        true -> [Slot | take_places(?NIF:slot_new())];
        false -> []
    end.

%% The timeout is over when the server handles a message that came before.
expired_timer_delivered_late(_Config) ->
    [
        begin
            Server = start(engine(IdleAfter), s),
            r = called(Server, fun(_, State) -> {reply, r, State, 1000} end),
            ok = parked(Server),
            true = erlang:suspend_process(Server),
            gen_server:cast(Server, first),
            timer:sleep(1500),
            true = erlang:resume_process(Server),
            ?assertEqual({cast, first, s}, told()),
            ?assertEqual(s, gen_server:call(Server, get)),
            ?assertEqual([], ?HELP:messages())
        end
     || IdleAfter <- [0, 20]
    ].

%% A callback that takes any message there is.
messages_of_parking_seen_by_a_callback(_Config) ->
    Server = start(engine(1), s),
    Seen = [
        called(Server, fun(_, State) -> {reply, catch_all(), State, Action} end)
     || _ <- lists:seq(1, 100), Action <- [hibernate, 100000, infinity, 3]
    ],
    ?assertEqual([], [M || M <- lists:append(Seen), M =/= timeout]).

catch_all() ->
    receive
        Message -> [Message | catch_all()]
    after 0 -> []
    end.

%%% Upgrades

engine_modules() ->
    {ok, Modules} = application:get_key(erlmcp_memory, modules),
    [
        Module
     || Module <- Modules,
        lists:prefix("erlmcp_memory_server", atom_to_list(Module)) orelse
            lists:member(Module, [
                erlmcp_memory_parking, erlmcp_memory_replay, erlmcp_memory_settings,
                erlmcp_memory_opened, erlmcp_memory_error, erlmcp_connection_optimizer
            ])
    ].

%% Everything but the module that never changes, and what holds the library.
upgrade() ->
    _ = application:load(erlmcp_memory),
    [
        begin
            %% Kills what still has the code before the last one.
            _ = code:purge(Module),
            {module, Module} = code:load_file(Module)
        end
     || Module <- engine_modules()
    ].

code_on_the_stack_while_it_waits(_Config) ->
    Waits = [
        {parked, start(engine(0), parked)},
        {awake, start(engine(100000), awake)},
        {refused, start(engine(0), ?HELP:unparkable())},
        {hibernated, start(engine(100000), hibernated)},
        {timed, start(engine(0), timed)},
        {timed_awake, start(engine(100000), timed_awake)},
        {suspended, start(engine(0), suspended)},
        {debugged, start(engine(0), debugged, [{debug, [{log, 10}]}])},
        {plain, start(engine(infinity), plain, [{hibernate_after, 0}])}
    ],
    Of = fun(Name) -> proplists:get_value(Name, Waits) end,
    r = called(Of(hibernated), fun(_, State) -> {reply, r, State, hibernate} end),
    [
        r = called(Of(Timed), fun(_, State) -> {reply, r, State, 3000000} end)
     || Timed <- [timed, timed_awake]
    ],
    ok = sys:suspend(Of(suspended)),
    gen_server:cast(Of(debugged), cast),
    _ = told(),
    States = [{Name, sys:get_state(Server)} || {Name, Server} <- Waits],
    ok = hibernates(Of(refused)),
    [upgrade() || _ <- [1, 2, 3]],
    [?assert(is_process_alive(Server), Name) || {Name, Server} <- Waits],
    [
        ?assert(State =:= sys:get_state(Of(Name)), Name)
     || {Name, State} <- States
    ],
    ok = sys:resume(Of(suspended)),
    [
        ?assert(State =:= gen_server:call(Of(Name), get), Name)
     || {Name, State} <- States
    ],
    [?assertEqual(ok, gen_server:stop(Server)) || {_, Server} <- Waits].

code_on_the_stack_in_a_callback(_Config) ->
    Waiting = fun(_) -> waits(go), {noreply, new} end,
    Servers = [
        begin
            Server = start(engine(0), {at_end, fun() -> waits(go) end}),
            Send(Server),
            Server
        end
     || Send <- [
            fun(Server) -> Server ! {do, Waiting} end,
            fun(Server) -> gen_server:cast(Server, {do, Waiting}) end,
            fun(Server) ->
                gen_server:send_request(Server, {do, fun(_, State) -> Waiting(State) end})
            end,
            fun(Server) -> Server ! {do, fun(S) -> {noreply, S, {continue, {do, Waiting}}} end} end,
            fun(Server) -> Server ! {do, fun(S) -> {stop, normal, S} end} end
        ]
    ],
    Self = self(),
    Starter = spawn_link(fun() ->
        {ok, Server} = ?S:start_link(?SCRIPT, fun() -> waits(go), {ok, new} end, []),
        Self ! {started, Server},
        receive never -> ok end
    end),
    [
        until(fun() ->
            {current_function, {?MODULE, waits, 1}} =:= process_info(Server, current_function)
        end)
     || Server <- Servers
    ],
    [upgrade() || _ <- [1, 2, 3]],
    [?assert(is_process_alive(Server)) || Server <- Servers],
    [Server ! go || Server <- Servers],
    [?assertEqual(new, gen_server:call(Server, get)) || Server <- lists:droplast(Servers)],
    ?assertEqual(normal, exited(lists:last(Servers))),
    {links, Links} = process_info(Starter, links),
    [Starting] = Links -- [Self],
    Starting ! go,
    receive
        {started, Starting} -> ok
    after 30000 -> ct:fail(not_started)
    end,
    ?assertEqual(new, gen_server:call(Starting, get)),
    unlink(Starter),
    exit(Starter, kill).

%% Shapes that were in a release stay here as they were.
old_loop_shape_refused(_Config) ->
    Loop = fun(Action) ->
        Parking = {parking_1, ?NIF:slot_new(), 1000, awake, 0, now, 1000000},
        {server_1, self(), self(), ?SCRIPT, awake, Parking, Action, none, none, none, idle,
            infinity, []}
    end,
    [
        begin
            Pid = proc_lib:spawn_link(fun() -> Continue() end),
            ?assertEqual(State, gen_server:call(Pid, get)),
            ok = gen_server:stop(Pid),
            _ = told(),
            normal = exited(Pid)
        end
     || {State, Continue} <- [
            {awake, fun() -> ?LOOP:woken(Loop(infinity)) end},
            {awake, fun() -> ?LOOP:waited(Loop(infinity)) end},
            {awake, fun() -> ?S:system_continue(self(), [], Loop(hibernate)) end},
            {awake, fun() -> ?LOOP:slept({admit_1, ignored, 20, Loop(infinity)}) end},
            {new, fun() ->
                Context = {returned_1, {cast, ignored}, Loop(infinity)},
                ?LOOP:returned({ok, {noreply, new}}, Context)
            end},
            {parked, fun() ->
                Slot = ?NIF:slot_new(),
                ok = ?NIF:slot_park(Slot, parked, []),
                ?LOOP:woken({asleep_1, self(), self(), ?SCRIPT, {Slot, 1000}, infinity, infinity})
            end}
        ]
    ].

crash_report_lost_by_hibernation(_Config) ->
    twins(fun(Engine) ->
        Server = start(Engine, s),
        ok = idle(Engine, Server),
        r = called(Server, fun(_, State) -> {reply, r, State, hibernate} end),
        ok = idle(Engine, Server),
        gen_server:cast(Server, {do, fun(_) -> error(crash) end}),
        {crash, _} = exited(Server),
        Logs = [Label || {log, {error, _, {report, #{label := Label}}, _}} <- ?HELP:messages()],
        [{gen_server, terminate}, {proc_lib, crash}] = Logs
    end).

%%% Memory

state_kept_alive_on_the_heap(_Config) ->
    Server = parked_server(large()),
    Limit = 2000,
    [
        begin
            Do(),
            ok = parked(Server),
            {memory, Bytes} = process_info(Server, memory),
            ?assert(Bytes < Limit, {Name, Bytes})
        end
     || {Name, Do} <- [
            {nothing, fun() -> ok end},
            {call, fun() -> true = is_list(gen_server:call(Server, get)) end},
            {message, fun() -> gen_server:call(Server, {put, large()}) end},
            {closure, fun() ->
                Large = large(),
                called(Server, fun(_, _) -> {reply, r, [closed | Large]} end)
            end},
            {exception, fun() ->
                called(Server, fun(_, State) ->
                    try
                        error({caught, State})
                    catch
                        error:_ -> {reply, r, [caught | State]}
                    end
                end)
            end},
            {thrown, fun() ->
                called(Server, fun(_, State) -> throw({reply, r, [thrown | State]}) end)
            end},
            {hibernated, fun() ->
                called(Server, fun(_, State) -> {reply, r, [h | State], hibernate} end)
            end},
            {looked_at, fun() -> true = is_list(sys:get_state(Server)) end},
            {replaced, fun() -> sys:replace_state(Server, fun(State) -> [more | State] end) end},
            {suspended, fun() ->
                ok = sys:suspend(Server),
                ok = sys:resume(Server)
            end}
        ]
    ],
    ok.

%% On a scheduler once, from the message to the next hibernation.
yield_between_unparking_and_parking(_Config) ->
    Self = self(),
    Server = parked_server(lists:seq(1, 200)),
    [
        begin
            1 = erlang:trace(Server, true, [running, {tracer, self()}]),
            gen_server:cast(Server, {do, fun(State) ->
                Self ! changed,
                {noreply, Change(State)}
            end}),
            waits(changed),
            ok = parked(Server),
            1 = erlang:trace(Server, false, [running]),
            Delivered = erlang:trace_delivered(Server),
            receive
                {trace_delivered, Server, Delivered} -> ok
            end,
            In = [in || {trace, _, in, _} <- ?HELP:messages()],
            %% More than once where another process took the scheduler's turn away.
            ?assert(length(In) =< 2, length(In))
        end
     || Change <- [fun(State) -> State end, fun([_ | State]) -> State end], _ <- [1, 2, 3]
    ].

%%% Pacing

%% All places are taken: an idle server waits on, and answers meanwhile.
idle_servers_queue_for_parking(_Config) ->
    Places = take_places(),
    ?assert(length(Places) >= 1),
    ?assert(length(Places) =< max(1, erlang:system_info(dirty_cpu_schedulers_online) div 2)),
    Server = start(engine(0), s),
    [
        begin
            ?assertEqual(s, gen_server:call(Server, get)),
            timer:sleep(5)
        end
     || _ <- lists:seq(1, 50)
    ],
    ?assert(?NIF:awake_bytes() > 0),
    [?NIF:slot_leave(Place) || Place <- Places],
    ok = parked(Server),
    ?assertEqual(s, gen_server:call(Server, get)).

idle_servers_park_in_step(_Config) ->
    Parent = self(),
    Times = [
        begin
            spawn_link(fun() ->
                {park, Options} = erlmcp_memory_parking:options([{idle_after, 1000}]),
                Parking = erlmcp_memory_parking:new(Options),
                Parent ! {time, erlmcp_memory_parking:idle_after(Parking)}
            end),
            receive
                {time, Time} -> Time
            end
        end
     || _ <- lists:seq(1, 1000)
    ],
    ?assert(lists:min(Times) >= 1000),
    ?assert(lists:max(Times) =< 1250),
    ?assert(length(lists:usort(Times)) > 200).

count_wrong_after_kills(_Config) ->
    [crowd() || true],
    Servers = [
        element(2, ?S:start(?SCRIPT, lists:seq(1, N * 10), [{idle_after, N rem 3}]))
     || N <- lists:seq(1, 200)
    ],
    [
        begin
            Server ! {do, fun(State) -> {noreply, [new | State]} end},
            %% From now to a while later, as the scheduler has it.
            _ = N rem 3 =:= 0 andalso erlang:yield(),
            exit(lists:nth(rand:uniform(200), Servers), kill)
        end
     || _ <- lists:seq(1, 5), {N, Server} <- lists:zip(lists:seq(1, 200), Servers)
    ],
    [exit(Server, kill) || Server <- Servers],
    until(fun() -> ?NIF:awake_bytes() =:= 0 end),
    %% No place was lost either.
    Server = start(engine(0), s),
    ok = parked(Server).

%%% Storms

%% Each waits for the reply of the next, and none may be awake.
gate_deadlocks(_Config) ->
    crowd(),
    Last = parked_server({none, large()}),
    First = lists:foldl(
        fun(_, Next) -> parked_server({Next, large()}) end, Last, lists:seq(1, 20)
    ),
    ?assertEqual(20, gen_server:call(First, {do, fun ask/2}, 30000)).

ask(_From, {none, _} = State) ->
    {reply, 0, State};
ask(_From, {Next, _} = State) ->
    {reply, 1 + gen_server:call(Next, {do, fun ask/2}, 30000), State}.

%% Servers that are woken while the node is full wait until it is not, or for their time. In a
%% process of its own, whose end frees what it had.
gate_lets_all_wake_at_once(_Config) ->
    {Pid, Monitor} = spawn_monitor(fun at_the_gate/0),
    receive
        {'DOWN', Monitor, _, Pid, Reason} -> ?assertEqual(normal, Reason)
    end.

at_the_gate() ->
    Server = parked_server(large()),
    {park, Options} = erlmcp_memory_parking:options([{idle_after, 0}]),
    [First, Second] = [
        element(2, erlmcp_memory_parking:park(crowded, large(), ?SCRIPT, Parking))
     || Parking <- [erlmcp_memory_parking:new(Options) || _ <- [1, 2]]
    ],
    ?assertEqual(admitted, erlmcp_memory_parking:admit(other, 0, First)),
    ?assert(?NIF:awake_bytes() > 100000),
    %% Now it is full.
    crowd(),
    Full = erlmcp_memory_parking:expand(erlmcp_memory_parking:compact(Second)),
    [
        ?assertEqual(
            Most,
            (fun Sleep(Slept) ->
                case erlmcp_memory_parking:admit(Urgency, Slept, Full) of
                    admitted ->
                        Slept;
                    {sleep, Ms} ->
                        ?assert(Ms >= 1 andalso Ms =< 20),
                        Sleep(Slept + Ms)
                end
            end)(0)
        )
     || {Urgency, Most} <- [{call, 20}, {other, 200}]
    ],
    %% And all are served.
    ?assert(large() =:= gen_server:call(Server, get)),
    gen_server:cast(Server, cast),
    ?assertMatch({cast, cast, _}, told()).

%% All are woken by one sender. More than 20 MB were awake if each parked when it is idle.
broadcast_wakes_all_at_once(_Config) ->
    Limit = 1000000,
    application:set_env(erlmcp, awake_memory_limit, Limit),
    Servers = [
        start(engine(100000), {N, lists:seq(N, N + 2500)})
     || N <- lists:seq(1, 500)
    ],
    Most = most_awake(fun() ->
        [gen_server:cast(Server, {do, fun grown/1}) || Server <- Servers],
        [?assertEqual(1, length([told()])) || _ <- Servers]
    end),
    %% A scheduler may have one that went on after its wait.
    ?assert(Most < Limit + erlang:system_info(schedulers) * 1000000, Most),
    [
        ?assert({N + 1, lists:seq(N, N + 2500)} =:= gen_server:call(Server, get))
     || {N, Server} <- lists:zip(lists:seq(1, 500), Servers)
    ],
    [gen_server:stop(Server) || Server <- Servers].

grown({N, List}) ->
    hd(get('$ancestors')) ! {told, N},
    {noreply, {N + 1, List}}.

%% The most bytes that were awake meanwhile.
most_awake(Do) ->
    {Watcher, Monitor} = spawn_monitor(fun() -> exit({most, watched(0)}) end),
    Do(),
    Watcher ! done,
    receive
        {'DOWN', Monitor, _, _, {most, Most}} -> Most
    end.

watched(Most) ->
    receive
        done -> Most
    after 0 ->
        erlang:yield(),
        watched(max(Most, ?NIF:awake_bytes()))
    end.

%%% What is parked again, and what is not

change_taken_for_equality(_Config) ->
    [
        begin
            Server = parked_server(Old),
            ok = gen_server:call(Server, {put, New}),
            ok = parked(Server),
            ?assert(New =:= gen_server:call(Server, get)),
            ok = gen_server:stop(Server)
        end
     || {Old, New} <- [{1, 1.0}, {[1.0], [1]}, {#{a => 1}, #{a => 1.0}}, {0.0, -0.0}, {{a}, {a}}]
    ].

%% How often it was packed.
packed(Server, Do) ->
    _ = erlang:trace_pattern({?NIF, slot_park, 3}, true, [global]),
    1 = erlang:trace(Server, true, [call, {tracer, self()}]),
    Do(),
    1 = erlang:trace(Server, false, [call]),
    Delivered = erlang:trace_delivered(Server),
    receive
        {trace_delivered, Server, Delivered} -> ok
    end,
    _ = erlang:trace_pattern({?NIF, slot_park, 3}, false, [global]),
    length([call || {trace, _, call, _} <- ?HELP:messages()]).

clean_state_packed_again(_Config) ->
    Server = parked_server(large()),
    Times = lists:seq(1, 10),
    ?assertEqual(
        0,
        packed(Server, fun() ->
            [
                begin
                    true = is_list(gen_server:call(Server, get)),
                    ok = parked(Server)
                end
             || _ <- Times
            ]
        end)
    ),
    ?assertEqual(
        length(Times),
        packed(Server, fun() ->
            [
                begin
                    ok = gen_server:call(Server, {put, N}),
                    ok = parked(Server)
                end
             || N <- Times
            ]
        end)
    ).

state_that_cannot_be_parked_tried_again(_Config) ->
    Server = start(engine(0), ?HELP:unparkable()),
    hibernates(Server),
    ?assertEqual(
        0,
        packed(Server, fun() ->
            [
                begin
                    r = called(Server, fun(_, State) -> {reply, r, State} end),
                    hibernates(Server)
                end
             || _ <- lists:seq(1, 20)
            ]
        end)
    ),
    %% Its bytes are counted, and it parks when it has changed.
    ?assert(?NIF:awake_bytes() > 300000),
    ok = gen_server:call(Server, {put, small}),
    ok = parked(Server),
    ?assertEqual(small, gen_server:call(Server, get)).

refusals_flood_the_log(_Config) ->
    _ = persistent_term:erase(erlmcp_memory_parking),
    erlmcp_pool_help:logging("cannot be parked", fun() ->
        [hibernates(start(engine(0), ?HELP:unparkable())) || _ <- lists:seq(1, 5)]
    end),
    ?assertMatch(
        ["the state of a server of erlmcp_server_script cannot be parked" ++ _],
        erlmcp_pool_help:warnings()
    ).

%%% As gen_server does

throw_taken_for_a_crash(_Config) ->
    Server = parked_server(s),
    ?assertEqual(r, called(Server, fun(_, _) -> throw({reply, r, new}) end)),
    gen_server:cast(Server, {do, fun(new) -> throw({noreply, newer, 0}) end}),
    ?assertEqual({info, timeout, newer}, told()).

error_of_init_reported(_Config) ->
    twins(fun({Module, Options}) ->
        Results = [
            Module:start(?SCRIPT, fun() -> Return end, Options)
         || Return <- [{error, e}, ignore, {stop, normal}]
        ],
        %% Not what is logged: that is compared.
        Pids = [Pid || _ <- Results, {init, Pid} <- [told()]],
        [down(Pid) || Pid <- Pids],
        Results
    end).

undef_deep_inside_taken_for_absence(_Config) ->
    Server = parked_server(s),
    Server ! {do, fun(_) -> erlmcp_no_such_module:function() end},
    ?assertMatch({undef, [{erlmcp_no_such_module, function, [], _} | _]}, exited(Server)).

name_left_after_failed_init(_Config) ->
    [
        begin
            ?assertMatch(
                {error, _}, ?S:start({local, erlmcp_named}, ?SCRIPT, fun() -> Do() end, [])
            ),
            until(fun() -> whereis(erlmcp_named) =:= undefined end)
        end
     || Do <- [
            fun() -> {stop, reason} end,
            fun() -> neither end,
            fun() -> error(reason) end,
            fun() -> {ok, s, wrong} end
        ]
    ].

wrong_last_message_or_client(_Config) ->
    [
        begin
            [#{last_message := Last, client_info := Client, state := State}] = twins(fun(Engine) ->
                Server = start(Engine, s),
                ok = idle(Engine, Server),
                Send(Server),
                _ = exited(Server),
                [
                    Report
                 || {log, {error, _, {report, #{label := {gen_server, _}} = Report}, _}} <-
                        ?HELP:messages()
                ]
            end),
            ?assertEqual(s, State),
            ?assertEqual(Expected, element(1, {Last})),
            ?assertEqual(IsCalled, Client =/= undefined)
        end
     || {Send, Expected, IsCalled} <- [
            {fun(Server) -> catch_exit(fun() -> gen_server:call(Server, neither) end) end,
                neither, true},
            {fun(Server) -> catch_exit(fun() -> gen_server:call(Server, {stop, reason, s}) end) end,
                {stop, reason, s}, true},
            {fun(Server) -> Server ! {do, fun(_) -> neither end} end,
                {do, {'fun', ?MODULE}}, false},
            {fun(Server) -> gen_server:cast(Server, {do, fun(_) -> neither end}) end,
                {'$gen_cast', {do, {'fun', ?MODULE}}}, false},
            {fun(Server) -> catch_exit(fun() -> gen_server:stop(Server, reason, 30000) end) end,
                [], false}
        ]
    ].

format_status_given_the_reference(_Config) ->
    Name = ?SCRIPT:module(
        erlmcp_status,
        [{init, 1}, {handle_call, 3}, {handle_cast, 2}],
        "format_status(#{state := S} = M) -> M#{state := {seen, S}}. "
    ),
    {ok, Server} = ?S:start_link(Name, secret, [{idle_after, 0}]),
    ok = parked(Server),
    {status, _, _, [_, _, _, _, Shown]} = sys:get_status(Server),
    ?assert(lists:member({data, [{"State", {seen, secret}}]}, Shown)),
    ok = parked(Server).

failed_replacement_loses_the_state(_Config) ->
    Server = parked_server(large()),
    ?assertError({callback_failed, _, _}, sys:replace_state(Server, fun(_) -> error(e) end)),
    ok = sys:suspend(Server),
    ?assertMatch(
        {error, _}, sys:change_code(Server, ?SCRIPT, 1, {do, fun(_) -> {error, e} end})
    ),
    ok = sys:resume(Server),
    ok = parked(Server),
    ?assert(large() =:= gen_server:call(Server, get)).

refused_replacement_loses_the_state(_Config) ->
    Server = parked_server(s),
    Unparkable = ?HELP:unparkable(),
    ?assert(Unparkable =:= sys:replace_state(Server, fun(s) -> Unparkable end)),
    hibernates(Server),
    ?assert(Unparkable =:= sys:get_state(Server)),
    ?assert(Unparkable =:= gen_server:call(Server, get)),
    s = sys:replace_state(Server, fun(_) -> s end),
    ok = parked(Server),
    ?assertEqual(s, gen_server:call(Server, get)).

%% Who does not wait any more gets no reply: the alias that it goes to is gone.
reply_to_who_does_not_wait(_Config) ->
    Server = parked_server(s),
    Late = fun(_, State) ->
        waits(go),
        {reply, late, State}
    end,
    {exit, {timeout, _}} = catch_exit(fun() -> gen_server:call(Server, {do, Late}, 10) end),
    Server ! go,
    ?assertEqual(s, gen_server:call(Server, get)),
    ?assertEqual([], ?HELP:messages()),
    %% Of the older kinds, too.
    ok = parked(Server),
    Tag = make_ref(),
    Server ! {'$gen_call', {self(), Tag}, get},
    receive
        {Tag, s} -> ok
    after 30000 -> ct:fail(no_reply)
    end.

dictionary_has_keys_of_ours(_Config) ->
    Keys = fun(Server) ->
        {dictionary, Dictionary} = process_info(Server, dictionary),
        lists:sort([Key || {Key, _} <- Dictionary])
    end,
    Plain = start({gen_server, []}, s),
    Server = start(engine(0), s),
    [
        begin
            ok = parked(Server),
            ?assertEqual(Keys(Plain), Keys(Server)),
            %% A callback may erase what there is.
            r = called(Server, fun(_, State) ->
                Kept = get('$ancestors'),
                _ = erase(),
                put('$ancestors', Kept),
                {reply, r, State, Action}
            end),
            s = gen_server:call(Server, get),
            r = called(Plain, fun(_, State) ->
                _ = erase('$initial_call'),
                {reply, r, State}
            end)
        end
     || Action <- [infinity, hibernate, 100000]
    ].

parked_before_acknowledgement(_Config) ->
    crowd(),
    Self = self(),
    %% Crowded from the beginning; its starter waits until it is there.
    {ok, Server} = ?S:start_link(
        ?SCRIPT,
        fun() ->
            Self ! {in_init, element(2, process_info(self(), status))},
            {ok, s}
        end,
        [{idle_after, 0}]
    ),
    receive
        {in_init, running} -> ok
    end,
    ok = parked(Server),
    ?assertEqual(s, gen_server:call(Server, get)).

parked_before_continue(_Config) ->
    crowd(),
    {ok, Server} = ?S:start_link(
        ?SCRIPT, fun() -> {ok, s, {continue, c}} end, [{idle_after, 0}]
    ),
    {init, Server} = told(),
    ?assertEqual({continue, c, s}, told()),
    ok = parked(Server).

looking_unparks_for_long(_Config) ->
    Server = parked_server(large()),
    [
        begin
            Look(Server),
            %% Nothing was counted as awake, and it sleeps again.
            ?assertEqual(0, ?NIF:awake_bytes()),
            hibernates(Server),
            {memory, Bytes} = process_info(Server, memory),
            ?assert(Bytes < 2000, Bytes)
        end
     || Look <- [fun sys:get_state/1, fun sys:get_status/1]
    ].

%% An upgrade suspends all servers, changes the state of each, and resumes all.
upgrade_keeps_what_it_looked_at(_Config) ->
    Server = parked_server(large()),
    ok = sys:suspend(Server),
    ok = sys:change_code(Server, ?SCRIPT, 1, {do, fun(State) -> {ok, [changed | State]} end}),
    {memory, Bytes} = process_info(Server, memory),
    ?assert(Bytes < 10000, Bytes),
    ok = sys:resume(Server),
    ?assert([changed | large()] =:= gen_server:call(Server, get)).

%% What a server takes at rest is what `gen_server' takes, and a few hundred bytes.
more_than_a_hibernated_server(_Config) ->
    Plain = start({gen_server, [{hibernate_after, 0}]}, none),
    ok = hibernates(Plain),
    Server = parked_server(large()),
    [[{_, Ours}, {_, Words}], [{_, Theirs}, {_, TheirWords}]] =
        [process_info(Pid, [memory, total_heap_size]) || Pid <- [Server, Plain]],
    ?assert(Words =< TheirWords + 2),
    %% And what the VM keeps for a process that was on a dirty scheduler.
    ?assert(Ours =< Theirs + 320),
    Before = erlmcp_memory_profiler:inventory(),
    Servers = [parked_server({N, large()}) || N <- lists:seq(1, 50)],
    After = erlmcp_memory_profiler:inventory(),
    Of = fun(Key) -> maps:get(Key, maps:get(parked, After)) - maps:get(Key, maps:get(parked, Before)) end,
    ?assertEqual(50, Of(count)),
    ?assert(Of(bytes) div 50 < 300),
    ?assertEqual(50, length(Servers)).

%% After a peak, parked servers are told to move. Nobody but the engine sees that: not a callback,
%% not a client, not who suspended a server, and no timeout begins anew.
moving_seen_by_a_callback(_Config) ->
    ok = ?HELP:no_peak(),
    Peak = ?NIF:slot_new(),
    Servers = [start(engine(0), {state, N, large()}) || N <- lists:seq(1, 20)],
    [First, Timed, Suspended, Debugged, Killed | _] = Servers,
    _ = ?NIF:slot_awake(Peak, 64 bsl 20),
    Touch = fun(Server) ->
        r = called(Server, fun(_, State) -> {reply, r, setelement(1, State, touched)} end)
    end,
    ok = lists:foreach(Touch, Servers),
    r = called(Timed, fun(_, State) -> {reply, r, setelement(1, State, timed), 3000} end),
    ok = sys:trace(Debugged, false),
    ok = sys:log(Debugged, true),
    until(fun() -> ?NIF:roster() =:= 20 end),
    ok = lists:foreach(fun ?HELP:hibernates/1, Servers),
    ok = sys:suspend(Suspended),
    exit(Killed, kill),
    ok = down(Killed),
    until(fun() -> ?NIF:roster() =:= 18 end),
    ?assertNotEqual(undefined, whereis(erlmcp_memory_tidier)),
    0 = ?NIF:slot_awake(Peak, 0),
    until(fun() -> ?NIF:roster() =:= 0 andalso whereis(erlmcp_memory_tidier) =:= undefined end),
    Left = Servers -- [Killed],
    ok = lists:foreach(fun ?HELP:hibernates/1, Left -- [Suspended]),
    [?assertEqual({message_queue_len, 0}, process_info(Server, message_queue_len)) || Server <- Left],
    ok = sys:resume(Suspended),
    ?assertMatch({info, timeout, {timed, 2, _}}, told()),
    ?assertEqual(2, element(2, sys:get_state(Timed))),
    {ok, Log} = sys:log(Debugged, get),
    ?assertEqual([], Log),
    [
        ?assertEqual({touched, N, large()}, sys:get_state(Server))
     || {N, Server} <- lists:zip(lists:seq(1, 20), Servers), Server =/= Killed, Server =/= Timed
    ],
    ?assertEqual(0, element(2, process_info(First, message_queue_len))),
    receive
        {told, What} -> ct:fail({told, What})
    after 0 -> ok
    end.

%% As a gen_server, also where it would park at once.
too_long_a_wait_over_the_limit(_Config) ->
    crowd(),
    [
        twins(fun(Engine) ->
            Server = start(Engine, s),
            r = called(Server, fun(_, State) -> {reply, r, State, Time} end),
            {timeout_value, _} = exited(Server),
            ok
        end)
     || Time <- [16#100000000, 1 bsl 70]
    ].
