%% @doc A small server with a state whose content is known: what `erlmcp_bench_servers_soak' drives.
-module(erlmcp_bench_session).
-behaviour(gen_server).

-export([start/1, add/2, read/1]).
-export([init/1, handle_call/3, handle_cast/2, code_change/3]).

-type id() :: pos_integer().
%% Its number, the sum of what was added, what was added last, and what all have in common.
-type state() :: {id(), Sum :: integer(), Last :: [integer()], Common :: #{term() => term()}}.
-export_type([state/0]).

-spec start(id()) -> {ok, pid()}.
start(Id) ->
    erlmcp_memory_server:start(?MODULE, Id, [{idle_after, 200}]).

-spec add(pid(), integer()) -> ok.
add(Pid, N) ->
    gen_server:cast(Pid, {add, N}).

%% @doc The number, the sum and whether all else is as it should be.
-spec read(pid()) -> {id(), integer(), boolean()}.
read(Pid) ->
    gen_server:call(Pid, read, 60_000).

-spec init(id()) -> {ok, state()}.
init(Id) ->
    {ok, {Id, 0, [], common()}}.

%% Made again each time.
common() ->
    maps:from_list([
        {integer_to_binary(N), #{name => <<"common">>, text => binary:copy(<<N:16>>, 50), n => [N, N]}}
     || N <- lists:seq(1, 40)
    ]).

-spec handle_call(read, gen_server:from(), state()) -> {reply, {id(), integer(), boolean()}, state()}.
handle_call(read, _From, {Id, Sum, Last, Common} = State) ->
    {reply, {Id, Sum, Common =:= common() andalso length(Last) =< 10}, State}.

-spec handle_cast({add, integer()} | crash, state()) -> {noreply, state()}.
handle_cast({add, N}, {Id, Sum, Last, Common}) ->
    {noreply, {Id, Sum + N, lists:sublist([N | Last], 10), Common}};
handle_cast(crash, State) ->
    error({crash, element(1, State)}).

-spec code_change(term(), state(), integer()) -> {ok, state()}.
code_change(_Version, {Id, Sum, Last, Common}, Add) ->
    {ok, {Id, Sum + Add, Last, Common}}.
