"""Fields of residual blocks: conditioned by a code (conditional batch norm, or added once) or by
features read from planes and volumes.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.fields.blocks import EPSILON, ConditionalNorm, ResidualBlock
from pipeline.fields.initializers import Constant, torch_default
from pipeline.fields.latent import Latent
from pipeline.fields.linear import Linear
from pipeline.fields.planes import AXES, in_cell, read_grid, read_planes


def head(width: int, level: float | None) -> Linear:
    """The last layer, to one number; `level`: the bias that it starts with.

    Where little of the box is inside, the first steps push all outputs down. A bias that starts
    there spares the weights: a layer whose weights all turned negative can say no inside.
    """
    start = torch_default(width)
    return Linear(width, 1, start=start if level is None else start | {"bias": Constant(level)})


class NormedField(nn.Module):
    """Occupancy Networks' decoder: the code scales and shifts every batch normalization.

    Points -> width; residual blocks; conditional norm, relu, linear (supplement 1.1).
    """

    def __init__(self, code: int, width: int, blocks: int, *, level: float | None = None):
        super().__init__()
        self.code = Latent((code,))
        self.lift = Linear(3, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, code=code) for _ in range(blocks))
        self.norm = ConditionalNorm(width, code)
        self.head = head(width, level)

    def forward(self, coords: Float[Tensor, "n p 3"]) -> Float[Tensor, "n p 1"]:
        code = self.code().unsqueeze(-2)
        x = self.lift(coords)
        for block in self.blocks:
            x = block(x, code=code)
        return self.head(self.norm(x, code).relu())

    def describe(self) -> list[dict[str, Any]]:
        return [
            self.lift.describe("lift"),
            *(block.describe(f"blocks.{i}") for i, block in enumerate(self.blocks)),
            {
                "kind": "conditional batch norm",
                "code": self.code.describe("code"),
                "gamma": self.norm.gamma.describe("norm.gamma"),
                "beta": self.norm.beta.describe("norm.beta"),
                "statistics": "norm.norm",
                "epsilon": EPSILON,
            },
            {**self.head.describe("head"), "before": "relu"},
        ]


class AddedField(nn.Module):
    """Occupancy Networks' unconditional decoder: the code is added once, after the point layer."""

    def __init__(self, code: int, width: int, blocks: int, *, level: float | None = None):
        super().__init__()
        self.code = Latent((code,))
        self.lift = Linear(3, width)
        self.add = Linear(code, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.head = head(width, level)

    def forward(self, coords: Float[Tensor, "n p 3"]) -> Float[Tensor, "n p 1"]:
        x = self.lift(coords) + self.add(self.code().unsqueeze(-2))
        for block in self.blocks:
            x = block(x)
        return self.head(x.relu())

    def describe(self) -> list[dict[str, Any]]:
        return [
            self.lift.describe("lift"),
            {"kind": "add", "code": self.code.describe("code"), **self.add.describe("add")},
            *(block.describe(f"blocks.{i}") for i, block in enumerate(self.blocks)),
            {**self.head.describe("head"), "before": "relu"},
        ]


class LocalField(nn.Module):
    """Convolutional Occupancy Networks' decoder: a feature read at each point, added per block.

    Points -> width; before each residual block a linear of the feature is added (sec. 3.2).

    Args:
        features: Channels of the planes and of the volume.
        planes: Resolution of the three planes; 0: there are none.
        volume: Resolution of the volume; 0: there is none.
        cell: Resolution of the grid whose cells coordinates are relative to; 0: as they are.
        level: As of `head`.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        features: int,
        *,
        planes: int = 0,
        volume: int = 0,
        cell: int = 0,
        level: float | None = None,
    ):
        super().__init__()
        self.cell = cell
        self.planes = Latent((3, features, planes, planes)) if planes else None
        self.volume = Latent((features, volume, volume, volume)) if volume else None
        self.lift = Linear(3, width)
        self.add = nn.ModuleList(Linear(features, width) for _ in range(blocks))
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.head = head(width, level)

    def forward(self, coords: Float[Tensor, "n p 3"]) -> Float[Tensor, "n p 1"]:
        feature = 0
        if self.planes is not None:
            feature = feature + read_planes(self.planes(), coords)
        if self.volume is not None:
            feature = feature + read_grid(self.volume(), coords)
        x = self.lift(in_cell(coords, self.cell))
        for add, block in zip(self.add, self.blocks):
            x = block(x + add(feature))
        return self.head(x.relu())

    def describe(self) -> list[dict[str, Any]]:
        grids = {"planes": self.planes, "volume": self.volume}
        return [
            {
                "kind": "features",
                "parts": [g.describe(n) for n, g in grids.items() if g is not None],
                "axes": [list(axes) for axes in AXES],
                "centers": "(2 i + 1) / resolution - 1",
                "interpolation": "linear, summed over parts",
            },
            {**self.lift.describe("lift"), "in_cells_of": self.cell},
            *(
                {"kind": "add", **add.describe(f"add.{i}"), "then": block.describe(f"blocks.{i}")}
                for i, (add, block) in enumerate(zip(self.add, self.blocks))
            ),
            {**self.head.describe("head"), "before": "relu"},
        ]
