%% A node whose system clock can be stepped while it runs; its monotonic clock goes on.
-module(erlmcp_profiler_clock_help).

-export([stepped/2]).

%% Calls Fun(Peer, Step), where Step(Offset) sets the clock of the peer off ("+1d"). Skips the case
%% where the library that does it is not installed.
stepped(Config, Fun) ->
    Faketime = filelib:wildcard("/usr/lib/*/faketime/libfaketime*.so.1"),
    case [Path || Path <- Faketime, string:find(Path, "MT") =/= nomatch] of
        [] ->
            {skip, "libfaketime is not installed"};
        [Library | _] ->
            File = filename:join(proplists:get_value(priv_dir, Config), "clock"),
            stepped(Library, fun(Offset) -> file:write_file(File, [Offset, "\n"]) end, File, Fun)
    end.

stepped(Library, Step, File, Fun) ->
    ok = Step("+0"),
    {ok, Peer, _} = peer:start(#{
        connection => standard_io,
        args => ["+C", "multi_time_warp", "-pa" | code:get_path()],
        env => [
            {"LD_PRELOAD", Library},
            {"FAKETIME_TIMESTAMP_FILE", File},
            {"FAKETIME_NO_CACHE", "1"},
            {"DONT_FAKE_MONOTONIC", "1"},
            {"FAKETIME_DONT_FAKE_MONOTONIC", "1"}
        ]
    }),
    try
        Fun(Peer, Step)
    after
        peer:stop(Peer)
    end.
