%% @doc What an operation takes on one scheduler alone, and on all of them at once: a counter or a
%% lock that they share shows as a ratio.
%%
%% All at once work with one object, and then each with one of its own of the same shape: the
%% difference of these two is the common object's, whatever else the machine does.
-module(erlmcp_bench_contention).

-export([interleaved/2, measure/3, name/1, operations/0]).

-import(erlmcp_bench_measure, [in_own_process/2, medians/1, repeat/2]).

-define(O, erlmcp_connection_optimizer).
-define(P, erlmcp_memory_pool).
%% Operations between two looks at the clock.
-define(BLOCK, 20).
-define(TABLE, erlmcp_bench_contention_table).

-type operation() ::
    find_1 | find_10 | find_100 | find_small | shared | read | update_path | update
    | update_no_share | buffer | ets | persistent | counter.
%% Nanoseconds: one scheduler alone; all at once with one object, and with one each.
-type times() :: #{alone := number(), common := number(), own := number()}.
-export_type([operation/0, times/0]).

-spec operations() -> [operation()].
operations() ->
    [
        find_1, find_10, find_100, find_small, shared, read,
        update_path, update, update_no_share, buffer, ets, persistent, counter
    ].

-spec name(operation()) -> string().
name(find_1) -> "find_shared, 1 of 100 bytes";
name(find_10) -> "find_shared, 10 of 100 bytes";
name(find_100) -> "find_shared, 100 of 100 b.";
name(find_small) -> "find_shared, 10 of 60 bytes";
name(shared) -> "shared, 10 of 100 bytes";
name(read) -> "read a field, 10 of 100 b.";
name(update_path) -> "update a path, a share";
name(update) -> "update a field, a share";
name(update_no_share) -> "update a field, no share";
name(buffer) -> "acquire, release a buffer";
name(ets) -> "ets:lookup, 10 of 100 b.";
name(persistent) -> "persistent_term, the same";
%% What one word costs that all move: how far the machine shows contention at all.
name(counter) -> "ten times atomics:add/3".

%% An object with content of that number.
object(find_1, N) -> ?O:share(value(N, 1, 100));
object(find_100, N) -> ?O:share(value(N, 100, 100));
object(find_small, N) -> ?O:share(value(N, 10, 60));
object(read, N) -> ?O:from_map((value(N, 10, 100))#{id => <<"c">>});
object(ets, N) -> true = ets:insert(?TABLE, {N, value(N, 10, 100)}), N;
object(persistent, N) -> ok = persistent_term:put({?MODULE, N}, value(N, 10, 100)), {?MODULE, N};
object(counter, _) -> atomics:new(32, []);
object(_, N) -> ?O:share(value(N, 10, 100)).

value(N, Count, Size) ->
    #{v => [<<N:32, I:32, 0:(Size - 8)/unit:8>> || I <- lists:seq(1, Count)]}.

%% The work of one process on an object.
work(update_path, Share) ->
    State = ?O:update_state_field(state(), capabilities_ref, Share),
    fun() -> ?O:update_state_field(State, [metadata, user_id], 7) end;
work(update, Share) ->
    State = ?O:update_state_field(state(), capabilities_ref, Share),
    fun() -> ?O:update_state_field(State, phase, closed) end;
work(update_no_share, _Share) ->
    State = state(),
    fun() -> ?O:update_state_field(State, phase, closed) end;
work(buffer, _Share) ->
    fun() ->
        {ok, Buffer, _} = ?P:acquire_message_buffer(1),
        ok = ?P:release_message_buffer(Buffer)
    end;
work(shared, Share) -> fun() -> ?O:shared(Share) end;
work(read, State) -> fun() -> ?O:get_state_field(State, v) end;
work(ets, Key) -> fun() -> ets:lookup(?TABLE, Key) end;
work(counter, Counter) -> fun() -> [atomics:add(Counter, 16, 1) || _ <- "0123456789"] end;
work(persistent, Key) -> fun() -> persistent_term:get(Key) end;
work(_, Share) -> fun() -> ?O:find_shared(Share, [v]) end.

state() ->
    ?O:from_map(#{id => <<"connection-000001">>, metadata => #{user_id => 1, locale => <<"en">>}}).

%% @doc Medians of the given number of rounds in turn; each takes the given milliseconds. The pool must
%% have been started.
-spec measure([operation()], pos_integer(), pos_integer()) -> #{operation() => times()}.
measure(Operations, Ms, Rounds) ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {read_concurrency, true}]),
    Schedulers = lists:seq(1, erlang:system_info(schedulers_online)),
    Objects = [{Op, [object(Op, N) || N <- [0 | Schedulers]]} || Op <- Operations],
    Medians = medians(
        lists:append([
            times(Round, Op, Some, Schedulers, Ms)
         || Round <- lists:seq(1, Rounds), {Op, Some} <- Objects
        ])
    ),
    true = ets:delete(?TABLE),
    _ = [persistent_term:erase({?MODULE, N}) || N <- [0 | Schedulers]],
    maps:from_list([
        {Op, maps:from_list([{Mode, maps:get({Op, Mode}, Medians)} || Mode <- [alone, common, own]])}
     || Op <- Operations
    ]).

times(Round, Op, [Common | Own], Schedulers, Ms) ->
    One = 1 + Round rem length(Schedulers),
    [
        {{Op, alone}, run(Op, [{One, Common}], Ms)},
        {{Op, common}, run(Op, [{N, Common} || N <- Schedulers], Ms)},
        {{Op, own}, run(Op, lists:zip(Schedulers, Own), Ms)}
    ].

%% Nanoseconds of an operation, the mean of the processes: one bound to each scheduler.
run(Op, Objects, Ms) ->
    Self = self(),
    Pids = [
        spawn_opt(
            fun() ->
                Fun = work(Op, Object),
                ok = repeat(Fun, ?BLOCK),
                Self ! {ready, self()},
                receive
                    {go, Start} -> Self ! {took, self(), timed(Fun, Start, Ms)}
                end
            end,
            [link, {scheduler, Scheduler}]
        )
     || {Scheduler, Object} <- Objects
    ],
    [receive {ready, Pid} -> ok end || Pid <- Pids],
    Start = erlang:monotonic_time(nanosecond) + 500000,
    [Pid ! {go, Start} || Pid <- Pids],
    Took = [receive {took, Pid, Ns} -> Ns end || Pid <- Pids],
    lists:sum(Took) / length(Took).

timed(Fun, Start, Ms) ->
    case erlang:monotonic_time(nanosecond) of
        Now when Now < Start -> timed(Fun, Start, Ms);
        Now -> blocks(Fun, Now, Now + Ms * 1000000, 0)
    end.

blocks(Fun, Start, End, Done) ->
    ok = repeat(Fun, ?BLOCK),
    case erlang:monotonic_time(nanosecond) of
        Now when Now < End -> blocks(Fun, Start, End, Done + ?BLOCK);
        Now -> (Now - Start) / (Done + ?BLOCK)
    end.

%% @doc Median times of operations of one process, in rounds in turn, so that what else the machine
%% does meets all alike: nanoseconds without those of an empty loop. A measurement is so short that
%% few are interrupted, and long enough for some collections.
-spec interleaved(#{Name => fun(() -> term())}, pos_integer()) -> #{Name => float()}.
interleaved(Funs, Rounds) ->
    All = maps:map(fun(_, Fun) -> {Fun, calls(Fun)} end, Funs#{empty => fun() -> ok end}),
    #{empty := Empty} = Medians = medians([
        {Name, alone(fun() -> loop(Fun, Calls) end)}
     || _ <- lists:seq(1, Rounds), {Name, {Fun, Calls}} <- maps:to_list(All)
    ]),
    maps:map(fun(_, Ns) -> max(0.0, Ns - Empty) end, maps:remove(empty, Medians)).

%% As many as take about this many nanoseconds.
calls(Fun) ->
    max(1, round(500000 / lists:min([alone(fun() -> loop(Fun, 5) end) || _ <- lists:seq(1, 5)]))).

loop(Fun, Calls) ->
    ok = repeat(Fun, 1 + Calls div 4),
    Start = erlang:monotonic_time(nanosecond),
    ok = repeat(Fun, Calls),
    %% Destructors are part of it: they run when the process gives its scheduler back.
    true = erlang:garbage_collect(),
    true = erlang:yield(),
    (erlang:monotonic_time(nanosecond) - Start) / Calls.

alone(Fun) ->
    in_own_process(Fun, [{scheduler, 1}]).
