"""Pictures made of a few sine waves, with their exact gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from schemas.samples import GRID, IDENTITY


@dataclass(frozen=True)
class Waves:
    """Colors 0.5 + sum of amplitude sin(k . x + phase); `f` waves, `c` channels."""

    wave: Float[np.ndarray, "f 2"]
    phase: Float[np.ndarray, "f"]
    amplitude: Float[np.ndarray, "f c"]

    @classmethod
    def seeded(cls, seed: int, row: int, *, channels: int = 3, highest: float = 6.0) -> Waves:
        """Six waves of at most `highest` radians a unit along each axis, inside [0, 1]."""
        random = np.random.default_rng([seed, row])
        amplitude = random.normal(size=(6, channels))
        amplitude *= 0.45 / np.abs(amplitude).sum(0)
        return cls(
            random.uniform(-highest, highest, (6, 2)), random.uniform(0, 2 * np.pi, 6), amplitude
        )

    def color(self, coords: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p c"]:
        return 0.5 + np.sin(coords @ self.wave.T + self.phase) @ self.amplitude

    def gradient(self, coords: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p c 2"]:
        slope = np.cos(coords @ self.wave.T + self.phase)
        return np.einsum("pf,fc,fd->pcd", slope, self.amplitude, self.wave)


def centers(size: int) -> Float[np.ndarray, "p 2"]:
    """Pixel centres of a square picture, (x, y), row by row."""
    at = (2 * np.arange(size) + 1) / size - 1
    x, y = np.meshgrid(at, at)
    return np.stack([x, y], -1).reshape(-1, 2)


def prepared(pictures: list[Waves], size: int, held_out: Bool[np.ndarray, "h w"]) -> pa.Table:
    """The pictures as a prepared table."""
    colors = [picture.color(centers(size)).reshape(size, size, -1) for picture in pictures]
    return prepared_colors(colors, held_out)


def prepared_colors(
    colors: list[Float[np.ndarray, "h w c"]], held_out: Bool[np.ndarray, "h w"]
) -> pa.Table:
    """Colors in [0, 1], stored in 16 bits."""
    lines = []
    for row, color in enumerate(colors):
        line = {
            "row": row,
            "sample_id": f"waves{row}.png",
            "label": "",
            "split": "train",
            "pixels": (color * 65535).round().astype("<u2").tobytes(),
            "height": color.shape[0],
            "width": color.shape[1],
            "channels": color.shape[2],
            "dtype": "uint16",
            "held_out": np.packbits(held_out.ravel()).tobytes(),
        }
        lines.append(line)
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))
