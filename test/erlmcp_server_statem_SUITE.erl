%% State machines whose data are parked do what those of gen_statem do.
%%
%% Most cases compare twins: see erlmcp_server_statem_twin.
-module(erlmcp_server_statem_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-import(erlmcp_server_statem_twin, [
    same/1, start/3, start/4, watch/1, call/2, cast/2, get/2, rest/1, await/1, tried/1
]).
-import(erlmcp_server_statem_script, [data/1, data/2]).
-import(erlmcp_wait_help, [until/1]).

-define(SCRIPT, erlmcp_server_statem_script).
-define(M, erlmcp_memory_statem).
-define(LOOP, erlmcp_memory_statem_loop).
-define(DEADLINE, 30000).
%% A time that is never over.
-define(NEVER, 10000000).
-define(OK, {reply, '$from', ok}).

all() ->
    [
        a_return_value_is_taken_otherwise,
        an_end_is_another_one,
        a_bad_return_value_is_taken,
        an_action_is_taken_otherwise,
        a_bad_action_is_taken,
        a_state_enter_call_is_missing,
        a_bad_state_enter_call_is_taken,
        a_state_is_no_atom,
        events_come_in_another_order,
        a_postponed_event_is_lost_by_parking,
        a_timeout_is_lost_by_parking,
        a_timeout_is_not_cancelled,
        a_cancelled_timeout_is_delivered,
        a_timeout_that_replaces_one_that_is_due_is_lost,
        a_foreign_timeout_message_is_eaten,
        an_event_comes_of_parking,
        an_event_comes_of_moving,
        another_callback_module_is_called_as_the_first,
        init_comes_to_something_else,
        a_name_is_left_after_a_failed_start,
        actions_of_init_are_not_done,
        enter_loop_differs,
        a_wrong_start_raises_something_else,
        sys_shows_something_else,
        a_failed_replacement_loses_the_data,
        code_change_differs,
        debug_is_dropped_by_parking,
        a_suspended_machine_spins,
        an_exit_of_the_parent_is_ignored,
        a_report_is_another_one,
        a_reply_does_not_arrive,
        a_machine_waits_in_code_that_is_purged,
        an_older_loop_is_refused,
        data_stay_alive_by_what_came_last,
        data_that_are_equal_are_taken_for_the_same,
        data_that_cannot_be_parked_end_the_machine,
        looking_unparks_the_data,
        a_machine_does_not_park,
        plain_machines_park,
        a_wrong_setting_is_taken_for_another_value,
        a_newer_release_was_not_reviewed,
        random_events_agree
    ].

%% There would be thousands of reports, which the cases compare and nobody reads.
init_per_suite(Config) ->
    Levels = [
        {Id, Level}
     || #{id := Id, level := Level} <- logger:get_handler_config()
    ],
    [ok = logger:set_handler_config(Id, level, none) || {Id, _} <- Levels],
    [{log_levels, Levels} | Config].

end_per_suite(Config) ->
    [
        logger:set_handler_config(Id, level, Level)
     || {Id, Level} <- proplists:get_value(log_levels, Config)
    ].

init_per_testcase(_Case, Config) ->
    Config.

end_per_testcase(_Case, _Config) ->
    ok.

%%% Return values

a_return_value_is_taken_otherwise(_Config) ->
    Results = [
        {next_state, b, '$data', ?OK},
        {next_state, b, '$data', [?OK]},
        {next_state, c, '$same', [?OK]},
        {next_state, a, '$same', [?OK, {reply, '$from', twice}]},
        {keep_state, '$data', ?OK},
        {keep_state, '$same', [?OK]},
        {keep_state_and_data, ?OK},
        {keep_state_and_data, [?OK]},
        {repeat_state, '$data', ?OK},
        {repeat_state_and_data, [?OK]},
        {'$throw', {next_state, b, '$data', ?OK}},
        {'$throw', {keep_state_and_data, ?OK}}
    ],
    Silent = [
        {next_state, c, '$data'},
        {next_state, c, '$same'},
        {keep_state, '$data'},
        {keep_state, '$same'},
        keep_state_and_data,
        {repeat_state, '$data'},
        repeat_state_and_data,
        {keep_state_and_data, []},
        {'$throw', {next_state, a, '$data', []}}
    ],
    for_each_mode(fun(Side, Mode) ->
        Machine = machine(Side, Mode),
        Replies = [rested(Machine, fun() -> call(Machine, Result) end) || Result <- Results],
        [rested(Machine, fun() -> cast(Machine, Result) end) || Result <- Silent],
        Machine ! a_message,
        {Replies, get(Machine, n)}
    end).

an_end_is_another_one(_Config) ->
    for_each_end([
        stop,
        {stop, normal},
        {stop, shutdown},
        {stop, {shutdown, reason}},
        {stop, oops},
        {stop, normal, '$data'},
        {stop, oops, '$data'},
        {stop_and_reply, normal, ?OK},
        {stop_and_reply, normal, [?OK, ?OK]},
        {stop_and_reply, normal, []},
        {stop_and_reply, oops, [?OK]},
        {stop_and_reply, shutdown, ?OK, '$data'},
        {stop_and_reply, oops, ?OK, '$data'},
        {'$throw', {stop, oops, '$data'}},
        {'$error', oops},
        {'$exit', oops},
        {'$exit', normal},
        {'$eval', fun(_, _) -> erlang:raise(exit, {shutdown, x}, []) end},
        {'$eval', fun(_, _) -> no_such_module:no_such_function() end}
    ]).

a_bad_return_value_is_taken(_Config) ->
    for_each_end([
        nothing,
        {next_state, b},
        {keep_state},
        {keep_state_and_data, ?OK, ?OK},
        {reply, '$from', ok},
        {stop_and_reply, normal},
        {stop_and_reply, oops, [?OK, {reply, nobody, ok}]},
        {stop_and_reply, oops, nothing},
        {stop_and_reply, oops, nothing, '$data'},
        {'$throw', nothing}
    ]).

%% Each on a machine of its own, in each mode; parked when it comes.
for_each_end(Results) ->
    for_each_mode(fun(Side, Mode) ->
        [
            begin
                Machine = machine(Side, Mode),
                _ = call(Machine, {keep_state, '$data', ?OK}),
                cast(Machine, {keep_state_and_data, postpone}),
                _ = call(Machine, {keep_state_and_data, [?OK, {{timeout, t}, ?NEVER, later}]}),
                rest(Machine),
                Reply = call(Machine, Result),
                stopped(Machine),
                Reply
            end
         || Result <- Results
        ]
    end).

%%% Actions

an_action_is_taken_otherwise(_Config) ->
    Event = {do, event, {keep_state, '$data'}},
    Actions = [
        hibernate,
        {hibernate, true},
        [hibernate, {hibernate, false}],
        [postpone, {postpone, false}],
        {next_event, internal, Event},
        {next_event, cast, Event},
        {next_event, info, Event},
        {next_event, timeout, Event},
        {next_event, state_timeout, Event},
        {next_event, {timeout, t}, Event},
        {next_event, {call, '$from'}, Event},
        [
            {next_event, internal, {do, 1, {keep_state_and_data, hibernate}}},
            {next_event, internal, 2}
        ],
        [hibernate, {next_event, internal, Event}],
        [hibernate, {state_timeout, 0, Event}],
        0,
        infinity,
        ?NEVER,
        {timeout, 0, Event},
        {timeout, ?NEVER, Event},
        {timeout, infinity, Event},
        {timeout, cancel},
        {timeout, update, Event},
        {timeout, 0, Event, []},
        {timeout, ?NEVER, Event, [{abs, false}]},
        {timeout, -100, Event, [{abs, true}]},
        {timeout, infinity, Event, {abs, true}},
        {state_timeout, 0, Event},
        {state_timeout, ?NEVER, Event},
        {state_timeout, update, Event},
        {state_timeout, cancel},
        {{timeout, t}, 0, Event},
        {{timeout, t}, ?NEVER, Event},
        {{timeout, t}, update, Event},
        {{timeout, t}, cancel},
        [{{timeout, t}, 0, 1}, {{timeout, t}, ?NEVER, 2}, {{timeout, t}, infinity, 3}],
        [{state_timeout, 0, 1}, {{timeout, t}, 0, 2}, {timeout, 0, 3}, {{timeout, u}, 0, 4}]
    ],
    for_each_mode(fun(Side, Mode) ->
        Machine = machine(Side, Mode),
        [
            rested(Machine, fun() ->
                _ = call(Machine, {next_state, State, '$data', [?OK] ++ listed(Action)}),
                settled(Machine),
                timeouts(Machine)
            end)
         || Action <- Actions, State <- [a, b]
        ] ++
            [
                rested(Machine, fun() ->
                    cast(Machine, {keep_state, '$data', Action}),
                    _ = call(Machine, {next_state, c, '$same', ?OK}),
                    _ = call(Machine, {next_state, b, '$same', ?OK}),
                    get(Machine, n)
                end)
             || Action <- [postpone, {postpone, true}, [{postpone, true}, hibernate]]
            ]
    end).

a_bad_action_is_taken(_Config) ->
    Actions = [
        nothing,
        -1,
        1.0,
        {reply, nobody, ok},
        {reply, {nobody, ref}, ok},
        {timeout, -1, x},
        {timeout, x, x},
        {{timeout, t}, 1, x, [{abs, perhaps}]},
        {timeout, 1, x, [{abs, true}, {abs, true}]},
        {timeout, 1, x, {abs, 1}},
        {nothing, 1, x},
        {nothing, 1, x, []},
        {nothing, cancel},
        {timeout, cancel, x},
        {next_event, nothing, x},
        {next_event, {call, nobody}, x},
        {next_event, {call, {nobody, ref}}, x},
        {postpone, perhaps},
        {hibernate, perhaps},
        {change_callback_module, 1},
        {push_callback_module, "x"},
        {push_callback_module, no_such_module},
        {change_callback_module, ?MODULE},
        pop_callback_module,
        [{timeout, 1, x} | nothing],
        [?OK, hibernate, postpone, nothing]
    ],
    %% gen_statem of OTP 28 and later has no clause for these.
    Unclear = [
        {state_timeout, update, x, []},
        {timeout, -1, x, [{abs, false}]},
        {{timeout, t}, x, x, [{abs, true}]}
    ],
    for_each_end([
        {next_state, b, '$data', Action}
     || Action <- Actions ++ [A || A <- Unclear, erlang:system_info(otp_release) < "28"]
    ]).

a_state_enter_call_is_missing(_Config) ->
    same(fun(Side) ->
        [
            begin
                Enter = #{
                    a => {keep_state, '$data', {state_timeout, 0, now}},
                    b => {keep_state_and_data, [{reply, '$from', entered}, {{timeout, t}, 0, x}]},
                    c => {next_state, c, '$data', hibernate}
                },
                Data = data(self(), #{enter => Enter, from => {self(), ref}}),
                Machine = machine(Side, [Mode, state_enter], Data),
                [
                    rested(Machine, fun() ->
                        _ = call(Machine, Result),
                        settled(Machine)
                    end)
                 || Result <- [
                        {next_state, b, '$data', ?OK},
                        {next_state, c, '$data', ?OK},
                        {repeat_state, '$data', ?OK},
                        {repeat_state_and_data, [?OK, hibernate]},
                        {next_state, a, '$data', [?OK, postpone]},
                        {next_state, b, '$data', [?OK, {next_event, internal, x}]},
                        {next_state, b, '$data', [?OK]}
                    ]
                ],
                get(Machine, n)
            end
         || Mode <- [state_functions, handle_event_function]
        ]
    end).

a_bad_state_enter_call_is_taken(_Config) ->
    Enters = [
        {keep_state, '$data', postpone},
        {keep_state, '$data', {postpone, true}},
        {keep_state, '$data', {postpone, false}},
        {keep_state, '$data', {next_event, internal, x}},
        {keep_state, '$data', {next_event, nothing, x}},
        {keep_state, '$data', {push_callback_module, ?SCRIPT}},
        {keep_state, '$data', {change_callback_module, ?SCRIPT}},
        {keep_state, '$data', pop_callback_module},
        {keep_state, '$data', nothing},
        {next_state, c, '$data'},
        {next_state, c, '$data', []},
        {stop, oops, '$data'},
        {stop_and_reply, normal, {reply, '$from', x}, '$data'},
        stop,
        nothing,
        {'$error', oops},
        {'$throw', {keep_state, '$data'}},
        {'$exit', oops}
    ],
    same(fun(Side) ->
        [
            begin
                Data = data(self(), #{enter => #{b => Enter}, from => {self(), ref}}),
                Machine = machine(Side, [Mode, state_enter], Data),
                rest(Machine),
                Reply = call(Machine, {next_state, b, '$data', [?OK, {state_timeout, ?NEVER, x}]}),
                {Reply, got_or_ended(Machine)}
            end
         || Enter <- Enters, Mode <- [state_functions, handle_event_function]
        ]
    end).

%% One that ends after its reply may be asked before or after that; why it ends is in the reports.
got_or_ended(Machine) ->
    try
        get(Machine, n)
    catch
        exit:{_, {gen_statem, call, _}} ->
            _ = erlmcp_server_statem_twin:ended(Machine),
            ended
    end.

a_state_is_no_atom(_Config) ->
    same(fun(Side) ->
        Machine = machine(Side, [handle_event_function, state_enter]),
        States = [{a, #{}}, [1], 1, 1.0, "a", <<"a">>],
        Replies = [
            rested(Machine, fun() -> call(Machine, {next_state, State, '$same', ?OK}) end)
         || State <- States
        ],
        %% A state that is no function is an error where each state is one.
        Other = machine(Side, state_functions),
        rest(Other),
        First = call(Other, {next_state, {no, atom}, '$data', ?OK}),
        rest(Other),
        {Replies, First, call(Other, {keep_state_and_data, ?OK})}
    end).

%%% Order

events_come_in_another_order(_Config) ->
    for_each_mode(fun(Side, Mode) ->
        Machine = machine(Side, Mode),
        %% While it is in a callback, more comes than it can postpone.
        Postponed = {keep_state_and_data, postpone},
        [cast(Machine, {'$eval', fun(_, _) -> {keep_state_and_data, postpone} end}) || _ <- "12"],
        [gen_statem:cast(Machine, {do, N, Postponed}) || N <- [1, 2, 3]],
        rest(Machine),
        Inserted = [{next_event, internal, {do, in(N), keep_state_and_data}} || N <- [1, 2, 3]],
        Due = [{state_timeout, 0, due_state}, {{timeout, t}, 0, due_t}, {timeout, 0, due_event}],
        Self = self(),
        gen_statem:cast(
            Machine,
            {do, busy,
                {'$eval', fun(_, Data) ->
                    Self ! go_on,
                    receive
                        {Self, all_sent} -> ok
                    end,
                    {next_state, b, Data, Inserted ++ Due}
                end}}
        ),
        receive
            go_on -> ok
        end,
        [gen_statem:cast(Machine, {do, {sent, N}, keep_state_and_data}) || N <- [1, 2, 3]],
        Machine ! {self(), all_sent},
        settled(Machine),
        rest(Machine),
        %% The same postponed events once more.
        First = call(Machine, {next_state, c, '$data', [?OK | Due]}),
        settled(Machine),
        {First, get(Machine, n)}
    end).

in(N) -> {in, N}.

a_postponed_event_is_lost_by_parking(_Config) ->
    same(fun(Side) ->
        Machine = machine(Side, state_functions),
        Requests = [
            gen_statem:send_request(
                Machine,
                {do, N, {'$eval', fun
                    (_, #{n := 0}) -> {keep_state_and_data, postpone};
                    ({call, From}, #{n := 1}) -> {keep_state_and_data, {reply, From, N}}
                end}}
            )
         || N <- lists:seq(1, 50)
        ],
        rest(Machine),
        cast(Machine, {keep_state, '$same'}),
        rest(Machine),
        {status, _, _, [_, _, _, _, Status]} = sys:get_status(Machine),
        [Held] = [length(P) || {data, Shown} <- Status, {"Postponed", P} <- Shown],
        ok = call(Machine, {next_state, b, '$data', ?OK}),
        {Held, [gen_statem:receive_response(R, ?DEADLINE) || R <- Requests]}
    end).

%%% Timeouts

a_timeout_is_lost_by_parking(_Config) ->
    for_each_mode(fun(Side, Mode) ->
        [
            begin
                Machine = machine(Side, Mode),
                Content = {do, {Mode, Type}, {keep_state, '$data'}},
                Actions = [?OK, timeout_of(Type, 60, Content)],
                ok = gen_statem:call(Machine, {do, set, {next_state, b, '$data', Actions}}),
                rest(Machine),
                await({Mode, Type}),
                rest(Machine),
                get(Machine, n)
            end
         || Type <- [timeout, state_timeout, {timeout, t}, absolute]
        ]
    end).

timeout_of(absolute, Time, Content) ->
    {state_timeout, erlang:monotonic_time(millisecond) + Time, Content, [{abs, true}]};
timeout_of(Type, Time, Content) ->
    {Type, Time, Content}.

%% Each of them is cancelled by what is to cancel it, and the others are not.
a_timeout_is_not_cancelled(_Config) ->
    All = [{timeout, ?NEVER, e}, {state_timeout, ?NEVER, s}, {{timeout, t}, ?NEVER, t}],
    Causes = [
        {keep_state_and_data, ?OK},
        {keep_state_and_data, [?OK, {state_timeout, cancel}]},
        {keep_state_and_data, [?OK, {{timeout, t}, infinity, x}]},
        {keep_state_and_data, [?OK, {{timeout, t}, update, new}]},
        {keep_state_and_data, [?OK, {timeout, update, due}]},
        {keep_state_and_data, [?OK, {state_timeout, 0, due}]},
        {keep_state_and_data, [?OK, {timeout, ?NEVER, again}]},
        {next_state, b, '$same', [?OK]},
        {next_state, b, '$same', [?OK, {state_timeout, ?NEVER, s2}]},
        {repeat_state_and_data, ?OK}
    ],
    for_each_mode(fun(Side, Mode) ->
        [
            begin
                Machine = machine(Side, Mode),
                ok = call(Machine, {keep_state, '$data', [?OK | All]}),
                rest(Machine),
                Set = timeouts(Machine),
                _ = call(Machine, Cause),
                settled(Machine),
                rest(Machine),
                {Set, timeouts(Machine)}
            end
         || Cause <- Causes
        ]
    end).

%% Its message is already in the mailbox when it is cancelled or replaced.
a_cancelled_timeout_is_delivered(_Config) ->
    for_each_mode(fun(Side, Mode) ->
        [
            begin
                Machine = machine(Side, Mode),
                rest(Machine),
                New = {Type, Time, {do, new, keep_state_and_data}},
                Old = {Type, 1, {do, old, keep_state_and_data}},
                ok = call(Machine, {'$eval', fun({call, From}, Data) ->
                    Later = {'$eval', fun(_, Same) ->
                        until(fun() ->
                            process_info(self(), message_queue_len) =/= {message_queue_len, 0}
                        end),
                        {next_state, b, Same, [New, {reply, From, ok}]}
                    end},
                    {keep_state, Data, [Old, {next_event, internal, {do, later, Later}}]}
                end}),
                settled(Machine),
                rest(Machine),
                {get(Machine, n), timeouts(Machine)}
            end
         || Type <- [state_timeout, {timeout, t}], Time <- [infinity, ?NEVER, 0]
        ]
    end).

%% Of gen_statem before OTP 28, the longer one never comes.
a_timeout_that_replaces_one_that_is_due_is_lost(_Config) ->
    [
        erlmcp_server_statem_twin:transcript({idle_after, Idle}, fun(Side) ->
            Machine = machine(Side, state_functions),
            Replace = {keep_state_and_data, {state_timeout, 20, {do, longer, keep_state_and_data}}},
            ok = call(
                Machine,
                {keep_state, '$data', [
                    ?OK,
                    {state_timeout, 0, {do, at_once, keep_state_and_data}},
                    {next_event, internal, {do, replace, Replace}}
                ]}
            ),
            await(longer),
            [{_, []}] = [timeouts(Machine)],
            receive
                {seen, _, at_once, _, _} -> ct:fail(at_once)
            after 0 -> ok
            end
        end)
     || Idle <- [0, 20, infinity]
    ].

a_foreign_timeout_message_is_eaten(_Config) ->
    for_each_mode(fun(Side, Mode) ->
        Machine = machine(Side, Mode),
        ok = call(Machine, {keep_state, '$data', [?OK, {state_timeout, ?NEVER, x}]}),
        [
            rested(Machine, fun() -> Machine ! Message end)
         || Message <- [
                timeout,
                {timeout, make_ref(), state_timeout},
                {timeout, make_ref(), ?LOOP},
                {timeout, make_ref(), {timeout, x}},
                {timeout, 0, state_timeout},
                {timeout, undefined, ?LOOP},
                {timeout, [], []},
                {'EXIT', self(), reason},
                {'$gen_call', nobody, x},
                {'DOWN', a, b, c, d}
            ]
        ],
        {get(Machine, n), timeouts(Machine)}
    end).

%% Its idle time does not go on over an event, and an event does not come at its end.
an_event_comes_of_parking(_Config) ->
    erlmcp_server_statem_twin:transcript({idle_after, 0}, fun(Side) ->
        Machine = machine(Side, state_functions),
        [
            begin
                ok = call(Machine, {keep_state, '$data', Actions}),
                until(fun() -> erlmcp_server_statem_twin:is_parked(Machine) end)
            end
         || _ <- lists:seq(1, 20), Actions <- [?OK, [?OK, hibernate], [?OK, {timeout, ?NEVER, x}]]
        ],
        Events = [
            Event
         || {seen, _, _, _, _} = Event <- element(2, process_info(self(), messages))
        ],
        ?assertEqual(60, length(Events)),
        ?assertEqual(['$ancestors', '$initial_call', mode], keys(Machine))
    end).

%% After a peak, parked machines are told to move: no event comes of it.
an_event_comes_of_moving(_Config) ->
    ok = erlmcp_server_help:no_peak(),
    Peak = erlmcp_memory_nif:slot_new(),
    erlmcp_server_statem_twin:transcript({idle_after, 0}, fun(Side) ->
        Machine = machine(Side, state_functions),
        _ = erlmcp_memory_nif:slot_awake(Peak, 64 bsl 20),
        ok = call(Machine, {keep_state, '$data', [?OK, {state_timeout, ?NEVER, x}]}),
        until(fun() -> erlmcp_server_statem_twin:is_parked(Machine) end),
        until(fun() -> erlmcp_memory_nif:roster() > 0 end),
        _ = erlmcp_memory_nif:slot_awake(Peak, 0),
        until(fun() ->
            erlmcp_memory_nif:roster() =:= 0 andalso whereis(erlmcp_memory_tidier) =:= undefined
        end),
        until(fun() -> erlmcp_server_statem_twin:is_parked(Machine) end),
        Events = [
            Event
         || {seen, _, _, _, _} = Event <- element(2, process_info(self(), messages))
        ],
        ?assertEqual(1, length(Events)),
        ?assertEqual({message_queue_len, 0}, process_info(Machine, message_queue_len)),
        ok = call(Machine, {keep_state, '$data', ?OK})
    end).

keys(Machine) ->
    {dictionary, Pairs} = process_info(Machine, dictionary),
    lists:sort(proplists:get_keys(Pairs)).

%%% Modules

another_callback_module_is_called_as_the_first(Config) ->
    OtherMode = #{callback_mode => "callback_mode() -> get(other)."},
    Other = compiled(Config, erlmcp_statem_other, OtherMode),
    Bad = compiled(Config, erlmcp_statem_bad, #{callback_mode => "callback_mode() -> nothing."}),
    Modes = [
        state_functions,
        [state_functions, state_enter],
        handle_event_function,
        [state_enter, handle_event_function],
        [state_functions, handle_event_function]
    ],
    same(fun(Side) ->
        [
            begin
                Machine = machine(Side, First),
                ok = call(Machine, {'$eval', fun({call, From}, _) ->
                    put(other, Second),
                    {keep_state_and_data, {reply, From, ok}}
                end}),
                [
                    rested(Machine, fun() ->
                        ok = call(Machine, Result),
                        modules(Machine)
                    end)
                 || Result <- [
                        {keep_state, '$data', [?OK, {push_callback_module, Other}]},
                        {next_state, b, '$data', ?OK},
                        {next_state, c, '$data', [?OK, {push_callback_module, ?SCRIPT}]},
                        {next_state, a, '$data', [{change_callback_module, Other}, ?OK]},
                        {repeat_state, '$data', [
                            {next_event, internal, x}, ?OK, pop_callback_module
                        ]},
                        {next_state, b, '$data', [pop_callback_module, ?OK]},
                        {repeat_state_and_data, [{change_callback_module, Other}, ?OK]}
                    ]
                ]
            end
         || First <- Modes, Second <- Modes
        ]
    end),
    for_each_end([
        {next_state, b, '$data', Action}
     || Action <- [
            {push_callback_module, Bad},
            [{push_callback_module, ?SCRIPT}, {change_callback_module, Bad}],
            [{push_callback_module, ?SCRIPT}, pop_callback_module, pop_callback_module]
        ]
    ]).

%%% Start

init_comes_to_something_else(_Config) ->
    Results = [
        {ok, a, '$data'},
        {'$throw', {ok, b, '$data'}},
        {ok, a, '$data', []},
        ignore,
        {stop, oops},
        {stop, normal},
        {stop, shutdown},
        {stop, {shutdown, x}},
        {error, oops},
        {error, normal},
        nothing,
        {ok, a},
        {ok, a, b, [], c},
        {'$throw', ignore},
        {'$throw', {stop, oops}},
        {'$throw', nothing},
        {'$error', oops},
        {'$exit', oops},
        {'$exit', normal},
        {'$exit', shutdown},
        {'$eval', fun(_, _) -> no_such_module:no_such_function() end}
    ],
    Modes = [{crash, oops}, {throw, state_functions}, {throw, nothing}, nothing, [], [state_enter]],
    Started =
        [{Result, state_functions} || Result <- Results] ++
            [{{ok, a, '$data'}, Mode} || Mode <- Modes],
    same(fun(Side) ->
        process_flag(trap_exit, true),
        [
            outcome(Side, Function, Name, Mode, Result)
         || Function <- [start, start_link, start_monitor],
            Name <- [[], [{local, erlmcp_statem_name}], [{global, g}], [{via, global, v}]],
            {Result, Mode} <- Started
        ]
    end).

outcome(Side, Function, Name, Mode, Result) ->
    Self = self(),
    Told = {'$eval', fun(none, Data) ->
        Self ! {init, self()},
        erlmcp_server_statem_script:run(Result, none, Data)
    end},
    Returned = start(Side, Function, Name ++ [?SCRIPT, {Mode, data(Self), Told}]),
    receive
        {init, Pid} ->
            _ = is_tuple(Returned) andalso element(1, Returned) =:= ok andalso stop(Pid),
            erlmcp_server_statem_twin:ended(Pid),
            %% A link may tell of its end a moment later.
            receive
                {'EXIT', Pid, Reason} -> {Returned, Reason, named(Name)}
            after 10 -> {Returned, named(Name)}
            end
    end.

stop(Machine) ->
    Monitor = monitor(process, Machine),
    _ = tried(fun() -> gen_statem:stop(Machine) end),
    receive
        {'DOWN', Monitor, process, Machine, _} -> ok
    end.

named([]) -> free;
named([{local, Name}]) -> whereis(Name);
named([{global, Name}]) -> global:whereis_name(Name);
named([{via, Module, Name}]) -> Module:whereis_name(Name).

a_name_is_left_after_a_failed_start(_Config) ->
    same(fun(Side) ->
        [
            begin
                Failed = outcome(Side, start, [Name], state_functions, {stop, oops}),
                Machine = machine(Side, [Name], state_functions, data(self())),
                rest(Machine),
                Again = start(Side, Function, [Name, ?SCRIPT, {state_functions, none, ignore}]),
                ok = call(server(Name), {keep_state, '$data', ?OK}),
                Registered = named([Name]) =:= Machine,
                stop(Machine),
                {Failed, Again, Registered, named([Name])}
            end
         || Name <- [{local, erlmcp_statem_name}, {global, g}, {via, global, v}],
            Function <- [start, start_link, start_monitor]
        ]
    end).

server({local, Name}) -> Name;
server(Name) -> Name.

actions_of_init_are_not_done(_Config) ->
    Event = {do, event, {keep_state, '$data', hibernate}},
    for_each_mode(fun(Side, Mode) ->
        [
            begin
                {ok, Machine} = start(
                    Side, start, [?SCRIPT, {Mode, data(self()), {ok, b, '$data', Actions}}]
                ),
                settled(Machine),
                rest(Machine),
                {tried(fun() -> timeouts(Machine) end), tried(fun() -> get(Machine, n) end)}
            end
         || Actions <- [
                hibernate,
                postpone,
                {reply, {self(), ref}, hello},
                [{next_event, internal, Event}, {state_timeout, 0, Event}],
                [{timeout, 0, Event}, {{timeout, t}, ?NEVER, Event}],
                {push_callback_module, ?SCRIPT},
                pop_callback_module,
                nothing
            ]
        ]
    end).

enter_loop_differs(_Config) ->
    same(fun(Side) ->
        {Module, Options} = erlmcp_server_statem_twin:side(Side),
        Self = self(),
        Entries = [
            {none, []},
            {none, [[{next_event, internal, x}]]},
            {none, [self]},
            {none, [self, {state_timeout, 0, x}]},
            {{local, erlmcp_statem_name}, [{local, erlmcp_statem_name}]},
            {{local, erlmcp_statem_name}, [{local, erlmcp_statem_name}, [hibernate]]},
            {none, [{local, erlmcp_statem_other_name}]},
            {none, [{global, nobody}, []]},
            {none, [self, nothing]}
        ],
        [
            begin
                Machine = watch(
                    proc_lib:spawn(fun() ->
                        {local, Name} =:= Entry andalso register(Name, self()),
                        put(mode, [state_functions, state_enter]),
                        Others = [
                            case Argument of
                                self -> self();
                                _ -> Argument
                            end
                         || Argument <- Arguments
                        ],
                        apply(Module, enter_loop, [?SCRIPT, Options, a, data(Self) | Others])
                    end)
                ),
                settled(Machine),
                rest(Machine),
                Answered = call(Machine, {next_state, b, '$data', ?OK}),
                rest(Machine),
                Status = proc_lib:translate_initial_call(Machine),
                stop(Machine),
                {Answered, Status}
            end
         || {Entry, Arguments} <- Entries, Name <- [erlmcp_statem_name]
        ]
    end).

a_wrong_start_raises_something_else(_Config) ->
    process_flag(trap_exit, true),
    Wrong = [
        [?SCRIPT, args, options],
        [name, ?SCRIPT, args, []],
        [{nothing, name}, ?SCRIPT, args, []],
        [{local, erlmcp_statem_name}, 1, args, []]
    ],
    [
        ?assertEqual(
            tried(fun() -> apply(gen_statem, Function, Arguments) end),
            tried(fun() -> apply(?M, Function, Arguments) end)
        )
     || Function <- [start, start_link, start_monitor], Arguments <- Wrong
    ],
    [
        ?assertMatch(
            {error, badarg}, tried(fun() -> ?M:start(?SCRIPT, args, [{idle_after, Time}]) end)
        )
     || Time <- [-1, soon, 1 bsl 32, 1.0]
    ].


%%% sys

sys_shows_something_else(_Config) ->
    Looks = [
        fun sys:get_state/1,
        fun sys:get_status/1,
        fun(M) -> sys:replace_state(M, fun(Same) -> Same end) end,
        fun(M) -> sys:replace_state(M, fun({S, D}) -> {S, D#{n := 7}} end) end,
        fun(M) -> sys:replace_state(M, fun({_, D}) -> {b, D} end) end,
        fun(M) -> tried(fun() -> sys:replace_state(M, fun(_) -> error(oops) end) end) end,
        fun(M) -> gen:call(M, system, unknown) end,
        fun(M) -> sys:change_code(M, ?SCRIPT, vsn, extra) end,
        fun(M) -> sys:statistics(M, true) end,
        fun(M) ->
            {ok, Counts} = sys:statistics(M, get),
            lists:keydelete(reductions, 1, lists:nthtail(2, Counts))
        end,
        fun(M) -> sys:log(M, true) end,
        fun(M) -> sys:log(M, get) end,
        fun(M) -> sys:log(M, false) end,
        fun sys:no_debug/1,
        fun sys:suspend/1,
        fun sys:resume/1,
        fun sys:get_state/1
    ],
    Conditions = [
        fun(M) -> call(M, {keep_state, '$data', ?OK}) end,
        fun(M) -> call(M, {keep_state, '$data', [?OK, {{timeout, t}, ?NEVER, x}]}), rest(M) end,
        fun(M) -> call(M, {keep_state, '$data', [?OK, postpone, hibernate]}), rest(M) end,
        fun(M) -> call(M, {keep_state, '$same', ?OK}), rest(M), sys:suspend(M) end
    ],
    for_each_mode(fun(Side, Mode) ->
        [
            begin
                Machine = machine(Side, Mode),
                rest(Machine),
                _ = Condition(Machine),
                Shown = [Look(Machine) || Look <- Looks],
                rest(Machine),
                Last = {get(Machine, n), sys:get_state(Machine)},
                rest(Machine),
                _ = Condition(Machine),
                Reason = lists:nth(erlang:phash2(Mode, 3) + 1, [normal, shutdown, oops]),
                ok = sys:terminate(Machine, Reason),
                stopped(Machine),
                {Shown, Last}
            end
         || Condition <- Conditions
        ]
    end).

a_failed_replacement_loses_the_data(_Config) ->
    each_side(fun(Side) ->
        Machine = machine(Side, state_functions),
        {a, 0} = get(Machine, n),
        rest(Machine),
        Before = sys:get_state(Machine),
        [
            ?assertError(
                {callback_failed, {?M, system_replace_state}, _},
                sys:replace_state(Machine, Replace)
            )
         || Replace <- [fun(_) -> error(oops) end, fun(_) -> nothing end, fun({_, _}) -> {a} end]
        ],
        rest(Machine),
        ?assert(Before =:= sys:get_state(Machine)),
        ?assertEqual({a, 0}, get(Machine, n))
    end).

code_change_differs(_Config) ->
    Changes = [
        {state_functions, {ok, b, '$data'}},
        {[handle_event_function, state_enter], {ok, {no, atom}, '$data'}},
        {handle_event_function, {ok, a, '$same'}},
        {handle_event_function, {'$throw', {ok, c, '$data'}}},
        {nothing, {ok, b, '$data'}},
        {state_functions, {ok, b}},
        {state_functions, {error, oops}},
        {state_functions, nothing},
        {state_functions, {'$error', oops}},
        {state_functions, {'$exit', oops}}
    ],
    for_each_mode(fun(Side, Mode) ->
        [
            begin
                Machine = machine(Side, Mode),
                _ = call(Machine, {keep_state, '$data', [?OK, {state_timeout, ?NEVER, x}]}),
                rest(Machine),
                ok = sys:suspend(Machine),
                Changed = without_stack(sys:change_code(Machine, ?SCRIPT, vsn, Change)),
                ok = sys:resume(Machine),
                rest(Machine),
                Replied = call(Machine, {keep_state, '$data', ?OK}),
                {Changed, Replied, tried(fun() -> timeouts(Machine) end)}
            end
         || Change <- Changes
        ]
    end).

without_stack({error, {'EXIT', {Reason, _}}}) -> {error, {'EXIT', Reason}};
without_stack(Changed) -> Changed.

debug_is_dropped_by_parking(Config) ->
    File = filename:join(proplists:get_value(priv_dir, Config), "debug"),
    for_each_mode(fun(Side, Mode) ->
        Self = self(),
        {ok, Machine} = start(
            Side,
            start,
            [?SCRIPT, {Mode, data(self()), {ok, a, '$same'}}],
            [{debug, [{log, 20}, statistics, {log_to_file, File}]}]
        ),
        Install = fun(Count, Event, Name) ->
            Self ! {installed, Count, element(1, Event), Name},
            Count + 1
        end,
        ok = sys:install(Machine, {count, Install, 0}),
        [
            begin
                rest(Machine),
                _ = call(Machine, Result),
                cast(Machine, {keep_state, '$data', [postpone, {{timeout, t}, 0, x}]}),
                Machine ! hello,
                settled(Machine)
            end
         || Result <- [
                {next_state, b, '$data', [?OK, {state_timeout, ?NEVER, x}]},
                {next_state, c, '$data', ?OK},
                {keep_state, '$data', [
                    ?OK, {next_event, internal, x}, {push_callback_module, ?SCRIPT}
                ]},
                {next_state, a, '$data', [?OK, hibernate, {timeout, ?NEVER, x}]}
            ]
        ],
        rest(Machine),
        {ok, Log} = sys:log(Machine, get),
        {ok, [_, _, _ | Counts]} = sys:statistics(Machine, get),
        ok = sys:remove(Machine, count),
        rest(Machine),
        ok = gen_statem:stop(Machine, shutdown, ?DEADLINE),
        {ok, Text} = file:read_file(File),
        {Log, Counts, re:replace(Text, "<[0-9.]+>|#Ref<[0-9.]+>", "x", [global, {return, binary}])}
    end).

%% It would, if sys were to hibernate it while a message waits that is none for it.
a_suspended_machine_spins(_Config) ->
    each_side(fun(Side) ->
        Machine = machine(Side, state_functions),
        ok = call(Machine, {keep_state, '$data', [?OK, hibernate]}),
        rest(Machine),
        ok = sys:suspend(Machine),
        Machine ! hello,
        _ = sys:get_state(Machine),
        {reductions, Before} = process_info(Machine, reductions),
        receive
        after 100 -> ok
        end,
        {reductions, After} = process_info(Machine, reductions),
        ?assert(After - Before < 10000),
        ok = sys:resume(Machine),
        await(hello)
    end).

%%% Exits

an_exit_of_the_parent_is_ignored(_Config) ->
    Whens = [
        fun(_) -> ok end,
        fun erlmcp_server_statem_twin:rest/1,
        fun sys:suspend/1,
        fun(Machine) -> rest(Machine), sys:suspend(Machine) end
    ],
    same(fun(Side) ->
        [
            begin
                Self = self(),
                {Module, Options} = erlmcp_server_statem_twin:side(Side),
                Init = {'$eval', fun(none, Data) ->
                    process_flag(trap_exit, Traps),
                    {ok, a, Data}
                end},
                Parent = spawn(fun() ->
                    Arguments = {state_functions, data(Self), Init},
                    Self ! {started, Module:start_link(?SCRIPT, Arguments, Options)},
                    receive
                        {exit, Reason} -> exit(Reason)
                    end
                end),
                receive
                    {started, {ok, Machine}} -> watch(Machine)
                end,
                %% Others' exits are messages.
                _ = Traps andalso exit(Machine, others),
                _ = When(Machine),
                Parent ! {exit, Reason},
                Reason =:= normal andalso not Traps orelse stopped(Machine),
                Reason
            end
         || Traps <- [true, false], Reason <- [normal, shutdown, oops], When <- Whens
        ]
    end).

%%% Reports

a_report_is_another_one(Config) ->
    Shows = [
        #{},
        #{terminate => none},
        #{s => "format_status(Map) -> maps:map(fun(K, V) -> {shown, K, is_list(V)} end, Map)."},
        #{s => "format_status(Map) -> Map#{unknown => 1}."},
        #{s => "format_status(_) -> nothing."},
        #{s => "format_status(_) -> error(oops)."},
        #{s => "format_status(O, [D, S, Data]) -> {O, is_list(D), S, maps:get(n, Data)}."},
        #{s => "format_status(normal, [_, S, _]) -> [{data, [{\"State\", S}]}]; "
               "format_status(terminate, [_, S, _]) -> S."},
        #{s => "format_status(_, _) -> throw(thrown)."},
        #{s => "format_status(_, _) -> error(oops)."}
    ],
    Modules = [
        compiled(Config, list_to_atom("erlmcp_statem_shown_" ++ integer_to_list(N)), Show)
     || {N, Show} <- lists:zip(lists:seq(1, length(Shows)), Shows)
    ],
    Ends = [
        {'$error', oops},
        {stop, oops, '$data'},
        {stop_and_reply, oops, ?OK},
        {stop, {shutdown, x}},
        nothing,
        {keep_state_and_data, [?OK, {state_timeout, -1, x}]},
        {'$eval', fun({call, {From, _}}, _) -> exit({From, oops}) end},
        {'$eval', fun(_, _) -> labelled(), error(oops) end}
    ],
    same(fun(Side) ->
        [
            begin
                {ok, Machine} = start(
                    Side,
                    start,
                    [Module, {[handle_event_function, state_enter], Data, {ok, a, '$same'}}],
                    [{debug, [{log, 10}]}]
                ),
                _ = call(Machine, {keep_state, '$data', [?OK, postpone]}),
                _ = call(Machine, {keep_state, '$data', [?OK, {{timeout, t}, ?NEVER, x}]}),
                rest(Machine),
                Status = sys:get_status(Machine),
                rest(Machine),
                Reply = call(Machine, End),
                stopped(Machine),
                {Status, Reply}
            end
         || Module <- Modules,
            End <- Ends,
            Data <- [data(self())] ++
                [data(self(), #{terminate => {'$error', bad}}) || Module =:= hd(Modules)]
        ]
    end),
    [
        begin
            code:purge(Module),
            code:delete(Module)
        end
     || Module <- Modules
    ].

labelled() ->
    Library = proc_lib,
    case erlang:function_exported(Library, set_label, 1) of
        true -> Library:set_label({a, label});
        false -> ok
    end.

%%% Replies

a_reply_does_not_arrive(_Config) ->
    same(fun(Side) ->
        Machine = machine(Side, state_functions),
        Hold = {'$eval', fun({call, From}, Data) -> {keep_state, Data#{from => From}, []} end},
        Answer = {keep_state_and_data, {reply, '$from', answered}},
        Others = {'$eval', fun(_, #{from := From}) ->
            spawn(fun() -> gen_statem:reply(From, by_another) end),
            keep_state_and_data
        end},
        [
            begin
                rest(Machine),
                Request = gen_statem:send_request(Machine, {do, hold, Hold}),
                settled(Machine),
                rest(Machine),
                cast(Machine, How),
                gen_statem:receive_response(Request, ?DEADLINE)
            end
         || How <- [Answer, Others]
        ] ++
            [
                begin
                    Late = tried(fun() -> gen_statem:call(Machine, {do, hold, Hold}, {How, 1}) end),
                    rest(Machine),
                    cast(Machine, Answer),
                    settled(Machine),
                    Late
                end
             || How <- [clean_timeout, dirty_timeout]
            ]
    end).

%%% Upgrades

%% Waiting, parked, hibernating, suspended and in a callback. After the second of them, nothing of
%% the code is left in which it began.
a_machine_waits_in_code_that_is_purged(_Config) ->
    Self = self(),
    each_side(fun(Side) ->
        process_flag(trap_exit, true),
        [Waiting, Resting, Hibernating, Suspended, Busy, Postponing] =
            Machines = [machine(Side, state_functions) || _ <- lists:seq(1, 6)],
        [ok = call(Machine, {next_state, b, '$data', ?OK}) || Machine <- Machines],
        ok = call(Postponing, {keep_state_and_data, [?OK, postpone, {state_timeout, ?NEVER, x}]}),
        rest(Resting),
        rest(Postponing),
        ok = call(Hibernating, {keep_state, '$data', [?OK, hibernate]}),
        ok = sys:suspend(Suspended),
        Working = {'$eval', fun({call, From}, Data) ->
            Stage = self(),
            maps:get(owner, Data) ! {busy, Stage},
            receive
                go_on -> {next_state, c, Data, {reply, From, done}}
            end
        end},
        Request = gen_statem:send_request(Busy, {do, work, Working}),
        receive
            {busy, Busy} -> ok
        end,
        [
            begin
                _ = code:purge(Module),
                ?assertEqual({module, Module}, code:load_file(Module)),
                [?assert(is_process_alive(Machine)) || Machine <- Machines]
            end
         || _ <- [1, 2, 3], Module <- engine()
        ],
        Busy ! go_on,
        {reply, done} = gen_statem:receive_response(Request, ?DEADLINE),
        ok = sys:resume(Suspended),
        [
            ?assertEqual({State, N}, get(Machine, n))
         || {Machine, State, N} <- [
                {Waiting, b, 1},
                {Resting, b, 1},
                {Hibernating, b, 2},
                {Suspended, b, 1},
                {Busy, c, 1},
                {Postponing, b, 1}
            ]
        ],
        [ok = gen_statem:stop(Machine) || Machine <- Machines],
        Self ! {done, Side}
    end).

%% All of it but the one module that never changes.
engine() ->
    [
        erlmcp_memory_statem,
        erlmcp_memory_statem_loop,
        erlmcp_memory_statem_step,
        erlmcp_memory_statem_timers,
        erlmcp_memory_statem_report,
        erlmcp_memory_parking
    ].

%% These are what the first version leaves behind when it is replaced. Newer ones must take them.
an_older_loop_is_refused(_Config) ->
    erlmcp_server_statem_twin:transcript({idle_after, 0}, fun(_Side) ->
        Self = self(),
        %% The shapes of this one are not the engine's.
        Awake = fun() -> erlmcp_memory_parking:new([{idle_after, 0}]) end,
        Parked = fun() ->
            {parked, Parking} =
                erlmcp_memory_parking:park(crowded, data(Self), ?SCRIPT, Awake()),
            Parking
        end,
        Loop = fun(State, Data, Then, Timers) ->
            {loop, 1, self(), Self, [], [?SCRIPT], state_functions, false, State, Data, [], Timers,
                false, infinity, Awake(), Then, undefined}
        end,
        Empty = {timers, #{}, [], #{}},
        Shapes = [
            fun() ->
                Ref = make_ref(),
                Timers = {timers, #{state_timeout => {Ref, x}}, [], #{make_ref() => []}},
                erlmcp_memory_wait:wait(?LOOP, Loop(b, data(Self), {park, idle}, Timers), infinity)
            end,
            fun() ->
                erlmcp_memory_wait:hibernate(?LOOP, Loop(b, data(Self), hibernate, Empty))
            end,
            fun() ->
                Compact = erlmcp_memory_parking:compact(Parked()),
                Asleep = {asleep, 1, self(), Self, [?SCRIPT], state_functions, false, b, infinity,
                    Compact},
                erlmcp_memory_wait:hibernate(?LOOP, Asleep)
            end,
            fun() ->
                Queue = [{info, hello}],
                Step = {step, Loop(a, data(Self), rest, Empty), Queue, a, data(Self), false, false,
                    [], [], false, false},
                Args = [info, {do, x, {next_state, b, '$same'}}, data(Self)],
                erlmcp_memory_wait:call(?SCRIPT, a, Args, ?LOOP, Step)
            end,
            fun() ->
                Then = {admit, {cast, x}, other, 5},
                Sleeping = setelement(15, Loop(b, undefined, Then, Empty), Parked()),
                erlmcp_memory_wait:sleep(?LOOP, Sleeping, 1)
            end
        ],
        [
            begin
                Machine = watch(
                    proc_lib:spawn(fun() ->
                        put(mode, state_functions),
                        Shape()
                    end)
                ),
                {b, 0} = get(Machine, n),
                _ = sys:get_status(Machine),
                ok = call(Machine, {next_state, c, '$data', ?OK}),
                rest(Machine),
                {c, 1} = get(Machine, n)
            end
         || Shape <- Shapes
        ]
    end).

%%% Parking

data_stay_alive_by_what_came_last(_Config) ->
    Large = fun() -> [{N, <<N:800>>} || N <- lists:seq(1, 2000)] end,
    erlmcp_server_statem_twin:transcript({idle_after, 0}, fun(Side) ->
        Machine = machine(Side, handle_event_function),
        [
            begin
                Act(),
                settled(Machine),
                until(fun() -> erlmcp_server_statem_twin:is_parked(Machine) end),
                {binary, Held} = process_info(Machine, binary),
                ?assert(length(Held) < 5)
            end
         || Act <- [
                fun() -> gen_statem:cast(Machine, Large()) end,
                fun() -> Machine ! Large() end,
                fun() ->
                    Held = Large(),
                    call(Machine, {'$eval', fun({call, From}, Data) ->
                        {keep_state, Data#{held => Held}, {reply, From, Held}}
                    end})
                end,
                fun() ->
                    call(Machine, {'$eval', fun({call, From}, Data) ->
                        try
                            error({oops, Large()})
                        catch
                            error:_ -> throw({keep_state, Data#{held => x}, {reply, From, ok}})
                        end
                    end})
                end,
                fun() ->
                    sys:replace_state(Machine, fun({S, D}) -> {S, D#{held => Large()}} end)
                end,
                fun() -> sys:get_status(Machine) end
            ]
        ]
    end).

data_that_are_equal_are_taken_for_the_same(_Config) ->
    %% Before OTP 27 they are the same.
    Negative = binary_to_term(term_to_binary(-0.0)),
    each_side(fun(Side) ->
        Machine = machine(Side, state_functions, data(self(), #{value => 1})),
        rest(Machine),
        [
            begin
                ok = gen_statem:call(Machine, {do, set, {'$eval', fun({call, From}, Data) ->
                    {keep_state, Data#{value := Value}, {reply, From, ok}}
                end}}),
                rest(Machine),
                {a, Read} = get(Machine, value),
                ?assert(Read =:= Value),
                rest(Machine)
            end
         || Value <- [1.0, 1, 0.0, Negative, 0, {1}, {1.0}, #{1 => x}, #{1.0 => x}]
        ]
    end).

data_that_cannot_be_parked_end_the_machine(_Config) ->
    Deep = lists:foldl(fun(_, Key) -> #{Key => x} end, x, lists:seq(1, 2000)),
    erlmcp_server_statem_twin:transcript({idle_after, 0}, fun(Side) ->
        Machine = machine(Side, state_functions),
        Hold = {'$eval', fun({call, From}, Data) ->
            {keep_state, Data#{held => Deep}, {reply, From, ok}}
        end},
        rest(Machine),
        ok = gen_statem:call(Machine, {do, hold, Hold}),
        rest(Machine),
        ?assertNot(erlmcp_server_statem_twin:is_parked(Machine)),
        [
            begin
                {a, Held} = get(Machine, held),
                ?assert(Held =:= Deep),
                rest(Machine),
                ok = call(Machine, {next_state, a, '$data', [?OK | Actions]}),
                rest(Machine)
            end
         || Actions <- [[], [hibernate], []]
        ],
        _ = sys:replace_state(Machine, fun({S, D}) -> {S, maps:remove(held, D)} end),
        ok = call(Machine, {keep_state, '$data', ?OK}),
        until(fun() -> erlmcp_server_statem_twin:is_parked(Machine) end),
        _ = sys:replace_state(Machine, fun({S, D}) -> {S, D#{held => Deep}} end),
        {a, Still} = get(Machine, held),
        ?assert(Still =:= Deep)
    end).

looking_unparks_the_data(_Config) ->
    erlmcp_server_statem_twin:transcript({idle_after, 0}, fun(Side) ->
        Machine = machine(Side, state_functions),
        ok = call(Machine, {keep_state_and_data, [?OK, {state_timeout, ?NEVER, x}]}),
        until(fun() -> erlmcp_server_statem_twin:is_parked(Machine) end),
        Awake = erlmcp_memory_nif:awake_bytes(),
        [
            begin
                _ = Look(Machine),
                rest(Machine),
                ?assert(erlmcp_server_statem_twin:is_parked(Machine)),
                ?assertEqual(Awake, erlmcp_memory_nif:awake_bytes())
            end
         || Look <- [fun sys:get_state/1, fun sys:get_status/1, fun replaced/1, fun late/1]
        ]
    end).

replaced(Machine) ->
    sys:replace_state(Machine, fun({S, D}) -> {S, D#{n := 1}} end).

late(Machine) ->
    sys:suspend(Machine),
    sys:get_state(Machine),
    sys:resume(Machine).

a_machine_does_not_park(_Config) ->
    erlmcp_server_statem_twin:transcript({idle_after, 20}, fun(_Side) ->
        Parks = fun(Options) ->
            {ok, Machine} = start(plain_side(Options), start, [
                ?SCRIPT, {state_functions, data(self()), {ok, a, '$same'}}
            ]),
            Machine
        end,
        [
            begin
                Machine = Parks(Idle),
                [
                    begin
                        ok = call(Machine, {keep_state, '$data', [?OK | Actions]}),
                        until(fun() -> erlmcp_server_statem_twin:is_parked(Machine) end)
                    end
                 || Actions <- [[], [hibernate], [{state_timeout, ?NEVER, x}], [postpone]]
                ]
            end
         || Idle <- [0, 1, 20]
        ],
        %% Awake or hibernating, but on its heap.
        Never = Parks(infinity),
        ok = call(Never, {keep_state, '$data', [?OK, hibernate]}),
        until(fun() -> is_hibernating(Never) end),
        ?assertNot(erlmcp_server_statem_twin:is_parked(Never)),
        {ok, Hibernating} = ?M:start(
            ?SCRIPT,
            {state_functions, data(self()), {ok, a, '$same'}},
            [{idle_after, infinity}, {hibernate_after, 1}]
        ),
        watch(Hibernating),
        until(fun() -> is_hibernating(Hibernating) end),
        ?assertNot(erlmcp_server_statem_twin:is_parked(Hibernating))
    end).

plain_side(Idle) -> {idle_after, Idle}.

is_hibernating(Machine) ->
    process_info(Machine, current_function) =:= {current_function, {erlang, hibernate, 3}}.

%% Where the setting says so: nothing of ours is in them.
plain_machines_park(_Config) ->
    with_setting(connection_state_compact, false, fun() ->
        erlmcp_server_statem_twin:transcript({idle_after, 1}, fun(Side) ->
            Machine = machine(Side, state_functions),
            until(fun() ->
                {_, {_, Function, _}} = process_info(Machine, current_function),
                lists:member(Function, [hibernate, loop_hibernate])
            end),
            ?assertNot(erlmcp_server_statem_twin:is_parked(Machine)),
            ?assertMatch({status, _, {module, gen_statem}, _}, sys:get_status(Machine)),
            Self = self(),
            Entered = watch(
                proc_lib:spawn(fun() ->
                    put(mode, state_functions),
                    ?M:enter_loop(?SCRIPT, [{idle_after, 1}], a, data(Self))
                end)
            ),
            ?assertMatch({status, _, {module, gen_statem}, _}, sys:get_status(Entered))
        end)
    end).

a_wrong_setting_is_taken_for_another_value(_Config) ->
    [
        with_setting(Key, Value, fun() ->
            Failure = {invalid_config, Key, Value},
            [
                ?assertEqual({error, Failure}, ?M:Start(?SCRIPT, {none, x, ignore}, []))
             || Start <- [start, start_link, start_monitor]
            ],
            ?assertError(Failure, ?M:enter_loop(?SCRIPT, [], a, x))
        end)
     || {Key, Value} <- [
            {connection_idle_after, soon},
            {awake_memory_limit, -1},
            {connection_state_compact, perhaps}
        ]
    ].

with_setting(Key, Value, Act) ->
    ok = application:set_env(erlmcp_memory, Key, Value),
    try
        Act()
    after
        ok = application:unset_env(erlmcp_memory, Key)
    end.

%% Somebody reads what has changed in gen, gen_statem, sys and proc_lib, and raises the number.
a_newer_release_was_not_reviewed(_Config) ->
    ?assert(list_to_integer(erlang:system_info(otp_release)) =< 29).

random_events_agree(_Config) ->
    case code:which(proper) of
        non_existing -> {skip, "PropEr is not installed"};
        _ -> ?assert(erlmcp_server_statem_prop:check())
    end.

%%% What the cases have in common

for_each_mode(Act) ->
    same(fun(Side) ->
        [
            Act(Side, Mode)
         || Mode <- [
                state_functions,
                [state_functions, state_enter],
                handle_event_function,
                [handle_event_function, state_enter]
            ]
        ]
    end).

%% Those that can park, and one that cannot.
each_side(Act) ->
    [
        erlmcp_server_statem_twin:transcript({idle_after, Idle}, Act)
     || Idle <- [0, 20, infinity]
    ].

machine(Side, Mode) ->
    machine(Side, Mode, data(self())).

machine(Side, Mode, Data) ->
    machine(Side, [], Mode, Data).

machine(Side, Name, Mode, Data) ->
    {ok, Machine} = start(Side, start, Name ++ [?SCRIPT, {Mode, Data, {ok, a, '$same'}}]),
    Machine.

rested(Machine, Act) ->
    rest(Machine),
    Act().

%% Waits until no event is left that it did not take from its mailbox.
settled(Machine) ->
    tried(fun() -> sys:get_state(Machine, ?DEADLINE) end).

stopped(Machine) ->
    erlmcp_server_statem_twin:ended(Machine).

status(Machine) ->
    {status, _, _, [_, _, _, _, Status]} = sys:get_status(Machine, ?DEADLINE),
    lists:append([Shown || {data, Shown} <- Status]).

timeouts(Machine) ->
    proplists:get_value("Time-outs", status(Machine)).

modules(Machine) ->
    proplists:get_value("Modules", status(Machine)).

listed(Item) when is_list(Item) -> Item;
listed(Item) -> [Item].

%% A callback module like erlmcp_server_statem_script, but for these functions.
compiled(Config, Name, Changes) ->
    Functions = #{
        init => "init(A) -> ?S:init(A).",
        callback_mode => "callback_mode() -> ?S:callback_mode().",
        a => "a(T, C, D) -> ?S:a(T, C, D).",
        b => "b(T, C, D) -> ?S:b(T, C, D).",
        c => "c(T, C, D) -> ?S:c(T, C, D).",
        handle_event => "handle_event(T, C, S, D) -> ?S:handle_event(T, C, S, D).",
        terminate => "terminate(R, S, D) -> ?S:terminate(R, S, D).",
        code_change => "code_change(V, S, D, X) -> ?S:code_change(V, S, D, X)."
    },
    Head = [
        io_lib:format("-module(~p).\n", [Name]),
        "-compile([export_all, nowarn_export_all]).\n",
        "-define(S, erlmcp_server_statem_script).\n"
    ],
    Bodies = [[Body, $\n] || Body <- maps:values(maps:merge(Functions, Changes)), Body =/= none],
    File = filename:join(proplists:get_value(priv_dir, Config), Name),
    ok = file:write_file([File, ".erl"], [Head, Bodies]),
    {ok, Name, Binary} = compile:file(File, [binary]),
    {module, Name} = code:load_binary(Name, File, Binary),
    Name.
