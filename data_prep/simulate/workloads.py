"""Rally's three scenarios: what the client asks for, how long it waits, and what it writes down.

Every iteration has its own trace; after a failure the next one starts almost at once and reuses its token, as
in the real reports (failed image iterations last 3 to 5 ms while glance is down).
"""

import dataclasses
import math
import random

from data_prep.simulate.flows import Server
from data_prep.simulate.state import CallFailed, Context, Trace

BOOT_TIMEOUT = 300.0  # seconds, as Rally's
POLL_SECONDS = 1.95


@dataclasses.dataclass(frozen=True)
class Workload:
    """One Rally task: scenario, runner's concurrency and the mean pause between iterations, seconds."""

    name: str  # boot, image, network
    scenario: str
    directory: str  # of its traces
    concurrency: int
    pause: float
    idle: float = 0.0


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("boot", "NovaServers.boot_and_delete_server", "boot_delete", 2, 7.0, idle=1.0),
        Workload("image", "GlanceImages.create_and_delete_image", "create_delete_image", 5, 15.0),
        Workload("network", "NeutronNetworks.create_and_delete_networks", "network_create_delete", 1, 3.8),
    )
}


@dataclasses.dataclass
class Iteration:
    """One row of a Rally report, in seconds since the start of the simulation."""

    number: int
    trace_id: str
    started: float
    finished: float = 0.0
    error: tuple[str, str] | None = None
    actions: list = dataclasses.field(default_factory=list)  # (name, started, finished, children, failed)


class Rally:
    """Runs the scenarios on an engine and keeps the finished iterations by workload."""

    def __init__(self, engine, seed: int, concurrency: dict[str, int], day_seconds: float, load: float):
        self.engine = engine
        self.random = random.Random(f"{seed}/rally")
        self.day_seconds = day_seconds
        self.load = load
        self.phase = 2 * math.pi * self.random.random()
        self.users = [(f"{self.random.getrandbits(128):032x}", f"{self.random.getrandbits(128):032x}")
                      for _ in range(4)]
        self.started: dict[str, int] = {name: 0 for name in WORKLOADS}
        self.finished: dict[str, list[Iteration]] = {name: [] for name in WORKLOADS}
        for name, workload in WORKLOADS.items():
            for worker in range(concurrency.get(name, workload.concurrency)):
                engine.env.process(self._worker(workload, 3.0 * worker + 2.0 * self.random.random()))

    def activity(self, now: float) -> float:
        """Load relative to the mean: one slow wave a (compressed) day."""
        return self.load * (1.0 + 0.4 * math.sin(2 * math.pi * now / self.day_seconds + self.phase))

    def _worker(self, workload: Workload, delay: float):
        env = self.engine.env
        yield env.timeout(delay)
        scenario = {"boot": self._boot, "image": self._image, "network": self._network}[workload.name]
        token = False
        while True:
            self.started[workload.name] += 1
            iteration = Iteration(self.started[workload.name], self.engine.uuid(), env.now)
            trace = self.engine.traces[iteration.trace_id] = Trace(iteration.trace_id)
            user, tenant = self.random.choice(self.users)
            context = Context(trace, trace.base_id, user, tenant, self.engine.uuid())
            try:
                if not token:
                    yield from self._log_in(context, twice=workload.name == "image")
                    iteration.started = env.now  # Rally's clock starts with the scenario
                yield env.timeout(workload.idle)
                yield from scenario(context, iteration)
            except CallFailed as failure:
                iteration.error = (failure.etype, failure.text)
            iteration.finished = env.now
            self.finished[workload.name].append(iteration)
            token = iteration.error is not None
            if iteration.error:
                yield env.timeout(self.random.uniform(0.3, 0.8))
            else:
                pause = workload.pause * self.random.gammavariate(2.0, 0.5) / self.activity(env.now)
                if self.random.random() < 0.01:
                    pause += self.random.uniform(20.0, 60.0)
                yield env.timeout(pause)

    def _log_in(self, context, twice: bool):
        for _ in range(2 if twice else 1):  # the one real trace has two clients
            yield self._gap(0.05)
            yield from self.engine.http(context, "identity.version")
            yield self._gap(0.06)
            yield from self.engine.http(context, "identity.token")

    def _gap(self, seconds: float):
        return self.engine.env.timeout(seconds * self.random.gammavariate(4.0, 0.25))

    def _action(self, iteration, name, generator):
        """Runs one of Rally's atomic actions and writes it down, failed or not."""
        started, children = self.engine.env.now, []
        try:
            yield from generator(children)
        except CallFailed:
            iteration.actions.append((name, started, self.engine.env.now, children, True))
            raise
        iteration.actions.append((name, started, self.engine.env.now, children, False))

    def _child(self, children, name, call):
        started = self.engine.env.now
        try:
            yield from call
        except CallFailed:
            children.append((name, started, self.engine.env.now, [], True))
            raise
        children.append((name, started, self.engine.env.now, [], False))

    # Scenarios ---------------------------------------------------------------------------------------------

    def _image(self, context, iteration):
        engine, image = self.engine, self.engine.uuid()

        def create(children):
            yield self._gap(0.07)
            yield from engine.http(context, "image.schema", first=True)
            yield self._gap(0.1)
            yield from engine.http(context, "image.create")
            yield engine.env.timeout(2.0)  # Rally waits before its first look
            yield self._gap(0.06)
            yield from self._child(children, "glance_v2.get_image", engine.http(context, "image.show", image=image))
            yield self._gap(0.11)

            def upload():
                yield from engine.http(context, "image.schema")
                yield self._gap(0.4)
                yield from engine.http(context, "image.upload", image=image)
            yield from self._child(children, "glance_v2.upload_data", upload())
            yield self._gap(0.1)
            yield from self._child(children, "glance_v2.get_image", engine.http(context, "image.show", image=image))

        def delete(_children):
            yield self._gap(0.1)
            yield from engine.http(context, "image.delete", image=image)

        yield from self._action(iteration, "glance_v2.create_image", create)
        yield from self._action(iteration, "glance_v2.delete_image", delete)

    def _network(self, context, iteration):
        engine, network = self.engine, self.engine.uuid()

        def create(_children):
            yield from engine.http(context, "network.create", network=network, first=True)

        def delete(_children):
            yield self._gap(0.05)
            yield from engine.http(context, "network.delete", network=network)

        yield from self._action(iteration, "neutron.create_network", create)
        yield from self._action(iteration, "neutron.delete_network", delete)

    def _boot(self, context, iteration):
        engine = self.engine
        server = Server(engine.uuid())
        name = f"s_rally_{iteration.trace_id[:8]}_{iteration.trace_id[9:13]}"
        engine.servers[server.server_id] = server

        def boot(_children):
            yield from engine.http(context, "server.create", server=server.server_id)
            deadline = engine.env.now + BOOT_TIMEOUT
            while True:
                yield engine.env.timeout(POLL_SECONDS)
                yield from engine.http(context, "server.show", server=server.server_id)
                if server.status == "ACTIVE":
                    return
                if server.status == "ERROR":
                    raise CallFailed("GetResourceErrorStatus",
                                     f"Resource <Server: {name}> has ERROR status.\n Fault: n/a")
                if engine.env.now > deadline:
                    raise CallFailed("TimeoutException", f"Rally tired waiting 300.00 seconds for Server {name}:"
                                     f"{server.server_id} to become ('ACTIVE') current status {server.status}")

        def delete(_children):
            yield from engine.http(context, "server.delete", server=server.server_id)
            deadline = engine.env.now + BOOT_TIMEOUT
            while server.status != "DELETED":
                yield engine.env.timeout(POLL_SECONDS)
                yield from engine.http(context, "server.show", server=server.server_id)
                if engine.env.now > deadline:
                    raise CallFailed("TimeoutException", f"Rally tired waiting 300.00 seconds for Server {name}:"
                                     f"{server.server_id} to become ('DELETED') current status {server.status}")

        try:
            yield from self._action(iteration, "nova.boot_server", boot)
            yield from self._action(iteration, "nova.force_delete_server", delete)
        except CallFailed:
            engine.env.process(self._clean(server))
            raise

    def _clean(self, server):
        """Somebody removes what a failed iteration left behind; outside any trace."""
        engine = self.engine
        yield engine.env.timeout(30.0 + 60.0 * self.random.random())
        if server.status != "DELETED" and server.host:
            context = Context(None, "", "-", "-", engine.uuid())
            yield from engine.rpc_cast(context, "build.terminate", host=server.host, server=server.server_id)
        elif server.status != "DELETED":
            server.status = "DELETED"
