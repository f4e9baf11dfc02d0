%% @doc Tool lists with the shape of real ones, and a reader of real ones.
%%
%% The shape is that of large public MCP servers, in figures: JSON schemas of 33 to 2,768 bytes
%% with a median of 674; nine levels deep; about 25 strings a tool, of which two in five differ
%% and one in ten is longer than 64 bytes; about 1,230 bytes of JSON a tool. The same number of
%% tools gives the same list.
-module(erlmcp_bench_tools).

-export([generate/1, read/1, shape/1, change/1]).

%% A tool as `tools/list' gives it: name, description, annotations, inputSchema.
-type tool() :: #{binary() => term()}.
-type shape() :: #{
    tools := non_neg_integer(),
    bytes := non_neg_integer(),
    schema_min := non_neg_integer(),
    schema_median := non_neg_integer(),
    schema_max := non_neg_integer(),
    depth := non_neg_integer(),
    strings := non_neg_integer(),
    distinct := non_neg_integer(),
    long := non_neg_integer()
}.
-export_type([tool/0, shape/0]).

%% Sizes of schemas at fractions of the list sorted by size.
-define(SIZES, [
    {0.0, 140}, {0.1, 220}, {0.25, 345}, {0.5, 674}, {0.75, 1000}, {0.9, 1600}, {1.0, 2768}
]).
-define(SMALLEST, 33).
%% What a description takes, so that a tool takes about 1,230 bytes in all.
-define(DESCRIPTION, 270).

%% @doc This many tools, at least three.
-spec generate(pos_integer()) -> [tool()].
generate(Count) when Count >= 3 ->
    Sizes = [?SMALLEST | [size_at(I / (Count - 1)) || I <- lists:seq(1, Count - 1)]],
    Seed = rand:seed_s(exsss, {86, 106, 674}),
    {Tools, _} = lists:mapfoldl(fun tool/2, Seed, lists:zip(lists:seq(1, Count), Sizes)),
    %% Not in the order of their sizes.
    [Tool || {_, Tool} <- lists:sort([{erlang:phash2(Tool), Tool} || Tool <- Tools])].

%% @doc The tools of a JSON file: an array of tools, or a result or reply of `tools/list'.
-spec read(file:name_all()) -> [tool()].
read(File) ->
    {ok, Text} = file:read_file(File),
    case erlmcp_bench_json:decode(Text) of
        Tools when is_list(Tools) -> Tools;
        #{<<"tools">> := Tools} -> Tools;
        #{<<"result">> := #{<<"tools">> := Tools}} -> Tools
    end.

%% @doc The list with another description of its first tool.
-spec change([tool()]) -> [tool()].
change([#{<<"description">> := Text} = Tool | Tools]) ->
    [Tool#{<<"description">> := <<"(changed) ", Text/binary>>} | Tools].

%% @doc The figures of a list. Sizes in bytes of JSON; strings are values, not keys.
-spec shape([tool(), ...]) -> shape().
shape(Tools) ->
    Schemas = lists:sort([bytes(Schema) || #{<<"inputSchema">> := Schema} <- Tools]),
    Strings = strings(Tools),
    #{
        tools => length(Tools),
        bytes => bytes(Tools),
        schema_min => hd(Schemas),
        schema_median => lists:nth((length(Schemas) + 1) div 2, Schemas),
        schema_max => lists:last(Schemas),
        depth => depth(Tools),
        strings => length(Strings),
        distinct => length(lists:usort(Strings)),
        long => length([S || S <- Strings, byte_size(S) > 64])
    }.

bytes(Term) ->
    byte_size(erlmcp_bench_json:encode(Term)).

depth(Map) when is_map(Map) -> 1 + lists:max([0 | [depth(V) || V <- maps:values(Map)]]);
depth(List) when is_list(List) -> 1 + lists:max([0 | [depth(V) || V <- List]]);
depth(_) -> 0.

strings(Map) when is_map(Map) -> lists:flatmap(fun strings/1, maps:values(Map));
strings(List) when is_list(List) -> lists:flatmap(fun strings/1, List);
strings(Binary) when is_binary(Binary) -> [Binary];
strings(_) -> [].

size_at(Fraction) ->
    size_at(Fraction, ?SIZES).

size_at(Fraction, [{F0, S0}, {F1, S1} | _]) when Fraction =< F1 ->
    round(S0 + (Fraction - F0) * (S1 - S0) / (F1 - F0));
size_at(Fraction, [_ | Rest]) ->
    size_at(Fraction, Rest).

tool({Number, Size}, Seed0) ->
    {Verb, Seed1} = one_of(verbs(), Seed0),
    {Noun, Seed2} = one_of(nouns(), Seed1),
    {Schema, Seed3} = schema(Size, Seed2),
    {Factor, Seed4} = one_of([0.3, 0.4, 0.6, 0.9, 1.3, 2.5], Seed3),
    {Description, Seed5} = text(round(?DESCRIPTION * Factor), Seed4),
    {ReadOnly, Seed6} = one_of([true, true, false], Seed5),
    Tool = #{
        <<"name">> => iolist_to_binary([Verb, "_", Noun, "_", integer_to_list(Number)]),
        <<"description">> => Description,
        <<"annotations">> => #{
            <<"readOnlyHint">> => ReadOnly,
            <<"title">> => iolist_to_binary([string:titlecase(Verb), " ", Noun])
        },
        <<"inputSchema">> => Schema
    },
    {Tool, Seed6}.

%% A schema of exactly this many bytes: properties as long as they fit, then one description is
%% made as long as is left.
schema(?SMALLEST, Seed) ->
    {#{<<"type">> => <<"object">>, <<"properties">> => #{}}, Seed};
schema(Size, Seed0) ->
    {Text, Seed1} = text(20, Seed0),
    First = #{<<"type">> => <<"string">>, <<"description">> => Text},
    Schema = #{
        <<"type">> => <<"object">>,
        <<"properties">> => #{<<"query">> => First},
        <<"required">> => [<<"query">>]
    },
    {Full, Seed2} = grow(Schema, Size, Size > 1500, property_names(), Seed1),
    #{<<"properties">> := #{<<"query">> := Query} = Properties} = Full,
    {Longer, Seed3} = text(20 + Size - bytes(Full), Seed2),
    Filled = Properties#{<<"query">> := Query#{<<"description">> := Longer}},
    {Full#{<<"properties">> := Filled}, Seed3}.

grow(Schema, _Size, _Nested, [], Seed) ->
    {Schema, Seed};
grow(#{<<"properties">> := Properties, <<"required">> := Required} = Schema, Size, Nested,
    [Name | Names], Seed0) ->
    {Property, Seed1} =
        case Nested of
            true -> nested(Seed0);
            false -> property(Name, Seed0)
        end,
    {IsRequired, Seed2} = one_of([true, false], Seed1),
    Grown = Schema#{
        <<"properties">> := Properties#{Name => Property},
        <<"required">> := [Name || IsRequired] ++ Required
    },
    case bytes(Grown) =< Size of
        true -> grow(Grown, Size, false, Names, Seed2);
        false -> {Schema, Seed2}
    end.

%% Most properties are described as everywhere else in the list, the others in words of their own.
property(Name, Seed0) ->
    {Kind, Seed1} = one_of([string, string, string, number, boolean, enum, array], Seed0),
    {Own, Seed2} = one_of([short, short, long, common, common], Seed1),
    {Text, Seed3} =
        case Own of
            common -> {<<"The ", Name/binary, " to use">>, Seed2};
            short -> text(38, Seed2);
            long -> text(95, Seed2)
        end,
    {Typed, Seed4} = typed(Kind, Seed3),
    {Typed#{<<"description">> => Text}, Seed4}.

typed(enum, Seed0) ->
    {Values, Seed1} = enum(Seed0),
    {#{<<"type">> => <<"string">>, <<"enum">> => Values}, Seed1};
typed(array, Seed) ->
    {#{<<"type">> => <<"array">>, <<"items">> => #{<<"type">> => <<"string">>}}, Seed};
typed(number, Seed) ->
    {#{<<"type">> => <<"number">>, <<"minimum">> => 1}, Seed};
typed(Kind, Seed) ->
    {#{<<"type">> => atom_to_binary(Kind)}, Seed}.

%% An array of objects with an enumeration each: the ninth level.
nested(Seed0) ->
    {Values, Seed1} = enum(Seed0),
    {Text, Seed2} = text(80, Seed1),
    Field = #{<<"type">> => <<"string">>, <<"enum">> => Values, <<"description">> => Text},
    Item = #{
        <<"type">> => <<"object">>,
        <<"properties">> => #{<<"kind">> => Field},
        <<"required">> => [<<"kind">>]
    },
    {#{<<"type">> => <<"array">>, <<"items">> => Item}, Seed2}.

enum(Seed0) ->
    {Count, Seed1} = rand:uniform_s(4, Seed0),
    lists:mapfoldl(
        fun(_, Seed2) ->
            {Verb, Seed3} = one_of(verbs(), Seed2),
            {Noun, Seed4} = one_of(nouns(), Seed3),
            {<<Verb/binary, "_", Noun/binary>>, Seed4}
        end,
        Seed1,
        lists:seq(1, Count + 1)
    ).

%% Words up to this many bytes.
text(Length, Seed) ->
    text(Length, [], 0, Seed).

text(Length, Words, Held, Seed0) when Held < Length ->
    {Word, Seed1} = one_of(verbs() ++ nouns() ++ small_words(), Seed0),
    text(Length, [Words, Word, " "], Held + byte_size(Word) + 1, Seed1);
text(Length, Words, _Held, Seed) ->
    {binary:copy(binary:part(iolist_to_binary(Words), 0, Length)), Seed}.

one_of(List, Seed0) ->
    {N, Seed1} = rand:uniform_s(length(List), Seed0),
    {lists:nth(N, List), Seed1}.

verbs() ->
    [<<"add">>, <<"close">>, <<"create">>, <<"delete">>, <<"fetch">>, <<"find">>, <<"list">>,
        <<"merge">>, <<"open">>, <<"push">>, <<"read">>, <<"search">>, <<"send">>, <<"update">>].

nouns() ->
    [<<"account">>, <<"archive">>, <<"branch">>, <<"comment">>, <<"document">>, <<"event">>,
        <<"folder">>, <<"invoice">>, <<"label">>, <<"message">>, <<"milestone">>, <<"order">>,
        <<"page">>, <<"project">>, <<"release">>, <<"report">>, <<"review">>, <<"team">>].

small_words() ->
    [<<"a">>, <<"all">>, <<"and">>, <<"by">>, <<"each">>, <<"for">>, <<"from">>, <<"if">>,
        <<"in">>, <<"it">>, <<"of">>, <<"or">>, <<"the">>, <<"to">>, <<"with">>].

property_names() ->
    [<<"owner">>, <<"repo">>, <<"page">>, <<"perPage">>, <<"sort">>, <<"order">>, <<"state">>,
        <<"path">>, <<"branch">>, <<"labels">>, <<"since">>, <<"until">>, <<"author">>,
        <<"title">>, <<"body">>, <<"number">>, <<"draft">>, <<"reviewers">>, <<"milestone">>,
        <<"assignee">>, <<"format">>, <<"recursive">>, <<"limit">>, <<"cursor">>, <<"language">>,
        <<"visibility">>, <<"message">>, <<"target">>, <<"source">>, <<"depth">>].
