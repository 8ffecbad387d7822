"""Contact sheets of rows that a prior gave, beside real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluate.contact_sheet import FAINT, GAP, INK, PAPER, fit_into, printable
from pipeline.evaluate.meshing import NoSurface
from pipeline.evaluate.opened import OpenedStore

MOST = 64
"""Cells an axis of the meshes on a sheet."""


def picture_of(opened: OpenedStore, row: int, side: int) -> Image.Image | None:
    """One row as a picture of at most `side` pixels; None where it has no surface."""
    from pipeline.evaluate.rendering import render_mesh

    try:
        if opened.dims == 2:
            return fit_into(opened.render(row, None), side)
        mesh = opened.mesh(row, min(MOST, max(side // 2, 32)), original_units=False)
        return fit_into(render_mesh(mesh, side), side)
    except NoSurface:
        return None


def group_sheet(
    groups: Mapping[str, Sequence[Image.Image | None]], side: int, title: str, columns: int = 8
) -> Image.Image:
    """Groups of pictures under one another, each with its name; a frame stands for no surface."""
    font = ImageFont.load_default()
    line = sum(font.getmetrics()) + 2
    lines = {name: -(-max(len(cells), 1) // columns) for name, cells in groups.items()}
    heights = [line + GAP + count * (side + GAP) + GAP for count in lines.values()]
    width = columns * (side + GAP) + 2 * GAP
    sheet = Image.new("RGB", (width, 2 * line + sum(heights) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * GAP, GAP), printable(title), INK, font)
    top = line + 2 * GAP
    for (name, cells), height in zip(groups.items(), heights):
        draw.text((2 * GAP, top), printable(name), FAINT, font)
        for i, image in enumerate(cells):
            x = 2 * GAP + i % columns * (side + GAP)
            y = top + line + i // columns * (side + GAP)
            if image is None:
                draw.rectangle((x, y, x + side - 1, y + side - 1), outline=FAINT)
            else:
                place = (x + (side - image.width) // 2, y + (side - image.height) // 2)
                sheet.paste(image, place)
        top += height
    return sheet


def pictures_of(opened: OpenedStore, count: int, side: int) -> list[Image.Image | None]:
    """The first rows of an opened store as pictures."""
    rows = opened.rows()[:count]
    return [picture_of(opened, row, side) for row in rows]
