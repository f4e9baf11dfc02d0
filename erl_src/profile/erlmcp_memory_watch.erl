%% @private
%% @doc Reports a changed level to a handler of the host, and to `telemetry' if it is loaded.
%%
%% What they do happens in other processes. The previous levels are in one array of the node,
%% so that each change is reported once, whichever process sees it or dies in the meantime.
-module(erlmcp_memory_watch).

-export([check/0, sampled/2, window/0]).

-include("erlmcp_memory.hrl").
-include_lib("kernel/include/logger.hrl").

-define(LEVELS, {?MODULE, levels}).
-define(SEEN, 16).
-define(WRONG, 33).
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
            Window = window(),
            Now = erlang:monotonic_time(millisecond),
            Numbered = lists:zip(lists:seq(1, length(Levels)), Levels),
            case lists:append([changed(Known, Index, Item, Now, hold(Item, Window))
                || {Index, Item} <- Numbered]) of
                [] -> ok;
                Changes -> tell(Changes)
            end
    catch
        error:{invalid_config, Key, Value} -> wrong(Known, Key, Value)
    end.

%% Levels, when they were last as high as that, and when something was said of wrong settings.
known() ->
    case persistent_term:get(?LEVELS, undefined) of
        undefined ->
            persistent_term:put(?LEVELS, atomics:new(?WRONG, [{signed, true}])),
            known();
        Known ->
            Known
    end.

%% For how long a level must be lower before it is told to be: what is near a threshold is not told
%% again and again. A verdict on growth needs some windows, and is given up after as many.
hold(#{metric := Metric}, Window) when Metric =:= memory_growth; Metric =:= resident_growth ->
    3 * Window;
hold(_, Window) ->
    Window div 10.

%% A metric that is not measured is not reported, unless an alert ends by it.
changed(Known, Index, #{level := Level} = Item, Now, Hold) ->
    Code = code(Level),
    Told = atomics:get(Known, Index),
    IsHeld = Code < Told andalso Now - atomics:get(Known, ?SEEN + Index) < Hold,
    _ = Code >= Told andalso atomics:put(Known, ?SEEN + Index, Now),
    %% Another look may have told it in this moment.
    case IsHeld orelse Code =:= Told orelse atomics:exchange(Known, Index, Code) of
        true ->
            [];
        Code ->
            [];
        Before ->
            atomics:put(Known, ?SEEN + Index, Now),
            [Item#{previous => level(Before)}]
    end.

code(warning) -> 1;
code(critical) -> 2;
code(_) -> 0.

level(0) -> ok;
level(1) -> warning;
level(2) -> critical.

wrong(Known, Key, Value) ->
    Now = erlang:system_time(second),
    case atomics:get(Known, ?WRONG) + ?WRONG_S =< Now of
        true ->
            atomics:put(Known, ?WRONG, Now),
            ?LOG_ERROR(
                #{label => {erlmcp_memory, invalid_config}, key => Key, value => Value},
                erlmcp_memory_log:metadata()
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
                Map = erlmcp_memory_sample:to_map(Snapshot),
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
                erlmcp_memory_log:metadata()
            )
    end.
