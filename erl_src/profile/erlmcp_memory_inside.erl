%% @private
%% @doc Maps in native states and in shared content: reading them part by part, and changing them
%% where the path leads through shares. Returns what the NIF returns; `{badarg, Position, Text}' for
%% an argument that is wrong.
-module(erlmcp_memory_inside).

-include("../erlmcp_memory_opened.hrl").

-export([len/2, fold/4]).
-export([put/3, remove/2]).
-export([is_share/1]).

%% @doc The number of entries of the map that a path leads to; `none' if it is not a map.
-spec len(StateOrShare :: reference(), term()) ->
    {ok, non_neg_integer()} | none | erlmcp_memory_nif:badarg().
len(Root, Path) ->
    ?OPENED(inside_len, [Root, Path], [], erlmcp_memory_nif:inside_len(Root, Path, [])).

%% @doc Calls `Fun' with the entries of the map that a path leads to, building a bounded number of
%% them at a time; `none' if it is not a map.
-spec fold(fun((Key :: term(), Value :: term(), Acc) -> Acc), Acc, reference(), term()) ->
    {ok, Acc} | none | erlmcp_memory_nif:badarg().
fold(Fun, Acc, Root, Path) ->
    fold(Fun, Acc, Root, Path, 0).

fold(Fun, Acc, Root, Path, From) ->
    Entries = ?OPENED(
        inside_entries,
        [Root, Path, From], [],
        erlmcp_memory_nif:inside_entries(Root, Path, From, [])
    ),
    case Entries of
        {Some, Next} ->
            NewAcc = lists:foldl(fun({Key, Value}, A) -> Fun(Key, Value, A) end, Acc, Some),
            case Next of
                done -> {ok, NewAcc};
                _ -> fold(Fun, NewAcc, Root, Path, Next)
            end;
        None ->
            None
    end.

%% @doc A share like this one with a new value under a list of keys.
-spec put(term(), term(), term()) -> reference() | erlmcp_memory_nif:badarg().
put(Ref, Path, Value) ->
    Bytes =
        if
            is_binary(Value) -> byte_size(Value);
            true -> 0
        end,
    Changed =
        ?COLLECTED(
            ?OPENED(
                share_update,
                [Ref, Path, Value],
                [Bytes],
                erlmcp_memory_nif:share_update(Ref, Path, Value, [], Bytes)
            )
        ),
    through(Changed, Ref, Path, fun(Inner, Inside) -> put(Inner, Inside, Value) end).

%% @doc A share like this one without what a list of keys leads to.
-spec remove(reference(), [term()]) -> reference() | erlmcp_memory_nif:badarg().
remove(Ref, Path) ->
    Changed = ?OPENED(
        share_remove, [Ref, Path], [], erlmcp_memory_nif:share_remove(Ref, Path, [])
    ),
    through(Changed, Ref, Path, fun remove/2).

through({shared, Keys, Inner}, Ref, Path, Change) ->
    {Before, Inside} = lists:split(Keys, Path),
    case Change(Inner, Inside) of
        {badarg, _, _} = BadArg -> BadArg;
        Changed -> put(Ref, Before, Changed)
    end;
through(Changed, _Ref, _Path, _Change) ->
    Changed.

%% @doc Whether a term is a reference to shared content.
-spec is_share(term()) -> boolean().
is_share(Term) ->
    is_reference(Term) andalso erlmcp_memory_nif:share_is(Term).
