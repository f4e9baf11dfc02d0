%% @doc The plain connection with `hibernate_after': what one changed line gains without this library.
-module(erlmcp_host_hibernating).

-behaviour(erlmcp_host).

-export([catalogue/1, start_link/2]).

-spec catalogue(erlmcp_host:config()) -> erlmcp_host:config().
catalogue(Config) ->
    erlmcp_host_plain:catalogue(Config).

-spec start_link(binary(), erlmcp_host:config()) -> {ok, pid()}.
start_link(Id, Config) ->
    erlmcp_host_plain:start_link(Id, Config, gen_server, [{hibernate_after, 1000}]).
