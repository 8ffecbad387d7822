"""A folder of small pictures with broken ones among them, and a run file for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image


def write_pictures(folder: Path, count: int = 11) -> None:
    """Smooth pictures in two classes, one that is no picture, one empty file, one text file."""
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 16), np.linspace(0, 1, 16)), -1)
    for i in range(count):
        phase = np.array([0.3, 0.7]) * i
        wave = np.sin(6 * grid + phase).mean(-1, keepdims=True) * [1.0, 0.5, -0.5]
        place = folder / ("round" if i % 2 else "square")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(127 + 120 * wave)).save(place / f"picture {i}.png")
    (folder / "round" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing follows")
    (folder / "square" / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not a picture")


def write_run(folder: Path, **changes: object) -> str:
    """A run file for `folder/pictures` with units of 4 rows; returns its path."""
    values = {
        "name": "pictures",
        "dataset": {"url": str(folder / "pictures"), "kind": "images"},
        "ingest": {"unit_objects": 5},
        "method": {"name": "siren", "width": 8, "depth": 2, "steps": 6},
        "store": str(folder / "out" / "pictures.zarr"),
        "fit": {"unit_rows": 4, "lanes": 2},
        "resources": {"workers": 0},
        **changes,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)
