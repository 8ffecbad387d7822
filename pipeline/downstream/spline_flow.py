"""A normalizing flow over rows, whose density is known."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.downstream.codes import Codes, Space
from pipeline.downstream.distribution import Prior, Update
from pipeline.draw import Draw
from schemas.downstream import Flow, Sampling


class SplineFlow(Prior):
    """Neural spline flow (Durkan et al. 2019) of zuko."""

    exact = True

    def __init__(self, config: Flow, space: Space, shape: tuple[int, ...], classes: int):
        import zuko

        super().__init__(shape, classes)
        size = math.prod(shape)
        if size < 2 and config.passes is not None:
            raise ValueError("method.passes: rows of one entry have nothing to couple; set null")
        self.flow = zuko.flows.NSF(
            features=size,
            context=classes + 1 if classes else 0,
            bins=config.bins,
            transforms=config.transforms,
            hidden_features=[config.width] * config.depth,
            passes=config.passes,
        )
        self.updates = (Update("flow.", self._loss),)

    def _given(self, labels: Int[Tensor, "n"]):
        if not self.classes:
            return self.flow()
        index = torch.where(labels < 0, self.classes, labels)
        return self.flow(F.one_hot(index, self.classes + 1).float())

    def _loss(self, model: nn.Module, batch: Codes, draw: Draw) -> dict[str, Tensor]:
        return {"nll": -self.log_prob(batch.values, batch.labels).mean()}

    def log_prob(
        self, rows: Float[Tensor, "n *shape"], labels: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        return self._given(labels).log_prob(rows.flatten(1))

    def sample(
        self, draw: Draw, labels: Int[Tensor, "n"], sampling: Sampling
    ) -> Float[Tensor, "n *shape"]:
        start = draw.normal("start", math.prod(self.shape))
        found = self._given(labels).transform.inv(start)
        return found.reshape(len(start), *self.shape)
