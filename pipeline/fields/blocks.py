"""Residual blocks, batch normalization and conditional batch normalization of fields."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.fields.initializers import Constant, torch_default
from pipeline.fields.linear import Linear

EPSILON = 1e-5
"""Added to variances, as PyTorch does."""


class BatchNorm(nn.Module):
    """Batch normalization: statistics of the batch in training, running ones in fits.

    The running statistics are buffers, so they are shared parameters that training carries along
    and a store keeps. In training the statistics are those of the batch over all workers, so any
    number of workers computes the same; in fits nothing crosses samples.

    Args:
        width: Channels.
        axis: Where the channels are: -1 for points, 1 for pictures and volumes.
        affine: Whether a learned scale and shift follow.
        momentum: Share of the running statistics that one step replaces.
    """

    def __init__(self, width: int, *, axis: int = -1, affine: bool = True, momentum: float = 0.1):
        super().__init__()
        self.width, self.axis, self.momentum = width, axis, momentum
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.initializers = {"running_mean": Constant(0.0), "running_var": Constant(1.0)}
        if affine:
            self.initializers |= {"weight": Constant(1.0), "bias": Constant(0.0)}

    def line(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel, `[width]`, that normalize `x`."""
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self._statistics(x)
        scale = (var + EPSILON).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        return scale, shift if self.bias is None else shift + self.bias

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        scale, shift = self.line(x)
        if self.axis != -1:
            shape = (-1, *(1 for _ in range(x.dim() - self.axis - 1)))
            scale, shift = scale.reshape(shape), shift.reshape(shape)
        return torch.addcmul(shift, x, scale)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance of a batch; moves the running ones towards them."""
        axis = self.axis % x.dim()
        others = [i for i in range(x.dim()) if i != axis]
        mean, workers = x.mean(others), _workers()
        if workers > 1:  # every worker brings the same number of values
            mean = _Sum.apply(mean) / workers
        shape = [1] * axis + [-1] + [1] * (x.dim() - axis - 1)
        var = (x - mean.reshape(shape)).square().mean(others)
        if workers > 1:
            var = _Sum.apply(var) / workers
        count = x.numel() // self.width * workers
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / max(count - 1, 1)), self.momentum)
        return mean, var


def _workers() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Sum(torch.autograd.Function):
    """Sum over all workers; so is its gradient."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class ConditionalNorm(nn.Module):
    """Batch normalization whose scale and shift are linear in a sample's code.

    gamma = W c + 1 and beta = W' c with W = W' = 0 at the start (Occupancy Networks, supplement 1).
    """

    def __init__(self, width: int, code: int):
        super().__init__()
        self.norm = BatchNorm(width, affine=False)
        zero = {"weight": Constant(0.0), "bias": Constant(0.0)}
        self.gamma = Linear(code, width, start=zero | {"bias": Constant(1.0)})
        self.beta = Linear(code, width, start=zero)

    def forward(
        self, x: Float[Tensor, "n p w"], code: Float[Tensor, "n 1 z"]
    ) -> Float[Tensor, "n p w"]:
        gamma = self.gamma(code)
        scale, shift = self.norm.line(x)
        return torch.addcmul(torch.addcmul(self.beta(code), shift, gamma), x, scale * gamma)


class ResidualBlock(nn.Module):
    """x + W (relu (V (relu x))): pre-activation, W zero at the start, so it starts as x.

    A linear shortcut takes the place of x where the width changes. With a `code` (its length) each
    relu follows a conditional batch normalization. The input may come in parts that would be
    concatenated, as `[n, p, a]` and one `[n, 1, b]` for all points of a sample.
    """

    def __init__(
        self, inputs: int, outputs: int | None = None, hidden: int | None = None, *, code: int = 0
    ):
        super().__init__()
        outputs = outputs or inputs
        hidden = hidden or min(inputs, outputs)
        self.first = Linear(inputs, hidden)
        start = torch_default(hidden) | {"weight": Constant(0.0)}
        self.second = Linear(hidden, outputs, start=start)
        self.shortcut = Linear(inputs, outputs) if inputs != outputs else None
        self.norms = nn.ModuleList(ConditionalNorm(w, code) for w in (inputs, hidden) if code)

    def forward(
        self, *parts: Float[Tensor, "n _ _"], code: Float[Tensor, "n 1 z"] | None = None
    ) -> Float[Tensor, "n p o"]:
        hidden = parts if code is None else (self.norms[0](*parts, code),)
        hidden = self.first(*(x.relu() for x in hidden))
        hidden = hidden if code is None else self.norms[1](hidden, code)
        hidden = self.second(hidden.relu())
        return hidden + (parts[0] if self.shortcut is None else self.shortcut(*parts))

    def describe(self, prefix: str) -> dict[str, Any]:
        layers = {"first": self.first, "second": self.second, "shortcut": self.shortcut}
        return {
            "kind": "residual",
            **{n: m.describe(f"{prefix}.{n}") for n, m in layers.items() if m is not None},
            "norms": [f"{prefix}.norms.{i}" for i in range(len(self.norms))],
            "norm": "conditional batch norm" if len(self.norms) else None,
            "epsilon": EPSILON,
        }
