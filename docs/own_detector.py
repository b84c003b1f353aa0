"""A detector of one's own in one file: an autoencoder of each window's signals, its error the score.

python -m ssad_jax.main --config=configs/smoke.py --config.method=docs.own_detector
python -m ssad_jax.compare --config=configs/smoke.py --detectors=docs.own_detector,knn,random
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssad_jax.batching import Needs
from ssad_jax.methods.interface import Method, WindowScores
from ssad_jax.prepared import CONTEXT_DIM

HIDDEN = 16


def create(config, system, knowledge=None) -> Method:
    node, channel = np.nonzero(system.evidence & system.node_mask[:, None])  # the C signals that speak of faults
    of_service = jax.nn.one_hot(system.service[node], len(system.service_names))  # [C, U]; none: a row of zeros

    def init(key):
        first, second = jax.random.split(key)
        return {"code": 0.1 * jax.random.normal(first, (len(node), HIDDEN)),
                "decode": 0.1 * jax.random.normal(second, (HIDDEN, len(node)))}  # fmt: skip

    def errors(params, batch):  # [B, L, C]
        x = jnp.clip(batch.graphs.nodes[:, :, node, CONTEXT_DIM + channel], -6, 6)
        return jnp.square(x - jnp.tanh(x @ params["code"]) @ params["decode"])

    def loss(params, batch, keys, gather):  # sums and counts of this device's windows; `keys` for what is drawn
        each = jnp.where(batch.window_mask, errors(params, batch).mean(-1), 0)
        return {"reconstruction": each.sum()}, {"reconstruction": batch.window_mask.sum()}, {}

    def score(params, batch, keys=None):
        each = errors(params, batch)
        return WindowScores(jnp.stack([each.mean(-1), each.max(-1)], axis=-1), each @ of_service)

    return Method(init, loss, score, score_names=("mean", "worst signal"), needs=Needs(alone=True), bound=True)
