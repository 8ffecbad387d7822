"""Losses that learn a signed field from distances without sign (SAL, Atzmon & Lipman 2020)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from pipeline.objectives.photometric import weighted_mean


def sign_agnostic(
    predicted: Float[Tensor, "n p"], distance: Float[Tensor, "n p"], weight: Float[Tensor, "n p"]
) -> Float[Tensor, "n"]:
    """mean | |f| - h | with h the distance without its sign, if it has one (SAL eq. 6, h = h_2)."""
    return weighted_mean((predicted.abs() - distance.abs()).abs(), weight)


def sign_agnostic_occupancy(
    off: Float[Tensor, "n p"],
    off_weight: Float[Tensor, "n p"],
    on: Float[Tensor, "n s"],
    on_weight: Float[Tensor, "n s"],
) -> Float[Tensor, "n"]:
    """mean | |f| - 1 | off the surface + 2 mean |f| on it (SAL with h = h_0)."""
    return weighted_mean((off.abs() - 1).abs(), off_weight) + 2 * weighted_mean(on.abs(), on_weight)
