"""Digits and letters of the font that Pillow ships (Aileron), as pictures and as solids.

Each glyph is drawn in variants of weight, width and slant; a solid is the outline extruded: closed,
with the holes and corners of real outlines, which no set of boxes and cylinders has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from pipeline.ingest.procedural import exported

GLYPHS = "0123456789AEHKRS"
VARIANTS = 6
FONT_SIZE = 256
MARGIN = 48
"""Pixels around the drawn glyph: room for strokes and slant."""
CELLS = 48
"""Pixels across the height of the drawing from which a solid is made."""
PICTURE = 64
"""Pixels a side of a picture."""
BEVEL = 0.02
"""Height of the rim of a cap, of the pixel size."""


@dataclass(frozen=True)
class Glyph:
    """One variant of one character."""

    character: str
    number: int
    coverage: Float[np.ndarray, "h w"]
    """Share of each pixel that is ink; `CELLS` pixels high, empty at the border."""
    depth: float
    """Of the solid, of its height."""
    color: tuple[int, int, int]


def glyphs(seed: int = 0) -> Iterator[Glyph]:
    """Every character of `GLYPHS` in `VARIANTS` variants."""
    for place, character in enumerate(GLYPHS):
        for number in range(VARIANTS):
            rng = np.random.default_rng([seed, place, number])
            stroke, slant = int(rng.integers(0, 7)), float(rng.uniform(-0.1, 0.3))
            width, depth = float(rng.uniform(0.8, 1.25)), float(rng.uniform(0.15, 0.4))
            color = tuple(int(c) for c in rng.integers(60, 230, 3))
            coverage = drawn(character, stroke=stroke, slant=slant, width=width)
            yield Glyph(character, number, coverage, depth, color)


def drawn(character: str, *, stroke: int, slant: float, width: float) -> Float[np.ndarray, "h w"]:
    """A character as the ink in each pixel of a small drawing."""
    font = ImageFont.load_default(FONT_SIZE)
    left, top, right, bottom = font.getbbox(character, stroke_width=stroke)
    size = (right - left + 2 * MARGIN, bottom - top + 2 * MARGIN)
    page = Image.new("L", size)
    ImageDraw.Draw(page).text(
        (MARGIN - left, MARGIN - top), character, fill=255, font=font, stroke_width=stroke
    )
    middle = size[1] / 2
    page = page.transform(
        size,
        Image.Transform.AFFINE,
        (1, slant, -slant * middle, 0, 1, 0),
        Image.Resampling.BILINEAR,
    )
    across = max(round(CELLS * width * size[0] / size[1]), 8)
    page = page.resize((across, CELLS), Image.Resampling.BOX)
    ink = np.asarray(page, np.float64) / 255
    ink[[0, -1]] = 0
    ink[:, [0, -1]] = 0
    return ink


def solid(glyph: Glyph) -> trimesh.Trimesh:
    """The outline extruded to a closed mesh of height 1, upright in the plane y = 0.

    Marching cubes of four layers: between the inner two the outline stands upright; to the outer
    two the value only changes its sign, so that the caps are flat.
    """
    from skimage.measure import marching_cubes

    level = glyph.coverage - 0.5
    level[level == 0] = 1e-6  # a corner on the surface itself would make faces without area
    volume = np.stack([-np.abs(level), level, level, -np.abs(level)])
    vertices, faces, _, _ = marching_cubes(volume, 0.0, gradient_direction="descent")
    half = glyph.depth * CELLS / 2
    layer = np.interp(vertices[:, 0], [0, 1, 2, 3], [-half - BEVEL, -half, half, half + BEVEL])
    placed = np.stack([vertices[:, 2], layer, -vertices[:, 1]], axis=1) / CELLS
    mesh = trimesh.Trimesh(placed, faces, process=False)
    if mesh.volume < 0:
        mesh.invert()
    return mesh


def picture(glyph: Glyph) -> Image.Image:
    """Dark ink on white, centered in a square."""
    ink = Image.fromarray(np.uint8(np.rint(glyph.coverage * 255)))
    scale = PICTURE / max(ink.size)
    ink = ink.resize(tuple(round(s * scale) for s in ink.size), Image.Resampling.BICUBIC)
    page = Image.new("L", (PICTURE, PICTURE))
    page.paste(ink, ((PICTURE - ink.width) // 2, (PICTURE - ink.height) // 2))
    return Image.fromarray(255 - np.asarray(page))


def make_solids(folder: Path) -> None:
    """Writes folder/CHARACTER/CHARACTER_NUMBER.ply."""
    for glyph in glyphs():
        data = exported({glyph.character: (solid(glyph), glyph.color)}, "ply")
        _write(folder, glyph, "ply", data)


def make_pictures(folder: Path) -> None:
    """Writes folder/CHARACTER/CHARACTER_NUMBER.png."""
    import io

    for glyph in glyphs():
        sink = io.BytesIO()
        picture(glyph).save(sink, "PNG")
        _write(folder, glyph, "png", sink.getvalue())


def _write(folder: Path, glyph: Glyph, suffix: str, data: bytes) -> None:
    path = folder / glyph.character / f"{glyph.character}_{glyph.number}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
