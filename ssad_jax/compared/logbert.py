"""LogBERT (Guo, Yuan & Wu, IJCNN 2021) in compact form: sequences of log keys, told by masked keys.

The paper's: a transformer (pre-norm, as in the authors' code) reads a token DIST and the keys of a sequence, of which
0.65 are masked. It learns from normal sequences by the cross-entropy of masked keys and 0.1 times the squared distance
of h_DIST from its mean over the training data, which is computed anew before each epoch. A masked key that is not among
the 6 likeliest is undetected.

Adapted: a sequence is a piece of a segment's log stream, all services together in the order of (time, service): the
lines of the ticks between two possible starts or ends of windows, in equal parts where they are more than
`compared.logbert.events`. So every piece lies in a window or outside it, none across its border, and windows that
overlap share pieces. Pieces under 10 events, which the authors' code drops, are learned from and judged as well: most
are of quiet ticks. Keys are the log nodes of the graph (a template at a service); lines whose template training time
did not have are UNK. The score needs no threshold: the authors search the share of undetected keys that is an anomaly
on labelled test sequences, here it is itself the score, its mean over a few fixed masks, plus 0.1 times the distance of
h_DIST from the centre, standardised on training pieces; the mean negative log-likelihood of masked keys is shown
beside it. Windows under 10 events are judged by how far their number of events is from that of training windows, in
standard deviations. The scale of distances is that of the epoch before, as the centre moves little in the end. No
dropout; narrower and fewer layers (published: 256 wide, 4 layers), shorter pieces (128 events) and fewer masks (8), all
in `config.compared.logbert`; and fewer epochs than its loss takes to level off, for its cost.

Fidelity: high, but for what a sequence is and for the score.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
from flax import nnx

from ssad_jax.backends import choices
from ssad_jax.batching import Batch, Needs
from ssad_jax.compared import units
from ssad_jax.compared.transformer import Encoder
from ssad_jax.compared.units import Units
from ssad_jax.layers.functional import functional
from ssad_jax.layers.hashing import bernoulli, fold, window_keys, words
from ssad_jax.methods.interface import Method, WindowScores
from ssad_jax.prepared import NODE_KINDS, Prepared, System

MASKED = 0.65  # share of the keys (published)
CENTRE = 0.1  # weight of the distance from the centre, in loss (published) and score
LIKELIEST = 6  # predictions among which a detected key is (published: g)
LEAST = 10  # events of a window that the network judges (published, of a sequence)
EXPANSION = 2  # of transformer blocks (authors' code)
EPSILON = 1e-6  # smallest standard deviation of distances
MASKS = 11  # stream of a window's key


def keys_of(system: System) -> tuple[np.ndarray, int]:
    """[N] the key of each log node, numbered in the order of names whatever that of nodes; and their number K.

    K itself is UNK, K + 1 stands for what is masked, K + 2 is DIST.
    """
    nodes = np.flatnonzero(system.node_mask & (system.kind == NODE_KINDS.index("log")))
    key = np.full(len(system.kind), len(nodes), np.int32)
    key[sorted(nodes, key=lambda node: system.node_names[node])] = np.arange(len(nodes))
    return key, len(nodes)


@functools.cache  # one function a length, so that `units.reader` knows what it has listed
def lister(most: int):
    """What lists a dataset's pieces: events [V, most] int32 keys, many [V] int32 how many of them there are."""

    def pieces(prepared: Prepared) -> Units:
        windows, manifest = prepared.windows, prepared.manifest
        length = manifest["window_length"]
        block = math.gcd(manifest["stride"], length)  # ticks between two possible borders of windows
        block *= int(round(manifest["tick_seconds"] * 1e9))
        columns = ["time_unix_nano", "unit", "template", "node"]
        table = pl.read_parquet(prepared.directory / "tables" / "logs.parquet", columns=columns)
        key, unknown = keys_of(prepared.system)
        own = np.where(table["template"].to_numpy() < 0, unknown, key[table["node"].to_numpy()])
        table = table.select("time_unix_nano", "unit", pl.Series("key", own)).sort("time_unix_nano", "unit", "key")
        time, own = table["time_unix_nano"].to_numpy(), table["key"].to_numpy()

        segment, first = np.unique(windows.segment, return_index=True)
        begin = np.sort([windows.start_unix_nano[windows.segment == s].min() for s in segment])
        before = np.searchsorted(begin, time, side="right") - 1
        time, own, before = time[before >= 0], own[before >= 0], before[before >= 0]
        start = begin[before] + (time - begin[before]) // block * block  # of the line's block
        _, first, lines = np.unique(start, return_index=True, return_counts=True)
        place, lines = np.arange(len(start)) - np.repeat(first, lines), np.repeat(lines, lines)
        part = place * -(-lines // most) // lines
        _, first, many = np.unique(np.stack([start, part], 1), axis=0, return_index=True, return_counts=True)
        events = np.zeros((len(first), most), np.int32)
        row = np.repeat(np.arange(len(first)), many)
        events[row, np.arange(len(own)) - first[row]] = own

        window, piece = units.in_windows(prepared, start[first])
        whole = start[first][piece] + block <= windows.end_unix_nano[window]
        return Units.of({"events": events, "many": many.astype(np.int32)}, window[whole], piece[whole])

    return pieces


class Network(nnx.Module):
    """Keys [n, T], there [n, T] -> hidden states of DIST [n, H], logits of the keys and UNK [n, T, K + 1]."""

    def __init__(self, settings, num_keys: int, *, rngs: nnx.Rngs):
        self.dist = num_keys + 2
        self.token = nnx.Param(jax.random.normal(rngs.params(), (num_keys + 3, settings.width)))
        self.encoder = Encoder(settings.width, settings.layers, settings.heads, EXPANSION, pre_norm=True, rngs=rngs)
        self.key = nnx.Linear(settings.width, num_keys + 1, rngs=rngs)

    def __call__(self, events: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens = jnp.pad(events, [(0, 0), (1, 0)], constant_values=self.dist)
        x = self.token[...][tokens] + positions(tokens.shape[1], self.token.shape[1])[None]
        h = self.encoder(x, jnp.pad(there, [(0, 0), (1, 0)], constant_values=True))
        return h[:, 0], self.key(h[:, 1:])


def positions(length: int, width: int) -> np.ndarray:
    """[length, width] sines and cosines of positions (Vaswani et al. 2017)."""
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)[None]
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(length, -1)[:, :width].astype(np.float32)


def create(config, system: System, knowledge=None) -> Method:
    """Build LogBERT for one system; uses `config.compared.logbert`."""
    del knowledge
    settings = config.compared.logbert
    _, num_keys = keys_of(system)
    mask_token = num_keys + 1
    place = jnp.arange(settings.events, dtype=jnp.uint32)
    number = jnp.arange(settings.masks, dtype=jnp.uint32)
    fixed_masks = bernoulli(fold(jnp.zeros((settings.masks, 2), jnp.uint32), number), place[None], MASKED)  # [M, T]
    fresh, network = functional(Network, settings, num_keys)

    def init(key):
        zero, one = jnp.zeros(()), jnp.ones(())
        fixed = {"centre": jnp.zeros(settings.width), "distance": zero, "distance_sd": one, "events": zero,
                 "events_sd": one}  # fmt: skip
        return fresh(key) | {"fixed": fixed}

    def read(params, events, there, masked) -> tuple[jax.Array, jax.Array]:
        return network(params)(jnp.where(masked, mask_token, events), there)

    def distances(params, h: jax.Array) -> jax.Array:
        """[...] mean squares of h_DIST [..., H] less the centre."""
        centre = jax.lax.stop_gradient(params["fixed"]["centre"])
        return jnp.square(h - centre.reshape((1,) * (h.ndim - 1) + (-1,))).mean(-1)

    def learn_from(params, batch: Batch, keys, drawn: int):
        """Of `drawn` pieces of each window, n in all.

        Returns:
            h_DIST [n, H], logits [n, T, K + 1], keys [n, T], which are masked [n, T], which pieces exist [n].
        """
        rows, real = units.draw(keys, batch, drawn)
        events, many = (batch.shared[name][rows.reshape(-1)] for name in ("events", "many"))
        there = place[None] < many[:, None]
        counter = jnp.arange(drawn * settings.events, dtype=jnp.uint32).reshape(1, 1, drawn, -1)
        own = fold(window_keys(words(keys), batch.window_mask.shape[1]), MASKS)
        masked = bernoulli(own, counter, MASKED).reshape(there.shape) & there
        h, logits = read(params, events, there, masked)
        real = real.reshape(-1)
        return h, logits, events, masked & real[:, None], real

    def loss(params, batch: Batch, keys, gather):
        h, logits, events, masked, real = learn_from(params, batch, keys, settings.drawn)
        unlikely = optax.softmax_cross_entropy_with_integer_labels(logits, events)
        sums = {
            "masked keys": jnp.where(masked, unlikely, 0).sum(),
            "centre": CENTRE * jnp.where(real, distances(params, h), 0).sum(),
        }
        return sums, {"masked keys": masked.sum(), "centre": real.sum()}, {}

    def observe(params, batch: Batch):
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(batch.index)
        h, _, _, _, real = learn_from(params, batch, keys, 1)  # the same of a window in every epoch
        share = real.astype(jnp.float32)
        distance = distances(params, h)
        number = jnp.where(batch.window_mask, num_events(batch), 0)
        sums = {
            "pieces": share.sum(), "centre": (h * share[:, None]).sum(0), "distance": (distance * share).sum(),
            "distance_square": (distance**2 * share).sum(), "events": number.sum(), "events_square": (number**2).sum(),
        }  # fmt: skip
        return sums, batch.window_mask.sum()

    def absorb(params, means, step):
        del step
        pieces = jnp.maximum(means["pieces"], EPSILON)
        distance, number = means["distance"] / pieces, means["events"]
        fixed = {
            "centre": means["centre"] / pieces,
            "distance": distance,  # from the centre before, which moves little in the end
            "distance_sd": jnp.sqrt(jnp.maximum(means["distance_square"] / pieces - distance**2, EPSILON**2)),
            "events": number,
            "events_sd": jnp.sqrt(jnp.maximum(means["events_square"] - number**2, 1)),  # one event at least
        }
        return params | {"fixed": fixed}

    def score(params, batch: Batch, keys=None) -> WindowScores:
        del keys
        fixed = params["fixed"]

        def of_piece(piece):
            """Undetected share + distance, undetected share, mean negative log-likelihood."""
            there = jnp.broadcast_to((place < piece["many"])[None], fixed_masks.shape)
            events, masked = jnp.broadcast_to(piece["events"][None], there.shape), fixed_masks & there
            h, logits = read(params, events, there, masked)
            undetected, unlikely = (masked_mean(x, masked) for x in (missed(logits, events), surprise(logits, events)))
            apart = (distances(params, h).mean() - fixed["distance"]) / fixed["distance_sd"]
            return jnp.stack([undetected + CENTRE * apart, undetected, unlikely])

        at_once = max(1, choices().rows_scored // fixed_masks.size)
        pieces = units.judge(of_piece, batch.shared, at_once, units.num_used(batch))
        shown = [units.of_windows(pieces[:, i], batch)[..., :1] for i in (1, 2)]
        own = jnp.concatenate([units.of_windows(pieces[:, 0], batch), *shown], axis=-1)
        number = num_events(batch)
        usual = jnp.abs(number - fixed["events"]) / fixed["events_sd"]
        by_number = jnp.where(batch.window_mask & (fixed["events"] > 0), usual, jnp.nan)
        return WindowScores(jnp.where((number < LEAST)[..., None], by_number[..., None], own))

    names = (*units.SCORE_NAMES, "top, undetected alone", "top, likelihood")
    needs = Needs(alone=True, inputs=units.reader(lister(settings.events)))
    return Method(init, loss, score, score_names=names, needs=needs, observe=observe, absorb=absorb, bound=True)


def num_events(batch: Batch) -> jax.Array:
    """[B, S] events of each window's pieces."""
    unit = batch.inputs["unit"]
    return jnp.where(unit >= 0, batch.shared["many"][jnp.maximum(unit, 0)], 0).sum(-1).astype(jnp.float32)


def missed(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """[...] 1 where a key [...] is not among the LIKELIEST of the logits [..., K]."""
    own = jnp.take_along_axis(logits, keys[..., None], axis=-1)
    return ((logits > own).sum(-1) >= LIKELIEST).astype(jnp.float32)


surprise = optax.softmax_cross_entropy_with_integer_labels


def masked_mean(values: jax.Array, masked: jax.Array) -> jax.Array:
    """The mean over masks [M, T] of the mean of `values` [M, T] where masked; masks that hide nothing do not count."""
    number = masked.sum(-1)
    each = jnp.where(masked, values, 0).sum(-1) / jnp.maximum(number, 1)
    return jnp.where(number > 0, each, 0).sum() / jnp.maximum((number > 0).sum(), 1)
