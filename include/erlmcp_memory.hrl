%% One measurement of the node's memory. Bytes unless said otherwise.
%%
%% The first ten fields keep their order: records written by hosts that were compiled against an
%% older header stay readable. New fields come after these.
-record(memory_snapshot, {
    %% when it was taken, in milliseconds since the epoch
    timestamp = 0 :: integer(),
    process_count = 0 :: non_neg_integer(),
    %% erlang:memory(total): processes, binaries, ETS, atoms, code, and every native byte
    total_memory = 0 :: non_neg_integer(),
    process_memory = 0 :: non_neg_integer(),
    binary_memory = 0 :: non_neg_integer(),
    ets_memory = 0 :: non_neg_integer(),
    atom_memory = 0 :: non_neg_integer(),
    %% garbage collections since the node started, and the bytes they reclaimed
    gc_collections = 0 :: non_neg_integer(),
    gc_reclaimed = 0 :: non_neg_integer(),
    %% the longest garbage collection of any process since the snapshot before, in milliseconds;
    %% 0.0 while nothing is being measured
    gc_pause_max = 0.0 :: number(),
    %% bytes the native library holds; part of total_memory
    native_memory = 0 :: non_neg_integer(),
    %% resident set size of the operating system process; 0 where the system does not tell
    resident_memory = 0 :: non_neg_integer(),
    %% erlang:time_offset(millisecond) at that time: timestamp - time_offset is on the node's
    %% monotonic clock, which no step of the system clock moves; 0 in records made by hand
    time_offset = 0 :: integer(),
    %% pooled states in use, compact states and parked terms
    connections = 0 :: non_neg_integer()
}).
