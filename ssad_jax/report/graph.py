"""Who calls whom, drawn in layers from callers to callees, with the suspects of one alarm coloured by blame."""

import dataclasses

import numpy as np
from markupsafe import Markup

from ssad_jax.prepared import NODE_KINDS, System
from ssad_jax.report import heat, svg
from ssad_jax.report.text import clip_middle, number, percent, plain, quantity

WIDTH, BOX, ROW = 1180.0, 22.0, 32.0
LOOP = 26.0  # room at the right for calls within the last layer
MOST_LAYERS, MOST_SERVICES = 6, 48
WIDEST, LETTER = 168.0, 6.2  # pixels: a box, a letter in it
SWEEPS = 12


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where services stand, for every drawing of one system."""

    layers: list[list[int]]  # services (indices) from callers to callees, top to bottom
    alone: list[int]  # services that neither call nor are called
    edges: list[tuple[int, int]]  # caller, callee
    left_out: int  # services that do not fit


def call_edges(system: System) -> list[tuple[int, int]]:
    """Caller and callee of every dependency, each pair of services once."""
    of_kind = np.flatnonzero(system.node_mask & (system.kind == NODE_KINDS.index("dependency")))
    pairs = {(int(system.caller[n]), int(system.service[n])) for n in of_kind}
    return sorted((a, b) for a, b in pairs if a >= 0 and b >= 0 and a != b)


def arrange(system: System, first: list[str]) -> Layout:
    """Layers by longest path from the callers, then fewer crossings by barycentres; the same for equal input.

    Args:
        first: names of services that must be there where not all fit (suspects); then their neighbours, then others
            by number of calls.
    """
    edges, count = call_edges(system), len(system.service_names)
    shown = _choose(system, edges, first)
    edges = [(a, b) for a, b in edges if a in shown and b in shown]
    linked = {s for edge in edges for s in edge}
    level = _levels(sorted(linked), edges)
    layers = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for s in sorted(linked, key=lambda s: system.service_names[s]):
        layers[level[s]].append(s)
    _untangle(layers, edges)
    alone = sorted(shown - linked, key=lambda s: system.service_names[s])
    return Layout(layers, alone, edges, count - len(shown))


def _choose(system: System, edges, first: list[str]) -> set[int]:
    degree = np.zeros(len(system.service_names), int)
    for edge in edges:
        degree[list(edge)] += 1
    wanted = {i for i, name in enumerate(system.service_names) if name in set(first)}
    near = {s for edge in edges if set(edge) & wanted for s in edge}
    order = sorted(range(len(degree)), key=lambda s: (s not in wanted, s not in near, -degree[s], s))
    return set(order[:MOST_SERVICES])


def _levels(services: list[int], edges) -> dict[int, int]:
    """Longest path from the callers; calls that would close a circle are left out of it."""
    callees = {s: [b for a, b in edges if a == s] for s in services}
    called = {b for _, b in edges}
    state, order, back = dict.fromkeys(services, 0), [], set()
    for root in sorted(services, key=lambda s: (s in called, s)):
        stack = [(root, iter(callees[root]))] if not state[root] else []
        state[root] = state[root] or 1
        while stack:
            here, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                state[here] = 2
                order.append(here)
                stack.pop()
            elif state[following] == 1:
                back.add((here, following))
            elif state[following] == 0:
                state[following] = 1
                stack.append((following, iter(callees[following])))
    level = dict.fromkeys(services, 0)
    for s in reversed(order):
        for callee in callees[s]:
            if (s, callee) not in back:
                level[callee] = max(level[callee], min(level[s] + 1, MOST_LAYERS - 1))
    return level


def _untangle(layers: list[list[int]], edges) -> None:
    """Order each layer by the mean height of its neighbours in other layers, forth and back a few times."""
    beside = {s: [] for layer in layers for s in layer}
    for a, b in edges:
        beside[a].append(b)
        beside[b].append(a)
    for sweep in range(SWEEPS):
        height = {s: (i + 0.5) / len(layer) for layer in layers for i, s in enumerate(layer)}
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            mean = {s: float(np.mean([height[n] for n in beside[s]])) for s in layer}
            layer.sort(key=lambda s: (round(mean[s], 9), s))
            height |= {s: (i + 0.5) / len(layer) for i, s in enumerate(layer)}


def draw(layout: Layout, system: System, alarm: dict | None, top: float) -> Markup:
    """The graph with the suspects of an alert record; `top`: the blame where the colours end."""
    suspects = {s["service"]: (rank, s) for rank, s in enumerate((alarm or {}).get("suspects", []), 1)}
    deviating = _deviating_calls(system, alarm)
    pitch = (WIDTH - LOOP) / max(len(layout.layers), 1)
    box = min(WIDEST, pitch - 34)
    tallest = max(map(len, layout.layers), default=0)
    place = {}
    for i, layer in enumerate(layout.layers):
        step = ROW * min(tallest / len(layer), 2.2)
        offset = (ROW * tallest - step * len(layer)) / 2
        for j, s in enumerate(layer):
            place[s] = (pitch * i + (pitch - box) / 2, offset + step * (j + 0.5))
    height = ROW * tallest
    columns = max(int(WIDTH // (box + 14)), 1)
    for j, s in enumerate(layout.alone):
        place[s] = (7 + (j % columns) * (box + 14), height + 34 + ROW * (j // columns))
    bottom = height + (34 + ROW * -(-len(layout.alone) // columns) if layout.alone else 6)
    parts = [_edge(place, box, edge, deviating.get(edge)) for edge in layout.edges if edge not in deviating]
    parts += [_edge(place, box, edge, deviating[edge]) for edge in layout.edges if edge in deviating]
    if layout.alone:
        parts.append(svg.label(7, height + 13, "no calls seen in training time:", class_="tick"))
    parts += [_box(place[s], box, system.service_names[s], suspects.get(system.service_names[s]), top) for s in place]
    return svg.picture(WIDTH, bottom, "Services and their calls, suspects coloured", parts, "graph")


def _deviating_calls(system: System, alarm: dict | None) -> dict[tuple[int, int], list[str]]:
    """(caller, callee) -> what deviates, in words."""
    out = {}
    for d in (alarm or {}).get("deviations", []):
        node = d["node"]
        if d["kind"] == "dependency" and 0 <= node < len(system.caller):
            told = f"{d['channel']}: {quantity(d['observed'], d['unit'])}, expected {number(d['expected'])}"
            out.setdefault((int(system.caller[node]), int(system.service[node])), []).append(told)
    return out


def _edge(place, box: float, edge: tuple[int, int], deviation: list[str] | None) -> Markup:
    (x1, y1), (x2, y2) = place[edge[0]], place[edge[1]]
    start, end = x1 + box, x2 - 2
    if x2 > x1:
        bend = max(18.0, (end - start) / 2)
        path = f"M{start:.1f} {y1:.1f}C{start + bend:.1f} {y1:.1f} {end - bend:.1f} {y2:.1f} {end:.1f} {y2:.1f}"
    else:  # to the same layer, or back: around the right-hand side
        end, out = x2 + box + 2, max(x1, x2) + box + LOOP
        path = f"M{start:.1f} {y1:.1f}C{out:.1f} {y1:.1f} {out:.1f} {y2:.1f} {end:.1f} {y2:.1f}"
    told = [svg.tooltip("; ".join(deviation))] if deviation else []
    backwards = x2 <= x1
    tip = f"M{end:.1f} {y2:.1f}l{5 if backwards else -5} -3v6z"
    return svg.element(
        "g", *told, svg.element("path", d=path, class_="line"), svg.element("path", d=tip, class_="tip"),
        class_="call deviating" if deviation else "call",
    )  # fmt: skip


def _box(at: tuple[float, float], width: float, name: str, suspect, top: float) -> Markup:
    x, y = at
    share = float(heat.blame_share(suspect[1]["blame"], top)) if suspect else 0.0
    ranked = bool(suspect) and suspect[0] <= 3 and (share > 0 or suspect[0] == 1)
    letters = int((width - 10 - (18 if ranked else 0)) / LETTER)
    told = plain(name)
    if suspect:
        told += f": suspect {suspect[0]}, blame {number(suspect[1]['blame'])}, {percent(suspect[1].get('share'))}"
    parts = [
        svg.tooltip(told),
        svg.element(
            "rect", x=x, y=y - BOX / 2, width=width, height=BOX, rx=4, fill=heat.colour(share),
            class_="box ranked" if ranked else "box",
        ),
        svg.label(x + 7, y + 3.8, clip_middle(plain(name), letters), class_=heat.ink_on(share)),
    ]  # fmt: skip
    if ranked:
        parts.append(svg.label(x + width - 6, y + 3.8, f"{suspect[0]}", class_=f"rank {heat.ink_on(share)}"))
    return svg.element("g", *parts)
