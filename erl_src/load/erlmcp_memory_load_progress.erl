%% @private
%% @doc Shows the progress of a load simulation: in a terminal on one line that is rewritten in
%% place, elsewhere as a log message every few seconds.
%%
%% It is a separate process, so that a slow or vanished terminal does not delay the run.
-module(erlmcp_memory_load_progress).

-export([start/2, phase/3, stop/1]).
-export([line/1]).

-export_type([progress/0]).

-include_lib("kernel/include/logger.hrl").

-define(TERMINAL_INTERVAL, 200).
-define(LOG_INTERVAL, 5000).

-type progress() :: {pid(), Monitor :: reference()}.
-type figures() :: #{
    phase := string(),
    done := non_neg_integer(),
    of_done := pos_integer(),
    rate := number(),
    %% undefined while nothing is done
    seconds_left := number() | undefined
}.

-record(show, {
    run :: reference(),
    progress :: erlmcp_memory_load_client:progress(),
    output :: {terminal, Columns :: pos_integer()} | log,
    total :: pos_integer(),
    started :: integer(),
    phase :: {string(), Steps :: pos_integer(), Before :: non_neg_integer(), Since :: integer()}
}).

%% @doc Starts it for a run of this many steps in all, with the caller's terminal.
-spec start(erlmcp_memory_load_client:progress(), Total :: pos_integer()) -> progress().
start(Progress, Total) ->
    Run = self(),
    spawn_monitor(fun() ->
        Now = now_ms(),
        show(#show{
            run = monitor(process, Run),
            progress = Progress,
            output = output(),
            total = Total,
            started = Now,
            phase = {"start", Total, 0, Now}
        })
    end).

%% @doc Sets what the run does from now on, and how many steps that takes.
-spec phase(progress() | none, string(), pos_integer()) -> ok.
phase({Pid, _Monitor}, Name, Steps) ->
    Pid ! {phase, Name, Steps},
    ok;
phase(none, _Name, _Steps) ->
    ok.

%% @doc Ends it; the line in the terminal is cleared.
-spec stop(progress() | none) -> ok.
stop({Pid, Monitor}) ->
    Pid ! stop,
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    after 1000 ->
        %% It is blocked by its terminal.
        exit(Pid, kill),
        receive
            {'DOWN', Monitor, process, Pid, _} -> ok
        end
    end;
stop(none) ->
    ok.

output() ->
    case io:columns() of
        {ok, Columns} -> {terminal, Columns};
        {error, _} -> log
    end.

-spec show(#show{}) -> ok.
show(#show{run = Run, output = Output, progress = Progress} = Show) ->
    receive
        {phase, Name, Steps} ->
            Before = erlmcp_memory_load_client:count(steps, Progress),
            show(Show#show{phase = {Name, Steps, Before, now_ms()}});
        stop ->
            clear(Output);
        {'DOWN', Run, process, _, _} ->
            clear(Output)
    after interval(Output) ->
        print(Output, line(figures(Show))),
        show(Show)
    end.

interval({terminal, _}) -> ?TERMINAL_INTERVAL;
interval(log) -> ?LOG_INTERVAL.

print({terminal, Columns}, Line) ->
    io:put_chars(["\r\e[K", string:slice(Line, 0, Columns - 1)]);
print(log, Line) ->
    ?LOG_NOTICE(
        #{label => {erlmcp_memory, load_simulation}, progress => Line},
        erlmcp_memory_log:metadata()
    ).

clear({terminal, _}) -> io:put_chars("\r\e[K");
clear(log) -> ok.

-spec figures(#show{}) -> figures().
figures(#show{progress = Progress, total = Total, started = Started, phase = Phase}) ->
    {Name, Steps, Before, Since} = Phase,
    Now = now_ms(),
    Done = erlmcp_memory_load_client:count(steps, Progress),
    #{
        phase => Name,
        done => Done - Before,
        of_done => Steps,
        rate => 1000 * (Done - Before) / max(1, Now - Since),
        seconds_left =>
            case Done of
                0 -> undefined;
                _ -> (Now - Started) / 1000 * (Total - Done) / Done
            end
    }.

%% @doc The line for these figures.
-spec line(figures()) -> string().
line(#{phase := Phase, done := Done, of_done := Steps, rate := Rate, seconds_left := Left}) ->
    lists:flatten([
        io_lib:format("~ts: ~b of ~b, ~b a second", [Phase, Done, Steps, round(Rate)]),
        case Left of
            undefined -> "";
            _ -> io_lib:format(", ~b s left of all", [ceil(Left)])
        end
    ]).

now_ms() ->
    erlang:monotonic_time(millisecond).
