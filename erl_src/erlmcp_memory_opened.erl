%% @private
%% @doc What the NIF interface cannot do for a call: open funs, native records and bit strings, and
%% collect garbage.
%%
%% No function of the NIF interface tells what a fun closes over, how large a copy of it would be,
%% or how large a bit string is. So a call that meets such terms returns them, `{closed, Terms}',
%% and the wrapper repeats the call with what is in them. Funs that a fun closes over are opened as
%% well.
-module(erlmcp_memory_opened).

-export([call/4, collect/1]).

-type opened() :: tuple().
%% `{Fun, export, Module, Function, Arity}',
%% `{Fun, 'fun', Module, Arity, Uniq, Index, OldIndex, OldUniq, Free}',
%% `{Record, record, Module, Name, IsExported, FieldNames, Values}', `{BitString, bits}',
%% `{Binary, held}' or `{Term, unknown}'.

%% Levels of funs in funs that are opened: more than the library accepts.
-define(MAX_ROUNDS, 1001).

%% What was opened.
-record(all, {
    opened = [] :: [opened()],
    %% About its length.
    count = 0 :: non_neg_integer(),
    %% How many of them may occur twice.
    unsure = 0 :: non_neg_integer(),
    %% Its least size in the packed form, in bytes.
    bytes = 0 :: non_neg_integer()
}).

%% Terms that may be opened twice. Whether a term was opened before is looked up among all opened
%% ones, but only once this many new ones have come, and a part of all of them: so the look-ups take
%% no longer than the opening, in few rounds or many.
-define(UNSURE, 1000).
-define(UNSURE_PART, 16).

%% @doc Calls a NIF with these arguments and, between them, the contents of the terms.
-spec call(Function :: atom(), Before :: [term()], After :: [term()], Terms :: [term()]) ->
    term().
call(Function, Before, After, Terms) ->
    call(Function, Before, After, Terms, #all{}).

call(Function, Before, After, Terms, All) ->
    case opened(Terms, All, ?MAX_ROUNDS) of
        #all{opened = Opened} = Now ->
            case apply(erlmcp_memory_nif, Function, Before ++ [Opened | After]) of
                %% In the next argument, or in what funs close over: found only now.
                {closed, More} -> call(Function, Before, After, More, Now);
                Result -> Result
            end;
        {badarg, _, Text} ->
            %% Usually what is opened is in the last of the terms.
            {badarg, length(Before), Text}
    end.

%% Words of a heap whose full collection takes longer than the call that asks for it.
-define(LARGE_HEAP, 2097152).

%% @doc Collects the garbage of the caller, whose native part the VM does not see.
-spec collect(Result) -> Result.
collect(Result) ->
    Type =
        case process_info(self(), total_heap_size) of
            {total_heap_size, Words} when Words > ?LARGE_HEAP -> minor;
            _ -> major
        end,
    true = erlang:garbage_collect(self(), [{type, Type}]),
    Result.

-spec opened([term()], #all{}, non_neg_integer()) -> #all{} | erlmcp_memory_nif:badarg().
opened([], All, _Rounds) ->
    All;
opened(_Terms, _All, 0) ->
    {badarg, 1, <<"funs close over funs in more than 1,000 levels">>};
opened(Terms, #all{opened = Before, count = Count, bytes = Bytes} = All, Rounds) ->
    New = [open(Term) || Term <- Terms],
    case erlmcp_memory_nif:terms_closed(New, Bytes) of
        {Inside, Sum} ->
            Opened = All#all{
                opened = New ++ Before, count = Count + length(New), bytes = Sum
            },
            unopened(Inside, Opened, Rounds - 1);
        {badarg, _, _} = BadArg ->
            BadArg
    end.

unopened(Terms, #all{opened = Before, count = Count} = All, Rounds) ->
    case All#all.unsure + length(Terms) of
        Unsure when Unsure > ?UNSURE + Count div ?UNSURE_PART ->
            {New, Once} = erlmcp_memory_nif:terms_unopened(Terms, Before),
            opened(New, All#all{opened = Once, count = length(Once), unsure = 0}, Rounds);
        Unsure ->
            opened(Terms, All#all{unsure = Unsure}, Rounds)
    end.

open(Fun) when is_function(Fun) ->
    case erlang:fun_info(Fun, type) of
        {type, external} ->
            [Module, Name, Arity] = info(Fun, [module, name, arity]),
            {Fun, export, Module, Name, Arity};
        {type, local} ->
            [Module, Arity, Uniq, Index, OldIndex, OldUniq, Free] =
                info(Fun, [module, arity, new_uniq, new_index, index, uniq, env]),
            {Fun, 'fun', Module, Arity, Uniq, Index, OldIndex, OldUniq, Free}
    end;
open(Binary) when is_binary(Binary) ->
    %% A part of a larger binary would keep all of the binary alive.
    case binary:referenced_byte_size(Binary) > 2 * byte_size(Binary) of
        true -> {Binary, bits};
        false -> {Binary, held}
    end;
open(Bits) when is_bitstring(Bits) ->
    {Bits, bits};
open(Term) ->
    %% Not a dependency: a module of OTP 29 and later.
    Records = records,
    try
        Names = Records:get_field_names(Term),
        Values = [Records:get(Name, Term) || Name <- Names],
        [Module, Record, IsExported] =
            [Records:Item(Term) || Item <- [get_module, get_name, is_exported]],
        {Term, record, Module, Record, IsExported, Names, Values}
    catch
        error:_ -> {Term, unknown}
    end.

info(Fun, Items) ->
    [element(2, erlang:fun_info(Fun, Item)) || Item <- Items].
