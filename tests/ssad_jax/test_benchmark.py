"""The benchmark: what it counts by hand, and a whole run on a tiny model whose JSON others read."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax.benchmarking import cost, parts, peers, synthetic, timing
from ssad_jax.config import default_config
from ssad_jax.layers.layout import Layout

KEYS = {
    "device", "train_windows_per_second", "score_windows_per_second", "stream_latency_ms_p50", "stream_latency_ms_p99",
    "compile_seconds_cold", "compile_seconds_cached", "flop_per_window", "bytes_per_window", "mfu", "bandwidth_share",
    "peak_memory_bytes",
}  # fmt: skip


def run(*arguments):
    command = [sys.executable, "-m", "ssad_jax.benchmark", "--config=configs/smoke.py", *arguments]
    one_device = os.environ | {"XLA_FLAGS": ""}
    return subprocess.run(command, capture_output=True, text=True, env=one_device)


def test_flop_of_a_matrix_product():
    x = jnp.ones((8, 16))
    compiled = jax.jit(lambda x: x @ x.T).lower(x).compile()
    flop, accessed = cost.flop_and_bytes(compiled)
    assert flop == pytest.approx(2 * 8 * 8 * 16, rel=0.05)
    assert accessed >= x.nbytes + 8 * 8 * 4
    assert cost.program_bytes(compiled) >= x.nbytes + 8 * 8 * 4


def test_collectives_are_read_from_a_programs_text():
    text = """
      %all-reduce.1 = (f32[10,2]{1,0}, f32[]) all-reduce(%a, %b), channel_id=1
      %ag-start = (f32[4]{0}, f32[16]{0}) all-gather-start(%c), channel_id=2
      %ag-done = f32[16]{0} all-gather-done(%ag-start)
      %all-gather.3 = bf16[8,2]{1,0} all-gather(%d), channel_id=3
      %fusion.9 = f32[100]{0} fusion(%all-reduce.1), kind=kLoop
    """
    assert cost.collectives(text) == [("all-reduce", 84), ("all-gather", 64), ("all-gather", 32)]


def test_operations_belong_to_the_innermost_part():
    text = """
      %dot.5 = f32[4]{0} dot(%a, %b), metadata={op_name="jit(f)/transpose(jvp(heads))/projection/dot_general"}
      ROOT %add.1 = f32[] add(%a, %b), metadata={op_name="jit(f)/add"}
      %while.2 = f32[4]{0} while(%c), metadata={op_name="jit(f)/gru/while"}
    """
    assert parts.operations(text) == {
        "dot.5": ("projection", "jit(f)/transpose(jvp(heads))/projection/dot_general"), "add.1": ("other", "jit(f)/add")
    }  # fmt: skip


def test_shares_of_a_program_add_up():
    @jax.jit
    def program(x):
        with jax.named_scope("gru"):
            x = jnp.tanh(x @ x)
        with jax.named_scope("heads"):
            return jnp.sort(x, axis=1)  # which nothing is fused with

    x = jnp.full((256, 256), 1e-3)
    compiled = program.lower(x).compile()
    timed = parts.profile(compiled.as_text(), lambda: compiled(x))
    assert [t.share for t in timed] == sorted((t.share for t in timed), reverse=True)
    assert any(t.part == "heads" and "sort" in t.source for t in timed)
    shares = parts.shares(timed)
    assert set(shares) == {*parts.PARTS, "other"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["gru"] > 0 and shares["heads"] > 0 and shares["optimiser"] == 0


def event(name, nanoseconds, **stats):
    return SimpleNamespace(name=name, duration_ns=nanoseconds, stats=stats.items())


def plane(name, **lines):
    found = [SimpleNamespace(name=key.replace("_", " "), events=events) for key, events in lines.items()]
    return SimpleNamespace(name=name, lines=found)


def test_times_count_each_kernel_once():
    known = {name: parts.Operation("gru", "") for name in ("dot.1", "loop_add_fusion.2")}
    kernels = [event("gemm", 5, hlo_op="dot.1"), event("loop_add_fusion_2", 2, hlo_op="graph"), event("MemcpyH2D", 1)]
    again = [event("dot.1", 5, hlo_op="dot.1"), event("loop_add_fusion.2", 2, hlo_op="loop_add_fusion.2")]
    host = plane("/host:CPU", python=[event("dot.1", 100), event("epoch", 1000)])
    gpu = plane("/device:GPU:0", Stream_1=kernels, XLA_Ops=again, XLA_Modules=[event("jit_f", 8, hlo_op="dot.1")])
    tpu = plane("/device:TPU:0", XLA_Ops=again, Steps=[event("0", 9)])
    assert parts.times([host, gpu], known) == {"dot.1": 5, "loop_add_fusion.2": 2, "MemcpyH2D": 1}
    assert parts.times([host, tpu], known) == {"dot.1": 5, "loop_add_fusion.2": 2}
    assert parts.times([host], known) == {"dot.1": 100}


def test_rates_are_of_quartiles_of_time():
    found = timing.rates(12, [1.0, 2.0, 3.0, 4.0, 6.0])
    assert found == {"median": 4.0, "low": 3.0, "high": 6.0}
    assert timing.by_turns({"a": iter("xyz").__next__, "b": iter("123").__next__}, 3) == {"a": [*"xyz"], "b": [*"123"]}


def test_synthetic_windows_are_whole_graphs():
    data = synthetic.make_prepared(30, 120, 4, 6, test_windows=5)
    windows, system = data.windows, data.system
    assert (int(system.node_mask.sum()), len(Layout.of(system).order)) == (30, 31)
    assert data.fit_sequences.shape == (6, 4) and data.calibration_runs.shape == (2, 5)
    for w in range(windows.num_windows):
        real = windows.n_edge[w]
        a, b = windows.senders[w, :real], windows.receivers[w, :real]
        assert 0.75 * 120 <= real <= 120 and real % 2 == 0 and (a != b).all() and max(a.max(), b.max()) < 30
        assert (windows.senders[w, real:] == 30).all()
        # every edge in both directions, side by side
        np.testing.assert_array_equal(a.reshape(-1, 2), b.reshape(-1, 2)[:, ::-1])
    assert (np.diff(windows.start_tick[data.fit_sequences], axis=1) == synthetic.STRIDE).all()
    assert np.abs(np.subtract.outer(*[windows.start_tick[data.fit_sequences[:, i]] for i in (0, -1)])).min() >= 15


def test_large_synthetic_systems_have_a_unit_for_each_kind_and_service():
    system = synthetic.make_prepared(3000, 12_000, 1, 1, test_windows=1).system
    pairs = set(zip(system.kind[system.node_mask].tolist(), system.service[system.node_mask].tolist(), strict=True))
    assert len(np.unique(system.mask_unit[system.node_mask])) == len(pairs) == len(np.unique(system.unit_hash)) - 1


def test_a_benchmark_says_everything(tmp_path):
    done = run("--nodes=12", "--steps=1", "--rounds=2", "--pushes=4", "--batch_size=8", "--sequence_length=2",
               "--config.data.batch_size=4")  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert KEYS <= found.keys() and "peers" not in found
    assert all(np.isfinite(found[key]) and found[key] > 0 for key in KEYS - {"device", "compile_seconds_cached"})
    assert (found["nodes"], found["batch_size"], found["sequence_length"]) == (12, 8, 2)
    assert "windows/s" in done.stderr
    heaviest = found["heaviest_operations"]
    assert len(heaviest) == 10 and heaviest[0]["share"] > 0 and heaviest[0]["name"] in done.stderr


@pytest.mark.parametrize("flag, words", [
    ("--rounds=0", "--rounds=0"), ("--nodes=3", "--nodes=3"), ("--sequence_length=4", "needs --nodes"),
    ("--peers", "needs --nodes"),
])  # fmt: skip
def test_flags_that_cannot_be_used(flag, words):
    done = run(flag)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_peers_compute_the_same_and_are_timed():
    pytest.importorskip("torch", reason="the peers need the extra `bench`")
    pytest.importorskip("torch_geometric", reason="the peers need the extra `bench`")
    done = run("--nodes=12", "--steps=1", "--rounds=2", "--pushes=4", "--peers", "--peer_compile=false")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["peers"]) == {"pyg_fp32", "torch_dense_fp32"}
    for name, peer in found["peers"].items():
        assert peer["train_windows_per_second"] > 0 and peer["variants"]["train"]["failed"] == {}
        assert len(found["peer_facts"]["checks"][name]) >= 5


@pytest.mark.parametrize("key, value", [("model.memory", False), ("loss.contrastive", 0.0), ("knowledge.path", "x")])
def test_models_that_peers_do_not_have(key, value):
    config = default_config("test")
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(InputError, match="--peers"):
        peers.check(config)
