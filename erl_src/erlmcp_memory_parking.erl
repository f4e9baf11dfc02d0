%% @private
%% @doc When and how a server parks its state: the rules that the engines of `erlmcp_memory_server'
%% and `erlmcp_memory_statem' share.
%%
%% A `parking()' is kept in the engine's loop. It knows whether the state is awake, on the heap of
%% the server, or parked, in its slot of the native library, and whether the slot still holds the
%% current state. The engine keeps the state itself, and drops it once it is parked.
%%
%% A server waits, awake, for its idle time, then parks. The more of the limit (`awake_memory_limit')
%% the awake states of the node take, the more is done:
%%
%% <ul>
%% <li>from a quarter on, a tenth of a second is idle time enough;</li>
%% <li>from a third on, servers that start wait before `init', as long as that is so;</li>
%% <li>from seven eighths on, a server parks as soon as it finds no message; the rest of the limit is
%%   reserved for states that are woken.</li>
%% </ul>
%%
%% A server that starts is counted as what those before it took, until it is first idle for a tenth
%% of a second: it is small at first, and grows. The engine calls, in this order:
%%
%% <ol>
%% <li>{@link start/2} before the module's `init';</li>
%% <li>{@link changed/3} with the states before and after each callback;</li>
%% <li>{@link settle/1} before it waits with its state awake: whether to wait for the idle time or
%%   to park;</li>
%% <li>{@link park/4} when no message came, and {@link rest/2} once the state is dropped;</li>
%% <li>{@link admit/3}, then {@link wake/1}, when a message needs the state.</li>
%% </ol>
-module(erlmcp_memory_parking).

-include_lib("kernel/include/logger.hrl").
-include("erlmcp_memory_error.hrl").
-include("erlmcp_memory_parking.hrl").

-export([start/4, options/1, new/1, tag/0, is_parked/1, is_refused/1, changed/3]).
-export([start_wait/1, start/2, idle_after/1, idle_after/2]).
-export([settle/1, park/4, replace/3, hold/1, rest/2, tidy/2, forget/1, remember/1, compact/1, expand/1]).
-export([admit/3, wake/1, peek/1]).

-export_type([parking/0, compact/0, crowd/0, reason/0, urgency/0]).

%% It is kept over upgrades of this module: a new field needs a new tag, and a clause for the old
%% shape in each function.
-record(parking_1, {
    slot :: reference(),
    idle_after :: timeout(),
    %% awake: the slot does not hold the state. clean: it does. refused: it cannot. parked: the
    %% state is in the slot alone.
    state = awake :: awake | clean | refused | parked,
    %% The size of the heap last reported to the library, and when to report it again (native units
    %% of monotonic time).
    bytes = 0 :: non_neg_integer(),
    %% young: started and not idle yet; until when at the latest, and when to report.
    due = now :: due() | {young, Until :: integer(), due()},
    limit :: non_neg_integer() | infinity
}).

-type due() :: now | integer().

-opaque parking() :: #parking_1{}.
%% Where the state of a server is.

-type compact() ::
    nonempty_improper_list(Slot :: reference(), IdleAfter :: timeout())
    | {Slot :: reference(), IdleAfter :: timeout()}.
%% What a server needs while its state is parked, in two words. Earlier versions kept the tuple.

-type crowd() :: calm | pressed | crowded.
%% How much of the limit is awake: less than a quarter, more, or nearly all.

-type reason() :: idle | crowded.
%% Why a state is parked: no message came for the idle time, or too many bytes are awake.

-type urgency() :: call | other.
%% What a state is woken for: whether a caller waits for the reply.

%% Idle states are not all parked at once: up to this part of the idle time is added to it.
-define(SPREAD, 4).
%% Milliseconds until an idle server tries again when too many servers park already.
-define(LEAST_RETRY, 10).
-define(MOST_RETRY, 100).
%% The longest time, in milliseconds, that a message waits for fewer bytes to be awake. It must end:
%% a server that is awake may wait for the reply of one that is not.
-define(WAIT_FOR_CALL, 20).
-define(WAIT_FOR_OTHER, 200).
-define(LONGEST_SLEEP, 20).
%% The part of the limit that is reserved for states that are woken.
-define(LEFT_FREE, 8).
%% The part of the limit that starting servers may take: what they read and send, and the garbage of
%% that, is not counted.
-define(FOR_STARTS, 3).
%% The part of the limit from which on servers park after a short idle time.
-define(PRESSED, 4).
%% Milliseconds without a message that are enough then, and after which a server that has started
%% will not grow much more.
-define(SHORT_IDLE, 100).
%% The longest time, in milliseconds, for which a server that has started and is never idle counts
%% as one that may grow.
-define(YOUTH, 10000).
%% Milliseconds between two measurements of the heap: for a server with messages waiting, a
%% measurement takes as long as all the rest.
-define(LOOK_INTERVAL, 1).
%% Words of a heap that is collected before its process hibernates. Hibernation collects heaps of
%% 128 Ki words on a dirty scheduler, and may then miss the message that should end the hibernation
%% (erlang/otp#10651).
-define(LARGE_HEAP, 65536).
%% Words of a state for which no room is made.
-define(SMALL, 512).
%% Words of room for what the callback makes.
-define(MORE_WORDS, 1000).
%% Milliseconds between two warnings on the node that a state cannot be parked.
-define(WARNING_INTERVAL, 60000).

%% @doc Starts a server for `Engine:Function(Args...)': with the engine or, if parking is switched
%% off, with the same function of OTP's behaviour. The last argument is the options.
-spec start(Engine :: module(), Otp :: module(), start | start_link | start_monitor, [term()]) ->
    {ok, pid() | {pid(), reference()}} | ignore | {error, Reason :: term()}.
start(Engine, Otp, Function, Args) ->
    case is_start(Args) andalso options(lists:last(Args)) of
        {park, Known} ->
            apply(gen, start, [Engine, link_option(Function) | with_options(Args, Known)]);
        {plain, Known} ->
            apply(Otp, Function, with_options(Args, Known));
        {badarg, Text} ->
            %% From the function that the user called.
            Info = ?BADARG_INFO(length(Args), Text),
            erlang:raise(error, badarg, [{Engine, Function, Args, Info}]);
        {error, _} = Invalid ->
            Invalid;
        %% Raises the error of the running release.
        false ->
            apply(Otp, Function, Args)
    end.

is_start([Module, _, Options]) -> is_atom(Module) andalso is_list(Options);
is_start([Name | Rest]) -> is_tuple(Name) andalso is_start(Rest).

link_option(start) -> nolink;
link_option(start_link) -> link;
link_option(start_monitor) -> monitor.

with_options(Args, Options) ->
    lists:droplast(Args) ++ [Options].

%% @doc The options of a start, which are those of OTP and `idle_after', for the engine (`park') or,
%% if parking is switched off, for OTP's own behaviour (`plain'). All settings that they depend on
%% are checked.
-spec options([term()]) ->
    {park | plain, [term()]}
    | {error, erlmcp_memory_settings:invalid()}
    | {badarg, Text :: binary()}.
options(Options) ->
    try
        %% Checked here, so that the caller gets the error.
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

%% @doc The parking of a state that is awake, of a server with these options.
-spec new(Options :: [term()]) -> parking().
new(Options) ->
    {_, IdleAfter} = lists:keyfind(idle_after, 1, Options),
    #parking_1{
        slot = erlmcp_memory_nif:slot_new(),
        idle_after = spread(IdleAfter),
        limit = erlmcp_memory_settings:awake_memory_limit()
    }.

%% @doc How many milliseconds a server with these options may wait before its `init': half of the
%% time that its starter waits for it.
-spec start_wait(Options :: [term()]) -> timeout().
start_wait(Options) ->
    case lists:keyfind(timeout, 1, Options) of
        {_, Time} when is_integer(Time) -> Time div 2;
        _ -> infinity
    end.

%% @doc Call this before `init'. `started': the server may continue. `sleep': it must wait `Ms'
%% milliseconds and call this again. `Left' is how long it may still wait.
-spec start(Left :: timeout(), parking()) ->
    {started, parking()} | {sleep, Ms :: pos_integer(), Left :: timeout()}.
start(Left, #parking_1{slot = Slot, limit = Last, idle_after = IdleAfter} = Parking) ->
    %% It may have been raised because so many wait.
    Limit = limit(Last),
    case erlmcp_memory_nif:slot_start(Slot, part(Limit, ?FOR_STARTS)) of
        {false, Ms} when Left > 0 ->
            %% Spread, so that they do not all ask at once.
            Spread = min(Left, Ms div 2 + erlang:phash2(erlang:monotonic_time(), Ms)),
            {sleep, Spread, less(Left, Spread)};
        {false, _} ->
            {started, Parking};
        {true, _} when IdleAfter =:= infinity ->
            {started, Parking};
        {true, Bytes} ->
            Until = erlang:monotonic_time() + native(?YOUTH),
            {started, Parking#parking_1{bytes = Bytes, due = {young, Until, now}}}
    end.

less(infinity, _Ms) -> infinity;
less(Left, Ms) -> Left - Ms.

part(infinity, _Part) -> infinity;
part(Limit, Part) -> Limit div Part.

%% It depends on the process alone, so that servers that were started together do not park together.
spread(infinity) -> infinity;
spread(IdleAfter) -> min(16#ffffffff, IdleAfter + erlang:phash2(self(), IdleAfter div ?SPREAD + 1)).

%% @doc The tag of the engines' timers that were started for the callback module.
-spec tag() -> atom().
tag() -> ?MODULE.

%% @doc The idle time of this server, spread included.
-spec idle_after(parking()) -> timeout().
idle_after(#parking_1{idle_after = IdleAfter}) -> IdleAfter.

%% @doc How long the server waits before it calls {@link park/4} for being idle.
-spec idle_after(crowd(), parking()) -> timeout().
idle_after(_Crowd, #parking_1{idle_after = infinity}) -> infinity;
idle_after(calm, #parking_1{idle_after = IdleAfter, due = {young, _, _}}) -> min(?SHORT_IDLE, IdleAfter);
idle_after(pressed, #parking_1{idle_after = IdleAfter}) -> min(?SHORT_IDLE, IdleAfter);
idle_after(_Crowd, #parking_1{idle_after = IdleAfter}) -> IdleAfter.

%% @doc Whether the state is only in the slot.
-spec is_parked(parking()) -> boolean().
is_parked(#parking_1{state = State}) -> State =:= parked.

%% @doc Whether the current state cannot be parked.
-spec is_refused(parking()) -> boolean().
is_refused(#parking_1{state = State}) -> State =:= refused.

%% @doc Call this after each callback, with the state before and after it. It compares identity, not
%% equality: that takes constant time, and an untouched state is identical.
-spec changed(Old :: term(), New :: term(), parking()) -> parking().
changed(_Old, _New, #parking_1{state = awake} = Parking) ->
    Parking;
changed(Old, New, Parking) ->
    case erts_debug:same(Old, New) of
        true -> Parking;
        false -> Parking#parking_1{state = awake}
    end.

%% @doc Call this before a server waits with its state awake. `crowded': it must park unless a
%% message is waiting; otherwise it may wait for {@link idle_after/2}. Reports the size of its heap
%% to the node, at most once a millisecond.
-spec settle(parking()) -> {crowd(), parking()}.
settle(#parking_1{due = Due, limit = Limit, state = State} = Parking) ->
    Now = erlang:monotonic_time(),
    case is_due(Due, Now) of
        true -> measured(Now, Parking#parking_1{limit = limit(Limit)});
        false -> {crowd(erlmcp_memory_nif:awake_bytes(), Limit, State), Parking}
    end.

is_due({young, _, Due}, Now) -> is_due(Due, Now);
is_due(now, _Now) -> true;
is_due(Due, Now) -> Now >= Due.

native(Ms) ->
    erlang:convert_time_unit(Ms, millisecond, native).

measured(Now, #parking_1{due = {young, Until, _}} = Parking) when Now >= Until ->
    measured(Now, grown(Parking));
measured(Now, #parking_1{bytes = Published} = Parking) ->
    Next = Now + native(?LOOK_INTERVAL),
    Bytes = heap_bytes(),
    case Parking#parking_1.due of
        {young, Until, _} when Bytes =< Published ->
            %% It is still expected to grow.
            unchanged(Parking#parking_1{due = {young, Until, Next}});
        {young, Until, _} ->
            changed_to(Bytes, Parking#parking_1{due = {young, Until, Next}});
        _ when abs(Bytes - Published) * 4 > Published ->
            changed_to(Bytes, Parking#parking_1{due = Next});
        _ ->
            unchanged(Parking#parking_1{due = Next})
    end.

unchanged(#parking_1{limit = Limit, state = State} = Parking) ->
    {crowd(erlmcp_memory_nif:awake_bytes(), Limit, State), Parking}.

changed_to(Bytes, #parking_1{slot = Slot, limit = Limit, state = State} = Parking) ->
    Awake = erlmcp_memory_nif:slot_awake(Slot, Bytes),
    {crowd(Awake, Limit, State), Parking#parking_1{bytes = Bytes}}.

%% Counted as what it takes from now on, which is what is expected of others.
grown(#parking_1{slot = Slot, due = {young, _, Due}} = Parking) ->
    Bytes = heap_bytes(),
    _ = erlmcp_memory_nif:slot_awake(Slot, Bytes),
    ok = erlmcp_memory_nif:started(Bytes),
    Parking#parking_1{bytes = Bytes, due = Due}.

crowd(_Awake, _Limit, refused) -> calm;
crowd(_Awake, infinity, _State) -> calm;
crowd(Awake, Limit, _State) when Awake > Limit - Limit div ?LEFT_FREE -> crowded;
crowd(Awake, Limit, _State) when Awake > Limit div ?PRESSED -> pressed;
crowd(_Awake, _Limit, _State) -> calm.

%% The limit may be changed while servers run. If the new one is wrong, they keep the last one.
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
%% `{parked, _}': the caller drops the state and goes on with {@link rest/2}. `{awake, _}': the
%% state cannot be parked, which was logged, and stays where it is; parking is not tried again
%% before the state changes. `{later, Ms, _}': as many idle servers as allowed park at the moment;
%% the server waits this long for a message and tries again.
-spec park(reason(), State :: term(), module(), parking()) ->
    {parked, parking()} | {awake, parking()} | {later, pos_integer(), parking()}.
park(_Reason, _State, _Module, #parking_1{state = refused} = Parking) ->
    {awake, Parking};
park(_Reason, _State, _Module, #parking_1{state = clean, slot = Slot} = Parking) ->
    ok = erlmcp_memory_nif:slot_rest(Slot),
    {parked, parked(Slot, Parking)};
park(crowded, State, Module, #parking_1{state = awake} = Parking) ->
    pack(State, Module, Parking);
park(idle, State, Module, #parking_1{due = {young, _, _}, limit = Limit} = Parking) ->
    Grown = grown(Parking),
    Crowd = crowd(erlmcp_memory_nif:awake_bytes(), Limit, awake),
    case idle_after(Crowd, Grown) - ?SHORT_IDLE of
        Left when Left > 0 -> {later, Left, Grown};
        _ -> park(idle, State, Module, Grown)
    end;
park(idle, State, Module, #parking_1{state = awake, slot = Slot} = Parking) ->
    case erlmcp_memory_nif:slot_enter(Slot) of
        true ->
            Parked = pack(State, Module, Parking),
            ok = erlmcp_memory_nif:slot_leave(Slot),
            Parked;
        false ->
            {later, retry(), Parking}
    end.

%% @doc Parks a state in place of the parked one. If it cannot be parked, it is awake.
-spec replace(State :: term(), module(), parking()) -> {parked, parking()} | {awake, parking()}.
replace(State, Module, #parking_1{state = parked} = Parking) ->
    pack(State, Module, Parking).

pack(State, Module, #parking_1{slot = Slot} = Parking) ->
    try packed(Slot, State) of
        ok -> {parked, parked(erlmcp_memory_nif:slot_fold(Slot), Parking)};
        {badarg, _, Text} -> refused(Module, Text, Parking)
    catch
        %% Whatever went wrong in the library, the state is still here.
        error:Reason -> refused(Module, io_lib:format("~0tp", [Reason]), Parking)
    end.

%% Without the macro OPENED: there is no garbage to collect here.
packed(Slot, State) ->
    case erlmcp_memory_nif:slot_park(Slot, State, []) of
        {closed, Terms} -> erlmcp_memory_opened:call(slot_park, [Slot, State], [], Terms);
        Packed -> Packed
    end.

parked(Slot, Parking) ->
    ok = listed(Slot),
    Parking#parking_1{slot = Slot, state = parked, bytes = 0}.

%% Lists the server if awake bytes are at a peak, so that it is notified when the peak is over.
listed(Slot) ->
    case erlmcp_memory_nif:slot_list(Slot) of
        true -> erlmcp_memory_tidier:start();
        false -> ok
    end.

%% `rand' would leave its seed in the dictionary of the process.
retry() ->
    ?LEAST_RETRY + erlang:phash2(erlang:monotonic_time(), ?MOST_RETRY - ?LEAST_RETRY + 1).

%% @doc Call this before a server hibernates with its state on the heap. Counts the bytes of a state
%% that cannot be parked.
-spec hold(parking()) -> parking().
hold(#parking_1{due = {young, _, _}} = Parking) ->
    hold(grown(Parking));
hold(#parking_1{state = refused} = Parking) ->
    true = erlang:garbage_collect(),
    {calm, Measured} = measured(erlang:monotonic_time(), Parking),
    Measured;
hold(Parking) ->
    Parking.

%% @doc A parked server calls this when it receives `{?TIDY, Times}', before it hibernates again.
-spec tidy(Times :: non_neg_integer(), parking()) -> parking().
tidy(Times, #parking_1{state = parked, slot = Slot} = Parking) ->
    Moved = erlmcp_memory_nif:slot_fold(Slot),
    %% If the node is busy again, the new place is no better.
    ok =
        case Times =:= 0 andalso erlmcp_memory_nif:is_peak_over() of
            true -> ok;
            false -> listed(Moved)
        end,
    Parking#parking_1{slot = Moved}.

%% @doc A parked server calls this before code other than its engine waits for messages: the engine
%% would not receive the notification.
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

%% @doc A server calls this if it is still parked when it goes back to sleep after {@link forget/1}.
-spec remember(parking()) -> ok.
remember(#parking_1{slot = Slot}) ->
    listed(Slot).

%% Two words for each parked server, where a tuple takes three.
-dialyzer({no_improper_lists, compact/1}).

%% @doc The short form, which a hibernating server keeps.
-spec compact(parking()) -> compact().
compact(#parking_1{state = parked, slot = Slot, idle_after = IdleAfter}) -> [Slot | IdleAfter].

-spec expand(compact()) -> parking().
expand({Slot, IdleAfter}) ->
    expand([Slot | IdleAfter]);
expand([Slot | IdleAfter]) ->
    #parking_1{slot = Slot, idle_after = IdleAfter, state = parked, limit = limit(infinity)}.

%% @doc Hibernates a server whose state is parked. `Loop' must not refer to the state.
-spec rest(Engine :: module(), Loop :: term()) -> no_return().
rest(Engine, Loop) ->
    {total_heap_size, Words} = process_info(self(), total_heap_size),
    _ = Words < ?LARGE_HEAP orelse erlang:garbage_collect(),
    erlmcp_memory_wait:hibernate(Engine, Loop).

%% @doc Admits a message to a state that is parked, or returns how many milliseconds to sleep before
%% calling this again. `Slept' is how many it has slept already.
-spec admit(urgency(), Slept :: non_neg_integer(), parking()) -> admitted | {sleep, pos_integer()}.
admit(Urgency, Slept, #parking_1{slot = Slot, limit = Limit}) ->
    %% If nothing is awake, there is nothing to wait for: the state alone exceeds the limit.
    case erlmcp_memory_nif:slot_reserve(Slot, Limit) orelse erlmcp_memory_nif:awake_bytes() =:= 0 of
        true -> admitted;
        false -> sleep(Slept, wait_for(Urgency) - Slept)
    end.

%% As long as all earlier sleeps together: 1, 1, 2, 4, 8 and so on.
sleep(_Slept, Left) when Left =< 0 -> admitted;
sleep(Slept, Left) -> {sleep, min(Left, min(?LONGEST_SLEEP, max(1, Slept)))}.

wait_for(call) -> ?WAIT_FOR_CALL;
wait_for(other) -> ?WAIT_FOR_OTHER.

%% @doc Builds the state. The slot holds it too, until it changes.
-spec wake(parking()) -> {State :: term(), parking()}.
wake(#parking_1{state = parked, slot = Slot} = Parking) ->
    ok = forget(Parking),
    Build = fun() -> erlmcp_memory_nif:slot_wake(Slot) end,
    State = with_room(erlmcp_memory_nif:slot_words(Slot), Build),
    {State, Parking#parking_1{state = clean, bytes = 0, due = now}}.

%% The heap is enlarged first, so that it is not collected once the state is built: that would take
%% as long as building it, and end the time slice with the state awake.
with_room(Words, Build) when Words < ?SMALL ->
    Build();
with_room(Words, Build) ->
    try erlang:process_flag(min_heap_size, Words + ?MORE_WORDS) of
        Least ->
            true = erlang:garbage_collect(),
            State = Build(),
            _ = erlang:process_flag(min_heap_size, Least),
            State
    catch
        %% More than the maximum heap size of the process, or than the memory that is left.
        error:badarg -> Build()
    end.

%% @doc Builds a parked state, which stays parked.
-spec peek(parking()) -> State :: term().
peek(#parking_1{state = parked, slot = Slot}) ->
    erlmcp_memory_nif:slot_peek(Slot).

refused(Module, Text, Parking) ->
    ok = warn(Module, Text),
    {awake, Parking#parking_1{state = refused}}.

%% Once a minute on the node, with the number of such states since the last warning.
warn(Module, Text) ->
    Counts = refusals(),
    ok = atomics:add(Counts, 2, 1),
    Now = erlang:monotonic_time(millisecond),
    Due = atomics:get(Counts, 1),
    case Now >= Due andalso atomics:compare_exchange(Counts, 1, Due, Now + ?WARNING_INTERVAL) of
        ok ->
            States = atomics:exchange(Counts, 2, 0),
            ?LOG_WARNING(
                #{
                    label => {erlmcp_memory, not_parked},
                    module => Module,
                    reason => Text,
                    states => States
                },
                erlmcp_memory_log:metadata()
            );
        _ ->
            ok
    end.

%% When the next warning is due, and the number of states since the last one.
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
