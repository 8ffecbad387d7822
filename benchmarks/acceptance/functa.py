"""functa: latents of new digits after three gradient steps from zero, and what can be read off;
and, on photographs, a grid of cells beside one vector of as many numbers.

Cells are compared on photographs, where any part may be anywhere. Centered digits are another
matter, as the parts of one digit tell of each other: at 64 numbers and 500 steps the vector has
24.3 dB on held-out pixels, 2 x 2 cells 20.7 dB (whether they know their place or not).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import skimage.data

from benchmarks.acceptance import Figures
from benchmarks.acceptance._digits import digits, held_out_psnr
from schemas.samples import GRID, IDENTITY

DATA = (
    "600 digits of a font, 14 x 14, turned and sheared; 200 others are new. Cells: 480 cuts of "
    "12 x 12 of the left halves of 12 scikit-image photographs; 480 of the right halves are new"
)
METRIC = "PSNR of held-out pixels of new digits after three inner steps, dB"
CONTROL = "meta-learning (the same three steps on the network as it starts)"
CLAIM = "a latent of 64 to 1,024 in 3 steps: 21.6 to 30.7 dB on CelebA-HQ 64 (sec. 4.1)"
SETTINGS = {
    "latent": 64,
    "width": 40,
    "inner_pixels": 160,
    "omega": 6.0,
    "batch": 8,
    "train_steps": 500,
}
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "page",
    "text",
)
SIDE, REDUCE, CELLS = 12, 3, 2
OF_CUTS = {"width": 32, "depth": 3, "inner_pixels": 120, "train_steps": 120}
SHAPES = {"vector": {"latent": 32}, "cells": {"latent": 8, "cells": CELLS}}
"""Two ways to spend 32 numbers on a cut."""


def run(seed: int) -> Figures:
    import torch

    from pipeline.fitting import fit_rows, start_shared

    tables = digits(600, 14, 2 * seed), digits(200, 14, 2 * seed + 1)
    method, shared, (of_known, of_new), (_, new) = learned(SETTINGS, tables, seed)
    untrained = start_shared(method, seed)

    def psnr(shared, rows):
        return held_out_psnr(method, shared, rows, new, tables[1])

    zero = {name: torch.zeros_like(value) for name, value in of_new.items()}
    return Figures(
        ours=psnr(shared, of_new),
        control=psnr(untrained, fit_rows(method, untrained, new, seed=seed).rows),
        also={
            "zero latent": psnr(shared, zero),
            "another's latent": psnr(shared, {k: v.roll(1, 0) for k, v in of_new.items()}),
            "probe of latents": probe(of_known, of_new, tables),
            "probe of pixels": probe(*(pixels(table) for table in tables), tables),
            **of_cuts(seed),
        },
    )


def learned(settings: dict, tables: tuple[pa.Table, pa.Table], seed: int):
    """The method and what it shares after training on known rows, the rows of known and of new
    samples, and the samples."""
    from pipeline import methods
    from pipeline.fitting import fit_rows, train
    from pipeline.samples import load_samples

    samples = [load_samples(table, "images") for table in tables]
    config = methods.configure("functa", settings=settings)
    method = methods.build("functa", config, samples[0].form)
    shared = train(method, samples[0], seed=seed).shared
    return method, shared, [fit_rows(method, shared, s, seed=seed).rows for s in samples], samples


def of_cuts(seed: int) -> dict[str, float]:
    """Vectors and cells of new cuts: held-out pixels, a probe, and how far a cell reaches."""
    tables = cuts(480, seed, right=False), cuts(480, seed, right=True)
    also = {}
    for name, shape in SHAPES.items():
        settings = {**SETTINGS, **OF_CUTS, **shape}
        method, shared, rows, samples = learned(settings, tables, seed)
        also[f"cuts: {name}"] = held_out_psnr(method, shared, rows[1], samples[1], tables[1])
        also[f"cuts: probe of {name}"] = probe(*rows, tables)
    also["cuts: probe of pixels"] = probe(*(pixels(table) for table in tables), tables)
    zero = {key: value * 0 for key, value in rows[1].items()}
    also["cuts: zero cells"] = held_out_psnr(method, shared, zero, samples[1], tables[1])
    return also | reach(method, shared, rows[1])


def cuts(
    count: int,
    seed: int,
    *,
    right: bool,
    names: Sequence[str] = PHOTOGRAPHS,
    side: int = SIDE,
    reduce: int = REDUCE,
    held_out: float = 0.1,
) -> pa.Table:
    """Gray cuts of one half of each photograph in turn, some pixels of each held out."""
    random = np.random.default_rng([seed, int(right)])
    photos, lines = [], []
    for name in names:
        photo = getattr(skimage.data, name)().astype(float)
        photo = photo.mean(-1) if photo.ndim == 3 else photo
        middle = photo.shape[1] // 2
        photos.append(photo[:, middle:] if right else photo[:, :middle])
    wide = side * reduce
    for row in range(count):
        label = row % len(photos)
        y, x = (int(random.integers(length - wide + 1)) for length in photos[label].shape)
        cut = photos[label][y : y + wide, x : x + wide].reshape(side, reduce, side, reduce)
        lines.append(
            {
                "row": row,
                "sample_id": f"{row:04d}.png",
                "label": str(label),
                "split": "train",
                "pixels": cut.mean((1, 3)).round().astype(np.uint8).tobytes(),
                "height": side,
                "width": side,
                "channels": 1,
                "dtype": "uint8",
                "held_out": np.packbits(random.random(side * side) < held_out).tobytes(),
            }
        )
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))


def reach(method, shared, rows) -> dict[str, float]:
    """Most that a cell of another cut changes: in its own pixels (mean of all cuts), and beyond."""
    import torch

    from pipeline.fields.bind import bind
    from pipeline.fitting import bindable
    from pipeline.samples import pixel_coords

    def color(code):
        with torch.no_grad():
            bound = bind(method.model, bindable(method, shared, {"code.value": code}))
            coords = pixel_coords(SIDE, SIDE).expand(len(code), -1, -1)
            return method.read(bound, coords)["color"]

    code = rows["code.value"]
    changed = code.clone()
    changed[:, 0, 1] = code.roll(1, 0)[:, 0, 1]  # left, below
    moved = (color(changed) - color(code)).abs().amax(-1)
    wide = SIDE // CELLS
    moved = moved.reshape(-1, CELLS, wide, CELLS, wide).amax((2, 4))
    inside = moved[:, 1, 0].clone()
    moved[:, 1, 0] = 0
    return {"inside a changed cell": float(inside.mean()), "outside of it": float(moved.max())}


def pixels(table: pa.Table) -> np.ndarray:
    """All pixels of each picture in a row."""
    rows = [np.frombuffer(data, np.uint8) for data in table["pixels"].to_pylist()]
    return np.stack(rows) / 255


def probe(known, new, tables: tuple[pa.Table, pa.Table]) -> float:
    """Share of new rows that a ridge regression from what is known of a row (pixels or latents) to
    the classes gets right."""
    if isinstance(known, dict):
        known, new = (rows["code.value"].flatten(1).numpy() for rows in (known, new))
    labels = [np.array(table["label"].to_pylist(), int) for table in tables]
    classes = labels[0].max() + 1
    mean, std = known.mean(0), known.std() + 1e-12
    known, new = (known - mean) / std, (new - mean) / std
    weight = 0.1 * len(known) * np.eye(known.shape[1])
    one_hot = np.eye(classes)[labels[0]]
    solved = np.linalg.solve(known.T @ known + weight, known.T @ (one_hot - 1 / classes))
    return float(((new @ solved).argmax(1) == labels[1]).mean())


def check(figures: Figures) -> None:
    also = figures.also
    assert figures.ours >= 24.0, "new digits are not reconstructed in three steps"
    assert figures.ours >= also["zero latent"] + 8, "the steps do little"
    assert figures.ours >= figures.control + 8, "an untrained network does as well"
    assert also["another's latent"] <= also["zero latent"] + 3, "a latent says little of its digit"
    assert also["probe of latents"] >= also["probe of pixels"] - 0.03, "classes got lost"
    assert also["cuts: cells"] >= also["cuts: vector"] - 1, "cells hold less than a vector"
    assert also["cuts: cells"] >= also["cuts: zero cells"] + 6, "the steps do little to cells"
    # A linear probe reads the photograph off cells less well than off vectors (0.19 and 0.24 of 480
    # cuts in the mean of three seeds): textures are told, not held against them. Chance is 0.08.
    assert also["cuts: probe of cells"] >= 0.13, "cells say nothing of their photograph"
    assert also["inside a changed cell"] >= 0.1, "a cell says nothing of its pixels"
    assert also["outside of it"] <= 1e-6, "a cell reaches beyond its pixels"
