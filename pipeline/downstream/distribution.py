"""What all distributions over rows share: they see normalized rows, learn from losses, and draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.downstream.codes import Codes
from pipeline.draw import Draw
from schemas.downstream import Sampling

Loss = Callable[[nn.Module, Codes, Draw], dict[str, Tensor]]
"""Named terms, each one value; their sum is minimized."""


@dataclass(frozen=True)
class Update:
    """One player: which parameters a loss moves, and how often a step."""

    prefix: str
    """Beginning of the parameters' names."""
    loss: Loss
    times: int = 1
    """Batches (and moves) a step."""
    betas: tuple[float, float] = (0.9, 0.999)


class Prior(nn.Module):
    """A distribution over normalized rows."""

    updates: tuple[Update, ...]
    """What training descends; empty: the distribution is fitted in closed form."""
    exact = False
    """Whether `log_prob` is known."""

    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        self.shape, self.classes = shape, classes

    def prepare(self, parts: Iterable[Float[Tensor, "_ *shape"]]) -> None:
        """Takes what is known of all rows before training; parts of them, normalized."""

    def sample(
        self, draw: Draw, labels: Int[Tensor, "n"], sampling: Sampling
    ) -> Float[Tensor, "n *shape"]:
        """One row for each key of the draw; labels: -1 = of no class."""
        raise NotImplementedError

    def log_prob(
        self, rows: Float[Tensor, "n *shape"], labels: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        """Log-density of rows, in nats."""
        raise ValueError(f"{type(self).__name__} has no density")

    def hidden(self, labels: Int[Tensor, "n"], draw: Draw, share: float) -> Int[Tensor, "n"]:
        """Labels with a share of them hidden."""
        if not self.classes or not share:
            return labels
        return torch.where(draw.uniform("hidden") < share, -1, labels)
