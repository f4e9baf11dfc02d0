%% The result of Direct, a call of the NIF Function with Args and nothing opened; where terms in
%% Args must be opened first, that of the call with these. A macro, so that the arguments are put
%% into a list only then.
-define(OPENED(Function, Args, Direct),
    case Direct of
        {closed, ClosedTerms} -> erlmcp_memory_opened:call(Function, Args, ClosedTerms);
        DirectResult -> DirectResult
    end
).
