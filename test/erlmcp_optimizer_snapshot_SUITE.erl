%% Snapshots: what is written comes back, and no bytes do harm.
-module(erlmcp_optimizer_snapshot_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_optimizer_state_help, [
    alone/1, every_kind/0, nested/2, peak/1, refused/3, watch/0
]).

-export([all/0, groups/0, init_per_group/2, end_per_group/2]).
-export([with_handlers/0, call_handlers/1]).
-export([
    every_field_comes_back/1,
    terms_of_every_type/1,
    again_and_again/1,
    shares_come_back_as_shares/1,
    a_chain_of_shares/1,
    either_form_reads_what_the_other_wrote/1,
    compression_is_a_setting/1,
    version_1/1,
    version_1_of_a_time_before_the_epoch/1,
    version_1_with_many_pending/1,
    other_versions/1,
    no_snapshots/1,
    unknown_atoms/1,
    claims_that_no_machine_can_meet/1,
    an_lz4_bomb/1,
    too_large_to_be_written/1,
    a_fun_that_no_process_made/1,
    a_node_of_another_name_reads/1,
    a_function_that_nobody_mentions_yet/1,
    a_share_inside_a_fun_is_written/1,
    snapshots_of_the_first_release/1,
    terms_in_the_external_format/1,
    forged_funs_end_no_node/1,
    many_shares_take_what_they_are/1,
    every_truncation/1,
    forged_contents/1,
    forged_multitudes/1,
    a_million_mutations/1
]).

-define(O, erlmcp_connection_optimizer).
-define(RAW_LIMIT, 67_108_864).

all() ->
    [{group, compact}, {group, compact_uncompressed}, {group, plain}, {group, bytes}].

groups() ->
    Both = [
        every_field_comes_back,
        terms_of_every_type,
        again_and_again,
        shares_come_back_as_shares,
        a_chain_of_shares,
        either_form_reads_what_the_other_wrote,
        version_1,
        version_1_of_a_time_before_the_epoch,
        other_versions,
        no_snapshots
    ],
    Bytes = [
        compression_is_a_setting,
        version_1_with_many_pending,
        unknown_atoms,
        claims_that_no_machine_can_meet,
        an_lz4_bomb,
        too_large_to_be_written,
        every_truncation,
        forged_contents,
        a_fun_that_no_process_made,
        a_node_of_another_name_reads,
        a_function_that_nobody_mentions_yet,
        a_share_inside_a_fun_is_written,
        snapshots_of_the_first_release,
        terms_in_the_external_format,
        forged_funs_end_no_node,
        many_shares_take_what_they_are,
        forged_multitudes,
        a_million_mutations
    ],
    [
        {compact, [], Both},
        {compact_uncompressed, [], Both},
        {plain, [], Both},
        {bytes, [], Bytes}
    ].

init_per_group(Group, Config) ->
    erlmcp_optimizer_state_help:form(Group),
    Config.

end_per_group(_Group, _Config) ->
    erlmcp_optimizer_state_help:default().

full() ->
    ?O:from_map(#{
        id => <<"conn-1">>, phase => some_phase, transport => {tcp, self()}, created_at => -1,
        capabilities_ref => ?O:share(#{tools => #{<<"t">> => [1, 2]}}),
        metadata => #{user => <<"joe">>, <<"k">> => [1 | 2]},
        pending_refs => #{make_ref() => 1, make_ref() => {2, self()}},
        server => "x", large => maps:from_list([{N, <<N:64>>} || N <- lists:seq(1, 60)])
    }).

again(State) ->
    ?O:decompress_state(?O:compress_state(State)).

uncompressed(State) ->
    application:set_env(erlmcp, compression_enabled, false),
    try ?O:compress_state(State) after application:unset_env(erlmcp, compression_enabled) end.

%% The bytes with the checksum that belongs to them.
sealed(<<2, Flags, _:32, Rest/binary>>) ->
    <<2, Flags, (erlang:crc32([Flags, Rest])):32, Rest/binary>>.

%% An uncompressed snapshot with this body.
raw(Body) ->
    sealed(<<2, 0, 0:32, (byte_size(Body)):64, Body/binary>>).

%% The body: names of atoms, contents of shares, fields.
body(Atoms, Shares, Fields) ->
    Strings = fun(List) -> [varint(length(List)), [[varint(byte_size(B)), B] || B <- List]] end,
    iolist_to_binary([Strings(Atoms), Strings(Shares), varint(byte_size(Fields)), Fields]).

varint(N) when N < 251 -> <<N>>;
varint(N) when N < 65_536 -> <<251, N:16/little>>;
varint(N) -> <<252, N:32/little>>.

%% Fields of a state that has, beside what it must have, the field `metadata' with these bytes.
fields(Metadata) ->
    Entries = [
        {<<16#42, 0>>, <<16#51, "i">>}, {<<16#42, 1>>, <<5>>}, {<<16#42, 2>>, iolist_to_binary(Metadata)}
    ],
    packed_map(Entries).

packed_map(Entries) ->
    {Offsets, _} = lists:mapfoldl(
        fun({K, V}, At) -> {At, At + byte_size(K) + byte_size(V)} end, 0, Entries
    ),
    Body = iolist_to_binary([[K, V] || {K, V} <- Entries]),
    {Tag, Width} =
        case byte_size(Body) of
            Small when Small < 256 -> {16#79, 8};
            Middle when Middle < 65_536 -> {16#7a, 16};
            _ -> {16#7b, 32}
        end,
    Numbers = << <<N:Width/little>> || N <- [length(Entries), byte_size(Body) | Offsets] >>,
    <<Tag, Numbers/binary, Body/binary>>.

forged(Metadata) ->
    forged([], Metadata).

%% With these contents of shares.
forged(Shares, Metadata) ->
    raw(body([<<"id">>, <<"created_at">>, <<"metadata">>], Shares, fields(Metadata))).

%% A term in the external format, or these bytes as one.
external(Bytes) when is_binary(Bytes) ->
    <<16#4a, (varint7(byte_size(Bytes)))/binary, Bytes/binary>>;
external(Term) ->
    external(term_to_binary(Term)).

%% What a snapshot gives; a state is read as a whole.
read(Snapshot) ->
    case ?O:decompress_state(Snapshot) of
        {error, _} = Error -> Error;
        State -> ?O:to_map(State)
    end.

%%% What is written comes back

every_field_comes_back(_Config) ->
    State = full(),
    Read = again(State),
    ?assertEqual(?O:to_map(State), ?O:to_map(Read)),
    Empty = ?O:create_optimized_state(<<>>),
    ?assertEqual(?O:to_map(Empty), ?O:to_map(again(Empty))).

terms_of_every_type(_Config) ->
    Kinds = every_kind(),
    [
        ?assert(?O:get_state_field(again(?O:from_map(#{id => <<>>, f => Term})), f) =:= Term)
     || Term <- Kinds
    ],
    Map = maps:from_list([{Key, Key} || Key <- Kinds]),
    Read = again(?O:from_map(#{id => <<>>, metadata => Map})),
    ?assert(?O:get_state_field(Read, metadata) =:= Map),
    [?assert(?O:get_state_field(Read, [metadata, Key]) =:= V) || {Key, V} <- maps:to_list(Map)].

again_and_again(_Config) ->
    Deep = {nested(3000, fun(T) -> {T} end), nested(300_000, fun(T) -> [T] end)},
    Path = [metadata | lists:seq(1, 63)],
    State = ?O:update_state_field(?O:create_optimized_state(<<>>), Path, Deep),
    Last = lists:foldl(fun(_, S) -> again(S) end, State, lists:seq(1, 5)),
    ?assert(?O:get_state_field(Last, Path) =:= Deep),
    ?assertEqual(?O:compress_state(again(Last)), ?O:compress_state(again(again(Last)))).

shares_come_back_as_shares(_Config) ->
    Content = #{tools => [make_ref(), binary:copy(<<"schema">>, 1000)]},
    Share = ?O:share(Content),
    State = ?O:from_map(#{id => <<>>, capabilities_ref => Share, other => [Share, {Share}]}),
    %% While the content lives, it is the same share; and when only the snapshot has it, it is
    %% one again.
    ?assertEqual(Share, ?O:get_state_field(again(State), capabilities_ref)),
    ?assertEqual([Share, {Share}], ?O:get_state_field(again(State), other)),
    Snapshot = alone(fun() ->
        Unique = #{tools => lists:seq(1, 1000), unique => make_ref()},
        ?O:compress_state(?O:from_map(#{id => <<>>, capabilities_ref => ?O:share(Unique)}))
    end),
    Read = ?O:decompress_state(Snapshot),
    Restored = ?O:get_state_field(Read, capabilities_ref),
    ?assertEqual(lists:seq(1, 1000), maps:get(tools, ?O:shared(Restored))),
    ?assertEqual({ok, lists:seq(1, 1000)}, ?O:find_shared(Restored, [tools])),
    ?assertEqual(Restored, ?O:share(?O:shared(Restored))),
    #{shared_bytes := Shared} = ?O:state_size_info(Read),
    ?assert(Shared > 1000).

a_chain_of_shares(_Config) ->
    alone(fun() ->
        Chain = lists:foldl(fun(N, Below) -> ?O:share({N, Below}) end, last, lists:seq(1, 20_000)),
        State = again(?O:from_map(#{id => <<>>, chain => Chain})),
        ?assertEqual(Chain, ?O:get_state_field(State, chain)),
        ok
    end).

either_form_reads_what_the_other_wrote(_Config) ->
    State = full(),
    Map = ?O:to_map(State),
    Snapshot = ?O:compress_state(State),
    Settings = application:get_all_env(erlmcp),
    [
        begin
            erlmcp_optimizer_state_help:form(Form),
            Read = ?O:decompress_state(Snapshot),
            ?assertEqual(Form =/= plain, is_reference(Read)),
            ?assertEqual(Map, ?O:to_map(Read)),
            ?assertEqual(Map, ?O:to_map(again(Read)))
        end
     || Form <- [compact, compact_uncompressed, plain]
    ],
    erlmcp_optimizer_state_help:default(),
    [application:set_env(erlmcp, Key, Value) || {Key, Value} <- Settings].

compression_is_a_setting(_Config) ->
    State = ?O:from_map(#{id => <<>>, f => binary:copy(<<"x">>, 100_000)}),
    Compressed = ?O:compress_state(State),
    Plain = uncompressed(State),
    ?assert(byte_size(Compressed) < 2000),
    ?assert(byte_size(Plain) > 100_000),
    ?assertEqual(?O:to_map(State), ?O:to_map(?O:decompress_state(Compressed))),
    ?assertEqual(?O:to_map(State), ?O:to_map(?O:decompress_state(Plain))).

%%% Who made a fun, and where

%% Who made a fun is no part of what is written.
a_node_of_another_name_reads(_Config) ->
    Args = ["-pa", filename:dirname(code:which(?MODULE)) | code:get_path()],
    Start = fun(Options) ->
        {ok, Peer, _} = peer:start(Options#{connection => standard_io, args => Args}),
        Peer
    end,
    Peers = [
        Start(#{name => peer:random_name(?MODULE)}),
        Start(#{name => peer:random_name(?MODULE)}),
        Start(#{})
    ],
    try
        [
            begin
                Snapshot = peer:call(Writer, ?MODULE, with_handlers, []),
                ?assertEqual(ok, peer:call(Reader, ?MODULE, call_handlers, [Snapshot]))
            end
         || Writer <- Peers, Reader <- Peers
        ]
    after
        [peer:stop(Peer) || Peer <- Peers]
    end.

%% Runs on a peer.
with_handlers() ->
    Inner = fun(X) -> {inner, X} end,
    Name = <<"name">>,
    Outer = fun(X) -> {Name, Inner(X)} end,
    Fields = #{id => <<>>, f => Inner, g => [Outer], h => nested(140, fun(T) -> [T, Outer] end)},
    ?O:compress_state(?O:from_map(Fields)).

%% Runs on a peer.
call_handlers(Snapshot) ->
    %% The atoms of what is read must be there.
    {module, _} = code:ensure_loaded(erlmcp_optimizer_state_help),
    State = ?O:decompress_state(Snapshot),
    {inner, 1} = (?O:get_state_field(State, f))(1),
    [Outer] = ?O:get_state_field(State, g),
    {<<"name">>, {inner, 2}} = Outer(2),
    [_, Deep] = ?O:get_state_field(State, h),
    {<<"name">>, {inner, 3}} = Deep(3),
    ok.

%% No code has its export entry.
a_function_that_nobody_mentions_yet(_Config) ->
    Snapshot = uncompressed(?O:from_map(#{id => <<>>, h => fun lists:zzmap/2})),
    Atom = list_to_atom("zz" ++ "mop"),
    Patched = sealed(binary:replace(Snapshot, <<"zzmap">>, <<"zzmop">>)),
    State = ?O:decompress_state(Patched),
    ?assert(?O:get_state_field(State, h) =:= fun lists:Atom/2).

a_share_inside_a_fun_is_written(_Config) ->
    Snapshot = alone(fun() ->
        Ref = ?O:share(#{tools => #{<<"t">> => lists:seq(1, 300)}, unique => make_ref()}),
        Handler = fun(Name) -> ?O:find_shared(Ref, [tools, Name]) end,
        Deep = nested(140, fun(T) -> [T, Ref] end),
        State = ?O:from_map(#{id => <<>>, handler => Handler, deep => Deep}),
        #{shared_bytes := Shared} = ?O:state_size_info(State),
        ?assert(Shared > 300),
        ?O:compress_state(State)
    end),
    _ = erlmcp_optimizer_state_help:settled_bytes(),
    State = ?O:decompress_state(Snapshot),
    {ok, [1 | _]} = (?O:get_state_field(State, handler))(<<"t">>),
    [_, Ref] = ?O:get_state_field(State, deep),
    ?assertMatch({ok, [1 | _]}, ?O:find_shared(Ref, [tools, <<"t">>])).

%% These had funs and deep terms in the external format: see make.escript beside the file.
snapshots_of_the_first_release(Config) ->
    {ok, File} = file:read_file(filename:join(?config(data_dir, Config), "external_terms.bin")),
    [
        begin
            State = ?O:decompress_state(Snapshot),
            ?assertEqual({Name, true}, {Name, is_reference(State)}),
            ?assertEqual({Name, true}, {Name, has_fields(State, Fields)}),
            ?assertEqual({Name, true}, {Name, has_fields(again(State), Fields)})
        end
     || {Name, Fields, Snapshot} <- binary_to_term(File)
    ].

has_fields(State, #{capabilities_ref := Content} = Fields) ->
    Share = ?O:get_state_field(State, capabilities_ref),
    %% Equal contents are one share, whoever wrote them.
    Share =:= ?O:share(Content) andalso ?O:shared(Share) =:= Content andalso
        has_fields(State, maps:remove(capabilities_ref, Fields));
has_fields(State, Fields) ->
    maps:with(maps:keys(Fields), ?O:to_map(State)) =:= Fields.

%% As this VM writes it. What is read is found by an equal term as a key, and as a share.
terms_in_the_external_format(_Config) ->
    [
        begin
            Term = Wrap(Kind),
            Value = ?O:decompress_state(forged(packed_map([{<<1>>, external(Term)}]))),
            ?assert(?O:get_state_field(Value, [metadata, 1]) =:= Term),
            ?assert(?O:get_state_field(again(Value), [metadata, 1]) =:= Term),
            Key = ?O:decompress_state(forged(packed_map([{external(Term), <<1>>}]))),
            ?assertEqual(1, ?O:get_state_field(Key, [metadata, Term])),
            ?assert(maps:keys(?O:get_state_field(Key, metadata)) =:= [Term]),
            Share = packed_map([{<<1>>, <<16#4c, 0>>}]),
            Shared = ?O:decompress_state(forged([external(Term)], Share)),
            ?assert(?O:get_state_field(Shared, [metadata, 1]) =:= ?O:share(Term))
        end
     || Kind <- every_kind(),
        Wrap <- [
            fun(T) -> {T} end, fun(T) -> [1, T] end, fun(T) -> [T | t] end,
            fun(T) -> fun() -> T end end,
            fun(T) -> #{T => 1} end, fun(T) -> #{k => [T], {T} => T, 1 => 2} end,
            fun(T) -> {fun() -> {T, fun() -> T end} end, T} end
        ]
    ],
    Closure = fun(X) -> {X, every_kind} end,
    Funs = external([Closure, fun lists:sum/1]),
    Read = ?O:decompress_state(forged(packed_map([{<<1>>, Funs}]))),
    [Again, Sum] = ?O:get_state_field(Read, [metadata, 1]),
    ?assertEqual({{x, every_kind}, 6}, {Again(x), Sum([1, 2, 3])}).

%% Their code is not there, or is that of a fun of another arity.
forged_funs_end_no_node(_Config) ->
    Free = {self(), <<"free">>},
    Fun = fun() -> Free end,
    <<131, 112, Size:32, Arity, Uniq:16/binary, Rest/binary>> = term_to_binary(Fun),
    Made = fun(A, U) -> external(<<131, 112, Size:32, A, U/binary, Rest/binary>>) end,
    Forged = [Made(Arity + 1, Uniq), Made(255, Uniq), Made(Arity, <<0:128>>)],
    [
        begin
            State = again(?O:decompress_state(forged(packed_map([{Read, Read}])))),
            #{metadata := Map} = ?O:to_map(State),
            [{Key, Value}] = maps:to_list(Map),
            ?assert(is_function(Key) andalso Key =:= Value),
            {arity, ArityOf} = erlang:fun_info(Key, arity),
            ?assertError({badfun, _}, apply(Key, lists:duplicate(ArityOf, x))),
            ?assertEqual(Key, binary_to_term(term_to_binary(Key))),
            ?assertEqual(Value, ?O:get_state_field(State, [metadata, Key]))
        end
     || Read <- Forged
    ].

%% Not a copy for the VM of each of them beside.
many_shares_take_what_they_are(_Config) ->
    Pad = binary:copy(<<"p">>, 90),
    Snapshot = alone(fun() ->
        Shares = [?O:share({N, Pad}) || N <- lists:seq(1, 20_000)],
        ?O:compress_state(?O:from_map(#{id => <<>>, shares => Shares}))
    end),
    _ = erlmcp_optimizer_state_help:settled_bytes(),
    Before = erlang:memory(total),
    State = ?O:decompress_state(Snapshot),
    Taken = erlang:memory(total) - Before,
    ?assertMatch(#{id := <<>>}, maps:with([id], ?O:to_map(State))),
    ?assert(Taken < 20_000 * 800).

%%% Version 1

version_1(_Config) ->
    V1 = <<1, 1, 1, 8:16, "conn-123", 1769000000000:64, 2:16>>,
    State = ?O:decompress_state(V1),
    #{
        id := <<"conn-123">>,
        phase := initialized,
        transport := erlmcp_transport_tcp,
        created_at := 1769000000000,
        pending_refs := Pending,
        metadata := Metadata,
        capabilities_ref := undefined
    } = ?O:to_map(State),
    ?assertEqual(#{}, Metadata),
    ?assertEqual([1, 2], lists:sort(maps:values(Pending))),
    ?assert(lists:all(fun is_reference/1, maps:keys(Pending))),
    Phases = [initialization, initialized, closed, unknown, unknown],
    Transports = [
        undefined, erlmcp_transport_tcp, erlmcp_transport_stdio, erlmcp_transport_http,
        erlmcp_transport_ws, undefined
    ],
    Read = fun(P, T) -> ?O:decompress_state(<<1, P, T, 0:16, 0:64, 0:16>>) end,
    ?assertEqual(Phases, [?O:get_state_field(Read(P, 0), phase) || P <- [0, 1, 2, 3, 255]]),
    ?assertEqual(
        Transports, [?O:get_state_field(Read(0, T), transport) || T <- [0, 1, 2, 3, 4, 5]]
    ),
    [
        ?assertEqual({error, corrupt_data}, ?O:decompress_state(binary:part(V1, 0, Length)))
     || Length <- lists:seq(1, byte_size(V1) - 1)
    ],
    ?assertEqual({error, corrupt_data}, ?O:decompress_state(<<V1/binary, 0>>)).

%% 64 bits that the writer took from a negative integer are no damage.
version_1_of_a_time_before_the_epoch(_Config) ->
    [
        begin
            State = ?O:decompress_state(<<1, 5, 7, 1:16, "a", Time:64, 3:16>>),
            ?assertEqual(Time, ?O:get_state_field(State, created_at)),
            ?assertEqual(?O:to_map(State), ?O:to_map(?O:decompress_state(?O:compress_state(State))))
        end
     || Time <- [-1, -(1 bsl 63), (1 bsl 63) - 1]
    ].

version_1_with_many_pending(_Config) ->
    State = ?O:decompress_state(<<1, 0, 0, 65_535:16, 0:(65_535 * 8), 1:64, 65_535:16>>),
    ?assertEqual(65_535, byte_size(?O:get_state_field(State, id))),
    Pending = ?O:get_state_field(State, pending_refs),
    ?assertEqual(lists:seq(1, 65_535), lists:sort(maps:values(Pending))).

other_versions(_Config) ->
    [
        ?assertEqual({error, unsupported_version}, ?O:decompress_state(<<V, Rest/binary>>))
     || V <- [0 | lists:seq(3, 255)], Rest <- [<<>>, <<0:400>>]
    ].

no_snapshots(_Config) ->
    [
        ?assertEqual({error, invalid_format}, ?O:decompress_state(No))
     || No <- [
            <<>>, <<2:3>>, <<2, 0:99>>, undefined, [], [<<1>>], [<<2>> | <<3>>], "\002", 2, -1, 1 bsl 80,
            1.0, {}, #{}, self(), make_ref(), fun() -> ok end,
            ?O:create_optimized_state(<<"a state">>)
        ]
    ].

%%% Bytes that mean harm

unknown_atoms(_Config) ->
    Known = ?O:from_map(#{id => <<>>, a_known_name => 1}),
    Patched = sealed(binary:replace(uncompressed(Known), <<"a_known_name">>, <<"un_known_n_me">>, [])),
    ?assertEqual({error, corrupt_data}, ?O:decompress_state(Patched)),
    Same = sealed(binary:replace(uncompressed(Known), <<"a_known_name">>, <<"un_known_nme">>, [])),
    ?assertEqual({error, {unknown_atom, <<"un_known_nme">>}}, ?O:decompress_state(Same)),
    %% In a fun, in a process of another node, and in one of many.
    Fun = forged(<<16#4a, 17, 131, 113, 119, 5, "nomo1", 119, 4, "nofu", 97, 0>>),
    ?assertEqual({error, {unknown_atom, <<"nomo1">>}}, ?O:decompress_state(Fun)),
    Pid = forged(<<16#4a, 22, 131, 88, 119, 6, "no@how", 1:32, 2:32, 3:32>>),
    ?assertEqual({error, {unknown_atom, <<"no@how">>}}, ?O:decompress_state(Pid)),
    %% No atom is as long.
    Long = raw(body([binary:copy(<<"a">>, 256)], [], <<0>>)),
    ?assertMatch({error, {unknown_atom, _}}, ?O:decompress_state(Long)),
    Longer = raw(body([binary:copy(<<"a">>, 1_000_000)], [], <<0>>)),
    ?assertEqual({error, corrupt_data}, ?O:decompress_state(Longer)).

claims_that_no_machine_can_meet(_Config) ->
    [
        begin
            Snapshot = sealed(<<2, Flags, 0:32, Claim:64, 0:128>>),
            ?assertEqual(30, byte_size(Snapshot)),
            ?assertEqual({error, {too_large, Claim}}, ?O:decompress_state(Snapshot))
        end
     || Claim <- [?RAW_LIMIT + 1, 1 bsl 32, 1 bsl 40, 1 bsl 43, (1 bsl 64) - 1], Flags <- [0, 1]
    ],
    Before = erlang:memory(total),
    ?assertEqual(
        {error, corrupt_data}, ?O:decompress_state(sealed(<<2, 1, 0:32, ?RAW_LIMIT:64, 0:128>>))
    ),
    ?assert(erlang:memory(total) - Before < 10_000_000).

%% 64 MiB of zeros in 260 KB: unfolded, and refused, without more memory than the limit.
an_lz4_bomb(_Config) ->
    Raw = 60_000_000,
    Matches = (Raw - 1 - 19) div 255,
    Bomb = <<16#1f, 0, 1:16/little, (binary:copy(<<255>>, Matches))/binary, 0, 16#50, 0:40>>,
    Size = 1 + 4 + 15 + 255 * Matches + 5,
    Snapshot = sealed(<<2, 1, 0:32, Size:64, Bomb/binary>>),
    ?assertEqual({error, corrupt_data}, ?O:decompress_state(Snapshot)),
    [
        ?assertEqual(
            {error, corrupt_data},
            ?O:decompress_state(sealed(<<2, 1, 0:32, Wrong:64, Bomb/binary>>))
        )
     || Wrong <- [Size - 1, Size + 1, 1, 0]
    ].

too_large_to_be_written(_Config) ->
    Large = ?O:from_map(#{id => <<>>, blob => binary:copy(<<0>>, ?RAW_LIMIT)}),
    refused(1, compress_state, [Large]),
    Just = ?O:from_map(#{id => <<>>, blob => binary:copy(<<0>>, ?RAW_LIMIT - 1000)}),
    ?assertEqual(?O:to_map(Just), ?O:to_map(again(Just))),
    %% However deep: what a state takes is written, and read.
    alone(fun() ->
        Deep = nested(4_000_000, fun(T) -> [T] end),
        ?assert(?O:get_state_field(again(?O:from_map(#{id => <<>>, deep => Deep})), deep) =:= Deep),
        Tails = #{id => <<>>, deep => nested(2_000_000, fun(T) -> [T | t] end)},
        %% Its arguments are not for a report.
        ?assertEqual(refused, try ?O:from_map(Tails) catch error:badarg -> refused end)
    end),
    Bits = ?O:from_map(#{id => <<>>, bits => <<0:(20_000_000 * 8 + 3)>>}),
    ?assertEqual(?O:to_map(Bits), ?O:to_map(again(Bits))).

every_truncation(_Config) ->
    [
        begin
            Short = binary:part(Snapshot, 0, Length),
            ?assertEqual({error, corrupt_data}, ?O:decompress_state(Short)),
            Length >= 14 andalso
                ?assertMatch({error, _}, ?O:decompress_state(sealed(Short))),
            <<Head:6/binary, _:64, Body/binary>> = <<Short/binary, 0:112>>,
            Cut = binary:part(Body, 0, max(0, Length - 14)),
            Fitted = sealed(<<Head/binary, (byte_size(Cut)):64, Cut/binary>>),
            ?assertMatch({error, _}, ?O:decompress_state(Fitted))
        end
     || Snapshot <- [uncompressed(full())], Length <- lists:seq(1, byte_size(Snapshot) - 1, 3)
    ].

%% Contents that only somebody who means harm writes: refused, or a state that can be read.
forged_contents(_Config) ->
    Small = fun(Value) -> packed_map([{<<1>>, iolist_to_binary(Value)}]) end,
    Ext = fun external/1,
    Fun = fun(Count, Size, Creator) ->
        Values = <<119, 5, "lists", 97, 1, 97, 2, Creator/binary, 106>>,
        Whole = 29 + byte_size(Values) + Size,
        Ext(<<131, 112, Whole:32, 0, 0:128, 0:32, Count:32, Values/binary>>)
    end,
    Pid = <<88, 119, 1, "n", 1:32, 2:32, 3:32>>,
    NaN = <<16#41, 0, 0, 0, 0, 0, 0, 16#f8, 16#7f>>,
    Compressed = Ext(term_to_binary(binary:copy(<<0>>, 10_000_000), [compressed])),
    Refused = [
        Small(NaN), Small(Compressed), Small(<<16#44, 0>>), Small(<<16#45, 0>>),
        Small(<<16#46, 0, 1>>), Small(<<16#4c, 0>>), Small(<<16#4d, 0>>), Small(<<16#4e, 0>>),
        Small(<<16#4b, 0, 0>>), Small(<<16#47, 0>>), Small(<<16#48, 0>>), Small(<<16#49, 0>>),
        Small(<<16#42, 3>>), Small(<<16#42, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1>>),
        Small(Ext(<<>>)), Small(Ext(<<131>>)), Small(Ext(<<131, 108, 255, 255, 255, 255>>)),
        Small(Ext(<<131, 109, 255, 255, 255, 255, 1>>)), Small(Ext(<<131, 97, 1, 97>>)),
        %% a key twice, in other words each time
        packed_map([{<<1>>, <<1>>}, {<<1>>, <<2>>}]),
        packed_map([{<<16#44, 1, 7>>, <<1>>}, {<<16#45, 1, 7>>, <<2>>}]),
        packed_map([{<<16#44, 1, 7>>, <<1>>}, {Ext([7]), <<2>>}]),
        packed_map([{<<16#44, 1, 7>>, <<1>>}, {<<16#46, 1, 7, 16#43>>, <<2>>}]),
        packed_map([{<<16#71, 7>>, <<1>>}, {Ext({7}), <<2>>}]),
        packed_map([{<<7>>, <<1>>}, {Ext(7), <<2>>}]),
        packed_map([{<<7>>, <<1>>}, {<<16#40, 14>>, <<2>>}]),
        %% terms with parts in the external format, in words that no VM has
        Small(Ext(<<131, 104, 2, 97, 1>>)), Small(Ext(<<131, 104, 1, 97, 1, 97, 1>>)),
        Small(Ext(<<131, 104, 1, 98, 5:32>>)), Small(Ext(<<131, 104, 1, 110, 1, 0, 5>>)),
        Small(Ext(<<131, 108, 1:32, 110, 4, 0, 5:32/little, 106>>)),
        Small(Ext(<<131, 108, 0:32, 106>>)),
        Small(Ext(<<131, 108, 1:32, 97, 1, 107, 1:16, 2>>)), Small(Ext(<<131, 107, 0:16>>)),
        Small(Ext(<<131, 116, 2:32, 97, 1, 97, 1, 97, 1, 97, 2>>)), Small(Ext(<<131, 116, -1:32>>)),
        Small(Ext(<<131, 104, 1, 70, 16#7ff8:16, 0:48>>)), Small(Ext(<<131, 104, 1, 119, 1, 255>>)),
        Small(Ext(<<131, 104, 1, 82, 0>>)), Small(Ext(<<131, 104, 1, 117, 0:32>>)),
        Small(Ext(<<131, 113, 119, 1, "m", 119, 1, "f", 98, 256:32>>)),
        Small(Fun(1, 0, <<97, 5>>)), Small(Fun(1, 1, Pid)), Small(Fun(0, 0, Pid)),
        Small(Fun(256, 0, Pid)),
        %% and what has a form of its own
        Small(Ext(7)), Small(Ext(atom)), Small(Ext(1.5)), Small(Ext(<<131, 109, 1:32, 1>>)),
        Small(Ext([])),
        Small(<<16#46, 1, 1, (Ext([a]))/binary>>), Small(<<16#45, 1, (Ext(7))/binary>>),
        %% a map of more entries than it has bytes
        <<16#7b, 16#ff, 16#ff, 16#ff, 0, 0:32>>, <<16#79, 255, 0>>,
        %% deeper than anything is written
        Small(pairs(1_100_000)),
        nest(1000, fun(V) -> packed_map([{V, <<1>>}]) end),
        nest(257, fun(V) -> packed_map([{V, <<1>>}]) end)
    ],
    [
        ?assertMatch({N, {error, corrupt_data}}, {N, read(forged(Metadata))})
     || {N, Metadata} <- lists:zip(lists:seq(1, length(Refused)), Refused)
    ],
    %% An arity that no tuple has.
    Tuple = <<16#78, (varint7(1 bsl 24))/binary, 0:((1 bsl 24) * 8)>>,
    ?assertEqual({error, corrupt_data}, ?O:decompress_state(forged(Small(Tuple)))),
    %% As deep as can be.
    Deep = [
        nest(256, fun(V) -> packed_map([{V, <<1>>}]) end), Small(pairs(1_000_000)),
        Small(Fun(1, 0, Pid))
        | [
            Small(nest(D, Wrap))
         || Wrap <- [
                fun(V) -> <<16#71, V/binary>> end,
                fun(V) -> <<16#46, 1, V/binary, 16#70>> end,
                fun(V) -> packed_map([{<<1>>, V}]) end,
                fun(V) -> packed_map([{<<1>>, V}, {<<2>>, <<16#4f, 172, 2, 0:2400>>}]) end
            ],
            D <- [240, 260, 1000]
        ]
    ],
    [
        begin
            State = ?O:decompress_state(forged(Metadata)),
            ?assertEqual({N, true}, {N, is_reference(State)}),
            ?assertEqual({N, true}, {N, ?O:to_map(again(State)) =:= ?O:to_map(State)})
        end
     || {N, Metadata} <- lists:zip(lists:seq(1, length(Deep)), Deep)
    ],
    %% Equal closures as two keys.
    <<Zero/float, Negative/float>> = <<0:64, 16#80, 0:56>>,
    Closure = fun(X) -> Ext(fun() -> X end) end,
    Twice = read(forged(packed_map([{Closure(Zero), <<1>>}, {Closure(Negative), <<2>>}]))),
    case Zero =:= Negative of
        true -> ?assertEqual({error, corrupt_data}, Twice);
        false -> ?assertMatch(#{metadata := Two} when map_size(Two) =:= 2, Twice)
    end.

%% A pair in a pair, this many times.
pairs(Times) ->
    <<(binary:copy(<<16#72>>, Times))/binary, 0, (binary:copy(<<1>>, Times))/binary>>.

nest(Times, Wrap) ->
    lists:foldl(fun(_, V) -> Wrap(V) end, <<0>>, lists:seq(1, Times)).

varint7(N) when N < 128 -> <<N>>;
varint7(N) -> <<1:1, N:7, (varint7(N bsr 7))/binary>>.

%% Small things in such numbers that they would take far more memory than the snapshot.
forged_multitudes(_Config) ->
    Many = 8_000_000,
    Atoms = iolist_to_binary([varint(Many), binary:copy(<<0>>, Many), 0, 1, 0]),
    Shares = iolist_to_binary([0, varint(Many), binary:copy(<<1, 5>>, Many), 1, 0]),
    Watch = watch(),
    [
        ?assertEqual({error, corrupt_data}, ?O:decompress_state(raw(Body)))
     || Body <- [Atoms, Shares]
    ],
    %% Lists of one empty tuple, each in the external format.
    One = <<16#4a, 9, 131, 108, 0, 0, 0, 1, 104, 0, 106>>,
    External = <<16#45, (varint7(2_000_000))/binary, (binary:copy(One, 2_000_000))/binary>>,
    ?assert(is_reference(?O:decompress_state(forged(packed_map([{<<1>>, External}]))))),
    Peak = peak(Watch),
    ct:pal("at most ~b MB more", [Peak div 1_000_000]),
    ?assert(Peak < 600_000_000).

a_million_mutations(_Config) ->
    Local = ?O:from_map(#{id => <<"seed">>, kinds => [K || K <- every_kind(), small(K)]}),
    Seeds = [
        Seed
     || State <- [full(), ?O:create_optimized_state(<<"c">>), Local, shares_in_shares()],
        Seed <- [?O:compress_state(State), uncompressed(State)]
    ] ++ [<<1, 1, 1, 8:16, "conn-123", 1769000000000:64, 2:16>>],
    Tuple = list_to_tuple(Seeds),
    %% Everything that this case and the test framework need is loaded.
    [{module, _} = code:ensure_loaded(Module) || Module <- [timer, rand, erlmcp_pool_help]],
    [probe(mutant(Tuple)) || _ <- lists:seq(1, 1000)],
    Atoms = erlang:system_info(atom_count),
    Schedulers = erlang:system_info(schedulers_online),
    Each = 1_000_000 div Schedulers + 1,
    Counts = counters:new(2, []),
    erlmcp_pool_help:in_parallel(Schedulers, fun(N) ->
        rand:seed(exsss, {N, 2, 3}),
        [probe(mutant(Tuple), Counts) || _ <- lists:seq(1, Each)]
    end),
    ?assertEqual(Atoms, erlang:system_info(atom_count)),
    ct:pal("~b states, ~b errors", [counters:get(Counts, 1), counters:get(Counts, 2)]),
    %% The inner decoder was reached.
    ?assert(counters:get(Counts, 1) > 1000).

small(Term) ->
    erts_debug:flat_size(Term) < 200 andalso byte_size(term_to_binary(Term)) < 500.

shares_in_shares() ->
    Inner = ?O:share([inner, make_ref()]),
    ?O:from_map(#{id => <<>>, s => [?O:share({1, Inner}), Inner, ?O:share({2, Inner})]}).

probe(Bytes) ->
    probe(Bytes, counters:new(2, [])).

probe(Bytes, Counts) ->
    case ?O:decompress_state(Bytes) of
        {error, Reason} when
            Reason =:= corrupt_data; Reason =:= unsupported_version; Reason =:= invalid_format
        ->
            counters:add(Counts, 2, 1);
        {error, {unknown_atom, Name}} when is_binary(Name) ->
            counters:add(Counts, 2, 1);
        {error, {too_large, Size}} when is_integer(Size), Size > 0 ->
            counters:add(Counts, 2, 1);
        State ->
            #{id := Id} = ?O:to_map(State),
            true = is_binary(Id),
            counters:add(Counts, 1, 1)
    end.

mutant(Seeds) ->
    Seed = element(rand:uniform(tuple_size(Seeds)), Seeds),
    case rand:uniform(20) of
        1 -> rand:bytes(rand:uniform(60));
        2 -> <<2, (rand:bytes(rand:uniform(60)))/binary>>;
        3 -> <<1, (rand:bytes(rand:uniform(60)))/binary>>;
        N when N < 7 -> mutate(Seed);
        _ -> fitted(mutate(Seed))
    end.

%% The VM makes such a fun from the external format, and dies when it is to write it down again.
a_fun_that_no_process_made(_Config) ->
    Free = {self(), <<"free">>},
    Snapshot = uncompressed(?O:from_map(#{id => <<>>, f => fun() -> Free end})),
    Pid = term_to_binary(self()),
    Size = byte_size(Pid) - 1,
    Node = byte_size(Pid) - 1 - 12,
    <<131, Head:Node/binary, _/binary>> = Pid,
    Places = binary:matches(Snapshot, Head),
    ?assert(length(Places) >= 1),
    %% Another term of the same length, in the first place: that of the creator.
    [{At, _} | _] = Places,
    <<Before:At/binary, _:Size/binary, After/binary>> = Snapshot,
    Forged = sealed(<<Before/binary, 109, (Size - 5):32, 0:((Size - 5) * 8), After/binary>>),
    ?assertEqual({error, corrupt_data}, ?O:decompress_state(Forged)),
    ?assertMatch(#{f := _}, ?O:to_map(?O:decompress_state(Snapshot))).

%% Changes a few bytes, or cuts a piece out, or puts one in twice.
mutate(Bytes) ->
    Size = byte_size(Bytes),
    At = rand:uniform(Size) - 1,
    <<Head:At/binary, Byte, Tail/binary>> = Bytes,
    case rand:uniform(8) of
        1 -> <<Head/binary, Tail/binary>>;
        2 -> <<Head/binary, Byte, Byte, Tail/binary>>;
        3 -> <<Head/binary, (binary:part(Bytes, 0, min(Size, 20)))/binary, Tail/binary>>;
        4 -> mutate(<<Head/binary, (Byte bxor (1 bsl rand:uniform(8) - 1)), Tail/binary>>);
        5 -> mutate(<<Head/binary, (rand:uniform(256) - 1), Tail/binary>>);
        _ -> <<Head/binary, (rand:uniform(256) - 1), Tail/binary>>
    end.

%% With a checksum that fits, and often a length that fits as well.
fitted(<<2, 0, _:32, _:64, Body/binary>>) -> raw(Body);
fitted(<<2, _, _:32, _/binary>> = Bytes) -> sealed(Bytes);
fitted(Bytes) -> Bytes.
