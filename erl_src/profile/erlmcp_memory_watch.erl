%% @private
%% @doc Reports a changed level to a handler of the host, and to `telemetry' if it is loaded.
%%
%% What they do happens in other processes. The previous levels are in one array of the node,
%% so that each change is reported once, whichever process sees it or dies in the meantime. Where the
%% node has no room for those processes, it is reported by a later look.
-module(erlmcp_memory_watch).

-export([anew/0, check/0, sampled/2, window/0]).

-include("erlmcp_memory.hrl").
-include_lib("kernel/include/logger.hrl").

-define(LEVELS, {?MODULE, told}).
-define(SEEN, 16).
-define(WRONG, 33).
-define(HANDLER, 34).
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

%% @doc Forgets what was told, so that a level that is high is told again.
-spec anew() -> ok.
anew() ->
    Known = known(),
    lists:foreach(fun(Index) -> atomics:put(Known, Index, 0) end, [?HANDLER | lists:seq(1, ?SEEN)]).

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
            Handler = erlmcp_memory_settings:alert_handler(),
            IsNew = is_new(Known, Handler),
            Changes = [
                Noted
             || {Index, Item} <- lists:zip(lists:seq(1, length(Levels)), Levels),
                Noted <- changed(Known, Index, Item, Now, hold(Item, Window), IsNew)
            ],
            _ = (IsNew orelse Changes =/= []) andalso
                started(fun() -> tell(Known, Handler, Now, Changes) end),
            ok
    catch
        error:{invalid_config, Key, Value} -> wrong(Known, Key, Value)
    end.

%% Levels, when they were last as high as that, when something was said of wrong settings, and which
%% handler was told.
known() ->
    case persistent_term:get(?LEVELS, undefined) of
        undefined ->
            persistent_term:put(?LEVELS, atomics:new(?HANDLER, [{signed, true}])),
            known();
        Known ->
            Known
    end.

%% Whether a handler was not told yet of levels that are high. One that comes back counts as new: it
%% missed what was told meanwhile.
is_new(Known, Handler) ->
    handler(Handler) =/= atomics:get(Known, ?HANDLER).

handler(undefined) -> 0;
handler(Handler) -> 1 + erlang:phash2(Handler).

%% For how long a level must be lower before it is told to be: what is near a threshold is not told
%% again and again. A verdict on growth needs some windows, and is given up after as many.
hold(#{metric := Metric}, Window) when Metric =:= memory_growth; Metric =:= resident_growth ->
    3 * Window;
hold(_, Window) ->
    Window div 10.

%% A metric that is not measured is not reported, unless an alert ends by it. A new handler is told of
%% each alert.
changed(Known, Index, #{level := Level} = Item, Now, Hold, IsNew) ->
    Code = code(Level),
    Told = atomics:get(Known, Index),
    Seen = atomics:get(Known, ?SEEN + Index),
    IsHeld = Code < Told andalso Now - Seen < Hold,
    _ = Code >= Told andalso atomics:put(Known, ?SEEN + Index, Now),
    if
        Code =/= Told, not IsHeld -> [{Index, Code, Seen, Item}];
        Code > 0, IsNew -> [{new, Item}];
        true -> []
    end.

code(warning) -> 1;
code(critical) -> 2;
code(_) -> 0.

level(0) -> ok;
level(1) -> warning;
level(2) -> critical.

%% In seconds since the VM started, from 1: no step of the system clock moves that.
wrong(Known, Key, Value) ->
    Ran = erlang:monotonic_time() - erlang:system_info(start_time),
    Now = 1 + erlang:convert_time_unit(Ran, native, second),
    Said = atomics:get(Known, ?WRONG),
    case Said =:= 0 orelse Said + ?WRONG_S =< Now of
        true ->
            atomics:put(Known, ?WRONG, Now),
            ?LOG_ERROR(
                #{label => {erlmcp_memory, invalid_config}, key => Key, value => Value},
                erlmcp_memory_log:metadata()
            );
        false ->
            ok
    end.

%% Levels are noted as told by the process that tells them, and no more when it could not.
tell(Known, Handler, Now, Found) ->
    IsNew = handler(Handler) =/= atomics:exchange(Known, ?HANDLER, handler(Handler)),
    Told = lists:append([noted(Known, Now, IsNew, One) || One <- Found]),
    Changes = [One || {_, Change, _} = One <- Told, Change =/= new],
    Undo = fun(Some) -> lists:foreach(fun({_, _, Again}) -> Again() end, Some) end,
    %% By themselves: neither of the two waits for the other.
    Events = fun() -> Undo([One || One <- Changes, event(One) =:= system_limit]) end,
    case Changes =:= [] orelse not has_telemetry() orelse started(Events) of
        none -> Undo(Told);
        _ -> Undo([One || One <- Told, handled(Handler, One) =:= system_limit])
    end.

%% What is to be told, whether it is a change or only new to this handler, and what has it told again
%% by the next look.
noted(Known, _, IsNew, {new, Item}) ->
    greeted(Known, IsNew, Item);
noted(Known, Now, IsNew, {Index, Code, Seen, Item}) ->
    case atomics:exchange(Known, Index, Code) of
        %% Another look told it in this moment.
        Code when Code > 0 ->
            greeted(Known, IsNew, Item);
        Code ->
            [];
        Before ->
            atomics:put(Known, ?SEEN + Index, Now),
            Again = fun() ->
                atomics:put(Known, ?SEEN + Index, Seen),
                atomics:compare_exchange(Known, Index, Code, Before)
            end,
            [{Item#{previous => level(Before)}, changed, Again}]
    end.

greeted(_, false, _) ->
    [];
greeted(Known, true, Item) ->
    [{Item#{previous => ok}, new, fun() -> atomics:put(Known, ?HANDLER, -1) end}].

event({#{value := Value} = Change, _, _}) ->
    telemetry([erlmcp_memory, alert], measured(Value), maps:without([value], Change)).

handled(undefined, _) ->
    ok;
handled({Module, Function}, {#{metric := Metric} = Change, _, _}) ->
    bounded(fun() -> Module:Function(Change) end, #{metric => Metric}).

%% A process that does that, unless the node has no room for one.
started(Fun) ->
    try
        spawn(Fun)
    catch
        error:system_limit -> none
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
            started(fun() ->
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
        {error, system_limit} ->
            system_limit;
        {error, Reason} ->
            ?LOG_WARNING(
                About#{label => {erlmcp_memory, handler_failed}, reason => Reason},
                erlmcp_memory_log:metadata()
            )
    end.
