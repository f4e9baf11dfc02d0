%% What a state machine is between two events, and within one.
%%
%% A process may sleep, or work in a callback, over any number of upgrades: then these records are
%% read by newer code than the code that wrote them. So a change to one of them is a new version,
%% and erlmcp_memory_statem_loop:current/1 brings all older ones up to date.
-define(LOOP_VERSION, 1).

-record(loop, {
    version = ?LOOP_VERSION :: pos_integer(),
    name :: term(),
    parent :: pid(),
    debug = [] :: [sys:dbg_opt()],
    modules :: [module(), ...],
    mode = state_functions :: state_functions | handle_event_function,
    enter = false :: boolean(),
    state :: term(),
    %% Empty while the data are parked.
    data :: term(),
    postponed = [] :: [erlmcp_memory_statem_report:event()],
    timers = erlmcp_memory_statem_timers:new() :: erlmcp_memory_statem_timers:timers(),
    %% An action asked for hibernation.
    hibernate = false :: boolean(),
    %% If no idle time is set.
    hibernate_after = infinity :: timeout(),
    parking :: erlmcp_memory_parking:parking() | undefined,
    %% What to do when no message comes.
    then = hibernate :: erlmcp_memory_statem_loop:then(),
    %% The timer of the idle time, while it hibernates with its data awake.
    timer :: reference() | undefined
}).

%% A machine that is parked and waits for nothing in particular, as most do: what it needs to wake.
-record(asleep, {
    version = ?LOOP_VERSION :: pos_integer(),
    name :: term(),
    parent :: pid(),
    modules :: [module(), ...],
    mode :: state_functions | handle_event_function,
    enter :: boolean(),
    state :: term(),
    hibernate_after :: timeout(),
    parking :: erlmcp_memory_parking:compact()
}).

-record(step, {
    %% As it was before the event; only the callback module can have changed since.
    loop :: #loop{},
    %% The event, and those after it.
    queue :: [erlmcp_memory_statem_report:event(), ...],
    %% As they will be after it.
    state :: term(),
    data :: term(),
    hibernate = false :: boolean(),
    postpone = false :: boolean(),
    %% The last one first.
    inserted = [] :: [erlmcp_memory_statem_report:event()],
    timeouts = [] :: [erlmcp_memory_statem_timers:action()],
    %% Whether a state is entered, and whether by a state enter call.
    enter = false :: boolean(),
    entering = false :: boolean()
}).

%% The event is not made if the process is not debugged.
-define(DEBUG(Event, Loop),
    case Loop of
        #loop{debug = []} -> Loop;
        #loop{} -> erlmcp_memory_statem_report:debug(Event, Loop)
    end
).
