"""Latent GAN: a generator of rows and a critic (Wasserstein distance with a gradient penalty)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.downstream.codes import Codes, Space
from pipeline.downstream.distribution import Prior, Update
from pipeline.draw import Draw
from schemas.downstream import Sampling, WassersteinGan

SLOPE = 0.02
"""Of leaky rectifiers (IM-NET)."""


def layers(inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    """Linear layers with leaky rectifiers between them."""
    made: list[nn.Module] = []
    for i in range(depth):
        made += [nn.Linear(width if i else inputs, width), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*made, nn.Linear(width, outputs))


class LatentGan(Prior):
    """IM-GAN (Chen and Zhang 2019) on standardized rows; classes are given to both networks."""

    def __init__(self, config: WassersteinGan, space: Space, shape: tuple[int, ...], classes: int):
        super().__init__(shape, classes)
        self.config = config
        size = math.prod(shape)
        self.noise = config.noise or size
        self.generator = layers(self.noise + classes, config.width, config.depth, size)
        self.critic = layers(size + classes, config.width, config.depth, 1)
        self.updates = (
            Update("critic.", self._critic_loss, config.critic_steps, config.momentum),
            Update("generator.", self._generator_loss, 1, config.momentum),
        )

    def _with(self, x: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> Tensor:
        if not self.classes:
            return x
        known = F.one_hot(labels.clamp(min=0), self.classes).to(x.dtype)
        return torch.cat([x, known * (labels >= 0)[:, None]], 1)

    def generate(self, draw: Draw, labels: Int[Tensor, "n"]) -> Float[Tensor, "n d"]:
        """Rows as vectors."""
        noise = draw.normal("noise", self.noise) * self.config.noise_std
        return self.generator(self._with(noise, labels))

    def _critic_loss(self, model: nn.Module, batch: Codes, draw: Draw) -> dict[str, Tensor]:
        real, labels = batch.values.flatten(1), batch.labels
        with torch.no_grad():
            made = self.generate(draw, labels).float()
        share = draw.uniform("mix", 1)
        mixed = (share * real + (1 - share) * made).requires_grad_()
        score = self.critic(self._with(mixed, labels))
        (slope,) = torch.autograd.grad(score.sum(), mixed, create_graph=True)
        real_score = self.critic(self._with(real, labels)).float().mean()
        made_score = self.critic(self._with(made, labels)).float().mean()
        penalty = (slope.float().norm(dim=1) - 1).square().mean()
        return {"critic": made_score - real_score, "penalty": self.config.penalty * penalty}

    def _generator_loss(self, model: nn.Module, batch: Codes, draw: Draw) -> dict[str, Tensor]:
        made = self.generate(draw, batch.labels)
        score = self.critic(self._with(made, batch.labels))
        return {"generator": -score.float().mean()}

    def slopes(
        self, real: Float[Tensor, "n *shape"], draw: Draw, labels: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        """Length of the critic's gradient between real and made rows; near 1 once learned."""
        made = self.generate(draw, labels).detach()
        share = draw.uniform("mix", 1)
        mixed = (share * real.flatten(1) + (1 - share) * made).requires_grad_()
        score = self.critic(self._with(mixed, labels))
        return torch.autograd.grad(score.sum(), mixed)[0].norm(dim=1)

    def sample(
        self, draw: Draw, labels: Int[Tensor, "n"], sampling: Sampling
    ) -> Float[Tensor, "n *shape"]:
        return self.generate(draw, labels).reshape(len(labels), *self.shape)
