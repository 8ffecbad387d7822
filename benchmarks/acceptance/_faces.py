"""The small real pictures of faces that scikit-image ships, as prepared rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import skimage.data

from schemas.samples import GRID, IDENTITY

FACES = 100
"""The first hundred are faces, the others are not."""


def faces(seed: int, *, held_out: float = 0.1, test: int = 20) -> tuple[pa.Table, pa.Table]:
    """Known and new faces, 25 x 25 and gray, in seeded order; some pixels of each are held out."""
    pictures = skimage.data.lfw_subset()[:FACES]
    order = np.random.default_rng(seed).permutation(FACES)
    lines = []
    for row, number in enumerate(order):
        pixels = (pictures[number] * 255).round().clip(0, 255).astype(np.uint8)
        held = np.random.default_rng([seed, row]).random(pixels.size) < held_out
        lines.append(
            {
                "row": row,
                "sample_id": f"face{number:03d}.png",
                "label": "face",
                "split": "test" if row < test else "train",
                "pixels": pixels.tobytes(),
                "height": 25,
                "width": 25,
                "channels": 1,
                "dtype": "uint8",
                "held_out": np.packbits(held).tobytes(),
            }
        )
    table = pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))
    return table.slice(test), table.slice(0, test)
