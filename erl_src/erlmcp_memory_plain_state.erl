%% @private
%% @doc Connection states as plain Erlang records, for hosts that set `connection_state_compact'
%% to `false'. Returns what the NIF does: `{badarg, Position, Text}' for an argument that is wrong.
-module(erlmcp_memory_plain_state).

-include("erlmcp_memory_opened.hrl").

-export([new/1, from_fields/1, fields/1]).
-export([update/3, find/2, remove/2]).
-export([sizes/1, cleanup/1]).

-export_type([state/0]).

-record(connection_state, {
    id :: binary(),
    created_at :: integer(),
    %% every other field that was set
    fields = #{} :: #{atom() => term()}
}).

-opaque state() :: #connection_state{}.

-define(MAX_PATH, 64).
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

%% @doc The state with another value under a field or a path.
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
                not_a_map -> {badarg, 2, <<"the path leads through a value that is not a map">>};
                New -> State#connection_state{fields = maps:without([id, created_at], New)}
            end;
        error ->
            ?NO_PATH
    end;
update(_, _, _) ->
    ?NO_STATE.

%% @doc The value under a field or a path.
-spec find(term(), term()) -> {ok, term()} | none | erlmcp_memory_nif:badarg().
find(#connection_state{} = State, Field) ->
    case path(Field) of
        {ok, Path} -> find_path(Path, fields(State));
        error -> ?NO_PATH
    end;
find(_, _) ->
    ?NO_STATE.

%% @doc The state without a field, or without the key at the end of a path.
-spec remove(term(), term()) -> state() | erlmcp_memory_nif:badarg().
remove(#connection_state{fields = Fields} = State, Field) ->
    case path(Field) of
        {ok, [Name]} when Name =:= id; Name =:= created_at ->
            {badarg, 2, <<"every state has an id and a created_at">>};
        {ok, Path} ->
            State#connection_state{fields = remove_path(Path, Fields)};
        error ->
            ?NO_PATH
    end;
remove(_, _) ->
    ?NO_STATE.

%% @doc What the state and its parts take, in bytes: words on the heap, written out in full, and
%% binaries off it.
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

%% The same terms within one state: each part is smaller than the whole, and so no error.
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
find_path([Key | Path], Map) ->
    case Map of
        #{Key := Value} -> find_path(Path, Value);
        _ -> none
    end.

put_path([Key], Value, Map) ->
    Map#{Key => Value};
put_path([Key | Path], Value, Map) ->
    case maps:get(Key, Map, undefined) of
        undefined ->
            Map#{Key => put_path(Path, Value, #{})};
        Below when is_map(Below) ->
            case put_path(Path, Value, Below) of
                not_a_map -> not_a_map;
                New -> Map#{Key => New}
            end;
        _ ->
            not_a_map
    end.

remove_path([Key], Map) ->
    maps:remove(Key, Map);
remove_path([Key | Path], Map) ->
    case Map of
        #{Key := Below} when is_map(Below) -> Map#{Key => remove_path(Path, Below)};
        #{} -> Map
    end.
