%% What `erlmcp_memory_server' and `erlmcp_memory_server_loop' have in common.

%% What a server has between messages and while a callback runs. It outlives replacements of these
%% modules, as do the tuples that are given to `erlmcp_memory_wait': another shape needs another
%% tag, and what `erlmcp_memory_wait' and `sys' call must take every older one.
-record(server_1, {
    parent :: pid(),
    name :: gen_server:server_name() | pid(),
    module :: module(),
    %% `undefined' while it is parked.
    state :: term(),
    parking :: erlmcp_memory_parking:parking(),
    %% What the module asked for last, and when its integer timeout is over (milliseconds of
    %% monotonic time).
    action = infinity :: timeout() | hibernate,
    until = none :: none | integer(),
    %% A timer of the module's, and what it stands for.
    timer = none :: erlmcp_memory_server_action:timer(),
    %% A timer of ours, which runs only while the server hibernates.
    alarm = none :: none | {reference(), timeout | park},
    %% What is to be done when the present wait is over.
    plan = idle :: timeout | hibernate | erlmcp_memory_parking:reason(),
    hibernate_after :: timeout(),
    debug = [] :: [sys:dbg_opt()]
}).

-type server() :: #server_1{}.
