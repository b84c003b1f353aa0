import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import util
from pathlib import Path

import pytest

from data_prep import executors, map_shards, settings
from data_prep.errors import InputError
from data_prep.prepare import prepare
from tests.data_prep.test_prepare import ROOT, contents, make_config, telemetry, write

needs_dask = pytest.mark.skipif(
    util.find_spec("distributed") is None, reason='Dask is not installed: pip install -e ".[test]"'
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write(tmp_path_factory.mktemp("raw") / "tables", telemetry())


@pytest.fixture(scope="module")
def one_worker(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    prepare(make_config(raw, out))
    return contents(out)


def test_results_come_in_order_and_few_at_a_time():
    class Counting(ThreadPoolExecutor):
        window, submitted = 3, 0

        def submit(self, *arguments):
            self.submitted += 1
            return super().submit(*arguments)

    with Counting(2) as pool:
        found = executors.ordered(pool, pow, range(100), [2] * 100)
        assert next(found) == 0 and pool.submitted <= 4
        assert list(found) == [i * i for i in range(1, 100)]


def test_what_waits_is_cancelled_when_one_fails():
    made = []

    class Lazy:
        window = 3

        def submit(self, function, number):
            made.append(Future())
            if number == 0:
                made[0].set_exception(InputError("bad"))
            return made[-1]

    with pytest.raises(InputError, match="bad"):
        list(executors.ordered(Lazy(), int, range(9)))
    assert [future.cancelled() for future in made[1:]] == [True, True]


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    with pytest.raises(KeyError), executors.replacing(tmp_path / "a.npy") as path:
        path.write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with executors.replacing(tmp_path / "a.npy") as path:
            path.write_text(text)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.npy", "two")]


@pytest.mark.parametrize("changed, words", [
    ({"executor": "ray"}, "processes or dask"), ({"dask_scheduler": "tcp://host:1"}, "executor=dask"),
])  # fmt: skip
def test_bad_settings(changed, words, raw, tmp_path):
    with pytest.raises(InputError, match=words):
        settings.check(make_config(raw, tmp_path, **changed))


def test_without_dask_the_extra_is_named(raw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"ssad-jax\[dask\]"):
        prepare(make_config(raw, tmp_path / "out", executor="dask"))
    assert list(tmp_path.iterdir()) == []


@needs_dask
def test_a_cluster_of_this_machine_gives_the_same_bytes_and_leaves_nothing(raw, one_worker, tmp_path):
    (tmp_path / "own.py").write_text(
        "from tests.data_prep.test_prepare import make_config\n\n\ndef get_config():\n"
        f"    return make_config({str(raw)!r}, {str(tmp_path / 'out')!r}, num_workers=2, executor='dask')\n"
    )
    # A session of its own: whoever is left of it can be found.
    done = subprocess.Popen(
        [sys.executable, "-m", "data_prep.main", f"--config={tmp_path}/own.py"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    out, error = done.communicate(timeout=300)
    assert done.returncode == 0, error
    assert out.strip() == str(tmp_path / "out") and contents(tmp_path / "out") == one_worker
    assert "distributed" not in error
    until = time.monotonic() + 10  # multiprocessing's own tracker of resources ends a moment after its process
    while left := [path for path in Path("/proc").glob("[0-9]*/stat") if _session(path) == done.pid]:
        assert time.monotonic() < until, left
        time.sleep(0.1)


def _session(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[3])
    except OSError:
        return -1


@needs_dask
def test_a_worker_that_is_killed_changes_nothing(raw, one_worker, tmp_path, monkeypatch):
    flag, whole = tmp_path / "killed", map_shards.tick_shard

    def killed_once(shards, v, job):
        """Writes half of what it should, and dies; but only the first that comes here."""
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return whole(shards, v, job)
        (shards / f".half.{job.number}.npz").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(map_shards, "tick_shard", killed_once)
    prepare(make_config(raw, tmp_path / "out", num_workers=2, executor="dask"))
    assert flag.exists() and contents(tmp_path / "out") == one_worker


@needs_dask
def test_a_scheduler_that_runs_already(raw, one_worker, tmp_path):
    import distributed

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None
    ) as cluster, distributed.Client(cluster, set_as_default=False) as client:
        client.write_scheduler_file(tmp_path / "scheduler.json")
        for number, scheduler in enumerate((str(tmp_path / "scheduler.json"), cluster.scheduler_address)):
            prepare(make_config(raw, tmp_path / f"out{number}", executor="dask", dask_scheduler=scheduler))
            assert contents(tmp_path / f"out{number}") == one_worker


@needs_dask
@pytest.mark.parametrize("scheduler", ["nowhere.json", "tcp://127.0.0.1:9"])
def test_a_scheduler_that_cannot_be_reached(scheduler, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_PATIENCE", "2s")
    with pytest.raises(InputError, match="data.dask_scheduler"):
        prepare(make_config(raw, tmp_path / "out", executor="dask", dask_scheduler=scheduler))
    assert not (tmp_path / "out").exists()
