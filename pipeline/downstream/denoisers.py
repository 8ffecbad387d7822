"""Diffusion and rectified flow over rows: what they minimize, and how they draw.

Times run from 0 (noise) to 1 (rows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.downstream.codes import Codes, Space
from pipeline.downstream.distribution import Prior, Update
from pipeline.downstream.networks import build_network
from pipeline.downstream.normal_start import NormalStart
from pipeline.downstream.statistics import MOST_ENTRIES
from pipeline.draw import Draw
from schemas.downstream import Diffusion, Network, RectifiedFlow, Sampling


def guided(
    answer: Callable[..., Tensor], x: Tensor, time: Tensor, labels: Int[Tensor, "n"], weight: float
) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6 with weight = 1 + w)."""
    if weight == 1 or bool((labels < 0).all()):
        return answer(x, time, labels)
    free = answer(x, time, torch.full_like(labels, -1))
    return free + weight * (answer(x, time, labels) - free)


class Denoiser(Prior):
    """A network that answers at noisy rows, added to what a normal distribution answers."""

    def __init__(self, config: Network, space: Space, shape: tuple[int, ...], classes: int):
        super().__init__(shape, classes)
        self.network = build_network(config, space, shape, classes)
        normal = config.start == "normal"
        if config.start == "auto":
            normal = math.prod(shape) <= MOST_ENTRIES
        self.normal = NormalStart(shape) if normal else None

    def prepare(self, parts: Iterable[Float[Tensor, "_ *shape"]]) -> None:
        if self.normal is not None:
            self.normal.fit(parts)


class DenoisingDiffusion(Denoiser):
    """DDPM (Ho et al. 2020): noise is added in `times` levels, a network takes it away."""

    def __init__(self, config: Diffusion, space: Space, shape: tuple[int, ...], classes: int):
        super().__init__(config, space, shape, classes)
        self.config = config
        betas = torch.linspace(*config.betas, config.times, dtype=torch.float64)
        kept = torch.cumprod(1 - betas, 0)
        if kept[-1] > 0.1:
            raise ValueError(
                f"method.betas: after {config.times} levels {float(kept[-1]):.0%} of the signal is "
                "left, so sampling cannot start from noise; raise betas or times"
            )
        self.register_buffer("kept", kept.float(), persistent=False)
        """Share of the signal's variance left at each level."""
        self.updates = (Update("network.", self._loss),)

    def _answer(self, x: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        """What `predict` names, at noise levels of the rows."""
        found = self.network(x, 1 - level / self.config.times, labels).float()
        if self.normal is None:
            return found
        kept = self.kept[level]
        row, noise = self.normal(x, kept.sqrt(), (1 - kept).sqrt())
        if self.config.predict == "noise":
            return found + noise
        if self.config.predict == "x0":
            return found + row
        kept = kept.reshape(-1, *(1 for _ in self.shape))
        return found + kept.sqrt() * noise - (1 - kept).sqrt() * row

    def _loss(self, model: nn.Module, batch: Codes, draw: Draw) -> dict[str, Tensor]:
        x = batch.values
        level = draw.integers("level", self.config.times)
        kept = self.kept[level].reshape(-1, *(1 for _ in self.shape))
        noise = draw.normal("noise", *self.shape)
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        labels = self.hidden(batch.labels, draw, self.config.label_dropout)
        found = self._answer(noisy, level, labels)
        goal = {
            "noise": lambda: noise,
            "x0": lambda: x,
            "velocity": lambda: kept.sqrt() * noise - (1 - kept).sqrt() * x,
        }[self.config.predict]()
        return {"denoising": F.mse_loss(found, goal)}

    def sample(
        self, draw: Draw, labels: Int[Tensor, "n"], sampling: Sampling
    ) -> Float[Tensor, "n *shape"]:
        """DDIM (Song et al. 2021, eq. 12 and 16)."""
        times = self.config.times
        steps = min(sampling.steps, times)
        levels = torch.linspace(times - 1, 0, steps).round().long().tolist()
        x = draw.normal("start", *self.shape)
        for i, level in enumerate(levels):
            kept = float(self.kept[level])
            rest = float(self.kept[levels[i + 1]]) if i + 1 < steps else 1.0
            at = torch.full((len(x),), level, device=x.device)
            found = guided(self._answer, x, at, labels, sampling.guidance)
            if self.config.predict == "noise":
                clean = (x - math.sqrt(1 - kept) * found) / math.sqrt(kept)
            elif self.config.predict == "x0":
                clean = found
            else:
                clean = math.sqrt(kept) * x - math.sqrt(1 - kept) * found
            noise = (x - math.sqrt(kept) * clean) / math.sqrt(1 - kept)
            sigma = 0.0
            if rest < 1:
                sigma = sampling.eta * math.sqrt((1 - rest) / (1 - kept) * (1 - kept / rest))
            x = math.sqrt(rest) * clean + math.sqrt(max(1 - rest - sigma**2, 0.0)) * noise
            if sigma:
                x = x + sigma * draw.normal(f"step{i}", *self.shape)
        return x


class StraightFlow(Denoiser):
    """Rectified flow (Liu et al. 2022): a velocity from noise to rows, followed by Heun's rule."""

    def __init__(self, config: RectifiedFlow, space: Space, shape: tuple[int, ...], classes: int):
        super().__init__(config, space, shape, classes)
        self.config = config
        self.updates = (Update("network.", self._loss),)

    def _velocity(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        found = self.network(x, time, labels).float()
        if self.normal is None:
            return found
        row, noise = self.normal(x, time, 1 - time)
        return found + row - noise

    def _loss(self, model: nn.Module, batch: Codes, draw: Draw) -> dict[str, Tensor]:
        x, noise = batch.values, draw.normal("noise", *self.shape)
        if self.config.times == "uniform":
            time = draw.uniform("time")
        else:
            time = torch.sigmoid(draw.normal("time"))
        at = time.reshape(-1, *(1 for _ in self.shape))
        labels = self.hidden(batch.labels, draw, self.config.label_dropout)
        found = self._velocity(at * x + (1 - at) * noise, time, labels)
        return {"velocity": F.mse_loss(found, x - noise)}

    def sample(
        self, draw: Draw, labels: Int[Tensor, "n"], sampling: Sampling
    ) -> Float[Tensor, "n *shape"]:
        def velocity(x: Tensor, time: float) -> Tensor:
            at = torch.full((len(x),), time, device=x.device)
            return guided(self._velocity, x, at, labels, sampling.guidance)

        x, step = draw.normal("start", *self.shape), 1 / sampling.steps
        for i in range(sampling.steps):
            first = velocity(x, i * step)
            second = velocity(x + step * first, (i + 1) * step)
            x = x + step * (first + second) / 2
        return x
