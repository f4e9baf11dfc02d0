%% @private
%% @doc What uses the memory: what the library holds, and the whole node.
%%
%% Nothing is walked: what the library holds is counted as it comes and goes, and the VM keeps sums
%% of what its allocators handed out.
-module(erlmcp_memory_figures).

-export([inventory/0, breakdown/0, kinds/0]).

%% Shares that are listed one by one.
-define(LARGEST, 10).

%% @doc What the library holds, by kind.
-spec inventory() -> erlmcp_memory_profiler:inventory().
inventory() ->
    #{shares := Shares} = Native = erlmcp_memory_nif:inventory(),
    Kinds = maps:with([pooled_states, compact_states, parked, buffers], Native),
    Kinds#{shares => Shares#{largest => erlmcp_memory_nif:largest_shares(?LARGEST)}}.

%% @doc The kinds of {@link breakdown/0}, in the order in which they are shown.
-spec kinds() -> [atom()].
kinds() ->
    [
        processes, binaries, ets, atoms, code, states, shares, parked, buffers, samples, other,
        allocated_unused, unaccounted
    ].

%% @doc The resident memory of the node by kind, each byte once.
-spec breakdown() -> erlmcp_memory_profiler:breakdown() | {error, notsup}.
breakdown() ->
    try erlang:memory() of
        Memory -> breakdown(maps:from_list(Memory), erlmcp_memory_nif:inventory())
    catch
        error:notsup -> {error, notsup}
    end.

breakdown(Memory, Native) ->
    #{used := Used, held := Held} = allocated(),
    {Resident, Mapped} = erlmcp_memory_nif:resident(),
    #{binaries := Objects, heaps := Heaps} = Native,
    Own = #{
        states => bytes(pooled_states, Native) + bytes(compact_states, Native),
        shares => bytes(shares, Native),
        parked => bytes(parked, Native),
        buffers => bytes(buffers, Native),
        samples => bytes(samples, Native)
    },
    Vm = #{
        processes => max(0, maps:get(processes, Memory) - Heaps),
        binaries => max(0, maps:get(binary, Memory) - Objects),
        ets => maps:get(ets, Memory),
        atoms => maps:get(atom, Memory),
        code => maps:get(code, Memory)
    },
    Known = maps:merge(Own, Vm),
    %% Machine code is in mapped memory, or among the blocks.
    Other = max(0, Used + Mapped - sum(Known)),
    Unused = unused(Held - Used, Resident - Mapped - Used),
    Told = Known#{other => Other, allocated_unused => Unused},
    Told#{unaccounted => Resident - sum(Told)}.

%% Memory that allocators hold but nothing uses is resident only where it was ever written to: it is
%% at most what remains of the anonymous memory after the used part.
unused(Free, Left) ->
    max(0, min(Free, Left)).

bytes(Kind, Native) ->
    Held = maps:get(Kind, Native),
    maps:get(bytes, Held) + maps:get(idle_bytes, Held, 0).

sum(Kinds) ->
    lists:sum(maps:values(Kinds)).

%% Bytes that the allocators of the VM and of the C library handed out, and bytes that they hold.
%% Carriers are in segments that the VM mapped, in its own area for literals, or in memory of the C
%% library.
allocated() ->
    Allocators = erlang:system_info(alloc_util_allocators),
    Carriers = [
        {Allocator, Carrier}
     || {Allocator, Instances} <- list(erlang:system_info({allocator_sizes, Allocators})),
        {instance, _, Kinds} <- list(Instances),
        {Kind, Carrier} <- Kinds,
        Kind =/= fix_types
    ],
    Blocks = lists:sum([
        Size
     || {_, Carrier} <- Carriers,
        {blocks, Blocks} <- Carrier,
        {_, Figures} <- Blocks,
        Size <- current(size, Figures)
    ]),
    Sizes = [{Allocator, Size} || {Allocator, Carrier} <- Carriers,
        Size <- current(carriers_size, Carrier)],
    All = lists:sum([Size || {_, Size} <- Sizes]),
    Literals = lists:sum([Size || {literal_alloc, Size} <- Sizes]),
    Segments = segments(),
    {CUsed, CFree} = erlmcp_memory_nif:c_heap(),
    %% What others than the VM's allocators use of the C library's memory.
    Others = max(0, CUsed - max(0, All - Literals - Segments)),
    #{
        used => Blocks + Others,
        held => All + max(0, mapped() - Segments) + Others + CFree
    }.

%% The value of a figure, which may come with its highest values.
current(Name, Figures) ->
    [element(2, Figure) || Figure <- Figures, element(1, Figure) =:= Name].

%% Segments that are carriers. The VM keeps others in reserve.
segments() ->
    lists:sum([
        Size
     || {instance, _, Parts} <- list(erlang:system_info({allocator, mseg_alloc})),
        {memkind, Kind} <- Parts,
        {status, Status} <- Kind,
        Size <- current(segments_size, Status)
    ]).

%% All segments.
mapped() ->
    lists:sum([
        Size
     || {default_mmap, Parts} <- list(erlang:system_info({allocator, erts_mmap})),
        {_, Part} <- Parts,
        is_list(Part),
        {sizes, Sizes} <- Part,
        Size <- current(used, Sizes)
    ]).

list(List) when is_list(List) -> List;
list(_) -> [].
