"""Normal distributions fitted to rows, one or several, of each class where there are any."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.downstream.codes import Space
from pipeline.downstream.distribution import Prior
from pipeline.downstream.statistics import shrinkage
from pipeline.draw import Draw
from schemas.downstream import Gaussian, Sampling

FEWEST = 2
"""Rows a normal distribution is fitted to at least."""


class Mixture(Prior):
    """Normal distributions; a covariance is kept as its principal axes, so that rows may have more
    entries than there are rows, and is shrunk towards a ball as far as their number asks for
    (oracle approximating shrinkage, Chen et al. 2010)."""

    exact = True
    updates = ()

    def __init__(self, config: Gaussian, space: Space, shape: tuple[int, ...], classes: int):
        super().__init__(shape, classes)
        self.config = config
        self.groups = max(classes, 1)

    def fit(
        self, rows: Float[Tensor, "n *shape"], labels: Int[Tensor, "n"], seed: int
    ) -> list[dict[str, int | float]]:
        """Fits all classes; returns the mean log-likelihood of each as a log."""
        flat, log, found = rows.flatten(1).double(), [], []
        for group in range(self.groups):
            chosen = labels == group if self.classes else torch.ones(len(flat), dtype=torch.bool)
            count = int(chosen.sum())
            if count < FEWEST * self.config.mixture:
                raise ValueError(
                    f"class {group} has {count} rows, a mixture of {self.config.mixture} needs "
                    f"{FEWEST * self.config.mixture}; set method.mixture or method.conditional"
                )
            best = max(
                (self._expectation(flat[chosen], seed, group, r) for r in range(self._restarts)),
                key=lambda fit: fit[0],
            )
            log.append({"step": group, "log_likelihood": best[0]})
            found.append((count / len(flat), best[1]))
        rank = max(len(part["deviation"][0]) for _, part in found)
        parts = [_padded(part, rank) for _, part in found]
        shares = torch.tensor([share for share, _ in found], dtype=torch.float64)
        tensors = {k: torch.cat([p[k] for p in parts]).float() for k in parts[0]}
        tensors["weight"] = torch.stack([p["weight"] for p in parts]).float()
        self.restore({**tensors, "share": shares.float()})
        return log

    @property
    def _restarts(self) -> int:
        return self.config.restarts if self.config.mixture > 1 else 1

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes the parameters of a fitted mixture."""
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def _expectation(
        self, rows: Float[Tensor, "n d"], seed: int, group: int, restart: int
    ) -> tuple[float, dict[str, Tensor]]:
        """Expectation maximization from centers that are far apart (k-means++)."""
        count = self.config.mixture
        random = np.random.default_rng([seed, group, restart])
        share = torch.ones(len(rows), count, dtype=rows.dtype)
        if count > 1:
            centers = rows[random.integers(len(rows))][None]
            for _ in range(count - 1):
                far = torch.cdist(rows, centers).min(1).values.square().numpy()
                place = random.choice(len(rows), p=far / far.sum())
                centers = torch.cat([centers, rows[place][None]])
            share = torch.nn.functional.one_hot(torch.cdist(rows, centers).argmin(1), count)
            share = share.to(rows.dtype)
        before, likelihood = -math.inf, -math.inf
        for _ in range(self.config.iterations):
            weight = (share.sum(0) / len(rows)).clamp(min=1e-12)
            parts = [self._normal(rows, share[:, k]) for k in range(count)]
            fit = {k: torch.stack([part[k] for part in parts]) for k in parts[0]}
            joint = _log_normal(rows, fit) + weight.log()
            likelihood = float(joint.logsumexp(1).mean())
            if likelihood - before < 1e-6 * abs(likelihood):
                break
            before, share = likelihood, joint.softmax(1)
        return likelihood, {**fit, "weight": weight}

    def _normal(self, rows: Float[Tensor, "n d"], share: Float[Tensor, "n"]) -> dict[str, Tensor]:
        """Mean and shrunk covariance of weighted rows."""
        total = share.sum().clamp(min=1e-9)
        mean = (share[:, None] * rows).sum(0) / total
        centered = (rows - mean) * (share / total).sqrt()[:, None]
        size = rows.shape[1]
        if self.config.covariance == "diagonal":
            variance = centered.square().sum(0)
            least = 1e-6 * variance.mean() + 1e-12
            return {"mean": mean, "deviation": (variance + least).sqrt()}
        if size <= len(rows):
            values, vectors = torch.linalg.eigh(centered.T @ centered)
            axes = vectors.T
        else:
            values, vectors = torch.linalg.eigh(centered @ centered.T)
            axes = vectors.T @ centered
            axes = axes / axes.norm(dim=1, keepdim=True).clamp(min=1e-12)
            axes, values = axes[1:], values[1:]  # the mean took one direction
        values = values.clamp(min=0)
        ball, shrink = values.sum() / size, shrinkage(values, size, float(total))
        least = shrink * ball + 1e-9 * ball + 1e-15
        deviation = ((1 - shrink) * values + least).sqrt()
        return {"mean": mean, "axes": axes, "deviation": deviation, "rest": least.sqrt()}

    def log_prob(
        self, rows: Float[Tensor, "n *shape"], labels: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        joint = _log_normal(rows.flatten(1).double(), self._double()) + self._log_weights(labels)
        return joint.logsumexp(1).float()

    def _double(self) -> dict[str, Tensor]:
        names = ("mean", "deviation", "axes", "rest")
        return {n: getattr(self, n).double() for n in names if hasattr(self, n)}

    def _log_weights(self, labels: Int[Tensor, "n"]) -> Float[Tensor, "n k"]:
        """Log-weights of all normal distributions for each row: of its class, or of all."""
        each = self.weight.double().log()
        free = (self.share.double().log()[:, None] + each).flatten()
        if not self.classes:
            return free.expand(len(labels), -1)
        own = torch.arange(self.groups, device=labels.device) == labels[:, None]
        own = torch.where(own[:, :, None], each, -math.inf).flatten(1)
        return torch.where((labels < 0)[:, None], free, own)

    def sample(
        self, draw: Draw, labels: Int[Tensor, "n"], sampling: Sampling
    ) -> Float[Tensor, "n *shape"]:
        shares = self._log_weights(labels).exp().cumsum(1)
        index = (draw.uniform("which", 1) * shares[:, -1:] >= shares).sum(1)
        index = index.clamp(max=shares.shape[1] - 1)
        size = math.prod(self.shape)
        inside = self.deviation[index] * draw.normal("row", self.deviation.shape[1])
        found = torch.zeros(len(index), size, device=self.mean.device)
        if self.config.covariance == "diagonal":
            found = self.mean[index] + inside
            return found.reshape(len(found), *self.shape)
        rank = self.axes.shape[1]
        other = draw.normal("rest", size) if rank < size else None
        for k in index.unique().tolist():
            chosen, axes = index == k, self.axes[k]
            found[chosen] = self.mean[k] + inside[chosen] @ axes
            if other is not None:
                outside = other[chosen] - other[chosen] @ axes.T @ axes
                found[chosen] += self.rest[k] * outside
        return found.reshape(len(found), *self.shape)


def _log_normal(rows: Float[Tensor, "n d"], fit: dict[str, Tensor]) -> Float[Tensor, "n k"]:
    """Log-density of rows under each normal distribution."""
    size = rows.shape[1]
    found = []
    for k in range(len(fit["mean"])):
        centered, deviation = rows - fit["mean"][k], fit["deviation"][k]
        if "axes" not in fit:
            square = (centered / deviation).square().sum(1)
            volume = deviation.log().sum()
        else:
            axes, rest = fit["axes"][k], fit["rest"][k]
            used = axes.square().sum(1) > 0.5  # others are padding
            along = centered @ axes.T
            square = (along / deviation).square().sum(1)
            outside = centered.square().sum(1) - along.square().sum(1)
            volume = (deviation.log() * used).sum()
            left = size - int(used.sum())
            if left:
                square = square + outside.clamp(min=0) / rest.square()
                volume = volume + left * rest.log()
        found.append(-0.5 * (square + size * math.log(2 * math.pi)) - volume)
    return torch.stack(found, 1)


def _padded(part: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The axes of fewer rows filled up with none."""
    if "axes" not in part:
        return part
    more = rank - part["axes"].shape[1]
    axes = torch.nn.functional.pad(part["axes"], (0, 0, 0, more))
    deviation = torch.nn.functional.pad(part["deviation"], (0, more), value=1.0)
    return {**part, "axes": axes, "deviation": deviation}
