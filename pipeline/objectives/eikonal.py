"""Losses that make a field the distance to points without distances (IGR, Gropp et al. 2020)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.draw import Draw
from pipeline.objectives.photometric import weighted_mean
from pipeline.samples import Points


def eikonal(slope: Float[Tensor, "n p d"], weight: Float[Tensor, "n p"]) -> Float[Tensor, "n"]:
    """mean (|grad f| - 1)^2: a distance field has a gradient of length 1 (IGR eq. 2)."""
    return weighted_mean((_length(slope) - 1).square(), weight)


def on_surface(value: Float[Tensor, "n p"], weight: Float[Tensor, "n p"]) -> Float[Tensor, "n"]:
    """mean |f| at points of the surface (IGR eq. 3)."""
    return weighted_mean(value.abs(), weight)


def normal_error(
    slope: Float[Tensor, "n p d"], normals: Float[Tensor, "n p d"], weight: Float[Tensor, "n p"]
) -> Float[Tensor, "n"]:
    """mean |grad f - normal| at points of the surface, a length and not its square (IGR eq. 3)."""
    return weighted_mean(_length(slope - normals), weight)


def absolute_eikonal(
    slope: Float[Tensor, "n p d"], weight: Float[Tensor, "n p"]
) -> Float[Tensor, "n"]:
    """mean | |grad f| - 1 | (SIREN eq. 6)."""
    return weighted_mean((_length(slope) - 1).abs(), weight)


def normal_cosine_error(
    slope: Float[Tensor, "n p d"], normals: Float[Tensor, "n p d"], weight: Float[Tensor, "n p"]
) -> Float[Tensor, "n"]:
    """mean of 1 - cos(grad f, normal) at points of the surface (SIREN eq. 6)."""
    length = _length(slope) * _length(normals)
    return weighted_mean(1 - (slope * normals).sum(-1) / length.clamp(min=1e-8), weight)


def zeros_away(
    value: Float[Tensor, "n p"], weight: Float[Tensor, "n p"], sharpness: float
) -> Float[Tensor, "n"]:
    """mean exp(-sharpness |f|) off the surface, where no zeros should be (SIREN eq. 6)."""
    return weighted_mean((-sharpness * value.abs()).exp(), weight)


def off_surface(
    points: Points, draw: Draw, *, sigma: float | None, share: float, box: float
) -> tuple[Float[Tensor, "n q 3"], Float[Tensor, "n q"]]:
    """Points off the surface, and their weights: near it, then uniform in [-box, box]^3.

    Near it means each surface point moved by normal noise of `sigma`, or where that is None the
    drawn points near the surface (of a cloud: with noise of its distance to the 50th neighbor).
    There are `share` times as many uniform points as these (IGR sec. 3: 1/8).
    """
    near, weight = points.coords, points.weight
    if sigma is not None:
        count = points.surface.shape[1]
        near = points.surface + sigma * draw.normal("off", count, 3)
        weight = points.surface_weight
    count = max(round(near.shape[1] * share), 1)
    uniform = (draw.uniform("box", count, 3) * 2 - 1) * box
    return torch.cat([near, uniform], 1), torch.cat([weight, torch.ones_like(uniform[..., 0])], 1)


def _length(vector: Float[Tensor, "n p d"]) -> Float[Tensor, "n p"]:
    """Euclidean length with a gradient (zero) at the zero vector."""
    return vector.square().sum(-1).clamp(min=1e-24).sqrt()
