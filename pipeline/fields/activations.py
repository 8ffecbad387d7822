"""Activations as small values that a layer table names and a field specification describes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Identity:
    def __call__(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Relu:
    def __call__(self, x: Tensor) -> Tensor:
        return F.relu(x)


@dataclass(frozen=True)
class LeakyRelu:
    slope: float = 0.01

    def __call__(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)


@dataclass(frozen=True)
class LeakyClip:
    """Clips to [0, 1] but keeps a small slope outside, so that a bad start still learns."""

    slope: float = 0.01

    def __call__(self, x: Tensor) -> Tensor:
        below = self.slope * x
        return torch.maximum(torch.minimum(x, below + 1 - self.slope), below)


@dataclass(frozen=True)
class Softplus:
    """log(1 + exp(beta x)) / beta."""

    beta: float = 100.0

    def __call__(self, x: Tensor) -> Tensor:
        return F.softplus(x, beta=self.beta)


@dataclass(frozen=True)
class Tanh:
    def __call__(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@dataclass(frozen=True)
class Sigmoid:
    def __call__(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@dataclass(frozen=True)
class Sine:
    """sin(omega_0 x) (SIREN eq. 5); the linear layer before it carries the factor."""

    omega_0: float = 30.0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sin(x)


Activation = Identity | Relu | LeakyRelu | LeakyClip | Softplus | Tanh | Sigmoid | Sine


def describe_activation(activation: Activation) -> dict[str, Any]:
    return {"activation": type(activation).__name__.lower(), **asdict(activation)}
