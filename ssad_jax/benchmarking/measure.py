"""Everything that a benchmark reports, in order."""

import contextlib
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.errors import InputError
from ssad_jax import parallel
from ssad_jax.benchmarking import ceilings, cost, parts, synthetic
from ssad_jax.benchmarking.peers import FAMILIES, Peers
from ssad_jax.benchmarking.programs import Scoring, Streaming, Training, compile_seconds, cost_of_window, empty_cache
from ssad_jax.benchmarking.timing import by_turns, rates
from ssad_jax.datasets import find_prepared
from ssad_jax.layers import propagation
from ssad_jax.layers.layout import Layout
from ssad_jax.prepared import Prepared
from ssad_jax.train import enable_compilation_cache

WARM_UP = 2  # epochs after the one that compiles
TUNING_STEPS = 5
HEAVIEST = 10  # operations that are named


def default_families() -> tuple[str, ...]:
    """bfloat16 needs hardware that has it: without, a CPU computes it many times slower than float32."""
    return tuple(f for f in FAMILIES if f.endswith("fp32")) if jax.default_backend() == "cpu" else FAMILIES


def dataset(config, num_nodes: int, num_edges: int, steps: int) -> Prepared:
    """A synthetic dataset of the given size, or without one the config's own."""
    parallel.initialize_processes()
    if not num_nodes:
        return find_prepared(config, parallel)
    steps = steps or (2 if jax.default_backend() == "cpu" else 32)
    config.data.update({"calibration_folds": 0, "window_length": synthetic.WINDOW_LENGTH, "stride": synthetic.STRIDE})
    config.knowledge.path = ""
    return synthetic.make_prepared(
        num_nodes, num_edges or 4 * num_nodes, config.data.sequence_length, steps * config.data.batch_size,
        synthetic.test_windows(num_nodes),
    )  # fmt: skip


def everything(
    config, prepared: Prepared, rounds: int, pushes: int, families=(), compile_peers=True, compile_times=True
) -> dict:
    """The JSON object of the benchmark.

    Args:
        families: peers to time by turns.
        compile_peers: try torch.compile.
        compile_times: measure compilation, in a cache of its own; else programs come from and go to the usual cache.

    Raises:
        InputError: a peer is unknown or cannot be run.
    """
    if unknown := set(families) - set(FAMILIES):
        raise InputError(f"--peer_families={','.join(sorted(unknown))} is unknown; use {', '.join(FAMILIES)}")
    if not compile_times:
        enable_compilation_cache(config)
        return _everything(config, prepared, rounds, pushes, families, compile_peers, (None, None))
    with empty_cache():
        _say("compiling without and with a cache")
        compilation = compile_seconds(config, prepared)
        return _everything(config, prepared, rounds, pushes, families, compile_peers, compilation)


def _everything(config, prepared: Prepared, rounds, pushes, families, compile_peers, compilation) -> dict:
    dtype = jnp.dtype(config.model.precision)
    _say("measuring what the device can do")
    ceiling = ceilings.measure(dtype)
    training = Training(config, prepared)
    for _ in range(1 + WARM_UP):
        training.epoch()
    params = training.params()
    scoring = Scoring(config, prepared, training.method, params)
    for _ in range(2):
        scoring.run()
    streaming = Streaming(config, prepared, training.method, params)
    streaming.seconds(20)
    found = _by_turns(config, prepared, params, training, scoring, streaming, rounds, pushes, families, compile_peers)
    _say("where the time of a step goes")
    compiled, run = training.compile_step()
    flop, accessed = cost_of_window(config, prepared)
    jax.block_until_ready(run())
    timed = parts.profile(compiled.as_text(), run)
    peak, peak_of = cost.peak_bytes(compiled)
    rate = found["train"]["median"]
    count = jax.device_count()
    layout, edges = Layout.of(prepared.system), prepared.windows.senders.shape[1]
    method = config.model.propagation
    if method == "auto":
        method = propagation.choose(len(layout.order), edges, jax.default_backend())
    return {
        "device": f"{jax.devices()[0].device_kind} x {count}",
        "backend": jax.default_backend(),
        "nodes": int(prepared.system.node_mask.sum()), "node_rows": len(layout.order), "edges": edges,
        "batch_size": config.data.batch_size, "sequence_length": prepared.fit_sequences.shape[1],
        "hidden_dim": config.model.hidden_dim, "precision": config.model.precision,
        "propagation": method,
        "train_windows_per_second": rate, "train_windows_per_second_quartiles": _quartiles(found["train"]),
        "score_windows_per_second": found["score"]["median"],
        "score_windows_per_second_quartiles": _quartiles(found["score"]),
        "stream_latency_ms_p50": found["stream"]["p50"], "stream_latency_ms_p99": found["stream"]["p99"],
        "compile_seconds_cold": compilation[0], "compile_seconds_cached": compilation[1],
        "step_share": parts.shares(timed),
        "heaviest_operations": [t._asdict() for t in timed[:HEAVIEST]],
        "flop_per_window": flop, "bytes_per_window": accessed,
        "mfu": flop * rate / (count * ceiling["flop_per_second"]),
        "bandwidth_share": accessed * rate / (count * ceiling["bytes_per_second"]),
        "measured_flop_per_second": ceiling["flop_per_second"],
        "measured_bytes_per_second": ceiling["bytes_per_second"],
        "peak_memory_bytes": peak, "peak_memory_of": peak_of, "rounds": rounds,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        **({"peers": found["peers"], "peer_facts": found["peer_facts"]} if families else {}),
    }  # fmt: skip


def _by_turns(config, prepared, params, training, scoring, streaming, rounds, pushes, families, compile_peers) -> dict:
    """Rates of training and scoring and quantiles of latency, this side's and the peers'."""
    windows, per_step = training.num_windows, config.data.batch_size * prepared.fit_sequences.shape[1]
    steps, pushes_a_round = max(1, windows // per_step), -(-pushes // rounds)

    def same(family: str) -> bool:
        return family.endswith({"float32": "fp32", "bfloat16": "bf16"}[config.model.precision])

    with contextlib.ExitStack() as stack:
        peers = tuned = None
        if families:
            _say("starting the peers and comparing losses, gradients and residuals")
            peers = stack.enter_context(Peers(config, prepared, params, families, compile_peers))
            tuned = {family: _tune(peers, family) for family in families}

        def turns(what, own, own_work, count, peer_work):
            _say(f"timing {what}")
            calls = {"own": own}
            for family in families:
                calls[family] = lambda family=family: peers.time(what, family, count)
            times = by_turns(calls, rounds)
            mine = rates(own_work, times.pop("own"))
            return mine, {f: rates(peer_work, [sum(t) / len(t) for t in rows]) for f, rows in times.items()}

        train, peer_train = turns("train", training.epoch, windows, steps, per_step)
        score, peer_score = turns("score", scoring.run, scoring.num_windows, 2, prepared.test_runs.shape[1])
        _say("timing single windows")
        calls = {"own": lambda: streaming.seconds(pushes_a_round)}
        for family in families:
            calls[family] = lambda family=family: peers.time("stream", family, pushes_a_round)
        latency = {name: _latency(sum(rows, [])) for name, rows in by_turns(calls, rounds).items()}
        facts = peers.facts if peers else None
    return {
        "train": train, "score": score, "stream": latency["own"], "peer_facts": facts,
        "peers": {
            family: {
                "train_windows_per_second": peer_train[family]["median"],
                "score_windows_per_second": peer_score[family]["median"],
                "stream_latency_ms_p50": latency[family]["p50"], "stream_latency_ms_p99": latency[family]["p99"],
                "train_windows_per_second_quartiles": _quartiles(peer_train[family]),
                "score_windows_per_second_quartiles": _quartiles(peer_score[family]),
                # How many times faster this side is; of like precision with like.
                "train_ratio": train["median"] / peer_train[family]["median"] if same(family) else None,
                "score_ratio": score["median"] / peer_score[family]["median"] if same(family) else None,
                "stream_ratio": latency[family]["p50"] / latency["own"]["p50"] if same(family) else None,
                "variants": tuned[family],
            }
            for family in families
        },
    }  # fmt: skip


def _tune(peers: Peers, family: str) -> dict:
    out = {}
    for what, count in (("train", TUNING_STEPS), ("score", TUNING_STEPS), ("stream", 30)):
        _say(f"tuning {family} for {what}")
        out[what] = peers.tune(what, family, count)
    return out


def _latency(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    return {"p50": float(p50) * 1e3, "p99": float(p99) * 1e3}


def _quartiles(rate: dict[str, float]) -> list[float]:
    return [rate["low"], rate["high"]]


def _say(message: str) -> None:
    print(f"benchmark: {message}", file=sys.stderr, flush=True)
