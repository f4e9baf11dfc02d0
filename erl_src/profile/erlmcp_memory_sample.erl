%% @private
%% @doc Takes `#memory_snapshot{}' records and converts them.
-module(erlmcp_memory_sample).

-export([measure/1, total/0, to_map/1, points/1]).

-include("erlmcp_memory.hrl").

-define(MB, 1048576).

%% @doc Measures the node now. Costs less than two of `erlang:memory/0' (tens of microseconds), and no
%% walk over the processes. For each consumer the longest pause since its last call is kept separately.
-spec measure(sampler | caller) -> #memory_snapshot{} | {error, notsup}.
measure(Consumer) ->
    %% Both ask all schedulers: the second one finds them awake, and this way round is the faster.
    Collected = erlang:statistics(garbage_collection),
    try erlang:memory() of
        Memory -> measured(Consumer, Collected, maps:from_list(Memory))
    catch
        error:notsup -> {error, notsup}
    end.

%% @doc `erlang:memory(total)', which is not available if the node's allocators are switched off.
-spec total() -> {ok, non_neg_integer()} | {error, notsup}.
total() ->
    try
        {ok, erlang:memory(total)}
    catch
        error:notsup -> {error, notsup}
    end.

measured(Consumer, {Collections, Words, _}, Memory) ->
    Offset = erlang:time_offset(),
    Now = erlang:monotonic_time() + Offset,
    {Native, Resident, Pause, Connections} = erlmcp_memory_nif:profiler_probe(Consumer),
    #memory_snapshot{
        timestamp = erlang:convert_time_unit(Now, native, millisecond),
        process_count = erlang:system_info(process_count),
        total_memory = maps:get(total, Memory),
        process_memory = maps:get(processes, Memory),
        binary_memory = maps:get(binary, Memory),
        ets_memory = maps:get(ets, Memory),
        atom_memory = maps:get(atom, Memory),
        gc_collections = Collections,
        gc_reclaimed = Words * erlang:system_info(wordsize),
        gc_pause_max = Pause,
        native_memory = Native,
        resident_memory = Resident,
        time_offset = erlang:convert_time_unit(Offset, native, millisecond),
        connections = Connections
    }.

%% @doc The record's fields as keys, and `total_memory_mb', whole ones. A record of an older header
%% has fewer fields, and is treated as one made by hand.
-spec to_map(tuple()) -> #{atom() => number()}.
to_map(Snapshot) when element(1, Snapshot) =:= memory_snapshot ->
    [memory_snapshot | Defaults] = tuple_to_list(#memory_snapshot{}),
    [memory_snapshot | Given] = tuple_to_list(Snapshot),
    Values = Given ++ lists:nthtail(length(Given), Defaults),
    #{total_memory := Total} =
        Fields = maps:from_list(lists:zip(record_info(fields, memory_snapshot), Values)),
    Fields#{total_memory_mb => Total div ?MB}.

%% @doc `{Time, TotalMemory}' of each snapshot, record or map; `invalid_input' when anything else is
%% among them. A record may be from an older header, with ten fields or more, but not from a newer one.
%% The time is monotonic when all have a `time_offset', else it is the `timestamp'.
-spec points(term()) -> [{number(), non_neg_integer()}] | invalid_input.
points(Snapshots) ->
    case points(Snapshots, []) of
        invalid_input ->
            invalid_input;
        Points ->
            Monotonic = lists:all(fun({_, Offset, _}) -> Offset =/= none end, Points),
            try
                [
                    case Monotonic of
                        true -> {Time - Offset, Total};
                        false -> {Time, Total}
                    end
                 || {Time, Offset, Total} <- Points
                ]
            catch
                %% No float is that large.
                error:badarith -> invalid_input
            end
    end.

points([#{timestamp := Time, total_memory := Total} = Map | Rest], Points) when
    is_number(Time), is_integer(Total), Total >= 0
->
    points(Rest, [{Time, offset(maps:get(time_offset, Map, 0)), Total} | Points]);
points([Record | Rest], Points) when
    is_tuple(Record),
    tuple_size(Record) >= 11,
    tuple_size(Record) =< #memory_snapshot.connections,
    element(1, Record) =:= memory_snapshot,
    is_number(element(#memory_snapshot.timestamp, Record)),
    is_integer(element(#memory_snapshot.total_memory, Record)),
    element(#memory_snapshot.total_memory, Record) >= 0
->
    Time = element(#memory_snapshot.timestamp, Record),
    Total = element(#memory_snapshot.total_memory, Record),
    Offset =
        case tuple_size(Record) >= #memory_snapshot.time_offset of
            true -> offset(element(#memory_snapshot.time_offset, Record));
            false -> none
        end,
    points(Rest, [{Time, Offset, Total} | Points]);
points([], Points) ->
    lists:reverse(Points);
points(_, _) ->
    invalid_input.

offset(Offset) when is_integer(Offset), Offset =/= 0 -> Offset;
offset(_) -> none.
