%% The pool first: connections need it, and it outlives them when the node stops.
-module(erlmcp_sup).
-behaviour(supervisor).

-export([start_link/0, init/1]).

start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

init([]) ->
    {ok,
        {#{strategy => rest_for_one}, [
            erlmcp_memory_pool:child_spec(),
            #{
                id => erlmcp_connection_sup,
                start => {erlmcp_connection_sup, start_link, []},
                type => supervisor
            },
            #{id => erlmcp_server, start => {erlmcp_server, start_link, []}}
        ]}}.
