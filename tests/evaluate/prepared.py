"""Prepared tables of closed forms, as ingest would write them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from schemas.samples import GRID, IDENTITY, SHAPES


def picture_table(
    *, shapes=None, pictures=None, sources=None, channels=3, held_out=0.0, seed=0
) -> pa.Table:
    """Random pictures of these shapes, or these pictures in [0, 1], as uint8."""
    random = np.random.default_rng(seed)
    if pictures is None:
        pictures = [random.random((h, w, channels)) for h, w in shapes]
    lines = []
    for row, picture in enumerate(pictures):
        height, width, channels = picture.shape
        mask = np.zeros(height * width, bool)
        mask[random.permutation(height * width)[: round(held_out * height * width)]] = True
        source = sources[row] if sources else None
        lines.append(
            {
                "row": row,
                "sample_id": f"class{row % 2}/{row:04d}.png",
                "label": f"class{row % 2}",
                "split": "test" if row % 5 == 4 else "train",
                "pixels": _bytes(picture),
                "height": height,
                "width": width,
                "channels": channels,
                "dtype": "uint8",
                "held_out": np.packbits(mask).tobytes(),
                "source": None if source is None else _bytes(source),
                "source_height": None if source is None else source.shape[0],
                "source_width": None if source is None else source.shape[1],
            }
        )
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))


def _bytes(picture: np.ndarray) -> bytes:
    return np.round(picture * 255).astype(np.uint8).tobytes()


def shape_table(*, radii, points=1000, center=(0.0, 0.0, 0.0), scale=1.0, seed=0) -> pa.Table:
    """Spheres of these radii with exact distances at rounded coordinates."""
    random = np.random.default_rng(seed)
    lines = []
    for row, radius in enumerate(radii):
        line = {
            "row": row,
            "sample_id": f"sphere/{row:04d}.obj",
            "label": "sphere",
            "split": "train",
            "precision": "compact",
            "center": list(center),
            "scale": scale,
            "doubt": 0.0,
            "faces": 100,
            "watertight": True,
        }
        for prefix in ("", "held_"):
            direction = random.normal(size=(3, points, 3))
            direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
            near = direction[0] * radius + 0.03 * random.normal(size=(points, 3))
            sets = {"near": near, "uniform": random.random((points, 3)) * 2 - 1}
            for name, coords in sets.items():
                stored = _steps(coords)
                exact = np.linalg.norm(stored / 65535 * 2 - 1, axis=1) - radius
                line[f"{prefix}{name}_coords"] = stored.tobytes()
                line[f"{prefix}{name}_distance"] = exact.astype("<f2").tobytes()
            line[f"{prefix}surface_coords"] = _steps(direction[2] * radius).tobytes()
            line[f"{prefix}surface_normals"] = direction[2].astype("<f2").tobytes()
            line[f"{prefix}surface_color"] = None
            line[f"{prefix}surface_part"] = None
        lines.append(line)
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *SHAPES]))


def _steps(coords: np.ndarray) -> np.ndarray:
    return np.round((np.clip(coords, -1, 1) + 1) / 2 * 65535).astype("<u2")
