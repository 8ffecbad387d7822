"""Waves for people: curves over a line, maps of a plane, what passes in time; and their values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw

from pipeline.evaluate.prepared_lines import Line
from pipeline.evaluate.rendering import Rendering
from pipeline.evaluate.wave_metrics import grid_axes, reference_of

if TYPE_CHECKING:
    from pipeline.evaluate.opened import OpenedStore

SIDE = 256
"""Pixels of a picture's longer side where none are asked for."""
MOMENTS = 4
"""Maps beside each other of a wave in the plane: of times evenly from the start to the end."""
LOW, MIDDLE, HIGH = (0.23, 0.30, 0.75), (0.95, 0.95, 0.93), (0.71, 0.02, 0.15)
"""Colors of the least value, of 0 and of the largest."""
CURVES = ((33, 102, 172), (178, 24, 43))
"""Colors of the real and of the imaginary part over a line."""


def wave_values(store: OpenedStore, row: int, nodes: list[int]) -> Float[np.ndarray, "*grid c"]:
    """A row's field at evenly spaced nodes of its domain, axes as in `spec.coords`."""
    waves = store.spec.coords["axes"][0] == "t"
    axes = grid_axes(waves, store.line(row)["duration"], nodes)
    coords = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(nodes))
    values = store.values(row, torch.from_numpy(coords.astype(np.float32)))["wave"]
    return values.cpu().numpy().reshape(*nodes, -1)


def wave_grid(
    store: OpenedStore, row: int, resolution: int | tuple[int, int] | None = None
) -> Float[np.ndarray, "*grid c"]:
    """A row's values in its file's units at evenly spaced nodes from border to border (and from
    start to end): `resolution` of them along x (default 129), a quarter as many in time.

    Raises:
        ValueError: The store holds no waves.
    """
    if store.quantity != "wave":
        raise ValueError(f"'{store.plan.name}' holds fields of '{store.quantity}', no waves")
    space = max(resolution) if isinstance(resolution, tuple) else resolution or 129
    nodes = [space] * (store.dims - (store.spec.coords["axes"][0] == "t"))
    nodes = nodes if len(nodes) == store.dims else [max(space // 4, 1) + 1, *nodes]
    return wave_values(store, row, nodes) * store.line(row)["amplitude"]


def render_wave(
    store: OpenedStore, row: int, resolution: int | tuple[int, int] | None = None
) -> Rendering:
    """A row as a picture (see `picture_of`)."""
    side = max(resolution) if isinstance(resolution, tuple) else resolution or SIDE
    waves = store.spec.coords["axes"][0] == "t"
    nodes = [side] * store.dims
    if waves and store.dims == 3:
        nodes = [MOMENTS, side // MOMENTS, side // MOMENTS]
    return picture_of(wave_values(store, row, nodes), waves, side)


def render_reference(line: Line) -> Rendering:
    """The reference of a line of a prepared table, in the same way."""
    reference = reference_of(line)
    waves = line["equation"].as_py() == "wave"
    values = reference.values
    if waves and values.ndim == 4:
        values = values[np.linspace(0, len(values) - 1, MOMENTS).round().astype(int)]
    return picture_of(values, waves, SIDE)


def picture_of(values: Float[np.ndarray, "*grid c"], waves: bool, side: int) -> Rendering:
    """Over a line: curves of both parts. In the plane: the real part, y up. Of waves over a line x
    to the right and time downward; of waves in the plane some moments beside each other."""
    size = float(np.abs(values).max()) or 1.0
    if values.ndim == 2:
        return Rendering(_curves(values / size, side))
    part = values[..., 0] / size
    if waves and part.ndim == 3:
        part = np.concatenate([moment.T[::-1] for moment in part], 1)
    elif not waves:
        part = part.T[::-1]
    return Rendering(_colors(part))


def _colors(part: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    part = np.clip(part, -1, 1)[..., None]
    low, middle, high = (np.array(color) for color in (LOW, MIDDLE, HIGH))
    return np.where(part < 0, middle - part * (low - middle), middle + part * (high - middle))


def _curves(values: Float[np.ndarray, "p c"], side: int) -> Float[np.ndarray, "h w 3"]:
    height = max(side // 2, 8)
    image = Image.new("RGB", (side, height), "white")
    draw = ImageDraw.Draw(image)
    draw.line([(0, height / 2), (side, height / 2)], fill=(200, 200, 200))
    x = np.linspace(0, side - 1, len(values))
    for channel, color in zip(values.T, CURVES):
        y = (0.5 - 0.46 * channel) * (height - 1)
        draw.line(list(zip(x.tolist(), y.tolist())), fill=color, width=max(1, side // 200))
    return np.asarray(image, np.float32) / 255
