%% @private
%% @doc The verdict on the growth of memory, kind by kind.
-module(erlmcp_memory_growth).

-export([session/0, snapshots/1, kinds/0, asked/2, back/1]).

-define(MB, 1048576).
%% The windows of the settings in which growth is looked for, and the fewest that give a verdict.
-define(WINDOWS, 36).
-define(LEAST_WINDOWS, 3).
%% The least growth that is called one, as a fraction of the rate that matters: noise on the
%% estimate of a level memory rarely crosses that.
-define(PART, 0.6).

%% @doc How far samples of a session are looked back at, in milliseconds.
-spec back(Window :: pos_integer()) -> float().
back(Window) ->
    float(?WINDOWS * Window).

%% @doc What the library is asked if this many megabytes an hour matter.
-spec asked(Window :: pos_integer(), MegaBytes :: number()) -> {float(), float(), float()}.
asked(Window, MegaBytes) ->
    Bytes = float(max(MegaBytes * ?MB, 1)),
    {?PART * Bytes, Bytes, float(?LEAST_WINDOWS * Window)}.

%% @doc Of the running session or the last one.
-spec session() -> erlmcp_memory_profiler:growth() | {error, no_profiling_data}.
session() ->
    {Window, Asked} = settings(),
    case erlmcp_memory_session:last() of
        {ok, Session, _} ->
            Said = erlmcp_memory_nif:profiler_growth(Session, back(Window), Asked, length(fields())),
            maps:from_list([
                {Kind, verdict(proplists:get_value(atom_to_binary(Kind), Said))}
             || Kind <- kinds()
            ]);
        none ->
            {error, no_profiling_data}
    end.

%% @doc Of these snapshots.
-spec snapshots([tuple() | map()]) ->
    erlmcp_memory_profiler:growth() | {error, no_data | invalid_input}.
snapshots([]) ->
    {error, no_data};
snapshots(Snapshots) ->
    {_, Asked} = settings(),
    case erlmcp_memory_sample:points(Snapshots) of
        invalid_input ->
            {error, invalid_input};
        Points ->
            Times = [Time || {Time, _} <- Points],
            Maps = [map(Snapshot) || Snapshot <- Snapshots],
            try
                maps:from_list([
                    {Kind, verdict(erlmcp_memory_nif:memory_growth(Of, Asked))}
                 || {Kind, Field} <- fields(),
                    Of <- of_kind(Times, [maps:get(Field, Map, none) || Map <- Maps])
                ])
            catch
                error:badarg -> {error, invalid_input}
            end
    end.

settings() ->
    Window = erlmcp_memory_settings:alert_window(),
    #{memory_growth := {Warning, _}} = erlmcp_memory_settings:alert_thresholds(),
    {Window, asked(Window, Warning)}.

map(Map) when is_map(Map) -> Map;
map(Record) -> erlmcp_memory_sample:to_map(Record).

%% Of a kind that all have.
of_kind(Times, Values) ->
    case lists:all(fun(Value) -> is_integer(Value) andalso Value >= 0 end, Values) of
        true -> [lists:zip(Times, Values)];
        false -> []
    end.

%% @doc The kinds of memory of a verdict, in the order in which they are shown.
-spec kinds() -> [atom()].
kinds() ->
    [Kind || {Kind, _} <- fields()].

%% In the order of the library.
fields() ->
    [
        {total, total_memory}, {resident, resident_memory}, {processes, process_memory},
        {binaries, binary_memory}, {ets, ets_memory}, {atoms, atom_memory}, {native, native_memory}
    ].

verdict({Verdict, Bytes, Confidence}) ->
    #{verdict => Verdict, mb_per_hour => Bytes / ?MB, confidence => Confidence}.
