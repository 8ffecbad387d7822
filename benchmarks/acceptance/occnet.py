"""Occupancy Networks: boxes from noisy points of their surface, in one pass of the encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.acceptance import Figures
from benchmarks.acceptance._shapes import held_out_iou
from benchmarks.acceptance._solids import one_box, table

DATA = "160 procedural boxes (6 factors), 32 of them held out; 200 surface points, noise 0.01"
METRIC = "IoU of held-out shapes at held-out points uniform in the box"
CONTROL = "the condition: the same networks trained with the code set to zero"
CLAIM = "an encoder of few noisy points and a conditional decoder complete shapes (sec. 4.3)"
SETTINGS = {
    "inputs": 200,
    "encoder_width": 32,
    "encoder_blocks": 2,
    "code": 48,
    "width": 48,
    "train_steps": 200,
    "rate": 5e-3,
}


def run(seed: int) -> Figures:
    import torch

    from pipeline import methods
    from pipeline.fitting import fit_rows, train
    from pipeline.samples import load_samples

    random = np.random.default_rng(seed)
    boxes = table([one_box(random) for _ in range(160)], seed=seed)
    known, new = (load_samples(t, "shapes") for t in (boxes.slice(0, 128), boxes.slice(128)))
    method = methods.build("occnet", methods.configure("occnet", settings=SETTINGS), known.form)

    def blind(bound, batch, draw):
        rows, terms = method.encode(bound, batch, draw)
        return {name: torch.zeros_like(value) for name, value in rows.items()}, terms

    def iou(method, shared, rows):
        level = method.field.output["level"]
        return float(held_out_iou(method, shared, rows, new, level=level).mean())

    shared = train(method, known, seed=seed).shared
    many = fit_rows(method, shared, new, seed=seed, lanes=32).rows
    few = fit_rows(method, shared, new, seed=seed, lanes=2).rows
    twin = replace(method, encode=blind)
    blind_shared = train(twin, known, seed=seed).shared
    return Figures(
        ours=iou(method, shared, many),
        control=iou(twin, blind_shared, fit_rows(twin, blind_shared, new, seed=seed).rows),
        also={
            "permuted": iou(method, shared, {k: v.roll(1, 0) for k, v in many.items()}),
            "batch 32 against 2": float((many["code.value"] - few["code.value"]).abs().max()),
        },
    )


def check(figures: Figures) -> None:
    assert figures.ours >= 0.62, "held-out shapes are not reconstructed"
    assert figures.ours >= figures.control + 0.2, "the condition does not help"
    assert figures.also["permuted"] <= figures.control + 0.05, "another shape's code does as well"
    assert figures.also["batch 32 against 2"] == 0.0, "a code depends on its batch"
