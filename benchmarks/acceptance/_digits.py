"""Digits of the font that Pillow ships, turned, scaled and moved a little, as prepared rows."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from schemas.samples import GRID, IDENTITY

LARGE = 64


def digits(count: int, size: int, seed: int, *, held_out: float = 0.1) -> pa.Table:
    """`count` gray pictures in seeded order of ten classes, some pixels of each held out."""
    random = np.random.default_rng(seed)
    lines = []
    for row in range(count):
        label = int(random.integers(10))
        pixels = digit(label, size, random)
        held = random.random(pixels.size) < held_out
        lines.append(
            {
                "row": row,
                "sample_id": f"{row:04d}.png",
                "label": str(label),
                "split": "train",
                "pixels": pixels.tobytes(),
                "height": size,
                "width": size,
                "channels": 1,
                "dtype": "uint8",
                "held_out": np.packbits(held).tobytes(),
            }
        )
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))


def digit(label: int, size: int, random: np.random.Generator) -> np.ndarray:
    """One digit, white on black, drawn large and reduced by averaging."""
    font = ImageFont.load_default(size=int(LARGE * random.uniform(0.75, 0.95)))
    picture = Image.new("L", (LARGE, LARGE))
    middle = LARGE / 2 + random.uniform(-4, 4, 2)
    ImageDraw.Draw(picture).text(tuple(middle), str(label), fill=255, font=font, anchor="mm")
    turn, shear = math.radians(random.uniform(-15, 15)), random.uniform(-0.2, 0.2)
    cos, sin, half = math.cos(turn), math.sin(turn), LARGE / 2
    a, b, c, d = cos, sin + shear, -sin, cos
    shift = (half - a * half - b * half, half - c * half - d * half)
    affine = (a, b, shift[0], c, d, shift[1])
    picture = picture.transform((LARGE, LARGE), Image.Transform.AFFINE, affine, Image.BILINEAR)
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX), np.uint8)


def held_out_psnr(method, shared, rows, samples, table: pa.Table) -> float:
    """Mean over the pictures of a table of the PSNR of their held-out pixels, dB."""
    from pipeline.evaluate.metrics import measure

    return float(measure("images", method, shared, rows, samples, table)["psnr"].mean())
