%% @private
%% @doc A connection state as text for a person. Returns `{badarg, Position, Text}' for an argument
%% that is wrong.
-module(erlmcp_memory_format).

-export([state/2, term/1]).

-define(MAX_BYTES, 4096).
%% Of a name, a label or a value in a line.
-define(TERM_BYTES, 200).
%% Shown in place of what is hidden.
-define(REDACTED, '*redacted*').
-define(CUT, "...").

%% @doc The fields of a state, its sizes, and its shares by their size.
-spec state(term(), term()) -> iodata() | erlmcp_memory_nif:badarg().
state(State, Options) ->
    case options(Options) of
        {ok, MaxBytes, Redact} ->
            case text(State, MaxBytes, Redact) of
                {badarg, _, _} = BadArg -> BadArg;
                Text -> cut(Text, MaxBytes)
            end;
        {error, Text} ->
            {badarg, 2, Text}
    end.

options(#{} = Options) ->
    MaxBytes = maps:get(max_bytes, Options, ?MAX_BYTES),
    Redact = maps:get(redact, Options, []),
    case maps:keys(maps:without([max_bytes, redact], Options)) of
        [] when not is_integer(MaxBytes); MaxBytes < 1 ->
            {error, <<"max_bytes is not a positive integer">>};
        [] ->
            try lists:all(fun is_field/1, Redact) of
                true -> {ok, MaxBytes, [path(Field) || Field <- Redact]};
                false -> {error, <<"redact is not a list of fields and paths">>}
            catch
                error:_ -> {error, <<"redact is not a list of fields and paths">>}
            end;
        _ ->
            {error, <<"has other keys than max_bytes and redact">>}
    end;
options(_) ->
    {error, <<"not a map">>}.

is_field(Field) when is_atom(Field) -> true;
is_field([Field | Keys]) -> is_atom(Field) andalso is_list(Keys) andalso length(Keys) >= 0;
is_field(_) -> false.

path(Field) when is_atom(Field) -> [Field];
path(Path) -> Path.

text(State, MaxBytes, Redact) ->
    case {outline(State, MaxBytes), sizes(State)} of
        {{Fields, Others}, #{total_bytes := Total, shared_bytes := Shared}} ->
            [
                io_lib:format("connection state, ~b bytes", [Total]),
                [io_lib:format(", shares ~b bytes", [Shared]) || Shared > 0],
                [field(Field, MaxBytes, Redact) || Field <- lists:sort(Fields)],
                [io_lib:format("~n  ~b other fields", [Others]) || Others > 0],
                $\n
            ];
        {{badarg, _, _} = BadArg, _} ->
            cleaned_up(State, BadArg);
        {_, {badarg, _, _} = BadArg} ->
            cleaned_up(State, BadArg)
    end.

outline(State, Bytes) when is_reference(State) -> erlmcp_memory_nif:state_outline(State, Bytes);
outline(State, Bytes) -> erlmcp_memory_plain_state:outline(State, Bytes).

sizes(State) when is_reference(State) -> erlmcp_memory_nif:state_sizes(State);
sizes(State) -> erlmcp_memory_plain_state:sizes(State).

cleaned_up(State, BadArg) ->
    case is_reference(State) andalso erlmcp_memory_nif:state_is(State) of
        true -> "connection state, cleaned up\n";
        false -> BadArg
    end.

field({Name, Bytes, What}, MaxBytes, Redact) ->
    io_lib:format("~n  ~tp: ~ts", [Name, value(Name, Bytes, What, MaxBytes, Redact)]).

value(Name, Bytes, What, MaxBytes, Redact) ->
    Hidden = [Keys || [Field | Keys] <- Redact, Field =:= Name],
    case lists:member([], Hidden) of
        true ->
            atom_to_list(?REDACTED);
        false ->
            case What of
                {value, Value} ->
                    Shown = shares_by_size(lists:foldl(fun hide/2, Value, Hidden)),
                    io_lib:format("~0tp", [Shown], [{chars_limit, MaxBytes}]);
                {share, Shared} ->
                    io_lib:format("share of ~b bytes", [Shared]);
                {map, Entries} ->
                    io_lib:format("map of ~b entries, ~b bytes", [Entries, Bytes]);
                large ->
                    io_lib:format("~b bytes", [Bytes])
            end
    end.

hide([Key], Map) when is_map_key(Key, Map) -> Map#{Key := ?REDACTED};
hide([Key | Keys], Map) when is_map_key(Key, Map) -> Map#{Key := hide(Keys, map_get(Key, Map))};
hide(_Keys, Value) -> Value.

shares_by_size(Term) when is_reference(Term) ->
    case erlmcp_memory_inside:is_share(Term) of
        true ->
            case erlmcp_memory_nif:term_size(Term, []) of
                {_, Bytes} when is_integer(Bytes) -> {share, Bytes};
                _ -> Term
            end;
        false ->
            Term
    end;
shares_by_size([Head | Tail]) ->
    [shares_by_size(Head) | shares_by_size(Tail)];
shares_by_size(Term) when is_tuple(Term) ->
    list_to_tuple([shares_by_size(Element) || Element <- tuple_to_list(Term)]);
shares_by_size(Term) when is_map(Term) ->
    maps:map(fun(_Key, Value) -> shares_by_size(Value) end, Term);
shares_by_size(Term) ->
    Term.

%% @doc A term of the host in one line of at most 200 bytes: strings, atoms and nested maps are cut
%% as well, which a depth alone does not do.
-spec term(term()) -> binary().
term(Term) ->
    Text = io_lib:format("~0tp", [Term], [{chars_limit, ?TERM_BYTES}]),
    iolist_to_binary(cut(Text, ?TERM_BYTES)).

%% At most this many bytes, without a partial character at the end.
cut(Text, MaxBytes) ->
    case unicode:characters_to_binary(Text) of
        Bytes when byte_size(Bytes) =< MaxBytes ->
            Bytes;
        Bytes when MaxBytes > length(?CUT) ->
            [whole(Bytes, MaxBytes - length(?CUT)), ?CUT];
        Bytes ->
            whole(Bytes, MaxBytes)
    end.

whole(Bytes, Size) ->
    case unicode:characters_to_binary(binary:part(Bytes, 0, Size)) of
        Whole when is_binary(Whole) -> Whole;
        {_, Whole, _} -> Whole
    end.
