%% @private
%% @doc Takes `#memory_snapshot{}' records and turns them into other shapes.
-module(erlmcp_memory_snapshot).

-export([measure/1, to_map/1, points/1]).

-include("erlmcp_memory.hrl").

-define(MB, 1048576).

%% @doc Measures the node now. Costs one `erlang:memory/0' (tens of microseconds) and no walk over
%% the processes. The consumer has a register of its own for the longest pause since the last time.
-spec measure(sampler | caller) -> #memory_snapshot{}.
measure(Consumer) ->
    Memory = maps:from_list(erlang:memory()),
    {Collections, Words, _} = erlang:statistics(garbage_collection),
    {Native, Resident, Pause} = erlmcp_memory_nif:profiler_probe(Consumer),
    #memory_snapshot{
        timestamp = erlang:system_time(millisecond),
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
        resident_memory = Resident
    }.

%% @doc The record's fields as keys, and `total_memory_mb'.
-spec to_map(#memory_snapshot{}) -> #{atom() => number()}.
to_map(#memory_snapshot{total_memory = Total} = Snapshot) ->
    [memory_snapshot | Values] = tuple_to_list(Snapshot),
    Fields = lists:zip(record_info(fields, memory_snapshot), Values),
    (maps:from_list(Fields))#{total_memory_mb => Total / ?MB}.

%% @doc `{Timestamp, TotalMemory}' of each snapshot, record or map; `invalid_input' when anything
%% else is among them. A record may be of an older header: the first ten fields are the same.
-spec points(term()) -> [{number(), non_neg_integer()}] | invalid_input.
points(Snapshots) ->
    points(Snapshots, []).

points([#{timestamp := Time, total_memory := Total} | Rest], Points) when
    is_number(Time), is_integer(Total), Total >= 0
->
    points(Rest, [{Time, Total} | Points]);
points([Record | Rest], Points) when
    is_tuple(Record),
    tuple_size(Record) >= 11,
    element(1, Record) =:= memory_snapshot,
    is_number(element(#memory_snapshot.timestamp, Record)),
    is_integer(element(#memory_snapshot.total_memory, Record)),
    element(#memory_snapshot.total_memory, Record) >= 0
->
    Time = element(#memory_snapshot.timestamp, Record),
    Total = element(#memory_snapshot.total_memory, Record),
    points(Rest, [{Time, Total} | Points]);
points([], Points) ->
    lists:reverse(Points);
points(_, _) ->
    invalid_input.
