%% @private
%% @doc Has parked servers move when many were awake and few are left, so that the VM can give the
%% memory of the others back.
%%
%% The VM gives memory back in large pieces, when nothing is left in one. While many servers are
%% awake, their heaps and binaries fill such pieces; what a server keeps when it parks, a few
%% hundred bytes, goes into the gaps, and would keep all of the pieces. So the native library lists
%% the servers that park during a peak. When the peak is over, the tidier notifies them, a few at a
%% time, and each hibernates again, in the first gap that is then free.
%%
%% The tidier runs only after such a peak. The first server that is listed starts it; it has no
%% owner, and ends when all servers were notified.
-module(erlmcp_memory_tidier).

-include("erlmcp_memory_parking.hrl").

-export([start/0]).
%% For itself.
-export([start_registered/0, idle/1]).

%% Milliseconds between two looks whether the peak is over.
-define(LOOK_INTERVAL, 500).
%% Looks in a row that must find the peak over: servers may start in waves.
-define(LOOKS, 3).
%% How often each is notified: where the VM puts what moves depends on what has not moved yet.
-define(ROUNDS, 3).
%% Servers that are told at a time, and milliseconds until the next ones are: they take a fifth of
%% a core.
-define(BATCH, 200).
-define(BATCH_INTERVAL, 10).

%% @doc Starts it unless there is one.
-spec start() -> ok.
start() ->
    case whereis(?MODULE) of
        undefined ->
            _ = spawn(?MODULE, start_registered, []),
            ok;
        _ ->
            ok
    end.

%% @private
-spec start_registered() -> ok.
start_registered() ->
    try register(?MODULE, self()) of
        true -> idle(0)
    catch
        %% Another one was faster.
        error:badarg -> ok
    end.

%% @private
%% @doc `Over': for how many looks the peak was over.
-spec idle(Over :: non_neg_integer()) -> ok.
idle(?LOOKS) ->
    tell(?ROUNDS);
idle(Over) ->
    receive
    after ?LOOK_INTERVAL ->
        case erlmcp_memory_nif:roster() of
            0 -> ended();
            _ -> ?MODULE:idle(looked(erlmcp_memory_nif:is_peak_over(), Over))
        end
    end.

looked(true, Over) -> Over + 1;
looked(false, _Over) -> 0.

%% So many rounds: servers that are told in the last but one, and before, put themselves down again.
tell(0) ->
    ok = erlmcp_memory_nif:next_peak(),
    ended();
tell(Rounds) ->
    tell(erlmcp_memory_nif:roster(), Rounds).

tell(Left, Rounds) when Left =< 0 ->
    receive
    after ?LOOK_INTERVAL -> tell(Rounds - 1)
    end;
tell(Left, Rounds) ->
    _ = erlmcp_memory_nif:roster_tell(?BATCH, {?TIDY, Rounds - 1}),
    receive
    after ?BATCH_INTERVAL ->
        case erlmcp_memory_nif:is_peak_over() of
            true -> tell(Left - ?BATCH, Rounds);
            false -> idle(0)
        end
    end.

%% A server that was listed in the meantime may have found this tidier still registered.
ended() ->
    true = unregister(?MODULE),
    case erlmcp_memory_nif:roster() of
        0 -> ok;
        _ -> start_registered()
    end.
