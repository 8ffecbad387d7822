"""Schedules: functions from a step to one value a lane, for rates and for any other number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Constant:
    value: float

    def __call__(self, step: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        return torch.full(step.shape, self.value, device=step.device)


@dataclass(frozen=True)
class Steps:
    """`start`, multiplied by `factor` after every `every` steps, never below `floor`."""

    start: float
    every: int
    factor: float = 0.5
    floor: float = 0.0

    def __call__(self, step: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        times = torch.div(step, self.every, rounding_mode="floor").to(torch.float32)
        return (self.start * self.factor**times).clamp(min=self.floor)


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up over `warmup` steps to `peak`, then half a cosine to `floor` at `steps`."""

    peak: float
    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __call__(self, step: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        at = step.to(torch.float32)
        part = ((at - self.warmup) / max(self.steps - self.warmup, 1)).clamp(0, 1)
        falling = self.floor + (self.peak - self.floor) * 0.5 * (1 + torch.cos(math.pi * part))
        rising = self.peak * (at + 1) / max(self.warmup, 1)
        return torch.where(at < self.warmup, rising, falling)


@dataclass(frozen=True)
class Exponential:
    """From `start` to `end` over `steps`, geometrically, then constant."""

    start: float
    end: float
    steps: int

    def __call__(self, step: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        part = (step.to(torch.float32) / self.steps).clamp(0, 1)
        return self.start * (self.end / self.start) ** part


@dataclass(frozen=True)
class Ramp:
    """From `start` to `end` over `steps`, linearly, then constant."""

    start: float
    end: float
    steps: int

    def __call__(self, step: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        part = (step.to(torch.float32) / self.steps).clamp(0, 1)
        return self.start + (self.end - self.start) * part


@dataclass(frozen=True)
class Later:
    """`schedule` as of `offset` steps later: goes on where a phase before left off."""

    schedule: Constant | Steps | Cosine | Exponential | Ramp
    offset: int

    def __call__(self, step: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        return self.schedule(step + self.offset)


Schedule = Constant | Steps | Cosine | Exponential | Ramp | Later


def schedule(value: float | Schedule) -> Schedule:
    """A number stands for itself at every step."""
    return Constant(float(value)) if isinstance(value, int | float) else value
