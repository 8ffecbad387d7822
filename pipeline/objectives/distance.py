"""Losses on signed distances, one value a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pipeline.objectives.photometric import weighted_mean
from pipeline.objectives.priors import code_mean_square


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


@dataclass(frozen=True)
class DistanceError:
    """Loss of a field whose value is a signed distance: `target_clamped_l1`, or `clamped_l1`.

    A value and not a closure, so that a compiled loop can tell what it computes.
    """

    clamp: float
    both: bool = False
    """Whether the prediction is clamped too (`clamped_l1`)."""
    term: ClassVar[str] = "sdf"
    pointwise: ClassVar[bool] = True
    """A weighted mean over points: a step may take them in parts."""

    def wanted(self, batch) -> Float[Tensor, "n p 1"]:
        return batch.points.distance.clamp(-self.clamp, self.clamp)[..., None]

    def __call__(self, bound, batch, draw) -> dict[str, Float[Tensor, "n"]]:
        points = batch.points
        loss = clamped_l1 if self.both else target_clamped_l1
        sdf = bound(points.coords)[..., 0]
        return {self.term: loss(sdf, points.distance, points.weight, self.clamp)}


@dataclass(frozen=True)
class CodedDistanceError:
    """Loss of a code under a frozen network: `clamped_l1`, and `prior` times its mean square.

    The second term is that of DeepSDF's code at test time. A value, as `DistanceError`.
    """

    clamp: float
    prior: float
    both: ClassVar[bool] = True
    term: ClassVar[str] = "sdf"
    pointwise: ClassVar[bool] = True

    def wanted(self, batch) -> Float[Tensor, "n p 1"]:
        return batch.points.distance.clamp(-self.clamp, self.clamp)[..., None]

    def __call__(self, bound, batch, draw) -> dict[str, Float[Tensor, "n"]]:
        points = batch.points
        sdf = bound(points.coords)[..., 0]
        error = clamped_l1(sdf, points.distance, points.weight, self.clamp)
        return {self.term: error, "prior": self.prior * code_mean_square(bound.code.value)}
