"""Occupancy Networks from voxels, from one picture, and as a variational space of shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.acceptance import Figures
from benchmarks.acceptance._shapes import held_out_iou, prepared, split
from benchmarks.acceptance._solids import one_box, table

if TYPE_CHECKING:
    import pyarrow as pa

DATA = (
    "sample:shapes (mugs, tables, chairs, bottles, bolts), 60 as 16^3 voxels and as 8 views of "
    "32 x 32 pixels, 10 held out; 160 procedural boxes, 32 held out, for the variational encoder"
)
METRIC = "IoU of held-out shapes at held-out points uniform in the box, from voxels"
CONTROL = "the condition: the same codes, each given to another shape"
CLAIM = "codes of voxels, of one picture, and of a variational encoder (secs. 3.2, 3.3, 4.2, 4.4)"
SETTINGS = {"code": 32, "width": 48, "blocks": 2, "share_inside": None}
VOXELS = {"encoder": "voxels", "voxels": 16, "encoder_width": 8, "train_steps": 600, "rate": 2e-3}
PICTURE = {"encoder": "image", "encoder_width": 8, "train_steps": 400, "rate": 2e-3}
VARIATIONAL = {
    "encoder": "vae",
    "encoder_width": 32,
    "encoder_blocks": 2,
    "inputs": 400,
    "kl": 0.02,
    "kl_ramp": 200,
    "train_steps": 1200,
    "rate": 5e-3,
    "share_inside": 0.1,
}


def run(seed: int) -> Figures:
    points = {"near": 16, "uniform": 4096, "surface": 16, "held_out": 1024}
    shapes = split(prepared("shapes", **points, voxels=16, views=8, view_size=32), 6)
    random = np.random.default_rng(seed)
    boxes = table([one_box(random) for _ in range(160)], seed=seed)
    ours, control = ious(VOXELS, *shapes, seed=seed)
    picture, other_picture = ious(PICTURE, *shapes, seed=seed)
    variational, other_variational = ious(
        VARIATIONAL, boxes.slice(0, 128), boxes.slice(128), seed=seed
    )
    return Figures(
        ours,
        control,
        also={
            "picture": picture,
            "picture of another": other_picture,
            "variational": variational,
            "variational of another": other_variational,
        },
    )


def ious(
    settings: dict[str, Any], known: pa.Table, new: pa.Table, *, seed: int
) -> tuple[float, float]:
    """Mean IoU of new shapes with their own codes and with those of others."""
    from pipeline import methods
    from pipeline.fitting import fit_rows, train
    from pipeline.samples import load_samples

    known, new = load_samples(known, "shapes"), load_samples(new, "shapes")
    config = methods.configure("occnet", settings={**SETTINGS, **settings})
    method = methods.build("occnet", config, known.form)
    shared = train(method, known, seed=seed).shared
    rows = fit_rows(method, shared, new, seed=seed).rows
    others = {key: value.roll(2, 0) for key, value in rows.items()}  # of shapes: another class
    level = method.field.output["level"]
    own, other = (held_out_iou(method, shared, r, new, level=level) for r in (rows, others))
    return float(own.mean()), float(other.mean())


def check(figures: Figures) -> None:
    also = figures.also
    assert figures.ours >= 0.45, "held-out shapes are not reconstructed from voxels"
    assert figures.ours >= figures.control + 0.3, "the voxels do not matter"
    assert also["picture"] >= 0.4, "held-out shapes are not reconstructed from one picture"
    assert also["picture"] >= also["picture of another"] + 0.25, "the picture does not matter"
    assert also["variational"] >= 0.6, "held-out boxes are not reconstructed from codes' means"
    assert also["variational"] >= also["variational of another"] + 0.15, "codes have collapsed"
