%% What takes the memory, as the profiler tells an operator: figures that add up, the metrics of a
%% scrape, and the page.
-module(erlmcp_profiler_figures_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include("erlmcp_memory.hrl").

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
        the_page_is_well_formed_and_refers_to_nothing,
        the_page_without_a_session,
        texts_in_the_page_are_escaped,
        a_week_of_samples_is_a_small_page,
        a_page_in_no_other_format,
        the_page_in_a_browser,
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
    lists:foreach(fun gone/1, Pids),
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
    {ok, Peer, _} = peer:start(#{
        connection => standard_io, args => ["+P", "1000000", "-pa" | code:get_path()]
    }),
    Call = fun(M, F, A) -> peer:call(Peer, M, F, A, 300000) end,
    try
        {ok, _} = Call(?HELP, start_alone, []),
        None = Call(?MODULE, unaccounted, []),
        Some = Call(?MODULE, with_connections, [10000]),
        Many = Call(?MODULE, with_connections, [100000]),
        ct:pal("percent unaccounted: none ~p, 10,000 ~p, 100,000 ~p", [None, Some, Many]),
        [?assert(abs(Percent) =< 2.0, Percent) || Percent <- [None | Some ++ Many]]
    after
        peer:stop(Peer)
    end.

%% Rising, there, falling, gone.
with_connections(Count) ->
    Half = Count div 2,
    {ok, First} = ?P:create_test_connections(Half, whereis(?POOL)),
    Rising = unaccounted(),
    {ok, Second} = ?P:create_test_connections(Count - Half, whereis(?POOL)),
    There = unaccounted(),
    ok = ?P:stop_test_connections(First),
    Falling = unaccounted(),
    ok = ?P:stop_test_connections(Second),
    [Rising, There, Falling, unaccounted()].

unaccounted() ->
    #{unaccounted := Bytes} = Breakdown = ?P:memory_breakdown(),
    100 * Bytes / lists:sum(maps:values(Breakdown)).

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
    #{<<"erlmcp_memory_gc_pause_seconds">> := #{type := Type, samples := Samples}} =
        parsed(?P:metrics()),
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

%%% The page

the_page_is_well_formed_and_refers_to_nothing(_Config) ->
    Page = page(#{interval_ms => 10}, 30),
    well_formed(Page),
    refers_to_nothing(Page),
    [
        ?assertMatch({_, _}, binary:match(Page, Part), Part)
     || Part <- [
            <<"Memory by kind">>, <<"Connections">>, <<"Memory a connection">>,
            <<"Garbage collection pauses">>, <<"Alerts">>, <<"Largest shares">>,
            <<"Processes with most memory">>, <<"allocated_unused">>, <<"pooled_states">>,
            <<"prefers-color-scheme:dark">>, <<"time (UTC)">>, <<"width=device-width">>
        ]
    ],
    %% Four charts, each for wide and for narrow screens.
    ?assertEqual(8, length(binary:matches(Page, <<"<svg ">>))).

the_page_without_a_session(_Config) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    try
        {ok, Page} = peer:call(Peer, ?P, generate_report, [html], 60000),
        Text = iolist_to_binary(Page),
        well_formed(Text),
        ?assertMatch({_, _}, binary:match(Text, <<"start_profiling">>)),
        ?assertEqual([], binary:matches(Text, <<"<svg ">>))
    after
        peer:stop(Peer)
    end.

texts_in_the_page_are_escaped(_Config) ->
    Nasty = <<"<script>alert('x')</script>&\"">>,
    Key = <<Nasty/binary, 0, 7, 16#202E/utf8>>,
    Share = ?O:share(#{Key => binary:copy(<<1>>, 3000000), binary_to_atom(Nasty) => 1}),
    {Holder, _} = holding(fun() ->
        true = register(binary_to_atom(<<"\">", Nasty/binary>>), self()),
        [self() ! {message, N} || N <- lists:seq(1, 1000)],
        lists:seq(1, 2000000)
    end),
    Page = page(#{interval_ms => 10}, 5),
    ?assertEqual(nomatch, binary:match(Page, <<"<script">>)),
    ?assertMatch({_, _}, binary:match(Page, <<"&lt;script&gt;">>)),
    well_formed(Page),
    gone(Holder),
    ?assert(is_reference(Share)),
    Escape = fun erlmcp_memory_page:escape/1,
    ?assertEqual(<<"&lt;&amp;&quot;&#39;&gt;">>, Escape("<&\"'>")),
    ?assertEqual(<<"a&#xfffd;b">>, Escape([$a, 0, $b])),
    ?assertEqual(<<"ok">>, Escape(<<"ok", 255, "<">>)).

a_week_of_samples_is_a_small_page(_Config) ->
    Session = erlmcp_memory_nif:profiler_start(self(), 20000, true),
    Now = erlang:system_time(millisecond),
    Snapshot = ?P:measure_memory_snapshot(),
    [
        true = erlmcp_memory_nif:profiler_push(Session, Snapshot#memory_snapshot{
            timestamp = Now - 60000 * (11000 - N),
            total_memory = 300 * ?MB + erlang:phash2(N, 50 * ?MB),
            resident_memory = 400 * ?MB + erlang:phash2(-N, 50 * ?MB),
            connections = 100000 - erlang:phash2({N}, 5000)
        })
     || N <- lists:seq(1, 11000)
    ],
    ok = erlmcp_memory_nif:profiler_stop(Session),
    {ok, Page} = ?P:generate_report(html),
    Text = iolist_to_binary(Page),
    ct:pal("~b bytes", [byte_size(Text)]),
    ?assert(byte_size(Text) < 500000),
    ?assertEqual(8, length(binary:matches(Text, <<"<svg ">>))),
    well_formed(Text).

a_page_in_no_other_format(_Config) ->
    [
        ?assertError(badarg, ?P:generate_report(Format))
     || Format <- [text, "html", undefined, 1]
    ].

%% In a real browser, on a narrow and a wide screen, light and dark: nothing is wider than the
%% screen, no text is too small, and the console has no error.
the_page_in_a_browser(Config) ->
    Found = [os:find_executable(Name) || Name <- ["chromium", "chromium-browser", "google-chrome"]],
    case [Browser || Browser <- Found, Browser =/= false] of
        [] ->
            {skip, "no browser; Debian's package chromium is one"};
        [Browser | _] ->
            Page = page(#{interval_ms => 20}, 60),
            [
                in_browser(Browser, Page, Width, Theme, Config)
             || Width <- [390, 1280], Theme <- ["0", "1"]
            ]
    end.

in_browser(Browser, Page, Width, Theme, Config) ->
    %% A frame of that width: windows of browsers have a least width of their own.
    Dir = proplists:get_value(priv_dir, Config),
    File = filename:join(Dir, "framed.html"),
    ok = file:write_file(File, framed(Page, Width)),
    Profile = filename:join(Dir, "profile"),
    Output = os:cmd(lists:flatten([
        "timeout 120 ", Browser, " --headless=new --no-sandbox --disable-gpu",
        " --disable-dev-shm-usage --user-data-dir=", Profile, " --blink-settings=preferredColorScheme=", Theme,
        " --enable-logging=stderr --window-size=1400,900 --virtual-time-budget=5000",
        " --dump-dom file://", File, " 2>&1"
    ])),
    _ = file:del_dir_r(Profile),
    Errors = [Line || Line <- string:split(Output, "\n", all),
        string:find(Line, "CONSOLE") =/= nomatch],
    ?assertEqual([], Errors),
    {match, [Seen]} = re:run(Output, "SEEN\\[([^\\]]*)\\]", [{capture, all_but_first, list}]),
    ct:pal("~b pixels, scheme ~s: ~s", [Width, Theme, Seen]),
    [Wide, Smallest, Charts, Dark] = [list_to_integer(N) || N <- string:lexemes(Seen, ",")],
    ?assert(Wide =< Width, {Wide, Width}),
    ?assert(Smallest >= 11, Smallest),
    ?assertEqual(4, Charts),
    %% 0 is dark, 1 is light.
    ?assertEqual(list_to_integer(Theme), 1 - Dark).

%% The page in a frame of a width, and a script that says: how wide it is, the smallest text in
%% pixels of the screen, how many charts show, and whether it is dark.
framed(Page, Width) ->
    [
        "<!DOCTYPE html><meta charset=utf-8><iframe id=f style='border:0' width=",
        integer_to_list(Width), " height=800 srcdoc=\"",
        binary:replace(binary:replace(Page, <<"&">>, <<"&amp;">>, [global]), <<"\"">>,
            <<"&quot;">>, [global]),
        "\"></iframe><p id=o></p><script>onload=function(){",
        "var d=document.getElementById('f').contentDocument,s=1e9,c=0;",
        "d.querySelectorAll('p,td,th,span,b,li,h2').forEach(function(e){",
        "s=Math.min(s,parseFloat(d.defaultView.getComputedStyle(e).fontSize))});",
        "d.querySelectorAll('svg').forEach(function(e){var b=e.getBoundingClientRect();",
        "if(b.width>0){c++;var k=b.width/e.viewBox.baseVal.width;",
        "e.querySelectorAll('text').forEach(function(t){",
        "s=Math.min(s,k*parseFloat(d.defaultView.getComputedStyle(t).fontSize))})}});",
        "var paper=d.defaultView.getComputedStyle(d.body).backgroundColor;",
        "var dark=paper=='rgb(255, 255, 255)'?0:1;",
        "document.getElementById('o').textContent='SEEN['+[d.documentElement.scrollWidth,",
        "Math.floor(s),c,dark]+']'}</script>"
    ].

page(Options, Collections) ->
    ok = ?P:start_profiling(Options),
    {ok, Pids} = ?P:create_test_connections(100, self()),
    [
        begin
            erlang:garbage_collect(),
            timer:sleep(5)
        end
     || _ <- lists:seq(1, Collections)
    ],
    {ok, Page} = ?P:generate_report(html),
    ok = ?P:stop_test_connections(Pids),
    iolist_to_binary(Page).

%% Each element is closed where it was opened, and nothing but elements begins with `<'.
well_formed(Page) ->
    ?assertMatch(<<"<!DOCTYPE html>", _/binary>>, Page),
    [_, NoStyle] = binary:split(Page, <<"</style>">>),
    {match, Tags} = re:run(NoStyle, "<(/?)([a-z0-9]+)((?:[^<>\"]|\"[^\"<>]*\")*?)(/?)>", [
        global, {capture, all_but_first, binary}
    ]),
    ?assertEqual(length(binary:matches(NoStyle, <<"<">>)), length(Tags)),
    Left = lists:foldl(
        fun
            ([<<>>, _, _, <<"/">>], Open) -> Open;
            ([<<>>, Name, _, _], Open) -> [Name | Open];
            ([<<"/">>, Name, _, _], [Name | Open]) -> Open
        end,
        [<<"head">>, <<"html">>],
        Tags
    ),
    ?assertEqual([], Left).

refers_to_nothing(Page) ->
    [
        ?assertEqual(nomatch, re:run(Page, Outside, [caseless]), Outside)
     || Outside <- ["https?:", "src=", "url\\(", "@import", "<script", "<a ", "<iframe", "xlink"]
    ],
    {match, Links} = re:run(Page, "href=\"([^\"]*)\"", [global, {capture, [1], list}]),
    ?assertEqual([["data:,"]], Links).

%%% Processes

top_processes_are_found(_Config) ->
    {Big, _} = holding(fun() -> lists:seq(1, 3000000) end),
    {Busy, _} = holding(fun() -> [self() ! N || N <- lists:seq(1, 3000)] end),
    #{memory := Memory, messages := Messages, complete := true} =
        erlmcp_memory_top:processes(5, 60000),
    ?assert(length(Memory) =< 5),
    ?assert(lists:member(Big, [Pid || #{pid := Pid} <- Memory])),
    ?assertMatch([#{pid := Busy, messages := 3000} | _], Messages),
    lists:foreach(fun gone/1, [Big, Busy]).

looking_for_processes_ends_in_time(_Config) ->
    Pids = [spawn(fun() -> receive stop -> ok end end) || _ <- lists:seq(1, 20000)],
    #{complete := Complete} = erlmcp_memory_top:processes(10, 0),
    [Pid ! stop || Pid <- Pids],
    ?assertNot(Complete).

%%% Help

%% A process that holds what `Make' returns, once it has it.
holding(Make) ->
    Self = self(),
    Pid = spawn_link(fun() ->
        %% Where the compiler does not see that nobody reads it.
        put(held, Make()),
        %% What making it left behind is no part of it.
        true = erlang:garbage_collect(),
        Self ! {self(), holds},
        receive
            {stop, Self} -> ok
        end
    end),
    receive
        {Pid, holds} -> {Pid, {held, Pid}}
    after 60000 -> ct:fail(nothing_held)
    end.

gone(Pid) ->
    Ref = monitor(process, Pid),
    Pid ! {stop, self()},
    receive
        {'DOWN', Ref, process, Pid, _} -> ok
    after 60000 -> ct:fail({still_there, Pid})
    end.

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
