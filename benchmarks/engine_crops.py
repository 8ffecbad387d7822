"""The workload of the engine's benchmark: crops of real pictures, and starts of networks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

PICTURES = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry")
SIDE = 32
OMEGA = 30.0
RATE = 2e-3


def crops(count: int, seed: int = 0) -> np.ndarray:
    """`count` crops of 32x32 RGB in [-1, 1] as [count, 1024, 3]: picture, then corner, by turns."""
    from skimage import data

    pictures = [getattr(data, name)() for name in PICTURES]
    random = np.random.default_rng(seed)
    cut = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        y, x = (int(random.integers(0, n - SIDE)) for n in picture.shape[:2])
        cut.append(picture[y : y + SIDE, x : x + SIDE].reshape(-1, 3))
    return np.stack(cut).astype(np.float32) / 127.5 - 1


def pixel_coords() -> np.ndarray:
    """[1024, 2], pixel centres at (2 i + 1) / 32 - 1."""
    line = (np.arange(SIDE) * 2 + 1) / SIDE - 1
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2).astype(np.float32)


def starts(count: int, depth: int, width: int = 64, seed: int = 1) -> list[tuple]:
    """(weight [n, o, i], bias [n, o]) of every layer, by the rule of the SIREN authors' code."""
    random = np.random.default_rng(seed)
    sizes = [2, *[width] * depth, 3]
    layers = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        bound = 1 / fan_in if i == 0 else math.sqrt(6 / width) / OMEGA
        shape = (count, fan_out, fan_in)
        weight = random.uniform(-bound, bound, shape)
        bias = random.uniform(-1, 1, shape[:2]) / math.sqrt(fan_in)
        layers.append((weight.astype(np.float32), bias.astype(np.float32)))
    return layers


def mse_of(decibel: float) -> float:
    """The mean squared error of this PSNR for values that span 2."""
    return 4 * 10 ** (-decibel / 10)
