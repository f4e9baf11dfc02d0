%% @doc Processes that share, find, update, hand over and drop at random, each against a model.
%%
%% All draw their terms from the same few, so they share, find and free the same content at the
%% same moment. The model of a share is the term it was made of, that of a state a map.
-module(erlmcp_bench_stress).

-export([run/2]).

-define(O, erlmcp_connection_optimizer).
-define(TERMS, 60).
-define(HELD, 40).

%% @doc Runs this many processes for this many milliseconds. A wrong result ends the caller with an
%% error. `left': native bytes that did not come back within ten seconds after all processes ended;
%% `once': what threads keep at most. Each keeps the memory it packs and builds small terms with (13
%% KiB in all), and the table of waiting threads in the locks' library grows when threads wait for
%% each other for the first time (1 KiB each). A leak grows with the operations, which are thousands
%% each second, and passes this at once.
-spec run(Processes :: pos_integer(), Ms :: pos_integer()) ->
    #{operations := non_neg_integer(), left := integer(), once := non_neg_integer()}.
run(Processes, Ms) ->
    %% What the library makes once is made before the measurement.
    _ = round(Processes, 50),
    Before = at_rest(),
    Operations = round(Processes, Ms),
    Once =
        14 * 1024 *
            (erlang:system_info(schedulers) + erlang:system_info(dirty_cpu_schedulers)),
    #{operations => Operations, left => back(Before + Once, 100) + Once, once => Once}.

round(Processes, Ms) ->
    End = erlang:monotonic_time(millisecond) + Ms,
    Workers = [
        spawn_monitor(fun() ->
            _ = rand:seed(exsss, N),
            receive
                {go, Others} -> exit({done, work([], Others, End, 0)})
            end
        end)
     || N <- lists:seq(1, Processes)
    ],
    Pids = [Pid || {Pid, _} <- Workers],
    [Pid ! {go, Pids} || Pid <- Pids],
    lists:sum([
        receive
            {'DOWN', Monitor, process, _, {done, Operations}} -> Operations;
            {'DOWN', Monitor, process, _, Reason} -> error(Reason)
        end
     || {_, Monitor} <- Workers
    ]).

work(Held, Others, End, Done) ->
    case Done rem 64 =:= 0 andalso erlang:monotonic_time(millisecond) >= End of
        true -> Done;
        false -> work(step(rand:uniform(10), received(Held), Others), Others, End, Done + 1)
    end.

received(Held) ->
    receive
        {take, Item} -> keep(Item, Held)
    after 0 -> Held
    end.

keep(Item, Held) ->
    lists:sublist([Item | Held], ?HELD).

step(1, Held, _) ->
    Term = term(rand:uniform(?TERMS)),
    keep({share, ?O:share(Term), Term}, Held);
step(2, Held, _) ->
    %% A share that holds another share.
    Inner = term(rand:uniform(?TERMS)),
    Outer = #{inner => ?O:share(Inner), list => [1, 2]},
    keep({share, ?O:share(Outer), Outer}, Held);
step(3, Held, _) ->
    Id = integer_to_binary(rand:uniform(1000)),
    keep({state, ?O:from_map(#{id => Id, created_at => 1}), #{id => Id}}, Held);
step(4, [], _) ->
    [];
step(4, Held, _) ->
    %% Dropped: its memory goes with the next collection.
    lists:delete(any(Held), Held);
step(5, [Item | _] = Held, Others) ->
    any(Others) ! {take, Item},
    Held;
step(_, [], _) ->
    [];
step(_, Held, _) ->
    case any(Held) of
        {share, Share, Term} ->
            read(rand:uniform(2), Share, Term),
            Held;
        {state, State, Model} = Item ->
            check(State, Model),
            [update(State, Model, Held) | lists:delete(Item, Held)]
    end.

read(1, Share, Term) ->
    Term = ?O:shared(Share);
read(2, Share, Term) ->
    {Path, Expected} = path(Term, []),
    Expected = ?O:find_shared(Share, lists:reverse(Path)).

path(Map, Path) when is_map(Map), map_size(Map) > 0 ->
    case rand:uniform(6) of
        1 ->
            {Path, {ok, Map}};
        2 ->
            {[no_such_key | Path], error};
        _ ->
            Key = any(maps:keys(Map)),
            path(maps:get(Key, Map), [Key | Path])
    end;
path(Term, Path) ->
    {Path, {ok, Term}}.

check(State, Model) ->
    maps:foreach(fun(Field, Value) -> Value = ?O:get_state_field(State, Field) end, Model).

update(State, Model, Held) ->
    Uri = <<"file:///", (integer_to_binary(rand:uniform(20)))/binary>>,
    Subscriptions = maps:get(subscriptions, Model, #{}),
    case rand:uniform(5) of
        1 ->
            Phase = any([initialized, closed, 7, <<"other">>]),
            {state, ?O:update_state_field(State, phase, Phase), Model#{phase => Phase}};
        2 ->
            Value = term(rand:uniform(?TERMS)),
            New = Model#{subscriptions => Subscriptions#{Uri => Value}},
            {state, ?O:update_state_field(State, [subscriptions, Uri], Value), New};
        3 ->
            New =
                case is_map_key(subscriptions, Model) of
                    true -> Model#{subscriptions := maps:remove(Uri, Subscriptions)};
                    false -> Model
                end,
            {state, ?O:remove_state_field(State, [subscriptions, Uri]), New};
        4 ->
            %% A reference to a share in a state keeps the share.
            Value = [Share || {share, Share, _} <- lists:sublist(Held, 3)],
            {state, ?O:update_state_field(State, shares, Value), Model#{shares => Value}};
        5 ->
            Pending = maps:from_list([{N, make_ref()} || N <- lists:seq(1, rand:uniform(4))]),
            New = Model#{pending_refs => Pending},
            {state, ?O:update_state_field(State, pending_refs, Pending), New}
    end.

any(List) ->
    lists:nth(rand:uniform(length(List)), List).

%% The same number gives the same term, small and large, of all kinds.
term(N) ->
    Text = binary:copy(<<"text ", N>>, 1 + N * N rem 97),
    Prefix = N * 3,
    #{
        name => Text,
        {key, N} => [N, N * 1.5, 1 bsl (N * 3), -N, atom, <<N:7>>, {Text, []}],
        <<"schema">> => #{
            <<"required">> => [integer_to_binary(I) || I <- lists:seq(1, N rem 7)],
            <<"properties">> => maps:from_list([
                {integer_to_binary(I), #{<<"type">> => Text, number => I}}
             || I <- lists:seq(1, N)
            ])
        },
        handler => fun(X) -> {Prefix, X} end
    }.

at_rest() ->
    at_rest(erlmcp_memory_nif:native_bytes(), 5).

%% Until it has not changed for half a second.
at_rest(Bytes, 0) ->
    Bytes;
at_rest(Bytes, Left) ->
    timer:sleep(100),
    case erlmcp_memory_nif:native_bytes() of
        Bytes -> at_rest(Bytes, Left - 1);
        Other -> at_rest(Other, 5)
    end.

back(Before, Tries) ->
    case erlmcp_memory_nif:native_bytes() - Before of
        Left when Left =< 0; Tries =:= 0 ->
            Left;
        _ ->
            timer:sleep(100),
            back(Before, Tries - 1)
    end.
