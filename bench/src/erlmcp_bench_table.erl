%% @doc How the benchmarks print: rows of a table, and marks that are met or not.
-module(erlmcp_bench_table).

-export([row/1, mark/5, truth/3, bytes/1, micros/1, ms/1, ratio/2, print/2, print_machine/0]).

%% @doc Whether a value is `at_most' or `at_least' its mark.
-spec mark(integer(), iodata(), at_most | at_least, number(), number()) -> ok.
mark(Number, Text, Kind, Value, Mark) ->
    {Met, Words} =
        case Kind of
            at_most -> {Value =< Mark, "at most"};
            at_least -> {Value >= Mark, "at least"}
        end,
    print("  ~b. ~-60ts ~10s  ~-8s ~9s  ~s~n", [
        Number, Text, figure(Value), Words, figure(Mark), verdict(Met)
    ]).

%% @doc Whether something holds.
-spec truth(integer(), iodata(), boolean()) -> ok.
truth(Number, Text, Met) ->
    print("  ~b. ~-60ts ~10s  ~-18s  ~s~n", [Number, Text, atom_to_list(Met), "", verdict(Met)]).

verdict(true) -> "met";
verdict(false) -> "NOT MET".

figure(Value) when abs(Value) < 100, is_float(Value) -> float_to_list(Value, [{decimals, 2}]);
figure(Value) -> integer_to_list(round(Value)).

-spec row([iodata()]) -> ok.
row([Name | Cells]) ->
    print("  ~-28s~s~n", [Name, [io_lib:format("~12s", [Cell]) || Cell <- Cells]]).

-spec bytes(number()) -> string().
bytes(Value) -> integer_to_list(round(Value)).

%% @doc Nanoseconds as microseconds.
-spec micros(number()) -> iodata().
micros(Ns) -> [float_to_list(Ns / 1000, [{decimals, 1}]), " us"].

-spec ms(number()) -> string().
ms(Value) -> float_to_list(float(Value), [{decimals, 2}]).

-spec ratio(number(), number()) -> string().
ratio(Value, Of) -> float_to_list(Value / Of, [{decimals, 3}]).

%% @doc What the figures were measured on.
-spec print_machine() -> ok.
print_machine() ->
    print("OTP ~s, ~b schedulers~n~n", [
        erlang:system_info(otp_release), erlang:system_info(schedulers_online)
    ]).

-spec print(io:format(), [term()]) -> ok.
print(Format, Arguments) ->
    io:format(Format, Arguments).
