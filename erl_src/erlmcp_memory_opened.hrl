%% The result of Direct, a call of the NIF Function with Before, nothing opened, and After; where
%% terms in these must be opened first, that of the call with what is in them. A macro, so that the
%% arguments are put into a list only then.
-define(OPENED(Function, Before, After, Direct),
    case Direct of
        {closed, Closed} -> erlmcp_memory_opened:call(Function, Before, After, Closed);
        DirectResult -> DirectResult
    end
).

%% The result of a call that may ask for a collection of the caller's garbage.
-define(COLLECTED(Call),
    case Call of
        {collect, Collect} -> erlmcp_memory_opened:collect(Collect);
        CallResult -> CallResult
    end
).
