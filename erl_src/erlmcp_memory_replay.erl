%% @private
%% @doc A callback module whose `init/1' repeats the outcome that another one had.
%%
%% What a start that fails returns, how its process ends and when its name is free again differs
%% between releases of OTP. So the engine calls `init/1' of the user's module, and if that does not
%% return a state, it has OTP's own behaviour repeat the outcome with this module.
-module(erlmcp_memory_replay).

-export([init/1]).

-spec init(erlmcp_memory_wait:outcome()) -> term().
init({ok, Return}) -> Return;
init({Class, Reason, Stacktrace}) -> erlang:raise(Class, Reason, Stacktrace).
