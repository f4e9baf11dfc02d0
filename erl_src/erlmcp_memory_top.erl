%% @private
%% @doc The largest processes, for a person who asks: by memory and by waiting messages.
%%
%% This is a walk over all processes, some hundred milliseconds for 100,000 of them, so it is never
%% done in the background.
-module(erlmcp_memory_top).

-export([processes/2]).

-export_type([process/0]).

-type process() :: #{
    pid := pid(),
    memory := non_neg_integer(),
    messages := non_neg_integer(),
    binaries := non_neg_integer(),
    name := binary(),
    function := binary()
}.
%% `memory' and `binaries' (those that it refers to, including shared ones) in bytes; `name' is the
%% label or the registered name, `function' its initial or current function.

%% Processes between two looks at the clock.
-define(STEP, 256).
%% Binaries are counted if a process has no more messages than this: the VM scans its messages as
%% well.
-define(MESSAGES, 10000).

%% @doc The processes with the most memory and those with the most messages, at most `Limit' of
%% each, and whether all processes were looked at before `Ms' milliseconds had passed.
-spec processes(Limit :: pos_integer(), Ms :: pos_integer()) ->
    #{memory := [process()], messages := [process()], complete := boolean()}.
processes(Limit, Ms) ->
    Deadline = erlang:monotonic_time(millisecond) + Ms,
    {Memory, Messages, Complete} = walk(erlang:processes(), Limit, Deadline, {[], []}),
    #{
        memory => described(Memory),
        messages => described([Item || {Count, _} = Item <- Messages, Count > 0]),
        complete => Complete
    }.

walk([], _, _, {Memory, Messages}) ->
    {Memory, Messages, true};
walk(Pids, Limit, Deadline, Top) ->
    case erlang:monotonic_time(millisecond) > Deadline of
        true ->
            {Memory, Messages} = Top,
            {Memory, Messages, false};
        false ->
            {Some, Rest} = lists:split(min(?STEP, length_up_to(Pids, ?STEP)), Pids),
            walk(Rest, Limit, Deadline, lists:foldl(looked(Limit), Top, Some))
    end.

length_up_to(List, Most) ->
    length_up_to(List, Most, 0).

length_up_to([_ | Rest], Most, Length) when Length < Most -> length_up_to(Rest, Most, Length + 1);
length_up_to(_, _, Length) -> Length.

looked(Limit) ->
    fun(Pid, {Memory, Messages} = Top) ->
        case erlang:process_info(Pid, [memory, message_queue_len]) of
            [{memory, Bytes}, {message_queue_len, Count}] ->
                {among(Bytes, Pid, Memory, Limit), among(Count, Pid, Messages, Limit)};
            undefined ->
                Top
        end
    end.

%% The largest so far, the largest first.
among(Value, Pid, Greatest, Limit) ->
    case length(Greatest) < Limit orelse Value > element(1, lists:last(Greatest)) of
        true -> lists:sublist(lists:reverse(lists:keysort(1, [{Value, Pid} | Greatest])), Limit);
        false -> Greatest
    end.

described(Greatest) ->
    [
        Process
     || {_, Pid} <- Greatest,
        Process <- described_one(Pid)
    ].

described_one(Pid) ->
    Items = [memory, message_queue_len, registered_name, initial_call, current_function],
    case erlang:process_info(Pid, Items) of
        undefined ->
            [];
        [{_, Memory}, {_, Messages}, {_, Registered}, {_, Initial}, {_, Current}] ->
            [
                #{
                    pid => Pid,
                    memory => Memory,
                    messages => Messages,
                    binaries => binaries(Pid, Messages),
                    name => name(Pid, Registered),
                    function => function(Pid, Initial, Current)
                }
            ]
    end.

binaries(Pid, Messages) when Messages =< ?MESSAGES ->
    case erlang:process_info(Pid, binary) of
        {binary, Binaries} -> lists:sum([Size || {_, Size, _} <- lists:ukeysort(1, Binaries)]);
        undefined -> 0
    end;
binaries(_, _) ->
    0.

name(_, Name) when is_atom(Name), Name =/= [] -> printed(Name);
name(Pid, []) -> label(Pid).

%% The label of a process, if the VM has labels (OTP 27).
label(Pid) ->
    Module = proc_lib,
    case erlang:function_exported(Module, get_label, 1) of
        true ->
            case Module:get_label(Pid) of
                undefined -> <<>>;
                Label -> printed(Label)
            end;
        false ->
            <<>>
    end.

%% For a process started by proc_lib the dictionary has its initial function; for others its current
%% function tells most.
function(Pid, {proc_lib, _, _}, Current) ->
    case proc_lib:initial_call(Pid) of
        {Module, Function, Args} -> mfa({Module, Function, length(Args)});
        false -> mfa(Current)
    end;
function(_, {erlang, apply, _}, Current) ->
    mfa(Current);
function(_, Initial, _) ->
    mfa(Initial).

mfa({Module, Function, Arity}) ->
    printed({Module, Function, Arity});
mfa(_) ->
    <<>>.

printed({Module, Function, Arity}) when is_atom(Module), is_atom(Function), is_integer(Arity) ->
    unicode:characters_to_binary(io_lib:format("~tw:~tw/~b", [Module, Function, Arity]));
printed(Term) ->
    unicode:characters_to_binary(io_lib:format("~0tP", [Term, 12])).
