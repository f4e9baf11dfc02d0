%% @private
%% @doc What the library logs: maps with a label, of the domain `[erlmcp_memory]', and their text.
-module(erlmcp_memory_log).

-export([metadata/0, format/1, show/0, hide/0]).

%% The handler that every node has, and our filter in it.
-define(HANDLER, default).
-define(FILTER, erlmcp_memory).

%% @doc The metadata of all reports.
-spec metadata() -> logger:metadata().
metadata() ->
    #{domain => [erlmcp_memory], report_cb => fun ?MODULE:format/1}.

%% @doc Has the node's default handler print what the library logs. With OTP's own filters it prints
%% events without a domain and those of OTP, and drops all others; a handler with other filters is
%% left as it is.
-spec show() -> ok.
show() ->
    case logger:get_handler_config(?HANDLER) of
        {ok, #{filter_default := stop, filters := Filters}} ->
            case {proplists:get_value(domain, Filters), lists:keymember(?FILTER, 1, Filters)} of
                {{_, {log, super, [otp, sasl]}}, false} ->
                    Filter = {fun logger_filters:domain/2, {log, sub, [erlmcp_memory]}},
                    %% An error is that another process added it in this moment, or that the handler
                    %% is gone.
                    _ = logger:add_handler_filter(?HANDLER, ?FILTER, Filter),
                    ok;
                _ ->
                    ok
            end;
        _ ->
            ok
    end.

%% @doc Takes that back, unless a pool goes on.
-spec hide() -> ok.
hide() ->
    _ = whereis(erlmcp_memory_pool) =:= undefined andalso
        logger:remove_handler_filter(?HANDLER, ?FILTER),
    ok.

%% @doc The text of a report.
-spec format(logger:report()) -> {io:format(), [term()]}.
format(#{label := {erlmcp_memory, pool_depleted}, created := Created, enough := Enough, room := true}) ->
    {
        "pool depleted: ~b connection states had to be created. "
        "erlmcp_memory_pool:configure(pool_size, ~b) makes enough in advance",
        [Created, Enough]
    };
format(#{label := {erlmcp_memory, pool_depleted}, created := Created, enough := Enough}) ->
    {
        "pool depleted: ~b connection states had to be created. "
        "erlmcp_memory_pool:configure(max_pool_size, ~b) and then "
        "erlmcp_memory_pool:configure(pool_size, ~b) make enough in advance",
        [Created, Enough, Enough]
    };
format(#{label := {erlmcp_memory, not_parked}, module := Module, reason := Text, states := States}) ->
    {
        "the state of a server of ~tp cannot be parked and stays on its heap: ~ts "
        "(~b such states since the last warning)",
        [Module, Text, States]
    };
format(#{label := {erlmcp_memory, load_simulation}, progress := Line}) ->
    {"load simulation: ~ts", [Line]};
format(#{label := {erlmcp_memory, invalid_config}, key := Key, value := Value}) ->
    {"the setting ~tp of erlmcp_memory is wrong, so levels are not looked at: ~ts", [
        Key, erlmcp_memory_format:term(Value)
    ]};
format(#{label := {erlmcp_memory, handler_failed}, reason := Reason} = Report) ->
    Called = maps:without([label, reason], Report),
    {"what was to be told of ~ts failed or took too long: ~ts", [
        erlmcp_memory_format:term(Called), erlmcp_memory_format:term(Reason)
    ]}.
