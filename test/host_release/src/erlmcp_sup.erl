%% The pool first: connections need it, and it outlives them when the node stops. Under a supervisor
%% of its own: the death of its process, which takes no state along, is not to end what comes after
%% it here.
-module(erlmcp_sup).
-behaviour(supervisor).

-export([start_link/0, init/1]).

start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, top).

init(top) ->
    {ok,
        {#{strategy => rest_for_one}, [
            #{
                id => erlmcp_memory,
                start => {supervisor, start_link, [?MODULE, memory]},
                type => supervisor
            },
            #{
                id => erlmcp_connection_sup,
                start => {erlmcp_connection_sup, start_link, []},
                type => supervisor
            },
            #{id => erlmcp_server, start => {erlmcp_server, start_link, []}}
        ]}};
init(memory) ->
    {ok, {#{strategy => one_for_one, intensity => 10}, [erlmcp_memory_pool:child_spec()]}}.
