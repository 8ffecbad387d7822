"""CPPN: mixed activations against tanh alone, and evolution against its first generation."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks.acceptance import Figures
from benchmarks.acceptance._pictures import fit_pictures
from schemas.samples import GRID, IDENTITY

DATA = "radial stripes of 3 periods, 48 x 48, 3 seeded centres; half of the pixels are fitted"
METRIC = "PSNR of the other half, dB, mean of the pictures (4 x 28 units, 300 steps of Adam)"
CONTROL = "mixed activations (tanh alone, as many numbers)"
CLAIM = "mixed activations give symmetry and repetition in few numbers (sec. 3; no table)"
DENSE = {"mode": "dense", "scale": 4.0, "steps": 300, "rate": 1e-2, "std": 1.5}
EVOLVED = {"population": 40, "generations": 200, "pixels": 144, "steps": 0}


def run(seed: int) -> Figures:
    """Dense networks on stripes; a graph evolved towards a disc with stripes."""
    table = stripes(3, 48, seed)
    ours = float(np.mean(fit_pictures("cppn", DENSE, table, seed)[0]))
    tanh = {**DENSE, "functions": ("tanh",)}
    control = float(np.mean(fit_pictures("cppn", tanh, table, seed)[0]))
    disc = disc_with_stripes(24)
    first = fit_pictures("cppn", {**EVOLVED, "generations": 1}, disc, seed)[0]
    last = fit_pictures("cppn", EVOLVED, disc, seed)[0]
    also = {"first generation, mse": 10 ** (-first[0] / 10), "evolved, mse": 10 ** (-last[0] / 10)}
    return Figures(ours, control, also)


def check(figures: Figures) -> None:
    also = figures.also
    assert figures.ours >= figures.control + 3, "mixed activations gain too little"
    assert also["evolved, mse"] <= 0.8 * also["first generation, mse"], "evolution finds too little"


def stripes(count: int, size: int, seed: int) -> pa.Table:
    """Cosines of the distance to a seeded centre near the middle."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] * 2 / (size - 1) - 1
    pictures = []
    for _ in range(count):
        a, b = random.uniform(-0.2, 0.2, 2)
        pictures.append(0.5 + 0.5 * np.cos(6 * np.pi * np.hypot(x - a, y - b)))
    return gray_table(pictures, seed)


def disc_with_stripes(size: int) -> pa.Table:
    """Vertical stripes inside of a disc, black around it."""
    y, x = np.mgrid[:size, :size] * 2 / (size - 1) - 1
    inside = np.hypot(x, y) < 0.7
    return gray_table([np.where(inside, 0.5 + 0.5 * np.cos(3 * np.pi * x), 0.0)], 0)


def gray_table(pictures: list[np.ndarray], seed: int) -> pa.Table:
    """Gray pictures in [0, 1] as prepared rows; a seeded half of the pixels is held out."""
    lines = []
    for row, picture in enumerate(pictures):
        held = np.zeros(picture.size, bool)
        held[np.random.default_rng([seed, row]).permutation(picture.size)[::2]] = True
        lines.append(
            {
                "row": row,
                "sample_id": f"{row}.png",
                "label": "pattern",
                "split": "train",
                "pixels": (picture * 255).round().astype(np.uint8).tobytes(),
                "height": picture.shape[0],
                "width": picture.shape[1],
                "channels": 1,
                "dtype": "uint8",
                "held_out": np.packbits(held).tobytes(),
            }
        )
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))
