"""Losses on signed distances, one value a sample."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from pipeline.objectives.photometric import weighted_mean


def clamped_l1(
    predicted: Float[Tensor, "n p"],
    distance: Float[Tensor, "n p"],
    weight: Float[Tensor, "n p"],
    clamp: float,
) -> Float[Tensor, "n"]:
    """mean |clamp(f) - clamp(s)| (DeepSDF eq. 4): what lies beyond +-clamp needs only its sign."""
    error = predicted.clamp(-clamp, clamp) - distance.clamp(-clamp, clamp)
    return weighted_mean(error.abs(), weight)


def target_clamped_l1(
    predicted: Float[Tensor, "n p"],
    distance: Float[Tensor, "n p"],
    weight: Float[Tensor, "n p"],
    clamp: float,
) -> Float[Tensor, "n"]:
    """mean |f - clamp(s)|: as `clamped_l1`, but a prediction beyond the clamp keeps its gradient.

    `clamped_l1` learns nothing wherever the start lies outside the clamp with the wrong sign.
    """
    return weighted_mean((predicted - distance.clamp(-clamp, clamp)).abs(), weight)
