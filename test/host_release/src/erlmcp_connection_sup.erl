-module(erlmcp_connection_sup).
-behaviour(supervisor).

-export([start_link/0, start_connection/2, init/1]).

start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

start_connection(Id, Capabilities) ->
    supervisor:start_child(?MODULE, [Id, Capabilities]).

init([]) ->
    {ok,
        {#{strategy => simple_one_for_one}, [
            #{
                id => connection,
                start => {erlmcp_connection, start_link, []},
                restart => temporary
            }
        ]}}.
