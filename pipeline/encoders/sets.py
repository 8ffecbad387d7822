"""Pixels that are known of a picture, however many and wherever, to a code."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.encoders.alone import alone
from pipeline.fields.linear import Linear


class SetEncoder(nn.Module):
    """A code of a set of points with values: each goes through a ReLU network, and their mean is
    the code (conditional neural processes, Garnelo et al. 2018; SIREN, sec. 4.4).

    It depends neither on the order of the points nor on how many others are left out.

    Args:
        inputs: Numbers a point: coordinates and values.
        width, depth: Of the hidden layers.
        outputs: Length of the code.
    """

    def __init__(self, inputs: int, width: int, depth: int, outputs: int):
        super().__init__()
        widths = [inputs, *[width] * depth]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))
        self.last = Linear(widths[-1], outputs)

    def forward(
        self, points: Float[Tensor, "n s i"], weight: Float[Tensor, "n s"]
    ) -> Float[Tensor, "n z"]:
        """`weight` 0 leaves a point out; a sample without points has the code of the last bias."""
        x = points
        for layer in self.layers:
            x = layer(x).relu()
        share = weight / weight.sum(1, keepdim=True).clamp(min=1e-12)
        return self.last((x * share[..., None]).sum(1, keepdim=True))[:, 0]

    def describe(self, prefix: str) -> dict[str, Any]:
        return {
            "kind": "set encoder",
            "layers": [x.describe(f"{prefix}.layers.{i}") for i, x in enumerate(self.layers)],
            "activation": "relu",
            "pool": "mean",
            "last": self.last.describe(f"{prefix}.last"),
        }


class MaskedImageEncoder(nn.Module):
    """A code of the known pixels of a picture by convolutions, on values that are zero elsewhere
    and the mask of what is known.

    The first layer divides by how much of its window is known, and says so in a channel of its own
    (as convolutional conditional neural processes do, Gordon et al. 2020); each block halves the
    picture; the mean over it goes to the code.
    """

    def __init__(self, channels: int, width: int, blocks: int, outputs: int, window: int = 5):
        super().__init__()
        self.window = window
        self.first = nn.Conv2d(channels + 1, width, 1)
        self.blocks = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2 if i else 1, padding=1) for i in range(blocks)
        )
        self.last = Linear(width, outputs)

    def forward(
        self, color: Float[Tensor, "n h w c"], seen: Float[Tensor, "n h w"]
    ) -> Float[Tensor, "n z"]:
        """Values in [-1, 1]; those where `seen` is 0 have no influence."""
        known = torch.cat([color * seen[..., None], seen[..., None]], -1)
        features = alone(self._features, known.permute(0, 3, 1, 2).contiguous(), self.training)
        return self.last(features[:, None])[:, 0]

    def _features(self, known: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        near = nn.functional.avg_pool2d(known, self.window, 1, self.window // 2)
        density = near[:, -1:]
        near = torch.cat([near[:, :-1] / density.clamp(min=1e-6), density], 1)
        x = self.first(near).relu()
        for block in self.blocks:
            x = block(x).relu()
        return x.mean((2, 3))

    def describe(self, prefix: str) -> dict[str, Any]:
        return {
            "kind": "masked image encoder",
            "parameters": f"{prefix}.*",
            "window": self.window,
            "blocks": len(self.blocks),
        }


def first_of_each(coords: Float[Tensor, "n s d"]) -> Bool[Tensor, "n s"]:
    """Which points of a draw are not drawn a second time: a draw of more points than a sample has
    begins again with the first (see `Ragged.block`)."""
    again = (coords == coords[:, :1]).all(-1)
    again[:, 0] = False
    return again.cumsum(1) == 0
