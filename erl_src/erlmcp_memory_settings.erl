%% @private
%% @doc The settings: where they are read, their defaults, and their valid values.
%%
%% A setting in the environment of `erlmcp_memory' comes first, then one in the environment of
%% `erlmcp'. Both are read at each use, so a change by `application:set_env/3' takes effect at once.
%%
%% The VM fills the environment of an application when it is loaded, and a release may have no
%% application named `erlmcp'. So what configuration files and the command line set for the two is
%% read from the VM as well, once, and is used while the application is not loaded.
-module(erlmcp_memory_settings).

-export([connection_state_compact/0, compression_enabled/0, pool_sizes/0]).
-export([connection_idle_after/0, awake_memory_limit/0, is_idle_after/1]).
-export([is_pool_size/1, pool_size_limit/0]).
-export([alert_window/0, alert_thresholds/0, alert_handler/0, connection_count/0]).

-export_type([invalid/0, thresholds/0]).

%% In percent, milliseconds, MB or MB an hour.
-define(MOST_THRESHOLD, 1.0e9).

-type thresholds() :: #{Metric :: atom() => {Warning :: number(), Critical :: number()}}.

-type invalid() :: {invalid_config, Key :: atom(), Value :: term()}.
%% A setting that is wrong.

%% @doc Whether new states are compact. Raises {@link invalid()}.
-spec connection_state_compact() -> boolean().
connection_state_compact() ->
    boolean(connection_state_compact).

%% @doc Whether snapshots are compressed. Raises {@link invalid()}.
-spec compression_enabled() -> boolean().
compression_enabled() ->
    boolean(compression_enabled).

%% @doc Milliseconds without a message after which the state of a server is parked. Raises {@link
%% invalid()}.
-spec connection_idle_after() -> timeout().
connection_idle_after() ->
    checked(connection_idle_after, 1000, fun is_idle_after/1).

%% @doc Bytes of unparked states on the node above which servers park after each message. Raises
%% {@link invalid()}.
-spec awake_memory_limit() -> non_neg_integer().
awake_memory_limit() ->
    checked(awake_memory_limit, 536870912, fun is_memory_limit/1).

%% @doc Milliseconds that ratios and pauses are judged over. Raises {@link invalid()}.
-spec alert_window() -> pos_integer().
alert_window() ->
    checked(alert_window, 600000, fun(Ms) -> is_integer(Ms) andalso Ms >= 100 andalso Ms =< 3600000 end).

%% @doc Where a metric is a warning and where it is critical: the defaults, with those of the host in
%% their place. Raises {@link invalid()}.
-spec alert_thresholds() -> thresholds().
alert_thresholds() ->
    Defaults = #{
        memory_per_connection => {2.5, 3.0},
        reuse_ratio => {70.0, 50.0},
        gc_pause => {80.0, 150.0},
        memory_growth => {5.0, 10.0},
        resident_growth => {5.0, 10.0},
        processes => {80.0, 95.0},
        ports => {80.0, 95.0},
        file_descriptors => {80.0, 95.0}
    },
    IsValid = fun(Given) ->
        is_map(Given) andalso
            maps:without(maps:keys(Defaults), Given) =:= #{} andalso
            lists:all(fun is_threshold/1, maps:to_list(Given))
    end,
    maps:merge(Defaults, checked(alert_thresholds, #{}, IsValid)).

%% The ratio is bad where it is low, all others where they are high. What is greater than any figure of
%% a node is a mistake, and bytes could not be computed from it.
is_threshold({Metric, {Warning, Critical}}) when is_number(Warning), is_number(Critical) ->
    {Least, Most} =
        case Metric of
            reuse_ratio -> {Critical, Warning};
            _ -> {Warning, Critical}
        end,
    Least >= 0 andalso Least =< Most andalso Most =< ?MOST_THRESHOLD;
is_threshold(_) ->
    false.

%% @doc The function that is called when a level changes. Raises {@link invalid()}.
-spec alert_handler() -> {module(), atom()} | undefined.
alert_handler() ->
    checked(alert_handler, undefined, fun is_function_or_none/1).

%% @doc The function that returns the number of connections. Raises {@link invalid()}.
-spec connection_count() -> {module(), atom()} | undefined.
connection_count() ->
    checked(connection_count, undefined, fun is_function_or_none/1).

is_function_or_none({Module, Function}) -> is_atom(Module) andalso is_atom(Function);
is_function_or_none(Value) -> Value =:= undefined.

%% @doc Whether a time is one for which a server can wait.
-spec is_idle_after(term()) -> boolean().
is_idle_after(infinity) -> true;
is_idle_after(Value) -> is_integer(Value) andalso Value >= 0 andalso Value =< 16#ffffffff.

%% Up to what the library can count.
is_memory_limit(Value) ->
    is_integer(Value) andalso Value >= 0 andalso Value < 1 bsl 63.

%% @doc How many states are made in advance, and how many are kept idle.
-spec pool_sizes() -> {ok, pos_integer(), pos_integer()} | {error, invalid()}.
pool_sizes() ->
    Size = value(memory_pool_size, 1000),
    Max = value(memory_pool_max_size, 10000),
    case {is_pool_size(Size), is_pool_size(Max)} of
        {false, _} -> {error, {invalid_config, memory_pool_size, Size}};
        {true, true} when Size =< Max -> {ok, Size, Max};
        {true, _} -> {error, {invalid_config, memory_pool_max_size, Max}}
    end.

%% @doc Whether a number of idle states is valid.
-spec is_pool_size(term()) -> boolean().
is_pool_size(Value) ->
    is_integer(Value) andalso Value >= 1 andalso Value =< pool_size_limit().

%% @doc The largest one: it rules out terabytes of idle states.
-spec pool_size_limit() -> pos_integer().
pool_size_limit() ->
    10000000.

%% Read by each call that makes a state.
boolean(Key) ->
    case value(Key, true) of
        Value when is_boolean(Value) -> Value;
        Value -> error({invalid_config, Key, Value})
    end.

checked(Key, Default, IsValid) ->
    Value = value(Key, Default),
    case IsValid(Value) of
        true -> Value;
        false -> error({invalid_config, Key, Value})
    end.

value(Key, Default) ->
    Node = of_this_node(),
    case find(erlmcp_memory, Key, Node) of
        {ok, Value} ->
            Value;
        undefined ->
            case find(erlmcp, Key, Node) of
                {ok, Value} -> Value;
                undefined -> Default
            end
    end.

%% Like application:get_env/2, but reads its table directly: the two calls for one setting would be
%% a quarter of the time that create_optimized_state/1 takes.
find(Application, Key, {Environments, Booted}) ->
    case ets:lookup(Environments, {env, Application, Key}) of
        [{_, Value}] ->
            {ok, Value};
        [] when map_size(Booted) > 0, is_map_key({Application, Key}, Booted) ->
            case application:get_key(Application, vsn) of
                undefined -> {ok, map_get({Application, Key}, Booted)};
                %% It was in the environment, and was removed.
                {ok, _} -> undefined
            end;
        [] ->
            undefined
    end.

%% The table of all environments, and what was set for the two applications when the node was
%% booted. A second boot in the same VM forgets both, as it does every persistent term.
of_this_node() ->
    case persistent_term:get(?MODULE, undefined) of
        undefined ->
            Booted = maps:from_list([
                {{Application, Key}, Value}
             || Application <- [erlmcp, erlmcp_memory],
                {Key, Value} <- in_files(Application) ++ in_command_line(Application)
            ]),
            Node = {ets:whereis(ac_tab), Booted},
            persistent_term:put(?MODULE, Node),
            Node;
        Node ->
            Node
    end.

%% The application controller has read the files and keeps them as the last element of its state. No
%% function of OTP returns what they set for an application that is not loaded.
in_files(Application) ->
    State = sys:get_state(application_controller),
    proplists:get_value(Application, element(tuple_size(State), State), []).

%% `-Application Key Value ...', which overrides the files. The first of several values for one key
%% counts, as in the VM.
in_command_line(Application) ->
    case init:get_argument(Application) of
        {ok, Given} -> lists:reverse(lists:flatmap(fun pairs/1, Given));
        error -> []
    end.

pairs([Key, Value | Rest]) -> [{term(Key), term(Value)} | pairs(Rest)];
pairs(_) -> [].

%% What is not a term is left as it is, for the checks to find.
term(Text) ->
    case erl_scan:string(Text ++ ".") of
        {ok, Tokens, _} ->
            case erl_parse:parse_term(Tokens) of
                {ok, Term} -> Term;
                {error, _} -> Text
            end;
        {error, _, _} ->
            Text
    end.
