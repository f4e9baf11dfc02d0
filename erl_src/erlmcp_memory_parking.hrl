%% What the engines of parked servers have in common.

%% `{?TIDY, Times}' is sent to a server that is parked: it is to look for other places for its small
%% memory, and so many times again. By `erlmcp_memory_tidier' alone; a server that wakes takes it
%% out of its mailbox first.
-define(TIDY, '$erlmcp_memory_tidy').
