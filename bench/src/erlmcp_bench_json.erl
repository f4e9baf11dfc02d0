%% @doc JSON by a library: OTP's own `json' (OTP 27 and later), else jiffy, a Debian package.
%%
%% All forms of the example host encode with it, so none is favoured by its encoder.
-module(erlmcp_bench_json).

-export([library/0, encode/1, decode/1]).

%% @doc Loads the library, so that later calls find it, and says which it is.
-spec library() -> json | jiffy | none.
library() ->
    case [Module || Module <- [json, jiffy], code:ensure_loaded(Module) =:= {module, Module}] of
        [Module | _] -> Module;
        [] -> none
    end.

%% @doc A term of maps with binary keys, lists, binaries, numbers, `true', `false' and `null'.
-spec encode(term()) -> binary().
encode(Term) ->
    case erlang:function_exported(json, encode, 1) of
        true -> iolist_to_binary(json:encode(Term));
        false -> iolist_to_binary(jiffy:encode(Term))
    end.

%% @doc Maps with binary keys. No string refers to the text it was read from.
-spec decode(binary()) -> term().
decode(Text) ->
    Term =
        case erlang:function_exported(json, decode, 1) of
            true -> json:decode(Text);
            false -> jiffy:decode(Text, [return_maps, {null_term, null}])
        end,
    own(Term).

own(Map) when is_map(Map) ->
    maps:from_list([{own(Key), own(Value)} || {Key, Value} <- maps:to_list(Map)]);
own(List) when is_list(List) -> [own(Item) || Item <- List];
own(Binary) when is_binary(Binary) -> binary:copy(Binary);
own(Other) -> Other.
