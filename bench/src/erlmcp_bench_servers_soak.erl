%% @doc Random waking, parking, crashing, suspending, replacing and upgrading of many servers on all
%% schedulers, with a model of what each of them must hold.
-module(erlmcp_bench_servers_soak).

-export([run/1]).

-define(SERVERS, 20_000).
-define(DRIVERS, 4).
-define(SAMPLE_MS, 1000).

%% @doc Runs for this many seconds. `growth': per cent by which total memory of the last fifth of the
%% second half is above that of its first fifth; `wrong': states that were not as they should be,
%% servers and bytes left over.
-spec run(pos_integer()) -> #{atom() => number()}.
run(Seconds) ->
    ok = logger:set_primary_config(level, none),
    %% Code and what is made once is there before memory is looked at.
    ok = erlmcp_bench_session:add(element(2, erlmcp_bench_session:start(1)), 1),
    Self = self(),
    Drivers = [
        spawn_link(fun() ->
            _ = rand:seed(exsss, Number),
            Self ! {done, drive(Number, Seconds)}
        end)
     || Number <- lists:seq(1, ?DRIVERS)
    ],
    Samples = [sample() || _ <- lists:seq(1, Seconds * 1000 div ?SAMPLE_MS)],
    Results = [receive {done, Result} -> Result end || _ <- Drivers],
    {Operations, Crashes, Wrong} = lists:foldl(
        fun({O, C, W}, {Os, Cs, Ws}) -> {O + Os, C + Cs, W + Ws} end, {0, 0, 0}, Results
    ),
    Half = lists:nthtail(length(Samples) div 2, Samples),
    Fifth = max(1, length(Half) div 5),
    [First, Last] = [
        lists:sum(Part) / Fifth
     || Part <- [lists:sublist(Half, Fifth), lists:nthtail(length(Half) - Fifth, Half)]
    ],
    #{
        operations => Operations,
        crashes => Crashes,
        wrong => Wrong,
        growth => 100 * (Last - First) / First
    }.

sample() ->
    timer:sleep(?SAMPLE_MS),
    erlang:memory(total).

drive(Number, Seconds) ->
    Servers = maps:from_list([{N, fresh(N)} || N <- lists:seq(Number, ?SERVERS, ?DRIVERS)]),
    End = erlang:monotonic_time(millisecond) + Seconds * 1000,
    {Ran, Operations, Crashes, Wrong} = drive(Servers, Number, End, 0, 0, 0),
    Left = [
        begin
            Checked = check(Server),
            {Pid, _} = Server,
            Monitor = monitor(process, Pid),
            exit(Pid, kill),
            receive {'DOWN', Monitor, process, Pid, _} -> Checked end
        end
     || Server <- maps:values(Ran)
    ],
    {Operations, Crashes, Wrong + lists:sum(Left)}.

%% A server and the sum that it must have.
fresh(N) ->
    {ok, Pid} = erlmcp_bench_session:start(N),
    {Pid, 0}.

drive(Servers, Number, End, Operations, Crashes, Wrong) ->
    case Operations rem 64 =:= 0 andalso erlang:monotonic_time(millisecond) >= End of
        true ->
            {Servers, Operations, Crashes, Wrong};
        false ->
            N = Number + ?DRIVERS * (rand:uniform(map_size(Servers)) - 1),
            {Server, Crashed, Bad} = step(rand:uniform(20), N, maps:get(N, Servers)),
            drive(Servers#{N := Server}, Number, End, Operations + 1, Crashes + Crashed, Wrong + Bad)
    end.

step(Kind, _N, {Pid, Sum}) when Kind =< 8 ->
    Add = rand:uniform(1000),
    ok = erlmcp_bench_session:add(Pid, Add),
    {{Pid, Sum + Add}, 0, 0};
step(Kind, _N, Server) when Kind =< 13 ->
    {Server, 0, check(Server)};
step(Kind, _N, {Pid, Sum}) when Kind =< 15 ->
    ok = sys:suspend(Pid),
    ok = sys:change_code(Pid, erlmcp_bench_session, undefined, 5),
    ok = sys:resume(Pid),
    {{Pid, Sum + 5}, 0, 0};
step(16, _N, {Pid, Sum}) ->
    {_, Held, _, _} = sys:replace_state(Pid, fun({I, S, L, C}) -> {I, S + 1, L, C} end),
    {{Pid, Sum + 1}, 0, wrong(Held =:= Sum + 1)};
step(17, _N, {Pid, Sum}) ->
    {_, Held, _, _} = sys:get_state(Pid),
    {{Pid, Sum}, 0, wrong(Held =:= Sum)};
step(18, N, {Pid, _}) ->
    exit(Pid, kill),
    {fresh(N), 1, 0};
step(19, N, {Pid, _}) ->
    ok = gen_server:cast(Pid, crash),
    {fresh(N), 1, 0};
step(20, _N, {Pid, Sum}) ->
    true = erlang:garbage_collect(Pid),
    {{Pid, Sum}, 0, 0}.

check({Pid, Sum}) ->
    {_, Held, Right} = erlmcp_bench_session:read(Pid),
    wrong(Held =:= Sum andalso Right).

wrong(true) -> 0;
wrong(false) -> 1.
