%% State machines whose data are parked do what those of gen_statem do.
%%
%% Most cases compare twins: see erlmcp_statem_twin.
-module(erlmcp_statem_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-import(erlmcp_statem_twin, [
    same/1, start/3, start/4, watch/1, call/2, cast/2, get/2, rest/1, await/1, wait_for/1
]).
-import(erlmcp_statem_script, [data/1, data/2]).

-define(SCRIPT, erlmcp_statem_script).
-define(M, erlmcp_memory_statem).
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
        another_callback_module_is_called_as_the_first,
        init_comes_to_something_else,
        a_name_is_left_after_a_failed_start,
        actions_of_init_are_not_done,
        enter_loop_differs,
        a_wrong_start_raises_something_else
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
        postpone,
        {postpone, true},
        [postpone, {postpone, false}],
        {next_event, internal, Event},
        {next_event, cast, Event},
        {next_event, info, Event},
        {next_event, timeout, Event},
        {next_event, state_timeout, Event},
        {next_event, {timeout, t}, Event},
        {next_event, {call, '$from'}, Event},
        [{next_event, internal, {do, 1, {keep_state_and_data, hibernate}}}, {next_event, internal, 2}],
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
        {state_timeout, update, x, []},
        {{timeout, t}, 1, x, [{abs, maybe}]},
        {timeout, 1, x, [{abs, true}, {abs, true}]},
        {timeout, 1, x, {abs, 1}},
        {timeout, -1, x, [{abs, false}]},
        {nothing, 1, x},
        {nothing, 1, x, []},
        {nothing, cancel},
        {timeout, cancel, x},
        {next_event, nothing, x},
        {next_event, {call, nobody}, x},
        {next_event, {call, {nobody, ref}}, x},
        {postpone, maybe},
        {hibernate, maybe},
        {change_callback_module, 1},
        {push_callback_module, "x"},
        {push_callback_module, no_such_module},
        {change_callback_module, ?MODULE},
        pop_callback_module,
        [{timeout, 1, x} | nothing],
        [?OK, hibernate, postpone, nothing]
    ],
    for_each_end([{next_state, b, '$data', Action} || Action <- Actions]).

a_state_enter_call_is_missing(_Config) ->
    same(fun(Side) ->
        [
            begin
                Enter = #{
                    a => {keep_state, '$data', {state_timeout, 0, now}},
                    b => {keep_state_and_data, [{reply, '$from', entered}, {{timeout, t}, 0, x}]},
                    c => {next_state, c, '$data', hibernate}
                },
                Machine = machine(Side, [Mode, state_enter], data(self(), #{enter => Enter})),
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
                {Reply, catch get(Machine, n)}
            end
         || Enter <- Enters, Mode <- [state_functions, handle_event_function]
        ]
    end).

a_state_is_no_atom(_Config) ->
    same(fun(Side) ->
        Machine = machine(Side, [handle_event_function, state_enter]),
        States = [{a, #{}}, [1], 1, 1.0, "a", <<"a">>, self()],
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
                    ({call, From}, #{n := 0}) -> {keep_state_and_data, [postpone, {reply, From, N}]};
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
                        wait_for(fun() ->
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
        erlmcp_statem_twin:transcript({idle_after, Idle}, fun(Side) ->
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
                {timeout, make_ref(), ?M},
                {timeout, make_ref(), {timeout, x}},
                {timeout, 0, state_timeout},
                {timeout, undefined, ?M},
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
    erlmcp_statem_twin:transcript({idle_after, 0}, fun(Side) ->
        Machine = machine(Side, state_functions),
        [
            begin
                ok = call(Machine, {keep_state, '$data', Actions}),
                wait_for(fun() -> erlmcp_statem_twin:is_parked(Machine) end)
            end
         || _ <- lists:seq(1, 20), Actions <- [?OK, [?OK, hibernate], [?OK, {timeout, ?NEVER, x}]]
        ],
        Events = [
            Event
         || {seen, _, _, _, _} = Event <- element(2, process_info(self(), messages))
        ],
        ?assertEqual(60, length(Events)),
        ?assertEqual({dictionary, ['$ancestors', '$initial_call', mode]}, {dictionary, keys(Machine)})
    end).

keys(Machine) ->
    {dictionary, Pairs} = process_info(Machine, dictionary),
    lists:sort(proplists:get_keys(Pairs)).

%%% Modules

another_callback_module_is_called_as_the_first(Config) ->
    Other = compiled(Config, erlmcp_statem_other, #{callback_mode => "callback_mode() -> get(other)."}),
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
                        {repeat_state, '$data', [{next_event, internal, x}, ?OK, pop_callback_module]},
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
        erlmcp_statem_script:run(Result, none, Data)
    end},
    Returned = start(Side, Function, Name ++ [?SCRIPT, {Mode, data(Self), Told}]),
    receive
        {init, Pid} ->
            _ = is_tuple(Returned) andalso element(1, Returned) =:= ok andalso stop(Pid),
            erlmcp_statem_twin:ended(Pid),
            %% A link may tell of its end a moment later.
            receive
                {'EXIT', Pid, Reason} -> {Returned, Reason, named(Name)}
            after 10 -> {Returned, named(Name)}
            end
    end.

stop(Machine) ->
    Monitor = monitor(process, Machine),
    catch gen_statem:stop(Machine),
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
                Failing = [Name, ?SCRIPT, {state_functions, data(self()), {stop, oops}}],
                {error, oops} = start(Side, start, Failing),
                Machine = machine(Side, [Name], state_functions, data(self())),
                rest(Machine),
                Again = start(Side, Function, [Name, ?SCRIPT, {state_functions, none, ignore}]),
                ok = call(server(Name), {keep_state, '$data', ?OK}),
                Registered = named([Name]) =:= Machine,
                stop(Machine),
                {Again, Registered, named([Name])}
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
                {catch timeouts(Machine), catch get(Machine, n)}
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
        {Module, Options} =
            case Side of
                plain -> {gen_statem, []};
                _ -> {?M, [Side]}
            end,
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
                Status = catch element(2, proc_lib:translate_initial_call(Machine)),
                stop(Machine),
                {Answered, Status}
            end
         || {Entry, Arguments} <- Entries, Name <- [erlmcp_statem_name]
        ]
    end).

a_wrong_start_raises_something_else(_Config) ->
    Wrong = [
        ["module", args, []],
        [?SCRIPT, args, options],
        [name, ?SCRIPT, args, []],
        [{nothing, name}, ?SCRIPT, args, []],
        [{local, erlmcp_statem_name}, 1, args, []]
    ],
    [
        ?assertEqual(
            failure(fun() -> apply(gen_statem, Function, Arguments) end),
            failure(fun() -> apply(?M, Function, Arguments) end)
        )
     || Function <- [start, start_link, start_monitor], Arguments <- Wrong
    ],
    [
        ?assertMatch(
            {error, badarg}, failure(fun() -> ?M:start(?SCRIPT, args, [{idle_after, Time}]) end)
        )
     || Time <- [-1, soon, 1 bsl 32, 1.0]
    ].

failure(Fun) ->
    try Fun() of
        Value -> Value
    catch
        Class:Reason -> {Class, Reason}
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
    catch sys:get_state(Machine, ?DEADLINE).

stopped(Machine) ->
    erlmcp_statem_twin:ended(Machine).

status(Machine) ->
    {status, _, _, [_, _, _, _, Status]} = sys:get_status(Machine, ?DEADLINE),
    lists:append([Shown || {data, Shown} <- Status]).

timeouts(Machine) ->
    proplists:get_value("Time-outs", status(Machine)).

modules(Machine) ->
    proplists:get_value("Modules", status(Machine)).

listed(Item) when is_list(Item) -> Item;
listed(Item) -> [Item].

%% A callback module like erlmcp_statem_script, but for these functions.
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
        "-define(S, erlmcp_statem_script).\n"
    ],
    Bodies = [[Body, $\n] || Body <- maps:values(maps:merge(Functions, Changes)), Body =/= none],
    File = filename:join(proplists:get_value(priv_dir, Config), Name),
    ok = file:write_file([File, ".erl"], [Head, Bodies]),
    {ok, Name, Binary} = compile:file(File, [binary]),
    {module, Name} = code:load_binary(Name, File, Binary),
    Name.
