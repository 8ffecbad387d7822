"""Faces drawn of soft ellipses, as prepared rows: any number of them, of one family."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from schemas.samples import GRID, IDENTITY


def drawn_faces(count: int, size: int, seed: int, *, held_out: float = 0.1) -> pa.Table:
    """`count` gray pictures; some pixels of each are held out."""
    lines = []
    for row in range(count):
        random = np.random.default_rng([seed, row])
        color = face(size, random)
        held = random.random(color.size) < held_out
        lines.append(
            {
                "row": row,
                "sample_id": f"drawn{seed:03d}-{row:04d}.png",
                "label": "face",
                "split": "train",
                "pixels": (color * 255).round().astype(np.uint8).tobytes(),
                "height": size,
                "width": size,
                "channels": 1,
                "dtype": "uint8",
                "held_out": np.packbits(held).tobytes(),
            }
        )
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))


def face(size: int, random: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """A head with hair, eyes and mouth before a wall, each of its own size, place and tone."""
    at = (2 * np.arange(size) + 1) / size - 1
    x, y = np.meshgrid(at, at)
    middle, half = random.uniform(-0.08, 0.08, 2), random.uniform((0.5, 0.65), (0.65, 0.8))
    turn = random.uniform(-0.15, 0.15)
    dx, dy = x - middle[0], y - middle[1]
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / half[0]
    v = (np.cos(turn) * dy - np.sin(turn) * dx) / half[1]
    light = random.uniform(-0.05, 0.05, 2)
    picture = random.uniform(0.05, 0.15) + light[0] * x + light[1] * y
    skin = random.uniform(0.75, 0.95) + random.uniform(-0.1, 0.1) * u
    parts = [
        (skin, u, v, 1.0, 1.0),
        (random.uniform(0.3, 0.5), u, v + 0.95, 0.9, random.uniform(0.3, 0.55)),
    ]
    apart, high, wide = random.uniform((0.35, 0.1, 0.12), (0.5, 0.3, 0.2))
    tone = random.uniform(0.05, 0.3)
    parts += [(tone, u - side * apart, v + high, wide, 0.1) for side in (-1, 1)]
    smile = random.uniform(0.2, 0.5)
    parts.append((random.uniform(0.1, 0.4), u, v - random.uniform(0.45, 0.6), smile, 0.1))
    for tone, across, down, width, height in parts:
        beyond = (across / width) ** 2 + (down / height) ** 2 - 1
        inside = 1 / (1 + np.exp(np.minimum(4 * beyond, 50)))
        picture = picture + inside * (tone - picture)
    return picture.clip(0, 1)
