"""The kinds of faults, their schedule, and how each one acts on the running cluster.

A fault changes nothing but the behaviour of its target: how long it works, how often it fails, whether it is
there, what its host has to do besides, which messages reach it. Everything else follows from the calls.
"""

import dataclasses
import random

from data_prep.errors import InputError
from data_prep.simulate.cluster import HOSTS, MEMORY_MB, PROGRAMS
from data_prep.simulate.startup import shut_down_lines, start_up_lines
from data_prep.simulate.state import Context

KINDS = ("restart", "latency", "error", "cpu", "memory", "message_loss")
FAULT_FREE_SHARE = 0.2  # of the run, at its start
QUIET = 100.0  # seconds, at least, between the end of a fault and the next one
RECOVERY = 60.0  # seconds after an injection during which late failures still count as its own
WARM_UP = (12.0, 24.0)  # seconds after a restart
TARGETS = {
    "restart": ("nova-compute", "glance-api", "neutron-server"),
    "latency": ("keystone", "glance-api", "neutron-server", "nova-api", "nova-conductor", "placement-api",
                "nova-compute", "mariadb", "neutron-dhcp-agent", "nova-scheduler"),
    "error": ("glance-api", "keystone", "neutron-server", "nova-api", "nova-conductor", "placement-api",
              "nova-scheduler", "nova-compute"),
    "cpu": HOSTS,
    "memory": ("neutron-server", "glance-api", "nova-compute", "keystone", "nova-conductor"),
    "message_loss": ("neutron-server", "nova-conductor", "neutron-dhcp-agent", "nova-compute", "nova-scheduler"),
}
SEVERITY = {  # mild, medium, severe
    "latency": ((1.6, 0.08), (3.0, 0.3), (5.0, 1.0)),  # times as long, seconds added
    "error": (0.04, 0.15, 0.5),  # share of the operations
    "error, seldom asked": (0.2, 0.45, 0.9),
    "cpu": (1.5, 6.0, 20.0),  # cores wanted
    "memory": (900.0, 2200.0, 5000.0),  # MB leaked in all
    "message_loss": (0.3, 0.6, 0.9),  # share of the messages
}
SECONDS = {"restart": {"glance-api": (5.0, 13.0), "nova-compute": (7.0, 21.0), "neutron-server": (17.0, 41.0)}}
# Only boots ask these, one about every half minute: a short fault would touch nothing.
SELDOM_ASKED = ("nova-compute", "nova-scheduler", "placement-api", "nova-conductor")
WORKLOAD_OF = {"nova": "boot", "placement": "boot", "glance": "image", "neutron": "network", "keystone": "image"}


@dataclasses.dataclass
class Fault:
    """One planned or injected fault; times in seconds since the start, `end` with recovery once it is over."""

    kind: str
    service: str
    severity: int  # 0 mild, 1 medium, 2 severe
    host: str  # of a cpu or memory fault
    start: float
    duration: float
    workload: str
    iteration: int = 0
    injected_end: float = 0.0
    end: float = 0.0


def schedule(seconds: float, seed: int, kinds: tuple[str, ...], per_hour: float) -> list[Fault]:
    """Plans the faults of a run: kinds in shuffled rounds, targets in turn, random gaps between.

    Raises InputError for unknown kinds and where the faults do not fit into the time.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InputError(f"simulate.fault_kinds: unknown kind '{unknown[0]}'; use some of {', '.join(KINDS)}")
    choose = random.Random(f"{seed}/faults")
    first = FAULT_FREE_SHARE * seconds
    count = round(per_hour * (seconds - first) / 3600.0)
    if not kinds or count <= 0:
        return []
    turns = {kind: choose.sample(TARGETS[kind], len(TARGETS[kind])) for kind in sorted(KINDS)}
    faults: list[Fault] = []
    order: list[str] = []
    for _ in range(count):
        order = order or choose.sample(sorted(kinds), len(kinds))
        kind = order.pop()
        service = turns[kind].pop(0)
        turns[kind].append(service)
        low, high = SECONDS.get(kind, {}).get(service, (120.0 if service in SELDOM_ASKED else 60.0, 240.0))
        hosts = (service,) if kind == "cpu" else PROGRAMS[service].hosts
        project = "" if kind == "cpu" else PROGRAMS[service].project
        workload = WORKLOAD_OF.get(project) or ("network" if service == HOSTS[0] else "boot")
        severity = 1 if kind == "restart" else choose.choice((0, 1, 1, 2))
        faults.append(Fault(kind, service, severity, choose.choice(hosts), 0.0, choose.uniform(low, high), workload))
    slack = seconds - first - RECOVERY - sum(fault.duration + QUIET for fault in faults)
    if slack < 0:
        raise InputError(f"simulate.faults_per_hour = {per_hour:g}: {count} faults do not fit into "
                         f"{seconds / 3600:g} hours with {QUIET:.0f} s of quiet between them; lower it")
    cuts = sorted(choose.uniform(0.0, slack) for _ in faults)
    clock = first
    for fault, cut in zip(faults, cuts, strict=True):
        fault.start = clock + cut
        clock += fault.duration + QUIET
    return faults


class Injector:
    """Carries the plan out. `done` holds the injected faults with their exact times."""

    def __init__(self, engine, rally, plan: list[Fault]):
        self.engine = engine
        self.rally = rally
        self.done: list[Fault] = []
        engine.env.process(self._run(plan))

    def _run(self, plan):
        env = self.engine.env
        free = 0.0
        for fault in plan:
            # A recovery may have eaten into the quiet time.
            begin = max(fault.start, free)
            if begin + fault.duration + RECOVERY > self.engine.seconds:
                return
            yield env.timeout(begin - env.now)
            fault.start, fault.iteration = env.now, self.rally.started[fault.workload]
            yield from getattr(self, f"_{fault.kind}")(fault)
            fault.injected_end = fault.end = env.now
            if fault.kind == "restart":
                yield from self._warm_up(fault)
            yield env.timeout(fault.injected_end + RECOVERY - env.now)
            fault.end = max([fault.end, *self._late_failures(fault), *self._late_timeouts(fault)])
            self.done.append(fault)
            free = fault.end + QUIET

    def _late_failures(self, fault):
        """Ends of failed iterations that were under way when the injection ended."""
        for iterations in self.rally.finished.values():
            for row in reversed(iterations):
                if row.finished < fault.injected_end:
                    break
                if row.error and row.started < fault.injected_end and row.finished - row.started < 290.0:
                    yield row.finished

    def _late_timeouts(self, fault):
        """When callers last gave up waiting for the fault's target: they began to wait while it lasted."""
        if fault.kind != "cpu":
            yield from (instance.last_timeout for instance in self.engine.every(fault.service))

    def _restart(self, fault):
        engine = self.engine
        instances = engine.every(fault.service)
        for instance in instances:
            shut_down_lines(engine, instance)
            instance.down = engine.env.event()
            for process in list(instance.inflight):
                process.interrupt(instance)
        yield engine.env.timeout(fault.duration * 0.93)
        for instance in instances:
            instance.pid = engine.ids.choice((6, 7, 8))
            start_up_lines(engine, instance)
            back, instance.down = instance.down, None
            back.succeed()
        if fault.service == "nova-compute":
            for server in engine.orphans:
                engine.servers[server].status = "ERROR"
                host = engine.servers[server].host
                engine.log(engine.instance("nova-compute", host), "WARNING", "nova.compute.manager",
                           f"[instance: {server}] Instance spawn was interrupted before instance_claim, setting "
                           "instance to ERROR state", None, at=engine.env.now + 1.5)
            engine.orphans.clear()
            for instance, server in engine.undeleted:
                engine.log(instance, "INFO", "nova.compute.manager",
                           f"[instance: {server}] Service started deleting the instance during the previous run, but "
                           "did not finish. Restarting the deletion now.", None, at=engine.env.now + 1.5)
                engine.env.process(engine.deliver(Context(None, ""), "build.terminate", instance, None,
                                                  {"server": server}))
            engine.undeleted.clear()
        yield engine.env.timeout(fault.duration * 0.07)

    def _warm_up(self, fault):
        """A program that has just started finds its caches cold; the fault ends when it is up to speed."""
        for slow in (3.0, 2.4, 1.8):
            for instance in self.engine.every(fault.service):
                instance.slow = slow
            yield self.engine.env.timeout(self.engine.luck.uniform(*WARM_UP) / 3.0)
        for instance in self.engine.every(fault.service):
            instance.slow = 1.0
        fault.end = self.engine.env.now

    def _latency(self, fault):
        times, added = SEVERITY["latency"][fault.severity]
        instances = self.engine.every(fault.service)
        scale = 0.1 if fault.service == "mariadb" else 1.0  # a request asks it several times
        for instance in instances:
            instance.slow, instance.delay = times, added * scale
        yield self.engine.env.timeout(fault.duration)
        for instance in instances:
            instance.slow, instance.delay = 1.0, 0.0

    def _error(self, fault):
        instances = self.engine.every(fault.service)
        shares = SEVERITY["error, seldom asked" if fault.service in SELDOM_ASKED else "error"]
        for instance in instances:
            instance.error_share = shares[fault.severity]
        yield self.engine.env.timeout(fault.duration)
        for instance in instances:
            instance.error_share = 0.0

    def _cpu(self, fault):
        host, cores = self.engine.hosts[fault.host], SEVERITY["cpu"][fault.severity]
        host.hog += cores
        host.charge(self.engine.env.now, fault.duration, min(cores, 8.0) * fault.duration, cores)
        yield self.engine.env.timeout(fault.duration)
        host.hog -= cores

    def _memory(self, fault):
        """The leak grows steadily; past nine tenths of the memory, or half the leak, its owner slows down."""
        engine, instance = self.engine, self.engine.instance(fault.service, fault.host)
        host, leaked, steps = engine.hosts[fault.host], 0.0, max(1, int(fault.duration / 2.0))
        total = SEVERITY["memory"][fault.severity]
        for step in range(steps):
            share = (step + 1) / steps
            change = total / steps
            host.memory(engine.env.now, change)
            leaked += change
            used = sum(part for _, part in host.memory_changes)
            pressure = max(0.0, used / MEMORY_MB - 0.9) * 10.0
            instance.slow = 1.0 + (0.0, 0.7, 2.0)[fault.severity] * max(0.0, 2.0 * share - 1.0) + 2.0 * pressure
            if fault.severity and share > 0.6 and engine.luck.random() < 0.08 * fault.severity:
                engine.log(instance, "WARNING", "oslo.service.loopingcall",
                           f"Function '{instance.program.error_module}._report_state' run outlasted interval by "
                           f"{engine.luck.uniform(1.0, 20.0):.2f} sec")
            if fault.severity == 2 and share > 0.8 and engine.luck.random() < 0.12:
                engine.log(instance, "ERROR", "oslo_service.periodic_task",
                           "Error during periodic task: OSError: [Errno 12] Cannot allocate memory")
            yield engine.env.timeout(fault.duration / steps)
        host.memory(engine.env.now, -leaked)
        instance.slow = 1.0

    def _message_loss(self, fault):
        instances = self.engine.every(fault.service)
        for instance in instances:
            instance.loss_share = SEVERITY["message_loss"][fault.severity]
        yield self.engine.env.timeout(fault.duration)
        for instance in instances:
            instance.loss_share = 0.0
            # The broker still holds what was never acknowledged, and delivers it when the channel is back.
            undelivered, instance.undelivered = instance.undelivered, []
            for message in undelivered:
                self.engine.env.process(message)
