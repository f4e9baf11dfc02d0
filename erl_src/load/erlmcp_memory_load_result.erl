%% @private
%% @doc The figures of a load simulation: the measurements of the node, and the result map.
-module(erlmcp_memory_load_result).

-export([measure/0, left/3, of_batch/4, of_run/3]).

-export_type([measured/0, result/0]).

-include("erlmcp_memory.hrl").

-define(MB, 1048576).
%% What a connection may cost, in megabytes.
-define(TARGET_MB, 2.0).

-type memory() :: #{
    total := non_neg_integer(),
    processes := non_neg_integer(),
    binaries := non_neg_integer(),
    native := non_neg_integer(),
    resident := non_neg_integer()
}.
-type measured() :: #{
    timestamp := integer(),
    process_count := non_neg_integer(),
    memory := memory(),
    %% states in use, and acquisitions so far
    in_use := non_neg_integer(),
    acquired := non_neg_integer(),
    idle_states := non_neg_integer(),
    idle_bytes := non_neg_integer(),
    buffer_bytes := non_neg_integer(),
    idle_buffer_bytes := non_neg_integer()
}.
-type result() :: #{atom() => term()}.

%% @doc Measures the node. The pool's figures exist also without its process.
-spec measure() -> measured().
measure() ->
    #memory_snapshot{
        timestamp = Timestamp,
        process_count = Processes,
        total_memory = Total,
        process_memory = ProcessMemory,
        binary_memory = Binaries,
        native_memory = Native,
        resident_memory = Resident
    } = erlmcp_memory_sample:measure(caller),
    {InUse, Idle, Reused, Created, _, IdleBytes, _} = erlmcp_memory_nif:pool_stats(),
    {_, IdleBuffers, LiveBuffers} = erlmcp_memory_nif:buffer_stats(),
    #{
        timestamp => Timestamp,
        process_count => Processes,
        memory => #{
            total => Total,
            processes => ProcessMemory,
            binaries => Binaries,
            native => Native,
            resident => Resident
        },
        in_use => InUse,
        acquired => Reused + Created,
        idle_states => Idle,
        idle_bytes => IdleBytes,
        buffer_bytes => LiveBuffers,
        idle_buffer_bytes => IdleBuffers
    }.

%% @doc What is not released of a run with this many acquisitions. Others may use the pool at the
%% same time; what they acquire is not counted.
-spec left(measured(), measured(), non_neg_integer()) ->
    #{states_left := non_neg_integer(), buffer_bytes_left := non_neg_integer()}.
left(Before, Now, Acquired) ->
    #{in_use := InUse, acquired := SoFar, buffer_bytes := Buffers} = Before,
    #{in_use := InUseNow, acquired := SoFarNow, buffer_bytes := BuffersNow} = Now,
    Others = max(0, SoFarNow - SoFar - Acquired),
    #{
        states_left => max(0, InUseNow - InUse - Others),
        buffer_bytes_left => max(0, BuffersNow - Buffers)
    }.

%% @doc The map of a batch, given the number of connections after it.
-spec of_batch(pos_integer(), pos_integer(), measured(), measured()) -> result().
of_batch(Batch, Connections, Before, Now) ->
    #{memory := #{total := Total}, process_count := Processes, timestamp := Timestamp} = Now,
    Each = each(total, Before, Now, Connections),
    #{
        batch => Batch,
        connection_count => Connections,
        memory_per_connection => Each,
        memory_per_connection_mb => Each / ?MB,
        total_memory_mb => Total div ?MB,
        process_count => Processes,
        timestamp => Timestamp
    }.

%% @doc The result of a run.
-spec of_run(pos_integer(), measured(), map()) -> result().
of_run(Count, Before, Run) ->
    #{
        batches := Batches,
        peak := #{memory := #{total := Peak} = PeakMemory} = AtPeak,
        afterwards := Afterwards,
        latency := Latency,
        gc := Gc,
        errors := Errors,
        first_errors := FirstErrors,
        processes_left := ProcessesLeft,
        pool_started := PoolStarted,
        acquired := Acquired,
        duration_ms := Duration
    } = Run,
    #{memory := #{total := Baseline} = BeforeMemory} = Before,
    #{states_left := StatesLeft, buffer_bytes_left := BufferBytesLeft} =
        left(Before, Afterwards, Acquired),
    Each = each(total, Before, AtPeak, Count),
    #{
        target_connections => Count,
        batches_completed => length(Batches),
        final_process_count => maps:get(process_count, AtPeak),
        final_total_memory_mb => Peak div ?MB,
        final_memory_per_connection => Each,
        final_memory_per_connection_mb => Each / ?MB,
        baseline_memory_mb => Baseline div ?MB,
        memory_delta_mb => (Peak - Baseline) div ?MB,
        batch_results => Batches,
        success =>
            Each / ?MB < ?TARGET_MB andalso
                {Errors, StatesLeft, ProcessesLeft, BufferBytesLeft} =:= {0, 0, 0, 0},
        bytes_per_connection =>
            maps:map(fun(Kind, _) -> each(Kind, Before, AtPeak, Count) end, PeakMemory),
        resident_bytes_per_connection => each(resident, Before, AtPeak, Count),
        memory => #{
            before => BeforeMemory,
            peak => PeakMemory,
            afterwards => maps:get(memory, Afterwards)
        },
        latency => maps:map(fun(_, Nanos) -> microseconds(Nanos) end, Latency),
        gc_pause => gc_pause(Gc),
        errors => Errors,
        first_errors => FirstErrors,
        states_left => StatesLeft,
        processes_left => ProcessesLeft,
        buffer_bytes_left => BufferBytesLeft,
        pool => maps:merge(
            #{started => PoolStarted},
            maps:with([idle_states, idle_bytes, idle_buffer_bytes], Afterwards)
        ),
        duration_ms => Duration
    }.

%% How much a kind of memory has grown for each connection. Never below zero: on a node that does
%% other work as well, others may free more than the connections use.
each(Kind, #{memory := Before}, #{memory := Now}, Count) ->
    max(0, maps:get(Kind, Now) - maps:get(Kind, Before)) div Count.

microseconds(#{count := Count} = Nanos) ->
    Micros = maps:map(fun(_, Value) -> Value / 1000 end, Nanos),
    Micros#{count := Count}.

gc_pause({unmeasured, Reason}) ->
    #{measured => false, reason => Reason};
gc_pause(#{collections := Collections, pause_ms := Pause}) ->
    Pause#{measured => true, collections => Collections}.
