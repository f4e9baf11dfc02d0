%% @private
-module(erlmcp_memory_replay).
-export([gen_statem/4, init/1, callback_mode/0]).
-spec gen_statem(pid(), pid(), term(), term()) -> no_return().
gen_statem(Starter, Parent, ServerRef, Result) ->
    gen_statem:init_it(Starter, Parent, ServerRef, ?MODULE, Result, []).
-spec init(term()) -> term().
init(Result) -> Result.
-spec callback_mode() -> term().
callback_mode() -> handle_event_function.
