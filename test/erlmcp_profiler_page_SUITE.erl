%% The report as a page: what it says, that it is well formed and refers to nothing, and how it looks
%% in a browser.
-module(erlmcp_profiler_page_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include("erlmcp_memory.hrl").

-import(erlmcp_pool_help, [holding/1, gone/1]).
-import(erlmcp_wait_help, [until/1]).

-compile([export_all, nowarn_export_all]).

-define(P, erlmcp_memory_profiler).
-define(O, erlmcp_connection_optimizer).
-define(HELP, erlmcp_pool_help).
-define(MB, 1048576).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [
        the_page_is_well_formed_and_refers_to_nothing,
        the_page_without_a_session,
        the_page_says_what_grows,
        the_page_names_the_longest_pauses,
        the_host_says_how_many_connections,
        texts_in_the_page_are_escaped,
        long_names_make_no_large_page,
        a_week_of_samples_is_a_small_page,
        a_page_in_no_other_format,
        the_page_in_a_browser
    ].

init_per_testcase(_Case, Config) ->
    ?HELP:clear(),
    _ = ?HELP:start(),
    Config.

end_per_testcase(_Case, _Config) ->
    _ = ?P:stop_profiling(),
    ?HELP:clear(),
    ok.

the_page_is_well_formed_and_refers_to_nothing(_Config) ->
    Page = page(#{interval_ms => 10}, 30),
    well_formed(Page),
    refers_to_nothing(Page),
    [
        ?assertMatch({_, _}, binary:match(Page, Part), Part)
     || Part <- [
            <<"Memory by kind">>, <<"Connections">>, <<"Memory a connection">>,
            <<"Garbage collection pauses">>, <<"Alerts">>, <<"Largest shares">>,
            <<"Growth in the last hours">>, <<"Longest pauses">>,
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

%% Two hours of a sample a minute: total and binaries grow by 30 MB an hour, and ETS does not.
the_page_says_what_grows(_Config) ->
    Session = pushed([
        #memory_snapshot{
            timestamp = 60000 * N,
            total_memory = 500 * ?MB + N * ?MB div 2,
            binary_memory = 100 * ?MB + N * ?MB div 2,
            ets_memory = 10 * ?MB
        }
     || N <- lists:seq(1, 120)
    ]),
    Growth = section(generated(), "Growth in the last hours"),
    [
        ?assertMatch({match, _}, re:run(Growth, Row), {Row, Growth})
     || Row <- [
            "<td>total</td><td><span class=\"growing\">growing</span></td>"
            "<td class=\"n\">30.00</td><td class=\"n\">1.000</td>",
            "<td>binaries</td><td><span class=\"growing\">growing</span></td>",
            "<td>ets</td><td><span class=\"steady\">steady</span></td><td class=\"n\">0.00</td>"
        ]
    ],
    ok = erlmcp_memory_nif:profiler_stop(Session),
    _ = pushed([#memory_snapshot{timestamp = 60000 * N, total_memory = N} || N <- [1, 2, 3]]),
    ?assertMatch(
        {match, _},
        re:run(section(generated(), "Growth in the last hours"), "<td>total</td><td>too short to say<")
    ).

the_page_names_the_longest_pauses(_Config) ->
    ?assertMatch({match, _}, re:run(section(generated(), "Longest pauses"), "None was measured")),
    {Holder, _} = holding(fun() -> lists:seq(1, 1000000) end),
    true = register('a <large> process', Holder),
    ok = ?P:start_profiling(#{interval_ms => 20, gc => always}),
    _ = [true = erlang:garbage_collect(Holder) || _ <- lists:seq(1, 5)],
    Row =
        "<td>[0-9-]{10} [0-9:]{8}</td><td class=\"n\">[0-9.]+ ms</td><td>&lt;[0-9.]+&gt;</td>"
        "<td>&#39;a &lt;large&gt; process&#39;</td><td>[^<]+/[0-9]</td><td>major</td>",
    until(fun() ->
        match =:= re:run(section(generated(), "Longest pauses"), Row, [{capture, none}])
    end),
    gone(Holder).

the_host_says_how_many_connections(_Config) ->
    Tile = "<b>([0-9]+)</b><span>Connections</span>",
    Shown = fun() ->
        {match, [Count]} = re:run(generated(), Tile, [{capture, [1], list}]),
        Count
    end,
    States = [?O:create_optimized_state(<<"a">>) || _ <- lists:seq(1, 70)],
    ?assert(list_to_integer(Shown()) >= 70),
    ok = application:set_env(erlmcp_memory, connection_count, {?MODULE, connections}),
    try
        ?assertEqual("35", Shown())
    after
        application:unset_env(erlmcp_memory, connection_count)
    end,
    ?assertEqual(70, length(States)).

connections() ->
    35.

%% A session of the caller with these samples.
pushed(Snapshots) ->
    Session = erlmcp_memory_nif:profiler_start(self(), 10080, true),
    [true = erlmcp_memory_nif:profiler_push(Session, Snapshot) || Snapshot <- Snapshots],
    Session.

generated() ->
    {ok, Page} = ?P:generate_report(html),
    Text = iolist_to_binary(Page),
    well_formed(Text),
    Text.

%% What is under a title.
section(Page, Title) ->
    [_, From] = binary:split(Page, iolist_to_binary(["<h2>", Title, "</h2>"])),
    [Section | _] = binary:split(From, <<"</section>">>),
    Section.

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

%% A label may be any term, and each name shows at several places.
long_names_make_no_large_page(_Config) ->
    Long = fun(N) -> list_to_atom(integer_to_list(N) ++ lists:duplicate(250, 7)) end,
    Map = lists:foldl(
        fun(_, Inner) -> maps:from_list([{{Long(N), N}, Inner} || N <- lists:seq(1, 6)]) end,
        Long(0),
        lists:seq(1, 6)
    ),
    Labels = [lists:duplicate(50000, $a), lists:duplicate(50000, 16#1F600), Map],
    Holders = [
        begin
            {Holder, _} = holding(fun() ->
                case erlang:function_exported(proc_lib, set_label, 1) of
                    true -> apply(proc_lib, set_label, [Label]);
                    false -> true = register(Long(N), self())
                end,
                lists:seq(1, 2000000)
            end),
            Holder
        end
     || {N, Label} <- lists:zip([1, 2, 3], Labels)
    ],
    [
        begin
            {Name, _} = erlmcp_memory_top:identity(Holder),
            ?assert(byte_size(Name) > 100 andalso byte_size(Name) =< 200)
        end
     || Holder <- Holders
    ],
    ok = ?P:start_profiling(#{interval_ms => 20, gc => always}),
    [true = erlang:garbage_collect(Holder) || Holder <- Holders],
    ?assert(byte_size(generated()) < 500000),
    [gone(Holder) || Holder <- Holders].

%% A sample a minute, and some more than are kept: nothing grows with them but the session.
a_week_of_samples_is_a_small_page(_Config) ->
    Before = erlmcp_memory_nif:native_bytes(),
    Now = erlang:system_time(millisecond),
    Session = week(Now),
    Held = erlmcp_memory_nif:native_bytes() - Before,
    ?assert(Held < 2 * ?MB, Held),
    ok = erlmcp_memory_nif:profiler_stop(Session),
    {Millis, [Page, {ok, Report}, Growth, Data]} = timed([
        fun generated/0, fun ?P:generate_report/0, fun ?P:memory_growth/0, fun ?P:get_profiling_data/0
    ]),
    ct:pal("page of ~b bytes, session of ~b; ms for page, report, growth, data: ~w", [
        byte_size(Page), Held, Millis
    ]),
    ?assert(byte_size(Page) < 500000),
    ?assertEqual(8, length(binary:matches(Page, <<"<svg ">>))),
    ?assertNotEqual(nomatch, string:find(Report, "11000 snapshots taken, 10080 kept")),
    %% The last six hours of them.
    ?assertMatch(#{total := #{verdict := Verdict}} when Verdict =/= growing, Growth),
    #{snapshots := [#{timestamp := First} | _], snapshot_count := 10080} = Data,
    ?assertEqual(Now - 60000 * (11000 - 921), First).

%% A session that has had a sample a minute until now, and some more than a week has.
week(Now) ->
    Snapshot = ?P:measure_memory_snapshot(),
    pushed([
        Snapshot#memory_snapshot{
            timestamp = Now - 60000 * (11000 - N),
            time_offset = 0,
            total_memory = 300 * ?MB + erlang:phash2(N, 50 * ?MB),
            resident_memory = 400 * ?MB + erlang:phash2(-N, 50 * ?MB),
            connections = 100000 - erlang:phash2({N}, 5000)
        }
     || N <- lists:seq(1, 11000)
    ]).

timed(Calls) ->
    lists:unzip([
        begin
            {Micros, Result} = timer:tc(Call),
            {Micros div 1000, Result}
        end
     || Call <- Calls
    ]).

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
            Seconds = page(#{interval_ms => 20}, 60),
            _ = ?P:stop_profiling(),
            _ = week(erlang:system_time(millisecond)),
            Week = generated(),
            [
                in_browser(Browser, Page, Width, Theme, Config)
             || {Page, Themes} <- [{Seconds, ["0", "1"]}, {Week, ["0"]}],
                Width <- [390, 1280],
                Theme <- Themes
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
    [Wide, Smallest, Charts, Dark, Axes, Cut] = [list_to_integer(N) || N <- string:lexemes(Seen, ",")],
    ?assert(Wide =< Width, {Wide, Width}),
    ?assert(Smallest >= 11, Smallest),
    ?assertEqual(4, Charts),
    ?assertEqual(4, Axes),
    ?assertEqual(0, Cut),
    %% 0 is dark, 1 is light.
    ?assertEqual(list_to_integer(Theme), 1 - Dark).

%% The page in a frame of a width, and a script that says: how wide it is, the smallest text in
%% pixels of the screen, how many charts show, whether it is dark, how many charts say what both axes
%% are, and how many texts of charts are not whole within them.
framed(Page, Width) ->
    [
        "<!DOCTYPE html><meta charset=utf-8><iframe id=f style='border:0' width=",
        integer_to_list(Width), " height=800 srcdoc=\"",
        binary:replace(binary:replace(Page, <<"&">>, <<"&amp;">>, [global]), <<"\"">>,
            <<"&quot;">>, [global]),
        "\"></iframe><p id=o></p><script>onload=function(){",
        "var d=document.getElementById('f').contentDocument,s=1e9,c=0,a=0,cut=0;",
        "d.querySelectorAll('p,td,th,span,b,li,h2').forEach(function(e){",
        "s=Math.min(s,parseFloat(d.defaultView.getComputedStyle(e).fontSize))});",
        "d.querySelectorAll('svg').forEach(function(e){var b=e.getBoundingClientRect();",
        "if(b.width>0){c++;var k=b.width/e.viewBox.baseVal.width;",
        "if(/time \\(UTC\\)/.test(e.textContent)&&/(GB|MB|KB|bytes|connections|length of pauses)/",
        ".test(e.textContent))a++;",
        "e.querySelectorAll('text').forEach(function(t){var r=t.getBoundingClientRect();",
        "if(r.left<b.left-1||r.right>b.right+1||r.top<b.top-1||r.bottom>b.bottom+1)cut++;",
        "s=Math.min(s,k*parseFloat(d.defaultView.getComputedStyle(t).fontSize))})}});",
        "var paper=d.defaultView.getComputedStyle(d.body).backgroundColor;",
        "var dark=paper=='rgb(255, 255, 255)'?0:1;",
        "document.getElementById('o').textContent='SEEN['+[d.documentElement.scrollWidth,",
        "Math.floor(s),c,dark,a,cut]+']'}</script>"
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

