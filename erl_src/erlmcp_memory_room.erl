%% @private
%% @doc Room on the heap of a process for a term of known size.
%%
%% A server that wakes has a heap of some words. A state that is built then is built beside it, and
%% the next garbage collection moves all of it into a heap that is large enough: that takes as long
%% as building it. So the heap is made large enough first, while it holds next to nothing.
-module(erlmcp_memory_room).

-export([make/1]).

%% Words for which it does not pay.
-define(SMALL, 4096).
%% The part of what is built that there is room for besides, for what is made of it.
-define(SPARE, 16).

%% @doc Makes room for a term of so many words. The settings of the process are left as they were.
%% In a process with a largest heap size nothing is done: that it would have room must not end it.
-spec make(Words :: non_neg_integer()) -> ok.
make(Words) when Words < ?SMALL ->
    ok;
make(Words) ->
    case process_info(self(), max_heap_size) of
        {max_heap_size, #{size := 0}} ->
            Least = process_flag(min_heap_size, Words + Words div ?SPARE),
            true = erlang:garbage_collect(),
            _ = process_flag(min_heap_size, Least),
            ok;
        _ ->
            ok
    end.
