"""Optimizers over lanes: each row of a flat `[lanes, params]` tensor has its own step and moments.

Every operation is elementwise along the lanes, so a row's update does not depend on its neighbours,
and a lane whose `go` is False keeps values and moments to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.fitting.schedules import Schedule, schedule


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), as `torch.optim.Adam` for each row by itself."""

    rate: float | Schedule
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None
    """Gradients of a row that are longer than this (Euclidean norm) are scaled back."""

    moments = 2

    def update(
        self,
        values: Float[Tensor, "n p"],
        gradient: Float[Tensor, "n p"],
        moments: list[Float[Tensor, "n p"]],
        step: Int[Tensor, "n"],
        go: Bool[Tensor, "n"],
        factor: Float[Tensor, "n"] | None = None,
        at: Int[Tensor, "n"] | None = None,
    ) -> tuple[Float[Tensor, "n p"], list[Float[Tensor, "n p"]]]:
        """New values and moments.

        `step` counts earlier updates of each row; the rate is that of step `at`, if it is another.
        """
        beta_1, beta_2 = self.betas
        if self.clip is not None:
            gradient = clip_rows(gradient, self.clip)
        first = torch.lerp(moments[0], gradient, 1 - beta_1)
        second = torch.addcmul(moments[1] * beta_2, gradient, gradient, value=1 - beta_2)
        count = (step + 1).to(torch.float64)
        rate = schedule(self.rate)(step if at is None else at).to(torch.float64)
        rate = rate if factor is None else rate * factor
        size = (rate / (1 - beta_1**count)).to(values.dtype)[:, None]
        root = (1 - beta_2**count).sqrt().to(values.dtype)[:, None]
        change = first * size / (second.sqrt() / root + self.eps)
        go = go[:, None]
        return (
            torch.where(go, values - change, values),
            [torch.where(go, first, moments[0]), torch.where(go, second, moments[1])],
        )


@dataclass(frozen=True)
class Sgd:
    """Gradient descent with optional momentum, as `torch.optim.SGD` for each row by itself."""

    rate: float | Schedule
    momentum: float = 0.0
    clip: float | None = None

    @property
    def moments(self) -> int:
        return 1 if self.momentum else 0

    def update(self, values, gradient, moments, step, go, factor=None, at=None):
        """As `Adam.update`."""
        if self.clip is not None:
            gradient = clip_rows(gradient, self.clip)
        rate = schedule(self.rate)(step if at is None else at)
        rate = (rate if factor is None else rate * factor).to(values.dtype)[:, None]
        go = go[:, None]
        direction = gradient
        if moments:
            direction = moments[0] * self.momentum + gradient
            moments = [torch.where(go, direction, moments[0])]
        return torch.where(go, values - rate * direction, values), moments


Optimizer = Adam | Sgd


def clip_rows(gradient: Float[Tensor, "n p"], limit: float) -> Float[Tensor, "n p"]:
    """Scales each row to at most this Euclidean norm."""
    norm = gradient.square().sum(1, keepdim=True).sqrt()
    return gradient * (limit / (norm + 1e-6)).clamp(max=1.0)
