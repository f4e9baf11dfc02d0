%% Every type of term that the external format can name: the node survives each of them in every
%% place, and gets it back.
-module(erlmcp_optimizer_external_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_suite/1, end_per_suite/1]).
-export([every_named_tag_is_a_value/1, any_tag_with_any_bytes/1]).

-define(O, erlmcp_connection_optimizer).
-define(P, erlmcp_memory_pool).

all() ->
    [every_named_tag_is_a_value, any_tag_with_any_bytes].

init_per_suite(Config) ->
    erlmcp_optimizer_state_help:default(),
    {ok, Pid} = ?P:start_link(),
    unlink(Pid),
    Config.

end_per_suite(_Config) ->
    gen_server:stop(?P).

every_named_tag_is_a_value(_Config) ->
    Terms = [{Tag, binary_to_term(<<131, Bytes/binary>>)} || {Tag, Bytes} <- named()],
    [?assertEqual({Tag, true}, {Tag, survives(Term)}) || {Tag, Term} <- Terms],
    ?assert(survives([Term || {_, Term} <- Terms])),
    ?assert(survives(list_to_tuple([Term || {_, Term} <- Terms]))).

%% Of random bytes behind each tag, whatever the running VM takes for a term.
any_tag_with_any_bytes(_Config) ->
    rand:seed(exsss, {1, 2, 3}),
    Taken = lists:foldl(
        fun(Tag, Before) -> lists:usort(Before ++ taken(Tag)) end, [], lists:seq(0, 255)
    ),
    %% Numbers, strings, binaries, atoms and lists at least are hit.
    [?assert(lists:member(Tag, Taken)) || Tag <- [70, 97, 98, 106, 107, 109, 110, 119]].

taken(Tag) ->
    lists:append([
        try binary_to_term(<<131, Tag, Bytes/binary>>, [safe, used]) of
            {Term, _} ->
                ?assertEqual({Tag, true}, {Tag, survives(Term)}),
                [Tag]
        catch
            error:badarg -> []
        end
     || _ <- lists:seq(1, 200),
        Bytes <- [
            <<(rand:bytes(rand:uniform(40)))/binary, 0:400>>,
            <<(rand:uniform(4) - 1):8, 97, 1, 97, 2, 97, 3, 106, 0:400>>,
            <<0:16, (rand:uniform(4) - 1):16, 97, 1, 97, 2, 97, 3, 106, 0:400>>,
            <<(rand:uniform(3) - 1):8, "ok", 0:400>>, <<0, (rand:uniform(3) - 1):8, "ok", 0:400>>
        ]
    ]).

named() ->
    Node = <<119, 3, "a@b">>,
    Uniq = <<0:128>>,
    Pid = <<88, Node/binary, 1:32, 2:32, 3:32>>,
    Free = <<119, 5, "lists", 97, 1, 97, 2, Pid/binary, 97, 7>>,
    [
        {small_integer, <<97, 255>>}, {integer, <<98, -1:32>>}, {new_float, <<70, 1.5/float>>},
        {negative_zero, <<70, 16#80, 0:56>>},
        {float, <<99, "1.50000000000000000000e+00", 0:40>>},
        {atom, <<100, 2:16, "ok">>}, {small_atom, <<115, 2, "ok">>},
        {atom_utf8, <<118, 4:16, "añ"/utf8, "o">>}, {small_atom_utf8, <<119, 2, "ok">>},
        {pid, <<103, Node/binary, 1:32, 2:32, 1>>}, {new_pid, Pid},
        {port, <<102, Node/binary, 1:32, 1>>}, {new_port, <<89, Node/binary, 1:32, 1:32>>},
        {v4_port, <<120, Node/binary, 1:64, 1:32>>},
        {reference, <<101, Node/binary, 1:32, 1>>},
        {new_reference, <<114, 1:16, Node/binary, 1, 1:32>>},
        {newer_reference, <<90, 3:16, Node/binary, 1:32, 1:32, 2:32, 3:32>>},
        {newer_reference_of_five_words, <<90, 5:16, Node/binary, 1:32, 0:160>>},
        {small_tuple, <<104, 1, 106>>}, {large_tuple, <<105, 1:32, 106>>}, {nil, <<106>>},
        {empty_tuple, <<104, 0>>}, {string, <<107, 2:16, 1, 2>>},
        {list, <<108, 1:32, 97, 1, 106>>}, {improper_list, <<108, 1:32, 97, 1, 97, 2>>},
        {binary, <<109, 1:32, 7>>}, {large_binary, <<109, 100:32, 0:800>>},
        {bit_string, <<77, 2:32, 3, 1, 2:3, 0:5>>}, {large_bit_string, <<77, 100:32, 3, 0:800>>},
        {small_big, <<110, 9, 1, 0:64, 1>>}, {large_big, <<111, 300:32, 0, 1:2400>>},
        {map, <<116, 1:32, 97, 1, 97, 2>>},
        {fun_of_a_module, <<113, 119, 5, "lists", 119, 3, "map", 97, 2>>},
        {fun_of_no_module, <<113, 119, 5, "lists", 119, 3, "map", 97, 77>>},
        {local_fun,
            <<112, (4 + 1 + 16 + 8 + byte_size(Free)):32, 1, Uniq/binary, 1:32, 1:32, Free/binary>>},
        {compressed, <<80, 105:32, (zlib:compress(<<109, 100:32, 0:800>>))/binary>>}
    ] ++ native().

%% What later releases have: their own, asked for.
native() ->
    case code:ensure_loaded(records) of
        {module, Records} ->
            Record = Records:create(some_module, some_record, [{a, 1}], #{is_exported => true}),
            <<131, Bytes/binary>> = term_to_binary(Record),
            [{record, Bytes}];
        {error, _} ->
            []
    end ++
        case list_to_integer(erlang:system_info(otp_release)) >= 26 of
            true ->
                <<131, Local/binary>> = term_to_binary(make_ref(), [local]),
                [{local, Local}];
            false ->
                []
        end.

survives(Term) ->
    State = ?O:from_map(#{id => <<>>, value => Term, metadata => #{Term => [Term]}}),
    Closure = ?O:update_state_field(State, closure, fun() -> Term end),
    Back = ?O:get_state_field(Closure, closure),
    Share = ?O:share({Term, #{Term => x}}),
    {ok, Pooled} = ?P:acquire_connection_state(#{Term => Term}),
    {ok, Held} = ?P:connection_state(Pooled),
    ok = ?P:release_connection_state(Pooled),
    Written = ?O:decompress_state(?O:compress_state(?O:from_map(#{id => <<>>, value => Term}))),
    Read =
        case Written of
            %% A module that nobody mentioned: named, as documented.
            {error, {unknown_atom, _}} -> Term;
            _ -> ?O:get_state_field(Written, value)
        end,
    %% By =:= alone: they may be large.
    Term =:= ?O:get_state_field(State, value) andalso
        [Term] =:= ?O:get_state_field(State, [metadata, Term]) andalso
        Term =:= Back() andalso
        {Term, #{Term => x}} =:= ?O:shared(Share) andalso
        Share =:= ?O:share({Term, #{Term => x}}) andalso
        #{Term => Term} =:= Held andalso
        Term =:= Read.
