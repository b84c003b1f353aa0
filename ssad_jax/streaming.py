"""Windows scored one by one, as they come: the scores of batch evaluation, at the latency of one compiled call.

    scorer = Scorer.load("runs/openstack")
    score = scorer.push(window)

What a window's score takes from those before it is carried from push to push: the recurrent state of each network, and
the residuals of the last window that shares no tick with it. `docs/streaming.md` says what is the same as in batch.
"""

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_prep.errors import InputError
from ssad_jax import prepared, train, trained
from ssad_jax.backends import choices
from ssad_jax.batching import WINDOW_ARRAYS, make_batch
from ssad_jax.methods.interface import Method
from ssad_jax.prepared import CONTEXT_DIM, SIGNAL_DIM, System, Window
from ssad_jax.scoring.attribution import service_blame, suspects
from ssad_jax.scoring.calibration import Calibration, apply_calibration, kind_names
from ssad_jax.scoring.conformal import p_values
from ssad_jax.scoring.fitted import Fitted
from ssad_jax.scoring.states import States
from ssad_jax.scoring.terms import Columns, Terms, columns
from ssad_jax.scoring.thresholds import alerts, online


@dataclasses.dataclass(frozen=True)
class Score:
    """What is said of one window; names are those of the columns of `scores.parquet`."""

    window_start_unix_nano: int
    window_end_unix_nano: int
    score: float
    score_reconstruction: float
    score_temporal: float
    score_prior: float
    is_alert: bool
    prototype: str  # name of the nearest rule
    score_calibrated: float
    score_paper: float
    p_value: float
    score_kinds: dict[str, float]  # each node kind alone
    threshold: float  # alert above it; of `adaptive`, the one that it began with
    position: int  # windows before it in its run
    residual: np.ndarray  # [C] observed minus expected, in the order of `Scorer.columns`
    node_error: np.ndarray  # [N] in normal scales
    _system: System = dataclasses.field(repr=False)
    _calibration: Calibration = dataclasses.field(repr=False)

    @functools.cached_property
    def suspects(self) -> list[str]:
        """Service names, most suspect first; made when asked for."""
        return suspects(self._system, service_blame(self._system, self._calibration, self.node_error[None]))[0]


class _Raw(NamedTuple):
    """What comes back from the device for one window and K networks."""

    residual: jax.Array  # [C], mean of the networks
    measured: jax.Array  # [K, 2]: temporal and prior term as the paper measures them
    paper: jax.Array  # [K]
    prototype: jax.Array  # [K]
    state: jax.Array  # [K, H]: u


class Scorer:
    """Scores the windows of one system in the order of their time.

    Not for several threads at once: each push changes what is carried.
    """

    def __init__(self, method: Method, params, system: System, fitted: Fitted, window_length: int, stride: int):
        """
        Args:
            method: with `begin` and `step`.
            params: of K networks, on a leading axis.
            system: of the windows.
            fitted: on calibration windows of the same networks and system (`Fitted.of`).
            window_length, stride: of the windows, in ticks.

        Raises:
            ValueError: the method cannot go on from window to window, or what was fitted is of other networks or of
                another system.
        """
        self.columns: Columns = columns(system)
        self.system, self.fitted, self.stride = system, fitted, stride
        networks = len(jax.tree.leaves(params)[0])
        if method.step is None:
            raise ValueError("the method has no `step`: it cannot score window by window")
        if (networks, len(self.columns.node)) != (len(fitted.readings), len(fitted.calibration.centre)):
            raise ValueError(
                f"{networks} networks and {len(self.columns.node)} residual columns; what was fitted is of "
                f"{len(fitted.readings)} and {len(fitted.calibration.centre)}"
            )
        self._settings = ConfigDict(fitted.settings)
        self._params = jax.device_put(params)
        self._begin = jax.device_put(jax.tree.map(lambda x: np.stack([x] * networks), method.begin()))
        self._step = _compiled(method, system, self.columns)
        self._names = method.prototype_names
        self._kinds = kind_names(fitted.calibration)
        self._lag = -(-window_length // stride)  # windows from one to the next that shares no tick with it
        self._num_edges: int | None = None  # of the first window; others must have as many
        self._online = online(fitted.rule, self._settings) if self._settings.threshold == "adaptive" else None
        self.reset()

    @classmethod
    def load(cls, workdir, step: int | None = None, prepared_dir=None) -> "Scorer":
        """The networks of an evaluated workdir, with what its evaluation has fitted.

        Args:
            step: of the checkpoint; None: the one that was evaluated.
            prepared_dir: the dataset that the workdir was evaluated on, if it is not the one that it was trained on.

        Raises:
            InputError: the workdir was not evaluated, or it was with another checkpoint or on another dataset, or its
                method cannot score window by window.
        """
        workdir = Path(workdir)
        again = f"python -m ssad_jax.evaluate --workdir={workdir}"
        fitted = Fitted.load(workdir / "evaluation" / "calibration.npz")
        if step is not None and step != fitted.step:
            raise InputError(f"{workdir} was evaluated at step {fitted.step}, not {step}; run {again} --step={step}")
        restored = trained.restore(workdir, fitted.step)
        context = restored.context
        train.enable_compilation_cache(context.config)
        system, manifest = context.system, context.manifest
        if prepared_dir is not None:
            data = prepared.load(prepared_dir)
            system, manifest = data.system, data.manifest
        if manifest.get("dataset_hash") != fitted.dataset_hash:
            if prepared_dir is None:
                raise InputError(
                    f"{workdir} was evaluated on another dataset than it was trained on; name it as prepared_dir, or "
                    f"run {again}"
                )
            raise InputError(
                f"{workdir} was evaluated on another dataset than {prepared_dir}; run {again} "
                f"--prepared_dir={prepared_dir}"
            )
        method, params = trained.method(context, system), restored.tree["params"]
        if method.step is None:
            raise InputError(
                f"{workdir} was trained with {context.config.method}, which cannot score window by window; evaluate "
                f"the windows together: {again}"
            )
        return cls(method, params, system, fitted, manifest["window_length"], manifest["stride"])

    def reset(self) -> None:
        """The next window begins a run: nothing precedes it.

        The threshold `adaptive` keeps what it has learnt, as it does from run to run in batch.
        """
        self._carry = self._begin
        self._before = np.asarray(self._begin.recalled, np.float64)[:, 0]  # [K, H]: u of the window before
        self._residuals: deque[np.ndarray] = deque(maxlen=self._lag)
        self._position = 0
        self._last_tick: int | None = None

    def push(self, window: Window) -> Score:
        """Score the next window.

        A window that begins later than one stride after the one before begins a new run, as after `reset`: something
        was not observed. The first push compiles.

        Raises:
            ValueError: a shape is not the dataset's, an edge leads nowhere, or the window begins less than one stride
                after the one before (call `reset` to score an earlier time). Nothing is changed then.
        """
        window = self._checked(window)
        if self._last_tick is not None and window.start_tick - self._last_tick > self.stride:
            self.reset()
        arrays = {name: getattr(window, name) for name in WINDOW_ARRAYS}
        raw, carry = self._step(self._params, self._carry, arrays)
        raw = jax.device_get(raw)
        score, state = self._judge(window, raw)
        self._carry, self._before, self._last_tick = carry, state, window.start_tick
        self._residuals.append(raw.residual)
        self._position += 1
        return score

    def _judge(self, window: Window, raw: _Raw) -> tuple[Score, np.ndarray]:
        """The score, and u [K, H] f64. What batch evaluation does, with the same functions."""
        state = raw.state.astype(np.float64)
        read = np.mean(
            [
                readings.read(States(state[k, None], self._before[k, None]), raw.measured[k, None])
                for k, readings in enumerate(self.fitted.readings)
            ],
            axis=0, dtype=np.float32,
        )  # fmt: skip
        # Two rows where there is a window before that shares no tick: what lasts is seen in both.
        rows = [raw.residual] if len(self._residuals) < self._lag else [raw.residual, self._residuals[0]]

        def repeated(value):
            return np.repeat(np.asarray(value)[None], len(rows), axis=0)

        temporal, prior = raw.measured.mean(0, dtype=np.float32)
        terms = Terms(
            window=repeated(0), position=repeated(self._position), residual=np.stack(rows), temporal=repeated(temporal),
            prior=repeated(prior), paper_reconstruction=repeated(raw.paper.mean(dtype=np.float32)),
            prototype=repeated(raw.prototype[0]), read=np.repeat(read, len(rows), axis=0),
        )  # fmt: skip
        before = np.array([1, -1] if len(rows) == 2 else [-1])
        calibration, rule = self.fitted.calibration, self.fitted.rule
        scores = apply_calibration(calibration, self.columns, terms, before, len(self.system.kind))
        value = float(getattr(scores, self._settings.variant)[0])
        if self._online is not None:
            judged = self._online.judge(value)
            p_value, alert = judged.p_value, judged.alert
        else:
            p_value, alert = float(p_values(rule.rests_on, value)), bool(alerts(value, rule.threshold))
        score = Score(
            window_start_unix_nano=window.start_unix_nano, window_end_unix_nano=window.end_unix_nano, score=value,
            score_reconstruction=float(scores.reconstruction[0]), score_temporal=float(scores.temporal[0]),
            score_prior=float(scores.prior[0]), is_alert=alert, prototype=self._names[raw.prototype[0]],
            score_calibrated=float(scores.calibrated[0]), score_paper=float(scores.paper[0]), p_value=p_value,
            score_kinds=dict(zip(self._kinds, scores.kind[0].tolist(), strict=True)), threshold=rule.threshold.value,
            position=self._position, residual=raw.residual, node_error=scores.node_error[0], _system=self.system,
            _calibration=calibration,
        )  # fmt: skip
        return score, state

    def _checked(self, window: Window) -> Window:
        """The window with the types that were compiled for: other types would compile again."""
        num_nodes = len(self.system.kind)
        num_edges = np.size(window.senders) if self._num_edges is None else self._num_edges
        expected = {"nodes": (num_nodes, CONTEXT_DIM + SIGNAL_DIM), "senders": (num_edges,), "receivers": (num_edges,),
                    "edge_kind": (num_edges,), "n_edge": (), "start_tick": ()}  # fmt: skip
        types = {"nodes": np.float32, "edge_kind": np.int8}
        arrays = {}
        for name, shape in expected.items():
            array = np.asarray(getattr(window, name), types.get(name, np.int32))
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}; windows of this system have {shape}")
            arrays[name] = array
        for name in ("senders", "receivers"):
            if num_edges and not 0 <= arrays[name].min() <= arrays[name].max() < num_nodes:
                raise ValueError(f"{name} must lie in 0 .. {num_nodes - 1}, the node slots of this system")
        if not 0 <= arrays["n_edge"] <= num_edges:
            raise ValueError(f"n_edge is {arrays['n_edge']}; it must lie in 0 .. {num_edges}")
        tick = int(window.start_tick)
        if self._last_tick is not None and tick - self._last_tick < self.stride:
            raise ValueError(
                f"the window begins at tick {tick}, the one before at {self._last_tick}; the next begins {self.stride} "
                "ticks later, or more after a gap; call reset() to score an earlier time"
            )
        self._num_edges = num_edges
        return window._replace(
            **arrays, start_unix_nano=int(window.start_unix_nano), end_unix_nano=int(window.end_unix_nano)
        )


def _compiled(method: Method, system: System, place: Columns):
    """(params of K networks, carry of each, arrays of one window) -> _Raw, carry; one program."""
    num_real = np.int32(system.node_mask.sum())
    node, channel = jnp.asarray(place.node), jnp.asarray(place.channel)

    def of_one(params, carry, batch):
        terms, carry = method.step(params, batch, carry)
        first = jax.tree.map(lambda x: x[0, 0], terms)
        measured, residual = jnp.stack([first.temporal, first.prior]), first.residual[node, channel]
        return (residual, measured, first.paper_reconstruction, first.prototype, first.state), carry

    def step(params, carry, arrays):
        one = {name: jnp.asarray(a)[None] for name, a in arrays.items()} | {"n_node": jnp.full(1, num_real)}
        batch = make_batch(one, jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32))
        # As in training: together on accelerators; one after another on a CPU, where that is as fast and smaller.
        if choices().networks_together:
            out, carry = jax.vmap(of_one, in_axes=(0, 0, None))(params, carry, batch)
        else:
            out, carry = jax.lax.map(lambda own: of_one(*own, batch), (params, carry))
        return _Raw(out[0].mean(0), *out[1:]), carry

    return jax.jit(step)


def latencies(scorer: Scorer, windows: Iterable[Window], repeats: int = 1) -> np.ndarray:
    """Seconds from window to score, suspects included, of each window in each repeat: [repeats * windows].

    The windows, of ascending time, are pushed as a run (or more, where there are gaps) in each repeat; compilation is
    not counted. The scorer is left reset.
    """
    windows, taken = list(windows), []
    scorer.reset()
    scorer.push(windows[0])
    for _ in range(repeats):
        scorer.reset()
        for window in windows:
            start = time.perf_counter()
            _ = scorer.push(window).suspects
            taken.append(time.perf_counter() - start)
    scorer.reset()
    return np.array(taken)
