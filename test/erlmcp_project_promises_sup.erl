%% A supervisor of the children that it is given.
-module(erlmcp_project_promises_sup).
-behaviour(supervisor).

-export([init/1]).

init(Children) ->
    {ok, {#{strategy => one_for_one}, Children}}.
