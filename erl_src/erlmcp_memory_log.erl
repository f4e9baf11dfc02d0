%% @private
%% @doc What the library logs: maps with a label, of the domain `[erlmcp_memory]', and their text.
-module(erlmcp_memory_log).

-export([metadata/0, format/1]).

%% @doc For all of them.
-spec metadata() -> logger:metadata().
metadata() ->
    #{domain => [erlmcp_memory], report_cb => fun ?MODULE:format/1}.

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
