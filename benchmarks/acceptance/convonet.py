"""Convolutional Occupancy Networks: scenes of eight solids from noisy points, in one pass."""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Figures
from benchmarks.acceptance._shapes import held_out_iou
from benchmarks.acceptance._solids import scene, table

DATA = (
    "100 procedural scenes of 8 boxes and balls, 16 of them held out; 1,000 surface points, "
    "noise 0.01"
)
METRIC = "IoU of held-out scenes at held-out points uniform in the box"
CONTROL = "features in cells: one code of a larger PointNet for the whole scene (occnet)"
CLAIM = "features in a volume make scenes possible that one global code cannot hold (sec. 4.2)"
SHARED = {"train_steps": 200, "batch": 4, "inputs": 1000, "points": 512}
LOCAL = SHARED | {
    "grid": "volume",
    "volume": 16,
    "features": 8,
    "encoder_width": 8,
    "encoder_blocks": 2,
    "unet_width": 8,
    "unet_levels": 2,
    "blocks": 2,
    "rate": 1e-2,
}
GLOBAL = SHARED | {
    "code": 64,
    "width": 64,
    "encoder_width": 48,
    "encoder_blocks": 2,
    "rate": 5e-3,
}


def run(seed: int) -> Figures:
    from pipeline import methods
    from pipeline.fitting import fit_rows, train
    from pipeline.samples import load_samples

    random = np.random.default_rng(seed)
    scenes = [scene(random, 8, 0.28) for _ in range(100)]
    sizes = {"near": 0, "uniform": 8192, "surface": 1500}
    prepared = table(scenes, seed=seed, **sizes)
    known, new = (load_samples(t, "shapes") for t in (prepared.slice(0, 84), prepared.slice(84)))

    def fitted(name, settings):
        method = methods.build(name, methods.configure(name, settings=settings), known.form)
        shared = train(method, known, seed=seed).shared
        return method, shared, fit_rows(method, shared, new, seed=seed).rows

    def iou(method, shared, rows):
        level = method.field.output["level"]
        return float(held_out_iou(method, shared, rows, new, level=level).mean())

    method, shared, rows = fitted("convonet", LOCAL)
    other = {name: value.roll(1, 0) for name, value in rows.items()}
    return Figures(
        ours=iou(method, shared, rows),
        control=iou(*fitted("occnet", GLOBAL)),
        also={"permuted": iou(method, shared, other)},
    )


def check(figures: Figures) -> None:
    assert figures.ours >= 0.68, "held-out scenes are not reconstructed"
    assert figures.ours >= figures.control + 0.4, "features in cells do not help"
    assert figures.also["permuted"] <= figures.control + 0.1, "another scene's do as well"
