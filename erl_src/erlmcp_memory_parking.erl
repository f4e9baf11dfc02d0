%% @private
%% @doc When a server parks its state, and how: the rules that the engines of `erlmcp_memory_server'
%% and `erlmcp_memory_statem' have in common.
%%
%% A `parking()' is kept in the engine's loop. It knows whether the state is awake, on the heap of
%% the server, or parked, in its slot of the native library, and whether the slot still holds what
%% the state is. The engine keeps the state itself, and drops it when it was parked.
%%
%% A server waits, awake, for its idle time, then parks. While the states of the node that are awake
%% take more than the limit (`awake_memory_limit'), it parks as soon as it finds no message. What
%% the engine calls, in this order:
%%
%% <ol>
%% <li>{@link changed/3} with the states before and after each callback;</li>
%% <li>{@link settle/1} before it waits, awake: whether to wait for the idle time or to park;</li>
%% <li>{@link park/4} when nothing came, and {@link rest/2} when the state is dropped;</li>
%% <li>{@link admit/3}, then {@link wake/1}, when a message needs the state.</li>
%% </ol>
-module(erlmcp_memory_parking).

-include_lib("kernel/include/logger.hrl").
-include("erlmcp_memory_parking.hrl").

-export([options/1, new/1, tag/0, idle_after/1, is_parked/1, is_refused/1, changed/3]).
-export([settle/1, park/4, replace/3, hold/1, rest/2, tidy/2, forget/1, compact/1, expand/1]).
-export([admit/3, wake/1, peek/1]).

-export_type([parking/0, compact/0, reason/0, urgency/0]).

%% It is kept over replacements of this module: a new field needs a new tag, and a clause in each
%% function that takes the old shape.
-record(parking_1, {
    slot :: reference(),
    idle_after :: timeout(),
    %% awake: the slot does not hold the state. clean: it does. refused: it cannot. parked: the
    %% state is in the slot alone.
    state = awake :: awake | clean | refused | parked,
    %% What the library was told of the heap, and when it is to be told anew (native units of
    %% monotonic time).
    bytes = 0 :: non_neg_integer(),
    due = now :: now | integer(),
    limit :: non_neg_integer() | infinity
}).

-opaque parking() :: #parking_1{}.
%% How it stands with the state of a server.

-type compact() ::
    nonempty_improper_list(Slot :: reference(), IdleAfter :: timeout())
    | {Slot :: reference(), IdleAfter :: timeout()}.
%% All that is needed of it while the state is parked, in two words. Earlier versions kept the tuple.

-type reason() :: idle | crowded.
%% Why a state is parked: no message came for the idle time, or too many bytes are awake.

-type urgency() :: call | other.
%% What a state is woken for: somebody waits for the reply, or not.

%% Idle states are not parked all at once: up to so much of the idle time is added to it.
-define(SPREAD, 4).
%% Milliseconds until an idle server that found no place tries again.
-define(LEAST_RETRY, 10).
-define(MOST_RETRY, 100).
%% Milliseconds that a message waits at most for the bytes that are awake to become fewer. It must
%% end: a server that is awake may wait for the reply of one that is not.
-define(WAIT_FOR_CALL, 20).
-define(WAIT_FOR_OTHER, 200).
-define(LONGEST_SLEEP, 20).
%% The part of the limit that is for states that are woken.
-define(LEFT_FREE, 8).
%% Milliseconds between two looks at the size of the heap: where messages wait, a look takes as long
%% as all the rest.
-define(LOOK_INTERVAL, 1).
%% Words of a heap that is collected before it hibernates. Hibernation collects heaps of 128 Ki
%% words on a dirty scheduler, and may then miss the message that should end it (erlang/otp#10651).
-define(LARGE_HEAP, 65536).
%% Milliseconds between two warnings of the node that a state cannot be parked.
-define(WARNING_INTERVAL, 60000).

%% @doc The options of a start, which are those of OTP and `idle_after', as they are to be given to
%% the engine (`park'), or to OTP's own behaviour (`plain') where parking is switched off. All
%% settings that they depend on are checked.
-spec options([term()]) ->
    {park | plain, [term()]}
    | {error, erlmcp_memory_settings:invalid()}
    | {badarg, Text :: binary()}.
options(Options) ->
    try
        %% Checked here, where the caller gets the error.
        _ = erlmcp_memory_settings:awake_memory_limit(),
        {erlmcp_memory_settings:connection_state_compact(), idle_option(Options)}
    of
        {_, {wrong, _}} ->
            {badarg, <<"idle_after is not a number of milliseconds (below 2^32) or infinity">>};
        {true, IdleAfter} ->
            {park, [{idle_after, IdleAfter} | Options]};
        {false, infinity} ->
            {plain, Options};
        {false, IdleAfter} ->
            {plain, [{hibernate_after, IdleAfter} | Options]}
    catch
        error:{invalid_config, _, _} = Invalid -> {error, Invalid}
    end.

idle_option(Options) ->
    case lists:keyfind(idle_after, 1, Options) of
        false ->
            erlmcp_memory_settings:connection_idle_after();
        {_, IdleAfter} ->
            case erlmcp_memory_settings:is_idle_after(IdleAfter) of
                true -> IdleAfter;
                false -> {wrong, IdleAfter}
            end;
        Wrong ->
            {wrong, Wrong}
    end.

%% @doc A state that is awake, of a server with these options.
-spec new(Options :: [term()]) -> parking().
new(Options) ->
    {_, IdleAfter} = lists:keyfind(idle_after, 1, Options),
    #parking_1{
        slot = erlmcp_memory_nif:slot_new(),
        idle_after = spread(IdleAfter),
        limit = erlmcp_memory_settings:awake_memory_limit()
    }.

%% Of the process alone, so that servers that were started together do not park together.
spread(infinity) -> infinity;
spread(IdleAfter) -> min(16#ffffffff, IdleAfter + erlang:phash2(self(), IdleAfter div ?SPREAD + 1)).

%% @doc What timers of the engines carry that stand for something of the module's.
-spec tag() -> atom().
tag() -> ?MODULE.

%% @doc The idle time of this server, spread included.
-spec idle_after(parking()) -> timeout().
idle_after(#parking_1{idle_after = IdleAfter}) -> IdleAfter.

%% @doc Whether the state is in the slot alone.
-spec is_parked(parking()) -> boolean().
is_parked(#parking_1{state = State}) -> State =:= parked.

%% @doc Whether the state as it is cannot be parked.
-spec is_refused(parking()) -> boolean().
is_refused(#parking_1{state = State}) -> State =:= refused.

%% @doc To be told after each callback, with the state before and after it. Identity is asked, not
%% equality: that takes no time, and what was not touched is identical.
-spec changed(Old :: term(), New :: term(), parking()) -> parking().
changed(_Old, _New, #parking_1{state = awake} = Parking) ->
    Parking;
changed(Old, New, Parking) ->
    case erts_debug:same(Old, New) of
        true -> Parking;
        false -> Parking#parking_1{state = awake}
    end.

%% @doc To be asked before a server waits with its state awake: `calm', and it may wait for its idle
%% time; `crowded', and it parks when there is no message now. Tells the node, once a
%% millisecond at most, how large its heap is.
-spec settle(parking()) -> {calm | crowded, parking()}.
settle(#parking_1{due = Due, limit = Limit, state = State} = Parking) ->
    Now = erlang:monotonic_time(),
    case Due =:= now orelse Now >= Due of
        true ->
            measured(Parking#parking_1{due = Now + interval(), limit = limit(Limit)});
        false ->
            {crowd(erlmcp_memory_nif:awake_bytes(), Limit, State), Parking}
    end.

interval() ->
    erlang:convert_time_unit(?LOOK_INTERVAL, millisecond, native).

measured(#parking_1{slot = Slot, bytes = Published, limit = Limit, state = State} = Parking) ->
    Bytes = heap_bytes(),
    case abs(Bytes - Published) * 4 > Published of
        true ->
            Awake = erlmcp_memory_nif:slot_awake(Slot, Bytes),
            {crowd(Awake, Limit, State), Parking#parking_1{bytes = Bytes}};
        false ->
            {crowd(erlmcp_memory_nif:awake_bytes(), Limit, State), Parking}
    end.

%% Already before the limit is reached: what is left of it is for states that are woken, so that
%% those need not wait.
crowd(_Awake, _Limit, refused) -> calm;
crowd(_Awake, infinity, _State) -> calm;
crowd(Awake, Limit, _State) when Awake > Limit - Limit div ?LEFT_FREE -> crowded;
crowd(_Awake, _Limit, _State) -> calm.

%% The limit may be set anew while servers run. They keep to the last one where it is wrong then.
limit(Last) ->
    try
        erlmcp_memory_settings:awake_memory_limit()
    catch
        error:{invalid_config, _, _} -> Last
    end.

heap_bytes() ->
    {total_heap_size, Words} = process_info(self(), total_heap_size),
    Words * erlang:system_info(wordsize).

%% @doc Parks the state, for a server that found no message.
%%
%% `{parked, _}': the caller drops the state and goes on with {@link rest/2}. `{awake, _}': it
%% cannot be parked, which was logged, and stays where it is; it is not tried again before it
%% changed. `{later, Ms, _}': as many idle servers park as may at a time; the server waits so long
%% for a message and tries again.
-spec park(reason(), State :: term(), module(), parking()) ->
    {parked, parking()} | {awake, parking()} | {later, pos_integer(), parking()}.
park(_Reason, _State, _Module, #parking_1{state = refused} = Parking) ->
    {awake, Parking};
park(_Reason, _State, _Module, #parking_1{state = clean, slot = Slot} = Parking) ->
    ok = erlmcp_memory_nif:slot_rest(Slot),
    {parked, parked(Slot, Parking)};
park(crowded, State, Module, #parking_1{state = awake} = Parking) ->
    pack(State, Module, Parking);
park(idle, State, Module, #parking_1{state = awake, slot = Slot} = Parking) ->
    case erlmcp_memory_nif:slot_enter(Slot) of
        true ->
            Parked = pack(State, Module, Parking),
            ok = erlmcp_memory_nif:slot_leave(Slot),
            Parked;
        false ->
            {later, retry(), Parking}
    end.

%% @doc Parks what stands in the place of a state that is parked. Where it cannot be parked, it is
%% awake.
-spec replace(State :: term(), module(), parking()) -> {parked, parking()} | {awake, parking()}.
replace(State, Module, #parking_1{state = parked} = Parking) ->
    pack(State, Module, Parking).

pack(State, Module, #parking_1{slot = Slot} = Parking) ->
    try packed(Slot, State) of
        ok -> {parked, parked(erlmcp_memory_nif:slot_fold(Slot), Parking)};
        {badarg, _, Text} -> refused(Module, Text, Parking)
    catch
        %% Whatever the library has: the state is still here.
        error:Reason -> refused(Module, io_lib:format("~0tp", [Reason]), Parking)
    end.

%% Not by the macro OPENED: there is no garbage to collect here.
packed(Slot, State) ->
    case erlmcp_memory_nif:slot_park(Slot, State, []) of
        {closed, Terms} -> erlmcp_memory_opened:call(slot_park, [Slot, State], [], Terms);
        Packed -> Packed
    end.

parked(Slot, Parking) ->
    ok = listed(Slot),
    Parking#parking_1{slot = Slot, state = parked, bytes = 0}.

%% After a peak of awake bytes, so that it is told when the peak is over.
listed(Slot) ->
    case erlmcp_memory_nif:slot_list(Slot) of
        true -> erlmcp_memory_tidier:start();
        false -> ok
    end.

%% `rand' would leave its seed in the dictionary of the process.
retry() ->
    ?LEAST_RETRY + erlang:phash2(erlang:monotonic_time(), ?MOST_RETRY - ?LEAST_RETRY + 1).

%% @doc To be called before a server hibernates with its state on the heap: of one that cannot be
%% parked, what it takes then is counted.
-spec hold(parking()) -> parking().
hold(#parking_1{state = refused} = Parking) ->
    true = erlang:garbage_collect(),
    {calm, Measured} = measured(Parking),
    Measured;
hold(Parking) ->
    Parking.

%% @doc To be called by a server that is parked when it gets `{?TIDY, Times}', before it hibernates
%% again.
-spec tidy(Times :: non_neg_integer(), parking()) -> parking().
tidy(Times, #parking_1{state = parked, slot = Slot} = Parking) ->
    Moved = erlmcp_memory_nif:slot_fold(Slot),
    %% It has found no better place if it is no longer quiet.
    ok =
        case Times =:= 0 andalso erlmcp_memory_nif:is_peak_over() of
            true -> ok;
            false -> listed(Moved)
        end,
    Parking#parking_1{slot = Moved}.

%% @doc To be called by a server that is parked before it lets others wait for messages: it will
%% not get that one.
-spec forget(parking()) -> ok.
forget(#parking_1{slot = Slot}) ->
    case erlmcp_memory_nif:slot_unlist(Slot) of
        true ->
            receive
                {?TIDY, _} -> ok
            after 0 -> ok
            end;
        false ->
            ok
    end.

%% @doc To be kept by a server that hibernates.
-spec compact(parking()) -> compact().
compact(#parking_1{state = parked, slot = Slot, idle_after = IdleAfter}) -> [Slot | IdleAfter].

-spec expand(compact()) -> parking().
expand({Slot, IdleAfter}) ->
    expand([Slot | IdleAfter]);
expand([Slot | IdleAfter]) ->
    #parking_1{slot = Slot, idle_after = IdleAfter, state = parked, limit = limit(infinity)}.

%% @doc Hibernates a server whose state is parked. `Loop' must not lead to the state.
-spec rest(Engine :: module(), Loop :: term()) -> no_return().
rest(Engine, Loop) ->
    {total_heap_size, Words} = process_info(self(), total_heap_size),
    _ = Words < ?LARGE_HEAP orelse erlang:garbage_collect(),
    erlmcp_memory_wait:hibernate(Engine, Loop).

%% @doc Admits a message to a state that is parked, or returns for how many milliseconds to sleep
%% before it is asked again. `Slept': for how many it was already.
-spec admit(urgency(), Slept :: non_neg_integer(), parking()) -> admitted | {sleep, pos_integer()}.
admit(Urgency, Slept, #parking_1{slot = Slot, limit = Limit}) ->
    %% Where nothing is awake, there is nothing to wait for: the state alone is more than the limit.
    case erlmcp_memory_nif:slot_reserve(Slot, Limit) orelse erlmcp_memory_nif:awake_bytes() =:= 0 of
        true -> admitted;
        false -> sleep(Slept, wait_for(Urgency) - Slept)
    end.

%% As long as it was before: 1, 1, 2, 4, 8 and so on.
sleep(_Slept, Left) when Left =< 0 -> admitted;
sleep(Slept, Left) -> {sleep, min(Left, min(?LONGEST_SLEEP, max(1, Slept)))}.

wait_for(call) -> ?WAIT_FOR_CALL;
wait_for(other) -> ?WAIT_FOR_OTHER.

%% @doc Builds the state. The slot holds it as well, until it changes.
-spec wake(parking()) -> {State :: term(), parking()}.
wake(#parking_1{state = parked, slot = Slot} = Parking) ->
    ok = forget(Parking),
    State = erlmcp_memory_nif:slot_wake(Slot),
    {State, Parking#parking_1{state = clean, bytes = 0, due = now}}.

%% @doc A state that is parked and stays so.
-spec peek(parking()) -> State :: term().
peek(#parking_1{state = parked, slot = Slot}) ->
    erlmcp_memory_nif:slot_peek(Slot).

refused(Module, Text, Parking) ->
    ok = warn(Module, Text),
    {awake, Parking#parking_1{state = refused}}.

%% Once a minute on the node, with how many there were since the last time.
warn(Module, Text) ->
    Counts = refusals(),
    ok = atomics:add(Counts, 2, 1),
    Now = erlang:monotonic_time(millisecond),
    Due = atomics:get(Counts, 1),
    case Now >= Due andalso atomics:compare_exchange(Counts, 1, Due, Now + ?WARNING_INTERVAL) of
        ok ->
            ?LOG_WARNING(
                "the state of a server of ~tp cannot be parked and stays on its heap: ~ts "
                "(~b such states since the last warning)",
                [Module, Text, atomics:exchange(Counts, 2, 0)]
            );
        _ ->
            ok
    end.

%% When the next warning is due, and the states since the last one.
refusals() ->
    case persistent_term:get(?MODULE, undefined) of
        undefined ->
            Counts = atomics:new(2, [{signed, true}]),
            ok = atomics:put(Counts, 1, erlang:monotonic_time(millisecond)),
            persistent_term:put(?MODULE, Counts),
            Counts;
        Counts ->
            Counts
    end.
