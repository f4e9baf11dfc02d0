%% @private
%% @doc The timeouts of a state machine: running, due and late ones.
%%
%% At most one timeout of each type is set. One of zero milliseconds has no timer: it is due as soon
%% as no event is left, after the timeouts that were due before it. All others are timers of the VM
%% whose messages name the type.
%%
%% A timer that is cancelled after its message was sent is late: its message is still to come, and
%% is dropped when it does. Nothing waits for it, so a callback that has taken it from the mailbox
%% does no harm.
-module(erlmcp_memory_statem_timers).

-export([new/0, is_empty/1, set/2, cancel/2, stop/2, message/3, due/1, list/1]).

-export_type([timers/0, type/0, action/0, started/0]).

-record(timers, {
    set = #{} :: #{type() => {reference(), Content :: term()}},
    due = [] :: [{type(), reference()}],
    late = #{} :: #{reference() => []}
}).

-opaque timers() :: #timers{}.

-type type() :: timeout | state_timeout | {timeout, Name :: term()}.

-type action() ::
    {type(), Time :: non_neg_integer() | infinity | update, Content :: term()}
    | {type(), Time :: integer() | infinity, Content :: term(), Options :: list()}.

-type started() :: {type(), Time :: integer(), Content :: term(), Options :: list()}.

-spec new() -> timers().
new() ->
    #timers{}.

%% @doc Whether no timeout is set.
-spec is_empty(timers()) -> boolean().
is_empty(Timers) ->
    Timers =:= #timers{}.

%% @doc Carries out actions, the last one first: for each type the last one counts. Also returns
%% which timeouts it started, in that order.
-spec set([action()], timers()) -> {timers(), [started()]}.
set(LastFirst, Timers) ->
    set(LastFirst, Timers, #{}, [], []).

set([], #timers{due = Due} = Timers, _Seen, NewlyDue, Started) ->
    {Timers#timers{due = Due ++ NewlyDue}, lists:reverse(Started)};
set([Action | Rest], Timers, Seen, NewlyDue, Started) when
    is_map_key(element(1, Action), Seen)
->
    set(Rest, Timers, Seen, NewlyDue, Started);
set([Action | Rest], Timers, Seen, NewlyDue, Started) ->
    Type = element(1, Action),
    NowSeen = Seen#{Type => []},
    case normal(Action) of
        {_, infinity, _, _} ->
            set(Rest, cancel(Type, Timers), NowSeen, NewlyDue, Started);
        {_, update, Content, _} ->
            case Timers#timers.set of
                #{Type := {Ref, _}} ->
                    set(Rest, put(Type, Ref, Content, Timers), NowSeen, NewlyDue, Started);
                #{} ->
                    Ref = make_ref(),
                    Next = put(Type, Ref, Content, Timers),
                    set(Rest, Next, NowSeen, [{Type, Ref} | NewlyDue], Started)
            end;
        {_, 0, Content, _} = Start ->
            Ref = make_ref(),
            Next = put(Type, Ref, Content, cancel(Type, Timers)),
            set(Rest, Next, NowSeen, [{Type, Ref} | NewlyDue], [Start | Started]);
        {_, Time, Content, Options} = Start ->
            Ref = erlang:start_timer(Time, self(), Type, Options),
            Next = put(Type, Ref, Content, cancel(Type, Timers)),
            set(Rest, Next, NowSeen, NewlyDue, [Start | Started])
    end.

normal({Type, Time, Content}) -> {Type, Time, Content, []};
normal({Type, Time, Content, Options}) when is_list(Options) -> {Type, Time, Content, Options};
normal({Type, Time, Content, Option}) -> {Type, Time, Content, [Option]}.

put(Type, Ref, Content, #timers{set = Set} = Timers) ->
    Timers#timers{set = Set#{Type => {Ref, Content}}}.

%% @doc Forgets a timeout, if it is set.
-spec cancel(type(), timers()) -> timers().
cancel(Type, #timers{set = Set} = Timers) ->
    case Set of
        #{Type := {Ref, _}} -> cancel(Type, Ref, Timers);
        #{} -> Timers
    end.

cancel(Type, Ref, #timers{set = Set, due = Due, late = Late} = Timers) ->
    Left = maps:remove(Type, Set),
    case lists:member({Type, Ref}, Due) of
        true ->
            Timers#timers{set = Left, due = lists:delete({Type, Ref}, Due)};
        false ->
            case erlang:cancel_timer(Ref) of
                false -> Timers#timers{set = Left, late = Late#{Ref => []}};
                _ -> Timers#timers{set = Left}
            end
    end.

%% @doc Stops a timer that is not the module's. If its message has arrived, it is taken from the
%% mailbox, so that no callback finds it there.
-spec stop(reference(), timers()) -> timers().
stop(Ref, #timers{late = Late} = Timers) ->
    case erlang:cancel_timer(Ref) of
        false ->
            receive
                {timeout, Ref, _} -> Timers
            after 0 -> Timers#timers{late = Late#{Ref => []}}
            end;
        _ ->
            Timers
    end.

%% @doc What a timer's message means: a timeout with its content, one that was cancelled, or a
%% message that is not from this module.
-spec message(term(), term(), timers()) -> {timeout, term(), timers()} | {late, timers()} | foreign.
message(Ref, Type, #timers{set = Set, late = Late} = Timers) ->
    case Set of
        #{Type := {Ref, Content}} when is_reference(Ref) ->
            {timeout, Content, Timers#timers{set = maps:remove(Type, Set)}};
        #{} when is_map_key(Ref, Late) ->
            {late, Timers#timers{late = maps:remove(Ref, Late)}};
        #{} ->
            foreign
    end.

%% @doc Takes the first timeout that is due.
-spec due(timers()) -> none | {type(), Content :: term(), timers()}.
due(#timers{due = []}) ->
    none;
due(#timers{set = Set, due = [{Type, _} | Due]} = Timers) ->
    {{_, Content}, Left} = maps:take(Type, Set),
    {Type, Content, Timers#timers{set = Left, due = Due}}.

%% @doc The timeouts that are set, in gen_statem's order, to show when the process is inspected.
-spec list(timers()) -> [{type(), Content :: term()}].
list(#timers{set = Set}) ->
    Listed = [{Type, Content} || {Type, {_, Content}} <- maps:to_list(Set)],
    case erlang:system_info(otp_release) of
        Release when Release >= "27" -> Listed;
        _ -> lists:reverse(Listed)
    end.
