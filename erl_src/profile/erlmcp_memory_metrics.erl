%% @private
%% @doc The node's figures in the Prometheus text format (version 0.0.4).
%%
%% A scrape reads what is counted anyway: it walks no processes, no tables and no samples.
-module(erlmcp_memory_metrics).

-export([text/0, escape_label/1, escape_help/1]).

-type labels() :: [{atom(), atom() | unicode:chardata()}].
-type sample() :: {Suffix :: string(), labels(), number()}.
-type metric() ::
    {Name :: atom(), Type :: gauge | counter | histogram, Help :: string(), [sample()]}.

%% @doc The text of one scrape.
-spec text() -> iodata().
text() ->
    Native = erlmcp_memory_nif:inventory(),
    [
        family(Metric)
     || Metric <- vm() ++ memory() ++ kinds(Native) ++ pool() ++ collections()
    ].

%%% Figures

-spec vm() -> [metric()].
vm() ->
    [
        {erlmcp_memory_build_info, gauge, "Always 1; the labels say what runs.", [
            {"", [{version, version()}, {otp_release, erlang:system_info(otp_release)},
                {node, atom_to_list(erlang:node())}], 1}
        ]},
        gauge(erlmcp_memory_processes, "Processes of the node.",
            erlang:system_info(process_count)),
        gauge(erlmcp_memory_processes_limit, "Processes that the node can have.",
            erlang:system_info(process_limit)),
        gauge(erlmcp_memory_ports, "Ports of the node.", erlang:system_info(port_count)),
        gauge(erlmcp_memory_ports_limit, "Ports that the node can have.",
            erlang:system_info(port_limit))
    ].

version() ->
    case application:get_key(erlmcp_memory, vsn) of
        {ok, Version} -> Version;
        undefined -> ""
    end.

%% No samples if the node's allocators are switched off.
memory() ->
    case erlmcp_memory_figures:breakdown() of
        {error, notsup} ->
            [];
        Breakdown ->
            [
                gauge(erlmcp_memory_resident_bytes, "Resident memory of the node.",
                    lists:sum(maps:values(Breakdown))),
                {erlmcp_memory_kind_bytes, gauge,
                    "Resident memory by kind; together it is erlmcp_memory_resident_bytes.", [
                        {"", [{kind, Kind}], maps:get(Kind, Breakdown)}
                     || Kind <- erlmcp_memory_figures:kinds()
                    ]}
            ]
    end.

kinds(Native) ->
    Kinds = [pooled_states, compact_states, parked, shares, buffers],
    Pooled = [pooled_states, buffers],
    Of = fun(Figure, Among) ->
        [{"", [{kind, Kind}], maps:get(Figure, maps:get(Kind, Native))} || Kind <- Among]
    end,
    States = [maps:get(count, maps:get(Kind, Native)) || Kind <- [
        pooled_states, compact_states, parked
    ]],
    [
        gauge(erlmcp_memory_connections, "Pooled states in use, compact states and parked terms.",
            lists:sum(States)),
        {erlmcp_memory_objects, gauge, "What the library holds, by kind.", Of(count, Kinds)},
        {erlmcp_memory_object_bytes, gauge, "Memory of what the library holds, by kind.",
            Of(bytes, Kinds)},
        {erlmcp_memory_idle_objects, gauge, "What the library keeps for reuse, by kind.",
            Of(idle, Pooled)},
        {erlmcp_memory_idle_object_bytes, gauge,
            "Memory of what the library keeps for reuse, by kind.", Of(idle_bytes, Pooled)}
    ].

pool() ->
    {_, _, Reused, Created, _, _, _} = erlmcp_memory_nif:pool_stats(),
    [
        {erlmcp_memory_pool_acquisitions_total, counter,
            "Acquisitions of pooled states, by where the state came from.", [
                {"", [{source, reused}], Reused}, {"", [{source, created}], Created}
            ]}
    ].

%% Of the running session, or of the last one. A new session begins at zero, as a restarted node
%% does.
collections() ->
    {Minor, Major, Reclaimed, Timed, Nanos, Counts} = erlmcp_memory_nif:profiler_gc_totals(),
    {All, _, _} = erlang:statistics(garbage_collection),
    [
        {erlmcp_memory_vm_gc_total, counter, "Garbage collections since the node started.", [
            {"", [], All}
        ]},
        {erlmcp_memory_gc_timed_total, counter,
            "Garbage collections that the profiling session timed, by kind.", [
                {"", [{kind, minor}], Minor}, {"", [{kind, major}], Major}
            ]},
        {erlmcp_memory_gc_timed_seconds_total, counter,
            "For how long the profiling session timed collections, in windows.", [
                {"", [], Timed / 1.0e9}
            ]},
        {erlmcp_memory_gc_reclaimed_bytes_total, counter,
            "Memory that the timed collections reclaimed.", [{"", [], Reclaimed}]},
        {erlmcp_memory_gc_pause_seconds, histogram,
            "Pauses of single processes by the timed collections.", pauses(Counts, Nanos)}
    ].

%% Buckets are cumulative; the last one is the count, so that the two always agree.
pauses(Counts, Nanos) ->
    Bounds = [seconds(Bound) || Bound <- erlmcp_memory_nif:pause_bounds()] ++ ["+Inf"],
    {Buckets, Count} = lists:mapfoldl(
        fun({Bound, Pauses}, Before) ->
            Upto = Before + Pauses,
            {{"_bucket", [{le, Bound}], Upto}, Upto}
        end,
        0,
        lists:zip(Bounds, Counts)
    ),
    Buckets ++ [{"_sum", [], Nanos / 1.0e9}, {"_count", [], Count}].

seconds(Nanos) ->
    number(Nanos / 1.0e9).

gauge(Name, Help, Value) ->
    {Name, gauge, Help, [{"", [], Value}]}.

%%% Text

family({Name, Type, Help, Samples}) ->
    Text = atom_to_list(Name),
    [
        ["# HELP ", Text, " ", escape_help(Help), "\n# TYPE ", Text, " ", atom_to_list(Type), "\n"]
        | [
            [Text, Suffix, labels(Labels), " ", number(Value), "\n"]
         || {Suffix, Labels, Value} <- Samples
        ]
    ].

labels([]) ->
    [];
labels(Labels) ->
    Pairs = [[atom_to_list(Name), "=\"", escape_label(Value), "\""] || {Name, Value} <- Labels],
    ["{", lists:join(",", Pairs), "}"].

%% @doc A label's value as UTF-8: a backslash, a quotation mark and the end of a line are escaped.
-spec escape_label(atom() | unicode:chardata()) -> binary().
escape_label(Value) when is_atom(Value) ->
    escape_label(atom_to_list(Value));
escape_label(Value) ->
    << <<(escaped(Char))/binary>> || <<Char/utf8>> <= utf8(Value) >>.

escaped($") -> <<"\\\"">>;
escaped(Char) -> escaped_help(Char).

%% @doc The text of a HELP line: a backslash and the end of a line are escaped.
-spec escape_help(unicode:chardata()) -> binary().
escape_help(Text) ->
    << <<(escaped_help(Char))/binary>> || <<Char/utf8>> <= utf8(Text) >>.

escaped_help($\\) -> <<"\\\\">>;
escaped_help($\n) -> <<"\\n">>;
escaped_help(Char) -> <<Char/utf8>>.

utf8(Text) ->
    case unicode:characters_to_binary(Text) of
        Binary when is_binary(Binary) -> Binary;
        {_, Binary, _} -> Binary
    end.

number(Value) when is_integer(Value) -> integer_to_list(Value);
number(Value) -> float_to_list(Value, [short]).
