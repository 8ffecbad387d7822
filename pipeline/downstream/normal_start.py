"""What a denoiser can know before it learns anything: the best answer if rows were normal.

A network that is added to it begins as good as a normal distribution with full covariance, and
spends its steps on the rest. Without it, a network of weights (501 entries, 4,800 rows) was after
3,000 steps still worse than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.downstream.statistics import MOST_ENTRIES, Moments, shrinkage


class NormalStart(nn.Module):
    """Expected row and noise where rows are normal; mean and covariance come from `fit`.

    The covariance is shrunk towards a ball as far as the number of rows asks for.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape, size = shape, math.prod(shape)
        if size > MOST_ENTRIES:
            raise ValueError(
                f"method.start: rows of {size} entries have too many pairs for a covariance (most: "
                f"{MOST_ENTRIES}); set it to none"
            )
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("axes", torch.eye(size))
        self.register_buffer("variance", torch.ones(size))

    def fit(self, parts: Iterable[Float[Tensor, "_ *shape"]]) -> None:
        """Takes the moments of normalized rows that come in parts."""
        moments = Moments(self.shape, pairs=True)
        for part in parts:
            moments.add(part)
        values, vectors = torch.linalg.eigh(moments.square / moments.count)
        values = values.clamp(min=0)
        share = shrinkage(values, len(values), float(moments.count))
        self.mean.copy_(moments.mean)
        self.axes.copy_(vectors.T)
        self.variance.copy_((1 - share) * values + share * values.mean() + 1e-6)

    def forward(
        self, x: Float[Tensor, "n *shape"], signal: Float[Tensor, "n"], noise: Float[Tensor, "n"]
    ) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, "n *shape"]]:
        """The mean of row and noise, given that `signal` x row + `noise` x noise is x."""
        signal, noise = signal[:, None], noise[:, None]
        with torch.autocast(x.device.type, enabled=False):
            along = (x.float().flatten(1) - signal * self.mean) @ self.axes.T
            along = along / (signal**2 * self.variance + noise**2)
            row = self.mean + (signal * self.variance * along) @ self.axes
            return row.reshape(x.shape), ((noise * along) @ self.axes).reshape(x.shape)
