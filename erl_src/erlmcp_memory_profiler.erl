%% @doc Measures the node's memory and its garbage collections, and explains them.
%%
%% One session runs on a node at a time. It takes a snapshot every interval and, unless told
%% otherwise, times the garbage collections of all processes in ten seconds of each minute, with a
%% native tracer: no message is sent, and a collection costs a few microseconds more, nearly all of
%% them the VM's own work for a traced one; a measured pause includes about one of these. The session
%% belongs to the node: it continues when the process that started it is gone, until {@link
%% stop_profiling/0}. If the application is started, the session's process is supervised, and after
%% a crash a new one continues the session. If it is not, the session ends with the process, and
%% each process loses its trace flags at its next collection.
%%
%% ```
%% 1> erlmcp_memory_profiler:start_profiling(#{interval_ms => 1000}).
%% ok
%% 2> {ok, Report} = erlmcp_memory_profiler:generate_report(), io:put_chars(Report).
%% 3> #{gc := #{pause_ms := #{p99 := P99}}} = erlmcp_memory_profiler:stop_profiling().
%% '''
%%
%% What the figures include: `total_memory' is `erlang:memory(total)', and includes every byte that
%% the native library allocates. `native_memory' is the part of it that the library's own code
%% holds, without the overhead of the VM's allocators and the headers of its resources.
%% `resident_memory' is what the operating system counts for the whole process. Megabytes are of
%% 1,048,576 bytes.
-module(erlmcp_memory_profiler).

-export([
    start_profiling/0, start_profiling/1,
    stop_profiling/0,
    get_profiling_data/0,
    measure_memory_snapshot/0,
    measure_memory_after_delay/1,
    memory_per_connection/1,
    analyze_memory_trend/1,
    generate_report/0, generate_report/1,
    alerts/0,
    health/0,
    memory_growth/0, memory_growth/1,
    gc_pauses/0,
    top_processes/2,
    memory_breakdown/0,
    inventory/0,
    metrics/0
]).
-export([
    create_test_connections/2, create_test_connections/3,
    stop_test_connections/1,
    simulate_100k_load/1, simulate_100k_load/2
]).

-export_type([options/0, tracer/0, snapshot_map/0, gc/0, trend/0, alert/0]).
-export_type([metric/0, health/0, growth/0, gc_pauses/0, top/0]).
-export_type([inventory/0, holding/0, idle_holding/0, share_holding/0, breakdown/0]).
-export_type([connection_options/0, load_options/0, load_result/0]).

-include("erlmcp_memory.hrl").
-include("erlmcp_memory_error.hrl").

-define(MB, 1048576).
-define(MAX_KEEP, 1000000).
%% The longest time that a timer or a receive accepts.
-define(MAX_MS, 16#FFFFFFFF).
-define(MAX_ROUNDS, 1000000).
-define(MAX_DRIVERS, 1000).
-define(TOP_MS, 5000).

-type options() :: #{
    interval_ms => pos_integer(),
    keep => pos_integer(),
    gc => boolean() | always,
    gc_window_ms => pos_integer(),
    gc_every_ms => pos_integer()
}.
%% See {@link start_profiling/1}.

-type tracer() :: pid() | port() | {module(), term()} | {sessions, [term()]}.
%% Another tracer: see {@link start_profiling/1}.

-type snapshot_map() :: #{atom() => number()}.
%% The fields of `#memory_snapshot{}' (`include/erlmcp_memory.hrl') as keys, and `total_memory_mb'.

-type gc() :: #{atom() => term()}.
%% `measured' (whether the collections of the whole session were timed; if another program cleared
%% the trace flags, the other values are those up to then), the numbers `collections', `minor' and
%% `major', `reclaimed_bytes' (what the collected heaps shrank by), and `pause_ms', a map of `min',
%% `mean', `p50', `p90', `p99', `p999', `max' in milliseconds. `timed_ms' is for how long
%% collections were timed, in all windows together: counts are those of that time and no others.
%% `per_second' is their number over it, and so the rate of the node, and `time_share' (0.0 to 1.0)
%% what pauses took of the time that its schedulers had. All zero when nothing was measured.

-type trend() :: #{
    min_memory := non_neg_integer(),
    max_memory := non_neg_integer(),
    avg_memory := non_neg_integer(),
    memory_delta := integer(),
    avg_growth_per_snapshot := integer(),
    trend_slope := float(),
    leak_indication := binary()
}.
%% See {@link analyze_memory_trend/1}; the first five are in bytes.

-type metric() ::
    memory_per_connection
    | reuse_ratio
    | gc_pause
    | memory_growth
    | resident_growth
    | processes
    | ports
    | file_descriptors.

-type alert() :: #{
    metric := metric(),
    level := warning | critical,
    value := number(),
    threshold := number(),
    advice := binary()
}.
%% See {@link alerts/0}.

-type health() :: #{
    metric := metric(),
    level := ok | warning | critical | not_measured,
    value := number() | undefined,
    threshold := number(),
    advice := binary()
}.
%% See {@link health/0}.

-type growth() :: #{
    total | resident | processes | binaries | ets | atoms | native => #{
        verdict := growing | steady | too_short,
        mb_per_hour := float(),
        confidence := float()
    }
}.
%% See {@link memory_growth/0}.

-type gc_pauses() :: #{
    measured := boolean(),
    window_ms := pos_integer(),
    timed_ms := float(),
    time_share := float(),
    worst := [
        #{
            pid := pid(),
            kind := minor | major,
            pause_ms := float(),
            timestamp := integer(),
            name := binary(),
            function := binary()
        }
    ]
}.
%% See {@link gc_pauses/0}.

-type top() :: #{processes := [erlmcp_memory_top:process()], complete := boolean()}.
%% See {@link top_processes/2}.

-type holding() :: #{count := non_neg_integer(), bytes := non_neg_integer()}.

-type idle_holding() :: #{
    count := non_neg_integer(),
    bytes := non_neg_integer(),
    idle := non_neg_integer(),
    idle_bytes := non_neg_integer()
}.
%% `idle' is what is kept for reuse, and is not included in `count' and `bytes'.

-type share_holding() :: #{
    count := non_neg_integer(),
    bytes := non_neg_integer(),
    largest := [
        #{bytes := non_neg_integer(), holders := pos_integer(), summary := binary()}
    ]
}.

-type inventory() :: #{
    pooled_states := idle_holding(),
    compact_states := holding(),
    parked := holding(),
    shares := share_holding(),
    buffers := idle_holding()
}.
%% See {@link inventory/0}.

-type breakdown() :: #{
    processes := non_neg_integer(),
    binaries := non_neg_integer(),
    ets := non_neg_integer(),
    atoms := non_neg_integer(),
    code := non_neg_integer(),
    states := non_neg_integer(),
    shares := non_neg_integer(),
    parked := non_neg_integer(),
    buffers := non_neg_integer(),
    samples := non_neg_integer(),
    other := non_neg_integer(),
    allocated_unused := non_neg_integer(),
    unaccounted := integer()
}.
%% See {@link memory_breakdown/0}.

-type connection_options() :: #{metadata => map(), capabilities => term()}.
%% See {@link create_test_connections/3}.

-type load_options() :: #{
    progress => boolean(), rounds => non_neg_integer(), drivers => pos_integer()
}.
%% See {@link simulate_100k_load/2}.

-type load_result() :: #{atom() => term()}.
%% See {@link simulate_100k_load/2}.

%% @doc The same as `start_profiling(#{})'.
-spec start_profiling() -> ok | {error, {already_traced, tracer()} | notsup | timeout}.
start_profiling() ->
    start_profiling(#{}).

%% @doc Starts a session. A running session is ended, and its data are dropped: read them first. A
%% start that is refused leaves it as it was.
%%
%% Options: `interval_ms' between snapshots (5000; 1 to 4294967295), `keep', how many of the newest
%% snapshots to keep (10080; at most 1,000,000, about 100 bytes each, taken as they come), `gc',
%% when to time garbage collections: in windows (true), never (false), or `always'; and of these
%% windows `gc_window_ms', how long one is (10000), and `gc_every_ms' from the beginning of one to
%% that of the next (60000, at least the former). The first one begins at once. Anything else is a
%% `badarg'.
%%
%% Between windows no process has trace flags of the session, so that `dbg', `recon_trace' and trace
%% sessions work then. A window does not open while another tracer is active: then the next one
%% is tried. Where the VM has trace sessions, one that is made while a window is open ends it with
%% the next snapshot.
%%
%% `{error, {already_traced, Tracer}}': some process of the node is traced by another tracer, and
%% nothing was started. `Tracer' is a pid, a port, `{Module, State}' or, on OTP 27 and later,
%% `{sessions, Sessions}'. End that trace, or profile with `gc => false'. `{error, notsup}': the
%% node's allocators are switched off (`erl +Mea min'), so that there is no `erlang:memory/0'. `{error,
%% timeout}': the running session could not be ended, see {@link stop_profiling/0}.
%%
%% When another program clears trace flags in a window (`erlang:trace(all, false, [all])'),
%% the session goes on, but says `measured => false' from then on, and opens no more windows; it
%% looks with each snapshot, before each report and before alerts.
%%
%% Looking for other tracers and setting flags goes process by process: on a node of 100,000 some
%% hundreds of milliseconds in the caller, and in the session's process at both ends of a window;
%% no other process waits.
-spec start_profiling(options()) ->
    ok | {error, {already_traced, tracer()} | notsup | timeout}.
start_profiling(Options) when is_map(Options) ->
    case wrong_options(fun wrong/2, Options) of
        [] ->
            case maps:merge(erlmcp_memory_sampler:defaults(), Options) of
                #{gc_window_ms := Window, gc_every_ms := Every} when Window > Every ->
                    ?BADARG([Options], 1, <<"gc_window_ms is more than gc_every_ms">>);
                All ->
                    erlmcp_memory_sampler:start(All)
            end;
        [Text | _] ->
            ?BADARG([Options], 1, Text)
    end;
start_profiling(Options) ->
    ?BADARG([Options], 1, <<"not a map of options">>).

%% The texts for the options that are wrong.
wrong_options(Wrong, Options) ->
    [Text || Text <- [Wrong(Key, Value) || {Key, Value} <- maps:to_list(Options)], Text =/= ok].

wrong(interval_ms, Ms) when is_integer(Ms), Ms >= 1, Ms =< ?MAX_MS -> ok;
wrong(interval_ms, _) -> <<"interval_ms is not an integer from 1 to 4294967295">>;
wrong(keep, Keep) when is_integer(Keep), Keep >= 1, Keep =< ?MAX_KEEP -> ok;
wrong(keep, _) -> <<"keep is not an integer from 1 to 1000000">>;
wrong(gc, Gc) when is_boolean(Gc); Gc =:= always -> ok;
wrong(gc, _) -> <<"gc is not a boolean or always">>;
wrong(gc_window_ms, Ms) when is_integer(Ms), Ms >= 1, Ms =< ?MAX_MS -> ok;
wrong(gc_window_ms, _) -> <<"gc_window_ms is not an integer from 1 to 4294967295">>;
wrong(gc_every_ms, Ms) when is_integer(Ms), Ms >= 1, Ms =< ?MAX_MS -> ok;
wrong(gc_every_ms, _) -> <<"gc_every_ms is not an integer from 1 to 4294967295">>;
wrong(_, _) ->
    <<"an unknown option; known are interval_ms, keep, gc, gc_window_ms and gc_every_ms">>.

%% @doc Ends the running session, with a last snapshot, and sums it up.
%%
%% `baseline' and `final' are the first and the last snapshot, `snapshots' the number kept,
%% `total_memory_delta' (bytes) and `process_count_delta' the difference between these two,
%% `avg_gc_pause' the mean pause in milliseconds, `gc' all figures of the collections, `duration_ms'
%% how long it ran. The data can be read until the next start. `{error, timeout}' where the session's
%% process does not reply within 15 seconds, for instance because it is suspended: the session ends
%% when that goes on.
-spec stop_profiling() ->
    #{
        baseline := snapshot_map(),
        final := snapshot_map(),
        snapshots := pos_integer(),
        total_memory_delta := integer(),
        process_count_delta := integer(),
        avg_gc_pause := float(),
        gc := gc(),
        duration_ms := non_neg_integer()
    }
    | {error, profiling_not_started | timeout}.
stop_profiling() ->
    case erlmcp_memory_sampler:stop() of
        ok -> summary(erlmcp_memory_nif:profiler_session());
        {error, _} = Error -> Error
    end.

summary(Session) ->
    #{baseline := Baseline, last := Final, held := Held, duration_ms := Duration} =
        erlmcp_memory_nif:profiler_status(Session),
    #{pause_ms := #{mean := Mean}} = Gc = erlmcp_memory_pauses:gc(),
    #{
        baseline => erlmcp_memory_sample:to_map(Baseline),
        final => erlmcp_memory_sample:to_map(Final),
        snapshots => Held,
        total_memory_delta =>
            Final#memory_snapshot.total_memory - Baseline#memory_snapshot.total_memory,
        process_count_delta =>
            Final#memory_snapshot.process_count - Baseline#memory_snapshot.process_count,
        avg_gc_pause => Mean,
        gc => Gc,
        duration_ms => Duration
    }.

%% @doc The data of the running session or, when none runs, of the last one.
%%
%% `snapshots' are the newest `keep' ones, oldest first; the first one ever taken stays in
%% `baseline'.
-spec get_profiling_data() ->
    #{
        baseline := snapshot_map(),
        snapshots := [snapshot_map()],
        snapshot_count := non_neg_integer(),
        duration_ms := non_neg_integer()
    }
    | {error, no_profiling_data}.
get_profiling_data() ->
    case erlmcp_memory_session:last() of
        {ok, Session, #{baseline := Baseline, duration_ms := Duration}} ->
            Samples = erlmcp_memory_nif:profiler_samples(Session),
            #{
                baseline => erlmcp_memory_sample:to_map(Baseline),
                snapshots => [erlmcp_memory_sample:to_map(Sample) || Sample <- Samples],
                snapshot_count => length(Samples),
                duration_ms => Duration
            };
        none ->
            {error, no_profiling_data}
    end.

%% @doc Measures the node now. It takes some tens of microseconds, however many processes there are.
%%
%% `gc_pause_max' is the longest pause in milliseconds since the last call of this function (the
%% session's own snapshots do not reset it), and 0.0 while no session times collections. `{error,
%% notsup}' where the node's allocators are switched off (`erl +Mea min').
-spec measure_memory_snapshot() -> #memory_snapshot{} | {error, notsup}.
measure_memory_snapshot() ->
    erlmcp_memory_sample:measure(caller).

%% @doc By how many bytes total memory grows in this many milliseconds; negative if it shrinks.
%% Blocks the caller for that long; 0 to 4294967295. Returns `{error, notsup}' at once where the
%% node's allocators are switched off.
-spec measure_memory_after_delay(non_neg_integer()) ->
    {integer(), non_neg_integer()} | {error, notsup}.
measure_memory_after_delay(Ms) when is_integer(Ms), Ms >= 0, Ms =< ?MAX_MS ->
    case erlmcp_memory_sample:total() of
        {ok, Before} ->
            ok = timer:sleep(Ms),
            {erlang:memory(total) - Before, Ms};
        {error, notsup} ->
            {error, notsup}
    end;
measure_memory_after_delay(Ms) ->
    ?BADARG([Ms], 1, <<"not an integer of milliseconds from 0 to 4294967295">>).

%% @doc The node's total memory divided by a number of connections: in whole bytes, and in
%% megabytes. `{error, notsup}' where the node's allocators are switched off.
-spec memory_per_connection(pos_integer()) ->
    {Bytes :: non_neg_integer(), MegaBytes :: float()} | {error, notsup}.
memory_per_connection(Count) when is_integer(Count), Count > 0 ->
    case erlmcp_memory_sample:total() of
        {ok, Total} ->
            Bytes = Total div Count,
            {Bytes, Bytes / ?MB};
        {error, notsup} ->
            {error, notsup}
    end;
memory_per_connection(Count) ->
    ?BADARG([Count], 1, <<"not a positive integer">>).

%% @doc Whether memory grew over these snapshots, and how fast.
%%
%% Snapshots are records or maps (with `timestamp' in milliseconds and `total_memory' in bytes), in
%% any order; they are sorted by time. Timestamps must be from a clock that was not set in between,
%% as the system clock may be. The snapshots of this module also hold the difference between that
%% clock and the monotonic one, in `time_offset'; when all have it (an integer other than 0), the
%% time is `timestamp - time_offset', and a step of the system clock changes nothing. A host that
%% makes its own snapshots can do the same with `erlang:time_offset(millisecond)', or use
%% `erlang:monotonic_time(millisecond)' as the `timestamp'. Snapshots of different runs of a node
%% have no common monotonic clock.
%%
%% `trend_slope' is the Theil-Sen estimate in bytes a second, the median of the slopes between all
%% pairs; 0.0 when all have the same time. `leak_indication' is `<<"possible_memory_leak">>' when
%% the growth is significant (Student's t at 1 in 10,000, with the number of independent samples
%% corrected for autocorrelation), at least 3 MB an hour, and goes on in the later part of the time;
%% else `<<"normal">>'. A node that filled up and has been level since is normal, even a noisy one.
%% Fewer than three snapshots never count as a leak. Only `total_memory' is used.
-spec analyze_memory_trend([#memory_snapshot{} | snapshot_map()]) ->
    trend() | {error, no_data | need_multiple_snapshots | invalid_input}.
analyze_memory_trend([]) ->
    {error, no_data};
analyze_memory_trend(Snapshots) ->
    case erlmcp_memory_sample:points(Snapshots) of
        invalid_input ->
            {error, invalid_input};
        [_] ->
            {error, need_multiple_snapshots};
        Points ->
            case erlmcp_memory_nif:memory_trend(Points) of
                invalid_input -> {error, invalid_input};
                Trend -> Trend
            end
    end.

%% @doc The running session's data, or the last one's, as text for an operator.
-spec generate_report() -> {ok, string()} | {error, no_profiling_data}.
generate_report() ->
    erlmcp_memory_report:generate().

%% @doc A page for a browser, in one file that refers to nothing outside of it: memory by kind,
%% connections and what each takes, and garbage collection pauses over the time of the running
%% session, or the last one; alerts and what is not measured, the verdict of {@link memory_growth/0},
%% the longest pauses of {@link gc_pauses/0}, the largest shares, and the processes that use the most
%% memory.
%%
%% Written to a file, it opens in any browser:
%%
%% ```
%% 1> {ok, Page} = erlmcp_memory_profiler:generate_report(html).
%% 2> ok = file:write_file("memory.html", Page).
%% '''
%%
%% The page shows keys of shares and names of processes, so it is for operators only. Finding the
%% processes is a walk over all of them, for at most a second. Without a session it has everything
%% but the charts.
-spec generate_report(html) -> {ok, iodata()}.
generate_report(html) ->
    {ok, erlmcp_memory_page:html()};
generate_report(Format) ->
    ?BADARG([Format], 1, <<"not html">>).

%% @doc What the library holds, by kind. Nothing is walked: it takes at most a millisecond, however
%% much there is.
%%
%% <ul>
%% <li>`pooled_states': those in use, and `idle' ones kept for reuse;</li>
%% <li>`compact_states': all versions that are still referred to. What two versions have in common
%%   may be counted for both, but never more than the library holds in all;</li>
%% <li>`parked' terms;</li>
%% <li>`shares', and the `largest' of them, at most ten: `bytes', `holders' (how many states, parked
%%   terms and other shares hold it; 1 if only references do), and a `summary' of its content, for
%%   instance `<<"map of 2: prompts, tools">>': keys, never values;</li>
%% <li>`buffers': message buffers, including empty ones, and `idle' blocks.</li>
%% </ul>
%%
%% `bytes' are as in memory, with the headers of the VM's allocators and objects.
-spec inventory() -> inventory().
inventory() ->
    erlmcp_memory_figures:inventory().

%% @doc The resident memory of the node by kind, in bytes, each byte counted once: the sum of all is
%% the resident set size. Takes about as long as three calls of `erlang:memory/0', however much
%% there is.
%%
%% <ul>
%% <li>`processes', `binaries', `ets', `atoms', `code': those of `erlang:memory/0', without the
%%   library's share of them;</li>
%% <li>`states' (pooled and compact), `shares', `parked' terms, message `buffers', `samples' of
%%   sessions: what the library holds, with headers, and with what it keeps for reuse;</li>
%% <li>`other': the VM's own tables and structures, drivers, and the programs and libraries that the
%%   process runs;</li>
%% <li>`allocated_unused': what the VM's allocators hold but nothing uses, as far as it is
%%   resident;</li>
%% <li>`unaccounted': the rest, such as stacks of threads and what was allocated outside the VM.
%%   Below zero where something that is in use was never touched, or was swapped out.</li>
%% </ul>
%%
%% `{error, notsup}' where the node's allocators are switched off (`erl +Mea min').
-spec memory_breakdown() -> breakdown() | {error, notsup}.
memory_breakdown() ->
    erlmcp_memory_figures:breakdown().

%% @doc The node's figures in the Prometheus text format, for a handler of `/metrics' with the
%% content type `text/plain; version=0.0.4'. Nothing is walked.
-spec metrics() -> iodata().
metrics() ->
    erlmcp_memory_metrics:text().

%% @doc What is over its threshold now; `[]' when all is well: those of {@link health/0} whose level is
%% `warning' or `critical'.
-spec alerts() -> [alert()] | {error, notsup}.
alerts() ->
    erlmcp_memory_health:alerts(erlmcp_memory_health:health()).

%% @doc Every metric with its level, each time: `ok', `warning', `critical', or `not_measured' where
%% nothing can be said; then `value' is `undefined'.
%%
%% <table border="1">
%% <tr><th>metric</th><th>value</th><th>warning</th><th>critical</th></tr>
%% <tr><td>`memory_per_connection'</td><td>MB: total memory over connections (pooled states in use,
%%   compact states and parked terms, or what the setting `connection_count' says), from 100 of
%%   these on: below, the node's own memory would be blamed on a few
%%   connections</td><td>over 2.5</td><td>over 3.0</td></tr>
%% <tr><td>`reuse_ratio'</td><td>percent of the pool's acquisitions in the window, when there were a
%%   hundred: reused ones among these and those that had to make a state although one had come back
%%   in the window and had not been kept. All others that had to make one are growth, and not
%%   judged</td><td>under 70.0</td><td>under 50.0</td></tr>
%% <tr><td>`gc_pause'</td><td>ms: the longest pause in the window</td><td>over 80.0</td><td>over
%%   150.0</td></tr>
%% <tr><td>`memory_growth'</td><td>MB an hour of total memory, where it is significant and goes on,
%%   0.0 where memory is steady: see {@link memory_growth/0}</td><td>over 5.0</td><td>over
%%   10.0</td></tr>
%% <tr><td>`resident_growth'</td><td>the same of resident memory</td><td>over 5.0</td><td>over
%%   10.0</td></tr>
%% <tr><td>`processes', `ports', `file_descriptors'</td><td>percent of the limit that is in
%%   use</td><td>over 80.0</td><td>over 95.0</td></tr>
%% </table>
%%
%% The window is the last ten minutes (setting `alert_window', in milliseconds), so that an alert ends
%% when its cause has ended. Growth needs a running session, and pauses one that times collections.
%% Thresholds are the setting `alert_thresholds', a map of `Metric => {Warning, Critical}'.
%% `advice' is a sentence that names the call that helps.
%%
%% While the application is started or a session runs, levels are checked every five seconds. When a
%% level changes, the setting `{alert_handler, {Module, Function}}' is called with the map and
%% `previous', the level of before, in a process of its own for at most five seconds. A metric
%% that starts or stops being measured is not a change, unless that ends an alert. If the
%% module `telemetry' is loaded, it executes `[erlmcp_memory, alert]' with the `value', and
%% `[erlmcp_memory, sample]' with each snapshot.
%%
%% Raises `{invalid_config, Key, Value}' for a wrong setting. `{error, notsup}' where the node's
%% allocators are switched off (`erl +Mea min').
-spec health() -> [health()] | {error, notsup}.
health() ->
    erlmcp_memory_health:health().

%% @doc Whether memory grows, by kind: the last six hours (36 windows of {@link health/0}) of the running
%% session, or of the last one.
%%
%% `growing': it grows, certainly, and goes on. `steady': it does not, or no faster than matters (5 MB
%% an hour, the warning of `memory_growth') at 19 to 1. `too_short': neither can be said, because
%% samples go back less than half an hour or are noisy. `mb_per_hour' is the Theil-Sen slope, whatever
%% the verdict, and `confidence' how sure that is, from 0.0 to 1.0; 0.0 for `too_short'. A start that
%% filled the node up, and a node that was level since, is `steady'.
%%
%% Kinds are `total', `resident', and of the total `processes', `binaries', `ets', `atoms' and
%% `native' (which is counted among binaries and others).
-spec memory_growth() -> growth() | {error, no_profiling_data}.
memory_growth() ->
    erlmcp_memory_growth:session().

%% @doc The same of these snapshots, records or maps, as {@link analyze_memory_trend/1} takes them; for
%% the kinds that all of them have.
-spec memory_growth([#memory_snapshot{} | snapshot_map()]) ->
    growth() | {error, no_data | invalid_input}.
memory_growth(Snapshots) ->
    erlmcp_memory_growth:snapshots(Snapshots).

%% @doc The ten longest garbage collection pauses of the last ten minutes (of the window of {@link
%% health/0}), the longest first, and `time_share', what all pauses took of the time of schedulers.
%%
%% Each has `pause_ms', the `timestamp' of its end in milliseconds since the epoch, and the process
%% with its label or registered `name', and the `function' where it began. These are read with the
%% next snapshot, and empty if the process had ended. `measured' is false where no session that runs
%% times collections, or its process does not reply within five seconds; the rest is then what was
%% timed in the window before. `timed_ms' is for how long they were timed in it.
-spec gc_pauses() -> gc_pauses().
gc_pauses() ->
    erlmcp_memory_pauses:pauses().

%% @doc The processes that have most of `memory', of `binary' (bytes of binaries that they refer to) or of
%% `message_queue_len': at most `Count' (1 to 1000), the greatest first.
%%
%% That is a walk over all processes, in a process of its own and for at most five seconds: after
%% these, `complete' is false, and the greatest of those looked at are returned. Asking these who they
%% are takes a second at most: one that does not say in time has an empty `name' and `function', and
%% figures of 0 but for the one asked for.
%%
%% The binaries of a process with more than 10,000 messages are not looked for, since that takes the
%% VM long: its `binaries' is `not_measured', it comes first of those of `binary', and `complete' is
%% false. Binaries in messages that wait are counted once that process has collected its garbage, and
%% not before; look at `message_queue_len' too.
-spec top_processes(memory | binary | message_queue_len, Count :: 1..1000) -> top().
top_processes(By, Count) when
    By =/= memory, By =/= binary, By =/= message_queue_len
->
    ?BADARG([By, Count], 1, <<"not memory, binary or message_queue_len">>);
top_processes(By, Count) when is_integer(Count), Count >= 1, Count =< 1000 ->
    erlmcp_memory_top:top(By, Count, ?TOP_MS);
top_processes(By, Count) ->
    ?BADARG([By, Count], 2, <<"not an integer from 1 to 1000">>).

%% @doc The same as `create_test_connections(Count, Server, #{})'.
-spec create_test_connections(pos_integer(), pid()) -> {ok, [pid()]} | {error, term()}.
create_test_connections(Count, Server) ->
    case wrong_connections(Count, Server, #{}) of
        ok -> erlmcp_memory_load_test_connections:create(Count, Server, #{});
        {Position, Text} -> ?BADARG([Count, Server], Position, Text)
    end.

%% @doc Starts this many connection processes, to measure or to test with.
%%
%% Each holds a pooled state and a compact state with metadata and shared capabilities, and
%% hibernates. It ends when the process `Server' does, or by {@link stop_test_connections/1}; it
%% does not end with the caller. `Server' is any live process of this node.
%%
%% Options: `metadata', a map that every connection gets (by default a different small one for
%% each), `capabilities', any term, which all of them share (by default 40 generated tools with
%% their schemas and encoded replies). Anything else is a `badarg'.
%%
%% All are started, or none: `{error, not_started}' where the pool is not running, `{error,
%% {too_many_connections, Limit}}' where the node's process limit leaves room for no more than
%% `Limit' (1000 processes are reserved for the rest of the node; see `+P' of erl), and `{error,
%% Reason}' with the reason why a connection did not start.
-spec create_test_connections(pos_integer(), pid(), connection_options()) ->
    {ok, [pid()]}
    | {error, not_started | {too_many_connections, non_neg_integer()} | term()}.
create_test_connections(Count, Server, Options) ->
    case wrong_connections(Count, Server, Options) of
        ok -> erlmcp_memory_load_test_connections:create(Count, Server, Options);
        {Position, Text} -> ?BADARG([Count, Server, Options], Position, Text)
    end.

wrong_connections(Count, _, _) when not is_integer(Count); Count < 1 ->
    {1, <<"not a positive integer">>};
wrong_connections(_, Server, _) when not is_pid(Server); node(Server) =/= node() ->
    {2, <<"not a process of this node">>};
wrong_connections(_, Server, Options) ->
    case is_process_alive(Server) of
        true -> wrong_connection_options(Options);
        false -> {2, <<"not alive">>}
    end.

wrong_connection_options(#{metadata := Metadata}) when not is_map(Metadata) ->
    {3, <<"metadata is not a map">>};
wrong_connection_options(Options) when is_map(Options) ->
    case maps:keys(maps:without([metadata, capabilities], Options)) of
        [] -> ok;
        _ -> {3, <<"an unknown option; known are metadata and capabilities">>}
    end;
wrong_connection_options(_) ->
    {3, <<"not a map of options">>}.

%% @doc Ends test connections, and returns when all are gone; those that do not end within five
%% seconds are killed. Connections that have ended already are not an error.
-spec stop_test_connections([pid()]) -> ok.
stop_test_connections(Pids) ->
    case erlmcp_memory_load_test_connections:are_connections(Pids) of
        true -> erlmcp_memory_load_test_connections:stop(Pids);
        false -> ?BADARG([Pids], 1, <<"not a list of test connections">>)
    end.

%% @doc The same as `simulate_100k_load(Count, #{})'.
-spec simulate_100k_load(pos_integer()) -> load_result() | {error, term()}.
simulate_100k_load(Count) when is_integer(Count), Count > 0 ->
    erlmcp_memory_load_simulation:run(Count, load_defaults());
simulate_100k_load(Count) ->
    ?BADARG([Count], 1, <<"not a positive integer">>).

%% @doc Runs this many real connection processes through their life, measures it, and takes
%% everything down again.
%%
%% Each connection acquires a pooled state, builds a compact state with metadata and shared
%% capabilities, receives an `initialize' message in pieces through a message buffer, replies to it
%% and hibernates. Then come rounds of messages over all of them (`tools/list' and `tools/call' in
%% turn), then all are closed. Every reply is verified: it must come from the right connection, with
%% the right number of messages received, to the right request, with the right result; and the
%% connection's two states must agree. The pool is started for the run if it is not running.
%%
%% Options: `rounds' of messages after the first one (2; at most 1,000,000), `drivers', how many
%% processes act as the clients, each with one message in flight (two a scheduler; at most 1000),
%% `progress', whether to show it (true): in a terminal on one line rewritten in place, elsewhere as
%% a log message of level notice every five seconds. Anything else is a `badarg'.
%%
%% Errors, at once: `notsup' where the node's allocators are switched off (`erl +Mea min');
%% `{too_many_connections, Limit}' where the process limit leaves room for no more than `Limit' (see
%% {@link create_test_connections/3}); `profiling_in_progress' where a session is running, which the
%% simulation's own would end; `simulation_in_progress', one at a time; `{invalid_config, Key,
%% Value}' where the pool cannot be started. Afterwards the simulation's session is the last one:
%% {@link generate_report/0} and {@link get_profiling_data/0} are about it.
%%
%% When the caller dies, the run takes everything down by itself.
%%
%% The result:
%%
%% <ul>
%% <li>`target_connections', `batches_completed' (of 10,000 connections), `duration_ms';</li>
%% <li>`final_process_count', `final_total_memory_mb', `final_memory_per_connection' (bytes),
%%   `final_memory_per_connection_mb': measured while all are connected and idle after the rounds;
%%   `baseline_memory_mb' before the start, `memory_delta_mb' between the two. What a connection
%%   takes is the growth of total memory divided by their number, at least 0;</li>
%% <li>`batch_results', a map after each batch: `batch', `connection_count' (all so far),
%%   `memory_per_connection', `memory_per_connection_mb', `total_memory_mb', `process_count',
%%   `timestamp';</li>
%% <li>`memory': `before', `peak' and `afterwards', each in bytes: `total', and of these
%%   `processes', `binaries' (with the VM's headers of native resources) and `native'; and
%%   `resident' as the operating system counts. `bytes_per_connection' has the same keys;
%%   `resident_bytes_per_connection' is one of them. Native bytes are those of the whole library;
%%   </li>
%% <li>`latency' in microseconds: of `acquire', `update' (one state field) and `message' (from its
%%   first piece sent to its reply sent), each with `count', `min', `mean', `p50', `p90', `p99',
%%   `p999', `max';</li>
%% <li>`gc_pause' in milliseconds: `measured => true', `collections', `min', `mean', `p50', `p90',
%%   `p99', `p999', `max'; or `measured => false' with a `reason', `{already_traced, Tracer}',
%%   `trace_flags_cleared' (by another program during the run) or `session_replaced'. It covers the
%%   collections of all processes of the node;</li>
%% <li>`errors', and `first_errors', at most 10 terms that describe them;</li>
%% <li>`states_left', `buffer_bytes_left', `processes_left': what was not released after 20 seconds.
%%   States that others acquire during the run are not counted; bytes in message buffers that others
%%   hold at the end and did not at the start are;</li>
%% <li>`pool': `started', whether the run started (and stopped) it, and what it kept idle at the
%%   end, `idle_states', `idle_bytes', `idle_buffer_bytes';</li>
%% <li>`success': under 2.0 MB for a connection, no errors, nothing left.</li>
%% </ul>
-spec simulate_100k_load(pos_integer(), load_options()) ->
    load_result()
    | {error,
        notsup
        | {too_many_connections, non_neg_integer()}
        | profiling_in_progress
        | simulation_in_progress
        | term()}.
simulate_100k_load(Count, Options) when is_integer(Count), Count > 0, is_map(Options) ->
    case wrong_options(fun wrong_load/2, Options) of
        [] -> erlmcp_memory_load_simulation:run(Count, maps:merge(load_defaults(), Options));
        [Text | _] -> ?BADARG([Count, Options], 2, Text)
    end;
simulate_100k_load(Count, Options) when is_integer(Count), Count > 0 ->
    ?BADARG([Count, Options], 2, <<"not a map of options">>);
simulate_100k_load(Count, Options) ->
    ?BADARG([Count, Options], 1, <<"not a positive integer">>).

load_defaults() ->
    #{progress => true, rounds => 2, drivers => 2 * erlang:system_info(schedulers_online)}.

wrong_load(progress, Progress) when is_boolean(Progress) -> ok;
wrong_load(progress, _) -> <<"progress is not a boolean">>;
wrong_load(rounds, N) when is_integer(N), N >= 0, N =< ?MAX_ROUNDS -> ok;
wrong_load(rounds, _) -> <<"rounds is not an integer from 0 to 1000000">>;
wrong_load(drivers, N) when is_integer(N), N >= 1, N =< ?MAX_DRIVERS -> ok;
wrong_load(drivers, _) -> <<"drivers is not an integer from 1 to 1000">>;
wrong_load(_, _) -> <<"an unknown option; known are progress, rounds and drivers">>.
