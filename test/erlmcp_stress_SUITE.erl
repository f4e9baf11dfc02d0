%% Sixteen processes share, find, update and drop at random against a model, for a few seconds or
%% for STRESS_SECONDS.
-module(erlmcp_stress_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0]).
-export([sixteen_processes_agree_with_a_model_and_leak_nothing/1]).

-define(PROCESSES, 16).

suite() ->
    [{timetrap, {seconds, seconds() + 120}}].

all() ->
    [sixteen_processes_agree_with_a_model_and_leak_nothing].

sixteen_processes_agree_with_a_model_and_leak_nothing(_Config) ->
    #{operations := Operations, left := Left, once := Once} =
        erlmcp_bench_stress:run(?PROCESSES, seconds() * 1000),
    ct:pal("~b operations, ~b bytes left", [Operations, Left]),
    ?assert(Operations > 0),
    ?assert(Left =< Once).

seconds() ->
    list_to_integer(os:getenv("STRESS_SECONDS", "3")).
