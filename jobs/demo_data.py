"""The data of the demo: crops of real photographs, and procedural shapes; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = ("astronaut", "coffee", "chelsea", "rocket", "retina", "immunohistochemistry")
"""Color pictures that the scikit-image wheel ships."""
FORMATS = ("png", "jpg", "webp", "tif")


def make_images(folder: Path, *, each: int = 8, size: int = 64, seed: int = 0) -> None:
    """Writes crops, halved from twice their size, as folder/PICTURE/NUMBER.FORMAT."""
    from skimage import data

    for number, name in enumerate(PICTURES):
        picture = Image.fromarray(getattr(data, name)())
        random = np.random.default_rng([seed, number])
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            left = int(random.integers(0, picture.width - 2 * size + 1))
            top = int(random.integers(0, picture.height - 2 * size + 1))
            crop = picture.crop((left, top, left + 2 * size, top + 2 * size))
            path = folder / name / f"{i:02d}.{FORMATS[i % len(FORMATS)]}"
            crop.resize((size, size), Image.Resampling.BOX).save(path, quality=95)
