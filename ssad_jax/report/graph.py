"""Who calls whom, drawn in layers from callers to callees, with the suspects of one alarm coloured by blame."""

import dataclasses
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from ssad_jax.prepared import NODE_KINDS, System
from ssad_jax.report import heat, svg
from ssad_jax.report.text import clip_middle, number, percent, plain, quantity

WIDTH, BOX, ROW = 1180.0, 22.0, 32.0
LOOP = 26.0  # room at the right for calls within the last layer
PASSING = 9.0  # height that calls take to the same callee where they pass a layer
MOST_LAYERS, MOST_SERVICES = 6, 48
WIDEST, LETTER = 168.0, 5.7  # pixels: a box, a letter in it
SWEEPS = 12


class Slot(NamedTuple):
    """A place in a layer: of a service, or where calls to a service pass the layer on their way."""

    passing: bool
    service: int
    layer: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where services stand, for every drawing of one system."""

    slots: list[list[Slot]]  # from callers to callees, top to bottom
    alone: list[int]  # services that neither call nor are called
    routes: dict[tuple[int, int], list[Slot]]  # (caller, callee) -> the way of the call, both ends included
    left_out: int  # services that do not fit

    @property
    def layers(self) -> list[list[int]]:
        """The services of each layer."""
        return [[slot.service for slot in layer if not slot.passing] for layer in self.slots]


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
    routes = {(a, b): _route(a, b, level) for a, b in edges}
    slots = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for slot in sorted({slot for route in routes.values() for slot in route}):
        slots[slot.layer].append(slot)
    _untangle(slots, routes.values())
    alone = sorted(shown - linked, key=lambda s: system.service_names[s])
    return Layout(slots, alone, routes, count - len(shown))


def _route(caller: int, callee: int, level: dict[int, int]) -> list[Slot]:
    """All calls to one callee share a slot in a layer that they pass."""
    between = [Slot(True, callee, i) for i in range(level[caller] + 1, level[callee])]
    return [Slot(False, caller, level[caller]), *between, Slot(False, callee, level[callee])]


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


def _untangle(slots: list[list[Slot]], routes) -> None:
    """Order each layer by the mean height of its neighbours in other layers, forth and back a few times."""
    beside = {slot: set() for layer in slots for slot in layer}
    for route in routes:
        for a, b in zip(route, route[1:], strict=False):
            beside[a].add(b)
            beside[b].add(a)
    for sweep in range(SWEEPS):
        height = {slot: (i + 0.5) / len(layer) for layer in slots for i, slot in enumerate(layer)}
        for layer in slots if sweep % 2 == 0 else slots[::-1]:
            mean = {slot: float(np.mean([height[n] for n in sorted(beside[slot])])) for slot in layer}
            layer.sort(key=lambda slot: (round(mean[slot], 9), slot))
            height |= {slot: (i + 0.5) / len(layer) for i, slot in enumerate(layer)}


def draw(layout: Layout, system: System, alarm: dict | None, top: float) -> Markup:
    """The graph with the suspects of an alert record; `top`: the blame where the colours end."""
    suspects = {s["service"]: (rank, s) for rank, s in enumerate((alarm or {}).get("suspects", []), 1)}
    deviating = _deviating_calls(system, alarm)
    pitch = (WIDTH - LOOP) / max(len(layout.slots), 1)
    box = min(WIDEST, pitch - 34)
    size = [sum(PASSING if slot.passing else ROW for slot in layer) for layer in layout.slots]
    height = max(size, default=0.0)
    place = {}
    for i, layer in enumerate(layout.slots):
        stretch = min(height / size[i], 1.8)
        y = (height - stretch * size[i]) / 2
        for slot in layer:
            own = stretch * (PASSING if slot.passing else ROW)
            place[slot] = (pitch * i + (pitch - box) / 2, y + own / 2)
            y += own
    columns = max(int(WIDTH // (box + 14)), 1)
    cells = [divmod(j, columns) for j in range(len(layout.alone))]
    alone = {s: (7 + j * (box + 14), height + 34 + ROW * i) for s, (i, j) in zip(layout.alone, cells, strict=True)}
    bottom = height + (34 + ROW * -(-len(alone) // columns) if alone else 6)
    calls = sorted(layout.routes, key=lambda call: call in deviating)  # those that deviate on top
    parts = [_call([place[slot] for slot in layout.routes[call]], box, deviating.get(call)) for call in calls]
    if alone:
        parts.append(svg.label(7, height + 13, "no calls seen in training time:", class_="tick"))
    boxes = {slot.service: at for slot, at in place.items() if not slot.passing} | alone
    for s, at in boxes.items():
        name = system.service_names[s]
        parts.append(_box(at, box, name, suspects.get(name), top))
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


def _call(places: list[tuple[float, float]], box: float, deviation: list[str] | None) -> Markup:
    """A line from the right of the first place through those it passes to the left of the last one."""
    x, y = places[0][0] + box, places[0][1]
    path = [f"M{x:.1f} {y:.1f}"]
    backwards = places[-1][0] <= places[0][0]
    if backwards:  # to the same layer, or back: around the right-hand side
        out, x, y = max(places[0][0], places[-1][0]) + box + LOOP, places[-1][0] + box + 2, places[-1][1]
        path.append(f"C{out:.1f} {places[0][1]:.1f} {out:.1f} {y:.1f} {x:.1f} {y:.1f}")
    else:
        for i, (left, to) in enumerate(places[1:], 1):
            last = i == len(places) - 1
            end = left - 2 if last else left
            bend = (end - x) / 2
            path.append(f"C{x + bend:.1f} {y:.1f} {end - bend:.1f} {to:.1f} {end:.1f} {to:.1f}")
            if not last:
                path.append(f"H{left + box:.1f}")
            x, y = (end if last else left + box), to
    told = [svg.tooltip("; ".join(deviation))] if deviation else []
    tip = f"M{x:.1f} {y:.1f}l{5 if backwards else -5} -3v6z"
    return svg.element(
        "g", *told, svg.element("path", d="".join(path), class_="line"), svg.element("path", d=tip, class_="tip"),
        class_="call deviating" if deviation else "call",
    )  # fmt: skip


def _box(at: tuple[float, float], width: float, name: str, suspect, top: float) -> Markup:
    x, y = at
    share = float(heat.blame_share(suspect[1]["blame"], top)) if suspect else 0.0
    ranked = bool(suspect) and suspect[0] <= 3 and (share > 0 or suspect[0] == 1)
    letters = int((width - 12 - (18 if ranked else 0)) / LETTER)
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
