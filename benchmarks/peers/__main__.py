"""The PyTorch side of `python -m ssad_jax.benchmark --peers`: one JSON object a line in, one a line out.

    python -m benchmarks.peers EXPORT.npz [--device=cpu|cuda]

First line out: {"checks": {family: largest relative difference from the JAX side}, "versions": ...}. Then each line in
{"do": "tune" | "time", "what": "train" | "score" | "stream", "family": ..., "count": n} is answered by
{"seconds": {variant: a step}} or {"seconds": [a step each]} of the variant that was fastest when tuned.
"""

import contextlib
import json
import statistics
import sys
import time
from typing import NamedTuple

import torch
import torch_geometric

from benchmarks.peers import export, objective, scores
from benchmarks.peers.model import Network, System

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}


class Variant(NamedTuple):
    style: str  # see `model.Edges`
    one_batch: bool = False  # both views encoded at once
    compiled: bool = False


TRAIN = {
    "pyg": {
        "GCNConv": Variant("filtered"),
        "GCNConv, norm computed once": Variant("shared_norm"),
        "GCNConv, norm once, views in one batch": Variant("shared_norm", one_batch=True),
        "CSR product": Variant("csr"),
        "CSR product, views in one batch": Variant("csr", one_batch=True),
        "GCNConv, norm once, padded, compiled": Variant("padded", compiled=True),
    },
    "torch_dense": {
        "bmm": Variant("dense"),
        "bmm, views in one batch": Variant("dense", one_batch=True),
        "bmm, compiled": Variant("dense", compiled=True),
        "bmm, views in one batch, compiled": Variant("dense", one_batch=True, compiled=True),
    },
}
SCORE = {
    "pyg": {
        "GCNConv": Variant("filtered"),
        "GCNConv, norm computed once": Variant("shared_norm"),
        "CSR product": Variant("csr"),
        "GCNConv, norm once, padded, compiled": Variant("padded", compiled=True),
    },
    "torch_dense": {"bmm": Variant("dense"), "bmm, compiled": Variant("dense", compiled=True)},
}
WARM_UP = 2
CHECK_TERMS = ("reconstruction", "contrastive", "knowledge", "gradient_norm")


class Peer:
    """One family (pyg_fp32, ...): a network with the JAX side's weights, and its variants as functions."""

    def __init__(self, family, arrays, settings, device):
        self.settings, self.device = settings, device
        base, _, precision = family.rpartition("_")
        self.base, self.dtype = base, AUTOCAST[precision]
        self.system = System(arrays, device)
        self.windows = objective.Windows(arrays, device)
        self.network = Network(settings)
        self.network.load(arrays)
        self.network.to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings["learning_rate"], weight_decay=settings["weight_decay"], fused=True
        )
        self.best, self.functions = {}, {}

    def cast(self):
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def variants(self, what):
        table = (TRAIN if what == "train" else SCORE)[self.base]
        return {n: v for n, v in table.items() if self.settings["compile"] or not v.compiled}

    def function(self, what, name):
        if (what, name) not in self.functions:
            self.functions[what, name] = getattr(self, what)(self.variants(what)[name])
        return self.functions[what, name]

    def train(self, variant):
        self.network.train()
        system, windows, settings = self.system, self.windows, self.settings
        batch, length = settings["batch_size"], windows.sequences.shape[1]

        def loss(index):
            masked = objective.random_mask(system, batch * length, settings["mask_ratio"])
            with self.cast():
                terms = objective.losses(
                    self.network, system, windows, index, masked, variant.style, settings, True, variant.one_batch,
                    variant.compiled,
                )  # fmt: skip
            return objective.total(terms, settings)

        loss = torch.compile(loss, dynamic=False) if variant.compiled else loss

        def step():
            self.network.train()
            index = torch.randint(0, len(windows.sequences), (batch,), device=self.device)
            self.optimizer.zero_grad(set_to_none=True)
            loss(index).backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings["clip_norm"])
            self.optimizer.step()

        return step

    def score(self, variant):
        rows = self.windows.runs[0][: self.settings["score_windows"]]

        def windows():
            with self.cast():
                return scores.score_windows(
                    self.network, self.system, self.windows, rows, None, None, variant.style, self.settings
                )

        windows = self._inference(windows, variant)
        return lambda: [part.cpu() for part in windows()[:4]]

    def stream(self, variant):
        hidden = self.settings["hidden"]
        rows, state = self.windows.runs[0], {"s": torch.zeros(1, hidden, device=self.device), "n": 0, "u": None}
        state["u"] = torch.ones(1, hidden, device=self.device)

        def window(row, s, u):
            with self.cast():
                return scores.score_windows(
                    self.network, self.system, self.windows, row, s, u, variant.style, self.settings
                )

        window = self._inference(window, variant)

        def push():
            row = rows[state["n"] % len(rows)][None]
            state["n"] += 1
            out = window(row, state["s"], state["u"])
            state["s"], state["u"] = out[-2].float().clone(), out[-1].float().clone()
            return [o.cpu() for o in out[:4]]

        return push

    def _inference(self, function, variant):
        if variant.compiled:
            function = torch.compile(function, dynamic=False)

        def run(*args):
            self.network.train(False)
            with torch.inference_mode():
                return function(*args)

        return run

    def check(self, arrays):
        """Largest relative difference from the JAX side's losses, gradient norm and residuals, over the styles.

        In float32, whatever the family's precision.
        """
        worst = {}
        dtype, self.dtype = self.dtype, None
        settings, self.network.encoder.dropout = self.settings, 0.0
        index = torch.as_tensor(arrays["check/index"], dtype=torch.int64, device=self.device)
        masked = torch.as_tensor(arrays["check/masked"], device=self.device)
        for name, variant in self.variants("train").items():
            if variant.compiled:
                continue
            self.optimizer.zero_grad(set_to_none=True)
            terms = objective.losses(
                self.network, self.system, self.windows, index, masked.flatten(0, 1), variant.style, settings, False,
                variant.one_batch,
            )  # fmt: skip
            objective.total(terms, settings).backward()
            norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), float("inf"))
            found = {key: value.item() for key, value in (terms | {"gradient_norm": norm}).items()}
            wanted = {key: float(arrays[f"check/{key}"]) for key in CHECK_TERMS}
            worst[f"train, {name}"] = max(abs(found[k] - wanted[k]) / max(abs(wanted[k]), 1e-6) for k in wanted)
            for parameter in self.network.parameters():
                parameter.grad = None
        for name, variant in self.variants("score").items():
            if variant.compiled:
                continue
            out = self.score(variant)()
            for key, value in zip(("residual", "temporal", "prior"), out, strict=False):
                wanted, value = torch.as_tensor(arrays[f"check/{key}"]), value.cpu()
                both_nan = value.isnan() & wanted.isnan()  # the first window's temporal term
                off = torch.where(both_nan, 0, (value - wanted).abs()).max() / wanted.nan_to_num(0).abs().max()
                worst[f"{key}, {name}"] = off.item()
        self.network.encoder.dropout, self.dtype = settings["dropout"], dtype
        return worst

    def synchronise(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, what, name, count):
        """Seconds of a step: of each where latency matters, else of all together, so that a device is never idle."""
        function, seconds = self.function(what, name), []
        each = what == "stream"
        for _ in range(count if each else 1):
            self.synchronise()
            begin = time.perf_counter()
            for _ in range(1 if each else count):
                function()
            self.synchronise()
            seconds.append((time.perf_counter() - begin) / (1 if each else count))
        return seconds

    def tune(self, what, count):
        """Median seconds of a step of each variant, by turns; one that fails is left out, with its reason."""
        turns, failed = {}, {}
        for name in self.variants(what):
            try:
                self.time(what, name, WARM_UP)
                turns[name] = []
            except Exception as error:  # a compiler that is missing, a kernel that is not there for this device
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if not turns:
            raise RuntimeError(f"no variant for {what} could be run: {failed}")
        for _ in range(count):
            for name, taken in turns.items():
                taken += self.time(what, name, 1)
        seconds = {name: statistics.median(taken) for name, taken in turns.items()}
        self.best[what] = min(seconds, key=seconds.get)
        return {"seconds": seconds, "failed": failed, "best": self.best[what]}


def answer(peers, request):
    peer, what = peers[request["family"]], request["what"]
    if request["do"] == "tune":
        return peer.tune(what, request["count"])
    return {"seconds": peer.time(what, peer.best[what], request["count"])}


def _allow_tf32(allowed):
    """Products of float32 rounded to TF32 on GPUs, or not."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def main(path, device_name):
    torch.manual_seed(0)
    arrays, settings = export.read(path)
    device = torch.device(device_name)
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    out = sys.stdout
    sys.stdout = sys.stderr  # compilers print
    peers = {family: Peer(family, arrays, settings, device) for family in settings["families"]}
    _allow_tf32(False)  # for the comparison, as on the JAX side
    first = {
        "checks": {f: peer.check(arrays) for f, peer in peers.items()},
        "versions": {"torch": torch.__version__, "torch_geometric": torch_geometric.__version__},
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(first), file=out, flush=True)
    _allow_tf32(device.type == "cuda")  # as JAX does by default on GPUs
    for line in sys.stdin:
        print(json.dumps(answer(peers, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], next((a.partition("=")[2] for a in sys.argv[2:] if a.startswith("--device=")), "cpu"))
