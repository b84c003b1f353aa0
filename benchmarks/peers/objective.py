"""Method A's views and losses in PyTorch: what `ssad_jax.methods.knowledge_ssl.loss` computes."""

import torch

from benchmarks.peers.model import TARGET_CLIP, Edges, normalise

STATE_SHARE = 0.25
JITTER_PROBABILITY = 0.2


class Windows:
    """All windows on the device; `take` gathers some of them."""

    def __init__(self, arrays, device):
        def put(name, dtype=None):
            return torch.as_tensor(arrays[name], dtype=dtype, device=device)

        self.context, self.signal = put("window/context"), put("window/signal")
        self.senders, self.receivers = put("window/senders", torch.int64), put("window/receivers", torch.int64)
        self.n_edge, self.start_tick = put("window/n_edge", torch.int64), put("window/start_tick", torch.int64)
        self.sequences = put("sequences", torch.int64)
        self.runs = put("runs", torch.int64)
        self.keys = put("keys")

    def weight(self, rows):
        """[G, E]: 1 at edges, 0 at padding."""
        edge = torch.arange(self.senders.shape[1], device=rows.device)
        return (edge < self.n_edge[rows][:, None]).float()


def random_mask(system, graphs, ratio):
    """[G, n]: each unit of nodes with probability `ratio`."""
    drawn = torch.rand(graphs, system.num_units, device=system.unit.device) < ratio
    return drawn[:, system.unit.clamp(min=0)] & system.node_mask


def anchor_and_positive(network, system, windows, index, masked, style, settings, perturb, one_batch):
    """Both views of the sequences `index` [B] encoded: H of the anchor [G, n, H], s of both [G, H]; G = B * S."""
    rows = windows.sequences[index]
    length = rows.shape[1]
    other = rows
    if perturb and settings["jitter"]:
        step = torch.randint(0, 2, (len(rows), 1), device=rows.device) * 2 - 1
        step = torch.where(torch.rand(len(rows), 1, device=rows.device) < JITTER_PROBABILITY, step, 0)
        source = torch.arange(length, device=rows.device) + step
        inside = (source >= 0) & (source < length)
        own = torch.arange(length, device=rows.device).expand_as(source)
        other = rows.gather(1, torch.where(inside, source, own))
    rows, other = rows.reshape(-1), other.reshape(-1)
    signal, weight = windows.signal[other], windows.weight(other)
    senders, receivers = windows.senders[other], windows.receivers[other]
    if perturb:
        keep = torch.rand(signal.shape, device=signal.device) >= settings["attribute_drop"]
        signal = signal * keep
        pairs = weight.view(len(weight), -1, 2)  # the two directions of an edge lie side by side
        weight = (pairs * (torch.rand_like(pairs[..., :1]) >= settings["edge_drop"])).view_as(weight)
    n = signal.shape[1]

    def edges(s, r, w):
        return Edges(s, r, w, n, style, system.node_mask)

    own = windows.senders[rows], windows.receivers[rows], windows.weight(rows)
    if one_batch:
        both = edges(*(torch.cat(pair) for pair in zip(own, (senders, receivers, weight), strict=True)))
        hidden_rows = torch.cat([masked, torch.zeros_like(masked)])
        context = torch.cat([windows.context[rows], windows.context[other]])
        h, g = network.encoder(context, torch.cat([windows.signal[rows], signal]), hidden_rows, both, system)
        states = network.states(g, 2 * len(index))
        return rows, h[: len(rows)], *states.split(len(rows))
    h, g = network.encoder(windows.context[rows], windows.signal[rows], masked, edges(*own), system)
    _, g_other = network.encoder(windows.context[other], signal, None, edges(senders, receivers, weight), system)
    return rows, h, network.states(g, len(index)), network.states(g_other, len(index))


def losses(network, system, windows, index, masked, style, settings, perturb=True, one_batch=False,
           fixed_shapes=False):  # fmt: skip
    """The three terms, unweighted, for the sequences `index` [B] with nodes `masked` [B * S, n]."""
    rows, h, state, other = anchor_and_positive(
        network, system, windows, index, masked, style, settings, perturb, one_batch
    )
    u, memory = network.memory(state, windows.keys)
    u_other, _ = network.memory(other, windows.keys)
    context, target = windows.context[rows], windows.signal[rows].clamp(-TARGET_CLIP, TARGET_CLIP)
    if fixed_shapes:  # for a compiler: predict all nodes
        entries = masked[..., None] & system.signal_mask
        prediction = network.decoder(h, state, context, system)
    else:
        prediction, window, node = network.decoder.masked(h, state, context, masked, system)
        entries, target = system.signal_mask[node], target[window, node]
    reconstruction = torch.where(entries, (target - prediction) ** 2, 0).sum() / entries.sum().clamp(min=1)
    z, z_other = normalise(network.embedding(u).float()), normalise(network.embedding(u_other).float())
    tick = windows.start_tick[rows]
    apart = settings["apart"] + (settings["jitter_ticks"] if perturb else 0)
    negative = (tick[:, None] - tick[None]).abs() >= apart
    contrast = info_nce(z, z_other, negative, settings["temperature"])
    similarity = normalise(u) @ normalise(memory).T
    assigned = memory[(similarity - similarity.mean(0)).argmax(-1)]
    pulled = STATE_SHARE * u + (1 - STATE_SHARE) * u.detach()
    knowledge = ((pulled - assigned) ** 2).sum(-1).mean()
    return {"reconstruction": reconstruction, "contrastive": contrast, "knowledge": knowledge}


def info_nce(x, other, negative, temperature):
    own = (x * other).sum(-1) / temperature

    def one_way(a, b):
        logits = (a @ b.T / temperature).masked_fill(~negative, float("-inf"))
        return torch.logsumexp(torch.cat([own[:, None], logits], 1), 1) - own

    counted = negative.any(1)
    total = torch.where(counted, 0.5 * (one_way(x, other) + one_way(other, x)), 0).sum()
    return total / counted.sum().clamp(min=1)


def total(terms, settings):
    return sum(settings[f"weight_{name}"] * term for name, term in terms.items())
