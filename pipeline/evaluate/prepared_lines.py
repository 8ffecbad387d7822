"""Pictures and points of one line of a prepared table, decoded whole for metrics and reports."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Float

Line = dict[str, pa.Scalar]
"""One line of a prepared table, by column."""


def line_of(table: pa.Table, row: int) -> Line:
    return {name: table.column(name)[row] for name in table.column_names}


def decode_picture(line: Line) -> Float[np.ndarray, "h w c"]:
    """The picture of a prepared line, in [0, 1]."""
    return _picture(line, "pixels", "height", "width")


def decode_source(line: Line) -> Float[np.ndarray, "h w c"] | None:
    """The full-resolution source of a prepared line, None if the picture itself is it."""
    if "source" not in line or not line["source"].is_valid:
        return None
    return _picture(line, "source", "source_height", "source_width")


def _picture(line: Line, pixels: str, height: str, width: str) -> np.ndarray:
    dtype = np.dtype(line["dtype"].as_py())
    shape = (line[height].as_py(), line[width].as_py(), line["channels"].as_py())
    values = np.frombuffer(line[pixels].as_buffer(), dtype).reshape(shape)
    return values.astype(np.float32) / np.iinfo(dtype).max


def held_out_pixels(line: Line) -> np.ndarray:
    """Mask [height, width] of the pixels that were set apart."""
    height, width = line["height"].as_py(), line["width"].as_py()
    bits = np.frombuffer(line["held_out"].as_buffer(), np.uint8)
    return np.unpackbits(bits, count=height * width).astype(bool).reshape(height, width)


def decode_points(line: Line, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [p, 3] of a point set and its distances [p], signed or not (empty without)."""
    compact = line["precision"].as_py() == "compact"
    stored = np.frombuffer(line[f"{name}_coords"].as_buffer(), "<u2" if compact else "<f4")
    coords = stored.astype(np.float32).reshape(-1, 3)
    if compact:
        coords = coords * np.float32(2 / 65535) - np.float32(1)
    distance = np.zeros(0, np.float32)
    for column in (f"{name}_distance", f"{name}_unsigned_distance"):
        if column in line:
            stored = np.frombuffer(line[column].as_buffer(), "<f2" if compact else "<f4")
            distance = stored.astype(np.float32)
    return coords, distance
