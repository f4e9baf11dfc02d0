%% Raises badarg from the function that uses it, with a text for the argument that is wrong.
%% Args: the arguments of that function; Position: which of them, from 1; Text: what is wrong.
-define(BADARG(Args, Position, Text),
    erlang:error(badarg, Args, ?BADARG_INFO(Position, Text))
).
-define(BADARG_INFO(Position, Text),
    [{error_info, #{module => erlmcp_memory_error, cause => #{Position => Text}}}]
).
