%% @doc Connection states and message buffers from a native pool.
%%
%% A connection <em>state</em> is a map of any terms, kept off every process's heap behind a
%% reference. A message <em>buffer</em> takes bytes as they arrive and gives out newline-terminated
%% frames. Both are native objects that are reused.
%%
%% == Ownership ==
%%
%% Whoever has the reference owns the state. It goes back to the pool when it is released, or when
%% the last reference to it is garbage-collected: a process that dies gives everything back, without
%% a monitor or a call. A reference kept elsewhere, in an ETS table or by another process, keeps the
%% state alive; its external format (in a file, from `term_to_binary/1', on another node) does not.
%% A released reference returns `{error, released}' for ever: the state's next owner gets a new
%% reference.
%%
%% A state may hold shares, compact states and pooled states, including itself. States that only
%% keep each other alive are found and freed.
%%
%% == The process ==
%%
%% `start_link/0' starts a process that is registered as `erlmcp_memory_pool'. It holds the
%% settings, makes states in advance, gives unused memory back to the system and logs; no
%% acquisition, release, read or update goes through it. When it is killed, states in use stay
%% valid, acquisitions go on, and its successor finds the counters as they are. When it is stopped
%% normally (by its supervisor, or with `gen_server:stop/1'), the idle memory is freed and
%% acquisitions return `{error, not_started}' until the next start; states in use stay valid then
%% too. Counters are never reset while the node runs.
%%
%% == Settings ==
%%
%% Read at the start from the environment of the application `erlmcp_memory'; what is not set there
%% is read from the environment of `erlmcp':
%%
%% <ul>
%% <li>`memory_pool_size' (default 1000): idle states that are made in advance and that are kept
%%   even when nothing uses them;</li>
%% <li>`memory_pool_max_size' (default 10000): the most idle states that are kept. It does not limit
%%   the states in use. Not less than `memory_pool_size'.</li>
%% </ul>
%%
%% Both are integers from 1 to 10,000,000.
%%
%% == Giving memory back ==
%%
%% Every five seconds half of the idle states over `memory_pool_size' that were not needed in those
%% five seconds are freed, and likewise half of the unused blocks of message buffers: after a peak
%% that fills the default `memory_pool_max_size' the pool is back at the default `memory_pool_size'
%% after about 75 seconds.
%%
%% ```
%% 1> {ok, _} = erlmcp_memory_pool:start_link().
%% 2> {ok, S} = erlmcp_memory_pool:acquire_connection_state(#{id => 1}).
%% 3> ok = erlmcp_memory_pool:update_connection_state(S, #{user => <<"ann">>}).
%% 4> erlmcp_memory_pool:connection_state(S).
%% {ok,#{id => 1,user => <<"ann">>}}
%% 5> erlmcp_memory_pool:release_connection_state(S).
%% ok
%% 6> erlmcp_memory_pool:connection_state(S).
%% {error,released}
%% '''
-module(erlmcp_memory_pool).
-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").
-include("erlmcp_memory_error.hrl").
-include("erlmcp_memory_opened.hrl").

-export([start_link/0, child_spec/0, child_spec/1]).
-export([
    acquire_connection_state/1,
    release_connection_state/1,
    connection_state/1,
    update_connection_state/2
]).
-export([
    acquire_message_buffer/1,
    acquire_message_buffer/2,
    release_message_buffer/1,
    append_message_buffer/2,
    take_messages/2,
    next_message/1,
    message_buffer/1
]).
-export([acquire_aside/1]).
-export([pool_stats/0, pool_info/0, configure/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([stats/0, info/0, state_ref/0, buffer_ref/0, child_options/0, buffer_options/0]).

%% States made or freed in one native call.
-define(STEP, 10000).
-define(BUFFER_SIZE, 65536).
%% Bytes that a message buffer may hold.
-define(MESSAGE_LIMIT, 16777216).
%% The key of the zero bytes of message buffers. It is never erased, because that would make the VM
%% scan every process of the node.
-define(ZEROS, erlmcp_memory_zeros).
%% Their sizes. When a part is sent to another process, the VM counts the whole binary there.
-define(ZERO_SIZES, [?BUFFER_SIZE bsl N || N <- lists:seq(0, 8)]).

%% Parts of iodata that are looked at first: as many as are appended on a normal scheduler.
-define(LOOKED_AT, 2000).

-define(TRIM_INTERVAL, 5000).
-define(WATCH_INTERVAL, 1000).
%% The least time between two warnings, in milliseconds.
-define(WARNING_INTERVAL, 60000).

-define(NOT_A_STATE, <<"not a connection state of this pool" ?TRAVELLED>>).
-define(NOT_A_BUFFER, <<"not a message buffer of this pool" ?TRAVELLED>>).
-define(TRAVELLED,
    ", or a reference that went through term_to_binary/1, a file or another node"
).
-define(NOT_A_MAP, <<"not a map">>).
-define(NOT_A_SIZE, <<"not a non-negative integer">>).
%% The key of the sizes that were set by configure/2.
-define(CONFIGURED, erlmcp_memory_configured).

-type state_ref() :: reference().
%% A connection state.

-type buffer_ref() :: reference().
%% A message buffer.

-type child_options() ::
    #{id => term(), restart => restart(), shutdown => shutdown()}
    | [{id, term()} | {restart, restart()} | {shutdown, shutdown()}].
%% See {@link child_spec/1}.

-type restart() :: permanent | transient | temporary.
-type shutdown() :: brutal_kill | timeout().

-type buffer_options() :: #{limit => pos_integer()}.
%% See {@link acquire_message_buffer/2}.

-type stats() :: #{
    in_use := non_neg_integer(),
    available := non_neg_integer(),
    total_allocated := non_neg_integer(),
    reused := non_neg_integer(),
    created := non_neg_integer(),
    reuse_ratio := float()
}.
%% See {@link pool_stats/0}.

-type info() :: #{
    connection_pool := #{
        queue_length := non_neg_integer(),
        pool_size := pos_integer(),
        max_size := pos_integer()
    },
    buffer_pool := #{queue_length := non_neg_integer(), buffer_size := pos_integer()},
    ets_table := #{size := non_neg_integer(), memory_bytes := non_neg_integer()},
    stats := #{
        in_use := non_neg_integer(),
        available := non_neg_integer(),
        total_allocated := non_neg_integer(),
        reused := non_neg_integer(),
        created := non_neg_integer()
    },
    memory := #{
        native_bytes := non_neg_integer(),
        idle_bytes := non_neg_integer(),
        live_bytes := non_neg_integer(),
        buffer_bytes := non_neg_integer()
    }
}.
%% See {@link pool_info/0}.

-record(server, {
    pool_size :: pos_integer(),
    max_pool_size :: pos_integer(),
    %% the counter `created' at the last warning or start, without uncounted acquisitions
    created :: non_neg_integer(),
    %% when the last warning was logged, in monotonic milliseconds
    warned :: integer() | undefined
}).

%%% Starting

%% @doc Starts the pool.
%%
%% `{error, {invalid_config, Key, Value}}' names the setting that is wrong; in that case no process
%% was started, so the caller gets no exit signal.
-spec start_link() ->
    {ok, pid()}
    | {error, {already_started, pid()} | {invalid_config, atom(), term()} | term()}.
start_link() ->
    case erlmcp_memory_settings:pool_sizes() of
        {ok, Size, Max} -> gen_server:start_link({local, ?MODULE}, ?MODULE, {Size, Max}, []);
        {error, _} = Error -> Error
    end.

%% @doc The pool as a child of a supervisor. Do not call {@link start_link/0} as well: there is one
%% pool on a node, and the second start fails with `already_started'.
-spec child_spec() -> supervisor:child_spec().
child_spec() ->
    #{
        id => ?MODULE,
        start => {?MODULE, start_link, []},
        restart => permanent,
        shutdown => 5000,
        type => worker,
        modules => [?MODULE]
    }.

%% @doc As {@link child_spec/0}, with other values for `id', `restart' or `shutdown'. Elixir's
%% supervisors call it for `children = [:erlmcp_memory_pool]' (with `[]') and
%% `{:erlmcp_memory_pool, restart: :transient}'.
-spec child_spec(child_options()) -> supervisor:child_spec().
child_spec(Options) ->
    try
        Given = if is_map(Options) -> Options; true -> maps:from_list(Options) end,
        [] = maps:keys(maps:without([id, restart, shutdown], Given)),
        maps:merge(child_spec(), Given)
    catch
        error:_ ->
            ?BADARG([Options], 1, <<"neither a map nor a list of id, restart and shutdown">>)
    end.

%%% Connection states

%% @doc A new state with the content of `Map', owned by every holder of the reference.
%%
%% `{error, not_started}' before the first `start_link/0' and after an orderly stop. Raises `badarg'
%% where `Map' is not a map, takes more than 512 MiB in its native form, or nests deeper than
%% 1,048,576 levels; in that case nothing is acquired.
-spec acquire_connection_state(Map :: map()) -> {ok, state_ref()} | {error, not_started}.
acquire_connection_state(Map) ->
    case acquire(Map, false) of
        {_, _} = Result -> Result;
        not_a_map -> ?BADARG([Map], 1, ?NOT_A_MAP);
        {badarg, Position, Text} -> ?BADARG([Map], Position, Text)
    end.

%% @private
%% @doc For the load simulation and test connections: as {@link acquire_connection_state/1}, but not
%% counted for the warning `pool depleted'.
-spec acquire_aside(map()) -> {ok, state_ref()} | {error, not_started}.
acquire_aside(Map) ->
    {_, _} = acquire(Map, true).

acquire(Map, Aside) ->
    ?COLLECTED(
        ?OPENED(pool_acquire, [Map], [Aside], erlmcp_memory_nif:pool_acquire(Map, [], Aside))
    ).

%% @doc Releases a state. Returns `ok' also if it was released before.
%%
%% Raises `badarg' where `Ref' is not a state of this pool.
-spec release_connection_state(Ref :: state_ref()) -> ok.
release_connection_state(Ref) ->
    case erlmcp_memory_nif:pool_release(Ref) of
        ok -> ok;
        badarg -> ?BADARG([Ref], 1, ?NOT_A_STATE)
    end.

%% @doc The content of a state.
%%
%% Raises `badarg' where `Ref' is not a state of this pool.
-spec connection_state(Ref :: state_ref()) -> {ok, map()} | {error, released}.
connection_state(Ref) ->
    case erlmcp_memory_nif:pool_read(Ref) of
        {_, _} = Result -> Result;
        badarg -> ?BADARG([Ref], 1, ?NOT_A_STATE)
    end.

%% @doc Merges `Map' into a state: keys that exist get the new values.
%%
%% Raises `badarg' where `Ref' is not a state of this pool, and where `Map' is not a map, takes more
%% than 512 MiB in its native form, or nests deeper than 1,048,576 levels; in that case the state is
%% unchanged.
-spec update_connection_state(Ref :: state_ref(), Map :: map()) -> ok | {error, released}.
update_connection_state(Ref, Map) ->
    case ?OPENED(pool_update, [Ref, Map], [], erlmcp_memory_nif:pool_update(Ref, Map, [])) of
        ok -> ok;
        {error, _} = Error -> Error;
        badarg -> ?BADARG([Ref, Map], 1, ?NOT_A_STATE);
        not_a_map -> ?BADARG([Ref, Map], 2, ?NOT_A_MAP);
        {badarg, Position, Text} -> ?BADARG([Ref, Map], Position, Text)
    end.

%%% Message buffers

%% @doc A new, empty message buffer, and a binary of zero bytes.
%%
%% The binary has `Size' bytes, at least 65536. It takes no memory, causes no garbage collection and
%% is not among the binaries of its process. It is independent of the buffer: it is for hosts that
%% need `Size' zero bytes to start with. The buffer allocates memory when bytes are appended and
%% frees it when the last frame is taken.
%%
%% `{error, {message_too_large, Limit}}' where `Size' is over the 16 MiB that a buffer may hold;
%% `{error, not_started}' before the first `start_link/0' and after an orderly stop. Raises
%% `badarg' where `Size' is not an integer of at least 0.
-spec acquire_message_buffer(Size :: non_neg_integer()) ->
    {ok, buffer_ref(), binary()}
    | {error, not_started | {message_too_large, Limit :: pos_integer()}}.
acquire_message_buffer(Size) when is_integer(Size), Size >= 0 ->
    acquire_buffer(Size, ?MESSAGE_LIMIT);
acquire_message_buffer(Size) ->
    ?BADARG([Size], 1, ?NOT_A_SIZE).

%% @doc As {@link acquire_message_buffer/1}, with options:
%%
%% <ul>
%% <li>`limit' (16777216): bytes that the buffer may hold, and that a message may have, its newline
%%   included. An integer from 1 to the default. It is the `Limit' in the `message_too_large' errors
%%   of this buffer. An unauthenticated connection does not need megabytes.</li>
%% </ul>
-spec acquire_message_buffer(Size :: non_neg_integer(), buffer_options()) ->
    {ok, buffer_ref(), binary()}
    | {error, not_started | {message_too_large, Limit :: pos_integer()}}.
acquire_message_buffer(Size, Options) when is_integer(Size), Size >= 0, is_map(Options) ->
    case maps:merge(#{limit => ?MESSAGE_LIMIT}, Options) of
        #{limit := Limit} = All when
            map_size(All) =:= 1, is_integer(Limit), Limit >= 1, Limit =< ?MESSAGE_LIMIT
        ->
            acquire_buffer(Size, Limit);
        #{limit := _} = All when map_size(All) =:= 1 ->
            ?BADARG([Size, Options], 2, <<"limit is not an integer from 1 to 16777216">>);
        _ ->
            ?BADARG([Size, Options], 2, <<"has another key than limit">>)
    end;
acquire_message_buffer(Size, Options) when is_map(Options) ->
    ?BADARG([Size, Options], 1, ?NOT_A_SIZE);
acquire_message_buffer(Size, Options) ->
    ?BADARG([Size, Options], 2, ?NOT_A_MAP).

acquire_buffer(Size, Limit) ->
    case erlmcp_memory_nif:buffer_acquire(Size, Limit) of
        {error, _} = Error -> Error;
        Ref -> {ok, Ref, zeros(max(Size, ?BUFFER_SIZE), zeros())}
    end.

zeros(Size, [Zeros | _]) when byte_size(Zeros) =:= Size -> Zeros;
zeros(Size, [Zeros | _]) when byte_size(Zeros) > Size -> binary_part(Zeros, 0, Size);
zeros(Size, [_ | Larger]) -> zeros(Size, Larger).

%% The same zero bytes for all buffers: a literal of the VM has no reference count for schedulers to
%% contend for, and does not count as a binary of any process.
zeros() ->
    case persistent_term:get(?ZEROS, none) of
        none ->
            Zeros = [erlmcp_memory_nif:buffer_zeros(Size) || Size <- ?ZERO_SIZES],
            ok = persistent_term:put(?ZEROS, Zeros),
            Zeros;
        Zeros ->
            Zeros
    end.

%% @doc Releases a buffer, with what it holds. Returns `ok' also if it was released before.
%%
%% Raises `badarg' where `Ref' is not a message buffer.
-spec release_message_buffer(Ref :: buffer_ref()) -> ok.
release_message_buffer(Ref) ->
    case erlmcp_memory_nif:buffer_release(Ref) of
        ok -> ok;
        badarg -> ?BADARG([Ref], 1, ?NOT_A_BUFFER)
    end.

%% @doc Appends bytes; returns how many are now held and not yet taken.
%%
%% `{error, {message_too_large, Limit}}' where more than 16 MiB would be held, and for data of too
%% many parts to look through (64 Mi); the buffer is unchanged in that case. Raises `badarg' where
%% `Ref' is not a message buffer or `Data' is not iodata; the buffer is then unchanged too.
-spec append_message_buffer(Ref :: buffer_ref(), Data :: iodata()) ->
    {ok, Held :: non_neg_integer()}
    | {error, released | {message_too_large, Limit :: pos_integer()}}.
append_message_buffer(Ref, Data) ->
    case erlmcp_memory_nif:buffer_append(Ref, Data, binary_bytes(Data)) of
        {_, _} = Result -> Result;
        badarg -> ?BADARG([Ref, Data], 1, ?NOT_A_BUFFER);
        not_iodata -> ?BADARG([Ref, Data], 2, <<"not iodata">>)
    end.

%% The bytes of the binaries in iodata; if it has many parts, of the first ones.
binary_bytes(Data) when is_binary(Data) -> byte_size(Data);
binary_bytes(Data) -> binary_bytes(Data, [], 0, ?LOOKED_AT).

binary_bytes([Part | Parts], Rests, Bytes, Left) when is_integer(Part), Left > 0 ->
    binary_bytes(Parts, Rests, Bytes, Left - 1);
binary_bytes([Part | Parts], Rests, Bytes, Left) when is_binary(Part), Left > 0 ->
    binary_bytes(Parts, Rests, Bytes + byte_size(Part), Left - 1);
binary_bytes([Part | Parts], Rests, Bytes, Left) when Left > 0 ->
    binary_bytes(Part, [Parts | Rests], Bytes, Left - 1);
binary_bytes(Part, Rests, Bytes, Left) when is_binary(Part) ->
    binary_bytes([], Rests, Bytes + byte_size(Part), Left);
binary_bytes(_End, [Parts | Rests], Bytes, Left) when Left > 0 ->
    binary_bytes(Parts, Rests, Bytes, Left - 1);
binary_bytes(_End, _Rests, Bytes, _Left) ->
    Bytes.

%% @doc Appends bytes and takes every complete frame, in order; see {@link next_message/1} for what
%% a frame is.
%%
%% A frame of more than 64 bytes that is completely inside a binary of more than 256 bytes is a part
%% of that binary and not a copy, as with `binary:split/3': it keeps the whole binary alive. The
%% limit of the buffer applies to each message and to what is not yet complete, not to `Data', so
%% that many short messages may come at once.
%%
%% `{error, {message_too_large, Limit}}' where a message, complete or not, has more bytes than the
%% buffer may hold, and for iodata of several parts with more than 256 MiB; raises `badarg' where
%% `Ref' is not a message buffer or `Data' is not iodata. In these cases nothing is taken, and the
%% buffer is unchanged.
-spec take_messages(Ref :: buffer_ref(), Data :: iodata()) ->
    {ok, [binary()]} | {error, released | {message_too_large, Limit :: pos_integer()}}.
take_messages(Ref, Data) ->
    case erlmcp_memory_nif:buffer_take(Ref, Data, binary_bytes(Data)) of
        more -> {ok, []};
        {_, _} = Result -> Result;
        badarg -> ?BADARG([Ref, Data], 1, ?NOT_A_BUFFER);
        not_iodata -> ?BADARG([Ref, Data], 2, <<"not iodata">>)
    end.

%% @doc Takes the next frame: the bytes up to a newline, without the newline and without a CR before
%% it. `more' if it holds no complete frame.
%%
%% Raises `badarg' where `Ref' is not a message buffer.
-spec next_message(Ref :: buffer_ref()) -> {ok, binary()} | more | {error, released}.
next_message(Ref) ->
    case erlmcp_memory_nif:buffer_next(Ref) of
        {_, _} = Result -> Result;
        more -> more;
        badarg -> ?BADARG([Ref], 1, ?NOT_A_BUFFER)
    end.

%% @doc The bytes that are held and not yet taken; they stay held.
%%
%% Raises `badarg' where `Ref' is not a message buffer.
-spec message_buffer(Ref :: buffer_ref()) -> {ok, binary()} | {error, released}.
message_buffer(Ref) ->
    case erlmcp_memory_nif:buffer_held(Ref) of
        {_, _} = Result -> Result;
        badarg -> ?BADARG([Ref], 1, ?NOT_A_BUFFER)
    end.

%%% Figures and settings

%% @doc The pool's counters.
%%
%% <ul>
%% <li>`in_use': states acquired and not yet released;</li>
%% <li>`available': idle states, ready for reuse;</li>
%% <li>`total_allocated': `in_use + available';</li>
%% <li>`reused': acquisitions that got an idle state, including states made in advance;</li>
%% <li>`created': acquisitions that had to create a state;</li>
%% <li>`reuse_ratio': `100.0 * reused / (reused + created)'; 100.0 before the first.</li>
%% </ul>
%%
%% These relations hold exactly whenever no call is running. A state whose reference is garbage
%% counts as in use until the reference is collected. Exits with `noproc' where the pool is not
%% started.
-spec pool_stats() -> stats().
pool_stats() ->
    gen_server:call(?MODULE, pool_stats).

%% @doc The pool's counters, settings and bytes.
%%
%% `queue_length' is the number of idle states, or of idle blocks of message buffers. There is no
%% ETS table; `ets_table' is for dashboards that read it: the number of states in use, and the
%% pool's native bytes. `memory', in bytes: `idle_bytes' of idle states, `live_bytes' of states in
%% use, `buffer_bytes' of all blocks of message buffers, and `native_bytes', their sum; all of it is
%% part of `erlang:memory(total)'. The references are not included.
%%
%% Exits with `noproc' where the pool is not started.
-spec pool_info() -> info().
pool_info() ->
    gen_server:call(?MODULE, pool_info).

%% @doc Changes a setting while the pool is in use, at once: a larger `pool_size' makes states
%% now, a smaller `max_pool_size' frees the idle states over it now.
%%
%% Returns `{error, invalid_config}', and changes nothing, for any other name, for a value that is
%% not an integer from 1 to 10,000,000, and where `pool_size' would be larger than `max_pool_size':
%% to raise both, raise `max_pool_size' first. It holds until the pool is stopped normally, also
%% when its process fails and is restarted. Exits with `noproc' where the pool is not started.
-spec configure(pool_size | max_pool_size, Value :: pos_integer()) ->
    ok | {error, invalid_config}.
configure(Key, Value) ->
    gen_server:call(?MODULE, {configure, Key, Value}, infinity).

%%% The process

%% @private
-spec init({pos_integer(), pos_integer()}) -> {ok, #server{}}.
init(Settings) ->
    {Size, Max} = in_force(Settings),
    %% So that terminate/2 is called when the supervisor stops the pool.
    process_flag(trap_exit, true),
    ok = erlmcp_memory_log:show(),
    %% Made before the first acquisition.
    _ = zeros(),
    ok = erlmcp_memory_nif:pool_start(Size, Max),
    ok = shed(),
    _ = erlmcp_memory_nif:pool_prepare(?STEP),
    %% What one step does not make is made in the background.
    self() ! {prepare, Size - ?STEP},
    ok = start_timer(trim),
    ok = start_timer(watch),
    {ok, #server{pool_size = Size, max_pool_size = Max, created = created()}}.

%% @private
-spec handle_call(term(), {pid(), term()}, #server{}) -> {reply, term(), #server{}}.
handle_call(pool_stats, _From, Server) ->
    {reply, stats(), Server};
handle_call(pool_info, _From, Server) ->
    {reply, info(Server), Server};
handle_call({configure, Key, Value}, _From, Server) ->
    case configured(Key, Value, Server) of
        {ok, #server{pool_size = Size, max_pool_size = Max} = New} ->
            ok = atomics:put(configured(), place(Key), Value),
            ok = erlmcp_memory_nif:pool_start(Size, Max),
            ok = shed(),
            ok = prepare(Size),
            {reply, ok, New};
        error ->
            {reply, {error, invalid_config}, Server}
    end;
handle_call(_Unknown, _From, Server) ->
    {reply, {error, unknown_call}, Server}.

%% @private
-spec handle_cast(term(), #server{}) -> {noreply, #server{}}.
handle_cast(_Unknown, Server) ->
    {noreply, Server}.

%% @private
-spec handle_info(term(), #server{}) -> {noreply, #server{}}.
handle_info({timeout, _Timer, Tick}, Server) when Tick =:= trim; Tick =:= watch ->
    ok = start_timer(Tick),
    {noreply, tick(Tick, Server)};
%% An extra tick, not started by the timer.
handle_info(Tick, Server) when Tick =:= trim; Tick =:= watch ->
    {noreply, tick(Tick, Server)};
handle_info({prepare, Left}, Server) when is_integer(Left), Left > 0 ->
    Made = erlmcp_memory_nif:pool_prepare(?STEP),
    _ = Made > 0 andalso (self() ! {prepare, Left - ?STEP}),
    {noreply, Server};
handle_info(_Unknown, Server) ->
    {noreply, Server}.

%% @private
%% @doc Only a normal stop closes the pool: after a failure the successor finds it as it was.
-spec terminate(term(), #server{}) -> ok.
terminate(Reason, _Server) when Reason =:= normal; Reason =:= shutdown ->
    stop();
terminate({shutdown, _}, _Server) ->
    stop();
terminate(_Failure, _Server) ->
    ok.

%%% Inside

stop() ->
    _ = [atomics:put(configured(), place(Key), 0) || Key <- [pool_size, max_pool_size]],
    erlmcp_memory_nif:pool_stop().

%% The settings, except those that were changed in an earlier process of the pool.
in_force({Size, Max}) ->
    case [atomics:get(configured(), place(Key)) || Key <- [pool_size, max_pool_size]] of
        [0, 0] -> {Size, Max};
        [Told, 0] -> {Told, max(Told, Max)};
        [0, Told] -> {min(Size, Told), Told};
        [ToldSize, ToldMax] -> {ToldSize, ToldMax}
    end.

place(pool_size) -> 1;
place(max_pool_size) -> 2.

%% What configure/2 has set since the pool was last stopped normally; 0 if nothing. Never erased,
%% because that would make the VM scan every process of the node.
configured() ->
    case persistent_term:get(?CONFIGURED, none) of
        none ->
            Sizes = atomics:new(2, [{signed, false}]),
            ok = persistent_term:put(?CONFIGURED, Sizes),
            Sizes;
        Sizes ->
            Sizes
    end.

created() ->
    {_, _, _, Created, _, _, _} = erlmcp_memory_nif:pool_stats(),
    %% The second number is read later, so it may be ahead.
    max(0, Created - erlmcp_memory_nif:pool_created_aside()).

configured(Key, Value, Server) ->
    case erlmcp_memory_settings:is_pool_size(Value) andalso Key of
        pool_size when Value =< Server#server.max_pool_size ->
            {ok, Server#server{pool_size = Value}};
        max_pool_size when Value >= Server#server.pool_size ->
            {ok, Server#server{max_pool_size = Value}};
        _ ->
            error
    end.

%% Frees the idle states over the maximum.
shed() ->
    case erlmcp_memory_nif:pool_shed(?STEP) of
        0 -> ok;
        _ -> shed()
    end.

%% Makes the idle states that are missing, in no more steps than their number needs, however fast
%% others take them.
prepare(Left) when Left > 0 ->
    case erlmcp_memory_nif:pool_prepare(?STEP) of
        0 -> ok;
        _ -> prepare(Left - ?STEP)
    end;
prepare(_Done) ->
    ok.

start_timer(Tick) ->
    _ = erlang:start_timer(interval(Tick), self(), Tick),
    ok.

interval(trim) -> ?TRIM_INTERVAL;
interval(watch) -> ?WATCH_INTERVAL.

tick(trim, Server) ->
    _ = erlmcp_memory_nif:pool_trim(),
    Server;
tick(watch, #server{created = Before, pool_size = Size} = Server) ->
    Now = erlang:monotonic_time(millisecond),
    case created() of
        Created when Created > Before ->
            case is_warning_due(Now, Server) of
                true ->
                    Enough = min(Size + Created - Before, erlmcp_memory_settings:pool_size_limit()),
                    warn(Created - Before, Enough, Server),
                    Server#server{created = Created, warned = Now};
                false ->
                    Server
            end;
        _ ->
            Server
    end.

is_warning_due(_Now, #server{warned = undefined}) -> true;
is_warning_due(Now, #server{warned = Last}) -> Now - Last >= ?WARNING_INTERVAL.

warn(Created, Enough, #server{max_pool_size = Max}) ->
    ?LOG_WARNING(
        #{
            label => {erlmcp_memory, pool_depleted},
            created => Created,
            enough => Enough,
            room => Enough =< Max
        },
        erlmcp_memory_log:metadata()
    ).

stats() ->
    {InUse, Available, Reused, Created, Ratio, _, _} = erlmcp_memory_nif:pool_stats(),
    (counters(InUse, Available, Reused, Created))#{reuse_ratio => Ratio}.

counters(InUse, Available, Reused, Created) ->
    #{
        in_use => InUse,
        available => Available,
        total_allocated => InUse + Available,
        reused => Reused,
        created => Created
    }.

info(#server{pool_size = Size, max_pool_size = Max}) ->
    {InUse, Available, Reused, Created, _, Idle, Live} = erlmcp_memory_nif:pool_stats(),
    {IdleBlocks, IdleBlockBytes, LiveBlockBytes} = erlmcp_memory_nif:buffer_stats(),
    Buffers = IdleBlockBytes + LiveBlockBytes,
    Native = Idle + Live + Buffers,
    #{
        connection_pool => #{queue_length => Available, pool_size => Size, max_size => Max},
        buffer_pool => #{queue_length => IdleBlocks, buffer_size => ?BUFFER_SIZE},
        ets_table => #{size => InUse, memory_bytes => Native},
        stats => counters(InUse, Available, Reused, Created),
        memory => #{
            native_bytes => Native,
            idle_bytes => Idle,
            live_bytes => Live,
            buffer_bytes => Buffers
        }
    }.
