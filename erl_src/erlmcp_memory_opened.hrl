%% The result of Direct, a call of the NIF Function with Before, nothing opened, and After; where
%% terms in these must be opened first, that of the call with what is in them. A macro, so that the
%% arguments are put into a list only then.
-define(OPENED(Function, Before, After, Direct),
    case Direct of
        {closed, Closed} -> erlmcp_memory_opened:call(Function, Before, After, Closed);
        {collect, Collect} -> erlmcp_memory_opened:collect(Collect);
        DirectResult -> DirectResult
    end
).
