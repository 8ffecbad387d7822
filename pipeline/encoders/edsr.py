"""Pictures to feature grids of the same size: residual blocks without normalization (EDSR, Lim et
al. 2017, without its upsampling)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.encoders.alone import alone


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x + self.conv2(self.conv1(x).relu())


class Edsr(nn.Module):
    """A convolution, residual blocks, a convolution, and a shortcut over the blocks.

    Args:
        channels: Of the pictures.
        features: Of the grid (baseline: 64).
        blocks: Residual blocks (baseline: 16).
    """

    def __init__(self, channels: int, features: int, blocks: int):
        super().__init__()
        self.head = nn.Conv2d(channels, features, 3, padding=1)
        self.body = nn.Sequential(*(_Residual(features) for _ in range(blocks)))
        self.tail = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, picture: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f h w"]:
        """Values in [-1, 1]."""
        return alone(self._features, picture, self.training)

    def _features(self, picture: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f h w"]:
        head = self.head(picture)
        return head + self.tail(self.body(head))

    def describe(self, prefix: str) -> dict[str, Any]:
        return {"kind": "edsr", "parameters": f"{prefix}.*", "blocks": len(self.body)}
