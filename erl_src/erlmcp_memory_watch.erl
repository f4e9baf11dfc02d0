%% @private
%% @doc Tells others: a handler of the host when a level changes, and `telemetry' where it is loaded.
%%
%% Whatever they do happens in other processes. The levels of before lie in one array of the node,
%% so that each change is told once, whoever sees it, and whoever dies meanwhile.
-module(erlmcp_memory_watch).

-export([check/0, sampled/2, window/0]).

-include("erlmcp_memory.hrl").
-include_lib("kernel/include/logger.hrl").

-define(LEVELS, {?MODULE, levels}).
%% How long a handler may take.
-define(HANDLER_MS, 5000).
%% Seconds between two words about wrong settings.
-define(WRONG_S, 60).

%% @doc The window of the settings, or the default where they are wrong.
-spec window() -> pos_integer().
window() ->
    try
        erlmcp_memory_settings:alert_window()
    catch
        error:{invalid_config, _, _} -> 600000
    end.

%% @doc Looks at all levels, and tells of those that changed.
-spec check() -> ok.
check() ->
    Known = known(),
    try erlmcp_memory_health:levels() of
        {error, notsup} ->
            ok;
        Levels ->
            Numbered = lists:zip(lists:seq(2, length(Levels) + 1), Levels),
            case lists:append([changed(Known, Index, Item) || {Index, Item} <- Numbered]) of
                [] -> ok;
                Changes -> tell(Changes)
            end
    catch
        error:{invalid_config, Key, Value} -> wrong(Known, Key, Value)
    end.

%% The first is when something was said of wrong settings; then come levels.
known() ->
    case persistent_term:get(?LEVELS, undefined) of
        undefined ->
            persistent_term:put(?LEVELS, atomics:new(32, [{signed, true}])),
            known();
        Known ->
            Known
    end.

%% What is not measured is no news, but where an alert ends by it.
changed(Known, Index, #{level := Level} = Item) ->
    case {atomics:exchange(Known, Index, code(Level)), code(Level)} of
        {Same, Same} -> [];
        {Before, _} -> [Item#{previous => level(Before)}]
    end.

code(warning) -> 1;
code(critical) -> 2;
code(_) -> 0.

level(0) -> ok;
level(1) -> warning;
level(2) -> critical.

wrong(Known, Key, Value) ->
    Now = erlang:system_time(second),
    case atomics:get(Known, 1) + ?WRONG_S =< Now of
        true ->
            atomics:put(Known, 1, Now),
            ?LOG_ERROR(
                #{label => {erlmcp_memory, invalid_config}, key => Key, value => Value},
                #{domain => [erlmcp_memory]}
            );
        false ->
            ok
    end.

tell(Changes) ->
    Handler = erlmcp_memory_settings:alert_handler(),
    _ = spawn(fun() -> lists:foreach(fun(Change) -> tell(Handler, Change) end, Changes) end),
    ok.

tell(Handler, #{metric := Metric, value := Value} = Change) ->
    telemetry([erlmcp_memory, alert], measured(Value), maps:without([value], Change)),
    case Handler of
        undefined -> ok;
        {Module, Function} -> bounded(fun() -> Module:Function(Change) end, #{metric => Metric})
    end.

measured(undefined) -> #{};
measured(Value) -> #{value => Value}.

%% @doc A session took a snapshot. `Teller' is the process that told of the one before: while it
%% lives nothing is told, so that a slow host gets fewer.
-spec sampled(#memory_snapshot{}, Teller :: pid() | none) -> pid() | none.
sampled(Snapshot, Teller) ->
    _ = erlmcp_memory_nif:health_window(window()),
    IsFree = Teller =:= none orelse not is_process_alive(Teller),
    Unnamed = erlmcp_memory_nif:gc_unnamed(),
    case IsFree andalso (Unnamed =/= [] orelse has_telemetry()) of
        true ->
            spawn(fun() ->
                erlmcp_memory_pauses:name(Unnamed),
                Map = erlmcp_memory_snapshot:to_map(Snapshot),
                telemetry([erlmcp_memory, sample], Map, #{node => node()})
            end);
        false ->
            Teller
    end.

has_telemetry() ->
    erlang:function_exported(telemetry, execute, 3).

telemetry(Event, Measurements, Metadata) ->
    case has_telemetry() of
        true ->
            Module = telemetry,
            bounded(fun() -> Module:execute(Event, Measurements, Metadata) end, #{event => Event});
        false ->
            ok
    end.

bounded(Fun, About) ->
    case erlmcp_memory_bounded:run(Fun, ?HANDLER_MS) of
        {ok, _} ->
            ok;
        {error, Reason} ->
            ?LOG_WARNING(
                About#{label => {erlmcp_memory, handler_failed}, reason => Reason},
                #{domain => [erlmcp_memory]}
            )
    end.
