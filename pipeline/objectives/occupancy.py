"""Losses on occupancies: inside or outside, one value a sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def inside_of(distance: Float[Tensor, "n p"]) -> Bool[Tensor, "n p"]:
    """Which points lie inside: those of negative distance."""
    return distance < 0


def occupancy_bce(
    logits: Float[Tensor, "n p"],
    inside: Bool[Tensor, "n p"] | Float[Tensor, "n p"],
    weight: Float[Tensor, "n p"],
) -> Float[Tensor, "n"]:
    """Binary cross-entropy **summed** over points (Occupancy Networks eq. 3): with the mean, a
    divergence from the prior beside it would weigh more."""
    target = inside.to(logits.dtype)
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum(1)


def gaussian_divergence(
    mean: Float[Tensor, "n z"], log_std: Float[Tensor, "n z"]
) -> Float[Tensor, "n"]:
    """KL(N(mean, std^2) | N(0, 1)), summed over the entries of a code."""
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)


def logit(probability: float) -> float:
    """log(p / (1 - p)): a threshold on probabilities as one on logits."""
    return float(torch.logit(torch.tensor(probability, dtype=torch.float64)))
