%% @doc The plain connection, started by `erlmcp_memory_server' in the place of `gen_server': one
%% changed line, and its state is parked when it is idle.
-module(erlmcp_host_parked).

-behaviour(erlmcp_host).

-export([catalogue/1, start_link/2]).

-spec catalogue(erlmcp_host:config()) -> erlmcp_host:config().
catalogue(Config) ->
    erlmcp_host_plain:catalogue(Config).

-spec start_link(binary(), erlmcp_host:config()) -> {ok, pid()}.
start_link(Id, Config) ->
    erlmcp_host_plain:start_link(Id, Config, erlmcp_memory_server, []).
