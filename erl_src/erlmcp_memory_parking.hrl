%% What the engines of parked servers have in common.

%% Only `erlmcp_memory_tidier' sends `{?TIDY, Times}', to a parked server: it asks the server to
%% move what it keeps in memory, now and `Times' times later. A server that wakes removes the
%% message from its mailbox first.
-define(TIDY, '$erlmcp_memory_tidy').
