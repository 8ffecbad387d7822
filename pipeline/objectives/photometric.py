"""Color losses, one value a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor


def color_mse(
    predicted: Float[Tensor, "n p c"], target: Float[Tensor, "n p c"], weight: Float[Tensor, "n p"]
) -> Float[Tensor, "n"]:
    """Mean squared error over the weighted pixels and all channels."""
    return weighted_mean((predicted - target).square().mean(-1), weight)


def weighted_mean(values: Float[Tensor, "n p"], weight: Float[Tensor, "n p"]) -> Float[Tensor, "n"]:
    """Mean over points; a sample without any weight gives 0."""
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1e-12)


def mse_of_psnr(decibel: float, peak: float = 2.0) -> float:
    """The mean squared error that has this PSNR, for values that span `peak`."""
    return peak**2 * 10 ** (-decibel / 10)


@dataclass(frozen=True)
class ColorError:
    """Loss of a field whose values are colors: the squared error, with colors in [-1, 1].

    A value and not a closure, so that a compiled loop can tell what it computes.
    """

    term: ClassVar[str] = "mse"
    pointwise: ClassVar[bool] = True
    """A weighted mean over points: a step may take them in parts."""

    def wanted(self, batch) -> Float[Tensor, "n p c"]:
        return batch.grid.color * 2 - 1

    def __call__(self, bound, batch, draw) -> dict[str, Float[Tensor, "n"]]:
        pixels = batch.grid
        return {self.term: color_mse(bound(pixels.coords), self.wanted(batch), pixels.weight)}
