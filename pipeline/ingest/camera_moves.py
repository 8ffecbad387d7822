"""Short videos of real photographs, over which a camera pans, zooms and turns.

No package that can be depended on ships a video, so `sample:clips` moves a window over what
scikit-image ships: the content is photographed, the motion is computed. Frames are exact: animated
PNG loses nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = ("astronaut", "coffee", "chelsea", "rocket")
MOVES = ("pan", "zoom", "turn")
FRAMES, SIDE = 24, 48
MILLISECONDS = 40
"""Of a frame: 25 a second."""


def make_clips(folder: Path, *, seed: int = 0) -> None:
    """Writes folder/PICTURE/MOVE.apng, 24 frames of 48 x 48 pixels."""
    from skimage import data

    for number, name in enumerate(PICTURES):
        picture = Image.fromarray(getattr(data, name)())
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, move in enumerate(MOVES):
            frames = camera(picture, move, np.random.default_rng([seed, number, i]))
            first, *rest = (Image.fromarray(frame) for frame in frames)
            first.save(
                folder / name / f"{move}.apng",
                "PNG",
                save_all=True,
                append_images=rest,
                duration=MILLISECONDS,
            )


def camera(picture: Image.Image, move: str, random: np.random.Generator) -> np.ndarray:
    """Frames [f, h, w, 3] of a window that moves smoothly, sampled with a filter of its size."""
    wide = min(picture.size)
    window = 0.45 * wide
    center = np.array(picture.size) / 2
    drift = random.uniform(-0.2, 0.2, 2) * wide
    frames = []
    for time in np.linspace(-1, 1, FRAMES):
        at, side, angle = center + 0.3 * drift, window, 0.0
        if move == "pan":
            at = center + drift * np.sin(time * np.pi / 2)
        elif move == "zoom":
            side = window * 1.6 ** (0.5 * time)
        else:
            angle = 25 * time
        turned = picture
        if angle:
            turned = picture.rotate(angle, Image.Resampling.BICUBIC, center=tuple(at))
        box = (*(at - side / 2), *(at + side / 2))
        frames.append(np.asarray(turned.resize((SIDE, SIDE), Image.Resampling.BOX, box=box)))
    return np.stack(frames)
