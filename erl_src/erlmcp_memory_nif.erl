%% @private
%% @doc The bridge to the native library: stubs, and the load of the library itself.
%%
%% Internal. The states of the node are in the library, so a node keeps the library that it loaded
%% first. When this module is deleted and loaded again, it takes over that library; a different
%% library refuses to load, and then every call raises `not_loaded'. Users call the modules in front
%% of this one, which can be replaced at any time.
%%
%% A function whose work depends on the size of its arguments does small work on its caller's
%% scheduler; for more, the VM calls it again on a dirty CPU scheduler. `{badarg, Position, Text}'
%% says which argument of the public function is wrong.
-module(erlmcp_memory_nif).

-on_load(load/0).

%% --- shared content ---
-export([
    share_new/3,
    share_get/1,
    share_find/3,
    share_update/5,
    share_remove/3,
    share_is/1
]).
%% --- parked terms ---
-export([
    park/3,
    unpark/1,
    slot_new/0,
    slot_park/3,
    slot_rest/1,
    slot_fold/1,
    slot_list/1,
    slot_unlist/1,
    roster/0,
    roster_tell/2,
    is_peak_over/0,
    next_peak/0,
    slot_words/1,
    slot_wake/1,
    slot_peek/1,
    slot_start/2,
    started/1,
    slot_awake/2,
    slot_reserve/2,
    slot_enter/1,
    slot_enter/2,
    slot_leave/1,
    awake_bytes/0
]).
%% --- connection states ---
-export([
    state_new/2,
    state_update/5,
    state_get/3,
    state_remove/3,
    state_fields/1,
    state_from_fields/2,
    state_from_map/2,
    state_sizes/1,
    state_cleanup/1,
    state_compress/2,
    state_decompress/2,
    state_update_all/3,
    state_is/1,
    state_outline/2
]).
%% --- maps in states and in shared content ---
-export([inside_len/3, inside_entries/4]).

-type badarg() :: {badarg, Position :: pos_integer(), Text :: binary()}.

-type closed() :: {closed, [term()]} | collect(term()).
%% These terms must be opened first: see `erlmcp_memory_opened'. Any call that may return this may
%% also ask for a collection.

-type shared() :: {shared, Keys :: non_neg_integer(), reference()}.
%% After this many keys, the path of a change leads into this shared content.

-type collect(Result) :: {collect, Result}.
%% The result; the wrapper must collect the caller's garbage first: see `garbage.rs' in the library.

-type opened() :: [tuple()].
%% What was opened; `[]' in the first call.

-type bytes() :: non_neg_integer().
%% The size of the argument if it is a binary, else 0: see `Lane::admit' in the library.

-export_type([badarg/0, shared/0, closed/0, collect/1, opened/0, bytes/0]).

%% --- terms that the NIF interface cannot look into ---
-export([terms_closed/2, terms_unopened/2, term_size/2]).

%% --- the library ---
-export([library/0]).
%% --- profiler ---
-export([
    native_bytes/0,
    profiler_start/3,
    profiler_stop/1,
    profiler_gc_lost/1,
    profiler_window/2,
    profiler_tag/2,
    profiler_growth/4,
    memory_growth/2,
    health_window/1,
    gc_worst/1,
    gc_unnamed/0,
    gc_name/4,
    file_descriptors/0,
    profiler_push/2,
    profiler_session/0,
    profiler_status/1,
    profiler_samples/1,
    profiler_trend/1,
    profiler_gc/0,
    profiler_probe/1,
    profiler_charts/1,
    profiler_gc_totals/0,
    chart_kinds/0,
    inventory/0,
    largest_shares/1,
    resident/0,
    c_heap/0,
    pause_bounds/0,
    memory_trend/1,
    histogram_new/0,
    histogram_record/2,
    histogram_read/1,
    histogram_percentile/2
]).
%% --- the tracer: erl_tracer's callbacks ---
-export([enabled/3, trace/5]).

-include("erlmcp_memory.hrl").

%% --- pool ---
-export([
    pool_start/2,
    pool_stop/0,
    pool_prepare/1,
    pool_shed/1,
    pool_trim/0,
    pool_stats/0,
    pool_acquire/3,
    pool_created_aside/0,
    pool_release/1,
    pool_read/1,
    pool_update/3,
    buffer_stats/0,
    buffer_zeros/1,
    buffer_acquire/2,
    buffer_release/1,
    buffer_append/3,
    buffer_take/3,
    buffer_next/1,
    buffer_held/1
]).

-define(NOT_LOADED, erlang:nif_error({not_loaded, ?ANOTHER})).
-define(ANOTHER,
    "the native library of erlmcp_memory is another one than the node has: it cannot be replaced "
    "in a running node; restart the node to load the other one"
).

%% Where the module was deleted, it takes over the library that the node has, and all that is in it;
%% another library does not load, and then every call says so.
-spec load() -> ok | {error, term()}.
load() ->
    case erlang:function_exported(?MODULE, library, 0) of
        true ->
            {error,
                "erlmcp_memory_nif is loaded and stays in use: it cannot be replaced in a running "
                "node; restart the node to load another native library"};
        false ->
            Known = persistent_term:get(?MODULE, 0),
            case erlang:load_nif(filename:join(priv_dir(), ?MODULE_STRING), Known) of
                ok -> persistent_term:put(?MODULE, library());
                {error, {Refused, _}} when Known =/= 0, Refused =/= load_failed -> ok;
                {error, _} = Error -> Error
            end
    end.

%% In a release and under rebar3 the code server knows the application; a shell started with plain
%% -pa knows at least where this module is.
priv_dir() ->
    case code:priv_dir(erlmcp_memory) of
        {error, bad_name} ->
            filename:join(filename:dirname(filename:dirname(code:which(?MODULE))), "priv");
        Dir ->
            Dir
    end.

%% --- terms that the NIF interface cannot look into ---

%% @doc The terms in what was just opened that must be opened as well, and the least size of all of
%% it in the packed form, in bytes.
-spec terms_closed(New :: opened(), Bytes :: non_neg_integer()) ->
    {[term()], non_neg_integer()} | badarg().
terms_closed(_New, _Bytes) -> ?NOT_LOADED.

%% @doc The terms that were not opened yet, and what was opened, each once.
-spec terms_unopened([term()], opened()) -> {[term()], opened()}.
terms_unopened(_Terms, _Opened) -> ?NOT_LOADED.

%% @doc Bytes that a term takes on a heap with nothing shared, and in binaries off the heap; and
%% bytes of the shared content that it refers to.
-spec term_size(term(), opened()) ->
    {non_neg_integer(), non_neg_integer()} | badarg() | closed().
term_size(_Term, _Opened) -> ?NOT_LOADED.

%% --- shared content ---

-spec share_new(term(), opened(), bytes()) ->
    reference() | collect(reference()) | badarg() | closed().
share_new(_Term, _Opened, _Bytes) -> ?NOT_LOADED.

-spec share_get(term()) -> {ok, term()} | badarg().
share_get(_Ref) -> ?NOT_LOADED.

-spec share_find(term(), term(), opened()) -> {ok, term()} | none | badarg() | closed().
share_find(_Ref, _Path, _Opened) -> ?NOT_LOADED.

%% --- parked terms ---

-spec park(term(), opened(), bytes()) ->
    reference() | collect(reference()) | badarg() | closed().
park(_Term, _Opened, _Bytes) -> ?NOT_LOADED.

-spec unpark(term()) -> {ok, term()} | badarg().
unpark(_Ref) -> ?NOT_LOADED.

%% @doc A slot for the state of one server. When its last reference goes, so do its awake bytes and
%% its place.
-spec slot_new() -> reference().
slot_new() -> ?NOT_LOADED.

%% @doc Packs the state into the slot in place of what was there; afterwards no bytes are awake. On
%% `badarg' the slot is unchanged.
-spec slot_park(Slot :: reference(), State :: term(), opened()) -> ok | badarg() | closed().
slot_park(_Slot, _State, _Opened) -> ?NOT_LOADED.

%% @doc Says that what the slot holds is still the state: no bytes are awake.
-spec slot_rest(Slot :: reference()) -> ok.
slot_rest(_Slot) -> ?NOT_LOADED.

%% @doc Moves the state to newly allocated, smaller memory, and returns the slot that holds it. If
%% that is another slot, the old one must not be used any more.
-spec slot_fold(Slot :: reference()) -> reference().
slot_fold(_Slot) -> ?NOT_LOADED.

%% @doc Adds the calling process to the roster of servers that are notified when the peak of awake
%% bytes is over. Returns `false', and adds nothing, if there was no peak.
-spec slot_list(Slot :: reference()) -> boolean().
slot_list(_Slot) -> ?NOT_LOADED.

%% @doc Takes the server out of the roster. `true': it was notified, and has the message.
-spec slot_unlist(Slot :: reference()) -> boolean().
slot_unlist(_Slot) -> ?NOT_LOADED.

%% @doc How many servers are in the roster.
-spec roster() -> non_neg_integer().
roster() -> ?NOT_LOADED.

%% @doc Takes at most `Most' servers out of the roster, sends each the message, and returns how
%% many are left.
-spec roster_tell(Most :: pos_integer(), Message :: tuple()) -> non_neg_integer().
roster_tell(_Most, _Message) -> ?NOT_LOADED.

%% @doc Whether awake bytes have fallen to a small part of their peak.
-spec is_peak_over() -> boolean().
is_peak_over() -> ?NOT_LOADED.

%% @doc Forgets the present peak.
-spec next_peak() -> ok.
next_peak() -> ?NOT_LOADED.

%% @doc About how many words the state takes on a heap when it is built; 0 without a state.
-spec slot_words(Slot :: reference()) -> non_neg_integer().
slot_words(_Slot) -> ?NOT_LOADED.

%% @doc Builds the state, which stays in the slot, and counts about its size as awake bytes.
-spec slot_wake(Slot :: reference()) -> State :: term().
slot_wake(_Slot) -> ?NOT_LOADED.

%% @doc Builds the state without counting its bytes as awake.
-spec slot_peek(Slot :: reference()) -> State :: term().
slot_peek(_Slot) -> ?NOT_LOADED.

%% @doc Counts the bytes that a starting server is expected to take. `{false, Ms}': the node would
%% exceed the limit of awake bytes; the server must ask again after `Ms' milliseconds.
-spec slot_start(Slot :: reference(), Limit :: non_neg_integer() | infinity) ->
    {true, Bytes :: non_neg_integer()} | {false, Ms :: pos_integer()}.
slot_start(_Slot, _Limit) -> ?NOT_LOADED.

%% @doc Tells how many bytes a server has awake now that it has started, for what is expected of
%% the next.
-spec started(Bytes :: non_neg_integer()) -> ok.
started(_Bytes) -> ?NOT_LOADED.

%% @doc Sets how many bytes the server has awake; returns the total of the node.
-spec slot_awake(Slot :: reference(), Bytes :: non_neg_integer()) -> non_neg_integer().
slot_awake(_Slot, _Bytes) -> ?NOT_LOADED.

%% @doc Counts what the state in the slot will take, unless the node would then have more than the
%% limit awake.
-spec slot_reserve(Slot :: reference(), Limit :: non_neg_integer() | infinity) -> boolean().
slot_reserve(_Slot, _Limit) -> ?NOT_LOADED.

%% @doc Takes a place among the idle servers that park at the same time: half of the dirty
%% schedulers, at least one.
-spec slot_enter(Slot :: reference()) -> boolean().
slot_enter(Slot) ->
    slot_enter(Slot, max(1, erlang:system_info(dirty_cpu_schedulers_online) div 2)).

-spec slot_enter(Slot :: reference(), Places :: pos_integer()) -> boolean().
slot_enter(_Slot, _Places) -> ?NOT_LOADED.

%% @doc Gives the place back.
-spec slot_leave(Slot :: reference()) -> ok.
slot_leave(_Slot) -> ?NOT_LOADED.

%% @doc Bytes that all servers of the node have awake.
-spec awake_bytes() -> non_neg_integer().
awake_bytes() -> ?NOT_LOADED.

-spec share_update(term(), term(), term(), opened(), bytes()) ->
    reference() | collect(reference()) | shared() | badarg() | closed().
share_update(_Ref, _Path, _Value, _Opened, _Bytes) -> ?NOT_LOADED.

-spec share_remove(term(), term(), opened()) -> reference() | shared() | badarg() | closed().
share_remove(_Ref, _Path, _Opened) -> ?NOT_LOADED.

-spec share_is(term()) -> boolean().
share_is(_Term) -> ?NOT_LOADED.

%% --- maps in states and in shared content ---

%% @doc The number of entries; `none' if the value is not a map.
-spec inside_len(term(), term(), opened()) ->
    {ok, non_neg_integer()} | none | badarg() | closed().
inside_len(_StateOrShare, _Path, _Opened) -> ?NOT_LOADED.

%% @doc Some entries, beginning with this number, and the number of the next one.
-spec inside_entries(term(), term(), From :: non_neg_integer(), opened()) ->
    {[{term(), term()}], Next :: pos_integer() | done} | none | badarg() | closed().
inside_entries(_StateOrShare, _Path, _From, _Opened) -> ?NOT_LOADED.

%% --- connection states ---

-spec state_new(term(), bytes()) -> reference() | badarg().
state_new(_Id, _Bytes) -> ?NOT_LOADED.

-spec state_update(term(), term(), term(), opened(), bytes()) ->
    reference() | collect(reference()) | shared() | badarg() | closed().
state_update(_State, _Field, _Value, _Opened, _Bytes) -> ?NOT_LOADED.

-spec state_get(term(), term(), opened()) -> {ok, term()} | none | badarg() | closed().
state_get(_State, _Field, _Opened) -> ?NOT_LOADED.

-spec state_remove(term(), term(), opened()) -> reference() | shared() | badarg() | closed().
state_remove(_State, _Field, _Opened) -> ?NOT_LOADED.

%% @doc A new value for each field and path; `none' if a path leads through a value that is not a
%% map of the state.
-spec state_update_all(term(), term(), opened()) ->
    reference() | collect(reference()) | none | badarg() | closed().
state_update_all(_State, _Fields, _Opened) -> ?NOT_LOADED.

-spec state_is(term()) -> boolean().
state_is(_Term) -> ?NOT_LOADED.

%% @doc The first fields with their sizes in bytes, their values if all of these together take at
%% most this many bytes, and the number of other fields.
-spec state_outline(term(), Bytes :: non_neg_integer()) ->
    {[{atom(), Bytes :: non_neg_integer(),
        {value, term()} | {map, Entries :: non_neg_integer()} | {share, non_neg_integer()} | large}],
    Others :: non_neg_integer()}
    | badarg().
state_outline(_State, _Bytes) -> ?NOT_LOADED.

-spec state_fields(term()) -> #{atom() => term()} | badarg().
state_fields(_State) -> ?NOT_LOADED.

-spec state_from_fields(term(), opened()) ->
    reference() | collect(reference()) | badarg() | closed().
state_from_fields(_Fields, _Opened) -> ?NOT_LOADED.

%% @doc As {@link state_from_fields/2}, without what is `undefined', and with a phase and a time of
%% creation if there is none.
-spec state_from_map(term(), opened()) ->
    reference() | collect(reference()) | badarg() | closed().
state_from_map(_Map, _Opened) -> ?NOT_LOADED.

-spec state_sizes(term()) -> #{atom() => non_neg_integer()} | badarg().
state_sizes(_State) -> ?NOT_LOADED.

-spec state_cleanup(term()) -> ok | badarg().
state_cleanup(_State) -> ?NOT_LOADED.

-spec state_compress(term(), boolean()) -> binary() | badarg().
state_compress(_State, _Compressed) -> ?NOT_LOADED.

-spec state_decompress(term(), bytes()) ->
    reference() | collect(reference()) | {error, term()}.
state_decompress(_Snapshot, _Bytes) -> ?NOT_LOADED.

%% --- the library ---

%% @doc What distinguishes the library from others that the node may have loaded.
-spec library() -> non_neg_integer().
library() ->
    ?NOT_LOADED.

%% --- profiler ---

%% @doc Bytes that the library's own code holds on the heap. Not included: what the VM's allocators
%% add to each block, and what the VM allocates for the library, mainly the headers of resources
%% (about 90 bytes each). `erlang:memory(total)' includes all of these.
-spec native_bytes() -> non_neg_integer().
native_bytes() ->
    ?NOT_LOADED.

%% @doc Begins a session in place of the last one; it ends when the process dies. Where it times
%% collections, a window is open, in which nothing counts yet.
-spec profiler_start(Owner :: pid(), Keep :: pos_integer(), Gc :: boolean()) -> reference().
profiler_start(_Owner, _Keep, _Gc) ->
    ?NOT_LOADED.

%% @doc Ends a session. Ending it again is not an error.
-spec profiler_stop(reference()) -> ok.
profiler_stop(_Session) ->
    ?NOT_LOADED.

%% @doc Notes that trace flags of the session were cleared: from now on it measures no collections.
-spec profiler_gc_lost(reference()) -> ok.
profiler_gc_lost(_Session) ->
    ?NOT_LOADED.

%% @doc A window of the session opens, counts collections from now on, stops that, and closes.
-spec profiler_window(reference(), open | count | stop | close) -> ok.
profiler_window(_Session, _Step) ->
    ?NOT_LOADED.

%% @doc Gives the session a tag, by which its sampler knows it again.
-spec profiler_tag(reference(), pos_integer()) -> ok.
profiler_tag(_Session, _Tag) ->
    ?NOT_LOADED.

%% @doc What is said of the growth of the first kinds of memory, from the samples of the last
%% milliseconds of the session.
-spec profiler_growth(reference(), Back :: float(), asked(), Kinds :: pos_integer()) ->
    [{Kind :: binary(), growth()}].
profiler_growth(_Session, _Back, _Asked, _Kinds) ->
    ?NOT_LOADED.

%% @doc The same of points `{Milliseconds, Bytes}'.
-spec memory_growth([{number(), non_neg_integer()}], asked()) -> growth().
memory_growth(_Points, _Asked) ->
    ?NOT_LOADED.

-type asked() :: {Least :: float(), Matters :: float(), SpanMs :: float()}.
%% Bytes an hour that growth is at least, those that matter, and for how long samples must go back.

-type growth() ::
    {growing | steady | too_short, BytesAnHour :: float(), Confidence :: float()}.

%% @doc What the counters moved by in the last milliseconds, and how things stand: `window_ms',
%% `reused', `avoidable', `paused_ns', `timed_ns', `pool_started', `gc_measured', `connections'.
-spec health_window(pos_integer()) -> #{atom() => non_neg_integer() | boolean()}.
health_window(_Window) ->
    ?NOT_LOADED.

%% @doc The worst pauses of the last milliseconds, the longest first: maps of `pid', `kind', `ns',
%% `at', `ago_ns', `name' and `function' (`nil' until they are named).
-spec gc_worst(pos_integer()) -> [#{atom() => term()}].
gc_worst(_Window) ->
    ?NOT_LOADED.

%% @doc Those of the newest minute that have no name.
-spec gc_unnamed() -> [{pid(), At :: non_neg_integer()}].
gc_unnamed() ->
    ?NOT_LOADED.

%% @doc Names a pause.
-spec gc_name(pid(), At :: non_neg_integer(), Name :: binary(), Function :: binary()) -> ok.
gc_name(_Pid, _At, _Name, _Function) ->
    ?NOT_LOADED.

%% @doc `{Used, Limit}' of the process's file descriptors; `nil' where the system does not tell.
-spec file_descriptors() -> {non_neg_integer(), non_neg_integer()} | nil.
file_descriptors() ->
    ?NOT_LOADED.

%% @doc Adds a snapshot, which may be of an older header; `false' when the session has ended.
-spec profiler_push(reference(), #memory_snapshot{}) -> boolean().
profiler_push(_Session, _Snapshot) ->
    ?NOT_LOADED.

%% @doc The last session, running or not.
-spec profiler_session() -> reference() | undefined.
profiler_session() ->
    ?NOT_LOADED.

%% @doc `running', `gc_measured', `gc_lost_ms' (after how many milliseconds {@link
%% profiler_gc_lost/1} was called, or `nil'), `baseline' and `last' (a snapshot or `nil'), `held'
%% and `taken' (counts), `duration_ms'.
-spec profiler_status(reference()) -> #{atom() => term()}.
profiler_status(_Session) ->
    ?NOT_LOADED.

%% @doc The snapshots, oldest first.
-spec profiler_samples(reference()) -> [#memory_snapshot{}].
profiler_samples(_Session) ->
    ?NOT_LOADED.

%% @doc The trend of a session; `undefined' for fewer than two snapshots.
-spec profiler_trend(reference()) -> #{atom() => term()} | undefined.
profiler_trend(_Session) ->
    ?NOT_LOADED.

%% @doc The garbage collections of the last session.
-spec profiler_gc() -> #{atom() => term()}.
profiler_gc() ->
    ?NOT_LOADED.

%% @doc `{NativeBytes, ResidentBytes, LongestPauseMs, Connections}'; the longest pause since this
%% consumer last asked.
-spec profiler_probe(sampler | caller) ->
    {non_neg_integer(), non_neg_integer(), float(), non_neg_integer()}.
profiler_probe(_Consumer) ->
    ?NOT_LOADED.

%% @doc The charts of a session: `memory', `connections', `per_connection' and `pauses', each a map
%% of `wide' and `narrow', SVG or `nil'.
-spec profiler_charts(reference()) -> #{atom() => #{wide | narrow => binary() | nil}}.
profiler_charts(_Session) ->
    ?NOT_LOADED.

%% @doc `{Minor, Major, ReclaimedBytes, TimedNanos, PauseNanos, Pauses}' of the last session: for how
%% long collections were timed; pauses of up to each of {@link pause_bounds/0}, and longer ones.
-spec profiler_gc_totals() ->
    {non_neg_integer(), non_neg_integer(), non_neg_integer(), non_neg_integer(),
        non_neg_integer(), [non_neg_integer()]}.
profiler_gc_totals() ->
    ?NOT_LOADED.

%% @doc What the memory chart shows, from the bottom up.
-spec chart_kinds() -> [binary()].
chart_kinds() ->
    ?NOT_LOADED.

%% @doc What the library holds: for each kind a map of `count' and `bytes', with `idle' and
%% `idle_bytes' where some are kept for reuse; `rest', bytes of no kind; and how much of all this is
%% among the VM's `binaries', and among the `heaps' of its processes. Each byte is counted once.
-spec inventory() -> #{atom() => non_neg_integer() | #{atom() => non_neg_integer()}}.
inventory() ->
    ?NOT_LOADED.

%% @doc The largest shares, the largest one first, each with `bytes', `holders' and `summary'.
-spec largest_shares(Limit :: pos_integer()) -> [#{atom() => non_neg_integer() | binary()}].
largest_shares(_Limit) ->
    ?NOT_LOADED.

%% @doc `{Total, Mapped}': the resident set size, and the part of it that belongs to files and to
%% machine code.
-spec resident() -> {non_neg_integer(), non_neg_integer()}.
resident() ->
    ?NOT_LOADED.

%% @doc `{Used, Free}': what the C library's allocator handed out, including carriers of the VM's
%% allocators, and what it keeps; `{0, 0}' if it does not tell.
-spec c_heap() -> {non_neg_integer(), non_neg_integer()}.
c_heap() ->
    ?NOT_LOADED.

%% @doc Upper bounds of the buckets of pauses, in nanoseconds.
-spec pause_bounds() -> [pos_integer()].
pause_bounds() ->
    ?NOT_LOADED.

%% @doc The trend of samples `{Milliseconds, Bytes}'.
-spec memory_trend([{number(), non_neg_integer()}]) -> #{atom() => term()} | invalid_input.
memory_trend(_Points) ->
    ?NOT_LOADED.

%% @doc An empty latency histogram. Any number of processes may record into it at once.
-spec histogram_new() -> reference().
histogram_new() ->
    ?NOT_LOADED.

%% @doc Counts one duration.
-spec histogram_record(reference(), Nanoseconds :: non_neg_integer()) -> ok.
histogram_record(_Histogram, _Nanoseconds) ->
    ?NOT_LOADED.

%% @doc `count', and in nanoseconds `min', `mean', `p50', `p90', `p99', `p999', `max'. Percentiles
%% are at most 1 % too high, the rest is exact; all are 0 when nothing was recorded.
-spec histogram_read(reference()) -> #{atom() => number()}.
histogram_read(_Histogram) ->
    ?NOT_LOADED.

%% @doc The duration, in nanoseconds, that this percentage of the recorded ones does not exceed.
-spec histogram_percentile(reference(), Percent :: float()) -> non_neg_integer().
histogram_percentile(_Histogram, _Percent) ->
    ?NOT_LOADED.

%% --- the tracer ---

%% @doc Called by the VM: whether to go on tracing. Without an active session it returns `remove',
%% so flags that a killed sampler left behind go away by themselves.
-spec enabled(atom(), term(), pid() | port()) -> trace | remove.
enabled(_Tag, _State, _Tracee) ->
    ?NOT_LOADED.

%% @doc Called by the VM: counts one start or end of a garbage collection.
-spec trace(atom(), term(), pid() | port(), term(), map()) -> ok.
trace(_Tag, _State, _Tracee, _Info, _Options) ->
    ?NOT_LOADED.

%% --- pool ---

-spec pool_start(pos_integer(), pos_integer()) ->
    ok.
pool_start(_, _) ->
    ?NOT_LOADED.

-spec pool_stop() ->
    ok.
pool_stop() ->
    ?NOT_LOADED.

-spec pool_prepare(pos_integer()) ->
    non_neg_integer().
pool_prepare(_) ->
    ?NOT_LOADED.

-spec pool_shed(pos_integer()) ->
    non_neg_integer().
pool_shed(_) ->
    ?NOT_LOADED.

-spec pool_trim() ->
    non_neg_integer().
pool_trim() ->
    ?NOT_LOADED.

-spec pool_stats() ->
    {non_neg_integer(), non_neg_integer(), non_neg_integer(), non_neg_integer(), float(),
    non_neg_integer(), non_neg_integer()}.
pool_stats() ->
    ?NOT_LOADED.

-spec pool_created_aside() -> non_neg_integer().
pool_created_aside() ->
    ?NOT_LOADED.

%% @doc Not counted as an acquisition: creating such a state says nothing about the host's load.
-spec pool_acquire(term(), opened(), Aside :: boolean()) ->
    {ok, reference()} | collect({ok, reference()}) | {error, not_started} | not_a_map
    | badarg() | closed().
pool_acquire(_, _Opened, _Aside) ->
    ?NOT_LOADED.

-spec pool_release(term()) ->
    ok | badarg.
pool_release(_) ->
    ?NOT_LOADED.

-spec pool_read(term()) ->
    {ok, map()} | {error, released} | badarg.
pool_read(_) ->
    ?NOT_LOADED.

-spec pool_update(term(), term(), opened()) ->
    ok | {error, released} | not_a_map | badarg | badarg() | closed().
pool_update(_, _, _Opened) ->
    ?NOT_LOADED.

-spec buffer_stats() ->
    {non_neg_integer(), non_neg_integer(), non_neg_integer()}.
buffer_stats() ->
    ?NOT_LOADED.

-spec buffer_zeros(non_neg_integer()) -> binary().
buffer_zeros(_) ->
    ?NOT_LOADED.

-spec buffer_acquire(Size :: non_neg_integer(), Limit :: pos_integer()) ->
    reference() | {error, not_started | {message_too_large, pos_integer()}}.
buffer_acquire(_, _) ->
    ?NOT_LOADED.

-spec buffer_release(term()) ->
    ok | badarg.
buffer_release(_) ->
    ?NOT_LOADED.

-spec buffer_append(term(), term(), bytes()) ->
    {ok, non_neg_integer()} | {error, released | {message_too_large, pos_integer()}}
    | not_iodata | badarg.
buffer_append(_, _, _) ->
    ?NOT_LOADED.

-spec buffer_take(term(), term(), bytes()) ->
    {ok, [binary(), ...]} | more | {error, released | {message_too_large, pos_integer()}}
    | not_iodata | badarg.
buffer_take(_, _, _) ->
    ?NOT_LOADED.

-spec buffer_next(term()) ->
    {ok, binary()} | more | {error, released} | badarg.
buffer_next(_) ->
    ?NOT_LOADED.

-spec buffer_held(term()) ->
    {ok, binary()} | {error, released} | badarg.
buffer_held(_) ->
    ?NOT_LOADED.
