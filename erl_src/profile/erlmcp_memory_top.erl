%% @private
%% @doc The largest processes, on request: by memory, by the binaries that they refer to or by the
%% length of the message queue.
%%
%% This walks over all processes, a few hundred milliseconds for 100,000 of them, so it is never
%% done in the background. Each process replies to such a request itself, and one that is busy in
%% native code replies late: the walk runs in a process of its own, which returns what it has found
%% so far, and the caller waits no longer than asked.
-module(erlmcp_memory_top).

-export([processes/2, top/3, identity/1]).

-export_type([process/0, by/0]).

-type by() :: memory | binary | message_queue_len.

-type process() :: #{
    pid := pid(),
    memory := non_neg_integer(),
    messages := non_neg_integer(),
    binaries := non_neg_integer() | not_measured,
    name := binary(),
    function := binary()
}.
%% `memory' and `binaries' (those that it refers to, including shared ones; not measured where more
%% than 10,000 messages wait) in bytes; `name' is the
%% label or the registered name, `function' its initial or current function.

%% Processes between two words of what was found.
-define(STEP, 256).
%% Binaries are counted if a process has no more messages than this: the VM scans its messages as
%% well. With more it is not measured, which is greater than any number, as an atom is.
-define(MESSAGES, 10000).
%% How long one process may take to say who it is, and all of them together.
-define(DESCRIBE_MS, 100).
-define(DESCRIBE_ALL_MS, 1000).

%% @doc The processes with most memory and those with most messages, at most `Limit' of each, and
%% whether all processes were looked at before `Ms' milliseconds had passed.
-spec processes(Limit :: pos_integer(), Ms :: non_neg_integer()) ->
    #{memory := [process()], messages := [process()], complete := boolean()}.
processes(Limit, Ms) ->
    {[Memory, Messages], Complete} = walked([memory, message_queue_len], Limit, Ms),
    #{
        memory => described(Memory, memory),
        messages => described(Messages, message_queue_len),
        complete => Complete
    }.

%% @doc Those with most of one kind.
-spec top(by(), Limit :: pos_integer(), Ms :: non_neg_integer()) ->
    #{processes := [process()], complete := boolean()}.
top(By, Limit, Ms) ->
    {[Greatest], Complete} = walked([By], Limit, Ms),
    #{
        processes => described(Greatest, By),
        complete => Complete andalso not lists:keymember(not_measured, 1, Greatest)
    }.

%% Of each kind the greatest, and whether the walk came to its end in time.
walked(Kinds, Limit, Ms) ->
    Caller = self(),
    Tag = make_ref(),
    Nothing = [[] || _ <- Kinds],
    Say = fun(Found) -> Caller ! {Tag, Found} end,
    try spawn_monitor(fun() -> walk(erlang:processes(), Kinds, Limit, Say, Nothing) end) of
        {Walker, Monitor} ->
            Deadline = erlang:monotonic_time(millisecond) + Ms,
            Result = found(Tag, Walker, Monitor, Deadline, Nothing),
            true = exit(Walker, kill),
            _ = demonitor(Monitor, [flush]),
            forget(Tag),
            Result
    catch
        %% The node has no room for another process.
        error:system_limit -> {Nothing, false}
    end.

found(Tag, Walker, Monitor, Deadline, Found) ->
    receive
        {Tag, More} -> found(Tag, Walker, Monitor, Deadline, More);
        {'DOWN', Monitor, process, Walker, Reason} -> {Found, Reason =:= normal}
    after max(0, Deadline - erlang:monotonic_time(millisecond)) ->
        {Found, false}
    end.

forget(Tag) ->
    receive
        {Tag, _} -> forget(Tag)
    after 0 -> ok
    end.

walk([], _, _, Say, Found) ->
    Say(Found);
walk(Pids, Kinds, Limit, Say, Found) ->
    {Some, Rest} = lists:split(min(?STEP, length_up_to(Pids, ?STEP)), Pids),
    More = lists:foldl(fun(Pid, Top) -> looked(Pid, Kinds, Limit, Top) end, Found, Some),
    _ = More =/= Found andalso Say(More),
    walk(Rest, Kinds, Limit, Say, More).

length_up_to(List, Most) ->
    length_up_to(List, Most, 0).

length_up_to([_ | Rest], Most, Length) when Length < Most -> length_up_to(Rest, Most, Length + 1);
length_up_to(_, _, Length) -> Length.

looked(Pid, Kinds, Limit, Found) ->
    [
        among(value(Pid, Kind), Pid, Greatest, Limit)
     || {Kind, Greatest} <- lists:zip(Kinds, Found)
    ].

value(Pid, binary) ->
    case erlang:process_info(Pid, message_queue_len) of
        {_, Messages} -> binaries(Pid, Messages);
        undefined -> 0
    end;
value(Pid, Kind) ->
    case erlang:process_info(Pid, Kind) of
        {Kind, Value} -> Value;
        undefined -> 0
    end.

%% The greatest so far, the greatest first.
among(0, _, Greatest, _) ->
    Greatest;
among(Value, Pid, Greatest, Limit) ->
    case length(Greatest) < Limit orelse Value > element(1, lists:last(Greatest)) of
        true -> lists:sublist(lists:reverse(lists:keysort(1, [{Value, Pid} | Greatest])), Limit);
        false -> Greatest
    end.

described(Greatest, Kind) ->
    Until = erlang:monotonic_time(millisecond) + ?DESCRIBE_ALL_MS,
    lists:append([described(Pid, Value, Kind, Until) || {Value, Pid} <- Greatest]).

%% One that is too busy to tell its name is described by what it holds.
described(Pid, Value, Kind, Until) ->
    Left = max(0, Until - erlang:monotonic_time(millisecond)),
    case erlmcp_memory_bounded:run(fun() -> described(Pid) end, min(?DESCRIBE_MS, Left)) of
        {ok, Described} ->
            Described;
        {error, _} ->
            Nothing = #{memory => 0, messages => 0, binaries => 0, name => <<>>, function => <<>>},
            [Nothing#{pid => Pid, key(Kind) => Value}]
    end.

key(memory) -> memory;
key(binary) -> binaries;
key(message_queue_len) -> messages.

%% None if it is gone.
described(Pid) ->
    case {erlang:process_info(Pid, [memory, message_queue_len]), identity(Pid)} of
        {[{_, Memory}, {_, Messages}], {Name, Function}} ->
            [
                #{
                    pid => Pid,
                    memory => Memory,
                    messages => Messages,
                    binaries => binaries(Pid, Messages),
                    name => Name,
                    function => Function
                }
            ];
        _ ->
            []
    end.

binaries(Pid, Messages) when Messages =< ?MESSAGES ->
    case erlang:process_info(Pid, binary) of
        {binary, Binaries} -> lists:sum([Size || {_, Size, _} <- lists:ukeysort(1, Binaries)]);
        undefined -> 0
    end;
binaries(_, _) ->
    not_measured.

%% @doc The label or registered name of a process and where it began or is; `gone' where it is.
-spec identity(pid()) -> {Name :: binary(), Function :: binary()} | gone.
identity(Pid) ->
    case erlang:process_info(Pid, [registered_name, initial_call, current_function]) of
        undefined ->
            gone;
        [{_, Registered}, {_, Initial}, {_, Current}] ->
            {name(Pid, Registered), function(Pid, Initial, Current)}
    end.

name(_, Name) when is_atom(Name), Name =/= [] -> erlmcp_memory_format:term(Name);
name(Pid, []) -> label(Pid).

%% The label of a process, if the VM has labels (OTP 27).
label(Pid) ->
    Module = proc_lib,
    case erlang:function_exported(Module, get_label, 1) of
        true ->
            case Module:get_label(Pid) of
                undefined -> <<>>;
                Label -> erlmcp_memory_format:term(Label)
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
    <<
        (erlmcp_memory_format:term(Module))/binary,
        $:,
        (erlmcp_memory_format:term(Function))/binary,
        $/,
        (integer_to_binary(Arity))/binary
    >>;
mfa(_) ->
    <<>>.

