"""LogELECTRA (Yamanaka et al., arXiv 2402.10397) in compact form: single log lines, told by their replaced tokens.

The paper's: ELECTRA (Clark et al., ICLR 2020) learns from normal lines. A generator fills in masked tokens, a
discriminator of four times its width tells for each token whether it was replaced; both share the embeddings of tokens
and positions. Loss L_MLM + 50 L_RTD. A line is a point anomaly, no parser is used; at test nothing is masked.

Adapted: tokens are pieces of words, hashed into 4,096 buckets, where the paper has a WordPiece vocabulary: nothing is
fitted, and parameters serve any dataset. Variable parts are the placeholders of `data_prep.templates.mask`, punctuation
is left out, stop words are kept. A unit is a distinct masked body of a service: a window that holds it often trains on
it as much as one that holds it once. A line's score is the mean over its tokens of P(replaced), the paper's exact rule
being unconfirmed; windows are judged by their lines as `units` says, services by their worst line. Of a line at most 4
tokens are masked. No dropout, no warm-up of the learning rate; a narrower network of fewer layers (128 wide, 4 layers
in `config.compared.logelectra` for the full size), and fewer epochs than its loss takes to level off, for its cost.

Fidelity: medium.
"""

import functools
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
from flax import nnx

from data_prep import templates
from ssad_jax.batching import Batch, Needs
from ssad_jax.compared import units
from ssad_jax.compared.transformer import Encoder
from ssad_jax.compared.units import Units
from ssad_jax.layers.functional import functional
from ssad_jax.layers.hashing import fold, uniform, window_keys, words
from ssad_jax.methods.interface import Method, WindowScores
from ssad_jax.prepared import Prepared, System

PIECE = re.compile(r"<\w+>|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")  # <num>, ABC, Abc, 12, other letters
NOTHING, MASK, SPECIAL = 0, 1, 2  # tokens; those of words begin at SPECIAL
MASKED = 0.15  # share of a line's tokens (ELECTRA)
REPLACED = 50.0  # weight of L_RTD (ELECTRA)
NARROWER = 4  # the discriminator is so many times as wide as the generator, with so many times the heads (ELECTRA)
EXPANSION = 4  # of transformer blocks (BERT)
MOST_MASKED = 4  # tokens of a line: as many as 26 have (ours)
WORST = 3  # tokens whose mean is shown beside the score
PIECE_OF_LINES = 16  # judged at once
PLACES, SAMPLES = range(2)  # streams of a drawn line's key


def tokens_of(body: str, buckets: int, most: int) -> list[int]:
    """The first `most` tokens of a masked body: pieces of words in lower case, hashed into the buckets."""
    return [SPECIAL + zlib.crc32(piece.lower().encode()) % buckets for piece in PIECE.findall(body)[:most]]


@functools.cache  # one function a vocabulary, so that `units.reader` knows what it has listed
def lister(buckets: int, most: int):
    """What lists a dataset's lines: tokens [V, T] int32, service [V] int32 of its distinct (unit, masked body)."""

    def lines(prepared: Prepared) -> Units:
        table = pl.read_parquet(
            prepared.directory / "tables" / "logs.parquet", columns=["time_unix_nano", "unit", "node", "body"]
        )
        masked = table.select("body").unique().with_columns(masked=templates.mask(pl.col("body")))
        table = table.join(masked.drop_nulls(), on="body")
        distinct = table.group_by("unit", "masked").agg(pl.col("node").min()).sort("unit", "masked")
        found = [tokens_of(body, buckets, most) for body in distinct["masked"].to_list()]
        distinct = distinct.filter(pl.Series([bool(some) for some in found], dtype=pl.Boolean)).with_row_index("row")
        found = [some for some in found if some]
        tokens = np.full((len(found), max(map(len, found), default=1)), NOTHING, np.int32)
        for row, some in zip(tokens, found, strict=True):
            row[: len(some)] = some
        table = table.join(distinct.drop("node"), on=["unit", "masked"]).sort("time_unix_nano")
        window, line = units.in_windows(prepared, table["time_unix_nano"].to_numpy())
        arrays = {"tokens": tokens, "service": prepared.system.service[distinct["node"].to_numpy()].astype(np.int32)}
        return Units.of(arrays, window, table["row"].to_numpy()[line])

    return lines


class Network(nnx.Module):
    """Generator and discriminator over shared embeddings; tokens [n, T] int32, NOTHING where a line has ended."""

    def __init__(self, settings, *, rngs: nnx.Rngs):
        width, small = settings.width, settings.width // NARROWER
        scale = nnx.initializers.normal(0.02)  # BERT
        self.token = nnx.Param(scale(rngs.params(), (SPECIAL + settings.buckets, width)))
        self.position = nnx.Param(scale(rngs.params(), (settings.tokens, width)))
        self.embedding_norm = nnx.LayerNorm(width, rngs=rngs)
        self.narrow = nnx.Linear(width, small, rngs=rngs)
        heads = 1 if settings.heads % NARROWER else settings.heads // NARROWER
        self.generator = Encoder(small, settings.generator_layers, heads, EXPANSION, pre_norm=False, rngs=rngs)
        self.widen = nnx.Linear(small, width, rngs=rngs)
        self.widen_norm = nnx.LayerNorm(width, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(settings.buckets))
        self.discriminator = Encoder(width, settings.layers, settings.heads, EXPANSION, pre_norm=False, rngs=rngs)
        self.transform = nnx.Linear(width, width, rngs=rngs)
        self.replaced = nnx.Linear(width, 1, rngs=rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        return self.embedding_norm(self.token[...][tokens] + self.position[...][None, : tokens.shape[-1]])

    def fill_in(self, tokens: jax.Array, places: jax.Array) -> jax.Array:
        """Logits [n, P, buckets] of the tokens at `places` [n, P]."""
        hidden = self.generator(self.narrow(self.embed(tokens)), tokens != NOTHING)
        hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
        hidden = self.widen_norm(jax.nn.gelu(self.widen(hidden)))
        return hidden @ self.token[...][SPECIAL:].T + self.bias[...][None, None]

    def tell(self, tokens: jax.Array) -> jax.Array:
        """Logits [n, T] that each token was replaced."""
        hidden = self.discriminator(self.embed(tokens), tokens != NOTHING)
        return self.replaced(jax.nn.gelu(self.transform(hidden)))[..., 0]


def choose(tokens: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which tokens of each line are masked: MASKED of them, at least one and at most MOST_MASKED.

    Returns:
        Distinct places [n, P], and which count, [n, P] bool.
    """
    length = tokens.shape[-1]
    chance = uniform(keys, jnp.arange(length, dtype=jnp.uint32)[None])
    places = jnp.argsort(jnp.where(tokens != NOTHING, chance, 2), axis=-1)[:, :MOST_MASKED]
    number = jnp.maximum(jnp.round(MASKED * (tokens != NOTHING).sum(-1)), 1)
    return places, jnp.broadcast_to(jnp.arange(places.shape[-1])[None], places.shape) < number[:, None]


def sample(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """A token for each of the logits [n, P, buckets], from their softmax, by the inverse of its distribution."""
    up_to = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    chance = uniform(keys, jnp.arange(logits.shape[1], dtype=jnp.uint32)[None])
    return SPECIAL + jnp.minimum((up_to <= chance[..., None]).sum(-1), logits.shape[-1] - 1)


def create(config, system: System, knowledge=None) -> Method:
    """Build LogELECTRA; uses `config.compared.logelectra`. Parameters serve any dataset."""
    del knowledge
    settings = config.compared.logelectra
    init, network = functional(Network, settings)

    def loss(params, batch: Batch, keys, gather):
        model = network(params)
        rows, there = units.draw(keys, batch, settings.drawn)
        tokens, there = batch.shared["tokens"][rows.reshape(-1)], there.reshape(-1, 1)
        own = window_keys(words(keys), batch.window_mask.shape[1])[:, :, None]
        own = fold(jnp.broadcast_to(own, (*rows.shape, 2)), jnp.arange(settings.drawn, dtype=jnp.uint32)[None, None])
        own = own.reshape(-1, 2)
        places, masked = choose(tokens, fold(own, PLACES))
        masked &= there
        hidden = jnp.take_along_axis(tokens, places, axis=-1)

        def put(values):
            return jnp.put_along_axis(tokens, places, jnp.where(masked, values, hidden), axis=-1, inplace=False)

        logits = model.fill_in(put(jnp.full_like(hidden, MASK)), places)
        unlikely = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(hidden - SPECIAL, 0))
        corrupted = put(jax.lax.stop_gradient(sample(logits, fold(own, SAMPLES))))
        judged = (tokens != NOTHING) & there
        wrong = optax.sigmoid_binary_cross_entropy(model.tell(corrupted), (corrupted != tokens).astype(jnp.float32))
        sums = {
            "masked tokens": jnp.where(masked, unlikely, 0).sum(),
            "replaced tokens": REPLACED * jnp.where(judged, wrong, 0).sum(),
        }
        return sums, {"masked tokens": masked.sum(), "replaced tokens": judged.sum()}, {}

    def score(params, batch: Batch, keys=None) -> WindowScores:
        del keys
        model = network(params)

        def of_line(line):
            there = line["tokens"] != NOTHING
            replaced = jnp.where(there, jax.nn.sigmoid(model.tell(line["tokens"][None])[0]), 0)
            worst, many = jax.lax.top_k(replaced, min(WORST, len(replaced)))[0], there.sum()
            return jnp.stack([replaced.sum() / jnp.maximum(many, 1), worst.sum() / jnp.clip(many, 1, WORST)])

        lines = units.judge(of_line, batch.shared, PIECE_OF_LINES, units.num_used(batch))
        own = jnp.concatenate([units.of_windows(lines[:, 0], batch), units.of_windows(lines[:, 1], batch)[..., :1]], -1)
        return WindowScores(own, worst_lines(lines[:, 0], batch, len(system.service_names)))

    names = (*units.SCORE_NAMES, f"top, {WORST} worst tokens")
    needs = Needs(alone=True, inputs=units.reader(lister(settings.buckets, settings.tokens)))
    return Method(init, loss, score, score_names=names, needs=needs)


def worst_lines(scores: jax.Array, batch: Batch, num_services: int) -> jax.Array:
    """[B, L, U] the highest score of each service's lines [V]; 0 where it has none."""
    unit = batch.inputs["unit"]
    there = (unit >= 0) & batch.window_mask[..., None]
    rows = jnp.maximum(unit, 0)
    of_service = jax.nn.one_hot(batch.shared["service"][rows], num_services)
    return (jnp.where(there, scores[rows], 0)[..., None] * of_service).max(-2)
