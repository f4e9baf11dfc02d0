%% @private
%% @doc What a callback of a server wants to happen next, as `gen_server' of the running release
%% interprets it.
-module(erlmcp_memory_server_action).

-export([take/2, reviewed/0]).

-export_type([taken/0, timer/0]).

-type timer() :: none | {reference(), Content :: term()}.
%% A running timer of the callback module, and the message that it is for.

-type taken() ::
    {continue, term()}
    | {now, Message :: term()}
    | {timeout() | hibernate, timer()}.
%% Call `handle_continue/2'; handle this message before any other; or wait for a message, at most
%% this long.

%% The first release with timeouts that carry a message and that other messages cancel, but system
%% messages do not.
-define(TIMED_ACTIONS, 28).

%% @doc The releases of OTP whose `gen', `gen_server', `gen_statem', `sys' and `proc_lib' have been
%% reviewed against the engines.
-spec reviewed() -> [pos_integer(), ...].
reviewed() ->
    [25, 26, 27, 28, 29].

%% @doc What to do next. `error': the return value is wrong. `foreign': this release may know it.
%% Starts the timer that is asked for; its message is `{timeout, Timer, Tag}'.
-spec take(Action :: term(), Tag :: atom()) -> taken() | error | foreign.
take({continue, _} = Continue, _Tag) ->
    Continue;
take(Action, _Tag) when
    Action =:= infinity; Action =:= hibernate; is_integer(Action), Action >= 0
->
    {Action, none};
take(Action, Tag) ->
    Release = list_to_integer(erlang:system_info(otp_release)),
    case Release >= ?TIMED_ACTIONS andalso timed(Action, Tag) of
        false -> unknown(Release);
        Taken -> Taken
    end.

unknown(Release) ->
    case Release > lists:max(reviewed()) of
        true -> foreign;
        false -> error
    end.

timed({Kind, Time, Message}, Tag) -> timed(Kind, Time, Message, [], Tag);
timed({Kind, Time, Message, Options}, Tag) -> timed(Kind, Time, Message, Options, Tag);
timed(_Action, _Tag) -> false.

timed(Kind, Time, Message, Option, Tag) when not is_list(Option) ->
    timed(Kind, Time, Message, [Option], Tag);
timed(Kind, Time, Message, Options, Tag) when Kind =:= timeout; Kind =:= hibernate ->
    case is_absolute(Options, false) of
        IsAbsolute when Time =:= infinity, is_boolean(IsAbsolute) ->
            {wait(Kind), none};
        false when Time =:= 0 ->
            _ = Kind =:= hibernate andalso erlang:garbage_collect(),
            {now, Message};
        false when is_integer(Time), Time > 0 ->
            {wait(Kind), {erlang:start_timer(Time, self(), Tag), Message}};
        true when is_integer(Time) ->
            {wait(Kind), {erlang:start_timer(Time, self(), Tag, [{abs, true}]), Message}};
        _ ->
            false
    end;
timed(_Kind, _Time, _Message, _Options, _Tag) ->
    false.

%% The last one counts.
is_absolute([], IsAbsolute) -> IsAbsolute;
is_absolute([{abs, IsAbsolute} | Options], _) when is_boolean(IsAbsolute) ->
    is_absolute(Options, IsAbsolute);
is_absolute(_Options, _) -> error.

wait(timeout) -> infinity;
wait(hibernate) -> hibernate.
