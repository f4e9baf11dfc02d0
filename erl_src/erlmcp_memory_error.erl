%% @private
%% @doc Texts for `badarg' exceptions, as OTP's own have them: the exception carries `error_info'
%% that points here, and the shell, loggers and `erl_error' ask for the text
%% ([https://www.erlang.org/eeps/eep-0054]).
-module(erlmcp_memory_error).

-export([format_error/2]).

%% @doc The texts of the arguments that were wrong: `#{Position => Text}'.
-spec format_error(term(), erlang:stacktrace()) -> #{pos_integer() => unicode:chardata()}.
format_error(_Reason, [{_Module, _Function, _Args, Info} | _]) ->
    case proplists:get_value(error_info, Info, #{}) of
        #{cause := Cause} when is_map(Cause) -> Cause;
        _ -> #{}
    end;
format_error(_Reason, _Stacktrace) ->
    #{}.
