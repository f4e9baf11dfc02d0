%% What `erlmcp_memory_server' and `erlmcp_memory_server_loop' have in common.

%% What a server has between messages and while a callback runs. It outlives upgrades of these
%% modules, as do the tuples passed to `erlmcp_memory_wait': a new shape needs a new tag, and the
%% functions that `erlmcp_memory_wait' and `sys' call must accept all older ones.
-record(server_1, {
    parent :: pid(),
    name :: gen_server:server_name() | pid(),
    module :: module(),
    %% `undefined' while it is parked.
    state :: term(),
    parking :: erlmcp_memory_parking:parking(),
    %% What the module last asked for, and when its integer timeout expires (milliseconds of
    %% monotonic time).
    action = infinity :: timeout() | hibernate,
    until = none :: none | integer(),
    %% A timer of the module, and what it is for.
    timer = none :: erlmcp_memory_server_action:timer(),
    %% A timer of the engine, which runs only while the server hibernates.
    alarm = none :: none | {reference(), timeout | park},
    %% What to do when the current wait is over.
    plan = idle :: timeout | hibernate | erlmcp_memory_parking:reason(),
    hibernate_after :: timeout(),
    debug = [] :: [sys:dbg_opt()]
}).

-type server() :: #server_1{}.
