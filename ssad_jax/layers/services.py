"""Services as a batch: which signals speak of which service, and a vector for each signal.

A signal is a channel of a node. A service has those of its own nodes and, in two roles, those of its dependencies: a
call speaks of the callee that answers it and of the caller that makes it. What a signal adds to its service's input is
its value times a vector that is computed from the node's identity, so that nothing learned belongs to one system.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_prep.errors import InputError
from ssad_jax.prepared import IDENTITY_DIM, NODE_KINDS, SIGNAL_DIM, System

MODALITIES = ("traces", "logs", "metrics")
MODALITY_OF_KIND = {"service": "traces", "dependency": "traces", "log": "logs", "event": "logs", "metric": "metrics"}
ROLES = (*NODE_KINDS, "dependency, as caller")
INPUT_CLIP = 6.0  # signals are in units of their normal scale


def first_nodes(system: System) -> np.ndarray:
    """[U] the node that stands for each service: of the kind service where it has such a node, whatever their order.

    Raises:
        InputError: a service has no node at all.
    """
    real = np.flatnonzero(system.node_mask & (system.service >= 0))
    real = real[np.lexsort((system.unit_hash[real], system.kind[real]))]  # services come first
    named, place = np.unique(system.service[real], return_index=True)
    if len(named) < len(system.service_names):
        missing = [name for i, name in enumerate(system.service_names) if i not in named]
        raise InputError(f"no node speaks of {', '.join(missing)}; prepare the data again")
    return real[place]


@dataclasses.dataclass(frozen=True)
class Services:
    """Static. C signals, U services; a service has at most P of the signals, in its slots."""

    node: np.ndarray  # [C] int: node slot of the dataset
    channel: np.ndarray  # [C] int
    modality: np.ndarray  # [C] int: index into MODALITIES
    identity: np.ndarray  # [C + 1, 96] float32: of each signal's node; the last is zero
    own: np.ndarray  # [U, 96] float32: identity of each service's first node
    slots: np.ndarray  # [U, P] int: the signals of each service; C in empty slots
    role: np.ndarray  # [U, P] int: index into ROLES
    calls: np.ndarray  # [D, 2] int: pairs of services of which one calls the other, each once
    is_called: np.ndarray  # [U] bool
    lag: np.ndarray  # [U] int: ticks from where a call to the service begins to where it does

    @classmethod
    def of(cls, system: System, evidence: bool) -> "Services":
        """The signals that speak of faults (`evidence`), or all."""
        channels = (system.evidence if evidence else system.signal_mask) & system.node_mask[:, None]
        node, channel = np.nonzero(channels & (system.service >= 0)[:, None])
        kind, caller = system.kind[node].astype(int), system.caller[node]
        number = np.arange(len(node))
        as_caller = (caller >= 0) & (caller != system.service[node])
        signal = np.concatenate([number, number[as_caller]])
        service = np.concatenate([system.service[node], caller[as_caller]])
        role = np.concatenate([kind, np.full(as_caller.sum(), len(NODE_KINDS))])
        count = np.bincount(service, minlength=len(system.service_names))
        shape = len(count), max(1, count.max(initial=0))
        slots, roles = np.full(shape, len(node)), np.zeros(shape, int)
        order = np.argsort(service, kind="stable")
        place = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
        slots[service[order], place], roles[service[order], place] = signal[order], role[order]
        identity = np.concatenate([system.identity[node], np.zeros((1, IDENTITY_DIM), np.float32)])
        modality = np.array([MODALITIES.index(MODALITY_OF_KIND[kind]) for kind in NODE_KINDS])[kind]
        call = np.flatnonzero(system.node_mask & (system.caller >= 0) & (system.caller != system.service))
        ends = np.sort(np.stack([system.caller[call], system.service[call]], 1), axis=1).reshape(-1, 2)
        is_called, lag = np.zeros(len(count), bool), np.zeros(len(count), int)
        is_called[system.service[call]] = True
        np.maximum.at(lag, system.service[call], system.lag[call])
        return cls(
            node, channel, modality, identity, system.identity[first_nodes(system)], slots, roles,
            np.unique(ends, axis=0).astype(int), is_called, lag,
        )

    @property
    def num_services(self) -> int:
        return len(self.slots)

    def gather(self, signals: jax.Array) -> jax.Array:
        """[..., C] -> [..., U, P], 0 in empty slots."""
        return jnp.pad(signals, [(0, 0)] * (signals.ndim - 1) + [(0, 1)])[..., self.slots]


class SignalVectors(nnx.Module):
    """v = I W_role + b_role,channel: a vector for each signal of each service; and w = I W, one for each service."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        scale = (2 * features) ** -0.5  # identities have unit length
        shape = len(ROLES), IDENTITY_DIM, features
        self.of_identity = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        self.of_channel = nnx.Param(scale * jax.random.normal(rngs.params(), (len(ROLES), SIGNAL_DIM, features)))
        self.of_service = nnx.Param(features**-0.5 * jax.random.normal(rngs.params(), (IDENTITY_DIM, features)))

    def __call__(self, services: Services) -> tuple[jax.Array, jax.Array]:
        """[U, P, features] and [U, features], each vector of about unit length."""
        table = jnp.einsum("ci,rif->crf", services.identity, self.of_identity[...])
        channel = np.append(services.channel, 0)[services.slots]
        of_signals = table[services.slots, services.role] + self.of_channel[...][services.role, channel]
        return of_signals, services.own @ self.of_service[...]


@jax.named_scope("projection")
def embed(values: jax.Array, vectors: jax.Array) -> jax.Array:
    """[..., U, P] signals times their vectors [U, P, F], added up -> [..., U, F]."""
    return jnp.einsum("...up,upf->...uf", jnp.clip(values, -INPUT_CLIP, INPUT_CLIP), vectors)
