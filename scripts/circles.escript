#!/usr/bin/env escript
%% Fails when files depend on each other in a circle, in the Rust crates or between the Erlang
%% modules, so that each file can be read, moved and tested with those below it alone.
%%
%%   escript scripts/circles.escript [--knot FILE] [--beams DIR] CRATE...
%%
%% CRATE is a folder with a lib.rs. A file depends on the file that defines an item that it names by
%% a path, whichever module re-exports it; `mod' lines, re-exports and unit tests are no dependency,
%% and methods are not resolved. DIR has compiled modules: one depends on those that it calls by
%% name. FILE lists files, one a line, that may be in a circle with each other; all of them must.
-mode(compile).

main(Args) ->
    {Knot, Rest} = knot(Args),
    Circles = circles(Rest),
    New = [Circle || Circle <- Circles, Circle -- Knot =/= []],
    [say("circle", Circle) || Circle <- New],
    Left = Knot -- lists:append(Circles),
    Left =:= [] orelse say("in no circle any more", Left),
    (New =:= [] andalso Left =:= []) orelse halt(1).

knot(["--knot", File | Args]) ->
    {ok, Text} = file:read_file(File),
    Lines = string:lexemes(unicode:characters_to_list(Text), "\n"),
    {[Line || [First | _] = Line <- Lines, First =/= $#], Args};
knot(Args) ->
    {[], Args}.

circles(["--beams", Dir | Crates]) -> beams(Dir) ++ circles(Crates);
circles(Crates) -> lists:append([crate(Crate) || Crate <- Crates]).

say(What, Files) ->
    io:format(standard_error, "~ts: ~ts~n", [What, lists:join(" -> ", Files)]).

refuse(Text, Dir) ->
    io:format(standard_error, "~ts in ~ts~n", [Text, Dir]),
    halt(2).

%% --- Erlang ---

beams(Dir) ->
    {ok, _} = xref:start(circles, [{xref_mode, functions}]),
    {ok, Modules} = xref:add_directory(circles, Dir, [{warnings, false}]),
    Modules =/= [] orelse refuse("no modules", Dir),
    {ok, Calls} = xref:q(circles, "strict ME | AM || AM"),
    rounds([{atom_to_list(From), atom_to_list(To)} || {From, To} <- Calls]).

%% --- Rust ---

%% A module is its path of names; #{Path => {File, Items, Uses, Paths}}.
crate(Dir) ->
    Files = filelib:wildcard("**/*.rs", Dir),
    lists:member("lib.rs", Files) orelse refuse("no lib.rs", Dir),
    Modules0 = maps:from_list([{module_path(File), read(Dir, File)} || File <- Files]),
    Tests = [Path ++ [Name] || {Path, #{tests := Names}} <- maps:to_list(Modules0), Name <- Names],
    Modules = maps:without(Tests, Modules0),
    Macros = maps:from_list([{Name, Path} || {Path, #{macros := Names}} <- maps:to_list(Modules), Name <- Names]),
    Edges = [{maps:get(file, Module), maps:get(file, maps:get(To, Modules))}
             || {Path, #{uses := Uses, paths := Paths} = Module} <- maps:to_list(Modules),
                Named <- [P || {_, P, private} <- Uses] ++ Paths,
                To <- definer(Path, Named, Modules, Macros),
                To =/= Path],
    rounds(lists:usort(Edges)).

module_path(File) ->
    Names = filename:split(filename:rootname(File)),
    case {lists:last(Names), lists:droplast(Names)} of
        {"lib", []} -> [];
        {"mod", Folder} -> Folder;
        _ -> Names
    end.

%% The module that defines what a path names; none for what other crates define.
definer(Path, Named, Modules, Macros) ->
    case resolve(Path, Named, Modules, 8) of
        {item, Module} -> [Module];
        {module, _} -> [];
        none ->
            case Named of
                ["crate", Name] when is_map_key(Name, Macros) -> [maps:get(Name, Macros)];
                _ -> []
            end
    end.

resolve(_, _, _, 0) -> none;
resolve(Path, [], _, _) -> {module, Path};
resolve(_, ["crate" | Names], Modules, Steps) -> resolve([], Names, Modules, Steps);
resolve(Path, ["self" | Names], Modules, Steps) -> resolve(Path, Names, Modules, Steps);
resolve(Path, ["super" | Names], Modules, Steps) when Path =/= [] ->
    resolve(lists:droplast(Path), Names, Modules, Steps);
resolve(Path, [Name | Names], Modules, Steps) ->
    Inner = Path ++ [Name],
    #{items := Items, uses := Uses} = maps:get(Path, Modules),
    case {is_map_key(Inner, Modules), lists:member(Name, Items), lists:keyfind(Name, 1, Uses)} of
        {true, _, _} -> resolve(Inner, Names, Modules, Steps);
        {_, true, _} -> {item, Path};
        {_, _, {_, Used, _}} when Used =/= [Name | Names] -> resolve(Path, Used ++ Names, Modules, Steps - 1);
        _ ->
            Globs = [resolve(Path, Used ++ [Name | Names], Modules, Steps - 1) || {"*", Used, _} <- Uses],
            hd([Found || Found <- Globs, Found =/= none] ++ [none])
    end.

read(Dir, File) ->
    {ok, Source} = file:read_file(filename:join(Dir, File)),
    Tokens = tokens(Source),
    scan(Tokens, #{file => filename:join(Dir, File), items => [], uses => [], paths => [], tests => [], macros => []}).

%% Without comments, strings, characters and lifetimes.
tokens(Source) ->
    Plain = re:replace(Source,
                       "(?s)//[^\n]*|r(#+)\".*?\"\\1|\"(?:\\\\.|[^\"\\\\])*\"|'(?:\\\\[^']+|[^'\\\\])'|'[a-z_]+",
                       " ", [global, {return, binary}, unicode]),
    {match, Found} = re:run(Plain, "[A-Za-z_][A-Za-z0-9_]*|::|[^\\sA-Za-z_]", [global, {capture, first, list}, unicode]),
    [Token || [Token] <- Found].

scan(["#", "[", "cfg", "(", "test", ")", "]" | Rest], Module) -> test(Rest, Module);
scan(["pub", "use" | Rest], Module) -> use(Rest, public, Module);
scan(["pub", "(", _, ")", "use" | Rest], Module) -> use(Rest, public, Module);
scan(["use" | Rest], Module) -> use(Rest, private, Module);
scan(["macro_rules", "!", Name | Rest], Module) -> scan(Rest, add(macros, Name, add(items, Name, Module)));
scan(["mod", Name, "{" | Rest], Module) -> scan(Rest, add(items, Name, Module));
scan([Kind, Name | Rest], Module)
  when Kind =:= "fn"; Kind =:= "struct"; Kind =:= "enum"; Kind =:= "trait"; Kind =:= "const"; Kind =:= "static";
       Kind =:= "type"; Kind =:= "union" ->
    scan(Rest, add(items, Name, Module));
scan([Name, "::" | Rest], Module) ->
    {Names, Behind} = path(Rest, [Name]),
    scan(Behind, add(paths, Names, Module));
scan([_ | Rest], Module) -> scan(Rest, Module);
scan([], Module) -> Module.

add(Key, Value, Module) -> maps:update_with(Key, fun(Values) -> [Value | Values] end, Module).

path([[C | _] = Name, "::" | Rest], Names) when C =:= $_; C >= $A, C =< $Z; C >= $a, C =< $z ->
    path(Rest, [Name | Names]);
path([[C | _] = Name | Rest], Names) when C =:= $_; C >= $A, C =< $Z; C >= $a, C =< $z ->
    {lists:reverse([Name | Names]), Rest};
path(Rest, Names) -> {lists:reverse(Names), Rest}.

%% What a `use' brings in: {its name here, path, public or private}.
use(Tokens, Visible, Module) ->
    {Trees, Rest} = tree(Tokens, []),
    Uses = [{Name, Path, Visible} || {Name, Path} <- Trees],
    scan(Rest, maps:update_with(uses, fun(Old) -> Uses ++ Old end, Module)).

tree(["{" | Rest], Prefix) -> group(Rest, Prefix, []);
tree(["*" | Rest], Prefix) -> {[{"*", Prefix}], Rest};
tree(["self" | Rest], [_ | _] = Prefix) -> named(Rest, Prefix);
tree([Name, "::" | Rest], Prefix) -> tree(Rest, Prefix ++ [Name]);
tree([Name | Rest], Prefix) -> named(Rest, Prefix ++ [Name]).

named(["as", Name | Rest], Path) -> {[{Name, Path}], Rest};
named(Rest, Path) -> {[{lists:last(Path), Path}], Rest}.

group(["}" | Rest], _, Found) -> {Found, Rest};
group(["," | Rest], Prefix, Found) -> group(Rest, Prefix, Found);
group(Tokens, Prefix, Found) ->
    {Trees, Rest} = tree(Tokens, Prefix),
    group(Rest, Prefix, Trees ++ Found).

%% A test: a module in a file of its own, or an item in braces.
test(["mod", Name, ";" | Rest], Module) -> scan(Rest, add(tests, Name, Module));
test(["#", "[" | Rest], Module) -> test(tl(lists:dropwhile(fun(T) -> T =/= "]" end, Rest)), Module);
test(Tokens, Module) -> skip(lists:dropwhile(fun(T) -> T =/= "{" andalso T =/= ";" end, Tokens), 0, Module).

skip([";" | Rest], 0, Module) -> scan(Rest, Module);
skip(["{" | Rest], Depth, Module) -> skip(Rest, Depth + 1, Module);
skip(["}" | Rest], 1, Module) -> scan(Rest, Module);
skip(["}" | Rest], Depth, Module) -> skip(Rest, Depth - 1, Module);
skip([_ | Rest], Depth, Module) -> skip(Rest, Depth, Module);
skip([], _, Module) -> Module.

%% --- Both ---

%% The sets of nodes that reach each other: the shortest way round first, then the others.
rounds(Edges) ->
    Graph = digraph:new(),
    [
        begin
            [digraph:add_vertex(Graph, Node) || Node <- [From, To]],
            digraph:add_edge(Graph, From, To)
        end
     || {From, To} <- Edges
    ],
    [
        begin
            Round = lists:droplast(digraph:get_short_cycle(Graph, hd(Nodes))),
            Round ++ (Nodes -- Round)
        end
     || [_, _ | _] = Nodes <- digraph_utils:cyclic_strong_components(Graph)
    ].
