%% All forms of the example host answer alike, and the tools they serve have the shape of
%% real ones.
-module(erlmcp_project_host_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_suite/1, end_per_suite/1]).
-export([
    forms_answer_alike/1,
    replies_are_right/1,
    progress_and_pending_requests_end/1,
    generated_tools_have_the_shape_of_real_ones/1,
    a_list_is_read_from_a_file/1
]).

-define(O, erlmcp_connection_optimizer).

all() ->
    [
        forms_answer_alike,
        replies_are_right,
        progress_and_pending_requests_end,
        generated_tools_have_the_shape_of_real_ones,
        a_list_is_read_from_a_file
    ].

init_per_suite(Config) ->
    case erlmcp_bench_json:library() of
        none -> {skip, "no JSON library: neither OTP's json nor jiffy is installed"};
        _ -> Config
    end.

end_per_suite(_Config) ->
    ok.

forms_answer_alike(_Config) ->
    Tools = erlmcp_bench_tools:generate(86),
    [Plain | Others] = [conversation(Form, Tools) || Form <- erlmcp_host:forms()],
    [?assertEqual(Plain, Other) || Other <- Others].

%% All messages of a connection, also those that fail, awake and after hibernation.
conversation(Form, Tools) ->
    Connection = start(Form, Tools),
    Lines = [
        begin
            Idle andalso erlmcp_host:idle(Connection),
            iolist_to_binary(erlmcp_host:request(Connection, Message))
        end
     || Idle <- [false, true], Message <- messages(Tools)
    ],
    stop(Connection),
    Lines.

messages(Tools) ->
    Calls = [erlmcp_bench_messages:call(N, Tool) || {N, Tool} <- lists:enumerate(10, Tools)],
    [#{<<"name">> := Needy} | _] =
        [T || #{<<"inputSchema">> := #{<<"required">> := [_ | _]}} = T <- Tools],
    erlmcp_bench_messages:opening() ++
        Calls ++
        [
            erlmcp_bench_messages:call(100, #{<<"name">> => <<"nothing">>, <<"inputSchema">> => #{}}),
            erlmcp_bench_messages:call(101, #{<<"name">> => Needy, <<"inputSchema">> => #{}}),
            erlmcp_bench_messages:subscribe(102, <<"file:///nowhere">>),
            #{<<"id">> => 1, <<"result">> => #{<<"roots">> => []}}
        ].

replies_are_right(_Config) ->
    Tools = erlmcp_bench_tools:generate(86),
    [check_replies(start(Form, Tools), Tools) || Form <- erlmcp_host:forms()].

check_replies(Connection, Tools) ->
    Ask = fun(Message) ->
        erlmcp_bench_json:decode(iolist_to_binary(erlmcp_host:request(Connection, Message)))
    end,
    [Initialize, Initialized, List | _] = erlmcp_bench_messages:opening(),
    #{<<"result">> := #{<<"serverInfo">> := #{<<"name">> := <<"example-server">>}}} =
        Ask(Initialize),
    [Roots, Ping, <<>>] =
        binary:split(
            iolist_to_binary(erlmcp_host:request(Connection, Initialized)), <<"\n">>, [global]
        ),
    [<<"roots/list">>, <<"ping">>] =
        [maps:get(<<"method">>, erlmcp_bench_json:decode(Line)) || Line <- [Roots, Ping]],
    #{<<"id">> := 2, <<"result">> := #{<<"tools">> := Listed}} = Ask(List),
    ?assertEqual(lists:sort(Tools), lists:sort(Listed)),
    [
        begin
            #{<<"name">> := Name, <<"inputSchema">> := Schema} = Tool,
            Given = length(maps:get(<<"required">>, Schema, [])),
            Expected = iolist_to_binary([Name, ": ", integer_to_list(Given), " arguments"]),
            #{<<"result">> := #{<<"content">> := [#{<<"text">> := Text}]}} =
                Ask(erlmcp_bench_messages:call(5, Tool)),
            ?assertEqual(Expected, Text)
        end
     || Tool <- Tools
    ],
    #{<<"error">> := #{<<"code">> := -32601}} =
        Ask(erlmcp_bench_messages:call(6, #{<<"name">> => <<"no">>, <<"inputSchema">> => #{}})),
    [#{<<"name">> := Needy} | _] =
        [T || #{<<"inputSchema">> := #{<<"required">> := [_ | _]}} = T <- Tools],
    #{<<"error">> := #{<<"code">> := -32602}} =
        Ask(erlmcp_bench_messages:call(7, #{<<"name">> => Needy, <<"inputSchema">> => #{}})),
    stop(Connection).

%% What a connection holds is what it was told, no more.
progress_and_pending_requests_end(_Config) ->
    Tools = erlmcp_bench_tools:generate(10),
    Connection = start(erlmcp_host_compact, Tools),
    [_ = erlmcp_host:request(Connection, M) || M <- erlmcp_bench_messages:opening()],
    [_ = erlmcp_host:request(Connection, M) || M <- erlmcp_bench_messages:calls(Tools)],
    State = sys:get_state(Connection),
    ?assertEqual(3, map_size(?O:get_state_field(State, progress))),
    ?assertEqual(2, map_size(?O:get_state_field(State, pending_refs))),
    ?assertEqual(5, map_size(?O:get_state_field(State, subscriptions))),
    Tokens = maps:keys(?O:get_state_field(State, progress)),
    [ok = erlmcp_host:delivered(Connection, Token) || Token <- Tokens],
    [[] = erlmcp_host:request(Connection, #{<<"id">> => Id, <<"result">> => #{}}) || Id <- [1, 2]],
    Left = sys:get_state(Connection),
    ?assertEqual(#{}, ?O:get_state_field(Left, progress)),
    ?assertEqual(#{}, ?O:get_state_field(Left, pending_refs)),
    stop(Connection).

generated_tools_have_the_shape_of_real_ones(_Config) ->
    Tools = erlmcp_bench_tools:generate(86),
    ?assertEqual(Tools, erlmcp_bench_tools:generate(86)),
    ?assertEqual(86, length(lists:usort([Name || #{<<"name">> := Name} <- Tools]))),
    #{strings := Strings, distinct := Distinct, long := Long} =
        Shape = erlmcp_bench_tools:shape(Tools),
    ?assertMatch(
        #{tools := 86, schema_min := 33, schema_max := 2768, depth := 9}, Shape
    ),
    near(106000, maps:get(bytes, Shape), 0.03),
    near(674, maps:get(schema_median, Shape), 0.03),
    near(1107 / 45, Strings / 86, 0.2),
    near(456 / 1107, Distinct / Strings, 0.2),
    near(107 / 1107, Long / Strings, 0.2).

near(Expected, Actual, Tolerance) ->
    ?assert(abs(Actual - Expected) =< Tolerance * Expected).

a_list_is_read_from_a_file(Config) ->
    Tools = erlmcp_bench_tools:generate(5),
    File = filename:join(proplists:get_value(priv_dir, Config), "tools.json"),
    [
        begin
            ok = file:write_file(File, erlmcp_bench_json:encode(Content)),
            ?assertEqual(Tools, erlmcp_bench_tools:read(File))
        end
     || Content <- [
            Tools,
            #{<<"tools">> => Tools},
            #{<<"id">> => 1, <<"result">> => #{<<"tools">> => Tools}}
        ]
    ].

start(Form, Tools) ->
    Catalogue = Form:catalogue(erlmcp_host:config(Tools)),
    {ok, Connection} = erlmcp_host:start_link(Form, <<"connection-1">>, Catalogue),
    Connection.

stop(Connection) ->
    ok = gen_server:stop(Connection).
