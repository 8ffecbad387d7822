"""Real photographs as prepared tables, and PSNR of what a method makes of the pixels between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import skimage.data

from schemas.samples import GRID, IDENTITY


def every_other_pixel(
    names: Sequence[str], size: int, seed: int, *, reduce: int = 2, gray: bool = False
) -> pa.Table:
    """Square cuts of which only pixels of even row and column are fitted."""
    seen = np.zeros((size, size), bool)
    seen[::2, ::2] = True
    return cuts(names, size, seed, ~seen, reduce=reduce, gray=gray)


def cuts(
    names: Sequence[str],
    size: int,
    seed: int,
    held_out: np.ndarray,
    *,
    reduce: int = 2,
    gray: bool = False,
) -> pa.Table:
    """One seeded square cut of each scikit-image photograph, `reduce` x `reduce` pixels averaged
    to one."""
    lines = []
    for row, name in enumerate(names):
        random = np.random.default_rng([seed, row])
        photo = getattr(skimage.data, name)()
        photo = photo[..., None] if photo.ndim == 2 else photo
        wide = reduce * size
        y, x = (int(random.integers(0, side - wide + 1)) for side in photo.shape[:2])
        cut = photo[y : y + wide, x : x + wide].astype(float)
        cut = cut.reshape(size, reduce, size, reduce, -1).mean((1, 3))
        cut = cut.mean(-1, keepdims=True) if gray else cut
        lines.append(
            {
                "row": row,
                "sample_id": f"{name}.png",
                "label": name,
                "split": "train",
                "pixels": cut.round().astype(np.uint8).tobytes(),
                "height": size,
                "width": size,
                "channels": cut.shape[-1],
                "dtype": "uint8",
                "held_out": np.packbits(held_out).tobytes(),
            }
        )
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))


def fit_pictures(
    name: str, settings: dict[str, Any], table: pa.Table, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """PSNR of held-out and of fitted pixels, dB, of every row of a table after fitting."""
    from pipeline import methods
    from pipeline.evaluate.metrics import measure
    from pipeline.fitting import choose_path, fit_rows, start_shared
    from pipeline.samples import load_samples

    samples = load_samples(table, "images")
    method = methods.build(name, methods.configure(name, settings=settings), samples.form)
    shared = start_shared(method, seed)
    fused, _ = choose_path(method)
    fitted = fit_rows(method, shared, samples, seed=seed, fused=fused)
    found = measure("images", method, shared, fitted.rows, samples, table)
    return found["psnr"], found["psnr_fit"]
