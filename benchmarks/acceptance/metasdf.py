"""MetaSDF: networks of new boxes after three learned steps from a learned start."""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Figures
from benchmarks.acceptance._shapes import held_out_iou
from benchmarks.acceptance._solids import one_box, table

DATA = "160 procedural boxes (6 factors), 32 of them new; 256 points an inner step"
METRIC = "IoU of new shapes at held-out points uniform in the box, after three inner steps"
CONTROL = "the steps (one field for all shapes: the mean of the known distances)"
CLAIM = "on par with auto-decoders, an order of magnitude faster at test time (abstract)"
SETTINGS = {"query_points": 256, "train_steps": 220}


def run(seed: int) -> Figures:
    import torch

    from pipeline import methods
    from pipeline.fitting import fit_rows, start_shared, train
    from pipeline.samples import load_samples

    random = np.random.default_rng(seed)
    boxes = table([one_box(random) for _ in range(160)], seed=seed)
    known, new = (load_samples(t, "shapes") for t in (boxes.slice(0, 128), boxes.slice(128)))
    method = methods.build("metasdf", methods.configure("metasdf", settings=SETTINGS), known.form)

    def iou(shared, rows):
        return float(held_out_iou(method, shared, rows, new).mean())

    shared, untrained = train(method, known, seed=seed).shared, start_shared(method, seed)
    rows = fit_rows(method, shared, new, seed=seed, lanes=32).rows
    few = fit_rows(method, shared, new, seed=seed, lanes=2).rows
    start = {name: shared[f"start.{name}"].expand_as(value) for name, value in rows.items()}
    return Figures(
        ours=iou(shared, rows),
        control=mean_field(known, new),
        also={
            "before meta-training": iou(
                untrained, fit_rows(method, untrained, new, seed=seed).rows
            ),
            "another's network": iou(shared, {n: v.roll(1, 0) for n, v in rows.items()}),
            "no step": iou(shared, {name: value.contiguous() for name, value in start.items()}),
            "batch 32 against 2": max(
                float((value - few[name]).abs().max()) for name, value in rows.items()
            ),
            "finite": float(all(torch.isfinite(v).all() for v in rows.values())),
        },
    )


def mean_field(known, new) -> float:
    """IoU of the best one shape for all: inside where the mean of the known distances is.

    The distances of a known box at the new boxes' points are those of its nearest own point.
    """
    from scipy.spatial import cKDTree

    from pipeline.samples import decode_coords

    def uniform(samples, name, i):
        held = samples.sets[name]
        at = slice(int(held.starts[i]), int(held.starts[i]) + int(held.counts[i]))
        coords = decode_coords(held.columns["coords"][at]).numpy()
        return coords, held.columns["distance"][at].numpy()

    found = []
    for i in range(len(new)):
        coords, wanted = uniform(new, "held_uniform", i)
        total = np.zeros(len(coords))
        for k in range(0, len(known), 8):
            own, distance = uniform(known, "uniform", k)
            total += distance[cKDTree(own).query(coords)[1]]
        inside, mean = wanted < 0, total < 0
        found.append((inside & mean).sum() / max((inside | mean).sum(), 1))
    return float(np.mean(found))


def check(figures: Figures) -> None:
    also = figures.also
    assert figures.ours >= 0.75, "new shapes are not reconstructed"
    assert figures.ours >= figures.control + 0.2, "one shape for all does nearly as well"
    assert figures.ours >= also["no step"] + 0.3, "the steps do little"
    assert figures.ours >= also["before meta-training"] + 0.3, "nothing was learned"
    assert also["another's network"] <= figures.ours - 0.15, "networks say little of their shape"
    assert also["batch 32 against 2"] == 0.0, "a network depends on its batch"
    assert also["finite"], "some networks are not finite"
