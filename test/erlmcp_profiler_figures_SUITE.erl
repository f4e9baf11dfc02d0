%% What takes the memory, as the profiler tells an operator: figures that add up, and the metrics of
%% a scrape.
-module(erlmcp_profiler_figures_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include("erlmcp_memory.hrl").

-import(erlmcp_pool_help, [holding/1, gone/1]).
-import(erlmcp_wait_help, [until/1]).

-compile([export_all, nowarn_export_all]).

-define(P, erlmcp_memory_profiler).
-define(O, erlmcp_connection_optimizer).
-define(POOL, erlmcp_memory_pool).
-define(HELP, erlmcp_pool_help).
-define(MB, 1048576).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        each_kind_is_counted_and_comes_back,
        idle_states_and_blocks_are_apart,
        versions_take_what_they_take_together,
        a_parked_term_counts_once,
        the_largest_shares_are_found_among_many,
        holders_are_values,
        a_summary_shows_keys_and_no_values,
        figures_take_as_long_whatever_there_is,
        kinds_add_up_to_the_resident_size,
        each_byte_is_in_its_kind,
        many_connections_rise_and_fall,
        the_report_has_the_figures,
        allocators_switched_off,
        metrics_follow_the_conventions,
        pauses_are_a_histogram,
        labels_are_escaped,
        promtool_finds_nothing,
        a_prometheus_scrapes_it,
        top_processes_are_found,
        looking_for_processes_ends_in_time
    ].

init_per_testcase(_Case, Config) ->
    ?HELP:clear(),
    ?HELP:start(),
    Config.

end_per_testcase(_Case, _Config) ->
    _ = ?P:stop_profiling(),
    ?HELP:clear(),
    ok.

%%% Inventory

each_kind_is_counted_and_comes_back(_Config) ->
    collect(),
    Before = counts(),
    {Holder, Held} = holding(fun() ->
        {
            ?HELP:acquire(30),
            [?O:create_optimized_state(<<"a">>) || _ <- lists:seq(1, 20)],
            [?O:share({each_kind, N}) || N <- lists:seq(1, 10)],
            [buffer(10) || _ <- lists:seq(1, 5)],
            [?O:park({parked, N}) || N <- lists:seq(1, 7)]
        }
    end),
    ?assert(is_tuple(Held)),
    #{pooled_states := Pooled} = After = ?P:inventory(),
    Expected = #{
        pooled_states => 30, compact_states => 20, shares => 10, buffers => 5, parked => 7
    },
    ?assertEqual(Expected, minus(counts(After), Before)),
    [?assert(maps:get(bytes, maps:get(Kind, After)) > 0, Kind) || Kind <- maps:keys(Expected)],
    %% A state takes more than its header, and less than a page.
    ?assert(maps:get(bytes, Pooled) div 30 < 4096),
    gone(Holder),
    until(fun() -> collect(), counts() =:= Before end).

idle_states_and_blocks_are_apart(_Config) ->
    #{pooled_states := #{count := 0, idle := Idle}} = ?P:inventory(),
    ?assert(Idle >= 1000),
    States = ?HELP:acquire(10),
    ?assertMatch(#{pooled_states := #{count := 10, idle := Left}} when Left =:= Idle - 10,
        ?P:inventory()),
    ?HELP:release(States),
    ?assertMatch(#{pooled_states := #{count := 0, idle := Idle}}, ?P:inventory()).

%% A hundred versions of a large state have nearly all of it in common.
versions_take_what_they_take_together(_Config) ->
    Large = ?O:from_map(#{id => <<"a">>, metadata => maps:from_list([
        {N, binary:copy(<<N:32>>, 100)} || N <- lists:seq(1, 20000)
    ])}),
    One = ?O:estimate_memory(Large),
    Versions = [?O:update_state_field(Large, [metadata, N], N) || N <- lists:seq(1, 100)],
    #{compact_states := #{bytes := Bytes}} = ?P:inventory(),
    ?assert(Bytes >= One),
    ?assert(Bytes < 3 * One, {Bytes, One}),
    #{states := States} = ?P:memory_breakdown(),
    ?assert(States < 3 * One + ?MB),
    ?assertEqual(100, length(Versions)).

%% Whoever holds it: a holder counts its own link to it.
a_parked_term_counts_once(_Config) ->
    collect(),
    {Terms, Size, Link} = {500, 340, 64},
    #{parked := #{count := Count, bytes := Bytes}} = Before = ?P:inventory(),
    #{memory := #{live_bytes := Live}} = ?POOL:pool_info(),
    #{parked := Broken} = ?P:memory_breakdown(),
    %% Each smaller than what would be a share.
    Parked = [?O:park({N, binary:copy(<<N:32>>, Size div 4)}) || N <- lists:seq(1, Terms)],
    Chained = ?O:park({chain, Parked}),
    #{parked := #{count := After, bytes := Once}} = ?P:inventory(),
    ?assertEqual(Count + Terms + 1, After),
    ?assert(Once - Bytes > Terms * Size, Once - Bytes),
    ?assert(Once - Bytes < 3 * Terms * Size, Once - Bytes),
    Held = {
        [element(2, ?POOL:acquire_connection_state(#{held => Parked})) || _ <- lists:seq(1, 20)],
        [?O:from_map(#{id => <<"a">>, held => [Chained | Parked]}) || _ <- lists:seq(1, 20)],
        [?O:share({N, Parked}) || N <- lists:seq(1, 20)]
    },
    #{parked := #{bytes := Still}} = Inventory = ?P:inventory(),
    ?assertEqual(Once, Still),
    [
        begin
            #{Kind := #{bytes := Had}} = Before,
            #{Kind := #{bytes := Has}} = Inventory,
            ?assert(Has - Had < 20 * Terms * Link, {Kind, Has - Had})
        end
     || Kind <- [pooled_states, compact_states, shares]
    ],
    #{memory := #{live_bytes := LiveNow}} = ?POOL:pool_info(),
    ?assert(LiveNow - Live < 20 * Terms * Link, LiveNow - Live),
    #{parked := Mended} = ?P:memory_breakdown(),
    ?assertEqual(Once - Bytes, Mended - Broken),
    [
        begin
            #{total_bytes := Total, extra := Extra} = ?O:state_size_info(State),
            ?assertEqual(Total, ?O:estimate_memory(State)),
            ?assert(Extra =< Total andalso Total < Terms * Link, {Extra, Total})
        end
     || State <- element(2, Held)
    ],
    ?assertEqual(3, tuple_size(Held)).

the_largest_shares_are_found_among_many(_Config) ->
    Text = fun(Length) -> binary:copy(<<"x">>, Length) end,
    Shares = [?O:share({N, Text(10 * N)}) || N <- lists:seq(1, 5000)],
    Large = [?O:share({large, Text(1000000 + 10000 * N)}) || N <- lists:seq(1, 9)],
    #{shares := #{largest := Largest, count := Count}} = ?P:inventory(),
    ?assertEqual(10, length(Largest)),
    ?assert(Count >= 5009),
    Bytes = [maps:get(bytes, Share) || Share <- Largest],
    ?assertEqual(lists:reverse(lists:sort(Bytes)), Bytes),
    ?assertEqual(9, length([B || B <- Bytes, B > 1000000, B < 1100000])),
    ?assert(lists:last(Bytes) > 50000),
    ?assertEqual(5009, length(Shares) + length(Large)).

holders_are_values(_Config) ->
    Catalogue = ?O:share(#{tools => binary:copy(<<"t">>, 3000000)}),
    Holders = fun() ->
        #{shares := #{largest := [#{holders := Count} | _]}} = ?P:inventory(),
        Count
    end,
    ?assertEqual(1, Holders()),
    {Pids, _} = lists:unzip([
        holding(fun() ->
            [
                ?O:update_state_field(?O:create_optimized_state(<<>>), capabilities_ref, Catalogue)
             || _ <- lists:seq(1, 50)
            ]
        end)
     || _ <- lists:seq(1, 4)
    ]),
    ?assertEqual(200, Holders()),
    lists:foreach(fun ?HELP:gone/1, Pids),
    until(fun() -> Holders() =:= 1 end),
    ?assert(is_reference(Catalogue)).

a_summary_shows_keys_and_no_values(_Config) ->
    Padding = fun(Megabytes) -> binary:copy(<<"p">>, Megabytes * 1000000) end,
    %% Each is larger than the one before, which may still be there.
    Summary = fun(Term) ->
        Share = ?O:share(Term),
        #{shares := #{largest := [#{summary := Text} | _]}} = ?P:inventory(),
        ?assert(is_reference(Share)),
        Text
    end,
    Map = Summary(#{tools => Padding(2), <<"secret">> => <<"hunter2">>, 7 => x}),
    ?assertEqual(nomatch, binary:match(Map, <<"hunter2">>)),
    ?assertMatch(<<"map of 3: ", _/binary>>, Map),
    [?assertMatch({_, _}, binary:match(Map, Key)) || Key <- [<<"tools">>, <<"secret">>]],
    ?assertEqual(<<"tuple of 2">>, Summary({Padding(3), 1})),
    ?assertMatch(<<"binary of ", _/binary>>, Summary(Padding(4))).

%% Not the time of a machine, but how it grows: the shortest of many calls, with little and with
%% much that could be walked.
figures_take_as_long_whatever_there_is(_Config) ->
    Calls = [fun ?P:inventory/0, fun ?P:memory_breakdown/0, fun ?P:metrics/0],
    %% Made in advance: acquisitions of this node are looked at by others.
    ?HELP:start(20000, 40000),
    until(fun() ->
        #{pooled_states := #{idle := Idle}} = ?P:inventory(),
        Idle >= 20000
    end),
    Few = [shortest(Call) || Call <- Calls],
    Held = {
        ?HELP:acquire(20000),
        [?O:create_optimized_state(<<N:32>>) || N <- lists:seq(1, 100000)],
        [?O:share({of_many, N}) || N <- lists:seq(1, 50000)]
    },
    Pids = [spawn(fun() -> receive stop -> ok end end) || _ <- lists:seq(1, 20000)],
    Many = [shortest(Call) || Call <- Calls],
    [Pid ! stop || Pid <- Pids],
    ct:pal("microseconds with few ~w, with many ~w", [Few, Many]),
    [?assert(M < 20 * F + 300, {F, M}) || {F, M} <- lists:zip(Few, Many)],
    ?assertEqual(3, tuple_size(Held)).

shortest(Call) ->
    lists:min([element(1, timer:tc(Call)) || _ <- lists:seq(1, 50)]).

%%% Breakdown

kinds_add_up_to_the_resident_size(_Config) ->
    Kinds = [
        processes, binaries, ets, atoms, code, states, shares, parked, buffers, samples, other,
        allocated_unused, unaccounted
    ],
    until(fun() ->
        Breakdown = ?P:memory_breakdown(),
        ?assertEqual(lists:sort(Kinds), lists:sort(maps:keys(Breakdown))),
        [?assert(Bytes >= 0, Kind) || {Kind, Bytes} <- maps:to_list(Breakdown),
            Kind =/= unaccounted],
        #memory_snapshot{resident_memory = Resident} = ?P:measure_memory_snapshot(),
        abs(lists:sum(maps:values(Breakdown)) - Resident) < Resident div 50
    end).

each_byte_is_in_its_kind(_Config) ->
    Size = 30 * ?MB,
    [
        begin
            collect(),
            Before = ?P:memory_breakdown(),
            {Holder, _} = holding(Make),
            After = ?P:memory_breakdown(),
            Grown = maps:get(Kind, After) - maps:get(Kind, Before),
            ?assert(Grown > Size - ?MB, {Kind, Grown}),
            ?assert(Grown < 3 * Size, {Kind, Grown}),
            %% And in no other: the others together have not grown by half as much.
            Others = [processes, binaries, ets, states, shares, parked, buffers, other] -- [Kind],
            Sum = fun(Breakdown) -> lists:sum([maps:get(Other, Breakdown) || Other <- Others]) end,
            ?assert(Sum(After) - Sum(Before) < Size div 2, {Kind, Sum(After) - Sum(Before)}),
            gone(Holder)
        end
     || {Kind, Make} <- [
            {binaries, fun() -> binary:copy(<<1>>, Size) end},
            {processes, fun() -> lists:seq(1, Size div 16) end},
            {ets, fun() ->
                Table = ets:new(big, []),
                ets:insert(Table, [{N, lists:seq(1, 1000)} || N <- lists:seq(1, Size div 16000)]),
                Table
            end},
            {states, fun() ->
                ?O:from_map(#{id => <<"a">>, metadata => #{big => binary:copy(<<2>>, Size)}})
            end},
            {shares, fun() -> ?O:share(binary:copy(<<3>>, Size)) end},
            {buffers, fun() -> [buffer(15 * ?MB), buffer(15 * ?MB)] end}
        ]
    ].

%% In a node of its own, so that nothing but connections comes and goes.
many_connections_rise_and_fall(_Config) ->
    Breakdowns = erlmcp_bench_vm:run("breakdown", erlmcp_bench_profiling, breakdowns, [[10000, 100000]]),
    ct:pal("~p", [Breakdowns]),
    ?assertEqual(9, length(Breakdowns)),
    [?assert(abs(Percent) =< 2.0, Breakdown) || #{percent := Percent} = Breakdown <- Breakdowns].

the_report_has_the_figures(_Config) ->
    Share = ?O:share(#{tools => binary:copy(<<"x">>, 5000000)}),
    ok = ?P:start_profiling(#{interval_ms => 10}),
    {ok, Report} = ?P:generate_report(),
    [
        ?assertMatch({match, _}, re:run(Report, Line, [multiline]), Line)
     || Line <- [
            "^Resident memory now: [0-9.]+ MB$",
            "^  allocated_unused +-?[0-9.]+ MB$",
            "^  unaccounted +-?[0-9.]+ MB$",
            "^  pooled_states +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+$",
            "^  share of [0-9]+ bytes, 1 holders: map of 1: tools$"
        ]
    ],
    ?assert(is_reference(Share)).

allocators_switched_off(_Config) ->
    {ok, Peer, _} = peer:start(#{
        connection => standard_io, args => ["+Mea", "min", "-pa" | code:get_path()]
    }),
    Call = fun(F, A) -> peer:call(Peer, ?P, F, A, 60000) end,
    try
        ?assertEqual({error, notsup}, Call(memory_breakdown, [])),
        ?assertMatch(#{shares := #{count := 0, largest := []}}, Call(inventory, [])),
        Families = parsed(Call(metrics, [])),
        ?assertNot(is_map_key(<<"erlmcp_memory_kind_bytes">>, Families)),
        ?assert(is_map_key(<<"erlmcp_memory_objects">>, Families)),
        {ok, Page} = Call(generate_report, [html]),
        ?assertMatch({_, _}, binary:match(iolist_to_binary(Page), <<"switched off">>))
    after
        peer:stop(Peer)
    end.

%%% Metrics

metrics_follow_the_conventions(_Config) ->
    Families = parsed(?P:metrics()),
    ?assert(maps:size(Families) > 10),
    [
        begin
            ?assertMatch({match, _}, re:run(Name, "^erlmcp_memory_[a-z0-9_]+$")),
            ?assertNotEqual(<<>>, Help),
            Ends = fun(Suffix) -> re:run(Name, [Suffix, "$"]) =/= nomatch end,
            %% `_total' on counters and on all of them.
            ?assertEqual(Type =:= <<"counter">>, Ends("_total"), Name),
            %% Base units.
            ?assertEqual(
                nomatch, re:run(Name, "(kilo|mega|milli|micro|nano|_ms|_us|_mb|_kb|percent)"), Name
            ),
            Plain = [Value || {_, _, Value} <- Samples],
            ?assertNotEqual([], Plain),
            Type =:= <<"counter">> andalso [?assert(Value >= 0) || Value <- Plain]
        end
     || {Name, #{help := Help, type := Type, samples := Samples}} <- maps:to_list(Families)
    ],
    #{<<"erlmcp_memory_kind_bytes">> := #{samples := Kinds}} = Families,
    #{<<"erlmcp_memory_resident_bytes">> := #{samples := [{_, [], Resident}]}} = Families,
    ?assertEqual(Resident, lists:sum([Bytes || {_, _, Bytes} <- Kinds])).

pauses_are_a_histogram(_Config) ->
    ok = ?P:start_profiling(#{interval_ms => 1000}),
    [erlang:garbage_collect() || _ <- lists:seq(1, 200)],
    #{pause_ms := #{max := LongestBefore}} = erlmcp_memory_nif:profiler_gc(),
    Families = parsed(?P:metrics()),
    #{<<"erlmcp_memory_gc_pause_seconds">> := #{type := Type, samples := Samples}} = Families,
    ?assertEqual(<<"histogram">>, Type),
    Name = fun(Suffix) -> <<"erlmcp_memory_gc_pause_seconds", Suffix/binary>> end,
    Bucket = Name(<<"_bucket">>),
    Buckets = [{Bound, Count} || {B, [{<<"le">>, Bound}], Count} <- Samples, B =:= Bucket],
    {Bounds, Counts} = lists:unzip(Buckets),
    %% Cumulative, in order of their bounds, the last one infinite and equal to the count.
    ?assertEqual(lists:sort(Counts), Counts),
    ?assertEqual(<<"+Inf">>, lists:last(Bounds)),
    Numbers = [number(Bound) || Bound <- lists:droplast(Bounds)],
    ?assertEqual(lists:usort(Numbers), Numbers),
    ?assertEqual(1.0e-5, hd(Numbers)),
    [Count] = [C || {N, [], C} <- Samples, N =:= Name(<<"_count">>)],
    [Sum] = [S || {N, [], S} <- Samples, N =:= Name(<<"_sum">>)],
    %% What a rate is taken over, since windows are not all of the time.
    #{timed_ms := Timed} = erlmcp_memory_pauses:gc(),
    #{<<"erlmcp_memory_gc_timed_seconds_total">> := #{samples := [{_, [], Seconds}]}} = Families,
    ?assert(Seconds > 0.0 andalso Seconds =< Timed / 1000),
    ?assertEqual(Count, lists:last(Counts)),
    ?assert(Count >= 200),
    ?assert(Sum > 0),
    ?assert(Sum >= LongestBefore / 1000),
    #{pause_ms := #{max := Longest}} = erlmcp_memory_nif:profiler_gc(),
    %% A bound that no pause is over holds all of them.
    [
        ?assertEqual(Count, Within)
     || {Bound, Within} <- lists:zip(Numbers, lists:droplast(Counts)), Bound * 1000 >= Longest
    ].

labels_are_escaped(_Config) ->
    M = erlmcp_memory_metrics,
    ?assertEqual(<<"a\\\\b\\\"c\\nd">>, M:escape_label("a\\b\"c\nd")),
    ?assertEqual(<<"a\\\\b\"c\\nd">>, M:escape_help(<<"a\\b\"c\nd">>)),
    ?assertEqual(<<"\303\274">>, M:escape_label([252])),
    ?assertEqual(<<"ok">>, M:escape_label(<<"ok", 255>>)).

promtool_finds_nothing(Config) ->
    case os:find_executable("promtool") of
        false ->
            {skip, "no promtool; Debian's package prometheus has it"};
        Promtool ->
            File = filename:join(proplists:get_value(priv_dir, Config), "metrics.txt"),
            ok = file:write_file(File, ?P:metrics()),
            ?assertEqual("", os:cmd(Promtool ++ " check metrics < " ++ File))
    end.

%% Once, as it would be in production, from a port of this node.
a_prometheus_scrapes_it(Config) ->
    case os:find_executable("prometheus") of
        false ->
            {skip, "no prometheus; Debian's package prometheus is it"};
        Prometheus ->
            ok = ?P:start_profiling(#{interval_ms => 100, gc => always}),
            {ok, Pids} = ?P:create_test_connections(1000, self()),
            [erlang:garbage_collect() || _ <- lists:seq(1, 50)],
            {Listen, Target} = listening(),
            Server = spawn_link(fun() -> serve(Listen) end),
            ok = gen_tcp:controlling_process(Listen, Server),
            Dir = filename:join(proplists:get_value(priv_dir, Config), "prometheus"),
            with_prometheus(Prometheus, Dir, Target, fun(Query) ->
                until(fun() -> Query("up") =:= 1.0 end),
                %% Each has a pooled state and a compact one.
                ?assertEqual(2000.0, Query("erlmcp_memory_connections")),
                ?assertEqual(1000.0, Query("erlmcp_memory_objects{kind=\"compact_states\"}")),
                ?assertEqual(
                    Query("erlmcp_memory_resident_bytes"), Query("sum(erlmcp_memory_kind_bytes)")
                ),
                ?assert(Query("erlmcp_memory_gc_pause_seconds_count") >= 50),
                Median = Query("histogram_quantile(0.5, erlmcp_memory_gc_pause_seconds_bucket)"),
                ?assert(Median > 0.0 andalso Median < 10.0, Median)
            end),
            unlink(Server),
            exit(Server, kill),
            ok = ?P:stop_test_connections(Pids)
    end.

listening() ->
    {ok, Listen} = gen_tcp:listen(0, [binary, {ip, {127, 0, 0, 1}}, {active, false}, {packet, http_bin}]),
    {ok, Port} = inet:port(Listen),
    {Listen, "127.0.0.1:" ++ integer_to_list(Port)}.

%% What a handler of a host's web server does.
serve(Listen) ->
    {ok, Socket} = gen_tcp:accept(Listen),
    {ok, {http_request, 'GET', {abs_path, <<"/metrics">>}, _}} = gen_tcp:recv(Socket, 0),
    ok = headers(Socket),
    Body = iolist_to_binary(?P:metrics()),
    ok = gen_tcp:send(Socket, [
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n",
        "Content-Length: ", integer_to_list(byte_size(Body)), "\r\n\r\n", Body
    ]),
    ok = gen_tcp:close(Socket),
    serve(Listen).

headers(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, http_eoh} -> ok;
        {ok, _} -> headers(Socket)
    end.

%% Calls the fun with one that returns the value of a query, or `none'.
with_prometheus(Program, Dir, Target, Fun) ->
    {Free, Address} = listening(),
    ok = gen_tcp:close(Free),
    File = filename:join(Dir, "prometheus.yml"),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, [
        "global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: node\n",
        "    static_configs: [{targets: ['", Target, "']}]\n"
    ]),
    Port = open_port({spawn_executable, Program}, [
        exit_status, stderr_to_stdout, binary,
        {args, [
            "--config.file=" ++ File, "--storage.tsdb.path=" ++ filename:join(Dir, "data"),
            "--web.listen-address=" ++ Address
        ]}
    ]),
    {os_pid, Pid} = erlang:port_info(Port, os_pid),
    try
        Fun(fun(Query) -> value(Address, Query) end)
    after
        _ = os:cmd("kill " ++ integer_to_list(Pid)),
        receive
            {Port, {exit_status, _}} -> ok
        after 60000 -> ct:fail(prometheus_goes_on)
        end,
        _ = file:del_dir_r(Dir)
    end.

value(Address, Query) ->
    [Host, Port] = string:split(Address, ":"),
    Path = ["/api/v1/query?", uri_string:compose_query([{"query", Query}])],
    case gen_tcp:connect(Host, list_to_integer(Port), [binary, {active, false}]) of
        {ok, Socket} ->
            ok = gen_tcp:send(Socket, ["GET ", Path, " HTTP/1.0\r\n\r\n"]),
            Reply = received(Socket, <<>>),
            ok = gen_tcp:close(Socket),
            case re:run(Reply, "\"value\":\\[[0-9.]+,\"([^\"]+)\"\\]", [{capture, [1], list}]) of
                {match, [Value]} -> element(1, string:to_float(Value ++ ".0"));
                nomatch -> none
            end;
        {error, _} ->
            none
    end.

received(Socket, Before) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, More} -> received(Socket, <<Before/binary, More/binary>>);
        {error, closed} -> Before
    end.

%% The text format: a family at a time, HELP and TYPE before its samples, each name once.
parsed(Metrics) ->
    Text = iolist_to_binary(Metrics),
    ?assertEqual($\n, binary:last(Text)),
    Lines = binary:split(Text, <<"\n">>, [global, trim]),
    {_, Families} = lists:foldl(fun line/2, {none, #{}}, Lines),
    Families.

line(<<"# HELP ", Line/binary>>, {_, Families}) ->
    [Name, Help] = binary:split(Line, <<" ">>),
    ?assertNot(is_map_key(Name, Families), Name),
    {Name, Families#{Name => #{help => Help, samples => []}}};
line(<<"# TYPE ", Line/binary>>, {Name, Families}) ->
    [Name, Type] = binary:split(Line, <<" ">>),
    ?assert(lists:member(Type, [<<"gauge">>, <<"counter">>, <<"histogram">>])),
    #{Name := #{samples := []} = Family} = Families,
    {Name, Families#{Name := Family#{type => Type}}};
line(Line, {Name, Families}) ->
    {match, [Sample, Labels, Value]} = re:run(
        Line,
        "^([a-z_0-9]+)(?:\\{((?:[a-z_]+=\"(?:[^\"\\\\\\n]|\\\\[\\\\\"n])*\",?)*)\\})? (\\S+)$",
        [{capture, all_but_first, binary}, unicode]
    ),
    #{Name := #{type := Type, samples := Samples} = Family} = Families,
    Suffixes =
        case Type of
            <<"histogram">> -> [<<"_bucket">>, <<"_sum">>, <<"_count">>];
            _ -> [<<>>]
        end,
    ?assert(lists:member(Sample, [<<Name/binary, Suffix/binary>> || Suffix <- Suffixes]), Line),
    Read = {Sample, pairs(Labels), number(Value)},
    %% No series comes twice.
    ?assertNot(lists:any(fun({S, L, _}) -> {S, L} =:= {Sample, pairs(Labels)} end, Samples)),
    {Name, Families#{Name := Family#{samples := Samples ++ [Read]}}}.

pairs(Labels) ->
    case re:run(Labels, "([a-z_]+)=\"((?:[^\"\\\\]|\\\\.)*)\"", [
        global, {capture, all_but_first, binary}, unicode
    ]) of
        {match, Pairs} -> [{Name, Value} || [Name, Value] <- Pairs];
        nomatch -> []
    end.

number(Text) ->
    try
        binary_to_integer(Text)
    catch
        error:badarg -> binary_to_float(Text)
    end.

%%% Processes

top_processes_are_found(_Config) ->
    {Big, _} = holding(fun() -> lists:seq(1, 3000000) end),
    {Busy, _} = holding(fun() -> [self() ! N || N <- lists:seq(1, 3000)] end),
    #{memory := Memory, messages := Messages, complete := true} =
        erlmcp_memory_top:processes(5, 60000),
    ?assert(length(Memory) =< 5),
    ?assert(lists:member(Big, [Pid || #{pid := Pid} <- Memory])),
    ?assertMatch([#{pid := Busy, messages := 3000} | _], Messages),
    lists:foreach(fun ?HELP:gone/1, [Big, Busy]).

looking_for_processes_ends_in_time(_Config) ->
    Pids = [spawn(fun() -> receive stop -> ok end end) || _ <- lists:seq(1, 20000)],
    #{complete := Complete} = erlmcp_memory_top:processes(10, 0),
    [Pid ! stop || Pid <- Pids],
    ?assertNot(Complete).

%%% Help

buffer(Bytes) ->
    {ok, Ref, _} = ?POOL:acquire_message_buffer(100),
    {ok, Bytes} = ?POOL:append_message_buffer(Ref, binary:copy(<<"b">>, Bytes)),
    Ref.

collect() ->
    lists:foreach(fun erlang:garbage_collect/1, processes()).

counts() ->
    counts(?P:inventory()).

counts(Inventory) ->
    maps:map(fun(_, #{count := Count}) -> Count end, Inventory).

minus(Counts, Before) ->
    maps:map(fun(Kind, Count) -> Count - maps:get(Kind, Before) end, Counts).
