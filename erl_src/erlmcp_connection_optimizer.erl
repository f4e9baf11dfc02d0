%% @doc Compact connection states, and content that connections share.
%%
%% A <em>state</em> is an immutable value in native memory behind a reference. An update returns a
%% new state and leaves the old one as it was; the two have in common what did not change. A state
%% has seven fields with a meaning of their own (`id', `phase', `transport', `capabilities_ref',
%% `metadata', `pending_refs', `created_at') and any number of others; any term is a legal value.
%%
%% ```
%% 1> S0 = erlmcp_connection_optimizer:create_optimized_state(<<"conn-1">>).
%% 2> S1 = erlmcp_connection_optimizer:update_state_field(S0, phase, initialized).
%% 3> S2 = erlmcp_connection_optimizer:update_state_field(S1, [metadata, user], <<"joe">>).
%% 4> erlmcp_connection_optimizer:get_state_field(S2, [metadata, user]).
%% <<"joe">>
%% 5> erlmcp_connection_optimizer:get_state_field(S0, phase).
%% initialization
%% '''
%%
%% Wherever a field is named, a <em>path</em> may stand: a list of up to 64 keys: the first is a
%% field, and each one after it is a key of the map before it. One key of a large map is read,
%% written and removed without building the map. A path goes through a share as if the share's
%% content were in its place; when such a path is changed, the state gets a new share, see {@link
%% update_shared/3}.
%%
%% A <em>share</em> is a reference to content that the node keeps once, for everyone who shares an
%% equal term: a server's tools and their schemas, its prompts, an encoded reply. It is freed with
%% its last reference, wherever that is: in a process, in a state, in another share.
%%
%% Two settings, in the environment of the application `erlmcp_memory' or else in that of `erlmcp':
%% with `connection_state_compact' set to `false', new states are plain Erlang records with the same
%% functions; with `compression_enabled' set to `false', snapshots are not compressed. Where one is
%% not a boolean, the functions that need it ({@link create_optimized_state/1}, {@link from_map/1}
%% and {@link decompress_state/1}; {@link compress_state/1}) raise `{invalid_config, Key, Value}'.
%%
%% Bad arguments raise `badarg' with an `error_info' text. So do terms of more than 512 MiB in their
%% native form, terms that nest deeper than 1,048,576 levels, and a state after its {@link
%% cleanup_state/1}. The state passed to the call stays as it was.
%%
%% A fun is stored as its module, index and checksum, and what it closes over. Reading returns the
%% same fun, whichever process made it. Calling it needs the version of the module
%% that made it, as with any other fun: when the module was replaced twice, it raises `badfun'.
-module(erlmcp_connection_optimizer).

-include("erlmcp_memory_error.hrl").
-include("erlmcp_memory_opened.hrl").

-export([
    create_optimized_state/1,
    update_state_field/3,
    update_state_fields/2,
    increment_state_field/3,
    get_state_field/2,
    get_field_safe/3,
    find_state_field/2,
    remove_state_field/2,
    to_map/1,
    from_map/1
]).
-export([state_field_size/2, fold_state_field/4]).
-export([compress_state/1, decompress_state/1]).
-export([estimate_memory/1, state_size_info/1, cleanup_state/1]).
-export([share/1, shared/1, find_shared/2, update_shared/3]).
-export([park/1, unpark/1]).
-export([is_state/1, is_share/1]).
-export([format/1, format/2]).

-export_type([state/0, field/0, path/0, share/0, parked/0, size_info/0, format_options/0]).
-export_type([decompress_error/0]).

-opaque state() :: reference() | erlmcp_memory_plain_state:state().
%% A connection state. With the default settings it passes `is_reference/1'.

-type field() :: atom().
%% A field of a state.

-type path() :: [field() | term(), ...].
%% A field, then keys of the maps below it.

-type share() :: reference().
%% Content that is kept once.

-opaque parked() :: reference().
%% A term off the heap, see {@link park/1}.

-type size_info() :: #{
    total_bytes := non_neg_integer(),
    base := non_neg_integer(),
    id := non_neg_integer(),
    transport := non_neg_integer(),
    capabilities_ref := non_neg_integer(),
    metadata := non_neg_integer(),
    pending_refs := non_neg_integer(),
    extra := non_neg_integer(),
    metadata_map_size := non_neg_integer(),
    pending_count := non_neg_integer(),
    shared_bytes := non_neg_integer()
}.
%% See {@link state_size_info/1}.

-type format_options() :: #{max_bytes => pos_integer(), redact => [field() | path()]}.
%% See {@link format/2}.

-type decompress_error() ::
    corrupt_data
    | unsupported_version
    | invalid_format
    | {unknown_atom, binary()}
    | {too_large, Bytes :: non_neg_integer()}.
%% See {@link decompress_state/1}.

-define(NOT_AN_INTEGER, {badarg, 2, <<"the value there is not an integer">>}).

%% The fields that every state has, as `to_map/1' gives them.
-define(DEFAULTS, #{
    phase => undefined,
    transport => undefined,
    capabilities_ref => undefined,
    metadata => #{},
    pending_refs => #{}
}).

%% @doc A new state: phase `initialization', created now (milliseconds since the epoch), no
%% metadata, no pending references, everything else `undefined'.
-spec create_optimized_state(ConnId :: binary()) -> state().
create_optimized_state(ConnId) ->
    Created =
        case erlmcp_memory_settings:connection_state_compact() of
            true -> erlmcp_memory_nif:state_new(ConnId, bytes(ConnId));
            false -> erlmcp_memory_plain_state:new(ConnId)
        end,
    case Created of
        {badarg, Position, Text} -> ?BADARG([ConnId], Position, Text);
        State -> State
    end.

%% @doc The state with a new value in a field or under a path.
%%
%% A map given for `metadata' is merged into what is there. `pending_refs' must be a map as well,
%% `id' a binary, `created_at' an integer of 64 bits. Maps that are missing on a path are made; a
%% path through a value that is not a map is a `badarg'.
-spec update_state_field(state(), field() | path(), term()) -> state().
update_state_field(State, Field, Value) ->
    case update(State, Field, Value) of
        {badarg, Position, Text} -> ?BADARG([State, Field, Value], Position, Text);
        NewState -> NewState
    end.

%% @doc The state with new values in several fields or under several paths, each set as by {@link
%% update_state_field/3}. One new state is made. The fields come first, then the paths, shorter ones
%% before longer ones.
-spec update_state_fields(state(), #{field() | path() => term()}) -> state().
update_state_fields(State, Fields) ->
    case update_all(State, Fields) of
        {badarg, Position, Text} -> ?BADARG([State, Fields], Position, Text);
        NewState -> NewState
    end.

%% @doc The state with an integer added to the one in a field or under a path. A missing
%% value counts as 0; a value that is not an integer is a `badarg'.
-spec increment_state_field(state(), field() | path(), By :: integer()) -> state().
increment_state_field(State, Field, By) ->
    case increment(State, Field, By) of
        {badarg, Position, Text} -> ?BADARG([State, Field, By], Position, Text);
        NewState -> NewState
    end.

%% @doc The value of a field or under a path; `undefined' where there is none, `#{}' for
%% `metadata' and `pending_refs'.
-spec get_state_field(state(), field() | path()) -> term().
get_state_field(State, Field) ->
    case find(State, Field) of
        {ok, Value} -> Value;
        none -> default(Field);
        {badarg, Position, Text} -> ?BADARG([State, Field], Position, Text)
    end.

%% @doc Like {@link get_state_field/2}, but returns `Default' instead of `undefined'.
-spec get_field_safe(state(), field() | path(), Default) -> term() | Default.
get_field_safe(State, Field, Default) ->
    case find(State, Field) of
        {ok, undefined} ->
            Default;
        {ok, Value} ->
            Value;
        none ->
            case default(Field) of
                undefined -> Default;
                Value -> Value
            end;
        {badarg, Position, Text} ->
            ?BADARG([State, Field, Default], Position, Text)
    end.

%% @doc The value of a field or under a path; `error' where none was ever set, and where it was
%% removed. There are always `metadata' and `pending_refs'.
-spec find_state_field(state(), field() | path()) -> {ok, term()} | error.
find_state_field(State, Field) ->
    case find(State, Field) of
        {ok, _} = Ok ->
            Ok;
        none ->
            case default(Field) of
                undefined -> error;
                Value -> {ok, Value}
            end;
        {badarg, Position, Text} ->
            ?BADARG([State, Field], Position, Text)
    end.

%% @doc The number of entries of the map in a field or under a path, or in the share found there.
%% The map is not built. Anything else is a `badarg'.
-spec state_field_size(state(), field() | path()) -> non_neg_integer().
state_field_size(State, Field) ->
    case len(State, Field) of
        {ok, Size} -> Size;
        {badarg, Position, Text} -> ?BADARG([State, Field], Position, Text)
    end.

%% @doc Calls `Fun(Key, Value, Acc)' for each entry of the map in a field or under a path, or in the
%% share found there, in no particular order; returns what the last call did. At most 64 entries are
%% built at a time. Anything but a map is a `badarg'.
-spec fold_state_field(
    fun((Key :: term(), Value :: term(), Acc) -> Acc), Acc, state(), field() | path()
) -> Acc.
fold_state_field(Fun, Acc, State, Field) when is_function(Fun, 3) ->
    case fold(Fun, Acc, State, Field) of
        {ok, NewAcc} -> NewAcc;
        {badarg, Position, Text} -> ?BADARG([Fun, Acc, State, Field], Position + 2, Text)
    end;
fold_state_field(Fun, Acc, State, Field) ->
    ?BADARG([Fun, Acc, State, Field], 1, <<"not a fun of three arguments">>).

%% @doc The state without a field, or without the key at the end of a path. `id' and `created_at'
%% cannot be removed. Removing what is not there changes nothing.
-spec remove_state_field(state(), field() | path()) -> state().
remove_state_field(State, Field) ->
    case remove(State, Field) of
        {badarg, Position, Text} -> ?BADARG([State, Field], Position, Text);
        NewState -> NewState
    end.

%% @doc All fields as a map. The seven fields with a meaning of their own are always in it.
-spec to_map(state()) -> #{field() => term()}.
to_map(State) ->
    case fields(State) of
        {badarg, Position, Text} -> ?BADARG([State], Position, Text);
        Fields -> maps:merge(?DEFAULTS, Fields)
    end.

%% @doc A state of these fields, as {@link to_map/1} gives them. `id' is required; any other field
%% that is missing is as in a new state.
-spec from_map(#{field() => term()}) -> state().
from_map(Map) when is_map(Map) ->
    Created =
        case erlmcp_memory_settings:connection_state_compact() of
            true ->
                ?COLLECTED(
                    ?OPENED(state_from_map, [Map], [], erlmcp_memory_nif:state_from_map(Map, []))
                );
            false ->
                New = #{phase => initialization, created_at => erlang:system_time(millisecond)},
                All = maps:merge(New, Map),
                IsSet = fun(_Field, Value) -> Value =/= undefined end,
                erlmcp_memory_plain_state:from_fields(maps:filter(IsSet, All))
        end,
    case Created of
        {badarg, Position, Text} -> ?BADARG([Map], Position, Text);
        State -> State
    end;
from_map(Map) ->
    ?BADARG([Map], 1, <<"not a map">>).

%% @doc The whole state as a binary that {@link decompress_state/1} reads, here or on another
%% node. What it shares is written with it. A state that takes more than 64 MiB before compression
%% is a `badarg'.
%%
%% Processes, ports and references are written as they are; on another node they are those of this
%% one. References to other states, to pooled states and to what other libraries made are written as
%% plain references, which keep nothing alive.
%%
%% A fun is written by its module, index and checksum, and what it closes over, without the process
%% that made it. It is read wherever the atoms in it are known, whether its module is loaded or not.
-spec compress_state(state()) -> binary().
compress_state(State) ->
    Compressed =
        case native_state(State) of
            {badarg, _, _} = BadArg ->
                BadArg;
            Native ->
                Compress = erlmcp_memory_settings:compression_enabled(),
                erlmcp_memory_nif:state_compress(Native, Compress)
        end,
    case Compressed of
        {badarg, Position, Text} -> ?BADARG([State], Position, Text);
        Binary -> Binary
    end.

%% @doc The state that a snapshot holds, of this version or of version 1.
%%
%% Safe on any bytes: it creates no atom, and takes memory for at most 64 MiB of uncompressed data.
%%
%% <ul>
%% <li>`invalid_format': not a binary, or an empty one;</li>
%% <li>`unsupported_version': a version that this release does not read;</li>
%% <li>`corrupt_data': not what a writer of that version writes;</li>
%% <li>`{unknown_atom, Name}': the snapshot holds an atom that this node does not have, which may be
%%   the name of the node of a process, a port or a reference. Or it holds a `fun M:F/A' that this
%%   node has not loaded, named as `<<"m:f/1">>': snapshots may name 16,384 of these in the life
%%   of a node, because the VM keeps an entry for each;</li>
%% <li>`{too_large, Bytes}': this size before compression, more than 64 MiB.</li>
%% </ul>
-spec decompress_state(binary()) -> state() | {error, decompress_error()}.
decompress_state(Binary) ->
    Read = ?COLLECTED(erlmcp_memory_nif:state_decompress(Binary, bytes(Binary))),
    case is_reference(Read) andalso not erlmcp_memory_settings:connection_state_compact() of
        true -> erlmcp_memory_plain_state:from_fields(fields(Read));
        false -> Read
    end.

%% @doc What the state takes, in bytes: the `total_bytes' of {@link state_size_info/1}.
-spec estimate_memory(state()) -> non_neg_integer().
estimate_memory(State) ->
    case sizes(State) of
        {badarg, Position, Text} -> ?BADARG([State], Position, Text);
        #{total_bytes := Total} -> Total
    end.

%% @doc What the state and its parts take, in bytes, as the allocator gave them out.
%%
%% `total_bytes' is the sum of `base' (the handle, phase, time of creation, and what no single field
%% takes), `id', `transport', `capabilities_ref', `metadata', `pending_refs' and `extra' (all other
%% fields). `shared_bytes' is what the shares take to which the state refers, also through other
%% values; they are kept once for all their users, and are not part of the total. Nor are the
%% compact states, pooled states, parked terms and buffers that it refers to: each is counted by
%% itself. If one is cleaned up, it is gone for every value that refers to it. A value with
%% references to objects of other libraries takes an environment of the VM for them, 2.5 KB, and
%% about 150 bytes for each. `metadata_map_size' and `pending_count' are numbers of entries. What
%% two versions of a state have in common counts in both.
%%
%% A plain record (see above) takes its words on a heap, with nothing shared, and the binaries that
%% are off the heap.
-spec state_size_info(state()) -> size_info().
state_size_info(State) ->
    case sizes(State) of
        {badarg, Position, Text} -> ?BADARG([State], Position, Text);
        Sizes -> Sizes
    end.

%% @doc Gives the memory of a state back at once, without waiting for the garbage collection of
%% its reference. Up to 512 bytes lie in the object that the reference refers to, and are freed with
%% it. Later reads of this handle raise `badarg'; other versions of the state are as they were. May
%% be called twice.
-spec cleanup_state(state()) -> ok.
cleanup_state(State) ->
    Cleaned =
        case is_reference(State) of
            true -> erlmcp_memory_nif:state_cleanup(State);
            false -> erlmcp_memory_plain_state:cleanup(State)
        end,
    case Cleaned of
        {badarg, Position, Text} -> ?BADARG([State], Position, Text);
        ok -> ok
    end.

%% @doc A reference to a copy of the term that the node keeps once for equal terms. Equal terms
%% get equal references.
%%
%% The copy is native. A scheduler that reads it often enough keeps it as a term as well, if it
%% takes at most 4 MiB: reading it is then only a copy. (Each scheduler that reads it may keep such
%% a term, so there can be up to 16.) All of it is freed with the last owner; `shared_bytes' of
%% {@link state_size_info/1} tells what it takes.
%%
%% Owners are references, states and other shares. A pooled state in shared content may in turn hold
%% the share; such cycles are found and freed as well.
-spec share(term()) -> share().
share(Term) ->
    Bytes = bytes(Term),
    Shared =
        ?COLLECTED(
            ?OPENED(share_new, [Term], [Bytes], erlmcp_memory_nif:share_new(Term, [], Bytes))
        ),
    case Shared of
        {badarg, Position, Text} -> ?BADARG([Term], Position, Text);
        Ref -> Ref
    end.

%% @doc The shared term. Its binaries of more than 64 bytes are not copied; each of them keeps the
%% whole native copy alive.
-spec shared(share()) -> term().
shared(Ref) ->
    case erlmcp_memory_nif:share_get(Ref) of
        {badarg, Position, Text} -> ?BADARG([Ref], Position, Text);
        {ok, Term} -> Term
    end.

%% @doc The value under a path of map keys inside shared content; nothing else of it is built. The
%% path `[]' is the whole content. The path goes through a share inside the content as if that
%% share's content were in its place.
-spec find_shared(share(), Path :: [term()]) -> {ok, term()} | error.
find_shared(Ref, Path) ->
    case ?OPENED(share_find, [Ref, Path], [], erlmcp_memory_nif:share_find(Ref, Path, [])) of
        {badarg, Position, Text} -> ?BADARG([Ref, Path], Position, Text);
        none -> error;
        {ok, _} = Ok -> Ok
    end.

%% @doc A reference to the term off the heap of any process. {@link unpark/1} builds it again, `=:='
%% to the one given.
%%
%% A term is parked to be built again as a whole, by a process that idles with a large state: {@link
%% share/1} is for what is read in parts, states are for what is changed in parts.
%%
%% Parts of a term that take 384 bytes or more in the native form are kept once for all parked terms
%% with equal parts, whichever process built them and in whatever order: tools, their schemas, lists
%% and maps of them, closures made in the same way. When a large part differs in one place, the
%% parts inside it are still kept once. They are freed with the last parked term that has them. A
%% term of less than 512 bytes in the native form is kept as it is. A part that many terms have, and
%% that is built often, is kept as a term as well, which the VM copies; so are up to 8 MiB, on the
%% node, of parts that few terms have.
%%
%% <ul>
%% <li>Timers, monitors, aliases, processes and ports are the same ones, and work as before. ETS
%%   tables, atomics and anything else that the VM or other libraries keep behind a reference live
%%   as long as the parked term does.</li>
%% <li>References to states, shares, pooled states and other parked terms keep what they refer
%%   to. Cycles through a pooled state are found and freed.</li>
%% <li>A binary of 64 KiB or more is held, not copied, unless it is a small part of a larger one.
%%   Smaller binaries are copied, so they keep nothing else alive.</li>
%% <li>A subterm that occurs more than once in a term is built more than once.</li>
%% </ul>
%%
%% `badarg' is raised for a term of more than 512 MiB in the native form, one that nests deeper than
%% 1,048,576 levels (funs in funs: 1,000, maps in keys: 256), one that holds a term of a kind that
%% the library does not know, and one that, with its shared subterms written out, is larger than 1
%% MiB and more than eight times its size on the heap.
-spec park(term()) -> parked().
park(Term) ->
    Bytes = bytes(Term),
    Made = ?COLLECTED(?OPENED(park, [Term], [Bytes], erlmcp_memory_nif:park(Term, [], Bytes))),
    case Made of
        {badarg, Position, Text} -> ?BADARG([Term], Position, Text);
        Parked -> Parked
    end.

%% @doc The term that was parked. Never fails for a parked term; `badarg' is raised for anything
%% else, and for a reference that comes back from a file or another node after the last copy of it
%% here is gone.
%%
%% A term of up to a megabyte is built on the caller's scheduler, a larger one on a dirty scheduler.
-spec unpark(parked()) -> term().
unpark(Parked) ->
    case erlmcp_memory_nif:unpark(Parked) of
        {ok, Term} -> Term;
        {badarg, Position, Text} -> ?BADARG([Parked], Position, Text)
    end.

%% @doc A share like this one with a new value under a path of map keys; with the path `[]', a share
%% of the value. It is the same share that {@link share/1} gives for an equal term.
%%
%% The two contents have in common what did not change, and the cost of the call depends on the
%% path, not on the size of the content. Maps that are missing on the path are made; a path through
%% a value that is not a map is a `badarg'.
-spec update_shared(share(), Path :: [term()], term()) -> share().
update_shared(Ref, Path, Value) ->
    case erlmcp_memory_inside:put(Ref, Path, Value) of
        {badarg, Position, Text} -> ?BADARG([Ref, Path, Value], Position, Text);
        NewRef -> NewRef
    end.

%% @doc Whether the term is a connection state, in either form. A reference to a state that was
%% cleaned up still is; one that went through `term_to_binary/1' is not.
-spec is_state(term()) -> boolean().
is_state(Term) when is_reference(Term) -> erlmcp_memory_nif:state_is(Term);
is_state(Term) -> erlmcp_memory_plain_state:is_state(Term).

%% @doc Whether the term is a reference to shared content.
-spec is_share(term()) -> boolean().
is_share(Term) ->
    erlmcp_memory_inside:is_share(Term).

%% @doc As {@link format/2} with `#{}'.
-spec format(state()) -> iodata().
format(State) ->
    case erlmcp_memory_format:state(State, #{}) of
        {badarg, Position, Text} -> ?BADARG([State], Position, Text);
        Text -> Text
    end.

%% @doc The state as text for a person, in UTF-8: its fields and sizes; shares and large values are
%% shown by their sizes. For crash reports, and `format_status' of a process that holds a state.
%%
%% <ul>
%% <li>`max_bytes' (4096): the most bytes that the text may have;</li>
%% <li>`redact' (`[]'): the values in these fields and under these paths are not shown.</li>
%% </ul>
%%
%% For a state that was cleaned up, the text says so.
-spec format(state(), format_options()) -> iodata().
format(State, Options) ->
    case erlmcp_memory_format:state(State, Options) of
        {badarg, Position, Text} -> ?BADARG([State, Options], Position, Text);
        Text -> Text
    end.

bytes(Term) when is_binary(Term) -> byte_size(Term);
bytes(_Term) -> 0.

update(State, Field, Value) when is_reference(State) ->
    Updated =
        ?COLLECTED(
            ?OPENED(
                state_update,
                [State, Field, Value],
                [bytes(Value)],
                erlmcp_memory_nif:state_update(State, Field, Value, [], bytes(Value))
            )
        ),
    case Updated of
        {shared, Keys, Ref} ->
            {Before, Inside} = lists:split(Keys, Field),
            changed(State, Before, erlmcp_memory_inside:put(Ref, Inside, Value));
        _ ->
            Updated
    end;
update(State, Field, Value) ->
    erlmcp_memory_plain_state:update(State, Field, Value).

remove(State, Field) when is_reference(State) ->
    Removed = ?OPENED(
        state_remove, [State, Field], [], erlmcp_memory_nif:state_remove(State, Field, [])
    ),
    case Removed of
        {shared, Keys, Ref} ->
            {Before, Inside} = lists:split(Keys, Field),
            changed(State, Before, erlmcp_memory_inside:remove(Ref, Inside));
        _ ->
            Removed
    end;
remove(State, Field) ->
    erlmcp_memory_plain_state:remove(State, Field).

%% The state with a changed share in place of the one on the path.
changed(_State, _Path, {badarg, _, _} = BadArg) -> BadArg;
changed(State, Path, Share) -> update(State, Path, Share).

update_all(State, Fields) when is_reference(State) ->
    Updated =
        ?COLLECTED(
            ?OPENED(
                state_update_all,
                [State, Fields], [],
                erlmcp_memory_nif:state_update_all(State, Fields, [])
            )
        ),
    case Updated of
        none -> update_each(State, Fields);
        _ -> Updated
    end;
update_all(State, Fields) when is_map(Fields) ->
    update_each(State, Fields);
update_all(_State, _Fields) ->
    {badarg, 2, <<"not a map">>}.

update_each(State, Fields) ->
    Ordered = lists:sort([{depth(Field), Field} || Field <- maps:keys(Fields)]),
    update_each(State, [Field || {_Depth, Field} <- Ordered], Fields).

update_each(State, [Field | Rest], Fields) ->
    case update(State, Field, maps:get(Field, Fields)) of
        {badarg, 1, _} = BadArg -> BadArg;
        {badarg, _, Text} -> {badarg, 2, Text};
        NewState -> update_each(NewState, Rest, Fields)
    end;
update_each(State, [], _Fields) ->
    case is_state(State) of
        true -> State;
        false -> {badarg, 1, <<"not a connection state">>}
    end.

depth(Path) when is_list(Path), length(Path) >= 0 -> length(Path);
depth(_Field) -> 0.

increment(State, Field, By) when is_integer(By) ->
    case find(State, Field) of
        {ok, Value} when is_integer(Value) ->
            by(State, Field, Value + By);
        {badarg, _, _} = BadArg ->
            BadArg;
        none ->
            case default(Field) of
                undefined -> by(State, Field, By);
                _ -> ?NOT_AN_INTEGER
            end;
        {ok, _} ->
            ?NOT_AN_INTEGER
    end;
increment(_State, _Field, _By) ->
    {badarg, 3, <<"not an integer">>}.

by(State, Field, Value) ->
    case update(State, Field, Value) of
        %% The sum is not a valid value of the field.
        {badarg, _, Text} -> {badarg, 2, Text};
        NewState -> NewState
    end.

len(State, Field) ->
    Len =
        case is_reference(State) of
            true -> erlmcp_memory_inside:len(State, Field);
            false -> erlmcp_memory_plain_state:len(State, Field)
        end,
    or_default(Len, Field, 0).

fold(Fun, Acc, State, Field) ->
    Folded =
        case is_reference(State) of
            true -> erlmcp_memory_inside:fold(Fun, Acc, State, Field);
            false -> erlmcp_memory_plain_state:fold(Fun, Acc, State, Field)
        end,
    or_default(Folded, Field, Acc).

%% What stands for a field that was never set.
or_default(none, Field, OfEmpty) ->
    case default(Field) of
        undefined -> {badarg, 2, <<"the value there is not a map">>};
        _Empty -> {ok, OfEmpty}
    end;
or_default(Result, _Field, _OfEmpty) ->
    Result.

find(State, Field) when is_reference(State) ->
    ?OPENED(state_get, [State, Field], [], erlmcp_memory_nif:state_get(State, Field, []));
find(State, Field) ->
    erlmcp_memory_plain_state:find(State, Field).

default(Field) when Field =:= metadata; Field =:= pending_refs -> #{};
default([Field]) -> default(Field);
default(_) -> undefined.

fields(State) when is_reference(State) ->
    erlmcp_memory_nif:state_fields(State);
fields(State) ->
    erlmcp_memory_plain_state:fields(State).

from_fields(Fields) ->
    ?COLLECTED(
        ?OPENED(state_from_fields, [Fields], [], erlmcp_memory_nif:state_from_fields(Fields, []))
    ).

%% There is one snapshot format, and one writer for it.
native_state(State) when is_reference(State) -> State;
native_state(State) ->
    case erlmcp_memory_plain_state:fields(State) of
        {badarg, _, _} = BadArg -> BadArg;
        Fields -> from_fields(Fields)
    end.

sizes(State) when is_reference(State) ->
    erlmcp_memory_nif:state_sizes(State);
sizes(State) ->
    erlmcp_memory_plain_state:sizes(State).
