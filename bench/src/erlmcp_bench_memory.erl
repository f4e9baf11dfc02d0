%% @doc `make bench-memory': the forms of the example host side by side.
%%
%% Each form runs in a fresh VM; requests and single operations of all forms are timed in one VM,
%% in turn. The text that is printed says first what was measured, then which marks are met.
%%
%% The forms are the plain connection, the same with `hibernate_after', the best by hand with
%% `persistent_term', the connection rewritten for compact states, and the plain connection started
%% by `erlmcp_memory_server'.
-module(erlmcp_bench_memory).

-export([main/1]).

-import(erlmcp_bench_table, [row/1, mark/5, truth/3, bytes/1, micros/1, ms/1, ratio/2, print/2]).

-define(PLAIN, erlmcp_host_plain).
-define(HIBERNATING, erlmcp_host_hibernating).
-define(PERSISTENT, erlmcp_host_persistent).
-define(COMPACT, erlmcp_host_compact).
-define(PARKED, erlmcp_host_parked).
%% The plain connection, started the one or the other way.
-define(UNCHANGED, [?PLAIN, ?HIBERNATING, ?PARKED]).
%% Awake at the same time; more of these forms would not fit into a modest machine.
-define(AWAKE, 2000).

%% @doc `Count' connections, `File' with a tools/list (empty: a generated one), and for how many
%% seconds to work at random. Ends with a status other than 0 when something could not be measured,
%% whether or not the marks are met.
-spec main([string()]) -> ok.
main([CountText, File, SecondsText]) ->
    Count = list_to_integer(CountText),
    Seconds = list_to_integer(SecondsText),
    case erlmcp_bench_json:library() of
        none ->
            io:put_chars("No JSON library: install jiffy (erlang-jiffy), or OTP 27 or later.\n"),
            halt(1);
        Library ->
            run(Count, source(File), Seconds, Library)
    end.

source("") -> generated;
source(File) -> filename:absname(File).

run(Count, File, Seconds, Library) ->
    Tools = erlmcp_bench_form:tools(#{file => File}),
    #{tools := N, bytes := Bytes} = erlmcp_bench_tools:shape(Tools),
    print("~b tools, ~b bytes of JSON, encoded by ~s; OTP ~s, ~b schedulers~n~n", [
        N, Bytes, Library, erlang:system_info(otp_release), erlang:system_info(schedulers)
    ]),
    Forms = maps:from_list([{Form, form(Form, Count, File, false)} || Form <- erlmcp_host:forms()]),
    print_bytes("", erlmcp_host:forms(), Count, Forms),
    Own = maps:from_list([{Form, form(Form, Count, File, true)} || Form <- ?UNCHANGED]),
    print_bytes("; each has one tool of its own besides", ?UNCHANGED, Count, Own),
    #{awake := Awake, idle := Idle, micro := Micro, state := State} =
        erlmcp_bench_vm:run("single operations", erlmcp_bench_micro, run, [#{file => File}]),
    #{list := List, call := Call} = Awake,
    print_times(Awake, Idle),
    print_change(Count, Forms),
    print_operations(Micro, State),
    Stress = erlmcp_bench_vm:run("random work", erlmcp_bench_stress, run, [16, Seconds * 1000]),
    print("~nMarks~n", []),
    marks_of_bytes(Forms),
    marks_of_parking(maps:get(?PARKED, Forms), Call),
    marks_of_times(List, Call),
    marks_of_change(maps:get(change, maps:get(?COMPACT, Forms))),
    marks_of_state(State),
    marks_of_operations(Micro),
    mark_of_stress(Stress, Seconds).

form(Form, Count, File, Own) ->
    {All, Awake} =
        case Form of
            ?COMPACT -> {Count, Count};
            _ when Form =:= ?PERSISTENT; Form =:= ?PARKED -> {Count, min(Count, ?AWAKE)};
            _ -> {min(Count, ?AWAKE), min(Count, ?AWAKE)}
        end,
    Options = #{
        form => Form,
        count => All,
        running => Awake,
        hibernates => Form =/= ?PLAIN,
        own => Own,
        change => Form =:= ?PERSISTENT orelse Form =:= ?COMPACT,
        file => File
    },
    Result = erlmcp_bench_vm:run(name(Form), erlmcp_bench_form, run, [Options]),
    Result#{count => All, awake => Awake}.

name(?PLAIN) -> "plain";
name(?HIBERNATING) -> "hibernate_after";
name(?PERSISTENT) -> "persistent_term";
name(?COMPACT) -> "compact";
name(?PARKED) -> "parked".

%% --- tables ---

print_bytes(What, Names, Count, Forms) ->
    print("~nBytes a connection (~b connections~s; in all and awake at once: ~s)~n", [
        Count,
        What,
        lists:join(", ", [
            io_lib:format("~s ~b, ~b", [name(F), All, Awake])
         || F <- Names, #{count := All, awake := Awake} <- [maps:get(F, Forms)]
        ])
    ]),
    Kinds = [total, resident, processes, binaries, native, other],
    row(["" | [atom_to_list(Kind) || Kind <- Kinds]]),
    [
        row([[name(Form), " ", atom_to_list(Phase)] | [bytes(maps:get(K, Bytes)) || K <- Kinds]])
     || Form <- Names,
        Phase <- [running, collected, hibernated],
        Bytes <- [maps:get(Phase, maps:get(Form, Forms), none)],
        Bytes =/= none
    ],
    print(
        "  total: erlang:memory(total). native: what the library's code asked for; its headers~n"
        "  are in binaries and other. hibernated: parked, too. compact hibernates after each~n"
        "  message; of parked, no more are awake than awake_memory_limit has room for.~n",
        []
    ).

print_times(Awake, Idle) ->
    print("~nTime of a request as its sender sees it, median; lines of the host that differ~n", []),
    row(["", "tools/list", "of plain", "tools/call", "of plain", "list, idle", "call, idle", "lines"]),
    [
        row(
            [name(Form)] ++
                lists:append([
                    [micros(maps:get(Form, Times)), ratio(maps:get(Form, Times), Plain)]
                 || Times <- [maps:get(list, Awake), maps:get(call, Awake)],
                    Plain <- [maps:get(?PLAIN, Times)]
                ]) ++
                [micros(maps:get(Form, maps:get(Kind, Idle))) || Kind <- [list, call]] ++
                [integer_to_list(lines(Form))]
        )
     || Form <- erlmcp_host:forms()
    ],
    print("  idle: from hibernation; parked, from there. plain does not hibernate.~n", []).

%% Lines of a form that the plain connection does not have, and the other way round, apart from
%% comments: what a host has to rewrite. Of those that start the plain one it is the start call.
lines(?PLAIN) ->
    0;
lines(Form) when Form =:= ?HIBERNATING; Form =:= ?PARKED ->
    1;
lines(Form) ->
    {Plain, Other} = {code_lines(?PLAIN), code_lines(Form)},
    max(length(Other -- Plain), length(Plain -- Other)).

code_lines(Module) ->
    Source = proplists:get_value(source, Module:module_info(compile)),
    {ok, Text} = file:read_file(Source),
    Lines = [string:trim(Line) || Line <- binary:split(Text, <<"\n">>, [global])],
    [Line || Line <- Lines, Line =/= <<>>, binary:first(Line) =/= $%].

print_change(Count, Forms) ->
    print("~nOne tool changed under ~b connections; longest pauses in ms~n", [Count]),
    row(["", "change", "heartbeat", "(quiet)", "collection", "time slice", "collected"]),
    [
        begin
            #{micros := Micros, quiet := #{heartbeat := Quiet}, pauses := Pauses} =
                maps:get(change, maps:get(Form, Forms)),
            #{heartbeat := Heartbeat, gc := Gc, slice := Slice, collections := Collected} = Pauses,
            row([
                name(Form),
                [float_to_list(Micros / 1000, [{decimals, 1}]), " ms"],
                ms(Heartbeat),
                ms(Quiet),
                ms(Gc),
                ms(Slice),
                integer_to_list(Collected)
            ])
        end
     || Form <- [?PERSISTENT, ?COMPACT]
    ].

print_operations(#{empty_nif := Nif, ets_lookup := Ets} = Micro, State) ->
    print("~nSingle operations, median, and as a multiple of an empty NIF call and of ets:lookup~n", []),
    Names = [
        {empty_nif, "empty NIF call"},
        {ets_lookup, "ets:lookup"},
        {read, "read a field"},
        {read_path, "read under a path"},
        {update, "update a field"},
        {update_path, "update under a path"},
        {update_five, "update five fields in one call"},
        {find_schema, "find_shared, a schema"},
        {decode_schema, "binary_to_term of it"}
    ],
    row(["", "ns", "NIF calls", "lookups"]),
    [
        row([Name, bytes(Ns), ratio(Ns, Nif), ratio(Ns, Ets)])
     || {Key, Name} <- Names, Ns <- [maps:get(Key, Micro)]
    ],
    #{estimate := Estimate, measured := Measured, record_flat := Flat, record_measured := Record} =
        State,
    print(
        "~nA state of id, phase, transport, three metadata keys, three pending requests, in bytes~n"
        "  ours   ~b by its own account, ~s measured with its reference~n"
        "  record ~b by erts_debug:flat_size, ~s measured on the heap of a process~n",
        [Estimate, bytes(Measured), Flat, bytes(Record)]
    ).

%% --- marks ---

marks_of_bytes(#{?PLAIN := Plain, ?PERSISTENT := Persistent, ?COMPACT := Compact}) ->
    Total = fun(Phase, Form) -> maps:get(total, maps:get(Phase, Form)) end,
    Hibernated = maps:get(hibernated, Compact),
    mark(1, "hibernated, total bytes", at_most, maps:get(total, Hibernated), 2048),
    mark(1, "hibernated, resident bytes", at_most, maps:get(resident, Hibernated), 2048),
    Running = Total(running, Compact),
    mark(2, "running, total bytes", at_most, Running, 6 * 1024),
    mark(2, "running, plain, total bytes", at_least, Total(running, Plain), 1 bsl 20),
    mark(2, "running, persistent_term as a multiple of ours", at_least,
        Total(running, Persistent) / Running, 100).

%% Connections that were not rewritten.
marks_of_parking(#{hibernated := Parked}, #{?PLAIN := PlainCall, ?PARKED := Call}) ->
    mark(8, "parked, total bytes", at_most, maps:get(total, Parked), 2048),
    mark(8, "parked, resident bytes", at_most, maps:get(resident, Parked), 2560),
    mark(8, "tools/call awake, a multiple of plain", at_most, Call / PlainCall, 1.2).

marks_of_times(#{?PLAIN := PlainList, ?COMPACT := List}, #{?PLAIN := PlainCall, ?COMPACT := Call}) ->
    mark(3, "tools/list, plain's time as a multiple of ours", at_least, PlainList / List, 50),
    mark(3, "tools/call, ns more than plain", at_most, Call - PlainCall, 5000).

marks_of_change(#{pauses := Pauses} = Change) ->
    #{share := Share, freed := Freed} = Change,
    truth(4, "connections keep the version they hold", maps:get(old_keep, Change)),
    truth(4, "new connections get the new one, and keep it", maps:get(new_get, Change) andalso
        maps:get(new_stay, Change)),
    truth(4, "the last user of the old version still has it", maps:get(last_keeps, Change)),
    mark(4, "bytes freed with it, 90 % of the old version's", at_least, Freed, 0.9 * Share),
    #{heartbeat := Heartbeat, gc := Gc, slice := Slice} = Pauses,
    mark(4, "longest pause of any process, ms", at_most, lists:max([Heartbeat, Gc, Slice]), 10).

marks_of_state(#{measured := Measured, record_flat := Flat, record_measured := Record}) ->
    mark(5, "state, bytes in all", at_most, Measured, 360),
    mark(5, "the same, against the record's flat size", at_most, Measured, Flat),
    mark(5, "the same, against the record as measured", at_most, Measured, Record).

marks_of_operations(Micro) ->
    #{read := Read, update := Update, find_schema := Find, decode_schema := Decode} = Micro,
    #{update_path := Path, update_five := Five} = Micro,
    mark(6, "read a field, ns", at_most, Read, 90),
    mark(6, "update a field, ns", at_most, Update, 330),
    mark(6, "update under a path, ns", at_most, Path, 450),
    mark(6, "five fields in one call, a multiple of one", at_most, Five / Update, 2),
    mark(6, "find_shared of a schema, ns, against binary_to_term", at_most, Find, Decode),
    mark(6, "find_shared, the worst schema's ratio", at_most, maps:get(find_worst_ratio, Micro), 1).

mark_of_stress(#{operations := Operations, left := Left, once := Once}, Seconds) ->
    Text = io_lib:format("bytes left after ~b s, ~b operations, no wrong answer", [
        Seconds, Operations
    ]),
    mark(7, Text, at_most, Left, Once).
