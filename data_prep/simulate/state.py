"""What the running simulation keeps: hosts, instances of programs, traces, and the failure of a call."""

import dataclasses
from array import array

from data_prep.simulate.cluster import BASE_MEMORY, CORES, Program


class CallFailed(Exception):
    """A call that failed: the exception's name and text as its caller sees them, and an HTTP status."""

    def __init__(self, etype: str, text: str, status: int = 500):
        super().__init__(f"{etype}: {text}")
        self.etype = etype
        self.text = text
        self.status = status


class Host:
    """One host: demand for its cores, CPU seconds used in each second, changes of used memory."""

    def __init__(self, name: str, seconds: int):
        self.name = name
        self.active = 0.0  # cores wanted now by simulated work
        self.hog = 0.0  # cores wanted now by something else
        self.busy = array("d", [0.0]) * (seconds + 2)  # CPU seconds used in each second
        self.waiting = array("d", [0.0]) * (seconds + 2)  # runnable or in disk wait, in each second
        self.memory_changes: list[tuple[float, float]] = [(0.0, BASE_MEMORY[name])]  # second, MB
        self.instances: dict[str, float] = {}  # instance id -> MB resident
        self.claimed = 0

    def slowdown(self) -> float:
        """Processor sharing: how many times longer CPU work takes now."""
        return max(1.0, (self.active + self.hog) / CORES)

    def charge(self, start: float, duration: float, cpu: float, waiting: float = 0.0) -> None:
        """Books `cpu` seconds of work, spread evenly over [start, start + duration)."""
        first, last = int(start), min(int(start + duration), len(self.busy) - 1)
        if last <= first:
            if first < len(self.busy):
                self.busy[first] += cpu
                self.waiting[first] += waiting * duration
            return
        rate = cpu / duration
        for second in range(first, last + 1):
            share = min(start + duration, second + 1) - max(start, second)
            self.busy[second] += rate * share
            self.waiting[second] += waiting * share

    def memory(self, now: float, change: float) -> None:
        self.memory_changes.append((now, change))


class Instance:
    """One instance of a program on a host, with its pools, its faults' knobs and the requests in flight."""

    def __init__(self, program: Program, host: Host, pools: dict, pid: int):
        self.program = program
        self.host = host
        self.pools = pools  # "wsgi" and "rpc" -> simpy.Resource
        self.pid = pid
        self.down = None  # while it is down: the simpy event of its return
        self.slow = 1.0  # its own service times are this many times longer
        self.delay = 0.0  # seconds added to its own service times
        self.error_share = 0.0
        self.loss_share = 0.0  # of the messages to it that get lost
        self.inflight: dict = {}  # processes with a request here
        self.last_timeout = 0.0  # when a caller last gave up waiting for it
        self.last_line = -1.0  # second of its latest log line
        self.undelivered: list = []  # lost messages that nobody waits for


class Trace:
    """The spans of one Rally iteration."""

    __slots__ = ("base_id", "spans", "__weakref__")

    def __init__(self, base_id: str):
        self.base_id = base_id
        self.spans: list[Span] = []


@dataclasses.dataclass(slots=True)
class Span:
    """One traced section; `stop` stays None when its stop event was never received."""

    span_id: str
    parent_id: str
    name: str  # wsgi, db, rpc
    project: str
    service: str
    host: str
    start: float
    info: dict
    stop: float | None = None
    failure: tuple[str, str] | None = None


@dataclasses.dataclass(slots=True)
class Context:
    """Who asks: the trace (None: untraced), the parent span and the identity that log lines show."""

    trace: Trace | None
    parent_id: str
    user: str = "-"
    tenant: str = "-"
    request_id: str = ""

    def under(self, span_id: str) -> "Context":
        return Context(self.trace, span_id, self.user, self.tenant, self.request_id)


@dataclasses.dataclass(slots=True)
class LogLine:
    """One row of the log file, before formatting. `time` in seconds since the start."""

    time: float
    host: str
    program: str
    level: str
    module: str
    payload: str
    logger: str
    pid: int | None = None
    user: str = ""
    tenant: str = ""
    request_id: str = ""
    extra: dict | None = None  # other columns by name
