"""The PyTorch peers of a benchmark: exports what both sides start from, and talks to their process.

The peers (`benchmarks/peers/`, in the source tree) run in a process of their own, so that neither side's threads,
allocators or compilers disturb the other; they sleep while this side is timed.
"""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import ssad_jax
from data_prep.errors import InputError
from ssad_jax import batching, knowledge
from ssad_jax.config import default_config
from ssad_jax.layers.decoder import SKIP_WIDTH, WIDTH
from ssad_jax.layers.hashing import fold, window_keys, words
from ssad_jax.layers.layout import Layout
from ssad_jax.methods import knowledge_ssl
from ssad_jax.objectives import views
from ssad_jax.prepared import IDENTITY_DIM, NODE_KINDS, SIGNAL_DIM, Prepared
from ssad_jax.scoring.terms import scorer

FAMILIES = ("pyg_fp32", "pyg_bf16", "torch_dense_fp32", "torch_dense_bf16")
TOLERANCE = 2e-3  # largest relative difference of losses, gradient norm and residuals between the two sides
ROOT = Path(ssad_jax.__file__).parents[1]


class Peers:
    """A running process of peers; use as a context manager.

    Raises:
        InputError: PyTorch, PyTorch Geometric or the source tree is missing, or the model is none that they have.
        RuntimeError: the two sides do not compute the same.
    """

    def __init__(self, config, prepared: Prepared, params, families=FAMILIES, compiled=True, threads=0):
        if not (ROOT / "benchmarks" / "peers" / "__main__.py").is_file():
            raise InputError("the peers are not part of an installed package; run --peers in the source tree")
        check(config)
        python = os.environ.get("SSAD_PEERS_PYTHON") or sys.executable
        if shutil.which(python) is None:
            raise InputError(f"SSAD_PEERS_PYTHON={python} is no program; name a Python that has PyTorch")
        if python == sys.executable and not all(importlib.util.find_spec(n) for n in ("torch", "torch_geometric")):
            raise InputError(
                "--peers needs PyTorch and PyTorch Geometric; install the extra `bench` (docs/performance.md tells how "
                "to get the CPU build), or set SSAD_PEERS_PYTHON to a Python that has them"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="ssad_jax-peers-")
        path = Path(self._folder.name) / "export.npz"
        arrays, settings = export(config, prepared, params)
        settings |= {"families": list(families), "compile": compiled, "threads": threads}
        np.savez(path, settings=np.array(json.dumps(settings)), **arrays)
        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.peers", str(path), f"--device={device}"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.facts = self._read()
        off = {f"{f}, {n}": v for f, checks in self.facts["checks"].items() for n, v in checks.items()}
        if bad := {name: value for name, value in off.items() if not value <= TOLERANCE}:
            self.__exit__()
            raise RuntimeError(f"the two sides do not compute the same: relative differences {bad}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def tune(self, what: str, family: str, count: int) -> dict:
        """Seconds of every variant of a family at 'train', 'score' or 'stream'; the fastest is timed from then on."""
        return self._ask({"do": "tune", "what": what, "family": family, "count": count})

    def time(self, what: str, family: str, count: int) -> list[float]:
        """Seconds of each of `count` steps of the fastest variant."""
        return self._ask({"do": "time", "what": what, "family": family, "count": count})["seconds"]

    def _ask(self, request: dict) -> dict:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peers' process ended with exit code {self._process.wait()}")
        return json.loads(line)


def check(config) -> None:
    """Raises InputError for what the peers do not have: they are the default model on one device."""
    default = default_config("peers")
    keys = ("model.temporal", "model.memory", "model.skip_init", "knowledge.path", "method")
    for key in keys:
        value, usual = (functools.reduce(lambda part, name: part[name], key.split("."), c) for c in (config, default))
        if value != usual:
            raise InputError(f"--peers compares the default model: --config.{key}={value!r} must be {usual!r}")
    if not all(config.loss[name] for name in ("reconstruction", "contrastive", "knowledge")):
        raise InputError("--peers compares training with all three losses; none of config.loss may be 0")
    if config.views.window_jitter > 1:
        raise InputError(f"--peers shifts windows by one: --config.views.window_jitter={config.views.window_jitter}")
    if jax.device_count() > 1:
        raise InputError(f"--peers compares one device; there are {jax.device_count()}, show the program one")


def export(config, prepared: Prepared, params) -> tuple[dict, dict]:
    """Arrays and settings for `benchmarks.peers.export`, with what this side computes from them.

    params: of one network. The expectations are without dropout and perturbations: each side draws its own. On
    both sides their products are in full float32: GPUs round to TF32 by default.
    """
    system = prepared.system
    known = knowledge.load("", (), (), config.model.num_prototypes)
    layout = Layout.of(system)
    resident = jax.device_put(batching.resident(prepared))
    graphs = layout.arrange(batching.graphs_tuple(resident, jnp.arange(prepared.windows.num_windows)[None]))
    windows = {name: np.asarray(getattr(graphs, name))[0] for name in ("context", "signal", "senders", "receivers")}
    windows |= {"n_edge": prepared.windows.n_edge, "start_tick": prepared.windows.start_tick}
    groups = int(np.ceil(1 / config.loss.mask_ratio))
    facts = {
        "identity": layout.identity, "kind": layout.kind, "node_mask": layout.node_mask,
        "signal_mask": layout.signal_mask, "unit": np.unique(layout.unit_hash, return_inverse=True)[1],
        "group": layout.unit_hash % groups,
    }  # fmt: skip
    flat = {
        "/".join(str(key.key) for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    length = prepared.manifest["window_length"]
    settings = {
        "kinds": len(NODE_KINDS), "hidden": config.model.hidden_dim, "layers": config.model.num_graph_layers,
        "dropout": config.model.dropout, "identity_dim": IDENTITY_DIM, "signal_dim": SIGNAL_DIM,
        "decoder_width": WIDTH, "skip_width": SKIP_WIDTH, "key_dim": knowledge.KEY_DIM,
        "prototypes": len(known.names), "embedding_dim": knowledge_ssl.EMBEDDING_DIM,
        "batch_size": config.data.batch_size, "mask_ratio": config.loss.mask_ratio, "groups": groups,
        "temperature": config.loss.temperature, "edge_drop": config.views.edge_drop,
        "attribute_drop": config.views.attribute_drop, "jitter": config.views.window_jitter, "apart": length,
        "jitter_ticks": config.views.window_jitter * config.data.stride, "clip_norm": config.optimizer.clip_norm,
        "learning_rate": config.optimizer.learning_rate, "weight_decay": config.optimizer.weight_decay,
        "score_windows": prepared.test_runs.shape[1],
        **{f"weight_{name}": config.loss[name] for name in ("reconstruction", "contrastive", "knowledge")},
    }  # fmt: skip
    arrays = {
        **{f"window/{k}": v for k, v in windows.items()}, **{f"system/{k}": v for k, v in facts.items()},
        **{f"param/{k}": v for k, v in flat.items()}, "sequences": prepared.fit_sequences, "runs": prepared.test_runs,
        "keys": np.asarray(known.keys),
    }  # fmt: skip
    with jax.default_matmul_precision("highest"):
        arrays |= _expectations(config, prepared, params, layout, resident)
    return arrays, settings


def _expectations(config, prepared: Prepared, params, layout: Layout, resident: dict) -> dict:
    plain = config.copy_and_resolve_references()
    plain.model.dropout, plain.model.precision = 0.0, "float32"
    plain.views.update({"edge_drop": 0.0, "attribute_drop": 0.0, "window_jitter": 0})
    method = knowledge_ssl.create(plain, prepared.system, None)
    index = jnp.arange(min(config.data.batch_size, len(prepared.fit_sequences)), dtype=jnp.int32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), i))(index)
    batch = batching.make_batch(resident, jnp.asarray(prepared.fit_sequences)[index], index)

    def total(params):
        sums, counts, _ = method.loss(params, batch, keys, lambda x: x)
        terms = {name: s / jnp.maximum(counts[name], 1) for name, s in sums.items()}
        return sum(terms.values()), terms

    gradients, terms = jax.jit(jax.grad(total, has_aux=True))(params)
    norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(gradients)))
    per_window = window_keys(fold(words(keys), knowledge_ssl.WINDOWS), prepared.fit_sequences.shape[1])
    masked = views.random_mask(
        fold(per_window, knowledge_ssl.MASK), layout.unit_hash, layout.node_mask, config.loss.mask_ratio
    )
    run = prepared.test_runs[:1]
    scored = scorer(method)(params, resident, run, np.zeros(1, np.int32))
    residual = np.asarray(scored.residual)[0][:, layout.order]
    return {
        "check/index": np.asarray(index), "check/masked": np.asarray(masked), "check/gradient_norm": np.array(norm),
        **{f"check/{k}": np.asarray(v) / config.loss[k] for k, v in terms.items()},
        "check/residual": residual, "check/temporal": np.asarray(scored.temporal)[0],
        "check/prior": np.asarray(scored.prior)[0],
    }  # fmt: skip
