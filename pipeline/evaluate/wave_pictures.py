"""Waves for people: curves over a line, maps of a plane, what passes in time; and their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw

from pipeline.evaluate.prepared_lines import Line
from pipeline.evaluate.rendering import Rendering
from pipeline.evaluate.signals import Values
from pipeline.evaluate.wave_metrics import grid_axes, reference_of

SIDE = 256
"""Pixels of a picture's longer side where none are asked for."""
NODES = 129
"""Nodes along x of values where none are asked for."""
MOMENTS = 4
"""Maps beside each other of a wave in the plane: of times evenly from the start to the end."""
LOW, MIDDLE, HIGH = (0.23, 0.30, 0.75), (0.95, 0.95, 0.93), (0.71, 0.02, 0.15)
"""Colors of the least value, of 0 and of the largest."""
CURVES = ((33, 102, 172), (178, 24, 43))
"""Colors of the real and of the imaginary part over a line."""


def wave_grid(
    values: Values, line: Mapping[str, Any], axes: Sequence[str], side: int = NODES
) -> Float[np.ndarray, "*grid c"]:
    """A field's values in its file's units at evenly spaced nodes from border to border (and from
    start to end): `side` of them along x, a quarter as many in time.

    Args:
        values: The field.
        line: The row's columns: `duration`, `amplitude`.
        axes: Of its coordinates, as in `spec.coords`.
    """
    nodes = [side] * len(axes)
    if axes[0] == "t":
        nodes[0] = max(side // 4, 1) + 1
    return _on_grid(values, line, axes, nodes) * line["amplitude"]


def render_wave(
    values: Values, line: Mapping[str, Any], axes: Sequence[str], side: int = SIDE
) -> Rendering:
    """A field as a picture (see `picture_of`)."""
    waves, nodes = axes[0] == "t", [side] * len(axes)
    if waves and len(axes) == 3:
        nodes = [MOMENTS, side // MOMENTS, side // MOMENTS]
    return picture_of(_on_grid(values, line, axes, nodes), waves, side)


def _on_grid(
    values: Values, line: Mapping[str, Any], axes: Sequence[str], nodes: list[int]
) -> Float[np.ndarray, "*grid c"]:
    grid = np.meshgrid(*grid_axes(axes[0] == "t", line["duration"], nodes), indexing="ij")
    coords = np.stack(grid, -1).reshape(-1, len(nodes))
    return values(torch.from_numpy(coords.astype(np.float32))).cpu().numpy().reshape(*nodes, -1)


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
