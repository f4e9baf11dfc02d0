%% @private
%% @doc The report as a page for a browser: one file that fetches and refers to nothing. The library
%% draws the charts; this module makes the rest, and escapes every text.
-module(erlmcp_memory_page).

-export([html/0, escape/1]).

-define(MB, 1048576).
%% Processes in the table, and the longest time spent looking for them, in milliseconds.
-define(TOP, 10).
-define(TOP_MS, 1000).

%% @doc The page.
-spec html() -> iodata().
html() ->
    %% First these, which have the session looked at, so that all of them are among the collections
    %% that are counted.
    Pauses = erlmcp_memory_pauses:pauses(),
    Session =
        case erlmcp_memory_session:last() of
            {ok, Reference, Status} -> {Status, erlmcp_memory_nif:profiler_charts(Reference)};
            none -> none
        end,
    Inventory = erlmcp_memory_figures:inventory(),
    Breakdown = erlmcp_memory_figures:breakdown(),
    [
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">",
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">",
        %% So that the browser does not request an icon.
        "<link rel=\"icon\" href=\"data:,\">",
        "<title>Memory of ", escape(node()), "</title><style>", style(), "</style></head>\n<body>",
        "<header><h1>Memory of ", escape(node()), "</h1><p>", escape(now_text()),
        " &middot; OTP ", escape(erlang:system_info(otp_release)), "</p></header>\n<main>",
        tiles(Breakdown),
        alerts(erlmcp_memory_health:levels()),
        growth(erlmcp_memory_growth:session()),
        charts(Session),
        worst(Pauses),
        breakdown(Breakdown),
        inventory(Inventory),
        shares(Inventory),
        top(erlmcp_memory_top:processes(?TOP, ?TOP_MS)),
        "</main></body></html>\n"
    ].

%%% Parts

tiles(Breakdown) ->
    Connections = erlmcp_memory_health:connections(),
    Resident = resident(Breakdown),
    Each =
        case Connections > 0 andalso is_integer(Resident) of
            true -> bytes(Resident div Connections);
            false -> "-"
        end,
    [
        "<section class=\"tiles\">",
        tile("Resident memory", bytes(Resident)),
        tile("Connections", integer_to_list(Connections)),
        tile("Resident a connection", Each),
        tile("Processes", integer_to_list(erlang:system_info(process_count))),
        "</section>\n"
    ].

resident({error, notsup}) -> unknown;
resident(Breakdown) -> lists:sum(maps:values(Breakdown)).

tile(Name, Value) ->
    ["<div><b>", Value, "</b><span>", Name, "</span></div>"].

alerts({error, notsup}) ->
    section("Alerts", note("The node's allocators are switched off: nothing is measured."));
alerts(Levels) ->
    Unknown = [atom_to_list(Metric) || #{metric := Metric, level := not_measured} <- Levels],
    section("Alerts", [
        alert_table(erlmcp_memory_health:alerts(Levels)),
        [note(["Not measured: ", lists:join(", ", Unknown), "."]) || Unknown =/= []]
    ]).

alert_table([]) ->
    note("None.");
alert_table(Alerts) ->
    table(
        [{text, "Level"}, {text, "Metric"}, {number, "Value"}, {number, "Threshold"},
            {long, "Advice"}],
        [
            [["<span class=\"", escape(Level), "\">", escape(Level), "</span>"],
                escape(Metric), decimal(Value), decimal(Threshold), escape(Advice)]
         || #{metric := Metric, level := Level, value := Value, threshold := Threshold,
                advice := Advice} <- Alerts
        ]
    ).

growth({error, no_profiling_data}) ->
    [];
growth(Growth) ->
    section("Growth in the last hours", [
        table(
            [{text, "Kind"}, {text, "Verdict"}, {number, "MB an hour"}, {number, "Confidence"}],
            [
                [escape(Kind) | growth_row(maps:get(Kind, Growth))]
             || Kind <- erlmcp_memory_growth:kinds()
            ]
        ),
        note("Confidence is from 0 to 1. Native memory lies among binaries and others.")
    ]).

growth_row(#{verdict := too_short}) ->
    ["too short to say", "", ""];
growth_row(#{verdict := Verdict, mb_per_hour := Rate, confidence := Confidence}) ->
    [
        ["<span class=\"", escape(Verdict), "\">", escape(Verdict), "</span>"], decimal(Rate),
        io_lib:format("~.3f", [Confidence])
    ].

worst(#{worst := []}) ->
    section("Longest pauses", note("None was measured."));
worst(#{worst := Worst, window_ms := Window, time_share := Share}) ->
    section("Longest pauses", [
        table(
            [{text, "Ended (UTC)"}, {number, "Pause"}, {text, "Process"}, {text, "Name or label"},
                {text, "Began in, or was in"}, {text, "Kind"}],
            [
                [erlmcp_memory_report:time_text(At), io_lib:format("~.3f ms", [Pause]), escape(pid_to_list(Pid)),
                    escape(Name), escape(Function), escape(Kind)]
             || #{timestamp := At, pause_ms := Pause, pid := Pid, name := Name,
                    function := Function, kind := Kind} <- Worst
            ]
        ),
        note(io_lib:format(
            "Of the last ~ts, in which all pauses together took ~.3f % of the time of schedulers.",
            [span(Window), 100 * Share]
        ))
    ]).

charts(none) ->
    section("Over time", note("No profiling session ran: start one with "
        "erlmcp_memory_profiler:start_profiling/0."));
charts({Status, Charts}) ->
    #{duration_ms := Ms, held := Held, taken := Taken} = Status,
    [
        figure("Memory by kind", maps:get(memory, Charts), [
            legend([
                {["k", integer_to_list(Number)], Kind}
             || {Number, Kind} <- enumerated(erlmcp_memory_nif:chart_kinds())
            ]),
            legend([{"line", "resident"}])
        ]),
        figure("Connections", maps:get(connections, Charts), []),
        figure("Memory a connection", maps:get(per_connection, Charts), [
            note("All memory of the VM over the number of connections.")
        ]),
        figure("Garbage collection pauses", maps:get(pauses, Charts), [
            legend([
                {"h1", "1 to 9"}, {"h2", "10 to 99"}, {"h3", "100 to 999"},
                {"h4", "1,000 to 9,999"}, {"h5", "10,000 pauses and more"}
            ]),
            note(pauses(Status, erlmcp_memory_nif:profiler_gc()))
        ]),
        [
            "<section>",
            note(io_lib:format("~b samples of ~b taken in ~ts.", [Held, Taken, span(Ms)])),
            "</section>\n"
        ]
    ].

span(Ms) when Ms < 7200000 -> io_lib:format("~.1f minutes", [Ms / 60000]);
span(Ms) -> io_lib:format("~.1f hours", [Ms / 3600000]).

enumerated(List) ->
    lists:zip(lists:seq(1, length(List)), List).

pauses(#{gc_measured := false, gc_lost_ms := nil}, _) ->
    "Not measured in this session.";
pauses(Status, #{minor := Minor, major := Major, pause_ms := Pause}) ->
    [
        io_lib:format("~b minor and ~b major collections; pauses in ms: p50 ~.3f, p99 ~.3f, "
            "longest ~.3f.", [Minor, Major | [maps:get(Key, Pause) || Key <- [p50, p99, max]]]),
        case Status of
            #{gc_lost_ms := nil} -> "";
            #{gc_lost_ms := Ms} ->
                io_lib:format(" Not measured any more since ~.1f s, when somebody else cleared "
                    "trace flags.", [Ms / 1000])
        end
    ].

breakdown({error, notsup}) ->
    [];
breakdown(Breakdown) ->
    Resident = max(1, resident(Breakdown)),
    section(
        "Resident memory now",
        table(
            [{text, "Kind"}, {number, "Memory"}, {number, "Share"}],
            [
                [escape(Kind), bytes(Bytes), io_lib:format("~.1f %", [100 * Bytes / Resident])]
             || Kind <- erlmcp_memory_figures:kinds(),
                Bytes <- [maps:get(Kind, Breakdown)]
            ]
        )
    ).

inventory(Inventory) ->
    section(
        "Held by the library",
        table(
            [{text, "Kind"}, {number, "Count"}, {number, "Memory"}, {number, "Idle"},
                {number, "Memory"}],
            [
                [escape(Kind), integer_to_list(Count), bytes(Bytes) | idle(Held)]
             || Kind <- [pooled_states, compact_states, parked, shares, buffers],
                #{count := Count, bytes := Bytes} = Held <- [maps:get(Kind, Inventory)]
            ]
        )
    ).

idle(#{idle := Count, idle_bytes := Bytes}) -> [integer_to_list(Count), bytes(Bytes)];
idle(_) -> ["", ""].

shares(#{shares := #{largest := []}}) ->
    section("Largest shares", note("None."));
shares(#{shares := #{largest := Largest}}) ->
    section(
        "Largest shares",
        table(
            [{long, "What"}, {number, "Memory"}, {number, "Holders"}],
            [
                [escape(Summary), bytes(Bytes), integer_to_list(Holders)]
             || #{bytes := Bytes, holders := Holders, summary := Summary} <- Largest
            ]
        )
    ).

top(#{memory := Memory, messages := Messages, complete := Complete}) ->
    [
        section("Processes with most memory", processes(Memory)),
        section("Processes with most messages", processes(Messages)),
        case Complete of
            true -> [];
            false -> note("Looking stopped after a second: not all processes were looked at.")
        end
    ].

processes([]) ->
    note("None.");
processes(Processes) ->
    table(
        [{text, "Process"}, {text, "Name or label"}, {text, "Began in, or is in"},
            {number, "Memory"}, {number, "Binaries"}, {number, "Messages"}],
        [
            [escape(pid_to_list(Pid)), escape(Name), escape(Function), bytes(Bytes),
                bytes(Binaries), integer_to_list(Count)]
         || #{pid := Pid, name := Name, function := Function, memory := Bytes,
                binaries := Binaries, messages := Count} <- Processes
        ]
    ).

%%% Elements

section(Title, Content) ->
    ["<section><h2>", Title, "</h2>", Content, "</section>\n"].

figure(Title, #{wide := nil}, _) ->
    section(Title, note("Nothing was measured."));
figure(Title, #{wide := Wide, narrow := Narrow}, Below) ->
    section(Title, [
        "<figure role=\"img\" aria-label=\"", Title, " over time\">",
        "<div class=\"wide\">", Wide, "</div><div class=\"narrow\">", Narrow, "</div></figure>",
        Below
    ]).

legend(Items) ->
    [
        "<ul class=\"legend\">",
        [["<li><i class=\"", Class, "\"></i>", escape(Text), "</li>"] || {Class, Text} <- Items],
        "</ul>"
    ].

note(Text) ->
    ["<p class=\"note\">", escape(Text), "</p>"].

table(Columns, Rows) ->
    Kinds = [Kind || {Kind, _} <- Columns],
    [
        "<div class=\"table\"><table><thead><tr>",
        [cell("th", Kind, Title) || {Kind, Title} <- Columns],
        "</tr></thead><tbody>",
        [
            ["<tr>", [cell("td", Kind, Cell) || {Kind, Cell} <- lists:zip(Kinds, Row)], "</tr>\n"]
         || Row <- Rows
        ],
        "</tbody></table></div>"
    ].

cell(Element, long, Content) -> ["<", Element, " class=\"w\">", Content, "</", Element, ">"];
cell(Element, text, Content) -> ["<", Element, ">", Content, "</", Element, ">"];
cell(Element, number, Content) -> ["<", Element, " class=\"n\">", Content, "</", Element, ">"].

%%% Text

%% @doc A text as it appears in the page, also in an attribute. It is cut at the first part that is
%% not Unicode text.
-spec escape(atom() | unicode:chardata()) -> binary().
escape(Text) when is_atom(Text) ->
    escape(atom_to_list(Text));
escape(Text) ->
    Utf8 =
        case unicode:characters_to_binary(Text) of
            Binary when is_binary(Binary) -> Binary;
            {_, Binary, _} -> Binary
        end,
    << <<(escaped(Char))/binary>> || <<Char/utf8>> <= Utf8 >>.

escaped($&) -> <<"&amp;">>;
escaped($<) -> <<"&lt;">>;
escaped($>) -> <<"&gt;">>;
escaped($") -> <<"&quot;">>;
escaped($') -> <<"&#39;">>;
%% What is not allowed in a page, or would reverse the direction of a text.
escaped(Char) when Char < 32, Char =/= $\n, Char =/= $\t -> <<"&#xfffd;">>;
escaped(Char) when Char >= 127, Char < 160 -> <<"&#xfffd;">>;
escaped(Char) when Char >= 16#202A, Char =< 16#202E -> <<"&#xfffd;">>;
escaped(Char) when Char >= 16#2066, Char =< 16#2069 -> <<"&#xfffd;">>;
escaped(Char) -> <<Char/utf8>>.

bytes(Unknown) when is_atom(Unknown) -> "-";
bytes(Bytes) when abs(Bytes) >= ?MB -> io_lib:format("~.1f MB", [Bytes / ?MB]);
bytes(Bytes) when abs(Bytes) >= 10240 -> io_lib:format("~.1f KB", [Bytes / 1024]);
bytes(Bytes) -> io_lib:format("~b bytes", [Bytes]).

decimal(Value) -> io_lib:format("~.2f", [float(Value)]).

now_text() ->
    [erlmcp_memory_report:time_text(erlang:system_time(millisecond)), " UTC"].


%% Narrow charts up to 720 pixels, wide ones above: the text of both is readable there.
style() ->
    [
        ":root{color-scheme:light dark;--bg:#fff;--fg:#1d2430;--dim:#5b6675;--grid:#e1e5ea;",
        "--card:#f5f7f9;--line:#c2185b;--k1:#3b78c4;--k2:#58a55c;--k3:#e0a030;--k4:#8d6bb8;",
        "--k5:#3aa6a6;--k6:#9aa5b1;--h1:#fde0b2;--h2:#f9b872;--h3:#ee8544;--h4:#cf4f24;",
        "--h5:#8f1d10;--warn:#8a5a00;--crit:#b3261e}",
        "@media(prefers-color-scheme:dark){:root{--bg:#14181d;--fg:#e4e8ed;--dim:#a2adba;",
        "--grid:#2f3741;--card:#1d232a;--line:#ff7aa8;--k1:#5b93d6;--k2:#6cb870;--k3:#d9a546;",
        "--k4:#a487cb;--k5:#4fb9b9;--k6:#76828f;--h1:#4a2f16;--h2:#7d4516;--h3:#b9611a;",
        "--h4:#ea8a2d;--h5:#ffd08a;--warn:#f0b429;--crit:#ff8a80}}",
        "*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}",
        "body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}",
        "header,main{max-width:1000px;margin:0 auto;padding:16px}main{padding-top:0}",
        "h1{font-size:24px;margin:0;overflow-wrap:anywhere}h2{font-size:18px;margin:0 0 8px}",
        "header p,.note{color:var(--dim);margin:4px 0;font-size:14px}section{margin:0 0 28px}",
        ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}",
        ".tiles div{background:var(--card);border-radius:8px;padding:12px}",
        ".tiles b{display:block;font-size:22px}.tiles span{color:var(--dim);font-size:14px}",
        ".table{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}",
        "th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--grid);",
        "vertical-align:top;min-width:64px}td.w{min-width:240px}th{color:var(--dim);",
        "font-weight:600}.n{text-align:right;white-space:nowrap}",
        ".warning,.growing{color:var(--warn);font-weight:600}.critical{color:var(--crit);font-weight:600}",
        "figure{margin:0}svg{display:block;width:100%;height:auto}.narrow{display:none}",
        "@media(max-width:720px){.wide{display:none}.narrow{display:block}}",
        ".legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 16px;margin:4px 0;padding:0;",
        "font-size:14px}.legend i{display:inline-block;width:12px;height:12px;margin-right:6px}",
        "svg .text{fill:var(--dim)}svg .grid{stroke:var(--grid)}svg .axis{stroke:var(--dim)}",
        "svg .line{stroke:var(--line)}i.line{background:var(--line);height:3px!important;",
        "vertical-align:middle}",
        [
            [".", Class, "{fill:var(--", Class, ");background:var(--", Class, ")}"]
         || Class <- ["k1", "k2", "k3", "k4", "k5", "k6", "h1", "h2", "h3", "h4", "h5"]
        ]
    ].
