"""Weights that let rare points count as much as frequent ones."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def balanced_weight(
    distance: Float[Tensor, "n p"], weight: Float[Tensor, "n p"]
) -> Float[Tensor, "n p"]:
    """Weights under which the inside and the outside points of a sample count alike."""
    inside = (distance < 0).to(weight.dtype) * weight
    outside = weight - inside
    totals = [part.sum(1, keepdim=True).clamp(min=1) for part in (inside, outside)]
    return inside / totals[0] + outside / totals[1]
