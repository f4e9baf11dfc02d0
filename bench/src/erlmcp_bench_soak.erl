%% @doc `make soak': a mixed load at full speed, and the memory of the process meanwhile.
%%
%% Workers acquire, update and release pooled states, keep some for a while, take messages of all
%% sizes in fragments, build and change compact states, share, snapshot, and die now and then with
%% all they hold. Resident memory must not grow: over the second half of the run the mean of its
%% last fifth is compared with that of its first.
-module(erlmcp_bench_soak).

-export([main/1]).

-import(erlmcp_bench_table, [mark/5, print/2]).

-define(P, erlmcp_memory_pool).
-define(O, erlmcp_connection_optimizer).
-define(WORKERS, 64).
%% Steps that a worker lives.
-define(LIFE, 20000).
-define(SAMPLE_MS, 1000).

%% @doc For this many seconds.
-spec main([string()]) -> ok.
main([SecondsText]) ->
    Seconds = list_to_integer(SecondsText),
    {ok, _} = ?P:start_link(),
    Done = counters:new(1, [write_concurrency]),
    Keeper = spawn_link(fun() ->
        process_flag(trap_exit, true),
        keep([worker(Done, N) || N <- lists:seq(1, ?WORKERS)], Done, ?WORKERS)
    end),
    Samples = samples(Seconds * 1000 div ?SAMPLE_MS, Done, []),
    unlink(Keeper),
    exit(Keeper, kill),
    Half = lists:nthtail(length(Samples) div 2, Samples),
    Fifth = max(1, length(Half) div 5),
    First = mean(lists:sublist(Half, Fifth)),
    Last = mean(lists:nthtail(length(Half) - Fifth, Half)),
    print("~n~b steps in ~b s by ~b workers; resident MB in the second half: ~.1f first, ~.1f last~n", [
        counters:get(Done, 1), Seconds, ?WORKERS, First / 1048576, Last / 1048576
    ]),
    mark(6, "growth of resident memory, per cent", at_most, 100 * (Last - First) / First, 2.0).

mean(List) -> lists:sum(List) / length(List).

samples(0, _Done, Samples) ->
    lists:reverse(Samples);
samples(Left, Done, Samples) ->
    timer:sleep(?SAMPLE_MS),
    {_, Resident, _} = erlmcp_memory_nif:profiler_probe(caller),
    Left rem 30 =:= 0 andalso
        print("~4b s left, ~10b steps, ~6.1f MB resident, ~6.1f MB total~n", [
            Left * ?SAMPLE_MS div 1000,
            counters:get(Done, 1),
            Resident / 1048576,
            erlang:memory(total) / 1048576
        ]),
    samples(Left - 1, Done, [Resident | Samples]).

%% A worker that ends is followed by another.
keep(Workers, Done, Number) ->
    receive
        {'EXIT', Pid, normal} ->
            keep([worker(Done, Number + 1) | lists:delete(Pid, Workers)], Done, Number + 1)
    end.

worker(Done, Number) ->
    spawn_link(fun() ->
        _ = rand:seed(exsss, Number),
        {ok, Buffer, _} = ?P:acquire_message_buffer(1),
        work(?LIFE div 2 + rand:uniform(?LIFE), Done, Buffer, [], ?O:create_optimized_state(<<"w">>))
    end).

work(0, _Done, _Buffer, _Held, _State) ->
    ok;
work(Left, Done, Buffer, Held, State) ->
    Left rem 100 =:= 0 andalso counters:add(Done, 1, 100),
    {Kept, Next} = step(rand:uniform(20), Buffer, Held, State),
    work(Left - 1, Done, Buffer, Kept, Next).

step(N, _Buffer, Held, State) when N =< 8 ->
    {ok, Ref} = ?P:acquire_connection_state(#{id => N, name => <<"soak">>}),
    case rand:uniform(4) of
        1 when length(Held) < 50 ->
            {[Ref | Held], State};
        _ ->
            ok = ?P:update_connection_state(Ref, #{large => rand:bytes(rand:uniform(500))}),
            ok = ?P:release_connection_state(Ref),
            {Held, State}
    end;
step(N, _Buffer, [Ref | Held], State) when N =< 10 ->
    {ok, #{id := _}} = ?P:connection_state(Ref),
    rand:uniform(2) =:= 1 andalso ?P:release_connection_state(Ref),
    {Held, State};
step(N, Buffer, Held, State) when N =< 13 ->
    Size = rand:uniform(1 bsl rand:uniform(17)),
    message(Buffer, rand:bytes(Size)),
    {Held, State};
step(N, _Buffer, Held, State) when N =< 17 ->
    {Held, ?O:update_state_field(State, [subscriptions, rand:uniform(200)], rand:bytes(20))};
step(18, _Buffer, Held, State) ->
    {Held, ?O:update_state_field(State, capabilities_ref, ?O:share(lists:seq(1, rand:uniform(300))))};
step(19, _Buffer, Held, State) ->
    Read = ?O:decompress_state(?O:compress_state(State)),
    {Held, Read};
step(_, _Buffer, Held, _State) ->
    {Held, ?O:create_optimized_state(rand:bytes(16))}.

message(Buffer, Bytes) when byte_size(Bytes) > 1000 ->
    <<Part:1000/binary, Rest/binary>> = Bytes,
    {ok, _} = ?P:append_message_buffer(Buffer, Part),
    frames(Buffer),
    message(Buffer, Rest);
message(Buffer, Bytes) ->
    {ok, _} = ?P:append_message_buffer(Buffer, [Bytes, $\n]),
    frames(Buffer).

frames(Buffer) ->
    case ?P:next_message(Buffer) of
        {ok, _} -> frames(Buffer);
        more -> ok
    end.
