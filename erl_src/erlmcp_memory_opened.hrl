%% The result of Direct, a call of the NIF Function with Before, nothing opened, and After. If terms
%% in the arguments must be opened first, the call is repeated with what is in them. A macro, so
%% that the arguments are put into a list only in that case.
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
