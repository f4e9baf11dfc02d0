%% @doc How often the verdict on growth is right, for series of samples as nodes have them: six hours
%% of a sample in five seconds, which is as far as a node's health looks back.
-module(erlmcp_bench_growth).

-export([main/1, run/1]).

-define(MB, 1048576).
-define(SAMPLES, 4320).
-define(STEP_MS, 5000).
%% Per cent that are right at least.
-define(MARK, 95.0).

main([Count]) ->
    io:format("Verdicts on ~s series each, six hours of a sample in 5 s~n~n", [Count]),
    erlmcp_bench_table:row(["", "expected", "growing", "steady", "too short", "right %"]),
    Rows = run(list_to_integer(Count)),
    [
        erlmcp_bench_table:row([
            Name, atom_to_list(Expected)
            | [integer_to_list(maps:get(Verdict, Found, 0)) || Verdict <- [growing, steady, too_short]]
        ] ++ [io_lib:format("~.1f", [Right])])
     || {Name, Expected, Found, Right} <- Rows
    ],
    io:format("~n"),
    Least = lists:min([Right || {_, _, _, Right} <- Rows]),
    erlmcp_bench_table:mark(1, "per cent right of the worst row", at_least, Least, ?MARK).

%% @doc For each kind: its name, what is expected, how often each verdict came, and per cent right.
run(Count) ->
    [
        begin
            Found = lists:foldl(
                fun(Seed, Counts) ->
                    Verdict = verdict(Make(rand:seed_s(exsss, {Seed, erlang:phash2(Name), 7}))),
                    maps:update_with(Verdict, fun(N) -> N + 1 end, 1, Counts)
                end,
                #{},
                lists:seq(1, Count)
            ),
            {Name, Expected, Found, 100.0 * maps:get(Expected, Found, 0) / Count}
        end
     || {Name, Expected, Make} <- kinds()
    ].

verdict(Snapshots) ->
    #{total := #{verdict := Verdict}} = erlmcp_memory_profiler:memory_growth(Snapshots),
    Verdict.

kinds() ->
    Fixed = fun(Noise, Shape) -> fun(Random) -> series(Noise, Shape, fun no_step/1, Random) end end,
    Drawn = fun(Noise, Draw) ->
        fun(Random) ->
            {Shape, Next} = Draw(Random),
            series(Noise, Shape, fun no_step/1, Next)
        end
    end,
    [
        {"steady noise of 50 MB", steady, Fixed(50, fun(_) -> 0 end)},
        {"saw-tooth", steady,
            Drawn(2, fun(R0) ->
                {Minutes, R1} = between(3, 20, R0),
                {Height, R2} = between(10, 60, R1),
                {fun(Hour) -> Height * fraction(60 * Hour / Minutes) end, R2}
            end)},
        {"warm-up", steady,
            Drawn(5, fun(R0) ->
                {Minutes, R1} = between(5, 30, R0),
                {Height, R2} = between(50, 300, R1),
                {fun(Hour) -> Height * (1 - math:exp(-60 * Hour / Minutes)) end, R2}
            end)},
        {"ramp, then level", steady,
            Drawn(5, fun(R0) ->
                {Minutes, R1} = between(5, 60, R0),
                {Height, R2} = between(50, 400, R1),
                {fun(Hour) -> Height * min(1, 60 * Hour / Minutes) end, R2}
            end)},
        {"steps of the clock", steady, stepped(fun(_) -> 0 end)},
        {"steps, 10 MB an hour", growing, stepped(fun(Hour) -> 10 * Hour end)},
        {"5 MB an hour under 50 MB", growing, Fixed(50, fun(Hour) -> 5 * Hour end)}
    ].

%% The system clock is set by up to two hours, three times.
stepped(Shape) ->
    fun(R0) ->
        {Steps, R1} = lists:mapfoldl(
            fun(_, R) ->
                {At, Ra} = between(0, 6, R),
                {By, Rb} = between(-7200000, 7200000, Ra),
                {{At, round(By)}, Rb}
            end,
            R0,
            "123"
        ),
        Ahead = fun(Hour) -> lists:sum([By || {At, By} <- Steps, At =< Hour]) end,
        series(10, Shape, Ahead, R1)
    end.

no_step(_) -> 0.

%% Even noise about the shape, in MB, on a node of 500 MB.
series(Noise, Shape, Ahead, Random) ->
    {Snapshots, _} = lists:mapfoldl(
        fun(N, R) ->
            {Off, Next} = between(-Noise, Noise, R),
            Ms = N * ?STEP_MS,
            Offset = 1769000000000 + Ahead(Ms / 3600000),
            Level = 500 + Shape(Ms / 3600000) + Off,
            {
                #{
                    timestamp => Offset + Ms,
                    time_offset => Offset,
                    total_memory => round(Level * ?MB)
                },
                Next
            }
        end,
        Random,
        lists:seq(0, ?SAMPLES)
    ),
    Snapshots.

between(Low, High, Random) ->
    {Part, Next} = rand:uniform_s(Random),
    {Low + (High - Low) * Part, Next}.

fraction(X) ->
    X - trunc(X).
