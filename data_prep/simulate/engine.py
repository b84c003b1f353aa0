"""The event loop of the simulated cluster: work on hosts, HTTP, RPC through rabbitmq, databases, logs, spans.

Every call is a generator run by a simpy process. A request holds a worker of its program while it works and
while it waits for its own callees, so that a slow callee fills the queues of its callers.
"""

import math
import random

import simpy

from data_prep.simulate.cluster import ADDRESS, CONTROLLER, HOSTS, OPERATIONS, PROGRAMS, Operation
from data_prep.simulate.state import CallFailed, Context, Host, Instance, LogLine, Span, Trace

HICCUP_SHARE = 0.004  # of all pieces of work take several times as long: garbage collection, a cold page
RPC_TIMEOUT = 20.0  # seconds, oslo.messaging's rpc_response_timeout here
MISSING_STOP_SHARE = 0.002  # of the spans: the profiler's stop event never arrives


class Engine:
    """Runs operations and keeps everything they leave behind (`logs`, `traces`, the hosts' use)."""

    def __init__(self, seconds: int, seed: int, flows: dict):
        """`flows`: operation name -> generator function(engine, context, instance, **arguments), its callees."""
        self.env = simpy.Environment()
        self.seconds = seconds
        self.flows = flows
        self.times = random.Random(f"{seed}/service times")
        self.ids = random.Random(f"{seed}/ids")
        self.luck = random.Random(f"{seed}/losses and errors")
        self.hosts = {name: Host(name, seconds) for name in HOSTS}
        self.instances: dict[tuple[str, str], Instance] = {}
        for program in PROGRAMS.values():
            for host in program.hosts:
                pools = {"wsgi": program.wsgi_workers, "rpc": program.rpc_workers}
                pools = {kind: simpy.Resource(self.env, n) for kind, n in pools.items() if n}
                pid = 6 if program.project else 1
                self.instances[program.name, host] = Instance(program, self.hosts[host], pools, pid)
        self.logs: list[LogLine] = []
        self.traces: dict[str, Trace] = {}

    # Names and numbers -------------------------------------------------------------------------------------

    def uuid(self) -> str:
        digits = f"{self.ids.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def lognormal(self, median: float, sigma: float) -> float:
        return median * math.exp(sigma * self.times.gauss(0.0, 1.0))

    def instance(self, program: str, host: str | None = None) -> Instance:
        return self.instances[program, host or PROGRAMS[program].hosts[0]]

    def every(self, program: str) -> list[Instance]:
        """All instances of a program, by host."""
        return [self.instances[program, host] for host in PROGRAMS[program].hosts]

    # Records -----------------------------------------------------------------------------------------------

    def log(self, instance: Instance, level: str, module: str, payload: str, context: Context | None = None,
            extra: dict | None = None, at: float | None = None) -> None:
        """One log line of a program now (or at `at`, seconds); without context it is a periodic task's."""
        program = instance.program
        at = self.env.now if at is None else at
        if at >= instance.last_line - 0.5:  # lines of one moment lie a millisecond or a few apart
            at = instance.last_line = max(at, instance.last_line + 0.001)
        self.logs.append(LogLine(
            at, instance.host.name, program.name, level, module, payload,
            f"openstack.{program.project}" if program.project else f"infra.{program.name}", instance.pid,
            context.user if context else "", context.tenant if context else "",
            context.request_id if context else "", extra))

    def start_span(self, context: Context, name: str, instance: Instance, info: dict) -> Span | None:
        if context.trace is None:
            return None
        program = instance.program
        span = Span(self.uuid(), context.parent_id, name, program.project, program.profiler_service,
                    instance.host.name, self.env.now, info)
        context.trace.spans.append(span)
        return span

    def stop_span(self, span: Span | None, failure: CallFailed | None = None) -> None:
        if span is not None and self.luck.random() >= MISSING_STOP_SHARE:
            span.stop = self.env.now
            span.failure = (failure.etype, failure.text) if failure else None

    # Work --------------------------------------------------------------------------------------------------

    def work(self, instance: Instance, seconds: float, cpu_share: float):
        """Own work of an instance: CPU at the host's present speed, then waiting. Its faults slow it down."""
        host = instance.host
        seconds = seconds * instance.slow
        if self.times.random() < HICCUP_SHARE:
            seconds *= self.times.uniform(2.5, 7.0)
        cpu = seconds * cpu_share
        share = cpu_share if seconds else 0.0
        host.active += share
        duration = cpu * host.slowdown() + seconds - cpu + instance.delay
        host.charge(self.env.now, duration, cpu)
        try:
            yield self.env.timeout(duration)
        finally:
            host.active -= share

    def database(self, context: Context, instance: Instance, table: str):
        """One statement; the span belongs to the program that asks."""
        program = instance.program
        span = None
        if program.trace_db:
            span = self.start_span(context, "db", instance, {"db": {"statement": statement(table), "params": "{}"}})
        server = self.instance("mariadb")
        with server.pools["rpc"].request() as turn:
            yield turn
            yield from self.work(server, self.lognormal(0.006, 0.4), 0.5)
        self.stop_span(span)

    # Calls -------------------------------------------------------------------------------------------------

    def http(self, context: Context, name: str, **arguments):
        """A request over HTTP. Raises CallFailed: refused, reset, or answered with an error."""
        operation = OPERATIONS[name]
        instance = self.instance(operation.program)
        if instance.down is not None:
            yield self.env.timeout(0.003)
            raise refused(instance, operation, arguments)
        return (yield from self.serve(context, name, instance, "wsgi", arguments))

    def rpc_call(self, context: Context, caller: Instance, name: str, host: str | None = None, retries: int = 1,
                 **arguments):
        """A request through rabbitmq that waits for its answer; a lost one times out and is repeated."""
        instance = self.instance(OPERATIONS[name].program, host)
        for attempt in range(retries + 1):
            yield from self.broker()
            lost = self.luck.random() < instance.loss_share
            if not lost and instance.down is not None:
                back = instance.down
                yield back | self.env.timeout(RPC_TIMEOUT)
                lost = not back.triggered
            elif lost:
                yield self.env.timeout(RPC_TIMEOUT)
            if not lost:
                answer = yield from self.serve(context, name, instance, "rpc", arguments)
                yield from self.broker()
                return answer
            instance.last_timeout = self.env.now
            if attempt < retries:
                self.log(caller, "WARNING", "oslo_messaging._drivers.amqpdriver",
                         f"No answer to message {self.uuid().replace('-', '')} within {RPC_TIMEOUT:.0f} seconds, "
                         "sending it again", context)
        message_id = self.uuid().replace("-", "")
        self.log(caller, "ERROR", "oslo_messaging.rpc.client",
                 f"MessagingTimeout: Timed out waiting for a reply to message ID {message_id}", context)
        raise CallFailed("MessagingTimeout", f"Timed out waiting for a reply to message ID {message_id}", 500)

    def rpc_cast(self, context: Context, name: str, host: str | None = None, on_failure=None, **arguments):
        """A message that nobody waits for; a program that is down, or that it misses, gets it when that is over."""
        instance = self.instance(OPERATIONS[name].program, host)
        yield from self.broker()
        delivery = self.deliver(context, name, instance, on_failure, arguments)
        if self.luck.random() < instance.loss_share:
            instance.undelivered.append(delivery)
        else:
            self.env.process(delivery)

    def deliver(self, context, name, instance, on_failure, arguments):
        """A message that nobody waits for, once it has left the broker."""
        if instance.down is not None:
            yield instance.down
        try:
            yield from self.serve(context, name, instance, "rpc", arguments)
        except CallFailed as failure:
            if on_failure is not None:
                on_failure(failure)

    def broker(self):
        yield from self.work(self.instance("rabbitmq"), self.lognormal(0.004, 0.4), 0.5)

    def serve(self, context: Context, name: str, instance: Instance, kind: str, arguments: dict):
        """One operation inside a program: queue, own work, statements, callees, span, access log."""
        operation = OPERATIONS[name]
        process, arrived = self.env.active_process, self.env.now
        instance.inflight[process] = None
        span = None
        if kind == "wsgi":
            context = Context(context.trace, context.parent_id, context.user, context.tenant, self.uuid())
        try:
            with instance.pools[kind].request() as turn:
                yield turn
                span = self.start_span(context, kind, instance, span_info(kind, operation, arguments))
                inner = context.under(span.span_id) if span else context
                yield from self.work(instance, self.lognormal(operation.seconds, operation.sigma),
                                     operation.cpu_share)
                for table in operation.tables:
                    yield from self.database(inner, instance, table)
                if instance.error_share and self.luck.random() < instance.error_share:
                    raise self._own_error(context, instance, operation)
                flow = self.flows.get(name)
                answer = (yield from flow(self, inner, instance, **arguments)) if flow else None
        except CallFailed as failure:
            self.stop_span(span, failure)
            self._access(context, instance, operation, arguments, failure.status, arrived)
            raise CallFailed(*seen_by_caller(instance, operation, failure)) from None
        except simpy.Interrupt as interrupt:
            if interrupt.cause is not instance:
                self.stop_span(span)
                raise
            # Killed with its process: no stop event, no access log.
            raise CallFailed("ConnectFailure", f"Unable to establish connection to {url(instance, operation)}: "
                             "('Connection aborted.', BadStatusLine(\"''\",))", 503) from None
        finally:
            instance.inflight.pop(process, None)
        self.stop_span(span)
        self._access(context, instance, operation, arguments, answer or operation.status, arrived)
        return answer

    def _own_error(self, context, instance, operation) -> CallFailed:
        etype, text = instance.program.error
        where = operation.function.rsplit(".", 1)[-1] or f"{operation.method} {operation.path.split('{')[0]}"
        self.log(instance, "ERROR", instance.program.error_module,
                 f"Exception during processing of {where}: {etype}: {text}\nTraceback (most recent call last):\n"
                 f"  File \"/var/lib/kolla/venv/lib/python2.7/site-packages/"
                 f"{instance.program.error_module.replace('.', '/')}.py\", line 163, in _dispatch\n"
                 f"{etype}: {text}", context)
        return CallFailed(etype, text, 500)

    def _access(self, context, instance, operation, arguments, status, arrived) -> None:
        style = instance.program.access
        if not style or not operation.method:
            return
        path = operation.path.format(**arguments)
        query = operation.query.format(tenant=context.tenant, **arguments)
        target = f"{path}?{query}" if query else path
        took = self.env.now - arrived
        length = operation.length if status < 400 else 0
        extra = {"http_status": f"{float(status)}", "http_method": operation.method, "http_version": "1.1",
                 "http_url": target}
        request = f"{ADDRESS[CONTROLLER]} \"{operation.method} {target} HTTP/1.1\""
        if style == "apache":  # the access log of the web server has no payload and no context
            self.log(instance, "", "", "", None, extra)
            self.log(instance, "INFO", instance.program.access_module,
                     f"{operation.method} {url(instance, operation)}", context, at=arrived)
            return
        if style == "eventlet":
            payload = f"{ADDRESS[CONTROLLER]} - - \"{operation.method} {target} HTTP/1.1\" {status} {length} {took:.6f}"
        elif style == "placement":
            payload = (f"{ADDRESS[CONTROLLER]} \"{operation.method} {target}\" status: {status} len: {length} "
                       "microversion: 1.31")
        else:
            payload = f"{request} status: {status}  len: {length} time: {took:.7f}"
        self.log(instance, "INFO", instance.program.access_module, payload, context, extra)


def statement(table: str) -> str:
    """The text of a traced statement."""
    name = table.replace(".", "_")
    return f"SELECT {table}.id AS {name}_id FROM {table} WHERE {table}.id = %(id_1)s LIMIT %(limit_1)s"


def span_info(kind: str, operation: Operation, arguments: dict) -> dict:
    """The part of OSProfiler's payload that tells what was asked."""
    if kind == "wsgi":
        return {"request": {"path": operation.path.format(**arguments), "scheme": "http", "method": operation.method,
                            "query": ""}}
    return {"function": {"name": operation.function, "args": "()", "kwargs": "{}"}}


def url(instance: Instance, operation: Operation) -> str:
    """The address at which a program is called, as clients print it."""
    return f"http://{ADDRESS[instance.host.name]}:{instance.program.port}{operation.path.split('{')[0]}"


def refused(instance: Instance, operation: Operation, arguments: dict) -> CallFailed:
    """What a client sees when nothing listens."""
    target = f"http://{ADDRESS[instance.host.name]}:{instance.program.port}{operation.path.format(**arguments)}"
    return CallFailed("ConnectFailure", f"Unable to establish connection to {target}: HTTPConnectionPool(host="
                      f"'{ADDRESS[instance.host.name]}', port={instance.program.port}): Max retries exceeded with url: "
                      f"{operation.path.format(**arguments)} (Caused by NewConnectionError('Failed to establish a new "
                      "connection: [Errno 111] Connection refused',))", 503)


def seen_by_caller(instance: Instance, operation: Operation, failure: CallFailed) -> tuple[str, str, int]:
    """How a program's own failure looks outside: HTTP hides it behind its status, RPC hands it on."""
    if not operation.method:
        return failure.etype, failure.text, failure.status
    names = {401: "Unauthorized", 404: "NotFound", 503: "ServiceUnavailable"}
    kind = names.get(failure.status, "InternalServerError")
    return kind, f"{instance.program.name}: request {operation.method} {operation.path.split('{')[0]} failed " \
                 f"(HTTP {failure.status})", failure.status
