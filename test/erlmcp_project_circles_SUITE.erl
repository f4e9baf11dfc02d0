%% The check for circles between files: it passes here, and fails where one is planted.
-module(erlmcp_project_circles_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-export([all/0]).
-export([
    the_project_has_none/1,
    a_circle_in_rust_is_found/1,
    what_is_no_circle_in_rust_is_not/1,
    a_circle_in_erlang_is_found/1,
    files_that_left_a_knot_are_named/1
]).

-define(HELP, erlmcp_project_help).

all() ->
    [
        the_project_has_none,
        a_circle_in_rust_is_found,
        what_is_no_circle_in_rust_is_not,
        a_circle_in_erlang_is_found,
        files_that_left_a_knot_are_named
    ].

the_project_has_none(_Config) ->
    Beams = filename:dirname(code:which(erlmcp_memory_pool)),
    Crates = ["native/core/src", "native/nif/src"],
    Knot = filename:join(?HELP:root(), "scripts/circles.knot"),
    ?assertEqual({0, ""}, check(["--knot", Knot, "--beams", Beams | Crates])).

a_circle_in_rust_is_found(Config) ->
    Crate = crate(Config, [
        {"lib.rs", "mod low;\nmod folder;\n"},
        {"low.rs", "use crate::folder::{self, Thing};\npub fn low(_: Thing) { folder::other() }\n"},
        {"folder/mod.rs", "mod inside;\npub use inside::{Thing, other};\n"},
        {"folder/inside.rs", "pub struct Thing;\npub fn other() { crate::low::low(Thing) }\n"}
    ]),
    {1, Said} = check([Crate]),
    ?assertMatch({match, _}, re:run(Said, "circle: .*(low.rs.*inside.rs|inside.rs.*low.rs)")).

%% Re-exports, comments, strings and unit tests are no dependency.
what_is_no_circle_in_rust_is_not(Config) ->
    Crate = crate(Config, [
        {"lib.rs", "mod low;\nmod high;\n"},
        {"low.rs",
            "// crate::high::high()\n"
            "pub fn low() -> &'static str { \"crate::high::high()\" }\n"
            "#[cfg(test)]\nmod tests { use crate::high::high; }\n"},
        {"high.rs", "use super::low::low;\npub fn high<'a>(quote: char) { low(); let _ = '\"' == quote; }\n"}
    ]),
    ?assertEqual({0, ""}, check([Crate])).

a_circle_in_erlang_is_found(Config) ->
    Dir = filename:join(?config(priv_dir, Config), "beams"),
    Modules = [
        {"circle_a", "-export([f/0]).\nf() -> circle_b:f().\n"},
        {"circle_b", "-export([f/0]).\nf() -> circle_c:f().\n"},
        {"circle_c", "-export([f/0]).\nf() -> circle_a:f().\n"},
        {"circle_none", "-export([f/0]).\nf() -> circle_a:f().\n"}
    ],
    [
        begin
            File = filename:join(Dir, Name ++ ".erl"),
            ok = filelib:ensure_dir(File),
            ok = file:write_file(File, ["-module(", Name, ").\n", Text]),
            {ok, _} = compile:file(File, [debug_info, {outdir, Dir}])
        end
     || {Name, Text} <- Modules
    ],
    {1, Said} = check(["--beams", Dir]),
    ?assertEqual(
        ["circle_a", "circle_b", "circle_c"],
        lists:usort(string:lexemes(string:trim(Said), " ->") -- ["circle:"])
    ).

%% What the project allows is stated file by file.
files_that_left_a_knot_are_named(Config) ->
    Crate = crate(Config, [{"lib.rs", "mod a;\n"}, {"a.rs", "pub fn a() {}\n"}]),
    Knot = filename:join(?config(priv_dir, Config), "knot"),
    ok = file:write_file(Knot, ["# why\n", filename:join(Crate, "a.rs"), "\n"]),
    {1, Said} = check(["--knot", Knot, Crate]),
    ?assertMatch({match, _}, re:run(Said, "in no circle any more: .*a.rs")).

crate(Config, Files) ->
    Crate = filename:join(?config(priv_dir, Config), integer_to_list(erlang:unique_integer([positive]))),
    [
        begin
            File = filename:join(Crate, Name),
            ok = filelib:ensure_dir(File),
            ok = file:write_file(File, Text)
        end
     || {Name, Text} <- Files
    ],
    Crate.

check(Args) ->
    Script = filename:join(?HELP:root(), "scripts/circles.escript"),
    ?HELP:run(?HELP:root(), ["escript", Script | Args], []).
