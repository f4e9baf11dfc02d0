%% Any term survives; any sequence of updates agrees with a plain map.
%%
%% PropEr's header is not used, see erlmcp_pool_prop.
%%
%% Invariants:
%%
%% * a term comes back `=:=' from a field, a metadata key (as value and as key), a share, and a
%%   snapshot;
%% * after every update the state is what the model's map is;
%% * no update changes any older version.
-module(erlmcp_optimizer_prop).

-import(proper_types, [
    any/0,
    atom/0,
    binary/0,
    bitstring/0,
    float/0,
    frequency/1,
    integer/0,
    largeint/0,
    list/1,
    oneof/1,
    range/2
]).

-export([check/0]).

-define(O, erlmcp_connection_optimizer).

check() ->
    proper:quickcheck(any_term_survives(), options(400)) andalso
        proper:quickcheck(updates_agree_with_a_map(), options(300)).

options(Tests) ->
    [{numtests, Tests}, {max_size, 20}, {to_file, user}, quiet].

any_term_survives() ->
    proper:forall(term(), fun(Term) -> reported(fun() -> survives(Term) end) end).

survives(Term) ->
    S0 = ?O:create_optimized_state(<<"c">>),
    S1 = ?O:update_state_field(S0, field, Term),
    true = ?O:get_state_field(S1, field) =:= Term,
    S2 = ?O:update_state_field(S1, [metadata, Term], [Term | Term]),
    true = ?O:get_state_field(S2, [metadata, Term]) =:= [Term | Term],
    Ref = ?O:share(Term),
    true = ?O:shared(Ref) =:= Term,
    Map = ?O:share(#{Term => #{k => Term}}),
    true = ?O:find_shared(Map, [Term, k]) =:= {ok, Term},
    S3 = ?O:update_state_field(S2, capabilities_ref, Ref),
    Read = ?O:decompress_state(?O:compress_state(S3)),
    true = ?O:to_map(Read) =:= ?O:to_map(S3),
    true = ?O:get_state_field(Read, [metadata, Term]) =:= [Term | Term].

%% Terms of every type, with those that take other paths through the code more often than any/0.
term() ->
    proper_types:sized(fun term/1).

term(0) ->
    leaf();
term(Size) ->
    Below = fun() -> proper_types:lazy(fun() -> term(Size div 4) end) end,
    frequency([
        {4, leaf()},
        {1, any()},
        {2, list(Below())},
        {1, proper_types:bind({Below(), leaf()}, fun({H, T}) -> [H | T] end, false)},
        {2, proper_types:bind(list(Below()), fun list_to_tuple/1, false)},
        {2,
            proper_types:bind(
                list({Below(), Below()}), fun maps:from_list/1, false
            )},
        {1, proper_types:bind(Below(), fun(T) -> fun() -> T end end, false)},
        {1,
            proper_types:bind(
                {Below(), range(100, 400)},
                fun({T, N}) -> lists:foldl(fun(_, D) -> {D} end, T, lists:seq(1, N)) end,
                false
            )}
    ]).

leaf() ->
    oneof([
        atom(),
        integer(),
        largeint(),
        float(),
        binary(),
        bitstring(),
        list(range(0, 255)),
        oneof([[], {}, #{}, 0.0, 1 bsl 63, -(1 bsl 63), 1 bsl 200]),
        proper_types:bind(range(1, 5), fun special/1, false),
        proper_types:bind(range(200, 400), fun(N) -> binary:copy(<<"b">>, N) end, false)
    ]).

special(1) -> self();
special(2) -> make_ref();
special(3) -> ?O:share(shared);
special(4) -> atomics:new(1, []);
special(5) -> fun lists:map/2.

updates_agree_with_a_map() ->
    proper:forall(list(step()), fun(Steps) -> reported(fun() -> agrees(Steps) end) end).

agrees(Steps) ->
    First = ?O:create_optimized_state(<<"c">>),
    {_, Versions} = lists:foldl(
        fun(Step, {{State, Map}, Versions}) ->
            New = run(Step, State, Map),
            {New, [New | Versions]}
        end,
        {{First, ?O:to_map(First)}, []},
        Steps
    ),
    [true = ?O:to_map(State) =:= Map || {State, Map} <- Versions],
    true.

step() ->
    frequency([
        {6, {put, path(), value()}},
        {2, {remove, path()}},
        {2, {merge, proper_types:bind(list({key(), value()}), fun maps:from_list/1, false)}}
    ]).

path() ->
    proper_types:bind(
        {oneof([metadata, subscriptions, transport, pending_refs]), list(key())},
        fun({Field, Keys}) -> [Field | lists:sublist(Keys, 4)] end,
        false
    ).

key() ->
    oneof([range(0, 20), a, b, <<"k">>, {t, 1}, [1 | 2], 1.5]).

value() ->
    frequency([
        {3, term()},
        {2, proper_types:bind(list({key(), range(0, 9)}), fun maps:from_list/1, false)},
        {1, proper_types:bind(range(1, 60), fun large/1, false)}
    ]).

large(N) ->
    maps:from_list([{I, binary:copy(<<I>>, N)} || I <- lists:seq(1, N)]).

run({merge, Entries}, State, #{metadata := Old} = Map) ->
    {?O:update_state_field(State, metadata, Entries), Map#{metadata := maps:merge(Old, Entries)}};
run({put, [Field], Value}, State, Map) when
    (Field =:= metadata orelse Field =:= pending_refs), not is_map(Value)
->
    refused(fun() -> ?O:update_state_field(State, [Field], Value) end, State, Map);
run({put, [metadata], Value}, State, Map) ->
    run({merge, Value}, State, Map);
run({put, Path, Value}, State, Map) ->
    case put(Path, Value, Map) of
        not_a_map -> refused(fun() -> ?O:update_state_field(State, Path, Value) end, State, Map);
        New -> {?O:update_state_field(State, Path, Value), New}
    end;
run({remove, [Field]}, State, Map) ->
    Default = #{metadata => #{}, pending_refs => #{}, transport => undefined},
    New = maps:merge(maps:remove(Field, Map), maps:with([Field], Default)),
    {?O:remove_state_field(State, [Field]), New};
run({remove, Path}, State, Map) ->
    {?O:remove_state_field(State, Path), remove(Path, Map)}.

refused(Call, State, Map) ->
    try Call() of
        _ -> error(not_refused)
    catch
        error:badarg -> {State, Map}
    end.

put([Key], Value, Map) ->
    Map#{Key => Value};
put([Key | Path], Value, Map) ->
    case maps:get(Key, Map, undefined) of
        Below when is_map(Below); Below =:= undefined ->
            New = put(Path, Value, if is_map(Below) -> Below; true -> #{} end),
            if New =:= not_a_map -> not_a_map; true -> Map#{Key => New} end;
        _ ->
            not_a_map
    end.

remove([Key], Map) ->
    maps:remove(Key, Map);
remove([Key | Path], Map) ->
    case Map of
        #{Key := Below} when is_map(Below) -> Map#{Key := remove(Path, Below)};
        _ -> Map
    end.

reported(Fun) ->
    try
        Fun()
    catch
        error:Reason:Stack ->
            io:format(user, "~p~n~p~n", [Reason, Stack]),
            false
    end.
