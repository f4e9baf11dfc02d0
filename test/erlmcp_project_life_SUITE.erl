%% What happens to a node that holds states: its code is loaded again, it boots again, references
%% travel, modules of handlers go, processes are killed in the middle of a call.
-module(erlmcp_project_life_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-import(erlmcp_optimizer_state_help, [alone/1, nested/2]).
-import(erlmcp_wait_help, [until/1]).

-define(HELP, erlmcp_project_help).
-define(NIF, erlmcp_memory_nif).
-define(POOL, erlmcp_memory_pool).
-define(O, erlmcp_connection_optimizer).
-define(PROFILER, erlmcp_memory_profiler).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [
        a_deleted_library_is_taken_over,
        a_library_purged_under_its_callers_is_taken_over,
        another_library_is_refused_by_every_call,
        cover_leaves_the_library_as_it_is,
        a_second_boot_works_as_the_first,
        a_second_boot_works_in_embedded_mode,
        a_handle_that_went_through_bytes_is_refused,
        a_handle_of_another_node_is_refused,
        a_handle_in_a_table_leads_to_no_other_state,
        handlers_of_a_module_replaced_twice_are_badfuns,
        the_smallest_stacks_hold_the_deepest_terms,
        killed_in_the_middle_of_a_call_leaves_nothing,
        aliases_come_back_as_they_were,
        frames_come_back_byte_by_byte
    ].

init_per_testcase(_Case, Config) ->
    erlmcp_pool_help:clear(),
    _ = erlmcp_pool_help:start(100, 10000),
    Config.

end_per_testcase(_Case, _Config) ->
    _ = ?PROFILER:stop_profiling(),
    erlmcp_pool_help:clear().

%%% The library again

a_deleted_library_is_taken_over(_Config) ->
    Held = held(),
    ok = ?PROFILER:start_profiling(#{interval_ms => 60_000}),
    #{in_use := InUse} = ?POOL:pool_stats(),
    Orders = [
        [delete, load],
        [delete, purge, load],
        [purge, delete, load, purge, load],
        [purge, delete, purge, ensure],
        [delete, called],
        [delete, purge, called]
    ],
    [
        begin
            %% The pool's process would load the module whenever it looks at the figures.
            ok = sys:suspend(?POOL),
            _ = code:purge(?NIF),
            [again(Step) || Step <- Order],
            ok = sys:resume(?POOL),
            ?assertEqual(Held, read(Held), Order),
            ?assertMatch(#{in_use := InUse}, ?POOL:pool_stats()),
            ?assertMatch(#{snapshots := [_ | _]}, ?PROFILER:get_profiling_data()),
            %% What is made now goes as it came.
            Bytes = ?NIF:native_bytes(),
            ok = alone(fun() -> _ = held(), ok end),
            until(fun() -> maps:get(in_use, ?POOL:pool_stats()) =:= InUse end),
            until(fun() -> ?NIF:native_bytes() < Bytes + 200_000 end)
        end
     || _ <- [once, twice], Order <- Orders
    ],
    %% What was made before all that is given back by its last reference, as ever.
    #{state := State, pooled := Pooled, buffer := Buffer} = Held,
    ok = ?O:cleanup_state(State),
    ok = ?POOL:release_connection_state(Pooled),
    ok = ?POOL:release_message_buffer(Buffer),
    ?assertEqual({error, released}, ?POOL:connection_state(Pooled)),
    ?assertMatch(#{in_use := 0}, ?POOL:pool_stats()),
    %% Where the tracer was gone for a while, the VM took the flags away; the next session has them.
    ?assertMatch(#{gc := #{collections := _}}, ?PROFILER:stop_profiling()),
    ok = ?PROFILER:start_profiling(#{interval_ms => 60_000}),
    ?assertMatch(#{gc := #{measured := true}}, ?PROFILER:stop_profiling()).

again(delete) -> true = code:delete(?NIF);
again(purge) -> code:purge(?NIF);
again(load) -> load_where_none_is(code:is_loaded(?NIF), code:load_file(?NIF));
again(ensure) -> {module, ?NIF} = code:ensure_loaded(?NIF);
%% The VM loads a module that it has not when it is called.
again(called) -> true = is_integer(?NIF:native_bytes()).

%% One that is there stays.
load_where_none_is(_, {module, ?NIF}) -> ok;
load_where_none_is({file, _}, {error, on_load_failure}) -> ok;
%% Another process called it, and had it loaded meanwhile.
load_where_none_is(false, {error, not_purged}) ->
    _ = code:purge(?NIF),
    again(load).

%% One of each that a node may hold, and what is to be read from it.
held() ->
    Term = {a, #{b => binary:copy(<<"not copied when it is read ">>, 10)}},
    State = ?O:from_map(#{id => <<"s">>, created_at => 1, f => fun() -> Term end, t => Term}),
    {ok, Pooled} = ?POOL:acquire_connection_state(#{t => Term}),
    {ok, Buffer, Zeros} = ?POOL:acquire_message_buffer(1),
    {ok, _} = ?POOL:append_message_buffer(Buffer, <<"half">>),
    Histogram = ?NIF:histogram_new(),
    ok = ?NIF:histogram_record(Histogram, 5),
    Share = ?O:share(Term),
    #{
        state => State, pooled => Pooled, buffer => Buffer, histogram => Histogram, share => Share,
        zeros => Zeros, part => element(2, ?O:shared(Share)), content => {Term, <<"half">>, 1}
    }.

read(Held) ->
    #{state := State, pooled := Pooled, buffer := Buffer, histogram := H, share := Share} = Held,
    {ok, #{t := Term}} = ?POOL:connection_state(Pooled),
    ok = ?POOL:update_connection_state(Pooled, #{u => Share}),
    Term = ?O:get_state_field(State, t),
    Term = (?O:get_state_field(State, f))(),
    Term = ?O:shared(Share),
    Share = ?O:share(Term),
    Next = ?O:update_state_field(State, capabilities_ref, Share),
    Share = ?O:get_state_field(Next, capabilities_ref),
    {ok, Bytes} = ?POOL:message_buffer(Buffer),
    Held#{content := {Term, Bytes, maps:get(count, ?NIF:histogram_read(H))}}.

%% Purging kills those that are in old code, also in the middle of a call. They make one call each:
%% one of a module that is not there would load it, and some releases of OTP hang when a module with
%% an on_load function is loaded while one is purged.
a_library_purged_under_its_callers_is_taken_over(_Config) ->
    Held = held(),
    Term = lists:seq(1, 300_000),
    Bytes = ?NIF:native_bytes(),
    [
        begin
            Callers = [spawn_monitor(fun() -> call(Call, Term) end) || Call <- [1, 2, 1, 2]],
            timer:sleep(20),
            ok = sys:suspend(?POOL),
            [again(Step) || Step <- Order],
            ok = sys:resume(?POOL),
            ?assertEqual(Held, read(Held), Order),
            [exit(Pid, kill) || {Pid, _} <- Callers],
            [receive {'DOWN', Monitor, process, _, _} -> ok end || {_, Monitor} <- Callers]
        end
     || _ <- lists:seq(1, 5), Order <- [[delete, purge, load], [delete, load, purge]]
    ],
    until(fun() -> maps:get(in_use, ?POOL:pool_stats()) =:= 1 end),
    until(fun() -> ?NIF:native_bytes() < Bytes + 1_000_000 end),
    ?assertEqual(Held, read(Held)).

call(1, Term) -> ?POOL:acquire_connection_state(#{t => Term});
call(2, Term) -> ?O:share({self(), Term}).

another_library_is_refused_by_every_call(Config) ->
    %% The same content elsewhere: another library for the VM.
    Dir = filename:join(proplists:get_value(priv_dir, Config), "another/erlmcp_memory"),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    Lib = filename:dirname(filename:dirname(code:which(?NIF))),
    {0, _} = ?HELP:run(Dir, ["sh", "-c", "cp -RL \"$0/ebin\" \"$0/priv\" .", Lib], []),
    [
        ?assertEqual(
            "refused,refused,refused,refused,true.",
            ?HELP:evaluated(
                filename:dirname(code:which(?NIF)),
                "{ok, _} = erlmcp_memory_pool:start_link(),"
                "{ok, P} = erlmcp_memory_pool:acquire_connection_state(#{}),"
                "S = erlmcp_connection_optimizer:create_optimized_state(<<1>>),"
                "N = erlmcp_memory_nif, true = code:add_patha(\"" ++ Dir ++ "/ebin\"),"
                "true = code:delete(N)," ++ Purge ++ "_ = code:load_file(N),"
                "Try = fun(F) -> try F() catch error:{not_loaded, Text} ->"
                "    true = nomatch =/= string:find(Text, \"restart the node\"), refused end end,"
                "io:format(\"~s,~s,~s,~s,~s.\", [Try(F) || F <- ["
                "    fun() -> erlmcp_memory_pool:connection_state(P) end,"
                "    fun() -> erlmcp_memory_pool:acquire_connection_state(#{}) end,"
                "    fun() -> erlmcp_connection_optimizer:get_state_field(S, id) end,"
                "    fun() -> erlmcp_connection_optimizer:share(a) end,"
                "    fun() -> code:purge(N), code:delete(N), N:module_info(module) =:= N end]])"
            )
        )
     || Purge <- ["", "code:purge(N),"]
    ].

cover_leaves_the_library_as_it_is(_Config) ->
    Held = held(),
    {error, _} = cover:compile_beam(code:which(?NIF)),
    ?assertEqual(Held, read(Held)),
    _ = cover:stop(),
    ?assertEqual(Held, read(Held)).

%%% The node again

a_second_boot_works_as_the_first(Config) ->
    boots_twice(Config, []).

a_second_boot_works_in_embedded_mode(Config) ->
    Dir = filename:join(proplists:get_value(priv_dir, Config), "embedded"),
    boots_twice(Config, ?HELP:boot_script(Dir, "embedded")).

boots_twice(Config, Boot) ->
    Said = filename:join(proplists:get_value(priv_dir, Config), "said"),
    _ = file:delete(Said),
    Expression = lists:flatten(io_lib:format(
        "{module, _} = code:load_file(~p), ~p:boot(~p)", [?MODULE, ?MODULE, Said]
    )),
    {Status, Output} = ?HELP:erl(Boot ++ ["-eval", Expression]),
    ?assertEqual({0, ""}, {Status, Output}),
    ?assertEqual({ok, lists:duplicate(3, as_in_the_first)}, file:consult(Said)).

%% In a VM of its own, once in each boot.
boot(Said) ->
    %% What a first boot finds: nothing that is left of another one.
    {ok, _} = ?POOL:start_link(),
    #{in_use := 0} = ?POOL:pool_stats(),
    true = ?NIF:native_bytes() < 3_000_000,
    Held = held(),
    Held = read(Held),
    ok = ?PROFILER:start_profiling(#{interval_ms => 20}),
    Large = ?O:share(lists:seq(1, 1_500_000)),
    ok = persistent_term:put(?MODULE, {Large, Held}),
    #{in_use := 1, available := Available} = ?POOL:pool_stats(),
    true = Available >= 999,
    Before = ?NIF:native_bytes(),
    true = Before > 3_000_000,
    timer:sleep(100),
    #{gc := #{measured := true}, snapshots := [_ | _]} = stopped(),
    ok = ?PROFILER:start_profiling(#{interval_ms => 20}),
    ok = file:write_file(Said, "as_in_the_first.\n", [append]),
    {ok, Boots} = file:consult(Said),
    case length(Boots) of
        3 -> halt();
        _ -> init:restart()
    end.

stopped() ->
    #{snapshots := Snapshots} = ?PROFILER:get_profiling_data(),
    (?PROFILER:stop_profiling())#{snapshots := Snapshots}.

%%% References that travel

%% What reads or changes each kind of handle.
uses() ->
    [
        {state, ?O, [
            {get_state_field, [handle, id]}, {update_state_field, [handle, a, 1]},
            {to_map, [handle]}, {compress_state, [handle]}, {cleanup_state, [handle]}
        ]},
        {share, ?O, [{shared, [handle]}, {find_shared, [handle, []]}]},
        {pooled, ?POOL, [
            {connection_state, [handle]}, {update_connection_state, [handle, #{}]},
            {release_connection_state, [handle]}
        ]},
        {buffer, ?POOL, [
            {append_message_buffer, [handle, <<>>]}, {next_message, [handle]},
            {message_buffer, [handle]}, {release_message_buffer, [handle]}
        ]}
    ].

refused(Handles) ->
    [
        try apply(Module, Function, [with_handle(Arg, Handle) || Arg <- Args]) of
            Result -> ct:fail({no_badarg, Function, Result})
        catch
            error:badarg:Stack ->
                #{1 := Text} = erlmcp_memory_error:format_error(badarg, Stack),
                [
                    ?assertNotEqual(nomatch, string:find(Text, Way), {Function, Text})
                 || Way <- ["term_to_binary/1", "file", "another node"]
                ]
        end
     || {Kind, Module, Calls} <- uses(),
        {Function, Args} <- Calls,
        Handle <- [maps:get(Kind, Handles)]
    ].

with_handle(handle, Handle) -> Handle;
with_handle(Arg, _) -> Arg.

handles() ->
    #{content := _} = Held = held(),
    (maps:with([state, pooled, buffer], Held))#{share => ?O:share({alone, make_ref()})}.

a_handle_that_went_through_bytes_is_refused(_Config) ->
    Bytes = alone(fun() -> term_to_binary(handles()) end),
    until(fun() -> maps:get(in_use, ?POOL:pool_stats()) =:= 0 end),
    %% Others have what was theirs.
    Others = [handles() || _ <- lists:seq(1, 1000)],
    refused(binary_to_term(Bytes)),
    ?assertMatch(#{in_use := 1000}, ?POOL:pool_stats()),
    ?assertEqual(1000, length(Others)).

a_handle_of_another_node_is_refused(_Config) ->
    {ok, Peer, _} = peer:start(#{
        name => peer:random_name(?MODULE),
        connection => standard_io,
        args => ["-pa" | code:get_path()]
    }),
    try
        {ok, _} = peer:call(Peer, erlmcp_pool_help, start_alone, []),
        Far = peer:call(Peer, ?MODULE, handles, []),
        %% Here, where it never was one, and there, where nobody kept it.
        refused(Far),
        ok = peer:call(Peer, ?MODULE, gone, []),
        ok = peer:call(Peer, ?MODULE, refused_there, [Far])
    after
        peer:stop(Peer)
    end.

gone() ->
    [garbage_collect(Pid) || Pid <- processes()],
    until(fun() -> element(1, ?NIF:pool_stats()) =:= 0 end).

refused_there(Far) ->
    _ = refused(Far),
    ok.

%% Whether a compressed table keeps what it refers to alive is a matter of the OTP release.
a_handle_in_a_table_leads_to_no_other_state(Config) ->
    Table = ets:new(table, [compressed, public]),
    File = filename:join(proplists:get_value(priv_dir, Config), "table"),
    {ok, Dets} = dets:open_file(make_ref(), [{file, File}]),
    alone(fun() ->
        Handles = (handles())#{state := ?O:create_optimized_state(<<"theirs">>)},
        {ok, Pooled} = ?POOL:acquire_connection_state(#{id => <<"theirs">>}),
        true = ets:insert(Table, {1, Handles#{pooled := Pooled}}),
        ok = dets:insert(Dets, {1, Handles#{pooled := Pooled}})
    end),
    [garbage_collect(Pid) || Pid <- processes()],
    timer:sleep(100),
    Others = [
        begin
            {ok, Ref} = ?POOL:acquire_connection_state(#{id => N}),
            {Ref, ?O:create_optimized_state(integer_to_binary(N))}
        end
     || N <- lists:seq(1, 5000)
    ],
    [
        begin
            [{1, #{pooled := Pooled, state := State}}] = Found,
            is_theirs(fun() -> {ok, #{id := Id}} = ?POOL:connection_state(Pooled), Id end),
            is_theirs(fun() -> ?O:get_state_field(State, id) end)
        end
     || Found <- [ets:lookup(Table, 1), dets:lookup(Dets, 1)]
    ],
    ?assertEqual(5000, length(Others)),
    %% On releases with the fix, what is in the table lives.
    [{1, #{pooled := Kept}}] = ets:lookup(Table, 1),
    erlang:system_info(otp_release) >= "27" andalso
        ?assertEqual({ok, #{id => <<"theirs">>}}, ?POOL:connection_state(Kept)),
    true = ets:delete(Table),
    ok = dets:close(Dets).

is_theirs(Read) ->
    try Read() of
        Id -> ?assertEqual(<<"theirs">>, Id)
    catch
        error:badarg -> ok
    end.

%%% Handlers whose module goes

handlers_of_a_module_replaced_twice_are_badfuns(_Config) ->
    load_handlers(one),
    %% Purging kills who holds a fun of the code; what is off the heap it does not see.
    {Ref, State} = alone(fun() ->
        {Closure, _, _} = Handlers = apply(erlmcp_life_handlers, f, [7]),
        ?assertEqual({one, 7}, Closure()),
        {
            ?O:share(#{h => Handlers, pad => lists:seq(1, 100)}),
            ?O:from_map(#{id => <<>>, h => Handlers})
        }
    end),
    load_handlers(two),
    load_handlers(three),
    alone(fun() ->
        %% While another scheduler loads the next versions.
        {_, Monitor} = spawn_monitor(fun() -> [load_handlers(three) || _ <- lists:seq(1, 20)] end),
        [
            begin
                {Closure, Plain, _} = Funs,
                ?assertError({badfun, Closure}, Closure()),
                ?assertError({badfun, Plain}, Plain(1))
            end
         || _ <- lists:seq(1, 100),
            Funs <- [
                element(2, ?O:find_shared(Ref, [h])),
                ?O:get_state_field(State, h),
                ?O:get_state_field(?O:decompress_state(?O:compress_state(State)), h)
            ]
        ],
        receive {'DOWN', Monitor, process, _, Reason} -> ?assertEqual(normal, Reason) end,
        %% Who names the function calls what is loaded now.
        {ok, {_, _, Named}} = ?O:find_shared(Ref, [h]),
        {New, _, _} = Named(1),
        ?assertEqual({three, 1}, New())
    end),
    _ = code:purge(erlmcp_life_handlers),
    true = code:delete(erlmcp_life_handlers).

%% Another version of a module, with other code in its funs, in the place of the current one.
load_handlers(Version) ->
    Text = [
        "-module(erlmcp_life_handlers).",
        "-export([f/1]).",
        io_lib:format(
            "f(X) -> {fun() -> {~p, X} end, fun(Y) -> {~p, Y} end, fun erlmcp_life_handlers:f/1}.",
            [Version, Version]
        )
    ],
    Forms = [
        begin
            {ok, Tokens, _} = erl_scan:string(lists:flatten(Line)),
            {ok, Form} = erl_parse:parse_form(Tokens),
            Form
        end
     || Line <- Text
    ],
    {ok, Module, Code} = compile:forms(Forms),
    _ = code:purge(Module),
    {module, Module} = code:load_binary(Module, "erlmcp_life_handlers", Code),
    ok.

%%% What held, and is to hold

the_smallest_stacks_hold_the_deepest_terms(_Config) ->
    Expression = io_lib:format(
        "{module, _} = code:load_file(~p), ok = ~p:deepest(), io:put_chars(\"held\"), halt()",
        [?MODULE, ?MODULE]
    ),
    ?assertEqual(
        {0, "held"},
        ?HELP:erl([
            "+sss", "20", "+sssdcpu", "20", "-eval", lists:flatten(Expression)
        ])
    ).

%% In a VM of its own.
deepest() ->
    Keys = lists:seq(1, 63),
    [
        begin
            Deep = nested(Levels, Wrap),
            State = ?O:update_state_field(?O:create_optimized_state(<<>>), [f | Keys], Deep),
            Deep = ?O:get_state_field(State, [f | Keys]),
            Read = ?O:decompress_state(?O:compress_state(State)),
            Deep = ?O:get_state_field(Read, [f | Keys]),
            Deep = ?O:shared(?O:share(Deep)),
            true = ?O:estimate_memory(State) > Levels
        end
     || Levels <- [64, 128, 129, 2000],
        Wrap <- [
            fun(T) -> {T} end, fun(T) -> [T] end, fun(T) -> [T | t] end, fun(T) -> #{k => T} end
        ]
    ],
    ok.

killed_in_the_middle_of_a_call_leaves_nothing(_Config) ->
    Large = maps:from_list([{N, integer_to_binary(N)} || N <- lists:seq(1, 50_000)]),
    Data = binary:copy(<<"x">>, 3_000_000),
    Bytes = ?NIF:native_bytes(),
    Killed = [
        begin
            {Pid, Monitor} = spawn_monitor(fun() ->
                {ok, Buffer, _} = ?POOL:acquire_message_buffer(1),
                case N rem 3 of
                    0 -> {ok, _} = ?POOL:acquire_connection_state(Large);
                    1 -> {ok, _} = ?POOL:append_message_buffer(Buffer, [Data]);
                    2 -> ?O:share({N, Large})
                end,
                receive never -> ok end
            end),
            timer:sleep(N rem 15),
            exit(Pid, kill),
            Monitor
        end
     || N <- lists:seq(1, 120)
    ],
    [receive {'DOWN', Monitor, process, _, killed} -> ok end || Monitor <- Killed],
    until(fun() -> maps:get(in_use, ?POOL:pool_stats()) =:= 0 end),
    %% Idle blocks of buffers and idle states are the pool's own.
    ok = gen_server:stop(?POOL),
    until(fun() -> ?NIF:native_bytes() =< Bytes end).

aliases_come_back_as_they_were(_Config) ->
    Dead = alone(fun() -> alias() end),
    Requests = [
        Dead,
        alias(),
        alias([reply]),
        monitor(process, self(), [{alias, reply_demonitor}]),
        spawn_request(fun() -> ok end)
        | case erlang:system_info(otp_release) of
            Release when Release >= "28" -> [apply(erlang, alias, [[priority]])];
            _ -> []
        end
    ],
    {ok, Pooled} = ?POOL:acquire_connection_state(#{r => Requests}),
    ?assertMatch({ok, #{r := R}} when R =:= Requests, ?POOL:connection_state(Pooled)),
    ?assert(Requests =:= ?O:shared(?O:share(Requests))),
    State = ?O:from_map(#{id => <<>>, pending_refs => maps:from_list([{R, R} || R <- Requests])}),
    [
        ?assert(R =:= ?O:get_state_field(S, [pending_refs, R]))
     || S <- [State, ?O:decompress_state(?O:compress_state(State))], R <- Requests
    ],
    receive {spawn_reply, _, ok, _} -> ok end.

frames_come_back_byte_by_byte(_Config) ->
    Frames = [
        <<16#EF, 16#BB, 16#BF, "{}">>,
        <<0, 0, 0>>,
        <<"\"", 16#2028/utf8, 16#2029/utf8, "\"">>,
        <<16#ED, 16#A0, 16#80>>,
        <<16#FF, 16#FE>>,
        <<"\"", 16#1F600/utf8, "\"">>,
        <<"x\r">>,
        <<"\r \r">>,
        <<11, 12, 133>>
    ],
    {ok, Buffer, _} = ?POOL:acquire_message_buffer(1),
    [
        begin
            Sent = <<Frame/binary, End/binary>>,
            [
                begin
                    ?assertEqual(more, ?POOL:next_message(Buffer)),
                    {ok, _} = ?POOL:append_message_buffer(Buffer, <<Byte>>)
                end
             || <<Byte>> <= Sent
            ],
            ?assertEqual({ok, Frame}, ?POOL:next_message(Buffer))
        end
     || Frame <- Frames, End <- [<<"\r\n">> | [<<"\n">> || binary:last(Frame) =/= $\r]]
    ],
    ?assertEqual({ok, <<>>}, ?POOL:message_buffer(Buffer)).
