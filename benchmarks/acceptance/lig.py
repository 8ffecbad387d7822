"""Local Implicit Grids: the side of points of unseen scenes, from codes of frozen part decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.acceptance import Figures
from benchmarks.acceptance._shapes import prepared

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

DATA = "6 scenes of three to six objects (`sample:scenes`), 2 of them held out; oriented points"
METRIC = (
    "share of unseen points on the right side, mean of both sides (a constant has 0.5), in "
    "held-out scenes: points uniform in the box, within 0.1 of the surface, in cells with codes"
)
CONTROL = "the part prior: codes of the same scenes with a random frozen decoder"
CLAIM = "a prior of parts reconstructs whole unseen scenes from oriented points (sec. 4)"
POINTS = {"near": 8192, "uniform": 8192, "surface": 4096, "held_out": 2048}
"""Fitting sees surface points alone, so all others of a held-out scene are unseen."""
KNOWN, NEW = 4, 2
SETTINGS = {
    "resolution": 24,
    "capacity": 4096,
    "code": 8,
    "width": 4,
    "move": 0.09,
    "rate": 1e-2,
    "code_rate": 5e-2,
    "train_steps": 700,
    "batch": 4,
    "points": 192,
    "fit_steps": 150,
    "fit_points": 1024,
    "fit_rate": 5e-2,
}


def run(seed: int) -> Figures:
    import torch

    from pipeline import methods
    from pipeline.fitting import fit_rows, start_shared, train
    from pipeline.samples import load_samples

    table = prepared("scenes", **POINTS)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)).numpy()
    parts = table.take(order[:KNOWN]), table.take(order[KNOWN : KNOWN + NEW])
    known, new = (load_samples(part, "shapes") for part in parts)
    method = methods.build("lig", methods.configure("lig", settings=SETTINGS), known.form)
    shared = train(method, known, seed=seed).shared
    rows = fit_rows(method, shared, new, seed=seed).rows
    random = start_shared(method, seed + 100)
    lost = fit_rows(method, random, new, seed=seed).rows
    ours, share = right_side(method, shared, rows, new)
    control, _ = right_side(method, random, lost, new)
    return Figures(
        ours=ours,
        control=control,
        also={
            "share of all points": share,
            "jump across faces": jump(method, shared, rows, new),
            "reach of a code, cells": reach(method, shared, rows, new),
            "nodes": float(rows["nodes_count.value"].float().mean()),
        },
    )


def _near(samples):
    """Held-out points near the surface."""
    import torch

    from pipeline.draw import Draw
    from pipeline.samples import Size

    draw = Draw.of(samples.keys, seed=0, stage="held-out")
    everyone = torch.arange(len(samples))
    return samples.draw(everyone, "query", Size(pixels=0, near=2048), draw).points


def right_side(method: Method, shared, rows, samples) -> tuple[float, float]:
    """Share of uniform points with |sdf| < 0.1, in complete cells, whose side is right.

    Returns:
        The mean over the two sides, one half for any constant answer; and the share of all points.
    """
    import torch

    from pipeline.draw import Draw
    from pipeline.fields import nodes, tables
    from pipeline.fields.bind import bind
    from pipeline.fitting import bindable
    from pipeline.samples import Size

    draw, side = Draw.of(samples.keys, seed=0, stage="sides"), method.field.config.resolution
    size = Size(pixels=0, uniform=POINTS["uniform"])
    points = samples.draw(torch.arange(len(samples)), "context", size, draw).points
    with torch.no_grad():
        bound = bind(method.model, bindable(method, shared, rows))
        outside = method.read(bound, points.coords)["occupancy"] < 0.5
        cell = tables.cell_at(points.coords, side)
        decoded = nodes.corner_slots(bound.nodes_keys(), cell, side)[1].all(-1)
    band = (points.distance.abs() < 0.1) & decoded
    right, true = outside[band] == (points.distance[band] > 0), points.distance[band] > 0
    sides = (right[true].float().mean() + right[~true].float().mean()) / 2
    return float(sides), float(right.float().mean())


def jump(method: Method, shared, rows, samples) -> float:
    """Largest difference of the values of two complete cells on the face between them."""
    import torch

    from pipeline.fields import nodes, tables
    from pipeline.fields.bind import bind
    from pipeline.fitting import bindable

    side = method.field.config.resolution
    tensors = bindable(method, shared, rows)
    tensors = {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}
    bound = bind(method.model, tensors)
    start, worst, faces = _near(samples).coords.double(), 0.0, 0
    for axis in range(3):
        low = tables.cell_at(start, side)
        low[..., axis] = low[..., axis].clamp(max=side - 2)
        high = low.clone()
        high[..., axis] += 1
        coords = start.clone()
        coords[..., axis] = high[..., axis].double() * (2 / side) - 1
        values, both = [], torch.ones(coords.shape[:2], dtype=torch.bool)
        for cell in (low, high):
            slot, found = nodes.corner_slots(bound.nodes_keys(), cell, side)
            values.append(nodes.mixed(bound, bound.nodes(), coords, cell, slot))
            both &= found.all(-1)
        worst = max(worst, float((values[0] - values[1])[both].abs().max()))
        faces += int(both.sum())
    assert faces > 1000, f"only {faces} faces between complete cells"
    return worst


def reach(method: Method, shared, rows, samples) -> float:
    """How far from its node a code changes the field at most, along the farthest axis, in cells."""
    import torch

    from pipeline.fields import tables
    from pipeline.fields.bind import bind
    from pipeline.fitting import bindable

    side = method.field.config.resolution
    coords = _near(samples).coords
    keys, codes = rows["nodes_keys.value"], rows["nodes.value"]
    place = (rows["nodes_count.value"] // 2).long()[:, None]
    node = tables.cell_of(keys.gather(1, place).long(), side + 1, 3)
    around = node * (2 / side) - 1 + (coords - coords.mean(1, keepdim=True)) * 0.2
    moved = codes.scatter_add(
        1, place[..., None].expand(-1, -1, codes.shape[-1]), torch.ones_like(codes[:, :1])
    )
    with torch.no_grad():
        before, after = (
            bind(method.model, bindable(method, shared, rows | {"nodes.value": c}))(around)
            for c in (codes, moved)
        )
    away = ((around + 1) * side / 2 - node).abs().amax(-1)
    assert bool((away > 1).any()), "no point beyond the part"
    return float(away[before != after].max())


def check(figures: Figures) -> None:
    assert figures.ours >= 0.9, "sides of unseen scenes are wrong"
    assert figures.also["share of all points"] >= 0.93, "sides of unseen scenes are wrong"
    assert figures.control <= 0.7, "a random decoder does as well as the prior"
    assert figures.also["jump across faces"] <= 1e-5, "the field is not continuous across faces"
    reached = figures.also["reach of a code, cells"]
    assert 0.5 < reached <= 1, "a code reaches beyond the neighbors of its node, or nothing"
