"""Prometheus' JSON, worked out by hand."""

import pytest

from data_prep.errors import InputError
from data_prep.sources import prometheus
from tests.data_prep.apis import NS, T0, matrix, series, write

POD = "ts-order-service-7d9f8b6c5-x2x4z"
CPU = "container_cpu_usage_seconds_total"


def read(path, content, pods=(".*",), on_bad_rows="quarantine"):
    return prometheus.read(write(path, content), 0, 1, pods, on_bad_rows)


def rows(frame, *columns):
    return sorted(frame.select(columns).rows())


def owner(tmp_path, **labels):
    frame, _ = read(tmp_path / "x.json", matrix(series([(0, 1)], **labels)))
    return frame.select("service_name", "service_instance_id").row(0)


def test_samples_times_and_counters(tmp_path):
    content = matrix(
        series([(0, "1.5"), (30.5, "1e3")], __name__=CPU, pod=POD, namespace="default", container="order"),
        series([(0, 4096)], __name__="container_memory_working_set_bytes", pod=POD, namespace="default"),
    )
    frame, account = read(tmp_path / "x.json.gz", content)
    assert rows(frame, "time_unix_nano", "service_name", "service_instance_id", "metric_name", "value") == [
        (T0 * NS, "ts-order-service", POD, CPU, 1.5),
        (T0 * NS, "ts-order-service", POD, "container_memory_working_set_bytes", 4096.0),
        (T0 * NS + 30_500_000_000, "ts-order-service", POD, CPU, 1000.0),
    ]
    assert rows(frame, "metric_name", "is_counter")[::2] == [(CPU, True), ("container_memory_working_set_bytes", False)]
    assert (account.read, account.kept, account.set_aside) == (3, 3, {})


@pytest.mark.parametrize(
    ("pod", "service"),
    [
        (POD, "ts-order-service"),
        ("node-exporter-x2x4z", "node-exporter"),
        ("backup-27500000-x2x4z", "backup"),
        ("ts-order-mongo-0", "ts-order-mongo"),
        ("ts-order-mysql", "ts-order-mysql"),
        ("kube-proxy", "kube-proxy"),
    ],
)
def test_the_service_of_a_pod(pod, service):
    assert prometheus.service_of(pod) == service


def test_the_owner_of_a_series(tmp_path):
    exporter = {"pod": "node-exporter-x2x4z", "namespace": "monitoring", "instance": "10.0.0.1:9100"}
    assert owner(tmp_path, __name__="node_load1", **exporter) == ("10.0.0.1", "10.0.0.1")
    assert owner(tmp_path, __name__="node_load1", node="n1", **exporter) == ("n1", "n1")
    rule = "node_namespace_pod_container:container_cpu_usage_seconds_total:sum_irate"
    assert owner(tmp_path, __name__=rule, node="n1", pod=POD, container="order") == ("ts-order-service", POD)
    state = {"pod": "kube-state-metrics-7d9f8b6c5-zzzzz", "exported_pod": POD, "service": "kube-state-metrics"}
    assert owner(tmp_path, __name__="kube_pod_status_ready", **state) == ("ts-order-service", POD)
    assert owner(tmp_path, __name__="container_threads", name="orders", job="cadvisor") == ("orders", "orders")
    assert owner(tmp_path, __name__="up", job="orders", instance="h:80") == ("orders", "h:80")
    assert owner(tmp_path, __name__="up", service="orders", job="x", node="n1") == ("orders", "orders")
    assert read(tmp_path / "x.json", matrix(series([(0, 1)])))[1].set_aside == {"null_service_name": 1}


def test_sums_of_containers_and_the_pause_container_are_left_out(tmp_path):
    own = {"__name__": CPU, "pod": POD, "namespace": "default"}
    cgroup = {"__name__": CPU, "id": "/kubepods", "instance": "n1", "job": "kubelet"}
    content = matrix(
        series([(0, 1)], **own, container="POD"), series([(0, 7)], **own), series([(0, 6)], **own, container="order"),
        series([(0, 9), (15, 9)], **cgroup),
    )  # fmt: skip
    frame, account = read(tmp_path / "x.json", content, on_bad_rows="error")
    assert rows(frame, "value") == [(6.0,)]
    assert (account.read, account.set_aside) == (5, {"container_sum": 4})
    network = own | {"__name__": "container_network_transmit_packets_total", "container": "POD"}
    frame, account = read(tmp_path / "x.json", matrix(series([(0, 3)], **network, interface="eth0")))
    assert rows(frame, "value", "attributes") == [(3.0, 'container="POD",interface="eth0"')]


def test_labels_that_cut_a_quantity_are_attributes_and_others_part_of_the_name(tmp_path):
    node = {"__name__": "node_cpu_seconds_total", "instance": "n1:9100", "job": "x", "kubernetes_io_os": "linux"}
    content = matrix(*(series([(0, 1)], **node, cpu=cpu, mode=mode) for cpu in "01" for mode in ("idle", "user")))
    frame, _ = read(tmp_path / "x.json", content)
    assert rows(frame, "metric_name", "attributes") == [
        ('node_cpu_seconds_total{mode="idle"}', 'cpu="0"'), ('node_cpu_seconds_total{mode="idle"}', 'cpu="1"'),
        ('node_cpu_seconds_total{mode="user"}', 'cpu="0"'), ('node_cpu_seconds_total{mode="user"}', 'cpu="1"'),
    ]  # fmt: skip


def test_what_was_computed_has_the_name_of_its_file_and_is_no_counter(tmp_path):
    frame, _ = read(tmp_path / f"ts-auth.json_{CPU}.json", matrix(series([(0, 1)], pod=POD)))
    assert rows(frame, "metric_name", "is_counter") == [(CPU, False)]


def test_pods_are_chosen_by_namespace_and_name(tmp_path):
    content = matrix(
        series([(0, 1), (15, 1)], __name__="m", pod=POD, namespace="kube-system"),
        series([(0, 2)], __name__="m", pod=POD, namespace="default"),
        series([(0, 3)], __name__="node_load1", instance="n1"),
    )
    frame, account = read(tmp_path / "x.json", content, pods=("default/ts-.*", "other"), on_bad_rows="error")
    assert rows(frame, "value") == [(2.0,), (3.0,)]
    assert (account.read, account.set_aside) == (4, {"other_pod": 2})


def test_values_that_are_none_are_counted(tmp_path):
    values = [(0, "NaN"), (15, "+Inf"), (30, "-Inf"), (45, "2"), (60, "many")]
    content = matrix(series(values, __name__="m", job="a"), series([], __name__="m", job="b"))
    frame, account = read(tmp_path / "x.json", content)
    assert frame["value"].to_list() == [2.0]
    assert (account.read, account.set_aside) == (6, {"no_value": 4, "invalid_value": 1})


def test_an_instant_is_a_series_of_one(tmp_path):
    one = {"metric": {"__name__": "up", "job": "a"}, "value": [T0, "1"]}
    frame, _ = read(tmp_path / "x.json", {"status": "success", "data": {"resultType": "vector", "result": [one]}})
    assert rows(frame, "time_unix_nano", "value") == [(T0 * NS, 1.0)]


def test_series_are_shared_out_and_the_sums_of_others_still_found(tmp_path):
    own = {"__name__": CPU, "pod": POD}
    path = write(tmp_path / "x.json", matrix(series([(0, 7)], **own), series([(0, 6)], **own, container="order")))
    one, two = (prometheus.read(path, share, 2, (".*",), "quarantine") for share in range(2))
    assert (one[0].height, one[1].set_aside, two[0]["value"].to_list()) == (0, {"container_sum": 1}, [6.0])


def test_the_time_that_files_cover(tmp_path):
    a = write(tmp_path / "a.json", matrix(series([(5, 1), (20, 1)], job="a"), series([(3, 1)], job="b"), series([])))
    b = write(tmp_path / "b.json", "torn")
    assert prometheus.extent([a, b]) == ((T0 + 3) * NS, (T0 + 20) * NS)
    assert prometheus.extent([b]) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1,', "unreadable_file"),
        ({"status": "error", "errorType": "bad_data", "error": "parse error"}, "error_answer"),
        ({"status": "success", "data": {"resultType": "scalar", "result": [T0, "1"]}}, "no_series"),
        (matrix(), "empty_answer"),
        (matrix({"metric": {"job": 1}, "values": []}), "unreadable_series"),
        (matrix({"metric": {"job": "a"}, "values": [["noon", "1"]]}), "unreadable_series"),
    ],
)
def test_answers_without_series_are_counted(tmp_path, content, reason):
    frame, account = read(tmp_path / "x.json", content)
    assert (frame.height, account.read, account.set_aside) == (0, 1, {reason: 1})
    if reason == "empty_answer":  # a query that finds nothing is no error
        read(tmp_path / "x.json", content, on_bad_rows="error")
    else:
        with pytest.raises(InputError, match=rf"x\.json, row 1: {reason.replace('_', ' ')} .*mend the file"):
            read(tmp_path / "x.json", content, on_bad_rows="error")
