"""Method A's raw score terms in PyTorch: what `ssad_jax.methods.knowledge_ssl.score` computes."""

import torch

from benchmarks.peers.model import TARGET_CLIP, Edges, normalise


def score_windows(network, system, windows, rows, before, u_before, style, settings):
    """Windows `rows` [L] of one run from the GRU state [1, H] and the state u before it (None: none).

    Returns:
        residual [L, n, 16], temporal [L], prior [L], the mean squared error over one random mask [L], and both states
        for the next window.
    """
    context, signal = windows.context[rows], windows.signal[rows]
    count, n = signal.shape[:2]
    edges = Edges(windows.senders[rows], windows.receivers[rows], windows.weight(rows), n, style, system.node_mask)
    _, g = network.encoder(context, signal, None, edges, system)
    clean, last = network.gru(g[None], None if before is None else before[None])
    start = torch.zeros_like(clean[:, :1]) if before is None else before[None]
    previous = torch.cat([start, clean[:, :-1]], 1)[0]
    target = signal.clamp(-TARGET_CLIP, TARGET_CLIP)
    residual = torch.zeros_like(signal)

    def errors(masked):
        h, g = network.encoder(context, signal, masked, edges, system)
        state = network.gru(g[:, None], previous[None].contiguous())[0][:, 0]  # one step of every window
        return target - network.decoder(h, state, context, system)

    for group in range(settings["groups"]):
        masked = ((system.group == group) & system.node_mask).expand(count, n)
        residual = torch.where(masked[..., None] & system.signal_mask, errors(masked), residual)
    masked = torch.rand(count, n, device=signal.device) < settings["mask_ratio"]
    entries = (masked & system.node_mask)[..., None] & system.signal_mask
    paper = torch.where(entries, errors(masked & system.node_mask) ** 2, 0).sum((1, 2)) / entries.sum((1, 2)).clamp(1)
    u, memory = network.memory(clean[0], windows.keys)
    nearest = (normalise(u) @ normalise(memory).T).argmax(-1)
    first = torch.full_like(u[:1], float("nan")) if u_before is None else u_before
    temporal = 1 - (normalise(u) * normalise(torch.cat([first, u[:-1]]))).sum(-1)
    return residual, temporal, ((u - memory[nearest]) ** 2).sum(-1), paper, last[0], u[-1:]
