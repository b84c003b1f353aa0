"""What both sides start from, as one .npz: windows in the order that method A keeps nodes, weights, and expectations.

Written by the JAX side (`ssad_jax.benchmarking.peers`), read by the PyTorch side. Names of arrays:

    window/{context,signal,senders,receivers,n_edge,start_tick}   [W, ...]; edges from n_edge on are padding
    system/{identity,kind,node_mask,signal_mask,unit,group}        [n, ...]; unit: masked together, group: scored so
    sequences [Q, S], runs [R, L], keys [P, d_k]                   training examples, scoring runs, prototype keys
    param/...                                                      weights, by their path in the tree of parameters
    check/{index,masked,reconstruction,contrastive,knowledge,gradient_norm,residual,temporal,prior}
"""

import json
from pathlib import Path

import numpy as np


def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("settings")))
