"""IM-Net's decoder: a pyramid of layers from (code, coordinates) to one value in [0, 1].

Two published forms: the first release narrows at once and gets its input again before each of the
next four layers; the later one starts with three equal layers, has no skips, and clips its output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.draw import Draw
from pipeline.fields.activations import LeakyClip, LeakyRelu, Sigmoid
from pipeline.fields.initializers import Constant
from pipeline.fields.latent import Latent
from pipeline.fields.mlp import MLP, Layer

Release = Literal["first", "later"]
PARTS = {"first": (1, 2, 4, 8, 16), "later": (1, 1, 1, 2, 4, 8)}
"""Each hidden layer has `width` over this many units."""
SLOPE = 0.02
"""Of the leaky rectifiers (IM-Net's code)."""


@dataclass(frozen=True)
class Spans:
    """Normal weights with another standard deviation for each run of columns of a matrix."""

    spans: tuple[tuple[int, float], ...]
    """Number of columns and standard deviation, in order."""

    def __call__(self, draw: Draw, tag: str, shape: Sequence[int]) -> Tensor:
        stds = [std for count, std in self.spans for _ in range(count)]
        return draw.normal(tag, *shape).mul_(torch.tensor(stds, device=draw.keys.device))


def pyramid_layers(code: int, width: int, release: Release, *, std: float = 0.0) -> list[Layer]:
    """The table of a pyramid whose widest layer has `width` units; its input: code, coordinates.

    Args:
        std: Standard deviation of all weights (the authors': 0.02, which suits 2,048 units); 0:
            variances that suit any width, of which the coordinates bring ten times as much as the
            code, so that a short training does not first have to find them.
    """
    table, hidden = [], 0
    for number, part in enumerate(PARTS[release]):
        skip = release == "first" and number > 0
        inputs = code if number == 0 or skip else 0
        start = _start(hidden, inputs, std)
        table.append(Layer(width // part, LeakyRelu(SLOPE), start, skip=skip))
        hidden = width // part
    last = Sigmoid() if release == "first" else LeakyClip()
    return [*table, Layer(1, last, _start(hidden, 0, std))]


def _start(hidden: int, code: int, std: float) -> dict:
    """Zero biases; weights of columns that see hidden units, code and coordinates."""
    spans = [(hidden, std or math.sqrt(2 / hidden))] if hidden else []
    if code:
        spans += [(code, std or math.sqrt(0.2 / code)), (3, std or math.sqrt(1.5 / 3))]
    return {"weight": Spans(tuple(spans)), "bias": Constant(0.0)}


class PyramidField(nn.Module):
    """A decoder with the encoders that make its codes; a row holds what they said.

    Args:
        code: Entries of a code.
        net: From (code, coordinates) to one value.
        voxels: From occupied voxels `[n, r, r, r]` to codes.
        views: From pictures to codes, or none.
        decoded: The latent that the field is decoded from.
    """

    def __init__(
        self,
        code: int,
        net: MLP,
        voxels: nn.Module,
        views: nn.Module | None = None,
        *,
        decoded: Literal["code", "view_code"] = "code",
    ):
        super().__init__()
        self.code = Latent((code,))
        self.view_code = Latent((code,)) if views is not None else None
        self.net = net
        self.voxels = voxels
        self.views = views
        self.decoded = decoded

    def forward(self, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n p 1"]:
        return self.net(getattr(self, self.decoded)().unsqueeze(-2), coords)

    def describe(self) -> list[dict[str, Any]]:
        code = getattr(self, self.decoded).describe(self.decoded)
        first = {"kind": "concat", "parts": [code, {"kind": "coords"}]}
        return [first, *self.net.describe("net")]
