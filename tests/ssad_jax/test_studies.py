"""The studies' parts by hand, and both commands' work from end to end on very little simulated time."""

import json

import numpy as np
import polars as pl
import pytest

from data_prep.errors import InputError
from ssad_jax.config import default_config
from ssad_jax.studies import common, contamination, days, false_alarms
from ssad_jax.studies.common import binomial_interval, interval_over, percent, table


def test_intervals_by_hand():
    assert binomial_interval(0, 10) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))
    assert binomial_interval(10, 10) == pytest.approx((0.025 ** (1 / 10), 1.0))
    assert binomial_interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert interval_over([2.0, 2.0, 2.0]) == (2.0, 2.0)
    low, high = interval_over([0.0, 1.0] * 50)
    assert low == pytest.approx(0.4, abs=0.03) and high == pytest.approx(0.6, abs=0.03)


def test_tables():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert percent(0.01234) == "1.23%" and percent(None) == percent(float("nan")) == "-"


def test_spans_grow_slower_over_the_day():
    spans = pl.DataFrame({"start_time_unix_nano": [0, 50, 100], "end_time_unix_nano": [10, 60, 110]})
    assert days.slower(spans, 2.0)["end_time_unix_nano"].to_list() == [10, 70, 130]


def exchangeable_day(seed=0, count=4000, drift=0.0):
    rng = np.random.default_rng(seed)
    tick = np.arange(count) * 5
    score = rng.standard_normal(count) + drift * np.linspace(0, 1, count)
    part = np.where(np.arange(count) < count // 2, 1, 2)
    return days.Day(tick, tick // 600, part, score)


def test_splits():
    day = exchangeable_day(count=1000)
    assert false_alarms.split(day, "random", 3).sum() == 500
    assert (false_alarms.split(day, "random", 3) != false_alarms.split(day, "random", 4)).any()
    np.testing.assert_array_equal(false_alarms.split(day, "alternating", 0), day.segment % 2 == 0)
    np.testing.assert_array_equal(false_alarms.split(day, "chronological", 0), day.part == 1)


def test_rates_of_exchangeable_and_of_drifting_scores():
    config = default_config("test").score

    def rates(drift, overlapping=False):
        return false_alarms.study(
            lambda n: exchangeable_day(n, drift=drift), config, range(20), "chronological", overlapping, 20, 5
        )["0.05"]  # fmt: skip

    still = rates(0.0)
    assert still["conformal"]["windows"] == 20 * 500  # of 2000 windows each fourth
    for name in ("quantile", "conformal"):
        assert still[name]["observed"] == pytest.approx(0.05, abs=0.01)
    low, high = still["conformal"]["binomial_interval"]
    assert low < still["conformal"]["observed"] < high and still["conformal"]["days_within_binomial"] >= 15
    drifting = rates(2.0)
    assert drifting["conformal"]["observed"] > 0.15 and drifting["conformal"]["days_within_binomial"] == 0
    assert drifting["adaptive"]["observed"] == pytest.approx(0.05, rel=0.2)
    overlapping = rates(0.0, overlapping=True)
    assert overlapping["conformal"]["windows"] == 20 * 2000 and "binomial_interval" not in overlapping["conformal"]


def test_plans_are_nested_and_have_their_share():
    seconds, border = 14400.0, 8640.0
    plans = {share: contamination.plan(seconds, border, share, 5) for share in contamination.SHARES}
    for share, faults in plans.items():
        early = [f for f in faults if f.start < border]
        assert sum(f.duration for f in early) == pytest.approx(share * border)
        assert [f.start for f in faults] == sorted(f.start for f in faults)
        assert {f.kind for f in faults} <= set(contamination.KINDS)
    starts = {share: {f.start for f in faults} for share, faults in plans.items()}
    assert starts[0.0] < starts[0.01] < starts[0.05] < starts[0.1]
    with pytest.raises(InputError, match="do not fit .* raise --hours"):
        contamination.plan(seconds, border, 0.9, 5)


def small_config():
    config = default_config("study")
    config.data.update({
        "node_level": "instance", "metrics": ("cpu.user",), "metric_baseline_minutes": 5.0, "segment_seconds": 150.0,
        "sequence_length": 4, "batch_size": 8, "num_workers": 1, "source": "openstack", "train_stride": 20,
    })  # fmt: skip
    config.model.update({"hidden_dim": 8, "num_prototypes": 4})
    config.train.update({"num_epochs": 1, "checkpoint_every": 1})
    return config


def test_a_workdir_is_of_one_study(tmp_path, monkeypatch):
    config = small_config()
    for _ in range(2):
        common.begin(config, tmp_path / "days", tmp_path / "out", hours=1.0)
    config.model.hidden_dim = 16
    for changed, hours in ((config, 1.0), (small_config(), 2.0)):
        with pytest.raises(InputError, match="results of other settings.*name another --workdir"):
            common.begin(changed, tmp_path / "days", tmp_path / "out", hours=hours)
    with monkeypatch.context() as patched:
        patched.setattr(common, "program", lambda *packages: "another")
        with pytest.raises(InputError, match="another version of the program"):
            common.begin(small_config(), tmp_path / "days", tmp_path / "out", hours=1.0)
    (tmp_path / "days" / "settings.json").write_text("{")
    with pytest.raises(InputError, match="results of other settings"):
        common.begin(small_config(), tmp_path / "days", tmp_path / "out", hours=1.0)
    with pytest.raises(InputError, match="--hours is not a number"):
        common.begin(small_config(), tmp_path / "days", tmp_path / "out", hours=float("nan"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name another --output"):
        common.begin(config, tmp_path / "other", tmp_path / "file" / "out", hours=1.0)


def test_days_from_simulation_to_page(tmp_path, monkeypatch):
    monkeypatch.setattr(days, "LOAD", 1.0)  # in an hour of little load some segments would see no request
    results = false_alarms.run(small_config(), tmp_path / "days", tmp_path / "out", 2, 2, 0, 1.0)
    assert {p.name for p in (tmp_path / "days").iterdir()} - {"settings.json"} == {
        f"closed_form-{drift}-0{n}.npz" for drift in days.DRIFTS for n in (0, 1)}  # fmt: skip
    still, drifting = (days.find_day(tmp_path / "days", None, 0, drift, "closed_form", 1.0) for drift in days.DRIFTS)
    assert (np.diff(still.start_tick) > 0).all() and set(still.part) == {1, 2} and np.isfinite(still.score).all()
    assert drifting.score[drifting.part == 2].mean() > still.score[still.part == 2].mean()
    saved = json.loads((tmp_path / "out" / "false_alarms.json").read_text())
    assert len(saved["parts"]) == len(results["parts"]) == len(false_alarms.parts(0))
    text = (tmp_path / "out" / "false_alarms.md").read_text()
    assert text == false_alarms.page(results) and "| conformal |" in text and "| adaptive |" in text


def test_cells_from_simulation_to_page(tmp_path, monkeypatch):
    monkeypatch.setattr(contamination, "SHARES", (0.05,))
    monkeypatch.setattr(contamination, "HIDDEN", 8)
    results = contamination.run(small_config(), tmp_path / "cells", tmp_path / "out", 1, 0.8, 1)
    (cell,) = results["cells"]
    assert cell["faults_in_training_time"] >= 1 and 0 < cell["share_of_training_windows_faulty"] < 0.3
    for detector in ("closed_form", "knowledge_ssl"):
        assert 0 <= cell[detector]["auroc"] <= 1 and 0 <= cell[detector]["adaptive"]["fpr"] <= 1
    assert [p.name for p in (tmp_path / "cells" / "share-0.05-seed-0").iterdir()] == ["cell.json"]
    assert contamination.cell(tmp_path / "cells", None, 0.05, 0, 0.8) == json.loads(json.dumps(cell))
    text = (tmp_path / "out" / "contamination.md").read_text()
    assert "| 5% (" in text and "threshold: adaptive" in text
