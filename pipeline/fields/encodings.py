"""Fixed maps of coordinates to sines and cosines, and networks behind them."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.fields.initializers import Normal
from pipeline.fields.mlp import MLP


class FourierFeatures(nn.Module):
    """[x?, sin(2 pi B x), cos(2 pi B x)] with a fixed B ~ N(0, sigma^2) (Tancik et al. 2020).

    B is a buffer: drawn once from the run's seed, shared by all samples, and stored.

    Args:
        dims: Coordinate axes.
        count: Number of frequencies.
        sigma: Standard deviation of the frequencies, in cycles per coordinate unit.
        identity: Whether the coordinates themselves come first.
    """

    def __init__(self, dims: int, count: int, sigma: float, *, identity: bool = False):
        super().__init__()
        self.identity = identity
        self.outputs = 2 * count + (dims if identity else 0)
        self.register_buffer("frequencies", torch.zeros(count, dims))
        self.initializers = {"frequencies": Normal(sigma)}

    def forward(self, coords: Float[Tensor, "*p d"]) -> Float[Tensor, "*p e"]:
        return _waves(coords, 2 * math.pi * coords @ self.frequencies.T, self.identity)

    def describe(self, prefix: str) -> dict[str, Any]:
        return {
            "kind": "fourier",
            "frequencies": f"{prefix}.frequencies",
            "factor": 2 * math.pi,
            "identity": self.identity,
        }


class PositionalEncoding(nn.Module):
    """[x?, sin(2^k pi x), cos(2^k pi x)] for k = 0 .. octaves - 1, axis by axis (NeRF eq. 4)."""

    def __init__(self, dims: int, octaves: int, *, identity: bool = True):
        super().__init__()
        self.identity = identity
        self.outputs = 2 * dims * octaves + (dims if identity else 0)
        blocks = [2.0**k * torch.eye(dims) for k in range(octaves)]
        self.register_buffer("frequencies", torch.cat(blocks))

    def forward(self, coords: Float[Tensor, "*p d"]) -> Float[Tensor, "*p e"]:
        return _waves(coords, math.pi * coords @ self.frequencies.T, self.identity)

    def describe(self, prefix: str) -> dict[str, Any]:
        return {
            "kind": "fourier",
            "frequencies": f"{prefix}.frequencies",
            "factor": math.pi,
            "identity": self.identity,
        }


class LogLinear(nn.Module):
    """[sin(2 pi f x), cos(2 pi f x)], axis by axis, f = (2^linspace(0, octaves) - 1) cycles a unit
    (the "positional" mapping of Tancik et al. 2020, authors' code: with the frequency 0).

    Args:
        dims: Coordinate axes.
        count: Frequencies an axis; 1 keeps the highest alone.
        octaves: The highest frequency is 2^octaves - 1.
    """

    def __init__(self, dims: int, count: int, octaves: float):
        super().__init__()
        steps = torch.linspace(0, octaves, count) if count > 1 else torch.tensor([float(octaves)])
        rates = 2.0**steps - 1
        self.outputs = 2 * dims * count
        blocks = [rate * torch.eye(dims) for rate in rates.tolist()]
        self.register_buffer("frequencies", torch.cat(blocks))

    def forward(self, coords: Float[Tensor, "*p d"]) -> Float[Tensor, "*p e"]:
        return _waves(coords, 2 * math.pi * coords @ self.frequencies.T, False)

    def describe(self, prefix: str) -> dict[str, Any]:
        return {
            "kind": "fourier",
            "frequencies": f"{prefix}.frequencies",
            "factor": 2 * math.pi,
            "identity": False,
        }


def _waves(coords: Tensor, angles: Tensor, identity: bool) -> Tensor:
    parts = [coords] if identity else []
    return torch.cat([*parts, torch.sin(angles), torch.cos(angles)], -1)


class EncodedField(nn.Module):
    """A network of encoded coordinates; `scale` and `offset` take them to the encoding's range."""

    def __init__(
        self, encoding: nn.Module | None, net: MLP, *, scale: float = 1.0, offset: float = 0.0
    ):
        super().__init__()
        self.encoding = encoding
        self.net = net
        self.scale, self.offset = scale, offset

    def forward(self, coords: Float[Tensor, "*n p d"]) -> Float[Tensor, "*n p c"]:
        coords = coords * self.scale + self.offset
        return self.net(coords if self.encoding is None else self.encoding(coords))

    def describe(self) -> list[dict[str, Any]]:
        first = [{"kind": "affine", "scale": self.scale, "offset": self.offset}]
        if self.encoding is not None:
            first.append(self.encoding.describe("encoding"))
        return [*first, *self.net.describe("net")]
