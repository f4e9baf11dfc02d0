%% What states, shares and snapshots promise about the node: true sizes, memory that comes back,
%% schedulers that are not held up, a name that comes later.
-module(erlmcp_optimizer_node_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_optimizer_state_help, [alone/1, nested/2]).
-import(erlmcp_wait_help, [until/1]).

-export([all/0, init_per_suite/1, end_per_suite/1]).
-export([
    sizes_add_up/1,
    sizes_are_what_the_allocator_gave/1,
    a_hundred_megabytes_and_back/1,
    large_jobs_are_left_to_dirty_schedulers/1,
    unaligned_binaries_are_copied_on_dirty_schedulers/1,
    what_grows_is_not_copied/1,
    a_name_that_comes_later/1,
    properties/1
]).

%% Called in a node of its own.
-export([
    before_and_after_the_name/0,
    copies_of_unaligned_binaries/0
]).

-define(O, erlmcp_connection_optimizer).

all() ->
    [
        sizes_add_up,
        sizes_are_what_the_allocator_gave,
        a_hundred_megabytes_and_back,
        large_jobs_are_left_to_dirty_schedulers,
        unaligned_binaries_are_copied_on_dirty_schedulers,
        what_grows_is_not_copied,
        a_name_that_comes_later,
        properties
    ].

init_per_suite(Config) ->
    erlmcp_optimizer_state_help:default(),
    Config.

end_per_suite(_Config) ->
    erlmcp_optimizer_state_help:default().

%%% Sizes

sizes_add_up(_Config) ->
    States = [State || Shape <- shapes(), {_, Make} <- [Shape], State <- [Make(1)]],
    [
        begin
            erlmcp_optimizer_state_help:form(Form),
            State = ?O:from_map(?O:to_map(Native)),
            Info = ?O:state_size_info(State),
            Parts = [base, id, transport, capabilities_ref, metadata, pending_refs, extra],
            ?assertEqual(
                lists:sort([total_bytes, metadata_map_size, pending_count, shared_bytes | Parts]),
                lists:sort(maps:keys(Info))
            ),
            #{total_bytes := Total, metadata_map_size := M, pending_count := P} = Info,
            ?assertEqual(Total, lists:sum([maps:get(Part, Info) || Part <- Parts])),
            ?assert(lists:all(fun(N) -> is_integer(N) andalso N >= 0 end, maps:values(Info))),
            ?assertEqual(Total, ?O:estimate_memory(State)),
            ?assertEqual(map_size(?O:get_state_field(State, metadata)), M),
            ?assertEqual(map_size(?O:get_state_field(State, pending_refs)), P)
        end
     || Native <- States, Form <- [compact, plain]
    ],
    erlmcp_optimizer_state_help:default(),
    %% Each part counts where it belongs, and a share not at all.
    Large = binary:copy(<<"x">>, 10_000),
    Share = ?O:share({Large, make_ref()}),
    [
        begin
            erlmcp_optimizer_state_help:form(Form),
            S0 = ?O:create_optimized_state(<<"c">>),
            [
                ?assert(maps:get(Part, ?O:state_size_info(?O:update_state_field(S0, Field, V))) >= 10_000)
             || {Part, Field, V} <- [
                    {id, id, Large}, {transport, transport, Large}, {metadata, metadata, #{k => Large}},
                    {capabilities_ref, capabilities_ref, Large}, {extra, other, Large},
                    {pending_refs, pending_refs, #{make_ref() => Large}}
                ]
            ],
            Shared = ?O:state_size_info(?O:update_state_field(S0, [metadata, k], [Share, Share])),
            #{shared_bytes := Bytes, total_bytes := Total} = Shared,
            ?assert(Bytes > 10_000 andalso Bytes < 15_000),
            ?assert(Total < 2_000)
        end
     || Form <- [compact, plain]
    ],
    erlmcp_optimizer_state_help:default().

shapes() ->
    New = fun(N) -> ?O:create_optimized_state(<<"connection-", (integer_to_binary(N))/binary>>) end,
    Filled = fun(Metadata, Pending) ->
        fun(N) ->
            S1 = ?O:update_state_field(New(N), metadata, Metadata(N)),
            Refs = maps:from_list([{make_ref(), I} || I <- lists:seq(1, Pending)]),
            ?O:update_state_field(S1, pending_refs, Refs)
        end
    end,
    [
        {tiny, New},
        {typical, Filled(fun(N) -> #{user => N, ip => <<"10.0.0.1">>, <<"agent">> => "x"} end, 3)},
        {two_kilobytes, Filled(fun(N) -> #{blob => binary:copy(<<N:32>>, 500)} end, 1)},
        {hundred_keys, Filled(
            fun(N) -> maps:from_list([{I, {N, integer_to_binary(I)}} || I <- lists:seq(1, 100)]) end,
            0
        )},
        {resources, Filled(fun(N) -> #{counter => atomics:new(1, []), f => fun() -> N end} end, 0)},
        {deep, fun(N) -> ?O:update_state_field(New(N), deep, nested(400, fun(T) -> {T} end)) end}
    ].

sizes_are_what_the_allocator_gave(_Config) ->
    [alone(fun() -> compare(Shape, Make, 10_000) end) || {Shape, Make} <- shapes()].

%% The states are kept in an ETS table, so that no heap of a process comes into it; the table's own
%% memory, as it says, is taken off. What was freed comes back late where another scheduler's
%% allocator has to take it, hence the wait.
compare(Shape, Make, Count) ->
    _ = Make(0),
    Table = ets:new(states, []),
    Before = settled(),
    Empty = ets:info(Table, memory),
    [ets:insert(Table, {N, Make(N)}) || N <- lists:seq(1, Count)],
    Kept = (ets:info(Table, memory) - Empty) * erlang:system_info(wordsize),
    Estimate = fun({_, State}, Sum) -> Sum + ?O:estimate_memory(State) end,
    Estimated = ets:foldl(Estimate, 0, Table),
    until(fun() ->
        Growth = settled() - Before - Kept,
        ct:pal("~p: ~p bytes a state, estimated ~p", [Shape, Growth / Count, Estimated / Count]),
        abs(Growth - Estimated) =< Estimated / 10
    end).

%% What is allocated when nothing is on its way back any more.
settled() ->
    erlang:garbage_collect(),
    settled(erlang:memory(total)).

settled(Last) ->
    %% Every scheduler wakes up and sees what others have freed for it.
    erlmcp_pool_help:in_parallel(4 * erlang:system_info(schedulers), fun(_) ->
        lists:seq(1, 10_000)
    end),
    timer:sleep(300),
    case erlang:memory(total) of
        Now when abs(Now - Last) < 20_000 -> Now;
        Now -> settled(Now)
    end.

a_hundred_megabytes_and_back(_Config) ->
    {ok, Pool} = erlmcp_memory_pool:start_link(),
    unlink(Pool),
    Before = settled(),
    MB = 1_000_000,
    alone(fun() ->
        Blob = fun(N) -> binary:copy(<<N>>, MB) end,
        States = [?O:from_map(#{id => <<>>, blob => Blob(N)}) || N <- lists:seq(1, 40)],
        Shares = [?O:share(Blob(N)) || N <- lists:seq(41, 80)],
        Buffers = [
            begin
                {ok, Ref, _} = erlmcp_memory_pool:acquire_message_buffer(MB),
                {ok, MB} = erlmcp_memory_pool:append_message_buffer(Ref, Blob(N)),
                Ref
            end
         || N <- lists:seq(81, 100)
        ],
        erlang:garbage_collect(),
        ?assert(erlang:memory(total) - Before >= 100 * MB),
        ?assertEqual(100, length(States) + length(Shares) + length(Buffers))
    end),
    until(fun() -> erlang:memory(total) - Before < 10 * MB end),
    gen_server:stop(Pool).

%%% Schedulers

%% What a normal scheduler does of a large job: it has a dirty one do it.
large_jobs_are_left_to_dirty_schedulers(_Config) ->
    Small = ?O:create_optimized_state(<<"s">>),
    Large = [
        maps:from_list([{I, I} || I <- lists:seq(1, 8_000)]),
        lists:seq(1, 20_000),
        binary:copy(<<"x">>, 400_000),
        nested(10_000, fun(T) -> {T} end)
    ],
    [
        begin
            ?assertMatch({dirty, _}, call(share_new, [Term, [], 0])),
            ?assertMatch({dirty, _}, call(state_update, [Small, field, Term, [], 0])),
            Fields = #{id => <<>>, created_at => 1, f => Term},
            ?assertMatch({dirty, _}, call(state_from_fields, [Fields, []])),
            ?assertMatch({dirty, _}, call(state_get, [Small, [metadata, Term], []])),
            ?assertMatch({dirty, _}, call(state_remove, [Small, [metadata, Term], []]))
        end
     || Term <- Large
    ],
    ?assertMatch({dirty, _}, call(state_new, [binary:copy(<<"x">>, 400_000), 0])),
    Keys = [metadata | [binary:copy(<<I>>, 30_000) || I <- lists:seq(1, 63)]],
    ?assertMatch({dirty, _}, call(state_get, [Small, Keys, []])),
    ?assertMatch({dirty, _}, call(state_update, [Small, Keys, 1, [], 0])),
    ?assertMatch({dirty, _}, call(share_find, [?O:share(1), Keys, []])),
    Merged = maps:from_list([{I, I} || I <- lists:seq(1, 500)]),
    ?assertMatch({dirty, _}, call(state_update, [Small, metadata, Merged, [], 0])),
    State = ?O:update_state_field(Small, metadata, hd(Large)),
    ?assertMatch({dirty, _}, call(state_get, [State, metadata, []])),
    ?assertMatch({dirty, _}, call(state_fields, [State])),
    ?assertMatch({dirty, _}, call(state_compress, [State, true])),
    ?assertMatch({dirty, _}, call(state_decompress, [<<1, 0, 0, 0:16, 1:64, 65_535:16>>, 0])),
    Refs = [?O:share({I, x}) || I <- lists:seq(1, 200)],
    Sharing = ?O:from_map(#{id => <<>>, refs => Refs}),
    ?assertMatch({dirty, _}, call(state_decompress, [?O:compress_state(Sharing), 0])),
    Copied = maps:from_list([{I, I} || I <- lists:seq(1, 20_000)]),
    ?assertMatch({dirty, _}, call(share_get, [?O:share(Copied)])),
    ?assertMatch({dirty, _}, call(share_find, [?O:share(#{k => Copied}), [k], []])),
    Part = call(share_find, [?O:share(#{k => Copied, l => #{a => 1}}), [l], []]),
    ?assertEqual({normal, {ok, #{a => 1}}}, Part),
    Wide = ?O:from_map(#{id => <<>>, f => maps:from_list([{I, <<I:512>>} || I <- lists:seq(1, 9_000)])}),
    ?assertMatch({dirty, _}, call(state_sizes, [Wide])),
    ?assertMatch({dirty, _}, call(state_decompress, [?O:compress_state(Wide), 0])),
    ?assertEqual({dirty, ok}, call(state_cleanup, [Wide])),
    ?assertEqual({normal, ok}, call(state_cleanup, [?O:create_optimized_state(<<"s">>)])),
    %% A small part of it is no large job.
    ?assertEqual({normal, {ok, 7}}, call(state_get, [State, [metadata, 7], []])),
    ?assertMatch({normal, _}, call(state_update, [State, [metadata, 7], 8, [], 0])).

%% The VM copies a binary that does not begin at a byte before a native function sees it.
unaligned_binaries_are_copied_on_dirty_schedulers(_Config) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    try
        [{0, Dirty} | Normal] = peer:call(Peer, ?MODULE, copies_of_unaligned_binaries, [], 60_000),
        ?assert(Dirty > 50_000_000),
        [?assert(Bytes < 5_000_000, {scheduler, Id, Bytes}) || {Id, Bytes} <- Normal]
    after
        peer:stop(Peer)
    end.

%% The most bytes that each scheduler has had for copies at a time; the dirty ones together are 0.
copies_of_unaligned_binaries() ->
    {ok, _} = erlmcp_memory_pool:start_link(),
    <<_:1, Large:50_000_000/binary, _/bits>> = binary:copy(<<"x">>, 50_000_001),
    {ok, Buffer, _} = erlmcp_memory_pool:acquire_message_buffer(1),
    [
        {error, {message_too_large, _}} = erlmcp_memory_pool:append_message_buffer(Buffer, Data)
     || Data <- [Large, [Large, $\n], ["a", [<<"b">> | Large]], [[[], Large] | <<"c">>]]
    ],
    true = is_reference(?O:share(Large)),
    {error, unsupported_version} = ?O:decompress_state(Large),
    State = ?O:create_optimized_state(Large),
    Changed = ?O:update_state_field(State, [metadata, a], Large),
    true = Large =:= ?O:get_state_field(Changed, [metadata, a]),
    [{Id, most(Figures)} || {instance, Id, Figures} <- erlang:system_info({allocator, temp_alloc})].

%% A vector that grows is given more memory by the VM, where it lies if that can be.
what_grows_is_not_copied(_Config) ->
    Before = reallocations(),
    Ref = ?O:share(lists:seq(1, 1_000_000)),
    ?assert(reallocations() - Before >= 10),
    ?assertEqual(lists:seq(1, 1_000_000), ?O:shared(Ref)).

reallocations() ->
    lists:sum([
        Billions * 1_000_000_000 + Count
     || {instance, _, Figures} <- erlang:system_info({allocator, driver_alloc}),
        {calls, Calls} <- Figures,
        {driver_realloc, Billions, Count} <- Calls
    ]).

most(Figures) ->
    lists:sum([
        Most
     || {Carriers, Of} <- Figures,
        Carriers =:= mbcs orelse Carriers =:= sbcs,
        {blocks, Blocks} <- Of,
        {_Allocator, Sizes} <- Blocks,
        {size, _Now, _Lately, Most} <- Sizes
    ]).

call(Function, Args) ->
    erlmcp_optimizer_lane_help:call(Function, Args).

%%% The node

a_name_that_comes_later(_Config) ->
    case os:find_executable("epmd") of
        false ->
            {skip, "no epmd: a node cannot get a name here"};
        _ ->
            Paths = lists:append([
                ["-pa", filename:dirname(code:which(Module))]
             || Module <- [?MODULE, ?O]
            ]),
            Erl = os:find_executable("erl"),
            Eval = lists:concat([
                "try ", ?MODULE, ":before_and_after_the_name() of ok -> halt(0) ",
                "catch C:R:S -> io:format(\"~p~n\", [{C, R, S}]), halt(1) end."
            ]),
            Port = open_port(
                {spawn_executable, Erl},
                [exit_status, stderr_to_stdout, binary, {args, ["-noshell" | Paths] ++ ["-eval", Eval]}]
            ),
            ?assertEqual({0, <<>>}, output(Port, <<>>))
    end.

output(Port, Output) ->
    receive
        {Port, {data, Data}} -> output(Port, <<Output/binary, Data/binary>>);
        {Port, {exit_status, Status}} -> {Status, Output}
    after 60_000 -> ct:fail(Output)
    end.

before_and_after_the_name() ->
    false = is_alive(),
    Counter = atomics:new(1, []),
    Locals = [self(), make_ref(), Counter, alias(), ?O:share(content), hd(erlang:ports())],
    Map = maps:from_list([{Local, Local} || Local <- Locals]),
    State = ?O:from_map(#{id => <<>>, metadata => Map, list => Locals}),
    Share = ?O:share({Locals, Map}),
    Find = ?O:share(Map),
    os:cmd("epmd -daemon"),
    logger:set_primary_config(level, none),
    Name = list_to_atom("erlmcp_name_" ++ os:getpid()),
    ok = get_name(Name, 100),
    true = is_alive(),
    true = Locals =:= ?O:get_state_field(State, list),
    true = Map =:= ?O:get_state_field(State, metadata),
    true = {Locals, Map} =:= ?O:shared(Share),
    [true = Local =:= ?O:get_state_field(State, [metadata, Local]) || Local <- Locals],
    [{ok, Local} = ?O:find_shared(Find, [Local]) || Local <- Locals],
    true = Share =:= ?O:share({Locals, Map}),
    true = ?O:share(content) =:= lists:nth(5, Locals),
    Read = ?O:decompress_state(?O:compress_state(State)),
    true = Locals =:= ?O:get_state_field(Read, list),
    true = Map =:= ?O:get_state_field(Read, metadata),
    ok = net_kernel:stop(),
    true = Locals =:= ?O:get_state_field(State, list),
    ok.

%% The daemon takes a moment to start.
get_name(Name, Left) ->
    case net_kernel:start([Name, shortnames]) of
        {ok, _} ->
            ok;
        {error, _} when Left > 0 ->
            timer:sleep(100),
            get_name(Name, Left - 1)
    end.

%%% Properties

properties(_Config) ->
    case code:which(proper) of
        non_existing -> {skip, "PropEr is not installed"};
        _ -> ?assert(erlmcp_optimizer_prop:check())
    end.
