"""Real photographs as small data sets: crops and whole pictures of what scikit-image ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = ("astronaut", "coffee", "chelsea", "rocket", "retina", "immunohistochemistry")
"""Color pictures that the scikit-image wheel ships."""
FORMATS = ("png", "jpg", "webp", "tif")
SIDE = 256
"""Pixels a side of a whole picture."""


def make_crops(folder: Path, *, each: int = 8, size: int = 64, seed: int = 0) -> None:
    """Writes crops, halved from twice their size, as folder/PICTURE/NUMBER.FORMAT."""
    for number, name in enumerate(PICTURES):
        picture = _picture(name)
        random = np.random.default_rng([seed, number])
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            left = int(random.integers(0, picture.width - 2 * size + 1))
            top = int(random.integers(0, picture.height - 2 * size + 1))
            crop = picture.crop((left, top, left + 2 * size, top + 2 * size))
            path = folder / name / f"{i:02d}.{FORMATS[i % len(FORMATS)]}"
            crop.resize((size, size), Image.Resampling.BOX).save(path, quality=95)


def make_pictures(folder: Path) -> None:
    """Writes whole pictures, cut to the central square and reduced, as PICTURE/PICTURE.png."""
    for name in (*PICTURES, "camera", "brick"):
        picture = _picture(name).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        (folder / name).mkdir(parents=True, exist_ok=True)
        square.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(folder / name / f"{name}.png")


def _picture(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(getattr(data, name)())
