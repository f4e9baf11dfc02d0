%% @private
%% @doc What measures: the monitor of levels, and a supervisor for the sampler of a session.
%%
%% Measuring must not end a node: if the sampler's supervisor gives up, its session ends with it, and
%% the application keeps running. The next session starts it again.
-module(erlmcp_memory_sup).
-behaviour(supervisor).

-export([start_link/0, start_sampler_sup/0, sampler_sup/0]).
-export([init/1]).

%% @doc The top supervisor.
-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    %% Whoever is told of levels may be new as well.
    ok = erlmcp_memory_watch:anew(),
    case supervisor:start_link({local, ?MODULE}, ?MODULE, top) of
        ignore -> {error, ignore};
        Started -> Started
    end.

%% @doc The supervisor of the sampler, which has no child while no session runs.
-spec start_sampler_sup() -> supervisor:startlink_ret().
start_sampler_sup() ->
    supervisor:start_link({local, erlmcp_memory_sampler_sup}, ?MODULE, sampler).

%% @doc The supervisor of the sampler, which is started again where it gave up; `none' where the
%% application is not started.
-spec sampler_sup() -> pid() | none.
sampler_sup() ->
    case {whereis(erlmcp_memory_sampler_sup), whereis(?MODULE)} of
        {undefined, undefined} ->
            none;
        {undefined, Top} ->
            try supervisor:start_child(Top, sampler_sup_spec()) of
                {ok, Started} -> Started;
                {error, {already_started, Started}} -> Started;
                {error, _} -> none
            catch
                %% The application is stopped in this moment.
                exit:{_, {gen_server, call, _}} -> none
            end;
        {Running, _} ->
            Running
    end.

%% @private
-spec init(top | sampler) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(top) ->
    {ok,
        {#{strategy => one_for_one, intensity => 10, period => 10}, [
            sampler_sup_spec(),
            #{id => monitor, start => {erlmcp_memory_monitor, start_link, []}}
        ]}};
init(sampler) ->
    {ok,
        {#{strategy => simple_one_for_one, intensity => 10, period => 10}, [
            #{
                id => sampler,
                start => {erlmcp_memory_sampler, start_link, []},
                restart => transient
            }
        ]}}.

sampler_sup_spec() ->
    #{
        id => sampler_sup,
        start => {?MODULE, start_sampler_sup, []},
        type => supervisor,
        restart => temporary
    }.
