%% @private
%% @doc A client of a load simulation: it opens its part of the connections, sends to one after
%% another, and waits for each reply. So there are as many messages in flight as there are clients.
%%
%% A client is linked to the run that started it, and it is the server that its connections
%% monitor: when the run is killed, everything goes.
-module(erlmcp_memory_load_client).

-export([start_link/1, order/2, progress/0, count/2, abort/1]).

-export_type([context/0, progress/0, order/0]).

-define(STEPS, 1).
-define(ERRORS, 2).
-define(ABORTED, 3).
%% How many errors a client describes; it counts all of them.
-define(DESCRIBED, 10).
%% How long a connection may take to end before it is killed, in milliseconds.
-define(GRACE, 60000).

-type progress() :: counters:counters_ref().
-type context() :: #{
    run := pid(),
    progress := progress(),
    capabilities := erlmcp_memory_load_protocol:capabilities(),
    share := erlmcp_connection_optimizer:share(),
    acquire := reference(),
    update := reference(),
    message := reference()
}.
-type order() :: {connect, [Number :: pos_integer()]} | {round, pos_integer()} | close.

-record(client, {
    context :: context(),
    connections = [] :: [{Number :: pos_integer(), pid()}],
    errors = [] :: [term()]
}).

%% @doc Starts a client that is linked to the caller.
-spec start_link(context()) -> pid().
start_link(Context) ->
    spawn_link(fun() -> loop(#client{context = Context}) end).

%% @doc Tells a client what to do next. When it is done it sends `{Order, Errors}' to the run, with
%% the reference that is returned here and the first errors since its start.
-spec order(pid(), order()) -> Order :: reference().
order(Client, Order) ->
    Ref = make_ref(),
    Client ! {?MODULE, Ref, Order},
    Ref.

%% @doc The counters that all clients of a run share.
-spec progress() -> progress().
progress() ->
    counters:new(3, [write_concurrency]).

%% @doc The number of steps done (a connection opened, a message replied to, a connection closed),
%% or of errors.
-spec count(steps | errors, progress()) -> non_neg_integer().
count(steps, Progress) -> counters:get(Progress, ?STEPS);
count(errors, Progress) -> counters:get(Progress, ?ERRORS).

%% @doc Makes all clients cut short what they do, except closing.
-spec abort(progress()) -> ok.
abort(Progress) ->
    counters:put(Progress, ?ABORTED, 1).

-spec loop(#client{}) -> no_return().
loop(Client) ->
    receive
        {?MODULE, Ref, Order} -> loop(done(Ref, obey(Order, Client)))
    end.

done(Ref, #client{context = #{run := Run}, errors = Errors} = Client) ->
    %% What it leaves on its heap must not be counted as the connections' memory.
    true = erlang:garbage_collect(),
    Run ! {Ref, Errors},
    Client.

obey({connect, Numbers}, Client) ->
    lists:foldl(unless_aborted(fun connect/2, Client), Client, Numbers);
obey({round, Round}, #client{connections = Connections} = Client) ->
    #client{context = #{capabilities := Capabilities}} = Client,
    Expected = erlmcp_memory_load_protocol:expected(Round, Capabilities),
    Step = fun({Number, Pid}, Acc) -> talk(Round, Expected, Number, Pid, Acc) end,
    lists:foldl(unless_aborted(Step, Client), Client, Connections);
obey(close, #client{connections = Connections} = Client) ->
    lists:foldl(fun close/2, Client#client{connections = []}, Connections).

unless_aborted(Step, #client{context = #{progress := Progress}}) ->
    fun(Item, Client) ->
        case counters:get(Progress, ?ABORTED) of
            0 -> Step(Item, Client);
            1 -> Client
        end
    end.

connect(Number, #client{context = Context, connections = Connections} = Client) ->
    #{capabilities := Capabilities, share := Share, acquire := Meter} = Context,
    Spec = #{
        id => id(Number),
        server => self(),
        metadata => erlmcp_memory_load_protocol:metadata(Number),
        capabilities => Share,
        acquire_meter => Meter
    },
    try erlmcp_memory_load_connection:await(erlmcp_memory_load_connection:start(Spec)) of
        {ok, Pid} ->
            Expected = erlmcp_memory_load_protocol:expected(0, Capabilities),
            Connected = Client#client{connections = [{Number, Pid} | Connections]},
            talk(0, Expected, Number, Pid, Connected);
        {error, Reason} ->
            failed({connect, Number, Reason}, Client)
    catch
        error:system_limit -> failed({connect, Number, system_limit}, Client)
    end.

%% One message and its reply. The connection, its count of messages, the request and the result must
%% all be the right ones.
talk(Round, Expected, Number, Pid, #client{context = Context} = Client) ->
    #{progress := Progress, update := Update, message := Message} = Context,
    Id = id(Number),
    Count = Round + 1,
    RequestId = <<Id/binary, $/, (integer_to_binary(Round))/binary>>,
    Pieces = erlmcp_memory_load_protocol:request(Round, RequestId),
    SentAt = erlang:monotonic_time(nanosecond),
    case erlmcp_memory_load_connection:request(Pid, Pieces, {Update, Message}, SentAt) of
        {ok, {Id, Count, RequestId, Expected}} ->
            counters:add(Progress, ?STEPS, 1),
            Client;
        {ok, Other} ->
            failed({wrong_answer, Number, Round, Other}, Client);
        {error, Reason} ->
            failed({no_answer, Number, Round, Reason}, Client)
    end.

close({Number, Pid}, #client{context = #{progress := Progress}} = Client) ->
    Monitor = monitor(process, Pid),
    ok = erlmcp_memory_load_connection:close(Pid),
    receive
        {'DOWN', Monitor, process, Pid, normal} ->
            counters:add(Progress, ?STEPS, 1),
            Client;
        {'DOWN', Monitor, process, Pid, Reason} ->
            failed({close, Number, Reason}, Client)
    after ?GRACE ->
        exit(Pid, kill),
        receive
            {'DOWN', Monitor, process, Pid, Reason} -> failed({close, Number, Reason}, Client)
        end
    end.

failed(Error, #client{context = #{progress := Progress}, errors = Errors} = Client) ->
    counters:add(Progress, ?STEPS, 1),
    counters:add(Progress, ?ERRORS, 1),
    case length(Errors) < ?DESCRIBED of
        true -> Client#client{errors = [Error | Errors]};
        false -> Client
    end.

id(Number) ->
    <<"connection-", (integer_to_binary(Number))/binary>>.
