"""Priors of smooth fields: what a field may do where nothing is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from pipeline.fields.derivatives import PointwiseField, hessian, jacobian
from pipeline.objectives.photometric import ColorError

Prior = Literal["tv", "hessian"]


def total_variation(field: PointwiseField, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n"]:
    """Mean length of the gradient over points and channels (Rudin et al. 1992): constant pieces
    with sharp edges between them cost least."""
    return _mean_length(jacobian(field, coords).flatten(3))


def hessian_norm(field: PointwiseField, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n"]:
    """Mean Frobenius norm of the second derivatives over points and channels: linear pieces cost
    nothing."""
    return _mean_length(hessian(field, coords).flatten(3))


def _mean_length(values: Float[Tensor, "n p c k"]) -> Float[Tensor, "n"]:
    """The root is of values with a little added: its slope at zero is not finite."""
    return (values.square().sum(-1) + 1e-12).sqrt().mean((1, 2))


@dataclass(frozen=True)
class SmoothColorError:
    """The squared error of known pixels, and a prior at other random points of [-1, 1]^d (SIREN,
    Sitzmann et al. 2020, sec. 4.1: inpainting)."""

    prior: Prior
    weight: float
    """Of the prior, for values and coordinates in [-1, 1]."""
    points: int
    """Random points a step."""

    def __call__(self, bound, batch, draw) -> dict[str, Float[Tensor, "n"]]:
        known = ColorError()(bound, batch, draw)
        coords = draw.uniform("smooth", self.points, batch.grid.coords.shape[-1]) * 2 - 1
        measure = total_variation if self.prior == "tv" else hessian_norm
        return {**known, self.prior: self.weight * measure(bound, coords)}
