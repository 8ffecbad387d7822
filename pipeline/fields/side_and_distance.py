"""Networks that say side and distance apart (MetaSDF, Sitzmann et al. 2020), and their loss."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.fields.activations import Relu
from pipeline.fields.encodings import EncodedField, PositionalEncoding
from pipeline.fields.initializers import Constant, geometric_hidden
from pipeline.fields.mlp import MLP, Layer


class SideAndDistance(nn.Module):
    """Two outputs at a point: the logit of being outside, and the distance without sign.

    Hidden layers start with normal weights of variance 2 / outputs, the last one with all weights
    sqrt(pi / inputs) (authors' code). `inner` and `outer` are logarithms of the two deviations that
    weigh the losses of inner and outer steps (Kendall et al. 2018).

    Args:
        octaves: Sines and cosines of 2^k x come in front for k below this; 0: none.
    """

    def __init__(self, width: int, depth: int, *, octaves: int = 0):
        super().__init__()
        encoding = PositionalEncoding(3, octaves) if octaves else None
        inputs = encoding.outputs if encoding else 3
        layers = [Layer(width, Relu(), geometric_hidden(width)) for _ in range(depth)]
        start = {"weight": Constant(math.sqrt(math.pi / width)), "bias": Constant(0.0)}
        net = MLP(inputs, [*layers, Layer(2, start=start)])
        # The encoding counts half turns, 2^k pi x: the factor leaves 2^k x.
        self.field = EncodedField(encoding, net, scale=1 / math.pi if encoding else 1.0)
        self.inner, self.outer = (nn.Parameter(torch.zeros(2)) for _ in range(2))

    def forward(self, coords: Float[Tensor, "*n p 3"]) -> Float[Tensor, "*n p 2"]:
        return self.field(coords)

    def describe(self) -> list[dict[str, Any]]:
        """The layers, whose names in a store begin with `field.`."""
        layers = self.field.describe()
        for layer in layers:
            for key, value in layer.items():
                if isinstance(value, str) and value.startswith(("net.", "encoding.")):
                    layer[key] = f"field.{value}"
        return [*layers, {"kind": "side and distance", "sdf": "sign(y[0]) |y[1]|"}]


def signed(values: Float[Tensor, "*n p 2"]) -> Float[Tensor, "*n p"]:
    """Signed distance: negative where the logit of being outside is."""
    return torch.where(values[..., 0] < 0, -1.0, 1.0) * values[..., 1].abs()


def side_and_distance_terms(
    values: Float[Tensor, "n p 2"],
    distance: Float[Tensor, "n p"],
    weight: Float[Tensor, "n p"],
    deviations: Float[Tensor, "2"],
) -> dict[str, Float[Tensor, "n"]]:
    """Cross-entropy of the side and L1 of the distance, each over 2 s^2, and log s of both.

    Args:
        weight: Of the points; of any sum.
        deviations: log s of side and distance.
    """
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-12)
    outside = (distance > 0).to(values.dtype)
    side = F.binary_cross_entropy_with_logits(values[..., 0], outside, reduction="none")
    far = (values[..., 1].abs() - distance.abs()).abs()
    scale = torch.exp(-2 * deviations) / 2
    return {
        "side": (side * weight).sum(1) * scale[0],
        "distance": (far * weight).sum(1) * scale[1],
        "deviations": deviations.sum().expand(len(values)),
    }
