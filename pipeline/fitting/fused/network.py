"""The flat, padded form in which the compiled loop holds one network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEW = 4
"""Rows kept for the coordinates with their constant 1, and for the channels."""
LINE = 64
"""Bytes of a cache line."""


def aligned(count: int) -> np.ndarray:
    """Zeros (float32) that start on a cache line."""
    room = np.zeros(count + LINE // 4, np.float32)
    start = -room.ctypes.data % LINE // 4
    return room[start : start + count]


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron of equally wide layers: y = W act(... act(s_0 (W_0 x + b_0))) + b."""

    dims: int
    """Coordinate axes, at most 3."""
    width: int
    hidden: int
    """Layers from `width` to `width`."""
    channels: int
    """At most 4."""
    scales: tuple[float, ...]
    """Factor of weight and bias of each layer, the last one too."""
    lanes: int
    """Numbers in a vector register: widths are padded to multiples of it."""

    @property
    def padded(self) -> int:
        return -(-self.width // self.lanes) * self.lanes

    @property
    def layers(self) -> int:
        return self.hidden + 2

    @property
    def size(self) -> int:
        w = self.padded
        return w * (2 * FEW + self.hidden * (w + 1)) + FEW

    def parts(self, flat: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Views of weight and bias of every layer."""
        w, real = self.padded, self.width
        first = flat[: FEW * w].reshape(FEW, w)
        middle = flat[FEW * w : w * (FEW + self.hidden * w)].reshape(self.hidden, w, w)
        at = w * (FEW + self.hidden * w)
        last = flat[at : at + FEW * w].reshape(FEW, w)
        biases = flat[at + FEW * w : -FEW].reshape(self.hidden, w)
        return [
            (first[: self.dims, :real].T, first[self.dims, :real]),
            *((middle[h, :real, :real], biases[h, :real]) for h in range(self.hidden)),
            (last[: self.channels, :real], flat[-FEW:][: self.channels]),
        ]

    def factors(self) -> np.ndarray:
        """The factor of every parameter, in the flat form."""
        flat = aligned(self.size)
        for (weight, bias), factor in zip(self.parts(flat), self.scales):
            weight[:], bias[:] = factor, factor
        return flat

    def pack(self, weights: list[np.ndarray], biases: list[np.ndarray]) -> np.ndarray:
        """One flat row of the weights ([out, in]) and biases of all layers."""
        flat = aligned(self.size)
        for (weight, bias), w, b in zip(self.parts(flat), weights, biases):
            weight[:], bias[:] = w, b
        return flat


def points_of(coords: np.ndarray, rows: int) -> np.ndarray:
    """[p, d] -> [p, 4] with a 1 after the coordinates, and room for whole blocks of `rows`."""
    p, d = coords.shape
    held = aligned(-(-p // rows) * rows * FEW).reshape(-1, FEW)
    held[:p, :d] = coords
    held[:p, d] = 1
    return held.reshape(-1)


def few(values: np.ndarray) -> np.ndarray:
    """[p, c] -> [p * 4], zeros after the channels."""
    held = aligned(len(values) * FEW).reshape(-1, FEW)
    held[:, : values.shape[1]] = values
    return held.reshape(-1)
