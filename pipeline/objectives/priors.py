"""Penalties on latents, one value a sample."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def code_norm(code: Float[Tensor, "n *z"]) -> Float[Tensor, "n"]:
    """Euclidean length of a sample's code (DeepSDF's code in training; the paper squares it)."""
    return code.flatten(1).square().sum(1).clamp(min=1e-24).sqrt()


def code_mean_square(code: Float[Tensor, "n *z"]) -> Float[Tensor, "n"]:
    """Mean of the squared entries (DeepSDF's code at test time)."""
    return torch.mean(code.flatten(1).square(), 1)


def code_mean_absolute(code: Float[Tensor, "n *z"]) -> Float[Tensor, "n"]:
    """Mean of the absolute entries (IGR's code at test time)."""
    return torch.mean(code.flatten(1).abs(), 1)


def normal_surrogate(
    mean: Float[Tensor, "n z"], log_std: Float[Tensor, "n z"]
) -> Float[Tensor, "n"]:
    """mean |mean| + mean |log std + 1|: SAL's penalty on a code's distribution, not the KL."""
    return mean.abs().mean(1) + (log_std + 1).abs().mean(1)
