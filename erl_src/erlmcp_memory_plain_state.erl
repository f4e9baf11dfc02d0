%% @private
%% @doc Connection states as plain Erlang records, for hosts that set `connection_state_compact' to
%% `false'. Returns what the NIF returns: `{badarg, Position, Text}' for an argument that is wrong.
-module(erlmcp_memory_plain_state).

-include("erlmcp_memory_opened.hrl").

-export([new/1, from_fields/1, fields/1]).
-export([update/3, find/2, remove/2]).
-export([len/2, fold/4]).
-export([sizes/1, cleanup/1, outline/2]).
-export([is_state/1]).

-export_type([state/0]).

-record(connection_state, {
    id :: binary(),
    created_at :: integer(),
    %% every other field that was set
    fields = #{} :: #{atom() => term()}
}).

-opaque state() :: #connection_state{}.

-define(MAX_PATH, 64).
%% The most fields that an outline has.
-define(OUTLINED, 1000).
-define(IS_TIME(T), is_integer(T), T >= -(1 bsl 63), T < 1 bsl 63).
-define(NO_STATE, {badarg, 1, <<"not a connection state, or one that was cleaned up">>}).
-define(NO_PATH,
    {badarg, 2, <<
        "neither a field (an atom) nor a path (a list of 1 to 64 keys that begins with a field)"
    >>}
).

%% @doc A new state.
-spec new(term()) -> state() | erlmcp_memory_nif:badarg().
new(Id) when is_binary(Id) ->
    #connection_state{
        id = Id,
        created_at = erlang:system_time(millisecond),
        fields = #{phase => initialization}
    };
new(_) ->
    {badarg, 1, <<"the id is not a binary">>}.

%% @doc A state of the fields that were set.
-spec from_fields(#{term() => term()}) -> state() | erlmcp_memory_nif:badarg().
from_fields(#{id := Id, created_at := CreatedAt} = Fields) when
    is_binary(Id), ?IS_TIME(CreatedAt)
->
    AreMaps = lists:all(
        fun(Field) -> is_map(maps:get(Field, Fields, #{})) end, [metadata, pending_refs]
    ),
    case AreMaps andalso lists:all(fun is_atom/1, maps:keys(Fields)) of
        true ->
            #connection_state{
                id = Id,
                created_at = CreatedAt,
                fields = maps:without([id, created_at], Fields)
            };
        false ->
            {badarg, 1, <<"a key is not an atom, or metadata or pending_refs is not a map">>}
    end;
from_fields(_) ->
    {badarg, 1, <<
        "no binary under the key id, or no integer of 64 bits under the key created_at"
    >>}.

%% @doc The fields that were set.
-spec fields(term()) -> #{atom() => term()} | erlmcp_memory_nif:badarg().
fields(#connection_state{id = Id, created_at = CreatedAt, fields = Fields}) ->
    Fields#{id => Id, created_at => CreatedAt};
fields(_) ->
    ?NO_STATE.

%% @doc The state with a new value in a field or under a path.
-spec update(term(), term(), term()) -> state() | erlmcp_memory_nif:badarg().
update(#connection_state{fields = Fields} = State, Field, Value) ->
    case path(Field) of
        {ok, [id]} when is_binary(Value) -> State#connection_state{id = Value};
        {ok, [id]} -> {badarg, 3, <<"the id is not a binary">>};
        {ok, [created_at]} when ?IS_TIME(Value) -> State#connection_state{created_at = Value};
        {ok, [created_at]} -> {badarg, 3, <<"created_at is not an integer of 64 bits">>};
        {ok, [Name]} when
            (Name =:= metadata orelse Name =:= pending_refs), not is_map(Value)
        ->
            {badarg, 3, <<"not a map">>};
        {ok, [metadata]} ->
            Merged = maps:merge(maps:get(metadata, Fields, #{}), Value),
            State#connection_state{fields = Fields#{metadata => Merged}};
        {ok, Path} ->
            case put_path(Path, Value, fields(State)) of
                {badarg, _, _} = BadArg -> BadArg;
                New -> State#connection_state{fields = maps:without([id, created_at], New)}
            end;
        error ->
            ?NO_PATH
    end;
update(_, _, _) ->
    ?NO_STATE.

%% @doc The value in a field or under a path.
-spec find(term(), term()) -> {ok, term()} | none | erlmcp_memory_nif:badarg().
find(#connection_state{} = State, Field) ->
    case path(Field) of
        {ok, Path} -> find_path(Path, fields(State));
        error -> ?NO_PATH
    end;
find(_, _) ->
    ?NO_STATE.

%% @doc The number of entries of the map found there; `none' if it is not a map.
-spec len(term(), term()) -> {ok, non_neg_integer()} | none | erlmcp_memory_nif:badarg().
len(State, Field) ->
    case find(State, Field) of
        {ok, Map} when is_map(Map) -> {ok, map_size(Map)};
        {ok, Value} -> in_share(Value, fun(Ref) -> erlmcp_memory_inside:len(Ref, []) end);
        Other -> Other
    end.

%% @doc Calls `Fun' with the entries of the map found there; `none' if it is not a map.
-spec fold(fun((term(), term(), Acc) -> Acc), Acc, term(), term()) ->
    {ok, Acc} | none | erlmcp_memory_nif:badarg().
fold(Fun, Acc, State, Field) ->
    case find(State, Field) of
        {ok, Map} when is_map(Map) -> {ok, maps:fold(Fun, Acc, Map)};
        {ok, Value} ->
            in_share(Value, fun(Ref) -> erlmcp_memory_inside:fold(Fun, Acc, Ref, []) end);
        Other -> Other
    end.

in_share(Value, Look) ->
    case erlmcp_memory_inside:is_share(Value) of
        true -> Look(Value);
        false -> none
    end.

%% @doc The state without a field, or without the key at the end of a path.
-spec remove(term(), term()) -> state() | erlmcp_memory_nif:badarg().
remove(#connection_state{fields = Fields} = State, Field) ->
    case path(Field) of
        {ok, [Name]} when Name =:= id; Name =:= created_at ->
            {badarg, 2, <<"every state has an id and a created_at">>};
        {ok, Path} ->
            case remove_path(Path, Fields) of
                {badarg, _, _} = BadArg -> BadArg;
                New -> State#connection_state{fields = New}
            end;
        error ->
            ?NO_PATH
    end;
remove(_, _) ->
    ?NO_STATE.

%% @doc What the state and its parts take, in bytes: words on the heap with nothing shared, and
%% binaries off the heap.
-spec sizes(term()) -> erlmcp_connection_optimizer:size_info() | erlmcp_memory_nif:badarg().
sizes(#connection_state{id = Id, fields = Fields} = State) ->
    case sizes_of(State) of
        {badarg, _, _} = BadArg -> BadArg;
        {Total, Shared} -> sizes(Id, Fields, Total, Shared)
    end;
sizes(_) ->
    ?NO_STATE.

sizes(Id, Fields, Total, Shared) ->
    Size = fun(Name) ->
        case Fields of
            #{Name := Value} -> bytes(Value);
            #{} -> 0
        end
    end,
    Own = [phase, transport, capabilities_ref, metadata, pending_refs],
    Extra = lists:sum([bytes(V) || V <- maps:values(maps:without(Own, Fields))]),
    Parts = #{
        id => bytes(Id),
        transport => Size(transport),
        capabilities_ref => Size(capabilities_ref),
        metadata => Size(metadata),
        pending_refs => Size(pending_refs),
        extra => Extra
    },
    Parts#{
        total_bytes => Total,
        base => Total - lists:sum(maps:values(Parts)),
        metadata_map_size => map_size(maps:get(metadata, Fields, #{})),
        pending_count => map_size(maps:get(pending_refs, Fields, #{})),
        shared_bytes => Shared
    }.

%% @doc Nothing to do: the garbage collector frees the record.
-spec cleanup(term()) -> ok | erlmcp_memory_nif:badarg().
cleanup(#connection_state{}) -> ok;
cleanup(_) -> ?NO_STATE.

%% @doc Whether the term is such a state.
-spec is_state(term()) -> boolean().
is_state(#connection_state{fields = Fields}) -> is_map(Fields);
is_state(_) -> false.

%% @doc As `erlmcp_memory_nif:state_outline/2'.
-spec outline(term(), non_neg_integer()) ->
    {[tuple()], Others :: non_neg_integer()} | erlmcp_memory_nif:badarg().
outline(#connection_state{} = State, Bytes) ->
    Fields = maps:to_list(fields(State)),
    {Outlined, _} = lists:mapfoldl(fun outlined/2, Bytes, lists:sublist(Fields, ?OUTLINED)),
    {Outlined, max(0, length(Fields) - ?OUTLINED)};
outline(_, _) ->
    ?NO_STATE.

outlined({Field, Value}, Left) ->
    {Bytes, Shared} = sizes_of(Value),
    case erlmcp_memory_inside:is_share(Value) of
        true -> {{Field, Bytes, {share, Shared}}, Left};
        false when Bytes =< Left -> {{Field, Bytes, {value, Value}}, Left - Bytes};
        false when is_map(Value) -> {{Field, Bytes, {map, map_size(Value)}}, Left};
        false -> {{Field, Bytes, large}, Left}
    end.

%% The same terms within one state: each part is smaller than the whole, so none is too large.
bytes(Term) ->
    {Bytes, _Shared} = sizes_of(Term),
    Bytes.

sizes_of(Term) ->
    ?OPENED(term_size, [Term], [], erlmcp_memory_nif:term_size(Term, [])).

path(Field) when is_atom(Field) -> {ok, [Field]};
path([Field | Keys] = Path) when is_atom(Field), length(Keys) < ?MAX_PATH -> {ok, Path};
path(_) -> error.

find_path([], Value) ->
    {ok, Value};
find_path([Key | Rest] = Path, Map) ->
    case Map of
        #{Key := Value} ->
            find_path(Rest, Value);
        _ ->
            case in_share(Map, fun(Ref) -> find_shared(Ref, Path) end) of
                %% The state and its field are valid.
                {badarg, _, _} -> none;
                Found -> Found
            end
    end.

find_shared(Ref, Path) ->
    ?OPENED(share_find, [Ref, Path], [], erlmcp_memory_nif:share_find(Ref, Path, [])).

put_path([Key], Value, Map) ->
    Map#{Key => Value};
put_path([Key | Path], Value, Map) ->
    Changed =
        case maps:get(Key, Map, undefined) of
            undefined -> put_path(Path, Value, #{});
            Below when is_map(Below) -> put_path(Path, Value, Below);
            Below -> in_share(Below, fun(Ref) -> erlmcp_memory_inside:put(Ref, Path, Value) end)
        end,
    case Changed of
        none -> {badarg, 2, <<"the path leads through a value that is not a map">>};
        {badarg, _, _} = BadArg -> BadArg;
        _ -> Map#{Key => Changed}
    end.

remove_path([Key], Map) ->
    maps:remove(Key, Map);
remove_path([Key | Path], Map) ->
    Changed =
        case Map of
            #{Key := Below} when is_map(Below) -> remove_path(Path, Below);
            #{Key := Below} ->
                in_share(Below, fun(Ref) -> erlmcp_memory_inside:remove(Ref, Path) end);
            #{} -> none
        end,
    case Changed of
        none -> Map;
        {badarg, _, _} = BadArg -> BadArg;
        _ -> Map#{Key => Changed}
    end.
