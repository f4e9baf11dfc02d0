%% @doc What single operations take: the median of many rounds, in nanoseconds. Runs in a VM of
%% its own, see `erlmcp_bench_memory'.
-module(erlmcp_bench_micro).

-export([run/1, nothing/0]).

-import(erlmcp_bench_measure, [
    in_own_process/1, median/1, medians/1, nanoseconds/1, repeat/2, settled_total/0
]).

-define(O, erlmcp_connection_optimizer).
-define(ROUNDS, 101).
-define(BLOCK, 50).
-define(STATES, 20000).
%% Connections of a form that are asked from idle, and how often.
-define(IDLE, 100).
-define(IDLE_ROUNDS, 4).

%% @doc `awake' and `idle', each with `list' and `call', maps of each form's time; `micro', of
%% operations; `state', sizes.
-spec run(#{file := file:name_all() | generated}) -> #{atom() => #{atom() => number()}}.
run(Options) ->
    _ = erlmcp_bench_json:library(),
    Tools = erlmcp_bench_form:tools(Options),
    State = state_sizes(),
    #{
        awake => requests(Tools),
        idle => requests_from_idle(Tools),
        micro => operations(Tools),
        state => State
    }.

%% --- requests ---

%% One connection of each form, asked in turn, so that all have the same conditions: some requests
%% to the one, then some to the next, so that none finds the caches as another one left them.
requests(Tools) ->
    Config = erlmcp_host:config(Tools),
    Connections = [{Form, open(Form, Config)} || Form <- erlmcp_host:forms()],
    Call = erlmcp_bench_messages:call(1, lists:nth(length(Tools) div 2, Tools)),
    Lists = in_turn(Connections, erlmcp_bench_messages:list(1), 20),
    Calls = in_turn(Connections, Call, 200),
    [ok = gen_server:stop(Pid) || {_, Pid} <- Connections],
    #{list => Lists, call => Calls}.

%% Many connections, since one that hibernates after a second gives one figure a second.
requests_from_idle(Tools) ->
    Config = erlmcp_host:config(Tools),
    Call = erlmcp_bench_messages:call(1, lists:nth(length(Tools) div 2, Tools)),
    Connections = [
        {Form, open(Form, Config)}
     || Form <- erlmcp_host:forms(), _ <- lists:seq(1, ?IDLE)
    ],
    Times = #{
        list => from_idle(Connections, erlmcp_bench_messages:list(1)),
        call => from_idle(Connections, Call)
    },
    [ok = gen_server:stop(Pid) || {_, Pid} <- Connections],
    Times.

from_idle(Connections, Message) ->
    medians([
        {Form, request_time(Pid, Message)}
     || _ <- lists:seq(1, ?IDLE_ROUNDS), ok <- [idle(Connections)], {Form, Pid} <- Connections
    ]).

idle(Connections) ->
    [ok = erlmcp_host:idle(Pid) || {_, Pid} <- Connections],
    [erlmcp_bench_form:asleep(Pid) || {Form, Pid} <- Connections, Form =/= erlmcp_host_plain],
    ok.

open(Form, Config) ->
    {ok, Pid} = erlmcp_host:start_link(Form, <<"timed">>, Form:catalogue(Config)),
    [_ = erlmcp_host:request(Pid, M) || M <- erlmcp_bench_messages:opening()],
    Pid.

in_turn(Connections, Message, Rounds) ->
    medians([
        {Form, request_time(Pid, Message)}
     || _ <- lists:seq(1, Rounds), {Form, Pid} <- Connections, _ <- lists:seq(1, ?BLOCK)
    ]).

request_time(Pid, Message) ->
    nanoseconds(fun() -> erlmcp_host:request(Pid, Message) end).

%% --- operations ---

operations(Tools) ->
    State = lists:foldl(
        fun({Field, Value}, S) -> ?O:update_state_field(S, Field, Value) end,
        ?O:create_optimized_state(<<"connection-000001">>),
        fields(1)
    ),
    Five = #{phase => closed, transport => stdio, a => 1, b => 2, c => <<"three">>},
    Table = ets:new(table, [{read_concurrency, true}]),
    true = ets:insert(Table, {<<"key">>, 42}),
    ByName = maps:from_list([{Name, Tool} || #{<<"name">> := Name} = Tool <- Tools]),
    Share = ?O:share(#{tools => ByName}),
    {Finds, Decodes} = lists:unzip([schema_times(Share, Tool) || Tool <- Tools]),
    Pid = self(),
    #{
        empty_nif => time(fun() -> erlmcp_memory_nif:enabled(trace_status, none, Pid) end),
        ets_lookup => time(fun() -> ets:lookup(Table, <<"key">>) end),
        read => time(fun() -> ?O:get_state_field(State, phase) end),
        read_path => time(fun() -> ?O:get_state_field(State, [metadata, user_id]) end),
        update => time(fun() -> ?O:update_state_field(State, phase, closed) end),
        update_path => time(fun() -> ?O:update_state_field(State, [metadata, user_id], 7) end),
        update_five => time(fun() -> ?O:update_state_fields(State, Five) end),
        %% Of all schemas: what an average one takes, and the worst against its own decoding.
        find_schema => lists:sum(Finds) / length(Finds),
        decode_schema => lists:sum(Decodes) / length(Decodes),
        find_worst_ratio => lists:max(lists:zipwith(fun(F, D) -> F / D end, Finds, Decodes)),
        find_slower => length([slower || {F, D} <- lists:zip(Finds, Decodes), F > D])
    }.

schema_times(Share, #{<<"name">> := Name, <<"inputSchema">> := Schema}) ->
    Path = [tools, Name, <<"inputSchema">>],
    {ok, Schema} = ?O:find_shared(Share, Path),
    Binary = term_to_binary(Schema),
    {
        time(fun() -> ?O:find_shared(Share, Path) end, 200, 15),
        time(fun() -> binary_to_term(Binary) end, 200, 15)
    }.

time(Fun) ->
    time(Fun, 2000, ?ROUNDS).

%% Collections are part of the time; what the loop itself takes is not.
time(Fun, Times, Rounds) ->
    max(0.0, loop_time(Fun, Times, Rounds) - loop_time(fun ?MODULE:nothing/0, Times, Rounds)).

loop_time(Fun, Times, Rounds) ->
    in_own_process(fun() ->
        Round = fun() -> repeat(Fun, Times) end,
        _ = Round(),
        median([nanoseconds(Round) || _ <- lists:seq(1, Rounds)]) / Times
    end).

-spec nothing() -> ok.
nothing() ->
    ok.

%% --- the size of a state ---

-record(connection, {id, phase, transport, metadata, pending_refs, created_at}).

%% Made at run time: constants of a module are on no heap.
fields(N) ->
    Metadata = #{
        user_id => 1000000 + N,
        client => iolist_to_binary(["example-client-", integer_to_list(N rem 4)]),
        locale => iolist_to_binary(["e", $n])
    },
    Pending = maps:from_list([{Id, make_ref()} || Id <- [1, 2, 3]]),
    [{phase, initialized}, {transport, tcp}, {metadata, Metadata}, {pending_refs, Pending}].

%% The same content as a compact state and as a record: what the one says of itself, what both
%% take as measured, the record on the heap of a process that hibernates.
state_sizes() ->
    State = fun(N) ->
        lists:foldl(
            fun({Field, Value}, S) -> ?O:update_state_field(S, Field, Value) end,
            ?O:create_optimized_state(id(N)),
            fields(N)
        )
    end,
    Record = fun(N) ->
        [Phase, Transport, Metadata, Pending] = [Value || {_, Value} <- fields(N)],
        #connection{
            id = id(N),
            phase = Phase,
            transport = Transport,
            metadata = Metadata,
            pending_refs = Pending,
            created_at = erlang:system_time(millisecond)
        }
    end,
    %% What the VM makes once for as many processes and states is made here.
    _ = held(State),
    Nothing = held(fun(_) -> nothing end),
    #{
        estimate => ?O:estimate_memory(State(1)),
        measured => held(State) - Nothing,
        record_flat => erts_debug:flat_size(Record(1)) * erlang:system_info(wordsize),
        record_measured => held(Record) - Nothing
    }.

id(N) ->
    iolist_to_binary(io_lib:format("connection-~6..0b", [N])).

%% Bytes for each of many processes that hibernate with such a term on their heaps.
held(Make) ->
    true = erlang:garbage_collect(),
    Before = settled_total(),
    Pids = [
        spawn_link(fun() -> erlang:hibernate(gen_server, enter_loop, [?MODULE, [], Make(N)]) end)
     || N <- lists:seq(1, ?STATES)
    ],
    timer:sleep(200),
    true = erlang:garbage_collect(),
    After = settled_total(),
    [exit(Pid, kill) || Pid <- Pids, unlink(Pid)],
    (After - Before) / ?STATES.
