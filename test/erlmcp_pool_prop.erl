%% Random sequences of pool calls agree with a model.
%%
%% PropEr's header is not used: what its macros stand for is called directly. So this module
%% compiles where PropEr is not installed (and where a distribution packages it without headers);
%% the suite skips it there.
%%
%% Invariants, after every call of a sequence:
%%
%% * every state reads as the model's map, or `{error, released}' once it was released;
%% * every buffer gives the frames and holds the bytes that a plain binary would;
%% * `in_use', `available', `reused' and `created' are exactly the model's;
%% * a reference that is lost without a release gives its state back.
-module(erlmcp_pool_prop).

-import(proper_types, [
    any/0,
    binary/0,
    frequency/1,
    integer/0,
    list/1,
    nat/0,
    oneof/1,
    range/2
]).
-import(erlmcp_wait_help, [until/1]).

-export([check/0]).

-define(POOL, erlmcp_memory_pool).

-record(model, {
    pool_size,
    max_pool_size,
    available,
    reused,
    created,
    %% Key => Map or released; the references are in an ETS table, so that the model does not keep
    %% them alive
    states = #{},
    %% Key => bytes held or released
    buffers = #{},
    next = 1
}).

check() ->
    proper:quickcheck(agrees_with_model(), [{numtests, 200}, {max_size, 60}, {to_file, user}, quiet]).

agrees_with_model() ->
    proper:forall(
        {range(1, 20), range(0, 20), list(call())},
        fun({Size, Extra, Calls}) ->
            Table = ets:new(references, [public]),
            Model = start(Size, Size + Extra),
            try
                lists:foldl(fun(Call, Before) -> step(Call, Before, Table) end, Model, Calls),
                true
            catch
                error:Reason:Stack ->
                    io:format(user, "~p~n~p~n", [Reason, Stack]),
                    false
            after
                ets:delete(Table),
                collected(0),
                gen_server:stop(?POOL)
            end
        end
    ).

call() ->
    frequency([
        {6, {acquire, content()}},
        {4, {release, nat()}},
        {3, {update, nat(), content()}},
        {1, {lose, nat()}},
        {1, {configure, oneof([pool_size, max_pool_size, other]), range(-1, 40)}},
        {1, trim},
        {2, acquire_buffer},
        {4, {append, nat(), pieces()}},
        {4, {next, nat()}},
        {1, {release_buffer, nat()}}
    ]).

content() ->
    Pairs = list({oneof([atom_key(), integer(), binary()]), any()}),
    proper_types:bind(Pairs, fun maps:from_list/1, false).

atom_key() ->
    oneof([id, phase, user, metadata]).

pieces() ->
    list(oneof([binary(), <<"\n">>, <<"\r\n">>, range(0, 255), list(range(0, 255))])).

%% Counters go on over restarts, so the model starts where they are.
start(Size, Max) ->
    application:set_env(erlmcp, memory_pool_size, Size),
    application:set_env(erlmcp, memory_pool_max_size, Max),
    {ok, Pid} = ?POOL:start_link(),
    unlink(Pid),
    #{in_use := 0, available := Size, reused := Reused, created := Created} = ?POOL:pool_stats(),
    #model{
        pool_size = Size,
        max_pool_size = Max,
        available = Size,
        reused = Reused,
        created = Created
    }.

step(Call, Before, Table) ->
    After = run(Call, Before, Table),
    #model{available = Available, reused = Reused, created = Created} = After,
    InUse = in_use(After#model.states),
    #{
        in_use := InUse,
        available := Available,
        reused := Reused,
        created := Created
    } = ?POOL:pool_stats(),
    maps:foreach(
        fun(Key, Expected) ->
            Expected = read(?POOL:connection_state(ref(Table, Key)))
        end,
        After#model.states
    ),
    maps:foreach(
        fun(Key, Expected) ->
            Expected = read(?POOL:message_buffer(ref(Table, Key)))
        end,
        After#model.buffers
    ),
    After.

in_use(States) ->
    length([live || Map <- maps:values(States), Map =/= released]).

%% Collects what the last step dropped. A large heap is collected on a dirty scheduler, and what
%% was referred to from it comes back some time after the call has returned.
collected(InUse) ->
    erlang:garbage_collect(),
    until(fun() -> maps:get(in_use, ?POOL:pool_stats()) =:= InUse end).

read({ok, Content}) -> Content;
read({error, released}) -> released.

ref(Table, Key) ->
    ets:lookup_element(Table, Key, 2).

run({acquire, Map}, #model{next = Key, states = States, available = Available} = Model, Table) ->
    {ok, Ref} = ?POOL:acquire_connection_state(Map),
    true = ets:insert(Table, {Key, Ref}),
    Acquired = Model#model{next = Key + 1, states = States#{Key => Map}},
    case Available of
        0 -> Acquired#model{created = Model#model.created + 1};
        _ -> Acquired#model{available = Available - 1, reused = Model#model.reused + 1}
    end;
run({release, N}, #model{states = States} = Model, Table) ->
    with(N, States, Model, fun(Key, Map) ->
        ok = ?POOL:release_connection_state(ref(Table, Key)),
        came_back(Map, Model#model{states = States#{Key := released}})
    end);
run({lose, N}, #model{states = States} = Model, Table) ->
    with(N, States, Model, fun(Key, Map) ->
        true = ets:delete(Table, Key),
        Left = maps:remove(Key, States),
        collected(in_use(Left)),
        came_back(Map, Model#model{states = Left})
    end);
run({update, N, New}, #model{states = States} = Model, Table) ->
    with(N, States, Model, fun
        (Key, released) ->
            {error, released} = ?POOL:update_connection_state(ref(Table, Key), New),
            Model;
        (Key, Old) ->
            ok = ?POOL:update_connection_state(ref(Table, Key), New),
            Model#model{states = States#{Key := maps:merge(Old, New)}}
    end);
run({configure, Key, Value}, Model, _Table) ->
    #model{pool_size = Size, max_pool_size = Max, available = Available} = Model,
    case ?POOL:configure(Key, Value) of
        ok when Key =:= pool_size, Value >= 1, Value =< Max ->
            Model#model{pool_size = Value, available = max(Available, Value)};
        ok when Key =:= max_pool_size, Value >= Size ->
            Kept = max(min(Available, Value), Size),
            Model#model{max_pool_size = Value, available = Kept};
        {error, invalid_config} when Key =:= pool_size, Value < 1 orelse Value > Max ->
            Model;
        {error, invalid_config} when Key =:= max_pool_size, Value < Size ->
            Model;
        {error, invalid_config} when Key =:= other ->
            Model
    end;
run(trim, #model{available = Available, pool_size = Size} = Model, _Table) ->
    ?POOL ! trim,
    #{available := Left} = ?POOL:pool_stats(),
    %% Which states were not needed depends on the shards; the bounds do not.
    true = Left =< Available,
    true = Available - Left =< max(0, Available - Size + 1) div 2,
    Model#model{available = Left};
run(acquire_buffer, #model{next = Key, buffers = Buffers} = Model, Table) ->
    {ok, Ref, _Zeros} = ?POOL:acquire_message_buffer(0),
    true = ets:insert(Table, {Key, Ref}),
    Model#model{next = Key + 1, buffers = Buffers#{Key => <<>>}};
run({append, N, Pieces}, #model{buffers = Buffers} = Model, Table) ->
    with(N, Buffers, Model, fun
        (Key, released) ->
            {error, released} = ?POOL:append_message_buffer(ref(Table, Key), Pieces),
            Model;
        (Key, Old) ->
            New = iolist_to_binary([Old | Pieces]),
            {ok, Held} = ?POOL:append_message_buffer(ref(Table, Key), Pieces),
            Held = byte_size(New),
            Model#model{buffers = Buffers#{Key := New}}
    end);
run({next, N}, #model{buffers = Buffers} = Model, Table) ->
    with(N, Buffers, Model, fun
        (Key, released) ->
            {error, released} = ?POOL:next_message(ref(Table, Key)),
            Model;
        (Key, Held) ->
            case binary:split(Held, <<"\n">>) of
                [Held] ->
                    more = ?POOL:next_message(ref(Table, Key)),
                    Model;
                [Line, Rest] ->
                    {ok, Frame} = ?POOL:next_message(ref(Table, Key)),
                    Frame = without_cr(Line),
                    Model#model{buffers = Buffers#{Key := Rest}}
            end
    end);
run({release_buffer, N}, #model{buffers = Buffers} = Model, Table) ->
    with(N, Buffers, Model, fun(Key, _Held) ->
        ok = ?POOL:release_message_buffer(ref(Table, Key)),
        Model#model{buffers = Buffers#{Key := released}}
    end).

with(_N, Items, Model, _Fun) when map_size(Items) =:= 0 ->
    Model;
with(N, Items, _Model, Fun) ->
    Key = lists:nth(1 + N rem map_size(Items), lists:sort(maps:keys(Items))),
    Fun(Key, maps:get(Key, Items)).

came_back(released, Model) ->
    Model;
came_back(_Map, #model{available = Available, max_pool_size = Max} = Model) ->
    Model#model{available = min(Available + 1, Max)}.

without_cr(Line) ->
    Size = byte_size(Line) - 1,
    case Line of
        <<Kept:Size/binary, "\r">> -> Kept;
        _ -> Line
    end.
