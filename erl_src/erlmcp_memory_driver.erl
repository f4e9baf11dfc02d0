%% @private
%% @doc A process that acts as the clients of its part of a load simulation's connections, one after
%% another, and waits for each reply: there are as many messages in flight as there are drivers.
%%
%% A driver is linked to the run that started it, and it is the server that its connections
%% monitor: when the run is killed, everything goes.
-module(erlmcp_memory_driver).

-export([start_link/1, order/2, progress/0, count/2, abort/1]).

-export_type([context/0, progress/0, order/0]).

-define(STEPS, 1).
-define(ERRORS, 2).
-define(ABORTED, 3).
%% How many errors a driver describes; it counts all of them.
-define(DESCRIBED, 10).
%% How long a connection may take to end before it is killed, in milliseconds.
-define(GRACE, 60000).

-type progress() :: counters:counters_ref().
-type context() :: #{
    run := pid(),
    progress := progress(),
    capabilities := erlmcp_memory_exchange:capabilities(),
    share := erlmcp_connection_optimizer:share(),
    acquire := reference(),
    update := reference(),
    message := reference()
}.
-type order() :: {connect, [Number :: pos_integer()]} | {round, pos_integer()} | close.

-record(driver, {
    context :: context(),
    connections = [] :: [{Number :: pos_integer(), pid()}],
    errors = [] :: [term()]
}).

%% @doc Starts a driver that is linked to the caller.
-spec start_link(context()) -> pid().
start_link(Context) ->
    spawn_link(fun() -> loop(#driver{context = Context}) end).

%% @doc Tells a driver what to do next. When it is done it sends `{Order, Errors}' to the run, with
%% the reference that is returned here and the first errors since its start.
-spec order(pid(), order()) -> Order :: reference().
order(Driver, Order) ->
    Ref = make_ref(),
    Driver ! {?MODULE, Ref, Order},
    Ref.

%% @doc The counters that all drivers of a run share.
-spec progress() -> progress().
progress() ->
    counters:new(3, [write_concurrency]).

%% @doc The number of steps done (a connection opened, a message replied to, a connection closed),
%% or of errors.
-spec count(steps | errors, progress()) -> non_neg_integer().
count(steps, Progress) -> counters:get(Progress, ?STEPS);
count(errors, Progress) -> counters:get(Progress, ?ERRORS).

%% @doc Makes all drivers cut short what they do, except closing.
-spec abort(progress()) -> ok.
abort(Progress) ->
    counters:put(Progress, ?ABORTED, 1).

-spec loop(#driver{}) -> no_return().
loop(Driver) ->
    receive
        {?MODULE, Ref, Order} -> loop(done(Ref, obey(Order, Driver)))
    end.

done(Ref, #driver{context = #{run := Run}, errors = Errors} = Driver) ->
    %% What it leaves on its heap must not be counted as the connections' memory.
    true = erlang:garbage_collect(),
    Run ! {Ref, Errors},
    Driver.

obey({connect, Numbers}, Driver) ->
    lists:foldl(unless_aborted(fun connect/2, Driver), Driver, Numbers);
obey({round, Round}, #driver{connections = Connections} = Driver) ->
    #driver{context = #{capabilities := Capabilities}} = Driver,
    Expected = erlmcp_memory_exchange:expected(Round, Capabilities),
    Step = fun({Number, Pid}, Acc) -> exchange(Round, Expected, Number, Pid, Acc) end,
    lists:foldl(unless_aborted(Step, Driver), Driver, Connections);
obey(close, #driver{connections = Connections} = Driver) ->
    lists:foldl(fun close/2, Driver#driver{connections = []}, Connections).

unless_aborted(Step, #driver{context = #{progress := Progress}}) ->
    fun(Item, Driver) ->
        case counters:get(Progress, ?ABORTED) of
            0 -> Step(Item, Driver);
            1 -> Driver
        end
    end.

connect(Number, #driver{context = Context, connections = Connections} = Driver) ->
    #{capabilities := Capabilities, share := Share, acquire := Meter} = Context,
    Spec = #{
        id => id(Number),
        server => self(),
        metadata => erlmcp_memory_exchange:metadata(Number),
        capabilities => Share,
        acquire_meter => Meter
    },
    try erlmcp_memory_connection:await(erlmcp_memory_connection:start(Spec)) of
        {ok, Pid} ->
            Expected = erlmcp_memory_exchange:expected(0, Capabilities),
            Connected = Driver#driver{connections = [{Number, Pid} | Connections]},
            exchange(0, Expected, Number, Pid, Connected);
        {error, Reason} ->
            failed({connect, Number, Reason}, Driver)
    catch
        error:system_limit -> failed({connect, Number, system_limit}, Driver)
    end.

%% One message and its reply. The connection, its count of messages, the request and the result must
%% all be the right ones.
exchange(Round, Expected, Number, Pid, #driver{context = Context} = Driver) ->
    #{progress := Progress, update := Update, message := Message} = Context,
    Id = id(Number),
    Count = Round + 1,
    RequestId = <<Id/binary, $/, (integer_to_binary(Round))/binary>>,
    Pieces = erlmcp_memory_exchange:request(Round, RequestId),
    SentAt = erlang:monotonic_time(nanosecond),
    case erlmcp_memory_connection:request(Pid, Pieces, {Update, Message}, SentAt) of
        {ok, {Id, Count, RequestId, Expected}} ->
            counters:add(Progress, ?STEPS, 1),
            Driver;
        {ok, Other} ->
            failed({wrong_answer, Number, Round, Other}, Driver);
        {error, Reason} ->
            failed({no_answer, Number, Round, Reason}, Driver)
    end.

close({Number, Pid}, #driver{context = #{progress := Progress}} = Driver) ->
    Monitor = monitor(process, Pid),
    ok = erlmcp_memory_connection:close(Pid),
    receive
        {'DOWN', Monitor, process, Pid, normal} ->
            counters:add(Progress, ?STEPS, 1),
            Driver;
        {'DOWN', Monitor, process, Pid, Reason} ->
            failed({close, Number, Reason}, Driver)
    after ?GRACE ->
        exit(Pid, kill),
        receive
            {'DOWN', Monitor, process, Pid, Reason} -> failed({close, Number, Reason}, Driver)
        end
    end.

failed(Error, #driver{context = #{progress := Progress}, errors = Errors} = Driver) ->
    counters:add(Progress, ?STEPS, 1),
    counters:add(Progress, ?ERRORS, 1),
    case length(Errors) < ?DESCRIBED of
        true -> Driver#driver{errors = [Error | Errors]};
        false -> Driver
    end.

id(Number) ->
    <<"connection-", (integer_to_binary(Number))/binary>>.
