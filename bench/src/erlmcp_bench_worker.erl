%% @doc A worker of poolboy, which pools processes: one that does nothing.
-module(erlmcp_bench_worker).
-behaviour(gen_server).

-export([start_link/1]).
-export([init/1, handle_call/3, handle_cast/2]).

-spec start_link(list()) -> {ok, pid()}.
start_link(_Arguments) ->
    {ok, _} = gen_server:start_link(?MODULE, none, []).

-spec init(none) -> {ok, none}.
init(none) -> {ok, none}.

-spec handle_call(term(), {pid(), term()}, none) -> {reply, ok, none}.
handle_call(_, _From, none) -> {reply, ok, none}.

-spec handle_cast(term(), none) -> {noreply, none}.
handle_cast(_, none) -> {noreply, none}.
