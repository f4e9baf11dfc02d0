#!/usr/bin/env escript
%% Puts the documentation of the public modules into their .beam files, as the chunk that h/1 of the
%% shell, IEx and editors read. A hook of rebar3 calls it when the modules were compiled, in this
%% project and where it is a dependency; a module that has the chunk is left alone.
%%
%% Documentation is no reason to fail: where OTP comes without edoc, the modules stay without.

-mode(compile).

main([]) ->
    Root = filename:dirname(filename:dirname(filename:absname(escript:script_name()))),
    case code:which(edoc_layout_chunks) of
        non_existing -> ok;
        _ -> document(missing(Root), Root)
    end.

%% Sources of public modules, and the compiled modules of each that have no documentation.
missing(Root) ->
    [
        {Source, Beams}
     || Source <- filelib:wildcard(filename:join([Root, "erl_src", "*.erl"])),
        is_public(Source),
        Beams <- [[Beam || Dir <- output(Root), Beam <- beams(Dir, Source)]],
        Beams =/= []
    ].

is_public(Source) ->
    {ok, Text} = file:read_file(Source),
    [Head, _] = binary:split(Text, <<"\n-module(">>),
    binary:match(Head, <<"@private">>) =:= nomatch.

%% Where rebar3 puts compiled modules: of this project, of a dependency, of a checkout, and with
%% `rebar3 bare compile', which mix uses.
output(Root) ->
    App = "erlmcp_memory",
    Named = [
        filename:join(Dir, Path)
     || {Variable, Path} <- [
            {"REBAR_BUILD_DIR", filename:join(["lib", App, "ebin"])},
            {"REBAR_DEPS_DIR", filename:join(App, "ebin")},
            {"REBAR_CHECKOUTS_OUT_DIR", filename:join(App, "ebin")},
            {"REBAR_BARE_COMPILER_OUTPUT_DIR", "ebin"}
        ],
        Dir <- [os:getenv(Variable)],
        Dir =/= false
    ],
    lists:usort([filename:join(Root, "ebin") | Named]).

beams(Dir, Source) ->
    Beam = filename:join(Dir, filename:basename(Source, ".erl") ++ ".beam"),
    case beam_lib:chunks(Beam, ["Docs"], [allow_missing_chunks]) of
        {ok, {_, [{"Docs", missing_chunk}]}} -> [Beam];
        _ -> []
    end.

document([], _) ->
    ok;
document(Missing, Root) ->
    Name = "erlmcp_memory_docs_" ++ os:getpid(),
    Dir = filename:join(os:getenv("TMPDIR", "/tmp"), Name),
    %% What edoc says of tags that a shell cannot show is for `make docs'.
    Leader = group_leader(),
    true = group_leader(spawn_link(fun silent/0), self()),
    try
        ok = edoc:files([Source || {Source, _} <- Missing], [
            {doclet, edoc_doclet_chunks},
            {layout, edoc_layout_chunks},
            {preprocess, true},
            {includes, [filename:join(Root, "include")]},
            {dir, Dir}
        ]),
        lists:foreach(fun({Source, Beams}) -> put_in(Source, Beams, Dir) end, Missing)
    catch
        Class:Reason ->
            io:format(Leader, "erlmcp_memory: no documentation: ~tp~n", [{Class, Reason}])
    after
        true = group_leader(Leader, self()),
        file:del_dir_r(Dir)
    end.

silent() ->
    receive
        {io_request, From, Reference, _} ->
            From ! {io_reply, Reference, ok},
            silent()
    end.

put_in(Source, Beams, Dir) ->
    Name = filename:basename(Source, ".erl"),
    {ok, Docs} = file:read_file(filename:join([Dir, "chunks", Name ++ ".chunk"])),
    lists:foreach(fun(Beam) -> add(Beam, Docs) end, Beams).

%% By rename, so that nobody reads half a module.
add(Beam, Docs) ->
    {ok, _, Chunks} = beam_lib:all_chunks(Beam),
    {ok, Module} = beam_lib:build_module(Chunks ++ [{"Docs", Docs}]),
    New = Beam ++ ".docs",
    ok = file:write_file(New, Module),
    ok = file:rename(New, Beam).
