"""Prepared tables of pictures and boxes with exact distances, as ingest would write them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import skimage.data

from schemas.samples import GRID, IDENTITY, SHAPES


def picture_table(sizes, *, held_out=0.1, seed=0, dtype="uint8") -> pa.Table:
    """Cuts of these (height, width) from a photograph."""
    photo, random = skimage.data.astronaut(), np.random.default_rng(seed)
    lines = []
    for row, (height, width) in enumerate(sizes):
        y, x = random.integers(0, 512 - height), random.integers(0, 512 - width)
        pixels = photo[y : y + height, x : x + width].astype(dtype)
        if dtype == "uint16":
            pixels = pixels * np.uint16(257)
        mask = np.zeros(height * width, bool)
        mask[random.permutation(height * width)[: round(held_out * height * width)]] = True
        lines.append(
            {
                "row": row,
                "sample_id": f"cut{row:03d}.png",
                "label": "cut",
                "split": "train",
                "pixels": pixels.tobytes(),
                "height": height,
                "width": width,
                "channels": 3,
                "dtype": dtype,
                "held_out": np.packbits(mask).tobytes(),
            }
        )
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))


def box_distance(points: np.ndarray, half: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Exact signed distance to an axis-aligned box, negative inside."""
    q = np.abs(points - center) - half
    return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)


def box_table(count: int, *, points=2048, held=1024, seed=0, first=0, surface=64) -> pa.Table:
    """Random boxes: six factors of variation. `points` may be a list, one number a box."""
    random = np.random.default_rng(seed)
    lines = []
    for row in range(count):
        half, center = random.uniform(0.25, 0.6, 3), random.uniform(-0.2, 0.2, 3)
        many = points[row] if isinstance(points, list) else points
        line = {
            "row": first + row,
            "sample_id": f"box{first + row:03d}.obj",
            "label": "box",
            "split": "train",
            "precision": "compact",
            "center": [0.0, 0.0, 0.0],
            "scale": 1.0,
            "doubt": 0.0,
            "faces": 12,
            "watertight": True,
        }
        for prefix, size in (("", many), ("held_", held)):
            on = _on_box(random, half, center, size)
            sets = {"near": on + random.normal(size=(size, 3)) * 0.05}
            sets["uniform"] = random.uniform(-1, 1, (size, 3))
            for name, coords in sets.items():
                steps = np.round((coords.clip(-1, 1) + 1) / 2 * 65535).astype("<u2")
                exact = box_distance(steps / 65535 * 2 - 1, half, center)
                line[f"{prefix}{name}_coords"] = steps.tobytes()
                line[f"{prefix}{name}_distance"] = exact.astype("<f2").tobytes()
            steps = np.round((on[:surface] + 1) / 2 * 65535).astype("<u2")
            line[f"{prefix}surface_coords"] = steps.tobytes()
        lines.append(line)
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *SHAPES]))


def _on_box(random, half, center, size):
    points = random.uniform(-1, 1, (size, 3)) * half
    axis = random.integers(0, 3, size)
    side = random.choice([-1.0, 1.0], size)
    points[np.arange(size), axis] = side * half[axis]
    return points + center
