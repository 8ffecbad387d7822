"""A contact sheet: inputs beside reconstructions, each with its name and its main metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluate.meshing import NoSurface
from pipeline.evaluate.opened import OpenedStore
from pipeline.evaluate.prepared_lines import Line, decode_picture, decode_points, line_of
from pipeline.evaluate.rendering import Rendering, View, render_points
from pipeline.evaluate.report import main_metric, number
from pipeline.evaluate.signals import prepared_rendering
from pipeline.evaluate.wave_pictures import render_reference

GAP = 6
"""Pixels between cells."""
INK = (40, 40, 48)
PAPER = (255, 255, 255)
FAINT = (160, 160, 168)


@dataclass(frozen=True)
class Cell:
    """One sample of a sheet: what went in, what came out, and words below."""

    source: Image.Image | None
    result: Image.Image | None
    caption: tuple[str, ...]


def contact_sheet(
    store: OpenedStore,
    read_prepared: Callable[[int], pa.Table] | None = None,
    *,
    rows: Sequence[int] | None = None,
    count: int = 12,
    side: int = 128,
    columns: int = 3,
    view: View | None = None,
) -> Image.Image:
    """Inputs beside reconstructions, with sample id and main metric.

    Args:
        read_prepared: Gives the prepared line of a store row as a table of one line; absent: only
            the reconstructions are drawn.
        rows: Which rows; absent: `count` of them spread evenly over the store.
        side: Pixels of a picture's side; small images are enlarged without smoothing.
        columns: Pairs beside each other.
    """
    rows = spread_rows(store, count) if rows is None else list(rows)
    cells = []
    for row in rows:
        line = None if read_prepared is None else line_of(read_prepared(row), 0)
        cells.append(_cell(store, row, line, side, view))
    return lay_out(cells, side, columns, store.plan.name)


def spread_rows(store: OpenedStore, count: int) -> list[int]:
    """Usable rows spread evenly over the store: unbiased, as rows are in hashed order."""
    usable = store.rows()
    if len(usable) <= count:
        return usable
    return [usable[i * len(usable) // count] for i in range(count)]


def _cell(store: OpenedStore, row: int, line: Line | None, side: int, view: View | None) -> Cell:
    entry = store.line(row)
    caption = [entry["sample_id"]]
    name = main_metric(store)
    if name:
        caption.append(f"{name} {number(entry[name])}")
    try:
        result = fit_into(store.render(row, _resolution(store, side), view=view), side)
    except NoSurface:
        result = None
        caption.append("no surface")
    source = None if line is None else fit_into(render_input(line, side, view), side)
    return Cell(source, result, tuple(caption))


def _resolution(store: OpenedStore, side: int) -> int | None:
    return None if store.dims == 2 or store.kind in ("audio", "video") else side


def render_input(line: Line, side: int, view: View | None = None) -> Rendering:
    """What a fit saw of a sample: its picture, or its surface points in matte shading; of sounds
    the wave, of videos the middle frame."""
    shown = prepared_rendering(line)
    if shown is not None:
        return shown
    if "pixels" in line:
        return Rendering(decode_picture(line))
    if "reference" in line:
        return render_reference(line)
    points, _ = decode_points(line, "surface")
    normals = None
    if "surface_normals" in line and line["surface_normals"].is_valid:
        stored = np.frombuffer(line["surface_normals"].as_buffer(), "<f2")
        normals = stored.reshape(-1, 3).astype(np.float32)
    return render_points(points, normals, side, view=view)


def fit_into(rendering: Rendering, side: int) -> Image.Image:
    """A picture of at most `side` pixels: small ones enlarged by whole factors, others reduced."""
    image = rendering.to_image()
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*PAPER, 255)), image)
    image = image.convert("RGB")
    longer = max(image.size)
    if longer > side:
        size = tuple(max(round(s * side / longer), 1) for s in image.size)
        return image.resize(size, Image.Resampling.BOX)
    factor = max(side // longer, 1)
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


def lay_out(cells: Sequence[Cell], side: int, columns: int, title: str) -> Image.Image:
    """Cells row by row under a title."""
    font = ImageFont.load_default()
    height_of_text = sum(font.getmetrics()) if hasattr(font, "getmetrics") else 11
    lines = max((len(cell.caption) for cell in cells), default=1)
    pictures = 2 if any(cell.source for cell in cells) else 1
    width = pictures * side + (pictures - 1) * GAP
    height = side + lines * (height_of_text + 1) + GAP
    columns = max(1, min(columns, len(cells)))
    grid_rows = -(-len(cells) // columns)
    head = 2 * height_of_text + 2 * GAP
    sheet = Image.new(
        "RGB",
        (columns * (width + 3 * GAP) + 3 * GAP, head + grid_rows * (height + 2 * GAP) + GAP),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    legend = "input | reconstruction" if pictures == 2 else "reconstruction"
    draw.text(
        (3 * GAP, GAP), clip_text(printable(title), draw, font, sheet.width - 6 * GAP), INK, font
    )
    draw.text((3 * GAP, GAP + height_of_text + 2), legend, FAINT, font)
    for i, cell in enumerate(cells):
        x = 3 * GAP + (i % columns) * (width + 3 * GAP)
        y = head + (i // columns) * (height + 2 * GAP)
        shown = [cell.source, cell.result] if pictures == 2 else [cell.result]
        for k, image in enumerate(shown):
            left = x + k * (side + GAP)
            if image is None:
                draw.rectangle((left, y, left + side - 1, y + side - 1), outline=FAINT)
                continue
            sheet.paste(image, (left + (side - image.width) // 2, y + (side - image.height) // 2))
        for k, text in enumerate(cell.caption):
            place = (x, y + side + 2 + k * (height_of_text + 1))
            draw.text(place, clip_text(printable(text), draw, font, width), INK, font)
    return sheet


def printable(text: str) -> str:
    """Text on one line that every default font can draw."""
    return " ".join(text.split()).encode("latin-1", "replace").decode("latin-1")


def clip_text(text: str, draw: ImageDraw.ImageDraw, font: Any, width: int) -> str:
    """The end of a text that is too long: file names differ there."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(".." + text, font) > width:
        text = text[1:]
    return ".." + text
