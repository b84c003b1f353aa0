"""Method A's network in PyTorch; how it propagates along edges is a choice of the variant."""

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

INPUT_CLIP, TARGET_CLIP = 6.0, 20.0
EPSILON = 1e-3


class System:
    """Static facts of the nodes, on the device."""

    def __init__(self, arrays, device):
        def take(name, dtype=None):
            return torch.as_tensor(arrays[f"system/{name}"], dtype=dtype, device=device)

        self.identity, self.node_mask = take("identity"), take("node_mask")
        self.kind, self.unit, self.group = (take(n, torch.int64) for n in ("kind", "unit", "group"))
        self.signal_mask = take("signal_mask")
        self.num_units = int(self.unit.max()) + 1
        kinds = arrays["system/kind"]
        cuts = [0, *(i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]), len(kinds)]
        self.slices = [(int(kinds[a]), a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
        self.weight = self.node_mask.float() / self.node_mask.sum().clamp(min=1)


class KindLinear(nn.Module):
    """A kernel and a bias for each kind of node."""

    def __init__(self, kinds, in_features, out_features, bias=True):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(kinds, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(kinds, out_features)) if bias else None

    def forward(self, x, system):
        parts = [x[..., a:b, :] @ self.kernel[k] for k, a, b in system.slices]
        y = torch.cat(parts, dim=-2)
        return y if self.bias is None else y + self.bias[system.kind]


class Edges:
    """The edges of G windows of n nodes, as the chosen propagation takes them.

    Args:
        senders, receivers: [G, E], weight: [G, E]; 0 at padding.
    """

    def __init__(self, senders, receivers, weight, num_nodes, style, node_mask):
        self.style, self.num_nodes = style, num_nodes
        graphs = len(senders)
        if style == "dense":
            matrix = torch.zeros(graphs, num_nodes * num_nodes, device=weight.device)
            matrix.scatter_add_(1, receivers * num_nodes + senders, weight)
            matrix = matrix.view(graphs, num_nodes, num_nodes) + torch.diag(node_mask.float())
            scale = matrix.sum(-1).clamp(min=1).rsqrt()
            self.matrix = scale[..., None] * matrix * scale[:, None, :]
            return
        offset = num_nodes * torch.arange(graphs, device=senders.device)[:, None]
        index = torch.stack([(senders + offset).reshape(-1), (receivers + offset).reshape(-1)])
        weight = weight.reshape(-1)
        self.index, self.weight, self.total = index, weight, graphs * num_nodes
        if style == "padded":  # shapes that do not vary, for a compiler: padding edges stay, with weight 0
            loops = torch.arange(self.total, device=weight.device)
            self.index = torch.cat([index, loops.expand(2, -1)], 1)
            weight = torch.cat([weight, node_mask.float().repeat(graphs)])
            degree = torch.zeros(self.total, device=weight.device).scatter_add_(0, self.index[1], weight)
            scale = degree.clamp(min=1).rsqrt()
            self.weight = scale[self.index[0]] * weight * scale[self.index[1]]
            return
        kept = weight > 0  # a user keeps no padding, and lets shapes vary
        self.index, self.weight = index[:, kept], weight[kept]
        if style in ("shared_norm", "csr"):
            self.index, self.weight = gcn_norm(self.index, self.weight, self.total, add_self_loops=True)
        if style == "csr":
            order = torch.argsort(self.index[1])
            rows, columns = self.index[1][order], self.index[0][order]
            pointers = torch.zeros(self.total + 1, dtype=torch.int64, device=rows.device)
            pointers[1:] = torch.bincount(rows, minlength=self.total).cumsum(0)
            size = (self.total, self.total)
            self.matrix = torch.sparse_csr_tensor(pointers, columns, self.weight[order], size)


class Propagate(GCNConv):
    """GCNConv: D^-1/2 (A + I) D^-1/2 (x W) + b, by one of the styles of `Edges`."""

    def forward(self, x, edges):
        shape = x.shape
        if edges.style == "dense":
            x = self.lin(x)
            return torch.bmm(edges.matrix.to(x.dtype), x) + self.bias
        x = x.reshape(-1, shape[-1])
        if edges.style == "csr":
            out = torch.sparse.mm(edges.matrix, self.lin(x).float()) + self.bias
        else:
            self.normalize = edges.style == "filtered"
            out = super().forward(x, edges.index, edges.weight)
        return out.view(*shape[:-1], -1)


class Encoder(nn.Module):
    def __init__(self, s):
        super().__init__()
        kinds, hidden = s["kinds"], s["hidden"]
        self.of_identity = KindLinear(kinds, s["identity_dim"], hidden)
        self.of_attributes = KindLinear(kinds, 2 * s["signal_dim"], hidden, bias=False)
        self.mask_vector = nn.Parameter(torch.empty(kinds, s["signal_dim"]))
        self.layers = nn.ModuleList([Propagate(hidden, hidden) for _ in range(s["layers"])])
        self.dropout = s["dropout"]

    def forward(self, context, signal, masked, edges, system):
        """context, signal [G, n, 16], masked [G, n] or None -> H [G, n, H], g [G, H]."""
        context, signal = context.clamp(-INPUT_CLIP, INPUT_CLIP), signal.clamp(-INPUT_CLIP, INPUT_CLIP)
        if masked is not None:
            signal = torch.where(masked[..., None], self.mask_vector[system.kind], signal)
        h = self.of_attributes(torch.cat([context, signal], -1), system)
        h = F.relu(h + self.of_identity(system.identity, system))
        for layer in self.layers:
            h = F.relu(layer(F.dropout(h, self.dropout, self.training), edges))
        return h, torch.einsum("gnh,n->gh", h.float(), system.weight)


class Decoder(nn.Module):
    def __init__(self, s):
        super().__init__()
        hidden, width, signal, kinds = s["hidden"], s["decoder_width"], s["signal_dim"], s["kinds"]
        self.of_nodes = nn.Linear(hidden, width)
        self.of_state = nn.Linear(hidden, width, bias=False)
        self.of_identity = nn.Linear(s["identity_dim"], width, bias=False)
        self.of_context = KindLinear(kinds, signal, width, bias=False)
        self.out = KindLinear(kinds, width, signal)
        self.skip_in = nn.Parameter(torch.empty(kinds, signal, s["skip_width"]))
        self.skip_out = nn.Parameter(torch.empty(kinds, s["skip_width"], signal))

    def masked(self, h, state, context, masked, system):
        """What `forward` predicts of the masked nodes [G, n] alone, kind by kind: [rows, 16], and the rows' places."""
        of_identity, of_state = self.of_identity(system.identity), self.of_state(state)
        skip = self.skip_in @ self.skip_out + torch.eye(context.shape[-1], device=h.device)
        predicted, places = [], []
        for kind, first, end in system.slices:
            window, node = masked[:, first:end].nonzero(as_tuple=True)
            node = node + first
            seen = context[window, node]
            hidden = self.of_nodes(h[window, node]) + seen.clamp(-INPUT_CLIP, INPUT_CLIP) @ self.of_context.kernel[kind]
            hidden = F.relu(hidden + of_state[window] + of_identity[node])
            through = seen.clamp(-TARGET_CLIP, TARGET_CLIP) @ skip[kind]
            predicted.append((hidden @ self.out.kernel[kind] + self.out.bias[kind]).float() + through)
            places.append((window, node))
        window, node = (torch.cat(x) for x in zip(*places, strict=True))
        return torch.cat(predicted), window, node

    def forward(self, h, state, context, system):
        """h [G, n, H], state [G, H], context [G, n, 16] -> [G, n, 16]."""
        expectation, seen = context.clamp(-TARGET_CLIP, TARGET_CLIP), context.clamp(-INPUT_CLIP, INPUT_CLIP)
        hidden = self.of_nodes(h) + self.of_context(seen, system) + self.of_state(state)[:, None]
        hidden = F.relu(hidden + self.of_identity(system.identity))
        skip = self.skip_in @ self.skip_out + torch.eye(expectation.shape[-1], device=h.device)
        through = torch.cat([expectation[:, a:b] @ skip[k] for k, a, b in system.slices], dim=-2)
        return self.out(hidden, system).float() + through


class Memory(nn.Module):
    def __init__(self, s):
        super().__init__()
        hidden = s["hidden"]
        self.of_keys = nn.Parameter(torch.empty(s["key_dim"], hidden))
        self.delta = nn.Parameter(torch.empty(s["prototypes"], hidden))
        self.query, self.key = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.gate = nn.Linear(2 * hidden, hidden)

    def forward(self, s, keys):
        """s [..., H] -> u [..., H], prototypes [P, H]."""
        memory = keys @ self.of_keys + self.delta
        attention = torch.softmax(self.query(s) @ self.key(memory).T * s.shape[-1] ** -0.5, -1)
        q = attention @ memory
        gate = torch.sigmoid(self.gate(torch.cat([s, q], -1)))
        return gate * s + (1 - gate) * q, memory


class Network(nn.Module):
    def __init__(self, settings):
        super().__init__()
        hidden = settings["hidden"]
        self.encoder, self.decoder, self.memory = Encoder(settings), Decoder(settings), Memory(settings)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.embedding = nn.Linear(hidden, settings["embedding_dim"])

    def states(self, g, batch):
        """g [B * S, H] -> s [B * S, H]."""
        return self.gru(g.view(batch, -1, g.shape[-1]))[0].reshape(len(g), -1)

    def load(self, arrays):
        """Weights under the names of the JAX tree."""
        given = {name.removeprefix("param/"): torch.as_tensor(a) for name, a in arrays.items() if name[:6] == "param/"}
        own = {}
        for name, value in given.items():
            parts = name.split("/")
            if parts[0] == "temporal":
                continue
            if parts[1].startswith("layer_"):
                parts[1:2] = ["layers", parts[1].removeprefix("layer_")] + (["lin"] if parts[2] == "kernel" else [])
            linear = parts[-1] == "kernel" and value.ndim == 2
            own[".".join([*parts[:-1], "weight"] if linear else parts)] = value.T if linear else value
        candidate = given["temporal/candidate_bias"]
        own |= {
            "gru.weight_ih_l0": given["temporal/of_input/kernel"].T, "gru.bias_ih_l0": given["temporal/of_input/bias"],
            "gru.weight_hh_l0": given["temporal/of_state"].T,
            "gru.bias_hh_l0": torch.cat([torch.zeros(2 * len(candidate)), candidate]),
        }  # fmt: skip
        self.load_state_dict(own)


def normalise(x):
    return x * (x * x).sum(-1, keepdim=True).clamp(min=EPSILON**2).rsqrt()
