"""Silhouettes of two parts, with masks: do fields of unlabeled pictures know the parts?

    python -m benchmarks.two_parts FOLDER     # pictures, masks, and run files for both steps

A body and a smaller part at its rim, both ellipses of random place and size, all white: only the
form tells the parts apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SIDE = 24
COUNT = 400


def write(folder: Path, seed: int = 0) -> None:
    """`folder/pictures/N.png`, `folder/masks/N.png`, `functa.yaml`, `segment.yaml`."""
    random = np.random.default_rng(seed)
    for kind in ("pictures", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        picture, mask = two_parts(random)
        Image.fromarray(picture).save(folder / f"pictures/{number:03d}.png")
        Image.fromarray(mask).save(folder / f"masks/{number:03d}.png")
    fields = {
        "name": "two-parts",
        "dataset": {
            "url": str(folder / "pictures"),
            "kind": "images",
            "split": {"train": 0.75, "test": 0.25},
        },
        "ingest": {"resolution": SIDE, "color": "gray"},
        "method": {
            "name": "functa",
            "latent": 32,
            "width": 48,
            "depth": 4,
            "omega": 6.0,
            "inner_pixels": 288,
            "batch": 8,
            "rate": 3e-3,
            "train_steps": 600,
        },
        "store": str(folder / "two-parts.zarr"),
        "resources": {"workers": 0},
    }
    parts = {
        "name": "two-parts-segments",
        "source": {"url": str(folder / "two-parts.zarr")},
        "labels": {"kind": "masks", "masks": str(folder / "masks")},
        "labelled": 10,
        "test": ["test"],
        "store": str(folder / "segments"),
    }
    for name, values in (("functa", fields), ("segment", parts)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def two_parts(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture, and its mask: 0 background, 1 body, 2 part."""
    center, radii = random.uniform(-0.2, 0.2, 2), random.uniform(0.3, 0.5, 2)
    angle = -np.pi / 2 + random.uniform(-1.2, 1.2)
    rim = center + 1.15 * radii * (np.cos(angle), np.sin(angle))
    part_radii = random.uniform(0.2, 0.32, 2)
    fine = 4 * SIDE
    y, x = (np.mgrid[:fine, :fine] * 2 + 1) / fine - 1
    points = np.stack([x, y], -1)

    def inside(middle: np.ndarray, radius: np.ndarray) -> np.ndarray:
        return (((points - middle) / radius) ** 2).sum(-1) < 1

    body, part = inside(center, radii), inside(rim, part_radii)
    picture = (body | part).reshape(SIDE, 4, SIDE, 4).mean((1, 3))
    share = np.stack([body, part & ~body]).reshape(2, SIDE, 4, SIDE, 4).mean((2, 4))
    mask = np.where(picture < 0.5, 0, 1 + share.argmax(0)).astype(np.uint8)
    return (picture * 255).round().astype(np.uint8), mask


if __name__ == "__main__":
    write(Path(sys.argv[1]).absolute())
