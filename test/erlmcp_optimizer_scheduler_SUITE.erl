%% What one process does to others: gaps of schedulers, counters that all move, memory beside what a
%% call returns. Times are compared with others of the same run, never with a clock alone.
-module(erlmcp_optimizer_scheduler_SUITE).

-include_lib("stdlib/include/assert.hrl").

-import(erlmcp_optimizer_scheduler_help, [attempts/2, counters/2, gap_is_bounded/2, on_two_schedulers/0]).
-import(erlmcp_optimizer_state_help, [alone/1, nested/2]).

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    a_dropped_chain_of_shares_stalls_no_scheduler/1,
    a_dropped_chain_of_states_stalls_no_scheduler/1,
    a_dropped_share_of_shares_stalls_no_scheduler/1,
    reads_on_two_schedulers_move_no_common_counter/1,
    message_buffers_on_two_schedulers_move_no_common_counter/1,
    an_update_below_a_path_does_not_copy_other_references/1,
    setting_a_share_costs_what_setting_a_field_costs/1,
    reading_a_snapshot_makes_no_second_form_of_its_shares/1,
    zeros_of_message_buffers_force_no_collections/1,
    closures_take_a_small_multiple_of_their_heap/1,
    a_closure_over_a_small_part_lets_the_whole_go/1,
    small_integers_of_a_deep_list_are_counted_as_they_lie/1
]).

-define(O, erlmcp_connection_optimizer).
-define(P, erlmcp_memory_pool).
-define(DROPPED, 60_000).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        a_dropped_chain_of_shares_stalls_no_scheduler,
        a_dropped_chain_of_states_stalls_no_scheduler,
        a_dropped_share_of_shares_stalls_no_scheduler,
        reads_on_two_schedulers_move_no_common_counter,
        message_buffers_on_two_schedulers_move_no_common_counter,
        an_update_below_a_path_does_not_copy_other_references,
        setting_a_share_costs_what_setting_a_field_costs,
        reading_a_snapshot_makes_no_second_form_of_its_shares,
        zeros_of_message_buffers_force_no_collections,
        closures_take_a_small_multiple_of_their_heap,
        a_closure_over_a_small_part_lets_the_whole_go,
        small_integers_of_a_deep_list_are_counted_as_they_lie
    ].

init_per_suite(Config) ->
    erlmcp_optimizer_state_help:default(),
    Config.

end_per_suite(_Config) ->
    ok.

init_per_testcase(_Case, Config) ->
    erlmcp_pool_help:clear(),
    _ = erlmcp_pool_help:start(),
    Config.

end_per_testcase(_Case, _Config) ->
    erlmcp_pool_help:clear().

%%% Gaps

a_dropped_chain_of_shares_stalls_no_scheduler(_Config) ->
    gap_is_bounded(chain_of_shares, ?DROPPED).

a_dropped_chain_of_states_stalls_no_scheduler(_Config) ->
    gap_is_bounded(chain_of_states, ?DROPPED).

a_dropped_share_of_shares_stalls_no_scheduler(_Config) ->
    gap_is_bounded(share_of_shares, ?DROPPED).

%%% Contention

%% Whatever the machine: binaries that processes of two schedulers hold have no counter in common.
reads_on_two_schedulers_move_no_common_counter(_Config) ->
    Value = fun(Count) -> [<<I:32, 0:768>> || I <- lists:seq(1, Count)] end,
    Reads = lists:append([
        [fun() -> ?O:find_shared(Share, [v]) end, fun() -> ?O:shared(Share) end, fun() ->
            ?O:get_state_field(State, v)
        end]
     || Count <- [1, 10, 100],
        Content <- [#{v => Value(Count)}],
        Share <- [?O:share(Content)],
        State <- [?O:from_map(Content#{id => <<>>})]
    ]),
    apart(Reads).

message_buffers_on_two_schedulers_move_no_common_counter(_Config) ->
    apart([fun() -> ?P:acquire_message_buffer(Size) end || Size <- [1, 1024, 65536]]).

apart(Reads) ->
    case on_two_schedulers() of
        ok -> lists:foreach(fun apart_in_one/1, Reads);
        Skip -> Skip
    end.

apart_in_one(Read) ->
    {A, InA} = counters(1, Read),
    {B, InB} = counters(2, Read),
    Common = [Counter || Counter <- InA, lists:member(Counter, InB)],
    [exit(Pid, kill) || Pid <- [A, B]],
    ?assertEqual([], Common).

within(What, Ratio, Limit) ->
    ct:pal("~p: ~.2f", [What, Ratio]),
    case Ratio =< Limit of
        true -> ok;
        false -> {What, Ratio}
    end.

%%% Single operations

%% What is copied grows with their number.
an_update_below_a_path_does_not_copy_other_references(_Config) ->
    Shares = [?O:share({N, x}) || N <- lists:seq(1, 5000)],
    Metadata = #{user_id => 1, locale => en},
    State = fun(Fields) -> ?O:from_map(maps:merge(#{id => <<>>, metadata => Metadata}, Fields)) end,
    Update = fun(S) -> fun() -> ?O:update_state_field(S, [metadata, user_id], 7) end end,
    Plain = State(#{}),
    [
        attempts(3, fun() -> ratio(Where, 4.0, Update(Sharing), Update(Plain)) end)
     || {Where, Sharing} <- [
            {in_another_field, State(#{shares => Shares})},
            {beside_the_key, State(#{metadata => Metadata#{shares => Shares}})}
        ]
    ],
    ok.

setting_a_share_costs_what_setting_a_field_costs(_Config) ->
    State = ?O:create_optimized_state(<<"connection-000001">>),
    Share = ?O:share(#{tools => lists:seq(1, 100)}),
    attempts(5, fun() ->
        ratio(
            set_share,
            1.9,
            fun() -> ?O:update_state_field(State, capabilities_ref, Share) end,
            fun() -> ?O:update_state_field(State, transport, tcp) end
        )
    end).

ratio(Name, Limit, Fun, Than) ->
    #{this := This, than := Other} =
        erlmcp_bench_contention:interleaved(#{this => Fun, than => Than}, 101),
    within(Name, This / Other, Limit).

%%% Memory

%% At most some times what lies in the snapshot, at the peak as afterwards, and about what the
%% state says that it takes.
reading_a_snapshot_makes_no_second_form_of_its_shares(_Config) ->
    Count = 20_000,
    #{peak := Peak, rest := Rest, state := State} = Read = erlmcp_bench_held:read_snapshot(Count),
    ct:pal("~p", [Read]),
    ?assert(Rest =< Count * 700),
    ?assert(Peak =< Count * 1000),
    ?assert(Peak =< 2 * State),
    ?assert(abs(Rest - State) =< State div 4).

zeros_of_message_buffers_force_no_collections(_Config) ->
    Collections = erlmcp_bench_held:pairs(2000),
    ct:pal("~b collections", [Collections]),
    ?assert(Collections =< 100).

closures_take_a_small_multiple_of_their_heap(_Config) ->
    Closures = erlmcp_bench_held:closures(18),
    ct:pal("~p", [Closures]),
    #{heap := Heap, estimate := Estimate, taken := Taken} = Closures,
    ?assert(Taken =< 4 * Heap),
    ?assert(abs(Estimate - Taken) =< 0.15 * Taken).

a_closure_over_a_small_part_lets_the_whole_go(_Config) ->
    #{binaries := Binaries} = Held = erlmcp_bench_held:closure_over_part(),
    ct:pal("~p", [Held]),
    ?assert(Binaries =< 1_000_000).

small_integers_of_a_deep_list_are_counted_as_they_lie(_Config) ->
    Count = 500_000,
    {Taken, Estimate} = alone(fun() ->
        Deep = nested(140, fun(leaf) -> lists:seq(1, Count); (T) -> [T] end),
        Before = erlmcp_bench_measure:settled_total(),
        State = ?O:from_map(#{id => <<>>, deep => Deep}),
        {erlmcp_bench_measure:settled_total() - Before, ?O:estimate_memory(State)}
    end),
    ct:pal("~b taken, ~b by its own account", [Taken, Estimate]),
    ?assert(Taken >= Count),
    ?assert(abs(Estimate - Taken) =< Taken div 5).
