"""What Prometheus' HTTP API answers (`/api/v1/query_range`, also `query`) -> metrics. A file is one answer.

Whose a series is, by its labels (`exported_<label>` counts before `<label>`):
1. `node_*`, `kube_node_*` and rules of the level `node:` or `instance:` belong to the node: `node`, else `nodename`,
   else `instance` without its port. A pod that such a series names is the exporter.
2. A series with a `pod` (`pod_name`) belongs to it: the pod is the instance, the service is its name without what a
   ReplicaSet, DaemonSet, Job or StatefulSet appends.
3. A `container_*` series without a pod belongs to the container `name` (Docker); without that it sums up a group of
   containers.
4. Otherwise the service is `service`, else `container`, `job`, `instance`, `node`; the instance is `instance`, else the
   service.

Of one pod and metric, series of its containers count, else those without a container, else those of `POD` (which holds
the pod's network). The others sum these up or are the pause container: they are set aside as `container_sum`.

Other labels tell the series of one owner apart. Those of SUMMED cut one quantity into pieces and become `attributes`
(the pieces are added up, counters as rates). The rest become part of the metric's name, as `{mode="idle"}`: `idle` and
`user` must not be added up, and of a label that nobody has thought of it is safer to keep too much apart.
"""

import dataclasses
import re
from pathlib import Path

import msgspec
import polars as pl

from data_prep import tables
from data_prep.sources import json_files
from data_prep.sources.part import Part

SUMMED = frozenset({
    "cpu", "device", "interface", "disk", "mountpoint", "fstype", "core", "numa_node", "container", "container_name",
    "id", "image", "name",
})  # fmt: skip
# Who the owner is, or how it was scraped: the same for all series of one owner and metric.
_OWNER = frozenset({
    "__name__", "pod", "pod_name", "namespace", "node", "nodename", "instance", "service", "job", "endpoint",
    "metrics_path", "prometheus", "prometheus_replica", "cluster", "uid", "app", "chart", "release", "heritage",
    "helm_sh_chart", "pod_template_hash",
})  # fmt: skip
_EXPORTED = "exported_"
_OF_KUBERNETES = re.compile(r"(^|_)(kubernetes|k8s)_io_")  # labels of objects that scrape configurations pass on
_OF_NODE = re.compile(r"(kube_)?node_[^:]*$|(node|instance):")
_COUNTER = re.compile(r"_(total|count|sum|bucket)$")
# What Kubernetes appends to the name of a pod's owner. Random parts have no vowels and none of 0, 1, 3.
_RANDOM = "[bcdfghjklmnpqrstvwxz2456789]"
_POD = re.compile(rf"(.+?)(?:-(?:{_RANDOM}{{6,10}}|[0-9]{{6,10}}))?-{_RANDOM}{{5}}$|(.+)-[0-9]+$")
_COLUMNS = {
    tables.FILE: pl.String(), tables.ROW: pl.UInt32(), "seconds": pl.List(pl.Float64()), "service_name": pl.String(),
    "service_instance_id": pl.String(), "metric_name": pl.String(), "value": pl.List(pl.String()),
    "is_counter": pl.Boolean(), "attributes": pl.String(),
}  # fmt: skip
_SUM = 9  # the rank of what sums up containers, whatever else there is

_Sample = tuple[float, str]  # unix seconds, value


class _Data(msgspec.Struct):
    resultType: str = ""
    result: list[msgspec.Raw] = []


class _Answer(msgspec.Struct):
    status: str
    data: _Data = msgspec.field(default_factory=_Data)


class _Labelled(msgspec.Struct):
    metric: dict[str, str]


class _Series(msgspec.Struct):
    values: list[_Sample] = []
    value: _Sample | None = None  # of an instant

    def samples(self) -> list[_Sample]:
        return [self.value] if self.value else self.values


class _Times(msgspec.Struct):
    values: list[tuple[float, msgspec.Raw]] = []
    value: tuple[float, msgspec.Raw] | None = None

    samples = _Series.samples


@dataclasses.dataclass(frozen=True)
class Owned:
    """Whose a series is and what it is called. `rank`: of the series of one pod and metric the lowest count."""

    metric: str
    service: str | None
    instance: str | None
    pod: str | None = None  # as `namespace/pod`
    rank: int = 0
    is_counter: bool = False
    attributes: str | None = None


def part(files: list[Path], pods: tuple[str, ...], on_bad_rows: str) -> Part:
    """The metrics of some files; of pods only those that one of the regular expressions `pods` matches as a whole."""
    tasks = [(path, *share, tuple(pods), on_bad_rows) for path in files for share in json_files.shares(path)]
    return Part("metrics", read, tasks, in_workers=True)


def read(
    path: Path, share: int, shares: int, pods: tuple[str, ...], on_bad_rows: str
) -> tuple[pl.DataFrame, tables.Account]:
    """Checked samples of the series `share`, `share` + `shares`, ... of a file, and their account.

    An answer that is not whole, is an error, is empty or is no list of series counts as one row, set aside, and so does
    a series that cannot be read; the row that is named is the series' place in the file. Runs in a worker: picklable
    values only.
    """
    found, account = rows(path, share, shares, pods, on_bad_rows)
    frame = pl.DataFrame(found, schema=_COLUMNS, orient="row").explode("seconds", "value")
    seconds = pl.col("seconds").clip(0, 2 * tables.LATEST / 1e9)  # out of range, yet an int64 in nanoseconds
    milliseconds = (seconds * 1000).round().cast(pl.Int64, strict=False)
    frame = frame.with_columns(time_unix_nano=milliseconds * 1_000_000)
    part, checked = tables.check(frame, "metrics", str(path), on_bad_rows, text=True)
    account.add(checked)
    return part, account


def rows(
    path: Path, share: int, shares: int, pods: tuple[str, ...], on_bad_rows: str
) -> tuple[list[tuple], tables.Account]:
    """The series that `read` checks, as rows of _COLUMNS, and the account of what is not read."""
    account = tables.Account()

    def aside(reason: str, count: int, place: int):
        account.read += count
        account.aside(reason, count, str(path), place, on_bad_rows)

    found, problem = _series(path)
    if problem and share == 0:
        aside(problem, 1, 1)
    owned = [_owned(raw, _name_of(path)) for raw in found]
    chosen = pl.Series([own and own.pod for own in owned], dtype=pl.String).str.contains(_any_of(pods)).to_list()
    best: dict[tuple, int] = {}
    for own in owned:
        if own:
            key = own.metric, own.pod
            best[key] = min(own.rank, best.get(key, own.rank))
    series = []
    for place in range(share, len(found), shares):
        own, samples = owned[place], _samples(found[place], _Series)
        if own is None or samples is None:
            aside("unreadable_series", 1, place + 1)
        elif chosen[place] is False:
            aside("other_pod", len(samples), place + 1)
        elif own.rank == _SUM or own.rank > best[own.metric, own.pod]:
            aside("container_sum", len(samples), place + 1)
        elif not samples:
            aside("no_value", 1, place + 1)
        else:
            seconds, values = zip(*samples, strict=True)
            names = own.service, own.instance, own.metric
            series.append((str(path), place + 1, seconds, *names, values, own.is_counter, own.attributes))
    return series, account


def extent(files: list[Path]) -> tuple[int, int] | None:
    """First and last time of the samples in some files, nanoseconds; None where there are none that count."""
    seconds = []
    for path in files:
        for raw in _series(path)[0]:
            samples = _samples(raw, _Times) or []
            ends = (time for time, _ in (*samples[:1], *samples[-1:]))
            seconds += [time for time in ends if tables.EARLIEST <= time * 1e9 <= tables.LATEST]
    return (round(min(seconds) * 1000) * 1_000_000, round(max(seconds) * 1000) * 1_000_000) if seconds else None


def _series(path: Path) -> tuple[list[msgspec.Raw], str | None]:
    """The series of an answer, undecoded, and what is wrong if there are none."""
    try:
        answer = json_files.decode(path, _Answer)
    except json_files.ERRORS:
        return [], "unreadable_file"
    if answer.status != "success":
        return [], "error_answer"
    if answer.data.resultType not in ("matrix", "vector"):
        return [], "no_series"
    return answer.data.result, None if answer.data.result else "empty_answer"


def _samples(raw: msgspec.Raw, type) -> list[tuple] | None:
    try:
        return msgspec.json.decode(raw, type=type).samples()
    except (ValueError, RecursionError):
        return None


def _name_of(path: Path) -> str:
    """`<anything>.json_<metric>.json` or `<metric>.json`, also as .gz, -> the metric."""
    return path.name.removesuffix(".gz").removesuffix(".json").rpartition(".json_")[2]


def _any_of(patterns: tuple[str, ...]) -> str:
    return "^(?:" + "|".join(f"(?:{pattern})" for pattern in patterns) + ")$"


def _owned(raw: msgspec.Raw, file_name: str) -> Owned | None:
    """None where the labels cannot be read.

    Only what was computed has lost its name, and that is a rate or the like: the file's name counts, and no counter.
    """
    try:
        labels = msgspec.json.decode(raw, type=_Labelled).metric
    except (ValueError, RecursionError):
        return None
    labels = {label: value for label, value in labels.items() if value}
    exported = {label: value for label, value in labels.items() if label.startswith(_EXPORTED)}
    labels = {label: value for label, value in labels.items() if label not in exported}
    labels |= {label.removeprefix(_EXPORTED): value for label, value in exported.items()}
    bare = labels.get("__name__", file_name)
    kinds = _kinds(labels)
    name = {
        "metric": f"{bare}{{{kinds}}}" if kinds else bare,
        "is_counter": "__name__" in labels and bool(_COUNTER.search(bare)),
        "attributes": _written(labels, sorted(SUMMED & labels.keys())) or None,
    }
    if _OF_NODE.match(bare):
        node = _first(labels, "node", "nodename") or re.sub(":[0-9]+$", "", labels.get("instance", "")) or None
        return Owned(service=node, instance=node, **name)
    if pod := _first(labels, "pod", "pod_name"):
        rank = {None: 1, "POD": 2}.get(_first(labels, "container", "container_name"), 0)
        full = f"{labels.get('namespace', '')}/{pod}"
        return Owned(service=service_of(pod), instance=pod, pod=full, rank=rank, **name)
    if bare.startswith("container_"):
        container = labels.get("name")
        return Owned(service=container, instance=container, rank=0 if container else _SUM, **name)
    service = _first(labels, "service", "container", "job", "instance", "node")
    return Owned(service=service, instance=labels.get("instance", service), **name)


def _first(labels: dict[str, str], *keys: str) -> str | None:
    return next((labels[key] for key in keys if key in labels), None)


def _kinds(labels: dict[str, str]) -> str:
    """The labels that are part of a metric's name."""
    kinds = sorted(labels.keys() - _OWNER - SUMMED)
    return _written(labels, [label for label in kinds if not _OF_KUBERNETES.search(label)])


def _written(labels: dict[str, str], chosen: list[str]) -> str:
    return ",".join(f'{label}="{labels[label]}"' for label in chosen)


def service_of(pod: str) -> str:
    """`ts-order-service-7d9f8b6c5-x2x4z`, `ts-order-service-x2x4z` and `ts-order-service-0` -> `ts-order-service`."""
    match = _POD.match(pod)
    return (match[1] or match[2]) if match else pod
