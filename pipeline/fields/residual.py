"""Fields of residual blocks with one code a sample: by conditional batch norm, or added once."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.fields.blocks import EPSILON, ConditionalNorm, ResidualBlock
from pipeline.fields.initializers import Constant, torch_default
from pipeline.fields.latent import Latent
from pipeline.fields.linear import Linear


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
