%% @private
%% @doc A callback module whose `init/1' comes to what another one has come to already.
%%
%% What a start that fails returns, how its process ends and when its name is free again differs
%% between releases of OTP. So the engine calls `init/1' of the user's module, and where that did
%% not give a state, it has OTP's own behaviour go through the same with this module.
-module(erlmcp_memory_replay).

-export([init/1]).

-spec init(erlmcp_memory_wait:outcome()) -> term().
init({ok, Return}) -> Return;
init({Class, Reason, Stacktrace}) -> erlang:raise(Class, Reason, Stacktrace).
