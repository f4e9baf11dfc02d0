#!/usr/bin/env escript
%% Writes the seeds that Erlang makes: every kind of term in the external format, in each way that
%% this release of OTP writes it, tags that it only reads, and snapshots of the library itself.
%%
%%   escript native/fuzz/seeds.escript FOLDER

%% Interpreted, a fun would take the whole of this file with it.
-mode(compile).

main([Folder]) ->
    Root = filename:dirname(filename:dirname(filename:dirname(filename:absname(escript:script_name())))),
    true = code:add_patha(filename:join(Root, "_build/default/lib/erlmcp_memory/ebin")),
    Terms = terms(),
    lists:foreach(
        fun({{N, Term}, {M, Options}}) ->
            %% Not every release knows every option.
            try term_to_binary(Term, Options) of
                Bytes -> write(Folder, "external", ["term-", N, $-, M], Bytes)
            catch
                error:badarg -> ok
            end
        end,
        [{Term, Options} || Term <- numbered(Terms), Options <- numbered(options())]
    ),
    [write(Folder, "external", ["tag-", N], <<131, Bytes/binary>>) || {N, Bytes} <- numbered(old_tags())],
    [
        write(Folder, "snapshot", ["library-", N, $-, Form], snapshot(Fields, Compressed))
     || {N, Fields} <- numbered(states(Terms)), {Form, Compressed} <- [{"raw", false}, {"lz4", true}]
    ],
    [write(Folder, "snapshot", ["version1-", N], Bytes) || {N, Bytes} <- numbered(version1())],
    ok.

numbered(List) ->
    [{integer_to_list(N), Item} || {N, Item} <- lists:zip(lists:seq(1, length(List)), List)].

write(Folder, Target, Name, Bytes) ->
    File = filename:join([Folder, Target, lists:flatten(Name)]),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, Bytes).

options() ->
    [[], [{minor_version, 0}], [{minor_version, 1}], [compressed], [deterministic], [local]].

terms() ->
    Binary = <<"what a closure took with it">>,
    [
        0, 255, 256, -1, -(1 bsl 31), 1 bsl 31, 1 bsl 59, -(1 bsl 63), 1 bsl 63, 1 bsl 64, -(1 bsl 80),
        1 bsl 2100, -(1 bsl 2100),
        0.0, -0.0, 1.5, -1.0e308, 5.0e-324,
        ok, true, undefined, '', 'é', '日本', list_to_atom(lists:duplicate(255, $a)),
        [], [1, 2, 3], "text", [0, 255, 256], lists:seq(1, 300), [a | b], [1, 2 | <<"tail">>], [[], [[]]],
        {}, {ok, 1}, list_to_tuple(lists:seq(1, 300)), {a, {b, {c, []}}},
        <<>>, <<"binary">>, binary:copy(<<"x">>, 300), <<1:1>>, <<255, 3:7>>, <<0:9>>,
        #{}, #{a => 1, <<"b">> => [c]}, maps:from_list([{N, N * N} || N <- lists:seq(1, 40)]),
        #{#{1 => 2} => {#{}}, [] => #{a => #{b => c}}},
        self(), make_ref(), hd(erlang:ports()), {self(), make_ref()},
        fun lists:map/2, fun(X) -> X end, fun() -> Binary end,
        fun() -> fun() -> {Binary, self()} end end,
        #{tools => #{<<"echo">> => {<<"says it">>, fun(A) -> {A, Binary} end}}},
        lists:foldl(fun(N, T) -> [T, N] end, leaf, lists:seq(1, 140))
    ].

%% What is read, and written by older releases or other programs alone.
old_tags() ->
    Node = <<100, 0, 13, "nonode@nohost">>,
    Atom = <<119, 1, "a">>,
    [
        <<100, 0, 2, "ok">>, <<115, 2, "ok">>, <<118, 0, 2, "ok">>, <<119, 2, "ok">>,
        <<99, "1.50000000000000000000e+00", 0:40>>,
        <<101, Node/binary, 7:32, 1>>,
        <<102, Node/binary, 7:32, 1>>, <<89, Node/binary, 7:32, 1:32>>, <<120, Node/binary, 7:64, 1:32>>,
        <<103, Node/binary, 7:32, 0:32, 1>>, <<88, Node/binary, 7:32, 0:32, 1:32>>,
        <<114, 3:16, Node/binary, 1, 1:32, 2:32, 3:32>>, <<90, 5:16, Node/binary, 1:32, 0:160>>,
        <<105, 2:32, 97, 1, 106>>, <<108, 1:32, Atom/binary, Atom/binary>>, <<111, 9:32, 1, 1:72/little>>,
        <<110, 0, 0>>, <<107, 0, 0>>, <<77, 1:32, 8, 255>>, <<77, 0:32, 0>>,
        <<113, Atom/binary, Atom/binary, 97, 2>>,
        %% Each of these is refused.
        <<80, 4:32, (zlib:compress(<<97, 1, 106, 106>>))/binary>>, <<82, 0>>, <<117, 0:32>>, <<121, 1, 106>>,
        <<116, 2:32, 97, 1, 97, 1, 97, 1, 97, 2>>, <<109, 16#ffffffff:32, "x">>, <<108, 16#ffffffff:32, 106>>,
        <<116, 16#ffffffff:32>>, <<105, 16#ffffffff:32>>, <<111, 16#ffffffff:32, 0>>
    ].

%% Fields of states that hold each of these terms, by names that the targets know as atoms.
states(Terms) ->
    Share = erlmcp_connection_optimizer:share(#{tools => Terms, ok => <<"shared">>}),
    Outer = erlmcp_connection_optimizer:share({Share, Share, make_ref()}),
    Some = #{id => <<"conn-1">>, created_at => 1769000000000},
    Close = closer(),
    [
        Some,
        Some#{phase => initialized, transport => erlmcp_transport_ws, capabilities_ref => Share},
        Some#{tools => Outer, a => [Outer, Share]},
        %% What is shared inside what a fun closes over, and states inside states.
        Some#{tools => Close({Outer, Close(Share)}), b => #{Share => [fun lists:ok/2, fun a:b/0]}},
        Some#{a => erlmcp_connection_optimizer:from_map(Some), b => {self(), hd(erlang:ports())}},
        Some#{a => lists:foldl(fun(_, Term) -> {Term, ok} end, leaf, lists:seq(1, 3000))},
        Some#{metadata => maps:from_list([{N, binary:copy(<<N>>, N)} || N <- lists:seq(1, 60)])},
        Some#{pending_refs => maps:from_list([{make_ref(), N} || N <- lists:seq(1, 20)])},
        Some#{metadata => #{tools => maps:from_list([{integer_to_binary(N), [ok, N]} || N <- lists:seq(1, 200)])}}
        | [Some#{tools => Term, metadata => #{Term => Term}} || Term <- Terms]
    ].

%% Makes funs of a module whose name the targets know as an atom.
closer() ->
    Forms = [
        element(2, erl_parse:parse_form(element(2, erl_scan:string(Line))))
     || Line <- [
            "-module(leaf).", "-export([close/0]).", "close() -> fun(Free) -> fun() -> Free end end."
        ]
    ],
    {ok, Module, Code} = compile:forms(Forms),
    {module, Module} = code:load_binary(Module, "leaf", Code),
    Module:close().

snapshot(Fields, Compressed) ->
    ok = application:set_env(erlmcp, compression_enabled, Compressed),
    erlmcp_connection_optimizer:compress_state(erlmcp_connection_optimizer:from_map(Fields)).

version1() ->
    [
        <<1, 1, 1, 8:16, "conn-123", 1769000000000:64, 2:16>>,
        <<1, 9, 9, 0:16, 0:64, 0:16>>,
        <<1, 0, 4, 2:16, "id", 16#ffffffffffffffff:64, 16#ffff:16>>
    ].
