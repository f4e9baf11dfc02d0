%% @doc What operations hold beside their results: memory at the peak, collections, whole binaries
%% behind small parts. In the calling VM, which does nothing else at the time.
-module(erlmcp_bench_held).

-export([closure_over_part/0, closures/1, pairs/1, read_snapshot/1]).

-import(erlmcp_bench_measure, [in_own_process/1, settled_total/0]).

-define(O, erlmcp_connection_optimizer).
%% States that are held at a time, for the mean of what one takes.
-define(STATES, 1000).
-define(P, erlmcp_memory_pool).

%% @doc A snapshot with this many shares is read: its bytes, the size that the state reports,
%% and by how much `erlang:memory(total)' was raised at the peak and afterwards.
-spec read_snapshot(pos_integer()) ->
    #{snapshot := integer(), state := integer(), peak := integer(), rest := integer()}.
read_snapshot(Count) ->
    %% Read once before: tables that only grow are of no interest here.
    Snapshot = in_own_process(fun() -> ?O:compress_state(shares(Count)) end),
    ok = in_own_process(fun() -> _ = ?O:decompress_state(Snapshot), ok end),
    Before = settled_total(),
    Self = self(),
    Reader = spawn_link(fun() ->
        receive read -> ok end,
        State = ?O:decompress_state(Snapshot),
        Self ! {read, self()},
        receive
            {sizes, From} -> From ! {sizes, ?O:state_size_info(State)}
        end,
        receive
            {never, State} -> ok
        end
    end),
    Sampler = spawn_opt(fun() -> sample(0) end, [link, {priority, high}]),
    Reader ! read,
    receive {read, Reader} -> ok end,
    Sampler ! {peak, self()},
    Peak = receive {peak, Bytes} -> Bytes end,
    Rest = settled_total(),
    Reader ! {sizes, self()},
    #{total_bytes := Total, shared_bytes := Shared} = receive {sizes, Info} -> Info end,
    true = unlink(Reader),
    exit(Reader, kill),
    #{
        snapshot => byte_size(Snapshot),
        state => Total + Shared,
        peak => max(Peak, Rest) - Before,
        rest => Rest - Before
    }.

%% Shares of some 100 bytes each.
shares(Count) ->
    Shares = [?O:share({N, binary:copy(<<"share">>, 19)}) || N <- lists:seq(1, Count)],
    ?O:from_map(#{id => <<"c">>, shares => Shares}).

sample(Peak) ->
    receive
        {peak, From} -> From ! {peak, max(Peak, erlang:memory(total))}
    after 0 ->
        sample(max(Peak, erlang:memory(total)))
    end.

%% @doc Collections of a process that acquires and releases this many message buffers.
-spec pairs(pos_integer()) -> non_neg_integer().
pairs(Count) ->
    Self = self(),
    Pid = spawn_link(fun() ->
        receive go -> ok end,
        lists:foreach(
            fun(_) ->
                {ok, Buffer, _} = ?P:acquire_message_buffer(1024),
                ok = ?P:release_message_buffer(Buffer)
            end,
            lists:seq(1, Count)
        ),
        Self ! {done, self()}
    end),
    1 = erlang:trace(Pid, true, [garbage_collection]),
    Pid ! go,
    receive {done, Pid} -> ok end,
    Delivered = erlang:trace_delivered(Pid),
    receive {trace_delivered, Pid, Delivered} -> ok end,
    starts(Pid, 0).

starts(Pid, Count) ->
    receive
        {trace, Pid, gc_minor_start, _} -> starts(Pid, Count + 1);
        {trace, Pid, gc_major_start, _} -> starts(Pid, Count + 1);
        {trace, Pid, _, _} -> starts(Pid, Count)
    after 0 ->
        Count
    end.

%% @doc A state with this many closures over one session: what they take on a heap, what the state
%% says that they take, and what it takes.
-spec closures(pos_integer()) -> #{heap := integer(), estimate := integer(), taken := float()}.
closures(Count) ->
    Make = fun(Session) ->
        maps:from_list([
            {integer_to_binary(N), fun(A) -> {Session, N, A} end}
         || N <- lists:seq(1, Count)
        ])
    end,
    State = fun(Handlers) -> ?O:from_map(#{id => <<"c">>, handlers => Handlers}) end,
    Empty = ?O:estimate_memory(State(#{})),
    Estimate = fun(Session) -> ?O:estimate_memory(State(Make(Session))) - Empty end,
    #{
        heap => erts_debug:flat_size(Make(session(0))) * erlang:system_info(wordsize),
        estimate => lists:sum([Estimate(session(N)) || N <- lists:seq(1, ?STATES)]) div ?STATES,
        taken =>
            each(?STATES, fun(N) -> State(Make(session(N))) end) -
                each(?STATES, fun(_) -> State(#{}) end)
    }.

session(N) ->
    {session, N, integer_to_binary(N)}.

%% Bytes for each of `Count' states that one process holds.
each(Count, Make) ->
    Before = settled_total(),
    Self = self(),
    Pid = spawn_link(fun() ->
        Held = [Make(N) || N <- lists:seq(1, Count)],
        Self ! {holds, self()},
        %% So that its heap takes what is in it, whatever was there before.
        erlang:hibernate(lists, last, [Held])
    end),
    receive {holds, Pid} -> ok end,
    ok = erlmcp_bench_form:asleep(Pid),
    Bytes = settled_total() - Before,
    true = unlink(Pid),
    exit(Pid, kill),
    Bytes / Count.

%% @doc A state with a closure over 100 bytes of a binary of 50 MB: bytes of binaries that stay, and
%% what the state says that it takes.
-spec closure_over_part() -> #{binaries := integer(), estimate := integer()}.
closure_over_part() ->
    in_own_process(fun() ->
        Before = erlang:memory(binary),
        State = over_part(),
        true = erlang:garbage_collect(),
        _ = settled_total(),
        Bytes = erlang:memory(binary) - Before,
        #{binaries => Bytes, estimate => ?O:estimate_memory(State)}
    end).

over_part() ->
    Part = binary:part(binary:copy(<<"x">>, 50000000), 10, 100),
    ?O:from_map(#{id => <<"c">>, handler => fun() -> Part end}).
