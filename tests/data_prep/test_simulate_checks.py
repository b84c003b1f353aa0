"""The simulator against the real pieces, and the comparison's own arithmetic."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from data_prep.errors import InputError
from data_prep.simulate import checks, simulate


def test_every_figure_lies_within_its_tolerance(tmp_path):
    real = os.environ.get("SSAD_REAL_DATA")
    if not real:
        pytest.skip("SSAD_REAL_DATA is not set: no real OpenStack pieces to compare with")
    simulate(tmp_path / "raw", **checks.REFERENCE)
    rows = checks.compare(Path(real) / "openstack", tmp_path / "raw")
    assert len(rows) == 17
    assert not [row for row in rows if not row["ok"]], checks.as_markdown(rows)


def test_step_shares_count_whole_seconds():
    rows = ["now,x"] + [f"2019-11-25 16:12:{second:02d} CEST,1" for second in (1, 1, 2, 4, 5)]
    assert checks.step_shares("\n".join(rows)) == {0: 0.25, 1: 0.5, 2: 0.25}


def test_masks_hide_identifiers_and_the_cut():
    one = "[instance: 34ae4417-14e7-44fa-b7a7-a154811ee7bc] Deleting instance files /var/lib/nova/instances/34a"
    other = ("[instance: dc3b5379-0ca1-4b86-abaa-003c226412dd] Deleting instance files "
             "/var/lib/nova/instances/dc3b5379-0ca1-4b86-abaa-003c226412dd_del")
    assert checks.mask(one) == checks.mask(other)
    assert checks.mask(one) != checks.mask(one.replace("Deleting", "Creating"))


def test_total_variation_by_hand():
    assert checks.total_variation(Counter(a=1, b=1), Counter(a=2)) == 0.5
    assert checks.total_variation(Counter(a=3), Counter(a=1)) == 0.0


def test_tolerances_of_each_kind():
    assert checks.within(0.5, 0.54, ("share", 0.05)) and not checks.within(0.5, 0.56, ("share", 0.05))
    assert checks.within(10.0, 12.0, ("factor", 1.25)) and not checks.within(10.0, 7.9, ("factor", 1.25))
    assert not checks.within(2.5, 0.0, ("factor", 2.0))
    assert checks.within(0.0, 0.04, ("distance", 0.05)) and not checks.within(0.0, 0.06, ("distance", 0.05))


def test_failures_count_for_their_own_restart_until_the_next_one():
    def row(end):
        return {"timestamp": end - 1.0, "duration": 1.0, "error": ["ConnectFailure", "refused", ""]}
    hook = {"config": {"action": {"sys_call": "sh ./restart_glance_container.sh"}},
            "results": [{"started_at": 100.0, "finished_at": 110.0}, {"started_at": 1000.0, "finished_at": 1010.0}]}
    body = {"data": [row(end) for end in (90.0, 105.0, 300.0, 1200.0)], "hooks": [hook]}
    text = json.dumps({"tasks": [{"subtasks": [{"workloads": [body]}]}]})
    assert checks.failures_per_restart(text, []) == 1.5
    assert checks.failures_per_restart(text, [(200.0, 210.0)]) == 1.0


def test_missing_pieces_are_named(tmp_path):
    with pytest.raises(InputError, match="is missing; --real"):
        checks.read_text(tmp_path / "nothing.json")
