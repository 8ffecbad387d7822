"""Point sets to codes: a PointNet of residual blocks with pooling between them."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.fields.blocks import ResidualBlock
from pipeline.fields.initializers import Constant
from pipeline.fields.linear import Linear

ABSENT = -1e9
"""Stands for a point that is left out where the largest value is taken."""


class PointNet(nn.Module):
    """A code of a point set that does not depend on the order of its points.

    Points -> 2 h; residual blocks 2 h -> h, after each of which the largest value over the points
    is concatenated to every point; the largest values at the end -> code (Occupancy Networks,
    supplement 1.1: five blocks, h = 512).

    Args:
        inputs: Numbers a point: 3, or 4 with an occupancy.
        width: h.
        outputs: Length of the code.
    """

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int = 5):
        super().__init__()
        self.lift = Linear(inputs, 2 * width)
        self.blocks = nn.ModuleList(ResidualBlock(2 * width, width) for _ in range(blocks))
        self.head = Linear(width, outputs)

    def forward(
        self, points: Float[Tensor, "n s i"], weight: Float[Tensor, "n s"] | None = None
    ) -> Float[Tensor, "n z"]:
        """`weight` 0 leaves a point out."""
        absent = None if weight is None else (weight == 0)[..., None]
        parts = (self.lift(points),)
        for block in self.blocks:
            x = block(*parts)
            seen = x if absent is None else x.masked_fill(absent, ABSENT)
            parts = (x, seen.amax(1, keepdim=True))
        return self.head(parts[1].relu())[:, 0]

    def describe(self, prefix: str) -> dict[str, Any]:
        return {
            "kind": "pointnet",
            "lift": self.lift.describe(f"{prefix}.lift"),
            "blocks": [b.describe(f"{prefix}.blocks.{i}") for i, b in enumerate(self.blocks)],
            "pool": "max",
            "head": self.head.describe(f"{prefix}.head"),
        }


class Posterior(nn.Module):
    """A point set to a normal distribution of codes: mean and logarithm of the standard deviation.

    The deviations start at 0.05 (the bias of their layer): where they start at 1, the decoder sees
    noise in place of codes and learns to do without them. `std` is another such start, and `zero`
    starts all means at zero.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        code: int,
        blocks: int = 5,
        *,
        std: float = 0.05,
        zero: bool = False,
    ):
        super().__init__()
        self.points = PointNet(inputs, width, width, blocks)
        nothing = {"weight": Constant(0.0), "bias": Constant(0.0)}
        self.mean = Linear(width, code, start=nothing if zero else None)
        start = {"weight": Constant(0.0), "bias": Constant(math.log(std))}
        self.log_std = Linear(width, code, start=start)

    def forward(
        self, points: Float[Tensor, "n s i"], weight: Float[Tensor, "n s"] | None = None
    ) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n z"]]:
        hidden = self.points(points, weight).relu()[:, None]
        return self.mean(hidden)[:, 0], self.log_std(hidden)[:, 0]

    def describe(self, prefix: str) -> dict[str, Any]:
        return {
            "kind": "posterior",
            "points": self.points.describe(f"{prefix}.points"),
            "mean": self.mean.describe(f"{prefix}.mean"),
            "log_std": self.log_std.describe(f"{prefix}.log_std"),
        }
