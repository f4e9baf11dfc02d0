%% For suites that run what the README and the guides say.
-module(erlmcp_project_guide_help).

-export([text/1, blocks/1, write/3, sh/2]).

-define(HELP, erlmcp_project_help).

%% A document of the project.
text(Document) ->
    {ok, Text} = file:read_file(filename:join(?HELP:root(), Document)),
    Text.

%% The words behind the opening ``` of each block, and what is in it.
blocks(Document) ->
    Text = text(Document),
    Found = found(Text, "^```([^\n`]*)\n(.*?)^```$", [
        multiline, dotall, {capture, all_but_first, list}
    ]),
    %% No block escapes by being indented, left open or fenced otherwise.
    Fences = found(Text, "^[ \t>]*(?:```|~~~)", [multiline]),
    case 2 * length(Found) =:= length(Fences) of
        true -> [{string:lexemes(Kind, " "), Block} || [Kind, Block] <- Found];
        false -> ct:fail("~ts: a block of code that is not fenced by ``` alone", [Document])
    end.

found(Text, Pattern, Options) ->
    case re:run(Text, Pattern, [global | Options]) of
        {match, Found} -> Found;
        nomatch -> []
    end.

%% A file of the host that a document builds.
write(File, Text, Host) ->
    Path = filename:join(Host, File),
    ok = filelib:ensure_dir(Path),
    ok = file:write_file(Path, Text).

%% The commands of a block: `make ...' is looked at, the others are run where the host is.
sh(Text, Host) ->
    {Make, Other} = lists:partition(
        fun(Line) -> lists:prefix("make ", Line) end, string:split(Text, "\n", all)
    ),
    %% That the target is there and what it needs, too: the targets run the tests, or for minutes.
    [ok(["make -n ", Line], ?HELP:root()) || "make " ++ Line <- Make],
    ok(lists:join("\n", Other), Host).

ok(Commands, Dir) ->
    {Status, Output} = ?HELP:sh(Dir, lists:flatten(Commands)),
    Status =:= 0 orelse ct:fail("~ts~nended with ~b:~n~ts", [Commands, Status, Output]).
