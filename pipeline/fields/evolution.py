"""Evolution of graphs (NEAT, Stanley & Miikkulainen 2002): mutation, crossover, niches, elites.

All graphs of all samples at once, as masks and gathers over the common slots of `Graph`; every
choice is a draw, so a sample's evolution does not depend on its neighbors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors
from pipeline.fields.graph import NAMES, NOWHERE, Graph

Fitness = Callable[[Tensors], Float[Tensor, "n g"]]
"""Fitness of every graph of a population, higher is better."""


@dataclass(frozen=True)
class Rates:
    """Chances a child, and sizes (defaults: the settings usual with NEAT on pictures)."""

    crossover: float = 0.5
    add_node: float = 0.2
    add_edge: float = 0.2
    delete_edge: float = 0.1
    weight: float = 0.6
    """Chance of each edge to be moved."""
    replace: float = 0.05
    """Chance of each edge to get a new weight."""
    function: float = 0.1
    power: float = 0.5
    """Standard deviation of a move."""
    largest: float = 30.0
    elites: int = 2
    tournament: int = 3
    niche: float = 0.25
    """Graphs closer than this share their rank; 0: no niches."""


def first_population(graph: Graph, draw: Draw) -> Tensors:
    """Inputs joined to outputs with random weights, nothing hidden."""
    n, i, c = len(draw.keys), graph.inputs, graph.outputs
    g, k = graph.population, graph.capacity
    device = draw.keys.device
    edges = torch.zeros(n, g, k, k, dtype=torch.int32, device=device)
    edges[:, :, i : i + c, :i] = 1
    function = torch.full((n, g, k), NAMES.index("identity"), dtype=torch.int32, device=device)
    function[:, :, i : i + c] = NAMES.index("sigmoid")
    place = torch.full((n, k), NOWHERE, device=device)
    place[:, :i], place[:, i : i + c] = 0.0, 1.0
    return {
        "weight": draw.normal("weights", g, k, k),
        "enabled": edges,
        "function": function,
        "place": place,
        "parents": torch.zeros(n, k, 2, dtype=torch.int32, device=device),
        "fitness": torch.full((n, g), -torch.inf, device=device).clamp(min=-1e30),
    }


def generation(
    graph: Graph, rows: Tensors, fitness: Fitness, draw: Draw, rates: Rates = Rates()
) -> Tensors:
    """Children in place of all but the elites, measured and sorted: the best first."""
    known = fitness(rows)
    rows = sorted_by({**rows, "fitness": known})
    children = _bred(rows, draw, rates)
    children = _moved(children, draw, rates)
    children = _split(graph, children, draw, rates)
    children = _joined(graph, children, draw, rates)
    children = {**children, "fitness": fitness(children)}
    kept = rates.elites
    merged = {
        name: torch.cat([rows[name][:, :kept], children[name][:, kept:]], 1)
        for name in ("weight", "enabled", "function", "fitness")
    }
    return sorted_by({**children, **merged})


def sorted_by(rows: Tensors) -> Tensors:
    """A population in descending fitness; what all its graphs share stays."""
    order = rows["fitness"].argsort(dim=1, descending=True, stable=True)
    return {**rows, **_picked(rows, order)}


def _picked(rows: Tensors, at: Tensor) -> Tensors:
    """The graphs `at` [n, g] of each population."""

    def take(value: Tensor) -> Tensor:
        index = at.reshape(*at.shape, *[1] * (value.dim() - 2)).expand(-1, -1, *value.shape[2:])
        return value.gather(1, index)

    return {name: take(rows[name]) for name in ("weight", "enabled", "function", "fitness")}


def _bred(rows: Tensors, draw: Draw, rates: Rates) -> Tensors:
    """A child of each graph's place: a copy of a parent, or a cross of two along common slots.

    Edges that only one parent has come from the fitter one, as in NEAT.
    """
    n, g = rows["fitness"].shape
    rank = torch.arange(g, device=rows["fitness"].device).expand(n, g).float()
    if rates.niche > 0:
        crowd = (_distances(rows) < rates.niche).sum(2).clamp(max=max(g // 4, 1))
        rank = rank * crowd
    lots = draw.integers("tournament", g, 2, g, rates.tournament)
    ranks = rank[:, None, None].expand(n, 2, g, g).gather(3, lots)
    parents = lots.gather(3, ranks.argmin(3, keepdim=True))[..., 0].sort(1).values
    first, second = _picked(rows, parents[:, 0]), _picked(rows, parents[:, 1])
    crossed = draw.uniform("crossover", g) < rates.crossover
    swap = draw.uniform("genes", *rows["weight"].shape[1:]) < 0.5
    swap &= (first["enabled"] * second["enabled"]).bool() & crossed[..., None, None]
    other = draw.uniform("functions", *rows["function"].shape[1:]) < 0.5
    other &= _used(first) & _used(second) & crossed[..., None]
    return {
        **rows,
        "weight": torch.where(swap, second["weight"], first["weight"]),
        "enabled": first["enabled"],
        "function": torch.where(other, second["function"], first["function"]),
    }


def _distances(rows: Tensors) -> Float[Tensor, "n g g"]:
    """Share of edges that only one of two graphs has, plus the mean difference of common weights,
    a tenth of it."""
    there = rows["enabled"].flatten(2).float()
    weight = rows["weight"].flatten(2) * there
    common = there @ there.transpose(1, 2)
    counts = there.sum(2)
    union = (counts[:, :, None] + counts[:, None] - common).clamp(min=1)
    apart = torch.cdist(weight, weight, p=1.0, compute_mode="donot_use_mm_for_euclid_dist")
    lone = counts[:, :, None] + counts[:, None] - 2 * common
    return lone / union + 0.1 * apart / union


def _used(rows: Tensors) -> Bool[Tensor, "n g k"]:
    """Slots with an edge in or out."""
    return rows["enabled"].bool().any(2) | rows["enabled"].bool().any(3)


def _moved(rows: Tensors, draw: Draw, rates: Rates) -> Tensors:
    """Weights moved or replaced, activations of hidden nodes changed."""
    shape = rows["weight"].shape[1:]
    chance = draw.uniform("which weights", *shape)
    step = draw.normal("moves", *shape)
    moved = torch.where(chance < rates.weight, rows["weight"] + rates.power * step, rows["weight"])
    fresh = chance > 1 - rates.replace
    moved = torch.where(fresh, step, moved).clamp(-rates.largest, rates.largest)
    g, k = rows["function"].shape[1:]
    change = draw.uniform("which functions", g, k) < rates.function
    change &= (rows["place"] > 0)[:, None] & (rows["place"] < 1)[:, None]
    new = draw.integers("new functions", len(NAMES), g, k).to(torch.int32)
    return {**rows, "weight": moved, "function": torch.where(change, new, rows["function"])}


def _split(graph: Graph, rows: Tensors, draw: Draw, rates: Rates) -> Tensors:
    """New nodes on edges: an edge a -> b becomes a -> new (weight 1) -> b (the old weight).

    Each generation makes one new slot a sample, on an edge of one of its graphs; every child with
    that edge may take it, or another slot whose edge it has and which it does not use.
    """
    n, g, k = rows["function"].shape
    place, parents = rows["place"].clone(), rows["parents"].clone()
    device = place.device
    made = (place < NOWHERE).sum(1)
    of_graph = draw.integers("whose edge", g)
    edges = rows["enabled"][torch.arange(n, device=device), of_graph].flatten(1)
    lots = draw.uniform("which edge", k * k) * edges
    edge = lots.argmax(1)
    head, tail = torch.div(edge, k, rounding_mode="floor"), edge % k
    room = (made < k) & (lots.amax(1) > 0)
    slot = made.clamp(max=k - 1)
    row = torch.arange(n, device=device)
    middle = (place[row, head] + place[row, tail]) / 2
    place[row, slot] = torch.where(room, middle, place[row, slot])
    ends = torch.stack([tail, head], 1).to(parents.dtype)
    parents[row, slot] = torch.where(room[:, None], ends, parents[row, slot])
    # Each child: a slot that it lacks and whose edge it has.
    tails, heads = parents[..., 0].long(), parents[..., 1].long()
    across = heads[:, None, :, None].expand(n, g, k, k)
    has = rows["enabled"].gather(2, across).gather(3, tails[:, None, :, None].expand(n, g, k, 1))
    hidden = (place > 0) & (place < 1)
    fits = (has[..., 0] > 0) & hidden[:, None] & ~_used(rows)
    lots = draw.uniform("which slot", g, k) * fits
    taken = lots.argmax(2)
    go = (draw.uniform("add node", g) < rates.add_node) & (lots.amax(2) > 0)
    a = tails[:, None].expand(n, g, k).gather(2, taken[..., None])[..., 0]
    b = heads[:, None].expand(n, g, k).gather(2, taken[..., None])[..., 0]
    enabled, weight, function = (rows[x].clone() for x in ("enabled", "weight", "function"))
    i, j = torch.where(go)
    s, a, b = taken[i, j], a[i, j], b[i, j]
    weight[i, j, b, s], weight[i, j, s, a] = weight[i, j, b, a], 1.0
    enabled[i, j, b, a], enabled[i, j, b, s], enabled[i, j, s, a] = 0, 1, 1
    new = draw.integers("function of a node", len(NAMES), g).to(function.dtype)
    function[i, j, s] = new[i, j]
    changed = {"enabled": enabled, "weight": weight, "function": function}
    return {**rows, **changed, "place": place, "parents": parents}


def _joined(graph: Graph, rows: Tensors, draw: Draw, rates: Rates) -> Tensors:
    """An edge more, from a used slot to one with a higher place; an edge less."""
    g, k = rows["function"].shape[1:]
    place, enabled, weight = rows["place"], rows["enabled"].clone(), rows["weight"].clone()
    i, c = graph.inputs, graph.outputs
    outer = torch.zeros(k, dtype=torch.bool, device=place.device)
    outer[: i + c] = True
    usable = _used(rows) | outer
    upward = place[:, :, None] > place[:, None, :]
    open_ = usable[..., None] & usable[..., None, :] & upward[:, None] & (enabled == 0)
    for tag, chance, allowed, value in (
        ("add edge", rates.add_edge, open_, 1),
        ("delete edge", rates.delete_edge, enabled > 0, 0),
    ):
        lots = (draw.uniform(f"{tag}: which", g, k, k) * allowed).flatten(2)
        go = (draw.uniform(tag, g) < chance) & (lots.amax(2) > 0)
        at, graph_at = torch.where(go)
        edge = lots.argmax(2)[at, graph_at]
        head, tail = torch.div(edge, k, rounding_mode="floor"), edge % k
        enabled[at, graph_at, head, tail] = value
        if value:
            weight[at, graph_at, head, tail] = draw.normal("new weight", g)[at, graph_at]
    return {**rows, "enabled": enabled, "weight": weight}
