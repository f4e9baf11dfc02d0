%% @private
%% @doc The longest garbage collection pauses, and the processes that they stopped.
-module(erlmcp_memory_pauses).

-export([gc/0, pauses/0, name/1]).

%% How long naming one process may take.
-define(NAME_MS, 200).

%% @doc All collections of the last session, with what follows from the time in which they were
%% timed.
-spec gc() -> erlmcp_memory_profiler:gc().
gc() ->
    #{collections := Collections, timed_ms := Timed, paused_ms := Paused} =
        Gc = erlmcp_memory_nif:profiler_gc(),
    (maps:without([paused_ms], Gc))#{
        per_second => ratio(1000.0 * Collections, Timed),
        time_share => share(Paused, Timed)
    }.

%% @doc Those of the window.
-spec pauses() -> erlmcp_memory_profiler:gc_pauses().
pauses() ->
    Looked = erlmcp_memory_session:look(),
    Window = erlmcp_memory_settings:alert_window(),
    #{gc_measured := Measured, paused_ns := Paused, timed_ns := Timed} =
        erlmcp_memory_nif:health_window(Window),
    Now = erlang:system_time(nanosecond),
    name(erlmcp_memory_nif:gc_unnamed()),
    #{
        measured => Measured andalso Looked =/= {error, timeout} andalso
            erlmcp_memory_session:is_running(),
        window_ms => Window,
        timed_ms => Timed / 1.0e6,
        time_share => share(Paused, Timed),
        worst => [worst(Pause, Now) || Pause <- erlmcp_memory_nif:gc_worst(Window)]
    }.

%% Of all the time that schedulers had.
share(Paused, Timed) ->
    ratio(float(Paused), Timed * erlang:system_info(schedulers_online)).

ratio(_, Of) when Of == 0 -> 0.0;
ratio(Value, Of) -> Value / Of.

worst(#{pid := Pid, kind := Kind, ns := Ns, ago_ns := Ago, name := Name, function := Function}, Now) ->
    #{
        pid => Pid,
        kind => Kind,
        pause_ms => Ns / 1.0e6,
        timestamp => (Now - Ago) div 1000000,
        name => text(Name),
        function => text(Function)
    }.

text(nil) -> <<>>;
text(Text) -> Text.

%% @doc Names the processes of these pauses, while they live.
-spec name([{pid(), At :: non_neg_integer()}]) -> ok.
name(Unnamed) ->
    lists:foreach(
        fun({Pid, At}) ->
            case erlmcp_memory_bounded:run(fun() -> erlmcp_memory_top:identity(Pid) end, ?NAME_MS) of
                {ok, {Name, Function}} -> erlmcp_memory_nif:gc_name(Pid, At, Name, Function);
                %% Gone, or so busy that it does not say.
                _ -> erlmcp_memory_nif:gc_name(Pid, At, <<>>, <<>>)
            end
        end,
        Unnamed
    ).
