%% What the engines of parked servers have in common.

%% Sent to a server that is parked: it is to look for other places for its small memory. Told by
%% `erlmcp_memory_tidier' alone; a server that wakes takes it out of its mailbox first.
-define(TIDY, '$erlmcp_memory_tidy').
