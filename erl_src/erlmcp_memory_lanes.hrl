%% The answer of Fast, a NIF that works on this scheduler; where that is `busy' the work is large,
%% and the answer is that of Dirty, its twin on a dirty scheduler. A macro, so that no call on the
%% way of every connection makes a fun.
-define(LANES(Fast, Dirty),
    case Fast of
        busy -> Dirty;
        FastAnswer -> FastAnswer
    end
).
